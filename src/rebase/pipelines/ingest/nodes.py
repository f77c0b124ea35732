"""Ingest: raw datasets to rows, one shard a dataset (docs/method.md section 1)."""

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa

from rebase.cells import content_hash, flatten_row, row_json
from rebase.errors import RebaseError
from rebase.parameters import IngestParameters
from rebase.records import ROW_COLUMNS, DatasetCard
from rebase.sampling import sample_evenly
from rebase.shards import Shard, ShardPlan, Shards, metadata_of, with_metadata
from rebase.sources import Source, rows_of, why_unread

logger = logging.getLogger(__name__)

_VERSION = "2"  # Part of every fingerprint: a change of what ingest writes must raise it.
#: Reasons that another day may lift: such a dataset is tried again by the next run.
_MAY_PASS = {"gated", "missing", "unreachable"}
_SCHEMA = pa.schema([(name, pa.int64() if name == "row_index" else pa.string()) for name in ROW_COLUMNS])


def plan_ingest(sources: list[Source], parameters: IngestParameters) -> ShardPlan:
    """Plan one shard of rows a dataset; a dataset whose content did not change keeps its shard.

    A dataset that cannot be read becomes an empty shard that says why, and the others go on.
    """
    return ShardPlan([_plan_source(source, parameters) for source in sources])


def summarise_ingest(rows: Shards) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Collect what ingest kept and refused.

    Returns:
        The cards, one line a dataset: what it says of itself, ``rows_in`` and ``rows_kept``; the refusals, one
        line a (dataset, config, reason) with its count; the stage's summary.

    Raises:
        RebaseError: No row was kept.

    """
    shards = [metadata_of(rows[name]) for name in rows]
    cards = pd.DataFrame([{**shard["card"], "rows_in": shard["in"], "rows_kept": shard["kept"]} for shard in shards])
    cards["languages"] = cards["languages"].map(", ".join) if len(cards) else None
    refused = pd.DataFrame(
        [refusal for shard in shards for refusal in shard["refused"]],
        columns=["dataset", "config", "reason", "rows", "detail"],
    )
    kept = int(sum(shard["kept"] for shard in shards))
    if not kept:
        why = "; ".join(f"{line.dataset}: {line.reason} ({line.detail})" for line in refused.head(5).itertuples())
        raise RebaseError(f"ingest: no row was kept from {len(shards)} datasets. Check `sources`. {why}")
    unread = int((refused["rows"] == 0).sum())
    if unread:
        logger.warning("%d datasets or configs could not be read; ingest_refused says why", unread)
    by_reason = refused.groupby("reason")["rows"].sum()
    summary = {
        "stage": "ingest",
        "in": int(sum(shard["in"] for shard in shards)),
        "kept": kept,
        "refused": {reason: int(count) for reason, count in by_reason.items() if count},
        "datasets": len(shards),
        "datasets_unread": sorted(set(refused.loc[refused["rows"] == 0, "dataset"])),
    }
    return cards, refused, summary


def _plan_source(source: Source, parameters: IngestParameters) -> Shard:
    try:
        content = source.fingerprint()
    except Exception as error:  # A hub answers in many ways; each is a recorded refusal of this one dataset.
        refusal = _unread(source.dataset, "", error)
        empty = _shard([], DatasetCard(dataset=source.dataset), 0, [refusal])
        return Shard(source.dataset, _digest(_VERSION, *map(str, refusal.values())), lambda _: empty)
    fingerprint = _digest(_VERSION, content, str(parameters.max_rows))
    return Shard(source.dataset, fingerprint, lambda _: _read(source, parameters.max_rows))


def _read(source: Source, max_rows: int) -> pa.Table:
    """Read a dataset: its sampled rows, and in the metadata its card and refusals."""
    records: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    total = 0

    def refuse(config: str, reason: str, rows: int, detail: str = "") -> None:
        refused.append(_refusal(source.dataset, config, reason, rows, detail))

    card = DatasetCard(dataset=source.dataset)
    try:
        card = source.card()
        configs = source.configs()
        if not configs:
            refuse("", "no_data_files", 0, "no file that can be read as a table")
    except Exception as error:  # As above: whatever a dataset does, it is one recorded refusal.
        configs = []
        refused.append(_unread(source.dataset, "", error))
    for config in configs:
        try:
            sampled, seen, empty = _read_config(source, card, config, max_rows)
        except Exception as error:
            refused.append(_unread(source.dataset, config, error))
            continue
        records += sampled
        total += seen
        if not seen:
            refuse(config, "no_rows", 0, "the files hold no row")
        if seen > len(sampled) + empty:
            refuse(config, "not_sampled", seen - len(sampled) - empty)
        if empty:
            refuse(config, "empty_row", empty)
    return _shard(records, card, total, refused)


def _read_config(
    source: Source, card: DatasetCard, config: str, max_rows: int
) -> tuple[list[dict[str, Any]], int, int]:
    """The kept rows of one config, the number of rows it has, and how many of the sampled ones were empty."""
    split = source.split(config)
    label_names: dict[str, list[str]] = {}

    def tables() -> Iterator[pa.Table]:
        for batch in source.batches(config, split):
            label_names.update(batch.label_names)
            yield batch.table

    pieces, positions, total = sample_evenly(tables(), max_rows)
    rows = [row for piece in pieces for row in rows_of(piece)]
    records = []
    for position, row in zip(positions.tolist(), rows, strict=True):
        cells = flatten_row(row, label_names)
        if cells:
            records.append(
                {
                    "row_id": f"{source.dataset}/{config}/{split}/{position}",
                    "dataset": source.dataset,
                    "config": config,
                    "split": split,
                    "revision": card.revision,
                    "row_index": position,
                    "licence": card.licence,
                    "row": row_json(cells),
                    "content_hash": content_hash(cells),
                }
            )
    return records, total, len(rows) - len(records)


def _shard(records: list[dict[str, Any]], card: DatasetCard, total: int, refused: list[dict[str, Any]]) -> pa.Table:
    metadata = {
        "card": card.model_dump(mode="json"),
        "in": total,
        "kept": len(records),
        "refused": refused,
        "provisional": any(refusal["reason"] in _MAY_PASS for refusal in refused),
    }
    return with_metadata(pa.Table.from_pylist(records, schema=_SCHEMA), metadata)


def _refusal(dataset: str, config: str, reason: str, rows: int, detail: str) -> dict[str, Any]:
    return {"dataset": dataset, "config": config, "reason": reason, "rows": rows, "detail": detail[:500]}


def _unread(dataset: str, config: str, error: Exception) -> dict[str, Any]:
    """The refusal of a dataset or a config that could not be read."""
    return _refusal(dataset, config, why_unread(error), 0, _one_line(error))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    """The error and its cause in one line: ``datasets`` hides the reader's own words in the cause."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    return " <- ".join(f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in causes)
