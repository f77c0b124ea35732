"""A server on loopback that speaks S3."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec


@dataclass(frozen=True)
class Bucket:
    """A bucket of its own, and the options by which fsspec reaches it."""

    url: str
    endpoint: str
    options: dict[str, Any]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system, without what it remembers of listings."""
        fs = fsspec.filesystem("s3", **self.options)
        fs.invalidate_cache()
        return fs

    def files(self, folder: str) -> set[str]:
        """The names of the objects of a folder."""
        return {path.rpartition("/")[2] for path in self.fs.find(f"{self.url}/{folder}")}


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """A new bucket on a server of its own; keys are asked for, and any will do."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    options = {"key": "nobody", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    bucket = Bucket(f"s3://bucket-{uuid.uuid4().hex}", endpoint, options)
    try:
        bucket.fs.mkdir(bucket.url)
        yield bucket
    finally:
        server.stop()
