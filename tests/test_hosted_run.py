"""A run with a hosted teacher, as a user starts it: estimate, run, budget, batches, replay; and no key anywhere."""

import json
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.teacher.plugin import install_rule_teacher
from tests.teacher.server import KEY, Provider, serving
from tests.test_end_to_end import KEDRO, copy_of_project, latest, outputs

pytestmark = pytest.mark.slow
NODES = "--nodes=map_datasets,transform_rows,reason_examples,compare_usage"


@pytest.fixture(scope="module")
def provider():
    with serving(answers="schema") as provider:
        yield provider


@pytest.fixture(scope="module")
def project(tmp_path_factory, provider):
    """A project whose rows for ``news_topic`` have been retrieved."""
    project = copy_of_project(tmp_path_factory.mktemp("hosted"))
    prices = {"as_of": "2026-11-21", "models": {"anthropic": {"good-model": {"input": 1.0, "output": 5.0}}}}
    conf = project / "conf" / "test" / "globals.yml"
    conf.write_text(f"{conf.read_text()}\nprices: {json.dumps(prices)}\n")
    run(project, provider, "--pipelines=estimate")
    return project


def run(
    project: Path,
    provider: Provider,
    /,
    *arguments: str,
    check: bool = True,
    key: str = KEY,
    temperature: float = 0.7,
    path: str = "",
    **settings,
) -> str:
    """What a run prints, with the loopback provider as the teacher."""
    given = {"provider": "anthropic", "model": "good-model", "base_url": provider.address, "timeout": 10, **settings}
    params = [f"teacher.{name}={value}" for name, value in given.items()]
    params += ["task=news_topic", "transform.guided=false", "transform.sampling.max_tokens=200"]
    params.append(f"transform.sampling.temperature={temperature}")
    environment = {**os.environ, "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "250", "ANTHROPIC_API_KEY": key}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))
    command = [*KEDRO, "run", "--env=test", f"--params={','.join(params)}", *arguments]
    done = subprocess.run(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def usage(project: Path) -> pd.DataFrame:
    return pd.read_parquet(outputs(project) / "08_reporting" / "news_topic" / "teacher_usage.parquet").set_index(
        "stage"
    )


def test_an_estimate_sends_nothing_and_the_run_keeps_to_it(project, provider):
    assert not provider.asked()
    estimate = json.loads((outputs(project) / "08_reporting" / "news_topic" / "estimate.json").read_text())
    low, high = estimate["total"]["requests"]
    output = run(project, provider, NODES)
    totals = usage(project).loc["total"]
    assert low <= totals["used"] <= high
    assert totals["responses"] == len(provider.asked()) == len(provider.billed())
    assert (
        0
        < totals["dollars"]
        == pytest.approx(sum(entry.input_tokens * 1e-6 + entry.output_tokens * 5e-6 for entry in provider.asked()))
    )
    assert f"${totals['dollars']:.4f}" in output


def test_a_pilot_is_shown_and_its_responses_are_not_paid_again(project, provider):
    before = len(provider.billed())
    output = run(project, provider, "--pipelines=pilot", temperature=0.8)
    page = outputs(project) / "08_reporting" / "news_topic" / "pilot.html"
    assert "Accepted by rank" in output
    assert f"Next: open {page}" in output
    paid = len(provider.billed()) - before
    assert 20 <= paid <= 40  # repairs included
    assert "What a full run will cost" in page.read_text()
    run(project, provider, NODES, temperature=0.8)
    assert usage(project).loc["total", "cached"] >= 7  # the top of the ranking
    requests = [entry.request_id for entry in provider.billed()[before:]]
    assert len(requests) == len(set(requests))


def test_running_again_sends_nothing(project, provider):
    before = len(provider.asked())
    run(project, provider, NODES)
    assert len(provider.asked()) == before
    assert usage(project).loc["total", "cached"] == usage(project).loc["total", "used"]


def test_cached_responses_are_replayed_without_network_or_key(project, provider):
    before = len(provider.asked())
    run(project, provider, NODES, key="", provider="replay", model="anthropic/good-model")
    assert len(provider.asked()) == before


def test_the_provider_of_another_package_runs(project, provider, tmp_path):
    before = len(provider.asked())
    run(project, provider, NODES, provider="rule", model="first-words", path=str(install_rule_teacher(tmp_path)))
    assert len(provider.asked()) == before
    assert usage(project).loc["total", "used"] > 0
    examples = pd.read_parquet(latest(outputs(project) / "05_model_input" / "news_topic" / "examples.parquet"))
    assert set(examples["teacher"]) <= {"rule/first-words"}


def test_batches_bring_responses_at_half_the_price(project, provider):
    run(project, provider, NODES, batch="true", temperature=0.5)
    totals = usage(project).loc["total"]
    items = [entry for entry in provider.ledger if entry.batch and entry.billed]
    assert len(items) == totals["responses"] > 0
    full = sum(entry.input_tokens * 1e-6 + entry.output_tokens * 5e-6 for entry in items)
    assert totals["dollars"] == pytest.approx(full / 2)


def test_a_budget_is_a_clean_end_and_a_larger_one_goes_on(project, provider):
    before = len(provider.billed())
    output = run(project, provider, NODES, max_requests=3, on_budget="stop", temperature=0.6, check=False)
    assert "Error: Stopped: the budget is reached (teacher.max_requests 3): 3 responses so far" in " ".join(
        output.split()
    )
    assert "Traceback" not in output
    assert len(provider.billed()) == before + 3
    run(project, provider, NODES, max_requests=5, temperature=0.6)
    assert len(provider.billed()) == before + 5
    assert usage(project).loc["total", "cached"] == 3
    rejected = pd.read_parquet(outputs(project) / "05_model_input" / "news_topic" / "examples_rejected.parquet")
    assert "budget_reached" in set(rejected["reason"])


def test_wrong_settings_are_one_line_before_any_request(project, provider):
    before = len(provider.asked())
    for settings, words in (
        ({"budget_usd": 0}, "budget_usd: Input should be greater than 0"),
        ({"budget_usd": 1, "model": "unheard-of"}, "no price for anthropic/unheard-of"),
        ({"provider": "nobody"}, "Set it to one of: local, anthropic, openai, replay"),
        ({"key": ""}, "needs an API key"),
    ):
        pipeline = "--pipelines=pilot" if "key" in settings else NODES
        output = run(project, provider, pipeline, check=False, **settings)
        assert words in " ".join(output.split()), output[-2000:]
        assert "Traceback" not in output
    assert len(provider.asked()) == before


def test_a_broken_prompt_is_named_before_any_request(project, provider):
    before = len(provider.asked())
    for name, broken in (("transform", "{unheard_of}"), ("cot", "")):
        file = project / "data" / "01_raw" / "prompts" / f"{name}.yml"
        content = file.read_text()
        file.write_text(f"version: 1\nsystem: Write.\nuser: '{broken}'\n" if broken else "")
        output = " ".join(run(project, provider, NODES, check=False, temperature=0.9).split())
        file.write_text(content)
        assert f"Error: data/01_raw/prompts/{name}.yml: not a valid prompt." in output
        assert "Traceback" not in output
    assert len(provider.asked()) == before


def test_the_key_is_nowhere(project, provider):
    output = run(project, provider, NODES, check=False, key="sk-wrong-key-that-leaks", max_requests=1)
    dump = subprocess.run(
        [*KEDRO, "catalog", "list-datasets"], cwd=project, capture_output=True, text=True, check=False,
        env={**os.environ, "ANTHROPIC_API_KEY": KEY},
    )  # fmt: skip
    for text in (output, dump.stdout, dump.stderr):
        assert "sk-wrong-key" not in text
        assert KEY not in text
    for file in project.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
