"""The folder of a merged model: complete, or as it was before."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rebase.datasets import ModelFolderDataset
from tests.tiny import make_student


def test_a_folder_has_model_tokenizer_and_files_and_survives_a_save_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rebase.datasets.model_folder.write_gguf", lambda folder: None)
    student = make_student(tmp_path / "student")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(student.model), student.tokenizer()
    dataset = ModelFolderDataset(str(tmp_path / "models" / "merged"))
    with pytest.raises(FileNotFoundError, match="not-there"):
        dataset.save((model, tokenizer, {"folder/not-there.md": ""}))
    assert not dataset.exists()
    dataset.save((model, tokenizer, {"README.md": "café"}))
    assert dataset.exists()
    content = {file.name: file.read_bytes() for file in dataset.load().iterdir()}
    assert content["README.md"].decode() == "café"
    assert any(name.endswith(".safetensors") for name in content)
    assert AutoTokenizer.from_pretrained(dataset.load()).chat_template == tokenizer.chat_template

    with pytest.raises(FileNotFoundError, match="not-there"):
        dataset.save((model, tokenizer, {"README.md": "new", "folder/not-there.md": ""}))
    assert {file.name: file.read_bytes() for file in dataset.load().iterdir()} == content
    assert [folder.name for folder in (tmp_path / "models").iterdir()] == ["merged"], "nothing unfinished is left"
