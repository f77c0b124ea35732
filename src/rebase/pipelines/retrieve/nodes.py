"""Retrieve: rank every row for the task, and filter the ranked rows (docs/method.md section 4)."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
from tqdm import tqdm

from rebase.datastore.annoy_index import search_annoy
from rebase.datastore.encoder import Encoder
from rebase.datastore.search import Ranking, TaskVectors, check_encoder, search_exact
from rebase.datastore.shards import Shards
from rebase.errors import RebaseError, StageError
from rebase.generation.filters.base import Candidate, Rejection
from rebase.generation.filters.duplicates import Duplicates
from rebase.generation.filters.passages import Passage, find_passage, reject_without_passage
from rebase.generation.filters.sources import source_filter
from rebase.parameters import ContaminationParameters, RetrieveParameters
from rebase.records import RETRIEVAL_REJECTED_COLUMNS, RETRIEVED_COLUMNS, ROW_COLUMNS, Task, summarize_stage

logger = logging.getLogger(__name__)

#: Ranked rows that are read at once, which bounds the memory; each of their datasets is read once.
_ROWS_READ_AT_ONCE = 1000
#: The first search returns this many times ``top_n`` rows, each further search this many times more.
_WIDENING = 4


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

    Ranked rows are filtered, best first, until enough have passed or there are no more.

    Returns:
        The kept rows, best first, each with its three scores, the column and value that matched best on either
        side, its passage (for tasks that take one from the row) and its duplicates; the rejected rows, with
        rank and reason; the stage's summary, with Annoy's recall of the exact top ``top_n``.

    Raises:
        RebaseError: The index is not that of these vectors and rows, was built with another encoder, the rows by an
            earlier version, or no row passed.

    """
    started = time.monotonic()
    index.check_made_of(vectors)
    vectors.check_made_of(rows)
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
    kept, rejected = _filter_ranked(task, _read(ranked, rows), evaluation_items, cards, parameters, contamination)
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


def _filter_ranked(
    task: Task,
    ranked: Iterator[tuple[dict[str, Any], dict[str, Any]]],
    evaluation_items: pd.DataFrame,
    cards: pd.DataFrame,
    parameters: RetrieveParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ``top_n`` best rows that pass the filters, and the rows rejected before enough had passed."""
    reject_source = source_filter(task, evaluation_items, cards, parameters.licenses, contamination.ngram)
    duplicates = Duplicates(parameters.near_duplicate)
    kept_of_dataset: Counter[str] = Counter()
    limit = most_of_a_dataset(parameters.max_dataset_share, parameters.top_n)

    def reject(row: Candidate, passage: Passage | None) -> Rejection | None:
        return (
            reject_source(row, passage.passage if passage else row.longest_cell)
            or (reject_without_passage(row, parameters) if task.passage and not passage else None)
            or duplicates.reject(row)
            or (Rejection("dataset_share", row.dataset) if kept_of_dataset[row.dataset] >= limit else None)
        )

    kept: list[dict[str, Any]] = []
    rejected: list[list[Any]] = []
    with tqdm(total=parameters.top_n, desc="retrieve", unit="row") as bar:
        for rank, (scores, row) in enumerate(ranked, start=1):
            row_id, dataset, cells = row["row_id"], row["dataset"], json.loads(row["row"])
            candidate = Candidate(row_id, dataset, row["license"], cells, row["content_hash"], scores["query_column"])
            passage = find_passage(candidate, parameters) if task.passage else None
            if rejection := reject(candidate, passage):
                rejected.append([rank, row_id, dataset, scores["score"], rejection.reason, rejection.detail])
                continue
            duplicates.keep(candidate)
            kept_of_dataset[dataset] += 1
            best = {f"{side}_value": cells.get(scores[f"{side}_column"] or "") for side in ("query", "answer")}
            kept.append({"rank": rank, **scores, **row, **best, **(passage._asdict() if passage else {})})
            bar.update()
            if len(kept) == parameters.top_n:
                break
    for row in kept:
        row["duplicates"] = json.dumps(duplicates.of[row["row_id"]])
    kept_rows = pd.DataFrame(kept, columns=RETRIEVED_COLUMNS)
    return kept_rows, pd.DataFrame(rejected, columns=RETRIEVAL_REJECTED_COLUMNS)


def _read(parts: Iterator[pd.DataFrame], rows: Shards) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield for each ranked row, in order, its scores and its columns."""
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
            for scores in ranked.to_dict("records"):
                yield scores, lines[scores["dataset"], scores["row"]]
