"""Transform many rows against a failing provider, in a process that is killed many times.

    python benchmarks/soak.py --rows 10000 --faults 0.3 --kills 5            requests one by one
    python benchmarks/soak.py --rows 10000 --faults 0.3 --kills 5 --batch    in batches

The provider is the tests' loopback server, in its own process. At the end, every row must be an example or rejected
with a reason. The provider's ledger must show no response billed twice, except those in transit at a kill, and those
that the provider billed but never delivered (half a body, a body that is not JSON). Otherwise the exit status is 1.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from loopback import ROOT, page, serving

#: Faults of responses that are billed but that no client could read.
UNDELIVERED = {"half a body", "not JSON"}


def main() -> None:
    """Run the soak, or the client in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--faults", type=float, default=0.3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--provider", choices=["anthropic", "openai"], default="anthropic")
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--client", nargs=2, metavar=("ADDRESS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        transform(options, *options.client)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = soak(options, Path(folder))
    print(json.dumps(report))
    sys.exit(0 if report["is_right"] else 1)


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill the client at random moments, let the last one end, and audit the rows and the ledger."""
    generator = random.Random(options.seed)
    in_transit = 0
    submitting = 0.0  # seconds from a client's start to its first batch
    with serving(*failing(options)) as address:
        for number in range(options.kills):
            client = start(options, address, folder)
            began = time.monotonic()
            if not options.batch:
                billed = (number + 1) / (options.kills + 1) * options.rows
                wait_for(client, lambda billed=billed: page(address, "_state")["billed"] >= billed)
            elif not submitting:
                wait_for(client, lambda: page(address, "_state")["batches"] > 0)
                submitting = time.monotonic() - began
            else:
                moment = began + submitting * generator.uniform(0.5, 1.5)
                wait_for(client, lambda moment=moment: time.monotonic() > moment)
            state = page(address, "_state")
            if client.poll() is None:
                client.send_signal(signal.SIGKILL)
            client.wait()
            # Requests that arrive between the count and the kill are in transit, too.
            in_transit += (
                max(state["max_concurrency"], page(address, "_state")["max_concurrency"]) if not options.batch else 0
            )
            print(f"kill {number + 1}: {state['batches']} batches, {state['billed']} responses billed, "
                  f"{state['max_concurrency']} in transit", flush=True)  # fmt: skip
        client = start(options, address, folder)
        if client.wait() != 0:
            sys.exit("the last client failed")
        ledger = page(address, "_ledger")
    return audit(options, folder, ledger, in_transit)


def wait_for(client: subprocess.Popen, is_due: Callable[[], bool]) -> None:
    """Wait until the kill is due or the client has ended."""
    while client.poll() is None and not is_due():
        time.sleep(0.05)


def audit(options: argparse.Namespace, folder: Path, ledger: list[dict[str, Any]], in_transit: int) -> dict[str, Any]:
    """Count examples and rejected rows, and responses billed more than once."""
    examples = pd.read_parquet(folder / "examples.parquet", columns=["row_id"])["row_id"]
    rejected = pd.read_parquet(folder / "rejected.parquet")
    accounted = sorted([*examples, *rejected["row_id"]]) == sorted(row["row_id"] for row in rows(options.rows))
    delivered = Counter(line["request_id"] for line in ledger if line["billed"] and line["fault"] not in UNDELIVERED)
    undelivered = sum(line["billed"] and line["fault"] in UNDELIVERED for line in ledger)
    twice = sum(count - 1 for count in delivered.values())
    # A batch whose confirmation was lost must be found again, so that none of its items is billed twice.
    return {
        "rows": options.rows,
        "examples": len(examples),
        "rejected": dict(Counter(rejected["reason"]).most_common()),
        "kills": options.kills,
        "attempts": len(ledger),
        "by_fault": dict(Counter(line["fault"] for line in ledger if line["fault"]).most_common()),
        "billed": sum(line["billed"] for line in ledger),
        "billed_undelivered": undelivered,
        "billed_twice": twice,
        "in_transit_at_kills": in_transit,
        "every_row_accounted_for": accounted,
        "is_right": accounted and twice <= in_transit,
    }


def transform(options: argparse.Namespace, address: str, folder: str) -> None:
    """Run the stage on synthetic rows (the client process)."""
    from rebase.datasets import PromptDataset, TeacherDataset
    from rebase.parameters import ContaminationParameters, TransformParameters
    from rebase.pipelines.transform.nodes import transform_rows
    from rebase.records import Task

    raw = ROOT / "data" / "01_raw"
    task = Task.parse(yaml.safe_load((raw / "tasks" / "news_topic.yml").read_text()), "news_topic")
    prompt = PromptDataset(str(raw / "prompts" / "transform.yml"), "transform").load()
    sampling = {"temperature": 0.7, "max_tokens": 200}
    parameters = TransformParameters.model_validate(
        {
            "max_examples": options.rows,
            "max_row_tokens": 200,
            "guided": False,
            "consistency_filter": False,
            "sampling": sampling,
        }
    )
    teacher = teacher_at(TeacherDataset, address, options, Path(folder) / "responses.sqlite")
    examples, rejected, summary = transform_rows(
        task,
        pd.DataFrame(rows(options.rows)),
        pd.DataFrame({"query": []}),
        teacher,
        prompt,
        parameters,
        ContaminationParameters(ngram=13),
    )
    examples.to_parquet(Path(folder) / "examples.parquet")
    rejected.to_parquet(Path(folder) / "rejected.parquet")
    print(json.dumps(summary), flush=True)


def teacher_at(dataset: type, address: str, options: argparse.Namespace, path: Path) -> Any:
    """Return the catalog's teacher with the loopback server's address."""
    settings = {
        "provider": options.provider,
        "model": "good-model",
        "base_url": address if options.provider == "anthropic" else f"{address}/v1",
        "batch": options.batch,
        "timeout": 5,
        "max_concurrency": 64,
    }
    prices = {"as_of": "2026-11-21", "models": {options.provider: {"good-model": {"input": 1, "output": 5}}}}
    keys = {options.provider: "sk-right-key"}
    return dataset(settings, str(path), "unused", prices, keys).load()


def rows(count: int) -> list[dict[str, Any]]:
    """Return synthetic rows with the columns of `retrieved`."""
    shared = {
        "dataset": "made", "config": "default", "revision": "r1", "license": "cc0-1.0", "score": 0.5,
        "score_dataset": 0.5, "score_query": 0.5, "score_answer": 0.5, "query_column": "text", "answer_column": "topic",
        "passage": None,
    }  # fmt: skip
    return [
        {"rank": n + 1, "row_id": f"made/{n}", "row_index": n, "row": json.dumps({"text": f"Item {n} of the day."})}
        | shared
        for n in range(count)
    ]


def start(options: argparse.Namespace, address: str, folder: Path) -> subprocess.Popen:
    """Start the client in its own process."""
    arguments = [f"--rows={options.rows}", f"--provider={options.provider}", *(["--batch"] if options.batch else [])]
    command = [sys.executable, __file__, *arguments, "--client", address, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def failing(options: argparse.Namespace) -> list[str]:
    """Return the provider's arguments that set the failure rates."""
    arguments = [
        f"--fault-share={options.faults}", f"--seed={options.seed}", "--latency=0.1", "--latency-spread=0.5",
        "--retry-after=0.05", "--hang-seconds=7", "--batch-seconds=8",
    ]  # fmt: skip
    if options.batch:
        arguments += ["--batch-errored=0.05", "--batch-expired=0.05", "--batch-duplicated=0.05"]
        arguments += ["--batch-calls=0.1", "--batch-lost=0.3"]
    return arguments


if __name__ == "__main__":
    main()
