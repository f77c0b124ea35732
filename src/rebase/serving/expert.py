"""A trained expert that answers."""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rebase.errors import RebaseError
from rebase.records import Adapter, Task
from rebase.student.adapters import CONFIG, describe_damaged_adapter, read_record
from rebase.student.answering import EXPERT, STUDENT
from rebase.student.formatting import render_prompt
from rebase.student.generation import generate
from rebase.student.handle import Student, use_adapter
from rebase.student.likelihood import choose_labels
from rebase.tasks.extraction import extract
from rebase.weights import PACKAGE, PUBLISHED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Expert:
    """A student with the adapter of a task: ``Expert.load("data/06_models/NAME").answer(question="…")``.

    Prompts and answers are those of the evaluation. The weights are loaded with the first answer, and freed with the
    expert. Nothing is cached.
    """

    def __init__(self, task: Task, student: Student, adapter: Adapter, labels_by: str, batch_size: int) -> None:
        self.task, self.student, self.adapter = task, student, adapter
        self._labels_by, self._batch_size = labels_by, batch_size
        self._weights = ExitStack()
        weakref.finalize(self, self._weights.close)  # it also runs before Python shuts down

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: str | Path | None = None,
        labels_by: Literal["generation", "likelihood"] = "generation",
        batch_size: int = 16,
    ) -> "Expert":
        """The expert of an adapter's folder, or of the newest adapter in a task's folder (``data/06_models/NAME``).

        ``model`` is a folder, GGUF file or hub id to load the student from, by default what the adapter was trained on.
        ``labels_by`` and ``batch_size`` are as in ``EvaluateParameters``. Raises RebaseError if there is no adapter, if
        it is damaged, or if it was trained on another student.
        """
        folder = _find_adapter(Path(folder))
        if problem := describe_damaged_adapter(folder):
            raise RebaseError(problem)
        record = read_record(folder)
        if model is None and not record.model.startswith(PACKAGE) and "/" not in record.model:
            raise RebaseError(
                f"The adapter in {folder} was trained on the student in a folder or file called {record.model!r}. "
                "Say where it is: Expert.load(FOLDER, model=PATH), or `student.model` in globals.yml."
            )
        models = (parent for parent in folder.resolve().parents if parent.name == "06_models")
        base = next((parent / "base" for parent in models), Path.home() / ".cache" / "rebase")
        student = Student(str(model or record.model), record.revision, base, folder, record.dtype)
        adapter = Adapter(folder, PUBLISHED.get(record.model, record.model))
        return cls(record.task, student, adapter, labels_by, batch_size)

    def answer(self, **fields: str) -> str:
        """The answer to one input, given by the fields of the task's query."""
        return self.answers([fields])[0]

    def answers(self, inputs: Sequence[Mapping[str, str]], *, untrained: bool = False) -> list[str]:
        """The answers to inputs, in their order, answered in batches; of the student alone if ``untrained``.

        Raises RebaseError if a field is missing, or is none of the task's. An answer is empty if none can be read from
        what the model wrote.
        """
        prompts = self.prompts(inputs)
        model, tokenizer = self._opened
        system, spec = STUDENT if untrained else EXPERT, self.task.answer
        with use_adapter(model, None if untrained else EXPERT):
            if spec.labels and self._labels_by == "likelihood":
                settings = (spec.labels, self._batch_size, f"{system} answers")
                return choose_labels(model, tokenizer, prompts, *settings)[0]
            limits = (self.task.max_new_tokens, self._batch_size, f"{system} answers")
            return [extract(output, spec) for output in generate(model, tokenizer, prompts, *limits)]

    def prompts(self, inputs: Sequence[Mapping[str, str]]) -> list[str]:
        """The prompts of inputs, as text with all special tokens."""
        names = self.task.query_fields
        for fields in inputs:
            if wrong := set(fields) ^ set(names):
                problems = [f"{name} is {'missing' if name in names else 'unknown'}" for name in sorted(wrong)]
                raise RebaseError(
                    f"{', '.join(problems)}: the fields of the task {self.task.name!r} are {', '.join(names)}."
                )
        _, tokenizer = self._opened
        return [render_prompt(tokenizer, self.task, self.task.render_query(fields)) for fields in inputs]

    @cached_property
    def _opened(self) -> tuple[Any, "PreTrainedTokenizerBase"]:
        return self._weights.enter_context(self.student.open({EXPERT: self.adapter}))


def _find_adapter(folder: Path) -> Path:
    versions = sorted(folder.glob("adapter/*/adapter"), reverse=True)
    for candidate in (folder, folder / "adapter", *versions):
        if (candidate / CONFIG).is_file():
            return candidate
    raise RebaseError(
        f"There is no adapter in {folder}. Give the folder of an adapter, or of a task that was trained "
        "(kedro run --params=task=NAME)."
    )
