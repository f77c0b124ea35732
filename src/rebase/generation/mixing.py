"""Mixtures: one training set of examples of several origins, by weights (docs/method.md section 9)."""

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import pandas as pd

from rebase.errors import RebaseError
from rebase.text import normalize


def mix(
    sets: Mapping[str, pd.DataFrame], weights: Mapping[str, float], size: int | None, seed: int
) -> tuple[pd.DataFrame, Counter[str]]:
    """Draw examples of each origin, in proportion to its weight, ``size`` in all; None: as many as there are for that.

    ``sets`` are frames of examples by origin, one for each weight. An origin's part is drawn at random, and stays in
    the set's own order. Of examples with one query the first one counts, by the order of ``weights``. The column
    ``origin`` says where each comes from, and is part of its ``example_id``.

    Returns the mixture, and how many examples are not in it, by reason. Raises RebaseError where an origin has too few
    examples.
    """
    rejected: Counter[str] = Counter()
    seen: set[str] = set()
    distinct: dict[str, pd.DataFrame] = {}
    for origin in weights:
        frame = sets[origin]
        queries = frame["query"].map(normalize)
        is_new = ~(queries.isin(seen) | queries.duplicated())
        seen |= set(queries)
        rejected["duplicate"] += int((~is_new).sum())
        distinct[origin] = frame[is_new]
    counts = share_out({origin: len(frame) for origin, frame in distinct.items()}, weights, size)
    parts = []
    for origin, frame in distinct.items():
        drawn = frame.sample(counts[origin], random_state=seed).sort_index()
        parts.append(drawn.assign(origin=origin, example_id=f"{origin}/" + drawn["example_id"].astype(str)))
        rejected["not_drawn"] += len(frame) - len(drawn)
    # A column that one origin does not have, such as `rationale`, is null there.
    columns = list(dict.fromkeys(name for part in parts for name in part))
    lines = [line for part in parts for line in part.to_dict("records")]
    return pd.DataFrame(lines, columns=columns), +rejected


def share_out(there: Mapping[str, int], weights: Mapping[str, float], size: int | None) -> dict[str, int]:
    """How many examples each origin gives, by largest remainders; RebaseError where one has too few.

    ``there`` is how many each origin has; None for ``size`` takes as many as the scarcest allows.
    """
    total = sum(map(Fraction, weights.values()))
    shares = {origin: Fraction(weight) / total for origin, weight in weights.items()}
    if size is None:
        size = int(min(there[origin] / share for origin, share in shares.items()))
    counts = {origin: int(size * share) for origin, share in shares.items()}
    by_remainder = sorted(shares, key=lambda origin: counts[origin] - size * shares[origin])
    for origin in by_remainder[: size - sum(counts.values())]:
        counts[origin] += 1
    if few := [f"{origin} has {there[origin]} of {count}" for origin, count in counts.items() if there[origin] < count]:
        raise RebaseError(f"mix.size {size} is too much: {'; '.join(few)}. Ask for less, or make more of them.")
    if not size:
        raise RebaseError("mix: nothing can be mixed: an origin has no examples, or fewer than its weight asks for.")
    return counts
