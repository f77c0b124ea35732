"""The state of a small project in which every stage has run: with a tiny student and a teacher on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from tests.teacher.server import KEY, serving
from tests.test_end_to_end import copy_of_project
from tests.tiny import make_student

TASK = "news_topic"
#: The file with the teacher's address, which is part of the keys of cached responses.
ADDRESS = "address"
STAGES = ["ingest", "embed", "index", "retrieve", "transform", "cot", "train", "evaluate"]


def make_state(folder: Path) -> Path:
    """Run every stage in a new project."""
    project = copy_of_project(folder)
    make_student(project)
    with serving(answers="schema") as provider:
        (project / ADDRESS).write_text(provider.address)
        run(project, *STAGES)
    return project


@contextmanager
def session_of(project: Path) -> Iterator[KedroSession]:
    """A session in the project. Its teacher cannot be reached when the state is made, and its responses are cached."""
    base_url = (project / ADDRESS).read_text()
    teacher = {"provider": "anthropic", "model": "good-model", "base_url": base_url, "timeout": 10}
    params: dict[str, Any] = {
        "task": TASK,
        "teacher": teacher,
        "student": {"model": str((project / "tiny").resolve())},  # a copy has a link to it
        "transform": {"guided": False},
        "train": {"four_bit": False, "max_length": 1024},
        "evaluate": {"limit": 2, "bootstrap_samples": 50},
    }
    before = Path.cwd()
    os.chdir(project)
    try:
        bootstrap_project(project)
        with (
            mock.patch.dict(os.environ, {"ANTHROPIC_API_KEY": KEY}),
            KedroSession.create(project, env="test", runtime_params=params) as session,
        ):
            yield session
    finally:
        os.chdir(before)


def run(project: Path, *names: str) -> None:
    """Run pipelines in this process."""
    with session_of(project) as session:
        session.run(pipeline_names=list(names))
