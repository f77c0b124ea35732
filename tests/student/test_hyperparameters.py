import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.parameters import LoraParameters
from rebase.student.handle import Student
from rebase.student.hyperparameters import (
    DivergedError,
    choose_epochs,
    choose_learning_rate,
    choose_rank,
    choose_step,
    find_fault,
    is_far_above,
)
from rebase.student.training import _train, train_adapter
from tests.tiny import train_parameters, training_set

losses = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("weights", "rate"), [(135e6, 1e-3), (268e6, 3e-4), (494e6, 3e-4), (7e9, 2e-4), (13e9, 2e-4), (70e9, 1e-4)]
)
def test_larger_students_have_lower_rates(weights, rate):
    assert choose_learning_rate(int(weights)) == rate


def test_a_rate_of_three_times_the_chosen_one_is_far_above_it():
    assert is_far_above(1e-3, choose_learning_rate(int(494e6)))
    assert is_far_above(3e-4, 1e-4)  # 2.9999999999999996 times
    assert not is_far_above(3e-4, choose_learning_rate(int(8e9)))  # the published run


@pytest.mark.parametrize(
    ("steps", "rate", "epochs"),
    [(30, 1e-3, 2), (9, 1e-3, 3), (68, 1e-3, 1), (30, 3e-4, 3), (75, 3e-4, 2), (125, 3e-4, 1)],
)
def test_few_examples_and_low_rates_get_more_epochs(steps, rate, epochs):
    """The main job, fewer and more examples, and a 0.5B student with 120, 300 and 1,000 examples."""
    assert choose_epochs(steps, rate) == epochs


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_epochs_are_1_to_3_and_never_more_for_more_steps_or_a_higher_rate(steps, more, rate, other):
    epochs = choose_epochs(steps, rate)
    assert epochs in {1, 2, 3}
    assert choose_epochs(steps + more, rate) <= epochs
    assert choose_epochs(steps, max(rate, other)) <= epochs


@given(st.integers(1, 10**6))
def test_steps_are_larger_for_many_examples(examples):
    assert choose_step(examples) == (8 if examples >= 1000 else 4)


@given(st.integers(1, 10**7), st.integers(0, 10**9))
def test_the_adapter_has_as_many_weights_as_targets_if_a_rank_allows_it(widths, targets):
    rank = choose_rank(widths, targets)
    assert rank * widths >= targets or rank == 256
    assert rank == 16 or (rank // 2) * widths < targets


@given(st.floats(0.01, 10), losses)
def test_falling_losses_have_no_fault_and_no_gain_has_one(initial, losses):
    losses = sorted(losses, reverse=True)
    assert (find_fault(initial, losses) is None) == (losses[-1] < initial)


def test_a_student_that_memorizes():
    assert find_fault(2.0, [1.0, 0.8, 0.83]) is None  # noise
    assert "memorizes: the validation loss rose from 0.800 after epoch 2 to 1.300" in find_fault(2.0, [1.0, 0.8, 1.3])
    assert "did not fall below" in find_fault(2.0, [2.5, 3.0])


def train_at(rate: float, student: Student, monkeypatch: pytest.MonkeyPatch, **changes):
    monkeypatch.setattr("rebase.student.preflight.choose_learning_rate", lambda weights: rate)
    settings = {"learning_rate": "auto", "validation_share": 0.2, "keep": "best", "epochs": 2, **changes}
    return train_adapter(student, training_set(20), train_parameters(**settings))


def test_a_rate_without_a_fault_is_kept(fresh: Student, monkeypatch: pytest.MonkeyPatch, caplog):
    _, log, counts = train_at(0.01, fresh, monkeypatch)
    assert (counts["learning_rate"], counts["fault"]) == (0.01, None)
    assert counts["validation_loss"] == log["validation_loss"].min()
    assert "halved" not in caplog.text


def test_a_rate_with_a_fault_is_halved_once_and_the_better_adapter_is_kept(
    fresh: Student, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr("rebase.student.training.find_fault", lambda initial, losses: f"the loss was {initial:.0f}")
    _, _, counts = train_at(0.01, fresh, monkeypatch)
    first, second = [line for line in caplog.messages if "learning rate of" in line]
    assert first.startswith("train: at a learning rate of 0.01 the loss was")
    assert first.endswith("; it is halved once")
    assert second.startswith("train: at a learning rate of 0.005 the loss was")
    assert second.endswith("; the adapter with the lowest validation loss is used")
    settings = train_parameters(validation_share=0.2, keep="best", epochs=2)
    alone = {
        rate: train_adapter(fresh, training_set(20), settings.model_copy(update={"learning_rate": rate}))[2]
        for rate in (0.01, 0.005)
    }
    seconds = sum(count["seconds"] for count in alone.values())
    best = min(alone.values(), key=lambda count: count["validation_loss"])
    assert counts == best | {"seconds": pytest.approx(seconds, abs=0.05)}


def test_a_rate_that_diverged_is_not_trained_again(fresh: Student, monkeypatch: pytest.MonkeyPatch, caplog):
    rates = []

    def train(student, tokenized, parameters, *arguments):
        rates.append(parameters.learning_rate)
        if parameters.learning_rate == 0.01:
            raise DivergedError("the loss is nan")
        return _train(student, tokenized, parameters, *arguments)

    monkeypatch.setattr("rebase.student.training._train", train)
    _, _, counts = train_at(0.01, fresh, monkeypatch)
    assert (counts["learning_rate"], rates) == (0.005, [0.01, 0.005])
    assert train_at(0.01, fresh, monkeypatch)[2] == counts
    assert rates == [0.01, 0.005]
    assert caplog.text.count("at a learning rate of 0.01 the loss was not finite; it is halved once") == 2


def test_a_rate_that_a_user_sets_is_kept_with_a_warning(fresh: Student, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr("rebase.student.training.find_fault", lambda initial, losses: "the student memorizes")
    settings = train_parameters(learning_rate=0.01, validation_share=0.2, keep="best", epochs=2)
    _, _, counts = train_adapter(fresh, training_set(20), settings)
    assert (counts["learning_rate"], counts["fault"]) == (0.01, "the student memorizes")
    assert [line for line in caplog.messages if "memorizes" in line] == [
        "train: at a learning rate of 0.01 the student memorizes. Lower train.learning_rate, or set it to auto"
    ]


def test_a_rate_at_which_the_loss_is_not_finite(fresh: Student, monkeypatch: pytest.MonkeyPatch, caplog):
    with pytest.raises(DivergedError, match="learning_rate") as raised:
        train_at(1e30, fresh, monkeypatch, warmup_steps=0)
    assert isinstance(raised.value, RebaseError)
    assert "train: at a learning rate of 1e+30 the loss was not finite" in caplog.text


def test_few_examples_are_all_trained_on(fresh: Student):
    _, log, counts = train_adapter(
        fresh, training_set(20), train_parameters(learning_rate="auto", validation_share="auto", keep="best")
    )
    assert counts["kept"] == 20
    assert counts["learning_rate"] == 1e-3
    assert "validation_loss" not in counts
    assert log["validation_loss"].isna().all()
    assert math.isfinite(counts["last_loss"])


def test_a_run_where_all_is_auto_is_the_same_run_with_less_memory(
    fresh: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = train_parameters(
        learning_rate="auto", epochs="auto", batch_size="auto", gradient_accumulation=1,
        lora=LoraParameters(rank="auto", alpha="auto", dropout=0.0),
    )  # fmt: skip
    adapter, log, counts = train_adapter(fresh, training_set(12), settings)
    assert (counts["epochs"], counts["batch_size"], counts["gradient_accumulation"], counts["steps"]) == (3, 4, 1, 9)
    assert counts["lora"] == {"rank": 16, "alpha": 32, "dropout": 0.0}
    monkeypatch.setattr("rebase.student.training.free_memory", lambda: 0)
    other = replace(fresh, workdir=tmp_path / "other")
    _, same_log, one_by_one = train_adapter(other, training_set(12), settings)
    assert (one_by_one["batch_size"], one_by_one["gradient_accumulation"]) == (1, 4)
    np.testing.assert_allclose(same_log["loss"], log["loss"], rtol=1e-3)
    monkeypatch.setattr("rebase.student.trainer.make_trainer", None)  # would fail if it were called
    assert train_adapter(fresh, training_set(12), settings)[2] == counts
    chosen = {"epochs": 3, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 1e-3}
    numbers = train_parameters(**chosen, lora=LoraParameters(rank=16, alpha=32, dropout=0.0))
    assert train_adapter(fresh, training_set(12), numbers)[0] == adapter
