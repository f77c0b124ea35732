"""Measure the time, memory and scores of the main job for each sample task, from an empty project.

    python benchmarks/main_job.py [TASK ...]

Runs ``kedro run --pipelines=rebase`` in a temporary copy of the project, one process for each task. The first task also
builds the datastore and converts the model. Prints a line for each task, then JSON. Times depend on the machine and its
load, so compare them with the budget only on the same machine.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TASKS = ("reading_qa", "news_topic", "word_problems")
BUDGET_SECONDS = 360
BUDGET_GIB = 4


def copy_project(project: Path) -> None:
    """Copy what a run needs, without the outputs of earlier runs."""
    for name in ("conf", "src", "data/01_raw"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "pyproject.toml", project)


def run_job(project: Path, params: str) -> None:
    """Run the main job with these parameters."""
    command = [sys.executable, "-m", "kedro", "run", "--pipelines=rebase", f"--params={params}"]
    subprocess.run(command, cwd=project, check=True, env={**os.environ, "DO_NOT_TRACK": "1"})


def latest(versions: Path) -> Path:
    """Return the file of the last version of a versioned dataset."""
    return max(versions.iterdir()) / versions.name


def measure(project: Path, task: str) -> dict:
    """Run one task; return seconds, peak memory so far (GiB) and scores."""
    started = time.monotonic()
    run_job(project, f"task={task}")
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    scores = latest(project / "data/08_reporting" / task / "scores.json")
    return {"seconds": round(seconds), "peak_gib_so_far": round(peak, 2), "scores": json.loads(scores.read_text())}


def main(tasks: list[str]) -> None:
    """Run the tasks one after the other and print time, memory and scores."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        copy_project(project)
        results = {task: measure(project, task) for task in tasks}
    for task, result in results.items():
        systems = result["scores"]["systems"]
        gains = [f"{name} {before['value']:.1f} -> {systems['expert'][name]['value']:.1f}"
                 for name, before in systems["student"].items()]  # fmt: skip
        seconds, peak = result["seconds"], result["peak_gib_so_far"]
        of_budget = f"{seconds / BUDGET_SECONDS:.2f} of the time, {peak / BUDGET_GIB:.2f} of the memory allowed"
        print(f"{task:<14} {seconds} s, {peak:.2f} GiB ({of_budget}); {', '.join(gains)}")
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:] or list(TASKS))
