"""Distil: the task's own inputs, labeled by the teacher (arXiv 2410.18588; docs/method.md section 9)."""

import json
from typing import Any

import pandas as pd

from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError
from rebase.generation.filters.base import Rejection
from rebase.generation.filters.contamination import ContaminationFilter
from rebase.generation.generate import ExampleStage, GenerationResult, rejected_line, verify
from rebase.generation.labeling import check_style, request_label, with_costs
from rebase.generation.prompts.templates import DistilPrompt
from rebase.generation.verification import ProtectedTexts, reject_input
from rebase.parameters import ContaminationParameters, DistilParameters
from rebase.records import DISTILLED_COLUMNS, Task
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.text import comparable

Line = dict[str, Any]


def distil_inputs(
    task: Task,
    unlabeled_inputs: pd.DataFrame,
    examples: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    distil_prompt: DistilPrompt,
    parameters: DistilParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, Line]:
    """Label inputs of the task by the teacher, in the style that ``parameters`` name.

    ``unlabeled_inputs`` has ``row_id`` and ``fields`` (JSON), and its provenance if there is one. If it is empty, the
    inputs of ``examples`` are labeled, and their answers are ignored. Inputs that contain a part of the evaluation set,
    duplicates and those with an empty field are rejected before any request; labels must pass the checks that all
    examples pass.

    Returns the labeled examples in the form of ``reasoned_examples``; the rejected inputs with reasons; the summary.
    Raises RebaseError if there are no inputs, the style does not suit the task, no label is left, or the teacher
    answers no request.
    """
    check_style(task, parameters)
    inputs = examples if unlabeled_inputs.empty else unlabeled_inputs
    if inputs.empty:
        raise RebaseError(
            f"distil: there are no inputs of task {task.name!r}. Run transform first, or name a file or a hub id: "
            "--params=inputs_source=FILE."
        )
    stage = ExampleStage("distil", task, teacher, distil_prompt)
    selected = inputs.iloc[systematic_positions(len(inputs), parameters.max_inputs or len(inputs))].to_dict("records")
    contaminated = ContaminationFilter.of_queries(task, evaluation_items, contamination.ngram)
    protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)
    clean, stage.rejected = _filter_inputs(task, selected, contaminated, protected)

    async def generate(session: CachedSession, item: Line) -> GenerationResult:
        fields = json.loads(item["fields"])
        outcome, responses, details = await request_label(session, task, fields, distil_prompt, parameters)
        return GenerationResult(item, with_costs(responses), verify(task, outcome, protected), details)

    concurrency = max(1, teacher.concurrency // parameters.samples)
    stage.generate(clean, generate, max(1, len(clean)), lambda *_: concurrency)
    advice = f"Check the inputs and {distil_prompt.path}, or use a stronger teacher."
    not_listed = {"over_limit": len(inputs) - len(selected)}
    return stage.conclude(advice, DISTILLED_COLUMNS, not_listed, style=parameters.style)


def _filter_inputs(
    task: Task, inputs: list[Line], contaminated: ContaminationFilter, protected: ProtectedTexts
) -> tuple[list[Line], list[Line]]:
    """The inputs to be labeled, and lines of the rejected ones: contaminated, duplicates, or no query of an example."""
    clean: dict[str, Line] = {}
    rejected: list[Line] = []
    for item in inputs:
        fields = json.loads(item["fields"])
        query = comparable(task.render_query(fields))
        rejection = Rejection("duplicate") if query in clean else contaminated.reject(fields)
        if rejection is None and (reason := reject_input(task, fields, protected)):
            rejection = Rejection(reason)
        if rejection:
            rejected.append(rejected_line(item, rejection))
        else:
            clean[query] = item
    return list(clean.values()), rejected
