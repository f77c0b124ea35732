"""Teachers of Anthropic's Messages API, through the official SDK."""

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
from rebase.teacher.batches import Again, BatchState, read_item
from rebase.teacher.protocol import Failure, Request, Response

if TYPE_CHECKING:
    import anthropic

#: Our word for the API's stop reasons; the others mean that the model had finished.
_FINISH = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "refusal"}
#: Errors of a batch's item that another try may not meet.
_PASSING = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
#: A batch is made within so long of its submission, by the provider's clock and ours.
_SUBMITTING = timedelta(minutes=15)


@dataclass(frozen=True)
class AnthropicTeacher(ApiTeacher):
    """A Claude model. The API takes no temperature (since its version of 2026-10-21)."""

    provider: ClassVar[str] = "anthropic"
    key_variable: ClassVar[str] = "ANTHROPIC_API_KEY"

    @asynccontextmanager
    async def connect(self, clients: Clients) -> AsyncIterator[Connection]:
        """Open the clients, and ask what the model can do."""
        import anthropic
        import httpx2

        made = await clients.make(
            anthropic.AsyncAnthropic, anthropic.DefaultAsyncHttpxClient, api_key=self.api_key, base_url=self.base_url
        )
        settings = model_settings(self.model, await self._capabilities(made[0]))
        turns = cycle(made)

        async def send(request: Request) -> Any:
            body = request_arguments(self.model, settings, request)
            return await next(turns).post("/v1/messages", body=body, cast_to=httpx2.Response)

        batches = _Batches(made[0], self.model, settings)
        yield Connection(anthropic, send, _read, batches, temperature=False, thinking_tokens=settings.thinking_tokens)

    async def _capabilities(self, client: "anthropic.AsyncAnthropic") -> dict[str, Any]:
        """What the provider's model list says of the model; nothing where it does not say.

        Servers that only imitate the Messages API have no such list. If key or model are wrong, the first request
        tells.
        """
        import anthropic

        try:
            return (await client.models.retrieve(self.model)).to_dict().get("capabilities") or {}  # type: ignore[return-value]
        except anthropic.APIConnectionError as error:
            self.stop_where_final(error, anthropic)
        except (anthropic.APIError, AttributeError, ValueError):
            pass
        return {}


class _Batches:
    """Message Batches: see ``BatchApi``. Their list shows no mark of ours, so a lost one is known by its items."""

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
        found = []
        async for batch in self._client.messages.batches.list(limit=100):
            if batch.created_at < since - _SUBMITTING:
                break
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if total == len(keys) and batch.created_at < since + _SUBMITTING:
                found.append(batch.id)
        return found

    async def state(self, batch_id: str) -> BatchState:
        batch = await self._client.messages.batches.retrieve(batch_id)
        return BatchState(batch.processing_status == "ended")

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Again]]:
        async for item in await self._client.messages.batches.results(batch_id):
            key, result = item.custom_id, item.result
            if result.type == "succeeded":
                yield key, read_item(key, _read, result.message.to_dict())
            elif result.type == "errored" and result.error.error.type not in _PASSING:
                yield key, Failure(key, f"{result.error.error.type}: {result.error.error.message}")
            else:
                yield key, Again(result.type)


@dataclass(frozen=True)
class ModelSettings:
    """How to ask a model for a plain response.

    ``arguments`` are given to ``messages.create``, ``effort`` goes into its ``output_config``, and
    ``thinking_tokens`` are granted on top of the response's.
    """

    arguments: dict[str, Any]
    effort: str | None = None
    thinking_tokens: int = 0


def model_settings(model: str, capabilities: dict[str, Any]) -> ModelSettings:
    """The settings that fit what a model can do: it is kept from thinking, or thinks as little as it can.

    ``capabilities`` is what the Models API says; an empty one leaves all at the API's defaults.
    """
    if _supports(capabilities, "structured_outputs") is False:
        raise RebaseError(
            f"The model {model} cannot be held to a JSON schema. Set another teacher.model in globals.yml."
        )
    for kind in ("disabled", "between_tools"):
        if _supports(capabilities, "thinking", "types", kind):
            return ModelSettings({"thinking": {"type": kind}})
    if not _supports(capabilities, "thinking"):
        return ModelSettings({})
    effort = "low" if _supports(capabilities, "effort", "low") else None
    return ModelSettings({}, effort, THINKING_TOKENS)


def _supports(capabilities: dict[str, Any], *path: str) -> bool | None:
    """What the Models API says of one capability; None where it says nothing."""
    node: Any = capabilities
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node.get("supported") if isinstance(node, dict) else None


def request_arguments(model: str, settings: ModelSettings, request: Request) -> dict[str, Any]:
    """The body of a request: the response is held to the schema by the API's structured output."""
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
    """The schema as the API takes it. A run has few of them, and the SDK takes a millisecond for each."""
    import anthropic

    return anthropic.transform_schema(json.loads(schema))


def _read(body: dict[str, Any], key: str) -> Response:
    """The text blocks, joined (a thinking block may stand before them); of a refusal without text its explanation."""
    text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
    if not text:
        text = (body.get("stop_details") or {}).get("explanation") or ""
    usage = body["usage"]
    read = sum(
        usage.get(name) or 0 for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    )
    return Response(key, text, _FINISH.get(body["stop_reason"] or "", "stop"), read, usage["output_tokens"])
