"""The words of the project: one term for one concept, in code, configuration, notebooks and documentation."""

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "src": "py j2",
    "conf": "yml md",
    "docs": "py md",
    "benchmarks": "py",
    "notebooks": "ipynb",
    ".github": "yml",
}
PAGES = ["README.md", "CONTRIBUTING.md", "pyproject.toml", "rebase.sh", ".ci/run"]
#: They read or report the names of earlier versions.
EXEMPT = {"src/rebase/old_names.py", "src/rebase/teacher/cache_file.py"}
FILES = [
    *(ROOT / page for page in PAGES),
    *(
        file
        for folder, kinds in FOLDERS.items()
        for kind in kinds.split()
        for file in sorted((ROOT / folder).rglob(f"*.{kind}"))
        if file.relative_to(ROOT).as_posix() not in EXEMPT
    ),
]
#: What not to write, and what to write instead.
TERMS = {
    r"refus(e|es|ed|ing)|\w+_refused": "reject, rejected, rejection (only a model's refusal of a request is a refusal)",
    r"gates?": "filter",
    r"twins?|mirrors?": "duplicates",
    r"forests?": "Annoy index",
    r"even stride|evenly (spread|taken)|taken evenly": "systematic sample",
    r"round[- _]trip": "consistency filter",
    r"held[- _]out": "validation",
    r"accepted answers?": "references",
    r"repl(y|ies)": "response",
    r"responses? store|store of responses|stored responses?": "response cache, cached response",
    r"ask(s|ed|ing)? (a|the) teacher|teacher (is|was|were) asked": "request, generate",
    r"pac(ing|ed|er)": "rate limiting",
    r"(put|set|puts|sets) aside": "reserve",
    r"in[- _]flight": "concurrency",
    r"forecasts?": "cost estimate",
    r"(labeled|embedded|trained|made) anew": "labeled by the teacher, ... again",
    r"luck of training": "seed variance",
    r"row's own text": "source text",
    r"mend(s|ed|ing)?": "fix",
    r"go(es|ing)? on where it was|went on where it was": "resume",
    r"to be had|whoever asked|who asked": "(plain words)",
}
#: Technical exceptions: parts of a line that are left out of the check.
ALLOWED = re.compile(
    r"""
      teacher_refused | connection\ refused
    | That\ reply\ cannot\ be\ used | Reply\ (again\ )?with\ nothing  # texts that models get
    """,
    re.VERBOSE | re.IGNORECASE,
)
#: Names that say nothing of what they hold.
EMPTY_NAMES = {"said", "told", "asked", "whole", "own", "known", "found"}


@pytest.mark.parametrize("term", TERMS)
def test_files_use_the_terms_of_the_project(term):
    pattern = re.compile(rf"\b({term})\b", re.IGNORECASE)
    lines = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(ALLOWED.sub("", line))
    ]
    assert not lines, f"write instead: {TERMS[term]}\n" + "\n".join(lines)


def test_names_tell_their_role():
    lines = [
        f"{file.relative_to(ROOT)}:{token.start[0]}: {token.string}"
        for file in FILES
        if file.suffix == ".py"
        for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline)
        if token.type == tokenize.NAME and token.string in EMPTY_NAMES
    ]
    assert not lines, "name the type and the role instead:\n" + "\n".join(lines)


def test_a_name_has_one_class():
    names = [
        node.name
        for file in FILES
        if file.suffix == ".py" and file.is_relative_to(ROOT / "src")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []
