"""The benchmark's own parts: its audits of any size."""

import pytest
from benchmarks.audits import parts_of, simulate


@pytest.mark.parametrize("most", [1, 10, 20, 50, 60])
def test_an_audit_uses_at_most_all_of_its_answers(most):
    parts = parts_of(most)
    assert sum(parts) == most
    assert simulate(parts, 0.99, most, stops_early=False) == (False, most)
    assert simulate([0] * len(parts), 0.5, most, stops_early=True) == (False, parts[0])


def test_an_audit_ends_when_it_passes():
    assert simulate([20, 20, 10], 0.5, 50, stops_early=True) == (True, 20)
    assert simulate([13, 18, 10], 0.5, 50, stops_early=True) == (True, 40)
