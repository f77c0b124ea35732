"""Names of earlier versions: parameters, globals and catalog entries, with their names today."""

from collections.abc import Mapping
from typing import Any

from rebase.errors import RebaseError
from rebase.parameters import flat_parameters

#: The current name of each old one; empty for what no longer exists.
OLD_NAMES = {
    # parameters
    "compare.targets.labelled": "compare.targets.distilled",
    "index.segment_datasets": "",
    "ingest.workers": "",
    "mix.weights.labelled_examples": "mix.weights.distilled_examples",
    "retrieve.block_texts": "",
    "retrieve.contamination_ngram": "contamination.ngram",
    "retrieve.licences": "retrieve.licenses",
    "synthesize.led": "synthesize.guided",
    "synthesize.spend": "",
    "train.evaluation_share": "train.validation_share",
    "train.exclude.licences": "train.exclude.licenses",
    "transform.led": "transform.guided",
    "transform.round_trip": "transform.consistency_filter",
    # globals, and what --params sets of the catalog
    "replies": "responses",
    "students_examples": "students.examples",
    "teacher.in_flight": "teacher.max_concurrency",
    "teacher.input_tokens_per_minute": "",
    "teacher.output_tokens_per_minute": "",
    "teacher.requests_per_minute": "",
    # catalog entries
    "all_predictions": "item_scores",
    "evaluation_set": "evaluation_rows (what is read) and evaluation_items (what the stages use)",
    "example_sets": "",
    "examples_refused": "examples_rejected",
    "forest": "annoy_index",
    "grades_refused": "grades_rejected",
    "ingest_refused": "ingest_rejected",
    "judge_refused": "judge_rejected",
    "judgements": "judgments",
    "label_prompt": "distil_prompt",
    "labelled_examples": "distilled_examples",
    "labelled_refused": "distilled_rejected",
    "reasoning_refused": "reasoning_rejected",
    "retrieval_refused": "retrieval_rejected",
    "synthesized_refused": "synthesized_rejected",
    "unlabelled": "unlabeled_inputs",
}


def reject_old_names(settings: Mapping[str, Any], where: str) -> None:
    """Raise RebaseError if nested ``settings`` use an old name; the message gives the new one."""
    given = flat_parameters(settings, OLD_NAMES)
    old_names = [name for name in OLD_NAMES if name in given]
    if old_names:
        changes = (
            f"{name} is now called {OLD_NAMES[name]}" if OLD_NAMES[name] else f"{name} no longer exists: remove it"
            for name in old_names
        )
        raise RebaseError(f"{where}: {'; '.join(changes)}.")
