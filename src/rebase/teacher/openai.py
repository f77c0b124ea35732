"""The teacher behind the chat completions API of OpenAI, or of a compatible server (vLLM, llama.cpp and others)."""

import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from rebase.teacher.api import THINKING_TOKENS, ApiTeacher, error_words
from rebase.teacher.batches import BatchState, Retry, read_item, required
from rebase.teacher.dialects import Dialect
from rebase.teacher.protocol import Failure, Request, Response, token_count

if TYPE_CHECKING:
    import openai

#: Our names of the finish reasons of the API and of other servers; with any other, or none, the model has finished.
_FINISH = {"length": "length", "max_tokens": "length", "model_length": "length", "content_filter": "refusal"}


def _openai_dialect(effort: str | None = None, *, reasons: bool = False) -> Dialect:
    """Return what a model of OpenAI accepts, with its lowest reasoning effort. One that ``reasons`` always does."""
    arguments = {"reasoning_effort": effort} if effort else {}
    thinking_tokens = THINKING_TOKENS if reasons else 0
    return Dialect(
        "json_schema", "max_completion_tokens", thinking_tokens, not reasons, lengths=False, arguments=arguments
    )


#: OpenAI's models by name; the first pattern that matches counts.
FAMILIES: tuple[tuple[str, Dialect], ...] = (
    (r"gpt-\d.*-pro", _openai_dialect(reasons=True)),
    (r"o\d|gpt-6-astra|gpt-6\.1-sol", _openai_dialect("low", reasons=True)),
    (r"gpt-5(-|$)", _openai_dialect("minimal", reasons=True)),
    # From 5.1 on reasoning can be turned off, and then a temperature is accepted.
    (r"gpt-([5-9]|\d\d)", _openai_dialect("none")),
)


@dataclass(frozen=True)
class OpenAITeacher(ApiTeacher):
    """A chat model. For another server, set by ``base_url``, the key is optional."""

    provider: ClassVar[str] = "openai"  # type: ignore[misc]
    key_variable: ClassVar[str] = "OPENAI_API_KEY"
    path: ClassVar[str] = "/chat/completions"
    address_ending: ClassVar[str] = "/v1"

    @property
    def needs_key(self) -> bool:
        """OpenAI requires a key; other servers may not."""
        host = urlsplit(self.base_url or "").hostname or ""
        return not self.base_url or host.endswith((".openai.com", ".openai.azure.com"))

    def sdk(self) -> tuple[Any, type, type]:
        """Return OpenAI's SDK."""
        import openai

        return openai, openai.AsyncOpenAI, openai.DefaultAsyncHttpxClient

    async def first_dialect(self, client: Any) -> Dialect:
        """Return what the model accepts by its name, also behind a gateway.

        Other servers know the older ``max_tokens`` (some of them no other), and accept any schema.
        """
        other = _openai_dialect() if self.needs_key else Dialect()
        name = self.model.rpartition("/")[2]
        dialect = next((dialect for pattern, dialect in FAMILIES if re.match(pattern, name)), other)
        if self.structured_output != "auto":
            return replace(dialect, structure=self.structured_output)
        return dialect

    def arguments(self, dialect: Dialect, request: Request) -> dict[str, Any]:
        """Return the body of a request; ``response_format`` enforces the schema, if the server can."""
        system = [{"role": "system", "content": request.system}] if request.system else []
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": system + [{"role": turn.role, "content": turn.content} for turn in request.messages],
        }
        if dialect.structure == "json_schema":
            schema = {"name": "response", "strict": True, "schema": request.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif dialect.structure == "json_object":
            arguments["response_format"] = {"type": "json_object"}
        arguments[dialect.limit] = request.sampling.max_tokens + dialect.thinking_tokens
        if dialect.temperature:
            arguments["temperature"] = request.sampling.temperature
        return arguments

    def read(self, body: dict[str, Any], key: str) -> Response:
        """Make a response of a completion. Some servers put the answer among the thoughts, or count no tokens."""
        choice = body["choices"][0]
        message = choice["message"]
        finish = "refusal" if message.get("refusal") else _FINISH.get(choice.get("finish_reason"), "stop")
        names = (
            ("refusal", "content") if finish == "length" else ("refusal", "content", "reasoning_content", "reasoning")
        )
        text = next((text for name in names if (text := _as_text(message.get(name))).strip()), "")
        usage = body.get("usage") or {}
        tokens = (token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens")))
        return Response(key, text, finish, *tokens)

    def batches(self, client: Any) -> "_FileBatches":
        """Return the Batch API."""
        return _FileBatches(client, self)


class _FileBatches:
    """The Batch API (see ``BatchApi``). A lost batch is found by our token in its metadata."""

    most_requests = 50_000
    most_bytes = 200_000_000

    def __init__(self, client: "openai.AsyncOpenAI", teacher: OpenAITeacher) -> None:
        self._client = client
        self._teacher = teacher

    def line(self, key: str, request: Request) -> dict[str, Any]:
        body = self._teacher.body(request)
        return {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}

    async def submit(self, lines: list[dict[str, Any]], token: str) -> str:
        content = "\n".join(map(json.dumps, lines)).encode()
        file = await self._client.files.create(file=(f"{token}.jsonl", io.BytesIO(content)), purpose="batch")
        batch = await self._client.with_options(max_retries=0).batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"rebase": token},
        )
        return required(batch.id)

    async def find(self, token: str, keys: set[str], since: datetime) -> list[str]:
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get("rebase") == token:
                return [batch.id]
            if batch.created_at < since.timestamp() - 300:
                break
        return []

    async def state(self, batch_id: str) -> BatchState:
        batch = await self._client.batches.retrieve(batch_id)
        if batch.status == "failed":
            errors = (batch.errors and batch.errors.data) or []
            reasons = [" ".join(filter(None, (error.code, error.message))) for error in errors]
            return BatchState(True, "; ".join(reasons) or "no reason was given")
        return BatchState(required(batch.status) in ("completed", "expired", "cancelled"))

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Retry]]:
        batch = await self._client.batches.retrieve(batch_id)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._client.files.content(file_id)
            for item in (json.loads(line) for line in content.text.split("\n") if line.strip()):
                if isinstance(item, dict) and "custom_id" in item:
                    yield str(item["custom_id"]), self._read_item(str(item["custom_id"]), item)

    def _read_item(self, key: str, item: dict[str, Any]) -> Response | Failure | Retry:
        """Read one line of a batch's output or error file. Some servers write an error where others have a body."""
        http_response = item.get("response")
        http_response = http_response if isinstance(http_response, dict) else {}
        code, body = str(http_response.get("status_code")), http_response.get("body")
        status = int(code) if code.isdecimal() else 0
        if status == 200 and isinstance(body, dict):
            return read_item(key, self._teacher.read, body)
        words = self._teacher.redact(error_words(body) or error_words(item.get("error")) or "no response")
        if not status or status == 429 or status >= 500:  # without a status the item expired or was cancelled first
            return Retry(words)
        return Failure(key, f"status {status}: {words}")


def _as_text(content: Any) -> str:
    """Return the text of a message: of its parts those that are text, not thoughts."""
    if isinstance(content, list):
        return "".join(_as_text(part["text"]) for part in content if part.get("type") in ("text", "output_text"))
    return content if isinstance(content, str) else json.dumps(content) if content is not None else ""
