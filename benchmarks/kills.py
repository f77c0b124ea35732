"""Check that a datastore is the same after many kills of `embed` as without any.

    python benchmarks/kills.py [--sources 'data/01_raw/datasets/*'] [--kills 10] [--seed 3407]

In a copy of the project, the datastore is ingested and embedded once without interruption. Then it is embedded again,
and the run is killed (SIGKILL) ``--kills`` times at random moments: before, between or within shards. The last run
completes. Both stores must have the same files with the same bytes. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def kedro(project: Path, pipeline: str, params: str) -> subprocess.Popen:
    """Start a run."""
    command = [sys.executable, "-m", "kedro", "run", f"--pipelines={pipeline}", f"--params={params}"]
    environment = {**os.environ, "DO_NOT_TRACK": "1"}
    return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen) -> None:
    """Wait for a run that must succeed."""
    if process.wait():
        raise SystemExit("A run failed. Run the same command by hand to see its error.")


def shards(folder: Path) -> list[Path]:
    """Return the complete shards of a store."""
    return sorted(folder.glob("[!.]*.arrow"))


def digest(folder: Path) -> dict[str, Any]:
    """Return the store's list of shards and a hash of each shard."""
    listed = json.loads((folder / "manifest.json").read_text())["shards"]
    return {"manifest.json": listed} | {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in shards(folder)
    }


def kill_once(process: subprocess.Popen, folder: Path, new_shards: int, delay: float) -> tuple[str, int]:
    """Kill the run ``delay`` seconds after ``new_shards`` new shards; return its state and the number of shards."""
    target = len(shards(folder)) + new_shards
    while process.poll() is None and len(shards(folder)) < target:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    unfinished = list(folder.glob(".*.arrow-*"))
    return "in a shard's file" if unfinished else "between files", len(shards(folder))


def main() -> None:
    """Embed without and with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", default=str(ROOT / "data/01_raw/datasets/*"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=3407)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    params = f"datastore=kills,sources={options.sources}"
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        for name in ("conf", "src", "data/01_raw"):
            shutil.copytree(ROOT / name, project / name)
        shutil.copy(ROOT / "pyproject.toml", project)
        store = project / "data/03_primary/kills/vectors"
        finish(kedro(project, "ingest", params))
        finish(kedro(project, "embed", params))
        expected = digest(store)
        shutil.rmtree(store)
        for number in range(options.kills):
            new_shards = generator.randint(
                0, max(1, 2 * (len(expected) - 1 - len(shards(store))) // (options.kills - number + 1))
            )
            # With no new shard to wait for, kill the run before or after it has loaded the encoder.
            delay = generator.uniform(0, 12) if not new_shards else generator.uniform(0, 1)
            where, left = kill_once(kedro(project, "embed", params), store, new_shards, delay)
            print(f"kill {number + 1}: {where}, {left} of {len(expected) - 1} shards complete", flush=True)
        finish(kedro(project, "embed", params))
        actual = digest(store)
        left_over = [file.name for file in store.iterdir() if file.name.startswith(".") and file.name != ".lock"]
    result = {
        "kills": options.kills,
        "shards": len(expected) - 1,
        "identical": actual == expected,
        "left_over": left_over,
    }
    print(json.dumps(result | {"seed": options.seed}))
    sys.exit(actual != expected)


if __name__ == "__main__":
    main()
