"""Estimate: render every request as transform and cot will, count, and send nothing."""

import json
from typing import Any

import pandas as pd

from rebase.forecast import Forecast, forecast
from rebase.parameters import CotParameters, TransformParameters
from rebase.prompts import (
    CotPrompt,
    TransformPrompt,
    can_be_led,
    check_request,
    cot_request,
    find_lead,
    own_text_columns,
    transform_request,
)
from rebase.records import Task
from rebase.teacher.api import ApiTeacher
from rebase.teacher.protocol import Request
from rebase.teacher.stored import StoredTeacher


def estimate_cost(
    task: Task,
    retrieved: pd.DataFrame,
    teacher: StoredTeacher,
    transform_prompt: dict[str, Any],
    cot_prompt: dict[str, Any],
    transform: TransformParameters,
    cot: CotParameters,
) -> dict[str, Any]:
    """Requests, tokens, dollars and hours by stage and in all, each as ``[low, high]``.

    The low end: every reply passes, and replies are as short as the shortest of the task's examples. The high end: all
    rows are asked about, and replies are as long as the longest. What is stored already is counted as well. A model's
    thoughts are not counted: they cannot be foreseen.
    """
    per_character = teacher.tokens_per_character()
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    prompt = TransformPrompt.parse(transform_prompt, "data/01_raw/prompts/transform.yml")
    requests = _transform_requests(task, rows, prompt, transform)
    answers = [_dump(example, [*task.written_fields, "answer"]) for example in task.examples]
    stages: dict[str, Forecast] = {"transform": forecast(requests, transform.max_examples, answers, per_character)}
    # What will be written is not there yet: the task's own examples stand for it.
    stand_ins = [task.examples[number % len(task.examples)] for number in range(transform.max_examples)]
    stand_ins = stand_ins[: len(requests)]
    if transform.round_trip:
        checks = [check_request(task, example, prompt.check, transform.sampling) for example in stand_ins]
        said = [_dump(example, ["answer"]) for example in task.examples]
        stages["round_trip"] = forecast(checks, 0, said, per_character)
    if task.cot:
        reasoned = CotPrompt.parse(cot_prompt, "data/01_raw/prompts/cot.yml")
        asked = [
            cot_request(task, _as_example(task, example), row, reasoned, cot, sample)
            for example, row in zip(stand_ins, rows, strict=False)
            for sample in range(cot.samples)
        ]
        said = [_dump(example, ["rationale", "answer"]) for example in task.examples]
        stages["cot"] = forecast(asked, 0, said, per_character)
    total = sum(list(stages.values())[1:], start=stages["transform"])
    limits = teacher.teacher.limits if isinstance(teacher.teacher, ApiTeacher) else None
    return {
        "stage": "estimate",
        "task": task.name,
        "teacher": f"{teacher.provider}/{teacher.model}",
        "price": teacher.price_in_words,
        "tokens": "by the rule of approximate_tokens" if per_character is None else "as counted in stored replies",
        "rows": len(rows),
        "stages": {name: stage.summary(teacher.price, limits) for name, stage in stages.items()},
        "total": total.summary(teacher.price, limits),
    }


def _transform_requests(
    task: Task, rows: list[dict[str, Any]], prompt: TransformPrompt, parameters: TransformParameters
) -> list[Request]:
    if not (parameters.led and can_be_led(task)):
        return [transform_request(task, row, prompt, parameters) for row in rows]
    columns = own_text_columns(rows)
    leads = [(row, find_lead(task, row, columns)) for row in rows]
    return [transform_request(task, row, prompt, parameters, lead) for row, lead in leads if lead is not None]


def _as_example(task: Task, example: dict[str, str]) -> dict[str, Any]:
    """One of the task's examples as a line of the table ``examples``."""
    fields = {name: example[name] for name in task.query_fields}
    return {"fields": json.dumps(fields), "query": task.render_query(fields), "answer": example["answer"]}


def _dump(example: dict[str, str], names: list[str]) -> str:
    """What a reply with these fields looks like."""
    return json.dumps({"example": {name: example[name] for name in names}}, ensure_ascii=False)
