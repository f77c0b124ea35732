import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.records import Adapter, Task
from rebase.student.answering import answers_file, complete_answers, open_student
from rebase.student.generation import SaveAnswers, generate
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


@given(prompts=st.lists(st.text(max_size=20), max_size=12), killed_after=st.integers(0, 12), cut=st.integers(0, 30))
def test_an_interrupted_evaluation_generates_only_missing_answers(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], killed_after: int, cut: int
) -> None:
    file = tmp_path_factory.mktemp("cache") / "answers" / "one.jsonl"
    generated: list[str] = []

    def generate_until_killed(missing: Sequence[str], save: SaveAnswers) -> None:
        for index in reversed(range(len(missing))):  # the longest first: not in the order of the prompts
            if len(generated) == killed_after:
                raise KeyboardInterrupt
            generated.append(missing[index])
            save([index], [f"{missing[index]}\n!"])

    def generate_rest(missing: Sequence[str], save: SaveAnswers) -> None:
        generated.extend(missing)
        save(range(len(missing)), [f"{prompt}\n!" for prompt in missing])

    expected = [f"{prompt}\n!" for prompt in prompts]
    try:
        assert complete_answers(file, prompts, generate_until_killed) == expected
    except KeyboardInterrupt:
        assert len(generated) == killed_after
    assert complete_answers(file, prompts, generate_rest) == expected
    assert sorted(generated) == sorted(set(prompts))
    if cut and file.exists():
        # A kill in the middle of a write: only the truncated line is lost.
        file.write_bytes(file.read_bytes()[:-cut])
        assert complete_answers(file, prompts, generate_rest) == expected
        assert complete_answers(file, prompts, generate_rest) == expected


def test_other_weights_have_another_file(student: Student, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "adapter_config.json").write_text("{}")
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(b"weights")
    copied = Adapter(Path(shutil.copytree(tmp_path / "one", tmp_path / "two")), student.name)
    alone, adapted = answers_file(student, None, 8), answers_file(student, Adapter(tmp_path / "one", student.name), 8)
    assert answers_file(student, copied, 8) == adapted != alone != answers_file(student, None, 9)
    (copied.folder / "adapter_model.safetensors").write_bytes(b"other weights")
    assert answers_file(student, copied, 8) != adapted
