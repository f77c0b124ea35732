import json

import numpy as np
import pandas as pd
import pytest

from rebase.records import Metric, Task
from rebase.tasks.verdict import verdict, warnings


def predictions_of(n: int, expert: tuple[int, int], student: tuple[int, int], metric: str) -> pd.DataFrame:
    """Scores of items of two systems, of which (strict, lenient) are right."""
    return pd.concat(
        pd.DataFrame(
            {name: np.arange(n) < count for name, count in zip((metric, "answer_found"), pair, strict=True)},
            dtype=float,
        ).assign(system=system)
        for system, pair in (("student", student), ("expert", expert))
    )


def scores_of(n: int, expert: tuple[float, float], student: tuple[float, float], p: float, metric: str) -> dict:
    """Scores of two systems, each (strict, lenient) in percent, whose differences have one p-value."""
    cells = {
        system: {
            name: {"value": value, "low": value - 5, "high": value + 5} for name, value in zip(names, pair, strict=True)
        }
        for names in [(metric, "answer_found")]
        for system, pair in (("student", student), ("expert", expert))
    }
    difference = {
        name: {"value": cells["expert"][name]["value"] - cells["student"][name]["value"], "p": p}
        for name in cells["expert"]
    }
    return {"n": n, "systems": cells, "differences": {"expert - student": difference}}


@pytest.mark.parametrize(
    ("expert", "student", "p", "sentence"),
    [
        (
            (51, 55), (1, 44), 0.13,
            "The expert answers 11 more items of 100 than the student (55 and 44), 51 and 1 of them in the asked "
            "format; the difference in content is not clear (p = 0.13).",
        ),
        (
            (20, 20), (20, 40), 0.0001,
            "The expert answers 20 fewer items of 100 than the student (20 and 40), 20 and 20 of them in the asked "
            "format; the difference in content is clear (p < 0.001).",
        ),
        (
            (20, 20), (0, 20), 1.0,
            "The expert answers as many items of 100 as the student (20 and 20), 20 and 0 of them in the asked format; "
            "the difference in content is not clear (p = 1).",
        ),
    ],
)  # fmt: skip
def test_content_comes_before_format(expert: tuple, student: tuple, p: float, sentence: str) -> None:
    predictions = predictions_of(100, expert, student, "exact_match")
    assert verdict("exact_match", predictions, scores_of(100, expert, student, p, "exact_match")) == sentence


def test_items_are_counted_from_their_scores() -> None:
    """The percentages of scores are rounded to two digits, which is too few for 10,000 items."""
    percent = round(100 * 955 / 10570, 2)
    scores = scores_of(10570, (percent, percent), (0, 0), 0.01, "exact_match")
    text = verdict("exact_match", predictions_of(10570, (955, 955), (0, 0), "exact_match"), scores)
    assert text.startswith("The expert answers 955 more items of 10570 than the student (955 and 0)")


@pytest.mark.parametrize("metric", ["rouge_l", "f1", "chrf"])
def test_metrics_with_degrees_are_told_in_percent(metric: Metric) -> None:
    assert verdict(metric, pd.DataFrame(), scores_of(60, (30, 55.25), (20, 44), 0.021, metric)) == (
        f"The expert's answers have 55.2 % ({metric} 30.0) of the words of the references, the student's 44.0 % "
        f"({metric} 20.0); the difference in content is clear (p = 0.021)."
    )


def test_nothing_is_said_about_fewer_than_20_items(label_task: Task) -> None:
    scores = scores_of(19, (100, 100), (0, 0), 0.0001, "accuracy")
    assert (
        verdict("accuracy", pd.DataFrame(), scores)
        == "19 evaluation items are too few for a verdict: 20 or more are needed."
    )
    assert warnings(label_task, pd.DataFrame(), scores, "expert") == []


@pytest.fixture
def label_task(reading_task: Task) -> Task:
    answer = {"type": "label", "labels": ["yes", "no"]}
    examples = [{**example, "answer": "yes"} for example in reading_task.examples]
    content = reading_task.model_dump() | {"answer": answer, "examples": examples, "metrics": ["accuracy"]}
    return Task.parse(content, "labels.yml")


def warned(task: Task, expert: list[str], gold: list[str]) -> list[str]:
    accuracy = 100 * sum(map(str.__eq__, expert, gold)) / len(gold)
    references = [json.dumps([label]) for label in gold]
    frame = pd.DataFrame({"system": "expert", "extracted": expert, "references": references})
    return warnings(task, frame, scores_of(len(gold), (accuracy, accuracy), (0, 0), 0.01, "accuracy"), "expert")


def test_an_expert_that_gives_one_label_is_named(label_task: Task) -> None:
    gold = ["yes"] * 30 + ["no"] * 20
    level, one_label = warned(label_task, ["yes"] * 50, gold)
    assert level == (
        "The expert is not clearly above the most frequent label: 60.0 [55.0, 65.0]; always answering 'yes' would "
        "score 60.0."
    )
    assert one_label == "The expert gives nearly one label: 'yes' for 50 of 50 items."


def test_an_expert_that_gives_no_label_is_named(label_task: Task) -> None:
    *_, no_label = warned(label_task, [""] * 50, ["yes"] * 30 + ["no"] * 20)
    assert no_label.startswith("The expert gives no label for 50 of 50 items: ")


def test_an_expert_that_learned_the_labels_is_not_warned_about(label_task: Task) -> None:
    gold = ["yes"] * 30 + ["no"] * 20
    assert warned(label_task, gold, gold) == []
    # A label that most items have is not given too often.
    assert warned(label_task, ["yes"] * 48 + ["no"] * 2, ["yes"] * 48 + ["no"] * 2)[1:] == []
