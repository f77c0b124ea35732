"""``kedro push``: what is handed on, what licenses forbid, and a hub on loopback that takes commits."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
from huggingface_hub import ModelCard

from rebase.datastore.sources.cards import front_matter
from rebase.datastore.sources.folder import FolderSource
from rebase.errors import RebaseError
from rebase.records import Adapter, Task
from rebase.reporting.publishing import (
    PERMITTED,
    Parcel,
    check_licenses,
    conditions_of,
    describe_parcels,
    packed,
    published_examples,
    put,
    scores_of,
    upload,
)
from rebase.student.adapters import CARD, ORIGIN, write_origin
from tests.loopback import answering
from tests.test_end_to_end import KEDRO, copy_of_project
from tests.tiny import reasoned_examples

TOKEN = "hf_not_to_be_seen_anywhere"
VERSION = "2026-01-01T00.00.00.000Z"
INTERVAL = {"value": 50.0, "low": 25.0, "high": 75.0}
SCORES = {
    "task": "tiny_reading", "n": 4, "unit": "percent", "confidence": 0.95,
    "systems": {system: {"exact_match": INTERVAL, "f1": INTERVAL} for system in ("student", "expert")},
}  # fmt: skip


@dataclass
class Hub:
    """A hub that takes commits as the real one does: small files in the commit, large ones by LFS beforehand."""

    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    rejection: tuple[int, str] | None = None
    url: str = ""

    @contextmanager
    def serve(self) -> Iterator["Hub"]:
        handler = type("Handler", (_Handler,), {"hub": self})
        with answering(handler) as self.url:
            yield self

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        return self.repositories[f"{kind}s/{name}"]["files"]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        hub.requests.append((self.command, path))
        if path.startswith("/lfs/"):
            hub.objects[path.removeprefix("/lfs/")] = body
            return self._send(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid credentials"})
        if hub.rejection:
            return self._send(hub.rejection[0], {"error": hub.rejection[1]})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        parts = path.strip("/").split("/")
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        repository = hub.repositories["/".join(parts[1:4])]
        if len(parts) == 4:
            description = {
                "id": "/".join(parts[2:4]),
                "sha": "0" * 40,
                "private": repository["private"],
                "siblings": [],
            }
            return self._send(200, description)
        if parts[4] == "preupload":
            files = [
                {"path": file["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if file["path"].endswith((".parquet", ".safetensors")) else "regular"}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self._send(200, {"files": files})
        return self._commit(repository, body, "/".join(parts[1:4]))

    def _create(self, settings: dict[str, Any]) -> None:
        name = f"{settings.get('type', 'model')}s/{settings['organization']}/{settings['name']}"
        url = f"{self.hub.url}/{name.removeprefix('models/')}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this repo", "url": url})
        self.hub.repositories[name] = {"private": settings.get("visibility") == "private", "files": {}}
        return self._send(200, {"url": url})

    def _batch(self, settings: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}} for one in settings["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repository: dict[str, Any], body: bytes, name: str) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository["files"][value["path"]] = content
        oid = "1" * 40
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def _send(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub().serve() as hub:
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", hub.url, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
        yield hub


@pytest.fixture
def examples() -> pd.DataFrame:
    """Four examples of the training set, from two datasets; of the hub the first."""
    reasoned = reasoned_examples(5, "Because.").assign(revision="r1", prompt_hash="0123456789abcdef", dollars=0.25)
    reasoned["dataset"] = reasoned["dataset"].replace("foxes", "owner/foxes")
    training_set = pd.DataFrame({"example_id": ["e3", "e0", "e1", "e2"], "prompt": "Q", "completion": "A"})
    return published_examples(reasoned, training_set)


@pytest.fixture
def adapter(tmp_path: Path, reading_task: Task, examples: pd.DataFrame) -> Adapter:
    folder = tmp_path / "2026-01-01" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "package:tiny"}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / CARD).write_text('---\nbase_model: "package:tiny"\nlibrary_name: peft\n---\n# An expert\n\nText.\n')
    adapter = Adapter(folder, "package:tiny")
    write_origin(adapter, reading_task, examples)
    return adapter


def source(license: str | None, dataset: str | None = "some") -> list[dict[str, Any]]:
    return [{"dataset": dataset, "license": license, "examples": 3}]


@pytest.mark.parametrize(
    "license",
    ["cc0-1.0", "CC BY 4.0", "cc-by-sa-3.0", "MIT", "apache-2.0", "odc-by", "openrail", "cc-by-nc-sa-4.0",
     "cc-by-4.0; mit", "mit OR cc-by-nd-4.0", "bigscience-openrail-m"],
)  # fmt: skip
def test_licenses_that_permit_it(license: str) -> None:
    check_licenses(source(license))


@pytest.mark.parametrize(
    "license",
    [None, "unknown", "other", "", "cc-by-nd-4.0", "CC BY-NC-ND 4.0", "cc-by-4.0; unknown", "mit AND cc-by-nd-4.0",
     "llama3", "cc", "proprietary", "*", "see LICENSE"],
)  # fmt: skip
def test_licenses_that_forbid_it_or_are_not_known_to_permit_it(license: str | None) -> None:
    with pytest.raises(RebaseError, match=r"some \(.*\): 3\nTrain without them.*trace some.*--license-checked NAME"):
        check_licenses(source(license))
    check_licenses(source(license), checked=["some"])
    check_licenses(source(license), checked=["so*"])
    with pytest.raises(RebaseError):
        check_licenses(source(license), checked=["other"])


def test_an_example_without_a_source_needs_no_license() -> None:
    assert check_licenses(source(None, dataset=None)) == []


def test_conditions_are_told() -> None:
    assert check_licenses(source("cc0-1.0") + source("cc-by-nc-sa-4.0") + source("cc-by-4.0")) == [
        "cc-by-4.0: name the source",
        "cc-by-nc-sa-4.0: name the source, no commercial use, keep the same license",
    ]
    assert conditions_of("CC BY 4.0; openrail") == "name the source, pass on its restrictions of use"
    assert conditions_of("(CC0-1.0 or OpenRAIL)/CC\u2011BY 4.0.") == "pass on its restrictions of use, name the source"
    assert all(pattern == pattern.casefold() for pattern in PERMITTED)


def test_a_dataset_says_what_it_is_made_of(reading_task: Task, examples: pd.DataFrame, tmp_path: Path) -> None:
    with packed("me/set", reading_task, examples, None, None) as ([parcel], conditions):
        assert conditions == []
        assert set(parcel.files) == {CARD, "data/train.parquet"}
        card = (parcel.folder / CARD).read_text()
        table = pd.read_parquet(parcel.folder / "data" / "train.parquet")
        kept = parcel.folder
        assert describe_parcels([parcel], "me/set", None, public=False).startswith(
            "To the hub's dataset me/set, private:"
        )
        assert put(parcel, tmp_path / "out") == str(tmp_path / "out" / "dataset")
        with pytest.raises(RebaseError, match="already"):
            put(parcel, tmp_path / "out")
    assert not kept.exists()
    assert list(table["example_id"]) == ["e3", "e0", "e1", "e2"]
    assert list(table["completion"]) == ["A"] * 4
    assert "dollars" not in table
    front = front_matter(card)
    assert front["license"] == "cc0-1.0"
    assert front["source_datasets"] == ["owner/foxes"]
    assert front["size_categories"] == ["n<1K"]
    for words in ("| birds | r1 | cc0-1.0 |  | 2 |", "`local:tiny`", "`0123456789abcdef`", "## Known limits"):
        assert words in card
    assert "have no such row" not in card


def test_a_dataset_says_that_some_examples_have_no_row(reading_task: Task, examples: pd.DataFrame) -> None:
    mixed = examples.assign(dataset=[None, "birds", "birds", "birds"], teacher=[None, *["local:tiny"] * 3])
    with packed("me/set", reading_task, mixed, None, None) as ([parcel], _):
        card = (parcel.folder / CARD).read_text()
    assert "made with rebase by `local:tiny`" in card
    assert "Those without a `dataset` have no such row." in card


@pytest.mark.parametrize(
    ("teachers", "rationale", "creators", "makers", "limits"),
    [
        (["people"] * 4, None, ["found"], "people", "4 examples have the labels of their datasets"),
        (
            ["people"] * 4,
            "Because.",
            ["found", "machine-generated"],
            "people",
            "(`mapping_id`). All rationales were written by a model",
        ),
        (
            ["people", *["local:tiny"] * 3],
            None,
            ["found", "machine-generated"],
            "`local:tiny` and people",
            "(`mapping_id`). The other examples were written by a model",
        ),
        (
            ["local:tiny"] * 4,
            None,
            ["machine-generated"],
            "`local:tiny`",
            "## Known limits\nThe examples were written by a model",
        ),
    ],
)
def test_a_dataset_says_which_labels_people_gave(
    reading_task: Task,
    examples: pd.DataFrame,
    teachers: list[str],
    rationale: str | None,
    creators: list[str],
    makers: str,
    limits: str,
) -> None:
    mapping_ids = ["m1" if teacher == "people" else None for teacher in teachers]
    mapped = examples.assign(teacher=teachers, rationale=rationale, mapping_id=mapping_ids)
    with packed("me/set", reading_task, mapped, None, None) as ([parcel], _):
        card = (parcel.folder / CARD).read_text()
        table = pd.read_parquet(parcel.folder / "data" / "train.parquet")
    front = front_matter(card)
    assert front["annotations_creators"] == creators
    assert ("synthetic" in front["tags"]) == ("machine-generated" in creators)
    assert f"made with rebase by {makers}. " in card
    assert limits in card
    assert ("by a model" in card) == ("machine-generated" in creators)
    assert table["mapping_id"].dropna().tolist() == [name for name in mapping_ids if name]


def test_an_adapter_carries_its_scores_as_a_model_index(
    reading_task: Task, adapter: Adapter, examples: pd.DataFrame
) -> None:
    with packed("me/expert", reading_task, None, adapter, SCORES) as ([parcel], _):
        card = ModelCard.load(parcel.folder / CARD)
        assert set(parcel.files) == {CARD, ORIGIN, "adapter_config.json", "adapter_model.safetensors"}
        raw = front_matter((parcel.folder / CARD).read_text())
    assert raw["model-index"][0]["name"] == "expert"
    assert "base_model" not in raw, "a package is no model of the hub"
    assert raw["license"] == "cc0-1.0"
    assert raw["datasets"] == ["owner/foxes"]
    assert {(result.metric_type, result.metric_value) for result in card.data.eval_results} == {
        ("exact_match", 50.0), ("f1", 50.0),
    }  # fmt: skip
    assert card.data.eval_results[0].metric_args == {"n": 4, "confidence": 0.95, "interval": [25.0, 75.0]}
    assert "| student | f1 | 50.0 | 25.0 to 75.0 |" in card.text
    assert "An expert" in card.text
    with packed("me/expert", reading_task, None, adapter, None) as ([parcel], _):
        assert "model-index" not in (parcel.folder / CARD).read_text()


def test_scores_of_another_adapter_are_not_its_own(adapter: Adapter) -> None:
    assert scores_of(adapter, SCORES, {"adapter": "2026-01-01"}) == SCORES
    assert scores_of(adapter, SCORES, {"adapter": "2025-12-31"}) is None
    assert scores_of(adapter, SCORES, {}) is None
    assert scores_of(adapter, None, None) is None


def test_an_adapter_is_judged_by_what_it_was_trained_on_not_by_the_examples_of_now(
    reading_task: Task, adapter: Adapter, examples: pd.DataFrame
) -> None:
    write_origin(adapter, reading_task, examples.assign(license="cc-by-nd-4.0"))
    with (
        pytest.raises(RebaseError, match=r"birds \(cc-by-nd-4.0\): 2\n  owner/foxes"),
        packed("me/expert", reading_task, examples, adapter, None),
    ):
        pass
    with packed("me/x", reading_task, examples, adapter, None, ["birds", "owner/*"]) as (parcels, _):
        assert len(parcels) == 2
    for damage in ("", "[]", "{}", '{"sources": 3}'):
        (adapter.folder / ORIGIN).write_text(damage)
        with (
            pytest.raises(RebaseError, match="does not say what it was trained on"),
            packed("me/x", reading_task, None, adapter, None),
        ):
            pass


def test_examples_that_nobody_knows_the_source_of_are_not_handed_on() -> None:
    training_set = pd.DataFrame({"example_id": ["e0", "from elsewhere"], "prompt": "Q", "completion": "A"})
    with pytest.raises(RebaseError, match="1 examples of the training set are not among the current examples"):
        published_examples(reasoned_examples(2), training_set)


def test_hostile_names_stay_in_their_cells(reading_task: Task, examples: pd.DataFrame) -> None:
    name = "evil | <script>\n---\nlicense: mit\n`x`"
    with packed("me/set", reading_task, examples.assign(dataset=name), None, None) as ([parcel], _):
        card = (parcel.folder / CARD).read_text()
    assert front_matter(card)["license"] == "cc0-1.0"
    assert "<script" not in card.replace(r"\<script", "")
    [row] = [line for line in card.splitlines() if line.startswith("| evil")]
    assert row.replace(r"\|", "").count("|") == 6
    with pytest.raises(RebaseError) as error:
        check_licenses(source("unknown", "\x1b[2Jcleared"))
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("public", [False, True])
def test_the_hub_gets_both(
    hub: Hub, reading_task: Task, adapter: Adapter, examples: pd.DataFrame, public: bool
) -> None:
    with packed("me/owls", reading_task, examples, adapter, SCORES) as (parcels, _):
        for _ in range(2):  # and again: what is there is no obstacle
            urls = [upload(parcel, "me/owls", public=public) for parcel in parcels]
        sent = {parcel.kind: {name: (parcel.folder / name).read_bytes() for name in parcel.files} for parcel in parcels}
    assert all(url.startswith(hub.url) for url in urls)
    for kind, files in sent.items():
        assert hub.files(kind, "me/owls") == files
        assert hub.repositories[f"{kind}s/me/owls"]["private"] is not public
    assert len(hub.objects) == 2, "Parquet and safetensors go by LFS"


def test_what_was_handed_on_is_a_dataset_like_any_other(
    reading_task: Task, examples: pd.DataFrame, tmp_path: Path
) -> None:
    with packed("me/owls", reading_task, examples, None, None) as ([parcel], _):
        source = FolderSource(Path(put(parcel, tmp_path)))
    assert source.card().license == "cc0-1.0"
    files, sample = source.read("default", 10)
    assert files.split == "train"
    assert [row["query"] for _, row in sample.rows] == list(examples["query"])


def test_a_public_repository_is_not_written_by_mistake(hub: Hub, reading_task: Task, examples: pd.DataFrame) -> None:
    with packed("me/owls", reading_task, examples, None, None) as ([parcel], _):
        upload(parcel, "me/owls", public=True)
        hub.files("dataset", "me/owls").clear()
        with pytest.raises(RebaseError, match="exists already and is public: nothing was uploaded"):
            upload(parcel, "me/owls", public=False)
    assert not hub.files("dataset", "me/owls")


@pytest.mark.parametrize(
    ("rejection", "token", "words"),
    [
        ((403, f"no write access for {TOKEN}"), TOKEN, r"403(.|\n)*\(the token\)\nCheck that there is a token"),
        ((400, "bad name"), TOKEN, "bad name"),
        (None, "hf_wrong", "401"),
        (None, "", "the hub rejected the dataset me/owls"),
    ],
)
def test_what_the_hub_rejects_is_said_without_the_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rejection: Any, token: str, words: str
) -> None:
    hub.rejection = rejection
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / CARD).write_text("---\n---\n")
    with pytest.raises(RebaseError, match=words) as error:
        upload(Parcel("dataset", tmp_path / "parcel"), "me/owls", public=False)
    assert TOKEN not in str(error.value)
    assert error.value.__cause__ is None


def test_offline_and_unreachable_are_said(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parcel = Parcel("dataset", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RebaseError, match="HF_HUB_OFFLINE is unset"):
        upload(parcel, "me/owls", public=False)
    with pytest.raises(RebaseError, match="the hub rejected"):
        upload(parcel, "no such name!", public=False)


@pytest.mark.slow
def test_the_command_from_end_to_end(reading_task: Task, adapter: Adapter, tmp_path: Path) -> None:
    project = copy_of_project(tmp_path / "project")
    made = project / "data" / "test"
    examples = reasoned_examples(4).assign(revision="r", prompt_hash="0" * 16, license=["mit"] * 3 + ["cc-by-nd-4.0"])
    formatted = examples.assign(prompt="Q", completion="A")[["example_id", "prompt", "completion"]]
    tables = {"reasoned_examples": examples, "training_set": formatted}
    write_origin(adapter, reading_task, examples)

    def push(*arguments: str, url: str = "") -> tuple[int, str]:
        environment = {
            **os.environ, "DO_NOT_TRACK": "1", "COLUMNS": "200", "HF_TOKEN": TOKEN, "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*",
            "HF_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        done = subprocess.run(
            [*KEDRO, "push", "me/owls", "--env=test", *arguments], cwd=project, env=environment, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stdout, done.stdout
        assert TOKEN not in done.stdout
        return done.returncode, done.stdout

    code, output = push("--only=dataset")
    assert code == 1
    assert "kedro run --pipelines=cot makes it" in output
    for name, table in tables.items():
        file = made / "05_model_input" / "reading_qa" / f"{name}.parquet" / VERSION / f"{name}.parquet"
        file.parent.mkdir(parents=True)
        table.to_parquet(file)
    shutil.copytree(adapter.folder, made / "06_models/reading_qa/adapter" / VERSION / "adapter")
    code, output = push()
    assert code == 1
    assert "birds (cc-by-nd-4.0): 1" in output
    with Hub().serve() as hub:
        code, output = push("--license-checked=birds", url=hub.url)
        assert code == 0, output
        assert "data/train.parquet" in output
        assert "Condition of mit: name the source" in output
        assert "not evaluated" in output
        assert "this was a dry run" in output
        assert not hub.requests
        code, output = push("--license-checked=birds", "--no-dry-run", url=hub.url)
        assert code == 0, output
        assert set(hub.repositories) == {"datasets/me/owls", "models/me/owls"}
        assert "adapter_model.safetensors" in hub.files("model", "me/owls")
    code, output = push("--only=adapter", "--license-checked=birds", f"--folder={tmp_path / 'out'}", "--no-dry-run")
    assert code == 0, output
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
