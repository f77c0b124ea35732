"""The history of runs: how each run was made, what it scored and what it cost."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pandas as pd
from rich.console import Group
from rich.markup import escape

from rebase.parameters import flat_parameters
from rebase.reporting.console import make_table
from rebase.reporting.redaction import public
from rebase.weights import machine_name

Line = dict[str, Any]

#: The characters of a version up to the second; `--run` takes the beginning of a version.
_SECOND = len("2026-11-29T11.19.06")
_PACKAGES = ("rebase", "kedro", "torch", "transformers", "trl", "peft")
#: For each model in a record: the stage whose summary names it, and the key.
_MODELS = {"teacher": ("transform", "teacher"), "student": ("train", "base_model"), "encoder": ("index", "encoder")}
#: Keys of a record that describe the session that wrote it, not the files that it summarizes.
_OF_THE_SESSION = ("parameters", "versions", "machine")


@dataclass(frozen=True)
class RunScores:
    """A run that has scores: its version (the time when it started), its scores and its record, if there is one."""

    version: str
    scores: dict[str, Any]
    record: dict[str, Any] | None


def record_run(
    parameters: dict[str, Any], scores: dict[str, Any], teacher_usage: pd.DataFrame, *summaries: dict[str, Any]
) -> dict[str, Any]:
    """Record how a run was made and what it cost, as JSON values; missing numbers are None.

    ``parameters`` are all of Kedro's parameters. Secrets are removed: values whose names look secret, and the user and
    query parts of addresses.
    """
    by_stage = {summary["stage"]: summary for summary in summaries}
    usage = json.loads(teacher_usage.to_json(orient="records"))
    total: dict[str, Any] = next((line for line in usage if line["stage"] == "total"), {})
    return {
        "task": scores["task"],
        "models": {name: by_stage.get(stage, {}).get(key) for name, (stage, key) in _MODELS.items()},
        "parameters": public(parameters),
        "versions": {
            "git": git_commit(),
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "machine": machine_name(),
        "dtypes": {stage: summary["dtype"] for stage, summary in by_stage.items() if summary.get("dtype")},
        "counts": {
            stage: {name: summary[name] for name in ("in", "kept", "rejected")} for stage, summary in by_stage.items()
        },
        "seconds": {stage: summary["seconds"] for stage, summary in by_stage.items() if "seconds" in summary},
        "teacher_usage": {name: total.get(name) for name in ("responses", "cached", "input_tokens", "output_tokens")},
        "dollars": total.get("dollars"),
        "used_dollars": total.get("used_dollars"),
        "scores": dict(scores),
    }


def is_scores(content: Mapping[str, Any]) -> bool:
    """Whether scores have the shape of this version: each system's metrics, with value, low and high."""
    systems = content.get("systems", {})
    metrics = systems.values() if isinstance(systems, dict) else [None]
    cells = [cell for of_system in metrics for cell in (of_system.values() if isinstance(of_system, dict) else [None])]
    return all(isinstance(cell, dict) and {"value", "low", "high"} <= set(cell) for cell in cells)


def find_runs(scores: Mapping[str, Line], records: Mapping[str, Line]) -> list[RunScores]:
    """The runs of a task, the newest first, from its scores and records by version; without scores of another shape.

    A record belongs to the run of its version. A run that was killed before its record was written gets the first
    later record of equal scores that belongs to no other run, without the parameters, versions and machine: those
    describe the session that wrote the record.
    """
    later = {written: record for written, record in sorted(records.items()) if written not in scores}

    def find_record(run_version: str, run_scores: Line) -> Line | None:
        if run_version in records:
            return records[run_version]
        for written, record in later.items():
            if written > run_version and record.get("scores") == run_scores:
                return {name: value for name, value in record.items() if name not in _OF_THE_SESSION}
        return None

    return [
        RunScores(run_version, run_scores, find_record(run_version, run_scores))
        for run_version, run_scores in sorted(scores.items(), reverse=True)
        if is_scores(run_scores)
    ]


def summaries_of(record: Mapping[str, Any]) -> dict[str, Line]:
    """The stage summaries, by catalog name, as far as a run's record holds them."""
    seconds, base_model = record.get("seconds", {}), record.get("models", {}).get("student")
    summaries = {
        f"{stage}_summary": {"stage": stage, **counts, "seconds": seconds.get(stage)}
        for stage, counts in record.get("counts", {}).items()
    }
    if "train_summary" in summaries:
        summaries["train_summary"]["base_model"] = base_model
    return summaries


def runs_tables(task: str, runs: Sequence[RunScores]) -> Group:
    """A table of each metric with the runs' scores, one of verdicts, of costs, and of the settings that differ.

    A setting that only some runs have (they are of another version of rebase) is no difference.
    """
    settings = [_settings(run.record or {}) for run in runs]
    names = sorted({name for run_settings in settings for name in run_settings})
    values = {name: [run_settings[name] for run_settings in settings if name in run_settings] for name in names}
    differing = [name for name in names if len(set(map(json.dumps, values[name]))) > 1]
    scores = [run.scores.get("systems", {}) for run in runs]
    systems = dict.fromkeys(system for run_scores in scores for system in run_scores)
    metrics = dict.fromkeys(metric for run_scores in scores for cells in run_scores.values() for metric in cells)
    tables = []
    for metric in metrics:
        table = make_table("run", *(f">{system}" for system in systems), title=f"rebase · task {task} · {metric}")
        for run, run_scores in zip(runs, scores, strict=True):
            cells = [run_scores.get(system, {}).get(metric) for system in systems]
            table.add_row(run.version[:_SECOND], *(_score(cell) if cell else "–" for cell in cells))
        tables.append(table)
    costs = make_table("run", ">items", ">examples", ">paid", title="Costs")
    changes = make_table("run", "differences", title="Settings that differ")
    changes.columns[-1].no_wrap, changes.columns[-1].overflow = False, "fold"
    for run, run_settings in zip(runs, settings, strict=True):
        record = run.record or {}
        differences = [f"{name} = {_short(run_settings[name])}" for name in differing if name in run_settings]
        if not record:
            differences.append("no record: made without the report pipeline")
        elif "parameters" not in record:
            differences.append("parameters unknown: the report was made later")
        costs.add_row(
            run.version[:_SECOND],
            f"{run.scores.get('n', '–')}",
            f"{record.get('counts', {}).get('train', {}).get('kept', '–')}",
            _dollars(record.get("dollars"), record.get("used_dollars")),
        )
        if differences:
            changes.add_row(run.version[:_SECOND], "\n".join(differences))
    recorded = sum(bool(run_settings) for run_settings in settings)
    shared = [n for n in names if n not in differing and "." not in n and len(values[n]) == recorded]
    same = [f"{name} {_short(values[name][0])}" for name in shared]
    verdicts = make_table("run", "verdict", title="Verdicts")
    verdicts.columns[-1].no_wrap = False
    for run in runs:
        verdicts.add_row(run.version[:_SECOND], escape(run.scores.get("verdict", "–")))
    tables += [verdicts, costs, *[changes] * bool(changes.row_count)]
    return Group(*tables, *["The same in all runs: " + escape(", ".join(same))] * bool(same))


def _score(cell: Mapping[str, float]) -> str:
    return f"{cell['value']:.1f} \\[{cell['low']:.0f}, {cell['high']:.0f}]"  # The backslash is for Rich's markup.


def git_commit() -> str | None:
    """The commit of the working folder, with ``-dirty`` after changes; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # The project runs from its folder.
        return None


def _settings(record: Line) -> Line:
    """How a run was made, flat: models and versions by their names, parameters as ``group.name``."""
    machine = {"machine": record["machine"]} if "machine" in record else {}
    parameters = flat_parameters(record.get("parameters", {}))
    return {**record.get("models", {}), **record.get("versions", {}), **machine, **parameters}


def _dollars(paid: float | None, used: float | None) -> str:
    """The dollars paid, and the price of all used responses, if some were cached."""
    if paid is None:
        return "–"
    return f"${paid:,.4f}" + (f" of ${used:,.4f} used" if used is not None and used > paid else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} …"
