"""Evaluation items: the rows of an evaluation set as the task's queries and accepted answers."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.records import Task

EVALUATION_COLUMNS = ("item_id", "fields", "query", "answers")


def evaluation_items(task: Task, rows: Iterable[Mapping[str, Any]], where: str) -> pd.DataFrame:
    """Map raw rows to items by the task's ``evaluation.fields``.

    Returns ``item_id``, ``fields`` (JSON), ``query``, ``answers`` (JSON list of the accepted ones), in the order of
    the rows. Raises RebaseError, naming row and column, where a column is missing or an answer does not fit.
    """
    items = [_item(task, number, row, where) for number, row in enumerate(rows)]
    if not items:
        raise RebaseError(f"The evaluation set of task {task.name!r} is empty: {where}.")
    return pd.DataFrame(items, columns=list(EVALUATION_COLUMNS))


def _item(task: Task, number: int, row: Mapping[str, Any], where: str) -> dict[str, str]:
    values = {field: _lookup(row, column, number, where) for field, column in task.evaluation.fields.items()}
    answers = _answers(values.pop("answers"), task.evaluation.label_names)
    outside = set(answers) - set(task.answer.labels)
    if not answers or (task.answer.labels and outside):
        wrong = f"the answer {outside} is outside the task's labels" if answers else "there is no answer"
        raise RebaseError(f"{where}, row {number}: {wrong}. Mend the row, or `evaluation.label_names` of the task.")
    missing = [task.evaluation.fields[field] for field, value in values.items() if value is None]
    if missing:
        raise RebaseError(f"{where}, row {number}: there is no value in {', '.join(missing)}. Mend the row.")
    fields = {field: str(value) for field, value in values.items()}
    return {
        "item_id": str(number if row.get("id") is None else row["id"]),
        "fields": json.dumps(fields, ensure_ascii=False),
        "query": task.render_query(fields),
        "answers": json.dumps(answers, ensure_ascii=False),
    }


def _answers(value: Any, label_names: tuple[str, ...]) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if label_names:
        values = [label_names[value] if isinstance(value, int) and 0 <= value < len(label_names) else value
                  for value in values]  # fmt: skip
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _lookup(row: Mapping[str, Any], column: str, number: int, where: str) -> Any:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RebaseError(
                f"{where}, row {number}: there is no column {column!r} (there are {sorted(row)}). "
                "Mend `evaluation.fields` of the task."
            )
        value = value[part]
    return value
