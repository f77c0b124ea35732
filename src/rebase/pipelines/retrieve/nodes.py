"""Retrieve: rank every row for the task, and filter the ranked rows (docs/method.md section 4)."""

import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from itertools import starmap
from operator import itemgetter
from statistics import mode
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from tqdm import tqdm

from rebase.datastore.annoy_index import search_annoy
from rebase.datastore.encoder import Encoder
from rebase.datastore.search import Ranking, TaskVectors, check_encoder, search_exact
from rebase.datastore.shards import Shards
from rebase.errors import RebaseError, StageError
from rebase.generation.filters.base import Candidate, Rejection
from rebase.generation.filters.code import reject_without_code
from rebase.generation.filters.duplicates import Duplicates
from rebase.generation.filters.passages import find_passage, reject_without_passage
from rebase.generation.filters.sources import source_filter
from rebase.generation.mapping import interleave
from rebase.parameters import ContaminationParameters, RetrieveParameters
from rebase.records import RETRIEVAL_REJECTED_COLUMNS, RETRIEVED_COLUMNS, ROW_COLUMNS, Task, summarize_stage

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A ranked row: its rank from 1, its scores and its columns.
_Ranked = tuple[int, dict[str, Any], dict[str, Any]]

#: Ranked rows that are read at once, which bounds the memory; each of their datasets is read once.
_ROWS_READ_AT_ONCE = 1000
#: The first search returns this many times ``top_n`` rows, each further search this many times more.
_WIDENING = 4
#: Rows with other labels are looked for among this many times ``top_n`` rows.
_BALANCED = 16
#: A column with more values among the ranked rows of its dataset has no labels.
_MAX_LABELS = 20


def retrieve_rows(  # noqa: PLR0913, PLR0917 - one argument for each input
    task: Task,
    encoder: Encoder,
    index: Shards,
    annoy_index: Shards,
    vectors: Shards,
    rows: Shards,
    cards: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    parameters: RetrieveParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Keep the ``top_n`` best rows that pass every filter.

    Ranked rows are filtered, best first, until enough have passed or there are no more. If the task has labels, the
    places of a dataset go to its labels in turn (``balance_labels``). No dataset has more than its share of them, nor
    of the first ones (``spread``).

    Returns:
        The kept rows, in the order of their use, each with its three scores, the column and value that matched best
        on either side, its passage (for tasks that take one from the row) and its duplicates; the rejected rows, with
        rank and reason; the stage's summary, with Annoy's recall of the exact top ``top_n``.

    Raises:
        RebaseError: The index is not that of these vectors and rows, was built with another encoder, the rows by an
            earlier version, the cards are those of other rows, or no row passed.

    """
    started = time.monotonic()
    index.check_made_of(vectors)
    vectors.check_made_of(rows)
    rows.check_cards(cards)
    # Checked before the encoder is loaded, which may not be available here.
    check_encoder(index.first_metadata()["encoder"], encoder.identity)
    task_vectors = embed_task(task, encoder)

    def search(method: str, count: int) -> Ranking:
        if method == "exact":
            return search_exact(index, vectors, [task_vectors], count, parameters.aggregation)[0]
        return search_annoy(
            index, annoy_index, vectors, task_vectors, count, parameters.aggregation, parameters.annoy_candidates
        )

    count = _WIDENING * parameters.top_n
    exact = search("exact", count)
    near = search("annoy", count) if annoy_index or parameters.search == "annoy" else None
    first = near if near and parameters.search == "annoy" else exact
    ranked = _widen(partial(search, parameters.search), first, count)

    def rank_others(datasets: Set[str], after: int) -> Iterator[_Ranked]:
        others = search(parameters.search, _BALANCED * parameters.top_n).lines.iloc[after:]
        return _read(iter([others[others["dataset"].isin(datasets)]]), rows)

    kept, rejected = _filter_ranked(
        task, _read(ranked, rows), rank_others, evaluation_items, cards, parameters, contamination
    )
    by_reason = dict(Counter(rejected["reason"]))
    if kept.empty:
        raise StageError(
            f"retrieve: none of {len(rejected)} rows passed the filters for task {task.name!r}: {by_reason}. "
            "Add sources, or change the task's `exclude` or `language`, `retrieve.licenses` or "
            "`retrieve.min_passage_words`.",
            rejected,
        )
    if len(kept) < parameters.top_n:
        logger.warning("retrieve: %d of the %d wanted rows passed the filters", len(kept), parameters.top_n)
    summary = summarize_stage(
        "retrieve",
        kept=len(kept),
        rejected=by_reason,
        seconds=time.monotonic() - started,
        rows_indexed=exact.scanned,
        rows_rescored=exact.rescored,
        search=parameters.search,
        annoy_recall=near and _recall(exact, parameters.top_n, near),
        datasets=dict(Counter(kept["dataset"]).most_common()),
    )
    return kept, rejected, summary


def embed_task(task: Task, encoder: Encoder) -> TaskVectors:
    """Embed the instruction and the examples' queries and answers."""
    queries, answers = map(task.render_query, task.examples), (example["answer"] for example in task.examples)
    with encoder.open() as opened:
        vectors = opened.encode([task.instruction, *queries, *answers]).vectors
    count = len(task.examples)
    return TaskVectors(vectors[0], vectors[1 : 1 + count], vectors[1 + count :], encoder.identity)


def most_of_a_dataset(share: float, top_n: int) -> int:
    """The most rows of one dataset among ``top_n``."""
    return max(1, int(round(share * top_n, 6)))  # In Python 0.29 * 100 is 28.999999999999996.


def _widen(search: Callable[[int], Ranking], first: Ranking, count: int) -> Iterator[pd.DataFrame]:
    """Yield the ranked rows in parts: the ``count`` rows of the first search, then those of wider searches."""
    ranking, done = first, 0
    while True:
        yield ranking.lines.iloc[done:]
        done = len(ranking.lines)
        if done < count:
            return
        count *= _WIDENING
        ranking = search(count)


def _recall(exact: Ranking, top_n: int, near: Ranking) -> float:
    """The share of the true ``top_n`` rows that are among Annoy's."""
    best = exact.lines.head(top_n)[["dataset", "row"]]
    return len(best.merge(near.lines[["dataset", "row"]])) / len(best)


class _RankedRow(NamedTuple):
    """A ranked row, as the filters see it and as ``retrieved`` has it."""

    candidate: Candidate
    line: dict[str, Any]

    @property
    def row_id(self) -> str:
        return self.candidate.row_id

    @property
    def dataset(self) -> str:
        return self.candidate.dataset


def _filter_ranked(
    task: Task,
    ranked: Iterator[_Ranked],
    rank_others: Callable[[Set[str], int], Iterator[_Ranked]],
    evaluation_items: pd.DataFrame,
    cards: pd.DataFrame,
    parameters: RetrieveParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ``top_n`` best rows that pass the filters, and the rows rejected before enough had passed.

    ``rank_others`` are the rows of some datasets after a rank.
    """
    reject_source = source_filter(task, evaluation_items, cards, parameters.licenses, contamination.ngram)
    duplicates, answers_python = Duplicates(parameters.near_duplicate), task.answers_python
    kept_of_dataset: Counter[str] = Counter()
    limit = most_of_a_dataset(parameters.max_dataset_share, parameters.top_n)

    def read(rank: int, scores: dict[str, Any], row: dict[str, Any]) -> _RankedRow:
        cells = json.loads(row["row"])
        best = {f"{side}_value": cells.get(scores[f"{side}_column"] or "") for side in ("query", "answer")}
        candidate = Candidate(
            row["row_id"], row["dataset"], row["license"], cells, row["content_hash"], scores["query_column"]
        )
        passage = find_passage(candidate, parameters) if task.passage else None
        return _RankedRow(candidate, {"rank": rank, **scores, **row, **best, **(passage._asdict() if passage else {})})

    def reject_text(row: _RankedRow) -> Rejection | None:
        passage = row.line.get("passage")
        if rejection := reject_source(row.candidate, passage or row.candidate.longest_cell):
            return rejection
        if task.passage and not passage:
            return reject_without_passage(row.candidate, parameters)
        return reject_without_code(row.candidate) if answers_python else None

    kept: list[_RankedRow] = []
    spare: list[_RankedRow] = []
    rejected: dict[str, list[Any]] = {}
    rank = 0

    def note(row: _RankedRow, rejection: Rejection) -> None:
        columns = (row.line[name] for name in ("rank", "row_id", "dataset", "score"))
        rejected[row.row_id] = [*columns, rejection.reason, rejection.detail]

    with tqdm(total=parameters.top_n, desc="retrieve", unit="row") as bar:
        for rank, scores, columns in ranked:
            row = read(rank, scores, columns)
            if rejection := reject_text(row) or duplicates.reject(row.candidate):
                note(row, rejection)
            elif kept_of_dataset[row.dataset] >= limit:
                note(row, Rejection("dataset_share", row.dataset))
                spare.append(row)
            else:
                duplicates.keep(row.candidate)
                kept_of_dataset[row.dataset] += 1
                kept.append(row)
                bar.update()
                if len(kept) == parameters.top_n:
                    break
    if task.answer.labels and parameters.balance_labels:
        others = starmap(read, rank_others(kept_of_dataset.keys(), rank))
        balanced = _balance_labels(kept, [*spare, *(row for row in others if not reject_text(row))], duplicates)
        for row in kept:
            note(row, Rejection("label_share", row.dataset))
        for row in balanced:
            rejected.pop(row.row_id, None)
        kept = balanced
    kept = spread(kept, [row.dataset for row in kept], parameters.max_dataset_share)
    kept_rows = pd.DataFrame(
        [row.line | {"duplicates": json.dumps(duplicates.of[row.row_id])} for row in kept], columns=RETRIEVED_COLUMNS
    )
    return kept_rows, pd.DataFrame(sorted(rejected.values()), columns=RETRIEVAL_REJECTED_COLUMNS)


def spread(rows: Sequence[T], datasets: Sequence[str], share: float) -> list[T]:
    """The rows, best first, but so that no dataset has more than its share of the first ones while others are left.

    A run ends at ``max_examples``: without this, its examples could all come from the dataset whose rows are the best.
    Where each dataset has its share, the rows of the least used one come next.
    """
    waiting: dict[str, deque[int]] = {}
    for position, dataset in enumerate(datasets):
        waiting.setdefault(dataset, deque()).append(position)
    taken: Counter[str] = Counter()
    order: list[int] = []
    for count in range(1, len(rows) + 1):
        limit = most_of_a_dataset(share, count)
        dataset = min(waiting, key=lambda name: (max(limit, taken[name] + 1), waiting[name][0]))
        order.append(waiting[dataset].popleft())
        taken[dataset] += 1
        if not waiting[dataset]:
            del waiting[dataset]
    return [rows[position] for position in order]


def _balance_labels(kept: list[_RankedRow], spare: list[_RankedRow], duplicates: Duplicates) -> list[_RankedRow]:
    """The rows that take the places of the kept ones: those of a dataset go to its labels in turn.

    S ranks the rows of a dataset by their labels: all rows with the label nearest to the examples' answers come before
    the first row with another one. Both lists are in the order of their ranks. Datasets without labels keep their rows.
    """
    kept_ids = {row.row_id for row in kept}
    pools: dict[str, list[_RankedRow]] = {}
    for row in [*kept, *spare]:
        pools.setdefault(row.dataset, []).append(row)
    in_turn = {
        dataset: iter(_by_label(pool, mode(row.line["answer_column"] for row in pool if row.row_id in kept_ids)))
        for dataset, pool in pools.items()
    }

    def take(dataset: str) -> _RankedRow:
        row = next(row for row in in_turn[dataset] if row.row_id in kept_ids or not duplicates.reject(row.candidate))
        if row.row_id not in kept_ids:
            duplicates.keep(row.candidate)
        return row

    return [take(row.dataset) for row in kept]


def _by_label(rows: list[_RankedRow], column: str | None) -> list[_RankedRow]:
    """The rows so that the values of the column take turns, those without a value last; as they are without labels."""
    labels = [row.candidate.cells.get(column or "", "").strip().casefold() for row in rows]
    if len({*labels} - {""}) > _MAX_LABELS:
        return rows
    labeled = list(zip(labels, rows, strict=True))
    in_turn = interleave((pair for pair in labeled if pair[0]), itemgetter(0))
    return [row for _, row in [*in_turn, *(pair for pair in labeled if not pair[0])]]


def _read(parts: Iterator[pd.DataFrame], rows: Shards) -> Iterator[_Ranked]:
    """Yield the ranked rows in order."""
    for part in parts:
        for start in range(0, len(part), _ROWS_READ_AT_ONCE):
            ranked = part.iloc[start : start + _ROWS_READ_AT_ONCE]
            lines: dict[tuple[str, int], dict[str, Any]] = {}
            for dataset, group in ranked.groupby("dataset"):
                table = rows[dataset].take(group["row"].to_numpy())
                if missing := sorted(set(ROW_COLUMNS) - set(table.column_names)):
                    raise RebaseError(
                        f"{rows.folder}: the rows have no column {', '.join(missing)}, because an earlier version of "
                        "rebase wrote them. Build this datastore again: kedro run --pipelines=ingest,embed,index."
                    )
                lines |= {(dataset, row): line for row, line in zip(group["row"], table.to_pylist(), strict=True)}
            for position, scores in zip(ranked.index, ranked.to_dict("records"), strict=True):
                yield position + 1, scores, lines[scores["dataset"], scores["row"]]
