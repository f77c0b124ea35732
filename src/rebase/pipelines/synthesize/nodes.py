"""Synthesize: examples without a source row, for as many requests as transform used (docs/method.md section 9)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.cues import can_be_guided, choose_cue
from rebase.generation.filters import Candidate, Filter, Rejection, contamination_filter, protected_texts
from rebase.generation.generate import (
    ExampleStage,
    GenerationResult,
    apply_consistency_filter,
    read_response,
    verify,
)
from rebase.generation.prompts.parsing import Example, read_example, read_synthesized
from rebase.generation.prompts.requests import ask_request, synthesize_request, without_passage
from rebase.generation.prompts.templates import SynthesizePrompt, TransformPrompt
from rebase.generation.verification import ProtectedTexts
from rebase.parameters import ContaminationParameters, SynthesizeParameters
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Response

logger = logging.getLogger(__name__)


def synthesize_examples(
    task: Task,
    transform_summary: dict[str, Any],
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    synthesize_prompt: SynthesizePrompt,
    transform_prompt: TransformPrompt,
    parameters: SynthesizeParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Generate examples from the instruction and the examples of the task, with as many requests as transform used.

    They must pass the checks of transform, its consistency filter as well. A passage that the teacher writes must pass
    the contamination filter. ``row_id`` is a running number; there is no dataset.

    Returns:
        The examples, in the form of transform's; the rejected ones with their reasons; the summary.

    Raises:
        RebaseError: No example passed, the teacher answers no request, or transform used no requests.

    """
    stage = ExampleStage("synthesize", task, teacher, synthesize_prompt)
    protected = protected_texts(task, evaluation_items["fields"], evaluation_items["references"])
    writer = _Writer(
        task,
        synthesize_prompt,
        transform_prompt,
        parameters,
        parameters.guided and task.passage is not None and can_be_guided(task),
        bool(transform_summary.get("consistency_filter")),
        ProtectedTexts.of(without_passage(task), evaluation_items["query"], contamination.ngram),
        contamination_filter(protected, contamination.ngram),
    )
    used = transform_summary["usage"]
    budget, affordable = match_requests(used, writer.requests_per_example)
    stage.generate(
        range(1, budget + 1),
        writer.generate,
        budget,
        lambda kept, rejected, usage: min(teacher.concurrency, affordable(usage)),
    )
    advice = (
        f"Check the instruction and the examples of the task and {synthesize_prompt.path}, or use a stronger teacher."
    )
    tables = stage.conclude(advice)
    if stage.usage.over_budget:
        logger.warning(
            "synthesize: %s. It has used %d responses, transform %d: its share is smaller",
            teacher.budget.explain(), stage.usage.responses + stage.usage.cached, used["used"],
        )  # fmt: skip
    return tables


@dataclass(frozen=True)
class _Writer:
    """Generates and checks one example. A ``guided`` teacher writes a passage first, then a question for a span."""

    task: Task
    prompt: SynthesizePrompt
    transform_prompt: TransformPrompt
    parameters: SynthesizeParameters
    guided: bool
    consistency_filter: bool
    protected: ProtectedTexts
    filter: Filter

    @property
    def requests_per_example(self) -> int:
        """The largest number of requests that an example needs."""
        return 1 + self.guided + self.consistency_filter

    async def generate(self, session: CachedSession, number: int) -> GenerationResult:
        """Generate new example ``number`` and check it."""
        sampling = self.parameters.sampling
        request = synthesize_request(self.task, number, self.prompt, sampling, guided=self.guided)
        response = await session.generate(request)
        example = read_response(response, lambda text: read_synthesized(self.task, text, guided=self.guided))
        result = GenerationResult({"row_id": f"synthesized-{number:05d}"}, response, example)
        if self.guided and isinstance(example, Example):
            result = await self._add_question(session, result, example.fields[str(self.task.passage)])
        if isinstance(result.outcome, Example):
            result = replace(result, outcome=self._verify(result.outcome))
        if self.consistency_filter:
            return await apply_consistency_filter(session, self.task, result, self.transform_prompt.check, sampling)
        return result

    async def _add_question(self, session: CachedSession, result: GenerationResult, passage: str) -> GenerationResult:
        """Request the question for a span of the passage that the teacher wrote."""
        cue = choose_cue(passage, seed=result.item["row_id"])
        if cue is None:
            return replace(result, outcome=Rejection("no_cue"))
        request = ask_request(self.task, cue, self.transform_prompt.ask, self.parameters.sampling)
        response = await session.generate(request)
        example = read_response(response, lambda text: read_example(self.task, text, passage, cue))
        if isinstance(response, Response) and isinstance(result.response, Response):
            response = response.with_cost_of(result.response)
        return GenerationResult(result.item, response, example or Rejection("invalid_response"))

    def _verify(self, example: Example) -> Example | Rejection:
        outcome = verify(self.task, example, self.protected)
        if self.task.passage is None or isinstance(outcome, Rejection):
            return outcome
        # A written passage must not copy an example's, and must pass the filter that rows pass.
        outcome = verify(without_passage(self.task), outcome, self.protected)
        if isinstance(outcome, Example):
            rejection = self.filter(Candidate.of({self.task.passage: outcome.fields[self.task.passage]}))
            return rejection or outcome
        return outcome


def match_requests(transform_usage: dict[str, Any], requests_per_example: int) -> tuple[int, Callable[[Usage], int]]:
    """The number of requests that transform used, and a function of the usage: how many more examples they allow.

    The repair of a response belongs to its request. Raises RebaseError if transform used none.
    """
    budget = transform_usage["used"] - transform_usage["repaired"]
    if not budget:
        raise RebaseError(
            "synthesize: transform used no requests, so there is no budget to match. Run transform first."
        )
    return budget, lambda usage: (budget - (usage.responses + usage.cached - usage.repaired)) // requests_per_example
