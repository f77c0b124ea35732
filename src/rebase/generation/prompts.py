"""What the teacher is asked: requests rendered from a task, a source row and a prompt file; and what it said.

A row is data, never an instruction: it stands as JSON between ``<data>`` lines, with every ``<`` escaped so that it
cannot close them, and the response's shape is fixed by a JSON schema whatever the row says.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from rebase.errors import RebaseError
from rebase.generation.cues import Cue, choose_cue, sentences
from rebase.generation.verification import tidy_answer
from rebase.parameters import CotParameters, SamplingParameters, TransformParameters
from rebase.records import Strict, Task, explain_validation
from rebase.teacher.protocol import Message, Request, Sampling
from rebase.text import approximate_tokens, cut_at_tokens

_TYPE_IN_WORDS = {
    "span": "a few words copied from the passage",
    "label": "one of the labels",
    "number": "a number",
    "text": "a text",
    "code": "code",
}
_FENCE = re.compile(r"<(?=\s*/?\s*data\b)", re.IGNORECASE)

#: So many columns that were cut are named.
_NAMED = 20

#: A cell with fewer words is a name or a label, no text to be answered.
MIN_OWN_WORDS = 5


class Prompt(Strict):
    """A prompt file, or a section of one: the system message and the user's turn, templates with fields in braces.

    Each kind says which fields its templates know, and which ones the user's turn must have.
    """

    system_fields: ClassVar[tuple[str, ...]] = ("instruction",)
    user_fields: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]]

    version: int = Field(ge=1)
    system: str = Field(min_length=1)
    user: str = Field(min_length=1)

    @field_validator("system", "user")
    @classmethod
    def _can_be_filled(cls, template: str, info: ValidationInfo) -> str:
        known = cls.system_fields if info.field_name == "system" else cls.user_fields
        advice = f"known fields are {_in_braces(known)}; a brace as such is written twice"
        try:
            found = _fields_in(template)
        except ValueError as error:
            raise ValueError(f"{error}; {advice}") from None
        if unknown := [name for name in found if name not in known]:
            raise ValueError(f"unknown: {_in_braces(unknown)}; {advice}")
        if info.field_name == "user" and (missing := [name for name in cls.needed if name not in found]):
            raise ValueError(f"missing: {_in_braces(missing)}, so the teacher would not see it; {advice}")
        return template

    @classmethod
    def parse(cls, data: Any, where: str) -> Self:
        """Validate what the file says; a RebaseError names the file and each wrong field."""
        if not isinstance(data, Mapping):
            said = "is empty" if data is None else f"holds a {type(data).__name__}"
            known = ", ".join(cls.model_fields)
            raise RebaseError(f"{where}: not a valid prompt.\n  the file {said}; it must have the entries {known}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RebaseError(f"{where}: not a valid prompt.\n{explain_validation(error)}") from None


class AskPrompt(Prompt):
    """Asks for the question to a sentence with a gap (see ``Cue``)."""

    user_fields = ("sentence", "answer")
    needed = ("sentence",)


class SolvePrompt(Prompt):
    """Asks for the answer to the row's own text (see ``OwnText``)."""

    user_fields = ("query", "data", "cut")
    needed = ("query", "data")


class CheckPrompt(Prompt):
    """Asks for the answer to a query that the teacher wrote before, without the answer that it gave."""

    user_fields = ("query",)
    needed = ("query",)


class DensifyPrompt(Prompt):
    """Asks for the last answer once more, with more in it (chain of density)."""

    user_fields = ("round", "rounds")
    needed = ()


class DistilPrompt(CheckPrompt):
    """The prompt file for labels: as it stands for the style ``direct``, with a section for each of the others."""

    cot: CheckPrompt
    densify: DensifyPrompt


class TransformPrompt(Prompt):
    """The transform's prompt file.

    ``ask`` and ``solve`` are for a teacher that is led (parameter ``guided``): in tasks about a passage, and in others.
    ``check`` is for the round trip (parameter ``consistency_filter``).
    """

    system_fields = ("instruction", "fields", "answer")
    user_fields = ("data", "cut", *system_fields)
    needed = ("data",)

    ask: AskPrompt
    solve: SolvePrompt
    check: CheckPrompt


class SynthesizePrompt(Prompt):
    """The prompt file for plain synthesis: no row is shown, a number tells the requests apart."""

    system_fields = ("instruction", "fields", "answer")
    user_fields = ("number", *system_fields)
    needed = ("number",)


class CotPrompt(Prompt):
    """The prompt file for reasoning."""

    user_fields = ("query", "data", "cut", "instruction")
    needed = ("query", "data")


@dataclass(frozen=True)
class OwnText:
    """What a teacher is led to where there is no passage: to answer the row's own text, in the cell ``column``."""

    column: str
    text: str


#: What a weak teacher is led to: a span to ask about, or the row's own text to answer.
Guidance = Cue | OwnText


@dataclass(frozen=True)
class Example:
    """What a response says: the query's fields and the answer."""

    fields: dict[str, str]
    answer: str


def prompt_hash(prompt: Prompt, task: Task) -> str:
    """Which prompt made an example: a fingerprint of the templates and of all that the task puts into them."""
    spoken = [prompt.model_dump(), task.model_dump(include={"instruction", "query", "passage", "examples", "answer"})]
    return hashlib.sha256(json.dumps(spoken, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def can_be_guided(task: Task) -> bool:
    """If a teacher can be led in the task: it is to write one field, which for a passage asks for a span."""
    return len(task.written_fields) == 1 and (task.passage is None or task.answer.type == "span")


def find_cue(task: Task, row: Mapping[str, Any], columns: Mapping[str, str]) -> Guidance | None:
    """What to lead the teacher to in this row; None where the row offers nothing.

    ``columns`` names each dataset's column of own texts (``own_text_columns``).
    """
    if task.passage:
        return choose_cue(row["passage"], seed=str(row["row_id"]))
    column = columns.get(row["dataset"], "")
    text = str(json.loads(row["row"]).get(column, "")).strip()
    return OwnText(column, text) if len(text.split()) >= MIN_OWN_WORDS else None


def own_text_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """For each dataset the column that holds what the task's queries are like.

    That is, of the columns for which its rows were retrieved (``query_column``), the one with the longest texts: short
    cells are names and labels, and a problem is longer than its answer.
    """
    rows = list(rows)
    columns: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if isinstance(row["query_column"], str):
            columns[row["dataset"]].add(row["query_column"])
    words: Counter[tuple[str, str]] = Counter()
    for row in rows:
        cells = json.loads(row["row"])
        for column in columns.get(row["dataset"], ()):
            words[row["dataset"], column] += len(str(cells.get(column, "")).split())
    return {dataset: max(sorted(names), key=lambda name: words[dataset, name]) for dataset, names in columns.items()}


def transform_request(
    task: Task,
    row: Mapping[str, Any],
    prompt: TransformPrompt,
    parameters: TransformParameters,
    cue: Guidance | None = None,
) -> Request:
    """Ask for one new example made from the row, or for ``null`` if the row is unfit.

    ``row`` is a row of the ``retrieved`` table. The task's examples are turns that were answered already. With a
    ``lead`` only what it leaves open is asked for: the question for a span, or the answer to the row's own text.
    """
    if isinstance(cue, Cue):
        return ask_request(task, cue, prompt.ask, parameters.sampling)
    if isinstance(cue, OwnText):
        return _solve_request(task, row, cue, prompt.solve, parameters)
    data, cut = _source(task, row, parameters, cue)
    asked = _wording(task)
    turns = []
    for example in task.examples:
        shown = {name: example[name] for name in ([task.passage] if task.passage else [*task.query_fields, "answer"])}
        written = {name: example[name] for name in task.written_fields} | {"answer": _typed(task, example["answer"])}
        turns += [
            Message("user", prompt.user.format(data=fence(shown), cut="", **asked)),
            Message("assistant", _dump({"example": written})),
        ]
    turns.append(Message("user", prompt.user.format(data=fence(data), cut=_say_cut(cut), **asked)))
    return Request(prompt.system.format(**asked), tuple(turns), example_schema(task), _sampling(parameters.sampling))


def read_example(task: Task, text: str, passage: str | None, cue: Guidance | None = None) -> Example | None:
    """The example that a response gives; None where it says that the row is unfit.

    Raises ValueError where the response is not what its schema asked for.
    """
    response = json.loads(text)
    written = response["example"] if isinstance(response, dict) and set(response) == {"example"} else response
    if written is None:
        return None
    expected = _asked_for(task, cue)
    if not isinstance(written, dict) or set(written) != expected:
        raise ValueError(f"a response with the fields {sorted(expected)} was asked for")
    if isinstance(cue, OwnText):
        return Example({task.query_fields[0]: cue.text}, _plain(written["answer"]).strip())
    fields = {name: str(written[name]).strip() for name in task.written_fields}
    if task.passage:
        fields[task.passage] = passage or ""
    answer = cue.answer if cue else _plain(written["answer"]).strip()
    return Example({name: fields[name] for name in task.query_fields}, answer)


def without_passage(task: Task) -> Task:
    """The task as it is for a teacher that writes the passage as well, for there is no row to take it from."""
    return task.model_copy(update={"passage": None})


def synthesize_request(
    task: Task, number: int, prompt: SynthesizePrompt, sampling: SamplingParameters, *, guided: bool = False
) -> Request:
    """Ask for new example ``number`` (1, 2, ...), by the instruction and the task's examples alone.

    The examples are turns that were answered already, and are counted before it. A teacher that is ``guided`` writes the
    passage alone: it is asked about it afterward (``ask_request``).
    """
    names = [task.passage] if guided and task.passage else [*task.query_fields, "answer"]
    asked = _wording(without_passage(task)) | {"fields": ", ".join(names)}
    turns = []
    for place, example in enumerate(task.examples, 1):
        fields = {name: _typed(task, example[name]) if name == "answer" else example[name] for name in names}
        turns += [Message("user", prompt.user.format(number=place, **asked)), Message("assistant", _dump(fields))]
    turns.append(Message("user", prompt.user.format(number=len(task.examples) + number, **asked)))
    schema = _object({name: _answer_schema(task) if name == "answer" else {"type": "string"} for name in names})
    return Request(prompt.system.format(**asked), tuple(turns), schema, _sampling(sampling))


def read_synthesized(task: Task, text: str, *, guided: bool = False) -> Example:
    """The example that a response gives; of a ``guided`` teacher the passage, and no answer.

    Raises ValueError where the response is not what its schema asked for.
    """
    names = [task.passage] if guided and task.passage else [*task.query_fields, "answer"]
    response = {name: _plain(value).strip() for name, value in _read(text, set(names)).items()}
    answer = response.pop("answer", "")
    return Example(response, answer)


def cot_request(
    task: Task,
    example: Mapping[str, Any],
    row: Mapping[str, Any] | None,
    prompt: CotPrompt,
    parameters: CotParameters,
    sample: int,
) -> Request:
    """Ask for the reasoning that leads to the answer of ``example``, a row of the ``examples`` table.

    ``row`` is its source row, shown as data because it often holds the working. ``sample`` tells repeats apart.
    """
    asked = {"instruction": task.instruction}
    turns = []
    for shown in task.examples:
        data = {name: shown[name] for name in ("rationale", "answer")}
        said = {"rationale": shown["rationale"], "answer": _typed(task, shown["answer"])}
        turns += [
            Message("user", prompt.user.format(data=fence(data), cut="", query=_query(task, shown), **asked)),
            Message("assistant", _dump(said)),
        ]
    asked_already = set(json.loads(example["fields"]).values())
    cells = {name: value for name, value in _cells(row).items() if value not in asked_already} if row else {}
    data, cut = trim_row(cells, parameters.max_row_tokens)
    query = _query(task, json.loads(example["fields"]))
    turns.append(Message("user", prompt.user.format(data=fence(data), cut=_say_cut(cut), query=query, **asked)))
    schema = _object({"rationale": {"type": "string"}, "answer": _answer_schema(task)})
    return Request(prompt.system.format(**asked), tuple(turns), schema, _sampling(parameters.sampling), sample)


def read_rationale(text: str) -> tuple[str, str]:
    """The rationale and the answer that a response gives; ValueError where it is not what its schema asked for."""
    response = _read(text, {"rationale", "answer"})
    return str(response["rationale"]).strip(), _plain(response["answer"]).strip()


def check_request(
    task: Task,
    fields: Mapping[str, str],
    prompt: CheckPrompt,
    sampling: SamplingParameters,
    *,
    reasoned: bool = False,
    sample: int = 0,
) -> Request:
    """Ask for the answer to a query, without a word on what it may be: a new query, or an input that has no answer.

    ``fields`` are the query's; the task's examples are turns that were answered already. ``reasoned`` asks for the
    rationale first; ``sample`` tells repeats apart.
    """
    rationale = {"rationale": {"type": "string"}} if reasoned else {}
    turns = []
    for example in task.examples:
        said = {name: example[name] for name in rationale} | {"answer": _typed(task, example["answer"])}
        turns += [Message("user", prompt.user.format(query=_query(task, example))), Message("assistant", _dump(said))]
    turns.append(Message("user", prompt.user.format(query=_query(task, fields))))
    schema = _object(rationale | {"answer": _answer_schema(task)})
    system = prompt.system.format(instruction=task.instruction)
    return Request(system, tuple(turns), schema, _sampling(sampling), sample)


def densify_request(
    task: Task, asked: Request, draft: tuple[str, str], number: int, rounds: int, prompt: DensifyPrompt
) -> Request:
    """Ask for a denser answer, after what was ``asked`` and the ``draft`` that came: what was missing, and the answer.

    Adams et al., "From Sparse to Dense" (2023); a turn for each round, so that a round can be read by itself.
    """
    missing, answer = draft
    said = ({"missing": missing} if missing else {}) | {"answer": answer}
    turns = (Message("assistant", _dump(said)), Message("user", prompt.user.format(round=number, rounds=rounds)))
    schema = _object({"missing": {"type": "string"}, "answer": _answer_schema(task)})
    system = prompt.system.format(instruction=task.instruction)
    return Request(system, asked.messages + turns, schema, asked.sampling)


def read_denser(task: Task, fields: Mapping[str, str], text: str) -> tuple[str, str]:
    """What was missing, and the answer with it, tidied; ValueError where a response is not what its schema asked for."""
    response = _read(text, {"missing", "answer"})
    return str(response["missing"]).strip(), tidy_answer(task, fields, _plain(response["answer"]))


def read_check(task: Task, fields: Mapping[str, str], text: str) -> str:
    """The answer that a response gives, tidied; ValueError where it is not what its schema asked for."""
    return tidy_answer(task, fields, _plain(_read(text, {"answer"})["answer"]))


def example_schema(task: Task) -> dict[str, Any]:
    """The response's JSON schema: one example with the fields that the teacher writes, or null for an unfit row.

    Only what every provider's structured output knows: objects, strings, numbers, enums and ``anyOf``.
    """
    written: dict[str, Any] = {name: {"type": "string"} for name in task.written_fields}
    example = _object(written | {"answer": _answer_schema(task)})
    return _object({"example": {"anyOf": [example, {"type": "null"}]}})


def cut_columns(
    task: Task, row: Mapping[str, Any], parameters: TransformParameters, cue: Guidance | None = None
) -> list[str]:
    """The columns of the row that ``transform_request`` leaves out or shows in part; a passage is shown whole."""
    return _source(task, row, parameters, cue)[1]


def trim_row(cells: Mapping[str, str], max_tokens: int) -> tuple[dict[str, str], list[str]]:
    """As many whole columns, in the order given, as fit ``max_tokens``; and the names of those cut or left out.

    Tokens are counted by ``approximate_tokens``, the names' as well. Only where not even the first column fits, its
    beginning is kept.
    """
    kept: dict[str, str] = {}
    cut: list[str] = []
    room = max_tokens
    for name, value in cells.items():
        size = approximate_tokens(name) + approximate_tokens(value)
        if size <= room:
            kept[name] = value
            room -= size
        else:
            cut.append(name)
    first = next(iter(cells), None)
    if first is not None and not kept:
        kept[first] = cut_at_tokens(cells[first], max(0, max_tokens - approximate_tokens(first)))
    return kept, cut


def fence(data: Mapping[str, Any]) -> str:
    """The data as one line of JSON between ``<data>`` and ``</data>``, which nothing in it can close."""
    return f"<data>\n{_inert(dict(data))}\n</data>"


def ask_request(task: Task, cue: Cue, prompt: AskPrompt, sampling: SamplingParameters) -> Request:
    """Ask for the question to a sentence with a gap and the span that fills it.

    Each stands on a line of its own, which it cannot leave.
    """
    (field,) = task.written_fields
    turns = []
    for example in task.examples:
        answer = example["answer"]
        shown = _cloze(prompt, _sentence_with(example[task.passage or ""], answer), answer)
        turns += [shown, Message("assistant", _dump({field: example[field]}))]
    turns.append(_cloze(prompt, cue.sentence, cue.answer))
    openings = "|".join(cue.openings)
    # No quotes, backslashes or brackets: a weak teacher ends a question with them instead of a question mark. The
    # length is left to `max_tokens`: a bounded repetition takes a grammar compiler a second.
    schema = _object({field: {"type": "string", "pattern": rf"^({openings}) [^?\"\\\[\]\n]+\?$"}})
    return Request(prompt.system.format(instruction=task.instruction), tuple(turns), schema, _sampling(sampling))


def _solve_request(
    task: Task, row: Mapping[str, Any], cue: OwnText, prompt: SolvePrompt, parameters: TransformParameters
) -> Request:
    """The row's own text as the query, and the rest of the row as data: it often tells the answer."""
    (field,) = task.query_fields
    turns = []
    for example in task.examples:
        told = {name: text for name, text in example.items() if name in ("rationale", "answer")}
        shown = prompt.user.format(data=fence(told), cut="", query=_query(task, example))
        turns += [Message("user", shown), Message("assistant", _dump({"answer": _typed(task, example["answer"])}))]
    data, cut = _source(task, row, parameters, cue)
    shown = prompt.user.format(data=fence(data), cut=_say_cut(cut), query=_query(task, {field: cue.text}))
    turns.append(Message("user", shown))
    schema = _object({"answer": _answer_schema(task)})
    system = prompt.system.format(instruction=task.instruction)
    return Request(system, tuple(turns), schema, _sampling(parameters.sampling))


def _asked_for(task: Task, cue: Guidance | None) -> set[str]:
    """The fields that a response must have."""
    if isinstance(cue, OwnText):
        return {"answer"}
    return set(task.written_fields) | (set() if cue else {"answer"})


def _cloze(prompt: AskPrompt, sentence: str, answer: str) -> Message:
    return Message("user", prompt.user.format(sentence=sentence.replace(answer, "____", 1), answer=answer))


def _sentence_with(passage: str, answer: str) -> str:
    return next((sentence for sentence in sentences(passage) if answer in sentence), " ".join(passage.split()))


def _source(
    task: Task, row: Mapping[str, Any], parameters: TransformParameters, cue: Guidance | None
) -> tuple[dict[str, str], list[str]]:
    """What the teacher sees of the row, and which columns not whole.

    For a reading task the passage alone: a question must do without the rest. Beside the row's own text the rest.
    """
    if task.passage:
        return {task.passage: row["passage"]}, []
    own = cue.column if isinstance(cue, OwnText) else None
    return trim_row({name: text for name, text in _cells(row).items() if name != own}, parameters.max_row_tokens)


def _query(task: Task, fields: Mapping[str, str]) -> str:
    """The query as the teacher sees it beside a fence, or without one: nothing in it looks like a fence."""
    return _FENCE.sub("\\\\u003c", task.render_query(fields))


def _read(text: str, expected: set[str]) -> dict[str, Any]:
    response = json.loads(text)
    if not isinstance(response, dict) or set(response) != expected:
        raise ValueError(f"a response with the fields {sorted(expected)} was asked for")
    return response


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The row's cells, those first for which it was retrieved: they are kept where not all fit."""
    cells = {name: str(value) for name, value in json.loads(row["row"]).items()}
    first = [name for name in (row.get("query_column"), row.get("answer_column")) if name in cells]
    return {name: cells[name] for name in dict.fromkeys([*first, *cells])}


def _say_cut(cut: list[str]) -> str:
    """Which columns are not shown whole; the first of them only, for there may be thousands."""
    more = f" and {len(cut) - _NAMED} more" if len(cut) > _NAMED else ""
    return f"\n(Too long to show whole: {_inert(cut[:_NAMED])}{more}.)" if cut else ""


def _wording(task: Task) -> dict[str, str]:
    fields = ", ".join([*task.written_fields, "answer"])
    answer = _TYPE_IN_WORDS[task.answer.type]
    if task.answer.labels:
        answer += f" {', '.join(task.answer.labels)}"
    return {"instruction": task.instruction, "fields": fields, "answer": answer}


def _answer_schema(task: Task) -> dict[str, Any]:
    if task.answer.type == "label":
        return {"type": "string", "enum": list(task.answer.labels)}
    return {"type": "number" if task.answer.type == "number" else "string"}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _typed(task: Task, answer: str) -> Any:
    """The answer as the schema has it: a number where the task's answers are numbers."""
    if task.answer.type != "number":
        return answer
    return float(answer) if "." in answer else int(answer)


def _plain(answer: Any) -> str:
    """The answer as text; a whole number without a decimal point."""
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    return str(answer)


def _sampling(sampling: SamplingParameters) -> Sampling:
    return Sampling(sampling.temperature, sampling.max_tokens)


def _inert(value: Any) -> str:
    """The value as one line of JSON without ``<``."""
    return _dump(value).replace("<", "\\u003c")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fields_in(template: str) -> list[str]:
    """What stands in braces in the template: names, with any conversion or format; ValueError for a stray brace."""
    parts = [(name, how, spec) for _, name, spec, how in Formatter().parse(template) if name is not None]
    return [f"{name}{'!' if how else ''}{how or ''}{':' if spec else ''}{spec}" for name, how, spec in parts]


def _in_braces(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
