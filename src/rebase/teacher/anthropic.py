"""The teacher behind Anthropic's Messages API, through the official SDK."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from rebase.errors import RebaseError
from rebase.teacher.api import THINKING_TOKENS, ApiTeacher
from rebase.teacher.batches import BatchState, Retry, read_item, required
from rebase.teacher.dialects import Dialect
from rebase.teacher.protocol import Failure, Request, Response, token_count
from rebase.teacher.settings import Structure

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
    path: ClassVar[str] = "/v1/messages"

    def sdk(self) -> tuple[Any, type, type]:
        """Return Anthropic's SDK."""
        import anthropic

        return anthropic, anthropic.AsyncAnthropic, anthropic.DefaultAsyncHttpxClient

    async def first_dialect(self, client: "anthropic.AsyncAnthropic") -> Dialect:
        """Return what the model accepts by the Models API.

        Servers that only imitate the Messages API have no Models API. A wrong key or model shows in the first request.
        """
        import anthropic

        capabilities: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self.timeout):
                capabilities = (await client.models.retrieve(self.model)).to_dict().get("capabilities") or {}  # type: ignore[assignment]
        except anthropic.APIConnectionError as error:
            self.raise_if_final(error, anthropic)
        except (anthropic.APIError, AttributeError, TimeoutError, ValueError, RecursionError):
            pass
        structure = "json_schema" if self.structured_output == "auto" else self.structured_output
        return model_dialect(self.model, capabilities, structure)

    def arguments(self, dialect: Dialect, request: Request) -> dict[str, Any]:
        """Return the body of a request; the API's structured output enforces the schema, if the server can."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.sampling.max_tokens + dialect.thinking_tokens,
            **({"system": request.system} if request.system else {}),
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        }
        if dialect.structure == "json_schema":
            output = {"type": "json_schema", "schema": _schema(json.dumps(request.schema))}
            arguments["output_config"] = {**dialect.arguments.get("output_config", {}), "format": output}
        return arguments

    def read(self, body: dict[str, Any], key: str) -> Response:
        """Join the text blocks (a thinking block may precede them); a refusal without text has an explanation."""
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        if not text:
            text = (body.get("stop_details") or {}).get("explanation") or ""
            body["stop_reason"]  # a body without both is no response
        usage = body.get("usage") or {}
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        tokens = (sum(token_count(usage.get(name)) for name in names), token_count(usage.get("output_tokens")))
        return Response(key, text, _FINISH.get(body.get("stop_reason") or "", "stop"), *tokens)

    def batches(self, client: Any) -> "_MessageBatches":
        """Return Message Batches."""
        return _MessageBatches(client, self)


class _MessageBatches:
    """Message Batches (see ``BatchApi``). They carry no token of ours: a lost batch is recognized by its items."""

    most_requests = 100_000
    most_bytes = 256_000_000

    def __init__(self, client: "anthropic.AsyncAnthropic", teacher: AnthropicTeacher) -> None:
        self._client = client
        self._teacher = teacher

    def line(self, key: str, request: Request) -> dict[str, Any]:
        return {"custom_id": key, "params": self._teacher.body(request)}

    async def submit(self, lines: list[dict[str, Any]], token: str) -> str:
        batch = await self._client.with_options(max_retries=0).messages.batches.create(requests=lines)  # type: ignore[arg-type]
        return required(batch.id)

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
        return BatchState(required(batch.processing_status) == "ended")

    async def results(self, batch_id: str) -> AsyncIterator[tuple[str, Response | Failure | Retry]]:
        async for item in await self._client.messages.batches.results(batch_id):
            key, result = item.custom_id, item.result
            if result.type == "succeeded":
                yield key, read_item(key, self._teacher.read, result.message.to_dict())
            elif result.type == "errored" and result.error.error.type not in _TRANSIENT:
                yield key, Failure(key, f"{result.error.error.type}: {result.error.error.message}")
            else:
                yield key, Retry(result.type)


def model_dialect(model: str, capabilities: dict[str, Any], structure: Structure) -> Dialect:
    """Return what a model accepts, with reasoning turned off or else as short as possible.

    ``capabilities`` come from the Models API; if they are empty, the API's defaults apply.
    """
    if structure == "json_schema" and _supports(capabilities, "structured_outputs") is False:
        raise RebaseError(
            f"The model {model} does not support JSON schemas. Set another teacher.model in globals.yml, or "
            "teacher.structured_output: prompt."
        )
    dialect = Dialect(structure, temperature=False)
    for kind in ("disabled", "between_tools"):
        if _supports(capabilities, "thinking", "types", kind):
            return replace(dialect, arguments={"thinking": {"type": kind}})
    if not _supports(capabilities, "thinking"):
        return dialect
    effort = {"output_config": {"effort": "low"}} if _supports(capabilities, "effort", "low") else {}
    return replace(dialect, arguments=effort, thinking_tokens=THINKING_TOKENS)


def _supports(capabilities: dict[str, Any], *path: str) -> bool | None:
    """Whether the model has a capability; None if the Models API does not say."""
    node: Any = capabilities
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node.get("supported") if isinstance(node, dict) else None


@lru_cache(maxsize=64)
def _schema(schema: str) -> dict[str, Any]:
    """Return the schema as the API accepts it. Cached: a run has few schemas, and the SDK needs a millisecond."""
    import anthropic

    return anthropic.transform_schema(json.loads(schema))
