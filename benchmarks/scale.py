"""Check the cost model of docs/scale.md, and apply it to a datastore of any size.

    python benchmarks/scale.py [--sizes 10000 100000 1000000] [--cells 600000000] [--distinct 3.13] ...

Builds synthetic datastores of these sizes, indexes and searches them (three examples, top 3,000, from memory-mapped
files), and compares bytes and seconds with the model, whose rates are measured at the second size. It does not embed:
--tokens-per-second gives the rate of `benchmarks/embed.py` or of a real run. Then it prints the model for --cells. The
last line is JSON.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retrieve import AGGREGATION, COLUMNS, ROWS, synthetic, take_turns

from rebase.datasets import ShardStore
from rebase.datastore.search import Ranking, _scan, search_exact
from rebase.datastore.shards import Shard, ShardPlan
from rebase.pipelines.index.nodes import plan_index

TOP = 3000
DIMENSION = 384
SEED = 3407


@dataclass(frozen=True)
class Cost:
    """The cost of a datastore of ``cells``: bytes of vectors and index, seconds to index and to search it.

    ``search_seconds`` is ``scan_seconds`` plus the time to rescore ``rescored`` rows.
    """

    cells: int
    vector_bytes: int
    index_bytes: int
    index_seconds: float
    scan_seconds: float
    search_seconds: float
    rescored: int


def measure(cells: int) -> Cost:
    """Build a synthetic datastore with a distinct text in each cell, and search it."""
    with tempfile.TemporaryDirectory() as folder:
        tables, task = synthetic(cells, DIMENSION, SEED)
        store = ShardStore(f"{folder}/vectors", "arrow")
        store.save(ShardPlan([Shard(name, "f" * 64, lambda _, table=table: table) for name, table in tables.items()]))
        del tables
        vectors = store.load()
        index_store = ShardStore(f"{folder}/index", "arrow")
        started = time.perf_counter()
        index_store.save(plan_index(vectors))
        seconds = time.perf_counter() - started
        index = index_store.load()

        def scan() -> None:
            job = partial(_scan, tasks=[task], count=TOP, aggregation=AGGREGATION)
            for _ in index.map(dict.fromkeys(index, job)):
                pass

        def search() -> Ranking:
            return search_exact(index, vectors, [task], TOP, AGGREGATION)[0]

        rescored = search().rescored
        least = take_turns({"scan": scan, "search": search}, 7)
        return Cost(
            cells, size(folder, "vectors"), size(folder, "index"), seconds, least["scan"], least["search"], rescored
        )


def size(folder: str, name: str) -> int:
    """Return the bytes of a store."""
    return sum(file.stat().st_size for file in Path(folder, name).glob("*.arrow"))


def predict(cells: int, measured: Cost) -> Cost:
    """Scale bytes and scan time with the cells; the number of rescored rows does not depend on the size."""
    factor = cells / measured.cells
    rescored = min(measured.rescored, cells // COLUMNS)
    rescoring = (measured.search_seconds - measured.scan_seconds) * rescored / measured.rescored
    scan = measured.scan_seconds * factor
    return Cost(
        cells,
        round(measured.vector_bytes * factor),
        round(measured.index_bytes * factor),
        measured.index_seconds * factor,
        scan,
        scan + rescoring,
        rescored,
    )


def main() -> None:
    """Measure, compare and extrapolate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=3, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--cells", type=float, default=600e6, help="of the datastore to estimate")
    parser.add_argument("--distinct", type=float, default=3.0, help="cells for each distinct text")
    parser.add_argument("--tokens", type=float, default=48, help="for each distinct text")
    parser.add_argument("--tokens-per-second", type=float, default=6_000, help="of one node's encoder")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--dollars", type=float, default=1.0, help="for each node and hour")
    options = parser.parse_args()
    sizes = [max(round(cells / (ROWS * COLUMNS)), 1) * ROWS * COLUMNS for cells in options.sizes]
    small, middle, large = map(measure, sizes)
    ratios = {}
    print(f"{'cells':>12} {'vectors MB':>12} {'index MB':>10} {'index s':>9} {'search ms':>10}   measured / model")
    for cost in (small, middle, large):
        model = predict(cost.cells, middle)
        ratio = [
            getattr(cost, name) / getattr(model, name)
            for name in ("vector_bytes", "index_bytes", "index_seconds", "search_seconds")
        ]
        ratios[cost.cells] = [round(value, 2) for value in ratio]
        print(f"{cost.cells:>12,} {cost.vector_bytes / 1e6:>12.1f} {cost.index_bytes / 1e6:>10.1f} "
              f"{cost.index_seconds:>9.2f} {1000 * cost.search_seconds:>10.1f}   {ratios[cost.cells]}")  # fmt: skip
    texts = options.cells / options.distinct
    stored = predict(round(texts), large)
    # Repeated cells only add their positions: 8 bytes to the vectors, 8 to the index.
    repeated = 8 * (options.cells - texts)
    index = (stored.index_bytes + repeated) / 1e9
    hours = texts * options.tokens / options.tokens_per_second / 3600
    print(f"\n{options.cells:,.0f} cells, {texts:,.0f} distinct texts of {options.tokens:.0f} tokens:")
    print(f"  vectors {(stored.vector_bytes + repeated) / 1e12:.2f} TB, index {index / 1e3:.2f} TB")
    for nodes in options.nodes:
        print(f"  {nodes:>4} nodes: embed {hours / nodes:,.0f} h, index {stored.index_seconds / 3600 / nodes:,.1f} h, "
              f"exact search {stored.search_seconds / nodes:,.1f} s from memory, {index / nodes:,.0f} "
              f"GB of index each; embedding costs {hours * options.dollars:,.0f} dollars")  # fmt: skip
    rate = large.index_bytes / large.scan_seconds / 1e9
    print(json.dumps({"measured_to_model": ratios, "scan_gigabytes_a_second": round(rate, 2)}))


if __name__ == "__main__":
    main()
