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
    all_predictions: Mapping[str, Callable[[], pd.DataFrame]],
    parameters: EvaluateParameters,
) -> dict[str, Any]:
    """For each group of tasks the mean over its tasks of their first metric, for every system that answered them all.

    Both are partitions by the name of the task; the predictions are those of each task's last run. The interval draws
    items anew within each task. ``missing`` names the tasks of a group that were not run: a mean without them is not
    the benchmark's. Raises RebaseError where no task of any group was run.
    """
    tasks = {name: Task.parse(load(), f"{name}.yml") for name, load in all_tasks.items()}
    predictions = {name: load() for name, load in all_predictions.items() if tasks.get(name) and tasks[name].groups}
    if not predictions:
        raise RebaseError("groups: no task that belongs to a group was run. Run one: kedro run --params=task=bbh_...")
    found = {}
    for group in sorted({group for name in predictions for group in tasks[name].groups}):
        members = [name for name, task in tasks.items() if group in task.groups]
        done = {name: predictions[name].groupby("system") for name in members if name in predictions}
        systems = set.intersection(*({str(system) for system in by.groups} for by in done.values()))
        found[group] = {
            "tasks": sorted(done),
            "missing": sorted({*members} - {*done}),
            "systems": {
                system: bootstrap_means(
                    [by.get_group(system)[tasks[name].metrics[0]].to_list() for name, by in done.items()],
                    parameters.bootstrap_samples,
                    parameters.confidence,
                    parameters.seed,
                )
                for system in sorted(systems)
            },
        }
    return {"unit": "percent", "confidence": parameters.confidence, "groups": found}
