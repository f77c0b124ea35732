import itertools

from hypothesis import given
from hypothesis import strategies as st

from rebase.text import cut_at_sentence, ngrams, normalise, tokens

words = st.lists(st.text(alphabet="abcß.!?é \n", min_size=0, max_size=6), max_size=20)


@given(st.text())
def test_normalise_forgets_case_and_outer_punctuation(text):
    assert normalise(f"  «{normalise(text)}»! ") == normalise(normalise(text))


def test_tokens_fold_what_looks_the_same():
    assert tokens("Ｔｈｅ CAFÉ's “№5”, straße") == ["the", "café", "s", "no5", "strasse"]
    assert tokens("日本語 text") == ["日", "本", "語", "text"]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 6))
def test_ngrams_are_all_runs(items, n):
    assert list(ngrams(items, n)) == [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


@given(words, st.integers(1, 12))
def test_cut_at_sentence_is_a_prefix_within_the_limit(parts, limit):
    text = " ".join(parts)
    cut = cut_at_sentence(text, limit)
    assert text.startswith(cut)
    assert len(cut.split()) <= limit
    if len(text.split()) <= limit:
        assert cut == text


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 20))
def test_cut_at_sentence_takes_as_many_whole_sentences_as_fit(lengths, limit):
    text = " ".join("word " * (length - 1) + "end." for length in lengths)
    fitting = [total for total in itertools.accumulate(lengths) if total <= limit]
    assert len(cut_at_sentence(text, limit).split()) == (fitting[-1] if fitting else limit)


def test_cut_at_sentence_does_not_read_a_huge_cell_over_and_over():
    assert cut_at_sentence("One. " * 1_000_000, 3) == "One. One. One."
