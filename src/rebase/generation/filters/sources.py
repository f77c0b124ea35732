"""The filters that depend on the row and the task alone, in the order in which they reject."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import pandas as pd

from rebase.generation.filters.base import Candidate, Rejection
from rebase.generation.filters.contamination import ContaminationFilter
from rebase.generation.filters.exclusion import reject_excluded
from rebase.generation.filters.languages import LanguageFilter
from rebase.generation.filters.licenses import reject_license
from rebase.parameters import LicensePolicy
from rebase.records import Task


def source_filter(
    task: Task, evaluation_items: pd.DataFrame, cards: pd.DataFrame, licenses: LicensePolicy, ngram: int
) -> Callable[[Candidate, str], Rejection | None]:
    """Reject excluded datasets, licenses, other languages (by a text of the row) and contaminated rows.

    A dataset is excluded under the name, and by the license, of each of its duplicates in the ``cards``, too.
    """
    contaminated = ContaminationFilter.of(task, evaluation_items, ngram)
    languages = LanguageFilter(task)
    duplicates: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for card in cards[cards["duplicate_of"] != ""].itertuples():
        duplicates[card.duplicate_of].append((card.dataset, card.license))

    @cache
    def of_queries() -> ContaminationFilter:
        # Only a mapped query without a passage needs another filter: it has the words of the mapping's template.
        return contaminated if task.passage else ContaminationFilter.of_queries(task, evaluation_items, ngram)

    def reject(row: Candidate, text: str) -> Rejection | None:
        others = duplicates.get(row.dataset, ())
        copies = [row, *(replace(row, dataset=dataset, license=license) for dataset, license in others)]
        return (
            _first(reject_excluded(copy, task) for copy in copies)
            or _first(reject_license(copy, licenses) for copy in copies)
            or languages.reject(row.config, text)
            or contaminated.reject(row.cells)
            # A passage is cleaned: of HTML entities, for example, which hide what it shares with an item.
            or (None if text in row.cells.values() else of_queries().reject({"passage": text}))
        )

    return reject


def _first(rejections: Iterable[Rejection | None]) -> Rejection | None:
    return next(filter(None, rejections), None)
