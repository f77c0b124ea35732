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
from rebase.parameters import LoraParameters
from rebase.records import Adapter
from rebase.student.handle import Student, float32_logits
from rebase.student.tokenization import TRUNCATED, VALIDATION, order_examples, tokenize
from rebase.student.training import train_adapter
from tests.tiny import tolerances, train_parameters


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
    assert counts["rejected"] == {}
    assert list(log["step"]) == list(range(1, 13))
    assert log["epoch"].iloc[-1] == pytest.approx(4)
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert not list(fresh.workdir.rglob("checkpoint-*"))
    with fresh.open({"expert": adapter}) as (model, _):
        assert model.peft_config["expert"].r == 2


def test_only_the_completion_is_learned(fresh: Student) -> None:
    """The loss of the first step is that of the completion's tokens, computed by hand."""
    import torch

    from rebase.student.formatting import tokenize_example

    data = training_set(4)
    _, log, _ = train_adapter(fresh, data, train_parameters())
    with fresh.open() as (model, tokenizer):
        total, count = 0.0, 0
        for prompt, completion in zip(data["prompt"], data["completion"], strict=True):
            ids, labels = tokenize_example(tokenizer, prompt, completion)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
            total, count = total + loss.item(), count + sum(label != -100 for label in labels)
    assert log["loss"].iloc[0] == pytest.approx(total / count, rel=1e-3)


def test_long_targets_are_rejected_and_counted(fresh: Student) -> None:
    data = training_set(6)
    data.loc[0, "completion"] = "x" * 500
    _, _, counts = train_adapter(fresh, data, train_parameters())
    assert (counts["in"], counts["kept"], counts["rejected"]) == (6, 5, {TRUNCATED: 1})


def test_less_than_a_batch(fresh: Student) -> None:
    with pytest.raises(RebaseError, match=r"3 training examples, fewer than one batch of 4.*batch_size 2"):
        train_adapter(fresh, training_set(3), train_parameters())


def test_loss_that_is_no_number_stops(fresh: Student) -> None:
    parameters = train_parameters(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(RebaseError, match=r"loss at step \d+ is .*last good checkpoint is .*learning_rate") as raised:
        train_adapter(fresh, training_set(40), parameters)
    (run,) = fresh.workdir.iterdir()
    kept = sorted(folder.name for folder in run.glob("checkpoint-*") if (folder / "complete").exists())
    assert kept
    assert str(run / kept[-1]) in str(raised.value)
    assert (run / kept[-1] / "adapter_model.safetensors").exists()


def test_optimizer_gives_way_without_gpu(fresh: Student, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="rebase"):
        train_adapter(fresh, training_set(4), train_parameters(optimizer="paged_adamw_8bit", four_bit=True))
    assert "paged_adamw_8bit needs a GPU" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_examples_do_not_see_each_other(fresh: Student, dtype: str) -> None:
    """Packed training has the losses of unpacked training, step by step."""
    fresh = replace(fresh, dtype=dtype)
    data, still = training_set(24), {"lora": LoraParameters(rank=2, alpha=4, dropout=0.0), "batch_size": 8}
    _, apart, _ = train_adapter(fresh, data, train_parameters(gradient_accumulation=1, **still))
    _, packed, _ = train_adapter(fresh, data, train_parameters(gradient_accumulation=1, packing=True, **still))
    np.testing.assert_allclose(packed["loss"], apart["loss"], rtol=1e-4 if dtype == "float32" else 2**-8)
    assert len(packed) == 3


def test_packing_gives_way_where_examples_would_see_each_other(
    fresh: Student, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows nothing of positions that start anew sees all that is before."""
    from transformers import LlamaModel

    plain = LlamaModel.forward

    def forward(self, *args, position_ids=None, **kwargs):
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    settings = {"lora": LoraParameters(rank=2, alpha=4, dropout=0.0), "batch_size": 4, "gradient_accumulation": 1}
    _, packed, _ = train_adapter(fresh, training_set(8), train_parameters(packing=True, **settings))
    _, apart, _ = train_adapter(fresh, training_set(8), train_parameters(**settings))
    assert "padded instead" in caplog.text
    np.testing.assert_allclose(packed["loss"], apart["loss"], rtol=1e-6)


def test_less_at_once_where_memory_is_short(
    fresh: Student, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that takes two examples at most: the batch is halved, the step stays what it was."""
    from torch import OutOfMemoryError
    from transformers import LlamaModel

    settings = {"lora": LoraParameters(rank=2, alpha=4, dropout=0.0), "batch_size": 8, "gradient_accumulation": 1}
    _, roomy, _ = train_adapter(fresh, training_set(16), train_parameters(**settings))
    plain = LlamaModel.forward

    def forward(self, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise OutOfMemoryError("CUDA out of memory.")
        return plain(self, input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    other = replace(fresh, workdir=tmp_path / "short")
    _, short, _ = train_adapter(other, training_set(16), train_parameters(**settings))
    assert "from now on 2 examples at a time, and as many per step as before" in caplog.text
    np.testing.assert_allclose(short["loss"], roomy["loss"], rtol=1e-5)
    np.testing.assert_allclose(short["token_accuracy"], roomy["token_accuracy"])


def test_no_memory_for_one_example(fresh: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    def forward(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(RebaseError, match=r"(?s)out of memory with one example.*max_length"):
        train_adapter(fresh, training_set(4), train_parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_weights_are_held_decoded(fresh: Student, dtype: str) -> None:
    """What training computes with has the values of the NF4 weights, to the last bit."""
    import torch

    fresh = replace(fresh, dtype=dtype)

    from rebase.student.preflight import measure_shape
    from rebase.student.quantization import dequantize_if_it_fits

    shape = measure_shape(fresh, train_parameters(four_bit=True))
    with fresh.open(four_bit=True) as (model, tokenizer):
        ids = torch.tensor([tokenizer("Herons nest in trees.")["input_ids"]])
        with torch.no_grad():
            quantized = model(ids).logits
            decoded = dequantize_if_it_fits(model, shape)(ids).logits
        assert model.model.layers[0].self_attn.q_proj.weight.dtype == getattr(torch, dtype)
    torch.testing.assert_close(decoded, quantized, **tolerances(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_stay_in_four_bits_are_trained_through(
    fresh: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """As where memory is too short to decode them: also after a look at them without gradients, which packing takes."""
    settings = {"four_bit": True, "packing": True, "lora": LoraParameters(rank=2, alpha=4, dropout=0.0), "epochs": 3}
    fresh = replace(fresh, dtype=dtype)
    _, decoded, _ = train_adapter(fresh, training_set(8), train_parameters(**settings))
    monkeypatch.setattr("rebase.student.trainer.dequantize_if_it_fits", lambda model, shape: model)
    other = replace(fresh, workdir=tmp_path / "packed")
    _, packed, _ = train_adapter(other, training_set(8), train_parameters(**settings))
    np.testing.assert_allclose(packed["loss"], decoded["loss"], rtol=1e-3 if dtype == "float32" else 2**-7)
    assert (packed["gradient_norm"] > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_held_out_examples_are_not_trained_on(fresh: Student, keep: str, dtype: str) -> None:
    fresh = replace(fresh, dtype=dtype)
    data = pd.concat([training_set(10), training_set(10)], ignore_index=True)  # every prompt twice
    parameters = train_parameters(validation_share=0.2, epochs=3, keep=keep, learning_rate=0.1)
    tokenized = tokenize(fresh, data, parameters)
    apart = {tuple(example.input_ids) for example in tokenized.validation}
    assert len(apart) == 2
    assert not apart & {tuple(example.input_ids) for example in tokenized.train}

    adapter, log, counts = train_adapter(fresh, data, parameters)
    assert (counts["in"], counts["kept"], counts["rejected"]) == (20, 16, {VALIDATION: 4})
    measured = log.dropna(subset="validation_loss")
    assert list(measured["step"]) == [4, 8, 12]
    kept = measured["validation_loss"].min() if keep == "best" else measured["validation_loss"].iloc[-1]
    assert loss_of(fresh, adapter, tokenized.validation) == pytest.approx(
        kept, rel=1e-4 if dtype == "float32" else 2**-8
    )


def loss_of(student: Student, adapter: Adapter, examples: list) -> float:
    """The mean loss over the examples' targets, one example at a time."""
    import torch

    total, count = 0.0, 0
    with student.open({"expert": adapter}) as (model, _), torch.no_grad(), float32_logits(model):
        for example in examples:
            logits, labels = model(torch.tensor([example.input_ids])).logits[0, :-1], torch.tensor(example.labels[1:])
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += int((labels != -100).sum())
    return total / count


def test_finished_run_is_not_trained_again(fresh: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    first, log, counts = train_adapter(fresh, training_set(8), train_parameters())
    expected = weights(first)
    monkeypatch.setattr("rebase.student.trainer.make_trainer", None)  # would fail if it were called
    again, same_log, same_counts = train_adapter(fresh, training_set(8), train_parameters(checkpoint_steps=7))
    assert same_counts == counts
    pd.testing.assert_frame_equal(same_log, log)
    for name, value in weights(again).items():
        np.testing.assert_array_equal(value, expected[name])


def test_full_disk(fresh: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(2**20))
    with pytest.raises(RebaseError, match=r"1 MiB free, and checkpoints need \d+"):
        train_adapter(fresh, training_set(4), train_parameters())


LIMITED = """
import sys, pathlib, resource
from rebase.errors import RebaseError
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from tests.student.test_training import training_set
from tests.tiny import train_parameters
student = Student(sys.argv[1], None, pathlib.Path("unused"), pathlib.Path(sys.argv[2]), "float32")
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    train_adapter(student, training_set(8), train_parameters())
except RebaseError as error:
    print(error)
"""


@pytest.mark.slow
def test_checkpoint_that_cannot_be_written(fresh: Student) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, fresh.model, str(fresh.workdir)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written" in done.stdout
    assert "Free disk space" in done.stdout


KILLED = """
import sys, pathlib
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from tests.student.test_training import training_set
from tests.tiny import train_parameters
student = Student(sys.argv[1], None, pathlib.Path("unused"), pathlib.Path(sys.argv[2]), "float32")
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
    while not list(fresh.workdir.rglob("checkpoint-3/complete")):
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
