"""Show reading passages as they were chosen before (a row's longest cell) and as they are chosen now, side by side.

    python benchmarks/passages.py 'FOLDER/*' [--count 40] [--seed 0] [--rows 2]

draws ``--rows`` rows of the first config of each dataset that the patterns match, counts what is wrong with the longest
cells, and prints ``--count`` rows drawn by the seed. The yardstick is the longest cell of at least 25 words.
"""

import argparse
import random
import textwrap
from collections import Counter

from rebase.datastore.cells import content_hash, flatten_row
from rebase.datastore.sources import FolderSource, find_sources
from rebase.generation.filters.base import Candidate
from rebase.generation.filters.passages import find_passage, reject_without_passage
from rebase.parameters import LicensePolicy, RetrieveParameters
from rebase.text import count_words, cut_at_sentence

PARAMETERS = RetrieveParameters(
    top_n=1, aggregation="max_of_mean", search="exact", annoy_candidates=1,
    licenses=LicensePolicy(allow=("*",), deny=(), unknown="allow"),
    near_duplicate=0.8, max_dataset_share=1, balance_labels=True, min_passage_words=25, max_passage_words=110,
)  # fmt: skip


def draw_rows(source: FolderSource, count: int) -> list[Candidate]:
    """Rows of the dataset's first config; none if it cannot be read."""
    try:
        _, sample = source.read(source.configs()[0], count)
        rows = [flatten_row(row, sample.label_names) for _, row in sample.rows if isinstance(row, dict)]
    except Exception:
        return []
    return [Candidate(source.dataset, source.dataset, "", cells, content_hash(cells)) for cells in rows if cells]


def main() -> None:
    """Draw, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=2)
    arguments = parser.parse_args()
    sources = find_sources(arguments.sources)
    rows = [row for source in sources for row in draw_rows(source, arguments.rows)]
    before = [
        row for row in rows if count_words(cut_at_sentence(row.longest_cell, 110)) >= PARAMETERS.min_passage_words
    ]
    faults = Counter(
        "" if find_passage(row, PARAMETERS) else reject_without_passage(row, PARAMETERS).detail for row in before
    )
    other = sum(
        bool((now := find_passage(row, PARAMETERS)) and row.cells[now.passage_column] != row.longest_cell)
        for row in before
    )
    print(f"{len(before)} rows have a passage by length, {faults.pop('', 0)} by the rules now ({other} another cell).")
    print(f"Rejected: {', '.join(f'{fault} {count}' for fault, count in faults.most_common())}.")
    for row in random.Random(arguments.seed).sample(before, min(arguments.count, len(before))):
        now = find_passage(row, PARAMETERS)
        print(f"\n{row.dataset}\n  before: {shorten(row.longest_cell)}")
        fault = "" if now else reject_without_passage(row, PARAMETERS).detail
        print(
            f"  now ({now.passage_choice}, {now.passage_column}): {shorten(now.passage)}"
            if now
            else f"  now: none ({fault})"
        )


def shorten(text: str) -> str:
    """The first 240 letters, on one line."""
    return textwrap.shorten(text, 240, placeholder=" …")


if __name__ == "__main__":
    main()
