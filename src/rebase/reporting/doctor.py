"""The state of a datastore's and a task's files, for ``kedro doctor``."""

import sqlite3
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rebase.errors import user_message
from rebase.files import damaged_files
from rebase.reporting.freshness import Origins, find_outdated
from rebase.student.adapters import describe_damaged_adapter
from rebase.student.answering import read_answers
from rebase.student.handle import Student
from rebase.teacher.cache_file import count_damaged

State = Literal["whole", "stale", "damaged"]
_WIDTH = 80
#: Stores that are compared with a new plan; that of `rows` would read the sources.
_STORES = ("vectors", "index", "annoy_index")


@dataclass(frozen=True)
class Finding:
    """What is known of one entry's files, and what to do."""

    name: str
    state: State
    advice: str = ""


def examine(catalog: Any, origins: Origins, pipelines: Mapping[str, Any]) -> Iterator[Finding]:
    """Examine the files of each entry that a pipeline writes, of the student's folder and of the response cache.

    Args:
        catalog: Kedro's catalog.
        origins: What each entry was made from.
        pipelines: Kedro's pipelines by name.

    """
    nodes = [node for pipeline in (pipelines["rebase"], *pipelines.values()) for node in pipeline.nodes]
    node_of = {output: node for node in reversed(nodes) for output in node.outputs}
    names = [name for name in dict.fromkeys(o for node in nodes for o in node.outputs) if name in catalog]
    outdated = find_outdated(origins, names)
    for name in names:
        entry = catalog.get(name)
        if not catalog.exists(name) and not getattr(entry, "is_begun", False):
            continue
        command = f"kedro run --pipelines={smallest_writer(pipelines, name)}"
        if problem := _problem(entry):
            yield Finding(name, "damaged", problem)
        elif name in _STORES and (reason := _why_outdated(catalog, name, node_of[name])):
            yield Finding(name, "stale", f"{reason}: {command}")
        elif name in outdated:
            yield Finding(name, "stale", f"what it was made from has changed: {command}")
        else:
            yield Finding(name, "whole")
    yield from _examine_student(catalog.load("student"))
    yield from _examine_responses(catalog.get("teacher").filepath)


def render(findings: Sequence[Finding]) -> str:
    """The whole entries in one paragraph, then a paragraph for each other one, and the counts, in 80 columns."""
    whole_names = ", ".join(finding.name for finding in findings if finding.state == "whole")
    lines = [("whole", whole_names), *((f.state, f"{f.name}: {f.advice}") for f in findings if f.state != "whole")]
    counts = [f"{sum(f.state == state for f in findings)} {state}" for state in get_args(State)]
    return "\n".join([*(_paragraph(*line) for line in lines if line[1]), ", ".join(counts)])


def _paragraph(title: str, text: str) -> str:
    text = text.replace(f"{Path.cwd()}/", "")
    wrapped = textwrap.wrap(text, _WIDTH - 9, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(wrapped), " " * 9).replace(" " * 9, f"{title:<9}", 1)


def smallest_writer(pipelines: Mapping[str, Any], name: str) -> str:
    """The shortest pipeline that writes an entry; empty if none does."""
    writers = [(len(pipeline.nodes), key) for key, pipeline in pipelines.items() if name in pipeline.all_outputs()]
    return min(writers, default=(0, ""))[1]


def _problem(entry: Any) -> str:
    """What is wrong with the files of an entry, in all versions; files without a checksum are read."""
    is_versioned = hasattr(entry, "resolve_load_version") and entry.resolve_load_version()
    versions = entry.list_versions(full_path=False) if is_versioned else [None]
    for version in versions:
        if problem := entry.problem(*filter(None, [version])) if hasattr(entry, "problem") else "":
            return str(problem)
    try:
        loaded = entry.load()
        for load in loaded.values() if isinstance(loaded, dict) else ():
            if callable(load):  # a partition
                load()
    except Exception as error:
        return user_message(error) or f"{type(error).__name__}: {error}"
    return ""


def _why_outdated(catalog: Any, name: str, node: Any) -> str:
    """Why a store is not what its node would plan now; empty if it is, or if that cannot be known."""
    try:
        plan = node.run({source: catalog.load(source) for source in node.inputs})[name]
    except Exception:
        return ""  # what it is made from is missing or damaged, which has a line of its own
    planned = {shard.name: shard.fingerprint for shard in plan.shards}
    saved = catalog.load(name).fingerprints
    different = sum(saved.get(shard) != fingerprint for shard, fingerprint in planned.items())
    removed = len(set(saved) - set(planned))
    return f"{different} shards changed, {removed} no longer exist" if different or removed else ""


def _examine_student(student: Student) -> Iterator[Finding]:
    """The results of training, the cached answers and the converted weights."""
    again = "The next run makes it again."
    for result in sorted(student.workdir.glob("*/result")):
        damaged = ", ".join(file.name for file in damaged_files(result)) or describe_damaged_adapter(result / "adapter")
        yield _finding(f"training/{result.parent.name}", damaged and f"{result}: {damaged}. {again}")
    for file in sorted(student.workdir.glob("answers/*.jsonl")):
        _, count = read_answers(file)
        yield _finding(f"answers/{file.stem[:8]}", f"{file}: {count} damaged answers. {again}" if count else "")
    for folder in sorted(path for path in student.folder.glob("*") if path.is_dir()):
        damaged = ", ".join(file.name for file in damaged_files(folder))
        yield _finding(f"weights/{folder.name}", damaged and f"{folder}: {damaged}. {again}")


def _examine_responses(path: Path) -> Iterator[Finding]:
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            result = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            count = count_damaged(connection) if result == "ok" else 0
    except sqlite3.DatabaseError as error:
        result, count = str(error), 0
    problem = "" if result == "ok" else f"{result}. The next run renames it and saves the responses that can be read."
    if count:
        problem = f"{count} responses are damaged. The next run sets them aside and requests them again."
    yield _finding("response cache", problem and f"{path}: {problem}")


def _finding(name: str, problem: str) -> Finding:
    return Finding(name, "damaged" if problem else "whole", problem)
