"""Estimate requests, tokens and dollars before any request is sent, each as a range from low to high."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rebase.teacher.budget import Price
from rebase.teacher.protocol import Request
from rebase.text import approximate_tokens

#: A quantity from low to high.
Range = tuple[float, float]


@dataclass(frozen=True)
class CostEstimate:
    """The number of requests, and the tokens of all of them."""

    requests: Range
    input_tokens: Range
    output_tokens: Range

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> "CostEstimate":
        """Read what ``summary`` wrote."""
        return cls(*(tuple(summary[name]) for name in ("requests", "input_tokens", "output_tokens")))

    def __add__(self, other: "CostEstimate") -> "CostEstimate":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return CostEstimate(*((low + other_low, high + other_high) for (low, high), (other_low, other_high) in pairs))

    def dollars(self, price: Price | None, *, batch: bool = False) -> list[float] | None:
        """The cost, low and high; None without a price."""
        tokens = zip(self.input_tokens, self.output_tokens, strict=True)
        return [price.dollars(read, written, batch=batch) for read, written in tokens] if price else None

    def summary(self, price: Price | None) -> dict[str, Any]:
        """The estimate as JSON, each quantity as ``[low, high]``."""
        return {name: list(quantity) for name, quantity in vars(self).items()} | {
            "dollars": self.dollars(price),
            "dollars_batch": self.dollars(price, batch=True),
        }


def estimate_requests(
    requests: Sequence[Request], minimum: int, responses: Sequence[str], tokens_per_character: float | None
) -> CostEstimate:
    """Estimate a stage that sends at least the first ``minimum`` of the requests, and at most all.

    ``responses`` are rendered from the task's examples and bound the length of a response. ``tokens_per_character`` is
    what the provider counted for earlier prompts; without it ``approximate_tokens`` counts.
    """
    read = [input_tokens(request, tokens_per_character) for request in requests]
    written = [approximate_tokens(response) for response in responses]
    minimum = min(minimum, len(requests))
    limit = min((request.sampling.max_tokens for request in requests), default=0)
    return CostEstimate(
        (minimum, len(requests)),
        (round(sum(read[:minimum])), round(sum(read))),
        (minimum * min(limit, *written), len(requests) * min(limit, max(written))),
    )


def input_tokens(request: Request, tokens_per_character: float | None) -> float:
    """The input tokens of a request."""
    if tokens_per_character is not None:
        return request.characters * tokens_per_character
    texts = [request.system, *(turn.content for turn in request.messages), json.dumps(request.schema)]
    return sum(map(approximate_tokens, texts))
