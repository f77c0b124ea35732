"""Estimate: render every request as the stages that ask will, count, and send nothing."""

import json
from typing import Any

import pandas as pd

from rebase.generation.cost_estimate import Forecast, forecast
from rebase.generation.cues import can_be_guided, find_cue, source_text_columns
from rebase.generation.prompts.requests import (
    answer_requests,
    check_request,
    cot_request,
    densify_request,
    label_requests,
    transform_request,
)
from rebase.generation.prompts.templates import CotPrompt, DistilPrompt, TransformPrompt
from rebase.parameters import CotParameters, DistilParameters, EvaluateParameters, TransformParameters
from rebase.records import Task
from rebase.tasks.evaluation_items import select_items
from rebase.teacher.api import ApiTeacher
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.protocol import Request


def estimate_cost(
    task: Task,
    retrieved: pd.DataFrame,
    teacher: CachedTeacher,
    transform_prompt: TransformPrompt,
    cot_prompt: CotPrompt,
    transform: TransformParameters,
    cot: CotParameters,
) -> dict[str, Any]:
    """Requests, tokens, dollars and hours by stage and in all, each as ``[low, high]``.

    The low end: every response passes, and responses are as short as the shortest of the task's examples. The high end: all
    rows are asked about, and responses are as long as the longest. What is stored already is counted as well. A model's
    thoughts are not counted: they cannot be foreseen.
    """
    per_character = teacher.tokens_per_character()
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    requests = _transform_requests(task, rows, transform_prompt, transform)
    answers = [_dump(example, [*task.written_fields, "answer"]) for example in task.examples]
    stages: dict[str, Forecast] = {"transform": forecast(requests, transform.max_examples, answers, per_character)}
    # What will be written is not there yet: the task's own examples stand for it.
    stand_ins = [task.examples[number % len(task.examples)] for number in range(transform.max_examples)]
    stand_ins = stand_ins[: len(requests)]
    if transform.consistency_filter:
        checks = [check_request(task, example, transform_prompt.check, transform.sampling) for example in stand_ins]
        said = [_dump(example, ["answer"]) for example in task.examples]
        stages["consistency_filter"] = forecast(checks, 0, said, per_character)
    if task.cot:
        asked = [
            cot_request(task, _as_example(task, example), row, cot_prompt, cot, sample)
            for example, row in zip(stand_ins, rows, strict=False)
            for sample in range(cot.samples)
        ]
        said = [_dump(example, ["rationale", "answer"]) for example in task.examples]
        stages["cot"] = forecast(asked, 0, said, per_character)
    counted = {
        "stage": "estimate",
        "task": task.name,
        "teacher": f"{teacher.provider}/{teacher.model}",
        "price": teacher.price_in_words,
        "tokens": "by the rule of approximate_tokens" if per_character is None else "as counted in stored responses",
        "rows": len(rows),
    }
    return counted | _summarize(stages, teacher)


def estimate_comparison(
    estimate: dict[str, Any],
    task: Task,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    distil_prompt: DistilPrompt,
    transform: TransformParameters,
    distil: DistilParameters,
    evaluate: EvaluateParameters,
) -> dict[str, Any]:
    """``estimate``, and what the baselines of ``compare`` ask for beside it.

    ``synthesize`` spends as often as ``transform``, here with its tokens: its prompts hold no row, its responses a
    passage. ``distil`` labels each example that there may be; ``teacher`` answers every item.
    """
    per_character = teacher.tokens_per_character()
    stages = {name: Forecast.of(said) for name, said in estimate["stages"].items()}
    examples = min(transform.max_examples, estimate["rows"])
    labels = [
        request
        for number in range(examples)
        for request in _label_requests(task, task.examples[number % len(task.examples)], distil_prompt, distil)
    ]
    items, _ = select_items(task, evaluation_items, evaluate.limit)
    answers = answer_requests(task, [json.loads(text) for text in items["fields"]], distil_prompt)
    label = ["rationale", "answer"] if distil.style == "cot" else ["answer"]
    answer = ["rationale", "answer"] if task.cot else ["answer"]
    asked = (
        stages["transform"] + stages["consistency_filter"] if "consistency_filter" in stages else stages["transform"]
    )
    stages |= {
        "synthesize": asked,
        "distil": forecast(labels, 0, [_dump(example, label) for example in task.examples], per_character),
        "teacher": forecast(
            answers, len(answers), [_dump(example, answer) for example in task.examples], per_character
        ),
    }
    return estimate | {"stage": "comparison estimate"} | _summarize(stages, teacher)


def _summarize(stages: dict[str, Forecast], teacher: CachedTeacher) -> dict[str, Any]:
    """The stages and their total, as JSON has them."""
    first, *others = stages.values()
    limits = teacher.teacher.limits if isinstance(teacher.teacher, ApiTeacher) else None
    return {
        "stages": {name: stage.summary(teacher.price, limits) for name, stage in stages.items()},
        "total": sum(others, start=first).summary(teacher.price, limits),
    }


def _label_requests(
    task: Task, example: dict[str, str], prompt: DistilPrompt, parameters: DistilParameters
) -> list[Request]:
    """What ``distil`` asks about an input, for which the task's own example stands, in whatever style."""
    requests = label_requests(task, example, prompt, parameters)
    if parameters.style == "chain_of_density":
        for number in range(2, parameters.rounds + 1):
            draft = ("", example["answer"])
            requests.append(densify_request(task, requests[-1], draft, number, parameters.rounds, prompt.densify))
    return requests


def _transform_requests(
    task: Task, rows: list[dict[str, Any]], prompt: TransformPrompt, parameters: TransformParameters
) -> list[Request]:
    if not (parameters.guided and can_be_guided(task)):
        return [transform_request(task, row, prompt, parameters) for row in rows]
    columns = source_text_columns(rows)
    cues = [(row, find_cue(task, row, columns)) for row in rows]
    return [transform_request(task, row, prompt, parameters, cue) for row, cue in cues if cue is not None]


def _as_example(task: Task, example: dict[str, str]) -> dict[str, Any]:
    """One of the task's examples as a line of the table ``examples``."""
    fields = {name: example[name] for name in task.query_fields}
    return {"fields": json.dumps(fields), "query": task.render_query(fields), "answer": example["answer"]}


def _dump(example: dict[str, str], names: list[str]) -> str:
    """What a response with these fields looks like."""
    return json.dumps({"example": {name: example[name] for name in names}}, ensure_ascii=False)
