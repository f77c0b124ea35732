"""How the student is asked and what it is to answer: the same text at training and at generation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from rebase.records import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Target = Literal["answer", "rationale_then_answer"]

# The label that the loss skips, as torch's cross-entropy has it.
IGNORED = -100


def render_prompt(tokenizer: "PreTrainedTokenizerBase", task: Task, query: str, few_shot: bool = False) -> str:
    """The prompt as text, with every special token in it: the instruction as system turn, the query as user turn.

    Where the chat template has no system turn, the instruction stands in the first user's. A model without a chat
    template (a base model) gets a plain one. With ``few_shot`` the task's examples are turns that were answered
    already, with their rationale where the task has chain of thought.
    """
    shots = [(task.render_query(shot), _shown_answer(task, shot)) for shot in task.examples] if few_shot else []
    if not tokenizer.chat_template:
        shown = "".join(f"{asked}\n\nAnswer:\n{answer}\n\n" for asked, answer in shots)
        # Ends on a line break: no token can merge across the border to the completion.
        return f"{_bos(tokenizer)}{task.instruction}\n\n{shown}{query}\n\nAnswer:\n"
    turns = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in zip(("user", "assistant"), shot, strict=True)
    ] + [{"role": "user", "content": query}]
    try:
        prompt = _apply(tokenizer, [{"role": "system", "content": task.instruction}, *turns])
    except TemplateError:
        prompt = ""
    if task.instruction.strip() in prompt:
        return prompt
    turns[0]["content"] = f"{task.instruction}\n\n{turns[0]['content']}"
    return _apply(tokenizer, turns)


def _shown_answer(task: Task, shot: Mapping[str, str]) -> str:
    return render_completion(shot["answer"], shot.get("rationale"), "rationale_then_answer" if task.cot else "answer")


def render_completion(answer: str, rationale: str | None, target: Target) -> str:
    """What the student learns to write: the answer, or its rationale and then the answer.

    An example without a rationale is its answer alone.
    """
    if target == "answer" or not rationale:
        return answer
    return f"{rationale.strip()} So the answer is {answer}."


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Token ids of a rendered prompt. It holds its special tokens already, so none are added."""
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def encode_example(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Token ids ``[length]`` of prompt, completion and end of turn, and the labels: the prompt carries no loss.

    Prompt and completion are encoded apart, so that the prompt's ids are those of generation to the last one.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    target_ids = [*encode_prompt(tokenizer, completion), tokenizer.eos_token_id]
    return prompt_ids + target_ids, [IGNORED] * len(prompt_ids) + target_ids


def _apply(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _bos(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The begin-of-text token, if this tokenizer puts one before a text."""
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if begins and tokenizer.bos_token else ""
