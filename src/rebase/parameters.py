"""Typed parameter groups, one for each stage. Kedro checks them against the nodes' type hints before any work."""

from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from rebase.records import Strict, validated

# The upper bounds are far above sensible values: they stop a slip before it fills the memory or trains for years.
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Repetitions = Annotated[int, Field(ge=1, le=100)]
BatchSize = Annotated[int, Field(ge=1, le=10_000)]
#: Annoy's random generator takes 32 bits with a sign.
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Share = Annotated[float, Field(gt=0, le=1)]
Epochs = Annotated[float, Field(gt=0, le=1000)]
Confidence = Annotated[float, Field(gt=0, lt=1)]


class IngestParameters(Strict):
    """Keep a systematic sample of ``max_rows`` rows of each config.

    With ``remove`` a run removes the datasets that ``sources`` no longer names from the datastore; without, it stops.
    """

    max_rows: Count
    remove: bool = False


class EmbedParameters(Strict):
    """Embed ``cells`` (``text`` or ``all``) in batches of ``batch_tokens``.

    ``rebase.datastore.cells.worth_embedding`` defines which cells are text.
    """

    batch_tokens: Count
    cells: Literal["text", "all"]


class IndexParameters(Strict):
    """The Annoy index of each segment has ``trees``; 0 builds none. The same ``seed`` gives the same trees."""

    trees: int = Field(ge=0, le=1000)
    seed: Seed


class LicensePolicy(Strict):
    """The permitted licenses: ``deny`` comes first, then ``allow``; ``unknown`` decides rows without a license.

    Entries are SPDX ids. Comparison ignores case; ``*`` and ``?`` are wildcards.
    """

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    unknown: Literal["allow", "deny"]


class ContaminationParameters(Strict):
    """A text that shares ``ngram`` words in a row with an evaluation item or an example is contaminated."""

    ngram: int = Field(ge=1, le=1000)


class RetrieveParameters(Strict):
    """The number of rows, how they are scored, and the settings of the filters.

    ``balance_labels``: if the task has labels, the rows of a dataset have its labels in turn. Otherwise S alone
    decides, as published, and ranks all rows with one label of a dataset before those with another.
    ``max_dataset_share``: no dataset has more of the rows, nor, while others are left, of the first of them.
    """

    top_n: Count
    aggregation: Literal["max_of_mean", "mean_of_max"]
    search: Literal["exact", "annoy"]
    annoy_candidates: Count
    licenses: LicensePolicy
    near_duplicate: Share
    max_dataset_share: Share
    balance_labels: bool
    min_passage_words: Tokens
    max_passage_words: Tokens

    @model_validator(mode="after")
    def _some_passages_fit(self) -> "RetrieveParameters":
        if self.min_passage_words > self.max_passage_words:
            raise ValueError("`min_passage_words` is above `max_passage_words`, so no passage would pass")
        return self


class SamplingParameters(Strict):
    """How the teacher samples its responses."""

    temperature: float = Field(ge=0, le=2)
    max_tokens: Tokens


class MapParameters(Strict):
    """Request one mapping for each config with ``min_rows`` retrieved rows; keep ``max_examples`` of all mapped rows.

    A request shows ``shown_rows`` rows of at most ``max_row_tokens``. The teacher answers at most ``audit`` mapped
    queries (0: no audit). The lower end of the interval of its agreement must be above ``min_agreement`` and above the
    share of the most frequent answer. If a mapping has no answer, the teacher labels what is missing to
    ``max_examples``.
    """

    min_rows: Count
    max_examples: Count
    shown_rows: Repetitions
    max_row_tokens: Tokens
    audit: int = Field(ge=0, le=10_000)
    min_agreement: float = Field(ge=0, lt=1)
    seed: Seed
    sampling: SamplingParameters


class TransformParameters(Strict):
    """Send one request for each row until ``max_examples`` examples pass; cut rows at ``max_row_tokens``.

    ``mode`` selects where the examples come from: rows that the teacher rewrites, mapped rows, or both.
    ``guided`` helps a weak teacher: the prompt names the span of the passage to ask about, or the source text to
    answer. With ``consistency_filter`` the teacher answers each new query again without seeing the answer; if the two
    answers differ, the example is rejected. ``patience`` ends a run without an example after so many rows that were
    sent and rejected (null: never).
    """

    mode: Literal["rewrite", "map", "both"] = "rewrite"
    max_examples: Count
    patience: Count | None = 20
    max_row_tokens: Tokens
    guided: bool
    consistency_filter: bool
    sampling: SamplingParameters


class PilotParameters(Strict):
    """Try transform on ``rows`` rows: of the top, the middle and the end of the retrieved ones."""

    rows: Count


class SynthesizeParameters(Strict):
    """Plain synthesis sends as many requests as transform used.

    ``guided`` helps a weak teacher, as in transform: it writes a passage, then a question about a given span of it.
    """

    guided: bool
    sampling: SamplingParameters


class DistilParameters(Strict):
    """The teacher labels a systematic sample of ``max_inputs`` unlabeled inputs (null: all).

    ``style`` selects the prompt. More than half of the ``samples`` labels of an input must agree. ``rounds`` counts the
    rounds of ``chain_of_density``, including the first answer.
    """

    style: Literal["direct", "cot", "chain_of_density"]
    samples: Repetitions
    rounds: int = Field(ge=2, le=100)
    max_inputs: Count | None
    sampling: SamplingParameters


def _positive_weights(weights: dict[Any, float]) -> dict[Any, float]:
    positive = {origin: weight for origin, weight in weights.items() if weight}
    if not positive:
        raise ValueError("at least one weight must be above 0")
    return positive


Origin = Literal["reasoned_examples", "synthesized_examples", "distilled_examples", "real_examples"]


class MixParameters(Strict):
    """A mixture of examples: a weight for each origin, the total ``size`` (null: as many as possible) and the seed.

    Weight 0 leaves an origin out. An environment needs this, because it cannot delete an entry of conf/base.
    """

    weights: Annotated[dict[Origin, Annotated[float, Field(ge=0, le=1_000_000)]], AfterValidator(_positive_weights)]
    size: Count | None
    seed: Seed


class CotParameters(Strict):
    """Write ``samples`` rationales for each example; ``on_disagreement`` applies if no majority reaches its answer."""

    samples: Repetitions
    on_disagreement: Literal["reject", "relabel"]
    max_row_tokens: Tokens
    sampling: SamplingParameters


Rank = Annotated[int, Field(ge=1, le=1024)]
Scale = Annotated[int, Field(ge=1, le=8192)]


class LoraParameters(Strict):
    """The adapter: rank, scale and dropout of LoRA on every linear projection."""

    rank: Rank | Literal["auto"]
    alpha: Scale | Literal["auto"]
    dropout: float = Field(ge=0, lt=1)


def _patterns(value: Any) -> Any:
    """Split a text, or a name that YAML reads as a number, at ``;``: the command line already splits at commas."""
    if not isinstance(value, str | int | float):
        return value
    return [part.strip() for part in str(value).split(";") if part.strip()]


class ExcludeParameters(Strict):
    """Leave examples of these datasets and licenses out of the training set.

    Comparison ignores case; ``*`` and ``?`` are wildcards. On the command line, separate several entries with ``;``:
    ``--params="train.exclude.datasets=NAME;OTHER-*"``. Quote an entry that starts with a wildcard:
    ``--params="train.exclude.licenses='*-nc-*'"``.
    """

    datasets: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    licenses: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()


#: Those of transformers that need no other package.
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit", "adafactor", "adagrad", "rmsprop", "sgd",
]  # fmt: skip


class TrainParameters(Strict):
    """QLoRA settings (docs/method.md section 7). ``target`` is what the student learns to write.

    A step uses ``batch_size * gradient_accumulation`` examples, ``batch_size`` at once. ``packing`` places the
    examples of a batch end to end, without padding. ``validation_share`` of the examples measures the validation
    loss before training and after each epoch; ``auto`` is a tenth if there are 200 examples. ``keep`` selects the last
    adapter, or the one with the best validation loss (the last one without validation).

    What else is ``auto`` follows from the student and the examples (``rebase.student.hyperparameters``). The learning
    rate follows from the student's size and is halved once if the validation loss speaks against it. Fewer examples and
    lower rates get more epochs, up to 3. A step has 4 examples, or 8 where 1,000 or more are trained on, times
    ``gradient_accumulation``; if they do not fit in memory together, a batch is smaller and there are more of them. The
    rank is 16, or more for completions of many tokens, and alpha is twice the rank.
    """

    target: Literal["answer", "rationale_then_answer"]
    four_bit: bool
    lora: LoraParameters
    max_length: int = Field(ge=8, le=1_000_000)
    batch_size: BatchSize | Literal["auto"]
    gradient_accumulation: BatchSize
    learning_rate: Share | Literal["auto"]
    scheduler: Literal["linear", "cosine", "constant"]
    warmup_steps: int = Field(ge=0, le=1_000_000)
    weight_decay: float = Field(ge=0, le=1)
    optimizer: Optimizer
    epochs: Epochs | Literal["auto"]
    checkpoint_steps: Count
    packing: bool
    validation_share: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = 0.0
    keep: Literal["last", "best"] = "last"
    exclude: ExcludeParameters = ExcludeParameters()
    seed: Seed


class ChosenLora(LoraParameters):
    """An adapter's settings without ``auto``."""

    rank: Rank
    alpha: Scale


class ChosenTraining(TrainParameters):
    """What is trained with: no ``auto``, except in ``validation_share``."""

    lora: ChosenLora
    batch_size: BatchSize
    learning_rate: Share
    epochs: Epochs

    @property
    def step_size(self) -> int:
        """How many examples a step uses."""
        return self.batch_size * self.gradient_accumulation


class EvaluateParameters(Strict):
    """Evaluate a systematic sample of ``limit`` items (null: all), with bootstrap intervals.

    For tasks with labels, ``labels_by`` selects the generated text or the most likely label. ``server`` is the address
    of a vLLM server with the student and its adapters; null loads them in this process.
    """

    limit: Count | None
    batch_size: BatchSize
    labels_by: Literal["generation", "likelihood"]
    server: str | None = Field(default=None, pattern=r"^https?://[^/\s]+")
    bootstrap_samples: int = Field(ge=1, le=100_000)
    confidence: Confidence
    seed: Seed

    @model_validator(mode="after")
    def _servers_write(self) -> "EvaluateParameters":
        if self.server and self.labels_by == "likelihood":
            raise ValueError("`labels_by: likelihood` needs the weights in this process: set `server` to null")
        return self


class CompareParameters(Strict):
    """Learning curves: train on each training set cut to each of ``sizes``, with each of ``seeds``.

    ``targets`` sets what the student learns to write from each training set.
    """

    sizes: tuple[Count, ...]
    seeds: tuple[Seed, ...]
    targets: dict[str, Literal["answer", "rationale_then_answer"]]


class StudentsParameters(Strict):
    """``examples`` names the table of examples that all students are trained on."""

    examples: Literal["examples", "reasoned_examples", "synthesized_examples", "distilled_examples", "mixed_examples"]


class JudgeParameters(Strict):
    """Judge a systematic sample of ``limit`` items (null: all), and put ``sheet_items`` of them on the grading sheet.

    ``pair`` names the two systems to compare (null: no comparison).
    """

    limit: Count | None
    pair: tuple[str, str] | None
    sheet_items: Count
    bootstrap_samples: int = Field(ge=1, le=100_000)
    confidence: Confidence
    seed: Seed
    sampling: SamplingParameters

    @model_validator(mode="after")
    def _pair_differs(self) -> "JudgeParameters":
        if self.pair and self.pair[0] == self.pair[1]:
            raise ValueError("`pair` names the same system twice")
        return self


class RunGlobals(Strict):
    """The globals that name a run's inputs. ``datastore`` is the name of folders; ``sources`` may be one text."""

    task: str = Field(min_length=1)
    datastore: str = Field(pattern=r"^\w[\w. -]*$", coerce_numbers_to_str=True)
    sources: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(min_length=1),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ]


def flat_parameters(parameters: Mapping[str, Any], values: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted name; a mapping whose name is in ``values`` counts as one value."""
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        name = f"{prefix}{key}"
        is_group = isinstance(value, Mapping) and name not in values
        flat |= flat_parameters(value, values, f"{name}.") if is_group else {name: value}
    return flat


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise RebaseError if a parameter of a group in this module is unknown, of a wrong type or out of its bounds."""
    kinds: dict[str, Any] = {
        name.removesuffix("Parameters").lower(): kind for name, kind in globals().items() if name.endswith("Parameters")
    }
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items() if name in parameters}
    given = {name: parameters[name] for name in fields}
    validated(create_model("Groups", **fields), given, "Parameters (--params, or parameters*.yml) are wrong:")


def check_globals(settings: Mapping[str, Any]) -> None:
    """Raise RebaseError if a global of ``RunGlobals`` has a wrong type or is no name."""
    given = {name: settings[name] for name in RunGlobals.model_fields}
    validated(RunGlobals, given, "Globals (--params, or globals.yml) are wrong:")
