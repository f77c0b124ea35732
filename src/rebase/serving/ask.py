"""Inputs from the command line, from a file or typed in, and the expert's answers to them (``kedro ask``)."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pyarrow as pa

from rebase.datastore.sources import is_data_file
from rebase.errors import RebaseError
from rebase.files import replacing_file
from rebase.reporting.console import visible
from rebase.serving.expert import Expert
from rebase.student.answering import EXPERT, STUDENT
from rebase.tasks.evaluation_items import make_unlabeled_inputs
from rebase.tasks.source_rows import read_source_rows

#: Half a surrogate pair, which UTF-8 does not have, is written as JSON's escape of it.
_ENCODING: Any = {"encoding": "utf-8", "errors": "backslashreplace"}


def load_expert(catalog: Any) -> Expert:
    """The expert of the catalog's task. Raises RebaseError if there is no such task, or no adapter for it."""
    if not catalog.exists("adapter"):
        task = catalog.load("task").name
        raise RebaseError(f"There is no adapter for the task {task!r}. Train one: kedro run --params=task={task}")
    adapter, student = catalog.load("adapter"), catalog.load("student")
    # Of a student in a local folder or file, the adapter has the name alone.
    is_local = Path(student.model).exists() and student.name == adapter.base_model
    settings = catalog.load("params:evaluate")
    return Expert.load(adapter.folder, student.model if is_local else None, settings.labels_by, settings.batch_size)


def parse_fields(arguments: Sequence[str]) -> dict[str, str]:
    """The fields of one input from ``--FIELD=TEXT`` or ``--FIELD TEXT``."""
    fields, remaining = {}, iter(arguments)
    for argument in remaining:
        name, has_value, value = argument.removeprefix("--").partition("=")
        text = value if has_value else next(remaining, None)
        if not argument.startswith("--") or text is None:
            raise RebaseError(f"{argument} gives no field a text: write --FIELD=TEXT.")
        fields[name] = text
    return fields


def show_answer(expert: Expert, fields: Mapping[str, str], beside: bool) -> None:
    """Print the expert's answer; ``beside`` prints the untrained student's too, both with their names."""
    answer = expert.answer(**fields)
    if not answer:
        click.echo("No answer can be read from what the expert wrote.", err=True)
    if beside:
        [other] = expert.answers([fields], untrained=True)
        click.echo(visible(f"{STUDENT:<8} {other}\n{EXPERT:<8} {answer}"))
    else:
        click.echo(visible(answer))


def answer_typed(expert: Expert, beside: bool) -> None:
    """Ask for the fields, print the answer, and begin again, until the input ends."""
    click.echo(f"Task {expert.task.name}. Enter alone repeats a field's last text; Ctrl-D ends.")
    fields: dict[str, str] = {}
    with suppress(click.Abort):
        while True:
            for name in expert.task.query_fields:
                fields[name] = click.prompt(name, default=fields.get(name), show_default=False)
            show_answer(expert, fields, beside)


def answer_file(expert: Expert, source: Path, target: Path, beside: bool) -> None:
    """Answer the rows of ``source``, which has a column for each field, and write them with their answers.

    The answers are the columns ``expert_answer`` and, if ``beside``, ``student_answer``.
    """
    task, names = expert.task, expert.task.query_fields
    if not is_data_file(source.name):
        raise RebaseError(f"{source}: its format must be one of those of evaluation files, such as .jsonl or .csv.")
    if target.suffix not in _WRITERS:
        raise RebaseError(f"{target}: its format must be one of {', '.join(_WRITERS)}.")
    content = read_source_rows(task, str(source), "train", None, "input", "inputs")
    if content.rows and (missing := [name for name in names if name not in content.rows[0]]):
        raise RebaseError(f"{source}: there is no column {', '.join(missing)}, only {', '.join(content.rows[0])}.")
    evaluation = task.evaluation.model_copy(update={"fields": dict(zip(names, names, strict=True))})
    inputs = make_unlabeled_inputs(task.model_copy(update={"evaluation": evaluation}), content)
    fields = [json.loads(text) for text in inputs["fields"]]
    answers = {"expert_answer": expert.answers(fields)}
    if beside:
        answers["student_answer"] = expert.answers(fields, untrained=True)
    with replacing_file(target) as part:
        _WRITERS[target.suffix](pd.DataFrame(content.rows, dtype=object).assign(**answers), part)
    empty = answers["expert_answer"].count("")
    click.echo(f"{len(fields):,} answers written to {target}" + (f"; {empty:,} are empty" if empty else ""))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _write_jsonl(table: pd.DataFrame, path: Path) -> None:
    """Write each row by itself: pandas rounds numbers, and turns times into milliseconds."""
    with path.open("w", **_ENCODING) as file:
        file.writelines(_json(row) + "\n" for row in table.where(table.notna(), None).to_dict("records"))


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, **_ENCODING)


def _write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write the table; a column that Parquet cannot hold, such as one of texts and numbers, becomes text."""

    def to_text(value: Any) -> str:
        text = value if isinstance(value, str) else _json(value)
        return text.encode(**_ENCODING).decode()

    for name in table:
        try:
            table[[name]].to_parquet(BytesIO())
        except (pa.ArrowException, OverflowError, UnicodeError):
            table[name] = table[name].map(to_text, na_action="ignore")
    table.to_parquet(path, index=False)


_WRITERS = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
