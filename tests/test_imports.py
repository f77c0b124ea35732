"""Every package that a file imports is declared in pyproject.toml."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
USERS = [*PROJECT["dependencies"], *EXTRAS["cluster"], *EXTRAS["gguf"], *EXTRAS["judge"]]
DEVELOPERS = [*PROJECT["dependencies"], *chain(*EXTRAS.values())]
DISTRIBUTIONS = packages_distributions()
#: Of this repository.
LOCAL = {"rebase", "tests", "docs"}


def imported(folder: str) -> set[str]:
    """The installed packages that the files of a folder import."""
    nodes = [
        node for file in (ROOT / folder).rglob("*.py") for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    ]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names} & set(DISTRIBUTIONS) - LOCAL - set(sys.stdlib_module_names)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("folder", "requirements"),
    [
        ("src", USERS),
        *((folder, DEVELOPERS) for folder in ("tests", "docs", "benchmarks")),
    ],
)
def test_what_is_imported_is_declared(folder: str, requirements: list[str]) -> None:
    declared = {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}
    undeclared = {
        name for name in imported(folder) if declared.isdisjoint(normalized(other) for other in DISTRIBUTIONS[name])
    }
    assert not undeclared
