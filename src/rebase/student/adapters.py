"""An adapter's files: its weights, its model card, and the sources of its training data."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.files import replacing_folder
from rebase.parameters import TrainParameters
from rebase.records import Adapter, Task
from rebase.student.handle import Student
from rebase.student.tokenization import TRUNCATED, VALIDATION

CARD = "README.md"
#: The sources of the training data as JSON; the card shows them to people.
ORIGIN = "training_data.json"
_SOURCE_COLUMNS = ["dataset", "revision", "license", "teacher", "prompt_hash"]


def render_card(
    task: Task, student: Student, examples: pd.DataFrame, parameters: TrainParameters, counts: dict[str, Any]
) -> str:
    """The hub's model card of an adapter: YAML front matter and Markdown.

    ``examples`` is what the training set was made of, with ``dataset`` (null: none), ``license`` and ``teacher``;
    ``counts`` comes from ``train_adapter``.
    """
    from huggingface_hub import ModelCard, ModelCardData

    sources = examples.groupby(["dataset", "license", "teacher"], sort=True, dropna=False).size()
    rows = "\n".join(f"| {' | '.join(map(_cell, source))} | {count} |" for source, count in sources.items())
    metadata = ModelCardData(
        base_model=student.name, library_name="peft", pipeline_tag="text-generation", tags=["lora", "rebase", task.name]
    )
    body = f"""# An expert for the task `{task.name}`

A LoRA adapter for `{student.name}` (revision {student.revision or "default"}), trained with the software ReBase \
(after arXiv 2407.05463).

> {task.instruction}

## Training data
{counts["kept"]} examples; {counts["rejected"].get(TRUNCATED, 0)} others were too long, and \
{counts["rejected"].get(VALIDATION, 0)} were used to measure the validation loss. The table lists the source datasets \
of the examples (none: the teacher wrote the example from the instruction) and who gave the answers: a teacher, or \
people. The licenses of the base model, the teachers and the sources can restrict how the adapter may be used.

| dataset | license | answers by | examples |
|---|---|---|---|
{rows}

## Training
{counts["steps"]} steps, loss on completions alone: {counts["first_loss"]:.3f} at the first step, \
{counts["last_loss"]:.3f} at the last. Settings:

```json
{json.dumps(parameters.model_dump(mode="json"), indent=2)}
```

## Limits
The adapter answers queries in the form of its task and was trained on nothing else. Programs checked what the teacher \
wrote, people did not: the adapter may have learned the teacher's errors. The report of the training run has the scores.
"""
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{body}"))


def save_adapter(model: Any, student: Student, folder: Path) -> None:
    """Write config and safetensors, with the student's name instead of the path it was loaded from."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = student.name
    config.revision = student.revision
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)


def write_origin(adapter: Adapter, task: Task, examples: pd.DataFrame) -> None:
    """Write the task and the sources of the training data into the adapter's folder.

    Each copy of the adapter then has what decides whether it may be published.
    """
    origin = {"task": task.name, "sources": sources_of(examples)}
    (adapter.folder / ORIGIN).write_text(json.dumps(origin, indent=2, ensure_ascii=False), encoding="utf-8")


def read_origin(folder: Path) -> list[dict[str, Any]] | None:
    """The sources that ``write_origin`` wrote; None if the file is missing or damaged."""
    try:
        return list(json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["sources"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sources_of(examples: pd.DataFrame) -> list[dict[str, Any]]:
    """Count ``examples`` by dataset, revision, license, teacher and prompt."""
    sources = examples.reindex(columns=_SOURCE_COLUMNS).astype(object)
    counts = sources.where(sources.notna(), None).groupby(_SOURCE_COLUMNS, sort=True, dropna=False).size()
    rows = counts.reset_index(name="examples").astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def _cell(text: str) -> str:
    return "none" if pd.isna(text) else str(text).replace("|", "\\|").replace("\n", " ")
