"""Map: one mapping for each dataset turns its rows, with the labels that people gave, into examples.

See docs/method.md section 4b.
"""

import logging
from collections import Counter
from typing import Any

import pandas as pd

from rebase.datastore.shards import Shards
from rebase.errors import StageError
from rebase.generation.filters.base import Rejection
from rebase.generation.filters.duplicates import Duplicates
from rebase.generation.generate import ExampleStage, GenerationResult, generate_all, rejected_line, verify
from rebase.generation.labeling import check_style, request_label, with_costs
from rebase.generation.mapped_configs import (
    AUDITED_AT_ONCE,
    MappedConfig,
    apply_mapping,
    as_candidate,
    audit_mapping,
    explain_nothing_mapped,
    find_configs,
    label_of,
    request_mapping,
    row_check,
    tabulate,
)
from rebase.generation.mapping import interleave
from rebase.generation.prompts.parsing import Example
from rebase.generation.prompts.templates import DistilPrompt, MapPrompt, prompt_hash
from rebase.generation.verification import ProtectedTexts
from rebase.parameters import ContaminationParameters, DistilParameters, MapParameters, RetrieveParameters
from rebase.records import PEOPLE, PROVENANCE_COLUMNS, Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher

logger = logging.getLogger(__name__)

Line = dict[str, Any]
_Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Line]
#: So many labels of the teacher that are all the same show a mapping that no audit has checked to be wrong.
_FEW_LABELS = 5
#: A mapped row: its config, the row as a line of the examples, and the example.
_Mapped = tuple[MappedConfig, Line, Example]


def map_datasets(  # noqa: PLR0913, PLR0917 - one argument for each input
    task: Task,
    retrieved: pd.DataFrame,
    rows: Shards,
    cards: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    map_prompt: MapPrompt,
    distil_prompt: DistilPrompt,
    mode: str,
    parameters: MapParameters,
    distil: DistilParameters,
    retrieve: RetrieveParameters,
    contamination: ContaminationParameters,
) -> _Tables:
    """Turn the rows of datasets into examples by one mapping for each config, and audit each mapping.

    Mappings in the task's file need no request, and no audit unless they ask for one. A mapping is used if the teacher,
    who answers some of the mapped queries without the answers, clearly agrees with them. All rows of the config are
    mapped, in random order, and pass the filters of ``retrieve`` and the checks of ``transform``. Labels and datasets
    take turns until there are ``max_examples``. If a mapping has no answer, the teacher labels as many of its queries
    as are still missing, as ``distil`` does. If ``mode`` is ``rewrite``, nothing is mapped.

    Returns:
        ``mappings``, one line for each config; the examples; the rejected rows of used mappings; the summary, which
        also counts rows that were not needed and those of rejected mappings.

    Raises:
        RebaseError: A mapping in the task's file names a column that no row has, or the cards are those of other rows.
        StageError: The examples are to come from mappings alone and there are none.

    """
    stage = ExampleStage("map", task, teacher, map_prompt)
    if mode == "rewrite":
        if task.mappings:
            logger.warning(
                "map: the mappings in the file of task %r are not used: set transform.mode to map or both", task.name
            )
        return _conclude(stage, [], "transform.mode is rewrite: set it to map or both")
    rows.check_cards(cards)
    configs = find_configs(task, retrieved, rows, parameters)
    protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)
    check = row_check(task, evaluation_items, cards, protected, retrieve)
    descriptions = dict(zip(cards["dataset"], cards["description"], strict=True))

    async def generate(session: CachedSession, config: MappedConfig) -> MappedConfig:
        if config.rejection:
            return config
        config.mapping = config.written
        if config.written is None:
            description = descriptions.get(config.dataset, "")
            await request_mapping(session, task, config, description, map_prompt, parameters)
        if config.mapping and not config.rejection:
            apply_mapping(task, config, config.mapping, check, parameters, retrieve.near_duplicate)
        can_be_used = config.is_usable or config.can_be_corrected(task)
        if parameters.audit and config.is_audited and config.has_answers and can_be_used:
            await audit_mapping(session, task, config, check, distil_prompt, parameters, retrieve.near_duplicate)
        return config

    concurrency = max(1, teacher.concurrency // AUDITED_AT_ONCE)
    configs, stage.usage = generate_all(
        teacher, configs, generate, lambda config: config.rejection is None, stage="map",
        concurrency=lambda *_: concurrency,
    )  # fmt: skip
    inputs = _select(stage, configs, retrieved, parameters.max_examples, retrieve.near_duplicate)
    if inputs:
        stage.usage += _label_inputs(stage, inputs, distil_prompt, distil, protected, parameters.max_examples)
    reasons = "" if stage.kept else explain_nothing_mapped(task, configs)
    mappings, examples, rejected, summary = _conclude(stage, configs, reasons)
    if reasons and mode == "map":
        raise StageError(f"{reasons} Or set `transform.mode` to `both` or `rewrite`.", rejected, mappings)
    if reasons:
        logger.warning(reasons)
    return mappings, examples, rejected, summary


def _select(
    stage: ExampleStage,
    configs: list[MappedConfig],
    retrieved: pd.DataFrame,
    max_examples: int,
    near_duplicate: float,
) -> list[_Mapped]:
    """Add the labeled examples to the stage; return the inputs to be labeled, if needed. All sources take turns."""
    duplicates = Duplicates(near_duplicate, by_cell=True)
    scores = retrieved.set_index("row_id")[[name for name in PROVENANCE_COLUMNS if name.startswith(("rank", "score"))]]
    ranks = scores.to_dict("index")
    mapped = [(config, line, example) for config in configs if config.is_usable for line, example in config.mapped]
    labeled = [item for item in mapped if item[0].has_answers]
    sources = (lambda item: item[0].dataset, lambda item: item[0].config)
    in_turn = interleave(labeled, lambda item: label_of(stage.task, item[2]), *sources)
    in_turn += interleave([item for item in mapped if not item[0].has_answers], *sources)
    inputs: list[_Mapped] = []
    for config, line, example in in_turn:
        candidate = as_candidate(line, example)
        if len(stage.kept) == max_examples:
            config.not_needed += 1
        elif rejection := duplicates.reject(candidate):
            config.rejected.append(rejected_line(line, rejection))
        else:
            duplicates.keep(candidate)
            item = line | ranks.get(line["row_id"], {}) | {"mapping_id": config.id}
            if config.has_answers:
                of_people = {"response_key": config.response_key, "teacher": PEOPLE}
                stage.kept.append(stage.line(GenerationResult(item, None, example, of_people), example))
                config.used += 1
            else:
                inputs.append((config, item, example))
    return inputs


def _label_inputs(
    stage: ExampleStage,
    inputs: list[_Mapped],
    prompt: DistilPrompt,
    parameters: DistilParameters,
    protected: ProtectedTexts,
    max_examples: int,
) -> Usage:
    """Have the teacher label at most ``max_examples`` inputs until there are enough examples; return what it used.

    The inputs of a config whose first labels are all the same come last, because its mapping is probably wrong.
    """
    check_style(stage.task, parameters)
    wanted = max_examples - len(stage.kept)
    configs = {id(config): config for config, _, _ in inputs}
    answered: list[tuple[MappedConfig, GenerationResult]] = []
    waiting, usage, most = inputs, Usage(), _FEW_LABELS * len(configs)
    while True:
        labels = _labels_by_config(stage.task, answered)
        doubtful = {key for key in labels if _are_one_label(stage.task, labels[key])}
        ready = [item for item in waiting if id(item[0]) not in doubtful]
        missing = wanted - sum(len(labels[key]) for key in labels if not ready or key not in doubtful)
        part = (ready or waiting)[: min(most, max_examples - len(answered))]
        if missing <= 0 or not part:
            break
        results, used = _request_labels(stage, part, missing, prompt, parameters, protected)
        answered += zip((config for config, _, _ in part), results, strict=False)
        sent = set(map(id, part[: len(results)]))
        waiting = [item for item in waiting if id(item) not in sent]
        usage, most = usage + used, max_examples
    for config, result in answered:
        if isinstance(result.outcome, Rejection):
            config.rejected.append(rejected_line(result.item, result.outcome, result.response))
    for config, _, _ in waiting:
        config.not_needed += 1
    for key in labels:
        if not labels[key]:
            configs[key].reject_all()
        elif key in doubtful:
            configs[key].rejection = Rejection("one_label", labels[key][0])
        else:
            configs[key].used = len(labels[key])
    stage.kept += [
        stage.line(result, result.outcome)
        for config, result in answered
        if isinstance(result.outcome, Example) and config.is_usable
    ]
    return usage


def _request_labels(
    stage: ExampleStage,
    inputs: list[_Mapped],
    wanted: int,
    prompt: DistilPrompt,
    parameters: DistilParameters,
    protected: ProtectedTexts,
) -> tuple[list[GenerationResult], Usage]:
    """The labels of the inputs, in order, until as many as ``wanted`` are good; and what the teacher used."""
    limit = max(1, stage.teacher.concurrency // parameters.samples)
    prompt_used = {"prompt_hash": prompt_hash(prompt, stage.task)}

    async def generate(session: CachedSession, item: _Mapped) -> GenerationResult:
        config, line, example = item
        outcome, responses, _ = await request_label(session, stage.task, example.fields, prompt, parameters)
        config.responses += responses
        return GenerationResult(line, with_costs(responses), verify(stage.task, outcome, protected), prompt_used)

    return generate_all(
        stage.teacher, inputs, generate, lambda result: isinstance(result.outcome, Example), stage="map: labels",
        stop_at=wanted, concurrency=lambda kept, *_: min(limit, wanted - kept),
    )  # fmt: skip


def _labels_by_config(task: Task, answered: list[tuple[MappedConfig, GenerationResult]]) -> dict[int, list[str]]:
    """The good labels of each config of which an input was sent, by the id of the object."""
    labels: dict[int, list[str]] = {}
    for config, result in answered:
        given = labels.setdefault(id(config), [])
        if isinstance(result.outcome, Example):
            given.append(label_of(task, result.outcome))
    return labels


def _are_one_label(task: Task, labels: list[str]) -> bool:
    """Whether so many labels are all the same that the mapping is wrong."""
    return bool(task.answer.labels) and len(labels) >= _FEW_LABELS and len(set(labels)) == 1


def _conclude(stage: ExampleStage, configs: list[MappedConfig], left_out: str) -> _Tables:
    """The tables and the summary; ``left_out`` says why there are no examples."""
    stage.rejected = [line for config in configs if config.is_usable for line in config.rejected]
    not_listed = Counter(
        not_needed=sum(config.not_needed for config in configs if not config.rejection),
        mapping_rejected=sum(config.size for config in configs if config.rejection),
    )
    states = Counter(config.state for config in configs)
    examples, rejected, summary = stage.conclude(None, not_listed=not_listed, mappings=dict(states.most_common()))
    examples.attrs = {"left_out": left_out} if left_out else {}
    return tabulate(configs), examples, rejected, summary
