"""Estimate: render every request of the stages that use the teacher, count, and send nothing."""

import json
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any

import pandas as pd

from rebase.generation.cost_estimate import CostEstimate, estimate_requests
from rebase.generation.cues import can_be_guided, find_cue, source_text_columns
from rebase.generation.prompts.requests import (
    answer_request,
    cot_request,
    densify_request,
    evaluation_requests,
    label_requests,
    transform_request,
)
from rebase.generation.prompts.templates import CotPrompt, DistilPrompt, TransformPrompt
from rebase.parameters import CotParameters, DistilParameters, EvaluateParameters, TransformParameters
from rebase.records import Task
from rebase.tasks.evaluation_items import select_items
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
    """Estimate requests, tokens and dollars by stage and in total, each as ``[low, high]``.

    Low: every response passes and is as short as the shortest of the task's examples. High: all rows are requested and
    responses are as long as the longest. Cached responses are counted as well. Thinking tokens are not, because they
    cannot be predicted.
    """
    per_character = teacher.tokens_per_character()
    rows = retrieved.sort_values("rank", kind="stable").to_dict("records")
    requests = _transform_requests(task, rows, transform_prompt, transform)
    responses = _responses(task, *task.written_fields, "answer")
    stages = {"transform": estimate_requests(requests, transform.max_examples, responses, per_character)}
    # The task's examples stand for those that will be generated.
    examples = list(islice(cycle(task.examples), min(transform.max_examples, len(requests))))
    if transform.consistency_filter:
        requests = [answer_request(task, example, transform_prompt.check, transform.sampling) for example in examples]
        stages["consistency_filter"] = estimate_requests(requests, 0, _responses(task, "answer"), per_character)
    if task.cot:
        requests = [
            cot_request(task, _as_line(task, example), row, cot_prompt, cot, sample)
            for example, row in zip(examples, rows, strict=False)
            for sample in range(cot.samples)
        ]
        stages["cot"] = estimate_requests(requests, 0, _responses(task, "rationale", "answer"), per_character)
    estimate = {
        "stage": "estimate",
        "task": task.name,
        "teacher": f"{teacher.provider}/{teacher.model}",
        "price": teacher.price_in_words,
        "tokens": "by the rule of approximate_tokens" if per_character is None else "as counted in cached responses",
        "rows": len(rows),
    }
    return estimate | _summarize(stages, teacher)


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
    """Add to ``estimate`` the requests of the baselines of ``compare``.

    ``synthesize`` sends as many requests as ``transform`` and is estimated with its tokens, because its prompts have no
    row but its responses a passage. ``distil`` labels each possible example; ``teacher`` answers every item.
    """
    per_character = teacher.tokens_per_character()
    stages = {name: CostEstimate.of(summary) for name, summary in estimate["stages"].items()}
    examples = islice(cycle(task.examples), min(transform.max_examples, estimate["rows"]))
    labels = [request for example in examples for request in _label_requests(task, example, distil_prompt, distil)]
    label = ("rationale", "answer") if distil.style == "cot" else ("answer",)
    items, _ = select_items(task, evaluation_items, evaluate.limit)
    answers = evaluation_requests(task, map(json.loads, items["fields"]), distil_prompt)
    answer = ("rationale", "answer") if task.cot else ("answer",)
    synthesize = stages["transform"]
    if "consistency_filter" in stages:
        synthesize += stages["consistency_filter"]
    stages |= {
        "synthesize": synthesize,
        "distil": estimate_requests(labels, 0, _responses(task, *label), per_character),
        "teacher": estimate_requests(answers, len(answers), _responses(task, *answer), per_character),
    }
    return estimate | {"stage": "comparison estimate"} | _summarize(stages, teacher)


def _summarize(stages: dict[str, CostEstimate], teacher: CachedTeacher) -> dict[str, Any]:
    """The stages and their total, for JSON."""
    first, *others = stages.values()
    return {
        "stages": {name: stage.summary(teacher.price) for name, stage in stages.items()},
        "total": sum(others, start=first).summary(teacher.price),
    }


def _transform_requests(
    task: Task, rows: list[dict[str, Any]], prompt: TransformPrompt, parameters: TransformParameters
) -> list[Request]:
    if not (parameters.guided and can_be_guided(task)):
        return [transform_request(task, row, prompt, parameters) for row in rows]
    columns = source_text_columns(rows)
    cues = ((row, find_cue(task, row, columns)) for row in rows)
    return [transform_request(task, row, prompt, parameters, cue) for row, cue in cues if cue is not None]


def _label_requests(
    task: Task, example: Mapping[str, str], prompt: DistilPrompt, parameters: DistilParameters
) -> list[Request]:
    """The requests of ``distil`` for one input, in any style; the task's example stands for the input."""
    requests = label_requests(task, example, prompt, parameters)
    if parameters.style == "chain_of_density":
        for number in range(2, parameters.rounds + 1):
            draft = ("", example["answer"])
            requests.append(densify_request(task, requests[-1], draft, number, parameters.rounds, prompt.densify))
    return requests


def _as_line(task: Task, example: Mapping[str, str]) -> dict[str, Any]:
    """An example of the task as a line of the table ``examples``."""
    fields = {name: example[name] for name in task.query_fields}
    return {"fields": json.dumps(fields), "query": task.render_query(fields), "answer": example["answer"]}


def _responses(task: Task, *names: str) -> list[str]:
    """Responses with these fields, rendered from the examples of the task."""
    return [
        json.dumps({"example": {name: example[name] for name in names}}, ensure_ascii=False)
        for example in task.examples
    ]
