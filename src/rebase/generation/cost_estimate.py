"""What asking a teacher will take, before anything is sent: requests, tokens, dollars and hours, from low to high."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rebase.teacher.api import Limits
from rebase.teacher.budget import Price
from rebase.teacher.protocol import Request
from rebase.text import approximate_tokens


@dataclass(frozen=True)
class Range:
    """A quantity between two bounds."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    @property
    def pair(self) -> list[float]:
        """The bounds, as JSON has them."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Forecast:
    """How many requests, and the tokens of all of them."""

    requests: Range
    input_tokens: Range
    output_tokens: Range

    @classmethod
    def of(cls, summary: dict[str, Any]) -> "Forecast":
        """What ``summary`` gave."""
        return cls(*(Range(*summary[name]) for name in ("requests", "input_tokens", "output_tokens")))

    def __add__(self, other: "Forecast") -> "Forecast":
        return Forecast(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def dollars(self, price: Price | None, *, batch: bool = False) -> list[float] | None:
        """What it costs, low and high; None where there is no price."""
        if price is None:
            return None
        tokens = zip(self.input_tokens.pair, self.output_tokens.pair, strict=True)
        return [price.dollars(read, written, batch=batch) for read, written in tokens]

    def hours(self, limits: Limits | None) -> list[float] | None:
        """How long it takes at least at the limits a minute, low and high; None where none is given."""
        given = limits.per_minute if limits else {}
        asked = {"requests": self.requests, "input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        waits = [[amount / limit / 60 for amount in asked[kind].pair] for kind, limit in given.items() if limit]
        return [max(low for low, _ in waits), max(high for _, high in waits)] if waits else None

    def summary(self, price: Price | None, limits: Limits | None) -> dict[str, Any]:
        """All of it as JSON has it, each quantity as ``[low, high]``."""
        return {
            "requests": self.requests.pair,
            "input_tokens": self.input_tokens.pair,
            "output_tokens": self.output_tokens.pair,
            "dollars": self.dollars(price),
            "dollars_batch": self.dollars(price, batch=True),
            "hours": self.hours(limits),
        }


def forecast(
    requests: Sequence[Request], least: int, responses: Sequence[str], per_character: float | None
) -> Forecast:
    """What the requests will take: at least the first ``least`` of them are sent, at most all.

    ``responses`` are such as the task's examples would be, and give the bounds of a response's length. ``per_character`` is
    what the provider counted for a character of earlier prompts; without it ``approximate_tokens`` counts.
    """
    read = [input_tokens(request, per_character) for request in requests]
    written = [approximate_tokens(response) for response in responses]
    least = min(least, len(requests))
    limit = min((request.sampling.max_tokens for request in requests), default=0)
    return Forecast(
        Range(least, len(requests)),
        Range(round(sum(read[:least])), round(sum(read))),
        Range(least * min(limit, *written), len(requests) * min(limit, max(written))),
    )


def input_tokens(request: Request, per_character: float | None) -> float:
    """A request's input tokens."""
    if per_character is not None:
        return request.characters * per_character
    texts = [request.system, *(turn.content for turn in request.messages), json.dumps(request.schema)]
    return sum(map(approximate_tokens, texts))
