"""Export: the expert as one model, for servers without adapters."""

from dataclasses import replace
from typing import Any

from rebase.records import Adapter
from rebase.student.handle import Student


def merge_adapter(student: Student, adapter: Adapter) -> tuple[Any, Any]:
    """The student's weights with the adapter's added, and the tokenizer.

    The weights are the published ones in their own number format, not the 4-bit ones of training. Raises RebaseError
    if the adapter belongs to another student.
    """
    with replace(student, dtype=student.published_dtype()).open({"expert": adapter}) as (model, tokenizer):
        return model.merge_and_unload(), tokenizer
