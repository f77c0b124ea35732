import json
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rebase.errors import RebaseError
from rebase.parameters import TrainParameters
from rebase.student.formatting import IGNORED
from rebase.student.handle import Student
from rebase.student.preflight import Shape, describe, inspect, inspect_training, measure_shape
from rebase.student.tokenization import TokenizedExample, TokenizedExamples, tokenize
from tests.tiny import train_parameters, training_set

SHAPE = Shape(total=1500, linear=1000, head=500, widths=100, vocabulary=50, weights=6000, activation=4)


def inspect_set(student: Student, data: pd.DataFrame, parameters: TrainParameters) -> dict:
    return inspect(tokenize(student, data, parameters), student.tokenizer(), parameters, SHAPE, rate=1e3)


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


def test_no_token_has_loss(student: Student) -> None:
    empty = TokenizedExamples([TokenizedExample([1, 2], [IGNORED, IGNORED])] * 4, [], 0)
    with pytest.raises(RebaseError, match="4 of 4 examples have no token with loss"):
        inspect(empty, student.tokenizer(), train_parameters(), SHAPE, 1.0)


def test_end_of_turn_missing(student: Student) -> None:
    endless = TokenizedExamples([TokenizedExample([1, 5], [IGNORED, 5])] * 4, [], 0)
    with pytest.raises(RebaseError, match=r"4 of 4 targets do not end with .*im_end"):
        inspect(endless, student.tokenizer(), train_parameters(), SHAPE, 1.0)
    tokenizer = student.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RebaseError, match="no end-of-text token"):
        inspect(endless, tokenizer, train_parameters(), SHAPE, 1.0)


def test_shape_is_that_of_the_weights(student: Student) -> None:
    import torch

    shape = measure_shape(student, train_parameters())
    with student.open() as (model, _):
        linear = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
        assert shape.linear == sum(module.weight.numel() for module in linear)
        assert shape.weights == sum(weights.numel() * weights.element_size() for weights in model.parameters())
        assert shape.head == model.lm_head.weight.numel()


def test_record_is_logged_in_a_line_and_its_details_where_they_are_wanted(
    student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "rebase"):
        record = inspect_training(training_set(9), replace(student, workdir=tmp_path), train_parameters())
    text = describe(record)
    levels = [(line.levelname, line.getMessage()) for line in caplog.records if line.name.startswith("rebase")]
    assert levels == [("INFO", text.partition("\n")[0]), ("DEBUG", text.partition("\n")[2])]
    assert len(text.splitlines()) < 16
    assert "9 of 9 examples, 3 steps" in text
    assert "⟦yes 0<|im_end|>⟧" in text
