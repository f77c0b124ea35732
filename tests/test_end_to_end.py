"""The whole method with the real embedded models in a tiny size, as a user runs it: in a project of its own."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.framework.startup import bootstrap_project

from rebase import cli
from rebase.tasks.extraction import extract

ROOT = Path(__file__).parents[1]
KEDRO = [sys.executable, "-m", "kedro"]
pytestmark = pytest.mark.slow


def copy_of_project(folder: Path) -> Path:
    """The project without what was produced in it."""
    for name in ("conf", "notebooks", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "data" / "01_raw", folder / "data" / "01_raw")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def kedro(project: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment.pop("ANTHROPIC_API_KEY", None)
    done = subprocess.run(
        [*KEDRO, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def outputs(project: Path) -> Path:
    return project / "data" / "test"


def latest(folder: Path) -> Path:
    return max(folder.iterdir()) / folder.name


def test_scores_have_the_promised_shape(project):
    scores = json.loads(latest(outputs(project) / "08_reporting" / "reading_qa" / "scores.json").read_text())
    assert scores["task"] == "reading_qa"
    assert scores["n"] == 6
    assert scores["verdict"] == "6 evaluation items are too few for a verdict: 20 or more are needed."
    assert set(scores["systems"]) == {"student", "student_few_shot", "expert"}
    for metrics in scores["systems"].values():
        assert set(metrics) == {"exact_match", "f1", "answer_found"}
        for score in metrics.values():
            assert score["low"] <= score["value"] <= score["high"]


def test_the_run_tells_every_stage_and_ends_with_a_table(project):
    output = (project / "output.txt").read_text()
    for stage in ("ingest", "embed", "index", "retrieve", "transform", "cot", "train", "evaluate"):
        assert f"{stage:<9} in " in output
    assert "rebase · task reading_qa" in output
    assert "expert · f1" in output
    assert "6 evaluation items are too few for a verdict" in output
    assert "Traceback" not in output


def test_counts_add_up_from_stage_to_stage(project):
    def summary(stage: str) -> dict:
        [file] = (outputs(project) / "08_reporting").rglob(f"{stage}_summary.json")
        return json.loads(file.read_text())

    summaries = {
        stage: summary(stage) for stage in ("ingest", "embed", "index", "retrieve", "transform", "cot", "train")
    }
    for stage, content in summaries.items():
        assert content["in"] == content["kept"] + sum(content["rejected"].values()), stage
    assert summaries["index"]["in"] == summaries["ingest"]["kept"]
    assert summaries["transform"]["in"] == summaries["retrieve"]["kept"]
    assert summaries["cot"]["in"] == summaries["transform"]["kept"]
    assert summaries["train"]["in"] == summaries["cot"]["kept"]


def test_every_example_leads_back_to_its_row(project):
    examples = pd.read_parquet(latest(outputs(project) / "05_model_input" / "reading_qa" / "examples.parquet"))
    retrieved = pd.read_parquet(latest(outputs(project) / "04_feature" / "reading_qa" / "retrieved.parquet"))
    joined = examples.merge(retrieved, on="row_id", suffixes=("", "_row"))
    assert len(joined) == len(examples) > 0
    for example in joined.itertuples():
        fields = json.loads(example.fields)
        assert fields["context"] in json.loads(example.row).values()
        assert example.answer in fields["context"]
        assert len(example.prompt_hash) == 16
        assert len(example.response_key) == 64


def test_what_lies_near_a_text_can_be_looked_up(project):
    output = kedro(project, "near", "A river and its dam", "--env=test", "-n", "3").stdout.splitlines()
    assert output[-1].startswith("In ")
    similarities = [float(line.split()[0]) for line in output if line[:2] in ("0.", "1.")]
    assert len(similarities) == 3
    assert similarities == sorted(similarities, reverse=True)
    unknown = kedro(project, "near", "x", "--env=test", "--datastore=nowhere", check=False)
    assert unknown.returncode == 1
    assert "is missing or not complete. Run the pipeline that writes it" in unknown.stderr


def test_running_again_asks_nothing_twice_and_only_missing_outputs_do_run(project):
    again = kedro(project, "run", "--env=test", "--to-nodes=reason_examples")
    assert "local teacher" not in again.stderr, "every response is in the store"
    scores = outputs(project) / "08_reporting" / "reading_qa" / "report.html"
    before = scores.stat().st_mtime if scores.exists() else 0
    kedro(project, "run", "--env=test", "--only-missing-outputs", "--pipelines=ingest,embed,index")
    assert (scores.stat().st_mtime if scores.exists() else 0) == before


def test_each_pipeline_runs_alone_and_from_any_node(project):
    kedro(project, "run", "--env=test", "--pipeline=index")
    kedro(project, "run", "--env=test", "--pipelines=retrieve")
    kedro(project, "run", "--env=test", "--from-nodes=retrieve_rows", "--to-nodes=transform_rows")


def test_a_run_killed_in_transform_goes_on_where_it_was(project, tmp_path):
    killed = copy_of_project(tmp_path)
    shutil.copytree(outputs(project), outputs(killed), ignore=shutil.ignore_patterns("05_model_input", "cache"))
    store = outputs(killed) / "cache" / "responses.sqlite"
    process = subprocess.Popen(
        [*KEDRO, "run", "--env=test", "--pipelines=transform"], cwd=killed,
        env={**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while responses(store) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    bought = responses(store)
    kedro(killed, "run", "--env=test", "--pipelines=transform")
    assert 0 < bought <= responses(store)
    first, second = (
        pd.read_parquet(latest(outputs(one) / "05_model_input" / "reading_qa" / "examples.parquet"))
        for one in (project, killed)
    )
    pd.testing.assert_frame_equal(first, second)


def responses(store: Path) -> int:
    import sqlite3

    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
            return int(connection.execute("select count(*) from responses").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--params=task=nonsense"], ["no task 'nonsense'", "reading_qa"]),
        (["--params=sources=data/01_raw/nothing/*"], ["no folder matches"]),
        (["--params=evaluation_source=nowhere.jsonl"], ["evaluation set", "nowhere.jsonl"]),
        (["--params=teacher.provider=anthropic"], ["ANTHROPIC_API_KEY", "conf/local/credentials.yml"]),
        (["--params=retrieve.aggregation=median"], ["retrieve", "median"]),
        (["--params=retrieve.min_passage_words=100000,retrieve.max_passage_words=100000"], ["none of", "no_passage"]),
    ],
)
def test_bad_input_is_said_plainly_before_the_expensive_work(project, arguments, words, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    bootstrap_project(project)
    done = CliRunner().invoke(cli.run, ["--env=test", "--to-nodes=retrieve_rows,transform_rows", *arguments])
    bootstrap_project(ROOT)
    assert done.exit_code != 0
    assert all(word in done.output for word in words), done.output[-3000:]


def expert_predictions(project: Path) -> tuple[list[dict[str, str]], pd.DataFrame]:
    """The fields of the items that the run evaluated, and the expert's predictions for them."""
    predictions = pd.read_parquet(latest(outputs(project) / "07_model_output" / "reading_qa" / "predictions.parquet"))
    items = pd.read_parquet(latest(outputs(project) / "02_intermediate" / "reading_qa" / "evaluation_items.parquet"))
    expert = predictions.query("system == 'expert'").merge(items[["item_id", "fields"]], on="item_id")
    return [json.loads(text) for text in expert["fields"]], expert


def test_the_run_ends_with_the_command_that_asks_the_expert(project, tmp_path):
    """Asked for the evaluation items, the expert gives the answers that were evaluated."""
    last = (project / "output.txt").read_text().splitlines()[-1]
    assert last == 'Next: kedro ask --task=reading_qa --env=test --context="…" --question="…"'
    fields, expert = expert_predictions(project)
    inputs, answers = tmp_path / "inputs.jsonl", tmp_path / "answers.jsonl"
    inputs.write_text("\n".join(map(json.dumps, fields)))
    command = ["ask", "--task=reading_qa", "--env=test"]
    output = kedro(project, *command, f"--inputs={inputs}", f"--to={answers}").stdout
    assert output.startswith(f"{len(fields)} answers written to {answers}")
    given = [json.loads(line)["expert_answer"] for line in answers.read_text().splitlines()]
    assert given == expert["extracted"].to_list()
    one = kedro(project, *command, *(f"--{name}={text}" for name, text in fields[0].items())).stdout
    assert one.strip()


def test_the_exported_expert_answers_in_llama_cpp(project):
    """Its prompts are those of the training, byte for byte, and its answers the expert's."""
    from rebase import Expert
    from tests.teacher.llama import serving_llama

    output = kedro(project, "run", "--env=test", "--pipelines=export").stdout
    folder = outputs(project) / "06_models" / "reading_qa" / "merged"
    assert f"{folder.relative_to(project)}/README.md says how to serve it" in output
    fields, predictions = expert_predictions(project)
    expert = Expert.load(outputs(project) / "06_models" / "reading_qa")
    expert.student = replace(expert.student, dtype="float32")
    queries = [[{"role": "user", "content": expert.task.render_query(one)}] for one in fields]
    with serving_llama(folder / "expert.gguf") as address:
        served = [post(f"{address}/apply-template", {"messages": query})["prompt"] for query in queries]
        request = {"temperature": 0, "max_tokens": expert.task.max_new_tokens}
        responses = [post(f"{address}/v1/chat/completions", request | {"messages": query}) for query in queries]
    assert served == predictions["prompt"].to_list()
    answers = [extract(one["choices"][0]["message"]["content"].strip(), expert.task.answer) for one in responses]
    different = sum(one != other for one, other in zip(answers, expert.answers(fields), strict=True))
    assert different <= 1, "another order of additions may change one"


def test_an_instruction_and_examples_become_an_expert(project):
    """The tutorial's task, by the commands that each step prints for the next one."""
    tutorial, raw = ROOT / "docs" / "tutorial", project / "data" / "01_raw"
    shutil.copy(tutorial / "notice_qa.jsonl", raw / "evaluation" / "town_qa.jsonl")
    output = kedro(project, "new-task", "town_qa", f"--from={tutorial / 'notices.yml'}", "--env=test").stdout
    expected = (tutorial / "notice_qa.yml").read_text().replace("notice_qa", "town_qa")
    assert (raw / "tasks" / "town_qa.yml").read_text() == expected
    assert "rank  score  dataset" in output
    assert not (outputs(project) / "04_feature" / "town_qa").exists(), "nothing is saved"
    *_, command = output.splitlines()
    assert command == "Next: kedro run --pipelines=pilot --env=test --params=task=town_qa"
    kedro(project, *shlex.split(command)[2:])
    *_, command = kedro(project, "run", "--env=test", "--params=task=town_qa").stdout.splitlines()
    assert command == 'Next: kedro ask --task=town_qa --env=test --notice="…" --question="…"'
    arguments = shlex.split(command)[2:-2]
    answer = kedro(project, *arguments, "--notice=The mill is closed on Monday.", "--question=When is it closed?")
    assert answer.stdout.strip()


def post(url: str, content: dict) -> dict:
    from urllib.request import Request, urlopen

    request = Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        return json.load(response)


def test_another_encoder_on_the_same_index_is_an_error(project):
    done = kedro(
        project, "run", "--env=test", "--pipelines=retrieve", "--params=encoder.model=owner/other-encoder", check=False
    )
    assert done.returncode != 0
    assert "owner/other-encoder" in done.stdout + done.stderr
    assert "embed,index" in done.stdout + done.stderr
