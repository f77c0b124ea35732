import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.generation.mixing import distinct_queries, mix, share_out


def examples(name, count):
    return pd.DataFrame(
        {"example_id": [str(n) for n in range(count)], "query": [f"{name} asks {n}" for n in range(count)]}
    )


def test_of_one_query_the_first_origin_counts():
    frame, rejected = mix({"a": examples("x", 3), "b": examples("x", 5)}, {"a": 3, "b": 2}, 5, 1)
    assert frame["origin"].value_counts().to_dict() == {"a": 3, "b": 2}
    assert frame["query"].is_unique
    assert rejected == {"duplicate": 3}


def test_queries_of_signs_are_no_duplicates():
    tables = {"a": pd.DataFrame({"query": ["[ ( [", "{ { <"]}), "b": pd.DataFrame({"query": ["[([", "< <"]})}
    assert {name: list(table["query"]) for name, table in distinct_queries(tables).items()} == {
        "a": ["[ ( [", "{ { <"],
        "b": ["< <"],
    }


@pytest.mark.parametrize(
    ("weights", "size", "words"),
    [
        ({"a": 1, "b": 1}, 20, r"a has 3 of 10; b has 5 of 10"),
        ({"b": 1, "empty": 1}, None, "an origin has no examples"),
    ],
)
def test_what_cannot_be_mixed_is_said(weights, size, words):
    sets = {"a": examples("x", 3), "b": examples("y", 5)}
    if "empty" in weights:
        sets["empty"] = examples("z", 1).iloc[:0]
    with pytest.raises(RebaseError, match=words):
        mix(sets, weights, size, 1)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 9)), min_size=1, max_size=4))
def test_as_many_as_the_scarcest_origin_allows(given_sets):
    there = {str(n): count for n, (count, _) in enumerate(given_sets)}
    weights = {str(n): weight for n, (_, weight) in enumerate(given_sets)}
    try:
        counts = share_out(there, weights, None)
    except RebaseError:
        return
    size, total = sum(counts.values()), sum(weights.values())
    assert all(counts[name] <= there[name] for name in there)
    assert all(abs(counts[name] - size * weights[name] / total) < 1 + 1e-6 for name in there)
