import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rebase.errors import RebaseError
from rebase.records import Task
from rebase.student.answering import open_student
from rebase.student.generation import generate
from rebase.student.handle import Student
from tests.tiny import evaluate_parameters

LABELS = ("no", "n", "entailment", "yes, of course")
PROMPTS = ["Is it so? Owls sleep.", "Is it so? The owl in the barn sleeps all day long.", "Is it so? "]
TASK = Task.parse(
    {
        "name": "owls",
        "version": 1,
        "instruction": "Is it so?",
        "query": "{text}",
        "examples": [{"text": "Owls sleep.", "answer": "no"}],
        "answer": {"type": "label", "labels": LABELS},
        "metrics": ["accuracy"],
        "evaluation": {"source": "given", "fields": {"text": "text", "references": "label"}},
        "max_new_tokens": 6,
    },
    "here",
)


def test_labels_by_likelihood_or_by_generation(student: Student) -> None:
    def answers(task: Task, labels_by: str) -> list[str]:
        parameters = evaluate_parameters(labels_by=labels_by)
        with open_student(task, student, {}, parameters) as answer:
            return answer(None, PROMPTS)

    chosen, written = answers(TASK, "likelihood"), answers(TASK, "generation")
    free = Task.parse(json.loads(TASK.model_dump_json()) | {"answer": {"type": "text"}}, "here")
    assert answers(free, "likelihood") == written
    assert set(chosen) <= set(LABELS)
    assert not set(written) <= set(LABELS)


def test_likelihood_is_rejected_for_a_task_with_chain_of_thought(student: Student) -> None:
    reasoning = TASK.model_copy(update={"cot": True})
    with (
        pytest.raises(RebaseError, match="chain of thought"),
        open_student(reasoning, student, {}, evaluate_parameters(labels_by="likelihood")),
    ):
        pass


def test_cached_answers_are_not_generated_again(
    student: Student, reading_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated = replace(student, workdir=tmp_path)

    def answer(prompts: Sequence[str]) -> list[str]:
        with open_student(reading_task, isolated, {}, evaluate_parameters()) as answered:
            return answered(None, prompts)

    first = answer(["Where?", "Who?"])
    generated: list[str] = []

    def generate_and_record(*arguments: Any) -> list[str]:
        generated.extend(arguments[2])
        return generate(*arguments)

    monkeypatch.setattr("rebase.student.answering.generate", generate_and_record)
    assert answer(["Who?", "When?", "Where?"])[::2] == first[::-1]
    assert generated == ["When?"]
