"""The tables of one run, read from the catalog, with lookups in the datastore and the response cache."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from pydantic import BaseModel

from rebase.errors import RebaseError
from rebase.generation.prompts.requests import cot_request
from rebase.parameters import CotParameters, ExcludeParameters
from rebase.records import Adapter
from rebase.student.adapters import read_origin
from rebase.teacher.budget import FREE, PriceTable
from rebase.teacher.response_cache import ResponseCache

Line = dict[str, Any]

#: The tables of every run, and the pipelines that create them.
TABLES = {
    "retrieved": "retrieve",
    "retrieval_rejected": "retrieve",
    "examples": "transform",
    "examples_rejected": "transform",
    "reasoned_examples": "cot",
    "reasoning_rejected": "cot",
    "training_set": "train",
    "predictions": "evaluate",
}
#: Optional tables; may be missing.
_OPTIONAL_TABLES = {
    "synthesized_examples": "synthesize",
    "synthesized_rejected": "synthesize",
    "distilled_examples": "distil",
    "distilled_rejected": "distil",
    "mixed_examples": "mix",
    "synthesized.training_set": "compare",
    "distilled.training_set": "compare",
    "comparison_predictions": "compare",
    "students_predictions": "students",
    "teacher_predictions": "evaluate_teacher",
}
#: The pipeline that creates each entry.
CREATED_BY = {
    **TABLES,
    **_OPTIONAL_TABLES,
    "adapter": "train",
    "evaluate_summary": "evaluate",
    "rows": "ingest",
    "cards": "ingest",
}


@dataclass(frozen=True)
class RunTables:
    """The tables of one run by catalog name, and lookups; a lookup returns None if there is nothing.

    Attributes:
        tables: Those that exist.
        missing: For each table that does not: why, or what to do.
        find_row: The datastore's row with a row id.
        find_dataset: The datastore's card of a dataset.
        find_response: A cached response and its request, by request key.
        find_reasoning: The responses behind an example's rationale, from its line in ``examples`` and its source row.
        encode: The encoder: texts to unit vectors ``[texts, d]``.
        evaluated: The adapter behind the expert's predictions.
        exclude: What the training set leaves out.
        env: The Kedro environment, if it was chosen: suggested commands name it.
        task: The task, if it was chosen: suggested commands name it.

    """

    tables: Mapping[str, pd.DataFrame]
    missing: Mapping[str, str] = field(default_factory=dict)
    find_row: Callable[[str], Line | None] = lambda _: None
    find_dataset: Callable[[str], Line | None] = lambda _: None
    find_response: Callable[[str], Line | None] = lambda _: None
    find_reasoning: Callable[[Line, Line | None], list[Line]] = lambda *_: []
    encode: Callable[[list[str]], np.ndarray] | None = None
    evaluated: Line | None = None
    exclude: ExcludeParameters = field(default_factory=ExcludeParameters)
    env: str | None = None
    task: str | None = None

    def lines(self, table: str, column: str = "", *values: str) -> list[Line]:
        """The lines of a table with one of the values in a column, or all lines; empty without such a table."""
        frame = self.tables.get(table)
        if frame is None or (column and column not in frame):
            return []
        return to_lines(frame[frame[column].isin(values)] if column else frame)

    def ids(self, table: str, column: str) -> list[str]:
        """The distinct values of a column; empty without such a table."""
        frame = self.tables.get(table)
        return [] if frame is None or column not in frame else list(dict.fromkeys(frame[column].dropna()))


def to_lines(frame: pd.DataFrame) -> list[Line]:
    """A table's lines with JSON values: missing values are None."""
    return [
        {
            str(name): None if value is None or (isinstance(value, float) and math.isnan(value)) else value
            for name, value in line.items()
        }
        for line in frame.to_dict("records")
    ]


def read_run(load: Callable[..., Any], env: str | None = None, task: str | None = None) -> RunTables:
    """Read the tables of a run; the datastore, the response cache and the encoder are opened when they are needed.

    ``load(name, version=None)`` loads a catalog entry, or raises RebaseError if it does not exist.
    """
    tables: dict[str, pd.DataFrame] = {}
    missing: dict[str, str] = {}

    def load_optional(name: str) -> Any:
        try:
            return load(name)
        except RebaseError as error:
            if name not in _OPTIONAL_TABLES:
                missing[name] = str(error)
            return None

    for name in (*TABLES, *_OPTIONAL_TABLES):
        if (table := load_optional(name)) is not None:
            tables[name] = table

    def find_row(row_id: str) -> Line | None:
        shards = load_optional("rows") or {}
        for name in shards:
            if row_id.startswith(f"{name}/"):
                table = shards[name]
                for line in table.filter(pc.equal(table["row_id"], row_id)).to_pylist():
                    return dict(line)
        return None

    def find_dataset(name: str) -> Line | None:
        cards = load_optional("cards")
        lines = [] if cards is None else to_lines(cards[cards["dataset"] == name])
        return lines[0] if lines else None

    def find_response(key: str) -> Line | None:
        teacher = load("teacher")
        if not teacher.path.exists():
            return None
        with closing(ResponseCache(teacher.path)) as cache:
            cached = cache.look_up(key)
        return cached and _describe_response(cached, teacher.prices)

    def find_reasoning(example: Line, row: Line | None) -> list[Line]:
        # The table does not name these responses: render today's requests, and look them up in the cache.
        try:
            task, prompt, teacher = load("task"), load("cot_prompt"), load("teacher")
            parameters = CotParameters.model_validate(_as_mapping(load("params:cot")))
        except RebaseError:
            return []
        fields = json.loads(example["fields"])
        requests = [cot_request(task, fields, row, prompt, parameters, k) for k in range(parameters.samples)]
        responses = (find_response(request.key(teacher.provider, teacher.model)) for request in requests)
        return [response for response in responses if response]

    def encode(texts: list[str]) -> np.ndarray:
        with load("encoder").open() as encoder:
            vectors: np.ndarray = encoder.encode(texts).vectors
        return vectors

    summary = load_optional("evaluate_summary") or {}
    exclude = _as_mapping(load_optional("params:train")).get("exclude", {})
    return RunTables(
        tables,
        missing,
        find_row,
        find_dataset,
        find_response,
        find_reasoning,
        encode,
        _evaluated_adapter(load, load_optional("adapter"), summary.get("adapter")),
        ExcludeParameters.model_validate(exclude),
        env,
        task,
    )


def _as_mapping(group: Any) -> Line:
    """A parameter group as a mapping: Kedro loads the typed group where it knows the pipelines."""
    return group.model_dump() if isinstance(group, BaseModel) else group or {}


def _evaluated_adapter(load: Callable[..., Any], newest: Adapter | None, version: str | None) -> Line | None:
    """The adapter behind the expert's predictions: the version in the evaluation's summary, else the newest."""
    if newest is None:
        return None
    try:
        adapter = load("adapter", version) if version else newest
    except RebaseError as error:
        return {"version": version, "folder": f"not there anymore: {error}"}
    sources = read_origin(adapter.folder) or []
    return {
        "version": version or f"{adapter.folder.parent.name} (the newest: the evaluation does not name it)",
        "folder": str(adapter.folder),
        "base_model": adapter.base_model,
        "trained_on": {
            f"{source['dataset'] or 'no source'} ({source['license'] or 'no license'})": source["examples"]
            for source in sources
        },
    }


def _describe_response(cached: Line, prices: PriceTable) -> Line:
    """A cached response with its request, and its price by today's price table."""
    request = json.loads(cached["request"])
    price = FREE if cached["provider"] == "local" else prices.find(cached["provider"], cached["model"])
    tokens = (cached["input_tokens"], cached["output_tokens"])
    return {
        "prompt": [{"system": request["system"]}, *({turn["role"]: turn["content"]} for turn in request["messages"])],
        "raw_output": cached["text"],
        "finish": cached["finish"],
        "teacher": f"{cached['provider']}/{cached['model']}",
        "sampling": request["sampling"],
        "created": cached["created"],
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "dollars": None if price is None else price.dollars(*tokens, batch=bool(cached["batch"])),
    }
