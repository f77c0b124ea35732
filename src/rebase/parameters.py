"""Typed parameter groups, one a stage: Kedro checks them against the nodes' type hints before any work."""

from typing import Literal

from pydantic import Field

from rebase.records import Strict


class IngestParameters(Strict):
    """``max_rows`` rows of each config are kept, taken by even stride; ``workers`` datasets are read at once."""

    max_rows: int = Field(ge=1)
    workers: int = Field(default=4, ge=1)


class EmbedParameters(Strict):
    """``batch_tokens`` go through the encoder at once. ``cells`` that are embedded: those of ``text``, or ``all``.

    Text is what ``rebase.cells.worth_embedding`` says.
    """

    batch_tokens: int = Field(ge=1)
    cells: Literal["text", "all"]


class IndexParameters(Strict):
    """A segment of the index has about ``segment_datasets``; its Annoy forest has ``trees`` (0: there is none)."""

    segment_datasets: int = Field(ge=1)
    trees: int = Field(ge=0)
    seed: int


class LicencePolicy(Strict):
    """Which licences may be used: ``deny`` wins, then ``allow`` (``*`` allows all); ``unknown`` decides the rest.

    Entries are SPDX ids, compared without regard to case; ``*`` and ``?`` are wildcards.
    """

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    unknown: Literal["allow", "deny"]


class RetrieveParameters(Strict):
    """How many rows, scored how, kept by which gates."""

    top_n: int = Field(ge=1)
    aggregation: Literal["max_of_mean", "mean_of_max"]
    search: Literal["exact", "annoy"]
    annoy_candidates: int = Field(ge=1)
    block_texts: int = Field(ge=1)
    licences: LicencePolicy
    contamination_ngram: int = Field(ge=1)
    near_duplicate: float = Field(gt=0, le=1)
    max_dataset_share: float = Field(gt=0, le=1)
    min_passage_words: int = Field(ge=1)
    max_passage_words: int = Field(ge=1)


class SamplingParameters(Strict):
    """How the teacher draws its replies."""

    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)


class TransformParameters(Strict):
    """One request a row until ``max_examples`` examples have passed; the source row is cut at ``max_row_tokens``.

    ``led`` leads a weak teacher: about a passage it only asks for a given span, elsewhere it only answers
    the row's own text. ``round_trip`` has the teacher answer each new query once more, without the answer: where the
    two answers do not agree, the example is refused.
    """

    max_examples: int = Field(ge=1)
    max_row_tokens: int = Field(ge=1)
    led: bool
    round_trip: bool
    sampling: SamplingParameters


class CotParameters(Strict):
    """``samples`` rationales an example; a majority must reach its answer. ``on_disagreement`` says what if not."""

    samples: int = Field(ge=1)
    on_disagreement: Literal["refuse", "relabel"]
    max_row_tokens: int = Field(ge=1)
    sampling: SamplingParameters


class LoraParameters(Strict):
    """The adapter: rank, scale and dropout of LoRA on every linear projection."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)


class TrainParameters(Strict):
    """QLoRA settings (docs/method.md section 7). ``target`` is what the student learns to write."""

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
    seed: int


class EvaluateParameters(Strict):
    """``limit`` items of the evaluation set (null: all), taken by even stride; bootstrap of the intervals."""

    limit: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    bootstrap_samples: int = Field(ge=1)
    confidence: float = Field(gt=0, lt=1)
    seed: int
