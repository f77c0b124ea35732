"""Synthesize: examples without a source row, for as many requests as transform used (docs/method.md section 9)."""

import logging
from dataclasses import replace
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.cues import can_be_guided, choose_cue
from rebase.generation.filters.base import Rejection
from rebase.generation.filters.contamination import ContaminationFilter
from rebase.generation.generate import (
    ExampleStage,
    GenerationResult,
    apply_consistency_filter,
    read_response,
    verify,
)
from rebase.generation.prompts.parsing import Example, read_example, read_synthesized
from rebase.generation.prompts.requests import ask_request, synthesize_request
from rebase.generation.prompts.templates import AskPrompt, SynthesizePrompt, TransformPrompt
from rebase.generation.verification import ProtectedTexts
from rebase.parameters import ContaminationParameters, SamplingParameters, SynthesizeParameters
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

    Returns the examples, in the form of transform's; the rejected ones with their reasons; the summary. Raises
    RebaseError if no example passed, the teacher answers no request, or transform used no requests.
    """
    # The repair of a response belongs to its request.
    budget = transform_summary["usage"]["used"] - transform_summary["usage"]["repaired"]
    if not budget:
        raise RebaseError(
            "synthesize: transform used no requests, so there is no budget to match. Run transform first."
        )
    stage = ExampleStage("synthesize", task, teacher, synthesize_prompt)
    sampling = parameters.sampling
    guided = parameters.guided and task.passage is not None and can_be_guided(task)
    consistency_filter = bool(transform_summary.get("consistency_filter"))
    requests_per_example = 1 + guided + consistency_filter
    # A written passage must not copy an example's, and must pass the filter that rows pass.
    written_task = task.model_copy(update={"passage": None})
    protected = ProtectedTexts(written_task, evaluation_items["query"], contamination.ngram)
    contaminated = ContaminationFilter.of(task, evaluation_items, contamination.ngram)

    async def generate(session: CachedSession, number: int) -> GenerationResult:
        response = await session.generate(synthesize_request(task, number, synthesize_prompt, sampling, guided=guided))
        example = read_response(response, lambda text: read_synthesized(task, text, guided=guided))
        result = GenerationResult({"row_id": f"synthesized-{number:05d}"}, response, example)
        if guided:
            result = await _add_question(session, task, result, transform_prompt.ask, sampling)
        outcome = verify(task, result.outcome, protected)
        if task.passage:
            outcome = verify(written_task, outcome, protected)
        if task.passage and isinstance(outcome, Example):
            outcome = contaminated.reject({task.passage: outcome.fields[task.passage]}) or outcome
        result = replace(result, outcome=outcome)
        if consistency_filter:
            return await apply_consistency_filter(session, task, result, transform_prompt.check, sampling)
        return result

    def concurrency(kept: int, rejected: int, usage: Usage) -> int:
        remaining = budget - (usage.responses + usage.cached - usage.repaired)
        return min(teacher.concurrency, remaining // requests_per_example)

    stage.generate(range(1, budget + 1), generate, budget, concurrency)
    tables = stage.conclude(
        f"Check the instruction and the examples of the task and {synthesize_prompt.path}, or use a stronger teacher."
    )
    if stage.usage.over_budget:
        logger.warning(
            "synthesize: %s. It has used %d responses, transform %d: its share is smaller",
            teacher.budget.explain(), stage.usage.responses + stage.usage.cached, transform_summary["usage"]["used"],
        )  # fmt: skip
    return tables


async def _add_question(
    session: CachedSession, task: Task, result: GenerationResult, prompt: AskPrompt, sampling: SamplingParameters
) -> GenerationResult:
    """Request the question for a span of the passage that the teacher wrote."""
    if isinstance(result.outcome, Rejection):
        return result
    passage = result.outcome.fields[str(task.passage)]
    cue = choose_cue(passage, seed=result.item["row_id"])
    if cue is None:
        return replace(result, outcome=Rejection("no_cue"))
    response = await session.generate(ask_request(task, cue, prompt, sampling))
    example = read_response(response, lambda text: read_example(task, text, passage, cue))
    if isinstance(response, Response) and isinstance(result.response, Response):
        response = response.with_cost_of(result.response)
    return replace(result, response=response, outcome=example or Rejection("invalid_response"))
