"""4-bit weights on a CPU, and the undocumented attributes that the module relies on."""

from dataclasses import replace

import numpy as np
import pytest

from rebase.parameters import LoraParameters
from rebase.student.handle import Student
from rebase.student.preflight import measure_shape
from rebase.student.quantization import dequantize_if_it_fits
from rebase.student.training import train_adapter
from tests.tiny import tolerances, train_parameters, training_set


def test_dequantized_weights_have_the_values_of_nf4(any_student: Student) -> None:
    import torch

    shape = measure_shape(any_student, train_parameters(four_bit=True))
    with any_student.open(four_bit=True) as (model, tokenizer):
        assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
        ids = torch.tensor([tokenizer("Herons nest in trees.")["input_ids"]])
        with torch.no_grad():
            quantized = model(ids).logits
            dequantized = dequantize_if_it_fits(model, shape)(ids).logits
        assert model.model.layers[0].self_attn.q_proj.weight.dtype == getattr(torch, any_student.dtype)
    torch.testing.assert_close(dequantized, quantized, **tolerances(any_student.dtype))


def test_relies_on_attributes_of_bitsandbytes_and_transformers(student: Student) -> None:
    """If this fails, a new version has other names for them: see `rebase.student.quantization`."""
    from bitsandbytes.nn.modules import Linear4bit

    assert hasattr(Linear4bit(64, 64), "support_avx512bf16_for_cpu")
    with student.open(four_bit=True) as (model, _):
        assert model.is_loaded_in_4bit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_flow_through_4_bit_weights(fresh: Student, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """If memory is too short to dequantize them; also after a pass without gradients, which packing takes."""
    settings = {"four_bit": True, "packing": True, "lora": LoraParameters(rank=2, alpha=4, dropout=0.0), "epochs": 3}
    fresh = replace(fresh, dtype=dtype)
    _, dequantized, _ = train_adapter(fresh, training_set(8), train_parameters(**settings))
    monkeypatch.setattr("rebase.student.trainer.dequantize_if_it_fits", lambda model, shape: model)
    other = replace(fresh, workdir=fresh.workdir / "packed")
    _, packed, _ = train_adapter(other, training_set(8), train_parameters(**settings))
    np.testing.assert_allclose(packed["loss"], dequantized["loss"], rtol=1e-3 if dtype == "float32" else 2**-7)
    assert (packed["gradient_norm"] > 0).all()
