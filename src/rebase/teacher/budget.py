"""Prices of responses, the budget of a run, and the usage of a stage."""

import asyncio
import threading
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from rebase.records import Strict
from rebase.teacher.protocol import Failure, Request, Response
from rebase.teacher.settings import BudgetSettings

#: Tokens that a provider may add to a prompt: roles, the text of the schema.
_OVERHEAD_TOKENS = 500
#: The counts of ``Usage`` in its summary.
_COUNTS = ("responses", "cached", "failed", "repaired", "over_budget", "input_tokens", "output_tokens")


class Price(Strict):
    """US dollars per million tokens. ``batch`` is the factor for the batch API."""

    input: float = Field(ge=0, le=10_000_000)
    output: float = Field(ge=0, le=10_000_000)
    batch: float = Field(default=0.5, ge=0, le=1)

    def dollars(self, input_tokens: float, output_tokens: float, *, batch: bool = False) -> float:
        """Return the price of tokens, in dollars."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6 * (self.batch if batch else 1)

    def of(self, response: Response) -> float:
        """Return the price of a response, in dollars."""
        return self.dollars(response.input_tokens, response.output_tokens, batch=response.batch)


#: The price of models on this machine, and of replayed responses.
FREE = Price(input=0, output=0)


class PriceTable(Strict):
    """Prices by provider and model on the day ``as_of``."""

    as_of: str
    models: dict[str, dict[str, Price]]

    def find(self, provider: str, model: str) -> Price | None:
        """Return the price of a model, or None."""
        return self.models.get(provider, {}).get(model)


class Budget:
    """Keeps a run within its bounds: the highest possible cost of a request is reserved before it is sent."""

    def __init__(self, settings: BudgetSettings, price: Price | None) -> None:
        self.settings = settings
        self.price = price
        self.dollars = 0.0
        self.requests = 0
        self._reserved = 0.0
        self._reserved_requests = 0
        self._waiting: list[asyncio.Future[None]] = []
        # The stages of a run can be in several threads, each with its own event loop.
        self._lock = threading.Lock()

    async def reserve(self, request: Request, thinking_tokens: int, *, batch: bool) -> float | None:
        """Reserve the highest possible cost of a request, and return it.

        Waits while open requests may leave room for it. Returns None if there is no room: the budget is spent.
        """
        cost = self._highest_cost(request, thinking_tokens, batch=batch)
        while True:
            with self._lock:
                if self._fits(cost, self._reserved, self._reserved_requests):
                    self._reserved += cost
                    self._reserved_requests += 1
                    return cost
                if not self._fits(cost, 0, 0):
                    return None
                released = asyncio.get_running_loop().create_future()
                self._waiting.append(released)
            await released

    def release(self, reserved: float) -> None:
        """Release the reservation of a request that has ended; ``count`` counts its response."""
        with self._lock:
            self._reserved_requests -= 1
            # Without open requests nothing is reserved: a rounding error must not block the last request forever.
            self._reserved = self._reserved - reserved if self._reserved_requests else 0.0
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            with suppress(RuntimeError):  # the loop of a stage that has ended is closed
                future.get_loop().call_soon_threadsafe(_wake, future)

    def count(self, response: Response) -> None:
        """Count the price of a response, also of a cached one."""
        with self._lock:
            self.requests += 1
            if self.price:
                self.dollars += self.price.of(response)

    def explain(self) -> str:
        """Return the message for a spent budget."""
        spent = f", ${self.dollars:.4f}" if self.price else ""
        settings = {"budget_usd": self.settings.budget_usd, "max_requests": self.settings.max_requests}
        bounds = [f"teacher.{name} {value}" for name, value in settings.items() if value is not None]
        return f"the budget is reached ({' and '.join(bounds)}): {self.requests} responses so far{spent}"

    def _highest_cost(self, request: Request, thinking_tokens: int, *, batch: bool) -> float:
        """Return the highest possible cost in dollars: a text has at most as many tokens as bytes."""
        if self.price is None:
            return 0.0
        input_tokens = len(request.to_json().encode()) + _OVERHEAD_TOKENS
        return self.price.dollars(input_tokens, request.sampling.max_tokens + thinking_tokens, batch=batch)

    def _fits(self, cost: float, reserved: float, reserved_requests: int) -> bool:
        dollars, requests = self.settings.budget_usd, self.settings.max_requests
        return (dollars is None or self.dollars + reserved + cost <= dollars) and (
            requests is None or self.requests + reserved_requests < requests
        )


@dataclass
class Usage:
    """A stage's use of its teacher: ``responses`` are those generated now, ``cached`` those from the cache.

    Tokens and ``dollars`` are those of ``responses``; ``used_dollars`` include the cached ones at their original price.
    """

    responses: int = 0
    cached: int = 0
    failed: int = 0
    repaired: int = 0
    over_budget: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    used_dollars: float = 0.0
    has_price: bool = True
    seconds: array = field(default_factory=lambda: array("f"))
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    def count(self, outcome: Response | Failure, price: Price | None, *, is_cached: bool) -> None:
        """Count a response or a failure; failures of kind ``stopped`` are not counted."""
        if isinstance(outcome, Failure):
            self.failed += outcome.kind == "failed"
            self.over_budget += outcome.kind == "budget"
            return
        cost = price.of(outcome) if price else 0.0
        self.has_price = price is not None
        self.used_dollars += cost
        if is_cached:
            self.cached += 1
            return
        self.dollars += cost
        self.responses += 1
        self.input_tokens += outcome.input_tokens
        self.output_tokens += outcome.output_tokens
        self.seconds.append(outcome.seconds)
        self.ended = time.monotonic()

    def __add__(self, later: "Usage") -> "Usage":
        """Return the usage of two parts of a stage."""
        sums = (*_COUNTS, "dollars", "used_dollars", "seconds")
        return Usage(
            **{name: getattr(self, name) + getattr(later, name) for name in sums},
            has_price=self.has_price and later.has_price,
            began=self.began,
            ended=max(self.ended, later.ended),
        )

    def summary(self) -> dict[str, Any]:
        """Return a line of ``teacher_usage``: counts, latencies (p50 and p95, in seconds), responses per minute."""
        latencies = sorted(self.seconds)
        minutes = (self.ended - self.began) / 60
        return {
            "used": self.responses + self.cached,
            **{name: getattr(self, name) for name in _COUNTS},
            "dollars": self.dollars if self.has_price else None,
            "used_dollars": self.used_dollars if self.has_price else None,
            "p50_seconds": _quantile(latencies, 0.5),
            "p95_seconds": _quantile(latencies, 0.95),
            "responses_per_minute": self.responses / minutes if minutes > 0 else None,
        }


def _quantile(ordered: list[float], share: float) -> float | None:
    """Return the nearest-rank quantile; None if there are no values."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def progress(kept: int, rejected: int, factor: float, usage: Usage) -> str:
    """Return a progress bar's text: the share rejected so far, dollars so far, and the dollars expected at the end.

    ``factor`` is the total work over the work done.
    """
    parts = [f"rejected {rejected / max(1, kept + rejected):.0%}"]
    if usage.dollars:
        parts.append(f"${usage.dollars:.4f} of about ${usage.dollars * factor:.2f}")
    return ", ".join(parts)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
