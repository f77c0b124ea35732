"""Errors for users: their messages, their tables, and which errors are faults of the program."""

import pickle
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import yaml

from rebase.errors import RebaseError, StageError, did_you_mean, user_message


@pytest.mark.parametrize(
    ("name", "names", "words"),
    [
        ("trian", ["train", "evaluate"], "Did you mean train?"),
        ("trian.epochs", ["train", "evaluate"], "Did you mean train?"),
        ("train.epoch", ["train.seed", "train.epochs", "train"], "Did you mean train.epochs?"),
        ("xyz", ["b", "a"], "Allowed: a, b."),
        ("xyz", [], "Allowed: none."),
    ],
)
def test_the_most_similar_name_is_proposed_or_all_are_listed(name: str, names: list[str], words: str) -> None:
    assert did_you_mean(name, iter(names)) == words
    assert did_you_mean("xyz", ["a"], "There are") == "There are: a."


def test_a_failed_stage_has_its_tables_in_another_process_too() -> None:
    rejected, mappings = pd.DataFrame({"row_id": ["r"]}), pd.DataFrame({"state": ["unsuitable"]})
    error = pickle.loads(pickle.dumps(StageError("Nothing is left.", rejected, mappings)))
    assert str(error) == "Nothing is left."
    assert error.table("examples_rejected").equals(rejected)
    assert error.table("mappings").equals(mappings)
    assert error.table("examples") is None
    assert StageError("Nothing is left.").table("examples_rejected") is None


def raised_by(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011 - what is said of it is tested
        call()
    return error.value


def reject() -> None:
    raise RebaseError("Set `task`.")


def reject_within_other_errors() -> None:
    try:
        try:
            reject()
        except RebaseError as error:
            raise KeyError("x") from error
    except KeyError:
        raise ValueError("y")  # noqa: B904 - without a cause, as most errors in an except block


def fail_in_yaml() -> None:
    """A fault of the program, called by a library that reads files of the user."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!x", lambda *_: 1 // 0)
    yaml.load("!x y", Loader)


def fail_in(module: str, error: str) -> Callable[[], None]:
    return lambda: exec(f"raise {error}('Correct it.')", {"__name__": module})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (reject, "Set `task`."),
        (reject_within_other_errors, "Set `task`."),
        (fail_in("kedro.io.core", "ValueError"), "Correct it."),
        (fail_in("kedro.io.core", "ImportError"), None),
        (fail_in("kedrone", "ValueError"), None),
        (fail_in_yaml, None),
    ],
)
def test_what_the_user_can_fix_is_a_message_and_a_fault_of_the_program_is_none(
    call: Callable[[], None], message: str | None
) -> None:
    assert user_message(raised_by(call)) == message


def test_a_file_that_is_no_yaml_is_named_by_the_words_of_the_library() -> None:
    assert "expected ',' or ']'" in str(user_message(raised_by(lambda: yaml.safe_load("[1"))))
