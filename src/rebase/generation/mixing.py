"""Mixtures: one training set of examples of several origins, by weights (docs/method.md section 9)."""

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.text import comparable


def mix(
    tables: Mapping[str, pd.DataFrame], weights: Mapping[Any, float], size: int | None, seed: int
) -> tuple[pd.DataFrame, Counter[str]]:
    """Draw ``size`` examples in proportion to the weights of their origins; None: as many as the proportions allow.

    ``tables`` are examples by origin. The examples of an origin are drawn at random and keep their order. Of examples
    with one query the first is used, in the order of ``weights``. The column ``origin`` is the start of ``example_id``.

    Returns the mixture, and the counts of examples outside it, by reason. Raises RebaseError if an origin has too few.
    """
    distinct = distinct_queries({origin: tables[origin] for origin in weights})
    rejected = Counter(duplicate=sum(len(tables[origin]) - len(examples) for origin, examples in distinct.items()))
    counts = share_out({origin: len(examples) for origin, examples in distinct.items()}, weights, size)
    parts = []
    for origin, examples in distinct.items():
        drawn = examples.sample(counts[origin], random_state=seed).sort_index()
        parts.append(drawn.assign(origin=origin, example_id=f"{origin}/" + drawn["example_id"].astype(str)))
        rejected["not_drawn"] += len(examples) - len(drawn)
    # A column that an origin lacks, such as `rationale`, is null there.
    columns = list(dict.fromkeys(name for part in parts for name in part))
    lines = [line for part in parts for line in part.to_dict("records")]
    return pd.DataFrame(lines, columns=columns), +rejected


def distinct_queries(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables, by origin, without the examples whose query an earlier one has."""
    queries: set[str] = set()
    distinct = {}
    for origin, examples in tables.items():
        compared = examples["query"].map(comparable)
        distinct[origin] = examples[~(compared.isin(queries) | compared.duplicated())]
        queries |= set(compared)
    return distinct


def share_out(available: Mapping[str, int], weights: Mapping[Any, float], size: int | None) -> dict[str, int]:
    """The number of examples of each origin, by largest remainders, given how many are available.

    None for ``size`` uses as many as the scarcest origin allows. Raises RebaseError if an origin has too few.
    """
    total = sum(map(Fraction, weights.values()))
    shares = {origin: Fraction(weight) / total for origin, weight in weights.items()}
    if size is None:
        size = int(min(available[origin] / share for origin, share in shares.items()))
    counts = {origin: int(size * share) for origin, share in shares.items()}
    by_remainder = sorted(shares, key=lambda origin: counts[origin] - size * shares[origin])
    for origin in by_remainder[: size - sum(counts.values())]:
        counts[origin] += 1
    scarce = [
        f"{origin} has {available[origin]} of {count}" for origin, count in counts.items() if available[origin] < count
    ]
    if scarce:
        raise RebaseError(f"mix.size {size} is too large: {'; '.join(scarce)}. Lower it, or make more examples.")
    if not size:
        raise RebaseError(
            "mix: an origin has no examples, or fewer than its weight needs. Make more, or change weights."
        )
    return counts
