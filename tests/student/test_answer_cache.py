import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.records import Adapter
from rebase.student.answer_cache import SaveAnswers, answers_file, complete_answers
from rebase.student.handle import Student

texts = st.text(max_size=20)


@given(prompts=st.lists(texts, max_size=12), killed_after=st.integers(0, 12), cut=st.integers(0, 30))
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
