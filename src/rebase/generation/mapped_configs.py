"""The configs that ``map`` works on: how each is mapped and audited, and what became of its rows."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import yaml

from rebase.datastore.cells import content_hash
from rebase.datastore.shards import Shards, metadata_of
from rebase.errors import RebaseError
from rebase.generation.filters.base import Candidate, Rejection
from rebase.generation.filters.duplicates import Duplicates
from rebase.generation.filters.languages import LanguageFilter
from rebase.generation.filters.passages import find_passage, reject_without_passage
from rebase.generation.filters.sources import source_filter
from rebase.generation.generate import read_response, rejected_line, verify
from rebase.generation.mapping import (
    Audit,
    audit,
    configs_to_map,
    correct_values,
    describe_columns,
    fill_cells,
    has_label_names,
    interleave,
    lacks_passages,
    map_request,
    map_row,
    mapping_id,
    number_options,
    read_mapping,
    reference_answers,
    unknown_columns,
)
from rebase.generation.prompts.parsing import Example, read_check, read_rationale
from rebase.generation.prompts.requests import evaluation_requests
from rebase.generation.prompts.templates import DistilPrompt, MapPrompt
from rebase.generation.verification import ProtectedTexts, gives_answers_away, reject_input
from rebase.parameters import MapParameters, RetrieveParameters
from rebase.records import MAPPING_COLUMNS, DatasetMapping, Task
from rebase.teacher.cached import CachedSession
from rebase.teacher.protocol import Failure, Response

#: Rows that are read as Python objects at once, and rows by which the columns of a config are described.
_ROWS_AT_ONCE = 1000
#: Datasets that an error names.
_NAMED = 10
#: Mapped queries that an audit asks about at once, until it passes or is not likely to.
AUDITED_AT_ONCE = 20

_NOT_IN_DATASTORE = Rejection("not_in_datastore", "the retrieved rows are of an earlier one: run retrieve again")

Line = dict[str, Any]
Check = Callable[[Line, Example, bool], Example | Rejection]


@dataclass
class MappedConfig:
    """A config of a dataset, its mapping, and what became of its rows.

    ``written`` is the mapping of a person. ``rejection`` says why no mapping is used; ``row`` is what a row is, in the
    teacher's words. ``is_corrected`` if the audit's answers replaced its labels. ``size`` and ``license`` are known
    once the rows are read.
    """

    dataset: str
    config: str
    rows: Shards
    written: DatasetMapping | None = None
    mapping: DatasetMapping | None = None
    row: str = ""
    rejection: Rejection | None = None
    size: int = 0
    license: str | None = None
    responses: list[Response | Failure] = field(default_factory=list)
    mapped: list[tuple[Line, Example]] = field(default_factory=list)
    rejected: list[Line] = field(default_factory=list)
    not_needed: int = 0
    used: int = 0
    audit: Audit | None = None
    is_corrected: bool = False

    @property
    def id(self) -> str | None:
        """The fingerprint of the mapping."""
        return mapping_id(self.mapping) if self.mapping else None

    @property
    def is_usable(self) -> bool:
        """Whether its mapped rows are, or can be, examples."""
        return self.mapping is not None and self.rejection is None

    @property
    def is_audited(self) -> bool:
        """Whether the mapping has to be checked: a person's only if its author wants that."""
        return self.written is None or self.written.audit

    @property
    def has_answers(self) -> bool:
        """Whether the mapping names the column of the answer; without one the teacher labels the mapped queries."""
        return self.mapping is not None and self.mapping.answer is not None

    def can_be_corrected(self, task: Task) -> bool:
        """Whether the teacher gave one label to several values, which its answers to the rows may tell apart."""
        return (
            self.written is None
            and self.rejection is not None
            and self.rejection.reason == "one_label"
            and has_label_names(task)
            and len({_answer_value(self, line) for line, _ in self.mapped}) > 1
        )

    @property
    def state(self) -> str:
        """The reason of the rejection, or how its rows are used."""
        if self.rejection:
            return self.rejection.reason
        if self.has_answers:
            return "used"
        return "labeled_by_teacher" if self.used else "not_needed"

    def correct(self, mapping: DatasetMapping) -> None:
        """Replace the mapping, and forget its audit and what became of the rows."""
        self.mapping, self.is_corrected, self.rejection, self.not_needed = mapping, True, None, 0
        self.mapped, self.rejected, self.audit = [], [], None

    def reject_all(self) -> None:
        """Reject the mapping, because none of its rows became an example."""
        counts = Counter(line["reason"] for line in self.rejected).most_common(3)
        self.rejection = Rejection("no_examples", ", ".join(f"{reason} {count}" for reason, count in counts))

    @property
    def response_key(self) -> str | None:
        """The key of the response that has the mapping; None if a person wrote it."""
        return self.responses[0].key if self.responses and self.written is None else None

    def lines(self, seed: int) -> Iterator[Line]:
        """The rows in random order, a part at a time."""
        table = self.rows[self.dataset]
        table = table.filter(pc.equal(table["config"], self.config))
        self.size, self.license = len(table), table["license"][0].as_py() if len(table) else None
        order = np.random.default_rng(seed).permutation(self.size)
        for start in range(0, self.size, _ROWS_AT_ONCE):
            yield from table.take(order[start : start + _ROWS_AT_ONCE]).to_pylist()


def find_configs(task: Task, retrieved: pd.DataFrame, rows: Shards, parameters: MapParameters) -> list[MappedConfig]:
    """The configs with a mapping in the task's file, then those with enough retrieved rows.

    Raises RebaseError if a mapping in the task's file names a column that no row has. A mapping for all configs needs
    one that has its columns; the others are rejected.
    """
    configs = []
    for mapping in task.mappings:
        if rejection := _reject_without_rows(mapping.dataset, rows):
            configs.append(MappedConfig(mapping.dataset, mapping.config or "", rows, mapping, rejection=rejection))
            continue
        names = [mapping.config] if mapping.config else pc.unique(rows[mapping.dataset]["config"]).to_pylist()
        written = [MappedConfig(mapping.dataset, name, rows, mapping) for name in names]
        for config in written:
            columns = {column for line in config.lines(0) for column in json.loads(line["row"])}
            if unknown := unknown_columns(mapping, columns, task):
                config.rejection = Rejection("unknown_column", ", ".join(unknown))
        if all(config.rejection for config in written):
            there = f"there are {', '.join(sorted(columns))}" if columns else "it has no rows"
            raise RebaseError(
                f"map: the mapping of {mapping.dataset} in the file of task {task.name!r} names the column "
                f"{', '.join(map(repr, unknown))}, which no row of the config {names[-1]!r} has: {there}. Correct it."
            )
        configs += written
    for dataset, name in configs_to_map(task, retrieved, parameters.min_rows):
        configs.append(MappedConfig(dataset, name, rows, rejection=None if dataset in rows else _NOT_IN_DATASTORE))
    return configs


def _reject_without_rows(dataset: str, rows: Shards) -> Rejection | None:
    if dataset not in rows:
        return Rejection("not_in_datastore", "correct `dataset`, or add it to the sources")
    table = rows[dataset]
    if len(table):
        return None
    other = metadata_of(table).get("duplicate_of")
    advice = f"it has the same data files as {other}: set `dataset` to that" if other else "see `ingest_rejected`"
    return Rejection("no_rows", advice)


async def request_mapping(
    session: CachedSession,
    task: Task,
    config: MappedConfig,
    description: str,
    prompt: MapPrompt,
    parameters: MapParameters,
) -> None:
    """Set the config's mapping, or the reason why there is none."""
    sample = [json.loads(line["row"]) for line in islice(config.lines(parameters.seed), _ROWS_AT_ONCE)]
    columns = describe_columns(sample)
    if not sample:
        config.rejection = _NOT_IN_DATASTORE
    elif not columns:
        config.rejection = Rejection("no_columns")
    elif lacks_passages(task, columns):
        config.rejection = Rejection("no_passage", "no column has texts of some length")
    if config.rejection:
        return
    request = map_request(task, description, columns, sample[: parameters.shown_rows], prompt, parameters)
    config.responses.append(await session.generate(request))
    outcome = read_response(config.responses[-1], lambda text: read_mapping(task, config.dataset, config.config, text))
    if isinstance(outcome, Rejection):
        config.rejection = outcome
        return
    config.row, mapping = outcome
    if mapping is None:
        config.rejection = Rejection("unsuitable")
        return
    config.mapping = number_options(task, mapping, columns)
    if problem := task.mapping_problem(config.mapping):
        config.rejection = Rejection("invalid_mapping", problem)
    elif unknown := unknown_columns(config.mapping, set().union(*sample), task):
        config.rejection = Rejection("unknown_column", ", ".join(unknown))


def row_check(
    task: Task,
    evaluation_items: pd.DataFrame,
    cards: pd.DataFrame,
    protected: ProtectedTexts,
    retrieve: RetrieveParameters,
) -> Check:
    """The filters of ``retrieve`` and the checks of every example, for a row and its example.

    The third argument is False for an input, whose answer is not known yet.
    """
    reject = source_filter(task, evaluation_items, cards, retrieve.licenses, protected.ngram)
    languages = LanguageFilter(task)

    def check(line: Line, example: Example, has_answer: bool) -> Example | Rejection:
        cells = json.loads(line["row"])
        row = Candidate(line["row_id"], line["dataset"], line["license"], cells, line["content_hash"])
        longest = max(example.fields, key=lambda name: len(example.fields[name]))
        if rejection := reject(row, example.fields[longest]):
            return rejection
        for name, text in example.fields.items():
            # Sets for several languages pair a text in one with a text in another.
            if name != longest and (rejection := languages.reject_field(f"{row.config}/{name}", text)):
                return rejection
        outcome = _cut_passage(task, row, example, retrieve)
        if isinstance(outcome, Rejection) or has_answer:
            return verify(task, outcome, protected)
        reason = reject_input(task, outcome.fields, protected)
        return Rejection(reason) if reason else outcome

    return check


def _cut_passage(task: Task, row: Candidate, example: Example, retrieve: RetrieveParameters) -> Example | Rejection:
    """The example with its passage cleaned and cut as in ``retrieve``, around the answer if it is a part of it."""
    if not task.passage:
        return example
    text = replace(row, cells={task.passage: example.fields[task.passage]})
    answer = example.answer if task.answer.type == "span" else ""
    if passage := find_passage(text, retrieve, answer):
        return Example(example.fields | {task.passage: passage.passage}, example.answer)
    return reject_without_passage(text, retrieve, answer)


def as_candidate(line: Line, example: Example) -> Candidate:
    """A mapped row, to be compared with others by the fields of its query."""
    return Candidate(line["row_id"], line["dataset"], line["license"], example.fields, content_hash(example.fields))


def apply_mapping(
    task: Task,
    config: MappedConfig,
    mapping: DatasetMapping,
    check: Check,
    parameters: MapParameters,
    near_duplicate: float,
) -> None:
    """Map the rows of the config until there are enough examples of each label.

    Each label gets ``max_examples``, so that labels can be balanced whatever other datasets have. The mapping is
    rejected if there are no examples, only those of one label, or if most queries state their answer; in a mapping of a
    person, that is trusted.
    """
    counts: Counter[str] = Counter()
    duplicates = Duplicates(near_duplicate, by_cell=True)
    for line in config.lines(parameters.seed):
        outcome = map_row(task, mapping, json.loads(line["row"]))
        if isinstance(outcome, Example):
            group = label_of(task, outcome)
            if counts[group] >= parameters.max_examples:
                config.not_needed += 1
                continue
            outcome = check(line, outcome, config.has_answers)
        if isinstance(outcome, Example):
            candidate = as_candidate(line, outcome)
            if (rejection := duplicates.reject(candidate)) is None:
                duplicates.keep(candidate)
                counts[group] += 1
                config.mapped.append((line, outcome))
                continue
            outcome = rejection
        config.rejected.append(rejected_line(line, outcome))
    answered = [(example.fields, example.answer) for _, example in config.mapped if config.has_answers]
    if not config.mapped:
        config.reject_all()
    elif answered and task.answer.labels and len(counts) == 1:
        config.rejection = Rejection("one_label", next(iter(counts)))
    elif answered and config.is_audited and gives_answers_away(task, answered):
        config.rejection = Rejection("answer_given_away")


async def audit_mapping(
    session: CachedSession,
    task: Task,
    config: MappedConfig,
    check: Check,
    prompt: DistilPrompt,
    parameters: MapParameters,
    near_duplicate: float,
) -> None:
    """Audit the config's mapping; if its labels disagree with the teacher's, correct them once and audit other rows.

    A mapping with one label stays rejected unless it is corrected, and so does one that no other row can audit.
    """
    one_label, mapping = config.rejection, config.mapping
    answered = await _request_audit(session, task, config, set(), prompt, parameters)
    if config.written or mapping is None or not answered or not config.rejection or not has_label_names(task):
        return
    corrected = correct_values(task, mapping, [(_answer_value(config, line), answer) for line, _, answer in answered])
    if corrected is None:
        config.rejection = one_label or config.rejection
        return
    config.correct(corrected)
    apply_mapping(task, config, corrected, check, parameters, near_duplicate)
    if config.is_usable:
        audited = {line["row_id"] for line, _, _ in answered}
        answered = await _request_audit(session, task, config, audited, prompt, parameters)
        if not answered and config.is_usable:
            config.rejection = Rejection("low_agreement", "no other rows are left to audit the corrected labels")


async def _request_audit(
    session: CachedSession,
    task: Task,
    config: MappedConfig,
    audited: set[str],
    prompt: DistilPrompt,
    parameters: MapParameters,
) -> list[tuple[Line, Example, str]]:
    """Compare the teacher's answers to mapped queries with the mapped ones, until the audit passes or hardly could.

    In label tasks the values of the answer take turns. The ``audited`` rows are left out. Returns what was
    answered.
    """
    mapping = config.mapping
    if mapping is None:
        return []
    mapped = [item for item in config.mapped if item[0]["row_id"] not in audited]
    if task.answer.labels:
        mapped = interleave(mapped, lambda item: _answer_value(config, item[0]))
    answered: list[tuple[Line, Example, str]] = []
    # More answers make no mapping with one label acceptable: a first part shows whether it can be corrected.
    most = min(parameters.audit, AUDITED_AT_ONCE) if config.rejection else parameters.audit
    mapped = mapped[:most]
    for start in range(0, len(mapped), AUDITED_AT_ONCE):
        part = mapped[start : start + AUDITED_AT_ONCE]
        requests = evaluation_requests(task, [example.fields for _, example in part], prompt)
        responses = await asyncio.gather(*map(session.generate, requests))
        config.responses += responses
        for (line, example), response in zip(part, responses, strict=True):
            read = partial(_read_answer, task, example.fields)
            if isinstance(answer := read_response(response, read), Rejection):
                config.rejection = answer
            else:
                answered.append((line, example, answer))
        if not answered:
            break
        config.audit = audit(
            task,
            [example.fields for _, example, _ in answered],
            [
                reference_answers(task, mapping, json.loads(line["row"]), example.answer)
                for line, example, _ in answered
            ],
            [answer for _, _, answer in answered],
        )
        config.rejection = config.audit.reject(parameters.min_agreement)
        if config.rejection is None or not config.audit.could_pass(parameters.min_agreement, most):
            break
    return answered


def _answer_value(config: MappedConfig, line: Line) -> str:
    """The answer of a row before its value becomes a label."""
    return (
        fill_cells(config.mapping.answer, json.loads(line["row"])) if config.mapping and config.mapping.answer else ""
    )


def _read_answer(task: Task, fields: Mapping[str, str], text: str) -> str:
    return read_rationale(text)[1] if task.cot else read_check(task, fields, text)


def label_of(task: Task, example: Example) -> str:
    """The label, by which examples take turns; empty in tasks without labels."""
    return example.answer if task.answer.labels else ""


def tabulate(configs: Iterable[MappedConfig]) -> pd.DataFrame:
    """The table ``mappings``; a mapping is the text that a person can paste under ``mappings`` of the task's file."""
    lines = []
    for config in configs:
        received = [response for response in config.responses if isinstance(response, Response)]
        dollars = [response.dollars for response in received if response.dollars is not None]
        mapping = config.mapping and [config.mapping.model_dump(exclude_defaults=True)]
        lines.append(
            {
                "mapping_id": config.id,
                "dataset": config.dataset,
                "config": config.config,
                "state": config.state,
                "detail": config.rejection.detail if config.rejection else config.row,
                "mapping": mapping and yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True, width=1000),
                "rows": config.size,
                "passed": len(config.mapped),
                "used": config.used,
                **(vars(config.audit) if config.audit else {}),
                "license": config.license,
                "written_by": "a person"
                if config.written
                else "the teacher, corrected by its answers"
                if config.is_corrected
                else "the teacher",
                "response_key": config.response_key,
                "requests": len(received),
                "input_tokens": sum(response.input_tokens for response in received),
                "output_tokens": sum(response.output_tokens for response in received),
                "dollars": sum(dollars) if len(dollars) == len(received) else None,
            }
        )
    return pd.DataFrame(lines, columns=MAPPING_COLUMNS)


def explain_nothing_mapped(task: Task, configs: list[MappedConfig]) -> str:
    """Why no row became an example."""
    reasons = [
        f"  {config.dataset} ({config.config}): {config.state} {config.rejection.detail}".rstrip()
        for config in configs
        if config.rejection
    ]
    shown = "\n".join(reasons[:_NAMED]) or "  no config has `map.min_rows` retrieved rows"
    return (
        f"map: none of {len(configs)} retrieved datasets could be mapped to task {task.name!r}, the first ones "
        f"because:\n{shown}\nRetrieve more rows, or write a mapping under `mappings` in the task's file."
    )
