"""Diversity: how much the examples of a training set differ from one another (docs/method.md section 8)."""

import json
from typing import Any

import numpy as np
import pandas as pd

from rebase.datastore.encoder import Encoder
from rebase.generation.verification import label_balance
from rebase.records import Task
from rebase.reporting.diversity import measure_lengths, measure_texts


def measure_diversity(task: Task, examples: pd.DataFrame, encoder: Encoder) -> dict[str, Any]:
    """How diverse the examples are, and what they are made of; None for what these examples do not have.

    ``n`` examples; the measures of ``rebase.reporting.diversity.measure_texts`` on the queries' fields, for the words of the
    task's template stand in every query; ``labels``, their balance (of label tasks); ``sources``, the share of the
    examples that each dataset gave, most first; ``words``, the lengths of ``query`` (its fields), ``answer`` and
    ``rationale``.
    """
    fields = map(json.loads, examples["fields"])
    queries = ["\n".join(own[name] for name in task.query_fields) for own in fields]
    vectors = np.empty((0, 0))
    if len(queries) > 1:
        with encoder.open() as opened:
            vectors = opened.encode(queries).vectors
    answers, rationales, datasets = (_known(examples, name) for name in ("answer", "rationale", "dataset"))
    counts = datasets.value_counts()
    return {
        "task": task.name,
        "n": len(queries),
        **measure_texts(queries, vectors),
        "labels": label_balance(task.answer.labels, answers) if task.answer.labels else None,
        "sources": (counts / len(queries)).to_dict() or None,
        "words": {
            "query": measure_lengths(queries),
            "answer": measure_lengths(answers.to_list()),
            "rationale": measure_lengths(rationales.to_list()),
        },
    }


def _known(examples: pd.DataFrame, name: str) -> "pd.Series[Any]":
    """The column's values that are not missing; none where the examples have no such column."""
    return examples[name].dropna() if name in examples else pd.Series(dtype=object)
