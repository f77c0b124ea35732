"""Estimate requests, tokens and dollars before any request is sent, each as a range from low to high."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rebase.teacher.budget import Price
from rebase.teacher.protocol import Request
from rebase.text import approximate_tokens

_QUANTITIES = ("requests", "input_tokens", "output_tokens")


def estimate_requests(
    requests: Sequence[Request], minimum: int, responses: Sequence[str], tokens_per_character: float | None
) -> np.ndarray:
    """Estimate a stage that sends at least the first ``minimum`` of the requests, and at most all.

    ``responses`` are rendered from the task's examples and bound the length of a response. ``tokens_per_character`` is
    what the provider counted for earlier prompts; without it ``approximate_tokens`` counts.

    Returns ``[3, 2]``: requests, input tokens and output tokens, each low and high. Estimates can be added.
    """
    read = [input_tokens(request, tokens_per_character) for request in requests]
    written = [approximate_tokens(response) for response in responses]
    minimum = min(minimum, len(requests))
    limit = min((request.sampling.max_tokens for request in requests), default=0)
    return np.array(
        [
            (minimum, len(requests)),
            (round(sum(read[:minimum])), round(sum(read))),
            (minimum * min(limit, *written), len(requests) * min(limit, max(written))),
        ]
    )


def summarize_estimate(estimate: np.ndarray, price: Price | None) -> dict[str, Any]:
    """The estimate as JSON, each quantity as ``[low, high]``; without a price there are no dollars."""
    dollars = {
        name: [price.dollars(*tokens, batch=batch) for tokens in estimate[1:].T.tolist()] if price else None
        for name, batch in (("dollars", False), ("dollars_batch", True))
    }
    return dict(zip(_QUANTITIES, estimate.tolist(), strict=True)) | dollars


def read_estimate(summary: Mapping[str, Any]) -> np.ndarray:
    """Read what ``summarize_estimate`` wrote."""
    return np.array([summary[name] for name in _QUANTITIES])


def input_tokens(request: Request, tokens_per_character: float | None) -> float:
    """The input tokens of a request."""
    if tokens_per_character is not None:
        return request.characters * tokens_per_character
    texts = [request.system, *(turn.content for turn in request.messages), json.dumps(request.schema)]
    return sum(map(approximate_tokens, texts))
