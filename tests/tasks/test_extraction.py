import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.records import AnswerSpec
from rebase.tasks.extraction import as_label, extract, split_conclusion

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


OPTIONS = AnswerSpec(type="label", labels=tuple(f"({letter})" for letter in "ABCDEFGHIJKLMNOPQR"))
YES_NO = AnswerSpec(type="label", labels=("Yes", "No"))


@pytest.mark.parametrize(
    ("raw", "option"),
    [
        ("(A)", "(A)"),
        ("A", "(A)"),
        ("A.", "(A)"),
        ("**(B)**", "(B)"),
        ("(r)", "(R)"),
        ("So the answer is (A).", "(A)"),
        ("So the answer is A.", "(A)"),
        ("The answer is: B", "(B)"),
        ("The answer is\n(C)", "(C)"),
        ("(A) is too long and (B) too short. So the answer is (C).", "(C)"),
        ("The answer is (D), not (A).", "(D)"),
        ("B) 12/07/2011", "(B)"),
        ("The answer is C because of the rain", "(C)"),
        ("The answer is A because of the rain", "(A)"),
        ("A dog is an animal.", ""),
        ("I do not know", ""),
        ("Vitamin C", ""),
        ("The answer is (Z).", ""),
        ("", ""),
    ],
)
def test_lettered_options(raw: str, option: str) -> None:
    assert extract(raw, OPTIONS) == option


# The published rule for BIG-Bench Hard (Suzgun et al., 2022): what follows the last "answer is ", else everything; of
# that the option in brackets, or, where there are no options, all but the full stop at its end.
@pytest.mark.parametrize(
    ("raw", "spec", "answer"),
    [
        ("Emily was seen all day. So the answer is (A).", OPTIONS, "(A)"),
        ("The answer is (A). Wait, the answer is (B).", OPTIONS, "(B)"),
        ("Not first, hence the answer is (C) Bo.", OPTIONS, "(C)"),
        ("Z = not True = False. So the answer is False.", AnswerSpec(type="label", labels=("True", "False")), "False"),
        ("He meant it. So the answer is Yes.", YES_NO, "Yes"),
        ("No step leads back. So the answer is Yes.", YES_NO, "Yes"),
        ("Tackles belong to football. So the answer is no.", AnswerSpec(type="label", labels=("yes", "no")), "no"),
        ("It follows. The answer is invalid.", AnswerSpec(type="label", labels=("valid", "invalid")), "invalid"),
        ("A * B = -41 * 3 = -123. So the answer is -123.", NUMBER, "-123"),
        ("They close in reverse order. So the answer is ] } >.", TEXT, "] } >"),
        ("] } >", TEXT, "] } >"),
        ("By first letters:\nc, o.\nSo the answer is copper oval.", TEXT, "copper oval"),
        ("costume counterpart oven", TEXT, "costume counterpart oven"),
    ],
)
def test_big_bench_hard(raw: str, spec: AnswerSpec, answer: str) -> None:
    assert extract(raw, spec) == answer


# lm-evaluation-harness: for GSM8K the number after "The answer is" (strict) or the last number (flexible), without
# commas, dollar signs and a full stop at its end; for MMLU the letter in brackets after "answer is".
@pytest.mark.parametrize(
    ("raw", "number"),
    [
        ("5 + 6 = 11 cars. The answer is 11.", "11"),
        ("She makes 9 * 2 = $18 every day.\n#### 18", "18"),
        ("The answer is $1,450.", "1450"),
        ("In all 2,125 of them.", "2125"),
        ("The answer is -3.", "-3"),
        ("The answer is 12.50.", "12.50"),
    ],
)
def test_gsm8k(raw: str, number: str) -> None:
    assert extract(raw, NUMBER) == number


def test_a_text_that_speaks_of_an_answer_is_not_cut() -> None:
    essay = "Nobody knows if the answer is war.\nThe council met twice."
    assert extract(essay, TEXT) == essay


def test_labels_are_known_without_what_surrounds_them() -> None:
    assert as_label(" b.", OPTIONS.labels) == "(B)"
    assert as_label("(B) or so", OPTIONS.labels) == ""


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It is late. So the answer is (A).", ("It is late.", "So the answer is (A).")),
        ("It is late.The answer is no.", ("It is late.", "The answer is no.")),
        ("2 + 2 = 4, therefore the correct answer is 4.", ("2 + 2 = 4,", "therefore the correct answer is 4.")),
        ("The answer is 5. No, the answer is 4.", ("The answer is 5. No,", "the answer is 4.")),
        ("It is late.", None),
    ],
)
def test_reasoning_and_conclusion_are_parted(text: str, parts: tuple[str, str] | None) -> None:
    assert split_conclusion(text) == parts


@given(raw=st.text(), label=st.sampled_from(LABEL.labels))
def test_a_label_is_a_label_or_nothing(raw: str, label: str) -> None:
    assert extract(raw, LABEL) in (*LABEL.labels, "")
    assert extract(label.upper(), LABEL) == label
    assert extract(raw, OPTIONS) in (*OPTIONS.labels, "")
