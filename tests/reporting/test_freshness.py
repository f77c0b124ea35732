from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rebase.records import Adapter
from rebase.reporting.freshness import describe_origin, digest, find_outdated
from tests.tiny import evaluate_parameters

Run = Callable[..., None]


@pytest.fixture
def origins() -> dict[str, dict[str, Any]]:
    return {}


@pytest.fixture
def run(origins: dict[str, dict[str, Any]]) -> Run:
    """Record a node: `run(output, {name: data}, content)`."""

    def record(output: str, inputs: dict[str, Any], content: Any) -> None:
        origins[output] = describe_origin(content, inputs, origins)

    return record


def table(*values: Any) -> pd.DataFrame:
    return pd.DataFrame({"value": values})


def whole_run(run: Run, limit: int = 5) -> None:
    rows, examples, answers = table("row"), table("example"), table("answer")
    run("retrieved", {"params:retrieve": evaluate_parameters()}, rows)
    run("reasoned_examples", {"retrieved": rows}, examples)
    run("predictions", {"reasoned_examples": examples}, answers)
    run("scores", {"predictions": answers, "params:evaluate": evaluate_parameters(limit=limit)}, {"run": "now"})
    run("run_record", {"scores": {}}, {})


NAMES = ["retrieved", "reasoned_examples", "predictions", "scores", "run_record"]


def test_the_same_content_written_again_makes_nothing_old(run: Run, origins: dict[str, Any]) -> None:
    whole_run(run)
    assert find_outdated(origins, NAMES) == []
    # `estimate` retrieves the same rows again.
    run("retrieved", {"params:retrieve": evaluate_parameters()}, table("row"))
    assert find_outdated(origins, NAMES) == []


def test_what_was_made_from_other_content_is_of_an_earlier_run(run: Run, origins: dict[str, Any]) -> None:
    whole_run(run)
    run("reasoned_examples", {"retrieved": table("row")}, table("another example"))
    assert find_outdated(origins, NAMES) == ["predictions", "scores", "run_record"]
    assert find_outdated(origins, ["scores"]) == ["scores"]
    whole_run(run)
    assert find_outdated(origins, NAMES) == []
    assert find_outdated({}, NAMES) == []  # outputs of a version that recorded nothing


def test_a_comparison_with_other_settings_does_not_compare(run: Run, origins: dict[str, Any]) -> None:
    whole_run(run)
    run("comparison_scores", {"params:evaluate": evaluate_parameters(limit=5)}, {})
    assert find_outdated(origins, [*NAMES, "comparison_scores"]) == []
    whole_run(run, limit=6)
    assert find_outdated(origins, [*NAMES, "comparison_scores"]) == ["comparison_scores"]


def test_digests_are_of_the_content(tmp_path: Path) -> None:
    assert digest(table("a", None)) == digest(table("a", float("nan"))) != digest(table("a", "b"))
    assert digest(evaluate_parameters(limit=1)) != digest(evaluate_parameters(limit=2))
    assert digest({"seconds": 3}) is None
    assert digest(object()) is None
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_text("weights")
    one, other = (Adapter(tmp_path / name, "tiny") for name in ("one", "other"))
    assert digest(one) == digest(other)
    (tmp_path / "other" / "adapter_model.safetensors").write_text("other weights")
    assert digest(one) != digest(other)
