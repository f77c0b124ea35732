"""Render requests to the teacher from a task, a source row and a prompt file.

A row is data, never an instruction: it is JSON between ``<data>`` lines, with every ``<`` escaped so that it cannot
close them, and a JSON schema fixes the shape of the response.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rebase.generation.cues import Cue, Guidance, SourceText, sentences
from rebase.generation.prompts.options import (
    OPTIONS,
    answers_to_write,
    names_to_write,
    show_lists,
    to_lists,
    writes_options,
)
from rebase.generation.prompts.templates import (
    AskPrompt,
    CheckPrompt,
    DensifyPrompt,
    DistilPrompt,
    Prompt,
    SolvePrompt,
    SynthesizePrompt,
    TransformPrompt,
)
from rebase.parameters import CotParameters, DistilParameters, SamplingParameters, TransformParameters
from rebase.records import Task
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
#: At most this many cut columns are named in a request: there may be thousands.
_MAX_NAMED_COLUMNS = 20
#: What ends a cell that is cut.
_CUT = " …"
#: Tokens of a response beside its answer: the JSON around it.
_JSON_TOKENS = 40


def transform_request(
    task: Task,
    row: Mapping[str, Any],
    prompt: TransformPrompt,
    parameters: TransformParameters,
    cue: Guidance | None = None,
) -> Request:
    """Request one new example made from the row, or ``null`` if the row is unsuitable.

    ``row`` is a row of ``retrieved``. The examples of the task are earlier turns. With a ``cue`` the teacher only
    writes the question for a span, or the answer to the source text of the row.
    """
    if isinstance(cue, Cue):
        return ask_request(task, cue, prompt.ask, parameters.sampling)
    data, cut = visible_cells(task, row, parameters, cue)
    if isinstance(cue, SourceText):
        return answer_request(
            task, {task.query_fields[0]: cue.text}, prompt.solve, parameters.sampling, data=(data, cut)
        )
    words = task_in_words(task)
    turns = []
    for example in task.examples:
        shown = {name: example[name] for name in ([task.passage] if task.passage else [*task.query_fields, "answer"])}
        written = _typed(task, {name: example[name] for name in (*task.written_fields, "answer")})
        turns.append((_data_in_words(to_lists(task, shown)), {"example": written}))
    shown = show_lists(data) if writes_options(task) else data
    return build_request(prompt, words, turns, _data_in_words(shown, cut), example_schema(task), parameters.sampling)


def ask_request(task: Task, cue: Cue, prompt: AskPrompt, sampling: SamplingParameters) -> Request:
    """Request the question to a sentence with a gap and the span that fills it, each on one line."""
    (field,) = task.written_fields

    def cloze(sentence: str, answer: str) -> dict[str, str]:
        return {"sentence": sentence.replace(answer, "____", 1), "answer": answer}

    turns = []
    for example in task.examples:
        passage, answer = example[task.passage or ""], example["answer"]
        sentence = next((one for one in sentences(passage) if answer in one), " ".join(passage.split()))
        turns.append((cloze(sentence, answer), {field: example[field]}))
    openings = "|".join(cue.openings)
    # No quotes, backslashes or brackets: a weak teacher ends a question with them instead of a question mark. The
    # length is left to `max_tokens`: a bounded repetition takes a grammar compiler a second.
    schema = object_schema({field: {"type": "string", "pattern": rf"^({openings}) [^?\"\\\[\]\n]+\?$"}})
    words = {"instruction": task.instruction}
    return build_request(prompt, words, turns, cloze(cue.sentence, cue.answer), schema, sampling)


def synthesize_request(
    task: Task, number: int, prompt: SynthesizePrompt, sampling: SamplingParameters, *, guided: bool = False
) -> Request:
    """Request new example ``number`` (1, 2, ...) from the instruction and the examples of the task alone.

    The examples of the task are earlier turns and are counted before it. A ``guided`` teacher writes only the passage,
    and the question follows in another request (``ask_request``).
    """
    names = [task.passage] if guided and task.passage else [*task.query_fields, "answer"]
    words = task_in_words(task) | {"fields": ", ".join(names_to_write(task, names))}
    turns = [
        ({"number": position}, _typed(task, {name: example[name] for name in names}))
        for position, example in enumerate(task.examples, 1)
    ]
    last = {"number": len(turns) + number}
    return build_request(prompt, words, turns, last, _schema(task, names), sampling)


def cot_request(
    task: Task,
    fields: Mapping[str, str],
    row: Mapping[str, Any] | None,
    prompt: SolvePrompt,
    parameters: CotParameters,
    sample: int,
) -> Request:
    """Request the rationale that leads to the answer of an example with these fields.

    ``row`` is its source row, shown as data because it often contains the working. ``sample`` distinguishes repeats.
    """
    cells = {name: text for name, text in _cells(row).items() if text not in fields.values()} if row else {}
    data = trim_row(cells, parameters.max_row_tokens)
    return answer_request(task, fields, prompt, parameters.sampling, data=data, reasoned=True, sample=sample)


def answer_request(
    task: Task,
    fields: Mapping[str, str],
    prompt: CheckPrompt | SolvePrompt,
    sampling: SamplingParameters,
    *,
    data: tuple[Mapping[str, str], Sequence[str]] = ({}, ()),
    reasoned: bool = False,
    sample: int = 0,
) -> Request:
    """Request the answer to the query with these fields, without any hint of it but ``data``.

    ``data`` are cells and the names of those that are not whole (``trim_row``). The examples of the task are earlier
    turns. ``reasoned`` requests the rationale first; ``sample`` distinguishes repeats.
    """
    names = ["rationale", "answer"] if reasoned else ["answer"]

    def words(fields: Mapping[str, str], data: Mapping[str, str], cut: Sequence[str] = ()) -> dict[str, str]:
        return {"query": _FENCE.sub("\\\\u003c", task.render_query(fields)), **_data_in_words(data, cut)}

    turns = []
    for example in task.examples:
        response = _typed(task, {name: example[name] for name in names})
        shown = {name: example[name] for name in (*names[:-1], *example) if name in ("rationale", "answer")}
        turns.append((words(example, shown), response))
    instruction = {"instruction": task.instruction}
    return build_request(prompt, instruction, turns, words(fields, *data), _schema(task, names), sampling, sample)


def label_requests(
    task: Task, fields: Mapping[str, str], prompt: DistilPrompt, parameters: DistilParameters
) -> list[Request]:
    """The requests for the label of one input: one per sample."""
    reasoned = parameters.style == "cot"
    section = prompt.cot if reasoned else prompt
    return [
        answer_request(task, fields, section, parameters.sampling, reasoned=reasoned, sample=sample)
        for sample in range(parameters.samples)
    ]


def evaluation_requests(task: Task, items: Iterable[Mapping[str, str]], prompt: DistilPrompt) -> list[Request]:
    """One greedy request for the answer to each evaluation item, given its fields."""
    sampling = SamplingParameters(temperature=0, max_tokens=task.max_new_tokens + _JSON_TOKENS)
    section = prompt.cot if task.cot else prompt
    return [answer_request(task, fields, section, sampling, reasoned=task.cot) for fields in items]


def densify_request(
    task: Task, request: Request, draft: tuple[str, str], number: int, rounds: int, prompt: DensifyPrompt
) -> Request:
    """Request a denser answer after ``request`` and its ``draft``: what the draft lacks, and the new answer.

    Adams et al., "From Sparse to Dense" (2023). Each round is a turn, so that its response can be read alone.
    """
    missing, answer = draft
    response = ({"missing": missing} if missing else {}) | {"answer": answer}
    turns = (Message("assistant", _dump(response)), Message("user", prompt.user.format(round=number, rounds=rounds)))
    schema = _schema(task, ("missing", "answer"))
    system = prompt.system.format(instruction=task.instruction)
    return replace(request, system=system, messages=request.messages + turns, schema=schema, sample=0)


def example_schema(task: Task) -> dict[str, Any]:
    """The JSON schema of one example with the fields that the teacher writes, or null for an unsuitable row.

    Only what every provider's structured output supports: objects, arrays, strings, numbers, enums and ``anyOf``.
    """
    example = _schema(task, (*task.written_fields, "answer"))
    return object_schema({"example": {"anyOf": [example, {"type": "null"}]}})


def visible_cells(
    task: Task, row: Mapping[str, Any], parameters: TransformParameters, cue: Guidance | None = None
) -> tuple[dict[str, str], list[str]]:
    """What ``transform_request`` shows of the row as data, and the columns that it omits or shows in part.

    A reading task shows the passage alone, because a question must not depend on the other cells. Beside a source text
    the other cells are data, because they often contain the answer.
    """
    if task.passage:
        return {task.passage: row["passage"]}, []
    source = cue.column if isinstance(cue, SourceText) else None
    return trim_row({name: text for name, text in _cells(row).items() if name != source}, parameters.max_row_tokens)


def trim_row(cells: Mapping[str, str], max_tokens: int) -> tuple[dict[str, str], list[str]]:
    """As many whole columns, in order, as fit ``max_tokens``; and the names of the columns that were cut or omitted.

    If the first column is too long, at least half of the tokens are for its beginning: it matched best.
    ``approximate_tokens`` counts, the names as well.
    """
    first = next(iter(cells), "")
    is_cut = _size(first, cells.get(first, "")) > max_tokens
    name_size = approximate_tokens(first)
    reserved = max(name_size, max_tokens - max_tokens // 2) if is_cut else 0
    remaining = max_tokens - reserved
    kept = {first: ""} if is_cut else {}
    for name, text in cells.items():
        if name not in kept and (size := _size(name, text)) <= remaining:
            kept[name] = text
            remaining -= size
    if is_cut:
        kept[first] = cut_at_tokens(cells[first], max(0, reserved + remaining - name_size))
    return kept, [name for name, text in cells.items() if kept.get(name) != text]


def cut_cells(cells: Mapping[str, str], max_tokens: int) -> dict[str, str]:
    """The cells, long ones cut and marked by ``…``, so that they fit ``max_tokens`` with the names of their columns.

    Each cell has an equal share, and short ones leave theirs to the others. Cells without room are left out.
    """
    shown: dict[str, str] = {}
    remaining = max_tokens
    by_size = sorted(cells, key=lambda name: _size(name, cells[name]))
    for position, name in enumerate(by_size):
        text = cells[name]
        share = remaining // (len(by_size) - position) - approximate_tokens(name)
        if approximate_tokens(text) > share:
            beginning = cut_at_tokens(text, max(0, share - approximate_tokens(_CUT))).rstrip()
            text = beginning and beginning + _CUT
        if text:
            shown[name] = text
            remaining -= _size(name, text)
    return {name: shown[name] for name in cells if name in shown}


def _size(name: str, text: str) -> int:
    """The tokens of a cell with the name of its column."""
    return approximate_tokens(name) + approximate_tokens(text)


def fence(data: Mapping[str, Any]) -> str:
    """The data as one line of JSON between ``<data>`` and ``</data>``, which nothing in it can close."""
    return f"<data>\n{_inert(dict(data))}\n</data>"


def build_request(
    prompt: Prompt,
    words: Mapping[str, str],
    turns: Iterable[tuple[Mapping[str, Any], dict[str, Any]]],
    last: Mapping[str, Any],
    schema: dict[str, Any],
    sampling: SamplingParameters,
    sample: int = 0,
) -> Request:
    """Fill the templates: the system message with ``words``, each user message with ``words`` and its own.

    Earlier ``turns`` are the words of a user message and the response to it; ``last`` are those of the last message.
    """
    messages = []
    for turn, response in turns:
        messages += [Message("user", prompt.user.format(**words, **turn)), Message("assistant", _dump(response))]
    messages.append(Message("user", prompt.user.format(**words, **last)))
    system = prompt.system.format(**words)
    return Request(system, tuple(messages), schema, Sampling(sampling.temperature, sampling.max_tokens), sample)


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells of the row. The columns that matched come first, so that they survive trimming."""
    cells = {name: str(value) for name, value in json.loads(row["row"]).items()}
    matched = [name for name in (row.get("query_column"), row.get("answer_column")) if name in cells]
    return {name: cells[name] for name in dict.fromkeys([*matched, *cells])}


def _data_in_words(data: Mapping[str, Any], cut: Sequence[str] = ()) -> dict[str, str]:
    """The words of a template for the data, and for the columns that are not whole."""
    more = f" and {len(cut) - _MAX_NAMED_COLUMNS} more" if len(cut) > _MAX_NAMED_COLUMNS else ""
    note = f"\n(Too long to show whole: {_inert(cut[:_MAX_NAMED_COLUMNS])}{more}.)" if cut else ""
    return {"data": fence(data), "cut": note}


def task_in_words(task: Task) -> dict[str, str]:
    """The words of a template for the task: its instruction, what the teacher writes, the kind of answer."""
    answer = " ".join(filter(None, (_TYPE_IN_WORDS[task.answer.type], ", ".join(task.answer.labels))))
    if task.lists_options:
        answer += ", the letter of one of the options that the example lists,"
    fields = names_to_write(task, [*task.written_fields, "answer"])
    return {"instruction": task.instruction, "fields": ", ".join(fields), "answer": answer}


def _schema(task: Task, names: Iterable[str]) -> dict[str, Any]:
    """The schema of an object with these fields: an answer of the task's type, texts, and a list of options."""
    answer: dict[str, Any] = {"type": "number" if task.answer.type == "number" else "string"}
    if task.answer.type == "label":
        answer["enum"] = list(task.answer.labels)
    types = {"answer": answer}
    if OPTIONS in (written := names_to_write(task, names)) and writes_options(task):
        answer["enum"] = answers_to_write(task)
        types[OPTIONS] = {"type": "array", "items": {"type": "string"}}
    return object_schema({name: types.get(name, {"type": "string"}) for name in written})


def _typed(task: Task, fields: dict[str, str]) -> dict[str, Any]:
    """The fields as the schema has them: options are a list, and the answer is a number if those of the task are."""
    if task.answer.type != "number" or "answer" not in fields:
        return to_lists(task, fields)
    answer = fields["answer"]
    return fields | {"answer": float(answer) if "." in answer else int(answer)}


def _inert(value: Any) -> str:
    """The value as one line of JSON without ``<``."""
    return _dump(value).replace("<", "\\u003c")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
