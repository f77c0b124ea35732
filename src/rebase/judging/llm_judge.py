"""A model as a judge: its prompts, its requests and responses, and statistics of how far to trust it.

A judge is a teacher that grades. Its biases are measured: it sees every pair in both orders, and its grades are
compared with the metrics where there are references.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from rebase.generation.prompts.requests import build_request, fence, object_schema
from rebase.generation.prompts.templates import Prompt
from rebase.parameters import JudgeParameters, SamplingParameters
from rebase.records import Metric, Strict, Task
from rebase.tasks.metrics import bootstrap_interval
from rebase.teacher.protocol import Request, parse_response

#: The grades of every criterion, worst first.
SCALE = (1, 2, 3, 4, 5)
#: Characters of a rationale: enough for a sentence, and a limit for a weak judge that does not stop.
MAX_RATIONALE = 300
#: An AUC below this counts as chance, which is 0.5.
NEAR_CHANCE = 0.6

Verdict = Literal["first", "second", "tie"]
Outcome = Literal["win", "tie", "loss"]

#: Column names of the judgments and of the grading sheet, which no criterion can have.
_RESERVED = {
    "kind", "item_id", "system", "first", "second", "verdict", "rationale", "response_key", "judge", "prompt_hash",
    "input_tokens", "output_tokens", "dollars", "answer_id", "person", "id", "query", "answer", "note", "grade",
    "criterion", *get_args(Metric),
}  # fmt: skip


class Criterion(Strict):
    """A criterion for grading: a question, and the meaning of the lowest and the highest grade."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    question: str = Field(min_length=1)
    lowest: str = Field(min_length=1)
    highest: str = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _is_not_reserved(cls, name: str) -> str:
        if name in _RESERVED:
            raise ValueError(f"a criterion cannot be called {name!r}: a column has this name. Choose another")
        return name

    @property
    def in_words(self) -> str:
        """The question and both ends of the scale, on one line."""
        return f"{self.question} {SCALE[0]} = {self.lowest}, {SCALE[-1]} = {self.highest}"


class RubricPrompt(Prompt):
    """The prompt for grading one answer, with the criteria of the rubric."""

    system_fields: ClassVar[tuple[str, ...]] = ("instruction", "criteria")
    user_fields = ("data",)
    needed = ("data",)

    criteria: tuple[Criterion, ...] = Field(min_length=1)

    @field_validator("criteria")
    @classmethod
    def _names_differ(cls, criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        names = [criterion.name for criterion in criteria]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two criteria have one name: {', '.join(repeated)}")
        return criteria

    @property
    def names(self) -> tuple[str, ...]:
        """The criteria's names."""
        return tuple(criterion.name for criterion in self.criteria)


class PairPrompt(Prompt):
    """The prompt for comparing two answers."""

    user_fields = ("data",)
    needed = ("data",)


def rubric_request(task: Task, rubric: RubricPrompt, query: str, answer: str, sampling: SamplingParameters) -> Request:
    """Request a rationale, then a grade for each criterion. The system's name is not shown."""
    grades = {name: {"type": "integer", "enum": list(SCALE)} for name in rubric.names}
    criteria = "\n".join(f"- {criterion.name}: {criterion.in_words}" for criterion in rubric.criteria)
    words = {"instruction": task.instruction, "criteria": criteria}
    return _request(rubric, words, {"item": query, "answer": answer}, grades, sampling)


def pair_request(
    task: Task, prompt: PairPrompt, query: str, first: str, second: str, sampling: SamplingParameters
) -> Request:
    """Request a rationale, then a verdict on which answer is better."""
    verdict = {"verdict": {"type": "string", "enum": list(get_args(Verdict))}}
    data = {"item": query, "first": first, "second": second}
    return _request(prompt, {"instruction": task.instruction}, data, verdict, sampling)


def parse_grades(rubric: RubricPrompt, text: str) -> dict[str, Any]:
    """The ``rationale`` and the grades in a response; ValueError if it does not match the requested schema."""
    response = _parse(text, rubric.names)
    grades = {name: response[name] for name in rubric.names}
    if wrong := [name for name, grade in grades.items() if isinstance(grade, bool) or grade not in SCALE]:
        raise ValueError(f"no grade from {SCALE[0]} to {SCALE[-1]} for {', '.join(wrong)}")
    return response | {name: int(grade) for name, grade in grades.items()}


def parse_verdict(text: str) -> dict[str, Any]:
    """The ``rationale`` and the ``verdict`` in a response; ValueError if it does not match the requested schema."""
    response = _parse(text, ("verdict",))
    if response["verdict"] not in get_args(Verdict):
        raise ValueError(f"expected one of the verdicts {', '.join(get_args(Verdict))}")
    return response


@dataclass(frozen=True)
class Pair:
    """The verdicts on one item: ``straight`` with our system's answer first, ``swapped`` with it second."""

    straight: Verdict
    swapped: Verdict

    @property
    def outcome(self) -> Outcome:
        """The outcome for our system: a win or a loss only if both orders agree (Zheng et al., 2023)."""
        if (self.straight, self.swapped) == ("first", "second"):
            return "win"
        return "loss" if (self.straight, self.swapped) == ("second", "first") else "tie"

    @property
    def flips(self) -> bool:
        """Whether the verdict changes with the order."""
        return self.swapped != {"first": "second", "second": "first", "tie": "tie"}[self.straight]

    def share(self, verdict: Verdict) -> float:
        """The share of the two orders with this verdict: 0, 0.5 or 1."""
        return ((self.straight == verdict) + (self.swapped == verdict)) / 2


def find_pairs(judgments: pd.DataFrame, one: str, other: str) -> tuple[dict[str, Pair], int]:
    """The items compared in both orders, by id, and the number of items compared in only one."""
    lines = judgments[judgments["kind"] == "pair"]
    straight, swapped = (
        lines[(lines["first"] == first) & (lines["second"] == second)].set_index("item_id")["verdict"].to_dict()
        for first, second in ((one, other), (other, one))
    )
    both = {item: Pair(verdict, swapped[item]) for item, verdict in straight.items() if item in swapped}
    return both, len(straight.keys() ^ swapped.keys())


def summarize_pairs(pairs: Iterable[Pair], same: int, parameters: JudgeParameters) -> dict[str, Any]:
    """Win, tie and loss rates, and the position bias, in percent with intervals; None where there is nothing to count.

    The ``same`` items with two equal answers are ties and not part of the bias. ``flips`` is the share of items whose
    verdict changes with the order; ``first``, ``second`` and ``tie`` are shares of all verdicts.
    """
    pairs = list(pairs)
    outcomes: list[Outcome] = [pair.outcome for pair in pairs] + ["tie"] * same
    return {
        "items": len(outcomes),
        "same_answers": same,
        **{name: _interval([outcome == name for outcome in outcomes], parameters) for name in get_args(Outcome)},
        "position_bias": {
            "flips": _interval([pair.flips for pair in pairs], parameters),
            **{name: _interval([pair.share(name) for pair in pairs], parameters) for name in get_args(Verdict)},
        },
    }


def compare_with_gold(pairs: Mapping[str, Pair], gains: Mapping[str, float]) -> dict[str, int]:
    """Count the judge's right, tied and wrong outcomes on items where a metric tells the two systems apart.

    ``gains`` is our system's score minus the other's, by item.
    """
    decided = {item: pair.outcome for item, pair in pairs.items() if gains.get(item)}
    ties = sum(outcome == "tie" for outcome in decided.values())
    right = sum(outcome == ("win" if gains[item] > 0 else "loss") for item, outcome in decided.items())
    return {"items": len(decided), "right": right, "tie": ties, "wrong": len(decided) - right - ties}


def mean_grades(graded: pd.DataFrame, names: Sequence[str], parameters: JudgeParameters) -> dict[str, Any]:
    """Each system's mean grade by criterion, with its interval and the number of answers."""
    return {
        str(system): {name: mean_grade(lines[name], parameters) for name in names}
        for system, lines in graded.groupby("system", sort=False)
    }


def mean_grade(grades: "pd.Series[Any]", parameters: JudgeParameters) -> dict[str, float]:
    """The mean of grades, or of their differences, with its interval, and their number ``n``."""
    given = grades.dropna()
    # Intervals are percentages.
    return {**(_interval(given / 100, parameters) or {}), "n": len(given)}


def calibrate(grades: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """How well grades agree with a metric's scores of the same answers.

    ``spearman`` is the rank correlation. ``auc``, for a metric of 0 or 1, is the probability that a right answer is
    graded higher than a wrong one (ties count half): 0.5 is chance. None if grades or scores do not vary.
    """
    from scipy.stats import mannwhitneyu, spearmanr

    given, gold = np.asarray(grades, dtype=float), np.asarray(scores, dtype=float)
    result: dict[str, Any] = {"n": len(gold), "spearman": None, "auc": None}
    varies = len(gold) > 1 and np.ptp(gold) > 0
    if varies and np.ptp(given) > 0:
        result["spearman"] = round(float(spearmanr(given, gold).statistic), 3)
    if varies and set(gold) == {0.0, 1.0}:
        right, wrong = given[gold == 1], given[gold == 0]
        result["auc"] = round(float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong)), 3)
    return result


def find_doubts(graded: pd.DataFrame, names: Sequence[str], scores: Mapping[str, Any]) -> list[str]:
    """The reasons not to trust the judge, as sentences; empty for a good judge.

    Doubtful are grades that are all equal, an AUC near chance for every criterion, and a verdict that changes with the
    order in half of the items or more. ``graded`` are the grades, ``scores`` their aggregates.
    """
    doubts = [
        f"{name}: every answer has the same grade" for name in names if len(graded) > 1 and graded[name].nunique() == 1
    ]
    for metric in dict.fromkeys(metric for by_metric in scores["calibration"].values() for metric in by_metric):
        aucs = [auc for by_metric in scores["calibration"].values() if (auc := by_metric[metric]["auc"]) is not None]
        if aucs and max(aucs) < NEAR_CHANCE:
            doubts.append(f"no grade tells answers that are right by {metric} from wrong ones (AUC {max(aucs):.2f})")
    flips = scores.get("pairwise", {}).get("position_bias", {}).get("flips")
    if flips and flips["value"] >= 50:
        doubts.append(f"{flips['value']:.0f} % of the verdicts change with the order of the answers")
    return doubts


def _request(
    prompt: Prompt,
    words: Mapping[str, str],
    data: Mapping[str, str],
    fields: Mapping[str, Any],
    sampling: SamplingParameters,
) -> Request:
    """Request a rationale, and then the fields, so that the verdict follows from the rationale."""
    schema = object_schema({"rationale": {"type": "string", "maxLength": MAX_RATIONALE}, **fields})
    return build_request(prompt, words, [], {"data": fence(data)}, schema, sampling)


def _parse(text: str, names: Sequence[str]) -> dict[str, Any]:
    response = parse_response(text)
    if not isinstance(response, dict) or set(response) != {"rationale", *names}:
        raise ValueError(f"expected a response with the fields {['rationale', *names]}")
    return response | {"rationale": str(response["rationale"]).strip()}


def _interval(values: "Sequence[float] | pd.Series[Any]", parameters: JudgeParameters) -> dict[str, float] | None:
    if not len(values):
        return None
    return bootstrap_interval(list(values), parameters.bootstrap_samples, parameters.confidence, parameters.seed)
