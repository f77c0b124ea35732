"""How the student answers: what it writes, or the likeliest of the task's labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rebase.parameters import EvaluateParameters
from rebase.records import Task
from rebase.student.generation import generate
from rebase.student.likelihood import choose_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_prompts(
    task: Task,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    parameters: EvaluateParameters,
    description: str,
) -> list[str]:
    """The raw answer to each rendered prompt, in the order of the prompts."""
    if task.answer.labels and parameters.labels_by == "likelihood":
        return choose_labels(model, tokenizer, prompts, task.answer.labels, parameters.batch_size, description)[0]
    return generate(model, tokenizer, prompts, task.max_new_tokens, parameters.batch_size, description)
