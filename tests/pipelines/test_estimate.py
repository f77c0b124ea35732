import json

import pytest

from rebase.parameters import CotParameters, DistilParameters
from rebase.pipelines.compare import create_pipeline as create_comparison
from rebase.pipelines.cot.nodes import reason_examples
from rebase.pipelines.estimate.nodes import estimate_comparison, estimate_cost
from rebase.pipelines.evaluate.nodes import predict_teacher
from rebase.pipelines.report.nodes import compare_usage
from rebase.records import TEACHER_USAGE_COLUMNS, DatasetMapping
from rebase.teacher.anthropic import AnthropicTeacher
from rebase.teacher.budget import Budget, Price, PriceTable, Usage
from rebase.teacher.cached import CachedTeacher
from rebase.teacher.settings import BudgetSettings
from tests.generation.test_mapping import PARAMETERS as MAPPING
from tests.pipelines.test_distil import PROMPT as LABEL_PROMPT
from tests.pipelines.test_distil import SAMPLING, SUMMARIES
from tests.pipelines.test_evaluate_teacher import items
from tests.pipelines.test_transform import (
    NO_EVALUATION,
    PASSAGES,
    PROMPT,
    READING,
    SUMS,
    asks_for_the_year,
    parameters,
    retrieved,
    transform,
)
from tests.scripted import NO_PRICES, Scripted, cached
from tests.shipped import shipped_prompt, shipped_task
from tests.tiny import evaluate_parameters

COT_PROMPT = shipped_prompt("cot")
COT = CotParameters.model_validate(
    {
        "samples": 3,
        "on_disagreement": "reject",
        "max_row_tokens": 100,
        "sampling": {"temperature": 0.7, "max_tokens": 200},
    }
)
LABELS = DistilParameters.model_validate(
    {"style": "direct", "samples": 1, "rounds": 3, "max_inputs": None, "sampling": SAMPLING}
)
USAGE = Usage().summary()
PRICE = Price(input=1.0, output=5.0)


def hosted(tmp_path, price=PRICE):
    table = PriceTable(as_of="2026-11-21", models={"anthropic": {"some-model": price}}) if price else NO_PRICES
    teacher = AnthropicTeacher("some-model", None)
    return CachedTeacher(teacher, tmp_path / "responses.sqlite", Budget(BudgetSettings(), price), table)


def estimate(task, rows, teacher, function=estimate_cost, **changes):
    prompts = (PROMPT, COT_PROMPT, shipped_prompt("map"), LABEL_PROMPT)
    return function(task, rows, teacher, *prompts, parameters(**changes), COT, MAPPING, LABELS)


def test_it_counts_what_transform_then_asks_and_sends_nothing():
    rows = retrieved(passages=PASSAGES)
    teacher = cached(Scripted(asks_for_the_year), price=PRICE)
    before = estimate(READING, rows, teacher, max_examples=5)
    assert teacher.teacher.opened == 0
    assert not teacher.path.exists()
    examples, _, summary = transform(READING, rows, NO_EVALUATION, teacher, PROMPT, parameters(max_examples=5))
    low, high = before["total"]["requests"]
    assert (low, high) == (5, 12)
    assert low <= summary["usage"]["responses"] <= high
    _, _, cot_summary = reason_examples(READING, examples, rows, teacher, COT_PROMPT, "answer", COT)
    usage = compare_usage(before, {"in": 0}, summary, cot_summary)
    assert list(usage) == TEACHER_USAGE_COLUMNS
    usage = usage.set_index("stage")
    assert usage.loc["total", "used"] == summary["usage"]["responses"]
    assert usage.loc["transform", "estimated_requests_high"] == 12
    assert usage.loc["cot", "estimated_dollars_high"] == 0
    assert usage.loc["total", "used_dollars"] == pytest.approx(summary["usage"]["dollars"])


def test_reasoning_and_the_consistency_filter_are_counted_as_well():
    cells = [{"story": f"Anna has {n} pens and buys two more pens in town."} for n in range(6)]
    teacher = cached(Scripted(str))
    costs = estimate(SUMS, retrieved(cells, query_column="story"), teacher, max_examples=4, consistency_filter=True)
    assert {stage: stage_costs["requests"] for stage, stage_costs in costs["stages"].items()} == {
        "transform": [4, 6],
        "consistency_filter": [0, 4],
        "cot": [0, 12],
    }
    assert costs["total"]["requests"] == [4, 22]


def test_rows_without_a_cue_are_not_counted_for_a_guided_teacher():
    rows = retrieved(passages=[*PASSAGES[:3], "Nothing here."])
    costs = estimate(READING, rows, cached(Scripted(str)), max_examples=2, guided=True)
    assert costs["stages"]["transform"]["requests"] == [2, 3]
    assert costs["rows"] == 4


@pytest.mark.parametrize(
    ("task", "style", "samples", "labels"),
    [(READING, "direct", 1, 5), (SUMS, "cot", 3, 15), (SUMMARIES, "chain_of_density", 1, 20)],
)
def test_a_comparison_counts_what_the_baselines_ask_as_well(task, style, samples, labels):
    response = '{"rationale": "So it is.", "answer": 7}' if task.cot else '{"answer": "7"}'
    teacher = cached(Scripted(lambda _: response), price=PRICE)
    before = estimate(READING, retrieved(passages=PASSAGES), teacher, max_examples=5, consistency_filter=True)
    evaluation_items = items(task, ["1", "2", "3"])
    distil = {"style": style, "samples": samples, "rounds": 4, "max_inputs": None, "sampling": SAMPLING}
    costs = estimate_comparison(
        before, task, evaluation_items, teacher, LABEL_PROMPT,
        parameters(max_examples=5), DistilParameters.model_validate(distil), evaluate_parameters(),
    )  # fmt: skip
    stages = {stage: stage_costs["requests"] for stage, stage_costs in costs["stages"].items()}
    assert stages["synthesize"] == [
        sum(both) for both in zip(stages["transform"], stages["consistency_filter"], strict=True)
    ]
    assert stages["distil"] == [0, labels]
    assert stages["teacher"] == [3, 3]
    assert costs["total"]["requests"] == [sum(bounds) for bounds in zip(*stages.values(), strict=True)]
    assert teacher.teacher.opened == 0
    _, summary = predict_teacher(task, evaluation_items, teacher, LABEL_PROMPT, evaluate_parameters())
    assert summary["usage"]["used"] == 3
    assert json.loads(json.dumps(costs)) == costs


@pytest.mark.parametrize("mode", ["map", "both"])
def test_a_comparison_rewrites_rows_in_any_mode(mode):
    [node] = [node for node in create_comparison().nodes if node.short_name == "estimate_cost"]
    cells = [{"story": f"Anna has {n} pens and buys two more pens in town."} for n in range(6)]
    rows, teacher = retrieved(cells, query_column="story"), cached(Scripted(str), price=PRICE)
    written = {"dataset": "hens", "fields": {"question": "ask"}, "answer": "count"}
    task = SUMS.model_copy(update={"mappings": (DatasetMapping.model_validate(written),)})
    rewritten = estimate(task, rows, teacher, max_examples=4)["stages"]
    before = estimate(task, rows, teacher, node.func, max_examples=4, mode=mode)
    evaluation_items = items(task, ["1"])
    costs = estimate_comparison(
        before, task, evaluation_items, teacher, LABEL_PROMPT, parameters(max_examples=4, mode=mode), LABELS,
        evaluate_parameters(),
    )  # fmt: skip
    assert rewritten["transform"]["requests"] == [4, 6]
    assert costs["stages"].items() >= {**rewritten, "synthesize": rewritten["transform"]}.items()
    assert "map" in costs["stages"]


def test_it_needs_no_key_and_says_what_it_does_not_know(tmp_path):
    costs = estimate(READING, retrieved(passages=PASSAGES), hosted(tmp_path, price=None))
    assert costs["total"]["dollars"] is None
    assert "no price for anthropic/some-model" in costs["price"]


def test_batches_cost_half_the_dollars(tmp_path):
    teacher = hosted(tmp_path)
    total = estimate(READING, retrieved(passages=PASSAGES), teacher, max_examples=6)["total"]
    assert total["dollars_batch"] == [dollars / 2 for dollars in total["dollars"]]


def test_tokens_are_those_that_the_provider_counted_before():
    rows = retrieved(passages=PASSAGES)
    teacher = cached(Scripted(asks_for_the_year))
    first = estimate(READING, rows, teacher)
    assert first["tokens"] == "by the rule of approximate_tokens"
    transform(READING, rows, NO_EVALUATION, teacher, PROMPT, parameters())
    second = estimate(READING, rows, teacher)
    assert second["tokens"] == "as counted in cached responses"
    # The scripted teacher counts 7 tokens for every prompt.
    assert second["total"]["input_tokens"][1] == pytest.approx(7 * len(PASSAGES), abs=1)


def test_it_is_plain_json():
    assert json.dumps(estimate(READING, retrieved(passages=PASSAGES), cached(Scripted(str))))


def test_labels_of_mapped_inputs_are_counted_at_most_one_for_each_example():
    rows = retrieved(passages=PASSAGES)
    teacher = cached(Scripted(asks_for_the_year), price=PRICE)
    stages = estimate(READING, rows, teacher, mode="map")["stages"]
    assert stages["labels"]["requests"] == [0, MAPPING.max_examples]
    assert "cot" not in stages
    sums = {stage: costs["requests"] for stage, costs in estimate(SUMS, rows, teacher, mode="map")["stages"].items()}
    assert sums["cot"] == [0, COT.samples * MAPPING.max_examples]
    usage = compare_usage(estimate(READING, rows, teacher, mode="both"), *[{"in": 1, "usage": USAGE}] * 3)
    assert usage.set_index("stage").loc["map", "estimated_requests_high"] == sum(
        stages[name]["requests"][1] for name in ("map", "labels")
    )
    few = rows.head(MAPPING.min_rows - 1)
    assert "labels" not in estimate(READING, few, teacher, mode="map")["stages"]
    written = {"dataset": "d", "fields": {"context": "a", "question": "b"}}
    task = READING.model_copy(update={"mappings": (DatasetMapping.model_validate(written),)})
    assert estimate(task, few, teacher, mode="map")["stages"]["labels"]["requests"][1] == MAPPING.max_examples


def test_rationales_of_mapped_examples_are_counted_if_a_person_wrote_the_mapping():
    written = {"dataset": "hens", "fields": {"question": "ask"}, "answer": "count"}
    task = SUMS.model_copy(update={"mappings": (DatasetMapping.model_validate(written),)})
    stages = estimate(task, retrieved(passages=PASSAGES[:1]), cached(Scripted(str)), mode="map")["stages"]
    assert stages["map"]["requests"] == [0, 0]
    assert stages["cot"]["requests"] == [0, COT.samples * MAPPING.max_examples]


def test_audits_of_mappings_are_counted_with_the_one_after_a_correction():
    def requests(task):
        return estimate(task, retrieved(passages=PASSAGES), cached(Scripted(str)), mode="map")["stages"]["map"][
            "requests"
        ]

    configs, most = requests(READING)
    assert most == configs * (1 + MAPPING.audit)
    assert requests(shipped_task("mnli")) == [configs, configs * (1 + 2 * MAPPING.audit)]
    assert requests(shipped_task("mmlu")) == [configs, most], "nothing corrects letters of options"
    written = {"dataset": "d", "fields": {"context": "a", "question": "b"}, "answer": "c", "audit": True}
    task = READING.model_copy(update={"mappings": (DatasetMapping.model_validate(written),)})
    assert requests(task) == [configs, most + MAPPING.audit]
