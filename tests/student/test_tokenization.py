import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from rebase.student.handle import Student
from rebase.student.tokenization import chunks, order_examples, tokenize
from tests.tiny import train_parameters, training_set

lengths_of = st.lists(st.integers(1, 500), min_size=1, max_size=90)


def test_validation_and_training_share_no_prompt(student: Student) -> None:
    data = pd.concat([training_set(10), training_set(10)], ignore_index=True)  # every prompt twice
    data.loc[3, "completion"] = "x" * 500
    tokenized = tokenize(student, data, train_parameters(validation_share=0.2))
    validation = {tuple(example.input_ids) for example in tokenized.validation}
    assert len(validation) == 2
    assert not validation & {tuple(example.input_ids) for example in tokenized.train}
    assert tokenized.truncated == 1
    assert len(tokenized.train) + sum(tokenized.rejected.values()) == 20


@given(lengths=lengths_of, epochs=st.integers(1, 3), step=st.integers(1, 8), seed=st.integers(0, 9))
def test_order_has_every_example_once_an_epoch(lengths: list[int], epochs: int, step: int, seed: int) -> None:
    order = order_examples(lengths, epochs, step, seed)
    assert sorted(order) == sorted(list(range(len(lengths))) * epochs)
    assert order == order_examples(lengths, epochs, step, seed)


@given(lengths=lengths_of, seed=st.integers(0, 9))
def test_part_of_an_epoch_has_no_example_twice(lengths: list[int], seed: int) -> None:
    order = order_examples(lengths, 0.5, 4, seed)
    assert len(order) == max(1, round(len(lengths) / 2)) == len(set(order))


@given(lengths=lengths_of, epochs=st.integers(1, 3), step=st.integers(1, 8), seed=st.integers(0, 9))
def test_a_step_of_a_small_set_has_no_example_twice(lengths: list[int], epochs: int, step: int, seed: int) -> None:
    """Where steps end with the epoch; elsewhere, a step has the end of one epoch and the beginning of the next."""
    lengths = lengths[: min(8, len(lengths) // step) * step]
    steps = chunks(order_examples(lengths, epochs, step, seed), step) if lengths else []
    assert all(len(set(examples)) == step for examples in steps)


def test_steps_have_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 64).tolist()
    order = order_examples(lengths, 1, 8, 0)
    padded = sum(8 * max(lengths[n] for n in order[start : start + 8]) for start in range(0, 64, 8))
    assert padded < 1.2 * sum(lengths)
