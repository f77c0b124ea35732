from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebase.cells import content_hash
from rebase.parameters import LicencePolicy, RetrieveParameters
from rebase.screening import (
    Candidate,
    Twins,
    contamination_gate,
    duplicate_gate,
    exclusion_gate,
    jaccard,
    licence_allowed,
    licence_gate,
    passage_gate,
    passage_of,
    protected_texts,
    share_gate,
    shingles,
)

PARAMETERS = RetrieveParameters(
    top_n=5, aggregation="max_of_mean", search="exact", annoy_candidates=10, block_texts=100,
    licences=LicencePolicy(allow=("*",), deny=("*-nc-*", "*-nc"), unknown="allow"), contamination_ngram=13,
    near_duplicate=0.8, max_dataset_share=0.5, min_passage_words=4, max_passage_words=8,
)  # fmt: skip


def row(cells, row_id="r", dataset="d", licence="MIT"):
    cells = cells if isinstance(cells, dict) else {"text": cells}
    return Candidate(row_id, dataset, licence, cells, content_hash(cells))


@pytest.mark.parametrize(
    ("licence", "allow", "deny", "unknown", "allowed"),
    [
        ("MIT", ["*"], [], "deny", True),
        ("mit", ["MIT"], [], "deny", True),
        ("CC-BY-NC-4.0", ["*"], ["*-nc-*"], "allow", False),
        ("CC BY-NC 4.0", ["*"], ["*-nc-*"], "allow", False),
        ("cc_by_nc_4.0", ["*"], ["*-nc-*"], "allow", False),
        ("cc-by-4.0", ["*"], ["*-nc-*"], "deny", True),
        ("CC-BY-NC-4.0", ["cc-by-nc-4.0"], ["*-nc-*"], "allow", False),  # deny wins
        ("gpl-3.0", ["mit", "apache-*"], [], "allow", False),
        ("apache-2.0; mit", ["mit", "apache-*"], [], "deny", True),
        ("mit; cc-by-nc-4.0", ["*"], ["*-nc-*"], "allow", False),
        ("unknown", ["*"], [], "deny", False),
        ("unknown", ["mit"], [], "allow", True),
        ("mit; unknown", ["*"], [], "deny", False),
        ("other", ["*"], [], "deny", False),
        ("other", ["*"], ["other"], "allow", False),
        ("", ["mit"], [], "allow", True),
        (" ; ", ["*"], [], "deny", False),
    ],
)
def test_licence_policy(licence, allow, deny, unknown, allowed):
    policy = LicencePolicy(allow=allow, deny=deny, unknown=unknown)
    assert licence_allowed(licence, policy) is allowed
    refusal = licence_gate(policy)(row("x", licence=licence))
    assert (refusal is None) is allowed
    assert refusal is None or refusal.detail == licence


def test_exclusion(reading_task):
    gate = exclusion_gate(reading_task)
    assert gate(row("x", dataset="Banned-Books")).reason == "excluded_dataset"
    assert gate(row("x", dataset="owner/TINY_READING-v2")).reason == "excluded_dataset"
    assert gate(row("x", dataset="not-banned-books")) is None


SAFE = [f"safe{number}" for number in range(40)]
PLANTED = [f"leak{number}" for number in range(40)]


@given(st.data())
def test_every_planted_run_is_found_and_clean_rows_pass(data):
    item = data.draw(st.lists(st.sampled_from(PLANTED), min_size=13, max_size=30))
    clean = data.draw(st.lists(st.sampled_from(SAFE), max_size=60))
    gate = contamination_gate([" ".join(item)], 13)
    assert gate(row(" ".join(clean))) is None
    start = data.draw(st.integers(0, len(item) - 13))
    run = [
        data.draw(st.sampled_from([str.upper, str.title, "«{}»,".format]))(word) for word in item[start : start + 13]
    ]
    place = data.draw(st.integers(0, len(clean)))
    refusal = gate(row({"id": "7", "body": " \n ".join([*clean[:place], *run, *clean[place:]])}))
    assert refusal.reason.startswith("contamination")
    assert refusal.detail.startswith("body")
    # Twelve words are no run of thirteen.
    assert gate(row(" ".join([*clean[:place], *run[:12], *clean[place:]]))) is None


def test_short_texts_leak_only_as_a_whole():
    gate = contamination_gate(["Who wrote the book?", "yes"], 13)
    assert gate(row("who wrote -- THE book")).reason == "contamination_exact"
    assert gate(row("Tell me: who wrote the book of hours?")) is None
    assert gate(row("yes")) is None


def test_items_and_examples_are_protected(reading_task):
    texts = protected_texts(reading_task, ['{"context": "c", "question": "q"}'])
    assert texts[:2] == ["c", "q"]
    assert len(texts) == 2 + 2 * len(reading_task.examples)
    assert not any(text == "in high trees" for text in texts)


def test_passage_is_the_longest_cell_cut_at_a_sentence():
    cells = {"title": "Short.", "body": "One two three. Four five six. Seven eight nine ten eleven."}
    assert passage_of(row(cells), PARAMETERS) == "One two three. Four five six."
    assert passage_gate(PARAMETERS)(row(cells)) is None
    assert passage_gate(PARAMETERS)(row("too few words")).reason == "no_passage"
    assert passage_gate(PARAMETERS)(row({})).reason == "no_passage"


def test_share_of_one_dataset_is_capped():
    kept = Counter({"d": 2})
    assert share_gate(kept, 3)(row("x")) is None
    assert share_gate(kept, 2)(row("x")).reason == "dataset_share"
    assert share_gate(kept, 2)(row("x", dataset="e")) is None


texts = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=30)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), texts, min_size=1), max_size=12), st.sampled_from([0.5, 0.8, 1.0])
)
def test_twins_agree_with_brute_force(rows, threshold):
    twins = Twins(threshold)
    gate = duplicate_gate(twins)
    kept = {}
    for number, cells in enumerate(rows):
        candidate = row(cells, row_id=f"r{number:02}")
        alike = {
            other
            for other, its in kept.items()
            if list(its.values()) == list(cells.values()) or jaccard(shingles(its), shingles(cells)) >= threshold
        }
        refusal = gate(candidate)
        assert (refusal.detail in alike) if refusal else not alike
        if refusal is None:
            twins.keep(candidate)
            kept[candidate.row_id] = cells
    assert set(twins.of) == set(kept)
    assert sorted([*kept, *(twin for found in twins.of.values() for twin in found)]) == sorted(
        f"r{number:02}" for number in range(len(rows))
    )


def test_near_duplicates_at_the_threshold_are_found():
    """Pairs of similarity just above 0.8 among prose of many words: MinHash must propose nearly all of them."""
    found = 0
    for pair in range(60):
        words = [f"w{pair}x{number}" for number in range(102)]
        twins = Twins(0.8)
        twins.keep(row(" ".join(words), row_id="first"))
        # 100 shingles each, 90 of them shared: 90 / 110 = 0.82.
        found += twins.find(row(" ".join([*words[:92], *(f"new{number}" for number in range(10))]))) == "first"
    assert found == 60


def test_rows_without_words_are_twins_only_when_they_are_equal():
    twins = Twins(0.8)
    twins.keep(row({"a": "1", "b": "2"}, row_id="first"))
    assert twins.find(row({"x": "1", "y": "2"})) == "first"
    assert twins.find(row({"a": "1", "b": "3"})) is None


@given(st.frozensets(st.tuples(st.sampled_from("abcd"))), st.frozensets(st.tuples(st.sampled_from("abcd"))))
def test_jaccard(first, second):
    assert jaccard(first, second) == jaccard(second, first)
    assert 0 <= jaccard(first, second) <= 1
    assert (jaccard(first, second) == 1) == (first == second != frozenset())
