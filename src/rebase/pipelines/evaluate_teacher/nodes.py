"""Evaluate the teacher, or any model that speaks its protocol, on the task's evaluation set."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

import pandas as pd
from tqdm import tqdm

from rebase.errors import RebaseError
from rebase.evaluation import select_items
from rebase.parameters import EvaluateParameters, SamplingParameters
from rebase.pipelines.evaluate.nodes import as_generations
from rebase.prompts import LabelPrompt, check_request, read_check, read_rationale
from rebase.records import Task
from rebase.scoring import aggregate, score_answers
from rebase.student.formatting import render_completion
from rebase.teacher.budget import Usage
from rebase.teacher.flow import in_order, run
from rebase.teacher.protocol import Failure, Reply, Request, why_unreadable
from rebase.teacher.stored import StoredTeacher

TEACHER = "teacher"

# What a reply needs beside the answer: JSON around it.
_AROUND = 40


def predict_teacher(
    task: Task,
    evaluation_set: pd.DataFrame,
    teacher: StoredTeacher,
    label_prompt: dict[str, Any],
    parameters: EvaluateParameters,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let the teacher answer the items that the student is asked, with the task's examples as turns, greedily.

    It reasons first where the task has chain of thought. A reply that cannot be read counts as an empty answer.

    Returns:
        ``generations`` as ``evaluate`` has them, empty where the budget did not last for all items: a part of them
        would not compare; and the stage's summary, with unreadable replies by reason.

    Raises:
        RebaseError: A request failed, which is no answer, right or wrong. What came is stored.

    """
    prompt = LabelPrompt.parse(label_prompt, "data/01_raw/prompts/label.yml")
    items, refused = select_items(task, evaluation_set, parameters.limit)
    fields = [json.loads(text) for text in items["fields"]]
    requests = answer_requests(task, fields, prompt)
    replies, usage = run(_ask(requests, teacher))
    failures = [reply for reply in replies if isinstance(reply, Failure)]
    if lost := [failure for failure in failures if failure.kind != "budget"]:
        raise RebaseError(
            f"evaluate_teacher: {len(lost)} of {len(replies)} requests to {teacher.provider}/{teacher.model} failed. "
            f"It says: {lost[0].reason}\nLook at `teacher` in globals.yml and at the credentials, then run again: "
            "nothing is paid twice."
        )
    raw = [read_answer(task, own, reply) for own, reply in zip(fields, replies, strict=True)]
    generations = as_generations(TEACHER, items, [request.to_json() for request in requests], raw)
    if failures:
        refused, generations = refused | {"over_budget": len(items)}, generations.head(0)
    summary = {
        "stage": "evaluate_teacher",
        "in": len(evaluation_set),
        "kept": len(generations),
        "refused": refused,
        "unreadable": dict(Counter(why_unreadable(reply) for reply in replies if not _is_whole(reply))),
        "teacher": f"{teacher.provider}/{teacher.model}",
        "usage": usage.summary(),
    }
    return generations, summary


def answer_requests(task: Task, items: Sequence[Mapping[str, str]], prompt: LabelPrompt) -> list[Request]:
    """One request an item, of which these are the query's fields."""
    sampling = SamplingParameters(temperature=0, max_tokens=task.max_new_tokens + _AROUND)
    own = prompt.cot if task.cot else prompt
    return [check_request(task, fields, own, sampling, reasoned=task.cot) for fields in items]


def read_answer(task: Task, fields: dict[str, str], reply: Reply | Failure) -> str:
    """What a reply says, as a student would write it; empty where it cannot be read."""
    if isinstance(reply, Failure) or not _is_whole(reply):
        return ""
    try:
        if not task.cot:
            return read_check(task, fields, reply.text)
        rationale, answer = read_rationale(reply.text)
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


def _is_whole(reply: Reply | Failure) -> bool:
    return isinstance(reply, Reply) and reply.finish == "stop"


async def _ask(requests: list[Request], teacher: StoredTeacher) -> tuple[list[Reply | Failure], Usage]:
    async with teacher.open() as session:
        replies = []
        with tqdm(total=len(requests), desc="teacher answers", unit="item") as bar:
            async with aclosing(in_order(session.ask, requests, lambda: teacher.ahead)) as answers:
                async for reply in answers:
                    replies.append(reply)
                    bar.update()
    return replies, session.usage
