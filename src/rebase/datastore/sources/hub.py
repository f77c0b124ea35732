"""Datasets on the hub."""

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from rebase.datastore.sources.base import Reading, Source, first_split
from rebase.datastore.sources.cards import parse_card
from rebase.datastore.sources.errors import causes
from rebase.datastore.sources.reading import (
    FORMATS,
    ParquetFile,
    RawBatch,
    batches_of,
    label_names,
    sample_parquet,
    sample_stream,
)
from rebase.errors import RebaseError
from rebase.records import DatasetCard
from rebase.teacher.http import read_retry_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import DatasetBuilder

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

HUB_PREFIX = "hf://"
#: Seconds before each retry of a hub request; more if the hub says so, up to the longest wait.
WAITS = (1.0, 2.0, 4.0)
_LONGEST_WAIT = 600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset on the hub, read at a fixed commit. Dataset scripts are never run.

    ``config`` and ``split`` select one; without them the split ``train`` of every config is read.
    ``description`` is used if the card has none.
    """

    dataset: str
    revision: str | None
    token: str | None = field(repr=False)
    config: str | None = None
    split: str | None = None
    description: str = ""

    def fingerprint(self) -> str:
        chosen = {"config": self.config, "split": self.split, "description": self.description}
        return "\x1f".join([self._commit, *(f"{name}={value}" for name, value in chosen.items() if value)])

    def content(self) -> str | None:
        """The digest of the hub's list of files; nothing is downloaded."""
        try:
            files = self._once(self._request_state)[1]
        except Exception:  # The commit was given: then no request is necessary, and a failed one is no error.
            return None
        if not files:
            return None
        return hashlib.sha256("\x1f".join([self.config or "", self.split or "", files]).encode()).hexdigest()

    def card(self) -> DatasetCard:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(
                self.dataset, "README.md", repo_type="dataset", revision=self._commit, token=self.token
            )
            text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
        except LocalEntryNotFoundError:  # Not in the cache, and the hub is unreachable.
            raise
        except EntryNotFoundError:
            text = ""
        return parse_card(self.dataset, text, self._commit, self.description)

    def configs(self) -> list[str]:
        from datasets import get_dataset_config_names

        if self.config:
            return [self.config]
        return sorted(
            with_retries(partial(get_dataset_config_names, self._path, revision=self._commit, token=self.token))
        )

    def read(self, config: str, max_rows: int) -> Reading:
        """Read the necessary row groups of Parquet files; read other formats as a stream."""
        from huggingface_hub import HfFileSystem

        builder = self._builder(config)
        files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
        if not files or self.split not in (None, *files):
            raise RebaseError(f"there is no split {self.split or 'train'!r}; there are {', '.join(files) or 'none'}")
        split, others = (self.split, ()) if self.split else first_split(list(files))
        if all(PurePosixPath(path).suffix == ".parquet" for path in files[split]):
            hub = HfFileSystem(token=self.token)
            # No read-ahead: the reader requests exactly the ranges that it needs.
            openers: list[ParquetFile] = [partial(_open_file, hub, path) for path in files[split]]
            return Reading(split, sample_parquet(openers, label_names(builder.info.features), max_rows), others)
        if hasattr(builder.config, "encoding_errors"):
            builder.config.encoding_errors = "replace"
        stream = batches_of(builder.as_streaming_dataset(split=split))
        return Reading(split, sample_stream(stream, max_rows), others)

    def batches(self, config: str, split: str) -> "Iterator[RawBatch]":
        """Stream all rows of a split, undecoded."""
        return batches_of(self._builder(config).as_streaming_dataset(split=split))

    def _builder(self, config: str) -> "DatasetBuilder":
        from datasets import load_dataset_builder

        return with_retries(partial(load_dataset_builder, self._path, config, revision=self._commit, token=self.token))

    @property
    def _path(self) -> str:
        """The dataset's address, which cannot be confused with a local folder of the same name."""
        return f"{HUB_PREFIX}datasets/{self.dataset}"

    @property
    def _commit(self) -> str:
        """The commit of the revision: a branch may move while it is read."""
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        return self._once(self._request_state)[0]

    def _request_state(self) -> tuple[str, str]:
        """Request the commit, and a digest of its data files.

        The digest is empty if the hub does not know those of the files, and for a gated dataset: an open dataset must
        not be dropped as the duplicate of one that may not be readable.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=self.token)
        info = with_retries(partial(api.dataset_info, self.dataset, revision=self.revision, files_metadata=True))
        digests = sorted(
            (file.lfs.sha256 if file.lfs else file.blob_id) or ""
            for file in info.siblings or []
            if PurePosixPath(file.rfilename).suffix.lower() in FORMATS
        )
        has_digest = digests and all(digests) and not info.gated
        return str(info.sha), hashlib.sha256("\x1f".join(digests).encode()).hexdigest() if has_digest else ""


def with_retries(request: Callable[[], Result]) -> Result:
    """Send a request to the hub; retry if the hub is busy (429, after the time it names), fails (5xx) or disconnects.

    An unreachable hub is not retried: each of thousands of datasets would wait for nothing. ``huggingface_hub`` retries
    by itself while it reads files, but not requests for a dataset's info or files.
    """
    for wait in WAITS:
        try:
            return request()
        except Exception as error:
            requested_wait = _requested_wait(error)
            if requested_wait is None or requested_wait > _LONGEST_WAIT:
                raise
            logger.info("hub: %s; retry in %.0f s", error, max(wait, requested_wait))
            time.sleep(max(wait, requested_wait))
    return request()


def _requested_wait(error: Exception) -> float | None:
    """The seconds that the hub asks to wait, 0 if it names none; None if a retry would not help."""
    from httpx2 import ReadError, ReadTimeout, RemoteProtocolError
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    for cause in causes(error):
        if isinstance(cause, ReadError | ReadTimeout | RemoteProtocolError):
            return 0.0
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            if cause.response.status_code not in (408, 429, 500, 502, 503, 504):
                return None
            limit = parse_ratelimit_headers(cause.response.headers)
            if limit is not None and limit.remaining == 0:
                return float(limit.reset_in_seconds)
            return read_retry_after(cause.response.headers) or 0.0
    return None


def _open_file(hub: Any, path: str) -> Any:
    return with_retries(partial(hub.open, path, cache_type="none"))
