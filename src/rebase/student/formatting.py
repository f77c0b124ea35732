"""How the student is asked and what it is to answer: the same text at training and at generation."""

from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from rebase.records import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Target = Literal["answer", "rationale_then_answer"]

# The label that the loss skips, as torch's cross-entropy has it.
IGNORED = -100


def render_prompt(tokenizer: "PreTrainedTokenizerBase", task: Task, query: str) -> str:
    """The prompt as text, with every special token in it: the instruction as system turn, the query as user turn.

    Where the chat template has no system turn, both stand in the user's. A model without a chat template (a base
    model) gets a plain one.
    """
    if not tokenizer.chat_template:
        # Ends on a line break: no token can merge across the border to the completion.
        return f"{_bos(tokenizer)}{task.instruction}\n\n{query}\n\nAnswer:\n"
    turns = [{"role": "system", "content": task.instruction}, {"role": "user", "content": query}]
    try:
        prompt = _apply(tokenizer, turns)
    except TemplateError:
        prompt = ""
    if task.instruction.strip() in prompt:
        return prompt
    return _apply(tokenizer, [{"role": "user", "content": f"{task.instruction}\n\n{query}"}])


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
