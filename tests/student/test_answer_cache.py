import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.records import Adapter, Task
from rebase.student.answer_cache import SaveAnswers, answers_file, complete_answers
from rebase.student.answering import open_student
from rebase.student.generation import generate
from rebase.student.handle import Student
from tests.tiny import evaluate_parameters

texts = st.text(max_size=20)


@given(prompts=st.lists(texts, max_size=12), killed_after=st.integers(0, 12), cut=st.integers(0, 30))
def test_a_killed_evaluation_asks_only_for_what_is_missing(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str], killed_after: int, cut: int
) -> None:
    file = tmp_path_factory.mktemp("kept") / "answers" / "one.jsonl"
    asked: list[str] = []

    def write(left: Sequence[str], keep: SaveAnswers) -> None:
        for number in reversed(range(len(left))):  # the longest first: not in the order of the prompts
            if len(asked) == killed_after:
                raise KeyboardInterrupt
            asked.append(left[number])
            keep([number], [f"{left[number]}\n!"])

    def write_on(left: Sequence[str], keep: SaveAnswers) -> None:
        asked.extend(left)
        keep(range(len(left)), [f"{prompt}\n!" for prompt in left])

    wanted = [f"{prompt}\n!" for prompt in prompts]
    try:
        assert complete_answers(file, prompts, write) == wanted
    except KeyboardInterrupt:
        assert len(asked) == killed_after
    assert complete_answers(file, prompts, write_on) == wanted
    assert sorted(asked) == sorted(set(prompts))
    if cut and file.exists():
        # A kill in the midst of a write: the line is not whole, and is all that is lost.
        file.write_bytes(file.read_bytes()[:-cut])
        assert complete_answers(file, prompts, write_on) == wanted
        assert complete_answers(file, prompts, write_on) == wanted


def test_other_weights_have_another_file(student: Student, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "adapter_config.json").write_text("{}")
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(b"weights")
    copied = Adapter(Path(shutil.copytree(tmp_path / "one", tmp_path / "two")), student.name)
    alone, adapted = answers_file(student, None, 8), answers_file(student, Adapter(tmp_path / "one", student.name), 8)
    assert answers_file(student, copied, 8) == adapted != alone != answers_file(student, None, 9)
    (copied.folder / "adapter_model.safetensors").write_bytes(b"other weights")
    assert answers_file(student, copied, 8) != adapted


def test_the_student_does_not_answer_twice(
    student: Student, reading_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(student, workdir=tmp_path)

    def answer(prompts: Sequence[str]) -> list[str]:
        with open_student(reading_task, own, {}, evaluate_parameters()) as answered:
            return answered(None, prompts)

    first = answer(["Where?", "Who?"])
    asked: list[str] = []

    def generate_noting(*arguments: Any) -> list[str]:
        asked.extend(arguments[2])
        return generate(*arguments)

    monkeypatch.setattr("rebase.student.answering.generate", generate_noting)
    assert answer(["Who?", "When?", "Where?"])[::2] == first[::-1]
    assert asked == ["When?"]
