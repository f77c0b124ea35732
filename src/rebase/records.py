"""What the stages pass on: the columns of every table, and typed records."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rebase.errors import RebaseError, did_you_mean
from rebase.text import NUMBER, is_python, listed_options, normalize, split_reference, template_columns

AnswerType = Literal["span", "label", "number", "text", "code"]
Metric = Literal["exact_match", "f1", "accuracy", "numeric_match", "chrf", "rouge_l"]

#: The names of tasks, as a pattern.
TASK_NAME = r"^[a-z0-9][a-z0-9_]*$"
#: The value of a task's ``language`` that takes rows of every language.
ANY_LANGUAGE = "any"
#: The codes of the languages that the language filter can tell, which are those of py3langid.
LANGUAGES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo "
    "es et eu ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr "  # codespell:ignore fo
    "ht hu hy id ig is it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv "
    "mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh "
    "se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo "  # codespell:ignore te
    "wa wuu xh yo yue zh zu"
)
#: The ``teacher`` of examples with the labels that people gave.
PEOPLE = "people"

# Columns of the tables, by catalog entry. A column that holds a list or a mapping holds it as JSON text.
#: ``rows``: the ingested rows; ``row`` is the row itself.
ROW_COLUMNS = ["row_id", "dataset", "config", "split", "revision", "row_index", "license", "row", "content_hash"]
#: ``cards``: one line per dataset. Its rows are stored under ``duplicate_of`` if that is not empty; ``duplicates`` are
#: the datasets whose rows are stored under this one.
CARD_COLUMNS = [
    "dataset", "description", "license", "languages", "revision", "rows_in", "rows_kept", "duplicate_of", "duplicates",
]  # fmt: skip
#: ``ingest_rejected``: ``rows`` counts them.
INGEST_REJECTED_COLUMNS = ["dataset", "config", "reason", "rows", "detail"]
#: ``evaluation_items``.
EVALUATION_COLUMNS = ["item_id", "fields", "query", "references"]
_SCORE_COLUMNS = ["score", "score_dataset", "score_query", "score_answer", "query_column", "answer_column"]
#: ``retrieved``: rows with their rank, scores and best cells.
RETRIEVED_COLUMNS = [
    "rank", *ROW_COLUMNS, *_SCORE_COLUMNS, "query_value", "answer_value", "passage", "passage_column", "passage_choice",
    "duplicates",
]  # fmt: skip
#: ``retrieval_rejected``.
RETRIEVAL_REJECTED_COLUMNS = ["rank", "row_id", "dataset", "score", "reason", "detail"]
#: The source row of an example: its columns of ``retrieved``.
PROVENANCE_COLUMNS = [
    "row_id", "dataset", "config", "revision", "row_index", "license", "rank", *_SCORE_COLUMNS,
]  # fmt: skip
#: ``examples``, ``mapped_examples`` and ``synthesized_examples``; a synthesized one has no source row.
EXAMPLE_COLUMNS = [
    "example_id", *PROVENANCE_COLUMNS, "mapping_id", "fields", "query", "answer", "cut", "teacher", "prompt_hash",
    "response_key", "input_tokens", "output_tokens", "dollars",
]  # fmt: skip
#: ``mappings``: what became of each config. ``passed`` of its rows can be examples, ``used`` are. ``agreement`` is
#: the share of the ``audited`` ones on which the teacher agrees, ``baseline`` that of the most frequent answer.
MAPPING_COLUMNS = [
    "mapping_id", "dataset", "config", "state", "detail", "mapping", "rows", "passed", "used", "audited", "agreement",
    "low", "high", "baseline", "license", "written_by", "response_key", "requests", "input_tokens", "output_tokens",
    "dollars",
]  # fmt: skip
#: ``reasoned_examples``.
REASONED_COLUMNS = [*EXAMPLE_COLUMNS, "rationale", "agreement"]
#: ``distilled_examples``; ``drafts`` are the rounds of ``chain_of_density``.
DISTILLED_COLUMNS = [*REASONED_COLUMNS, "drafts"]
#: ``examples_rejected`` and the rejected items of the other stages that make examples.
REJECTED_COLUMNS = ["row_id", "dataset", "rank", "reason", "detail", "response_key", "text"]
#: ``pilot``: rows (``position`` counts from 1) with their example, or the reason why there is none.
PILOT_COLUMNS = [
    "part", "position", "rank", "row_id", "dataset", "license", "row", "passage", "fields", "answer", "reason",
    "detail", "prompt", "response", "input_tokens", "output_tokens", "dollars",
]  # fmt: skip
#: ``training_set``: what the student reads and what it learns to write.
TRAINING_COLUMNS = ["example_id", "prompt", "completion"]
#: ``training_log``: one line per step; ``students_training_log`` has the student first.
TRAINING_LOG_COLUMNS = [
    "step", "epoch", "loss", "learning_rate", "token_accuracy", "gradient_norm", "validation_loss",
]  # fmt: skip
STUDENTS_LOG_COLUMNS = ["student", *TRAINING_LOG_COLUMNS]
#: ``generations`` and ``teacher_generations``: one line per system and item.
GENERATION_COLUMNS = ["system", "item_id", "prompt", "raw_output", "references"]
#: ``predictions``; one more column per metric of the task, 0 to 1.
PREDICTION_COLUMNS = [*GENERATION_COLUMNS, "extracted"]
#: ``item_scores`` begins with these; one more column per metric of the task and the lenient score, 0 to 1.
ITEM_SCORE_COLUMNS = ["system", "item_id"]
#: ``curve`` of a training set: one line per run, with the adapter's folder.
CURVE_COLUMNS = ["examples", "seed", "folder", "base_model"]
_INTERVAL_COLUMNS = ["value", "low", "high"]
#: ``curves``: one line per run and metric, in percent.
CURVES_COLUMNS = ["training_set", "examples", "seed", "metric", *_INTERVAL_COLUMNS]
#: ``comparison``: one line per system and metric, in percent. ``requests`` and ``dollars`` are the teacher's,
#: ``minutes`` those of training; the last columns are over all runs on the full training set.
COMPARISON_COLUMNS = [
    "system", "metric", *_INTERVAL_COLUMNS, "items", "examples", "requests", "dollars", "minutes", "seeds",
    "seed_mean", "seed_deviation",
]  # fmt: skip
#: ``students_table``: one line per student and metric, in percent; the gain is paired.
STUDENTS_COLUMNS = [
    "student", "revision", "metric", "before", "before_low", "before_high", "after", "after_low", "after_high",
    "gain", "gain_low", "gain_high", "gain_p", "items", "examples", "trainable_parameters", "minutes",
]  # fmt: skip
#: ``teacher_usage``: one line per stage, and the total. ``used`` counts bought and cached responses; latencies are in
#: seconds.
TEACHER_USAGE_COLUMNS = [
    "stage", "used", "responses", "cached", "failed", "repaired", "over_budget", "input_tokens", "output_tokens",
    "dollars", "used_dollars", "p50_seconds", "p95_seconds", "responses_per_minute", "estimated_requests_low",
    "estimated_requests_high", "estimated_dollars_low", "estimated_dollars_high",
]  # fmt: skip
#: ``embedding_map``: one line per point; ``cosine`` and ``nearest_id`` are an evaluation item's.
EMBEDDING_MAP_COLUMNS = ["id", "dataset", "text", "kind", "cosine", "nearest_id", "x", "y"]
#: ``judgments`` begins with these; the grades and costs follow.
JUDGMENT_COLUMNS = ["kind", "item_id", "system", "first", "second"]
#: ``judge_rejected``.
JUDGE_REJECTED_COLUMNS = [*JUDGMENT_COLUMNS, "reason", "detail", "response_key", "text"]
#: ``grading_key``: which system wrote which answer on the grading sheet.
KEY_COLUMNS = ["answer_id", "item_id", "system", "query", "answer"]
#: ``grades`` and ``grades_rejected``.
GRADE_COLUMNS = ["person", "answer_id", "item_id", "criterion", "grade"]
REJECTED_GRADE_COLUMNS = ["person", "file", "row", "answer_id", "criterion", "reason", "detail"]


class Strict(BaseModel):
    """A record that rejects unknown fields and infinite numbers, and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _rejects_a_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        types = {getattr(kind, "__origin__", kind) for kind in get_args(annotation) or (annotation,)}
        if isinstance(value, bool) and not types.isdisjoint({int, float}):
            raise ValueError("Input should be a number, not true or false")
        return value


class AnswerSpec(Strict):
    """The type of a task's answers; only the type ``label`` has ``labels``."""

    type: AnswerType
    labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _labels_fit_type(self) -> "AnswerSpec":
        if (self.type == "label") != bool(self.labels):
            raise ValueError("`labels` must list the allowed answers when type is `label`, and only then")
        return self


class EvaluationSpec(Strict):
    """The source of the evaluation items, and how its columns map to the task's fields.

    ``source`` is a file (JSONL, CSV or Parquet) or a hub id. ``fields`` maps each field of the query, and
    ``references``, to a column (``answers.text`` for a nested one). ``label_names`` names class labels that are
    integers. Where a column holds the working as well, the answer is what follows the last ``answer_after``.
    ``outside_labels`` allows answers that are none of the labels: some benchmarks have items that no system can get
    right, and published scores count them.
    """

    source: str
    split: str = "test"
    config: str | None = None
    revision: str | None = None
    fields: dict[str, str]
    label_names: tuple[str, ...] = ()
    answer_after: str | None = None
    outside_labels: bool = False


def _as_cells(values: Any) -> Any:
    """The keys as cells have them: YAML reads 0, 1 and true as numbers and truth values."""
    if not isinstance(values, Mapping):
        return values
    return {str(key).lower() if isinstance(key, bool) else str(key): item for key, item in values.items()}


class DatasetMapping(Strict):
    """How the columns of a dataset become the fields and the answer of a task.

    ``fields`` and ``answer`` are templates: a column, or a text with columns in braces. ``column|2`` is the second item
    of a list, ``column|options`` the list as lettered options. ``values`` maps the answer's values to labels, or in
    tasks without labels to templates ("A" to ``option_a``). Without ``answer`` the teacher answers the mapped queries.
    Without ``config`` the mapping is for all configs. ``audit`` has a mapping that a person wrote audited, too.
    """

    dataset: str
    config: str | None = None
    fields: dict[str, str]
    answer: str | None = None
    values: Annotated[dict[str, str], BeforeValidator(_as_cells)] = {}
    audit: bool = False


def _tells(reference: str, answer: str) -> bool:
    """Whether a reference to a column tells the answer, which is another reference.

    Two items of a list may be a question and its answer. The first one is an answer of which the others are variants.
    """
    (column, part), (answer_column, answer_part) = map(split_reference, (reference, answer))
    are_items = part.isdecimal() and answer_part.isdecimal()
    return column == answer_column and not (are_items and answer_part not in ("1", part))


class Task(Strict):
    r"""A task, as its YAML file defines it.

    ``query`` is a template such as ``"{context}\n\nQuestion: {question}"``; each example gives its fields and
    the answer. ``passage`` names the field that is copied word for word from a source row (a reading passage):
    the teacher writes the other fields and the answer. ``groups`` names the groups whose mean score includes the task.
    ``language`` is the ISO 639 code of the rows to use, or ``any``; if None, the examples' language is detected.
    ``mappings`` are the mappings of datasets that a person wrote or corrected.
    """

    name: str = Field(pattern=TASK_NAME)
    version: int = Field(ge=1)
    instruction: str = Field(min_length=1)
    query: str = Field(min_length=1)
    passage: str | None = None
    examples: tuple[dict[str, str], ...] = Field(min_length=1)
    answer: AnswerSpec
    metrics: tuple[Metric, ...] = Field(min_length=1)
    cot: bool = False
    language: str | None = None
    exclude: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    mappings: tuple[DatasetMapping, ...] = ()
    evaluation: EvaluationSpec
    max_new_tokens: int = Field(default=32, ge=1, le=1_000_000)

    @field_validator("query")
    @classmethod
    def _has_names_in_braces(cls, query: str) -> str:
        for _, name, form, conversion in Formatter().parse(query):
            if name is not None and (not name or name.isdigit() or {".", "["} & set(name) or form or conversion):
                raise ValueError("braces must hold the name of a field alone, as in {question}; others are {{ and }}")
        return query

    @field_validator("language")
    @classmethod
    def _can_be_told(cls, language: str | None) -> str | None:
        """The code that the language filter uses; with another one it would reject every row."""
        code = "no" if language == "nb" else language
        codes = LANGUAGES.split()
        if code is not None and code not in (ANY_LANGUAGE, *codes):
            raise ValueError(f"{code!r} is no language that rebase can tell, nor `any`. {did_you_mean(code, codes)}")
        return code

    @model_validator(mode="after")
    def _fields_agree(self) -> "Task":
        fields = set(self.query_fields)
        if not fields:
            raise ValueError("`query` must name at least one field in braces, such as {question}")
        if self.passage is not None and self.passage not in fields:
            raise ValueError(f"`passage` names {self.passage!r}, which is not a field of `query` ({sorted(fields)})")
        if "numeric_match" in self.metrics and self.answer.type != "number":
            raise ValueError(f"`numeric_match` compares numbers: it needs the type `number`, not `{self.answer.type}`")
        needed = fields | {"answer"} | ({"rationale"} if self.cot else set())
        for number, example in enumerate(self.examples):
            if set(example) != needed:
                raise ValueError(f"examples[{number}] must have exactly the fields {sorted(needed)}")
            if problem := self._answer_problem(example):
                raise ValueError(f"examples[{number}].answer {problem}")
        if "answers" in self.evaluation.fields:
            raise ValueError("`evaluation.fields.answers` is now called `evaluation.fields.references`: rename it")
        if set(self.evaluation.fields) != fields | {"references"}:
            raise ValueError(f"`evaluation.fields` must map exactly {sorted(fields | {'references'})}")
        for number, mapping in enumerate(self.mappings):
            problem = self.mapping_problem(mapping)
            if self.answer.labels and len(set(mapping.values.values())) == 1:
                problem = problem or "all values have one label"
            # An example has the id of its row, which two mappings would give to two examples.
            earlier = {other.config for other in self.mappings[:number] if other.dataset == mapping.dataset}
            if earlier and (mapping.config is None or not earlier.isdisjoint({mapping.config, None})):
                problem = problem or "an earlier mapping is of the same config: keep one of them"
            if problem:
                raise ValueError(f"mappings[{number}], of {mapping.dataset}: {problem}")
        return self

    def mapping_problem(self, mapping: DatasetMapping) -> str | None:
        """Return why a mapping does not fit the task, whatever the rows are; None if it fits."""
        columns = [frozenset(template_columns(template)) for template in mapping.fields.values()]
        if set(mapping.fields) != set(self.query_fields):
            return f"`fields` must have exactly {sorted(self.query_fields)}"
        if len(set(columns)) < len(columns):
            return "two fields have the same column"
        if mapping.answer is None:
            return "`values` and `audit` need an `answer`" if mapping.values or mapping.audit else None
        for answer, column in product(template_columns(mapping.answer), sorted(frozenset().union(*columns))):
            if _tells(column, answer):
                return f"{column!r} in a field tells the answer, {answer!r}: use another column"
        outside = sorted(set(mapping.values.values()) - set(self.answer.labels))
        if self.answer.labels and outside:
            return f"{outside[0]!r} is not one of the labels {list(self.answer.labels)}"
        return None

    def _answer_problem(self, example: Mapping[str, str]) -> str | None:
        """Return why the example's answer does not fit the type of the task's answers; None where it fits."""
        answer = example["answer"]
        if not answer.strip():
            return "is empty"
        if self.answer.labels and answer not in self.answer.labels:
            return f"{answer!r} is not one of the labels {list(self.answer.labels)}"
        if self.answer.type == "number" and not NUMBER.fullmatch(answer):
            return f"{answer!r} is not a number such as 1200, 1,200 or -0.5: write it without a unit or currency"
        passage = normalize(example[self.passage]) if self.passage else ""
        if self.answer.type == "span" and self.passage and f" {normalize(answer)} " not in f" {passage} ":
            return f"{answer!r} does not occur in `{self.passage}`, from which a span is copied"
        return None

    @property
    def query_fields(self) -> tuple[str, ...]:
        """The fields of the query template, in order."""
        return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.query) if name))

    @property
    def written_fields(self) -> tuple[str, ...]:
        """The query's fields that the teacher writes: all but the passage."""
        return tuple(name for name in self.query_fields if name != self.passage)

    @property
    def lists_options(self) -> bool:
        """Whether the labels are letters of options that each query lists: those of the task's examples do."""
        return self.answer.type == "label" and all(
            {example["answer"].strip("()")} < listed_options(self.render_query(example)) for example in self.examples
        )

    @property
    def answers_python(self) -> bool:
        """Whether the answers are Python code: those of the task's examples are."""
        return self.answer.type == "code" and all(is_python(example["answer"]) for example in self.examples)

    def render_query(self, fields: Mapping[str, str]) -> str:
        """Fill the query template."""
        return self.query.format(**{name: fields[name] for name in self.query_fields})

    @classmethod
    def parse(cls, data: Any, where: str) -> "Task":
        """Validate the content of a task file; a RebaseError names the file and each wrong field.

        Number examples lose their thousands separators.
        """
        task: Task = validated(cls, data, f"{where}: not a valid task.")
        if task.answer.type != "number":
            return task
        examples = tuple({**example, "answer": example["answer"].replace(",", "")} for example in task.examples)
        return task.model_copy(update={"examples": examples})


class DatasetCard(Strict):
    """The description of a dataset, from its card's front matter and text, or from the hub's dataset info."""

    dataset: str
    description: str = ""
    license: str = "unknown"
    languages: tuple[str, ...] = ()
    revision: str = ""


#: What the summary of each stage has. ``kept`` and the counts of ``rejected``, by reason, add up to ``in``; ``seconds``
#: is the stage's own time.
StageSummary = TypedDict(
    "StageSummary", {"stage": str, "in": int, "kept": int, "rejected": dict[str, int], "seconds": float}
)


def summarize_stage(
    stage: str, *, kept: int, rejected: Mapping[str, int], seconds: float, **details: Any
) -> dict[str, Any]:
    """Build the summary of a stage, which is saved as JSON: a ``StageSummary`` and the stage's own ``details``.

    ``rejected`` is sorted, the most frequent reason first; reasons without a count are left out. Of the details,
    ``dtype`` is the number format of the models that ran, ``usage`` the teacher's requests and costs
    (``Usage.summary``).
    """
    counts = {reason: count for reason, count in Counter(rejected).most_common() if count}
    summary: StageSummary = {
        "stage": stage,
        "in": kept + sum(counts.values()),
        "kept": kept,
        "rejected": counts,
        "seconds": round(seconds, 1),
    }
    return {**summary, **details}


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter: a folder with its config, safetensors and model card."""

    folder: Path
    base_model: str


@dataclass(frozen=True)
class Untrained:
    """The reason why an adapter could not be trained; saved in its place."""

    reason: str


#: The bounds of a number in a JSON schema.
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}


def validated(kind: Any, data: Any, problem: str) -> Any:
    """Validate ``data`` as a pydantic type.

    The RebaseError says ``problem``, then each wrong field on a line: what is wrong, and what is allowed.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        fields = flat_schema(adapter.json_schema())
        items = [item for item in error.errors(include_url=False) if not _lost_wrong_items(item)]
        lines = dict(_problem_line(item, fields) for item in reversed(items))
        raise RebaseError("\n".join([problem, *reversed(lines.values())])) from None


def _lost_wrong_items(item: Mapping[str, Any]) -> bool:
    """Whether a list is too short only because each wrong item, which has an error of its own, was left out."""
    return item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]


def _problem_line(item: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[str, str]:
    """The wrong field, and the line about it."""
    path = ".".join(map(str, item["loc"]))
    field = ".".join(part for part in item["loc"] if isinstance(part, str))  # Without positions in lists.
    group = field.rpartition(".")[0]
    if item["type"] == "extra_forbidden":
        prefix = f"{group}." if group else ""
        siblings = {prefix + name.removeprefix(prefix).partition(".")[0] for name in fields if name.startswith(prefix)}
        return path, f"  {path} is unknown. {did_you_mean(field, siblings)}"
    if field not in fields and "anyOf" in fields.get(group, {}):
        path = path.rpartition(".")[0]  # The last part is one of the field's types.
    # An entry of a list or mapping is described with it.
    allowed = describe_field(fields.get(field) or fields.get(group, {}))
    message = item["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    message = message.replace("valid tuple", "valid list")
    if item["type"] == "literal_error":
        message += f", not {item['input']!r:.60}"
    elif item["type"] == "model_type":
        message = "must be a mapping of fields (NAME: VALUE)"
    elif item["type"] == "string_type" and isinstance(item["input"], int | float | date):
        message += f", not {item['input']} as YAML reads it: write it in quotes"
    bounds = f" (allowed: {allowed})" if any(map(allowed.count, "≥>≤<")) else ""
    return path, f"  {path or 'the file'}: {message}{bounds}"


def flat_schema(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The fields of a model's JSON schema by dotted names; a list of models is followed by their fields."""

    def flatten(model: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, field in model.get("properties", {}).items():
            reference = field.get("$ref") or field.get("items", {}).get("$ref", "")
            inner = schema.get("$defs", {}).get(reference.rpartition("/")[2])
            if "$ref" not in field:
                yield prefix + name, field
            if inner:
                yield from flatten(inner, f"{prefix}{name}.")

    return dict(flatten(schema, ""))


def describe_field(field: Mapping[str, Any]) -> str:
    """A field's type and bounds in words, from its JSON schema."""
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    if "anyOf" in field:
        return " or ".join(map(describe_field, field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return "list of " + describe_field(field.get("items") or field["prefixItems"][0])
    if field.get("type") == "object":
        # A mapping whose keys have a pattern has its values there.
        values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
        return f"names to {'any value' if values is True else describe_field(values)}"
    kind = field.get("type", "")
    bounds = [f"{sign} {field[key]:,}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join([_TYPES.get(kind, kind), ", ".join(bounds)]).strip()
