"""Read responses. Each function raises ValueError when a response does not match the schema of its request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rebase.generation.cues import Cue, Guidance, SourceText
from rebase.generation.prompts.options import from_lists, names_to_write
from rebase.generation.verification import tidy_answer
from rebase.records import Task
from rebase.teacher.protocol import parse_response


@dataclass(frozen=True)
class Example:
    """An example in a response: the fields of the query, and the answer."""

    fields: dict[str, str]
    answer: str


def read_example(task: Task, text: str, passage: str | None, cue: Guidance | None = None) -> Example | None:
    """The example in a response to ``transform_request``; None if the response rejects the row as unsuitable."""
    response = parse_response(text)
    written = response["example"] if isinstance(response, dict) and set(response) == {"example"} else response
    if written is None:
        return None
    written_fields = [] if isinstance(cue, SourceText) else task.written_fields
    fields = _as_fields(task, written, written_fields if isinstance(cue, Cue) else [*written_fields, "answer"])
    if isinstance(cue, SourceText):
        return Example({task.query_fields[0]: cue.text}, fields["answer"])
    if task.passage:
        fields[task.passage] = passage or ""
    answer = cue.answer if cue else fields["answer"]
    return Example({name: fields[name] for name in task.query_fields}, answer)


def read_synthesized(task: Task, text: str, *, guided: bool = False) -> Example:
    """The example in a response to ``synthesize_request``; from a ``guided`` teacher the passage, without an answer."""
    names = [task.passage] if guided and task.passage else [*task.query_fields, "answer"]
    fields = _as_fields(task, parse_response(text), names)
    return Example({name: fields[name] for name in names if name != "answer"}, fields.get("answer", ""))


def read_rationale(text: str) -> tuple[str, str]:
    """The rationale and the answer in a response."""
    response = _read(text, ("rationale", "answer"))
    return _as_text(response["rationale"]), _as_text(response["answer"])


def read_check(task: Task, fields: Mapping[str, str], text: str) -> str:
    """The answer in a response, tidied."""
    return tidy_answer(task, fields, _plain(_read(text, ("answer",))["answer"]))


def read_denser(task: Task, fields: Mapping[str, str], text: str) -> tuple[str, str]:
    """What the last answer lacked, and the denser answer, tidied."""
    response = _read(text, ("missing", "answer"))
    return _as_text(response["missing"]), tidy_answer(task, fields, _plain(response["answer"]))


def check_fields(response: Any, names: Iterable[str]) -> None:
    """Raise ValueError unless the response is an object with exactly these fields."""
    if not isinstance(response, dict) or set(response) != set(names):
        raise ValueError(f"expected a response with the fields {sorted(names)}")


def _as_fields(task: Task, written: Any, names: Iterable[str]) -> dict[str, str]:
    """The fields of these names in what a teacher wrote."""
    check_fields(written, names_to_write(task, names))
    return {name: _as_text(value) for name, value in from_lists(task, written).items()}


def _read(text: str, names: Iterable[str]) -> dict[str, Any]:
    response = parse_response(text)
    check_fields(response, names)
    return response


def _plain(value: Any) -> str:
    """The value as text, a whole number without a decimal point; raises ValueError unless it is a text or a number."""
    if not isinstance(value, str | int | float):
        raise ValueError(f"expected a text or a number, not {value!r:.60}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _as_text(value: Any) -> str:
    return _plain(value).strip()
