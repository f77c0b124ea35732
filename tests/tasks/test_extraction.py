from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.records import AnswerSpec
from rebase.tasks.extraction import as_label, extract, split_conclusion, without_conclusion

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
        ("The answer is **_colza oil_**.", "colza oil"),
        ("The answer is as follows:\ncolza oil", "colza oil"),
        ("Sure! Here it is:\n\ncolza oil", "colza oil"),
        ("colza oil:", "colza oil:"),
        ("The answer is " + "_" * 5001, "_"),  # what a model writes into a form
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
        ("There is no entailment here; neutral.", "neutral"),
        ("It cannot be an entailment, it is neutral", "neutral"),
        ("It is a non-entailment: neutral", "neutral"),
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
        ("He has 10 000 dollars", "10000"),
        ("In 2024 100 people", "100"),
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
    assert extract("We add. So the answer is x + 1.", CODE) == "x + 1"
    assert extract("We add. So the answer is Two lines\nof text.", TEXT) == "Two lines\nof text"
    assert extract("It is late. The answer is night.", TEXT) == extract("So, the answer is night.", TEXT) == "night"


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
    letter = "She wrote that the answer is in the soil, and left."
    assert extract(letter, TEXT) == letter


def test_labels_are_known_without_what_surrounds_them() -> None:
    assert as_label(" b.", OPTIONS.labels) == "(B)"
    assert as_label("(B) or so", OPTIONS.labels) == ""


@pytest.mark.parametrize(
    ("labels", "raw", "label"),
    [
        (("A*", "A", "B"), "A", "A"),
        (("A*", "A", "B"), "A*", "A*"),
        (("*", "**"), "**", "**"),
        ((":)", ":("), "", ""),
        (("iyi", "kötü"), "Yorum İyi.", "iyi"),
        (("A", "B", "tie"), "It is a tie.", "tie"),
        (("entailment", "neutral", "contradiction"), "Neither entailment nor contradiction: neutral", "neutral"),
        (("(A)", "(B)", "(C)"), "It is neither (A) nor (B) but (C)", "(C)"),
    ],
)
def test_labels_that_look_alike(labels: tuple[str, ...], raw: str, label: str) -> None:
    assert extract(raw, AnswerSpec(type="label", labels=labels)) == label


@pytest.mark.parametrize(
    ("rationale", "steps"),
    [
        ("6 * 3 = 18. So the answer is 18.", "6 * 3 = 18."),
        ("6 * 3 = 18\nThe answer is $1.50", "6 * 3 = 18"),
        ("So the answer is 18.", ""),
        ("We add, so the answer is 18.", None),
        ("The answer is 3. Then we check it.", None),
        ("It is late.", None),
    ],
)
def test_a_last_sentence_that_states_the_answer_is_dropped(rationale: str, steps: str | None) -> None:
    assert without_conclusion(f" {rationale}\n") == (rationale if steps is None else steps)


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


# Raw outputs of the shapes that lm-evaluation-harness (gsm8k, minerva_math, bbh, mmlu), OpenCompass (first option,
# gsm8k, math) and simple-evals (mgsm, mmlu) read, and of shapes that they are known to read wrongly.
NUMBERS = [
    # markers
    ("#### 2,125.", "2125"),
    ("16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18", "18"),
    ("#### -7", "-7"),
    ("Answer: 18", "18"),
    ("ANSWER: 18", "18"),
    ("Answer: 18.0", "18"),
    ("**Answer:** 18", "18"),
    ("**Answer**: $18$", "18"),
    ("Final answer: 18 eggs", "18"),
    ("### Final Answer\n\n18", "18"),
    ("<reasoning>4 boxes of 6</reasoning>\n<answer>24</answer>", "24"),
    ("The answer to the question is 18.", "18"),
    ("The final answer is $16$. I hope it is correct.", "16"),
    ("The correct answer should be 18, since 3 * 6 = 18.", "18"),
    ("First I thought the answer is 20. In fact the answer is 18.", "18"),
    ("The answer is 18.\n\nQuestion: Ann has 5 hens. How many legs?\nThe answer is 10.", "18"),
    ("18\n\nAnn has 5 hens and 2 dogs.\n\nAnswer:\n28\n\n", "18"),
    ("Antwort: 18", "18"),
    ("Respuesta: 18", "18"),
    ("答案是18", "18"),
    ("答えは１８個です。", "18"),
    ("一共有18个苹果。", "18"),
    # LaTeX
    (r"Hence there are $\boxed{18}$ of them, 3 a row.", "18"),
    (r"\boxed{18\text{ apples}}", "18"),
    (r"$\boxed{\$2{,}400}$", "2400"),
    (r"The answer is \(\boxed{-3}\).", "-3"),
    (r"So $x = \fbox{7}$", "7"),
    (r"The answer is $\frac{3}{4}$.", "0.75"),
    (r"The answer is $-\dfrac{1}{2}$.", "-0.5"),
    (r"The answer is $2\frac{1}{4}$ cups.", "2.25"),
    (r"\boxed{\frac12}", "0.5"),
    (r"She pays 12\,500 in all.", "12500"),
    (r"The answer is $40\%$.", "40"),
    (r"The answer is $90^\circ$.", "90"),
    (r"The answer is $1.2 \times 10^{4}$.", "12000"),
    # signs and currency
    ("The answer is -$12.50.", "-12.50"),
    ("The answer is $-12.50.", "-12.50"),
    ("The answer is –€30.", "-30"),
    ("The answer is minus 4.", "-4"),
    ("The answer is negative $4.", "-4"),
    ("It is 10 minus 7", "7"),
    ("The answer is £1,050.00", "1050"),
    ("The answer is US$15.", "15"),
    ("The answer is +6.", "6"),
    # separators
    ("The answer is 1,234,567.", "1234567"),
    ("The answer is 1.234.567.", "1234567"),
    ("The answer is 1.234,56 euros.", "1234.56"),
    ("The answer is 12,50 €.", "12.50"),
    ("The answer is 0,5.", "0.5"),
    ("The answer is 12 345.", "12345"),
    ("The answer is 1\u202f234\u202f567.", "1234567"),
    ("The answer is 1'234.", "1234"),
    ("The answer is 12,34,567.", "1234567"),
    ("The answer is 1.234.", "1.234"),
    ("The answer is 1, 2 or 3", "1"),
    # other notations
    ("The answer is 2.5e2.", "250"),
    ("The answer is 3E-2.", "0.03"),
    ("The answer is 6 x 10^3 m.", "6000"),
    ("The answer is 3/4.", "0.75"),
    ("The answer is 1 1/2 hours.", "1.5"),
    ("The answer is 75%.", "75"),
    ("The answer is 5km.", "5"),
    ("The area is 50 m^2", "50"),
    ("The tank holds 30 kg of CO2", "30"),
    ("It was due on 12/07/2011", "2011"),
    # words and numbers beside the stated one
    ("The answer is 24 (4 boxes of 6).", "24"),
    ("She bakes 24 rolls (2 trays of 12)", "24"),
    ("The answer is 15, not 18.", "15"),
    ("The answer is not 18 but 15.", "15"),
    ("He needs 15 rather than 18.", "15"),
    ("The answer is 30 out of 45 pupils.", "30"),
    ("She has read 30 out of 45.", "30"),
    ("The answer is 7 more than they had on day 1", "7"),
    ("The answer is about 40 minutes for 3 trips.", "40"),
    ("The answer is 5 + 6 = 11 cars.", "11"),
    ("The answer is 18 = 3 * 6.", "18"),
    ("The answer is x = 4.", "4"),
    ("The answer is 25% of 80, which is 20.", "20"),
    ("The answer is 20. No, wait, 18.", "18"),
    ("The answer is 10-15 minutes.", "15"),
    ("The answer is 10 to 15.", "15"),
    ("The answer is 18. She keeps 3 of them.", "18"),
    ("The answer is clear.", ""),
]

LETTERS = AnswerSpec(type="label", labels=("(A)", "(B)", "(C)", "(D)"))
OPTION_OUTPUTS = [
    ("B", "(B)"),
    ("b", "(B)"),
    ("(B)", "(B)"),
    ("[B]", "(B)"),
    ("**B**", "(B)"),
    ("**B.** Rome", "(B)"),
    ("B) Rome", "(B)"),
    ("B. Rome", "(B)"),
    ("B: Rome", "(B)"),
    ("(B) Rome", "(B)"),
    ("Answer: B", "(B)"),
    ("Answer: (B)", "(B)"),
    ("Answer: $B$", "(B)"),
    ("**Answer: B**", "(B)"),
    ("Answer:\n\nB", "(B)"),
    ("The river is in Italy.\n\nAnswer: B", "(B)"),
    ("The river is in Italy.\n\nB", "(B)"),
    ("The river is in Italy.\n**B**", "(B)"),
    ("B\n\nThe river is in Italy.", "(B)"),
    ("The answer is option B.", "(B)"),
    ("The correct answer is option (B).", "(B)"),
    ("The correct option is B.", "(B)"),
    ("The best choice is: **B**", "(B)"),
    ("The answer to the question is B", "(B)"),
    ("The answer is **B) Rome**.", "(B)"),
    ("I would choose option B here", "(B)"),
    ("Option B", "(B)"),
    ("B is correct, because A is a river", "(B)"),
    ("A is the best answer", "(A)"),
    ("C is wrong. (B) is right.", "(B)"),
    ("It is not (A) but (B)", "(B)"),
    ("The answer is not (A). It must be (B).", "(B)"),
    (r"The answer is $\boxed{B}$.", "(B)"),
    (r"\boxed{\text{(B)}}", "(B)"),
    (r"$\textbf{(B)}\ 12$", "(B)"),
    ("答案：B", "(B)"),
    ("因此，正确答案是B。", "(B)"),
    ("Ｂ", "(B)"),
    ("I am not sure", ""),
    ("A river runs through Rome", ""),
    ("E", ""),
]

ENTAILMENT = AnswerSpec(type="label", labels=("entailment", "neutral", "contradiction"))
LABEL_OUTPUTS = [
    ("**Neutral**", "neutral"),
    ('"neutral"', "neutral"),
    ("Answer: neutral", "neutral"),
    ("Label: Contradiction.", "contradiction"),
    ("The label is contradiction, since nobody can sleep and run.", "contradiction"),
    ("The premise and the hypothesis are neutral", "neutral"),
    ("This is not neutral but entailment", "entailment"),
    ("It isn't a contradiction; it is an entailment.", "entailment"),
    ("The text may hint at entailment, but it does not say so.\n\nNeutral", "neutral"),
    ("Neutral\n\nThe premise does not lead to entailment.", "neutral"),
    (r"\boxed{\text{neutral}}", "neutral"),
    ("<answer>neutral</answer>", "neutral"),
    ("unrelated", ""),
]

SPANS = [
    ("Answer: colza oil", "colza oil"),
    ("**Answer:** colza oil.", "colza oil"),
    ("Answer:\ncolza oil", "colza oil"),
    ("**colza oil**", "colza oil"),
    ('"colza oil"', "colza oil"),
    ("“colza oil”.", "colza oil"),
    ("The answer is colza oil.\nThe answer is", "colza oil"),
    ("The answer is **colza oil**.", "colza oil"),
    ('The answer is "colza oil".', "colza oil"),
    ("The answer is colza oil. It was cheap.", "colza oil"),
    ("The answer is Agnes Holm, Jr. of St. Ives.", "Agnes Holm, Jr. of St. Ives"),
    ("The lamp burned oil.\n\nFinal answer: colza oil", "colza oil"),
    (r"The answer is \boxed{\text{colza oil}}.", "colza oil"),
    ("colza oil\n\nThe mill stands at Orb.\n\nQuestion: Where is the mill?\n\nAnswer:\nat Orb", "colza oil"),
]

TEXTS = [
    ("Answer: ] } >", "] } >"),
    ("**Answer:**\nTwo lines\nof text.", "Two lines\nof text."),
    ("The answer is a * b *.", "a * b *"),
]

THOUGHTS = [
    ("<think>\nThe answer is 5?\n</think>\n\n7", NUMBER, "7"),
    ("Maybe 5.\n</think>\n\nThe answer is 7.", NUMBER, "7"),
    ("<think>\nThe answer is 5, or maybe", NUMBER, ""),
    ("<THINKING>neutral?</THINKING>entailment", LABEL, "entailment"),
    ("<think>(A) or (B)</think>\n(B)", LETTERS, "(B)"),
    ("[THINK]An oil.[/THINK]colza oil", SPAN, "colza oil"),
    ("<think>\n\n</think>\n\n```python\nx = 1\n```", CODE, "x = 1"),
    ("<think>Short.</think>\n\nTwo lines\nof text.", TEXT, "Two lines\nof text."),
    ("<think>The answer is", TEXT, ""),
]


@pytest.mark.parametrize(
    ("raw", "spec", "answer"),
    [(raw, NUMBER, answer) for raw, answer in NUMBERS]
    + [(raw, LETTERS, answer) for raw, answer in OPTION_OUTPUTS]
    + [(raw, ENTAILMENT, answer) for raw, answer in LABEL_OUTPUTS]
    + [(raw, SPAN, answer) for raw, answer in SPANS]
    + [(raw, TEXT, answer) for raw, answer in TEXTS]
    + THOUGHTS,
)
def test_raw_outputs_of_other_harnesses(raw: str, spec: AnswerSpec, answer: str) -> None:
    assert extract(raw, spec) == answer


@pytest.mark.parametrize("labels", [("A", "B", "C"), ("(A)", "(B)", "none of them")])
def test_letters_of_other_label_sets(labels: tuple[str, ...]) -> None:
    spec = AnswerSpec(type="label", labels=labels)
    assert extract("The answer is option B.", spec) == labels[1]
    assert extract("a dog is a mammal", spec) == ""


@given(raw=st.text())
def test_a_number_is_a_number_or_nothing(raw: str) -> None:
    extracted = extract(raw, NUMBER)
    assert extracted == "" or Decimal(extracted).is_finite()
