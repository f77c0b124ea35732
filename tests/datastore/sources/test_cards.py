"""Cards: front matter, texts, and what has no end."""

import json
import time

import pytest

from rebase.datastore.sources import parse_card
from tests.datastore.folders import DATA, card, folder, ingested, rows


def test_card_without_anything():
    card = parse_card("d", "", "r")
    assert (card.description, card.license, card.languages, card.revision) == ("d", "unknown", (), "r")


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: mit", "mit"),
        ("license: [mit, cc-by-4.0]", "mit; cc-by-4.0"),
        ("license: null", "unknown"),
        ("license: other\nlicense_name: cc-by-nc-4.0", "other; cc-by-nc-4.0"),
        ("license: [other]\nlicense_name: [x]\nlicense_link: LICENSE", "other; ['x']"),
        ("license: mit\nlicense_name: cc-by-nc-4.0", "mit"),
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


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)


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


LONG_CARD = "---\n" + "license: mit\n" * 500_000


def test_of_a_long_card_only_the_beginning_is_read(tmp_path):
    card = folder(tmp_path / "front", DATA | {"README.md": LONG_CARD}).card()
    assert (card.license, card.description) == ("mit", "front")
    card = folder(tmp_path / "body", DATA | {"README.md": "---\nlicense: mit\n---\n" + "word " * 500_000}).card()
    assert card.license == "mit"
    assert 0 < len(card.description) < 2**20


def test_thousands_of_licenses_are_none(tmp_path):
    front = "license:\n" + "".join(f"- license-{number}\n" for number in range(5000))
    assert folder(tmp_path, DATA | {"README.md": f"---\n{front}---\n"}).card().license == "5000 licenses"


@pytest.mark.parametrize(
    ("names", "written"),
    [
        ("{'0': no, '1': yes}", ["no", "yes"]),
        ("{0: 1, 1: 2.50}", ["1", "2.50"]),
        ("[null, off]", ["null", "off"]),
        ("[1_0, 12:30:45]", ["1_0", "12:30:45"]),
        ("[2020-01-02, 010]", ["2020-01-02", "010"]),
    ],
)
def test_names_of_labels_are_as_written(tmp_path, names, written):
    front = f"dataset_info: {{features: [{{name: label, dtype: {{class_label: {{names: {names}}}}}}}]}}\n"
    source = folder(tmp_path, {"README.md": card(front), "a.jsonl": '{"label": 1}'})
    assert source.read("default", 9)[1].label_names == {"label": written}


def test_other_fields_of_a_card_are_as_written(tmp_path):
    front = "license: 1.10\nlanguage: [no, en]\nconfigs:\n- {config_name: on, data_files: 1_0.csv}\n"
    source = folder(tmp_path, {"README.md": card(front), "1_0.csv": "a\nx\n"})
    assert source.configs() == ["on"]
    assert rows(source, "on") == [{"a": "x"}]
    assert source.card().languages == ("no", "en")


def test_an_unknown_type_in_a_card_costs_nothing_but_itself(tmp_path):
    features = "[{name: a, dtype: nonsense}, {name: label, dtype: {class_label: {names: [x, y]}}}, {no: name}]"
    source = folder(
        tmp_path, {"README.md": card(f"dataset_info: {{features: {features}}}\n"), "a.csv": "a,label\n1,0\n"}
    )
    assert rows(source) == [{"a": "1", "label": "0"}]
    assert source.read("default", 9)[1].label_names == {"label": ["x", "y"]}


def test_a_card_that_makes_a_billion_names_out_of_ten_is_read(tmp_path):
    levels = "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9))
    front = f"a: &a [x, y]\n{levels}license: mit\nnames: *j\n"
    source = folder(tmp_path, {"README.md": card(front), "a.csv": "a\nx\n"})
    assert source.card().license == "mit"
    assert rows(source) == [{"a": "x"}]
