from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.filters.base import find_pattern
from tests.generation.filters.rows import row

names = st.text("aA/ß", min_size=1, max_size=3)


@given(names, st.lists(names))
def test_the_first_pattern_that_matches_is_found_in_any_case(name, others):
    patterns = [*others, name.swapcase(), "*"]
    assert find_pattern(name, patterns) == next(one for one in patterns if one.casefold() == name.casefold())
    assert find_pattern(f"{name}1", [name, f"{name}?", "*"]) == f"{name}?"
    assert find_pattern(f"{name}1", [name]) is None


@given(names)
def test_a_row_belongs_to_a_config_also_where_names_have_slashes(dataset):
    assert row({}, row_id=f"{dataset}/config/train/7").config == f"{dataset}/config"


def test_the_longest_cell():
    assert row({"a": "one", "b": "three", "c": "two"}).longest_cell == "three"
    assert row({}).longest_cell == ""
