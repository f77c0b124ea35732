"""Ingest: raw datasets to rows, one shard a dataset (docs/method.md section 1)."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from rebase.datastore.cells import content_hash, flatten_row, row_json
from rebase.datastore.shards import Shard, ShardPlan, Shards, with_metadata
from rebase.datastore.sources import Reading, Source, why_unread
from rebase.errors import RebaseError
from rebase.parameters import IngestParameters
from rebase.records import ROW_COLUMNS, DatasetCard

logger = logging.getLogger(__name__)

_VERSION = "3"  # Part of every fingerprint: a change of what ingest writes must raise it.
#: Reasons that another day may lift: such a dataset is tried again by the next run.
_MAY_PASS = {"gated", "missing", "unreachable", "unreadable"}
#: Rejections of no row that are no failure: a split that is left alone, and what is stored under another name.
_NO_FAILURE = {"other_split", "twin"}
#: The text of a dataset's rows; rows beyond are rejected, so that a few small files cannot fill the memory.
MAX_DATASET_BYTES = 2**29
_SCHEMA = pa.schema([(name, pa.int64() if name == "row_index" else pa.string()) for name in ROW_COLUMNS])


def plan_ingest(sources: list[Source], parameters: IngestParameters) -> ShardPlan:
    """Plan one shard of rows a dataset; a dataset whose content did not change keeps its shard.

    A dataset that cannot be read becomes an empty shard that says why, and the others go on. Of datasets with the
    same data files the first by name is read; each other one, its twin, becomes an empty shard that names it.
    """
    with ThreadPoolExecutor(parameters.workers) as pool:
        known = list(tqdm(pool.map(_identify, sources), desc="datasets", total=len(sources), unit="dataset"))
    first: dict[str, str] = {}
    shards = []
    for source, (fingerprint, content, rejection) in zip(sources, known, strict=True):
        if rejection:
            shards.append(Shard(source.dataset, _digest(_VERSION, *rejection.values()), partial(_rejected, rejection)))
        elif (twin_of := first.setdefault(content or source.dataset, source.dataset)) != source.dataset:
            shards.append(
                Shard(source.dataset, _digest(_VERSION, fingerprint, twin_of), partial(_twin, source, twin_of))
            )
        else:
            identity = _digest(_VERSION, fingerprint, parameters.max_rows)
            shards.append(Shard(source.dataset, identity, partial(_read, source, parameters.max_rows)))
    return ShardPlan(shards, threads=parameters.workers)


def summarize_ingest(rows: Shards) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Collect what ingest kept and rejected.

    Returns:
        The cards, one line a dataset: what it says of itself, ``rows_in`` and ``rows_kept``, ``twin_of`` (the dataset
        that its rows are stored under, or empty) and ``duplicates`` (whose rows are stored here); the rejections, one line a
        (dataset, config, reason) with its count; the stage's summary.

    Raises:
        RebaseError: No row was kept.

    """
    shards = list(rows.metadata().values())
    cards = pd.DataFrame(
        [
            {**shard["card"], "rows_in": shard["in"], "rows_kept": shard["kept"], "twin_of": shard["twin_of"]}
            for shard in shards
        ]
    )
    cards["languages"] = cards["languages"].map(", ".join) if len(cards) else None
    if len(cards):
        duplicates = cards.groupby("twin_of")["dataset"].agg(", ".join)
        cards["duplicates"] = cards["dataset"].map(duplicates).fillna("")
    rejected = pd.DataFrame(
        [rejection for shard in shards for rejection in shard["rejected"]],
        columns=["dataset", "config", "reason", "rows", "detail"],
    )
    kept = int(sum(shard["kept"] for shard in shards))
    if not kept:
        why = "; ".join(f"{line.dataset}: {line.reason} ({line.detail})" for line in rejected.head(5).itertuples())
        raise RebaseError(f"ingest: no row was kept from {len(shards)} datasets. Check `sources`. {why}")
    unread = rejected[(rejected["rows"] == 0) & ~rejected["reason"].isin(_NO_FAILURE)]
    if len(unread):
        logger.warning("%d datasets or configs could not be read; ingest_rejected says why", len(unread))
    by_reason = rejected.groupby("reason")["rows"].sum()
    summary = {
        "stage": "ingest",
        "in": int(sum(shard["in"] for shard in shards)),
        "kept": kept,
        "rejected": {reason: int(count) for reason, count in by_reason.items() if count},
        "datasets": len(shards),
        "datasets_unread": sorted(set(unread["dataset"])),
        "duplicates": int((cards["twin_of"] != "").sum()),
    }
    return cards, rejected, summary


def _identify(source: Source) -> tuple[str, str | None, dict[str, Any]]:
    """A source's fingerprint and content, or the rejection that says why they cannot be had."""
    try:
        return source.fingerprint(), source.content(), {}
    except Exception as error:  # A hub answers in many ways; each is a recorded rejection of this one dataset.
        return "", None, _unread(source.dataset, "", error)


@dataclass
class _Rows:
    """The rows of one dataset as they come in, and what was rejected."""

    card: DatasetCard
    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    size: int = 0
    twin_of: str = ""

    def reject(self, config: str, reason: str, rows: int, detail: str = "") -> None:
        """Note a rejection: of ``rows`` rows, or, where that is 0, of the whole config."""
        self.rejected.append(_rejection(self.card.dataset, config, reason, rows, detail))

    def add(self, records: list[dict[str, Any]], counts: dict[str, int], config: str, total: int) -> None:
        """Take in a config that was read to its end."""
        self.records += records
        self.size += sum(len(record["row"]) for record in records)
        self.total += total
        for reason, count in counts.items():
            if count:
                self.reject(config, reason, count)

    def table(self) -> pa.Table:
        """The shard."""
        metadata = {
            "card": self.card.model_dump(mode="json"),
            "in": self.total,
            "kept": len(self.records),
            "rejected": self.rejected,
            "twin_of": self.twin_of,
            "provisional": any(rejection["reason"] in _MAY_PASS for rejection in self.rejected),
        }
        return with_metadata(pa.Table.from_pylist(self.records, schema=_SCHEMA), metadata)


def _rejected(rejection: dict[str, Any], _: Any) -> pa.Table:
    """The shard of a dataset of which nothing is known."""
    return _Rows(DatasetCard(dataset=rejection["dataset"]), rejected=[rejection]).table()


def _twin(source: Source, twin_of: str, _: Any) -> pa.Table:
    """The shard of a dataset whose data another one has: its own card, no rows."""
    rows = _Rows(DatasetCard(dataset=source.dataset), twin_of=twin_of)
    try:
        rows.card = source.card()
    except Exception as error:
        rows.rejected.append(_unread(source.dataset, "", error))
    rows.reject("", "twin", 0, f"the same data files as {twin_of}, where the rows are kept")
    return rows.table()


def _read(source: Source, max_rows: int, _: Any) -> pa.Table:
    """Read a dataset: its sampled rows, and in the metadata its card and rejections."""
    rows = _Rows(DatasetCard(dataset=source.dataset))
    try:
        rows.card = source.card()
        configs = source.configs()
        if not configs:
            rows.reject("", "no_data_files", 0, "no file that can be read as a table")
    except Exception as error:  # As above: whatever a dataset does, it is one recorded rejection.
        configs = []
        rows.rejected.append(_unread(source.dataset, "", error))
    for config in configs:
        try:
            _read_config(source, config, max_rows, rows)
        except Exception as error:
            rows.rejected.append(_unread(source.dataset, config, error))
    return rows.table()


def _read_config(source: Source, config: str, max_rows: int, rows: _Rows) -> None:
    """Read one config into the rows: all of its sample or, where that fails, nothing."""
    reading = source.read(config, max_rows)
    sample = reading.sample
    counts = Counter(malformed_row=sample.malformed)
    records: list[dict[str, Any]] = []
    for record in _records(reading, config, rows):
        if isinstance(record, str):
            counts[record] += 1
        else:
            records.append(record)
    counts["not_sampled"] = sample.total - len(records) - counts.total()
    rows.add(records, counts, config, sample.total)
    if not sample.total:
        rows.reject(config, "no_rows", 0, "the files hold no row")
    if reading.other_splits:
        read = f"only {reading.split} is read, not {', '.join(reading.other_splits)}"
        rows.reject(config, "other_split", 0, read)


def _records(reading: Reading, config: str, rows: _Rows) -> Iterator[dict[str, Any] | str]:
    """The kept rows of a reading; in place of each other one, why it is rejected."""
    card, split, size = rows.card, reading.split, rows.size
    for position, row in reading.sample.rows:
        if isinstance(row, str):
            yield row
            continue
        cells = flatten_row(row, reading.sample.label_names)
        if not cells:
            yield "empty_row"
            continue
        text = row_json(cells)
        if size + len(text) > MAX_DATASET_BYTES:
            yield "too_large"
            continue
        size += len(text)
        yield {
            "row_id": f"{card.dataset}/{config}/{split}/{position}",
            "dataset": card.dataset,
            "config": config,
            "split": split,
            "revision": card.revision,
            "row_index": position,
            "license": card.license,
            "row": text,
            "content_hash": content_hash(cells),
        }


def _rejection(dataset: str, config: str, reason: str, rows: int, detail: str) -> dict[str, Any]:
    return {"dataset": dataset, "config": config, "reason": reason, "rows": rows, "detail": detail[:500]}


def _unread(dataset: str, config: str, error: Exception) -> dict[str, Any]:
    """The rejection of a dataset or a config that could not be read."""
    return _rejection(dataset, config, why_unread(error), 0, _one_line(error))


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    """The error and its cause in one line: ``datasets`` hides the reader's own words in the cause."""
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    return " <- ".join(f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in causes)
