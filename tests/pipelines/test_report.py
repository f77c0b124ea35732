"""Diversity, and the map of all texts, with the embedded encoder."""

import json

import numpy as np
import pandas as pd
import pytest

from rebase.datastore.encoder import Encoder
from rebase.pipelines.report.nodes import MAX_POINTS, measure_diversity, project, project_embeddings
from rebase.records import EMBEDDING_MAP_COLUMNS, EVALUATION_COLUMNS, Task
from tests.tiny import reasoned_examples

TASK = Task.parse(
    {
        "name": "topics",
        "version": 1,
        "instruction": "Say what the text is about.",
        "query": "Which of all the topics in the list does this short text belong to?\n{text}",
        "examples": [{"text": "The owl sleeps.", "answer": "animals"}],
        "answer": {"type": "label", "labels": ["animals", "trade"]},
        "metrics": ["accuracy"],
        "evaluation": {"source": "given", "fields": {"text": "text", "references": "label"}},
    },
    "here",
)
TEXTS = ["The owl sleeps in the barn.", "An owl sleeps in the barn!", "Foxes hunt mice after sunset.", "The bank fell."]


def examples(texts: list[str], rationale: str | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "fields": [json.dumps({"text": text}) for text in texts],
            "answer": ["trade" if "bank" in text else "animals" for text in texts],
            "dataset": ["news" if "bank" in text else "birds" for text in texts],
            "rationale": pd.Series([rationale] * len(texts), dtype="str"),
        }
    )


def measure(examples: pd.DataFrame, encoder: Encoder) -> dict:
    measured = measure_diversity(TASK, examples, encoder)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    return measured


def test_what_a_training_set_is_made_of(encoder: Encoder) -> None:
    measures = measure(examples(TEXTS), encoder)
    assert measures["task"] == "topics"
    assert measures["n"] == 4
    # The template's words, which would make all of them alike, do not count.
    assert measures["distinct_share"] == 0.75
    assert 0 < measures["mean_cosine"] < 0.6
    assert measures["labels"]["counts"] == {"animals": 3, "trade": 1}
    assert measures["sources"] == {"birds": 0.75, "news": 0.25}
    assert measures["words"]["query"]["mean"] == (6 + 6 + 5 + 3) / 4
    assert measures["words"]["answer"]["p90"] == 1
    assert measures["words"]["rationale"] is None


def test_repeated_texts_are_less_diverse(encoder: Encoder) -> None:
    measures, repeated = (measure(examples(texts, "It is."), encoder) for texts in (TEXTS, TEXTS[:2] * 2))
    for name in ("distinct_share", "distinct_1", "distinct_2"):
        assert repeated[name] < measures[name]
    assert repeated["mean_cosine"] > measures["mean_cosine"]
    assert measures["words"]["rationale"]["mean"] == 2


def test_examples_without_a_source(encoder: Encoder) -> None:
    assert measure(examples(TEXTS).drop(columns="dataset"), encoder)["sources"] is None
    assert measure(examples(TEXTS).assign(dataset=None), encoder)["sources"] is None


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_examples(encoder: Encoder, count: int) -> None:
    measures = measure(examples(TEXTS[:count]), encoder)
    assert measures["n"] == count
    assert measures["mean_cosine"] is None
    assert measures["distinct_share"] == (1 if count else None)
    assert measures["labels"]["missing"] == (["trade"] if count else ["animals", "trade"])


@pytest.fixture
def retrieved() -> pd.DataFrame:
    matched = {"query_column": "title", "query_value": "Trees", "passage": None}
    return pd.DataFrame({"row_id": [f"e{n}" for n in range(9)], "dataset": "trees"} | matched)


def items(*texts: str) -> pd.DataFrame:
    lines = [(str(n), json.dumps({"context": text, "question": "Where?"}), "", "[]") for n, text in enumerate(texts)]
    return pd.DataFrame(lines, columns=EVALUATION_COLUMNS)


def test_embedding_map(reading_task: Task, retrieved: pd.DataFrame, encoder: Encoder) -> None:
    texts = ["The heron nests in high trees.", "Bread is baked in an oven.", "The sum of two numbers is even."]
    examples = reasoned_examples(3).assign(fields=items(*texts)["fields"])
    points = project_embeddings(reading_task, retrieved, examples, items(texts[1], "Herons build nests."), encoder)
    assert list(points) == EMBEDDING_MAP_COLUMNS
    assert points["kind"].value_counts().to_dict() == {"source row": 9, "example": 3, "evaluation item": 2}
    evaluation_points = points[points["kind"] == "evaluation item"]
    assert evaluation_points["nearest_id"].tolist() == ["e1", "e0"]
    assert evaluation_points["cosine"].iloc[0] == pytest.approx(1, abs=1e-4)
    assert 0 < evaluation_points["cosine"].iloc[1] < 0.99
    assert points.loc[points["kind"] != "evaluation item", "cosine"].isna().all()
    assert points["text"].iloc[0] == "Trees"
    assert np.isfinite(points[["x", "y"]].to_numpy()).all()

    none = project_embeddings(reading_task, retrieved.head(0), examples.head(0), items(texts[0]), encoder)
    assert none["cosine"].isna().all()


def test_of_many_examples_all_count_and_some_are_drawn(
    reading_task: Task, retrieved: pd.DataFrame, encoder: Encoder
) -> None:
    count = MAX_POINTS + 7
    examples = reasoned_examples(count).assign(fields=items(*(f"Fact {n}." for n in range(count)))["fields"])
    points = project_embeddings(reading_task, retrieved, examples, items(f"Fact {count - 1}."), encoder)
    assert (points["kind"] == "example").sum() == MAX_POINTS
    assert points.loc[points["kind"] == "evaluation item", "nearest_id"].tolist() == [f"e{count - 1}"]


@pytest.mark.parametrize("count", [0, 1, 2, 9, 12])
def test_any_number_of_points_has_a_place(count: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(count, 8))
    assert project(vectors).shape == (count, 2)
    assert np.isfinite(project(vectors)).all()
