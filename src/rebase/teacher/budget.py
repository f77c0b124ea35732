"""What responses cost, how much may be spent, and what was used."""

import asyncio
import time
from array import array
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError

from rebase.errors import RebaseError
from rebase.records import Strict, explain_validation
from rebase.teacher.protocol import Failure, Request, Response

#: Tokens that a provider may add around what is sent: roles, the schema's wording.
_OVERHEAD_TOKENS = 500


class Price(Strict):
    """US dollars a million tokens. ``batch`` is the factor for responses that come by a batch."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    batch: float = Field(default=0.5, ge=0, le=1)

    def dollars(self, input_tokens: float, output_tokens: float, *, batch: bool = False) -> float:
        """What so many tokens cost."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6 * (self.batch if batch else 1)

    def of(self, response: Response) -> float:
        """What a response costs, in dollars."""
        return self.dollars(response.input_tokens, response.output_tokens, batch=response.batch)


#: What responses of a model in this process, or of a stored set of responses, cost.
FREE = Price(input=0, output=0)


class PriceTable(Strict):
    """Prices by provider and model, as they stood on the day ``as_of``."""

    as_of: str
    models: dict[str, dict[str, Price]]

    @classmethod
    def parse(cls, data: Any) -> "PriceTable":
        """Validate what globals.yml says; a RebaseError names each wrong field."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RebaseError(f"globals.yml, prices: not a valid table.\n{explain_validation(error)}") from None

    def find(self, provider: str, model: str) -> Price | None:
        """The price of a model; None where the table does not know it."""
        return self.models.get(provider, {}).get(model)


class BudgetSettings(Strict):
    """What the responses of one run may cost, and how many they may be; None is no bound.

    Responses that are stored from an earlier run count with what they cost then, so that a run that was killed and begun
    again keeps within its budget. ``on_budget`` says what happens at the bound: the run goes on with what it has
    (``continue``), or ends with an error (``stop``).
    """

    budget_usd: float | None = Field(default=None, gt=0)
    max_requests: int | None = Field(default=None, gt=0)
    on_budget: Literal["continue", "stop"] = "continue"


class Budget:
    """Keeps a run within its bounds: what a request may cost at most is put aside before it is sent."""

    def __init__(self, settings: BudgetSettings, price: Price | None) -> None:
        self.settings = settings
        self.price = price
        self.dollars = 0.0
        self.requests = 0
        self._aside = 0.0
        self._requests_aside = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, request: Request, thinking_tokens: int, *, batch: bool) -> float | None:
        """Put aside what the request costs at most, waiting while others on their way may leave room for it.

        None where there is no room: the budget is reached.
        """
        worst = self._worst(request, thinking_tokens, batch=batch)
        while not self._fits(worst, self._aside, self._requests_aside):
            if not self._fits(worst, 0, 0):
                return None
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self._aside += worst
        self._requests_aside += 1
        return worst

    def settle(self, aside: float) -> None:
        """Give back what was put aside for a request that has ended; its response is counted by ``count``."""
        self._requests_aside -= 1
        # What rounding leaves behind must not keep the last request out for ever.
        self._aside = self._aside - aside if self._requests_aside else 0.0
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def count(self, response: Response) -> None:
        """Count what a response cost, now or in an earlier run."""
        self.requests += 1
        if self.price:
            self.dollars += self.price.of(response)

    def explain(self) -> str:
        """What to tell when the budget is reached."""
        spent = f", ${self.dollars:.4f}" if self.price else ""
        bounds = [
            f"teacher.{name} {value}"
            for name, value in (("budget_usd", self.settings.budget_usd), ("max_requests", self.settings.max_requests))
            if value is not None
        ]
        return f"the budget is reached ({' and '.join(bounds)}): {self.requests} responses so far{spent}"

    def _worst(self, request: Request, thinking_tokens: int, *, batch: bool) -> float:
        """Dollars that the request costs at most: no tokenizer makes more tokens of a text than it has bytes."""
        if self.price is None:
            return 0.0
        read = len(request.to_json().encode()) + _OVERHEAD_TOKENS
        return self.price.dollars(read, request.sampling.max_tokens + thinking_tokens, batch=batch)

    def _fits(self, worst: float, aside: float, requests_aside: int) -> bool:
        dollars, requests = self.settings.budget_usd, self.settings.max_requests
        return (dollars is None or self.dollars + aside + worst <= dollars) and (
            requests is None or self.requests + requests_aside < requests
        )


@dataclass
class Usage:
    """What a stage has asked of its teacher so far, in responses that were bought now; ``stored`` are the others.

    ``dollars`` are those of the bought ones by the price table, ``used_dollars`` those of all.
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

    def count(self, answer: Response | Failure, price: Price | None, *, is_cached: bool) -> None:
        """Count an answer. A failure that nobody waited for counts for nothing."""
        if isinstance(answer, Failure):
            self.failed += answer.kind == "failed"
            self.over_budget += answer.kind == "budget"
            return
        cost = price.of(answer) if price else 0.0
        self.has_price = price is not None
        self.used_dollars += cost
        if is_cached:
            self.cached += 1
            return
        self.dollars += cost
        self.responses += 1
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self.seconds.append(answer.seconds)
        self.ended = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """The counts, latencies (p50, p95, in seconds) and responses a minute: one line of ``teacher_usage``."""
        latencies = sorted(self.seconds)
        minutes = (self.ended - self.began) / 60
        return {
            "used": self.responses + self.cached,
            "responses": self.responses,
            "cached": self.cached,
            "failed": self.failed,
            "repaired": self.repaired,
            "over_budget": self.over_budget,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "dollars": self.dollars if self.has_price else None,
            "used_dollars": self.used_dollars if self.has_price else None,
            "p50_seconds": _quantile(latencies, 0.5),
            "p95_seconds": _quantile(latencies, 0.95),
            "responses_per_minute": self.responses / minutes if minutes > 0 else None,
        }


def _quantile(ordered: list[float], share: float) -> float | None:
    """The nearest-rank quantile; None where there is nothing."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def progress(kept: int, refused: int, factor: float, usage: Usage) -> str:
    """What a progress bar says: the share refused so far, dollars so far, and what they come to in the end.

    ``factor`` is the whole work over the work done.
    """
    parts = [f"refused {refused / max(1, kept + refused):.0%}"]
    if usage.dollars:
        parts.append(f"${usage.dollars:.4f} of about ${usage.dollars * factor:.2f}")
    return ", ".join(parts)


def describe_price(price: Price | None, table: PriceTable, provider: str, model: str) -> str:
    """One line on a model's price, or that it is not known and what to do."""
    if price is None:
        return f"no price for {provider}/{model} in the table of {table.as_of}: add it to prices in globals.yml"
    return f"${price.input:g} / ${price.output:g} per million tokens in / out (table of {table.as_of})"
