import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rebase.errors import RebaseError
from rebase.records import Task
from rebase.student.experts import format_examples, inspect_training
from rebase.student.handle import Student
from rebase.student.preflight import describe
from tests.tiny import reasoned_examples, train_parameters, training_set


def test_formatted_examples_keep_order_and_rationales(student: Student, reading_task: Task) -> None:
    both = pd.concat([reasoned_examples(2, "Because."), reasoned_examples(1)], ignore_index=True)
    frame = format_examples(reading_task, both, {}, student, "rationale_then_answer")
    assert list(frame.columns) == ["example_id", "prompt", "completion"]
    assert list(frame["completion"]) == [
        "Because. So the answer is in tree 0.",
        "Because. So the answer is in tree 1.",
        "in tree 0",
    ]


def test_no_examples(student: Student, reading_task: Task) -> None:
    with pytest.raises(RebaseError, match=r"no examples for the task 'tiny_reading'.*examples_rejected"):
        format_examples(reading_task, reasoned_examples(0), {}, student, "answer")


def test_record_is_logged_in_a_few_lines(student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        record = inspect_training(training_set(9), replace(student, workdir=tmp_path), train_parameters())
    text = describe(record)
    assert text in caplog.text
    assert len(text.splitlines()) < 16
    assert "9 of 9 examples, 3 steps" in text
    assert "⟦yes 0<|im_end|>⟧" in text
