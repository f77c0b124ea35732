"""A real server: llama.cpp's own, with the embedded model, over HTTP and with JSON schemas."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from rebase.errors import RebaseError
from rebase.teacher.cached import find_error
from rebase.teacher.openai import OpenAITeacher
from rebase.teacher.protocol import Response, Sampling
from tests.scripted import generate_all
from tests.teacher.llama import MODEL, serving_llama
from tests.teacher.teachers import request
from tests.test_end_to_end import KEDRO, copy_of_project, latest, outputs


@pytest.fixture(scope="session")
def llama() -> Iterator[str]:
    """The server's address, with /v1."""
    with serving_llama() as address:
        yield f"{address}/v1"


def teacher(address: str) -> OpenAITeacher:
    return OpenAITeacher(MODEL, None, address, timeout=300)


def test_response_follows_the_schema(llama: str) -> None:
    asked = request("Write one word about rain.", sampling=Sampling(0.7, 64))
    (response,) = generate_all(teacher(llama), [asked])
    assert isinstance(response, Response)
    assert response.finish in ("stop", "length")
    assert find_error(asked, response) is None
    assert response.input_tokens > 10
    assert response.output_tokens > 1


def test_wrong_address_is_named(llama: str) -> None:
    with pytest.raises(RebaseError, match=rf"status 404.*\n.*set teacher.base_url to {llama}/nowhere/v1"):
        generate_all(teacher(f"{llama}/nowhere"), [request("a")])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_project(tmp_path_factory.mktemp("real"))


def run(project: Path, llama: str, pipelines: str) -> str:
    """What a tiny run prints."""
    params = {
        "teacher.provider": "openai", "teacher.model": MODEL, "teacher.base_url": llama, "teacher.timeout": 600,
        "task": "news_topic", "transform.max_examples": 4, "retrieve.top_n": 16, "cot.samples": 1, "evaluate.limit": 3,
        "distil.max_inputs": 4, "judge.limit": 2,
    }  # fmt: skip
    given = ",".join(f"{name}={value}" for name, value in params.items())
    command = [*KEDRO, "run", "--env=test", f"--pipelines={pipelines}", f"--params={given}"]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_whole_method_runs_with_a_real_server(project: Path, llama: str) -> None:
    run(project, llama, "rebase")
    examples = pd.read_parquet(latest(outputs(project) / "05_model_input" / "news_topic" / "examples.parquet"))
    assert set(examples["teacher"]) == {f"openai/{MODEL}"}
    usage = pd.read_parquet(outputs(project) / "08_reporting" / "news_topic" / "teacher_usage.parquet")
    total = usage.set_index("stage").loc["total"]
    assert total["responses"] >= len(examples) > 0
    assert total["failed"] == 0


@pytest.mark.slow
def test_real_server_labels_and_judges(project: Path, llama: str) -> None:
    run(project, llama, "distil")
    run(project, llama, "judge")
    tables = outputs(project)
    (distilled,) = tables.rglob("distilled_examples.parquet")
    assert set(pd.read_parquet(distilled)["teacher"]) == {f"openai/{MODEL}"}
    (judgments,) = tables.rglob("judgments.parquet")
    assert set(pd.read_parquet(judgments)["judge"]) == {f"openai/{MODEL}"}
