"""Where something comes from and what became of it: the way of a row through the stages, walked in either direction.

``kedro trace`` shows it. All here works on half a run as well, and says what is missing.
"""

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rebase.errors import RebaseError
from rebase.generation.filters import why_excluded
from rebase.generation.prompts.requests import cot_request
from rebase.parameters import CotParameters, ExcludeParameters
from rebase.records import Adapter
from rebase.reporting.console import visible
from rebase.student.adapters import read_origin
from rebase.teacher.budget import FREE, PriceTable
from rebase.teacher.response_cache import ResponseCache

Line = dict[str, Any]

_TABLES = {
    "retrieved": "retrieve",
    "retrieval_rejected": "retrieve",
    "examples": "transform",
    "examples_rejected": "transform",
    "reasoned_examples": "cot",
    "reasoning_rejected": "cot",
    "training_set": "train",
    "predictions": "evaluate",
}
#: What only some have: nobody misses it.
_MORE_TABLES = {
    "synthesized_examples": "synthesize",
    "synthesized_rejected": "synthesize",
    "distilled_examples": "distil",
    "distilled_rejected": "distil",
    "mixed_examples": "mix",
    "synthesized.training_set": "compare",
    "labeled.training_set": "compare",
    "comparison_predictions": "compare",
    "students_predictions": "students",
    "teacher_predictions": "evaluate_teacher",
}
#: What is looked into, and the pipeline that makes it.
MADE_BY = {
    **_TABLES,
    **_MORE_TABLES,
    "adapter": "train",
    "evaluate_summary": "evaluate",
    "rows": "ingest",
    "cards": "ingest",
}
_OF_ROWS = tuple(_TABLES)[:-1]
_REJECTED = ("examples_rejected", "reasoning_rejected", "synthesized_rejected", "distilled_rejected")
_ANSWERED = ("predictions", "comparison_predictions", "students_predictions", "teacher_predictions")
# Examples, and the training set that is made of them. Of a mixture none is kept: `students` makes it as it trains.
_TRAINED_AS = {
    "examples": "training_set",
    "reasoned_examples": "training_set",
    "synthesized_examples": "synthesized.training_set",
    "distilled_examples": "labeled.training_set",
    "mixed_examples": "",
}
_SOURCE = ["dataset", "config", "split", "revision", "row_index", "license"]
_MATCHED = [
    "score", "score_dataset", "score_query", "score_answer", "query_column", "query_value", "answer_column",
    "answer_value", "passage",
]  # fmt: skip
_MADE = [
    "example_id", "table", "origin", "query", "answer", "rationale", "agreement", "cut", "teacher", "prompt_hash",
    "response_key", "input_tokens", "output_tokens", "dollars",
]  # fmt: skip
_NEAREST = 3
#: Of a longer value, and of more rows, the screen shows the beginning.
_SHOWN_CHARACTERS, _SHOWN_ROWS = 1_500, 40


@dataclass(frozen=True)
class Run:
    """What there is of a task's run: its ``tables`` by catalog name, and how to look up what is no table.

    ``missing`` says of each table that is not there why, or what to do. ``find_row`` gives a line of the datastore by
    row id, ``find_dataset`` what the datastore knows of a dataset, ``find_response`` a stored response with its request, by
    key; each gives None where there is none. ``find_reasoning`` gives the responses behind an example's rationale, by its
    line in ``examples`` and its source row. ``encode`` turns texts into vectors ``[texts, d]`` of length 1.
    ``evaluated`` is the adapter behind the expert's predictions. ``env`` and ``task`` are those that were asked for by
    name: what is said to run next names them too.
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

    def lines(self, table: str, column: str, *values: str) -> list[Line]:
        """The lines of a table that have one of the values in a column; none where there is no such table."""
        frame = self.tables.get(table)
        if frame is None or column not in frame:
            return []
        return [_plain(line) for line in frame[frame[column].isin(values)].to_dict("records")]

    def ids(self, table: str, column: str) -> list[str]:
        """All values of a column, each once; none where there is no such table."""
        frame = self.tables.get(table)
        return [] if frame is None or column not in frame else list(dict.fromkeys(frame[column].dropna()))


def read_run(load: Callable[[str], Any], env: str | None = None, task: str | None = None) -> Run:
    """The run that lies in a catalog; ``load`` gives an entry, or raises RebaseError where it is not there.

    Only the tables are read at once; the datastore, the responses and the encoder when they are looked into.
    """
    tables: dict[str, pd.DataFrame] = {}
    missing: dict[str, str] = {}
    for name in (*_TABLES, *_MORE_TABLES):
        try:
            tables[name] = load(name)
        except RebaseError as error:
            if name in _TABLES:
                missing[name] = str(error)

    def attempt(name: str) -> Any:
        try:
            return load(name)
        except RebaseError as error:
            missing[name] = str(error)
            return None

    def find_row(row_id: str) -> Line | None:
        shards = attempt("rows") or {}
        names = [name for name in shards if row_id.startswith(f"{name}/")]
        found = [line for name in names for line in _rows_with(shards[name], row_id)]
        return found[0] if found else None

    def find_dataset(name: str) -> Line | None:
        cards = attempt("cards")
        known = [] if cards is None else [_plain(line) for line in cards[cards["dataset"] == name].to_dict("records")]
        return known[0] if known else None

    def find_response(key: str) -> Line | None:
        teacher = load("teacher")
        if not teacher.path.exists():
            return None
        with closing(ResponseCache(teacher.path)) as store:
            found = store.look_up(key)
        return found and _response(found, teacher.prices)

    def find_reasoning(example: Line, row: Line | None) -> list[Line]:
        # The table of examples names no response for it: ask what would be asked now, which the store knows or not.
        try:
            task, prompt = load("task"), load("cot_prompt")
            parameters, teacher = CotParameters.model_validate(_settings(load("params:cot"))), load("teacher")
        except RebaseError:
            return []
        requests = [cot_request(task, example, row, prompt, parameters, k) for k in range(parameters.samples)]
        responses = (find_response(request.key(teacher.provider, teacher.model)) for request in requests)
        return [response for response in responses if response]

    def encode(texts: list[str]) -> np.ndarray:
        with load("encoder").open() as encoder:
            vectors: np.ndarray = encoder.encode(texts).vectors
        return vectors

    return Run(
        tables,
        missing,
        find_row,
        find_dataset,
        find_response,
        find_reasoning,
        encode,
        _adapter(attempt("adapter"), attempt("evaluate_summary")),
        ExcludeParameters.model_validate(_settings(attempt("params:train")).get("exclude", {})),
        env,
        task,
    )


def trace(identifier: str, run: Run, system: str | None = None) -> Line:
    """What is known of an evaluation item's predictions, of an example, of a source row or of a dataset.

    ``system`` chooses among the systems that answered an item. The values are those that JSON knows. Raises
    RebaseError where nothing has that name.
    """
    answered = {item for table in _ANSWERED for item in run.ids(table, "item_id")}
    if system is not None or identifier in answered:
        return trace_prediction(identifier, run, system)
    found = trace_row(identifier, run) or trace_dataset(identifier, run)
    if found:
        return found
    known = {
        *run.ids("retrieved", "row_id"), *run.ids("retrieval_rejected", "row_id"), *run.ids("retrieved", "dataset"),
        *(example for table in _TRAINED_AS for example in run.ids(table, "example_id")), *answered,
    }  # fmt: skip
    close = get_close_matches(identifier, known, n=3, cutoff=0.5)
    raise RebaseError(
        f"trace: nothing is called {identifier!r} among the rows, examples, datasets and evaluation items of this task."
        + (f" Is it one of these? {visible(', '.join(close))}." if close else "")
        + "".join(f"\n{name} is missing: {why}" for name, why in run.missing.items())
    )


def trace_row(identifier: str, run: Run) -> Line | None:
    """A source row, or the example with that id: where the row is from, why it was chosen, what was made of it.

    None where neither exists.
    """
    examples = _examples(run, "row_id", identifier) or _examples(run, "example_id", identifier)
    row_id = (examples[0].get("row_id") if examples else None) or identifier
    retrieved = run.lines("retrieved", "row_id", row_id)
    passed_over = run.lines("retrieval_rejected", "row_id", row_id)
    stored = retrieved[0] if retrieved else run.find_row(row_id)
    if not (examples or stored or passed_over):
        return None
    known = stored or (examples or passed_over)[0]
    found: Line = {"kind": "example" if examples else "row", "id": identifier}
    found["source"] = {"row_id": row_id} | {name: known.get(name) for name in _SOURCE if name in known}
    if stored:
        found["source"]["row"] = json.loads(stored["row"])
    found["retrieval"] = _retrieval(run, retrieved, passed_over, examples)
    for table in _REJECTED:
        for line in run.lines(table, "row_id", row_id):
            asked = {"asked": run.find_response(line["response_key"])} if line.get("response_key") else {}
            found[MADE_BY[table]] = {"rejected": line["reason"], "detail": line["detail"], **asked}
    found["examples"] = [
        {name: example[name] for name in _MADE if example.get(name) is not None}
        | {"training": _training(run, example)}
        | ({"asked": run.find_response(example["response_key"])} if example.get("response_key") else {})
        | (
            {"asked_for_reasoning": _reasoning(run, example, stored)}
            if example["table"] == "reasoned_examples" and example.get("rationale")
            else {}
        )
        for example in examples
    ]
    return found | _missing(run, *_OF_ROWS)


def trace_prediction(item_id: str, run: Run, system: str | None = None) -> Line:
    """What every system, or the one that is named, answered to an evaluation item.

    With what it should have been, and the training examples nearest to the item. RebaseError where there is no such
    prediction.
    """
    if run.tables.keys().isdisjoint(_ANSWERED):
        raise RebaseError(f"trace: there are no predictions yet: {run.missing.get('predictions', '')}")
    lines = [
        {"pipeline": MADE_BY[table], **line} for table in _ANSWERED for line in run.lines(table, "item_id", item_id)
    ]
    chosen = [line for line in lines if system in (None, line["system"])]
    if not chosen:
        others = ", ".join(dict.fromkeys(line["system"] for line in lines)) or "no system"
        raise RebaseError(
            f"trace: there is no prediction of the system {system!r} for the item {item_id!r}; {others} answered it."
        )
    shared = ("pipeline", "system", "item_id", "prompt", "raw_output", "extracted", "references")
    found: Line = {
        "kind": "prediction",
        "id": item_id,
        "prompt": chosen[0]["prompt"],
        "gold": json.loads(chosen[0]["references"]),
        "systems": [
            {
                "system": line["system"],
                "pipeline": line["pipeline"],
                **({} if line["prompt"] == chosen[0]["prompt"] else {"prompt": line["prompt"]}),
                "raw_output": line["raw_output"],
                "extracted": line["extracted"],
                "scores": {name: value for name, value in line.items() if name not in shared},
                **(
                    {"adapter": run.evaluated}
                    if (line["pipeline"], line["system"]) == ("evaluate", "expert") and run.evaluated
                    else {}
                ),
            }
            for line in chosen
        ],
    }
    missing = _missing(run, "training_set", "reasoned_examples")
    try:
        found["nearest_training_examples"] = nearest_examples(chosen[0]["prompt"], run)
    except RebaseError as error:
        missing = {"missing": missing.get("missing", {}) | {"nearest_training_examples": str(error)}}
    return found | missing


def nearest_examples(prompt: str, run: Run, count: int = _NEAREST) -> list[Line]:
    """The training examples whose prompts are most similar to an item's, by the cosine of the encoder's vectors."""
    frame = run.tables.get("training_set")
    if frame is None or run.encode is None or frame.empty:
        return []
    # All prompts begin alike, with the instruction: it says nothing of their likeness, and an encoder sees not far.
    texts = _without_common_start([prompt, *frame["prompt"]])
    vectors = run.encode(texts)
    likeness = vectors[1:] @ vectors[0]
    origins = {line["example_id"]: line for line in _examples(run) if _TRAINED_AS[line["table"]] == "training_set"}
    return [
        {
            "similarity": round(float(likeness[place]), 3),
            **{name: origins.get(example_id, {}).get(name) for name in ("dataset", "license")},
            "example_id": example_id,
            "prompt": texts[1 + place],
            "completion": frame["completion"].iloc[place],
        }
        for place in np.argsort(-likeness, kind="stable")[:count]
        for example_id in [frame["example_id"].iloc[place]]
    ]


def trace_dataset(name: str, run: Run) -> Line | None:
    """Everything that was made of a dataset's rows, and how to train without it; None where there is none.

    Its duplicates of rows of other datasets are named with these: excluding the dataset leaves them in, for they have
    a source and a license of their own.
    """
    kept, passed_over = run.lines("retrieved", "dataset", name), run.lines("retrieval_rejected", "dataset", name)
    stored = run.find_dataset(name)
    examples = _examples(run, "dataset", name)
    if not (kept or passed_over or stored or examples):
        return None
    fates = _fates(run, "dataset", name)
    elsewhere = [line for line in _kept_instead(run, passed_over) if line["dataset"] != name]
    ranks = {line["row_id"]: line for line in [*kept, *passed_over]}
    found: Line = {
        "kind": "dataset",
        "id": name,
        "dataset": stored or {key: (kept or examples or [{}])[0].get(key) for key in ("license", "revision")},
        "what_became_of_its_rows": dict(Counter(fates.values()).most_common()),
        "rows": [
            {"row_id": row_id, **{key: ranks.get(row_id, {}).get(key) for key in ("rank", "score")}, "fate": fate}
            for row_id, fate in fates.items()
        ],
    }
    if examples:
        found["to_train_without_it"] = _training_without([name], run)
    if elsewhere:
        found["the_same_in_rows_of_other_datasets"] = elsewhere
    if others := {line["dataset"] for line in elsewhere if line["dataset"] and line["fate"].startswith("example")}:
        found["to_train_without_these_datasets_too"] = _training_without([name, *sorted(others)], run)
    return found | _missing(run, *_OF_ROWS)


def _fates(run: Run, column: str, *values: str) -> dict[str, str]:
    """What became of the rows that have one of the values in a column, by row id."""
    fates = {line["row_id"]: f"retrieve: {line['reason']}" for line in run.lines("retrieval_rejected", column, *values)}
    fates |= {line["row_id"]: "retrieved" for line in run.lines("retrieved", column, *values)}
    for table in _REJECTED:
        fates |= {line["row_id"]: f"{MADE_BY[table]}: {line['reason']}" for line in run.lines(table, column, *values)}
    # Of several examples of a row the one that ReBase made counts: it comes first.
    for line in reversed(_examples(run, column, *values)):
        fates[line["row_id"]] = f"example; {_training(run, line)['state']}"
    return fates


def _kept_instead(run: Run, passed_over: list[Line]) -> list[Line]:
    """Of rows that were rejected as duplicates: the row that was kept, its dataset, and what became of it."""
    kept = {line["row_id"]: line["detail"] for line in passed_over if line["reason"] == "duplicate"}
    fates = _fates(run, "row_id", *kept.values())
    known = [*_examples(run, "row_id", *kept.values()), *run.lines("retrieved", "row_id", *kept.values())]
    datasets = {line["row_id"]: line["dataset"] for line in known}
    return [
        {"row_id": row, "kept": twin, "dataset": datasets.get(twin), "fate": fates.get(twin, "not known")}
        for row, twin in kept.items()
    ]


def _examples(run: Run, column: str = "", *values: str) -> list[Line]:
    """Examples with the ``table`` that has them: with their reasoning where it is made, else as they were before.

    All of them without a ``column``.
    """
    found: dict[tuple[str, str], Line] = {}
    for table, trained_as in _TRAINED_AS.items():
        frame = run.tables.get(table)
        everything = [] if frame is None else [_plain(line) for line in frame.to_dict("records")]
        for line in run.lines(table, column, *values) if column else everything:
            found[trained_as, line["example_id"]] = {**line, "table": table}
    return list(found.values())


def _retrieval(run: Run, kept: list[Line], passed_over: list[Line], examples: list[Line]) -> Line:
    if kept:
        matched = {name: kept[0][name] for name in _MATCHED if kept[0].get(name) is not None}
        return {
            "state": "kept",
            "rank": kept[0]["rank"],
            **matched,
            "duplicates": json.loads(kept[0].get("duplicates") or "[]"),
        }
    if passed_over:
        named = ("rank", "score", "reason", "detail")
        said = {"state": "rejected"} | {name: passed_over[0].get(name) for name in named}
        for line in _kept_instead(run, passed_over[:1]):
            said["kept_instead"] = line
        return said
    if examples and all(example.get("rank") is None for example in examples):
        return {"state": "none: made without a retrieved row"}
    return {"state": "not reached by the walk down the ranking" if "retrieved" in run.tables else "not known"}


def _reasoning(run: Run, example: Line, row: Line | None) -> list[Line] | str:
    """The responses behind an example's rationale. They were asked for by the example as it was before."""
    before = run.lines("examples", "example_id", example["example_id"]) or [example]
    return run.find_reasoning(before[0], row) or "not stored for the prompts and parameters of now"


def _training(run: Run, example: Line) -> Line:
    """What the student was taught of an example, or why nothing."""
    training_set = _TRAINED_AS[example["table"]]
    lines = run.lines(training_set, "example_id", example["example_id"])
    if lines:
        return {"state": "in the training set", **{name: lines[0][name] for name in ("prompt", "completion")}}
    if training_set not in run.tables:
        return {"state": "no training set yet" if training_set else "not known: no training set is kept of mixtures"}
    reason = why_excluded(example["dataset"], example["license"], run.exclude)
    return {"state": f"not in the training set: {reason or 'left out when it was formatted'}"}


def _rows_with(table: pa.Table, row_id: str) -> list[Line]:
    lines: list[Line] = table.filter(pc.equal(table["row_id"], row_id)).to_pylist()
    return lines


def _response(stored: Line, prices: PriceTable) -> Line:
    """A stored response as it is shown: what was asked, what came, and what that cost by the table of prices."""
    request = json.loads(stored["request"])
    price = FREE if stored["provider"] == "local" else prices.find(stored["provider"], stored["model"])
    tokens = (stored["input_tokens"], stored["output_tokens"])
    return {
        "prompt": [{"system": request["system"]}, *({turn["role"]: turn["content"]} for turn in request["messages"])],
        "raw": stored["text"],
        "finish": stored["finish"],
        "teacher": f"{stored['provider']}/{stored['model']}",
        "sampling": request["sampling"],
        "when": stored["created"],
        "tokens_in_and_out": list(tokens),
        "dollars": None if price is None else price.dollars(*tokens, batch=bool(stored["batch"])),
    }


def _settings(group: Any) -> dict[str, Any]:
    """A group of parameters as a mapping: Kedro makes the typed one where it knows the pipelines."""
    return group.model_dump() if isinstance(group, BaseModel) else group or {}


def _adapter(adapter: Adapter | None, summary: Line | None) -> Line | None:
    """The adapter behind the expert's predictions: the one that the evaluation names, else the newest."""
    if adapter is None:
        return None
    version = (summary or {}).get("adapter")
    folder = adapter.folder.parent.with_name(version) / adapter.folder.name if version else adapter.folder
    if not folder.is_dir():
        return {"version": version, "folder": f"{folder} is not there any more"}
    sources = read_origin(folder) or []
    return {
        "version": version or f"{folder.parent.name} (the newest: the evaluation does not say)",
        "folder": str(folder),
        "base_model": adapter.base_model,
        "trained_on": {
            f"{source['dataset'] or 'no source'} ({source['license'] or 'no license'})": source["examples"]
            for source in sources
        },
    }


def _training_without(datasets: Sequence[str], run: Run) -> str:
    """The command, for a shell, that trains without some datasets."""
    # What divides parameters, or stands for other letters, cannot be written there: any letter may stand in its place.
    parameters = [f"task={run.task}"] if run.task else []
    pattern = ";".join(re.sub(r"[^\w./ -]", "?", dataset) for dataset in datasets)
    # The value is read as YAML, in which a name like 007 or true is no text.
    said = pattern if re.fullmatch(r"[A-Za-z_][\w./-]{5,}", pattern) else f"'{pattern}'"
    parameters.append(f"train.exclude.datasets={said}")
    env = [f"--env={run.env}"] if run.env else []
    return shlex.join(["kedro", "run", "--pipelines=train,evaluate", *env, f"--params={','.join(parameters)}"])


def _missing(run: Run, *tables: str) -> Line:
    absent = {name: run.missing[name] for name in tables if name in run.missing}
    return {"missing": absent} if absent else {}


def _without_common_start(texts: Sequence[str]) -> list[str]:
    """The texts without the whole lines that all of them begin with."""
    lines = [text.splitlines(keepends=True) for text in texts]
    shortest = min(map(len, lines))
    common = next((n for n in range(shortest) if len({line[n] for line in lines}) > 1), shortest - 1)
    return ["".join(line[common:]) for line in lines]


def _plain(line: Mapping[Any, Any]) -> Line:
    """A table's line in values that JSON knows: what parquet has no value for is None."""
    return {
        str(name): None if value is None or (isinstance(value, float) and math.isnan(value)) else value
        for name, value in line.items()
    }


def render_trace(found: Line) -> RenderableType:
    """A trace for the screen. What is written in rows and responses is shown as text, whatever it holds."""
    title = Text(f"{found['kind']} ", style="dim") + Text(visible(found["id"]), style="bold")
    return Group(title, *(_section(name, value) for name, value in found.items() if name not in ("kind", "id")))


def _section(name: str, value: Any) -> RenderableType:
    parts = value if isinstance(value, list) else [value]
    head = Text(f"\n{name.replace('_', ' ')}", style="bold cyan")
    if not parts:
        return Group(head, Text("  none", style="dim"))
    if name in ("rows", "the_same_in_rows_of_other_datasets"):
        return Group(head, _rows(parts))
    shown = [_grid(part) if isinstance(part, Mapping) else _cell(part) for part in parts]
    return Group(head, shown[0], *(piece for part in shown[1:] for piece in (Text(), part)))


def _grid(values: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1))
    table.add_column(style="green", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        is_nested = isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping))
        inner = [_grid(part) for part in (value if isinstance(value, list) else [value])] if is_nested else []
        table.add_row(Text(visible(name)), Group(*inner) if inner else _cell(value))
    return table


def _rows(lines: list[Line]) -> RenderableType:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in lines[0]:
        table.add_column(name, overflow="fold")
    for line in lines[:_SHOWN_ROWS]:
        table.add_row(*(_cell(value) for value in line.values()))
    more = [Text(f"  and {len(lines) - _SHOWN_ROWS:,} more; --json has all", style="dim")]
    return Group(table, *(more if len(lines) > _SHOWN_ROWS else []))


def _cell(value: Any) -> Text:
    if value is None or value in ("", []):
        return Text("–", style="dim")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value).rstrip()
    text = Text(visible(said[:_SHOWN_CHARACTERS]))
    if len(said) > _SHOWN_CHARACTERS:
        text.append(f" … {len(said) - _SHOWN_CHARACTERS:,} characters more; --json has all", style="dim")
    return text
