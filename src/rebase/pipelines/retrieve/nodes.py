"""Retrieve: score every row for the task, and walk down the ranking through the filters (docs/method.md section 4)."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from tqdm import tqdm

from rebase.datastore.annoy_index import search_annoy
from rebase.datastore.encoder import Encoder
from rebase.datastore.search import Ranking, TaskVectors, check_encoder, search_exact
from rebase.datastore.shards import Shards
from rebase.errors import RebaseError
from rebase.generation.filters import (
    Candidate,
    Duplicates,
    Filter,
    Rejection,
    contamination_filter,
    duplicate_filter,
    exclusion_filter,
    find_passage,
    license_filter,
    passage_filter,
    protected_texts,
    share_filter,
)
from rebase.parameters import ContaminationParameters, RetrieveParameters
from rebase.records import Task

logger = logging.getLogger(__name__)

#: What explains a kept row: its scores, and the columns whose cells matched best.
_EXPLANATION = ["score", "score_dataset", "score_query", "score_answer", "query_column", "answer_column"]
#: Ranked rows are read so many at a time, a dataset once each time: bounds the memory.
_ROWS_READ_AT_ONCE = 1000
#: The first search asks for so many times ``top_n`` rows, each further one for so many times more.
_WIDENING = 4
_REJECTED_COLUMNS = ["rank", "row_id", "dataset", "score", "reason", "detail"]


def retrieve_rows(  # noqa: PLR0913, PLR0917 - one argument for each input
    task: Task,
    encoder: Encoder,
    index: Shards,
    forest: Shards,
    vectors: Shards,
    rows: Shards,
    evaluation_items: pd.DataFrame,
    parameters: RetrieveParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Keep the ``top_n`` best rows that pass every filter.

    The walk goes down the ranking until enough rows have passed or the rows end; where it stopped is reported.

    Returns:
        The kept rows, best first, each with its three scores, the column and value that matched best on either
        side, its passage (for tasks that take one from the row) and its duplicates; the rows rejected on the way, with
        rank and reason; the stage's summary, with Annoy's recall of the exact top ``top_n``.

    Raises:
        RebaseError: The index was built with another encoder, or no row passed.

    """
    # Before the encoder is loaded, which may be one that cannot be had here.
    check_encoder(index.first_metadata()["encoder"], encoder.identity)
    searched_for = embed_task(task, encoder)

    def exactly(count: int) -> Ranking:
        return search_exact(index, vectors, [searched_for], count, parameters.aggregation, parameters.block_texts)[0]

    def nearly(count: int) -> Ranking:
        return search_annoy(
            index, forest, vectors, searched_for, count, parameters.aggregation, parameters.annoy_candidates
        )

    count = _WIDENING * parameters.top_n
    exact = exactly(count)
    near = nearly(count) if forest or parameters.search == "annoy" else None
    ranked = _ranked(nearly, near, count) if near and parameters.search == "annoy" else _ranked(exactly, exact, count)
    duplicates = Duplicates(parameters.near_duplicate)
    row_filter, passed = _filters(task, duplicates, evaluation_items, parameters, contamination)
    kept: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    bar = tqdm(total=parameters.top_n, desc="retrieve", unit="row")
    for rank, (found, line) in enumerate(_read(ranked, rows), start=1):
        candidate = Candidate(
            line["row_id"], line["dataset"], line["license"], json.loads(line["row"]), line["content_hash"]
        )
        rejection = row_filter(candidate)
        if rejection:
            rejected.append({"rank": rank, "row_id": candidate.row_id, "dataset": candidate.dataset,
                            "score": found["score"], "reason": rejection.reason, "detail": rejection.detail})  # fmt: skip
            continue
        passed(candidate)
        passage = find_passage(candidate, parameters) if task.passage else None
        kept.append({"rank": rank, **line, **_explain(found, candidate), "passage": passage})
        bar.update()
        if len(kept) == parameters.top_n:
            break
    bar.close()
    by_reason = dict(Counter(line["reason"] for line in rejected))
    if not kept:
        raise RebaseError(
            f"retrieve: none of {len(rejected)} rows passed the filters for task {task.name!r}: {by_reason}. "
            "Add sources, or look at `retrieve.licenses`, the task's `exclude` and `retrieve.min_passage_words`."
        )
    if len(kept) < parameters.top_n:
        logger.warning("retrieve: %d rows passed the filters, %d were wanted", len(kept), parameters.top_n)
    retrieved = pd.DataFrame(kept)
    retrieved["duplicates"] = [json.dumps(duplicates.of[row_id]) for row_id in retrieved["row_id"]]
    summary = {
        "stage": "retrieve",
        "in": len(kept) + len(rejected),
        "kept": len(kept),
        "rejected": by_reason,
        "rows_indexed": exact.scanned,
        "rows_rescored": exact.rescored,
        "search": parameters.search,
        "annoy_recall": near and _recall(exact, parameters.top_n, near),
        "datasets": dict(Counter(retrieved["dataset"]).most_common()),
    }
    return retrieved, pd.DataFrame(rejected, columns=_REJECTED_COLUMNS), summary


def embed_task(task: Task, encoder: Encoder) -> TaskVectors:
    """Embed the instruction and the examples' queries and answers."""
    texts = [
        task.instruction,
        *map(task.render_query, task.examples),
        *(example["answer"] for example in task.examples),
    ]
    with encoder.open() as opened:
        vectors = opened.encode(texts).vectors
    count = len(task.examples)
    return TaskVectors(vectors[0], vectors[1 : 1 + count], vectors[1 + count :], encoder.identity)


def _ranked(search: Callable[[int], Ranking], first: Ranking, count: int) -> Iterator[pd.DataFrame]:
    """The ranked rows, best first, in parts: ``first``, the best ``count``, and more as the walk goes on."""
    ranking, done = first, 0
    while True:
        yield ranking.lines.iloc[done:]
        done = len(ranking.lines)
        if done < count:
            return
        count *= _WIDENING
        ranking = search(count)


def _recall(first: Ranking, top_n: int, near: Ranking) -> float:
    """The share of the true ``top_n`` rows that are among Annoy's."""
    best = first.lines.head(top_n)[["dataset", "row"]]
    return len(best.merge(near.lines[["dataset", "row"]])) / len(best)


def _filters(
    task: Task,
    duplicates: Duplicates,
    evaluation_items: pd.DataFrame,
    parameters: RetrieveParameters,
    contamination: ContaminationParameters,
) -> tuple[Filter, Callable[[Candidate], None]]:
    """All filters as one, in the order of docs/method.md, and what to call with a row that passed."""
    kept: Counter[str] = Counter()
    limit = max(1, int(parameters.max_dataset_share * parameters.top_n))
    protected = protected_texts(task, evaluation_items["fields"], evaluation_items["references"])
    filters = [
        exclusion_filter(task),
        license_filter(parameters.licenses),
        contamination_filter(protected, contamination.ngram),
        *([passage_filter(parameters)] if task.passage else []),
        duplicate_filter(duplicates),
        share_filter(kept, limit),
    ]

    def row_filter(candidate: Candidate) -> Rejection | None:
        return next((rejection for one in filters if (rejection := one(candidate))), None)

    def passed(candidate: Candidate) -> None:
        duplicates.keep(candidate)
        kept[candidate.dataset] += 1

    return row_filter, passed


def _read(parts: Iterator[pd.DataFrame], rows: Shards) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each ranked row, in order: what the search found, and the row's own columns."""
    for part in parts:
        for start in range(0, len(part), _ROWS_READ_AT_ONCE):
            ranked = part.iloc[start : start + _ROWS_READ_AT_ONCE]
            lines = {
                (dataset, position): line
                for dataset, group in ranked.groupby("dataset")
                for position, line in zip(
                    group["row"], rows[dataset].take(group["row"].to_numpy()).to_pylist(), strict=True
                )
            }
            for found in ranked.to_dict("records"):
                yield found, lines[found["dataset"], found["row"]]


def _explain(found: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """Why a row ranks where it does: its scores, and what matched best on either side."""
    return {
        **{name: found[name] for name in _EXPLANATION},
        "query_value": candidate.cells.get(found["query_column"] or ""),
        "answer_value": candidate.cells.get(found["answer_column"] or ""),
    }
