import json

import pytest
import yaml

from rebase.errors import RebaseError
from rebase.pipelines.evaluate.nodes import predict_teacher
from rebase.records import Task
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.tasks.scoring import score_predictions
from rebase.tasks.source_rows import SourceRows
from rebase.teacher.budget import Price
from tests.scripted import Scripted, cached
from tests.shipped import RAW, shipped_prompt
from tests.tiny import evaluate_parameters

PROMPT = shipped_prompt("distil")
TOPIC, SUMS = (
    Task.parse(yaml.safe_load((RAW / "tasks" / f"{name}.yml").read_text()), name)
    for name in ("news_topic", "word_problems")
)
PARAMETERS = evaluate_parameters()


def items(task: Task, answers: list[str]):
    spec = task.evaluation.fields
    field_columns = {name: column for name, column in spec.items() if name != "references"}
    rows = [
        dict.fromkeys(field_columns.values(), f"What is to be said of number {n}?") | {spec["references"]: answer}
        for n, answer in enumerate(answers)
    ]
    return make_evaluation_items(task, SourceRows(rows, "rows"))


def test_the_teacher_sees_examples_and_no_gold_answer():
    teacher = Scripted(lambda _: '{"answer": "sport"}')
    generations, summary = predict_teacher(
        TOPIC, items(TOPIC, ["sport", "business"]), cached(teacher), PROMPT, PARAMETERS
    )
    predictions, scores = score_predictions(TOPIC, generations, PARAMETERS)
    assert predictions["accuracy"].to_list() == [1, 0]
    assert scores["systems"]["teacher"]["accuracy"]["value"] == 50
    assert summary["unreadable"] == {}
    assert summary["usage"]["used"] == 2
    first = teacher.requests[0]
    assert first.sampling.temperature == 0
    assert len(first.messages) == 2 * len(TOPIC.examples) + 1
    assert "number 0" in first.messages[-1].content
    assert json.loads(predictions["prompt"][0]) == json.loads(first.to_json())


def test_rows_without_a_gold_answer_are_counted_and_not_sent():
    teacher = Scripted(lambda _: '{"answer": "sport"}')
    evaluation_items = items(TOPIC, ["sport", None, "business", ""])
    generations, summary = predict_teacher(TOPIC, evaluation_items, cached(teacher), PROMPT, PARAMETERS)
    assert len(generations) == len(teacher.requests) == 2
    assert (summary["in"], summary["kept"], summary["rejected"]) == (4, 2, {"no_gold": 2})


def test_with_chain_of_thought_it_reasons_and_the_same_extraction_reads_it():
    teacher = Scripted(lambda _: '{"rationale": "3 and 4 make 7.", "answer": 7}')
    generations, _ = predict_teacher(SUMS, items(SUMS, ["7"]), cached(teacher), PROMPT, PARAMETERS)
    predictions, _ = score_predictions(SUMS, generations, PARAMETERS)
    assert predictions["raw_output"].to_list() == ["3 and 4 make 7. So the answer is 7."]
    assert predictions["extracted"].to_list() == ["7"]


def test_what_cannot_be_read_is_a_wrong_answer_and_counted():
    responses = iter(['{"answer": "sport"}', "I will not.", ('{"answer": "spo', "length")])
    teacher = Scripted(lambda _: next(responses), concurrency=1)
    generations, summary = predict_teacher(TOPIC, items(TOPIC, ["sport"] * 3), cached(teacher), PROMPT, PARAMETERS)
    assert generations["raw_output"].to_list() == ["sport", "", ""]
    assert sum(summary["unreadable"].values()) >= 1
    _, scores = score_predictions(TOPIC, generations, PARAMETERS)
    assert scores["systems"]["teacher"]["accuracy"]["value"] == pytest.approx(33.33)


def test_a_budget_that_does_not_last_gives_no_score():
    teacher = cached(
        Scripted(lambda _: '{"answer": "sport"}', concurrency=1), price=Price(input=1, output=1), max_requests=1
    )
    generations, summary = predict_teacher(TOPIC, items(TOPIC, ["sport"] * 3), teacher, PROMPT, PARAMETERS)
    assert generations.empty
    assert summary["rejected"] == {"over_budget": 3}
    assert summary["in"] == summary["kept"] + sum(summary["rejected"].values())
    with pytest.raises(RebaseError, match="did not last for all items"):
        score_predictions(TOPIC, generations, PARAMETERS)


def test_a_request_that_failed_is_no_wrong_answer():
    responses = iter(['{"answer": "sport"}', *[RuntimeError("no route to host")] * 9])
    teacher = cached(Scripted(lambda _: next(responses), concurrency=1))
    with pytest.raises(RebaseError, match=r"1 of 2 requests to scripted/test failed: no route to host"):
        predict_teacher(TOPIC, items(TOPIC, ["sport"] * 2), teacher, PROMPT, PARAMETERS)
