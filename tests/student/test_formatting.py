import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.records import Task
from rebase.student.formatting import (
    IGNORED,
    format_examples,
    render_completion,
    render_prompt,
    tokenize_example,
    tokenize_prompt,
)
from rebase.student.handle import Student
from tests.tiny import reasoned_examples

QUERY = "Herons nest in trees.\n\nQuestion: Where do herons nest?"


@pytest.fixture(params=["chat", "plain"])
def tokenizer(request, student: Student, plain_student: Student):
    return (student if request.param == "chat" else plain_student).tokenizer()


@given(query=st.text(max_size=40), completion=st.text(max_size=20))
def test_training_sees_the_prompt_ids_of_generation(
    student: Student, reading_task: Task, query: str, completion: str
) -> None:
    tokenizer = student.tokenizer()
    prompt = render_prompt(tokenizer, reading_task, query)
    ids, labels = tokenize_example(tokenizer, prompt, completion)
    prompt_ids = tokenize_prompt(tokenizer, prompt)
    assert ids[: len(prompt_ids)] == prompt_ids
    assert labels[: len(prompt_ids)] == [IGNORED] * len(prompt_ids)
    assert labels[len(prompt_ids) :] == ids[len(prompt_ids) :]


def test_one_bos_and_one_end_of_turn(tokenizer, reading_task: Task) -> None:
    prompt = render_prompt(tokenizer, reading_task, QUERY)
    ids, labels = tokenize_example(tokenizer, prompt, "in trees")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "in trees" + tokenizer.eos_token


def test_prompt_holds_instruction_and_query(tokenizer, reading_task: Task) -> None:
    prompt = render_prompt(tokenizer, reading_task, QUERY)
    assert reading_task.instruction in prompt
    assert QUERY in prompt
    assert prompt.endswith("assistant\n" if tokenizer.chat_template else "Answer:\n")


def test_few_shot_examples_are_earlier_turns(tokenizer, reading_task: Task) -> None:
    prompt = render_prompt(tokenizer, reading_task, QUERY, few_shot=True)
    texts = [text for shot in reading_task.examples for text in (shot["question"], shot["answer"])]
    positions = [prompt.rindex(text) for text in [reading_task.instruction, *texts, QUERY]]
    assert positions == sorted(positions)
    assert prompt.endswith(render_prompt(tokenizer, reading_task, QUERY)[-20:])
    assert prompt.count(tokenizer.bos_token) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_template_without_system_turn(student: Student, reading_task: Task, template: str) -> None:
    tokenizer = student.tokenizer()
    tokenizer.chat_template = template
    assert render_prompt(tokenizer, reading_task, QUERY) == f"{reading_task.instruction}\n\n{QUERY}"


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_thinking_is_switched_off_where_the_template_has_a_switch(student: Student, reading_task: Task) -> None:
    tokenizer = student.tokenizer()
    tokenizer.chat_template = (
        TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    for few_shot in (False, True):
        prompt = render_prompt(tokenizer, reading_task, QUERY, few_shot)
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert prompt.count("<think>") == 1


@pytest.mark.parametrize(
    ("clock", "shown"),
    [
        (
            "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}",
            "26 Jul 2024",
        ),
        ('{%- set date_string = strftime_now( "%Y-%m-%d" ) %}', "2024-07-26"),
        ("{% if strftime_now is defined %}{% set date_string = strftime_now('%B %d') %}{% endif %}", "July 26"),
        ("", "26 Jul 2024"),
    ],
)
def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day(
    student: Student, reading_task: Task, clock: str, shown: str
) -> None:
    tokenizer = student.tokenizer()
    tokenizer.chat_template = clock + "Today is {{ date_string }}.\n" + TURNS
    assert render_prompt(tokenizer, reading_task, QUERY).startswith(f"Today is {shown}.\n")
    assert tokenizer.chat_template.startswith(clock)


def test_the_target_ends_on_a_token_at_which_generation_stops(student: Student, reading_task: Task) -> None:
    tokenizer = student.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}</t>\n{% endfor %}<t>model\n"
    ids, labels = tokenize_example(tokenizer, render_prompt(tokenizer, reading_task, QUERY), "in trees")
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id


def test_completion_by_target() -> None:
    assert render_completion("18", "6 * 3 = 18.", "answer") == "18"
    assert render_completion("18", "6 * 3 = 18. ", "rationale_then_answer") == "6 * 3 = 18. So the answer is 18."
    assert render_completion("18", None, "rationale_then_answer") == "18"


def test_formatted_examples_keep_order_and_rationales(student: Student, reading_task: Task) -> None:
    both = pd.concat([reasoned_examples(2, "Because."), reasoned_examples(1)], ignore_index=True)
    frame = format_examples(reading_task, both, student, "rationale_then_answer")
    assert list(frame.columns) == ["example_id", "prompt", "completion"]
    assert list(frame["completion"]) == [
        "Because. So the answer is in tree 0.",
        "Because. So the answer is in tree 1.",
        "in tree 0",
    ]


def test_no_examples(student: Student, reading_task: Task) -> None:
    with pytest.raises(RebaseError, match=r"no examples for the task 'tiny_reading'.*examples_rejected"):
        format_examples(reading_task, reasoned_examples(0), student, "answer")
