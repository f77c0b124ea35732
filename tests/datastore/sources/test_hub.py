"""The hub as a source: a process with its own hub on loopback."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebase.datastore.sources import HubSource
from tests.hub import Hub, Repository

OLD, NEW = f"{1:040}", f"{2:040}"
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


def parquet(columns, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


THREE_CONFIGS = HUB_CARD.replace(b"dataset_info:", b"- {config_name: c, data_files: z.parquet}\ndataset_info:")
TALE_FILES = {
    "README.md": HUB_CARD,
    "z.parquet": parquet({"text": ["last"]}),
    "b/train-00000-of-00001.parquet": parquet({"text": ["x", "y"], "label": [0, 1]}),
    "b/test-00000-of-00001.parquet": parquet({"text": ["from test"], "label": [0]}),
}
TABLES = {f"{name}.parquet": parquet({"text": [name], "label": [label]}) for label, name in enumerate("ab")}
ONE_FILE = b"---\nconfigs: [{data_files: a.parquet}]\n---\n"
LABELS = b"dataset_info: {features: [{name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}]}\n"
TASK = {
    "name": "topic", "version": 1, "instruction": "Name it.", "query": "{text}",
    "examples": [{"text": "t", "answer": "sport"}], "answer": {"type": "label", "labels": ["sport"]},
    "metrics": ["accuracy"],
    "evaluation": {"source": "owner/shaky", "split": "train", "fields": {"text": "text", "references": "label"}},
}  # fmt: skip
TOKEN = "hf_sesame"


def one_row(name="open"):
    return {"a.jsonl": json.dumps({"text": "one", "label": "sport", "from": name}).encode()}


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
            "owner/long-copy": Repository({NEW: {"train.parquet": long, "x/train.parquet": long}}),
            "owner/busy": Repository({NEW: {"a.parquet": parquet({"text": ["at last"]})}}),
            "owner/tale": Repository({OLD: one_row(), NEW: TALE_FILES}),
            "owner/pinned": Repository({OLD: one_row("pinned") | {"README.md": b"Old."}, NEW: {"README.md": b"New."}}),
            "owner/script": Repository({NEW: {"README.md": b"Card.", "script.py": b"raise SystemExit('I ran')"}}),
            "owner/chosen": Repository({NEW: TALE_FILES}),
            "owner/two": Repository({NEW: TALE_FILES | {"README.md": THREE_CONFIGS}}),
            "owner/a-part": Repository({NEW: TABLES | {"README.md": ONE_FILE}}),
            "owner/all": Repository({NEW: TABLES | {"README.md": b"---\n" + LABELS + b"---\nA card.\n"}}),
            "owner/all-copy": Repository({NEW: TABLES | {"README.md": b"---\n" + LABELS + b"---\nOther words.\n"}}),
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
        "a-part",
        "all",
        "all-copy",
        "two?config=z",
        "two?config=b",
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


def test_two_of_three_configs_can_be_chosen(hub):
    rows = hub.first["owner/two"]["rows"]
    assert [(row["config"], row["split"]) for row in rows] == [("b", "train"), ("b", "train"), ("z", "train")]


def test_hub_revision_is_pinned_for_card_and_rows(hub):
    pinned = hub.first["owner/pinned"]
    assert (pinned["card"]["description"], pinned["card"]["revision"]) == ("Old.", OLD)
    assert [(json.loads(row["row"])["text"], row["revision"]) for row in pinned["rows"]] == [("one", OLD)]
    assert not any("owner/pinned" in path and NEW in path for _, path, _ in hub.requests)


def reasons(dataset):
    return [rejection["reason"] for rejection in dataset["rejected"]]


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


def test_copies_on_the_hub_are_known_without_a_download(hub):
    assert (hub.cards["owner/long"]["duplicates"], hub.cards["owner/long-copy"]["duplicate_of"]) == (
        "owner/long-copy", "owner/long")  # fmt: skip
    assert hub.first["owner/long-copy"]["rows"] == []
    assert not any("owner/long-copy/resolve" in path and path.endswith("parquet") for _, path, _ in hub.requests)


def test_copies_whose_cards_tell_other_rows_or_labels_are_no_duplicates(hub):
    assert {name: hub.cards[f"owner/{name}"]["duplicate_of"] for name in ("a-part", "all", "all-copy")} == {
        "a-part": "", "all": "", "all-copy": "owner/all"}  # fmt: skip
    assert [json.loads(row["row"]) for row in hub.first["owner/a-part"]["rows"]] == [{"text": "a", "label": "0"}]
    assert [json.loads(row["row"]) for row in hub.first["owner/all"]["rows"]] == [
        {"text": "a", "label": "neg"}, {"text": "b", "label": "pos"}]  # fmt: skip


def test_a_busy_hub_is_waited_for_as_long_as_it_says(hub):
    assert [json.loads(row["row"]) for row in hub.first["owner/busy"]["rows"]] == [{"text": "at last"}]
    asked = [moment for moment, (_, path, _) in zip(hub.times, hub.requests, strict=True)
             if path == "/api/datasets/owner/busy"]  # fmt: skip
    assert asked[1] - asked[0] >= 1
    assert asked[2] - asked[1] >= 1


def test_token_goes_to_the_hub_and_nowhere_else(hub):
    assert {authorization for _, _, authorization in hub.requests} == {None, f"Bearer {TOKEN}"}
    assert TOKEN not in hub.printed


def test_evaluation_set_comes_from_the_hub(hub):
    assert [(item["query"], item["references"]) for item in hub.items] == [("one", '["sport"]')]


def test_inputs_from_the_hub_keep_their_source_and_not_the_evaluation_sets_revision(hub):
    assert [item["query"] for item in hub.inputs] == ["x", "y"]
    origin = {"dataset": "owner/chosen", "config": "b", "revision": NEW, "license": "mit", "row_index": 1}
    assert hub.inputs[1].items() >= origin.items()


def test_a_pinned_commit_needs_no_network():
    commit = "0123456789abcdef" * 2 + "01234567"
    source = HubSource("owner/name", commit, None)
    assert source.fingerprint() == commit
    assert source.content() is None
    assert HubSource("owner/name", commit, None, split="test").fingerprint() != commit


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


def test_catalog_describes_what_has_no_card(hub):
    assert hub.cards["owner/long"]["description"] == "Long ago."
    assert hub.cards["owner/busy"]["description"] == "owner/busy"


def test_no_script_runs(hub):
    assert "I ran" not in hub.printed
