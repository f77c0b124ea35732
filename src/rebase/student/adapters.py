"""An adapter's files: its weights, its model card, and the sources of its training data."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.files import damaged_files, replacing_folder, write_checksums
from rebase.parameters import TrainParameters
from rebase.records import Adapter, Strict, Task, validated
from rebase.student.handle import Student
from rebase.student.tokenization import TRUNCATED, VALIDATION
from rebase.weights import PUBLISHED

CARD = "README.md"
CONFIG = "adapter_config.json"
#: The sources of the training data as JSON; the card shows them to people.
ORIGIN = "training_data.json"
EXPERT_RECORD = "expert.json"
_SOURCE_COLUMNS = ["dataset", "revision", "license", "teacher", "prompt_hash"]


def render_card(
    task: Task,
    student: Student,
    prompt: str,
    examples: pd.DataFrame,
    parameters: TrainParameters,
    counts: dict[str, Any],
) -> str:
    """The hub's model card of an adapter: YAML front matter and Markdown.

    ``prompt`` has the task's fields in braces (``prompt_template``). ``examples`` is what the training set was made of,
    with ``dataset`` (null: none), ``license`` and ``teacher``; ``counts`` comes from ``train_adapter``.
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

## How to use it
{_usage(task, student, prompt)}

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
    path = config.base_model_name_or_path
    config.base_model_name_or_path, config.revision = student.name, student.revision
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)
        write_checksums(temporary)
    # With another name, peft would look for the model on the hub at each later checkpoint.
    config.base_model_name_or_path = path


def describe_damaged_adapter(folder: Path) -> str:
    """What is wrong with an adapter's files, and what to do; empty if nothing is known."""
    damaged = damaged_files(folder)
    if not damaged and (folder / CONFIG).is_file() and not any(folder.glob("adapter_model.*")):
        damaged = [folder / "adapter_model.safetensors"]
    if not damaged:
        return ""
    names = ", ".join(file.name for file in damaged)
    return (
        f"The adapter in {folder} is damaged: missing, or not what was written: {names}. Make it again: "
        "kedro run --pipelines=train. It trains only if the copy in the folder `training` is damaged, too."
    )


class ExpertRecord(Strict):
    """What answering needs beside the weights: the task, the student, and the prompt with its fields in braces."""

    task: Task
    model: str
    revision: str | None
    dtype: str
    prompt: str


def write_record(adapter: Adapter, task: Task, student: Student, prompt: str) -> None:
    """Write the ``ExpertRecord`` into the adapter's folder, without paths of this machine."""
    model = student.name if Path(student.model).exists() else student.model
    source = Path(task.evaluation.source)
    if source.is_absolute():
        task = task.model_copy(update={"evaluation": task.evaluation.model_copy(update={"source": source.name})})
    record = ExpertRecord(task=task, model=model, revision=student.revision, dtype=student.dtype, prompt=prompt)
    (adapter.folder / EXPERT_RECORD).write_text(record.model_dump_json(indent=2), encoding="utf-8")


def read_record(folder: Path) -> ExpertRecord:
    """Read what ``write_record`` wrote. Raises RebaseError if the file is missing or damaged."""
    file = folder / EXPERT_RECORD
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RebaseError(
            f"{file} cannot be read, so the adapter's task is not known: {error}. Run the train pipeline again: it "
            "writes this file, and trains nothing twice."
        ) from None
    record: ExpertRecord = validated(ExpertRecord, content, f"{file}: not an expert's record.")
    return record


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


def _usage(task: Task, student: Student, prompt: str) -> str:
    """How to get answers with rebase and without; the prompt is spelled as Python."""
    arguments = ", ".join(f'{name}="…"' for name in task.query_fields)
    lines = "\n".join(f"    {json.dumps(line, ensure_ascii=False)}" for line in prompt.splitlines(keepends=True))
    copy = "a quantized copy of these weights" if student.model in PUBLISHED else "these weights"
    return f"""In a copy of this folder, with rebase:

```python
from rebase import Expert

print(Expert.load(".").answer({arguments}))
```

With peft alone, also by this repository's hub id. The prompt is that of the training. The adapter was trained on \
{copy}.

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained("{student.name}")
fields = dict({arguments})
prompt = (
{lines}
)
for name, text in fields.items():
    prompt = prompt.replace("{{" + name + "}}", text)
inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens={task.max_new_tokens}, do_sample=False, repetition_penalty=1.0)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""


def _cell(text: str) -> str:
    return "none" if pd.isna(text) else str(text).replace("|", "\\|").replace("\n", " ")
