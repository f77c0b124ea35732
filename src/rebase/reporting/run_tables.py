"""The tables of one run, read from the catalog, with lookups in the datastore and the response cache."""

import json
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from rebase.errors import RebaseError
from rebase.generation.prompts.requests import cot_request
from rebase.parameters import CotParameters, ExcludeParameters
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
    "mappings": "map",
    "mapped_examples": "map",
    "mapped_rejected": "map",
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


class RunTables:
    """The tables of one run, and lookups; a lookup returns None if there is nothing.

    ``load(name, version=None)`` loads a catalog entry, or raises RebaseError if it does not exist. ``tables`` are those
    that exist, by catalog name; ``missing`` says of each entry that does not, unless it is optional, why or what to do.
    Suggested commands name ``env`` and ``task``, if they were chosen. The datastore, the response cache and the encoder
    are opened when they are needed.
    """

    def __init__(self, load: Callable[..., Any], env: str | None = None, task: str | None = None) -> None:
        self._load, self.env, self.task = load, env, task
        self.missing: dict[str, str] = {}
        tables = {name: self._optional(name) for name in (*TABLES, *_OPTIONAL_TABLES)}
        self.tables: dict[str, pd.DataFrame] = {name: table for name, table in tables.items() if table is not None}

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

    def find_row(self, row_id: str) -> Line | None:
        """The datastore's row with a row id."""
        shards = self._optional("rows") or {}
        for name in shards:
            if row_id.startswith(f"{name}/"):
                table = shards[name]
                for line in table.filter(pc.equal(table["row_id"], row_id)).to_pylist():
                    return dict(line)
        return None

    def find_dataset(self, name: str) -> Line | None:
        """The datastore's card of a dataset."""
        cards = self._optional("cards")
        lines = [] if cards is None else to_lines(cards[cards["dataset"] == name])
        return lines[0] if lines else None

    def find_response(self, key: str) -> Line | None:
        """A cached response and its request, by request key."""
        teacher = self._load("teacher")
        if not teacher.path.exists():
            return None
        with closing(ResponseCache(teacher.path)) as cache:
            cached = cache.look_up(key)
        return cached and _describe_response(cached, teacher.prices)

    def find_reasoning(self, example: Line, row: Line | None) -> list[Line]:
        """The responses behind a rationale, from the example's line in ``examples`` and its source row.

        The table does not name these responses: today's requests are rendered and looked up in the cache.
        """
        try:
            task, prompt, teacher = (self._load(name) for name in ("task", "cot_prompt", "teacher"))
            parameters = CotParameters.model_validate(self._load("params:cot"))
        except RebaseError:
            return []
        fields = json.loads(example["fields"])
        requests = [cot_request(task, fields, row, prompt, parameters, k) for k in range(parameters.samples)]
        responses = (self.find_response(teacher.key(request)) for request in requests)
        return [response for response in responses if response]

    def encode(self, texts: list[str]) -> np.ndarray:
        """Encode texts as unit vectors ``[texts, d]``."""
        with self._load("encoder").open() as encoder:
            vectors: np.ndarray = encoder.encode(texts).vectors
        return vectors

    @cached_property
    def exclude(self) -> ExcludeParameters:
        """What the training set leaves out."""
        group = self._optional("params:train") or {}
        # Kedro loads the typed group where it knows the pipelines.
        return ExcludeParameters.model_validate(group.get("exclude", {}) if isinstance(group, dict) else group.exclude)

    @cached_property
    def adapter(self) -> Line | None:
        """The adapter behind the expert's predictions: the version in the evaluation's summary, else the newest."""
        newest = self._optional("adapter")
        version = (self._optional("evaluate_summary") or {}).get("adapter")
        if newest is None:
            return None
        try:
            adapter = self._load("adapter", version) if version else newest
        except RebaseError as error:
            return {"version": version, "folder": f"not there anymore: {error}"}
        return {
            "version": version or f"{adapter.folder.parent.name} (the newest: the evaluation does not name it)",
            "folder": str(adapter.folder),
            "base_model": adapter.base_model,
            "trained_on": {
                f"{source['dataset'] or 'no source'} ({source['license'] or 'no license'})": source["examples"]
                for source in read_origin(adapter.folder) or []
            },
        }

    def _optional(self, name: str) -> Any:
        try:
            return self._load(name)
        except RebaseError as error:
            if name in CREATED_BY and name not in _OPTIONAL_TABLES:
                self.missing[name] = str(error)
            return None


def to_lines(frame: pd.DataFrame) -> list[Line]:
    """A table's lines with JSON values: missing values are None."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


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
