"""Options of a query as a list: what a teacher writes comes back as the text that the task's own examples have."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.generation.prompts.options import from_lists, names_to_write, show_lists, to_lists, writes_options
from rebase.generation.prompts.parsing import Example, read_example, read_synthesized
from rebase.generation.prompts.requests import answer_request, example_schema, synthesize_request, transform_request
from rebase.generation.verification import ProtectedTexts, reject_example
from rebase.records import Task
from rebase.text import lettered_options, listed_options
from tests.generation.prompts.samples import PARAMETERS, READING, SUMS, TOPIC, TRANSFORM, row
from tests.shipped import RAW, shipped_prompt, shipped_task

SHIPPED = [shipped_task(file.stem) for file in sorted((RAW / "tasks").glob("*.yml"))]
MMLU, PRONOUNS = shipped_task("mmlu"), shipped_task("bbh_disambiguation_qa")
TEXTS = st.from_regex(r"[^\W\d_][\w ,?%-]{0,30}[^\W_]", fullmatch=True).filter(lambda text: not listed_options(text))


def fields_of(task: Task, example: dict[str, str]) -> dict[str, str]:
    return {name: example[name] for name in (*task.query_fields, "answer")}


@pytest.mark.parametrize("task", [task for task in SHIPPED if task.lists_options], ids=lambda task: task.name)
def test_the_examples_of_every_task_with_options_have_them_as_a_list(task: Task) -> None:
    assert writes_options(task)
    for example in task.examples:
        fields = fields_of(task, example)
        written = to_lists(task, fields)
        assert list(written) == names_to_write(task, fields)
        assert len(written["options"]) == len(listed_options(task.render_query(example)))
        assert from_lists(task, written) == fields


@pytest.mark.parametrize("task", [READING, TOPIC, SUMS, shipped_task("mnli")], ids=lambda task: task.name)
def test_tasks_without_options_are_left_alone(task: Task) -> None:
    fields = fields_of(task, task.examples[0])
    assert not writes_options(task)
    assert to_lists(task, fields) == from_lists(task, fields) == fields
    assert names_to_write(task, fields) == list(fields)


@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=4, unique=True))
def test_what_a_teacher_writes_becomes_a_query_with_lettered_options(text: str, options: list[str]) -> None:
    written = {"question": text, "options": options, "answer": "(A)"}
    assert from_lists(PRONOUNS, written) == {
        "question": f"{text}\nOptions:\n{lettered_options(options)}", "answer": "(A)"}  # fmt: skip
    assert to_lists(PRONOUNS, from_lists(PRONOUNS, written)) == written
    assert from_lists(MMLU, written)["choices"] == lettered_options(options)
    joined = written | {"options": ["; ".join(options)]}
    assert from_lists(MMLU, joined) == from_lists(MMLU, written)


@pytest.mark.parametrize(
    "text", ["Whom?", "Whom?\nOptions:", "Whom?\n\nAnswer choices:\n", "Whom?\nOptions:\n(A) x\n(B) y", " Whom?\n"]
)
def test_options_that_are_in_the_text_as_well_are_not_repeated(text: str) -> None:
    written = {"question": text, "options": ["the\npilot", " nobody "], "answer": "(B)"}
    assert from_lists(PRONOUNS, written)["question"] == "Whom?\nOptions:\n(A) the pilot\n(B) nobody"
    assert from_lists(MMLU, written) == {"question": "Whom?", "answer": "(B)", "choices": "(A) the pilot\n(B) nobody"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["A. red", "B. Red"], "(A) red\n(B) Red"),
        (["(A) x\n(B) y\n(C) z"], "(A) x\n(B) y\n(C) z"),
        (["(A)45; (B)48"], "(A) 45\n(B) 48"),
        (["A. Einstein", "N. Bohr"], "(A) A. Einstein\n(B) N. Bohr"),
        (["I", "V"], "(A) I\n(B) V"),
    ],
)
def test_the_letters_of_options_are_those_of_their_places(options: list[str], expected: str) -> None:
    assert from_lists(MMLU, {"question": "Which?", "options": options, "answer": "(B)"})["choices"] == expected


def test_statements_with_roman_numbers_are_no_options() -> None:
    text = "Consider:\n(I) Cats bark.\n(II) Dogs bark.\nWhich is true?"
    written = {"question": text, "options": ["I", "II"], "answer": "(B)"}
    assert from_lists(PRONOUNS, written)["question"] == f"{text}\nOptions:\n(A) I\n(B) II"


@pytest.mark.parametrize("other", ["Whom? (A) x (B) y", "Whom?\nA. x\nB. y"])
def test_options_in_another_form_in_the_text_are_an_error(other: str) -> None:
    for task in (PRONOUNS, MMLU):
        with pytest.raises(ValueError, match="expected texts without options"):
            from_lists(task, {"question": other, "options": ["x", "y"], "answer": "(A)"})


def test_the_field_of_options_may_have_their_name() -> None:
    examples = [{**example, "options": example["choices"]} for example in MMLU.examples]
    task = MMLU.model_copy(update={"query": "{question}\nOptions:\n{options}", "examples": examples})
    assert writes_options(task)
    fields = fields_of(task, examples[0])
    assert to_lists(task, fields)["options"] == ["oxygen", "nitrogen", "carbon dioxide", "helium"]
    assert from_lists(task, to_lists(task, fields)) == fields


def test_a_question_before_the_options_announces_nothing() -> None:
    first = "Water boils when heated.\nThe temperature at which it does so is:\n(A) 100 C\n(B) 7 C"
    task = PRONOUNS.model_copy(update={"examples": ({"question": first, "answer": "(A)"},)})
    assert to_lists(task, task.examples[0])["question"] == first.partition("\n(A)")[0]


@pytest.mark.parametrize(
    ("text", "options"),
    [("Whom?", "x"), ("Whom?", ["x", None]), ("Whom?", ["x", " "]), ("Whom?", ["x", "x"]), (7, ["x", "y"]),
     ("", ["x", "y"]), (" ", ["x", "y"]), ("Whom?", ["(A)", "(B)"]), ("Whom?", ["A. x", "B. x"]),
     ("Whom?", ["(A) x", "y"]), ("Whom?", ["(B) x", "(A) y"])],
)  # fmt: skip
def test_options_of_another_shape_are_an_error(text: object, options: object) -> None:
    with pytest.raises(ValueError, match=r"^expected"):
        read_example(PRONOUNS, json.dumps({"example": {"question": text, "options": options, "answer": "(A)"}}), None)


def test_an_answer_may_be_an_option_without_a_label_and_is_rejected_then() -> None:
    example = example_schema(MMLU)["properties"]["example"]["anyOf"][0]["properties"]
    assert example["answer"]["enum"] == [f"({letter})" for letter in "ABCDEFGH"]
    answer = answer_request(MMLU, MMLU.examples[0], shipped_prompt("distil"), PARAMETERS.sampling).schema
    assert answer["properties"]["answer"]["enum"] == list(MMLU.answer.labels)
    protected = ProtectedTexts(MMLU, [], 13)
    for letter, reason in (("D", None), ("E", "unknown_label")):
        written = {"question": "Which is last?", "options": list("vwxyz"), "answer": f"({letter})"}
        read = read_example(MMLU, json.dumps({"example": written}), None)
        assert read is not None
        assert read.fields["choices"] == "(A) v\n(B) w\n(C) x\n(D) y"
        assert reject_example(MMLU, read.fields, read.answer, protected) == reason


def test_requests_show_and_ask_for_lists() -> None:
    cells = {"stem": "Which is red?", "choices": "(A)a leaf; (B)a poppy", "note": "seen; noted", "key": "B"}
    request = transform_request(PRONOUNS, row(cells), TRANSFORM, PARAMETERS)
    *turns, last = [
        json.loads(match[1]) for message in request.messages if (match := re.search(r"<data>\n(.*)\n", message.content))
    ]
    assert last == cells | {"choices": ["a leaf", "a poppy"]}
    assert [turn["options"][-1] for turn in turns] == ["Ambiguous"] * 3
    assert "question, options, answer" in request.system
    example = example_schema(PRONOUNS)["properties"]["example"]["anyOf"][0]
    assert example["required"] == ["question", "options", "answer"]
    assert example["properties"]["options"] == {"type": "array", "items": {"type": "string"}}
    for message in request.messages[1::2]:
        assert read_example(PRONOUNS, message.content, None) is not None
    request = synthesize_request(MMLU, 1, shipped_prompt("synthesize"), PARAMETERS.sampling)
    assert request.schema["required"] == ["question", "options", "answer"]
    first = MMLU.examples[0]
    assert read_synthesized(MMLU, request.messages[1].content) == Example(
        {name: first[name] for name in ("question", "choices")}, first["answer"]
    )


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("(A)45; (B)48", ["45", "48"]),
        ("A. a leaf; B. a poppy", ["a leaf", "a poppy"]),
        ("['a leaf', 'a poppy']", ["a leaf", "a poppy"]),
        ("A. Einstein; N. Bohr", "A. Einstein; N. Bohr"),
        ("red; green", "red; green"),
        ("[1]", "[1]"),
        ("(A) alone", "(A) alone"),
        ("[Context] He left; she stayed", "[Context] He left; she stayed"),
        ('["a one", "b; c", "d', '["a one", "b; c", "d'),
        ("['a', 'b', '']", ["a", "b"]),
        ("['a', '', 'c']", ["a", "", "c"]),
        ("; ".join(f"w{n}" for n in range(40)), "; ".join(f"w{n}" for n in range(40))),
        ('["x\\n(B) y", "z"]', ["x\n(B) y", "z"]),
    ],
)
def test_cells_with_options_are_shown_as_lists_without_letters(cell: str, shown: object) -> None:
    assert show_lists({"cell": cell}) == {"cell": shown}


def test_examples_that_list_options_in_several_ways_are_written_as_they_are() -> None:
    first, *others = PRONOUNS.examples
    inline = first | {"question": "Whom? (A) the pilot (B) the mechanic (C) nobody"}
    assert not writes_options(PRONOUNS.model_copy(update={"examples": [inline, *others]}))
    other_word = first | {"question": first["question"].replace("Options:", "Choices:")}
    assert not writes_options(PRONOUNS.model_copy(update={"examples": [other_word, *others]}))
    renamed = [{"options": example["question"], "answer": example["answer"]} for example in PRONOUNS.examples]
    assert not writes_options(PRONOUNS.model_copy(update={"query": "{options}", "examples": renamed}))
