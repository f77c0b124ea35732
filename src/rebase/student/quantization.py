"""4-bit weights on a CPU: what bitsandbytes and transformers do there, and must not do in training.

The only module that relies on undocumented attributes: ``Linear4bit.support_avx512bf16_for_cpu`` of bitsandbytes and
``is_loaded_in_4bit`` of transformers' models (see tests/student/test_quantization.py).
"""

import logging
from typing import TYPE_CHECKING, Any

from rebase.student.memory import available_memory

if TYPE_CHECKING:
    from rebase.student.preflight import Shape


def keep_differentiable(model: Any) -> None:
    """Keep the layout of 4-bit weights on a CPU with AVX512-BF16.

    Without this the first pass without gradients changes the layout for inference: after it no gradient flows through
    the weights, products are rounded to bfloat16, and layers narrower than a block of 64 fail.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def dequantize_if_it_fits(model: Any, shape: "Shape") -> Any:
    """Dequantize NF4 weights to the number format of computing, if they fit in half of the available memory.

    On a CPU, decoding the weights for each product takes a good part of a step. The values stay those of NF4,
    so the adapter is the one that QLoRA trains.
    """
    if shape.weights > available_memory() / 2:
        return model
    logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)  # warns of dequantizing
    model = model.dequantize()
    model.is_loaded_in_4bit = False  # transformers leaves it set, and TRL would treat the model as quantized
    return model
