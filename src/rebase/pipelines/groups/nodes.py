"""Groups: means over the tasks of a benchmark, such as BIG-Bench Hard (docs/method.md section 8)."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.parameters import EvaluateParameters
from rebase.records import Task
from rebase.tasks.metrics import bootstrap_means


def average_groups(
    all_tasks: Mapping[str, Callable[[], Any]],
    item_scores: Mapping[str, Callable[[], pd.DataFrame]],
    parameters: EvaluateParameters,
) -> dict[str, Any]:
    """Average the first metric over each group's tasks, for every system that answered all evaluated tasks.

    Both inputs have one partition per task; the scores are those of each task's last evaluation. The interval draws
    items within each task. ``missing`` lists tasks of a group without scores: a mean without them is not comparable
    with the benchmark's. Raises RebaseError if no task of any group has scores, or one has none by its first metric.
    """
    tasks = {name: Task.parse(load(), f"{name}.yml") for name, load in all_tasks.items()}
    scores = {name: load() for name, load in item_scores.items() if name in tasks and tasks[name].groups}
    if not scores:
        raise RebaseError("groups: no task of a group has been evaluated. Run one: kedro run --params=task=bbh_...")
    for name, table in scores.items():
        if (metric := tasks[name].metrics[0]) not in table:
            raise RebaseError(
                f"groups: the scores of the task {name!r} have no {metric}: its metrics have changed. Evaluate it "
                f"again: kedro run --pipelines=evaluate --params=task={name}"
            )
    groups = {}
    for group in sorted({group for name in scores for group in tasks[name].groups}):
        members = [name for name, task in tasks.items() if group in task.groups]
        by_system = {name: scores[name].groupby("system") for name in members if name in scores}
        systems = set.intersection(*({str(system) for system in frame.groups} for frame in by_system.values()))
        groups[group] = {
            "tasks": sorted(by_system),
            "missing": sorted({*members} - {*by_system}),
            "systems": {
                system: bootstrap_means(
                    [frame.get_group(system)[tasks[name].metrics[0]].to_list() for name, frame in by_system.items()],
                    parameters.bootstrap_samples,
                    parameters.confidence,
                    parameters.seed,
                )
                for system in sorted(systems)
            },
        }
    return {"unit": "percent", "confidence": parameters.confidence, "groups": groups}
