"""Every parameter has a type and, if it is a number, bounds; anything else is one message."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from rebase.errors import RebaseError
from rebase.parameters import check_globals, check_parameters, flat_parameters
from rebase.records import validated
from rebase.teacher.settings import TeacherSettings

BASE = Path(__file__).parents[1] / "conf" / "base"
PARAMETERS: dict[str, Any] = {
    name: group for file in BASE.glob("parameters_*.yml") for name, group in yaml.safe_load(file.read_text()).items()
}
for group in PARAMETERS.values():
    if "seed" in group:
        group["seed"] = 1  # not the configuration's reference to a global
ABSURD = (1e30, math.inf, -math.inf, math.nan, -1, 10**23)
WRONG = (*ABSURD, "x", [["x"]], {"x": {"y": 1}}, b"x")


def changed(name: str, value: Any) -> dict[str, Any]:
    *path, last = name.split(".")
    parameters = deepcopy(PARAMETERS)
    group = parameters
    for key in path:
        group = group[key]
    group[last] = value
    return parameters


@pytest.mark.parametrize("name", flat_parameters(PARAMETERS))
def test_a_wrong_type_and_an_absurd_number_are_one_message_that_names_the_parameter(name: str) -> None:
    for value in WRONG:
        if name.startswith("train.exclude.") and isinstance(value, str | int | float):
            continue  # a pattern, such as the name of a dataset, which may be a number
        with pytest.raises(RebaseError, match=rf"^Parameters .* are wrong:\n  {name}") as caught:
            check_parameters(changed(name, value))
        assert len(str(caught.value).splitlines()) <= 4, value


@pytest.mark.parametrize(
    "name", [name for name, value in flat_parameters(PARAMETERS).items() if type(value) in (int, float)]
)
def test_the_bounds_of_a_number_are_in_the_message(name: str) -> None:
    for value in (*ABSURD, "x", *([True] if "weights" not in name else [])):
        with pytest.raises(
            RebaseError, match=rf"  {name}: .* \(allowed: (names to )?(integer|number) [≥>] [\d,.]+, [≤<] [\d,.]+"
        ):
            check_parameters(changed(name, value))


@pytest.mark.parametrize("name", ["budget_usd", "max_requests", "max_concurrency", "timeout"])
def test_the_numbers_of_a_teacher_have_bounds_too(name: str) -> None:
    for value in (*ABSURD, "x", True):
        with pytest.raises(RebaseError, match=rf"wrong\n  {name}: .* \(allowed: "):
            validated(TeacherSettings, {"provider": "local", "model": "m", name: value}, "wrong")


def test_an_unknown_name_gets_the_most_similar_one() -> None:
    with pytest.raises(RebaseError, match=r"  train\.lora\.ranks is unknown\. Did you mean train\.lora\.rank\?$"):
        check_parameters(changed("train.lora.ranks", 2))
    with pytest.raises(
        RebaseError, match=r"  cot\.zzz is unknown\. Allowed: cot\.max_row_tokens, cot\.on_disagreement"
    ):
        check_parameters(changed("cot.zzz", 2))


def test_passages_of_no_length_would_pass() -> None:
    with pytest.raises(RebaseError, match="retrieve: `min_passage_words` is above `max_passage_words`"):
        check_parameters(changed("retrieve.min_passage_words", 500))


GLOBALS = {"task": "squad", "datastore": "sample", "sources": "data/*", "seed": 1}


@pytest.mark.parametrize("change", [{"sources": ["a", "hf://b"]}, {"datastore": 2}, {"datastore": "Über-2.b"}])
def test_names_of_the_run_s_inputs_are_taken(change: dict[str, Any]) -> None:
    check_globals(GLOBALS | change)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("task", [None, "", 5, ["a", "b"]]),
        ("datastore", [None, "", "..", "../x", "a/b", ".x", "a\\b", True, ["a"]]),
        ("sources", [None, "", 5, [], [1, 2], [""], {"a": "b"}]),
    ],
)
def test_inputs_of_the_run_need_names(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(RebaseError, match=rf"^Globals .* are wrong:\n  {name}[.:]"):
            check_globals(GLOBALS | {name: value})
