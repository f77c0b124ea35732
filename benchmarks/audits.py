"""Simulate audits of mappings: how often one passes, and after how many of the teacher's answers.

    python benchmarks/audits.py [--trials 1000] [--audit 60] [--seed 0]

The yardstick asks on until the interval is above or below the limit, or all answers are used. Both rules get the same
answers, which agree at a known rate. The limit is the share of the most frequent answer, or the threshold.
"""

import argparse
from itertools import product

import numpy as np

from rebase.generation.mapped_configs import AUDITED_AT_ONCE
from rebase.generation.mapping import Audit

LIMITS = (0.4, 0.55, 0.7)
DISTANCES = (-0.15, 0.0, 0.1, 0.2, 0.25)


def simulate(agreed: list[int], limit: float, most: int, stops_early: bool) -> tuple[bool, int]:
    """Whether an audit passes, and how many answers it uses; ``agreed`` counts the agreement of each part."""
    for parts in range(1, len(agreed) + 1):
        count = parts * AUDITED_AT_ONCE
        audit = Audit.of(sum(agreed[:parts]), count, limit)
        if audit.reject(0) is None:
            return True, count
        if not audit.could_pass(0, most) if stops_early else audit.high < limit:
            break
    return False, count


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--audit", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    print("limit  rate  passed: before  now   answers: before  now  ratio")
    for limit, distance in product(LIMITS, DISTANCES):
        rate = limit + distance
        parts = random.binomial(AUDITED_AT_ONCE, rate, (arguments.trials, arguments.audit // AUDITED_AT_ONCE))
        before, now = (
            np.mean([simulate(list(map(int, line)), limit, arguments.audit, early) for line in parts], axis=0)
            for early in (False, True)
        )
        print(
            f"{limit:5.2f} {rate:5.2f} {before[0]:15.2f} {now[0]:4.2f} {before[1]:17.1f} {now[1]:4.1f} "
            f"{now[1] / before[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
