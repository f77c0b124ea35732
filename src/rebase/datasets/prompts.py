"""Prompt files as a dataset."""

from pathlib import Path
from typing import Any

import yaml
from kedro.io import AbstractDataset

from rebase.datasets.inputs import ReadOnly
from rebase.datasets.previews import TextPreview
from rebase.errors import RebaseError
from rebase.generation.prompts.templates import (
    DistilPrompt,
    MapPrompt,
    Prompt,
    SolvePrompt,
    SynthesizePrompt,
    TransformPrompt,
)
from rebase.judging.llm_judge import PairPrompt, RubricPrompt

_KINDS: dict[str, type[Prompt]] = {
    "map": MapPrompt,
    "transform": TransformPrompt,
    "cot": SolvePrompt,
    "synthesize": SynthesizePrompt,
    "distil": DistilPrompt,
    "judge_rubric": RubricPrompt,
    "judge_pair": PairPrompt,
}


class PromptDataset(ReadOnly, AbstractDataset[Any, Prompt]):
    """A prompt file (YAML), loaded as the typed prompt of its ``kind``, which knows its path.

    Raises RebaseError that names the file and what is wrong with it.
    """

    def __init__(self, filepath: str, kind: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self._kind = _KINDS[kind]
        self.metadata = metadata

    def load(self) -> Prompt:
        # Kedro makes the path absolute; messages name it as people do.
        here = Path.cwd()
        path = self._filepath.relative_to(here) if self._filepath.is_relative_to(here) else self._filepath
        try:
            content = yaml.safe_load(self._filepath.read_bytes())
        except (OSError, yaml.YAMLError) as error:
            raise RebaseError(f"{path}: the prompt file cannot be read. {error}") from None
        return self._kind.parse(content, path)

    def preview(self) -> TextPreview:
        """The file with its comments, for kedro-viz."""
        return TextPreview(self._filepath.read_text(encoding="utf-8"))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "kind": self._kind.__name__}
