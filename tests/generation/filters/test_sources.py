import html
import json

import pandas as pd
import pytest

from rebase.generation.filters.base import Rejection
from rebase.generation.filters.sources import source_filter
from rebase.parameters import LicensePolicy
from rebase.records import CARD_COLUMNS
from tests.generation.filters.rows import row

ITEM = "The stoat turns white in winter and brown again when the snow melts in spring."
GERMAN = "Die Biber bauen einen Damm aus Holz und Schlamm, damit der Eingang ihrer Burg nass bleibt."


CARDS = [
    {"dataset": dataset, "license": license, "duplicate_of": duplicate_of}
    for dataset, license, duplicate_of in [
        ("books", "mit", ""),
        ("a-copy", "mit", ""),
        ("a-second-copy", "apache-2.0", "a-copy"),
        ("banned-books", "mit", "a-copy"),
        ("free-copy", "mit", ""),
        ("original", "cc-by-nc-4.0", "free-copy"),
    ]
]


@pytest.fixture
def reject(reading_task):
    items = pd.DataFrame({"query": [ITEM], "fields": [json.dumps({"context": ITEM})], "references": ['["x"]']})
    policy = LicensePolicy(allow=("*",), deny=("*-nc-*",), unknown="allow")
    return source_filter(reading_task, items, pd.DataFrame(CARDS, columns=CARD_COLUMNS), policy, 13)


FAULTS = {"dataset": "banned-books", "license": "cc-by-nc-4.0", "language": GERMAN, "contamination": ITEM}


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (["dataset", "license", "language", "contamination"], "excluded_dataset"),
        (["license", "language", "contamination"], "license"),
        (["language", "contamination"], "language"),
        (["contamination"], "contamination_exact"),
        ([], None),
    ],
)
def test_of_several_reasons_the_first_one_counts(reject, faults, reason):
    chosen = {name: FAULTS[name] for name in faults}
    text = chosen.get("language", "The beaver builds its lodge of wood and mud, with the entrance under water.")
    cells = {"text": text, "other": chosen.get("contamination", "Nothing that is known.")}
    candidate = row(cells, "d/c/train/1", chosen.get("dataset", "books"), chosen.get("license", "mit"))
    rejection = reject(candidate, text)
    assert (rejection and rejection.reason) == reason


@pytest.mark.parametrize(
    ("dataset", "reason"), [("a-copy", "excluded_dataset"), ("free-copy", "license"), ("books", None)]
)
def test_a_dataset_has_the_names_and_licenses_of_its_duplicates_too(reject, dataset, reason):
    """The rows of duplicates are stored under the first name alone."""
    text = "The beaver builds its lodge of wood and mud, with the entrance under water."
    rejection = reject(row(text, f"{dataset}/c/train/1", dataset, "mit"), text)
    assert (rejection and rejection.reason) == reason


def test_contamination_that_a_cell_hides_is_found_in_the_passage(reject):
    hidden = ITEM.replace(" ", "&nbsp;").replace("-", "&#45;")
    rejection = reject(row(hidden, "books/c/train/1", "books"), html.unescape(hidden))
    assert rejection == Rejection("contamination_exact", "passage")
    assert reject(row("Nothing that is known.", "books/c/train/1", "books"), "Nothing that is known.") is None
