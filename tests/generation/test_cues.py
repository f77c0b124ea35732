import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.cues import (
    SourceText,
    can_be_guided,
    choose_cue,
    find_cue,
    find_cues,
    sentences,
    source_text_columns,
)
from tests.generation.prompts.samples import READING, SUMS, TOPIC, row


@pytest.mark.parametrize(
    ("sentence", "answer", "opening"),
    [
        ("The warship Vasa sank in the harbour on 10 August 1628.", "10 August 1628", "When did"),
        ("The old footbridge was repainted by volunteers in 1998.", "1998", "In what year did"),
        ("Owls can turn their heads as far as 270 degrees.", "270 degrees", "How many degrees"),
        ("Lead pipes carried about 18,400 litres of water a day.", "about 18,400 litres", "How many litres"),
        ("A great flood covered some 70,000 square kilometres of land.", "70,000 square kilometres",
         "How many square kilometres"),
        ("Some 62 per cent of the members voted for it.", "62 per cent", "What percentage"),
        ("His formula is engraved on a tomb in Vienna.", "Vienna", "Where did"),
        ("The long canal was dug by Ferdinand de Lesseps.", "Ferdinand de Lesseps", "Who"),
        ("Long before that Isaac Newton published the rule.", "Isaac Newton", "Who"),
        ("Farm families sew a stitch that is called sashiko.", "sashiko", "What is the name of"),
    ],
)  # fmt: skip
def test_a_span_and_how_to_ask_for_it(sentence, answer, opening):
    openings_by_answer = {cue.answer: cue.openings for cue in find_cues(sentence)}
    assert opening in openings_by_answer[answer]


@pytest.mark.parametrize(
    "sentence",
    [
        "The British ships were late again that winter.",
        "Nine of diamonds lay upon the table, face down.",
        "The 14C method dates carbon-14 in old wood.",
        "Cold water settles slowly at the bottom.",
        "It was in 1998.",
    ],
)
def test_no_lead_where_nothing_is_sure(sentence):
    assert find_cues(sentence) == []


def test_a_span_that_stands_twice_is_no_lead():
    assert find_cues("In Paris they said that nobody ever slept in Paris.") == []


def test_a_full_stop_in_a_number_ends_no_sentence():
    assert sentences("It costs 3.50 euros. Pay at the filter!\nThanks") == [
        "It costs 3.50 euros.",
        "Pay at the filter!",
        "Thanks",
    ]


def test_the_choice_is_fixed_by_the_seed():
    passage = "In 1911 it opened in Middlesbrough. It takes ninety seconds to carry nine cars across."
    assert choose_cue(passage, "a") == choose_cue(passage, "a")
    assert len({choose_cue(passage, str(seed)) for seed in range(40)}) > 1


@given(st.text(alphabet=st.sampled_from("abc ABC019.,'-()\n[]àÉ–") | st.characters(), max_size=200))
def test_a_lead_stands_in_its_sentence_and_the_passage(passage):
    flat = " ".join(passage.split())
    for cue in find_cues(passage):
        assert cue.sentence in flat
        assert cue.sentence.count(cue.answer) == 1
        assert cue.answer.strip()
        assert cue.openings


def test_which_tasks_can_be_guided():
    assert all(can_be_guided(task) for task in (READING, TOPIC, SUMS))
    two_fields = SUMS.model_copy(update={"query": "{question} {unit}"})
    assert not can_be_guided(two_fields)


def test_the_source_text_column_is_the_longest_that_matched_queries():
    rows = [
        row({"id": "7", "story": "a long text of many words", "section": "sport"}, query_column="story"),
        row({"id": "8", "story": "another text of many words", "section": "sport"}, query_column="section"),
        row({"blurb": "never matched although it is by far the longest", "title": "A"}, "other", query_column="title"),
        row({"title": "nothing matched"}, "none"),
    ]
    assert source_text_columns(rows) == {("notes", "default"): "story", ("other", "default"): "title"}


def test_configs_with_other_columns_have_their_own_source_text_column():
    rows = [
        row({"question": "How many apples are left in the basket?"}, query_column="question"),
        row({"text": "How many pears?"}, query_column="text") | {"config": "short"},
    ]
    assert source_text_columns(rows) == {("notes", "default"): "question", ("notes", "short"): "text"}


def test_a_row_without_a_source_text_has_no_cue():
    assert find_cue(TOPIC, row({"section": "sport"}), {("notes", "default"): "section"}) is None
    assert find_cue(TOPIC, row({"section": "sport"}), {}) is None
    text = "Rain stopped play at noon."
    assert find_cue(TOPIC, row({"text": text}), {("notes", "default"): "text"}) == SourceText("text", text)
