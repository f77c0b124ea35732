from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rebase.datasets import ModelFolderDataset
from rebase.errors import RebaseError
from rebase.pipelines.export.nodes import merge_adapter
from rebase.records import Adapter, Task
from rebase.student.adapters import write_record
from rebase.student.handle import Student
from rebase.student.training import train_adapter
from tests.tiny import make_student, train_parameters, training_set


def train(student: Student, task: Task) -> Adapter:
    adapter, _, _ = train_adapter(student, training_set(8), train_parameters(four_bit=False))
    write_record(adapter, task, student, "")
    return adapter


def test_weights_are_merged_in_the_published_number_format(tmp_path: Path, reading_task: Task) -> None:
    """Even when computing in bfloat16: its 8 bits would lose an adapter's small changes."""
    student = make_student(tmp_path / "student", dtype="bfloat16")
    adapter = train(student, reading_task)
    model, _, _ = merge_adapter(student, adapter)
    exact, _, _ = merge_adapter(replace(student, dtype="float32"), adapter)
    assert model.dtype == torch.float32
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(weights, exact.state_dict()[name], rtol=0, atol=0)


def test_merged_model_has_the_logits_of_the_expert(
    tmp_path: Path, reading_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebase.datasets.model_folder.write_gguf", lambda folder: None)
    student = make_student(tmp_path / "student")
    adapter = train(student, reading_task)
    dataset = ModelFolderDataset(str(tmp_path / "merged"))
    assert not dataset.exists()
    dataset.save(merge_adapter(student, adapter))
    folder = dataset.load()
    assert dataset.exists()
    assert {file.suffix for file in folder.iterdir()} <= {
        ".json",
        ".safetensors",
        ".jinja",
        ".txt",
        ".model",
        ".md",
        "",
    }
    assert "adapter_config.json" not in {file.name for file in folder.iterdir()}

    ids = AutoTokenizer.from_pretrained(folder)("Where?", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        with student.open({"expert": adapter}) as (model, _):
            torch.testing.assert_close(merged, model(ids).logits, atol=1e-4, rtol=1e-4)
        with student.open() as (model, _):
            assert not torch.allclose(merged, model(ids).logits, atol=1e-4)


def test_adapter_of_another_student(tmp_path: Path, reading_task: Task) -> None:
    student, adapter = make_student(tmp_path), Adapter(tmp_path, "other/model")
    write_record(adapter, reading_task, student, "")
    with pytest.raises(RebaseError, match="was trained on 'other/model'"):
        merge_adapter(student, adapter)
