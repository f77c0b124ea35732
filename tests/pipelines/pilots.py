"""A pilot of the reading task, for the tests of its node, its findings and its page."""

import json

from rebase.generation.pilot import estimate_full_run
from rebase.parameters import PilotParameters
from rebase.pipelines.pilot.nodes import try_rows
from tests.pipelines.test_estimate import estimate
from tests.pipelines.test_transform import (
    CONTAMINATION,
    NO_EVALUATION,
    PASSAGES,
    PROMPT,
    READING,
    asks_for_the_year,
    parameters,
    retrieved,
)

ROWS = retrieved(passages=[f"{passage} Again {n}." for n in range(5) for passage in PASSAGES])


def pilot(teacher, rows=ROWS, count=20, task=READING, **changes):
    return try_rows(
        task, rows, NO_EVALUATION, teacher, PROMPT, parameters(**changes), CONTAMINATION, PilotParameters(rows=count)
    )


def sometimes(request):
    """Good responses about the bells of even years; the others do not fit the row."""
    response = asks_for_the_year(request)
    year = int(json.loads(response)["example"]["answer"])
    return response if year % 2 == 0 else '{"example": null}'


def find(teacher, task=READING, rows=ROWS, **changes):
    """The pilot's table, summary and estimate."""
    table, summary = pilot(teacher, rows, task=task, **changes)
    before = estimate(task, rows, teacher, **changes)
    return table, summary, estimate_full_run(table, before, teacher, parameters(**changes))
