"""The student's prompts and completions: the same text in training and in generation."""

from typing import TYPE_CHECKING, Literal

import pandas as pd
from jinja2 import TemplateError

from rebase.errors import RebaseError
from rebase.records import TRAINING_COLUMNS, Task
from rebase.student.handle import Student
from rebase.text import CONCLUSION
from rebase.weights import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Target = Literal["answer", "rationale_then_answer"]

#: The label that torch's cross-entropy ignores.
IGNORED = -100


def render_prompt(tokenizer: "PreTrainedTokenizerBase", task: Task, query: str, few_shot: bool = False) -> str:
    """The prompt as text with all special tokens: the instruction as system turn, the query as user turn.

    If the chat template has no system turn, the instruction goes into the first user turn. A model without chat
    template (a base model) gets a plain prompt. ``few_shot`` adds the task's examples as earlier turns, with their
    rationales in a task with chain of thought.
    """
    target: Target = "rationale_then_answer" if task.cot else "answer"
    shots = [
        (task.render_query(shot), render_completion(shot["answer"], shot.get("rationale"), target))
        for shot in (task.examples if few_shot else ())
    ]
    if not tokenizer.chat_template:
        examples = "".join(f"{shot_query}\n\nAnswer:\n{answer}\n\n" for shot_query, answer in shots)
        # Ends with a line break: no token can merge across the border to the completion.
        return f"{begin_token(tokenizer)}{task.instruction}\n\n{examples}{query}\n\nAnswer:\n"
    turns = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ] + [{"role": "user", "content": query}]
    try:
        prompt = render_chat(tokenizer, [{"role": "system", "content": task.instruction}, *turns])
    except TemplateError:
        prompt = ""
    if task.instruction.strip() in prompt:
        return prompt
    turns[0]["content"] = f"{task.instruction}\n\n{turns[0]['content']}"
    return render_chat(tokenizer, turns)


def begin_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The begin-of-text token, if this tokenizer starts a text with one."""
    begins = tokenizer.bos_token and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins else ""


def prompt_template(tokenizer: "PreTrainedTokenizerBase", task: Task) -> str:
    """The task's prompt with its fields in braces: for people, and for programs that fill it in."""
    return render_prompt(tokenizer, task, task.render_query({name: f"{{{name}}}" for name in task.query_fields}))


def render_completion(answer: str, rationale: str | None, target: Target) -> str:
    """The text that the student learns to write: the answer, or the rationale and then the answer.

    Without a rationale it is the answer alone.
    """
    if target == "answer" or not rationale:
        return answer
    return f"{rationale.strip()} {CONCLUSION}{answer}."


def format_examples(task: Task, examples: pd.DataFrame, student: Student, target: Target) -> pd.DataFrame:
    """Render each example for the student: ``example_id``, ``prompt``, ``completion``, in the order of the examples.

    ``target`` is what the student learns to write; examples may have no ``rationale``. Raises RebaseError if there are
    no examples.
    """
    if examples.empty:
        raise RebaseError(
            f"train: there are no examples for the task {task.name!r}. See examples_rejected and retrieval_rejected "
            "for the reasons; fix the task, the sources or the teacher, and run from transform again."
        )
    tokenizer = student.tokenizer()
    # A missing rationale comes back from parquet as None or NaN.
    rationales = examples.reindex(columns=["rationale"])["rationale"].astype(object)
    answers = zip(examples["answer"], rationales.where(rationales.notna(), None), strict=True)
    return pd.DataFrame(
        {
            "example_id": examples["example_id"].to_list(),
            "prompt": [render_prompt(tokenizer, task, query) for query in examples["query"]],
            "completion": [render_completion(answer, rationale, target) for answer, rationale in answers],
        },
        columns=TRAINING_COLUMNS,
    )


def tokenize_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Token ids of a rendered prompt. It already has its special tokens, so none are added."""
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def tokenize_example(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Token ids ``[length]`` of prompt, completion and end of turn, and the labels; the prompt has no loss.

    Prompt and completion are tokenized separately, so that the prompt's ids are exactly those of generation.
    """
    prompt_ids = tokenize_prompt(tokenizer, prompt)
    target_ids = [*tokenize_prompt(tokenizer, completion), tokenizer.eos_token_id]
    return prompt_ids + target_ids, [IGNORED] * len(prompt_ids) + target_ids
