"""Each old name gives a name that exists."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from rebase.errors import RebaseError
from rebase.old_names import OLD_NAMES, reject_old_names
from rebase.parameters import Origin, flat_parameters

CONF = Path(__file__).parents[1] / "conf" / "base"


def current_names() -> set[str]:
    """All names of parameters and their groups, of globals and of catalog entries."""
    settings = [yaml.safe_load(file.read_text()) or {} for file in CONF.glob("*.yml")]
    leaves = {name for setting in settings for name in flat_parameters(setting)}
    optional = {"responses", *(f"mix.weights.{origin}" for origin in get_args(Origin))}
    return leaves | {name.rpartition(".")[0] for name in leaves} | set().union(*settings) | optional


def test_new_names_exist_and_old_ones_do_not() -> None:
    names = current_names()
    assert {new.partition(" ")[0] for new in OLD_NAMES.values() if new} <= names
    assert names.isdisjoint(OLD_NAMES)


def test_all_old_names_are_in_one_message() -> None:
    settings = {"retrieve": {"licences": {"deny": []}, "top_n": 5}, "ingest": {"workers": 4}}
    with pytest.raises(RebaseError, match=r"^--params: ingest\.workers no longer exists: remove it; ") as error:
        reject_old_names(settings, "--params")
    assert str(error.value).endswith("retrieve.licences is now called retrieve.licenses.")
    reject_old_names({"retrieve": {"licenses": {"deny": []}}}, "--params")
