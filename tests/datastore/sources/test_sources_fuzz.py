"""What the ``datasets`` library reads of a folder is read, and what it does not read is read or rejected."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import get_dataset_config_names, load_dataset_builder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebase.datastore.shards import metadata_of
from rebase.datastore.sources import FolderSource
from rebase.errors import RebaseError
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest.nodes import plan_ingest
from tests.datastore.folders import folder

CELLS = st.one_of(
    st.sampled_from(
        ["no", "None", "NA", "007", "3.10", "True", "", " ", "a,b", 'say "x"', "two\nlines", "é", "2020-01-02"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=6),
)
VALUES = st.one_of(
    CELLS, st.none(), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
NAMES = st.lists(st.sampled_from(["text", "label", "id", "on", "1", "größe"]), min_size=1, max_size=3, unique=True)


@st.composite
def tables(draw):
    """The names of columns, and rows."""
    names = draw(NAMES)
    return names, draw(st.lists(st.tuples(*[CELLS] * len(names)), max_size=4))


def as_csv(table, separator=","):
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\n").writerows([table[0], *table[1]])
    return stream.getvalue().encode()


def as_objects(table):
    return [dict(zip(table[0], row, strict=True)) for row in table[1]]


def as_arrow(table):
    return pa.table(
        {name: pa.array([row[number] for row in table[1]], pa.string()) for number, name in enumerate(table[0])}
    )


def as_parquet(table):
    stream = io.BytesIO()
    pq.write_table(as_arrow(table), stream)
    return stream.getvalue()


def as_ipc(table):
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, as_arrow(table).schema) as writer:
        writer.write_table(as_arrow(table))
    return stream.getvalue()


FORMATS = {
    ".csv": as_csv,
    ".tsv": lambda table: as_csv(table, "\t"),
    ".jsonl": lambda table: "\n".join(map(json.dumps, as_objects(table))).encode(),
    ".json": lambda table: json.dumps(as_objects(table), indent=1).encode(),
    ".parquet": as_parquet,
    ".arrow": as_ipc,
    ".txt": lambda table: "\n".join(" ".join(row) for row in table[1]).encode(),
}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
STEMS = [
    "train", "test", "data/train-00000-of-00002", "data/train-00001-of-00002", "validation", "dev/part", "part",
    "table", "my_test", ".hidden", "__skip__/a", "en/train", "odd [name]*",
]  # fmt: skip


@st.composite
def files(draw):
    """The files of a folder, mostly of one format."""
    usual = draw(st.sampled_from(sorted(FORMATS)))
    usual_table = draw(tables())
    folder = {}
    for stem in draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=4, unique=True)):
        suffix = draw(st.sampled_from([usual] * 5 + sorted(FORMATS)))
        compression = draw(st.sampled_from(["", "", "", *COMPRESSIONS])) if suffix not in (".parquet", ".arrow") else ""
        content = FORMATS[suffix](draw(st.one_of(st.just(usual_table), tables())))
        if draw(st.integers(0, 3)) == 0:
            content = draw(
                st.sampled_from([
                    content[:-3], content[: len(content) // 2], content * 2, b"", b"\xff" + content,
                    *(content + more for more in (b"\n{", b'\n"', b"\nx,y,z,w,v")),
                    # The library takes the mark for a character of a text.
                    content if suffix == ".txt" else b"\xef\xbb\xbf" + content,
                ])
            )  # fmt: skip
        folder[f"{stem}{suffix}{compression}"] = COMPRESSIONS[compression](content)
    return folder


SCALARS = st.sampled_from(["no", "on", "1_0", "null", "a", "train", "1.0", "12:30:45", "'quoted'", "[", "~", "&a [*a]"])


@st.composite
def cards(draw, paths):
    """A card: none, valid YAML about the files, or text that only looks like it."""
    kind = draw(st.sampled_from(["none", "none", "configs", "features", "junk"]))
    if kind == "none":
        return None
    if kind == "junk":
        lines = draw(
            st.lists(st.tuples(st.sampled_from(["license", "configs", "dataset_info", "- a"]), SCALARS), max_size=3)
        )
        return "---\n" + "".join(f"{key}: {value}\n" for key, value in lines) + "---\nText."
    patterns = st.sampled_from([*paths, "*", "data/*", "*.csv", "gone.csv", "../*", "train*", "**/*.jsonl"])
    front = {"license": draw(SCALARS)}
    if kind == "configs":
        names = draw(st.lists(st.sampled_from(["default", "on", "b c"]), min_size=1, max_size=2, unique=True))
        front["configs"] = [
            {"config_name": name}
            | draw(st.sampled_from([{}, {"sep": ";"}, {"sep": ","}, {"field": "data"}, {"nonsense": 1}]))
            | draw(st.one_of(
                st.just({}),
                st.fixed_dictionaries({"data_files": st.one_of(patterns, st.lists(patterns, min_size=1, max_size=2))}),
                st.fixed_dictionaries({"data_files": patterns.map(lambda path: [{"split": "test", "path": path}])}),
                st.fixed_dictionaries({"data_dir": st.sampled_from(["data", "dev", "..", "none"])}),
            ))
            for name in names
        ]  # fmt: skip
    else:
        kinds = st.sampled_from(["string", "int64", "nonsense", {"class_label": {"names": {"0": False, "1": 1.5}}}])
        front["dataset_info"] = {"features": [{"name": name, "dtype": draw(kinds)} for name in draw(NAMES)]}
    return f"---\n{yaml.safe_dump(front)}---\nText."


def read_by_library(path):
    """The rows of each config of which the library can stream a split; config, split, format and files come first."""
    try:
        configs = get_dataset_config_names(str(path))
    except Exception:
        return
    for config in configs:
        try:
            with tempfile.TemporaryDirectory() as cache:
                builder = load_dataset_builder(str(path), config, cache_dir=cache)
                splits = builder.config.data_files
                split = "train" if "train" in splits else next(iter(splits))
                rows = list(builder.as_streaming_dataset(split=split))
        except Exception:
            continue
        yield str(config), str(split), builder.name, list(splits[split]), rows


def texts(rows):
    return [{name: value for name, value in row.items() if value} for row in rows]


SEEN = Counter()


def check(contents, card):
    """Read a folder: every row is kept or rejected, and what the library reads is read."""
    with tempfile.TemporaryDirectory() as work:
        source = folder(Path(work) / "raw", contents if card is None else {**contents, "README.md": card})
        [shard] = plan_ingest([source], IngestParameters(max_rows=1000)).shards
        metadata = metadata_of(shard.build(None))
        rejected = metadata["rejected"]
        assert metadata["in"] == metadata["kept"] + sum(rejection["rows"] for rejection in rejected)
        assert metadata["kept"] or rejected
        assert all(rejection["detail"] for rejection in rejected if not rejection["rows"])
        by_library = list(read_by_library(source.folder))
        for config, split, module, paths, expected in by_library:
            try:
                files, sample = FolderSource(source.folder).read(config, 1000)
            except RebaseError as error:  # The library leaves the folder, or reads no file.
                assert not expected or "not inside the dataset" in str(error)  # noqa: PT017
                continue
            # It reads the files of all configs as those of the first one, and those twice that two patterns match.
            if (files.module, sorted(files.paths)) == (module, sorted(paths)):
                SEEN["compared configs"] += 1
                assert (files.split, sample.total, sample.unread) == (split, len(expected), [])
                if all(isinstance(value, str | None) for row in expected for value in row.values()) and module != "csv":
                    assert texts(row for _, row in sample.rows) == texts(expected)
        SEEN["read by both" if any(rows for *_, rows in by_library) else
             "only by us" if metadata["kept"] else "by neither"] += 1  # fmt: skip


def fuzz(examples):
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check_any(data):
        contents = data.draw(files())
        check(contents, data.draw(cards(sorted(contents))))

    check_any()
    print(dict(SEEN))


def test_a_few_folders():
    fuzz(60)


@pytest.mark.slow
def test_many_folders():
    fuzz(1500)
