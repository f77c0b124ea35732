"""Retrieve: score every row for the task, and walk down the ranking through the gates (docs/method.md section 4)."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from rebase.encoder import Encoder
from rebase.errors import RebaseError
from rebase.parameters import RetrieveParameters
from rebase.records import Task
from rebase.screening import (
    Candidate,
    Gate,
    Refusal,
    Twins,
    contamination_gate,
    duplicate_gate,
    exclusion_gate,
    licence_gate,
    passage_gate,
    passage_of,
    protected_texts,
    share_gate,
)
from rebase.search import (
    Forest,
    TaskVectors,
    VectorIndex,
    annoy_candidates,
    best_cell,
    query_vectors,
    rank_rows,
    score_rows,
)
from rebase.shards import Shards

logger = logging.getLogger(__name__)

_SCORES = ("score", "score_dataset", "score_query", "score_answer")
_REFUSED_COLUMNS = ["rank", "row_id", "dataset", "score", "reason", "detail"]


def retrieve_rows(
    task: Task,
    encoder: Encoder,
    index: VectorIndex,
    forest: Forest,
    rows: Shards,
    evaluation_set: pd.DataFrame,
    parameters: RetrieveParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Keep the ``top_n`` best rows that pass every gate.

    The walk goes down the ranking until enough rows have passed or the rows end; where it stopped is reported.

    Returns:
        The kept rows, best first, each with its three scores, the column and value that matched best on either
        side, its passage (for tasks that take one from the row) and its twins; the rows refused on the way, with
        rank and reason; the stage's summary, with Annoy's recall of the exact top ``top_n``.

    Raises:
        RebaseError: The index was built with another encoder, or no row passed.

    """
    task_vectors = _embed_task(task, encoder, index)
    scores = score_rows(index, task_vectors, parameters.aggregation, parameters.block_texts)
    total = scores.total
    parts = dict(zip(_SCORES, (total, scores.dataset, scores.query, scores.answer), strict=True))
    searched, recall = _search(index, forest, task_vectors, total, parameters)
    twins = Twins(parameters.near_duplicate)
    gate, passed = _gates(task, twins, evaluation_set, parameters)
    kept: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    bar = tqdm(total=parameters.top_n, desc="retrieve", unit="row")
    for rank, (row, candidate, line) in enumerate(_walk(index, rows, searched, total), start=1):
        refusal = gate(candidate)
        if refusal:
            score = float(total[row])
            refused.append({"rank": rank, "row_id": candidate.row_id, "dataset": candidate.dataset, "score": score,
                            "reason": refusal.reason, "detail": refusal.detail})  # fmt: skip
            continue
        passed(candidate)
        passage = passage_of(candidate, parameters) if task.passage else None
        kept.append({"rank": rank, **line, **_explain(index, row, candidate, parts, task_vectors), "passage": passage})
        bar.update()
        if len(kept) == parameters.top_n:
            break
    bar.close()
    by_reason = dict(Counter(line["reason"] for line in refused))
    if not kept:
        raise RebaseError(
            f"retrieve: none of {len(refused)} rows passed the gates for task {task.name!r}: {by_reason}. "
            "Add sources, or look at `retrieve.licences`, the task's `exclude` and `retrieve.min_passage_words`."
        )
    if len(kept) < parameters.top_n:
        logger.warning("retrieve: %d rows passed the gates, %d were wanted", len(kept), parameters.top_n)
    retrieved = pd.DataFrame(kept)
    retrieved["twins"] = [json.dumps(twins.of[row_id]) for row_id in retrieved["row_id"]]
    summary = {
        "stage": "retrieve",
        "in": len(kept) + len(refused),
        "kept": len(kept),
        "refused": by_reason,
        "rows_indexed": index.rows,
        "search": parameters.search,
        "annoy_recall": recall,
        "datasets": dict(Counter(retrieved["dataset"]).most_common()),
    }
    return retrieved, pd.DataFrame(refused, columns=_REFUSED_COLUMNS), summary


def _embed_task(task: Task, encoder: Encoder, index: VectorIndex) -> TaskVectors:
    """Embed the instruction and the examples' queries and answers, with the encoder that the index was built with."""
    if index.encoder != encoder.identity:
        raise RebaseError(
            f"The index was built with the encoder {index.encoder!r}, but `encoder` is {encoder.identity!r}. "
            "Set `encoder.model` in globals.yml back, or build the datastore again: "
            "kedro run --pipelines=embed,index."
        )
    texts = [
        task.instruction,
        *map(task.render_query, task.examples),
        *(example["answer"] for example in task.examples),
    ]
    with encoder.open() as opened:
        vectors = opened.encode(texts)
    count = len(task.examples)
    return TaskVectors(vectors[0], vectors[1 : 1 + count], vectors[1 + count :])


def _search(
    index: VectorIndex, forest: Forest, task: TaskVectors, total: np.ndarray, parameters: RetrieveParameters
) -> tuple[np.ndarray, float | None]:
    """The rows to rank, and what share of the exact top rows Annoy's candidates hold (None without a forest)."""
    every = np.arange(index.rows)
    if forest.annoy is None and parameters.search == "exact":
        return every, None
    sides = (task.queries, task.answers)
    queries = [query for side in sides for query in query_vectors(side, parameters.aggregation)]
    candidates = annoy_candidates(index, forest, queries, parameters.annoy_candidates)
    recall = float(np.isin(rank_rows(total, parameters.top_n), candidates).mean())
    return (every if parameters.search == "exact" else candidates), recall


def _gates(
    task: Task, twins: Twins, evaluation_set: pd.DataFrame, parameters: RetrieveParameters
) -> tuple[Gate, Callable[[Candidate], None]]:
    """All gates as one, in the order of docs/method.md, and what to call with a row that passed."""
    kept: Counter[str] = Counter()
    limit = max(1, int(parameters.max_dataset_share * parameters.top_n))
    protected = protected_texts(task, evaluation_set["fields"])
    gates = [
        exclusion_gate(task),
        licence_gate(parameters.licences),
        contamination_gate(protected, parameters.contamination_ngram),
        *([passage_gate(parameters)] if task.passage else []),
        duplicate_gate(twins),
        share_gate(kept, limit),
    ]

    def gate(candidate: Candidate) -> Refusal | None:
        return next((refusal for one in gates if (refusal := one(candidate))), None)

    def passed(candidate: Candidate) -> None:
        twins.keep(candidate)
        kept[candidate.dataset] += 1

    return gate, passed


def _walk(
    index: VectorIndex, rows: Shards, searched: np.ndarray, total: np.ndarray
) -> Iterator[tuple[int, Candidate, dict[str, Any]]]:
    """The searched rows, best first: number, candidate, and the row's own columns."""
    tables: dict[str, Any] = {}
    for row in searched[rank_rows(total[searched], len(searched))].tolist():
        dataset = int(index.dataset_of(np.array([row]))[0])
        name = index.datasets[dataset]
        if name not in tables:
            tables[name] = rows[name]
        line = tables[name].slice(row - int(index.dataset_start[dataset]), 1).to_pylist()[0]
        yield row, Candidate(line["row_id"], name, line["licence"], json.loads(line["row"]), line["content_hash"]), line


def _explain(
    index: VectorIndex, row: int, candidate: Candidate, parts: dict[str, np.ndarray], task: TaskVectors
) -> dict[str, Any]:
    """Why a row ranks where it does: its scores, and what matched best on either side."""
    query_column = best_cell(index, row, task.queries)
    answer_column = best_cell(index, row, task.answers)
    return {
        **{name: float(part[row]) for name, part in parts.items()},
        "query_column": query_column,
        "query_value": candidate.cells.get(query_column or ""),
        "answer_column": answer_column,
        "answer_value": candidate.cells.get(answer_column or ""),
    }
