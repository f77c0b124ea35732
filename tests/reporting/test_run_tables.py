"""What a trace reads of a run: tables, cached responses, versions of the adapter."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from rebase.errors import RebaseError
from rebase.generation.prompts.requests import cot_request
from rebase.generation.prompts.templates import SolvePrompt
from rebase.parameters import CotParameters
from rebase.records import Adapter, Task
from rebase.reporting.run_tables import RunTables
from rebase.reporting.trace import trace
from rebase.student.adapters import ORIGIN
from rebase.teacher.budget import Price, PriceTable
from rebase.teacher.protocol import Response
from rebase.teacher.response_cache import ResponseCache
from tests.reporting.run import KEY, REQUEST, rows, tables


def loader(folder: Path) -> Callable[[str], Any]:
    """A catalog of a run in a folder: a real store of responses, a datastore's shard, two versions of an adapter."""

    class Teacher:
        path = folder / "responses.sqlite"
        prices = PriceTable(as_of="2026-01-01", models={"anthropic": {"m": Price(input=1, output=2)}})

    entries: dict[str, Any] = {
        **tables(),
        "teacher": Teacher(),
        "rows": {"birds": pa.table({"row_id": ["birds/a/train/5"], "dataset": ["birds"], "row": ['{"a": "b"}']}),
                 "owner": None},
        "cards": pd.DataFrame({"dataset": ["birds", "unused"], "license": "cc0-1.0", "rows_kept": [3, 2]}),
        "params:train": {"exclude": {"datasets": [], "licenses": []}},
        "adapter": Adapter(folder / "v2" / "adapter", "tiny"),
        "evaluate_summary": {"adapter": "v1"},
    }  # fmt: skip
    for version in ("v1", "v2"):
        (folder / version / "adapter").mkdir(parents=True)
    (folder / "v1" / "adapter" / ORIGIN).write_text(
        '{"sources": [{"dataset": "birds", "license": "mit", "examples": 3}]}'
    )

    def load(name: str, version: str | None = None) -> Any:
        if name not in entries or version == "v0":
            raise RebaseError("not there yet")
        return Adapter(folder / version / "adapter", "tiny") if version else entries[name]

    load.entries = entries  # type: ignore[attr-defined]
    return load


def test_a_run_is_read_from_its_catalog(tmp_path: Path) -> None:
    load = loader(tmp_path)
    assert trace("birds/a/train/0", RunTables(load))["examples"][0]["response"] is None, (
        "no store yet, and none is made"
    )
    assert not (tmp_path / "responses.sqlite").exists()
    with closing(ResponseCache(tmp_path / "responses.sqlite")) as store:
        store.put(REQUEST, Response(KEY, '{"a": 1}', "stop", 1_000_000, 500_000, batch=True), "anthropic", "m")
    response = trace("birds/a/train/0", RunTables(load))["examples"][0]["response"]
    assert response["prompt"] == [
        {"system": "Write."},
        {"user": "An example?"},
        {"assistant": "{}"},
        {"user": "The row."},
    ]
    assert response["raw_output"] == '{"a": 1}'
    assert response["dollars"] == 1.0
    assert trace("birds/a/train/5", RunTables(load))["source"]["row"] == {"a": "b"}
    assert trace("unused", RunTables(load))["dataset"]["rows_kept"] == 2
    expert = trace("i1", RunTables(load))["systems"][1]
    assert expert["adapter"]["version"] == "v1"
    assert expert["adapter"]["trained_on"] == {"birds (mit)": 3}
    load.entries["evaluate_summary"] = {"adapter": "v0"}  # type: ignore[attr-defined]
    assert "not there anymore" in trace("i1", RunTables(load))["systems"][1]["adapter"]["folder"]


def test_an_empty_catalog_is_told_in_one_message() -> None:
    def load(name: str) -> Any:
        raise RebaseError("not there yet")

    with pytest.raises(RebaseError, match="retrieved is missing: not there yet"):
        trace("anything", RunTables(load))


def test_the_responses_behind_a_rationale_are_found(tmp_path: Path, reading_task: Task) -> None:
    load = loader(tmp_path)
    entries = load.entries  # type: ignore[attr-defined]
    prompt = SolvePrompt(version=1, system="{instruction}", user="{query} {data}{cut}")
    cot = {"samples": 2, "on_disagreement": "reject", "max_row_tokens": 50,
           "sampling": {"temperature": 0.3, "max_tokens": 80}}  # fmt: skip
    shown = tuple(example | {"rationale": "So."} for example in reading_task.examples)
    task = reading_task.model_copy(update={"cot": True, "examples": shown})
    fields = {"context": "The owl sleeps.", "question": "Where?"}
    entries["examples"] = entries["examples"].assign(fields=json.dumps(fields))
    entries |= {"task": task, "cot_prompt": prompt, "params:cot": cot}
    entries["teacher"].key = lambda request: request.key("anthropic", "m")

    def reasoning_responses() -> Any:
        return trace("birds/a/train/0", RunTables(load))["examples"][0]["reasoning_responses"]

    assert "not cached" in reasoning_responses()
    request = cot_request(task, fields, rows().iloc[0].to_dict(), prompt, CotParameters.model_validate(cot), 1)
    with closing(ResponseCache(tmp_path / "responses.sqlite")) as store:
        store.put(request, Response(request.key("anthropic", "m"), "It is night.", "stop", 7, 3), "anthropic", "m")
    assert [response["raw_output"] for response in reasoning_responses()] == ["It is night."]
