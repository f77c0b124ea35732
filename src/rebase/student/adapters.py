"""The adapter's model card: what it was made from, so that it can be handed on."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.parameters import TrainParameters
from rebase.records import Adapter, Task
from rebase.student.handle import Student
from rebase.student.tokenization import TRUNCATED, VALIDATION

CARD = "README.md"
#: What an adapter was trained on, for programs: the card says it to people.
ORIGIN = "training_data.json"


def render_card(
    task: Task, student: Student, examples: pd.DataFrame, parameters: TrainParameters, counts: dict[str, Any]
) -> str:
    """A model card in the hub's form: YAML front matter and Markdown.

    ``examples`` are those of the training set, with ``dataset`` (null: none), ``license`` and ``teacher``; ``counts``
    are those of ``train_adapter``. JSON strings are valid YAML, whatever a name holds.
    """
    sources = examples.groupby(["dataset", "license", "teacher"], sort=True, dropna=False).size()
    rows = [f"| {' | '.join(map(_cell, source))} | {count} |" for source, count in sources.items()]
    settings = parameters.model_dump(mode="json")
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(student.name)}",
            "library_name: peft",
            "pipeline_tag: text-generation",
            f"tags: [lora, rebase, {json.dumps(task.name)}]",
            "---",
            f"# An expert for the task `{task.name}`",
            "",
            f"A LoRA adapter for `{student.name}` (revision {student.revision or 'default'}), trained with the "
            "software ReBase (after arXiv 2407.05463).",
            "",
            f"> {task.instruction}",
            "",
            "## Training data",
            f"{counts['kept']} examples; {counts['rejected'].get(TRUNCATED, 0)} more were too long, "
            f"{counts['rejected'].get(VALIDATION, 0)} held out to measure the loss. The table says which dataset they "
            "go back to (none: the teacher wrote them from the instruction), and who gave the answers: a teacher, or "
            "people. What may be done with the adapter can depend on the licenses of base model, teachers "
            "and sources.",
            "",
            "| dataset | license | answers by | examples |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Training",
            f"{counts['steps']} steps, loss on completions alone: {counts['first_loss']:.3f} at the first step, "
            f"{counts['last_loss']:.3f} at the last. Settings:",
            "",
            "```json",
            json.dumps(settings, indent=2),
            "```",
            "",
            "## Limits",
            "It answers queries in the form of its task's and was trained on nothing else. What a teacher wrote was "
            "checked by programs, not by people: what it got wrong, the adapter may have learned. The "
            "scores stand in the report of the run that made it.",
            "",
        ]
    )


def write_card(adapter: Adapter, card: str) -> None:
    """Put the card in the adapter's folder, in place of the one peft writes."""
    (Path(adapter.folder) / CARD).write_text(card, encoding="utf-8")


def write_origin(adapter: Adapter, task: Task, examples: pd.DataFrame) -> None:
    """Put into the adapter's folder what it was trained on: the task, and how many examples of which source.

    A copy of the adapter so keeps what decides whether it may be handed on.
    """
    origin = {"task": task.name, "sources": sources_of(examples)}
    (Path(adapter.folder) / ORIGIN).write_text(json.dumps(origin, indent=2, ensure_ascii=False), encoding="utf-8")


def read_origin(folder: Path) -> list[dict[str, Any]] | None:
    """The sources that ``write_origin`` wrote into an adapter's folder; None where that is not there or damaged."""
    try:
        return list(json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["sources"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sources_of(examples: pd.DataFrame) -> list[dict[str, Any]]:
    """How many examples come from which dataset, revision, license, teacher and prompt, in that order."""
    columns = ["dataset", "revision", "license", "teacher", "prompt_hash"]
    known = examples.reindex(columns=columns).astype(object)
    counts = known.where(known.notna(), None).groupby(columns, sort=True, dropna=False).size()
    lines = counts.reset_index(name="examples").astype(object)
    return lines.where(lines.notna(), None).to_dict("records")


def _cell(text: str) -> str:
    return "none" if pd.isna(text) else str(text).replace("|", "\\|").replace("\n", " ")
