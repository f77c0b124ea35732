"""The settings of a teacher: the group ``teacher`` of globals.yml."""

from typing import Literal

from pydantic import Field

from rebase.records import Strict


class BudgetSettings(Strict):
    """Bounds on the responses of one run; None means no bound.

    Cached responses count with their original price, so a run that is interrupted and started again stays within one
    budget. At the bound the run either continues with the responses that it has, or stops with an error.
    """

    budget_usd: float | None = Field(default=None, gt=0)
    max_requests: int | None = Field(default=None, gt=0)
    on_budget: Literal["continue", "stop"] = "continue"


class TeacherSettings(BudgetSettings):
    """All settings of a teacher, for every provider.

    ``provider`` is a name in ``rebase.teacher.registry``. ``revision`` is for local models, ``base_url`` for hosted
    ones. ``batch`` sends requests through the provider's batch API. ``timeout`` is in seconds.
    """

    provider: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str | None = None
    base_url: str | None = None
    batch: bool = False
    max_concurrency: int = Field(default=64, ge=1)
    timeout: float = Field(default=120.0, gt=0)
