import json
from html.parser import HTMLParser

import pandas as pd
import pytest

from rebase.records import Task
from rebase.report import examples_with_rows, won_and_lost, write_report
from tests.tiny import reasoned_examples


@pytest.fixture
def predictions() -> pd.DataFrame:
    lines = [
        (system, item, f"prompt {item}", raw, "yes", '["yes"]', value, value)
        for system, values in {"student": (0.0, 1.0, 1.0), "expert": (1.0, 0.0, 1.0)}.items()
        for item, value in zip("abc", values, strict=True)
        for raw in [f"<b>{system} says {item}</b>"]
    ]
    columns = ["system", "item_id", "prompt", "raw", "extracted", "answers", "exact_match", "f1"]
    return pd.DataFrame(lines, columns=columns)


@pytest.fixture
def retrieved() -> pd.DataFrame:
    row = json.dumps({"title": "Trees & <script>birds</script>", "year": "1871"})
    return pd.DataFrame({"row_id": [f"e{n}" for n in range(9)], "row": row})


def test_won_and_lost(predictions: pd.DataFrame) -> None:
    outcomes = won_and_lost(predictions, "exact_match")
    assert [item["prompt"] for item in outcomes["won"]] == ["prompt a"]
    assert [item["prompt"] for item in outcomes["lost"]] == ["prompt b"]
    assert outcomes["lost"][0]["student"] == "<b>student says b</b>"


def test_examples_are_spread_and_stand_beside_their_row(retrieved: pd.DataFrame) -> None:
    chosen = examples_with_rows(reasoned_examples(9), retrieved)
    assert [example["rank"] for example in chosen] == [1, 3, 5, 7]
    assert dict(chosen[0]["source"])["year"] == "1871"
    assert examples_with_rows(reasoned_examples(1), retrieved.head(0))[0]["source"] == []


def test_page_is_whole_escaped_and_alone(
    reading_task: Task, predictions: pd.DataFrame, retrieved: pd.DataFrame
) -> None:
    cell = {"value": 33.3, "low": 20.0, "high": 41.5}
    metrics = dict.fromkeys(reading_task.metrics, cell)
    scores = {
        "task": "tiny_reading", "n": 3, "confidence": 0.95,
        "systems": {"student": metrics, "expert": metrics}, "differences": {"expert - student": metrics},
    }  # fmt: skip
    stages = [
        {"stage": "retrieve", "in": 9, "kept": 7, "refused": {"licence": 2}},
        {"stage": "train", "in": 7, "kept": 7, "refused": {}, "base_model": "tiny"},
    ]
    page = write_report(reading_task, scores, predictions, retrieved, reasoned_examples(9, "because"), *stages)
    HTMLParser().feed(page)
    assert "<script>" not in page
    assert "&lt;b&gt;expert says a&lt;/b&gt;" in page
    assert "licence: 2" in page
    assert "33.3" in page
    assert "because" in page
    assert "src=" not in page
    assert "href=" not in page
