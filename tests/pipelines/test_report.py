"""Diversity, run as a pipeline over the embedded encoder."""

import json

import pandas as pd
import pytest

from rebase.datastore.encoder import Encoder
from rebase.pipelines.report.nodes import measure_diversity
from rebase.records import Task

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
