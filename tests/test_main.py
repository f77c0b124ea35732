"""The command of the installed package."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_package_runs_as_kedro_run_does() -> None:
    command = [sys.executable, "-m", "rebase", "--pipelines=rebse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "There is no pipeline 'rebse'. Did you mean rebase?" in done.stdout + done.stderr
