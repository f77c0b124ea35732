"""Evaluate the teacher, or any model behind a teacher's protocol, on the task's evaluation items."""

import json
import time
from collections import Counter
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.generate import generate_all
from rebase.generation.prompts.parsing import read_check, read_rationale
from rebase.generation.prompts.requests import evaluation_requests
from rebase.generation.prompts.templates import DistilPrompt
from rebase.parameters import EvaluateParameters
from rebase.records import Task, summarize_stage
from rebase.student.answering import as_generations
from rebase.student.formatting import render_completion
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import aggregate, score_answers
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Failure, Response, why_unreadable

TEACHER = "teacher"


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
    outputs = [read_answer(task, answered, response) for answered, response in zip(fields, responses, strict=True)]
    generations = as_generations(TEACHER, items, [request.to_json() for request in requests], outputs)
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


def read_answer(task: Task, fields: dict[str, str], response: Response | Failure) -> str:
    """Return a response's answer in the form that a student writes; empty if it cannot be read."""
    if isinstance(response, Failure) or not _is_complete(response):
        return ""
    try:
        if not task.cot:
            return read_check(task, fields, response.text)
        rationale, answer = read_rationale(response.text)
    except ValueError:
        return ""
    return render_completion(answer, rationale, "rationale_then_answer")


def score_teacher(
    task: Task, teacher_generations: pd.DataFrame, parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the teacher's predictions and scores. Raises RebaseError if the budget did not last for all items."""
    if teacher_generations.empty:
        raise RebaseError("evaluate_teacher: the budget did not last for all items. Raise it, or lower evaluate.limit.")
    predictions = score_answers(task, teacher_generations)
    return predictions, aggregate(task, predictions, [], parameters)


def _is_complete(response: Response | Failure) -> bool:
    return isinstance(response, Response) and response.finish == "stop"
