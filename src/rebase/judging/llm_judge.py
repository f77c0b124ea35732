"""A judge of answers: what it is asked, what its responses say, and how far it can be trusted.

A judge is a teacher that grades. Its faults are measured: it is shown every pair in both orders, and its grades are
held against the metrics wherever there are gold answers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from rebase.generation.prompts import Prompt, fence
from rebase.parameters import JudgeParameters, SamplingParameters
from rebase.records import Strict, Task
from rebase.tasks.metrics import bootstrap_interval
from rebase.teacher.protocol import Message, Request, Sampling

#: Where people write what is asked of the judge.
RUBRIC_FILE, PAIR_FILE = "data/01_raw/prompts/judge_rubric.yml", "data/01_raw/prompts/judge_pair.yml"
#: The grades of every criterion, worst first.
SCALE = (1, 2, 3, 4, 5)
#: Characters of a rationale: enough for a sentence, and a bound for a weak judge that does not end its own.
MAX_RATIONALE = 300

#: An AUC below this is taken for chance, which is 0.5.
NEAR_CHANCE = 0.6

Verdict = Literal["first", "second", "tie"]
Outcome = Literal["win", "tie", "loss"]

#: Names that columns of the judgments and of the grading sheet have.
_TAKEN = {
    "kind", "item_id", "system", "first", "second", "verdict", "rationale", "response_key", "judge", "prompt_hash",
    "input_tokens", "output_tokens", "dollars", "answer_id", "person", "id", "query", "answer", "note",
}  # fmt: skip


class Criterion(Strict):
    """What answers are graded by: a question, and what the lowest and the highest grade mean."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    question: str = Field(min_length=1)
    lowest: str = Field(min_length=1)
    highest: str = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in _TAKEN:
            raise ValueError(f"a criterion cannot be called {name!r}: a column has this name. Choose another")
        return name

    @property
    def in_words(self) -> str:
        """The question and the ends of the scale, in one line."""
        return f"{self.question} {SCALE[0]} = {self.lowest}, {SCALE[-1]} = {self.highest}"


class RubricPrompt(Prompt):
    """The rubric: how the judge is asked for grades, and by which criteria."""

    system_fields: ClassVar[tuple[str, ...]] = ("instruction", "criteria")
    user_fields = ("data",)
    needed = ("data",)

    criteria: tuple[Criterion, ...] = Field(min_length=1)

    @field_validator("criteria")
    @classmethod
    def _differ(cls, criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        names = [criterion.name for criterion in criteria]
        if again := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two criteria have one name: {', '.join(again)}")
        return criteria

    @property
    def names(self) -> tuple[str, ...]:
        """The criteria's names."""
        return tuple(criterion.name for criterion in self.criteria)


class PairPrompt(Prompt):
    """How the judge is asked which of two answers is better."""

    user_fields = ("data",)
    needed = ("data",)


def rubric_request(task: Task, rubric: RubricPrompt, query: str, answer: str, sampling: SamplingParameters) -> Request:
    """Ask for a rationale, and then for a grade by each criterion. Which system answered is not told."""
    grades = {name: {"type": "integer", "enum": list(SCALE)} for name in rubric.names}
    criteria = "\n".join(f"- {criterion.name}: {criterion.in_words}" for criterion in rubric.criteria)
    return _request(rubric, {"item": query, "answer": answer}, grades, sampling, task.instruction, criteria=criteria)


def pair_request(
    task: Task, prompt: PairPrompt, query: str, first: str, second: str, sampling: SamplingParameters
) -> Request:
    """Ask for a rationale, and then which answer is better."""
    verdict = {"verdict": {"type": "string", "enum": list(get_args(Verdict))}}
    data = {"item": query, "first": first, "second": second}
    return _request(prompt, data, verdict, sampling, task.instruction)


def read_grades(rubric: RubricPrompt, text: str) -> tuple[str, dict[str, int]]:
    """The rationale and the grades that a response gives; ValueError where it is not what its schema asked for."""
    rationale, said = _read(text, rubric.names)
    if wrong := [name for name, grade in said.items() if isinstance(grade, bool) or grade not in SCALE]:
        raise ValueError(f"no grade from {SCALE[0]} to {SCALE[-1]} for {', '.join(wrong)}")
    return rationale, {name: int(grade) for name, grade in said.items()}


def read_verdict(text: str) -> tuple[str, Verdict]:
    """The rationale and the verdict that a response gives; ValueError where it is not what its schema asked for."""
    rationale, said = _read(text, ("verdict",))
    if said["verdict"] not in get_args(Verdict):
        raise ValueError(f"a verdict was asked for: {', '.join(get_args(Verdict))}")
    return rationale, said["verdict"]


@dataclass(frozen=True)
class Pair:
    """The verdicts on one item: ``straight`` with the answer of the pair's one system first, ``swapped`` second."""

    straight: Verdict
    swapped: Verdict

    @property
    def outcome(self) -> Outcome:
        """What it is for the pair's one system: won or lost only where both orders say so (Zheng et al., 2023)."""
        if (self.straight, self.swapped) == ("first", "second"):
            return "win"
        return "loss" if (self.straight, self.swapped) == ("second", "first") else "tie"

    @property
    def flips(self) -> bool:
        """If the verdict is another one when the order is."""
        return self.swapped != {"first": "second", "second": "first", "tie": "tie"}[self.straight]

    def share(self, verdict: Verdict) -> float:
        """The share of the two orders with this verdict: 0, 0.5 or 1."""
        return ((self.straight == verdict) + (self.swapped == verdict)) / 2


def find_pairs(judgments: pd.DataFrame, one: str, other: str) -> tuple[dict[str, Pair], int]:
    """The items that were compared in both orders, by id; and how many were compared in one alone."""
    lines = judgments[judgments["kind"] == "pair"]
    straight, swapped = (
        lines[(lines["first"] == first) & (lines["second"] == second)].set_index("item_id")["verdict"].to_dict()
        for first, second in ((one, other), (other, one))
    )
    both = {item: Pair(verdict, swapped[item]) for item, verdict in straight.items() if item in swapped}
    return both, len(straight.keys() ^ swapped.keys())


def summarize_pairs(pairs: Iterable[Pair], same: int, parameters: JudgeParameters) -> dict[str, Any]:
    """Rates of wins, ties and losses, and the position bias, in percent with intervals; None where nothing is known.

    ``same`` items had two equal answers, about which nobody was asked: they are ties. The bias is over the others:
    ``flips`` is the share of items whose verdict is another one when the order is; ``first``, ``second`` and ``tie``
    are shares of all verdicts.
    """
    pairs = list(pairs)
    outcomes: list[Outcome] = [pair.outcome for pair in pairs] + ["tie"] * same
    return {
        "items": len(outcomes),
        "same_answers": same,
        **{which: _interval([outcome == which for outcome in outcomes], parameters) for which in get_args(Outcome)},
        "position_bias": {
            "flips": _interval([pair.flips for pair in pairs], parameters),
            **{which: _interval([pair.share(which) for pair in pairs], parameters) for which in get_args(Verdict)},
        },
    }


def compare_with_gold(pairs: Mapping[str, Pair], better: Mapping[str, float]) -> dict[str, int]:
    """What the judge says of the items on which a metric tells the two systems apart: right, tie or wrong.

    ``better`` is by how much the pair's one system is better than the other, by item.
    """
    counts = {"items": 0, "right": 0, "tie": 0, "wrong": 0}
    for item, pair in pairs.items():
        if difference := better.get(item, 0.0):
            said = pair.outcome
            counts["items"] += 1
            counts["tie" if said == "tie" else "right" if (said == "win") == (difference > 0) else "wrong"] += 1
    return counts


def mean_grades(graded: pd.DataFrame, names: Sequence[str], parameters: JudgeParameters) -> dict[str, Any]:
    """For each system of the table its mean grade by each criterion, with its interval and the number of answers."""
    return {
        str(system): {name: mean_grade(lines[name], parameters) for name in names}
        for system, lines in graded.groupby("system", sort=False)
    }


def mean_grade(grades: "pd.Series[Any]", parameters: JudgeParameters) -> dict[str, float]:
    """The mean of grades, or of their differences, with its interval, and their number ``n``."""
    # Intervals are of percentages.
    known = grades.dropna()
    return {**(_interval(known / 100, parameters) or {}), "n": len(known)}


def calibrate(grades: Sequence[float], scores: Sequence[float]) -> dict[str, Any]:
    """How grades go with a metric's scores of the same answers.

    ``spearman`` is their rank correlation. ``auc``, for a metric that is 0 or 1, is the probability that a right
    answer is graded higher than a wrong one (ties count half): 0.5 is chance. None where grades or scores do not vary.
    """
    from scipy.stats import mannwhitneyu, spearmanr

    given, gold = np.asarray(grades, dtype=float), np.asarray(scores, dtype=float)
    found: dict[str, Any] = {"n": len(gold), "spearman": None, "auc": None}
    varies = len(gold) > 1 and np.ptp(gold) > 0
    if varies and np.ptp(given) > 0:
        found["spearman"] = round(float(spearmanr(given, gold).statistic), 3)
    if varies and set(gold) == {0.0, 1.0}:
        right, wrong = given[gold == 1], given[gold == 0]
        found["auc"] = round(float(mannwhitneyu(right, wrong).statistic) / (len(right) * len(wrong)), 3)
    return found


def find_doubts(graded: pd.DataFrame, names: Sequence[str], scores: Mapping[str, Any]) -> list[str]:
    """What speaks against trusting the judge, in words: nothing, for a good one.

    Grades that are all the same, an AUC near chance by every criterion, verdicts of which half and more turn with the
    order. ``graded`` holds the grades, ``scores`` what they came to.
    """
    doubts = [
        f"{name}: every answer has the same grade" for name in names if len(graded) > 1 and graded[name].nunique() == 1
    ]
    for metric in {metric: None for found in scores["calibration"].values() for metric in found}:
        known = [found[metric]["auc"] for found in scores["calibration"].values() if found[metric]["auc"] is not None]
        if known and max(known) < NEAR_CHANCE:
            doubts.append(f"no grade tells answers that are right by {metric} from wrong ones (AUC {max(known):.2f})")
    flips = scores.get("pairwise", {}).get("position_bias", {}).get("flips")
    if flips and flips["value"] >= 50:
        doubts.append(f"{flips['value']:.0f} % of the comparisons come out otherwise when the order is the other one")
    return doubts


def _request(
    prompt: Prompt,
    data: Mapping[str, str],
    asked: Mapping[str, Any],
    sampling: SamplingParameters,
    instruction: str,
    **words: str,
) -> Request:
    """The rationale stands first in the response, so that the verdict follows from it."""
    properties = {"rationale": {"type": "string", "maxLength": MAX_RATIONALE}, **asked}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    turns = (Message("user", prompt.user.format(data=fence(data))),)
    system = prompt.system.format(instruction=instruction, **words)
    return Request(system, turns, schema, Sampling(sampling.temperature, sampling.max_tokens))


def _read(text: str, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    response = json.loads(text)
    if not isinstance(response, dict) or set(response) != {"rationale", *names}:
        raise ValueError(f"a response with the fields {['rationale', *names]} was asked for")
    return str(response["rationale"]).strip(), {name: response[name] for name in names}


def _interval(values: "Sequence[float] | pd.Series[Any]", parameters: JudgeParameters) -> dict[str, float] | None:
    if not len(values):
        return None
    return bootstrap_interval(list(values), parameters.bootstrap_samples, parameters.confidence, parameters.seed)
