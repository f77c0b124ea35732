"""Teachers of Anthropic's Messages API, through the official SDK."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rebase.errors import RebaseError
from rebase.teacher.api import RETRIES, THINKING_TOKENS, ApiTeacher, Connection
from rebase.teacher.protocol import Reply, Request

if TYPE_CHECKING:
    import anthropic

#: Our word for the API's stop reasons; the others mean that the model had finished.
_FINISH = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "refusal"}


@dataclass(frozen=True)
class AnthropicTeacher(ApiTeacher):
    """A Claude model. The API takes no temperature (since its version of 2026-10-21)."""

    provider: ClassVar[str] = "anthropic"
    key_variable: ClassVar[str] = "ANTHROPIC_API_KEY"

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open the client, and ask what the model can do."""
        import anthropic

        with anthropic.Anthropic(api_key=self.api_key, base_url=self.base_url, max_retries=RETRIES) as client:
            settings = model_settings(self.model, self._capabilities(client))

            def send(request: Request) -> Any:
                return client.messages.create(**request_arguments(self.model, settings, request))

            yield Connection(anthropic, send, _read, temperature=False)

    def _capabilities(self, client: "anthropic.Anthropic") -> dict[str, Any]:
        """What the provider's model list says of the model; nothing where it does not say.

        Servers that only imitate the Messages API have no such list. If key or model are wrong, the first request
        tells.
        """
        import anthropic

        try:
            return client.models.retrieve(self.model).to_dict().get("capabilities") or {}  # type: ignore[return-value]
        except anthropic.APIConnectionError as error:
            self.reason(error, anthropic)
        except (anthropic.APIError, AttributeError, ValueError):
            pass
        return {}


@dataclass(frozen=True)
class ModelSettings:
    """How to ask a model for a plain reply.

    ``arguments`` are given to ``messages.create``, ``effort`` goes into its ``output_config``, and
    ``thinking_tokens`` are granted on top of the reply's.
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
    """What ``messages.create`` is given: the reply is held to the schema by the API's structured output."""
    import anthropic

    output: dict[str, Any] = {"format": {"type": "json_schema", "schema": anthropic.transform_schema(request.schema)}}
    if settings.effort:
        output["effort"] = settings.effort
    return {
        "model": model,
        "max_tokens": request.sampling.max_tokens + settings.thinking_tokens,
        "system": request.system or anthropic.omit,
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "output_config": output,
        **settings.arguments,
    }


def _read(response: "anthropic.types.Message", key: str) -> Reply:
    """The text blocks, joined (a thinking block may stand before them); of a refusal without text its explanation."""
    text = "".join(block.text for block in response.content if block.type == "text")
    if not text and response.stop_details:
        text = response.stop_details.explanation or ""
    usage = response.usage
    read = usage.input_tokens + (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    return Reply(key, text, _FINISH.get(response.stop_reason or "", "stop"), read, usage.output_tokens)
