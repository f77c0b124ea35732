import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.parameters import EvaluateParameters
from rebase.records import Adapter, Task
from rebase.student.answering import answer_items, answers_file, complete_answers
from rebase.student.generation import SaveAnswers, generate
from rebase.student.handle import Student
from tests.tiny import evaluate_parameters

LABELS = ("no", "n", "entailment", "yes, of course")
QUERIES = ["Owls sleep.", "The owl in the barn sleeps all day long.", ""]
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


def answer(task: Task, student: Student, queries: Sequence[str], parameters: EvaluateParameters) -> list[str]:
    """The student's answers to items with these queries."""
    items = pd.DataFrame({"item_id": range(len(queries)), "query": queries, "references": "[]"})
    return answer_items(task, items, student, {"student": None}, parameters)["raw_output"].to_list()


def test_labels_by_likelihood_or_by_generation(student: Student) -> None:
    chosen, written = (
        answer(TASK, student, QUERIES, evaluate_parameters(labels_by=way)) for way in ("likelihood", "generation")
    )
    free = Task.parse(json.loads(TASK.model_dump_json()) | {"answer": {"type": "text"}}, "here")
    assert answer(free, student, QUERIES, evaluate_parameters(labels_by="likelihood")) == written
    assert set(chosen) <= set(LABELS)
    assert not set(written) <= set(LABELS)


def test_likelihood_is_rejected_for_a_task_with_chain_of_thought(student: Student) -> None:
    reasoning = TASK.model_copy(update={"cot": True})
    with pytest.raises(RebaseError, match="chain of thought"):
        answer(reasoning, student, QUERIES, evaluate_parameters(labels_by="likelihood"))


def test_a_server_has_the_student_and_the_adapters_under_their_names(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate_served(address: str, name: str, prompts: Sequence[str], *rest: object) -> list[str]:
        return [f"{name} at {address}"] * len(prompts)

    monkeypatch.setattr("rebase.student.answering.generate_served", generate_served)
    items = pd.DataFrame({"item_id": ["a"], "query": QUERIES[:1], "references": "[]"})
    systems = {"student": None, "few_shot": None, "expert": Adapter(tmp_path / "not read", student.name)}
    parameters = evaluate_parameters(server="http://here/v1")
    generations = answer_items(TASK, items, student, systems, parameters, few_shot={"few_shot"})
    assert generations["raw_output"].to_list() == [f"{name} at http://here/v1" for name in ("tiny", "tiny", "expert")]
    assert generations["prompt"].nunique() == 2


def test_cached_answers_are_not_generated_again(
    student: Student, reading_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated = replace(student, workdir=tmp_path)
    first = answer(reading_task, isolated, ["Where?", "Who?"], evaluate_parameters())
    generated: list[str] = []

    def generate_and_record(*arguments: Any) -> list[str]:
        generated.extend(arguments[2])
        return generate(*arguments)

    monkeypatch.setattr("rebase.student.answering.generate", generate_and_record)
    again = answer(reading_task, isolated, ["Who?", "When?", "Where?"], evaluate_parameters())
    assert again[::2] == first[::-1]
    (prompt,) = generated
    assert "When?" in prompt


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


def exclaim(missing: Sequence[str], save: SaveAnswers) -> None:
    """A generator of answers."""
    save(range(len(missing)), [f"{prompt}!" for prompt in missing])


@pytest.mark.parametrize("line", ["5", "{}", '["a"]', "\udcff", "{", '["DIGEST", "other", "0"]', "[null, null, null]"])
def test_a_damaged_line_is_ignored_and_its_answer_generated_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    file = tmp_path / "answers.jsonl"
    assert complete_answers(file, ["a", "b"], exclaim) == ["a!", "b!"]
    _, first, second = file.read_text().splitlines()
    damaged = line.replace("DIGEST", json.loads(first)[0])
    file.write_bytes(f"{damaged}\n{second}".encode(errors="surrogateescape"))
    assert complete_answers(file, ["a", "b"], exclaim) == ["a!", "b!"]
    assert f"1 damaged lines of {file} are removed" in caplog.text
    caplog.clear()
    assert complete_answers(file, ["a", "b"], lambda *_: pytest.fail("both are cached")) == ["a!", "b!"]
    assert not caplog.text


def test_any_turned_byte_of_an_answer_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    complete_answers(file, ["a", "b"], exclaim)
    content = file.read_bytes()
    for position in range(len(content)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert complete_answers(file, ["a", "b"], exclaim) == ["a!", "b!"]


def test_answers_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    complete_answers(file, ["a"], lambda _, save: save([0], ["from the cache"]))
    file.write_text(json.dumps(json.loads(file.read_text())[:2]))
    assert complete_answers(file, ["a"], lambda *_: pytest.fail("the answer is cached")) == ["from the cache"]


def test_other_weights_have_another_file(student: Student, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "adapter_config.json").write_text("{}")
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(b"weights")
    copied = Adapter(Path(shutil.copytree(tmp_path / "one", tmp_path / "two")), student.name)
    alone, adapted = answers_file(student, None, 8), answers_file(student, Adapter(tmp_path / "one", student.name), 8)
    assert answers_file(student, copied, 8) == adapted != alone != answers_file(student, None, 9)
    (copied.folder / "adapter_model.safetensors").write_bytes(b"other weights")
    assert answers_file(student, copied, 8) != adapted
