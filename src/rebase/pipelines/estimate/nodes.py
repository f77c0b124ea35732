"""Estimate: render every request of the stages that use the teacher, count, and send nothing."""

import json
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd

from rebase.generation.cost_estimate import estimate_requests, read_estimate, summarize_estimate
from rebase.generation.mapping import configs_to_map, describe_columns, has_label_names, lacks_passages, map_request
from rebase.generation.prompts.requests import (
    answer_request,
    cot_request,
    densify_request,
    evaluation_requests,
    label_requests,
)
from rebase.generation.prompts.templates import DistilPrompt, MapPrompt, SolvePrompt, TransformPrompt
from rebase.generation.rows import RowTransformer
from rebase.parameters import (
    CotParameters,
    DistilParameters,
    EvaluateParameters,
    MapParameters,
    TransformParameters,
)
from rebase.records import Task
from rebase.tasks.evaluation_items import select_items
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.protocol import Request


def estimate_cost(  # noqa: PLR0913, PLR0917 - one argument for each input
    task: Task,
    retrieved: pd.DataFrame,
    teacher: CachedTeacher,
    transform_prompt: TransformPrompt,
    cot_prompt: SolvePrompt,
    map_prompt: MapPrompt,
    distil_prompt: DistilPrompt,
    transform: TransformParameters,
    cot: CotParameters,
    mapping: MapParameters,
    distil: DistilParameters,
    *,
    with_mapped: bool = True,
) -> dict[str, Any]:
    """Estimate requests, tokens and dollars by stage and in total, each as ``[low, high]``.

    Low: every response passes and is as short as the shortest of the task's examples. High: all rows are requested and
    responses are as long as the longest. Mappings are counted with their audits, described by the retrieved rows,
    and at most with a label for each example (``labels``), for mappings without an answer; how many rows they leave to
    transform is not known. Without ``with_mapped``, transform and cot are estimated for rewritten rows alone, in any
    mode. Cached responses are counted as well. Thinking tokens are not, because they cannot be predicted.
    """
    rows = retrieved.to_dict("records")
    mode = transform.mode if with_mapped else "rewrite"
    transformer = RowTransformer(task, rows, transform_prompt, transform)
    rows_to_send = [] if mode == "map" else rows
    requests = [request for row in rows_to_send if (request := transformer.request(row))]
    minimum = transform.max_examples if mode == "rewrite" else 0
    plan: _Plan = {"transform": (requests, minimum, (*task.written_fields, "answer"))}
    mapped = 0
    if transform.mode != "rewrite":
        requests_of_map, count = _map_requests(task, retrieved, map_prompt, distil_prompt, mapping)
        plan["map"] = (requests_of_map, count, (*task.query_fields, "answer"))
        mapped = mapping.max_examples if with_mapped and (count or task.mappings) else 0
        if count or any(written.answer is None for written in task.mappings):
            plan["labels"] = _plan_labels(task, mapping.max_examples, distil_prompt, distil)
    # The task's examples stand for those that will be generated.
    examples = list(islice(cycle(task.examples), min(transform.max_examples, len(requests))))
    if transform.consistency_filter:
        checks = [answer_request(task, example, transform_prompt.check, transform.sampling) for example in examples]
        plan["consistency_filter"] = (checks, 0, ("answer",))
    if task.cot:
        rationales = [
            cot_request(task, {name: example[name] for name in task.query_fields}, row, cot_prompt, cot, sample)
            for example, row in [
                *zip(examples, rows, strict=False),
                *((example, None) for example in islice(cycle(task.examples), mapped)),
            ]
            for sample in range(cot.samples)
        ]
        plan["cot"] = (rationales, 0, ("rationale", "answer"))
    is_counted = teacher.tokens_per_character() is not None
    estimate = {
        "stage": "estimate",
        "task": task.name,
        "teacher": f"{teacher.provider}/{teacher.model}",
        "price": teacher.price_in_words,
        "tokens": "as counted in cached responses" if is_counted else "by the rule of approximate_tokens",
        "rows": len(rows),
    }
    return estimate | _summarize(task, teacher, plan, {})


def estimate_rewritten(*inputs: Any) -> dict[str, Any]:
    """Estimate requests, tokens and dollars by stage and in total, with rows that are rewritten in any mode."""
    return estimate_cost(*inputs, with_mapped=False)


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
    stages = {name: read_estimate(summary) for name, summary in estimate["stages"].items()}
    stages["synthesize"] = stages["transform"] + stages.get("consistency_filter", 0)
    labels = _plan_labels(task, min(transform.max_examples, estimate["rows"]), distil_prompt, distil)
    items, _ = select_items(task, evaluation_items, evaluate.limit)
    answers = evaluation_requests(task, map(json.loads, items["fields"]), distil_prompt)
    plan: _Plan = {
        "distil": labels,
        "teacher": (answers, len(answers), ("rationale", "answer") if task.cot else ("answer",)),
    }
    return estimate | {"stage": "comparison estimate"} | _summarize(task, teacher, plan, stages)


#: The requests of each stage, how many of them it sends at least, and the fields of its responses.
_Plan = dict[str, tuple[list[Request], int, tuple[str, ...]]]


def _summarize(task: Task, teacher: CachedTeacher, plan: _Plan, stages: dict[str, np.ndarray]) -> dict[str, Any]:
    """The estimated ``stages``, those of the plan, and the total, for JSON."""
    per_character = teacher.tokens_per_character()
    for stage, (requests, minimum, names) in plan.items():
        responses = [{"example": {name: example[name] for name in names}} for example in task.examples]
        texts = [json.dumps(response, ensure_ascii=False) for response in responses]
        stages[stage] = estimate_requests(requests, minimum, texts, per_character)
    return {
        "stages": {stage: summarize_estimate(estimate, teacher.price) for stage, estimate in stages.items()},
        "total": summarize_estimate(np.sum([*stages.values()], axis=0), teacher.price),
    }


def _map_requests(
    task: Task, retrieved: pd.DataFrame, prompt: MapPrompt, distil_prompt: DistilPrompt, parameters: MapParameters
) -> tuple[list[Request], int]:
    """A request for each config that can be mapped, then those of the audits; and the number of the former.

    Names of labels are audited twice if the first audit corrects them. A person's mapping counts as one config.
    """
    configs = []
    for dataset, config in configs_to_map(task, retrieved, parameters.min_rows):
        is_of_config = (retrieved["dataset"] == dataset) & (retrieved["config"] == config)
        rows = [json.loads(row) for row in retrieved.loc[is_of_config, "row"]]
        columns = describe_columns(rows)
        if not lacks_passages(task, columns):
            configs.append(map_request(task, "", columns, rows[: parameters.shown_rows], prompt, parameters))
    audits = (2 if has_label_names(task) else 1) * len(configs) + sum(written.audit for written in task.mappings)
    examples = islice(cycle(task.examples), parameters.audit * audits)
    return [*configs, *evaluation_requests(task, examples, distil_prompt)], len(configs)


def _plan_labels(
    task: Task, count: int, prompt: DistilPrompt, parameters: DistilParameters
) -> tuple[list[Request], int, tuple[str, ...]]:
    """The labels of at most so many inputs, in any style of ``distil``; the task's examples stand for the inputs."""
    requests = []
    for example in islice(cycle(task.examples), count):
        requests += label_requests(task, example, prompt, parameters)
        if parameters.style == "chain_of_density":
            for number in range(2, parameters.rounds + 1):
                draft = ("", example["answer"])
                request = densify_request(task, requests[-1], draft, number, parameters.rounds, prompt.densify)
                requests.append(request)
    return requests, 0, ("rationale", "answer") if parameters.style == "cot" else ("answer",)
