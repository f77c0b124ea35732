"""Folders of datasets for the tests of the sources."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from rebase.datasets import ShardStore
from rebase.datastore.shards import metadata_of
from rebase.datastore.sources import FolderSource, find_sources
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest.nodes import plan_ingest, summarize_ingest

DATA = {"a.csv": "text\nsome words\n"}


def folder(path, files):
    """A folder with these files; text or bytes."""
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return FolderSource(path)


def read(source, config="default", max_rows=1000):
    """The rows, with the reason instead of one that is malformed, and the files that were not read."""
    _, sample = source.read(config, max_rows)
    return [row for _, row in sample.rows], [path.rpartition("/")[2] for path, _ in sample.unread]


def rows(source, config="default"):
    found, unread = read(source, config)
    assert unread == []
    return found


def ingested(source):
    """The metadata of the shard that ingest makes of a source."""
    [shard] = plan_ingest([source], IngestParameters(max_rows=1000)).shards
    return metadata_of(shard.build(None))


def rejections(source):
    return [(rejection["reason"], rejection["rows"]) for rejection in ingested(source)["rejected"]]


def as_parquet(part):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(part), stream)
    return stream.getvalue()


def card(front):
    return f"---\n{front}---\nText.\n"


def run(raw, work, max_rows=1000, remove=False):
    """Ingest a folder of datasets: the stored rows, and the results of summarize_ingest."""
    store = ShardStore(str(work))
    store.save(plan_ingest(find_sources([f"{raw}/*"]), IngestParameters(max_rows=max_rows, remove=remove)))
    rows = store.load()
    return rows, *summarize_ingest(rows)


def cells(rows, name):
    return [json.loads(row) for row in rows[name]["row"].to_pylist()]


def reasons(rows, name):
    return {(rejection["reason"], rejection["rows"]) for rejection in metadata_of(rows[name])["rejected"]}
