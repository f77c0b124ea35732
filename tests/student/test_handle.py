from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rebase.errors import RebaseError
from rebase.records import Adapter
from rebase.student.handle import Student


def test_adapter_of_another_model_is_rejected(student: Student, tmp_path: Path) -> None:
    with pytest.raises(RebaseError, match=r"trained on 'other/model'.*student\.model"):
        student.open({"expert": Adapter(tmp_path, "other/model")}).__enter__()


def test_adapter_of_another_revision_is_rejected(student: Student, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "revision": "abc"}')
    adapter = {"expert": Adapter(tmp_path, student.name)}
    with pytest.raises(RebaseError, match=r"on the revision abc of 'tiny', the student has main\. .*student\.revision"):
        student.open(adapter).__enter__()
    with pytest.raises(RebaseError, match="the student has def"):
        replace(student, revision="def").open(adapter).__enter__()


def test_missing_model_says_what_to_set(student: Student, tmp_path: Path) -> None:
    absent = replace(student, model=str(tmp_path / "absent"))
    with pytest.raises(RebaseError, match="There is no model"):
        absent.tokenizer()
    with pytest.raises(RebaseError, match=r"(?s)cannot be loaded.*student\.model"):
        replace(student, model="nobody/nothing").tokenizer()


def test_name_is_never_a_path(student: Student) -> None:
    assert student.name == "tiny"
    assert replace(student, model="owner/model").name == "owner/model"


def test_a_gguf_file_has_its_name_and_is_identified_by_its_content(student: Student, tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"weights")
    in_file = replace(student, model=str(file))
    before = in_file.identity()
    assert in_file.name == "small.gguf"
    assert in_file.identity() == before
    file.write_bytes(b"other weights")
    assert in_file.identity() != before


def test_tokenizer_has_a_padding_token(student: Student) -> None:
    assert student.tokenizer().pad_token_id is not None


def test_the_output_layer_gets_no_view_with_gaps(any_student: Student) -> None:
    """A processor multiplies bfloat16 of such a view without its fast routines: 450 times more slowly for Qwen2.5."""
    seen = []
    with any_student.open() as (model, _), torch.inference_mode():
        head = model.get_output_embeddings()
        forward = head.forward
        head.forward = lambda hidden: seen.append(hidden.is_contiguous()) or forward(hidden)
        model(input_ids=torch.ones((2, 3), dtype=torch.long), logits_to_keep=1)
    assert seen == [True]
