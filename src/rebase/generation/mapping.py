"""Map the columns of a dataset to a task: labels that people gave become examples without a request for each row.

The teacher writes one mapping for a config (``map_request``), code applies it to the rows (``map_row``), and the
teacher's answers to a sample of the mapped queries decide whether to believe it (``audit``).
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import pandas as pd

from rebase.generation.filters.base import Rejection
from rebase.generation.filters.passages import clean_spelling
from rebase.generation.prompts.options import fields_to_map, join_templates, to_lists
from rebase.generation.prompts.parsing import Example
from rebase.generation.prompts.requests import build_request, cut_cells, fence, object_schema, task_in_words
from rebase.generation.prompts.templates import MapPrompt
from rebase.generation.verification import agrees
from rebase.parameters import MapParameters
from rebase.records import DatasetMapping, Task
from rebase.tasks.extraction import as_label, extract
from rebase.tasks.metrics import word_f1
from rebase.teacher.protocol import Request, parse_response
from rebase.text import (
    NUMBER,
    comparable,
    count_words,
    fill_template,
    find_option,
    lettered_options,
    list_items,
    option_items,
    split_reference,
    template_columns,
    tokens,
)

#: Columns that a request shows.
MAX_COLUMNS = 40
#: Mean words of a column that can have passages; a row with a shorter one than `retrieve` accepts is rejected later.
_PASSAGE_WORDS = 12
#: A column with more, or longer, distinct values has no table of values.
_MAX_VALUES, _MAX_VALUE_CHARACTERS = 20, 60
#: Names are part of the schema, which some servers get as a text: a longer one could hold an instruction.
_MAX_NAME_CHARACTERS = 100
#: Items of a list, or options, that the answer's values can point to.
_MAX_ITEMS = 8
#: A mapped number with more is a fraction that has no end.
_MAX_DECIMALS = 12
#: A column is a list if this share of its cells has several items.
_LIST_SHARE = 0.9
_SHOWN_DESCRIPTION = 600
#: Answers of an audit that may be the most frequent one: all of them in all rows are too many comparisons.
_MAX_FREQUENT = 20
#: In the table of a label column: the value has no label.
NO_LABEL = "none of these"

T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """What a request says of a column: mean ``words``, ``values`` with counts if they are few, ``items`` of a list."""

    words: int
    values: Mapping[str, int]
    items: int = 0
    has_numbers: bool = False

    def in_words(self) -> dict[str, Any]:
        """The type of the column, and what is typical of its cells."""
        if self.values:
            return {"type": "label", "values": self.values}
        if self.items:
            return {"type": "list", "items": self.items}
        return {"type": "number"} if self.has_numbers else {"type": "text", "words": self.words}


def configs_to_map(task: Task, retrieved: pd.DataFrame, min_rows: int) -> list[tuple[str, str]]:
    """The (dataset, config) pairs with at least ``min_rows`` retrieved rows and no mapping by a person, best first."""
    written = {(mapping.dataset, mapping.config) for mapping in task.mappings}
    counts = retrieved.groupby(["dataset", "config"], sort=False).size()
    return [pair for pair in counts.index[counts >= min_rows] if written.isdisjoint({pair, (pair[0], None)})]


def describe_columns(rows: Sequence[Mapping[str, str]]) -> dict[str, Column]:
    """The columns of some rows, of which at most ``MAX_COLUMNS`` with the most cells.

    Columns that a template cannot name are left out: those with braces.
    """
    cells: dict[str, list[str]] = {}
    for row in rows:
        for name, text in row.items():
            if len(name) <= _MAX_NAME_CHARACTERS and {"{", "}"}.isdisjoint(name):
                cells.setdefault(name, []).append(text)
    largest = sorted(cells, key=lambda name: -len(cells[name]))[:MAX_COLUMNS]
    return {name: _describe(cells[name]) for name in cells if name in largest}


def _describe(cells: list[str]) -> Column:
    words = round(sum(map(count_words, cells)) / len(cells))
    counts = Counter(cells)
    is_few = len(counts) <= min(_MAX_VALUES, len(cells) // 2) and max(map(len, counts)) <= _MAX_VALUE_CHARACTERS
    if is_few:
        return Column(words, dict(counts.most_common()))
    sizes = [len(list_items(cell)) for cell in cells]
    several = sum(size > 1 or cell.startswith("[") for size, cell in zip(sizes, cells, strict=True))
    if several >= _LIST_SHARE * len(cells):
        return Column(words, {}, max(sizes))
    return Column(words, {}, has_numbers=all(NUMBER.fullmatch(cell.strip()) for cell in cells))


def passage_columns(columns: Mapping[str, Column]) -> list[str]:
    """The columns that can have passages."""
    return [name for name, column in columns.items() if column.words >= _PASSAGE_WORDS]


def lacks_passages(task: Task, columns: Mapping[str, Column]) -> bool:
    """Whether the task reads a passage, and no column can have one: no mapping is requested then."""
    return task.passage is not None and not passage_columns(columns)


def map_request(
    task: Task,
    description: str,
    columns: Mapping[str, Column],
    rows: Iterable[Mapping[str, str]],
    prompt: MapPrompt,
    parameters: MapParameters,
) -> Request:
    """Request the mapping of a config with these columns, or null if its rows are no examples of the task."""
    fields = fields_to_map(task)
    examples = [{name: example[name] for name in (*task.query_fields, "answer")} for example in task.examples]
    if fields != list(task.query_fields):
        examples = [to_lists(task, example) for example in examples]
    words = task_in_words(task) | {
        "fields": ", ".join(fields),
        "examples": "\n".join(json.dumps(example, ensure_ascii=False) for example in examples),
    }
    data = {
        "description": description[:_SHOWN_DESCRIPTION],
        "columns": {name: column.in_words() for name, column in columns.items()},
        "rows": [
            cut_cells({name: row[name] for name in columns if name in row}, parameters.max_row_tokens) for row in rows
        ],
    }
    return build_request(prompt, words, (), {"data": fence(data)}, mapping_schema(task, columns), parameters.sampling)


def mapping_schema(task: Task, columns: Mapping[str, Column]) -> dict[str, Any]:
    """The JSON schema of a mapping, or null: its enums are the columns, their values and the task's labels.

    The answer may be null: then the teacher answers the mapped queries. Letters of options are no names that a table
    could translate: where the labels are such letters, the answer is a column alone.
    """
    lists = {name: column.items for name, column in columns.items() if column.items}
    single = [name for name in columns if name not in lists]
    first_items = [f"{name}|1" for name in lists]
    template = object_schema({"template": _TEXT})
    # A list as it is has no letters.
    references = [*(single if task.lists_options else columns), *(f"{name}|options" for name in lists)]
    field = {"anyOf": [_enum(*references), template]}
    fields = dict.fromkeys(fields_to_map(task), field)
    if task.passage:
        fields[task.passage] = {"anyOf": [_enum(*passage_columns(columns)), template]}
    if task.lists_options:
        answers = [object_schema({"column": _enum(*single)})] if single else []
    elif task.answer.labels:
        choices = _enum(*task.answer.labels, NO_LABEL)
        answers = [_with_values(name, column, choices) for name, column in columns.items() if len(column.values) > 1]
    else:
        items = [f"{name}|{item}" for name, size in lists.items() for item in range(1, min(size, _MAX_ITEMS) + 1)]
        is_number = task.answer.type == "number"
        plain = [name for name, column in columns.items() if is_number or not _are_pointers(column.values)]
        plain += first_items
        answers = [object_schema({"column": _enum(*plain)})] if plain else []
        answers += [
            _with_values(name, column, _enum(*targets))
            for name, column in columns.items()
            if _are_pointers(column.values) and (targets := [*(other for other in single if other != name), *items])
        ]
    mapping = object_schema(
        {"fields": object_schema(fields), "answer": {"anyOf": [*answers, _NULL]} if answers else _NULL}
    )
    return object_schema({"row": _TEXT, "mapping": {"anyOf": [mapping, _NULL]}})


_TEXT, _NULL = {"type": "string"}, {"type": "null"}


def _enum(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _with_values(name: str, column: Column, choices: Mapping[str, Any]) -> dict[str, Any]:
    return object_schema({"column": _enum(name), "values": object_schema(dict.fromkeys(column.values, choices))})


def _are_pointers(values: Iterable[str]) -> bool:
    """Whether the values are letters or numbers of options."""
    return 1 < len(list(values)) <= _MAX_ITEMS and all(len(value) <= 2 for value in values)


def read_mapping(task: Task, dataset: str, config: str, text: str) -> tuple[str, DatasetMapping | None]:
    """What a row is, and the mapping, in a response to ``map_request``; None if the rows are no examples.

    Raises ValueError if the response does not match the schema.
    """
    response = parse_response(text)
    if not isinstance(response, dict) or set(response) != {"row", "mapping"}:
        raise ValueError("the response has other entries than row and mapping")
    row, mapping = str(response["row"]), response["mapping"]
    if mapping is None:
        return row, None
    try:
        fields = {
            name: field["template"] if isinstance(field, dict) else field for name, field in mapping["fields"].items()
        }
        fields = join_templates(task, fields)
        answer: dict[str, Any] = {"column": None} if mapping["answer"] is None else mapping["answer"]
        values = {value: choice for value, choice in answer.get("values", {}).items() if choice != NO_LABEL}
        column = answer["column"]
    except (AttributeError, KeyError, TypeError):
        raise ValueError("the mapping has not the form of the schema") from None
    return row, DatasetMapping(dataset=dataset, config=config, fields=fields, answer=column, values=values)


def number_options(task: Task, mapping: DatasetMapping, columns: Mapping[str, Column]) -> DatasetMapping:
    """The mapping with a table of values, if all answers are numbers of options: from 0 if there is a 0.

    Often -1 says that a row has no answer. Other numbers are the texts of options, and so is each if there are many.
    """
    column = columns.get(mapping.answer or "")
    values = sorted({*column.values} - {"-1"}) if task.lists_options and column else []
    first = 0 if "0" in values else 1
    if not values or not {str(number) for number in range(first, first + _MAX_ITEMS)} >= set(values):
        return mapping
    table = {str(number): label for number, label in enumerate(task.answer.labels, first)}
    return mapping.model_copy(update={"values": {value: table[value] for value in values if value in table}})


def mapping_id(mapping: DatasetMapping) -> str:
    """Fingerprint of a mapping: 12 hexadecimal digits."""
    return hashlib.sha256(mapping.model_dump_json().encode()).hexdigest()[:12]


def unknown_columns(mapping: DatasetMapping, columns: Iterable[str], task: Task) -> list[str]:
    """The columns in the mapping's templates that no row has."""
    names = set(columns)
    templates = [*mapping.fields.values(), *(() if task.answer.labels else mapping.values.values())]
    templates += [mapping.answer] * (mapping.answer is not None)
    references = dict.fromkeys(column for template in templates for column in template_columns(template))
    return [name for name in references if name not in names and split_reference(name)[0] not in names]


def map_row(task: Task, mapping: DatasetMapping, cells: Mapping[str, str]) -> Example | Rejection:
    """The example in a row, not yet verified; or why there is none. Its answer is empty if the mapping has none.

    A number is read from the answer's text (``#### 72``), a label is spelled as the task spells it, the text of an
    option becomes its letter, and other texts are cleaned as passages are.
    """
    try:
        fields = {name: fill_cells(mapping.fields[name], cells) for name in task.query_fields}
        # The passage is cleaned when it is cut.
        fields |= {name: _clean(task, text) for name, text in fields.items() if name != task.passage}
        if mapping.answer is None:
            return Example(fields, "")
        answer = fill_cells(mapping.answer, cells)
        if mapping.values:
            choice = mapping.values.get(answer)
            if choice is None:
                return Rejection("unmapped_value", answer[:_MAX_VALUE_CHARACTERS])
            answer = choice if task.answer.labels else fill_cells(choice, cells)
    except LookupError as error:
        return Rejection("missing_column", str(error.args[0]))
    if _has_several(task, answer):
        return Rejection("several_answers", answer[:_MAX_VALUE_CHARACTERS])
    if task.lists_options and not as_label(answer, task.answer.labels):
        answer = find_option(_clean(task, answer), task.render_query(fields)) or answer
    return Example(fields, _spell(task, answer))


def _clean(task: Task, text: str) -> str:
    # Entities and escapes are a part of code.
    return text if task.answer.type == "code" else clean_spelling(text)


def _has_several(task: Task, answer: str) -> bool:
    """Whether an answer is a list, in a column that has one answer in other rows: which one is meant is not known."""
    if task.answer.labels or task.answer.type == "code":
        return False
    items = list_items(answer)
    is_spelled = answer.startswith("[") and answer.endswith("]")
    is_numbers = task.answer.type == "number" and all(NUMBER.fullmatch(item.strip()) for item in items)
    return len(items) > 1 and (is_spelled or is_numbers)


def _spell(task: Task, answer: str) -> str:
    if task.answer.labels:
        return as_label(answer, task.answer.labels) or answer
    return spell_number(task, answer) if task.answer.type == "number" else _clean(task, answer)


def spell_number(task: Task, answer: str) -> str:
    """The number in an answer that people gave; a fraction without an end, such as 1/3, stays as it is."""
    number = extract(answer, task.answer)
    return number if len(number.partition(".")[2]) <= _MAX_DECIMALS else answer


def reference_answers(task: Task, mapping: DatasetMapping, cells: Mapping[str, str], answer: str) -> list[str]:
    """The mapped answer of a row, and the other items, unless empty, if it is the first item of a list."""
    column, part = split_reference(mapping.answer or "")
    if part != "1" or mapping.values or mapping.answer in cells:
        return [answer]
    return [answer, *(_spell(task, item) for item in list_items(cells[column])[1:] if item)]


def fill_cells(template: str, cells: Mapping[str, str]) -> str:
    """A mapping's template with a row's cells; raises LookupError with the reference that the row does not have."""
    return fill_template(template, lambda reference: _read_cell(cells, reference))


def _read_cell(cells: Mapping[str, str], reference: str) -> str:
    """The cell, the item or the options; raises LookupError with the reference if the row has none."""
    column, part = (reference, "") if reference in cells else split_reference(reference)
    if column not in cells:
        raise LookupError(reference)
    if not part:
        return cells[column]
    if part == "options":
        if items := option_items(cells[column]):
            return lettered_options(items)
    elif len(items := list_items(cells[column])) >= int(part):
        return items[int(part) - 1]
    raise LookupError(reference)


@dataclass(frozen=True)
class Audit:
    """How often the teacher's answers agree with mapped ones; ``low`` and ``high`` are Wilson's 95 % interval.

    ``baseline`` is the agreement that the most frequent answer alone would reach.
    """

    audited: int
    agreement: float
    low: float
    high: float
    baseline: float

    @classmethod
    def of(cls, agreed: int, audited: int, baseline: float) -> "Audit":
        """The audit in which so many of the answers agreed."""
        from scipy.stats import binomtest

        interval = binomtest(agreed, audited).proportion_ci(0.95, method="wilson")
        return cls(audited, agreed / audited, float(interval.low), float(interval.high), baseline)

    def reject(self, threshold: float) -> Rejection | None:
        """Reject the mapping unless the agreement is clearly above the threshold and above the baseline."""
        limit = max(threshold, self.baseline)
        if self.low > limit:
            return None
        detail = f"{self.agreement:.2f} [{self.low:.2f}, {self.high:.2f}] is not clearly above {limit:.2f}"
        return Rejection("low_agreement", detail)

    def could_pass(self, threshold: float, answers: int) -> bool:
        """Whether so many answers would pass, if they agreed at a rate one standard error above this agreement."""
        error = math.sqrt(self.agreement * (1 - self.agreement) / self.audited)
        agreed = round(min(1.0, self.agreement + error) * answers)
        return Audit.of(agreed, answers, self.baseline).reject(threshold) is None


def audit(
    task: Task,
    queries: Sequence[Mapping[str, str]],
    references: Sequence[Sequence[str]],
    answers: Sequence[str],
) -> Audit:
    """Compare the teacher's answers to some queries, at least one, with the ``references`` of each, the mapped first.

    An answer agrees if it is one of the references. Another text, or other code, agrees if it shares more words with
    one of them than with any that other rows alone have.
    """
    is_text = task.answer.type in ("text", "code")
    words = [{_text_key(gold): tokens(gold) for gold in golds} for golds in references]
    count = len(references)

    def is_reference(position: int, answer: str) -> bool:
        if is_text:
            return _text_key(answer) in words[position]
        return any(agrees(task, queries[position], gold, answer) for gold in references[position])

    def is_nearest(position: int, answer: str) -> bool:
        others = (gold for golds in words for key, gold in golds.items() if key not in words[position])
        return _nearest(tokens(answer), words[position].values()) > _nearest(tokens(answer), others)

    def agree(position: int, answer: str) -> bool:
        return is_reference(position, answer) or (is_text and is_nearest(position, answer))

    agreed = sum(map(agree, range(count), answers))
    frequent = Counter(gold for golds in references for gold in dict.fromkeys(golds)).most_common(_MAX_FREQUENT)
    baseline = max(sum(is_reference(position, gold) for position in range(count)) for gold, _ in frequent)
    return Audit.of(agreed, count, baseline / count)


def _text_key(text: str) -> str:
    """Equal for texts that are the same but for case, spacing and punctuation; texts of signs alone keep the signs."""
    return comparable(text).strip() or "".join(text.split())


def _nearest(words: Sequence[str], references: Iterable[Sequence[str]]) -> float:
    return max((word_f1(words, reference) for reference in references), default=0.0)


def has_label_names(task: Task) -> bool:
    """Whether the labels are names that a table of values can give: a letter means the option that it stands for."""
    return bool(task.answer.labels) and not task.lists_options


def correct_values(task: Task, mapping: DatasetMapping, given: Iterable[tuple[str, str]]) -> DatasetMapping | None:
    """The mapping with the label that the teacher gave most often to the rows of each value.

    None if that changes nothing, or leaves only one label, or fewer labels than before: if the teacher gives two values
    one label, the fields are probably wrong. ``given`` has the value and the teacher's answer of some rows; answers
    that are no label of the task do not count. A teacher that labels rows rightly can still write a wrong table for
    values without names, such as 0, 1 and 2.
    """
    labels: dict[str, Counter[str]] = {}
    for value, answer in given:
        if label := as_label(answer, task.answer.labels):
            labels.setdefault(value, Counter())[label] += 1
    values = mapping.values | {value: counts.most_common(1)[0][0] for value, counts in labels.items()}
    if values == mapping.values or len(set(values.values())) < max(2, len(set(mapping.values.values()))):
        return None
    return mapping.model_copy(update={"values": values})


def interleave(items: Iterable[T], *keys: Any) -> list[T]:
    """The items so that the values of the first key take turns, and among those of one value those of the next key."""
    items = list(items)
    if not keys:
        return items
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(keys[0](item), []).append(item)
    parts = [interleave(group, *keys[1:]) for group in groups.values()]
    missing = object()
    return [item for turn in zip_longest(*parts, fillvalue=missing) for item in turn if item is not missing]  # type: ignore[misc]
