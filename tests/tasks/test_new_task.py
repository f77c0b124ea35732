"""A new task: what is proposed from examples, and the errors that a person gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rebase.errors import RebaseError
from rebase.records import Task
from rebase.tasks.new_task import propose_task, read_description, task_text
from tests.shipped import RAW, shipped_task

NOTICES = [
    {
        "notice": "The baths on Quay Street open again on 4 May.",
        "question": "Where are they?",
        "answer": "on Quay Street",
    },
    {"notice": "Porters carry heavy bags free of charge.", "question": "Who carries bags?", "answer": "Porters"},
    {"notice": "The society gives away seed potatoes on Sunday.", "question": "When?", "answer": "on Sunday"},
    {
        "notice": "The choir is short of tenors, and rehearses at the mill.",
        "question": "Where?",
        "answer": "at the mill",
    },
]


def propose(examples: list[dict[str, Any]], **given: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    description = {"instruction": "Answer the question.", "examples": examples} | given
    return propose_task(description, "new", "data/01_raw/evaluation/new.jsonl", "here")


@pytest.mark.parametrize("name", sorted(file.stem for file in (RAW / "tasks").glob("*.yml")))
def test_the_repository_s_tasks_follow_from_their_examples(name: str) -> None:
    task = shipped_task(name)
    content, items = propose([dict(example) for example in task.examples], instruction=task.instruction)
    proposed = Task.parse(yaml.safe_load(task_text(content)), name)
    assert not items
    assert proposed.query_fields == task.query_fields
    assert (proposed.passage, proposed.cot, proposed.examples) == (task.passage, task.cot, task.examples)
    assert task.answer.type in (proposed.answer.type, "code")


def test_the_tutorial_s_task_follows_from_its_description() -> None:
    folder = RAW.parents[1] / "docs" / "tutorial"
    description = read_description(folder / "notices.yml")
    content, _ = propose_task(description, "notice_qa", "data/01_raw/evaluation/notice_qa.jsonl", "notices.yml")
    assert task_text(content) == (folder / "notice_qa.yml").read_text()


def test_a_passage_with_a_free_answer_is_copied_too() -> None:
    passage = (
        "The mill at Ost was built in 1871, burned down in the great storm, and was built once more by the son of its "
        "miller, who added a second wheel."
    )
    examples = [
        {"passage": f"{passage} {number}", "question": "What happened?", "answer": f"It burned, say {number} people."}
        for number in ("two", "three", "four")
    ]
    content, _ = propose(examples)
    assert (content["answer"]["type"], content["passage"]) == ("text", "passage")


def test_further_examples_become_evaluation_items() -> None:
    content, items = propose(NOTICES)
    assert content["examples"] == NOTICES[:3]
    assert items == NOTICES[3:]
    assert content["evaluation"] == {
        "source": "data/01_raw/evaluation/new.jsonl",
        "fields": {"notice": "notice", "question": "question", "references": "answer"},
    }
    shown = NOTICES[3] | {"notice": NOTICES[0]["notice"]}
    with pytest.raises(RebaseError, match="show every evaluation item"):
        propose([*NOTICES[:3], shown])


def test_what_the_description_gives_is_not_proposed() -> None:
    content, items = propose(
        NOTICES, name="other", answer="text", language="any", max_new_tokens="64", metrics=["chrf"]
    )
    task = Task.parse(content, "here")
    assert task.name == "new", "the name of the file"
    assert (task.answer.type, task.language, task.max_new_tokens, task.metrics) == ("text", "any", 64, ("chrf",))
    evaluation = {"source": "owner/set", "fields": {"notice": "a", "question": "b", "references": "c"}}
    content, items = propose(NOTICES, evaluation=evaluation)
    assert (len(content["examples"]), items) == (4, [])
    labels = [{"text": text, "answer": answer} for text, answer in (("a", "yes"), ("b", "no"), ("c", "yes"))]
    assert propose(labels)[0]["answer"] == {"type": "label", "labels": ["yes", "no"]}


def test_language_of_the_examples() -> None:
    german = [
        {"text": f"Das Hallenbad öffnet wieder am {day}. Mai nach dem Umbau.", "answer": f"{day}."} for day in "456"
    ]
    assert propose(NOTICES)[0]["language"] == "en"
    assert propose(german)[0]["language"] == "de"
    assert "language" not in propose([{"text": f"x{n}", "answer": str(n)} for n in range(3)])[0]


def test_values_of_a_file_are_texts_as_written(tmp_path: Path) -> None:
    """YAML would make booleans of yes and no, and a number of 007."""
    lines, values = "instruction: Is it so?\nexamples:\n", []
    for year, answer in (("007", "yes"), ("1871", "no"), ("1e3", "yes")):
        lines += f"  - {{year: {year}, answer: {answer}}}\n"
        values.append({"year": year, "answer": answer})
    (tmp_path / "task.yml").write_text(lines)
    assert read_description(tmp_path / "task.yml")["examples"] == values
    numbers = [{"year": 1871, "answer": True}, {"year": 1.5, "answer": False}, {"year": 2, "answer": True}]
    text = json.dumps({"instruction": "Is it so?", "examples": numbers}, indent="\t")  # YAML allows no tabs
    (tmp_path / "task.json").write_text(text)
    content, _ = propose(read_description(tmp_path / "task.json")["examples"])
    assert content["examples"][:2] == [{"year": "1871", "answer": "true"}, {"year": "1.5", "answer": "false"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "not valid YAML in UTF-8. while parsing a flow node"),
        ("\0", "not valid YAML"),
        ("just words", "must have `instruction`, a text, and `examples`, a list."),
        ("instruction: x", "must have `instruction`, a text, and `examples`, a list."),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "task.yml"
    file.write_text(content)
    with pytest.raises(RebaseError) as error:
        read_description(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert words in message
    assert "\n" not in message


def change(number: int, **values: Any) -> list[dict[str, Any]]:
    return [example | values if index == number else example for index, example in enumerate(NOTICES[:3])]


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (NOTICES[:2], "here: 2 examples, but a task needs 3. Add examples."),
        ("three", "here: `examples` must be a list"),
        (["one", "two", "three"], "here: `examples` must be a list"),
        (change(1, answer=" "), "here, example 2: answer is empty."),
        (change(1, answer=None), "here, example 2: answer is empty."),
        (change(2, place="x"), "here, example 1: there is no place, only notice, question, answer."),
        ([*NOTICES[:2], {"notice": "x", "output": "y"}], "here, example 1: there is no output, only"),
        (
            [{"input": "x", "output": str(n)} for n in range(3)],
            "here, example 1: there is no answer, only input, output.",
        ),
        ([*NOTICES[:2], NOTICES[0]], "here, example 3 repeats example 1."),
        ([{"answer": str(n)} for n in range(3)], "here: nothing cannot be a field."),
        ([{"a text": "x", "answer": str(n)} for n in range(3)], "here: 'a text' cannot be a field."),
        ([{"inputs": "x", "answer": str(n)} for n in range(3)], "here: 'inputs' cannot be a field."),
    ],
)
def test_bad_examples(examples: Any, words: str) -> None:
    with pytest.raises(RebaseError) as error:
        propose(examples)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_given_is_validated() -> None:
    with pytest.raises(RebaseError, match="here: not a valid task"):
        propose(NOTICES, answer="words")
    with pytest.raises(RebaseError, match="does not occur in `question`"):
        propose(NOTICES, passage="question")
