"""The lineage of an evaluation item, an example, a source row or a dataset, followed through a run's tables.

A partial run can be traced as well: the result lists the missing tables.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from rebase.errors import RebaseError
from rebase.generation.filters.exclusion import why_excluded
from rebase.records import PREDICTION_COLUMNS
from rebase.reporting.console import visible
from rebase.reporting.run_tables import CREATED_BY, TABLES, Line, RunTables, to_lines
from rebase.text import common_prefix_length

_ROW_TABLES = tuple(TABLES)[:-1]
_REJECTED = ("mapped_rejected", "examples_rejected", "reasoning_rejected", "synthesized_rejected", "distilled_rejected")
_PREDICTIONS = ("predictions", "comparison_predictions", "students_predictions", "teacher_predictions")
#: Tables of examples, and the training sets made from them; `students` mixes in memory and saves no training set.
_TRAINING_SETS = {
    "mapped_examples": "training_set",
    "examples": "training_set",
    "reasoned_examples": "training_set",
    "synthesized_examples": "synthesized.training_set",
    "distilled_examples": "distilled.training_set",
    "mixed_examples": "",
}
_SOURCE_COLUMNS = ("dataset", "config", "split", "revision", "row_index", "license")
_MATCH_COLUMNS = (
    "score", "score_dataset", "score_query", "score_answer", "query_column", "query_value", "answer_column",
    "answer_value", "passage",
)  # fmt: skip
_EXAMPLE_COLUMNS = (
    "example_id", "table", "origin", "query", "answer", "rationale", "agreement", "cut", "teacher", "prompt_hash",
    "response_key", "input_tokens", "output_tokens", "dollars",
)  # fmt: skip
#: Training examples shown beside an evaluation item.
_NEAREST = 3


def trace(identifier: str, run: RunTables, system: str | None = None) -> Line:
    """Trace an evaluation item, an example, a source row or a dataset; the result holds JSON values.

    ``system`` restricts an item's predictions to one system. Raises RebaseError if nothing has this identifier.
    """
    item_ids = {item for table in _PREDICTIONS for item in run.ids(table, "item_id")}
    if system is not None or identifier in item_ids:
        return trace_prediction(identifier, run, system)
    if traced := trace_row(identifier, run) or trace_dataset(identifier, run):
        return traced
    identifiers = {
        *run.ids("retrieved", "row_id"), *run.ids("retrieval_rejected", "row_id"), *run.ids("retrieved", "dataset"),
        *(example for table in _TRAINING_SETS for example in run.ids(table, "example_id")), *item_ids,
    }  # fmt: skip
    close = get_close_matches(identifier, identifiers, n=3, cutoff=0.5)
    raise RebaseError(
        f"trace: no row, example, dataset or evaluation item of this task is called {identifier!r}."
        + (f" Similar names: {visible(', '.join(close))}." if close else "")
        + "".join(f"\n{name} is missing: {reason}" for name, reason in run.missing.items())
    )


def trace_row(identifier: str, run: RunTables) -> Line | None:
    """Trace a source row or an example: its source, why it was retrieved, and what became of it; None if unknown."""
    examples = _examples(run, "row_id", identifier) or _examples(run, "example_id", identifier)
    row_id = (examples[0].get("row_id") if examples else None) or identifier
    retrieved = run.lines("retrieved", "row_id", row_id)
    rejected = run.lines("retrieval_rejected", "row_id", row_id)
    row = retrieved[0] if retrieved else run.find_row(row_id)
    if not (examples or row or rejected):
        return None
    origin = row or (examples or rejected)[0]
    source = {"row_id": row_id} | {name: origin.get(name) for name in _SOURCE_COLUMNS if name in origin}
    result: Line = {
        "kind": "example" if examples else "row",
        "id": identifier,
        "source": source | ({"row": json.loads(row["row"])} if row else {}),
        "retrieval": _retrieval(run, retrieved, rejected, examples),
    }
    for table in _REJECTED:
        for line in run.lines(table, "row_id", row_id):
            result[CREATED_BY[table]] = {"rejected": line["reason"], "detail": line["detail"], **_response(run, line)}
    result["examples"] = [_example(run, example, row) for example in examples]
    return result | _missing(run, *_ROW_TABLES)


def trace_prediction(item_id: str, run: RunTables, system: str | None = None) -> Line:
    """Trace an evaluation item: its references, each system's answer, and the nearest training examples.

    Raises RebaseError if there is no such prediction.
    """
    if run.tables.keys().isdisjoint(_PREDICTIONS):
        raise RebaseError(f"trace: there are no predictions yet: {run.missing.get('predictions', '')}")
    lines = [
        {"pipeline": CREATED_BY[table], **line}
        for table in _PREDICTIONS
        for line in run.lines(table, "item_id", item_id)
    ]
    chosen = [line for line in lines if system in (None, line["system"])]
    if not chosen:
        others = ", ".join(dict.fromkeys(line["system"] for line in lines)) or "none"
        raise RebaseError(
            f"trace: there is no prediction of the system {system!r} for the item {item_id!r}; "
            f"systems with one: {others}."
        )
    prompt = chosen[0]["prompt"]
    result: Line = {
        "kind": "prediction",
        "id": item_id,
        "prompt": prompt,
        "references": json.loads(chosen[0]["references"]),
        "systems": [_prediction(run, line, prompt) for line in chosen],
    }
    try:
        result["nearest_training_examples"] = nearest_examples(prompt, run)
    except RebaseError as error:
        run.missing["nearest_training_examples"] = str(error)
    return result | _missing(run, "training_set", "reasoned_examples", "nearest_training_examples")


def trace_dataset(name: str, run: RunTables) -> Line | None:
    """Trace a dataset: what became of its rows, and the command that trains without it; None if unknown.

    Excluding a dataset keeps its duplicates from other datasets, which have their own source and license: the result
    lists them.
    """
    retrieved, rejected = run.lines("retrieved", "dataset", name), run.lines("retrieval_rejected", "dataset", name)
    card = run.find_dataset(name)
    examples = _examples(run, "dataset", name)
    if not (retrieved or rejected or card or examples):
        return None
    outcomes = _outcomes(run, "dataset", name)
    duplicates = [line for line in _kept_instead(run, rejected) if line["dataset"] != name]
    ranks = {line["row_id"]: line for line in [*retrieved, *rejected]}
    result: Line = {
        "kind": "dataset",
        "id": name,
        "dataset": card or {key: (retrieved or examples or [{}])[0].get(key) for key in ("license", "revision")},
        "outcomes": dict(Counter(outcomes.values()).most_common()),
        "rows": [
            {"row_id": row_id, **{key: ranks.get(row_id, {}).get(key) for key in ("rank", "score")}, "outcome": outcome}
            for row_id, outcome in outcomes.items()
        ],
    }
    if examples:
        result["train_without_it"] = _training_command([name], run)
    if duplicates:
        result["duplicates_in_other_datasets"] = duplicates
    if others := {line["dataset"] for line in duplicates if line["dataset"] and line["outcome"].startswith("example")}:
        result["train_without_it_and_its_duplicates"] = _training_command([name, *sorted(others)], run)
    return result | _missing(run, *_ROW_TABLES)


def nearest_examples(prompt: str, run: RunTables) -> list[Line]:
    """The training examples with the highest cosine similarity to an item's prompt."""
    frame = run.tables.get("training_set")
    if frame is None or frame.empty:
        return []
    # All prompts start with the instruction, which says nothing about similarity and fills the encoder's window.
    prompts = [text.splitlines(keepends=True) for text in (prompt, *frame["prompt"])]
    shared = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    texts = ["".join(lines[shared:]) for lines in prompts]
    vectors = run.encode(texts)
    nearest = frame.assign(query=texts[1:], similarity=vectors[1:] @ vectors[0]).nlargest(_NEAREST, "similarity")
    origins = {line["example_id"]: line for line in _examples(run) if _TRAINING_SETS[line["table"]] == "training_set"}
    return [
        {
            "similarity": round(line["similarity"], 3),
            **{name: origins.get(line["example_id"], {}).get(name) for name in ("dataset", "license")},
            "example_id": line["example_id"],
            "prompt": line["query"],
            "completion": line["completion"],
        }
        for line in to_lines(nearest)
    ]


def _examples(run: RunTables, column: str = "", *values: str) -> list[Line]:
    """Examples with their ``table``, after the cot stage if it ran; all of them without a ``column``."""
    examples: dict[tuple[str, str], Line] = {}
    for table, training_set in _TRAINING_SETS.items():
        for line in run.lines(table, column, *values):
            examples[training_set, line["example_id"]] = {**line, "table": table}
    return list(examples.values())


def _example(run: RunTables, example: Line, row: Line | None) -> Line:
    result = {name: example[name] for name in _EXAMPLE_COLUMNS if example.get(name) is not None}
    result |= {"training": _training(run, example), **_response(run, example)}
    for mapping in run.lines("mappings", "mapping_id", example.get("mapping_id") or ""):
        # A mapping for all configs has a line for each.
        if mapping["config"] == example["config"]:
            names = ("mapping_id", "mapping", "written_by", "rows", "agreement", "low", "high", "baseline", "dollars")
            result["mapping"] = {name: mapping[name] for name in names}
    if example["table"] == "reasoned_examples" and example.get("rationale"):
        # The reasoning was requested for the example as it was before the cot stage.
        before = run.lines("examples", "example_id", example["example_id"]) or [example]
        responses = run.find_reasoning(before[0], row)
        result["reasoning_responses"] = responses or "not cached for the current prompts and parameters"
    return result


def _response(run: RunTables, line: Line) -> Line:
    return {"response": run.find_response(line["response_key"])} if line.get("response_key") else {}


def _prediction(run: RunTables, line: Line, prompt: str) -> Line:
    result = {name: line[name] for name in ("system", "pipeline", "prompt", "raw_output", "extracted")}
    if line["prompt"] == prompt:
        del result["prompt"]
    result["scores"] = {name: value for name, value in line.items() if name not in (*PREDICTION_COLUMNS, "pipeline")}
    if (line["pipeline"], line["system"]) == ("evaluate", "expert") and run.adapter:
        result["adapter"] = run.adapter
    return result


def _retrieval(run: RunTables, retrieved: list[Line], rejected: list[Line], examples: list[Line]) -> Line:
    if retrieved:
        line = retrieved[0]
        match = {name: line[name] for name in _MATCH_COLUMNS if line.get(name) is not None}
        duplicates = json.loads(line.get("duplicates") or "[]")
        return {"state": "kept", "rank": line["rank"], **match, "duplicates": duplicates}
    if rejected:
        result = {
            "state": "rejected",
            **{name: rejected[0].get(name) for name in ("rank", "score", "reason", "detail")},
        }
        kept = _kept_instead(run, rejected[:1])
        return result | ({"kept_instead": kept[0]} if kept else {})
    if examples and all(example.get("rank") is None for example in examples):
        return {"state": "none: made without a retrieved row"}
    return {"state": "not reached in the ranking" if "retrieved" in run.tables else "unknown"}


def _outcomes(run: RunTables, column: str, *values: str) -> dict[str, str]:
    """What became of the rows with one of the values in a column, by row id."""
    outcomes = {}
    for table in ("retrieval_rejected", "retrieved", *_REJECTED):
        for line in run.lines(table, column, *values):
            rejected = f"{CREATED_BY[table]}: {line.get('reason')}"
            outcomes[line["row_id"]] = "retrieved" if table == "retrieved" else rejected
    # If several pipelines made an example of one row, ReBase's own counts: it comes first in the list.
    for line in reversed(_examples(run, column, *values)):
        outcomes[line["row_id"]] = f"example; {_training(run, line)['state']}"
    return outcomes


def _kept_instead(run: RunTables, rejected: list[Line]) -> list[Line]:
    """For rows that were rejected as duplicates: the row that was kept, its dataset and its outcome."""
    kept = {line["row_id"]: line["detail"] for line in rejected if line["reason"] == "duplicate"}
    outcomes = _outcomes(run, "row_id", *kept.values())
    lines = [*_examples(run, "row_id", *kept.values()), *run.lines("retrieved", "row_id", *kept.values())]
    datasets = {line["row_id"]: line["dataset"] for line in lines}
    return [
        {"row_id": row, "kept": other, "dataset": datasets.get(other), "outcome": outcomes.get(other, "unknown")}
        for row, other in kept.items()
    ]


def _training(run: RunTables, example: Line) -> Line:
    """The example's line in its training set, or the reason why it has none."""
    training_set = _TRAINING_SETS[example["table"]]
    if lines := run.lines(training_set, "example_id", example["example_id"]):
        return {"state": "in the training set", "prompt": lines[0]["prompt"], "completion": lines[0]["completion"]}
    if training_set not in run.tables:
        return {"state": "no training set yet" if training_set else "unknown: training sets of mixtures are not saved"}
    reason = why_excluded(example["dataset"], example["license"], run.exclude)
    if example["table"] == "examples":
        for line in run.lines("reasoning_rejected", "row_id", example["row_id"]):
            reason = f"{CREATED_BY['reasoning_rejected']}: {line['reason']}"
    return {"state": f"not in the training set: {reason or 'rejected when it was formatted'}"}


def _training_command(excluded: Sequence[str], run: RunTables) -> str:
    """The shell command that trains without some datasets."""
    parameters = [f"task={run.task}"] if run.task else []
    # Separators of --params and of patterns, and wildcards, are replaced: "?" matches any character.
    pattern = ";".join(re.sub(r"[^\w./ -]", "?", dataset) for dataset in excluded)
    # The value is parsed as YAML, where names like 007 or true are not text.
    value = pattern if re.fullmatch(r"[A-Za-z_][\w./-]{5,}", pattern) else f"'{pattern}'"
    parameters.append(f"train.exclude.datasets={value}")
    env = [f"--env={run.env}"] if run.env else []
    return shlex.join(["kedro", "run", "--pipelines=train,evaluate", *env, f"--params={','.join(parameters)}"])


def _missing(run: RunTables, *tables: str) -> Line:
    missing = {name: run.missing[name] for name in tables if name in run.missing}
    return {"missing": missing} if missing else {}
