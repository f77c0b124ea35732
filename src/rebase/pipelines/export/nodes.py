"""Export: the expert as one model, for servers without adapters."""

from dataclasses import replace
from typing import Any

from rebase.records import Adapter
from rebase.serving.export import expert_template, export_files
from rebase.student.adapters import read_record
from rebase.student.generation import end_tokens
from rebase.student.handle import Student


def merge_adapter(student: Student, adapter: Adapter) -> tuple[Any, Any, dict[str, str]]:
    """The student's weights with the adapter's added, the tokenizer, and the texts of files beside them.

    The weights are the published ones in their own number format, not the 4-bit ones of training. The tokenizer's chat
    template and the generation settings are those of the adapter's task. Raises RebaseError if the adapter belongs to
    another student.
    """
    from transformers import GenerationConfig

    task = read_record(adapter.folder).task
    with replace(student, dtype=student.published_dtype()).open({"expert": adapter}) as (model, tokenizer):
        ends = sorted(end_tokens(model, tokenizer))
        files = export_files(tokenizer, task, student.name, ends)
        tokenizer.chat_template = expert_template(tokenizer, task)
        merged = model.merge_and_unload()
        merged.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=task.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
        )
        return merged, tokenizer, files
