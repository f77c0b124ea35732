"""The student behind a server that speaks OpenAI's completions API: vLLM, where there is a GPU.

``vllm serve BASE --enable-lora --lora-modules expert=FOLDER`` answers as ``BASE`` and as ``expert``.
"""

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from rebase.errors import RebaseError
from rebase.teacher.api import RETRIES
from rebase.teacher.concurrency import in_order, run

if TYPE_CHECKING:
    import openai

#: vLLM's own settings: the rendered prompt holds its special tokens already, and greedy is greedy, whatever the model's
#: ``generation_config`` says.
_AS_IS = {"add_special_tokens": False, "skip_special_tokens": True, "repetition_penalty": 1.0}


def generate_served(
    base_url: str, model: str, prompts: Sequence[str], max_new_tokens: int, max_concurrency: int, description: str
) -> list[str]:
    """What the served ``model`` writes after each rendered prompt, greedily, in the order of the prompts.

    ``base_url`` ends on ``/v1``; up to ``max_concurrency`` requests wait for their answers at once, and the SDK repeats
    those that fail on the way. Raises RebaseError where the server cannot be reached or rejects a request.
    """
    return run(_generate(base_url, model, prompts, max_new_tokens, max_concurrency, description))


async def _generate(
    base_url: str, model: str, prompts: Sequence[str], max_new_tokens: int, max_concurrency: int, description: str
) -> list[str]:
    import openai
    from tqdm.auto import tqdm

    # The SDK insists on a key; it must not be that of another service.
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=RETRIES) as client:

        async def ask(prompt: str) -> str:
            completion = await client.completions.create(
                model=model, prompt=prompt, max_tokens=max_new_tokens, temperature=0, extra_body=_AS_IS
            )
            return completion.choices[0].text.strip()

        texts = []
        with tqdm(total=len(prompts), desc=description, unit="item") as bar:
            try:
                async with aclosing(in_order(ask, prompts, lambda: max_concurrency)) as answers:
                    async for text in answers:
                        texts.append(text)
                        bar.update()
            except openai.APIError as error:
                raise RebaseError(_explain(error, base_url, model)) from error
    return texts


def _explain(error: "openai.APIError", base_url: str, model: str) -> str:
    """What the server says, and what to do."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return (
            f"The student's server cannot be reached at {base_url}: {error.__cause__ or error}\n"
            "Start it (vllm serve BASE --enable-lora --lora-modules expert=FOLDER) or mend its address."
        )
    return (
        f"The student's server at {base_url} rejects a request to {model!r}: {error.message}\n"
        "The name must be that of the served model or of one of its --lora-modules, and prompt and answer together no "
        "longer than its --max-model-len."
    )
