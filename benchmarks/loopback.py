"""Run the tests' loopback provider in its own process, for the benchmarks of the teacher."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Run the provider with these arguments (``python -m tests.teacher.server --help``); yield its address."""
    command = [sys.executable, "-m", "tests.teacher.server", "--answers=schema", *arguments]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def page(address: str, name: str) -> Any:
    """Return one of the provider's status pages: ``_state`` or ``_ledger``."""
    with urlopen(f"{address}/{name}") as response:
        return json.load(response)
