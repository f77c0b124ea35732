"""The soak in a small size: faults, kills, and an audit of the provider's own ledger."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "soak.py"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--provider=anthropic"],
        ["--provider=openai", "--batch"],
    ],
    ids=" ".join,
)
def test_every_row_is_accounted_for_and_nothing_is_billed_twice(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--rows=400", "--kills=2", *arguments], capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, report
    assert report["every_row_accounted_for"]
    assert report["billed_twice"] <= report["in_transit_at_kills"]
    assert report["attempts"] > report["rows"]
