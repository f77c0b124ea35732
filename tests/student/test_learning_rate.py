import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.student.handle import Student
from rebase.student.learning_rate import DivergedError, choose_learning_rate, find_fault
from rebase.student.training import train_adapter
from tests.tiny import train_parameters, training_set

losses = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("weights", "rate"), [(135e6, 1e-3), (268e6, 3e-4), (494e6, 3e-4), (7e9, 2e-4), (13e9, 2e-4), (70e9, 1e-4)]
)
def test_larger_students_have_lower_rates(weights, rate):
    assert choose_learning_rate(int(weights)) == rate


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
    assert [line.split(" the loss")[0] for line in caplog.messages if "learning rate" in line] == [
        "train: at a learning rate of 0.01",
        "train: at a learning rate of 0.005",
    ]
    settings = train_parameters(validation_share=0.2, keep="best", epochs=2)
    alone = {
        rate: train_adapter(fresh, training_set(20), settings.model_copy(update={"learning_rate": rate}))[2]
        for rate in (0.01, 0.005)
    }
    assert counts == min(alone.values(), key=lambda count: count["validation_loss"])


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
