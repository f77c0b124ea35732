import numpy as np
import pandas as pd
import pytest

from rebase.records import AnswerSpec, Task
from rebase.reporting.diagnostics import (
    is_in_form,
    judge_against_scores,
    nearest_pairs,
    nearness,
    right_in_format,
    where_gains_come_from,
)

PROMPT = "The heron nests in high trees. Where?"


def with_answer(task: Task, **spec: object) -> Task:
    return task.model_copy(update={"answer": AnswerSpec.model_validate(spec)})


@pytest.mark.parametrize(
    ("spec", "extracted", "expected"),
    [
        ({"type": "span"}, "High trees!", True),
        ({"type": "span"}, "low trees", False),
        ({"type": "span"}, "heron nests in high trees", False),  # longer than the longest reference
        ({"type": "span"}, "Where?", False),  # a whole sentence
        ({"type": "span"}, "the", False),
        ({"type": "span"}, "ees", False),  # a part of a word
        ({"type": "label", "labels": ["yes", "no"]}, "yes", True),
        ({"type": "label", "labels": ["yes", "no"]}, "", False),
        ({"type": "number"}, "1,800", True),
        ({"type": "number"}, "many", False),
        ({"type": "text"}, " ", False),
        ({"type": "code"}, "x = 1", True),
    ],
)
def test_is_in_form(reading_task: Task, spec: dict[str, object], extracted: str, expected: bool) -> None:
    assert is_in_form(with_answer(reading_task, **spec), extracted, PROMPT, 3) is expected


@pytest.fixture
def predictions() -> pd.DataFrame:
    """The student answers one of four in form, and rightly; the expert all four, two of them rightly."""
    lines = [
        ("student", "a", "high trees", 1.0), ("student", "b", "", 0.0),
        ("student", "c", "", 0.0), ("student", "d", "", 0.0),
        ("expert", "a", "heron", 0.0), ("expert", "b", "high trees", 1.0),
        ("expert", "c", "heron", 1.0), ("expert", "d", "heron", 0.0),
    ]  # fmt: skip
    frame = pd.DataFrame(lines, columns=["system", "item_id", "extracted", "exact_match"])
    return frame.assign(prompt=PROMPT, references='["in high trees"]')


def test_a_span_of_an_example_in_the_prompt_is_not_in_form(reading_task: Task, predictions: pd.DataFrame) -> None:
    few_shot = predictions[predictions["system"] == "expert"].assign(
        system="few_shot", extracted="dry banks", prompt=f"Foxes dig dens in dry banks. {PROMPT}", exact_match=0.0
    )
    *_, line = right_in_format(reading_task, pd.concat([predictions, few_shot], ignore_index=True))
    assert (line["system"], line["in_form"]) == ("few_shot", 0.0)


def test_a_word_of_a_language_without_spaces_is_in_form(reading_task: Task) -> None:
    assert is_in_form(with_answer(reading_task, type="span"), "東京", "私は東京に住む。", 3)


def test_right_in_format(reading_task: Task, predictions: pd.DataFrame) -> None:
    student, expert = right_in_format(reading_task, predictions)
    assert (student["in_form"], student["score"], student["score_in_form"]) == (25.0, 25.0, 100.0)
    assert (student["most_frequent"], student["most_frequent_share"]) == ("", 75.0)
    assert (expert["in_form"], expert["score"], expert["score_in_form"]) == (100.0, 50.0, 50.0)
    assert (expert["most_frequent"], expert["most_frequent_share"]) == ("heron", 75.0)


def test_a_gain_that_is_form_alone_is_seen(reading_task: Task, predictions: pd.DataFrame) -> None:
    gains = where_gains_come_from(reading_task, predictions)
    assert gains == {"n": 4, "both": 1, "gain": 25.0, "gain_in_form": -100.0, "form": 75.0}
    expert = predictions[predictions["system"] == "expert"]
    assert where_gains_come_from(reading_task, expert) is None
    nothing = pd.concat([expert, expert.assign(system="student", extracted="", exact_match=0.0)])
    assert np.isnan(where_gains_come_from(reading_task, nothing)["gain_in_form"])


def test_nearest_pairs() -> None:
    points = pd.DataFrame(
        {
            "text": ["row", "far", "near"],
            "cosine": [np.nan, 0.1, 0.9],
            "nearest_id": [None, "e1", "gone"],
        }
    )
    pairs = nearest_pairs(points, pd.DataFrame({"example_id": ["e1"], "query": ["q1"]}))
    assert [(pair["item"], pair["example"]) for pair in pairs] == [("near", ""), ("far", "q1")]
    assert nearness(points) == pytest.approx({"median": 0.5, "p90": 0.82, "largest": 0.9})
    assert nearness(points[:1]) is None


def test_a_score_that_rises_while_a_grade_falls() -> None:
    scores = {"systems": {"student": {"f1": {"value": 20.0}}, "expert": {"f1": {"value": 40.0}}}}
    grades = {
        "student": {"helpful": {"value": 3.0}, "true": {"value": 2.0}},
        "expert": {"helpful": {"value": 2.5}, "true": {"value": 4.0}, "brief": {"n": 0}},
        "teacher": {"helpful": {"value": 5.0}},
    }
    student, expert = judge_against_scores(scores, {"grades": grades}, "f1")
    assert student["falling"] == []
    assert expert["falling"] == ["helpful"]
    assert list(expert["grades"]) == ["helpful", "true"]
    unknown = judge_against_scores(scores, {"grades": grades}, "accuracy")
    assert [(line["score"], line["falling"]) for line in unknown] == [(None, [])] * 2
    assert judge_against_scores(scores, None, "f1") == []
    assert judge_against_scores(None, {"grades": grades}, "f1") == []
