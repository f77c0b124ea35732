"""Labels: the teacher's answers to inputs of a task, in the style that ``distil`` names."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from rebase.errors import RebaseError
from rebase.generation.filters.base import Rejection
from rebase.generation.generate import read_response
from rebase.generation.prompts.parsing import Example, read_check, read_denser, read_rationale
from rebase.generation.prompts.requests import answer_request, densify_request, label_requests
from rebase.generation.prompts.templates import DistilPrompt
from rebase.generation.self_consistency import sample_answers, vote
from rebase.parameters import DistilParameters
from rebase.records import Task
from rebase.teacher.cached import CachedSession
from rebase.teacher.protocol import Failure, Response
from rebase.text import ngrams, tokens

#: A draft that shares this many consecutive words with the prompt repeats it.
_REPEATED_WORDS = 8

#: A label or why there is none, the responses to its requests, and further columns of the example.
_Labeled = tuple[Example | Rejection, list[Response | Failure], dict[str, Any]]


def check_style(task: Task, parameters: DistilParameters) -> None:
    """Raise RebaseError if the style, or the number of samples, cannot work for the task."""
    if parameters.style == "cot" and not task.cot:
        raise RebaseError(f"distil.style: cot needs examples with a rationale. Set `cot: true` in task {task.name!r}.")
    if parameters.style == "chain_of_density" and task.answer.type != "text":
        raise RebaseError(f"distil.style: chain_of_density is for texts; answers of {task.name!r} are of another type.")
    is_free = task.answer.type in ("text", "code")
    if parameters.samples > 1 and (is_free or parameters.style == "chain_of_density"):
        raise RebaseError("distil.samples: free texts reach no majority. Set it to 1.")


async def request_label(
    session: CachedSession, task: Task, fields: Mapping[str, str], prompt: DistilPrompt, parameters: DistilParameters
) -> _Labeled:
    """The teacher's label of the input with these fields, in the style of ``parameters``; not yet verified."""
    request = _densify if parameters.style == "chain_of_density" else _label
    return await request(session, task, fields, prompt, parameters)


async def _label(
    session: CachedSession, task: Task, fields: Mapping[str, str], prompt: DistilPrompt, parameters: DistilParameters
) -> _Labeled:
    """The label of the majority of the samples, with the shortest rationale for it in the style ``cot``."""

    def read(text: str) -> tuple[str | None, str]:
        return read_rationale(text) if parameters.style == "cot" else (None, read_check(task, fields, text))

    requests = label_requests(task, fields, prompt, parameters)
    samples = await sample_answers(session, requests, task, fields, read)
    majority = vote(samples)
    responses = [sample.response for sample in samples]
    if isinstance(majority, Rejection):
        return majority, responses, {}
    # The response with the chosen rationale comes last.
    responses.sort(key=lambda response: response is majority.response)
    details = {"rationale": majority.rationale or None, "agreement": majority.agreement}
    return Example(dict(fields), majority.answer), responses, details


async def _densify(
    session: CachedSession, task: Task, fields: Mapping[str, str], prompt: DistilPrompt, parameters: DistilParameters
) -> _Labeled:
    """A first answer and denser ones, of which the last counts; ``drafts`` has all."""

    def read(text: str) -> tuple[str, str]:
        return read_denser(task, fields, text) if drafts else ("", read_check(task, fields, text))

    request = answer_request(task, fields, prompt, parameters.sampling)
    responses: list[Response | Failure] = []
    drafts: list[tuple[str, str]] = []
    prompt_runs = set(ngrams(tokens(prompt.densify.user), _REPEATED_WORDS))
    for number in range(1, parameters.rounds + 1):
        responses.append(await session.generate(request))
        draft = read_response(responses[-1], read)
        if not isinstance(draft, Rejection) and not prompt_runs.isdisjoint(ngrams(tokens(draft[1]), _REPEATED_WORDS)):
            # A weak teacher forgets the item after some turns.
            draft = Rejection("repeats_prompt", draft[1])
        if isinstance(draft, Rejection):
            return draft, responses, {}
        drafts.append(draft)
        request = densify_request(task, request, draft, number + 1, parameters.rounds, prompt.densify)
    rounds = [{"missing": missing, "answer": answer} for missing, answer in drafts]
    details = {"drafts": json.dumps(rounds, ensure_ascii=False)}
    return Example(dict(fields), drafts[-1][1]), responses, details


def with_costs(responses: Sequence[Response | Failure]) -> Response | Failure:
    """The last response with the costs of all of them; a failure if there is no response."""
    received = [response for response in responses if isinstance(response, Response)]
    return reduce(lambda earlier, later: later.with_cost_of(earlier), received) if received else responses[0]
