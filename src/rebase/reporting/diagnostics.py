"""Diagnostics of a run: pitfalls of training on synthetic data (arXiv 2410.18588) that a good score can hide.

The report shows them for ``tasks.verdict.MIN_ITEMS`` items and more.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rebase.records import Task
from rebase.tasks.metrics import contains_answer, normalize_answer, same_number

_PAIRS = 3
_SENTENCE_END = re.compile(r"[.!?。！？]\s*|\n+")


def is_in_form(task: Task, extracted: str, prompt: str, max_words: int) -> bool:
    """Whether an extracted answer, right or wrong, has the task's form.

    A label is one of the task's, a number parses, other answers are not empty. A span has words of the prompt in a row,
    at most ``max_words`` (the words of the longest reference), and is no whole sentence: copying sentences is not
    answering.
    """
    match task.answer.type:
        case "label":
            return extracted in task.answer.labels
        case "number":
            return bool(same_number(extracted, extracted))
        case "span":
            words = normalize_answer(extracted)
            sentences = map(normalize_answer, _SENTENCE_END.split(prompt))
            return len(words.split()) <= max_words and contains_answer(prompt, words) and words not in sentences
    return bool(extracted.strip())


def right_in_format(task: Task, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """For each system, in percent: answers in the right form, the mean score of all and of those answers.

    ``most_frequent`` is its most frequent answer: a system that always gives the same answer has not learned the task.
    """
    metric = task.metrics[0]
    lines = []
    for system, frame in _with_form(task, predictions).groupby("system", sort=False):
        most_frequent = frame["extracted"].value_counts(normalize=True)
        means = {
            "in_form": frame["in_form"].mean(),
            "score": frame[metric].mean(),
            "score_in_form": frame.loc[frame["in_form"], metric].mean(),
            "most_frequent_share": most_frequent.iloc[0],
        }
        percent = {name: 100 * mean for name, mean in means.items()}
        lines.append({"system": system, "most_frequent": most_frequent.index[0], **percent})
    return lines


def pair_answers(predictions: pd.DataFrame, metric: str, *columns: str) -> pd.DataFrame:
    """The expert's lines by item, with the student's ``metric`` and ``columns`` beside them (``NAME_student``).

    Only items that both answered and that have scores.
    """
    student, expert = (
        predictions[predictions["system"] == system].set_index("item_id") for system in ("student", "expert")
    )
    pairs = expert.join(student[[metric, *columns]], rsuffix="_student", how="inner")
    return pairs.dropna(subset=[metric, f"{metric}_student"])


def where_gains_come_from(task: Task, predictions: pd.DataFrame) -> dict[str, float] | None:
    """The expert's gain over the student, in points: over all items, and over those that both answer in the right form.

    ``form`` is the gain in the share of answers in form, ``n`` and ``both`` are the numbers of items. None without
    answers of both; ``gain_in_form`` is NaN if no item has two answers in form.
    """
    metric = task.metrics[0]
    pairs = pair_answers(_with_form(task, predictions), metric, "in_form")
    if pairs.empty:
        return None
    gain = 100 * (pairs[metric] - pairs[f"{metric}_student"])
    both = pairs["in_form"] & pairs["in_form_student"]
    return {
        "n": len(pairs),
        "both": int(both.sum()),
        "gain": float(gain.mean()),
        "gain_in_form": float(gain[both].mean()),
        "form": 100 * float(pairs["in_form"].mean() - pairs["in_form_student"].mean()),
    }


def nearest_pairs(embedding_map: pd.DataFrame, examples: pd.DataFrame) -> list[dict[str, Any]]:
    """The evaluation items nearest to a training example: ``item``, ``example``, ``cosine``."""
    queries = examples.set_index("example_id")["query"]
    nearest = embedding_map.dropna(subset="cosine").nlargest(_PAIRS, "cosine")
    return [
        {"item": line.text, "example": queries.get(line.nearest_id, ""), "cosine": line.cosine}
        for line in nearest.itertuples()
    ]


def nearness(embedding_map: pd.DataFrame) -> dict[str, float] | None:
    """Quantiles of the cosine of evaluation items to their nearest example; None without examples."""
    cosines = embedding_map["cosine"].dropna()
    if cosines.empty:
        return None
    return {"median": cosines.median(), "p90": cosines.quantile(0.9), "largest": cosines.max()}


def judge_against_scores(
    scores: Mapping[str, Any] | None, judge_scores: Mapping[str, Any] | None, metric: str
) -> list[dict[str, Any]]:
    """Each system's score and the judge's mean grades; ``falling`` are criteria with a grade below the student's.

    A higher score with a lower grade is a pitfall: the answers satisfy the metric alone. ``score`` is None if the
    scores are of another version of the task. Empty without a judge.
    """
    if scores is None or judge_scores is None:
        return []
    values = {system: cells.get(metric, {}).get("value") for system, cells in scores["systems"].items()}
    before, base = values.get("student"), judge_scores["grades"].get("student", {})
    lines = []
    for system, score in values.items():
        cells = judge_scores["grades"].get(system, {})
        grades = {name: cell for name, cell in cells.items() if "value" in cell}
        rises = None not in (before, score) and score > before
        falling = [name for name in grades if rises and grades[name]["value"] < base.get(name, {}).get("value", 0)]
        if grades:
            lines.append({"system": system, "score": score, "grades": grades, "falling": falling})
    return lines


def _with_form(task: Task, predictions: pd.DataFrame) -> pd.DataFrame:
    # The shortest prompt of an item is the one without the task's examples, whose passages have other spans.
    prompts = predictions.groupby("item_id")["prompt"].transform(lambda texts: min(texts.dropna(), key=len, default=""))
    answers = predictions.assign(prompt=prompts)[["extracted", "prompt"]].fillna("").to_numpy()
    references = [reference for text in predictions["references"] for reference in json.loads(text)]
    longest = max((len(normalize_answer(reference).split()) for reference in references), default=0)
    in_form = np.array([is_in_form(task, extracted, prompt, longest) for extracted, prompt in answers], dtype=bool)
    return predictions.assign(in_form=in_form | (predictions[task.metrics[0]] == 1))
