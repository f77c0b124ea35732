"""An S3 server on loopback, started once."""

import atexit
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import fsspec


@dataclass(frozen=True)
class Bucket:
    """A bucket, and the options with which fsspec reaches it."""

    url: str
    endpoint: str
    options: dict[str, Any]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system, without its cached listings."""
        fs = fsspec.filesystem("s3", **self.options)
        fs.invalidate_cache()
        return fs

    def files(self, folder: str) -> set[str]:
        """The names of the objects in a folder."""
        return {path.rpartition("/")[2] for path in self.fs.find(f"{self.url}/{folder}")}


@cache
def _endpoint() -> str:
    """The address of the server, which runs until the process ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """A new bucket; any keys are accepted."""
    endpoint = _endpoint()
    options = {"key": "nobody", "secret": "hush-hush", "client_kwargs": {"endpoint_url": endpoint}}
    bucket = Bucket(f"s3://bucket-{uuid.uuid4().hex}", endpoint, options)
    bucket.fs.mkdir(bucket.url)
    yield bucket
