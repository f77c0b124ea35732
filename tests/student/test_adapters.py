from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rebase.records import Adapter, Task
from rebase.student.adapters import ORIGIN, read_origin, render_card, write_origin
from rebase.student.handle import Student
from tests.tiny import reasoned_examples, train_parameters

COUNTS = {"kept": 5, "rejected": {"validation": 2}, "steps": 3, "first_loss": 2.0, "last_loss": 1.0}


def test_card_has_metadata_sources_and_settings(reading_task: Task) -> None:
    student = Student('owner/a "model": x', None, Path(), Path())
    examples = reasoned_examples(5)
    examples.loc[0, ["dataset", "license"]] = None
    examples.loc[1, "dataset"] = "a|b"
    card = ModelCard(render_card(reading_task, student, 'a {context}\n"b"', examples, train_parameters(), COUNTS))
    assert card.data.base_model == student.name
    assert card.data.tags == ["lora", "rebase", "tiny_reading"]
    for line in ("| none | none | local:tiny | 1 |", "| a\\|b | cc0-1.0 | local:tiny | 1 |", '  "batch_size": 2,'):
        assert f"\n{line}\n" in card.text
    assert '\nprompt = (\n    "a {context}\\n"\n    "\\"b\\""\n)\n' in card.text
    assert "5 examples; 0 others were too long, and 2 were used to measure the validation loss" in card.text
    assert "3 steps, loss on completions alone: 2.000 at the first step, 1.000 at the last." in card.text


def test_sources_of_the_training_data_are_beside_the_weights(reading_task: Task, tmp_path: Path) -> None:
    write_origin(Adapter(tmp_path, "owner/model"), reading_task, reasoned_examples(5))
    sources = {row["dataset"]: row["examples"] for row in read_origin(tmp_path)}
    assert sources == {"birds": 2, "foxes": 3}


@pytest.mark.parametrize("text", ["", "[]", '{"task": "t"}', '{"sources": 1}'])
def test_damaged_sources_are_none(tmp_path: Path, text: str) -> None:
    assert read_origin(tmp_path) is None
    (tmp_path / ORIGIN).write_text(text)
    assert read_origin(tmp_path) is None
