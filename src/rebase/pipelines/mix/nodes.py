"""Mix: examples of ReBase, of plain synthesis, labeled inputs and real ones, by weights."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters import Candidate, contamination_filter, protected_texts
from rebase.generation.generate import EXAMPLE_COLUMNS
from rebase.generation.mixing import mix
from rebase.parameters import MixParameters
from rebase.records import Task

#: The origin of examples that people wrote.
REAL = "real_examples"
#: How files of examples are called, beside which others lie: what was rejected, training sets, the mixture itself.
_IS_EXAMPLES = re.compile(r"(?!mixed_)(.*_)?examples")


def mix_examples(
    task: Task,
    example_sets: Mapping[str, Callable[[], pd.DataFrame]],
    real_items: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    parameters: MixParameters,
    contamination_ngram: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Draw the mixture that the weights name; only sets with a weight are read.

    ``real_items`` have queries and answers; those that hold a part of the evaluation set are left out, as rows are.

    Returns ``mixed_examples``, in the form of ``reasoned_examples`` with ``origin``, and the stage's summary. Raises
    RebaseError where a weight names no set of examples, or one that is too small.
    """
    there = {name for name in example_sets if _IS_EXAMPLES.fullmatch(name)} | ({REAL} if len(real_items) else set())
    if missing := [origin for origin in parameters.weights if origin not in there]:
        known = ", ".join(sorted(there)) or "none"
        raise RebaseError(
            f"mix.weights: there are no examples called {', '.join(missing)}; there are {known}. "
            "A weight of 0 leaves an origin out; real_examples need --params=real_source=FILE."
        )
    sets = {origin: example_sets[origin]() for origin in parameters.weights if origin in example_sets}
    rejected: Counter[str] = Counter()
    if REAL in parameters.weights:
        protected = protected_texts(task, evaluation_items["fields"], evaluation_items["references"])
        row_filter = contamination_filter(protected, contamination_ngram)
        is_clean = [
            row_filter(Candidate("", "", "", json.loads(fields), "")) is None for fields in real_items["fields"]
        ]
        rejected["contamination"] = len(is_clean) - sum(is_clean)
        sets[REAL] = as_examples(real_items[is_clean])
    mixed, left_out = mix(sets, parameters.weights, parameters.size, parameters.seed)
    rejected += left_out
    # Not all sets have been reasoned about; train looks at both columns.
    mixed = mixed.reindex(columns=list(dict.fromkeys([*mixed, "rationale", "agreement"])))
    summary = {
        "stage": "mix",
        "in": len(mixed) + rejected.total(),
        "kept": len(mixed),
        "rejected": dict(rejected.most_common()),
        "origins": mixed["origin"].value_counts().to_dict(),
    }
    return mixed, summary


def as_examples(items: pd.DataFrame) -> pd.DataFrame:
    """Items with accepted answers in the columns of ``examples``: the first answer counts, people are the teacher."""
    known = items.assign(
        example_id=items["item_id"],
        row_id=items["item_id"],
        answer=[json.loads(answers)[0] for answers in items["references"]],
        teacher="people",
        cut="[]",
    )
    return known.reindex(columns=EXAMPLE_COLUMNS)
