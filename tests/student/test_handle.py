from dataclasses import replace
from pathlib import Path

import pytest

from rebase.errors import RebaseError
from rebase.records import Adapter
from rebase.student.handle import Student


def test_adapter_of_another_model_is_rejected(student: Student, tmp_path: Path) -> None:
    with pytest.raises(RebaseError, match=r"trained on 'other/model'.*student\.model"):
        student.open({"expert": Adapter(tmp_path, "other/model")}).__enter__()


def test_missing_model_says_what_to_set(student: Student, tmp_path: Path) -> None:
    absent = replace(student, model=str(tmp_path / "absent"))
    with pytest.raises(RebaseError, match="There is no model"):
        absent.tokenizer()
    with pytest.raises(RebaseError, match=r"(?s)cannot be loaded.*student\.model"):
        replace(student, model="nobody/nothing").tokenizer()


def test_name_is_never_a_path(student: Student) -> None:
    assert student.name == "tiny"
    assert replace(student, model="owner/model").name == "owner/model"


def test_tokenizer_has_a_padding_token(student: Student) -> None:
    assert student.tokenizer().pad_token_id is not None
