"""The settings of a teacher: the group ``teacher`` of globals.yml."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from rebase.records import Strict

#: How a response is held to its JSON schema. ``json_object`` and ``prompt`` write the schema into the prompt.
Structure = Literal["json_schema", "json_object", "prompt"]
#: The addresses of the providers themselves.
_OWN_ADDRESSES = ("https://api.openai.com/v1", "https://api.anthropic.com")
_SET_BY_REBASE = ("model", "messages", "stream")
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
HeaderValue = Annotated[str, Field(pattern=r"^[ -~]*$")]


class BudgetSettings(Strict):
    """Bounds on the responses of one run; None means no bound.

    Cached responses count with their original price, so a run that is interrupted and started again stays within one
    budget. At the bound the run either continues with the responses that it has, or stops with an error.
    """

    budget_usd: float | None = Field(default=None, gt=0, le=1_000_000)
    max_requests: int | None = Field(default=None, gt=0, le=1_000_000_000)
    on_budget: Literal["continue", "stop"] = "continue"


class TeacherSettings(BudgetSettings):
    """All settings of a teacher, for every provider.

    ``provider`` is a name in ``rebase.teacher.registry``. ``revision`` is for local models; ``base_url``,
    ``structured_output``, ``extra_body`` (fields of each request's body) and ``headers`` are for hosted ones. ``batch``
    sends requests through the provider's batch API. ``timeout`` bounds the seconds of a whole response.
    """

    provider: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str | None = None
    base_url: str | None = Field(default=None, pattern=r"^https?://[^/\s]+")
    structured_output: Structure | Literal["auto"] = "auto"
    extra_body: dict[str, Any] = Field(default_factory=dict)
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict, repr=False)
    batch: bool = False
    max_concurrency: int = Field(default=64, ge=1, le=10_000)
    timeout: float = Field(default=120.0, gt=0, le=86_400)

    @field_validator("extra_body")
    @classmethod
    def _leaves_our_fields(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        if names := [name for name in _SET_BY_REBASE if name in extra_body]:
            raise ValueError(f"it cannot set {', '.join(names)}: remove that")
        return extra_body


def server_address(base_url: str | None, extra_body: Mapping[str, Any]) -> str:
    """Return the part of a response's key that names the server; empty for the provider's own.

    It is the address without login, query and final slash. A digest of ``extra_body``, which changes the responses, is
    added as a fragment.
    """
    parts = urlsplit(base_url or "")
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/") if base_url else ""
    digest = sha256(json.dumps(extra_body, sort_keys=True).encode()).hexdigest()[:12] if extra_body else ""
    return ("" if address in _OWN_ADDRESSES else address) + (f"#{digest}" if digest else "")
