"""Exclude datasets by name, and examples by dataset and license."""

from collections import Counter

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters.base import Candidate, Rejection, find_pattern
from rebase.generation.filters.licenses import license_allowed
from rebase.parameters import ExcludeParameters, LicensePolicy
from rebase.records import Task


def reject_excluded(row: Candidate, task: Task) -> Rejection | None:
    """Reject datasets that the task excludes, and those whose id contains the name of the task (arXiv 2407.05463)."""
    # The name as it is written, as in the published code: "school-word-problems" does not match "word_problems". The
    # contamination filter finds copies under any name.
    pattern = find_pattern(row.dataset, [*task.exclude, f"*{task.name}*"])
    return Rejection("excluded_dataset", pattern) if pattern else None


def why_excluded(dataset: object, license: object, exclude: ExcludeParameters) -> str | None:
    """Why an example from the dataset, under the license, is excluded from training; None if it is not.

    An example without a source has neither and is never excluded.
    """
    if not isinstance(dataset, str):
        return None
    if find_pattern(dataset, exclude.datasets):
        return "excluded_dataset"
    policy = LicensePolicy(allow=("*",), deny=exclude.licenses, unknown="allow")
    return None if license_allowed(license if isinstance(license, str) else "unknown", policy) else "excluded_license"


def remove_excluded(examples: pd.DataFrame, exclude: ExcludeParameters) -> tuple[pd.DataFrame, dict[str, int]]:
    """The examples without those of excluded datasets and licenses, and counts of the excluded ones by reason.

    Raises RebaseError if all examples are excluded.
    """
    if examples.empty:  # and perhaps without columns
        return examples, {}
    sources = zip(examples["dataset"], examples["license"], strict=True)
    reasons = [why_excluded(dataset, license, exclude) for dataset, license in sources]
    excluded = dict(Counter(filter(None, reasons)))
    if None not in reasons:
        raise RebaseError(
            f"train: `train.exclude` removes every example: {excluded}. Exclude less, or make other examples; "
            "`kedro trace DATASET` shows which examples come from a dataset."
        )
    return examples[[reason is None for reason in reasons]], excluded
