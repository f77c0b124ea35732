"""``kedro trace``: from an example or a prediction back to its row, and from a row or a dataset to all made of it."""

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rebase import cli
from rebase.errors import RebaseError
from rebase.generation.filters.exclusion import why_excluded
from rebase.parameters import ExcludeParameters
from rebase.reporting.run_tables import TABLES
from rebase.reporting.trace import trace
from tests.reporting.run import KEY, Run, encode, rows, shown, tables
from tests.test_end_to_end import copy_of_project, kedro, outputs


def test_a_mapped_example_shows_its_mapping():
    line = {"mapping_id": "m1", "mapping": "- dataset: birds", "written_by": "the teacher", "rows": 900}
    line |= {"agreement": 0.9, "low": 0.7, "high": 0.97, "baseline": 0.5, "dollars": 0.01}
    mapped = tables()["examples"].head(1).assign(mapping_id="m1", teacher="people")
    made = tables() | {
        "mappings": pd.DataFrame([line | {"config": "other", "rows": 5}, line | {"config": "a"}]),
        "mapped_examples": mapped,
        "mapped_rejected": pd.DataFrame(
            [{"row_id": "birds/a/train/7", "dataset": "birds", "reason": "unmapped_value", "detail": "-"}]
        ),
        "reasoned_examples": mapped.assign(rationale=None, agreement=float("nan")),
    }
    (example,) = trace("birds/a/train/0", Run(made))["examples"]
    assert example["mapping"] == line
    assert example["training"]["state"] == "in the training set"
    assert trace("birds", Run(made))["outcomes"]["map: unmapped_value"] == 1


def test_an_example_leads_to_its_row_and_its_response() -> None:
    result = trace("birds/a/train/0", Run(tables(), find_response={KEY: {"raw": "{}", "dollars": 0.25}}.get))
    assert result["kind"] == "example"
    assert result["source"] | {"row": None} == {
        "row_id": "birds/a/train/0", "dataset": "birds", "config": "a", "split": "train", "revision": "r1",
        "row_index": 0, "license": "cc0-1.0", "row": None,
    }  # fmt: skip
    assert result["source"]["row"] == {"text": "The owl sleeps."}
    assert result["retrieval"]["duplicates"] == ["birds/a/train/9"]
    assert result["retrieval"]["query_column"] == "text"
    [example] = result["examples"]
    assert example["rationale"] == "It is night."
    assert example["dollars"] == 0.25
    assert example["response"] == {"raw": "{}", "dollars": 0.25}
    assert example["training"]["completion"] == "asleep"
    assert "missing" not in result
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("row_id", "stage", "words"),
    [
        ("birds/a/train/5", "retrieval", {"state": "rejected", "reason": "duplicate", "detail": "birds/a/train/0"}),
        ("birds/a/train/1", "transform", {"rejected": "unfit_row", "detail": "why", "response": {"raw": "no"}}),
    ],
)
def test_a_row_that_became_nothing_says_where_it_was_lost(row_id: str, stage: str, words: dict[str, Any]) -> None:
    result = trace(row_id, Run(tables(), find_response=lambda _: {"raw": "no"}))
    assert result["kind"] == "row"
    assert result["examples"] == []
    assert result[stage].items() >= words.items()


def test_an_example_without_a_verified_rationale_says_so() -> None:
    example = tables()["examples"].iloc[0]
    rejected = {"row_id": example["row_id"], "dataset": example["dataset"], "reason": "another_answer", "detail": ""}
    changed = {"reasoning_rejected": pd.DataFrame([rejected])}
    changed |= {name: tables()[name].iloc[:0] for name in ("training_set", "reasoned_examples")}
    run = Run(tables() | changed)
    state = "not in the training set: cot: another_answer"
    assert trace(example["row_id"], run)["examples"][0]["training"]["state"] == state


def test_a_row_of_the_datastore_that_nothing_reached() -> None:
    stored = rows().iloc[0].to_dict() | {"row_id": "birds/a/train/77"}
    result = trace("birds/a/train/77", Run(tables(), find_row={"birds/a/train/77": stored}.get))
    assert result["source"]["row"] == {"text": "The owl sleeps."}
    assert "not reached" in result["retrieval"]["state"]


def test_a_prediction_leads_to_gold_adapter_and_nearest_examples() -> None:
    run = Run(tables(), encode=encode, adapter={"version": "v1"})
    result = trace("i1", run)
    assert result["references"] == ["in the den"]
    student, expert = result["systems"]
    assert student["scores"] == {"exact_match": 0.0}
    assert "adapter" not in student
    assert expert["adapter"] == {"version": "v1"}
    [near] = result["nearest_training_examples"]
    assert near["example_id"] == "birds/a/train/0"
    assert near["dataset"] == "birds"
    assert near["prompt"] == "Where is the owl?", "what all prompts begin with says nothing"
    assert 0.5 < near["similarity"] < 1
    assert [line["system"] for line in trace("i1", run, "expert")["systems"]] == ["expert"]
    with pytest.raises(RebaseError, match=r"no prediction of the system 'teacher'.*systems with one: student, expert"):
        trace("i1", run, "teacher")


def test_a_dataset_leads_to_all_that_was_made_of_it() -> None:
    result = trace("birds", Run(tables(), env="test", task="owls"))
    assert result["outcomes"] == {
        "retrieve: duplicate": 1, "transform: unfit_row": 1, "example; in the training set": 1,
    }  # fmt: skip
    assert {line["row_id"] for line in result["rows"]} == {f"birds/a/train/{number}" for number in (0, 1, 5)}
    assert shlex.split(result["train_without_it"]) == [
        "kedro", "run", "--pipelines=train,evaluate", "--env=test", "--params=task=owls,train.exclude.datasets='birds'",
    ]  # fmt: skip
    taken_out = Run(tables(), exclude=ExcludeParameters(licenses=("CC-BY*",)))
    fates = trace("owner/foxes", taken_out)["outcomes"]
    assert fates == {"example; not in the training set: excluded_license": 1}


def read_params(text: str) -> Any:
    return cli.run.make_context("run", ["--params", text]).params["params"]


@pytest.mark.parametrize(
    "name", ["birds", "owner/Some-Set_1.0", "007", "null", "a, b; c=[d]*", "'; rm -rf ~; '", "- é"]
)
def test_the_command_that_excludes_a_dataset_means_that_dataset(name: str) -> None:
    changed = tables() | {"examples": tables()["examples"].assign(dataset=name)}
    del changed["reasoned_examples"]
    command = shlex.split(trace(name, Run(changed))["train_without_it"])
    [parameters] = [part.removeprefix("--params=") for part in command if part.startswith("--params=")]
    exclude = ExcludeParameters.model_validate(read_params(parameters)["train"]["exclude"])
    assert why_excluded(name, "cc0-1.0", exclude) == "excluded_dataset"
    assert why_excluded("another", "cc0-1.0", exclude) is None


def with_a_twin() -> dict[str, pd.DataFrame]:
    """The run, with a row of ``copies`` that is the same as the row of ``birds`` that became an example."""
    twin = {"rank": 5, "row_id": "copies/a/train/3", "dataset": "copies", "score": 0.6, "reason": "duplicate",
            "detail": "birds/a/train/0"}  # fmt: skip
    rejected = pd.concat([tables()["retrieval_rejected"], pd.DataFrame([twin])], ignore_index=True)
    return tables() | {"retrieval_rejected": rejected}


def test_a_duplicate_leads_to_the_row_that_was_kept_for_it() -> None:
    run = Run(with_a_twin())
    same = {"row_id": "copies/a/train/3", "kept": "birds/a/train/0", "dataset": "birds",
            "outcome": "example; in the training set"}  # fmt: skip
    assert trace("copies/a/train/3", run)["retrieval"]["kept_instead"] == same
    result = trace("copies", run)
    assert result["outcomes"] == {"retrieve: duplicate": 1}
    assert result["duplicates_in_other_datasets"] == [same]
    assert "train_without_it" not in result, "there is nothing of it"
    command = shlex.split(result["train_without_it_and_its_duplicates"])
    parameters = read_params(command[-1].removeprefix("--params="))["train"]["exclude"]
    assert ExcludeParameters.model_validate(parameters).datasets == ("copies", "birds")
    assert "birds/a/train/0" in shown(result)
    assert "duplicates_in_other_datasets" not in trace("birds", run), "what is its own is no other dataset's"


def other_pipelines() -> dict[str, pd.DataFrame]:
    """What synthesize, distil, mix, compare and students make beside the run."""
    examples, predictions = tables()["examples"], tables()["predictions"]
    made_up = examples.head(1).assign(
        example_id="synthesized-00001", row_id="synthesized-00001", dataset=None, rank=float("nan")
    )
    rejected = {"row_id": "birds/a/train/1", "dataset": "birds", "rank": 3, "reason": "invalid_response", "detail": "",
               "response_key": None, "text": "{}"}  # fmt: skip
    labeled = examples.head(1).assign(answer="on a branch", rationale=None)
    return tables() | {
        "synthesized_examples": made_up,
        "distilled_examples": labeled,
        "distilled_rejected": pd.DataFrame([rejected]),
        "mixed_examples": labeled.assign(example_id="distilled_examples/birds/a/train/0", origin="distilled_examples"),
        "distilled.training_set": tables()["training_set"].assign(completion="on a branch"),
        "comparison_predictions": predictions.assign(system=["student", "rebase"]),
        "students_predictions": predictions.assign(prompt="Another template.", system=["tiny student", "tiny expert"]),
    }


def test_what_other_pipelines_made_is_found_too() -> None:
    run = Run(other_pipelines(), encode=encode, adapter={"version": "v1"})
    result = trace("birds/a/train/0", run)
    assert [(example["table"], example["answer"]) for example in result["examples"]] == [
        ("reasoned_examples", "asleep"), ("distilled_examples", "on a branch"), ("mixed_examples", "on a branch"),
    ]  # fmt: skip
    trained = [example["training"].get("completion") for example in result["examples"]]
    assert trained == ["asleep", "on a branch", None]
    [mixed] = trace("distilled_examples/birds/a/train/0", run)["examples"]
    assert mixed["origin"] == "distilled_examples"
    assert trace("birds/a/train/1", run)["distil"]["rejected"] == "invalid_response"
    assert "example; in the training set" in trace("birds", run)["outcomes"]
    made_up = trace("synthesized-00001", run)
    assert made_up["retrieval"] == {"state": "none: made without a retrieved row"}
    assert made_up["examples"][0]["training"] == {"state": "no training set yet"}
    answers = trace("i1", run)["systems"]
    assert [(answer["pipeline"], answer["system"]) for answer in answers] == [
        ("evaluate", "student"), ("evaluate", "expert"), ("compare", "student"), ("compare", "rebase"),
        ("students", "tiny student"), ("students", "tiny expert"),
    ]  # fmt: skip
    assert [answer.get("prompt") for answer in answers] == [None] * 4 + ["Another template."] * 2
    assert ["adapter" in answer for answer in answers] == [False, True] + [False] * 4
    assert trace("i1", run, "rebase")["systems"][0]["raw_output"] == "in the den"
    assert shown(result)
    assert shown(made_up)
    alone = Run({"comparison_predictions": other_pipelines()["comparison_predictions"]})
    assert [answer["system"] for answer in trace("i1", alone)["systems"]] == ["student", "rebase"]


@pytest.mark.parametrize("absent", [*TABLES, "all but retrieved"])
def test_half_a_run_says_what_is_missing(absent: str) -> None:
    gone = [name for name in TABLES if name != "retrieved"] if absent == "all but retrieved" else [absent]
    half = {name: table for name, table in tables().items() if name not in gone}
    run = Run(half, encode=encode)
    for identifier in ("birds/a/train/0", "birds", "owner/foxes/b/train/7", "owner/foxes"):
        result = trace(identifier, run)
        assert set(result.get("missing", ())) == set(gone) - {"predictions"}
        assert shown(result)
    if "predictions" in half:
        assert shown(trace("i1", run))
    else:
        with pytest.raises(RebaseError, match="no predictions yet"):
            trace("i1", run, "expert")


def test_an_unknown_name_is_an_error_with_a_guess() -> None:
    half = {name: table for name, table in tables().items() if name != "predictions"}
    with pytest.raises(RebaseError, match=r"is called 'owner/fox'.*owner/foxes.*\npredictions is missing: run it"):
        trace("owner/fox", Run(half, "run it"))


@pytest.mark.slow
def test_the_command_on_half_a_run(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    nothing = kedro(project, "trace", "birds", "--env=test", check=False)
    assert nothing.returncode == 1
    assert "retrieved is missing: not there yet; kedro run --pipelines=retrieve makes it." in nothing.stderr
    assert "Traceback" not in nothing.stderr
    version = outputs(project) / "04_feature" / "reading_qa" / "retrieved.parquet" / "2026-01-01T00.00.00.000Z"
    version.mkdir(parents=True)
    rows().to_parquet(version / "retrieved.parquet")
    output = kedro(project, "trace", "owner/foxes/b/train/7", "--env=test").stdout
    assert r"\x1b[31mred" in output
    assert "\x1b" not in output
    assert "examples" in output
    result = json.loads(kedro(project, "trace", "birds", "--env=test", "--json").stdout)
    assert result["outcomes"] == {"retrieved": 2}
    assert not (outputs(project) / "cache").exists(), "looking makes no store of responses"
