"""Simulate audits of mappings: how often one passes, and after how many of the teacher's answers.

    python benchmarks/audits.py [--trials 20000] [--audit 60] [--seed 0]

The yardstick asks on until the interval is above or below the limit, or all answers are used. Both rules get the same
answers, which agree at a known rate, and look at the interval after each part of them; ``once`` looks at all answers
alone. The limit is the share of the most frequent answer, or the threshold.
"""

import argparse
from functools import cache
from itertools import accumulate, product

import numpy as np

from rebase.generation.mapped_configs import AUDITED_AT_ONCE
from rebase.generation.mapping import Audit

LIMITS = (0.3, 0.5, 0.7)
DISTANCES = (-0.15, 0.0, 0.1, 0.2, 0.25)

# Few audits differ.
audit_of = cache(Audit.of)
could_pass = cache(Audit.could_pass)


def parts_of(most: int) -> list[int]:
    """The number of answers in each part of an audit."""
    return [min(AUDITED_AT_ONCE, most - start) for start in range(0, most, AUDITED_AT_ONCE)]


def simulate(agreed: list[int], limit: float, most: int, stops_early: bool) -> tuple[bool, int]:
    """Whether an audit passes, and how many answers it uses; ``agreed`` counts the agreement of each part."""
    count = 0
    for agreed_so_far, count in zip(accumulate(agreed), accumulate(parts_of(most)), strict=True):
        audit = audit_of(agreed_so_far, count, limit)
        if audit.reject(0) is None:
            return True, count
        if not could_pass(audit, 0, most) if stops_early else audit.high < limit:
            break
    return False, count


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--audit", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    sizes = parts_of(arguments.audit)
    print("limit  rate  passed: once  before    now   answers: before  now  ratio")
    for limit, distance in product(LIMITS, DISTANCES):
        parts = random.binomial(sizes, limit + distance, (arguments.trials, len(sizes))).tolist()
        once = np.mean([audit_of(sum(line), arguments.audit, limit).reject(0) is None for line in parts])
        before, now = (
            np.mean([simulate(line, limit, arguments.audit, early) for line in parts], axis=0)
            for early in (False, True)
        )
        print(
            f"{limit:5.2f} {limit + distance:5.2f} {once:13.3f} {before[0]:7.3f} {now[0]:6.3f} {before[1]:17.1f} "
            f"{now[1]:4.1f} {now[1] / before[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
