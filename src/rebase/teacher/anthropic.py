"""The teacher behind Anthropic's Messages API, through the official SDK."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar

from rebase.errors import RebaseError
from rebase.teacher.api import THINKING_TOKENS, ApiTeacher, Clients, Connection
from rebase.teacher.batches import BatchState, Retry, read_item
from rebase.teacher.protocol import Failure, Request, Response

if TYPE_CHECKING:
    import anthropic

#: Our names of the API's stop reasons; with any other the model has finished.
_FINISH = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "refusal"}
#: Errors of a batch's item that may pass.
_TRANSIENT = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
#: A batch is created within this time of its submission, by the provider's clock and ours.
_SUBMITTING = timedelta(minutes=15)


@dataclass(frozen=True)
class AnthropicTeacher(ApiTeacher):
    """A Claude model. The API accepts no temperature (since its version of 2026-10-21)."""

    provider: ClassVar[str] = "anthropic"  # type: ignore[misc]
    key_variable: ClassVar[str] = "ANTHROPIC_API_KEY"

    @asynccontextmanager
    async def connect(self, clients: Clients) -> AsyncIterator[Connection]:
        """Open the clients and read the model's capabilities."""
        import anthropic
        import httpx2

        opened = await clients.make(
            anthropic.AsyncAnthropic, anthropic.DefaultAsyncHttpxClient, api_key=self.api_key, base_url=self.base_url
        )
        settings = model_settings(self.model, await self._capabilities(opened[0]))
        turns = cycle(opened)

        async def send(request: Request) -> Any:
            body = request_arguments(self.model, settings, request)
            return await next(turns).post("/v1/messages", body=body, cast_to=httpx2.Response)

        batches = _Batches(opened[0], self.model, settings)
        yield Connection(anthropic, send, _read, batches, temperature=False, thinking_tokens=settings.thinking_tokens)

    async def _capabilities(self, client: "anthropic.AsyncAnthropic") -> dict[str, Any]:
        """Return the model's capabilities by the Models API, or an empty dict.

        Servers that only imitate the Messages API have no Models API. A wrong key or model shows in the first request.
        """
        import anthropic

        try:
            return (await client.models.retrieve(self.model)).to_dict().get("capabilities") or {}  # type: ignore[return-value]
        except anthropic.APIConnectionError as error:
            self.raise_if_final(error, anthropic)
        except (anthropic.APIError, AttributeError, ValueError):
            pass
        return {}


class _Batches:
    """Message Batches (see ``BatchApi``). They carry no token of ours: a lost batch is recognized by its items."""

    most_requests = 100_000
    most_bytes = 256_000_000

    def __init__(self, client: "anthropic.AsyncAnthropic", model: str, settings: "ModelSettings") -> None:
        self._client = client
        self._model = model
        self._settings = settings

    def line(self, key: str, request: Request) -> dict[str, Any]:
        return {"custom_id": key, "params": request_arguments(self._model, self._settings, request)}

    async def submit(self, lines: list[dict[str, Any]], token: str) -> str:
        batch = await self._client.with_options(max_retries=0).messages.batches.create(requests=lines)  # type: ignore[arg-type]
        return batch.id

    async def find(self, token: str, keys: set[str], since: datetime) -> list[str]:
        batch_ids = []
        async for batch in self._client.messages.batches.list(limit=100):
            if batch.created_at < since - _SUBMITTING:
                break
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if total == len(keys) and batch.created_at < since + _SUBMITTING:
                batch_ids.append(batch.id)
        return batch_ids

    async def state(self, batch_id: str) -> BatchState:
        batch = await self._client.messages.batches.retrieve(batch_id)
        return BatchState(batch.processing_status == "ended")

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Retry]]:
        async for item in await self._client.messages.batches.results(batch_id):
            key, result = item.custom_id, item.result
            if result.type == "succeeded":
                yield key, read_item(key, _read, result.message.to_dict())
            elif result.type == "errored" and result.error.error.type not in _TRANSIENT:
                yield key, Failure(key, f"{result.error.error.type}: {result.error.error.message}")
            else:
                yield key, Retry(result.type)


@dataclass(frozen=True)
class ModelSettings:
    """What a model's requests need in addition.

    ``arguments`` are part of the body, ``effort`` of its ``output_config``; ``thinking_tokens`` are added to
    ``max_tokens``.
    """

    arguments: dict[str, Any]
    effort: str | None = None
    thinking_tokens: int = 0


def model_settings(model: str, capabilities: dict[str, Any]) -> ModelSettings:
    """Return the settings that turn reasoning off, or else make it as short as possible.

    ``capabilities`` come from the Models API; if they are empty, the API's defaults apply.
    """
    if _supports(capabilities, "structured_outputs") is False:
        raise RebaseError(f"The model {model} does not support JSON schemas. Set another teacher.model in globals.yml.")
    for kind in ("disabled", "between_tools"):
        if _supports(capabilities, "thinking", "types", kind):
            return ModelSettings({"thinking": {"type": kind}})
    if not _supports(capabilities, "thinking"):
        return ModelSettings({})
    effort = "low" if _supports(capabilities, "effort", "low") else None
    return ModelSettings({}, effort, THINKING_TOKENS)


def _supports(capabilities: dict[str, Any], *path: str) -> bool | None:
    """Whether the model has a capability; None if the Models API does not say."""
    node: Any = capabilities
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node.get("supported") if isinstance(node, dict) else None


def request_arguments(model: str, settings: ModelSettings, request: Request) -> dict[str, Any]:
    """Return the body of a request; the API's structured output enforces the schema."""
    output: dict[str, Any] = {"format": {"type": "json_schema", "schema": _schema(json.dumps(request.schema))}}
    if settings.effort:
        output["effort"] = settings.effort
    return {
        "model": model,
        "max_tokens": request.sampling.max_tokens + settings.thinking_tokens,
        **({"system": request.system} if request.system else {}),
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "output_config": output,
        **settings.arguments,
    }


@lru_cache(maxsize=64)
def _schema(schema: str) -> dict[str, Any]:
    """Return the schema as the API accepts it. Cached: a run has few schemas, and the SDK needs a millisecond."""
    import anthropic

    return anthropic.transform_schema(json.loads(schema))


def _read(body: dict[str, Any], key: str) -> Response:
    """Join the text blocks (a thinking block may precede them); a refusal without text has an explanation."""
    text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
    if not text:
        text = (body.get("stop_details") or {}).get("explanation") or ""
    usage = body["usage"]
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    input_tokens = sum(usage.get(name) or 0 for name in names)
    return Response(key, text, _FINISH.get(body["stop_reason"] or "", "stop"), input_tokens, usage["output_tokens"])
