"""A complete provider: a teacher that follows a rule instead of a model."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from rebase.teacher.protocol import Failure, Request, Response, Session, Teacher
from rebase.teacher.settings import TeacherSettings


@dataclass(frozen=True)
class RuleTeacher(Teacher, Session):
    """Writes the first words of the prompt into every text field, and chooses the first of several labels."""

    model: str
    provider: ClassVar[str] = "rule"

    @classmethod
    def from_settings(cls, settings: TeacherSettings, **_: Any) -> "RuleTeacher":
        """Take what this teacher needs from the group ``teacher`` of globals.yml."""
        return cls(settings.model)

    @asynccontextmanager
    async def open(self) -> AsyncIterator["RuleTeacher"]:
        """Load weights or open connections here, and release them after the ``yield``."""
        yield self

    async def generate(self, request: Request) -> Response | Failure:
        """Return one response. A Failure concerns this request only; raise RebaseError if no request can succeed."""
        key = self.key(request)
        words = request.messages[-1].content.split()[:8]
        try:
            text = json.dumps(fill(request.schema, " ".join(words)))
        except KeyError as error:
            return Failure(key, f"the rule does not support a schema without {error}")
        return Response(key, text, "stop", input_tokens=0, output_tokens=0)


def fill(schema: dict[str, Any], text: str) -> Any:
    """Return a value that fits the schema."""
    if "anyOf" in schema:
        return fill(schema["anyOf"][0], text)
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: fill(inner, text) for name, inner in schema["properties"].items()}
    return text
