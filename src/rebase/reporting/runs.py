"""The history of runs: what each was made with, what it scored and cost, by Kedro's versions of two files."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Any

import pandas as pd
from rich.table import Table

from rebase.reporting.redaction import public
from rebase.weights import machine_name

_PACKAGES = ("rebase", "kedro", "torch", "transformers", "trl", "peft")
_SCORES, _RECORD = "scores.json", "run_record.json"
# What a record says of the session that made it, not of the files that it found.
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
        "models": {
            name: by_stage.get(stage, {}).get(field)
            for name, stage, field in (
                ("teacher", "transform", "teacher"),
                ("student", "train", "base_model"),
                ("encoder", "index", "encoder"),
            )
        },
        "parameters": public(parameters),
        "versions": {"git": git_commit(), "python": platform.python_version(), **_versions()},
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


def read_runs(folder: Path) -> list[RunScores]:
    """The runs whose scores lie in a task's reporting folder, the newest first.

    A record of the same version is the run's; a run that was killed before it has the first later record of the same
    scores, which belong to no other run, without the parameters, versions and machine: those are of the session that
    made it. Files that cannot be read count as missing.
    """
    scores, records = _read_versions(folder / _SCORES), _read_versions(folder / _RECORD)
    later = {made: record for made, record in records.items() if made not in scores}

    def record_of(made: str, said: dict[str, Any]) -> dict[str, Any] | None:
        if made in records:
            return records[made]
        of_the_same = (later[key] for key in sorted(later) if key > made and later[key].get("scores") == said)
        found = next(of_the_same, None)
        return found and {name: value for name, value in found.items() if name not in _OF_THE_SESSION}

    return [RunScores(made, said, record_of(made, said)) for made, said in sorted(scores.items(), reverse=True)]


def runs_table(task: str, runs: Sequence[RunScores]) -> Table:
    """The runs in one table: scores, dollars, and of parameters, models and versions what is not the same in all.

    Not a difference is what only one of them has.
    """
    settings = [_settings(run.record) for run in runs]
    names = sorted({name for own in settings for name in own})
    # What only some runs know of, because they are of another version, is no difference in how they were made.
    differing = [name for name in names if len({json.dumps(own[name]) for own in settings if name in own}) > 1]
    table = Table(title=f"rebase · runs of task {task}", title_justify="left", show_lines=True)
    for column in ("run", "score, interval", "items", "examples", "paid", "what differs"):
        table.add_column(column, justify="right" if column in {"items", "examples", "paid"} else "left")
    for run, own in zip(runs, settings, strict=True):
        record = run.record or {}
        table.add_row(
            run.version[:16].replace("T", " ").replace(".", ":"),
            "\n".join(_score_lines(run.scores)),
            f"{run.scores.get('n', '–')}",
            f"{record.get('counts', {}).get('train', {}).get('kept', '–')}",
            _dollars(record.get("dollars"), record.get("used_dollars")),
            "\n".join([f"{name} = {_short(own[name])}" for name in differing if name in own] + _gaps(run)),
        )
    known = [own for own in settings if own]
    shared = [name for name in names if name not in differing and "." not in name and all(name in own for own in known)]
    if shared:
        table.caption = "The same in all: " + ", ".join(f"{name} {_short(known[0][name])}" for name in shared)
    return table


def git_commit() -> str | None:
    """The commit of the folder that the run is in, ``-dirty`` where files were changed; None where there is none."""
    git = which("git")
    if git is None:
        return None
    said = subprocess.run(  # noqa: S603
        [git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return said.stdout.strip() or None if said.returncode == 0 else None


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _read_versions(path: Path) -> dict[str, dict[str, Any]]:
    """Kedro keeps a versioned file as ``path/VERSION/name``: each version that can be read."""
    found = {}
    for file in path.glob(f"*/{path.name}"):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(said, dict):
            found[file.parent.name] = said
    return found


def _settings(record: dict[str, Any] | None) -> dict[str, Any]:
    """What a run was made with, by one name each: models and versions by theirs, parameters with their group."""
    if record is None:
        return {}
    machine = {"machine": record["machine"]} if "machine" in record else {}
    return {**record.get("models", {}), **record.get("versions", {}), **machine, **_flat(record.get("parameters", {}))}


def _gaps(run: RunScores) -> list[str]:
    """What is not known of how a run was made, in words."""
    if not run.record:
        return ["no record: made without the pipeline report"]
    return [] if "parameters" in run.record else ["parameters not known: its report was made later"]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat


def _score_lines(scores: Mapping[str, Any]) -> list[str]:
    return [
        f"{system} · {metric} {cell['value']:.1f} [{cell['low']:.1f}, {cell['high']:.1f}]"
        for system, cells in scores.get("systems", {}).items()
        for metric, cell in cells.items()
    ]


def _dollars(paid: float | None, used: float | None) -> str:
    """What was paid now; what the stored responses would have cost beside it."""
    if paid is None:
        return "–"
    return f"${paid:,.4f}" + (f"\nof ${used:,.4f} used" if used is not None and used > paid else "")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]} …"
