"""Students: any number of them, trained on one set of examples that was bought once (docs/method.md section 9)."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import EvaluateParameters, TrainParameters
from rebase.pipelines.evaluate.nodes import predict
from rebase.pipelines.train.nodes import format_training_set, inspect_training, train_student
from rebase.records import Adapter, Task
from rebase.student.answering import EXPERT, STUDENT
from rebase.student.formatting import Target
from rebase.student.handle import Student
from rebase.tasks.scoring import aggregate, score_answers

logger = logging.getLogger(__name__)


def by_name(students: Sequence[Student]) -> dict[str, Student]:
    """The students by names that are safe as folders, in their order; of one name the later ones are numbered.

    No two names are one where case does not count, as on some file systems.
    """
    named: dict[str, Student] = {}
    for student in students:
        name = first = re.sub(r"[^\w.-]+", "-", student.name).strip(".-") or "student"
        taken, number = {other.casefold() for other in named}, 1
        while name.casefold() in taken:
            number += 1
            name = f"{first}-{number}"
        named[name] = student
    return named


def train_students(
    task: Task, examples: pd.DataFrame, students: Sequence[Student], parameters: TrainParameters, target: Target
) -> tuple[dict[str, Adapter], dict[str, Any]]:
    """Train each student on the examples, one after another; runs that were finished before are not trained again.

    Returns the adapters by name, each with its card, and the summary: sums over the students, and each one's own under
    ``students``. Raises RebaseError as the nodes of ``train`` do, and before the first training where one student
    cannot be trained so.
    """
    prepared = []
    for name, student in by_name(students).items():
        logger.info("students: %s is looked at", name)
        training_set = format_training_set(task, examples, student, parameters, target)
        prepared.append((name, student, training_set, inspect_training(training_set, student, parameters)))
    adapters, each = {}, {}
    for name, student, training_set, preflight in prepared:
        logger.info("students: %s is trained", name)
        adapters[name], _, trained = train_student(task, training_set, examples, student, preflight, parameters, target)
        each[name] = trained | {"revision": student.revision}
    rejected = sum((Counter(trained["rejected"]) for trained in each.values()), Counter[str]())
    counts = {count: sum(trained[count] for trained in each.values()) for count in ("in", "kept")}
    return adapters, {"stage": "train", **counts, "rejected": dict(rejected), "students": each}


def predict_students(
    task: Task,
    evaluation_items: pd.DataFrame,
    students: Sequence[Student],
    adapters: Mapping[str, Callable[[], Adapter]],
    parameters: EvaluateParameters,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Let each student answer the items as it came and with its adapter, one student after another.

    Returns ``generations`` as ``evaluate`` has them, with the systems ``NAME student`` and ``NAME expert``, and the
    stage's summary. Raises RebaseError where a student has no adapter, or one server is to answer for several.
    """
    named = by_name(students)
    if missing := [name for name in named if name not in adapters]:
        raise RebaseError(
            f"students: there is no adapter of {', '.join(missing)}. Run from the node train_students on."
        )
    if parameters.server and len(named) > 1:
        raise RebaseError(
            "students: a server holds one student. Set `evaluate.server` to null, or list that student alone."
        )
    answered = []
    for name, student in named.items():
        logger.info("students: %s answers", name)
        generations, summary = predict(task, evaluation_items, student, adapters[name](), parameters)
        answered.append(generations.assign(system=f"{name} " + generations["system"]))
    counts = {key: summary[key] for key in ("in", "kept", "rejected")}
    return pd.concat(answered, ignore_index=True), {"stage": "students", **counts}


def score_students(
    task: Task, generations: pd.DataFrame, trained: dict[str, Any], parameters: EvaluateParameters
) -> tuple[pd.DataFrame, dict[str, Any], pd.DataFrame]:
    """Predictions; scores with the paired differences of each student's training and of every two experts; the table.

    ``trained`` is the summary of ``train_students``. The table has a line a student and metric: ``student``,
    ``revision``, ``metric``; ``before``, ``after`` and ``gain`` in percent with ``_low`` and ``_high`` (of the gain,
    paired, ``_p`` too); ``items``; ``examples`` trained on, ``trainable_parameters``, ``minutes`` of training.
    """
    predictions = score_answers(task, generations)
    names = [system.removesuffix(f" {EXPERT}") for system in predictions["system"].unique() if system.endswith(EXPERT)]
    gains = {name: (f"{name} {EXPERT}", f"{name} {STUDENT}") for name in names}
    between = [(gains[later][0], gains[earlier][0]) for earlier, later in combinations(names, 2)]
    scores = aggregate(task, predictions, [*gains.values(), *between], parameters)
    lines = []
    for name, (after, before) in gains.items():
        own = trained["students"][name]
        cells = {
            "before": scores["systems"][before],
            "after": scores["systems"][after],
            "gain": scores["differences"][f"{after} - {before}"],
        }
        for metric in task.metrics:
            lines.append(
                {"student": name, "revision": own["revision"], "metric": metric}
                | {
                    f"{which}_{key}".removesuffix("_value"): value
                    for which, cell in cells.items()
                    for key, value in cell[metric].items()
                }
                | {
                    "items": scores["n"],
                    "examples": own["kept"],
                    "trainable_parameters": own["trainable_parameters"],
                    "minutes": round(own["seconds"] / 60, 2),
                }
            )
            logger.info(
                "students: {student} · {metric}: {before:.1f} before, {after:.1f} after, gain {gain:+.1f} "
                "[{gain_low:+.1f}, {gain_high:+.1f}]; {trainable_parameters:,} trainable parameters, "
                "{minutes:.1f} min".format_map(lines[-1])
            )
    return predictions, scores, pd.DataFrame(lines)
