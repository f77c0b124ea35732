import json
import unicodedata
from itertools import chain

import pandas as pd
from benchmarks.filters import LeakIndex, find_leaks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rebase.datastore.cells import flatten_row
from rebase.generation.filters import contamination
from rebase.generation.filters.contamination import ContaminationFilter, protected_texts
from tests.shipped import shipped_task

SAFE = [f"safe{number}" for number in range(40)]

PLANTED = [f"leak{number}" for number in range(40)]


@given(st.data())
def test_every_planted_run_is_found_and_clean_rows_pass(data):
    item = data.draw(st.lists(st.sampled_from(PLANTED), min_size=14, max_size=30))
    clean = data.draw(st.lists(st.sampled_from(SAFE), max_size=60))
    row_filter = ContaminationFilter([[" ".join(item)]], 13)
    assert row_filter.reject({"text": " ".join(clean)}) is None
    start = data.draw(st.integers(0, len(item) - 13))
    run = [
        data.draw(st.sampled_from([str.upper, str.title, "«{}»,".format]))(word) for word in item[start : start + 13]
    ]
    place = data.draw(st.integers(0, len(clean)))
    rejection = row_filter.reject({"id": "7", "body": " \n ".join([*clean[:place], *run, *clean[place:]])})
    assert rejection.reason == "contamination_ngram"
    assert rejection.detail.startswith("body")
    # Twelve words are no run of thirteen.
    assert row_filter.reject({"text": " ".join([*clean[:place], *run[:12], *clean[place:]])}) is None


def reason(row_filter, *cells):
    rejection = row_filter.reject({f"c{number}": cell for number, cell in enumerate(cells)})
    return rejection and rejection.reason.removeprefix("contamination_")


def test_short_texts_leak_only_as_a_whole():
    row_filter = ContaminationFilter([["Who wrote the book?"], ["yes"]], 13)
    assert reason(row_filter, "who wrote -- THE book") == "exact"
    assert reason(row_filter, "Tell me: who wrote the book of hours?") is None
    assert reason(row_filter, "yes") is None


def test_texts_of_eight_words_leak_within_a_cell_too():
    row_filter = ContaminationFilter([["They had two dogs and eleven old cats."]], 13)
    assert (
        reason(row_filter, "Premise: A house. Hypothesis: They had two dogs and eleven old cats. Answer: no") == "ngram"
    )
    assert reason(row_filter, "They had two dogs and eleven cats.") is None
    longer = ContaminationFilter([["They had two dogs and eleven old cats at home."]], 13)
    assert reason(longer, "They had two dogs and eleven old cats, and then three.") is None


def test_a_list_that_ingest_wrote_as_json_leaks_as_its_items():
    text = "They had two dogs\nand eleven old cats; nobody\nelse was at home when the boat left."
    cell = flatten_row({"texts": [text, ""]}, {})["texts"]
    assert reason(ContaminationFilter([[text]], 13), cell) == "exact"
    assert reason(ContaminationFilter([[text]], 13), flatten_row({"texts": [text, "x"]}, {})["texts"]) == "ngram"
    assert reason(ContaminationFilter([[text]], 13), f'["{text}') == "exact"
    assert reason(ContaminationFilter([[text]], 13), '["", ' + "[" * 10**5) is None


def test_items_of_small_parts_leak_when_all_of_them_are_there():
    row_filter = ContaminationFilter([["Oh, sure.", "I do agree."], ["Oh, sure.", "Not so."]], 13)
    assert reason(row_filter, "i do agree", "neutral", "oh sure") == "exact"
    assert reason(row_filter, "i do agree", "neutral") is None
    assert reason(row_filter, "not so", "I do agree") is None


LONG = "鯨は冬になると南の暖かい海へ移り、春には子を連れて北へ帰る。"


def test_japanese_is_measured_in_letters():
    """26 letters are a run, 16 leak within a cell and 8 as a whole one, whatever Latin words stand between."""
    row_filter = ContaminationFilter(
        [[LONG], ["表の各行から値を取り出して並べる"], ["列を昇順に並べる"], ["列を足す"]], 13
    )
    assert reason(row_filter, f"問題文:「{LONG[2:]}」とある") == "ngram"
    assert reason(row_filter, LONG[:20]) is None
    assert reason(row_filter, "質問: 表の各行から、値を取り出して 並べる方法は?") == "ngram"
    assert reason(row_filter, "列を 昇順に並べる。") == "exact"
    assert reason(row_filter, "まず列を昇順に並べる") is None
    assert reason(row_filter, "列を足す") is None
    mixed = ContaminationFilter([["pythonのPandasデータ・フレームから辞書を作る方法を教えてください"]], 13)
    assert reason(mixed, "Ｐｙｔｈｏｎの ｐａｎｄａｓﾃﾞｰﾀﾌﾚｰﾑから辞書を作る方法を教えてくれ") == "ngram"


def test_code_is_measured_in_names_and_numbers():
    row_filter = ContaminationFilter([["labels[n].set_color('red')"], ["f.close()"]], 13)
    assert reason(row_filter, 'labels[ n ].set_color( "red" )') == "exact"
    assert reason(row_filter, "f.close()") is None


def test_cells_of_any_length_are_searched(monkeypatch):
    """At every place with regard to where a long cell is cut: at a space, or else twice as far."""
    row_filter = ContaminationFilter([[" ".join(PLANTED[:13])], [LONG]], 13)

    def check(size, spaced_places, unspaced_places):
        """Plant a text at places in cells of several pieces of ``size`` characters."""
        spaced, unspaced = "safe " * (size // 2), "無" * (5 * size // 2)
        for place in spaced_places:
            assert reason(row_filter, f"{spaced[:place]} {' '.join(PLANTED[:13])} {spaced}") == "ngram"
        for place in unspaced_places:
            assert reason(row_filter, f"{unspaced[:place]}{LONG}{unspaced}") == "ngram"
        assert reason(row_filter, spaced, unspaced, "x" * 15 * size) is None

    size = contamination._PIECE_CHARACTERS
    check(size, [size - 60, size - 5], [2 * size - 15])
    monkeypatch.setattr(contamination, "_PIECE_CHARACTERS", 2**10)
    check(2**10, range(2**10 - 130, 2**10 + 10), range(2**11 - 30, 2**11 + 2))


ENGLISH = ["the", "cat", "sat", "on", "mat", "Straße", "naïve", "co-op", "don't", "yes", "3.5", "ΐσος", "हिन्दी"]

JAPANESE = ["辞書", "から", "値を", "データ", "フレーム", "取り出す", "Pandas", "の", "リスト`li`"]

CODE = ["df", ".to_dict()", "[0]", "x_1", " = ", "for i in range(3):\n    ", "print(", "'a'", ")", "not ", "True and "]

short_texts = (
    st.lists(st.sampled_from(ENGLISH), min_size=1, max_size=18).map(" ".join)
    | st.lists(st.sampled_from(JAPANESE), min_size=1, max_size=14).map("".join)
    | st.lists(st.sampled_from(CODE), min_size=1, max_size=18).map("".join)
)


def full_width(text):
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


MUTATIONS = [
    str.upper,
    str.title,
    str.casefold,
    full_width,
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: text.replace(" ", " \n\t "),
    lambda text: text.replace(" ", ", "),
    lambda text: f"「{text}」。",
    lambda text: text.replace("a", "\u200ba"),
]


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from([5, 9, 13]))
def test_no_item_is_left_that_a_brute_force_finds(data, n):
    """Items copied, mutated and embedded into rows: the filter rejects exactly those in which a plain search finds one.

    The search (benchmarks/filters.py) shares no code with the filter: characters by Unicode category, runs as strings.
    """
    items = data.draw(st.lists(st.lists(short_texts, min_size=1, max_size=2), min_size=1, max_size=4))
    row_filter, leak_index = ContaminationFilter(items, n), LeakIndex(items, n)
    copied = st.sampled_from([text for item in items for text in item])
    mutated = st.builds(lambda mutate, text: mutate(text), st.sampled_from(MUTATIONS), copied | short_texts)
    parts = st.tuples(mutated, st.sampled_from([" ", "; ", "。"]), mutated).map("".join)
    cells = data.draw(st.lists(mutated | parts, max_size=4))
    assert bool(reason(row_filter, *cells)) == find_leaks(cells, leak_index)


@given(short_texts, st.sampled_from(MUTATIONS), st.sampled_from(MUTATIONS))
@example("ŉ ΐ ß İ ﬁ", str.upper, str.casefold)
def test_a_mutated_text_is_rejected_as_the_text_itself(text, mutate, again):
    row_filter = ContaminationFilter([[text]], 13)
    assert reason(row_filter, again(mutate(text))) == reason(row_filter, text)


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_any_text_goes_through_the_filter(item, cells):
    assert reason(ContaminationFilter([item], 13), *cells) in (None, "exact", "ngram")


def test_items_and_examples_are_protected(reading_task):
    of_items, of_examples, of_rationales = protected_texts(
        reading_task, pd.DataFrame({"fields": ['{"context": "c", "question": "q"}'], "references": ['["a"]']})
    )
    assert of_items == [("c", "q")]
    assert of_examples == [(line["context"], line["question"]) for line in reading_task.examples]
    assert not of_rationales


def test_free_answers_and_reasoning_are_protected(reading_task):
    task_fields = json.loads(reading_task.model_dump_json()) | {
        "answer": {"type": "code"},
        "passage": None,
        "cot": True,
    }
    task_fields["examples"] = [{**line, "rationale": "because"} for line in task_fields["examples"]]
    texts = protected_texts(
        type(reading_task).parse(task_fields, "here"), pd.DataFrame({"fields": ["{}"], "references": ['["a", "b"]']})
    )
    assert {("a",), ("b",), ("in high trees",), ("because",)} <= set(chain(*texts))


def test_of_queries_the_form_that_most_items_have_is_no_content(reading_task):
    fallacies, form = shipped_task("bbh_formal_fallacies"), "Is this, on the explicitly stated premises, valid?"
    arguments = [f"{name} rows, and all who row swim, so {name} swims as well. {form}" for name in ("Jo", "Al", "Di")]

    def items_of(*texts, field="question"):
        return pd.DataFrame({"fields": [json.dumps({field: text}) for text in texts], "references": "[]"})

    queries = ContaminationFilter.of_queries(fallacies, items_of(*arguments), 13)
    rows = ContaminationFilter.of(fallacies, items_of(*arguments), 13)
    of_examples = "Does the last sentence" + fallacies.examples[0]["question"].partition("Does the last sentence")[2]
    assert queries.reject({"question": f"Bo and Ty hum. {form}"}) is None
    assert queries.reject({"question": f"Bo hums. {of_examples}"}) is None
    assert rows.reject({"question": f"Bo hums. {of_examples}"})
    for text in (*arguments, fallacies.examples[0]["question"], f"Listen! {arguments[1]}"):
        assert queries.reject({"question": text})
    # Two items with one text are no form, nor is a passage.
    assert ContaminationFilter.of_queries(fallacies, items_of(f"{LONG} A", f"{LONG} B"), 13).reject({"x": LONG})
    passage = pd.DataFrame(
        {"fields": [json.dumps({"context": LONG, "question": f"Who is {n}?"}) for n in range(4)], "references": '["a"]'}
    )
    assert ContaminationFilter.of_queries(reading_task, passage, 13).reject({"context": LONG})
