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

Answer = TypeVar("Answer")

HUB_PREFIX = "hf://"
#: Seconds before each further try of what the hub did not answer; longer where it says so, up to the longest.
WAITS = (1.0, 2.0, 4.0)
_LONGEST_WAIT = 600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset on the hub, read at a revision that is pinned to a commit. No dataset scripts are run.

    ``config`` and ``split`` choose one; without them all configs are read, and of each the split ``train``.
    ``description`` is what the catalog says, for a card that says nothing.
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
        """From the hub's list of files, without a download."""
        try:
            files = self._once(self._ask_state)[1]
        except Exception:  # Only where the commit was given: then nothing has to be asked, and nothing may fail here.
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
        except LocalEntryNotFoundError:  # Not in the cache, and the hub cannot be reached.
            raise
        except EntryNotFoundError:
            text = ""
        return parse_card(self.dataset, text, self._commit, self.description)

    def configs(self) -> list[str]:
        from datasets import get_dataset_config_names

        if self.config:
            return [self.config]
        return sorted(patiently(partial(get_dataset_config_names, self._path, revision=self._commit, token=self.token)))

    def read(self, config: str, max_rows: int) -> Reading:
        """Parquet by its footers and the row groups that are needed; anything else as a stream."""
        from huggingface_hub import HfFileSystem

        builder = self._builder(config)
        files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
        if not files or self.split not in (None, *files):
            raise RebaseError(f"there is no split {self.split or 'train'!r}; there are {', '.join(files) or 'none'}")
        split, others = (self.split, ()) if self.split else first_split(list(files))
        if all(PurePosixPath(path).suffix == ".parquet" for path in files[split]):
            hub = HfFileSystem(token=self.token)
            # Without read-ahead: what is asked for is what is needed.
            openers: list[ParquetFile] = [partial(_open_file, hub, path) for path in files[split]]
            return Reading(split, sample_parquet(openers, label_names(builder.info.features), max_rows), others)
        if hasattr(builder.config, "encoding_errors"):
            builder.config.encoding_errors = "replace"
        stream = batches_of(builder.as_streaming_dataset(split=split))
        return Reading(split, sample_stream(stream, max_rows), others)

    def batches(self, config: str, split: str) -> "Iterator[RawBatch]":
        """Stream all rows of a config's split, undecoded."""
        return batches_of(self._builder(config).as_streaming_dataset(split=split))

    def _builder(self, config: str) -> "DatasetBuilder":
        from datasets import load_dataset_builder

        return patiently(partial(load_dataset_builder, self._path, config, revision=self._commit, token=self.token))

    @property
    def _path(self) -> str:
        """The dataset's address, so that a local folder of the same name is never taken for it."""
        return f"{HUB_PREFIX}datasets/{self.dataset}"

    @property
    def _commit(self) -> str:
        """The commit that the revision names: a branch may move while it is read."""
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        return self._once(self._ask_state)[0]

    def _ask_state(self) -> tuple[str, str]:
        """The commit, and a digest of its data files.

        The digest is empty where the hub does not say theirs, and of a gated dataset: an open copy must not be left
        out for one that may not be read.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=self.token)
        info = patiently(partial(api.dataset_info, self.dataset, revision=self.revision, files_metadata=True))
        digests = sorted(
            (file.lfs.sha256 if file.lfs else file.blob_id) or ""
            for file in info.siblings or []
            if PurePosixPath(file.rfilename).suffix.lower() in FORMATS
        )
        known = digests and all(digests) and not info.gated
        return str(info.sha), hashlib.sha256("\x1f".join(digests).encode()).hexdigest() if known else ""


def patiently(ask: Callable[[], Answer]) -> Answer:
    """Ask the hub; and again, after a rest, where it is busy (429: as long as it says), fails (5xx) or is cut off.

    Where it cannot be reached at all it is not asked again: of thousands of datasets each would wait in vain.

    ``huggingface_hub`` does so by itself while it reads files, but not when it is asked for a dataset's info or files.
    """
    for wait in WAITS:
        try:
            return ask()
        except Exception as error:
            said = _wait_said(error)
            if said is None or said > _LONGEST_WAIT:
                raise
            logger.info("hub: %s; next try in %.0f s", error, max(wait, said))
            time.sleep(max(wait, said))
    return ask()


def _wait_said(error: Exception) -> float | None:
    """The seconds that the hub asks to wait, 0 where it says nothing; None where another try would not help."""
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
    return patiently(partial(hub.open, path, cache_type="none"))
