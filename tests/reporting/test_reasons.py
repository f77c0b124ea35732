"""Every reason that the code can give has its meaning in the glossary."""

import ast
from collections.abc import Iterator
from pathlib import Path

import rebase
from rebase.reporting.reasons import REASONS

#: Judging has tables of its own.
SOURCES = [file for file in Path(rebase.__file__).parent.rglob("*.py") if "judg" not in str(file)]


def reasons() -> Iterator[str]:
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Rejection":
                yield from texts(node.args[0])
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reject" and len(node.args) > 2:
                yield from texts(node.args[1])
            if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith(("reject_", "why_unreadable")):
                yield from (
                    text for part in ast.walk(node) if isinstance(part, ast.Return) for text in texts(part.value)
                )


def texts(value: ast.expr | None) -> Iterator[str]:
    parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
    yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_every_reason_is_explained() -> None:
    given = set(reasons())
    assert {"contamination_ngram", "answer_given_away", "wrong_equation", "response_cut_off", "other_split"} <= given
    assert given <= set(REASONS), given - set(REASONS)


def test_meanings_are_sentences() -> None:
    assert all(meaning[0].isupper() and meaning.endswith(".") for meaning in REASONS.values())
