import json
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.parameters import LoraParameters, TrainParameters
from rebase.student.formatting import IGNORED
from rebase.student.handle import Student
from rebase.student.preflight import (
    Shape,
    choose_settings,
    describe,
    inspect,
    inspect_training,
    measure_shape,
    training_memory,
)
from rebase.student.tokenization import TokenizedExample, TokenizedExamples, tokenize
from tests.tiny import make_student, train_parameters, training_set

SHAPE = Shape(
    total=1500, linear=1000, head=500, widths=100, vocabulary=50, weights=6000, token=400, process=10, loading=6010,
    positions=None,
)  # fmt: skip
FREE = 2**40
AUTO = {"learning_rate": "auto", "epochs": "auto", "batch_size": "auto", "gradient_accumulation": 1}
AUTO_LORA = LoraParameters(rank="auto", alpha="auto", dropout=0.0)


def inspect_set(student: Student, data: pd.DataFrame, parameters: TrainParameters) -> dict:
    return inspect(tokenize(student, data, parameters), student.tokenizer(), parameters, SHAPE, rate=1e3, free=FREE)


def test_record(student: Student) -> None:
    data = training_set(10)
    data.loc[7, "prompt"] += "x" * 100
    data.loc[9, "completion"] = "y" * 500
    record = inspect_set(student, data, train_parameters(epochs=2))
    assert (record["in"], record["kept"], record["rejected"]) == (10, 9, {"target_truncated": 1})
    assert record["steps"] == 5
    first, longest = record["examples"]
    assert (first["which"], longest["which"]) == ("first", "longest")
    assert first["text"] == "<s>Say  0:⟦yes 0<|im_end|>⟧"
    assert first["tokens_with_loss"] == len("yes 0") + 1
    assert first["end_of_turn_at"] == first["tokens"] - 1
    assert longest["tokens"] == record["longest"] > 100
    assert sum(count for _, _, count in record["lengths"]) == 9
    assert record["lengths"][-1][1] >= record["longest"]
    assert record["tokens_with_loss"] == 2 * 9 * 6
    assert record["memory"]["bytes"] > SHAPE.weights
    assert record["time"]["seconds"] == pytest.approx(4 * (1000 * record["tokens"] + 500 * 108) / 500, abs=1)
    assert json.loads(json.dumps(record))["kept"] == 9


def test_padding_share_is_that_of_the_batches(student: Student) -> None:
    data = pd.DataFrame({"prompt": ["<s>" + "a" * 18, "<s>" + "a" * 8], "completion": ["", ""]})
    settings = {"batch_size": 2, "gradient_accumulation": 1}
    assert inspect_set(student, data, train_parameters(**settings))["padding_share"] == 0.25
    assert inspect_set(student, data, train_parameters(packing=True, **settings))["padding_share"] == 0


def test_all_targets_are_cut(student: Student) -> None:
    with pytest.raises(RebaseError, match=r"all 5 targets would be cut.*train\.max_length = 8"):
        inspect_set(student, training_set(5), train_parameters(max_length=8))


def test_an_example_that_validates_is_not_called_too_long(student: Student) -> None:
    data = pd.DataFrame({"prompt": ["<s>a", *["<s>" + "a" * 90] * 3], "completion": ["b"] * 4})
    with pytest.raises(RebaseError, match="there are 0 training examples"):
        inspect_set(student, data, train_parameters(max_length=40, validation_share=0.1))


def test_no_token_has_loss(student: Student) -> None:
    empty = TokenizedExamples([TokenizedExample([1, 2], [IGNORED, IGNORED])] * 4, [], 0)
    with pytest.raises(RebaseError, match="4 of 4 examples have no token with loss"):
        inspect(empty, student.tokenizer(), train_parameters(), SHAPE, 1.0, FREE)


def test_end_of_turn_missing(student: Student) -> None:
    endless = TokenizedExamples([TokenizedExample([1, 5], [IGNORED, 5])] * 4, [], 0)
    with pytest.raises(RebaseError, match=r"4 of 4 targets do not end with .*im_end"):
        inspect(endless, student.tokenizer(), train_parameters(), SHAPE, 1.0, FREE)
    tokenizer = student.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RebaseError, match="no end-of-text token"):
        inspect(endless, tokenizer, train_parameters(), SHAPE, 1.0, FREE)


def test_shape_is_that_of_the_weights(student: Student) -> None:
    import torch

    shape = measure_shape(student, train_parameters())
    with student.open() as (model, _):
        linear = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
        assert shape.linear == sum(module.weight.numel() for module in linear)
        assert shape.weights == sum(weights.numel() * weights.element_size() for weights in model.parameters())
        assert shape.head == model.lm_head.weight.numel()


def examples_of(lengths: list[int], targets: int = 4) -> TokenizedExamples:
    ids = [[5] * length for length in lengths]
    return TokenizedExamples(
        [TokenizedExample(row, [IGNORED] * (len(row) - targets) + row[-targets:]) for row in ids], [], 0
    )


def test_what_is_auto_is_chosen_and_what_is_a_number_stays() -> None:
    examples = examples_of([20] * 120)
    chosen = choose_settings(train_parameters(**AUTO, lora=AUTO_LORA), examples, SHAPE, FREE)
    assert (chosen.learning_rate, chosen.epochs, chosen.batch_size, chosen.gradient_accumulation) == (1e-3, 2, 4, 1)
    assert chosen.lora.model_dump() == {"rank": 16, "alpha": 32, "dropout": 0.0}
    numbers = {"learning_rate": 0.02, "epochs": 0.5, "batch_size": 3, "gradient_accumulation": 2}
    given_numbers = train_parameters(**numbers, lora=LoraParameters(rank=3, alpha=5, dropout=0.1))
    assert choose_settings(given_numbers, examples, SHAPE, free=0).model_dump() == given_numbers.model_dump()
    mixed = train_parameters(**AUTO | {"epochs": 3}, lora=LoraParameters(rank=8, alpha="auto", dropout=0.0))
    chosen = choose_settings(mixed, examples, SHAPE, FREE)
    assert (chosen.epochs, chosen.lora.rank, chosen.lora.alpha, chosen.batch_size) == (3, 8, 16, 4)


@pytest.mark.parametrize(
    ("count", "accumulation", "batch"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (4, 1, 4), (6, 2, 2), (3, 3, 1)]
)
def test_a_batch_of_auto_is_not_larger_than_the_examples_allow(count: int, accumulation: int, batch: int) -> None:
    settings = train_parameters(**AUTO | {"gradient_accumulation": accumulation}, lora=AUTO_LORA)
    chosen = choose_settings(settings, examples_of([20] * count), SHAPE, FREE)
    assert (chosen.batch_size, chosen.gradient_accumulation) == (batch, accumulation)
    with pytest.raises(RebaseError, match=r"lower train\.batch_size or train\.gradient_accumulation"):
        choose_settings(settings, examples_of([20] * (accumulation - 1)), SHAPE, FREE)


@given(
    st.lists(st.integers(5, 200), min_size=8, max_size=40),
    st.integers(0, 500_000),
    st.integers(1, 2),
)
def test_memory_limits_a_batch_and_never_a_step(lengths: list[int], free: int, accumulation: int) -> None:
    settings = train_parameters(**AUTO | {"gradient_accumulation": accumulation}, lora=AUTO_LORA)
    examples = examples_of(lengths)
    chosen = choose_settings(settings, examples, SHAPE, free)
    assert chosen.step_size == 4 * accumulation
    assert chosen.batch_size == 1 or training_memory(chosen, examples, SHAPE) <= free
    more = choose_settings(settings, examples, SHAPE, 2 * free)
    assert more.batch_size >= chosen.batch_size


def test_the_batch_with_most_loss_may_need_more_memory_than_the_longest() -> None:
    shape = replace(SHAPE, vocabulary=50_000)
    short = [TokenizedExample([1] * 20, [IGNORED] * 4 + [1] * 16)] * 4
    long = [TokenizedExample([1] * 22, [IGNORED] * 20 + [1] * 2)] * 4
    settings = choose_settings(train_parameters(**AUTO, lora=AUTO_LORA), TokenizedExamples(short, [], 0), shape, FREE)
    alone = training_memory(settings, TokenizedExamples(short, [], 0), shape)
    assert training_memory(settings, TokenizedExamples([*short, *long], [], 0), shape) == alone


@pytest.mark.parametrize(
    ("free", "reason"),
    [(FREE, "GiB free memory, so a batch has 4"), (80_000, "so a batch has 2 and not 4, which need 0.0 GiB")],
)
def test_the_log_says_why_a_batch_is_what_it_is(student: Student, free: int, reason: str) -> None:
    tokenized = tokenize(student, training_set(9), train_parameters())
    parameters = train_parameters(**AUTO, lora=AUTO_LORA)
    record = inspect(tokenized, student.tokenizer(), parameters, SHAPE, 1e3, free)
    assert describe(record).splitlines()[0].endswith(reason)
    assert "epochs 3, 7 steps of 4, learning rate 0.001, LoRA rank 16" in describe(record)


def test_record_is_logged_in_a_line_and_its_details_where_they_are_wanted(
    student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "rebase"):
        parameters = train_parameters(learning_rate=1e-3)
        record = inspect_training(training_set(9), replace(student, workdir=tmp_path), parameters)
    text = describe(record)
    levels = [(line.levelname, line.getMessage()) for line in caplog.records if line.name.startswith("rebase")]
    assert levels == [("INFO", text.partition("\n")[0]), ("DEBUG", text.partition("\n")[2])]
    assert len(text.splitlines()) < 16
    assert "9 of 9 examples, epochs 1, 3 steps of 4, learning rate 0.001, LoRA rank 2" in text
    assert text.splitlines()[0].endswith("a batch has 2, as train.batch_size says")
    assert "⟦yes 0<|im_end|>⟧" in text


def test_training_that_needs_more_memory_than_is_free(
    student: Student, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rebase.student.preflight.free_memory", lambda: 2**20)
    record = inspect_training(training_set(9), student, train_parameters())
    assert record["memory"]["free"] == 2**20 < record["memory"]["bytes"]
    assert "needs more memory than is free" in caplog.text


@pytest.mark.parametrize(("rate", "is_warned_of"), [("auto", False), (2e-3, False), (3e-3, True), (0.01, True)])
def test_a_learning_rate_far_above_that_of_auto_is_warned_of(
    student: Student, caplog: pytest.LogCaptureFixture, rate: object, is_warned_of: bool
) -> None:
    inspect_training(training_set(9), student, train_parameters(learning_rate=rate))
    warnings = [line.getMessage() for line in caplog.records if "far above" in line.getMessage()]
    expected = f"train: the learning rate {rate} is far above the one that auto chooses for a student of this size, "
    assert [line.partition("0.001")[0] for line in warnings] == [expected] * is_warned_of


def test_no_example_is_longer_than_learned_positions(tmp_path: Path) -> None:
    learned = make_student(tmp_path, architecture="gpt2")  # 1024 positions, and one token for each letter
    data = training_set(9)
    data.loc[4, "prompt"] += "x" * 1024
    with pytest.raises(RebaseError, match=r"the student has 1024 positions\. Set train\.max_length to 1024"):
        inspect_training(data, learned, train_parameters(max_length=2048))
    assert inspect_training(data, learned, train_parameters(max_length=1024))["rejected"] == {"target_truncated": 1}
