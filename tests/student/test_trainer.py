import math
from dataclasses import replace

import numpy as np
import pytest

from rebase.errors import RebaseError
from rebase.parameters import ChosenTraining, LoraParameters
from rebase.student.formatting import tokenize_example
from rebase.student.handle import Student
from rebase.student.hyperparameters import DivergedError
from rebase.student.preflight import measure_shape
from rebase.student.tokenization import tokenize
from rebase.student.training import train_adapter
from tests.tiny import train_parameters, training_set

#: One batch per step, without randomness in the loss.
PLAIN = {"lora": LoraParameters(rank=2, alpha=4, dropout=0.0), "gradient_accumulation": 1}


def test_only_the_completion_is_learned(fresh: Student) -> None:
    """The loss of the first step is that of the completion's tokens, computed by hand."""
    import torch

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


def test_loss_is_that_of_trl(fresh: Student) -> None:
    """Our logits at the targets give the loss of TRL's own, which scores every position on a CPU."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from rebase.student.trainer import target_logits

    with fresh.open() as (model, tokenizer), torch.no_grad():
        ids, labels = tokenize_example(tokenizer, "<s>Where?", "in trees")
        inputs = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        logits, targets = target_logits(model, inputs)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        add_fused_lm_head(model)
        torch.testing.assert_close(model(**inputs, fused_lm_head=True).loss, loss, rtol=1e-4, atol=0)


def test_non_finite_loss_stops(fresh: Student) -> None:
    parameters = train_parameters(warmup_steps=0, checkpoint_steps=1).model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RebaseError, match=r"loss at step \d+ is .*last good checkpoint is .*learning_rate") as raised:
        train_adapter(fresh, training_set(40), parameters)
    (run,) = fresh.workdir.iterdir()
    complete = sorted(folder.name for folder in run.glob("checkpoint-*") if (folder / "complete").exists())
    assert complete
    assert str(run / complete[-1]) in str(raised.value)
    assert (run / complete[-1] / "adapter_model.safetensors").exists()


def test_a_non_finite_validation_loss_stops(fresh: Student) -> None:
    parameters = train_parameters(warmup_steps=0, validation_share=0.2, keep="best").model_copy(
        update={"learning_rate": 1e30}
    )
    with pytest.raises(DivergedError, match=r"the validation loss after step 1 is (nan|inf)\. There is no checkpoint"):
        train_adapter(fresh, training_set(5), parameters)  # one step, whose loss is finite


def test_a_student_that_computes_no_numbers_is_not_a_learning_rate_too_high(fresh: Student, monkeypatch) -> None:
    monkeypatch.setattr("rebase.student.trainer.validation_loss", lambda *_: math.nan)
    parameters = train_parameters(validation_share=0.2, keep="best", learning_rate="auto")
    with pytest.raises(RebaseError, match=r"of the untrained student is nan\. Set compute\.dtype to float32") as raised:
        train_adapter(fresh, training_set(20), parameters)
    assert not isinstance(raised.value, DivergedError)


@pytest.mark.parametrize(
    ("name", "used"), [("paged_adamw_8bit", "adamw_torch"), ("adamw_torch_fused",) * 2, ("lion_8bit",) * 2]
)
def test_the_optimizer_that_was_used_is_recorded(fresh: Student, name: str, used: str) -> None:
    """Without a GPU, AdamW has another form, but no other optimizer becomes AdamW."""
    import torch

    from rebase.student.trainer import _choose_optimizer

    _, log, counts = train_adapter(fresh, training_set(8), train_parameters(optimizer=name, learning_rate=0.001))
    assert counts["optimizer"] == (name if torch.cuda.is_available() else used)
    assert log["loss"].notna().all()
    assert _choose_optimizer(name, cuda=True) == name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_computes_in_the_number_format_of_the_student(
    fresh: Student, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Without a GPU, this test ends where the settings are known."""
    import torch

    from rebase.student import trainer

    fresh, parameters = replace(fresh, dtype=dtype), train_parameters()
    tokenized = tokenize(fresh, training_set(8), parameters)
    chosen = ChosenTraining.model_validate(parameters.model_dump())
    settings: dict[str, object] = {}

    def configure(**given: object) -> None:
        settings.update(given)
        raise RuntimeError("there is no GPU")

    with fresh.open() as (model, tokenizer):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(trainer, "_activations_fit", lambda *arguments: True)
        monkeypatch.setattr(trainer, "SFTConfig", configure)
        given = (
            model,
            tokenizer,
            tokenized,
            chosen,
            measure_shape(fresh, parameters),
            fresh.workdir,
            lambda _: None,
            0,
        )
        with pytest.raises(RuntimeError, match="there is no GPU"):
            trainer.make_trainer(*given)
        monkeypatch.undo()
    assert settings["bf16"] == (dtype == "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_examples_do_not_see_each_other(fresh: Student, dtype: str) -> None:
    """Packed training has the losses of padded training, step by step."""
    fresh = replace(fresh, dtype=dtype)
    _, padded, _ = train_adapter(fresh, training_set(24), train_parameters(batch_size=8, **PLAIN))
    _, packed, _ = train_adapter(fresh, training_set(24), train_parameters(batch_size=8, packing=True, **PLAIN))
    np.testing.assert_allclose(packed["loss"], padded["loss"], rtol=1e-4 if dtype == "float32" else 2**-8)
    assert len(packed) == 3


def test_examples_are_padded_if_packed_ones_would_see_each_other(
    fresh: Student, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that ignores restarting positions attends to all earlier tokens."""
    from transformers import LlamaModel

    original = LlamaModel.forward

    def forward(self, *args, position_ids=None, **kwargs):
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    _, packed, _ = train_adapter(fresh, training_set(8), train_parameters(packing=True, batch_size=4, **PLAIN))
    _, padded, _ = train_adapter(fresh, training_set(8), train_parameters(batch_size=4, **PLAIN))
    assert "padded instead" in caplog.text
    np.testing.assert_allclose(packed["loss"], padded["loss"], rtol=1e-6)


def test_smaller_parts_when_out_of_memory(
    fresh: Student, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes two examples at most: the part is halved, the step stays the same."""
    from torch import OutOfMemoryError
    from transformers import LlamaModel

    parameters = train_parameters(batch_size=8, **PLAIN)
    _, expected, _ = train_adapter(fresh, training_set(16), parameters)
    original = LlamaModel.forward

    def forward(self, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise OutOfMemoryError("CUDA out of memory.")
        return original(self, input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    _, log, _ = train_adapter(replace(fresh, workdir=fresh.workdir / "short"), training_set(16), parameters)
    assert "from now on 2 examples at a time, and as many per step as before" in caplog.text
    np.testing.assert_allclose(log["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(log["token_accuracy"], expected["token_accuracy"])


def test_smaller_parts_when_the_validation_loss_runs_out_of_memory(
    fresh: Student, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that, without gradients, takes two examples at most, as if other programs took the memory meanwhile."""
    import torch
    from transformers import LlamaModel

    parameters = train_parameters(batch_size=8, validation_share=0.25, keep="best", **PLAIN)
    _, expected, _ = train_adapter(fresh, training_set(24), parameters)
    original = LlamaModel.forward

    def forward(self, input_ids, **kwargs):
        if len(input_ids) > 2 and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    _, log, _ = train_adapter(replace(fresh, workdir=fresh.workdir / "short"), training_set(24), parameters)
    assert "from now on 2 examples at a time, and as many per step as before" in caplog.text
    for column in ("loss", "validation_loss", "token_accuracy"):
        np.testing.assert_allclose(log[column], expected[column], rtol=1e-5)


def test_no_memory_for_one_example(fresh: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    def forward(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(RebaseError, match=r"(?s)out of memory with one example.*max_length"):
        train_adapter(fresh, training_set(4), train_parameters())
