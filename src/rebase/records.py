"""What flows between the stages.

Tables travel as pandas frames whose columns are named here; single things travel as the classes here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rebase.errors import RebaseError

AnswerType = Literal["span", "label", "number", "text", "code"]
Metric = Literal["exact_match", "f1", "accuracy", "numeric_match", "chrf", "rouge_l"]

#: Columns of ``rows``: one line a row kept at ingest. ``row`` is the row as JSON text.
ROW_COLUMNS = ("row_id", "dataset", "config", "split", "revision", "row_index", "license", "row", "content_hash")


class Strict(BaseModel):
    """A record that rejects unknown fields and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnswerSpec(Strict):
    """What an answer of the task looks like; ``labels`` belong to the type ``label`` alone."""

    type: AnswerType
    labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _labels_fit_type(self) -> "AnswerSpec":
        if (self.type == "label") != bool(self.labels):
            raise ValueError("`labels` must list the allowed answers when type is `label`, and only then")
        return self


class EvaluationSpec(Strict):
    """Where the evaluation items are and how their columns map to the task's fields.

    ``source`` is a file (JSONL, CSV or Parquet) or a hub id; ``fields`` maps each field of the query, and
    ``answers``, to a column (``answers.text`` for a nested one). Class labels given as integers are named by
    ``label_names``. Where a column holds the working as well, the answer is what follows the last ``answer_after``.
    ``outside_labels`` lets answers pass that are none of the labels: some benchmarks have such items, which nobody can
    get right, and published scores count them.
    """

    source: str
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    fields: dict[str, str]
    label_names: tuple[str, ...] = ()
    answer_after: str | None = None
    outside_labels: bool = False


class Task(Strict):
    r"""A task: what the expert is to do, as one YAML file says it.

    ``query`` is a template such as ``"{context}\n\nQuestion: {question}"``; each example gives its fields and
    the answer. ``passage`` names the field that is taken word for word from a source row (a reading passage):
    the teacher writes the other fields and the answer. ``groups`` are those whose mean score the task counts in.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    version: int = Field(ge=1)
    instruction: str = Field(min_length=1)
    query: str = Field(min_length=1)
    passage: str | None = None
    examples: tuple[dict[str, str], ...] = Field(min_length=1)
    answer: AnswerSpec
    metrics: tuple[Metric, ...] = Field(min_length=1)
    cot: bool = False
    exclude: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    evaluation: EvaluationSpec
    max_new_tokens: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _fields_agree(self) -> "Task":
        fields = set(self.query_fields)
        if not fields:
            raise ValueError("`query` must name at least one field in braces, such as {question}")
        if self.passage is not None and self.passage not in fields:
            raise ValueError(f"`passage` names {self.passage!r}, which is not a field of `query` ({sorted(fields)})")
        needed = fields | {"answer"} | ({"rationale"} if self.cot else set())
        for number, example in enumerate(self.examples):
            if set(example) != needed:
                raise ValueError(f"examples[{number}] must have exactly the fields {sorted(needed)}")
        if self.answer.labels:
            for number, example in enumerate(self.examples):
                if example["answer"] not in self.answer.labels:
                    raise ValueError(f"examples[{number}].answer is not one of the labels {list(self.answer.labels)}")
        if set(self.evaluation.fields) != fields | {"answers"}:
            raise ValueError(f"`evaluation.fields` must map exactly {sorted(fields | {'answers'})}")
        return self

    @property
    def query_fields(self) -> tuple[str, ...]:
        """The fields of the query template, in order."""
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.query) if name))

    @property
    def written_fields(self) -> tuple[str, ...]:
        """The query's fields that the teacher writes: all but the passage."""
        return tuple(name for name in self.query_fields if name != self.passage)

    def render_query(self, fields: Mapping[str, str]) -> str:
        """Fill the query template: the text that the student is asked."""
        return self.query.format(**{name: fields[name] for name in self.query_fields})

    @classmethod
    def parse(cls, data: Any, where: str) -> "Task":
        """Validate what a task file says; a RebaseError names the file and each wrong field."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RebaseError(f"{where}: not a valid task.\n{explain_validation(error)}") from None


class DatasetCard(Strict):
    """What a dataset says of itself: from its card's front matter and text, or the hub's dataset info."""

    dataset: str
    description: str = ""
    license: str = "unknown"
    languages: tuple[str, ...] = ()
    revision: str = ""


class StageSummary(TypedDict, total=False):
    """What a stage took in, kept and rejected, and what it cost; built by ``summarize_stage``, saved as JSON.

    ``kept`` and the counts of ``rejected``, by reason, add up to ``in``. ``seconds`` is the stage's own time. ``dtype`` is
    the number format of models that ran here, ``usage`` what the teacher was asked (``Usage.summary``). A stage adds
    keys of its own.
    """

    stage: str
    kept: int
    rejected: dict[str, int]
    seconds: float
    dtype: str | None
    usage: dict[str, Any]


def summarize_stage(
    stage: str, *, kept: int, rejected: Mapping[str, int], seconds: float, **details: Any
) -> dict[str, Any]:
    """The summary of a stage, fit for JSON: a ``StageSummary``, with ``in`` as the sum of kept and rejected.

    ``rejected`` counts by reason and is sorted, the most frequent first; reasons without a count are left out.
    """
    counts = {reason: count for reason, count in sorted(rejected.items(), key=lambda item: -item[1]) if count}
    return {
        "stage": stage,
        "in": kept + sum(counts.values()),
        "kept": kept,
        "rejected": counts,
        "seconds": round(seconds, 1),
        **details,
    }


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter: a folder with its config, safetensors and model card."""

    folder: Path
    base_model: str


@dataclass(frozen=True)
class Untrained:
    """What stands for an adapter that could not be trained, among others that could: the reason."""

    reason: str


def explain_validation(error: ValidationError) -> str:
    """One line a wrong field: where it is and what is wrong with it."""
    return "\n".join(
        f"  {'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors(include_url=False)
    )
