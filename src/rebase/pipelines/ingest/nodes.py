"""Ingest: raw datasets to rows, one shard a dataset (docs/method.md section 1)."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from rebase.datastore.cells import content_hash, flatten_row, row_json
from rebase.datastore.shards import Shard, ShardPlan, Shards, fingerprint_of, with_metadata
from rebase.datastore.sources import RowSample, Source, TooSlowError, check_time, failure_reason, time_limit
from rebase.datastore.sources.rows import MALFORMED
from rebase.errors import StageError
from rebase.parameters import IngestParameters
from rebase.records import CARD_COLUMNS, INGEST_REJECTED_COLUMNS, ROW_COLUMNS, DatasetCard, summarize_stage

logger = logging.getLogger(__name__)

_VERSION = "8"  # Part of every fingerprint: raise it with every change of what ingest writes.
#: Datasets that are read at once: reading waits for disk and hub more than it computes.
_READERS = 4
#: Reasons that may pass: such a dataset is tried again by the next run.
_TEMPORARY = {"gated", "missing", "unreachable", "unreadable", "too_slow"}
#: Rejections of a whole config or dataset that are no failure.
_NO_FAILURE = {"other_split", "other_file", "duplicate"}
#: The most text of a dataset's rows; further rows are rejected, so that a few small files cannot fill the memory.
MAX_DATASET_BYTES = 2**29
#: The most time to identify a dataset, or to read it.
MAX_SECONDS = 3600.0
_SCHEMA = pa.schema([(name, pa.int64() if name == "row_index" else pa.string()) for name in ROW_COLUMNS])


def plan_ingest(sources: list[Source], parameters: IngestParameters) -> ShardPlan:
    """Plan one shard of rows a dataset; a dataset whose content did not change keeps its shard.

    A dataset that cannot be read becomes an empty shard with the reason. Of datasets with the same data files the first
    by name is read; each other one becomes an empty shard that names the first. Unless ``parameters.remove`` is true,
    the store raises RebaseError if it has datasets that are no longer among the sources.
    """
    started = time.monotonic()
    with _datasets_imported(), ThreadPoolExecutor(_READERS) as pool:
        identities = list(tqdm(pool.map(_identify, sources), desc="datasets", total=len(sources), unit="dataset"))
    first: dict[str, str] = {}
    shards = []
    for source, (fingerprint, content, rejection) in zip(sources, identities, strict=True):
        name = source.dataset
        if rejection:
            # Without the detail, which may have the number of a request.
            parts, build = (name, rejection["reason"]), partial(_build_rejected, rejection)
        elif (duplicate_of := first.setdefault(content or name, name)) != name:
            parts, build = (fingerprint, duplicate_of), partial(_build_duplicate, source, duplicate_of)
        else:
            parts, build = (fingerprint, parameters.max_rows), partial(_build, source, parameters.max_rows)
        shards.append(Shard(name, fingerprint_of(_VERSION, *parts), build))
    seconds = time.monotonic() - started
    return ShardPlan(shards, _datasets_imported, _READERS, seconds, may_remove=parameters.remove)


def summarize_ingest(rows: Shards) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Collect what ingest kept and rejected.

    Returns:
        The cards (``CARD_COLUMNS``), with the digest of the rows as ``made_of`` in their ``attrs``; the rejections, one
        line a (dataset, config, reason) with its count; the stage's summary.

    Raises:
        StageError: No row was kept.

    """
    started = time.monotonic()
    shards = list(rows.metadata().values())
    rejected = pd.DataFrame([line for shard in shards for line in shard["rejected"]], columns=INGEST_REJECTED_COLUMNS)
    kept = int(sum(shard["kept"] for shard in shards))
    if not kept:
        why = "; ".join(f"{line.dataset}: {line.reason} ({line.detail})" for line in rejected.head(5).itertuples())
        raise StageError(f"ingest: no row was kept from {len(shards)} datasets. Check `sources`. {why}", rejected)
    cards = pd.DataFrame(
        [
            {
                **shard["card"],
                "languages": ", ".join(shard["card"]["languages"]),
                "rows_in": shard["in"],
                "rows_kept": shard["kept"],
                "duplicate_of": shard["duplicate_of"],
            }
            for shard in shards
        ]
    )
    cards["duplicates"] = cards["dataset"].map(cards.groupby("duplicate_of")["dataset"].agg(", ".join)).fillna("")
    unread = rejected[(rejected["rows"] == 0) & ~rejected["reason"].isin(_NO_FAILURE)]
    if len(unread):
        names = [f"{line.dataset} ({line.reason})" for line in unread.head(5).itertuples()]
        names += ["…"] * (len(unread) > len(names))
        logger.warning("ingest: %d not read, see ingest_rejected: %s", len(unread), ", ".join(names))
    summary = summarize_stage(
        "ingest",
        kept=kept,
        rejected={str(reason): int(count) for reason, count in rejected.groupby("reason")["rows"].sum().items()},
        seconds=rows.seconds + time.monotonic() - started,
        datasets=len(shards),
        datasets_unread=sorted(set(unread["dataset"])),
        duplicates=int((cards["duplicate_of"] != "").sum()),
    )
    cards = cards[CARD_COLUMNS]
    cards.attrs["made_of"] = rows.digest
    return cards, rejected, summary


@contextmanager
def _datasets_imported() -> Iterator[None]:
    """Import the ``datasets`` library before the threads start: it fails if two threads import it at once."""
    import datasets  # noqa: F401

    yield


def _identify(source: Source) -> tuple[str, str | None, dict[str, Any]]:
    """A source's fingerprint and content, or the rejection if they cannot be determined."""
    try:
        with time_limit(MAX_SECONDS):
            return source.fingerprint(), source.content(), {}
    except Exception as error:  # A hub fails in many ways; each is a recorded rejection of this one dataset.
        return "", None, _unread(source.dataset, "", error)


@dataclass
class _DatasetRows:
    """The rows of one dataset that were read so far, and the rejections."""

    card: DatasetCard
    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    size: int = 0
    duplicate_of: str = ""

    def reject(self, config: str, reason: str, rows: int, detail: str = "") -> None:
        """Record a rejection of ``rows`` rows, or of the whole config if that is 0."""
        self.rejected.append(_rejection(self.card.dataset, config, reason, rows, detail))

    def table(self) -> pa.Table:
        """The shard."""
        is_provisional = any(rejection["reason"] in _TEMPORARY for rejection in self.rejected)
        rows = [f"{record['row_id']}|{record['content_hash']}" for record in self.records]
        metadata = {
            "card": self.card.model_dump(mode="json"),
            "in": self.total,
            "kept": len(self.records),
            "rejected": self.rejected,
            "duplicate_of": self.duplicate_of,
            "provisional": fingerprint_of(self.card, *rows) if is_provisional else "",
        }
        return with_metadata(pa.Table.from_pylist(self.records, schema=_SCHEMA), metadata)


def _build_rejected(rejection: dict[str, Any], _: Any) -> pa.Table:
    """The shard of a dataset that could not be identified."""
    return _DatasetRows(DatasetCard(dataset=rejection["dataset"]), rejected=[rejection]).table()


def _build_duplicate(source: Source, duplicate_of: str, _: Any) -> pa.Table:
    """The shard of a dataset with the same data as another one: its card, no rows."""
    rows = _DatasetRows(DatasetCard(dataset=source.dataset), duplicate_of=duplicate_of)
    try:
        rows.card = source.card()
    except Exception as error:
        rows.rejected.append(_unread(source.dataset, "", error))
    rows.reject("", "duplicate", 0, f"the same data files as {duplicate_of}, where the rows are kept")
    return rows.table()


def _build(source: Source, max_rows: int, _: Any) -> pa.Table:
    """Read a dataset: its sampled rows, with the card and the rejections in the metadata."""
    rows = _DatasetRows(DatasetCard(dataset=source.dataset))
    try:
        rows.card = source.card()
        configs = source.configs()
    except Exception as error:  # As above: any failure is one recorded rejection.
        rows.rejected.append(_unread(source.dataset, "", error))
        return rows.table()
    with time_limit(MAX_SECONDS):
        for config in configs:
            try:
                _read_config(source, config, max_rows, rows)
            except Exception as error:
                rows.rejected.append(_unread(source.dataset, config, error))
                if isinstance(error, TooSlowError):
                    break
    return rows.table()


def _read_config(source: Source, config: str, max_rows: int, rows: _DatasetRows) -> None:
    """Add one config to the rows: its complete sample, or nothing if reading fails."""
    check_time()
    files, sample = source.read(config, max_rows)
    records: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for record in _records(sample, config, files.split, rows):
        if isinstance(record, str):
            counts[record] += 1
        else:
            records.append(record)
    counts["not_sampled"] = sample.total - len(records) - counts.total()
    rows.records += records
    rows.size += sum(len(record["row"]) for record in records)
    rows.total += sample.total
    for reason, count in counts.items():
        if count:
            rows.reject(config, reason, count)
    unread: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for path, error in sample.unread:
        rejection = _unread(rows.card.dataset, config, error, path.removeprefix(f"{source.address()}/"))
        unread[rejection["reason"]].append(rejection)
    for first, *others in unread.values():
        rows.rejected.append(first | {"detail": first["detail"] + f" (and {len(others)} more files)" * bool(others)})
    if not sample.total and not sample.unread:
        rows.reject(config, "no_rows", 0, "the files have no rows")
    if files.other_splits:
        detail = f"only {files.split} is read, not {', '.join(files.other_splits)}"
        rows.reject(config, "other_split", 0, detail)
    if files.other_files:
        rows.reject(config, "other_file", 0, f"not read with the others: {', '.join(files.other_files)}")


def _records(sample: RowSample, config: str, split: str, rows: _DatasetRows) -> Iterator[dict[str, Any] | str]:
    """Yield the record of each kept row, and the reason of each rejected row."""
    card, size = rows.card, rows.size
    for position, row in sample.rows:
        check_time()
        if isinstance(row, str):
            yield row
            continue
        try:
            cells = flatten_row(row, sample.label_names)
        except RecursionError:  # Hundreds of nested lists.
            yield MALFORMED
            continue
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


def _unread(dataset: str, config: str, error: Exception, path: str = "") -> dict[str, Any]:
    """The rejection of a dataset, a config or a file that could not be read.

    The cause is part of the detail, because ``datasets`` hides the reader's own message there.
    """
    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    detail = " <- ".join(f"{type(cause).__name__}: {' '.join(str(cause).split())}" for cause in causes)
    return _rejection(dataset, config, failure_reason(error), 0, f"{path}: {detail}" if path else detail)
