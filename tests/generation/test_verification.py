from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.verification import (
    MAX_SPAN_WORDS,
    ProtectedTexts,
    agrees,
    equations,
    gives_answers_away,
    label_balance,
    names_label,
    one_sided,
    reject_example,
    reject_input,
    reject_rationale,
    same_answer,
    stated_answer,
    tidy_answer,
)
from rebase.records import Task
from rebase.text import normalize

TASKS = Path(__file__).parents[2] / "data" / "01_raw" / "tasks"


def shipped(name: str) -> Task:
    return Task.parse(yaml.safe_load((TASKS / f"{name}.yml").read_text()), name)


READING, TOPIC, SUMS = shipped("reading_qa"), shipped("news_topic"), shipped("word_problems")
FREE = TOPIC.model_copy(update={"answer": TOPIC.answer.model_copy(update={"type": "text", "labels": ()})})
NUMBERS_IN_PASSAGES = READING.model_copy(update={"answer": SUMS.answer})
TOXIC = TOPIC.model_copy(
    update={
        "query": "Is it toxic or not toxic? {text}",
        "answer": TOPIC.answer.model_copy(update={"labels": ("toxic", "not toxic")}),
    }
)
OTHERS = {"points": NUMBERS_IN_PASSAGES, "toxic": TOXIC}
CODE = TOPIC.model_copy(update={"answer": TOPIC.answer.model_copy(update={"type": "code", "labels": ()})})
PASSAGE = "The Skarn bell was cast in 1602 by Anna Dahl, and it weighs about 340 kilograms."
NOTHING = ProtectedTexts(READING.model_copy(update={"examples": ()}), [], 13)


def reject(question, answer, protected_texts=NOTHING):
    return reject_example(READING, {"context": PASSAGE, "question": question}, answer, protected_texts)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Who cast the bell?", "Anna Dahl", None),
        ("Who cast the bell?", "anna dahl", None),
        ("How heavy is the bell?", "about 340 kilograms", None),
        ("Who cast the bell?", "Anna Berg", "answer_not_in_passage"),
        ("Who cast the bell?", "Ann", "answer_not_in_passage"),
        ("Was Anna Dahl the one who cast the bell?", "Anna Dahl", "answer_given_away"),
        ("How many kilograms?", "340 kilograms", "answer_given_away"),
        ("Name who cast the bell.", "Anna Dahl", "not_a_question"),
        ("What is the capital of Peru?", "Anna Dahl", "question_off_passage"),
        ("Who cast the bell?", "1602", "question_word_mismatch"),
        ("When was the bell of the bell of the bell cast?", "1602", "question_repeats_itself"),
        ("Who cast the bell?", "", "empty"),
        (" ", "Anna Dahl", "empty"),
        ("What is told of the bell?", PASSAGE, "answer_too_long"),
    ],
)
def test_spans(question, answer, reason):
    assert reject(question, answer) == reason


def test_copies_and_evaluation_items():
    question, answer = "Who cast the bell?", "Anna Dahl"
    query = READING.render_query({"context": PASSAGE, "question": question})
    assert reject(question, answer, ProtectedTexts(READING, [query.upper()], 13)) == "equals_evaluation_item"
    copied = READING.examples[0]["question"]
    assert reject(copied, answer, ProtectedTexts(READING, [], 13)) == "copies_prompt_example"


def test_queries_may_share_a_short_field_with_an_example_but_not_all_fields():
    names = ["phone", "lamp", "desk"]
    products = [{**example, "product": name} for example, name in zip(TOPIC.examples, names, strict=False)]
    task = TOPIC.model_copy(update={"query": "Product: {product}\nReview: {text}", "examples": tuple(products)})
    protected = ProtectedTexts(task, [], 13)
    assert reject_input(task, {"product": "Phone", "text": "It rings all day, and I like it."}, protected) is None
    copied = {"product": "chair", "text": products[0]["text"]}
    assert reject_input(task, copied, protected) == "copies_prompt_example"


OPTIONS = shipped("bbh_disambiguation_qa")


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Whom does 'it' mean?\nOptions:\n(A) the bell\n(B) the tower", "(B)", None),
        ("Whom does 'it' mean?\nA. the bell\nB) the tower", "(A)", None),
        ("Whom does 'it' mean?\n(A) the bell\n(B) the tower", "(C)", "no_such_option"),
        ("Whom does 'it' mean?\n(A) the bell\n(B) the tower", "(E)", "unknown_label"),
        ("Whom does 'it' mean?", "(B)", "no_options"),
        ("Whom does 'it' mean (A)?", "(A)", "no_options"),
        (
            "Whom?\n(A) the singer had lost a filling\n(B) The dentist had lost a filling\n(C) Ambiguous",
            "(A)",
            "copies_prompt_example",
        ),
        ("Whom?\n(A) The singer had lost a filling\n(B) A dentist had lost a filling\n(C) Ambiguous", "(A)", None),
    ],
)
def test_an_answer_is_an_option_that_the_query_lists(question, answer, reason):
    assert reject_example(OPTIONS, {"question": question}, answer, ProtectedTexts(OPTIONS, [], 13)) == reason


@pytest.mark.parametrize("orders", ["abc", "aaa", "a"])
def test_options_that_all_queries_share_in_any_order_are_no_copy(orders):
    options = {
        "a": "(A) yes\n(B) no\n(C) unknown",
        "b": "(A) no\n(B) yes\n(C) unknown",
        "c": "(A) unknown\n(B) no\n(C) yes",
    }
    same = [example | {"question": f"Is {order} odd?\nOptions:\n{options[order]}"}
            for order, example in zip(orders, OPTIONS.examples, strict=False)]  # fmt: skip
    task = OPTIONS.model_copy(update={"examples": tuple(same)})
    fields = {"question": f"Is 7 odd?\nOptions:\n{options['a']}"}
    assert reject_example(task, fields, "(A)", ProtectedTexts(task, [], 13)) is None


def test_letters_are_free_where_the_examples_list_no_options():
    grades = TOPIC.model_copy(
        update={
            "answer": TOPIC.answer.model_copy(update={"labels": ("A", "B")}),
            "examples": tuple(example | {"answer": "A"} for example in TOPIC.examples),
        }
    )
    fields = dict.fromkeys(grades.query_fields, "Some text to grade.")
    assert reject_example(grades, fields, "B", ProtectedTexts(grades, [], 13)) is None


RUN = "the old ferry to Lunna takes only six bicycles on a fine summer day"  # 14 words


@pytest.mark.parametrize(
    ("text", "query", "rejected"),
    [
        (f"Yes, {RUN.upper()}!", f"News item: They say {RUN}, they say.", True),
        (f"Yes, {RUN}.", f"News item: {RUN.replace('six', 'ten')}", False),
        (
            "昨日の朝、北の港で小さな船が見つかり、漁師たちが浜まで引いていきました。",
            "News item: それは北の港で小さな船が見つかり、漁師たちが浜まで引いていきました、と。",
            True,
        ),
        (
            "昨日の朝、北の港で大きな船が見つかりました。",
            "News item: それは北の港で小さな船が見つかり、漁師たちが浜まで引いていきました、と。",
            False,
        ),
    ],
)
def test_a_run_of_words_of_an_evaluation_item(text, query, rejected):
    reason = reject_example(TOPIC, {"text": text}, "travel", ProtectedTexts(TOPIC, [query], 13))
    assert reason == ("overlaps_evaluation" if rejected else None)


def test_a_run_in_the_answer_or_in_the_passage_counts():
    protected_texts = ProtectedTexts(FREE, [f"News item: {RUN}"], 13)
    assert reject_example(FREE, {"text": "Say it."}, RUN, protected_texts) == "overlaps_evaluation"
    passage = f"{RUN}. It sails at 7."
    protected_texts = ProtectedTexts(READING, [READING.render_query({"context": RUN, "question": "Who?"})], 13)
    fields = {"context": passage, "question": "When does the ferry sail?"}
    assert reject_example(READING, fields, "at 7", protected_texts) == "overlaps_evaluation"


def test_what_is_written_must_not_repeat_the_prompts_examples_but_a_passage_may():
    protected_texts = ProtectedTexts(TOPIC, [], 8)
    copied = f"Today {TOPIC.examples[0]['text']}"
    assert reject_example(TOPIC, {"text": copied}, "sport", protected_texts) == "overlaps_evaluation"
    fields = {"context": READING.examples[0]["context"] + " The bell weighs 3 tons.", "question": "What weighs 3 tons?"}
    assert reject_example(READING, fields, "The bell", ProtectedTexts(READING, [], 8)) is None


def test_the_words_of_the_template_are_no_run():
    long = TOPIC.model_copy(update={"query": f"{RUN} {RUN}: {{text}}"})
    query = long.render_query({"text": "A cup was won."})
    assert reject_example(long, {"text": "Rain stopped play."}, "sport", ProtectedTexts(long, [query], 13)) is None


def test_the_format_of_the_items_is_no_content_but_a_shared_passage_is():
    fallacies, form = shipped("bbh_formal_fallacies"), "is this, on the explicitly stated premises alone, valid or not?"
    queries = [f"{name} rows, and so {name} swims: {form}\nOptions:\n- valid\n- invalid" for name in ("Jo", "Al", "Di")]
    protected_texts = ProtectedTexts(fallacies, queries, 13)
    written = (
        fallacies.examples[0]["question"].replace("rower", "miller").replace("boat", "cart").replace("mooring", "shed")
    )

    def reason(question):
        return reject_example(fallacies, {"question": question}, "valid", protected_texts)

    assert reason(written) is None
    assert reason(f"All who row swim, and Bo rows. {queries[0].partition(':')[2]}") is None
    assert reason(f"Listen! {queries[0]}") == "overlaps_evaluation"
    assert reason(f"Listen! {fallacies.examples[0]['question']}") == "overlaps_evaluation"
    passages = [READING.render_query({"context": RUN, "question": f"Who is {name}?"}) for name in ("Jo", "Al", "Di")]
    fields = {"context": f"{RUN}. It sails at 7.", "question": "When does the ferry sail?"}
    assert reject_example(READING, fields, "at 7", ProtectedTexts(READING, passages, 13)) == "overlaps_evaluation"


def test_labels():
    fields = {"text": "Rain stopped play."}
    assert reject_example(TOPIC, fields, "sport", NOTHING) is None
    assert reject_example(TOPIC, fields, "weather", NOTHING) == "unknown_label"
    assert tidy_answer(TOPIC, fields, " Sport ") == "sport"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("12", None), ("-2.5", None), ("1,200", None), ("a dozen", "not_a_number"), ("1" * 5000, "not_a_number")],
)
def test_numbers(answer, reason):
    fields = {"question": "How many?"}
    assert reject_example(SUMS, fields, tidy_answer(SUMS, fields, answer), NOTHING) == reason


def test_an_answer_that_repeats_its_query():
    fields = {"text": "Rain stopped play."}
    query = TOPIC.render_query(fields)
    assert reject_example(FREE, fields, query, NOTHING) == "repeats_query"
    assert reject_example(CODE, fields, query, NOTHING) == "not_code"
    assert reject_example(CODE, fields, "print('rain')", NOTHING) is None


def test_an_answer_in_python_where_the_examples_answer_in_python():
    task = shipped("mconala_ja")
    fields = {"intent": "空港は何の直訳か"}
    answer = tidy_answer(task, fields, "```python\nnames.sort()\n```")
    assert answer == "names.sort()"
    assert reject_example(task, fields, answer, NOTHING) is None
    assert reject_example(task, fields, "text: Airport, answer_start: 124", NOTHING) == "not_code"


def test_a_span_takes_the_passages_spelling():
    fields = {"context": PASSAGE, "question": "Who?"}
    assert tidy_answer(READING, fields, ' "anna dahl." ') == "Anna Dahl"


@pytest.mark.parametrize(
    ("answer", "passage", "span"),
    [
        ("US", "The trusted envoy of the US spoke for us.", "US"),
        ("A", "Carrots have a lot of vitamin A.", "A"),
        ("who", "Villagers who fell ill asked the WHO.", "who"),
        ("who", "The WHO came.", "WHO"),
        ("art", "A party of Art students.", "Art"),
        ("東京", "彼は東京に住む。", "東京"),
        ("new", "Renewal of NEWS.", "new"),
    ],
)
def test_a_span_is_a_word_before_a_part_of_one(answer, passage, span):
    assert tidy_answer(READING, {"context": passage, "question": "Who?"}, answer) == span


def test_code_keeps_its_indentation():
    assert tidy_answer(CODE, {"text": "x"}, "\n    return 1\n") == "    return 1"


@pytest.mark.parametrize(
    ("answer", "tidied"), [("1,200", "1200"), ("18.0", "18"), ("2.50", "2.50"), ("7.", "7"), ("x", "x")]
)
def test_a_number_is_kept_bare(answer, tidied):
    assert tidy_answer(SUMS, {"question": "How many?"}, answer) == tidied


@pytest.mark.parametrize(
    ("rationale", "answer", "reason"),
    [
        ("6 * 8 = 48. After 30 are sold, 48 - 30 = 18 are left.", "18", None),
        ("She pays 3 × $4 = $12.", "12", None),
        ("A third of 10 is 10 / 3 = 3.33.", "3.33", None),
        ("So 2 + 2 = 4. So the answer is 4.", "4", None),
        ("She pays 3 * 5 + 2 = 15 + 2 = 17 dollars.", "17", None),
        ("3 * 4 = 12 dollars, and $1,200 + $300 = $1,500 (so 12 + 1,500 = 1,512).", "1512", None),
        ("6 * 8\n= 48", "48", None),
        ("1/2 + 1/4 = 3/4", "0.75", None),
        ("The share is 20 / 80 = 25%.", "25", None),
        ("25% * 80 = 20", "20", None),
        ("2^3 + 1 = 9", "9", None),
        ("2 ** 3 + 1 = 9", "9", None),
        ("2 x 3 + 4 * 5 = 26", "26", None),
        ("Half of 6 + 2 = 5", "5", None),
        ("2x + 3 + 4 = 15, so 15 - 7 = 8 and 8 / 2 = 4", "4", None),
        ("7:30 + 45 = 8:15, so 8 - 5 = 3", "3", None),
        ("2(3+4) = 14", "14", None),
        ("5 − 2 + 3 = 6", "6", None),
        ("6 * 8 = 40 apples + 8 apples = 48 apples", "48", None),
        ("$a = -2$ and $b = 4$, so $b - a$ is $4 - (-2) = \\boxed{6}$.", "6", None),
        ("We have $6k=6$, which solves to $k=\\boxed{1}$.", "1", None),
        ("12 x = 300, so x = 25", "25", None),
        ("\\cos{E} = \\frac{24}{25}", "0.96", None),
        ("So x = 18y, and x = 18 + 3z", "18", "answer_not_derived"),
        ("$4 - (-2) = \\boxed{7}$", "7", "wrong_equation"),
        ("17 / 4 = 4 with 1 left", "4", None),
        ("5 / 2 = 2 1/2, and 5 - 2 = 3", "3", None),
        ("10 / 3 * 3 = 3.33 * 3 = 9.99", "9.99", None),
        ("There are 48\n- 48 - 30 = 18\n- **18 / 3 = 6**", "6", None),
        ("6 * 8 = 42.", "42", "wrong_equation"),
        ("6 * 8 = 40 + 2 = 42", "42", "wrong_equation"),
        ("6 * 8 = 40 + 8 = 49", "49", "wrong_equation"),
        ("1/2 + 1/4 = 2/6, so 1 + 1 = 2", "2", "wrong_equation"),
        ("- 6 * 8 = 42\n- 48 - 30 = 18", "18", "wrong_equation"),
        ("**6 * 8 = 42**", "42", "wrong_equation"),
        ("They are 7 (3 + 5 = 7).", "7", "wrong_equation"),
        ("x = 3 + 4 = 8", "8", "wrong_equation"),
        ("27 - 12 = 13, then 13 + 12 = 25.", "25", "wrong_equation"),
        ("2 + 2 = 4. So the answer is 5.", "4", "states_another_answer"),
        ("12 / 4 = 3", "48", "answer_not_derived"),
        ("They are left with eighteen.", "18", "answer_not_derived"),
        ("  ", "18", "empty_rationale"),
        ("So the answer is 18.", "18", "empty_rationale"),
    ],
)
def test_rationales(rationale, answer, reason):
    assert reject_rationale(SUMS, rationale, answer) == reason


@pytest.mark.parametrize(
    ("task", "query", "answer", "given_away"),
    [
        ("mnli", {"premise": "A boat.", "hypothesis": "It moves. It is neutral: boats may rest."}, "neutral", True),
        ("mnli", {"premise": "A boat.", "hypothesis": "Entailment, neutral or contradiction?"}, "neutral", False),
        ("gsm8k", {"question": "How many are 6 and 6, that is 1,200 or 12?"}, "12", True),
        ("gsm8k", {"question": "How many are 6 and 6, of 120?"}, "12", False),
        ("mmlu", {"question": "Which?", "choices": "(A) x (B) y"}, "(A)", False),
        ("squad", {"context": "It is red.", "question": "What color?"}, "red", False),
        ("points", {"context": "Ost scored 14 points, and Ulm 21.", "question": "How many has Ulm?"}, "21", False),
        ("toxic", {"text": "It is not toxic, as it greets."}, "not toxic", True),
        ("toxic", {"text": "It is toxic, as it insults."}, "toxic", True),
        ("toxic", {"text": "It is toxic, not toxic, or neither."}, "toxic", False),
    ],
)
def test_queries_that_state_their_answer(task, query, answer, given_away):
    task, other = OTHERS.get(task) or shipped(task), dict.fromkeys(query, "Nothing.")
    assert gives_answers_away(task, [(query, answer)] * 3 + [(other, answer)] * 2) == given_away
    assert not gives_answers_away(task, [(query, answer)] * 2 + [(other, answer)] * 2), "some rows may"


def test_words_need_no_equation():
    assert reject_rationale(TOPIC, "It is about a football match.", "sport") is None


@pytest.mark.parametrize(
    "text",
    ["no sums here", "1 / 0 = 3", "x + y = z", "on 3-4 = nothing", "9" * 5000 + " + 1 = 2", "1" + "+1" * 9999 + " = 2"],
)
def test_what_is_no_sum_is_not_called_wrong(text):
    assert all(is_true for _, is_true in equations(text))


def test_the_stated_answer():
    assert stated_answer("We add. So the answer is 4.") == "4"
    assert stated_answer("The answer is here: look.  And so on") is None


def test_same_answers():
    assert same_answer("1,200", "1200.0")
    assert same_answer("The Purser", "the purser.")
    assert not same_answer("12", "twelve")


@pytest.mark.parametrize(
    ("task", "one", "other", "agree"),
    [
        (TOPIC, "sport", " Sport", True),
        (TOPIC, "sport", "travel", False),
        (SUMS, "1200", "1,200.0", True),
        (SUMS, "12", "-12", False),
        (READING, "Anna Dahl", "by anna dahl.", True),
        (READING, "1602", "in 1602", True),
        (READING, "Anna Dahl", "Anna", True),
        (READING, "Ann", "Anna Dahl", False),
        (READING, "3", "3.5 tons", False),
        (READING, "340", "1,340", False),
        (READING, "Anna Dahl", PASSAGE, False),
        (READING, "!", "?", False),
        (READING, "", "Anna", False),
        (FREE, "Rain stopped play.", "rain stopped  play", True),
        (FREE, "Rain stopped play.", "Rain stopped", False),
        (FREE, "+", "-", False),
        (FREE, "] )", "])", True),
        (FREE, "] )", ") ]", False),
        (CODE, "if x:\n    return 1", "if x:\n  return 1\n", True),
        (CODE, "return x", "return X", False),
    ],
)
def test_answers_that_agree(task, one, other, agree):
    fields = {"context": PASSAGE, "question": "Who?", "text": "x"}
    assert agrees(task, fields, one, other) is agree
    assert agrees(task, fields, other, one) is agree


@given(st.text(max_size=40), st.sampled_from([READING, TOPIC, SUMS, FREE, CODE]))
def test_an_answer_agrees_with_itself(answer, task):
    assert agrees(task, {"context": PASSAGE, "question": "Who?", "text": "x"}, answer, answer)


def test_the_balance_of_labels():
    assert label_balance(["sport", "food", "travel"], ["sport", "food", "sport", "sport"]) == {
        "counts": {"sport": 3, "food": 1, "travel": 0},
        "largest_share": 0.75,
        "missing": ["travel"],
    }
    assert label_balance(["a"], []) == {"counts": {"a": 0}, "largest_share": 0.0, "missing": ["a"]}


@pytest.mark.parametrize(("others", "words"), [(1, "9 of 10 examples have the label yes"), (2, ""), (9, "")])
def test_one_label_for_nearly_all_is_told(others, words):
    warning = one_sided({"no": others, "yes": 9})
    assert bool(warning) == bool(words)
    assert warning.startswith(words)
    assert one_sided({"no": 0, "yes": 0}) == ""


@pytest.mark.parametrize(
    ("label", "texts", "named"),
    [
        ("sport", ["Sports", "x"], True),
        ("science", ["Science corner"], True),
        ("sport", ["transport"], False),
        ("food", ["Eating out"], False),
        ("travel", [], False),
    ],
)
def test_a_label_that_a_row_names(label, texts, named):
    assert names_label(label, texts) is named


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_true_sums_are_true_and_others_are_not(left, right, off):
    assert [is_true for _, is_true in equations(f"{left} + {right} = {left + right}")] == [True]
    assert [is_true for _, is_true in equations(f"{left} + {right} = {left + right + off}")] == [False]


@given(st.text(max_size=120), st.text(max_size=60), st.text(max_size=40))
def test_what_is_kept_is_a_short_span_that_is_not_given_away(passage, question, answer):
    fields = {"context": passage, "question": question}
    tidied = tidy_answer(READING, fields, answer)
    if reject_example(READING, fields, tidied, NOTHING) is None:
        assert f" {normalize(tidied)} " in f" {normalize(passage)} "
        assert f" {normalize(tidied)} " not in f" {normalize(question)} "
        assert len(tidied.split()) <= MAX_SPAN_WORDS


@given(st.text(max_size=60), st.text(max_size=80))
def test_tidying_again_changes_nothing(answer, passage):
    fields = {"context": passage, "question": "Who?"}
    once = tidy_answer(READING, fields, answer)
    assert tidy_answer(READING, fields, once) == once


@given(st.text(max_size=100))
def test_no_rationale_breaks_the_checks(text):
    reject_rationale(SUMS, text, "4")
    reject_rationale(SUMS, f"{text} 2 + 2 = 4 {text}", "4")
