from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.datastore.cells import flatten_row
from rebase.generation.filters.passages import Passage, clean_text, fault_of, find_passage, reject_without_passage
from rebase.parameters import LicensePolicy, RetrieveParameters
from tests.generation.filters.rows import row

PARAMETERS = RetrieveParameters(
    top_n=5, aggregation="max_of_mean", search="exact", annoy_candidates=10,
    licenses=LicensePolicy(allow=("*",), deny=("*-nc-*", "*-nc"), unknown="allow"),
    near_duplicate=0.8, max_dataset_share=0.5, balance_labels=True, min_passage_words=4, max_passage_words=8,
)  # fmt: skip
PROSE = "The museum opens at nine. On Sundays it is closed, and the garden stays open until dusk."


def text_of(cells) -> str | None:
    passage = find_passage(row(cells), PARAMETERS)
    return passage and passage.passage


def test_passage_is_the_longest_cell_cut_at_a_sentence():
    cells = {"title": "Short.", "body": "One two three. Four five six. Seven eight nine ten eleven."}
    assert find_passage(row(cells), PARAMETERS) == Passage("One two three. Four five six.", "body", "longest")
    assert text_of("too few words") is None
    rejection = reject_without_passage(row("too few words"), PARAMETERS)
    assert (rejection.reason, rejection.detail) == ("no_passage", "short")
    assert find_passage(row({}), PARAMETERS) is None
    assert reject_without_passage(row({}), PARAMETERS).reason == "no_passage"


def test_a_japanese_passage_is_measured_in_letters():
    body = "鯨は海に住む。春には子を連れて北へ帰る。"  # seven, and thirteen letters and signs
    assert text_of(body) is None
    assert text_of(body * 2) is None
    assert text_of("鯨は海に住む動物だ。春には北へ帰る。") == "鯨は海に住む動物だ。"
    assert text_of("鯨は海に住む") is None


def test_the_cell_that_matched_the_query_is_preferred_if_it_is_prose():
    cells = {
        "body": f"{PROSE} The gate is high.",
        "summary": "A museum with a garden opens at nine.",
        "title": "Museum",
    }
    best = replace(row(cells), query_column="summary")
    assert find_passage(best, PARAMETERS) == Passage(cells["summary"], "summary", "best match")
    assert find_passage(replace(best, query_column="title"), PARAMETERS).passage_column == "body"


def test_a_longer_cell_that_is_no_prose_is_passed_over():
    cells = {"parse": "(ROOT (S (NP (DT The) (NN museum)) (VP (VBZ opens)))) " * 5, "text": PROSE}
    assert find_passage(row(cells), PARAMETERS).passage_column == "text"
    del cells["text"]
    assert reject_without_passage(row(cells), PARAMETERS).detail == "markup"


PARSE = "(ROOT (S (NP (DT The) (NN museum)) (VP (VBZ opens)))).\n"
LONG_PROSE = " ".join(f"The museum has {count} rooms on its floors." for count in range(20))


def test_a_passage_that_is_no_prose_is_passed_over_though_prose_comes_after_it():
    cells = {"tree": PARSE + LONG_PROSE, "text": PROSE}
    assert fault_of(cells["tree"]) == ""
    assert find_passage(replace(row(cells), query_column="tree"), PARAMETERS).passage_column == "text"
    assert text_of(cells["tree"]) is None
    assert reject_without_passage(row(cells["tree"]), PARAMETERS).detail == "markup"


def test_prose_is_a_passage_whatever_comes_after_it():
    cells = {"tree": f"{PROSE} {PARSE * 9}", "text": "The museum is closed on Sundays."}
    assert fault_of(cells["tree"]) == "markup"
    assert find_passage(row(cells), PARAMETERS) == Passage("The museum opens at nine.", "tree", "longest")


def test_the_fault_is_that_of_the_passage_around_the_answer():
    cell = f"{LONG_PROSE} (NP (DT The) (NN museum)) opens. It has a hall."
    assert find_passage(row(cell), PARAMETERS, "opens") is None
    assert reject_without_passage(row(cell), PARAMETERS, "opens").detail == "markup"
    assert find_passage(row(cell), PARAMETERS).passage == "The museum has 0 rooms on its floors."


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PROSE, ""),
        ("the dress is sold at 65 percent of its price . the staff pay less . how much is that ?", ""),
        ("Der Fischereihafenbetriebsgesellschaft gehören die Anlagen. Gebaut hat man 1908.", ""),
        ("La agencia abre a las 7 y 30 de la mañana .  El último tren sale a las 9 .", ""),
        ("鯨は海に住む動物だ。春には北へ帰る。", ""),
        ("संग्रहालय नौ बजे खुलता है। रविवार को वह बंद रहता है।", ""),
        ("(ROOT (S (SBAR (IN If) (S (NP (PRP it)) (VP (VBZ rains)))) (. .)))", "markup"),
        ("a<>is<>b$$$b<>has part<>c$$$c<>is in<>d.", "markup"),
        ("def f(x):\n    return x[0] == {'a': 1}.get(x)", "markup"),
        ("name: conference, pluralName: conferences; name: market, pluralName: markets.", "markup"),
        ("12 4.5 77 1008 3 9.5 and 14 of 20. 88 12 1 0 5.", "symbols"),
        ("red green blue yellow " * 20, "no sentences"),
        ("Charlotte York. Carrie Bradshaw. Carrie Bradshaw. Carrie Bradshaw.", "repetition"),
        ("A ferry makes four crossings a day. How many cars are on it? (A) thirty (B) more than thirty.", "options"),
        ("Choice B is incorrect. The captain never says that the ferry was late on Friday.", "options"),
        (
            "Choice {C} is the best answer. The captain says that the ferry was late again on Friday.",
            "options",
        ),
        ("Plan A was dropped in spring. The bridge (B) of the drawing was built by vitamin B traders.", ""),
        ("What is the capital of Peru? Which river runs through it?", "questions"),
        ("x y z a b c . d e f g h i . j k", "odd words"),
    ],
)
def test_prose_is_told_from_what_is_not(text, fault):
    assert fault_of(text) == fault


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("It&#x27;s &quot;new&quot; &amp; small.", 'It\'s "new" & small.'),
        ("Open.\\nClose. A \\'quoted\\' word.\\newline The end.", "Open.\nClose. A 'quoted' word.\n The end."),
        ("One day it rained.\n\\newlineThe boat\\newlineleft.", "One day it rained.\n\nThe boat\nleft."),
        ("question: is it open\npassage: It opens at nine, and closes late.", "It opens at nine, and closes late."),
        ("context: Boats leave at ten. All wait., qas: question: When?, id: 4", "Boats leave at ten. All wait."),
        ("The rule, title: none, is old. Text: it is short.", "The rule, title: none, is old. Text: it is short."),
        ("['Heat it very well.', 'Add all \\'good\\' oil.', \"Don't burn it now\"]", "Heat it very well. Add all 'good' oil. Don't burn it now."),  # noqa: E501
        ("['Heat the pan.'\n 'Add the oil.']", "Heat the pan. Add the oil."),
        ("['We', 'left', 'early', '.']", "We left early ."),
        ('["It rains today.", "We stay at ho', "It rains today."),
        ("It rains.; We stay at home.; We read.", "It rains. We stay at home. We read."),
        ("The cafÃ© is open.", "The café is open."),
        ("我们，去（学校）。「は」　ＡＢ！", "我们，去（学校）。「は」　ＡＢ！"),
        ("The rate $\\theta$ and “this”.", "The rate $\\theta$ and “this”."),
        ("[1] A footnote, not a list.", "[1] A footnote, not a list."),
        ("['It rains today.', None, 3.5, ['We stay at home.']]", "It rains today. We stay at home."),
        ('["We won," he said.] All went home. "Go," she said.', '["We won," he said.] All went home. "Go," she said.'),
        ("['Tis the season] It isn't the mayor's fault.", "['Tis the season] It isn't the mayor's fault."),
    ],
)  # fmt: skip
def test_the_text_that_was_meant(text, clean):
    assert clean_text(text) == clean


@pytest.mark.parametrize(
    ("items", "clean"),
    [
        (['It "rained" all day; we\nstayed.', "", "Then we left."], 'It "rained" all day; we\nstayed. Then we left.'),
        (
            [{"context": "Boats leave at ten; all wait.", "qas": [{"question": "When; why?", "id": "1"}, {"id": "2"}]}],
            "Boats leave at ten; all wait.",
        ),
        ([{"id": "1", "text": "All wait; some leave."}, {"id": "2", "text": "None."}], "All wait; some leave."),
    ],
)
def test_a_list_that_ingest_wrote_as_json_is_read(items, clean):
    assert clean_text(flatten_row({"column": items}, {})["column"]) == clean


def test_a_list_that_is_cut_within_its_first_item_is_that_item():
    item = " ".join(f"River {number} floods; boats leave." for number in range(1000))
    assert text_of(flatten_row({"column": [item]}, {})["column"]) == "River 0 floods; boats leave."


@given(st.text())
def test_any_text_is_cleaned_and_measured(text):
    assert isinstance(fault_of(clean_text(text)), str)
    assert find_passage(row(text), PARAMETERS) or reject_without_passage(row(text), PARAMETERS).detail


@given(st.lists(st.sampled_from(["The river floods.", "Boats leave at noon.", "Nobody saw it."]), min_size=1))
def test_clean_prose_is_not_changed(sentences):
    assert clean_text(" ".join(sentences)) == " ".join(sentences)
