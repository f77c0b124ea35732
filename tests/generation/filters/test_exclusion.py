from typing import Any

import pytest
from pydantic import ValidationError

from rebase.generation.filters.exclusion import reject_excluded, why_excluded
from rebase.parameters import ExcludeParameters
from tests.generation.filters.rows import row


def test_exclusion(reading_task):
    assert reject_excluded(row("x", dataset="Banned-Books"), reading_task).reason == "excluded_dataset"
    assert reject_excluded(row("x", dataset="owner/TINY_READING-v2"), reading_task).reason == "excluded_dataset"
    assert reject_excluded(row("x", dataset="owner/tiny-reading"), reading_task) is None
    assert reject_excluded(row("x", dataset="not-banned-books"), reading_task) is None


@pytest.mark.parametrize(
    ("exclude", "reason"),
    [
        ({}, None),
        ({"datasets": ["owner/Birds"]}, "excluded_dataset"),
        ({"datasets": ["*/birds"]}, "excluded_dataset"),
        ({"datasets": "foxes; owner/b?rds"}, "excluded_dataset"),
        ({"datasets": ["birds"]}, None),
        ({"licenses": ["*-nc-*"]}, "excluded_license"),
        ({"licenses": ["cc-by-4.0", "CC-BY-NC-4.0"]}, "excluded_license"),
        ({"licenses": ["unknown", "mit"]}, None),
        ({"datasets": 7, "licenses": ""}, None),
    ],
)
def test_patterns_match_as_elsewhere(exclude: dict[str, Any], reason: str | None) -> None:
    parameters = ExcludeParameters.model_validate(exclude)
    assert why_excluded("owner/birds", "cc-by-4.0; CC BY-NC 4.0", parameters) == reason
    assert why_excluded(None, None, parameters) is None, "written without a source"


def test_what_has_no_license_can_be_excluded_as_unknown() -> None:
    unknown = ExcludeParameters(licenses=("unknown",))
    assert {why_excluded("a", license, unknown) for license in (None, float("nan"), "", "unknown")} == {
        "excluded_license"
    }
    with pytest.raises(ValidationError, match="dataset"):
        ExcludeParameters.model_validate({"dataset": "birds"})
