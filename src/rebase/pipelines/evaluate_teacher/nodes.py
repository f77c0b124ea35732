"""Evaluate the teacher, or any model that speaks its protocol, on the task's evaluation set."""

import json
from collections import Counter
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.generate import generate_all
from rebase.generation.prompts.parsing import read_check, read_rationale
from rebase.generation.prompts.requests import answer_requests
from rebase.generation.prompts.templates import DistilPrompt
from rebase.parameters import EvaluateParameters
from rebase.records import Task
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
    """Let the teacher answer the items that the student is asked, with the task's examples as turns, greedily.

    It reasons first where the task has chain of thought. A response that cannot be read counts as an empty answer.

    Returns:
        ``generations`` as ``evaluate`` has them, empty where the budget did not last for all items: a part of them
        would not compare; and the stage's summary, with unreadable responses by reason.

    Raises:
        RebaseError: A request failed, which is no answer, right or wrong. What came is stored.

    """
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    fields = [json.loads(text) for text in items["fields"]]
    requests = answer_requests(task, fields, distil_prompt)
    responses, usage = generate_all(
        teacher, requests, CachedSession.generate, _is_whole, stage="teacher answers", total=len(requests)
    )
    failures = [response for response in responses if isinstance(response, Failure)]
    if lost := [failure for failure in failures if failure.kind != "budget"]:
        raise RebaseError(
            f"evaluate_teacher: {len(lost)} of {len(responses)} requests to {teacher.provider}/{teacher.model} failed. "
            f"It says: {lost[0].reason}\nLook at `teacher` in globals.yml and at the credentials, then run again: "
            "nothing is paid twice."
        )
    raw = [read_answer(task, own, response) for own, response in zip(fields, responses, strict=True)]
    generations = as_generations(TEACHER, items, [request.to_json() for request in requests], raw)
    if failures:
        rejected, generations = rejected | {"over_budget": len(items)}, generations.head(0)
    summary = {
        "stage": "evaluate_teacher",
        "in": len(evaluation_items),
        "kept": len(generations),
        "rejected": rejected,
        "unreadable": dict(Counter(why_unreadable(response) for response in responses if not _is_whole(response))),
        "teacher": f"{teacher.provider}/{teacher.model}",
        "usage": usage.summary(),
    }
    return generations, summary


def read_answer(task: Task, fields: dict[str, str], response: Response | Failure) -> str:
    """What a response says, as a student would write it; empty where it cannot be read."""
    if isinstance(response, Failure) or not _is_whole(response):
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
    """The teacher's predictions and scores, as those of a student. Raises RebaseError where the budget did not last."""
    if teacher_generations.empty:
        raise RebaseError("evaluate_teacher: the budget did not last for all items. Raise it, or lower evaluate.limit.")
    predictions = score_answers(task, teacher_generations)
    return predictions, aggregate(task, predictions, [], parameters)


def _is_whole(response: Response | Failure) -> bool:
    return isinstance(response, Response) and response.finish == "stop"
