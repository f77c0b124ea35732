"""The options of a query: a teacher writes them as a list, and code puts them into the text, with letters.

A weak teacher that has to write the whole text copies the question of a row and leaves the row's options out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rebase.records import Task
from rebase.text import lettered_options, list_items, listed_options, option_items, split_options, without_letters

#: The name of the list.
OPTIONS = "options"
#: Those of the options that most datasets have.
_LETTERS = "ABCDEFGH"
_LETTER = re.compile(r"\([A-Z]\)")


def writes_options(task: Task) -> bool:
    """Whether a teacher writes the options of this task's queries as a list."""
    return _Place.of(task) is not None


def answers_to_write(task: Task) -> list[str]:
    """The labels, and those that further options would have: a row whose answer is one of these forces no other."""
    labels = list(task.answer.labels)
    further = [labels[0].replace(labels[0].strip("()"), letter) for letter in _LETTERS]
    return [*dict.fromkeys([*labels, *further])]


def names_to_write(task: Task, names: Iterable[str]) -> list[str]:
    """The names of the fields as a teacher writes them."""
    place = _Place.of(task)
    if not place:
        return list(names)
    written = [place.field, OPTIONS] if place.has_text else [OPTIONS]
    return [part for name in names for part in (written if name == place.field else [name])]


def to_lists(task: Task, fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of an example of the task as a teacher writes them: with a list of options, if there are options."""
    place = _Place.of(task)
    if not place or place.field not in fields:
        return dict(fields)
    text, _, options = split_options(fields[place.field])
    lists = {place.field: text, OPTIONS: options}
    return {name: (lists if name in lists else fields)[name] for name in names_to_write(task, fields)}


def from_lists(task: Task, written: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a teacher wrote, with the options in their text.

    Options without a label are left out: an answer that is one of them is no label, and is rejected as such.

    Raises ValueError if a field is no text, if the options are no list of different texts, if their letters are wrong,
    or if a text lists options as well.
    """
    place = _Place.of(task)
    if not place or OPTIONS not in written:
        return dict(written)
    options = written[OPTIONS]
    texts = {name: written[name] for name in written if name not in (OPTIONS, "answer")}
    if not isinstance(options, list) or not all(isinstance(one, str) for one in (*texts.values(), *options)):
        raise ValueError(f"expected texts and a list of texts, not {options!r:.100}")
    if len(options) == 1:
        options = split_options(*options)[2] or list_items(*options)
    # A line break would end an option.
    options = without_letters([" ".join(option.split()) for option in options])
    if "" in options or len(set(options)) < len(options) or any(map(_LETTER.match, options)):
        raise ValueError(f"expected different options, without letters or with those of their places: {options!r:.200}")
    # Some teachers write the options, or the line before them, into a text as well: what follows is left out.
    texts = {name: split_options(f"{text}\n(A) ")[0].strip() for name, text in texts.items()}
    if not all(texts.values()) or any(len(listed_options(text)) > 1 for text in texts.values()):
        raise ValueError(f"expected texts without options, not {texts!r:.200}")
    fields = {name: texts.get(name, value) for name, value in written.items() if name != OPTIONS}
    text = texts[place.field] if place.has_text else ""
    return fields | {place.field: f"{text}{place.announcement}{lettered_options(options[: len(task.answer.labels)])}"}


def fields_to_map(task: Task) -> list[str]:
    """The fields of a mapping as a teacher writes it: in most datasets a text and its options are two columns."""
    place = _Place.of(task)
    return names_to_write(task, task.query_fields) if place and place.has_text else list(task.query_fields)


def join_templates(task: Task, templates: Mapping[str, str]) -> dict[str, str]:
    """The templates of ``fields_to_map`` as those of the task's fields. Raises KeyError if one is missing."""
    place = _Place.of(task)
    if not place or not place.has_text:
        return dict(templates)
    text, options = (
        template if "{" in template else f"{{{template}}}"
        for template in (templates[place.field], templates[OPTIONS])
    )  # fmt: skip
    fields = {name: template for name, template in templates.items() if name != OPTIONS}
    return fields | {place.field: f"{text}{place.announcement}{options}"}


def show_lists(cells: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a row, those with options as lists without letters, as a teacher is to write them."""
    shown: dict[str, Any] = dict(cells)
    for name, text in cells.items():
        items = option_items(text)
        options = without_letters(items)
        if len(options) > 1 and (options != items or text != "; ".join(items)):
            shown[name] = options
    return shown


class _Place(NamedTuple):
    """Where the queries of a task list their options: at the end of a field, after an ``announcement``."""

    field: str
    announcement: str
    has_text: bool  # before the announcement

    @classmethod
    def of(cls, task: Task) -> "_Place | None":
        """None if the labels are no letters of options, or the task's examples list these in several ways."""
        for name in task.query_fields if task.lists_options else ():
            parts = [split_options(example[name]) for example in task.examples]
            texts = [f"{text}{announcement}{lettered_options(options)}" for text, announcement, options in parts]
            if not all(options for *_, options in parts) or texts != [example[name] for example in task.examples]:
                continue
            has_text, announcements = any(text for text, *_ in parts), {announcement for _, announcement, _ in parts}
            others = {*task.query_fields} - (set() if has_text else {name})
            if len(announcements) == 1 and OPTIONS not in others:
                return cls(name, announcements.pop(), has_text)
        return None
