"""Typed parameter groups, one a stage: Kedro checks them against the nodes' type hints before any work."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rebase.records import Strict


class IngestParameters(Strict):
    """``max_rows`` rows of each config are kept, taken by even stride; ``workers`` datasets are read at once."""

    max_rows: int = Field(ge=1)
    workers: int = Field(default=4, ge=1)


class EmbedParameters(Strict):
    """``batch_tokens`` go through the encoder at once. ``cells`` that are embedded: those of ``text``, or ``all``.

    Text is what ``rebase.datastore.cells.worth_embedding`` says.
    """

    batch_tokens: int = Field(ge=1)
    cells: Literal["text", "all"]


class IndexParameters(Strict):
    """A segment of the index has about ``segment_datasets``; its Annoy forest has ``trees`` (0: there is none)."""

    segment_datasets: int = Field(ge=1)
    trees: int = Field(ge=0)
    seed: int


class LicensePolicy(Strict):
    """Which licenses may be used: ``deny`` wins, then ``allow`` (``*`` allows all); ``unknown`` decides the rest.

    Entries are SPDX ids, compared without regard to case; ``*`` and ``?`` are wildcards.
    """

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    unknown: Literal["allow", "deny"]


class RetrieveParameters(Strict):
    """How many rows, scored how, kept by which filters."""

    top_n: int = Field(ge=1)
    aggregation: Literal["max_of_mean", "mean_of_max"]
    search: Literal["exact", "annoy"]
    annoy_candidates: int = Field(ge=1)
    block_texts: int = Field(ge=1)
    licenses: LicensePolicy
    contamination_ngram: int = Field(ge=1)
    near_duplicate: float = Field(gt=0, le=1)
    max_dataset_share: float = Field(gt=0, le=1)
    min_passage_words: int = Field(ge=1)
    max_passage_words: int = Field(ge=1)


class SamplingParameters(Strict):
    """How the teacher draws its responses."""

    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)


class TransformParameters(Strict):
    """One request a row until ``max_examples`` examples have passed; the source row is cut at ``max_row_tokens``.

    ``guided`` leads a weak teacher: about a passage it only asks for a given span, elsewhere it only answers
    the row's own text. ``consistency_filter`` has the teacher answer each new query once more, without the answer: where the
    two answers do not agree, the example is rejected.
    """

    max_examples: int = Field(ge=1)
    max_row_tokens: int = Field(ge=1)
    guided: bool
    consistency_filter: bool
    sampling: SamplingParameters


class SynthesizeParameters(Strict):
    """Plain synthesis may spend as much as transform used: as many ``requests``, or ``dollars``.

    ``guided`` leads a weak teacher as transform does: it writes a passage, and is then asked for a question to a given
    span of it.
    """

    spend: Literal["requests", "dollars"]
    guided: bool
    sampling: SamplingParameters


class DistilParameters(Strict):
    """The teacher labels the task's own inputs: at most ``max_inputs`` of them, taken by even stride (null: all).

    ``style`` says how it is asked. Of ``samples`` labels more than half must be one, and so must the answers that
    ``cot`` leads to. ``rounds`` are those of ``chain_of_density``, the first answer included.
    """

    style: Literal["direct", "cot", "chain_of_density"]
    samples: int = Field(ge=1)
    rounds: int = Field(ge=2)
    max_inputs: int | None = Field(ge=1)
    sampling: SamplingParameters


def _above_zero(weights: dict[str, float]) -> dict[str, float]:
    above = {origin: weight for origin, weight in weights.items() if weight}
    if not above:
        raise ValueError("at least one must be above 0")
    return above


class MixParameters(Strict):
    """A mixture of examples: the origins' ``weights``, how many in all (null: as many as there are), and the draw.

    An origin of weight 0 is left out: of those that conf/base names none can be taken away otherwise.
    """

    weights: Annotated[dict[str, Annotated[float, Field(ge=0)]], AfterValidator(_above_zero)]
    size: int | None = Field(ge=1)
    seed: int


class CotParameters(Strict):
    """``samples`` rationales an example; a majority must reach its answer. ``on_disagreement`` says what if not."""

    samples: int = Field(ge=1)
    on_disagreement: Literal["reject", "relabel"]
    max_row_tokens: int = Field(ge=1)
    sampling: SamplingParameters


class LoraParameters(Strict):
    """The adapter: rank, scale and dropout of LoRA on every linear projection."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)


def _patterns(value: Any) -> Any:
    """A list, or a text in which ``;`` divides: the command line takes no list, since it divides at commas."""
    return (
        value if isinstance(value, list | tuple) else [part.strip() for part in str(value).split(";") if part.strip()]
    )


class ExcludeParameters(Strict):
    """What is taken out of the examples before training, though they are paid for: datasets and licenses.

    Entries are names compared without regard to case; ``*`` and ``?`` are wildcards. On the command line a text says
    several, ``--params="train.exclude.datasets=NAME;OTHER-*"``; one that begins with a wildcard stands in quotes of its
    own, ``--params="train.exclude.licenses='*-nc-*'"``.
    """

    datasets: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()
    licenses: Annotated[tuple[str, ...], BeforeValidator(_patterns)] = ()


class TrainParameters(Strict):
    """QLoRA settings (docs/method.md section 7). ``target`` is what the student learns to write.

    A step takes ``batch_size * gradient_accumulation`` examples, ``batch_size`` at once. ``packing`` lays those that
    go through at once end to end, without padding. ``validation_share`` of the examples is held out: the loss on
    them is measured after each epoch, and ``keep`` says whether the last adapter or the one best on them is kept.
    """

    target: Literal["answer", "rationale_then_answer"]
    four_bit: bool
    lora: LoraParameters
    max_length: int = Field(ge=8)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    scheduler: Literal["linear", "cosine", "constant"]
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    optimizer: str
    epochs: float = Field(gt=0)
    checkpoint_steps: int = Field(ge=1)
    packing: bool
    validation_share: float = Field(default=0, ge=0, lt=1)
    keep: Literal["last", "best"] = "last"
    exclude: ExcludeParameters = ExcludeParameters()
    seed: int

    @model_validator(mode="after")
    def _best_needs_evaluation(self) -> "TrainParameters":
        if self.keep == "best" and not self.validation_share:
            raise ValueError("`keep: best` needs `validation_share` above 0: the examples that decide what is best")
        return self


class EvaluateParameters(Strict):
    """``limit`` items of the evaluation set (null: all), taken by even stride; bootstrap of the intervals.

    ``labels_by`` says how tasks with labels are answered: by what is written, or by the likeliest label. ``server`` is
    the address of a server that holds the student and its adapters (vLLM); null loads them here.
    """

    limit: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    labels_by: Literal["generation", "likelihood"]
    server: str | None = None
    bootstrap_samples: int = Field(ge=1)
    confidence: float = Field(gt=0, lt=1)
    seed: int

    @model_validator(mode="after")
    def _servers_write(self) -> "EvaluateParameters":
        if self.server and self.labels_by == "likelihood":
            raise ValueError("`labels_by: likelihood` needs the weights here: set `server` to null")
        return self


class CompareParameters(Strict):
    """Learning curves: each training set is cut to each of ``sizes``, and trained on with each of ``seeds``.

    ``targets`` says what the student learns to write from which training set.
    """

    sizes: tuple[Annotated[int, Field(ge=1)], ...]
    seeds: tuple[int, ...]
    targets: dict[str, Literal["answer", "rationale_then_answer"]]


class JudgeParameters(Strict):
    """``limit`` items (null: all) are judged, ``sheet_items`` of them put on the grading sheet, by even stride.

    ``pair`` names the two systems whose answers are compared (null: none are).
    """

    limit: int | None = Field(ge=1)
    pair: tuple[str, str] | None
    sheet_items: int = Field(ge=1)
    bootstrap_samples: int = Field(ge=1)
    confidence: float = Field(gt=0, lt=1)
    seed: int
    sampling: SamplingParameters

    @model_validator(mode="after")
    def _pair_differs(self) -> "JudgeParameters":
        if self.pair and self.pair[0] == self.pair[1]:
            raise ValueError("`pair` names one system twice")
        return self
