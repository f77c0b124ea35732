"""What a server accepts, as far as it is known, and as it is learned from the server's errors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rebase.teacher.protocol import Request
from rebase.teacher.settings import Structure

_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_UNSUPPORTED = re.compile(
    r"(un|not |n't )support|not (permitted|allowed|enabled)|unavailable|unknown|unrecogni[sz]ed|unexpected|extra inputs"
)
_STRUCTURE = re.compile(r"response_format|json_schema|json_object|output_(config|format)|structured[ _]output")
_SYSTEM = re.compile(r"system (role|message|prompt|instruction)|roles?\b.*\bsystem|developer instruction")
_ALTERNATE = re.compile(r"roles must alternate|only user and assistant roles")


def names_structure(error: str) -> bool:
    """Whether an error is about how responses are held to a schema."""
    return _STRUCTURE.search(error.lower()) is not None


@dataclass(frozen=True)
class Dialect:
    """What a server accepts.

    ``limit`` is the parameter that bounds a response, and ``thinking_tokens`` are added to the bound. ``lengths`` says
    whether a schema may bound text lengths. ``arguments`` are further fields of the body.
    """

    structure: Structure = "json_schema"
    limit: str = "max_tokens"
    thinking_tokens: int = 0
    temperature: bool = True
    system: bool = True
    lengths: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def adapt(self, error: str, *, may_change_structure: bool) -> "tuple[Dialect, str] | None":
        """Return the dialect without what the error rejects, and a message; None if it rejects nothing of this."""
        error = error.lower()
        is_unsupported = _UNSUPPORTED.search(error) is not None
        if self.lengths and re.search(r"m(ax|in)length", error):
            return replace(self, lengths=False), "the server accepts no bounds on text lengths in a schema"
        if may_change_structure and self.structure != "prompt" and names_structure(error):
            other: Structure = "json_object" if self.structure == "json_schema" else "prompt"
            return replace(
                self, structure=other
            ), f"the server accepts no {self.structure}; teacher.structured_output is now {other}"
        if is_unsupported and re.search(rf"\b{self.limit}\b", error):
            other_limit = _LIMITS[self.limit]
            return replace(self, limit=other_limit), f"the server accepts no {self.limit}; it gets {other_limit}"
        if is_unsupported and self.temperature and "temperature" in error:
            return replace(self, temperature=False), ""  # its own message tells which temperature is ignored
        if is_unsupported and (named := [name for name in self.arguments if name in error]):
            return replace(self, arguments={}), f"the server accepts no {named[0]}"
        if self.system and ((is_unsupported and _SYSTEM.search(error)) or _ALTERNATE.search(error)):
            return replace(self, system=False), "the server accepts no system role; the first message has that text"
        return None

    def translate(self, request: Request) -> Request:
        """Return the request as the server accepts it: the schema or the system text may become part of a message."""
        schema = request.schema if self.lengths else without_lengths(request.schema)
        system, (first, *others) = request.system, request.messages
        if self.structure != "json_schema":
            words = f"Reply with nothing but JSON that is valid for this schema:\n{json.dumps(schema)}"
            system = "\n\n".join(filter(None, (system, words)))
        if system and not self.system:
            system, first = "", replace(first, content=f"{system}\n\n{first.content}")
        return replace(request, system=system, messages=(first, *others), schema=schema)


#: Before a server's first response.
UNKNOWN = Dialect()


def without_lengths(schema: Any) -> Any:
    """Remove the bounds on text lengths, which strict mode does not accept. Responses are validated anyway."""
    if isinstance(schema, list):
        return [without_lengths(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    is_string = schema.get("type") == "string"
    return {
        name: without_lengths(value)
        for name, value in schema.items()
        if not (is_string and name in ("minLength", "maxLength"))
    }
