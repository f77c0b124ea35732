import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.cost_estimate import estimate_requests, input_tokens, read_estimate, summarize_estimate
from rebase.teacher.budget import Price
from rebase.teacher.protocol import Message, Request, Sampling
from rebase.text import approximate_tokens

SCHEMA = {"type": "object"}


def request(text: str, max_tokens: int = 100) -> Request:
    return Request("Write.", (Message("user", text),), SCHEMA, Sampling(0.7, max_tokens))


def test_the_least_are_the_first_requests_and_the_most_are_all():
    requests = [request("one two three"), request("one " * 50), request("one " * 100)]
    ranges = estimate_requests(requests, 1, ["yes", "no, never at all"], None)
    assert ranges.tolist() == [
        [1, 3],
        [input_tokens(requests[0], None), sum(input_tokens(one, None) for one in requests)],
        [approximate_tokens("yes"), 3 * approximate_tokens("no, never at all")],
    ]


def test_what_the_provider_counted_before_is_taken_for_the_count():
    assert input_tokens(request("x" * 94), 0.5) == 50


def test_a_response_is_no_longer_than_it_may_be():
    assert estimate_requests([request("a", max_tokens=3)], 1, ["word " * 50], None)[2].tolist() == [3, 3]


def test_a_summary_has_dollars_and_can_be_read():
    estimate = np.array([[600, 1200], [10**6, 2 * 10**6], [10**5, 4 * 10**5]])
    summary = summarize_estimate(estimate, Price(input=1.0, output=5.0))
    assert (summary["dollars"], summary["dollars_batch"]) == ([1.5, 4.0], [0.75, 2.0])
    assert json.loads(json.dumps(summary)) == summary
    assert (read_estimate(summary) == estimate).all()
    assert summarize_estimate(estimate, None)["dollars"] is None


@given(st.lists(st.text(max_size=50), max_size=10), st.integers(0, 12), st.lists(st.text(max_size=30), min_size=1))
def test_low_is_never_above_high(texts, least, responses):
    ranges = estimate_requests([request(text) for text in texts], least, responses, None)
    assert (ranges >= 0).all()
    assert (ranges[:, 0] <= ranges[:, 1]).all()
