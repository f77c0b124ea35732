"""How the student answers: what it writes, or the likeliest of the task's labels; here, or behind a server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rebase.errors import RebaseError
from rebase.parameters import EvaluateParameters
from rebase.records import Adapter, Task
from rebase.student.answer_cache import answers_file, keep_answers
from rebase.student.generation import generate
from rebase.student.handle import Student, use_adapter
from rebase.student.likelihood import choose_labels
from rebase.student.served import generate_served

#: Answers rendered prompts, in their order, by the adapter of a name, or by the student alone (None).
Answer = Callable[[str | None, Sequence[str]], list[str]]


@contextmanager
def open_student(
    task: Task, student: Student, adapters: Mapping[str, Adapter], parameters: EvaluateParameters
) -> Iterator[Answer]:
    """A function that answers prompts, with the weights loaded once for the student and all ``adapters``.

    Where ``parameters.server`` is set, a server answers that holds the student under its name, and the adapters under
    theirs. What is written here is kept as it comes, and not written again (``kept.py``). Raises RebaseError as
    ``Student.open`` and ``generate_served`` do, and where the labels of a task are to be scored in which the reasoning
    is written first.
    """
    if task.cot and parameters.labels_by == "likelihood":
        raise RebaseError(
            f"evaluate.labels_by: likelihood scores a label alone, and task {task.name!r} has chain of thought: what "
            "was trained to reason first would be measured without it. Set it to generation."
        )
    labels, limit, batch = task.answer.labels, task.max_new_tokens, parameters.batch_size

    def served(adapter: str | None, prompts: Sequence[str]) -> list[str]:
        name = adapter or student.name
        return generate_served(str(parameters.server), name, prompts, limit, batch, f"{name} answers")

    if parameters.server:
        yield served
        return
    with student.open(adapters) as (model, tokenizer):

        def answer(adapter: str | None, prompts: Sequence[str]) -> list[str]:
            description = f"{adapter or 'student'} answers"
            with use_adapter(model, adapter):
                if labels and parameters.labels_by == "likelihood":
                    return choose_labels(model, tokenizer, prompts, labels, batch, description)[0]
                return keep_answers(
                    answers_file(student, adapters.get(adapter) if adapter else None, limit),
                    prompts,
                    lambda left, keep: generate(model, tokenizer, left, limit, batch, description, keep),
                )

        yield answer
