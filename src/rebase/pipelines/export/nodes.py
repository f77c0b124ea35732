"""Export: the expert as one model, for those who serve without adapters."""

from dataclasses import replace
from typing import Any

from rebase.records import Adapter
from rebase.student.handle import Student


def merge_adapter(student: Student, adapter: Adapter) -> tuple[Any, Any]:
    """The student's weights with the adapter's added to them, and the tokenizer.

    They are added to the weights as they were published, in their number format, not to the 4-bit ones of training.
    Raises RebaseError where the adapter was made for another student.
    """
    with replace(student, dtype=student.published_dtype()).open({"expert": adapter}) as (model, tokenizer):
        return model.merge_and_unload(), tokenizer
