"""Student answers from a server with OpenAI's completions API, such as vLLM.

``vllm serve BASE --enable-lora --lora-modules expert=FOLDER`` serves the student as ``BASE`` and the adapter as
``expert``.
"""

from collections.abc import Sequence

from rebase.errors import RebaseError

#: How often the SDK repeats a request that fails on the way.
RETRIES = 5

#: vLLM's own settings: a rendered prompt already has its special tokens, and a model's ``generation_config`` must not
#: change greedy decoding.
_DECODING = {"add_special_tokens": False, "skip_special_tokens": True, "repetition_penalty": 1.0}


def generate_served(
    base_url: str, model: str, prompts: Sequence[str], max_new_tokens: int, max_concurrency: int, description: str
) -> list[str]:
    """Return the served ``model``'s greedy completion of each rendered prompt, in the order of the prompts.

    ``base_url`` ends in ``/v1``; up to ``max_concurrency`` requests run at once. Raises RebaseError if the server
    cannot be reached or rejects a request.
    """
    import openai
    from tqdm.contrib.concurrent import thread_map

    # The SDK requires a key; it must not be the key of another service.
    with openai.OpenAI(api_key="none", base_url=base_url, max_retries=RETRIES) as client:

        def complete(prompt: str) -> str:
            completion = client.completions.create(
                model=model, prompt=prompt, max_tokens=max_new_tokens, temperature=0, extra_body=_DECODING
            )
            return completion.choices[0].text.strip()

        try:
            return thread_map(complete, prompts, max_workers=max_concurrency, desc=description, unit="item")
        except openai.APIConnectionError as error:
            raise RebaseError(
                f"The student's server cannot be reached at {base_url}: {error.__cause__ or error}\n"
                "Start it (vllm serve BASE --enable-lora --lora-modules expert=FOLDER) or fix evaluate.server."
            ) from error
        except openai.APIError as error:
            raise RebaseError(
                f"The student's server at {base_url} rejects a request for {model!r}: {error.message}\n"
                "The name must be the served model or one of its --lora-modules, and prompt and answer together must "
                "fit its --max-model-len."
            ) from error
