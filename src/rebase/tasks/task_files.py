"""Task files: one YAML file a task, and files of published prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rebase.errors import RebaseError, did_you_mean
from rebase.records import Task
from rebase.tasks.extraction import extract, split_conclusion


def load_task(folder: Path, name: str, prompts: str | None = None) -> Task:
    """Read and validate ``folder/name.yml``.

    ``prompts`` is a file of published prompts (see ``use_prompts``).

    Raises:
        RebaseError: There is no such task (the message lists those that exist), or a field is wrong.

    """
    path = folder / f"{name}.yml"
    if not path.exists():
        hint = did_you_mean(name, (file.stem for file in folder.glob("*.yml")), "Tasks there")
        raise RebaseError(f"There is no task {name!r} in {folder}. {hint} A task is one YAML file.")
    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise RebaseError(f"{path}: not valid YAML in UTF-8. {error}") from None
    task = Task.parse(content, str(path))
    if task.name != name:
        raise RebaseError(f"{path}: `name` is {task.name!r}, but the file is called {name!r}. Make them the same.")
    return use_prompts(task, Path(prompts)) if prompts else task


def to_yaml(content: Mapping[str, Any]) -> str:
    """The content of a task file as YAML, with texts of several lines as blocks."""
    return str(yaml.dump(content, Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True, width=100))


def use_prompts(task: Task, path: Path) -> Task:
    """Replace the task's instruction and examples by those of a file of published prompts.

    The file is JSON: ``{task: {"instruction": ..., "examples": [[question, "... The answer is X."], ...]}}``, by the
    task's name with or without ``bbh_``.

    Raises:
        RebaseError: The file has no prompt for the task, or an example of it has no answer.

    """
    try:
        entries = dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RebaseError(f"There is no file of prompts {path}. Correct `task_prompts`.") from None
    except (OSError, ValueError, TypeError) as error:
        raise RebaseError(f"{path}: not a JSON object with one entry per task. {error}") from None
    short = task.name.removeprefix("bbh_")
    name = next((name for name in (task.name, short, f"bbh_{short}") if name in entries), None)
    if name is None:
        raise RebaseError(f"{path}: no prompt for task {task.name!r}. Prompts there: {', '.join(sorted(entries))}.")
    where = f"{path}, {name}"
    if len(task.query_fields) != 1:
        fields = ", ".join(task.query_fields)
        raise RebaseError(f"{where}: its examples have one field, but the task's query has {fields}.")
    try:
        instruction = entries[name]["instruction"]
        pairs = [(str(question), str(rationale)) for question, rationale in entries[name]["examples"]]
    except (KeyError, TypeError, ValueError):
        raise RebaseError(f"{where}: needs `instruction` and `examples`, each [question, rationale].") from None
    examples = []
    for number, (question, rationale) in enumerate(pairs):
        steps, conclusion = split_conclusion(rationale) or ("", "")
        answer = extract(conclusion, task.answer)
        if not answer:
            raise RebaseError(
                f"{where}, example {number}: no answer can be read from its rationale. End it with 'The answer is X.'."
            )
        example = {task.query_fields[0]: question, "answer": answer}
        examples.append(example | {"rationale": steps} if task.cot else example)
    return Task.parse(task.model_dump() | {"instruction": instruction, "examples": examples}, where)


class _ReadableDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


_ReadableDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
