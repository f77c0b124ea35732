"""Mix: retrieved, synthesized, labeled and real examples in one training set, by weights."""

import json
import time
from collections import Counter
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.filters.contamination import ContaminationFilter
from rebase.generation.mapping import spell_number
from rebase.generation.mixing import mix
from rebase.generation.verification import ProtectedTexts, reject_answer, reject_input, tidy_answer
from rebase.parameters import ContaminationParameters, MixParameters
from rebase.records import EXAMPLE_COLUMNS, PEOPLE, Task, summarize_stage

#: How to make each origin that has no examples.
_REMEDIES = {
    "reasoned_examples": "run the pipelines transform and cot",
    "synthesized_examples": "run the pipeline synthesize",
    "distilled_examples": "run the pipeline distil",
    "real_examples": "name their file or hub id: --params=real_source=FILE",
}


def mix_examples(
    task: Task,
    reasoned_examples: pd.DataFrame,
    synthesized_examples: pd.DataFrame,
    distilled_examples: pd.DataFrame,
    real_items: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    parameters: MixParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Draw the mixture by ``weights``. Tables of origins without a weight may be empty.

    ``real_items`` have queries and references; contaminated ones are left out, and those whose answer does not
    fit the task.

    Returns ``mixed_examples``, in the form of ``reasoned_examples`` with ``origin``, and the summary. Raises
    RebaseError if an origin with a weight has no examples, or too few.
    """
    started = time.monotonic()
    tables: dict[str, pd.DataFrame] = {
        "reasoned_examples": reasoned_examples,
        "synthesized_examples": synthesized_examples,
        "distilled_examples": distilled_examples,
        "real_examples": real_items,
    }
    if missing := [origin for origin in parameters.weights if tables[origin].empty]:
        remedies = "\n".join(f"  {origin}: {_REMEDIES[origin]}" for origin in missing)
        raise RebaseError(
            f"mix.weights: there are no {' and no '.join(missing)} of task {task.name!r}. Set the weight to 0, or\n"
            f"{remedies}"
        )
    rejected: Counter[str] = Counter()
    if "real_examples" in parameters.weights:
        contaminated = ContaminationFilter.of_queries(task, evaluation_items, contamination.ngram)
        protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)
        real = as_examples(task, real_items)
        reasons = [
            _reject_real(task, json.loads(fields), answer, contaminated, protected)
            for fields, answer in zip(real["fields"], real["answer"], strict=True)
        ]
        rejected = Counter(real_items.attrs.get("rejected", {})) + Counter(filter(None, reasons))
        tables["real_examples"] = real[[reason is None for reason in reasons]]
    mixed, outside = mix(tables, parameters.weights, parameters.size, parameters.seed)
    # Not all examples have a rationale; train reads both columns.
    mixed = mixed.reindex(columns=list(dict.fromkeys([*mixed, "rationale", "agreement"])))
    summary = summarize_stage(
        "mix",
        kept=len(mixed),
        rejected=rejected + outside,
        seconds=time.monotonic() - started,
        origins=mixed["origin"].value_counts().to_dict(),
    )
    return mixed, summary


def as_examples(task: Task, items: pd.DataFrame) -> pd.DataFrame:
    """Items in the columns of ``examples``: the answer is the first reference, tidied, and the teacher is people."""

    def answer(fields: str, references: str) -> str:
        first: str = json.loads(references)[0]
        return tidy_answer(
            task, json.loads(fields), spell_number(task, first) if task.answer.type == "number" else first
        )

    examples = items.assign(
        example_id=items["item_id"],
        row_id=items["item_id"],
        answer=list(map(answer, items["fields"], items["references"])),
        teacher=PEOPLE,
        cut="[]",
    )
    return examples.reindex(columns=EXAMPLE_COLUMNS)


def _reject_real(
    task: Task, fields: dict[str, str], answer: str, contaminated: ContaminationFilter, protected: ProtectedTexts
) -> str | None:
    """Why a real example is rejected; None if it is kept. Spans that people chose are believed."""
    if rejection := contaminated.reject(fields):
        return rejection.reason
    # The filter does not know short texts, the other check does.
    reason = reject_input(task, fields, protected)
    return reason if reason or task.answer.type == "span" else reject_answer(task, fields, answer)
