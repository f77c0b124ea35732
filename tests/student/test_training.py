import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.records import Adapter
from rebase.student.handle import Student
from rebase.student.training import TRUNCATED, order_examples, train_adapter
from tests.tiny import train_parameters


@pytest.fixture
def fresh(student: Student, tmp_path: Path) -> Student:
    """The tiny student with a work folder of its own."""
    return replace(student, workdir=tmp_path / "work")


def training_set(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example_id": [str(n) for n in range(count)],
            "prompt": [f"<s>Say {'a' * (n % 5)} {n}:" for n in range(count)],
            "completion": [f"yes {n}" for n in range(count)],
        }
    )


def weights(adapter: Adapter) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(adapter.folder / "adapter_model.safetensors")


def test_adapter_log_and_counts(fresh: Student) -> None:
    adapter, log, counts = train_adapter(fresh, training_set(12), train_parameters(epochs=4))
    assert adapter.base_model == "tiny"
    assert {file.suffix for file in adapter.folder.iterdir()} <= {".safetensors", ".json", ".md"}
    config = (adapter.folder / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "tiny"
    assert str(fresh.model) not in config
    assert counts["in"] == counts["kept"] == 12
    assert counts["refused"] == {}
    assert list(log["step"]) == list(range(1, 13))
    assert log["epoch"].iloc[-1] == pytest.approx(4)
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert not list(fresh.workdir.rglob("checkpoint-*"))
    with fresh.open(adapter) as (model, _):
        assert model.peft_config["default"].r == 2


def test_only_the_completion_is_learnt(fresh: Student) -> None:
    """The loss of the first step is that of the completion's tokens, computed by hand."""
    import torch

    from rebase.student.formatting import encode_example

    data = training_set(4)
    _, log, _ = train_adapter(fresh, data, train_parameters())
    with fresh.open() as (model, tokenizer):
        total, count = 0.0, 0
        for prompt, completion in zip(data["prompt"], data["completion"], strict=True):
            ids, labels = encode_example(tokenizer, prompt, completion)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
            total, count = total + loss.item(), count + sum(label != -100 for label in labels)
    assert log["loss"].iloc[0] == pytest.approx(total / count, rel=1e-3)


def test_long_targets_are_refused_and_counted(fresh: Student) -> None:
    data = training_set(6)
    data.loc[0, "completion"] = "x" * 500
    _, _, counts = train_adapter(fresh, data, train_parameters())
    assert (counts["in"], counts["kept"], counts["refused"]) == (6, 5, {TRUNCATED: 1})


def test_less_than_a_batch(fresh: Student) -> None:
    with pytest.raises(RebaseError, match=r"3 training examples, fewer than one batch of 4.*batch_size 2"):
        train_adapter(fresh, training_set(3), train_parameters())


def test_loss_that_is_no_number_stops(fresh: Student) -> None:
    with pytest.raises(RebaseError, match=r"loss at step \d+ is (nan|inf).*learning_rate"):
        train_adapter(fresh, training_set(40), train_parameters(learning_rate=1e30, warmup_steps=0))


def test_optimizer_gives_way_without_gpu(fresh: Student, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train_adapter(fresh, training_set(4), train_parameters(optimizer="paged_adamw_8bit", four_bit=True))
    assert "paged_adamw_8bit needs a GPU" in caplog.text


def test_packed_examples_do_not_see_each_other(fresh: Student) -> None:
    """With everything in one packed batch, the first loss is that of the examples apart."""
    data = training_set(8)
    one = {"batch_size": 1, "gradient_accumulation": 1}
    _, packed, _ = train_adapter(fresh, data, train_parameters(packing=True, max_length=400, **one))
    _, apart, _ = train_adapter(fresh, data, train_parameters(batch_size=8, gradient_accumulation=1))
    assert len(packed) == 1
    assert packed["loss"].iloc[0] == pytest.approx(apart["loss"].iloc[0], rel=1e-4)


KILLED = """
import sys, pathlib
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from tests.student.test_training import training_set
from tests.tiny import train_parameters
student = Student(sys.argv[1], None, pathlib.Path("unused"), pathlib.Path(sys.argv[2]))
train_adapter(student, training_set(240), train_parameters())
"""


@pytest.mark.slow
def test_killed_run_goes_on_and_ends_the_same(fresh: Student, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, fresh.model, str(fresh.workdir)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 300
    while not list(fresh.workdir.rglob("checkpoint-3/whole")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = fresh.workdir.iterdir()
    (run / "checkpoint-59").mkdir()  # half-written: without its mark

    resumed, log, counts = train_adapter(fresh, training_set(240), train_parameters())
    straight, whole_log, _ = train_adapter(
        replace(fresh, workdir=tmp_path / "other"), training_set(240), train_parameters()
    )
    assert 3 <= counts["resumed_from_step"] < 59
    assert list(log["step"]) == list(range(1, 61))
    np.testing.assert_allclose(log["loss"], whole_log["loss"], rtol=1e-5)
    expected = weights(straight)
    for name, value in weights(resumed).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7)


lengths_of = st.lists(st.integers(1, 500), min_size=1, max_size=90)


@given(lengths=lengths_of, epochs=st.integers(1, 3), batch=st.integers(1, 8), seed=st.integers(0, 9))
def test_order_has_every_example_once_an_epoch(lengths: list[int], epochs: int, batch: int, seed: int) -> None:
    order = order_examples(lengths, epochs, batch, seed)
    assert sorted(order) == sorted(list(range(len(lengths))) * epochs)
    assert order == order_examples(lengths, epochs, batch, seed)


@given(lengths=lengths_of, seed=st.integers(0, 9))
def test_part_of_an_epoch_has_no_example_twice(lengths: list[int], seed: int) -> None:
    order = order_examples(lengths, 0.5, 4, seed)
    assert len(order) == max(1, round(len(lengths) / 2)) == len(set(order))


def test_batches_are_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 64).tolist()
    order = order_examples(lengths, 1, 8, 0)
    padded = sum(8 * max(lengths[n] for n in order[start : start + 8]) for start in range(0, 64, 8))
    assert padded < 1.2 * sum(lengths)
