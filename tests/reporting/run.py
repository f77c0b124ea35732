"""A small run, its tables and what is shown of it, for the tests of traces."""

import io
import json
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from rebase.errors import RebaseError
from rebase.reporting.run_tables import RunTables
from rebase.reporting.trace_view import render_trace
from rebase.teacher.protocol import Message, Request, Sampling

HOSTILE = "\x1b[31mred\x1b[0m [bold]not bold[/bold] \u202eback\x07 \x9b2J"
REQUEST = Request(
    "Write.", (Message("user", "An example?"), Message("assistant", "{}"), Message("user", "The row.")),
    {"type": "object"}, Sampling(),
)  # fmt: skip
KEY = REQUEST.key("anthropic", "m")


def rows() -> pd.DataFrame:
    """What was retrieved: two rows of ``birds``, one of ``foxes``."""
    return pd.DataFrame(
        {
            "rank": [1, 3, 4],
            "row_id": ["birds/a/train/0", "birds/a/train/1", "owner/foxes/b/train/7"],
            "dataset": ["birds", "birds", "owner/foxes"],
            "config": ["a", "a", "b"],
            "split": "train",
            "revision": ["r1", "r1", "r2"],
            "row_index": [0, 1, 7],
            "license": ["cc0-1.0", "cc0-1.0", "cc-by-4.0"],
            "row": [json.dumps({"text": text}) for text in ("The owl sleeps.", "The owl hunts.", HOSTILE)],
            "score": [0.9, 0.8, 0.7],
            "score_query": [0.9, float("nan"), 0.7],
            "query_column": ["text", None, "text"],
            "duplicates": ['["birds/a/train/9"]', "[]", "[]"],
        }
    )


def tables() -> dict[str, pd.DataFrame]:
    """The tables of a whole run: one example of each dataset, the second row of ``birds`` rejected by transform."""
    examples = rows().iloc[[0, 2]].drop(columns=["row", "duplicates", "split"])
    examples = examples.assign(
        example_id=examples["row_id"], query=["Where is the owl?", "Where is the fox?"], answer=["asleep", HOSTILE],
        fields="{}", cut="[]", teacher="anthropic/m", prompt_hash="0123456789abcdef", response_key=[KEY, None],
        input_tokens=10, output_tokens=5, dollars=0.25,
    )  # fmt: skip
    rejected = {"dataset": "birds", "detail": "why", "response_key": KEY, "text": "{}"}
    predictions = pd.DataFrame(
        [
            {"system": system, "item_id": "i1", "prompt": "Answer.\nWhere is the fox?", "raw_output": raw,
             "extracted": raw,
             "references": '["in the den"]', "exact_match": score}
            for system, raw, score in (("student", HOSTILE, 0.0), ("expert", "in the den", 1.0))
        ]
    )  # fmt: skip
    return {
        "retrieved": rows(),
        "retrieval_rejected": pd.DataFrame(
            [{"rank": 2, "row_id": "birds/a/train/5", "dataset": "birds", "score": 0.85, "reason": "duplicate",
              "detail": "birds/a/train/0"}]
        ),
        "examples": examples,
        "examples_rejected": pd.DataFrame([{"row_id": "birds/a/train/1", "rank": 3, "reason": "unfit_row"} | rejected]),
        "reasoned_examples": examples.assign(rationale=["It is night.", None], agreement=[1.0, float("nan")]),
        "reasoning_rejected": pd.DataFrame(columns=["row_id", "dataset", "rank", "reason", "detail", "response_key"]),
        "training_set": pd.DataFrame(
            {"example_id": ["birds/a/train/0"], "prompt": ["Answer.\nWhere is the owl?"], "completion": ["asleep"]}
        ),
        "predictions": predictions,
    }  # fmt: skip


class Run(RunTables):
    """A run with these tables, and with lookups instead of its own."""

    def __init__(
        self,
        tables: dict[str, pd.DataFrame],
        missing: str = "not there yet",
        *,
        env: str | None = None,
        task: str | None = None,
        **lookups: Any,
    ) -> None:
        def load(name: str, version: str | None = None) -> Any:
            if name not in tables:
                raise RebaseError(missing)
            return tables[name]

        super().__init__(load, env, task)
        vars(self).update({"find_response": lambda _: None} | lookups)


def encode(texts: list[str]) -> np.ndarray:
    """Vectors of letters, which need no model."""
    counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz?"] for text in texts], float)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def shown(result: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True, color_system=None).print(render_trace(result))
    return out.getvalue()
