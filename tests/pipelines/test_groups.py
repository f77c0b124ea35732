import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from rebase.errors import RebaseError
from rebase.pipelines.groups.nodes import average_groups
from rebase.tasks.metrics import bootstrap_interval, bootstrap_means, permutation_p
from tests.tiny import evaluate_parameters

TASK = {
    "version": 1,
    "instruction": "Say yes or no.",
    "query": "{question}",
    "examples": [{"question": "Is it?", "answer": "yes"}],
    "answer": {"type": "label", "labels": ["yes", "no"]},
    "metrics": ["accuracy"],
    "evaluation": {"source": "unused.jsonl", "fields": {"question": "question", "references": "answers"}},
}


def tasks(**groups: list[str]) -> dict:
    return {
        name: (lambda name=name, task_groups=task_groups: TASK | {"name": name, "groups": task_groups})
        for name, task_groups in groups.items()
    }


def predictions(student: list[float], expert: list[float] | None) -> pd.DataFrame:
    lines = [("student", score) for score in student] + [("expert", score) for score in expert or []]
    return pd.DataFrame(lines, columns=["system", "accuracy"])


def test_each_task_counts_alike_and_missing_ones_are_named():
    all_tasks = tasks(one=["bbh", "bbh_nlp"], two=["bbh"], three=["bbh"], alone=[])
    runs = {
        "one": lambda: predictions([0, 0, 0, 1], [1, 1, 1, 1]),
        "two": lambda: predictions([1, 1], None),
        "alone": lambda: predictions([1], [1]),
        "old": lambda: predictions([1], [1]),  # its task file is gone
    }
    scores = average_groups(all_tasks, runs, evaluate_parameters())["groups"]
    assert set(scores) == {"bbh", "bbh_nlp"}
    assert scores["bbh"]["tasks"] == ["one", "two"]
    assert scores["bbh"]["missing"] == ["three"]
    assert scores["bbh"]["systems"]["student"]["value"] == 62.5
    assert set(scores["bbh"]["systems"]) == {"student"}  # not every task was answered by the expert
    assert scores["bbh_nlp"]["systems"]["expert"] == {"value": 100, "low": 100, "high": 100}


def test_nothing_was_run():
    with pytest.raises(RebaseError, match="no task of a group has been evaluated"):
        average_groups(tasks(one=["bbh"], alone=[]), {"alone": lambda: predictions([1], None)}, evaluate_parameters())


def test_scores_by_another_metric_name_the_task_to_evaluate_again():
    runs = {"one": lambda: predictions([1], None).rename(columns={"accuracy": "f1"})}
    with pytest.raises(RebaseError, match=r"task 'one' have no accuracy.* --pipelines=evaluate --params=task=one"):
        average_groups(tasks(one=["bbh"]), runs, evaluate_parameters())


scores = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(st.lists(scores, min_size=1, max_size=4))
def test_interval_of_means_holds_the_value_and_bounds(groups: list[list[float]]):
    interval = bootstrap_means(groups, 50, 0.9, 1)
    assert 0 <= interval["low"] <= interval["high"] <= 100
    assert interval["value"] == pytest.approx(100 * np.mean([np.mean(group) for group in groups]), abs=0.006)


def test_a_group_of_one_task_is_that_task():
    group = [0.0, 1.0, 1.0, 0.5, 1.0, 0.0] * 10
    one, plain = bootstrap_means([group], 2000, 0.9, 1), bootstrap_interval(group, 2000, 0.9, 1)
    assert one["value"] == plain["value"]
    assert one["low"] == pytest.approx(plain["low"], abs=2)


def test_permutation_p_is_the_share_of_swaps():
    # Of 2 ** 3 swaps of three equal gains two are as far from nothing as what was seen.
    assert permutation_p(np.array([1.0, 1.0, 1.0]), 1) == pytest.approx(0.25, abs=0.02)
    gains = np.array([0.5, -1.0, 1.0, 1.0, 0.25, 0.0, 1.0, -0.5])
    exact = permutation_test(
        (gains, np.zeros(8)), lambda ours, theirs: (ours - theirs).mean(), permutation_type="samples"
    )
    assert permutation_p(gains, 1) == pytest.approx(exact.pvalue, abs=0.02)
    assert permutation_p(np.array([]), 1) == 1
    assert permutation_p(np.zeros(5), 1) == 1
    assert permutation_p(np.array([1.0, -1.0]), 1) == 1
    assert permutation_p(np.ones(40), 1) < 0.001


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=8), st.integers(0, 3))
def test_permutation_p_is_a_probability_and_sides_are_alike(gains: list[float], seed: int):
    values = np.array(gains)
    assert 0 < permutation_p(values, seed) <= 1
    assert permutation_p(values, seed) == pytest.approx(permutation_p(-values, seed), abs=0.03)
