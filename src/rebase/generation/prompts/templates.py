"""The typed prompt files: templates that people write, checked when they are loaded."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from rebase.errors import RebaseError
from rebase.records import Strict, Task, validated


class Prompt(Strict):
    """A prompt file, or a section of one: templates of the system message and the user's turn.

    Each kind names the fields (in braces) that its templates may use, and those that the user's turn needs.
    """

    system_fields: ClassVar[tuple[str, ...]] = ("instruction",)
    user_fields: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]]

    version: int = Field(ge=1)
    system: str = Field(min_length=1)
    user: str = Field(min_length=1)
    _path: Path = PrivateAttr(default=Path("the prompt file"))

    @field_validator("system", "user")
    @classmethod
    def _can_be_filled(cls, template: str, info: ValidationInfo) -> str:
        allowed = cls.system_fields if info.field_name == "system" else cls.user_fields
        advice = f"known fields are {_in_braces(allowed)}; a brace as such is written twice"
        try:
            used = _fields_in(template)
        except ValueError as error:
            raise ValueError(f"{error}; {advice}") from None
        if unknown := [name for name in used if name not in allowed]:
            raise ValueError(f"unknown: {_in_braces(unknown)}; {advice}")
        if info.field_name == "user" and (missing := [name for name in cls.needed if name not in used]):
            raise ValueError(f"missing: {_in_braces(missing)}, so the teacher would not see it; {advice}")
        return template

    @property
    def path(self) -> Path:
        """The prompt's file, for messages."""
        return self._path

    @classmethod
    def parse(cls, content: Any, path: Path) -> Self:
        """Validate the content of the file at ``path``. Raises RebaseError that names the file and each wrong field."""
        if not isinstance(content, Mapping):
            problem = "is empty" if content is None else f"holds a {type(content).__name__}"
            entries = ", ".join(cls.model_fields)
            raise RebaseError(f"{path}: not a valid prompt.\n  the file {problem}; it must have the entries {entries}")
        prompt: Self = validated(cls, content, f"{path}: not a valid prompt.")
        prompt._path = path
        return prompt


class AskPrompt(Prompt):
    """Requests the question to a sentence with a gap (see ``Cue``)."""

    user_fields = ("sentence", "answer")
    needed = ("sentence",)


class SolvePrompt(Prompt):
    """Requests the answer to a query, with data: the answer to a source text (``SourceText``), or a rationale first."""

    user_fields = ("query", "data", "cut", "instruction")
    needed = ("query", "data")


class CheckPrompt(Prompt):
    """Requests the answer to a query."""

    user_fields = ("query",)
    needed = ("query",)


class DensifyPrompt(Prompt):
    """Requests a denser version of the last answer (chain of density)."""

    user_fields = ("round", "rounds")
    needed = ()


class DistilPrompt(CheckPrompt):
    """The prompt file for labels: the style ``direct``, and a section for each other style."""

    cot: CheckPrompt
    densify: DensifyPrompt


class TransformPrompt(Prompt):
    """The prompt file for transform.

    ``ask`` and ``solve`` are for a guided teacher (parameter ``guided``): in tasks about a passage, and in others.
    ``check`` is for the consistency filter.
    """

    system_fields = ("instruction", "fields", "answer")
    user_fields = ("data", "cut", *system_fields)
    needed = ("data",)

    ask: AskPrompt
    solve: SolvePrompt
    check: CheckPrompt


class MapPrompt(Prompt):
    """The prompt file for mappings; its data are the description, the columns and some rows of a dataset."""

    system_fields = ("instruction", "fields", "answer", "examples")
    user_fields = ("data", *system_fields)
    needed = ("data",)


class SynthesizePrompt(Prompt):
    """The prompt file for plain synthesis, which shows no row. A number distinguishes the requests."""

    system_fields = ("instruction", "fields", "answer")
    user_fields = ("number", *system_fields)
    needed = ("number",)


def prompt_hash(prompt: Prompt, task: Task) -> str:
    """Fingerprint of the templates and of everything that the task puts into them: 16 hexadecimal digits."""
    content = [prompt.model_dump(), task.model_dump(include={"instruction", "query", "passage", "examples", "answer"})]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _fields_in(template: str) -> list[str]:
    """The replacement fields of the template, with any conversion or format. Raises ValueError for a stray brace."""
    parts = [(name, how, spec) for _, name, spec, how in Formatter().parse(template) if name is not None]
    return [f"{name}{'!' if how else ''}{how or ''}{':' if spec else ''}{spec}" for name, how, spec in parts]


def _in_braces(names: Iterable[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
