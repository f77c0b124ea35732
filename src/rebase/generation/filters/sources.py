"""The filters that depend on the row and the task alone, in the order in which they reject."""

from collections.abc import Callable

import pandas as pd

from rebase.generation.filters.base import Candidate, Rejection
from rebase.generation.filters.contamination import ContaminationFilter
from rebase.generation.filters.exclusion import reject_excluded
from rebase.generation.filters.languages import LanguageFilter
from rebase.generation.filters.licenses import reject_license
from rebase.parameters import LicensePolicy
from rebase.records import Task


def source_filter(
    task: Task, evaluation_items: pd.DataFrame, licenses: LicensePolicy, ngram: int
) -> Callable[[Candidate, str], Rejection | None]:
    """Reject excluded datasets, licenses, other languages (by a text of the row) and contaminated rows."""
    contaminated = ContaminationFilter.of(task, evaluation_items, ngram)
    languages = LanguageFilter(task)

    def reject(row: Candidate, text: str) -> Rejection | None:
        return (
            reject_excluded(row, task)
            or reject_license(row, licenses)
            or languages.reject(row.config, text)
            or contaminated.reject(row.cells)
        )

    return reject
