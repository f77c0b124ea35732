import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.extraction import extract
from rebase.records import AnswerSpec

SPAN, NUMBER, CODE, TEXT = (AnswerSpec(type=kind) for kind in ("span", "number", "code", "text"))
LABEL = AnswerSpec(type="label", labels=("entailment", "not entailment", "neutral"))


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("colza oil", "colza oil"),
        ("\n  colza oil \nIt burned at first.", "colza oil"),
        ("The answer is colza oil.", "colza oil"),
        ("The lamp burned oil. So the answer is: colza oil.", "colza oil"),
        ("First the answer is A. No, the answer is B.\nThe answer is C.", "C"),
        ("Agnes Holm, Jr.", "Agnes Holm, Jr."),
        ("", ""),
    ],
)
def test_span(raw: str, answer: str) -> None:
    assert extract(raw, SPAN) == answer


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("neutral", "neutral"),
        (" Neutral. ", "neutral"),
        ("not entailment", "not entailment"),
        ("It is not entailment", "not entailment"),
        ("I say entailment, not neutral", "entailment"),
        ("It may look neutral, but the answer is entailment.", "entailment"),
        ("The answer is clear: neutral or", "neutral"),
        ("neutrality", ""),
        ("", ""),
    ],
)
def test_label(raw: str, label: str) -> None:
    assert extract(raw, LABEL) == label


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        ("18", "18"),
        ("6 * 8 = 48. 48 - 30 = 18. So the answer is 18.", "18"),
        ("The answer is 18. That is 3 more than 15.", "15"),
        ("The answer is 18.\nThat is 3 more than 15.", "18"),
        ("$1,234,567.50 in all", "1234567.50"),
        ("-7", "-7"),
        ("\u22127 degrees", "-7"),
        ("10-7", "7"),
        (".5", ".5"),
        ("1,2 and 3", "3"),
        ("no number", ""),
        ("The answer is unknown, 4 or 5", "5"),
    ],
)
def test_number(raw: str, number: str) -> None:
    assert extract(raw, NUMBER) == number


@given(number=st.integers(-(10**9), 10**9), before=st.integers(0, 10**6))
def test_number_with_thousands_separators(number: int, before: int) -> None:
    assert extract(f"From {before} we get {number:,} things.", NUMBER) == str(number)


def test_code_and_text() -> None:
    assert extract("Here:\n```python\nx = 1\n```\nDone.", CODE) == "x = 1"
    assert extract("```\nx = 1", CODE) == "x = 1"
    assert extract("x = 1\n", CODE) == "x = 1"
    assert extract(" Two lines\nof text. ", TEXT) == "Two lines\nof text."


@given(raw=st.text(), label=st.sampled_from(LABEL.labels))
def test_a_label_is_a_label_or_nothing(raw: str, label: str) -> None:
    assert extract(raw, LABEL) in (*LABEL.labels, "")
    assert extract(label.upper(), LABEL) == label
