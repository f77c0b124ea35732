"""What folders and the hub share: configs, names of labels, and how a source is sent to another process."""

import json
import pickle

import pytest

from rebase.datastore.sources import FolderSource, HubSource, Source
from rebase.errors import RebaseError
from tests.datastore.folders import card, folder

TOKEN = "hf_sesame"


def test_an_unknown_config_or_split_says_which_there_are(tmp_path):
    folder(tmp_path, {"train.csv": "a\n1\n", "test.csv": "a\n1\n"})
    with pytest.raises(RebaseError, match="there is no config 'x'; there are default"):
        FolderSource(tmp_path).read("x", 9)
    with pytest.raises(RebaseError, match="there is no split 'dev'; there are train, test"):
        FolderSource(tmp_path, split="dev").read("default", 9)
    assert HubSource("o/n", None, None, selected=("x",)).configs() == ["x"]


def test_features_of_an_old_version_of_the_library_name_labels(tmp_path):
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    source = folder(
        tmp_path, {"a.jsonl": '{"label": 1}', "dataset_infos.json": json.dumps({"x": {"features": features}})}
    )
    assert source.read("default", 9)[1].label_names == {"label": ["neg", "pos"]}


def test_sources_can_be_sent_and_keep_their_token_to_themselves(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    source = FolderSource(tmp_path)
    source.fingerprint()
    for original in (source, HubSource("o/n", f"{1:040}", TOKEN)):
        sent: Source = pickle.loads(pickle.dumps(original))
        assert sent == original
        assert sent.fingerprint() == original.fingerprint()
        assert TOKEN not in repr(original)


def test_the_card_s_features_come_before_those_of_an_old_version_and_fill_its_gaps(tmp_path):
    def label(names):
        return {"names": names, "_type": "ClassLabel"}

    old = {"default": {"features": {"kind": label(["old"]), "topic": label(["a", "b"])}}}
    features = "[{name: kind, dtype: {class_label: {names: [new]}}}]"
    files = {"a.jsonl": '{"kind": 0, "topic": 0}', "dataset_infos.json": json.dumps(old)}
    source = folder(tmp_path, files | {"README.md": card(f"dataset_info: {{features: {features}}}\n")})
    assert source.read("default", 1)[1].label_names == {"kind": ["new"], "topic": ["a", "b"]}
    (tmp_path / "dataset_infos.json").write_text("{")
    assert FolderSource(tmp_path).read("default", 1)[1].label_names == {"kind": ["new"]}
