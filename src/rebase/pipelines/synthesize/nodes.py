"""Synthesize: examples without a source row, for as much as transform used (docs/method.md section 9)."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.cues import can_be_guided, choose_cue
from rebase.generation.filters import Candidate, Filter, contamination_filter, protected_texts
from rebase.generation.generate import (
    Asked,
    Rejection,
    apply_consistency_filter,
    collect,
    conclude,
    examine,
    read_response,
)
from rebase.generation.prompts.parsing import Example, read_example, read_synthesized
from rebase.generation.prompts.requests import ask_request, synthesize_request, without_passage
from rebase.generation.prompts.templates import SynthesizePrompt, TransformPrompt
from rebase.generation.verification import Known
from rebase.parameters import SynthesizeParameters
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.concurrency import run
from rebase.teacher.protocol import Response

logger = logging.getLogger(__name__)

#: For the same dollars no more examples are asked for than so many times the requests of transform.
_MOST_FOR_DOLLARS = 10


def synthesize_examples(
    task: Task,
    transform_summary: dict[str, Any],
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    synthesize_prompt: SynthesizePrompt,
    transform_prompt: TransformPrompt,
    parameters: SynthesizeParameters,
    contamination_ngram: int,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Have the teacher write examples from the instruction and the task's examples, for transform's budget.

    They must stand the checks that transform's stood, its round trip as well; where the teacher writes the passage, it
    is screened as a row's is. ``row_id`` is a running number, and there is no dataset.

    Returns:
        The examples, as transform's; what was rejected, each with its reason; the stage's summary.

    Raises:
        RebaseError: Not one example passed, the teacher answers nothing, or nothing was spent that could be matched.

    """
    protected = protected_texts(task, evaluation_items["fields"], evaluation_items["references"])
    writer = _Writer(
        task,
        synthesize_prompt,
        transform_prompt,
        parameters,
        parameters.guided and task.passage is not None and can_be_guided(task),
        bool(transform_summary.get("consistency_filter")),
        Known.of(without_passage(task), evaluation_items["query"], contamination_ngram),
        contamination_filter(protected, contamination_ngram),
    )
    kept, rejected, usage = run(_ask_numbers(writer, teacher, transform_summary["usage"]))
    advice = f"Look at the task's instruction and examples and at {synthesize_prompt.path}, or take a stronger teacher."
    found = conclude("synthesize", task, teacher, synthesize_prompt, (kept, rejected, usage), advice)
    found[2]["spend"] = parameters.spend
    if usage.over_budget:
        logger.warning(
            "synthesize: %s. It has used %d responses, transform %d: its share is smaller",
            teacher.budget.explain(), usage.responses + usage.cached, transform_summary["usage"]["used"],
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Writer:
    """How one example is asked for and examined. A ``guided`` teacher writes a passage and then a question to a span."""

    task: Task
    prompt: SynthesizePrompt
    transform_prompt: TransformPrompt
    parameters: SynthesizeParameters
    guided: bool
    consistency_filter: bool
    known: Known
    filter: Filter

    @property
    def questions(self) -> int:
        """How many questions to the teacher an example takes at most."""
        return 1 + self.guided + self.consistency_filter

    async def ask(self, session: CachedSession, number: int) -> Asked:
        """Ask for new example ``number``, and examine what the teacher says."""
        sampling = self.parameters.sampling
        item = {"row_id": f"synthesized-{number:05d}"}
        response = await session.generate(
            synthesize_request(self.task, number, self.prompt, sampling, guided=self.guided)
        )
        example = read_response(response, lambda text: read_synthesized(self.task, text, guided=self.guided))
        asked = Asked(item, response, example)
        if self.guided and isinstance(example, Example):
            asked = await self._ask_about(session, asked, example.fields[str(self.task.passage)])
        if isinstance(asked.outcome, Example):
            asked = replace(asked, outcome=self._examine(asked.outcome))
        if self.consistency_filter:
            return await apply_consistency_filter(session, self.task, asked, self.transform_prompt.check, sampling)
        return asked

    async def _ask_about(self, session: CachedSession, asked: Asked, passage: str) -> Asked:
        """Ask for the question to a span of the passage that the teacher wrote."""
        cue = choose_cue(passage, seed=asked.item["row_id"])
        if cue is None:
            return replace(asked, outcome=Rejection("nothing_to_ask_about"))
        question = ask_request(self.task, cue, self.transform_prompt.ask, self.parameters.sampling)
        response = await session.generate(question)
        example = read_response(response, lambda text: read_example(self.task, text, passage, cue))
        if isinstance(response, Response) and isinstance(asked.response, Response):
            response = response.with_cost_of(asked.response)
        return Asked(asked.item, response, example or Rejection("not_as_asked"))

    def _examine(self, example: Example) -> Example | Rejection:
        """The example as it is kept, or why it is rejected."""
        outcome = examine(self.task, example, self.known)
        if self.task.passage is None or isinstance(outcome, Rejection):
            return outcome
        # A passage that was written must copy no example's, and pass what a row's passes before it is sent.
        outcome = examine(without_passage(self.task), outcome, self.known)
        if isinstance(outcome, Example):
            passage = {self.task.passage: outcome.fields[self.task.passage]}
            if rejection := self.filter(Candidate("", "", "", passage, "")):
                return Rejection(rejection.reason, rejection.detail)
        return outcome


def affordable(spend: str, before: dict[str, Any], usage: Usage, questions: int) -> tuple[int, Callable[[int], int]]:
    """How many items may be asked about at most, and a function of those done: how many more may be on their way.

    ``before`` is what transform used, ``questions`` how many of them an item takes. The repair of a response belongs to
    its question. In dollars an item is taken to cost what transform's cost, or what these cost so far if that is more.
    """
    asked = before["used"] - before["repaired"]
    if not asked:
        raise RebaseError("synthesize: transform has used no responses, so that there is no budget to match.")
    if spend == "requests":
        return asked, lambda _: (asked - (usage.responses + usage.cached - usage.repaired)) // questions
    dollars = before["used_dollars"]
    if not dollars:
        raise RebaseError(
            "synthesize: transform paid no dollars, or its teacher has no price. Set `synthesize.spend: requests`."
        )
    price = questions * dollars / asked

    def more(done: int) -> int:
        left = (dollars - usage.used_dollars) / max(price, usage.used_dollars / max(1, done))
        return math.floor(left + 1e-6)  # what rounding takes away

    return _MOST_FOR_DOLLARS * asked, more


async def _ask_numbers(
    writer: _Writer, teacher: CachedTeacher, before: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Usage]:
    """The lines of ``synthesized_examples``, without what all share, and of what was rejected; and what was asked."""
    async with teacher.open() as session:
        most, more = affordable(writer.parameters.spend, before, session.usage, writer.questions)
        kept, rejected = await collect(
            writer.task,
            range(1, most + 1),
            lambda number: writer.ask(session, number),
            lambda kept, rejected: min(teacher.concurrency, more(kept + rejected)),
            most,
            session.usage,
            "synthesize",
        )
    return kept, rejected, session.usage
