"""Students: train and evaluate several students on one set of examples (docs/method.md section 9)."""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations, count
from typing import Any

import pandas as pd

from rebase.datastore.shards import fingerprint_of
from rebase.errors import RebaseError
from rebase.generation.filters.exclusion import remove_excluded
from rebase.parameters import EvaluateParameters, StudentsParameters, TrainParameters
from rebase.records import STUDENTS_COLUMNS, STUDENTS_LOG_COLUMNS, Adapter, Task, summarize_stage
from rebase.student.answering import EXPERT, STUDENT, answer_items
from rebase.student.formatting import Target, format_examples
from rebase.student.handle import Student
from rebase.student.preflight import inspect_training
from rebase.student.training import train_expert
from rebase.tasks.evaluation_items import select_items
from rebase.tasks.scoring import score_predictions
from rebase.tasks.verdict import warnings
from rebase.weights import resolve_dtype

logger = logging.getLogger(__name__)


def by_name(students: Sequence[Student]) -> dict[str, Student]:
    """The students by names that are safe as folder names, in order; repeated names get a number.

    Names that differ only in case count as repeated, as on some file systems.
    """
    named: dict[str, Student] = {}
    for student in students:
        first = re.sub(r"[^\w.-]+", "-", student.name).strip(".-") or "student"
        taken = {name.casefold() for name in named}
        numbered = (f"{first}-{number}" for number in count(2))
        named[next(name for name in chain([first], numbered) if name.casefold() not in taken)] = student
    return named


def select_examples(parameters: StudentsParameters, **tables: pd.DataFrame) -> pd.DataFrame:
    """Return the table that ``parameters`` name. Raises RebaseError if it is empty."""
    examples = tables[parameters.examples]
    if examples.empty:
        raise RebaseError(
            f"students: there are no {parameters.examples}. Run the pipeline that writes them, or name another table "
            "in `students.examples`."
        )
    return examples


def train_students(
    task: Task, examples: pd.DataFrame, students: Sequence[Student], parameters: TrainParameters, target: Target
) -> tuple[dict[str, Adapter], pd.DataFrame, dict[str, Any]]:
    """Train each student on the examples, one after another; finished runs are not trained again.

    Returns the adapters by name, each with its card; the training logs (``STUDENTS_LOG_COLUMNS``); and the
    summary: sums over the students, and each student's own summary under ``students``. Raises RebaseError as the train
    pipeline does, before the first training if one of the students cannot be trained.
    """
    examples, excluded = remove_excluded(examples, parameters.exclude)
    named, prepared = by_name(students), {}
    for name, student in named.items():
        logger.info("students: inspecting the training of %s", name)
        training_set = format_examples(task, examples, student, target)
        prepared[name] = training_set, inspect_training(training_set, student, parameters)
    adapters, logs, summaries = {}, {}, {}
    for name, (training_set, preflight) in prepared.items():
        logger.info("students: training %s", name)
        adapters[name], logs[name], summary = train_expert(
            task, training_set, examples, excluded, named[name], preflight, parameters, target
        )
        summaries[name] = summary | {"revision": named[name].revision, "model_digest": _digest(named[name])}
    log = pd.concat(logs, names=["student"]).reset_index("student").reset_index(drop=True)
    total = summarize_stage(
        "train",
        kept=sum(summary["kept"] for summary in summaries.values()),
        rejected=sum((Counter(summary["rejected"]) for summary in summaries.values()), Counter[str]()),
        seconds=sum(summary["seconds"] for summary in summaries.values()),
        students=summaries,
    )
    return adapters, log.reindex(columns=STUDENTS_LOG_COLUMNS), total


def predict_students(
    task: Task,
    evaluation_items: pd.DataFrame,
    students: Sequence[Student],
    adapters: Mapping[str, Callable[[], Adapter]],
    trained: dict[str, Any],
    parameters: EvaluateParameters,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let each student answer the items without and with its adapter, one student after another.

    ``trained`` is the summary of ``train_students``. Returns ``generations`` as in the evaluate pipeline, with the
    systems ``NAME student`` and ``NAME expert``, and the stage's summary. Raises RebaseError if a student has no
    adapter, or has that of another student of its name, or if a server is set for several students.
    """
    started = time.monotonic()
    named = by_name(students)
    if missing := [name for name in named if name not in adapters]:
        raise RebaseError(
            f"students: there is no adapter of {', '.join(missing)}. Run from the node train_students on."
        )
    for name, student in named.items():
        if trained["students"].get(name, {}).get("model_digest", _digest(student)) != _digest(student):
            raise RebaseError(
                f"students: the adapter of {name} was trained on another model of this name than {student.model!r}, "
                "because the list of students has changed. Run from the node train_students on; finished runs are not "
                "trained again."
            )
    if parameters.server and len(named) > 1:
        raise RebaseError(
            "students: a server has one student. Set `evaluate.server` to null, or list that student alone."
        )
    items, rejected = select_items(task, evaluation_items, parameters.limit)
    generations = []
    for name, student in named.items():
        logger.info("students: %s answers", name)
        answers = answer_items(task, items, student, {STUDENT: None, EXPERT: adapters[name]()}, parameters)
        generations.append(answers.assign(system=f"{name} " + answers["system"]))
    summary = summarize_stage(
        "students",
        kept=len(items),
        rejected=rejected,
        seconds=time.monotonic() - started,
        dtype=resolve_dtype(students[0].dtype),
    )
    return pd.concat(generations, ignore_index=True), summary


def _digest(student: Student) -> str:
    """A digest of where the student comes from: a folder's path is private, and its name is not unique."""
    return fingerprint_of(student.model, student.revision)[:16]


def score_students(
    task: Task, generations: pd.DataFrame, trained: dict[str, Any], parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any], pd.DataFrame]:
    """Predictions; scores with paired differences of each student's training and of any two experts; the table.

    ``trained`` is the summary of ``train_students``. The table has one row per student and metric
    (``STUDENTS_COLUMNS``). The scores also have ``warnings`` about the experts, which are logged.
    """
    answered = set(generations["system"])
    names = [name for name in trained["students"] if f"{name} {EXPERT}" in answered]
    gains = {name: (f"{name} {EXPERT}", f"{name} {STUDENT}") for name in names}
    between = [(gains[later][0], gains[earlier][0]) for earlier, later in combinations(names, 2)]
    predictions, scores = score_predictions(task, generations, parameters, [*gains.values(), *between])
    rows = []
    for name, (after, before) in gains.items():
        summary = trained["students"][name]
        cells = {
            "before": scores["systems"][before],
            "after": scores["systems"][after],
            "gain": scores["differences"][f"{after} - {before}"],
        }
        for metric in task.metrics:
            row = {"student": name, "revision": summary["revision"], "metric": metric}
            for which, cell in cells.items():
                row |= {f"{which}_{key}".removesuffix("_value"): value for key, value in cell[metric].items()}
            row |= {
                "items": scores["n"],
                "examples": summary["kept"],
                "trainable_parameters": summary["trainable_parameters"],
                "minutes": round(summary["seconds"] / 60, 2),
            }
            rows.append(row)
            logger.info(
                "students: {student} · {metric}: {before:.1f} before, {after:.1f} after, gain {gain:+.1f} "
                "[{gain_low:+.1f}, {gain_high:+.1f}]; {trainable_parameters:,} trainable parameters, "
                "{minutes:.1f} min".format_map(row)
            )
    doubts = warnings(task, predictions, scores, *(after for after, _ in gains.values()))
    for doubt in doubts:
        logger.warning("students: %s", doubt)
    return predictions, scores | {"warnings": doubts}, pd.DataFrame(rows, columns=STUDENTS_COLUMNS)
