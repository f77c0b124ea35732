"""Datasets on the hub."""

import hashlib
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rebase.datastore.sources.base import Source
from rebase.datastore.sources.errors import with_retries
from rebase.datastore.sources.files import HUB_PREFIX, digest_of_content, is_data_file, read_start

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource(Source):
    """A dataset on the hub, read at a fixed commit. Dataset scripts are never run."""

    dataset: str
    revision: str | None
    token: str | None = field(repr=False)
    selected: tuple[str, ...] = ()
    split: str | None = None
    description: str = ""

    def fingerprint(self) -> str:
        chosen = {"config": ",".join(self.selected), "split": self.split, "description": self.description}
        return "\x1f".join([self.revision_id(), *(f"{name}={value}" for name, value in chosen.items() if value)])

    def content(self) -> str | None:
        """The digest of the files and the card's fields that the hub lists; nothing is downloaded."""
        try:
            files = self._once(self._request_state)[1]
        except Exception:  # The commit was given: then no request is necessary, and a failed one is no error.
            return None
        if not files:
            return None
        return hashlib.sha256("\x1f".join([",".join(self.selected), self.split or "", files]).encode()).hexdigest()

    def revision_id(self) -> str:
        """The commit of the revision: a branch may move while it is read."""
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        return self._once(self._request_state)[0]

    def address(self) -> str:
        return f"{HUB_PREFIX}datasets/{self.dataset}@{self.revision_id()}"

    def text_of(self, name: str, most: int) -> str:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(
                self.dataset, name, repo_type="dataset", revision=self.revision_id(), token=self.token
            )
            return read_start(Path(path), most)
        except LocalEntryNotFoundError:  # Not in the cache, and the hub is unreachable.
            raise
        except EntryNotFoundError:
            return ""

    def _request_state(self) -> tuple[str, str]:
        """Request the commit, and a digest of its data files and of what its card declares.

        The digest is empty if the hub does not know those of the files, and for a gated dataset: an open dataset must
        not be dropped as the duplicate of one that may not be readable.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=self.token)
        info = with_retries(partial(api.dataset_info, self.dataset, revision=self.revision, files_metadata=True))
        digests = {
            file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or ""
            for file in info.siblings or []
            if is_data_file(file.rfilename)
        }
        has_digest = all(digests.values()) and not info.gated
        front = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
        return str(info.sha), digest_of_content(digests, front) if has_digest else ""
