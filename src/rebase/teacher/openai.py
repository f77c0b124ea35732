"""Teachers of the chat completions API: OpenAI's own, and every server that speaks it (vLLM, Ollama and others)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from rebase.teacher.api import RETRIES, THINKING_TOKENS, ApiTeacher, Connection
from rebase.teacher.protocol import Reply, Request

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

#: Our word for the API's finish reasons; the others mean that the model had finished.
_FINISH = {"length": "length", "content_filter": "refusal"}


@dataclass(frozen=True)
class Family:
    """What a family of models takes.

    ``limit`` is the parameter that bounds the reply, ``effort`` the least reasoning effort there is,
    ``thinking_tokens`` are granted on top of the reply's; ``lengths`` says if a schema may bound text lengths.
    """

    limit: str = "max_completion_tokens"
    temperature: bool = True
    effort: str | None = None
    thinking_tokens: int = 0
    lengths: bool = False


#: OpenAI's own models by name; the first pattern that fits counts.
FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"gpt-\d.*-pro", Family(temperature=False, thinking_tokens=THINKING_TOKENS)),
    (r"o\d", Family(temperature=False, effort="low", thinking_tokens=THINKING_TOKENS)),
    (r"gpt-5(-|$)", Family(temperature=False, effort="minimal", thinking_tokens=THINKING_TOKENS)),
    # From 5.1 on reasoning can be turned off, and then a temperature is taken.
    (r"gpt-([5-9]|\d\d)", Family(effort="none")),
    (r"", Family()),
)
#: Other servers know the older parameter (some of them no other), and take any schema.
COMPATIBLE = Family(limit="max_tokens", lengths=True)


@dataclass(frozen=True)
class OpenAITeacher(ApiTeacher):
    """A chat model. With a ``base_url`` of another server the key is optional."""

    provider: ClassVar[str] = "openai"
    key_variable: ClassVar[str] = "OPENAI_API_KEY"

    @property
    def needs_key(self) -> bool:
        """OpenAI itself asks for a key; a server of one's own may not."""
        return self._is_openai

    @property
    def family(self) -> Family:
        """What the model takes."""
        if not self._is_openai:
            return COMPATIBLE
        return next(family for pattern, family in FAMILIES if re.match(pattern, self.model))

    @property
    def _is_openai(self) -> bool:
        host = urlsplit(self.base_url or "").hostname or ""
        return not self.base_url or host.endswith((".openai.com", ".openai.azure.com"))

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open the client."""
        import openai

        # The SDK insists on a key; a server that needs none does not look at it.
        key = self.api_key or "none"
        with openai.OpenAI(api_key=key, base_url=self.base_url, max_retries=RETRIES) as client:

            def send(request: Request) -> Any:
                return client.chat.completions.create(**request_arguments(self.model, self.family, request))

            yield Connection(openai, send, _read, self.family.temperature)


def request_arguments(model: str, family: Family, request: Request) -> dict[str, Any]:
    """What ``chat.completions.create`` is given: the reply is held to the schema by the response format."""
    system = [{"role": "system", "content": request.system}] if request.system else []
    schema = request.schema if family.lengths else without_lengths(request.schema)
    arguments: dict[str, Any] = {
        "model": model,
        "messages": system + [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}},
        family.limit: request.sampling.max_tokens + family.thinking_tokens,
    }
    if family.temperature:
        arguments["temperature"] = request.sampling.temperature
    if family.effort:
        arguments["reasoning_effort"] = family.effort
    return arguments


def without_lengths(schema: Any) -> Any:
    """The schema without bounds on text lengths, which strict mode does not take. Replies are checked anyway."""
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


def _read(response: "ChatCompletion", key: str) -> Reply:
    choice = response.choices[0]
    refusal = choice.message.refusal
    finish = "refusal" if refusal else _FINISH.get(choice.finish_reason, "stop")
    read, written = (response.usage.prompt_tokens, response.usage.completion_tokens) if response.usage else (0, 0)
    return Reply(key, refusal or choice.message.content or "", finish, read, written)
