import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import zipfile
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebase.datastore.shards import metadata_of
from rebase.datastore.sources import (
    FolderSource,
    HubSource,
    Source,
    failure_reason,
    find_sources,
    parse_card,
    text_files,
)
from rebase.errors import RebaseError
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest import nodes
from rebase.pipelines.ingest.nodes import plan_ingest
from tests.datastore.folders import folder
from tests.hub import Hub, Repository

# ---------------------------------------------------------------------------------------------------------- cards


def test_card_without_anything():
    card = parse_card("d", "", "r")
    assert (card.description, card.license, card.languages, card.revision) == ("d", "unknown", (), "r")


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: mit", "mit"),
        ("license: [mit, cc-by-4.0]", "mit; cc-by-4.0"),
        ("license: null", "unknown"),
        ("license:", "unknown"),
        ("- a list", "unknown"),
        # One broken line must not hide a license that forbids the use.
        ("license: cc-by-nc-4.0\ntags: [open", "cc-by-nc-4.0"),
        ("license: 'cc-by-nc-4.0'\ndate: 2020-13-45", "cc-by-nc-4.0"),
    ],
)
def test_license_of_a_card(front, license):
    assert parse_card("d", f"---\n{front}\n---\nText.", "r").license == license


def test_card_description_and_languages():
    card = parse_card("d", "---\npretty_name: Nice\nlanguage: [en, 'no']\n---\n\n# Title\n---\nmore\n", "r")
    assert card.description == "# Title\n---\nmore"
    assert card.languages == ("en", "no")
    assert parse_card("d", "---\npretty_name: Nice\n---\n", "r").description == "Nice"
    assert parse_card("d", "no front matter", "r").description == "no front matter"


# -------------------------------------------------------------------------------------------------------- folders


def rows(source, config):
    return [row for _, row in source.read(config, 1000)[1].rows]


def test_a_folder_without_a_card_is_one_config_of_the_most_frequent_format(tmp_path):
    source = folder(
        tmp_path,
        {
            "b.csv": "a\nsecond\n",
            "a.csv": "a\nfirst\n",
            "en/data.csv.gz": gzip.compress(b"b\nother columns\n"),
            "table.TSV": "a\tb\n1\t2\n",
            "data.jsonl": '{"a": "from jsonl"}\n',
            "notes.txt": "no table",
            ".hidden.csv": "a\nx\n",
            ".ipynb_checkpoints/a.csv": "a\nx\n",
            "__pycache__/a.csv": "a\nx\n",
            "dataset_infos.json": "{}",
            "README.md": "card",
        },
    )
    assert source.configs() == ["default"]
    files, sample = source.read("default", 1000)
    assert [row for _, row in sample.rows] == [
        {"a": "first"}, {"a": "second"}, {"b": "other columns"}, {"a": "1", "b": "2"}]  # fmt: skip
    assert (files.other_files, files.other_splits, sample.unread) == (["data.jsonl", "notes.txt"], [], [])


CARD = """\ufeff---
configs:
- config_name: one
  data_files:
  - {split: test, path: test.csv}
  - {split: train, path: [train/*.csv, more.csv]}
- config_name: only_test
  data_files: [{split: test, path: test.csv}]
- data_files: test.csv
- config_name: up
  data_files: ../secret.csv
- config_name: rooted
  data_files: /etc/*
- config_name: linked
  data_files: link.csv
- config_name: remote
  data_files: https://example.org/a.csv
- config_name: archived
  data_files: zip://*.csv::../secret.zip
- config_name: above
  data_dir: ..
---
"""


def test_declared_configs_never_leave_the_folder(tmp_path):
    (tmp_path / "secret.csv").write_text("a\nsecret\n")
    source = folder(
        tmp_path / "d",
        {"README.md": CARD, "train/x.csv": "a\n1\n", "more.csv": "a\n2\n", "test.csv": "a\n3\n"},
    )
    (tmp_path / "d" / "link.csv").symlink_to(tmp_path / "secret.csv")
    bad = ["above", "archived", "linked", "remote", "rooted", "up"]
    assert source.configs() == sorted([*bad, "default", "one", "only_test"])
    assert rows(source, "one") == [{"a": "1"}, {"a": "2"}]
    assert rows(source, "only_test") == rows(source, "default") == [{"a": "3"}]
    for config in bad:
        with pytest.raises(RebaseError, match=r"inside the dataset"):
            rows(source, config)


def test_label_names_of_a_card_nested_and_listed(tmp_path):
    label = {"class_label": {"names": {"0": "neg", "1": "pos"}}}
    features = [
        {"name": "label", "dtype": label},
        {"name": "many", "list": label},
        {"name": "deep", "list": {"list": label}},
        {"name": "items", "list": [{"name": "kind", "dtype": label}, {"name": "text", "dtype": "string"}]},
        {"name": "meta", "struct": [{"name": "kind", "dtype": label}]},
    ]
    declared = {
        "configs": [{"config_name": "a", "data_files": "a.jsonl"}, {"config_name": "b", "data_files": "b.jsonl"}],
        "dataset_info": [{"config_name": "a", "features": features}],
    }
    card = f"---\n{json.dumps(declared)}\n---\n"
    source = folder(tmp_path, {"README.md": card, "a.jsonl": '{"label": 1}\n', "b.jsonl": '{"label": 1}\n'})
    names = {column: ["neg", "pos"] for column in ("label", "many", "deep", "items.kind", "meta.kind")}
    assert source.read("a", 1)[1].label_names == names
    assert source.read("b", 1)[1].label_names == {}


def test_columns_of_mixed_types_are_decoded(tmp_path):
    lines = [{"a": 1, "b": {"c": 1}, "l": [1]}, {"a": 'x"y', "b": {"c": "z"}, "l": ["p", {"q": 2}]}, {"a": None}]
    source = folder(tmp_path, {"m.jsonl": "\n".join(map(json.dumps, lines))})
    assert [row["a"] for row in rows(source, "default")] == [1, 'x"y', None]
    assert [row.get("b") for row in rows(source, "default")] == [{"c": 1}, {"c": "z"}, None]
    assert [row.get("l") for row in rows(source, "default")] == [[1], ["p", {"q": 2}], None]


def test_names_with_wildcards_are_names(tmp_path):
    source = folder(tmp_path / "odd [set]*", {"a[1]?.csv": "a\n1\n", "__b.csv": "a\n2\n", "{c,d}.csv": "a\n3\n"})
    assert rows(source, "default") == [{"a": "2"}, {"a": "1"}, {"a": "3"}]


def test_fingerprint_changes_with_content_and_names(tmp_path):
    seen = {folder(tmp_path / "d", {"a.csv": "a\n1\n"}).fingerprint()}
    assert seen == {folder(tmp_path / "d", {}).fingerprint()}
    for files in ({"a.csv": "a\n2\n"}, {"README.md": "card"}, {"b.csv": "a\n2\n"}):
        source = folder(tmp_path / "d", files)
        assert source.fingerprint() not in seen
        seen.add(source.fingerprint())
        assert source.fingerprint().startswith(source.card().revision)


def test_locations_are_folders_or_hub_ids(tmp_path):
    for name in ("x/a", "x/b", "y/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x" / "notes.csv").write_text("no catalog unless it is named")
    locations = [f"{tmp_path}/x/*", f"{tmp_path}/x/a", "hf://squad", "hf://o/n@refs/pr/1?config=c%20d&split=test"]
    found = find_sources([*locations, "hf://o/m?split=dev"])
    assert [source.dataset for source in found] == ["a", "b", "o/m", "o/n", "squad"]
    assert [(source.revision, source.config, source.split) for source in found[2:]] == [
        (None, None, "dev"), ("refs/pr/1", "c d", "test"), (None, None, None)]  # fmt: skip
    with pytest.raises(RebaseError, match="two datasets are called 'a'"):
        find_sources([f"{tmp_path}/*/a"])
    with pytest.raises(RebaseError, match="no folder matches"):
        find_sources([f"{tmp_path}/z"])


def test_locations_between_commas_are_several_unless_a_path_has_the_comma(tmp_path):
    for name in ("x/a", "y/b", "with, comma/c"):
        (tmp_path / name).mkdir(parents=True)
    assert [source.dataset for source in find_sources([f"{tmp_path}/x/*, {tmp_path}/y/*,hf://o/n"])] == [
        "a",
        "b",
        "o/n",
    ]
    assert [source.dataset for source in find_sources([f"{tmp_path}/with, comma/*", f"{tmp_path}/x/a"])] == ["a", "c"]
    with pytest.raises(RebaseError, match="no folder matches '/nowhere'"):
        find_sources([f"{tmp_path}/x/*,/nowhere"])


@pytest.mark.parametrize("location", ["hf://o/n?configs=a", "hf://o/n?test", "hf://../x", "hf://", "hf://a/b/c"])
def test_a_hub_id_that_is_none_is_rejected(location):
    with pytest.raises(RebaseError, match=r"is not understood|is not a hub id"):
        find_sources([location])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_catalog_lists_hub_datasets(tmp_path, ending):
    table = pd.DataFrame({
        "id": [" o/b ", "a"], "revision": [OLD, None], "split": [None, "test"], "likes": [3, 4],
        "description": ["NA", 'Über "alles",\nzwei Zeilen'],
    })  # fmt: skip
    file = tmp_path / f"list.{ending}"
    table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    assert find_sources([str(file)], TOKEN) == [
        HubSource("a", None, TOKEN, None, "test", 'Über "alles",\nzwei Zeilen'),
        HubSource("o/b", OLD, TOKEN, None, None, "NA"),
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("name,revision\na/b,\n", "no column 'id'; it has name, revision"),
        ("id,split\na/b,\n,test\n", "row 3, column 'id': it is empty"),
        ("id\na/b\nc/d\na/b\n", r"row 4, column 'id': 'a/b' is in row 2 already"),
        ("id\n../../etc\n", r"row 2, column 'id': '../../etc' is not a hub id"),
        ("id\n/etc/passwd\n", r"row 2, column 'id': '/etc/passwd' is not a hub id"),
        ("id\na/b,c,d\n1,2\n", "cannot be read"),
        ("", "no folder matches"),
        ("id\n", "no folder matches"),
    ],
)
def test_catalog_with_an_error_names_file_row_and_column(tmp_path, lines, complaint):
    (tmp_path / "list.csv").write_text(lines)
    with pytest.raises(RebaseError, match=complaint) as error:
        find_sources([str(tmp_path / "list.csv")])
    assert "list.csv" in str(error.value)


def test_sources_can_be_sent_and_keep_their_token_to_themselves(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    source = FolderSource(tmp_path)
    source.fingerprint()
    for original in (source, HubSource("o/n", OLD, TOKEN)):
        sent: Source = pickle.loads(pickle.dumps(original))
        assert sent == original
        assert sent.fingerprint() == original.fingerprint()
        assert TOKEN not in repr(original)


def test_a_pinned_commit_needs_no_network():
    commit = "0123456789abcdef" * 2 + "01234567"
    source = HubSource("owner/name", commit, None)
    assert source.fingerprint() == commit
    assert source.content() is None
    assert HubSource("owner/name", commit, None, split="test").fingerprint() != commit


def test_offline_is_unreachable_not_malformed(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("nothing to wait for"))
    with pytest.raises(Exception, match=r"[Oo]ffline") as error:
        HubSource("owner/name", None, None).fingerprint()
    assert failure_reason(error.value) == "unreachable"
    assert failure_reason(ValueError("bad row")) == "malformed"
    assert failure_reason(PermissionError(13, "no")) == "unreadable"
    assert failure_reason(MemoryError()) == "too_large"


# ------------------------------------------------------------------------------------------------------------ hub

OLD, NEW = f"{1:040}", f"{2:040}"
TOKEN = "hf_sesame"


def parquet(columns, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


HUB_CARD = b"""---
license: mit
language: [en]
configs:
- config_name: z
  data_files: z.parquet
- config_name: b
  data_files: [{split: train, path: b/train-*}, {split: test, path: b/test-*}]
dataset_info:
- config_name: b
  features:
  - {name: text, dtype: string}
  - {name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}
---
A tale.
"""
TALE_FILES = {
    "README.md": HUB_CARD,
    "z.parquet": parquet({"text": ["last"]}),
    "b/train-00000-of-00001.parquet": parquet({"text": ["x", "y"], "label": [0, 1]}),
    "b/test-00000-of-00001.parquet": parquet({"text": ["from test"], "label": [0]}),
}


def one_row(name="open"):
    return {"a.jsonl": json.dumps({"text": "one", "label": "sport", "from": name}).encode()}


TASK = {
    "name": "topic", "version": 1, "instruction": "Name it.", "query": "{text}",
    "examples": [{"text": "t", "answer": "sport"}], "answer": {"type": "label", "labels": ["sport"]},
    "metrics": ["accuracy"],
    "evaluation": {"source": "owner/shaky", "split": "train", "fields": {"text": "text", "references": "label"}},
}  # fmt: skip

#: What a user's process does: ingest from the hub twice, the second time with a token; then an evaluation set.
INGEST = """
import json, sys
from pathlib import Path
from rebase.datasets import EvaluationRowsDataset, InputsDataset, ShardStore, SourcesDataset
from rebase.parameters import IngestParameters
from rebase.pipelines.ingest.nodes import plan_ingest, summarize_ingest
from rebase.datastore.shards import metadata_of
from rebase.datastore.sources import errors
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.tasks.task_files import load_task

errors.WAITS = (0.01, 0.01, 0.01)
folder, token, *locations = sys.argv[1:]
store, runs = ShardStore(folder + "/rows"), []
for credentials in (None, {"token": token}):
    sources = SourcesDataset(locations, credentials=credentials)
    print(sources, repr(sources), sources.load(), file=sys.stderr)
    store.save(plan_ingest(sources.load(), IngestParameters(max_rows=10)))
    rows = store.load()
    runs.append({name: {"rows": rows[name].to_pylist(), **metadata_of(rows[name])} for name in rows})
    cards = summarize_ingest(rows)[0].set_index("dataset")
rows = EvaluationRowsDataset(folder, "topic", credentials={"token": token})
items = make_evaluation_items(load_task(Path(folder), "topic"), rows.load())
inputs = InputsDataset(folder, "pinned", source="owner/chosen").load()
output = {"items": items.to_dict("records"), "inputs": inputs.to_dict("records"), "cards": cards.to_dict("index")}
print(json.dumps(output | {"runs": runs}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What a process made of a hub with good and bad repositories, and what it asked for."""
    work = tmp_path_factory.mktemp("hub")
    (work / "topic.yml").write_text(json.dumps(TASK))
    pinned = TASK | {"name": "pinned", "evaluation": TASK["evaluation"] | {"revision": OLD, "config": "b"}}
    (work / "pinned.yml").write_text(json.dumps(pinned))
    (work / "script").mkdir()  # A folder called like a dataset must not be taken for it.
    (work / "owner" / "tale").mkdir(parents=True)
    (work / "owner" / "tale" / "trap.csv").write_text("text\ntrap\n")
    long = parquet(
        {"n": range(200_000), "text": [str(number) * 5 for number in range(200_000)], "raw": [b"x" * 50] * 200_000},
        row_group_size=2000, compression="none", use_dictionary=False,
    )  # fmt: skip
    hub = Hub(
        {
            "owner/long": Repository({NEW: {"data/train-00000-of-00002.parquet": long,
                                            "data/train-00001-of-00002.parquet": long}}),
            "owner/long-copy": Repository({NEW: {"train.parquet": long, "x.parquet": long}}),
            "owner/busy": Repository({NEW: {"a.parquet": parquet({"text": ["at last"]})}}),
            "owner/tale": Repository({OLD: one_row(), NEW: TALE_FILES}),
            "owner/pinned": Repository({OLD: one_row("pinned") | {"README.md": b"Old."}, NEW: {"README.md": b"New."}}),
            "owner/script": Repository({NEW: {"README.md": b"Card.", "script.py": b"raise SystemExit('I ran')"}}),
            "owner/chosen": Repository({NEW: TALE_FILES}),
            "owner/gated": Repository({NEW: one_row()}, gate=TOKEN),
            "owner/shaky": Repository({NEW: one_row()}),
            "owner/down": Repository({NEW: one_row("down")}),
            "owner/broken": Repository({NEW: {"a.parquet": b"PAR1 not really"}}),
        },
        failures=Counter({
            f"/datasets/owner/shaky/resolve/{NEW}/a.jsonl": 1, "/api/datasets/owner/shaky": 2,
            "/api/datasets/owner/down": 4,
        }),
        limits={
            "/api/datasets/owner/busy": [{"Retry-After": "1"}, {"RateLimit": '"api";r=0;t=1'}],
            f"/datasets/owner/busy/resolve/{NEW}/a.parquet": [{"Retry-After": "0"}],
        },
    )  # fmt: skip
    names = (
        "tale",
        f"pinned@{OLD}",
        "script",
        "gated",
        "none",
        "shaky",
        "down",
        "broken",
        "chosen?config=b&split=test",
    )
    catalog = work / "list.csv"
    catalog.write_text("id,description,split\nowner/long,Long ago.,\nowner/long-copy,,\nowner/busy,,train\n")
    with hub.serve():
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(work / "home"), "NO_PROXY": "*",
            "no_proxy": "*", "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", INGEST, str(work), TOKEN, *(f"hf://owner/{name}" for name in names), str(catalog)],
            env=environment, cwd=work, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    output = json.loads(done.stdout.splitlines()[-1])
    return SimpleNamespace(first=output["runs"][0], second=output["runs"][1],
                           items=output["items"], inputs=output["inputs"],
                           cards=output["cards"],
                           printed=done.stdout + done.stderr, requests=hub.requests, times=hub.times,
                           served=hub.served, long=len(long))  # fmt: skip


def reasons(dataset):
    return [rejection["reason"] for rejection in dataset["rejected"]]


def test_hub_rows_carry_the_commit(hub):
    tale = hub.first["owner/tale"]
    assert [(row["config"], row["split"], row["row_index"]) for row in tale["rows"]] == [
        ("b", "train", 0), ("b", "train", 1), ("z", "train", 0)]  # fmt: skip
    assert [json.loads(row["row"]) for row in tale["rows"]] == [
        {"text": "x", "label": "neg"}, {"text": "y", "label": "pos"}, {"text": "last"}]  # fmt: skip
    assert {row["revision"] for row in tale["rows"]} == {NEW}
    assert {row["license"] for row in tale["rows"]} == {"mit"}
    assert tale["card"]["description"] == "A tale."
    assert [(rejection["reason"], rejection["detail"]) for rejection in tale["rejected"]] == [
        ("other_split", "only train is read, not test")]  # fmt: skip


def test_hub_config_and_split_can_be_chosen(hub):
    chosen = hub.first["owner/chosen"]
    assert [(row["config"], row["split"], json.loads(row["row"])) for row in chosen["rows"]] == [
        ("b", "test", {"text": "from test", "label": "neg"})]  # fmt: skip
    assert chosen["rejected"] == []


def test_hub_revision_is_pinned_for_card_and_rows(hub):
    pinned = hub.first["owner/pinned"]
    assert (pinned["card"]["description"], pinned["card"]["revision"]) == ("Old.", OLD)
    assert [(json.loads(row["row"])["text"], row["revision"]) for row in pinned["rows"]] == [("one", OLD)]
    assert not any("owner/pinned" in path and NEW in path for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("script", "script"), ("gated", "gated"), ("none", "missing"), ("down", "unreachable"), ("broken", "malformed")],
)
def test_hub_dataset_that_fails_is_rejected_and_the_others_go_on(hub, name, reason):
    dataset = hub.first[f"owner/{name}"]
    assert reasons(dataset) == [reason]
    assert dataset["rejected"][0]["detail"]
    assert dataset["rows"] == []


def test_hub_file_that_fails_once_is_asked_for_again(hub):
    assert reasons(hub.first["owner/shaky"]) == []
    assert len(hub.first["owner/shaky"]["rows"]) == 1


def test_next_run_tries_again_what_another_day_may_lift(hub):
    for name in ("gated", "down"):
        assert reasons(hub.second[f"owner/{name}"]) == []
        assert [row["revision"] for row in hub.second[f"owner/{name}"]["rows"]] == [NEW]
    assert reasons(hub.second["owner/none"]) == ["missing"]


def test_next_run_reads_nothing_twice(hub):
    second_run = next(number for number, (_, _, authorization) in enumerate(hub.requests) if authorization)
    for name in ("tale", "pinned", "script", "broken"):
        assert not any(f"owner/{name}/resolve" in path for _, path, _ in hub.requests[second_run:])


def test_of_a_large_parquet_file_little_is_read(hub):
    long = hub.first["owner/long"]
    assert [row["row_index"] for row in long["rows"]] == list(range(0, 400_000, 40_000))
    assert [json.loads(row["row"]) for row in long["rows"]] == [
        {"n": str(number), "text": str(number) * 5} for number in 2 * list(range(0, 200_000, 40_000))]  # fmt: skip
    assert (long["in"], long["kept"]) == (400_000, 10)
    for part in ("0", "1"):
        assert 0 < hub.served[f"data/train-0000{part}-of-00002.parquet"] < hub.long / 20


def test_copies_on_the_hub_are_known_without_a_download(hub):
    assert (hub.cards["owner/long"]["duplicates"], hub.cards["owner/long-copy"]["duplicate_of"]) == (
        "owner/long-copy", "owner/long")  # fmt: skip
    assert hub.first["owner/long-copy"]["rows"] == []
    assert not any("owner/long-copy/resolve" in path and path.endswith("parquet") for _, path, _ in hub.requests)


def test_catalog_describes_what_has_no_card(hub):
    assert hub.cards["owner/long"]["description"] == "Long ago."
    assert hub.cards["owner/busy"]["description"] == "owner/busy"


def test_a_busy_hub_is_waited_for_as_long_as_it_says(hub):
    assert [json.loads(row["row"]) for row in hub.first["owner/busy"]["rows"]] == [{"text": "at last"}]
    asked = [moment for moment, (_, path, _) in zip(hub.times, hub.requests, strict=True)
             if path == "/api/datasets/owner/busy"]  # fmt: skip
    assert asked[1] - asked[0] >= 1
    assert asked[2] - asked[1] >= 1


def test_token_goes_to_the_hub_and_nowhere_else(hub):
    assert {authorization for _, _, authorization in hub.requests} == {None, f"Bearer {TOKEN}"}
    assert TOKEN not in hub.printed


def test_no_script_runs(hub):
    assert "I ran" not in hub.printed


def test_evaluation_set_comes_from_the_hub(hub):
    assert [(item["query"], item["references"]) for item in hub.items] == [("one", '["sport"]')]


def test_inputs_from_the_hub_keep_their_source_and_not_the_evaluation_sets_revision(hub):
    assert [item["query"] for item in hub.inputs] == ["x", "y"]
    origin = {"dataset": "owner/chosen", "config": "b", "revision": NEW, "license": "mit", "row_index": 1}
    assert hub.inputs[1].items() >= origin.items()


# ----------------------------------------------------------------------------------------------- what has no end

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)
DATA = {"a.csv": "text\nsome words\n"}
LONG_CARD = "---\n" + "license: mit\n" * 500_000


def ingested(source):
    """The metadata of the shard that ingest makes of a source."""
    [shard] = plan_ingest([source], IngestParameters(max_rows=1000)).shards
    return metadata_of(shard.build(None))


def rejections(source):
    return [(rejection["reason"], rejection["rows"]) for rejection in ingested(source)["rejected"]]


@pytest.mark.parametrize(
    "front",
    [
        f"{BOMB}license: *a8",
        f"{BOMB}language: *a8",
        f"{BOMB}pretty_name: *a8",
        f"{BOMB}configs: *a8",
        f"{BOMB}dataset_info: *a8",
        f"{BOMB}dataset_info: {{features: *a8}}",
        f"{BOMB}configs: [{{config_name: default, data_files: *a8}}]",
        f"{BOMB}configs: [{{config_name: default, data_files: a.csv, sep: *a8}}]",
        "a: &a [*a]\nlicense: *a",
        "a: " + "[" * 100_000,
        "a: " + "[" * 60 + "]" * 60,
        "".join(f"{' ' * level}a:\n" for level in range(200)),
        "a: b" + " " * 200_000 + "c\nd: [",
        "a: [" + "b, " * 120_000 + "]",
    ],
)
def test_a_card_without_end_is_read_by_its_plain_fields(tmp_path, front):
    began = time.monotonic()
    source = folder(tmp_path, DATA | {"README.md": f"---\nlicense: cc-by-nc-4.0\n{front}\n---\nText."})
    metadata = ingested(source)
    assert time.monotonic() - began < 30
    assert (metadata["kept"], metadata["card"]["description"]) == (1, "Text.")
    assert "license: " in front or front.endswith("*a8") or metadata["card"]["license"] == "cc-by-nc-4.0"


def test_of_a_long_card_only_the_beginning_is_read(tmp_path):
    card = folder(tmp_path / "front", DATA | {"README.md": LONG_CARD}).card()
    assert (card.license, card.description) == ("mit", "front")
    card = folder(tmp_path / "body", DATA | {"README.md": "---\nlicense: mit\n---\n" + "word " * 500_000}).card()
    assert card.license == "mit"
    assert 0 < len(card.description) < 2**20


def test_thousands_of_licenses_are_none(tmp_path):
    front = "license:\n" + "".join(f"- license-{number}\n" for number in range(5000))
    assert folder(tmp_path, DATA | {"README.md": f"---\n{front}---\n"}).card().license == "5000 licenses"


def test_sparse_files_take_no_memory(tmp_path):
    files = {"a.csv": b"text\nx\n", "README.md": b"---\nlicense: mit\n", "dataset_infos.json": b"{"}
    source = folder(tmp_path, files)
    for name in files:
        os.truncate(tmp_path / name, 2**27)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rejections(source) == [("malformed", 0)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000  # KB


def test_a_line_without_end_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_CHARACTERS", 1000)
    source = folder(tmp_path, {"a.csv.gz": gzip.compress(b"text\nx\n" + b"y" * 2000), "b.csv": "text\nz\n"})
    metadata = ingested(source)
    assert metadata["kept"] == 1
    assert [rejection["reason"] for rejection in metadata["rejected"]] == ["too_large"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "[" + "[]," * 2000 + "[]]"), ("a.jsonl", '{"a": [' + "1," * 2000 + "1]}\n" * 2), ("a.csv", "," * 2000)],
)
def test_more_values_than_fit_into_memory_are_too_large(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(text_files, "MAX_VALUES", 1000)
    monkeypatch.setattr(text_files, "MAX_COLUMNS", 1000)
    assert rejections(folder(tmp_path, {name: text})) == [("too_large", 0)]


@pytest.mark.parametrize("format_", ["zip", "gzip", "bz2", "xz", "png", "pdf", "program", "parquet", "noise"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_what_is_no_text_has_no_rows(tmp_path, format_, name):
    noise = random.Random(1).randbytes(3000)
    zipped, table = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.txt", "some words\n" * 100)
    pq.write_table(pa.table({"text": ["some words"] * 100}), table)
    content = {
        "zip": zipped.getvalue(),
        "gzip": gzip.compress(b"text\nx\n"),
        "bz2": bz2.compress(b"text\nx\n"),
        "xz": lzma.compress(b"text\nx\n"),
        "png": b"\x89PNG\r\n\x1a\n" + noise,
        "pdf": b"%PDF-1.4\n" + noise,
        "program": b"\x7fELF\x02\x01\x01" + bytes(9) + noise,
        "parquet": table.getvalue(),
        "noise": noise,
    }[format_]
    source = folder(tmp_path, {name: content})
    [rejection] = ingested(source)["rejected"]
    assert (rejection["reason"], rejection["rows"]) == ("malformed", 0)
    assert f"{name}: ValueError: the content is not text" in rejection["detail"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-8"])
@pytest.mark.parametrize("text", ["文本,标签\n世界你好,二\n" * 20, "text,größe\nhéllo,2\n", "текст,да\nпривет,нет\n"])
def test_text_of_any_language_is_read(tmp_path, encoding, text):
    source = folder(tmp_path, {"a.csv": text.encode(encoding)})
    header, first = (line.split(",") for line in text.splitlines()[:2])
    assert rows(source, "default")[0] == dict(zip(header, first, strict=True))


def test_thousands_of_files_are_listed_in_linear_time(tmp_path):
    def seconds(count):
        source = folder(tmp_path / str(count), {f"part{number:05}.csv": "text\nx\n" for number in range(count)})
        began = time.process_time()
        assert ingested(source)["in"] == count
        return time.process_time() - began

    seconds(10)
    assert seconds(2000) < 30 * seconds(200)


def test_folders_that_are_nested_without_end_are_too_large(tmp_path):
    source = folder(tmp_path, {"/".join(["d"] * 80) + "/a.csv": "text\nx\n"})
    assert rejections(source) == [("too_large", 0)]


def test_wildcards_that_never_end_are_an_error(tmp_path):
    for number, pattern in enumerate(["*a" * 25 + "b", "/".join(["**"] * 9) + "/b"]):
        card = f"---\nconfigs: [{{config_name: a, data_files: '{pattern}'}}]\n---\n"
        source = folder(tmp_path / str(number), {"a" * 200 + ".csv": "text\nx\n", "README.md": card})
        with pytest.raises(RebaseError, match="too many wildcards"):
            source.read("a", 10)


def test_separators_are_text_or_white_space(tmp_path):
    card = "---\nconfigs: [{{config_name: a, data_files: a.csv, sep: '{}'}}]\n---\n"
    written = {"||": "||", r"\|\|": "||", r"\.\.": "..", "::": "::", r"\t": "\t", ";|::": ";", r"\s+": "  "}
    for number, (separator, text) in enumerate(written.items()):
        files = {"a.csv": f"x{text}y\n1{text}2\n", "README.md": card.format(separator)}
        assert rows(folder(tmp_path / str(number), files), "a") == [{"x": "1", "y": "2"}]
    for number, separator in enumerate(["(x+)+y", r"\s*,\s*", "x{9999}", r"[ab]*c", r"\w+;"]):
        source = folder(tmp_path / f"odd{number}", {"a.csv": "x;y\n", "README.md": card.format(separator)})
        [(_, error)] = source.read("a", 10)[1].unread
        assert "is a regular expression" in str(error)


def test_many_columns_of_one_name_are_read(tmp_path):
    count = 20_000
    source = folder(tmp_path, {"a.csv": ",".join(["c"] * count) + "\n" + ",".join(["v"] * count) + "\n"})
    began = time.monotonic()
    [row] = rows(source, "default")
    assert time.monotonic() - began < 10
    assert len(row) == count


def test_a_dataset_that_takes_too_long_is_too_slow_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "MAX_SECONDS", 0.3)
    slow = folder(tmp_path / "slow", {"a.csv": "text\n" + "x\n" * 3_000_000})
    parquet = folder(tmp_path / "parquet", {})
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table({"text": ["some words"] * 300_000}), tmp_path / "parquet" / "a.parquet")
    good = folder(tmp_path / "good", DATA)
    plan = plan_ingest([slow, parquet, good], IngestParameters(max_rows=1_000_000))
    metadata = [metadata_of(shard.build(None)) for shard in plan.shards]
    assert [[rejection["reason"] for rejection in one["rejected"]] for one in metadata] == [
        ["too_slow"], ["too_slow"], []]  # fmt: skip
    assert [one["kept"] for one in metadata] == [0, 0, 1]
    assert [one["provisional"] for one in metadata] == [True, True, False]  # another day it may be faster
