"""The teacher behind the chat completions API of OpenAI, or of a compatible server (vLLM, Ollama and others)."""

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from rebase.teacher.api import THINKING_TOKENS, ApiTeacher, Clients, Connection
from rebase.teacher.batches import BatchState, Retry, read_item
from rebase.teacher.protocol import Failure, Request, Response

if TYPE_CHECKING:
    import openai

#: Our names of the API's finish reasons; with any other the model has finished.
_FINISH = {"length": "length", "content_filter": "refusal"}


@dataclass(frozen=True)
class Family:
    """What a family of models accepts.

    ``limit`` is the parameter that bounds the response, ``effort`` the lowest reasoning effort. ``thinking_tokens`` are
    added to the bound. ``lengths`` says whether a schema may bound text lengths.
    """

    limit: str = "max_completion_tokens"
    temperature: bool = True
    effort: str | None = None
    thinking_tokens: int = 0
    lengths: bool = False


#: OpenAI's models by name; the first pattern that matches counts.
FAMILIES: tuple[tuple[str, Family], ...] = (
    (r"gpt-\d.*-pro", Family(temperature=False, thinking_tokens=THINKING_TOKENS)),
    (r"o\d", Family(temperature=False, effort="low", thinking_tokens=THINKING_TOKENS)),
    (r"gpt-6-astra|gpt-6\.1-sol", Family(temperature=False, effort="low", thinking_tokens=THINKING_TOKENS)),
    (r"gpt-5(-|$)", Family(temperature=False, effort="minimal", thinking_tokens=THINKING_TOKENS)),
    # From 5.1 on reasoning can be turned off, and then a temperature is accepted.
    (r"gpt-([5-9]|\d\d)", Family(effort="none")),
    (r"", Family()),
)
#: Other servers know the older parameter (some of them no other), and accept any schema.
COMPATIBLE = Family(limit="max_tokens", lengths=True)


@dataclass(frozen=True)
class OpenAITeacher(ApiTeacher):
    """A chat model. For another server, set by ``base_url``, the key is optional."""

    provider: ClassVar[str] = "openai"  # type: ignore[misc]
    key_variable: ClassVar[str] = "OPENAI_API_KEY"

    @property
    def needs_key(self) -> bool:
        """OpenAI requires a key; other servers may not."""
        return self._is_openai

    @property
    def family(self) -> Family:
        """What the model accepts."""
        if not self._is_openai:
            return COMPATIBLE
        return next(family for pattern, family in FAMILIES if re.match(pattern, self.model))

    @property
    def _is_openai(self) -> bool:
        host = urlsplit(self.base_url or "").hostname or ""
        return not self.base_url or host.endswith((".openai.com", ".openai.azure.com"))

    @asynccontextmanager
    async def connect(self, clients: Clients) -> AsyncIterator[Connection]:
        """Open the clients."""
        import httpx2
        import openai

        # The SDK requires a key, even if the server does not.
        opened = await clients.make(
            openai.AsyncOpenAI, openai.DefaultAsyncHttpxClient, api_key=self.api_key or "none", base_url=self.base_url
        )
        turns = cycle(opened)
        family = self.family

        async def send(request: Request) -> Any:
            body = request_arguments(self.model, family, request)
            return await next(turns).post("/chat/completions", body=body, cast_to=httpx2.Response)

        batches = _Batches(opened[0], self.model, family)
        yield Connection(openai, send, _read, batches, family.temperature, family.thinking_tokens)


class _Batches:
    """The Batch API (see ``BatchApi``). A lost batch is found by our token in its metadata."""

    most_requests = 50_000
    most_bytes = 200_000_000

    def __init__(self, client: "openai.AsyncOpenAI", model: str, family: Family) -> None:
        self._client = client
        self._model = model
        self._family = family

    def line(self, key: str, request: Request) -> dict[str, Any]:
        body = request_arguments(self._model, self._family, request)
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
        return batch.id

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
            return BatchState(True, "; ".join(error.message or "" for error in errors) or "no reason was given")
        return BatchState(batch.status in ("completed", "expired", "cancelled"))

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Retry]]:
        batch = await self._client.batches.retrieve(batch_id)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self._client.files.content(file_id)
            for line in content.text.split("\n"):
                if line.strip():
                    item = json.loads(line)
                    yield item["custom_id"], _read_item(item)


def request_arguments(model: str, family: Family, request: Request) -> dict[str, Any]:
    """Return the body of a request; ``response_format`` enforces the schema."""
    system = [{"role": "system", "content": request.system}] if request.system else []
    schema = request.schema if family.lengths else without_lengths(request.schema)
    arguments: dict[str, Any] = {
        "model": model,
        "messages": system + [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "response", "strict": True, "schema": schema},
        },
        family.limit: request.sampling.max_tokens + family.thinking_tokens,
    }
    if family.temperature:
        arguments["temperature"] = request.sampling.temperature
    if family.effort:
        arguments["reasoning_effort"] = family.effort
    return arguments


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


def _read(body: dict[str, Any], key: str) -> Response:
    choice = body["choices"][0]
    refusal = choice["message"].get("refusal")
    finish = "refusal" if refusal else _FINISH.get(choice["finish_reason"], "stop")
    usage = body.get("usage") or {}  # not every server counts tokens
    text = refusal or choice["message"]["content"] or ""
    return Response(key, text, finish, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))


def _read_item(item: dict[str, Any]) -> Response | Failure | Retry:
    """Read one line of a batch's output or error file."""
    key, http_response, error = item["custom_id"], item.get("response"), item.get("error") or {}
    if http_response is None:  # the batch expired or was cancelled first
        return Retry(error.get("code") or "no response")
    status, body = http_response["status_code"], http_response["body"]
    if status == 200:
        return read_item(key, _read, body)
    if status == 429 or status >= 500:
        return Retry(f"status {status}")
    return Failure(key, f"status {status}: {(body.get('error') or {}).get('message', body)}")
