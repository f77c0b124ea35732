"""Evaluation items: the rows of an evaluation set as queries and references of the task."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rebase.datastore.cells import number_to_text
from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError
from rebase.records import EVALUATION_COLUMNS, Task
from rebase.tasks.extraction import as_label
from rebase.tasks.metrics import same_number
from rebase.tasks.source_rows import SourceRows
from rebase.text import comparable, lettered_options, tokens, weight

#: A shorter field may be the same in two items by chance: a name, a short question.
MIN_SHOWN_WORDS = 6


def make_evaluation_items(task: Task, source: SourceRows) -> pd.DataFrame:
    """Map raw rows to evaluation items by the task's ``evaluation.fields``; a list in a field becomes lettered options.

    Rows without a gold answer are left out: an empty cell or list, or a class label of -1.

    Returns ``item_id``, ``fields`` (JSON), ``query`` and ``references`` (JSON list), in the order of the rows. The
    frame's ``attrs`` have the rows' origin (``SourceRows.origin``), ``content_hash``, the SHA-256 of the items, and
    ``rejected``, the number of rows that were left out, by reason.

    Raises:
        RebaseError: There is no row, none has a gold answer, a column is missing or a group of columns, an answer does
            not fit, or two rows have one id. The message names the row and the column.

    """
    column = task.evaluation.fields["references"]
    items: list[dict[str, str]] = []
    row_numbers: dict[str, int] = {}
    for number, row in enumerate(source.rows):
        here = f"{source.location}, row {number}"
        gold = _gold(task, _lookup(row, column, here))
        if not gold:
            continue
        item_id = str(number if row.get("id") is None else row["id"])
        if item_id in row_numbers:
            raise RebaseError(
                f"{here}: column 'id' has {item_id!r}, as row {row_numbers[item_id]} has. "
                "Give each row an id of its own, or leave the column out."
            )
        row_numbers[item_id] = number
        references = json.dumps(_references(task, gold, here), ensure_ascii=False)
        items.append({"item_id": item_id, **_query(task, row, here), "references": references})
    if not source.rows:
        raise RebaseError(f"The evaluation set of task {task.name!r} is empty: {source.location}.")
    if not items:
        raise RebaseError(
            f"{source.location}: none of the {len(source.rows)} rows has a gold answer in column {column!r}, so "
            "nothing can be scored. Correct `evaluation.split` or `evaluation.fields.references` of the task."
        )
    content = json.dumps(items, ensure_ascii=False).encode("utf-8", "surrogatepass")
    frame = pd.DataFrame(items, columns=EVALUATION_COLUMNS)
    rejected = {"no_gold": len(source.rows) - len(items)} if len(items) < len(source.rows) else {}
    frame.attrs = {**source.origin, "content_hash": hashlib.sha256(content).hexdigest(), "rejected": rejected}
    return frame


def make_unlabeled_inputs(task: Task, source: SourceRows) -> pd.DataFrame:
    """Map raw rows to queries without answers, by the columns of the task's ``evaluation.fields``.

    Returns ``row_id``, ``row_index``, ``fields`` (JSON), ``query`` and the columns of ``SourceRows.origin``. Raises
    RebaseError as ``make_evaluation_items`` does.
    """
    items = [
        {"row_id": f"{source.origin['dataset']}/{number}", "row_index": number}
        | _query(task, row, f"{source.location}, row {number}")
        for number, row in enumerate(source.rows)
    ]
    if not items:
        raise RebaseError(f"There are no inputs for task {task.name!r}: {source.location} is empty.")
    return pd.DataFrame(items).assign(**source.origin)


def remove_shown_items(task: Task, evaluation_items: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the items into kept and removed: items that the task's examples show would measure memory.

    An item is shown if its query, or one of its fields of at least six words, is an example's, without regard to case,
    spacing and punctuation. All six examples of the published MCoNaLa prompt are test items.
    """
    shown = set().union(*(_comparable_texts(task, example) for example in task.examples))
    fields = map(json.loads, evaluation_items["fields"])
    is_shown = np.array([not shown.isdisjoint(_comparable_texts(task, item)) for item in fields], dtype=bool)
    return evaluation_items[~is_shown].reset_index(drop=True), evaluation_items[is_shown].reset_index(drop=True)


def select_items(task: Task, evaluation_items: pd.DataFrame, limit: int | None) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the items that systems answer, and the number of other items by reason.

    Items that the task's examples show are left out; of the others, ``limit`` are taken as a systematic sample (None:
    all). Raises RebaseError if the examples show every item.
    """
    unseen, shown = remove_shown_items(task, evaluation_items)
    if unseen.empty:
        raise RebaseError(
            f"evaluate: the examples of task {task.name!r} show every evaluation item. Write other examples."
        )
    items = unseen.iloc[systematic_positions(len(unseen), limit or len(unseen))]
    rejected = {
        **evaluation_items.attrs.get("rejected", {}),
        "shown_in_prompt": len(shown),
        "over_limit": len(unseen) - len(items),
    }
    return items, {reason: count for reason, count in rejected.items() if count}


def _comparable_texts(task: Task, fields: Mapping[str, str]) -> set[tuple[str, str]]:
    """The query and each long field, by name, in the form in which they are compared."""
    texts = {(name, fields[name]) for name in task.query_fields if weight(tokens(fields[name])) >= MIN_SHOWN_WORDS}
    return {(name, comparable(text)) for name, text in texts | {("", task.render_query(fields))}}


def _query(task: Task, row: Mapping[str, Any], here: str) -> dict[str, str]:
    """The ``fields`` of a row, as JSON, and its ``query``."""
    values = {field: _lookup(row, task.evaluation.fields[field], here) for field in task.query_fields}
    if missing := [task.evaluation.fields[field] for field, value in values.items() if value in (None, [])]:
        raise RebaseError(f"{here}: there is no value in {', '.join(missing)}. Correct the row.")
    fields = {field: _text(value) for field, value in values.items()}
    return {"fields": json.dumps(fields, ensure_ascii=False), "query": task.render_query(fields)}


def _gold(task: Task, value: Any) -> list[str]:
    """Return the gold answers in a cell, class labels by their names.

    There is none in an empty cell or list, for the class label -1, and for the label "-", which SNLI gives to items on
    which its annotators did not agree.
    """
    values = [_named(item, task.evaluation.label_names) for item in (value if isinstance(value, list) else [value])]
    empty = {"", "-"} - {*task.answer.labels} if task.answer.labels else {""}
    return [str(item) for item in values if item is not None and str(item).strip() not in empty]


def _references(task: Task, answers: list[str], here: str) -> list[str]:
    """The gold answers in the task's form: labels as the task spells them, without the working."""
    spec, labels = task.evaluation, task.answer.labels
    column = f"column {spec.fields['references']!r}"
    if mark := spec.answer_after:
        if not all(mark in answer for answer in answers):
            raise RebaseError(
                f"{here}: there is no {mark!r} in {column}. Correct the row, or `evaluation.answer_after`."
            )
        answers = [answer.rpartition(mark)[2].strip() for answer in answers]
    if labels:
        answers = [as_label(answer, labels) or answer for answer in answers]
        if (outside := sorted({*answers} - {*labels})) and not spec.outside_labels:
            raise RebaseError(
                f"{here}: the answer {', '.join(map(repr, outside))} in {column} is outside the task's labels "
                f"({', '.join(labels)}). Correct the row, or `evaluation.label_names` of the task."
            )
    if task.answer.type == "number" and (other := [answer for answer in answers if not same_number(answer, answer)]):
        raise RebaseError(f"{here}: the answer {other[0]!r} in {column} is no number. Correct the row.")
    return list(dict.fromkeys(answers))


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """Return the name of a class label, which a CSV file has as text; None for -1, which stands for no label."""
    index = int(value) if isinstance(value, bool) else value
    if not names or value in names or not re.fullmatch(r"-1|\d{1,6}", str(index)):
        return value
    return {-1: None, **dict(enumerate(names))}.get(int(index), value)


def _text(value: Any) -> str:
    """The value of a field as text; a list becomes options, ``(A)``, ``(B)``, one per line."""
    return lettered_options(value) if isinstance(value, list) else str(value)


def _lookup(row: Mapping[str, Any], column: str, here: str) -> Any:
    value: Any = row
    # A column of a CSV file can have dots in its name.
    for part in [column] if column in row else column.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            names = f"there is no column {column!r} (there are {sorted(row)})"
            raise RebaseError(f"{here}: {names}. Correct `evaluation.fields` of the task.")
        value = value[part]
    if isinstance(value, Mapping):
        raise RebaseError(
            f"{here}: column {column!r} is a group ({', '.join(value)}): name one, such as "
            f"{column}.{next(iter(value), 'NAME')}. Correct `evaluation.fields` of the task."
        )
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        raise RebaseError(f"{here}: column {column!r} is a list of groups, not of texts. Correct the row.")
    return _without_floats(value)


def _without_floats(value: Any) -> Any:
    """The value with floats as the text that people write: a column of integers has floats if a value is missing."""
    if isinstance(value, list):
        return list(map(_without_floats, value))
    return number_to_text(value) or None if isinstance(value, float) else value
