"""Tasks and prompts of the repository, as the catalog loads them."""

from pathlib import Path
from typing import Any

from rebase.datasets import PromptDataset, TaskDataset
from rebase.records import Task

RAW = Path(__file__).parents[1] / "data" / "01_raw"


def shipped_task(name: str) -> Task:
    return TaskDataset(str(RAW / "tasks"), name).load()


def shipped_prompt(kind: str) -> Any:
    return PromptDataset(str(RAW / "prompts" / f"{kind}.yml"), kind).load()
