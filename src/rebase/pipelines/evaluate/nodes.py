"""Evaluate: the student, the expert and the teacher on the same items (docs/method.md section 8)."""

import json
import time
from collections import Counter
from typing import Any, TypeGuard

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.generate import generate_all
from rebase.generation.prompts.parsing import read_check, read_rationale
from rebase.generation.prompts.requests import evaluation_requests
from rebase.generation.prompts.templates import DistilPrompt
from rebase.parameters import EvaluateParameters
from rebase.records import ITEM_SCORE_COLUMNS, Adapter, Task, summarize_stage
from rebase.student.answering import EXPERT, FEW_SHOT, STUDENT, answer_items, as_generations
from rebase.student.formatting import render_completion
from rebase.student.handle import Student
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import score_predictions
from rebase.tasks.verdict import LENIENT
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Failure, Response, why_unreadable
from rebase.weights import resolve_dtype


def predict(
    task: Task, evaluation_items: pd.DataFrame, student: Student, adapter: Adapter, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Generate the answers to the selected items (``select_items``); the weights are loaded once.

    The systems are the student, the student with the task's examples in its prompt, and the expert.

    Returns ``generations`` and the summary, with the version of the adapter, by which ``kedro trace`` finds it.
    """
    started = time.monotonic()
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    systems = {STUDENT: None, FEW_SHOT: None, EXPERT: adapter}
    generations = answer_items(task, items, student, systems, parameters, few_shot={FEW_SHOT})
    summary = summarize_stage(
        "evaluate",
        kept=len(items),
        rejected=rejected,
        seconds=time.monotonic() - started,
        dtype=resolve_dtype(student.dtype),
        adapter=adapter.folder.parent.name,
    )
    return generations, summary


def predict_teacher(
    task: Task,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    distil_prompt: DistilPrompt,
    parameters: EvaluateParameters,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Generate the teacher's answers to the selected items, greedily, with the task's examples as turns.

    The teacher reasons first if the task has chain of thought. An unreadable response counts as an empty answer.

    Returns:
        ``generations``, empty where the budget did not last for all items, since scores of some items do not compare;
        and the summary, with unreadable responses by reason.

    Raises:
        RebaseError: A request failed. Responses received before are cached.

    """
    started = time.monotonic()
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    fields = [json.loads(text) for text in items["fields"]]
    requests = evaluation_requests(task, fields, distil_prompt)
    responses, usage = generate_all(teacher, requests, CachedSession.generate, _is_complete, stage="teacher answers")
    failures = [response for response in responses if isinstance(response, Failure)]
    if errors := [failure for failure in failures if failure.kind != "budget"]:
        raise RebaseError(
            f"evaluate_teacher: {len(errors)} of {len(responses)} requests to {teacher.provider}/{teacher.model} "
            f"failed: {errors[0].reason}\nCheck `teacher` in globals.yml and the credentials, then run again: cached "
            "responses are not paid for twice."
        )
    outputs = [_read_answer(task, answered, response) for answered, response in zip(fields, responses, strict=True)]
    generations = as_generations("teacher", items, [request.to_json() for request in requests], outputs)
    if failures:
        rejected, generations = rejected | {"over_budget": len(items)}, generations.head(0)
    summary = summarize_stage(
        "evaluate_teacher",
        kept=len(generations),
        rejected=rejected,
        seconds=time.monotonic() - started,
        unreadable=dict(Counter(why_unreadable(response) for response in responses if not _is_complete(response))),
        teacher=f"{teacher.provider}/{teacher.model}",
        usage=usage.summary(),
    )
    return generations, summary


def score_run(
    task: Task, generations: pd.DataFrame, parameters: EvaluateParameters, run_version: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predictions and scores (``score_predictions``); the scores name the run, by its version."""
    predictions, scores = score_predictions(task, generations, parameters)
    return predictions, {"run": run_version, **scores}


def collect_item_scores(task: Task, predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the task's partition of ``item_scores``: each system's score per item and metric, 0 to 1."""
    return {task.name: predictions[[*ITEM_SCORE_COLUMNS, *task.metrics, LENIENT]]}


def _read_answer(task: Task, fields: dict[str, str], response: Response | Failure) -> str:
    """A response's answer in the form that a student writes; empty if it cannot be read."""
    if not _is_complete(response):
        return ""
    try:
        if not task.cot:
            return read_check(task, fields, response.text)
        rationale, answer = read_rationale(response.text)
    except ValueError:
        return ""
    return render_completion(answer, rationale, "rationale_then_answer")


def _is_complete(response: Response | Failure) -> TypeGuard[Response]:
    return isinstance(response, Response) and response.finish == "stop"
