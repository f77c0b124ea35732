"""Distil: the task's own inputs, labeled by the teacher (arXiv 2410.18588; docs/method.md section 9)."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import pandas as pd

from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError
from rebase.generation.filters import Candidate, contamination_filter, protected_texts
from rebase.generation.generate import (
    EXAMPLE_COLUMNS,
    Asked,
    Rejection,
    collect,
    conclude,
    examine,
    read_response,
    rejected_line,
)
from rebase.generation.prompts.parsing import Example, read_check, read_denser, read_rationale
from rebase.generation.prompts.requests import check_request, densify_request, label_requests
from rebase.generation.prompts.templates import DistilPrompt
from rebase.generation.self_consistency import read_sample, vote
from rebase.generation.verification import Known
from rebase.parameters import DistilParameters
from rebase.records import Task
from rebase.teacher.budget import Usage
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.concurrency import run
from rebase.teacher.protocol import Failure, Response
from rebase.text import ngrams, normalize, tokens

#: As ``examples`` after ``cot``; and of ``chain_of_density`` all rounds (JSON list of what was missing and said).
LABELED_COLUMNS = [*EXAMPLE_COLUMNS, "rationale", "agreement", "drafts"]
#: So many words that a draft has in common with what it was asked for are no chance.
_REPEATED_WORDS = 8


def distil_inputs(
    task: Task,
    unlabeled_inputs: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    distil_prompt: DistilPrompt,
    parameters: DistilParameters,
    contamination_ngram: int,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Have the teacher label inputs of the task, by the style that ``parameters`` name.

    ``unlabeled_inputs`` has ``row_id`` and ``fields`` (JSON), and a row's provenance where there is one; ``examples`` will
    do, whose answers are not looked at. Inputs that hold a part of the evaluation set, or that another one repeats, are
    rejected before anything is paid for; labels must stand the checks that all examples stand.

    Returns:
        The labeled examples in the form of ``reasoned_examples``; what was rejected, with reasons; the summary.

    Raises:
        RebaseError: The style does not fit the task, no label was left, or the teacher answers nothing.

    """
    _check_style(task, parameters)
    taken = unlabeled_inputs.iloc[
        systematic_positions(len(unlabeled_inputs), parameters.max_inputs or len(unlabeled_inputs))
    ]
    protected = protected_texts(task, evaluation_items["fields"], evaluation_items["references"])
    clean, rejected = _screen(task, taken.to_dict("records"), protected, contamination_ngram)
    known = Known.of(task, evaluation_items["query"], contamination_ngram)
    kept, unusable, usage = run(_ask_inputs(task, clean, teacher, distil_prompt, parameters, known))
    rejected += unusable
    advice = f"Look at the inputs and at {distil_prompt.path}, or take a stronger teacher."
    found = conclude("distil", task, teacher, distil_prompt, (kept, rejected, usage), advice, LABELED_COLUMNS)
    summary = found[2]
    summary["style"] = parameters.style
    if over := len(unlabeled_inputs) - len(taken):
        summary["in"] += over
        summary["rejected"]["over_limit"] = over
    return found


def _check_style(task: Task, parameters: DistilParameters) -> None:
    """Raise RebaseError where the style, or so many samples, cannot work for the task."""
    is_free = task.answer.type in ("text", "code")
    if parameters.style == "cot" and not task.cot:
        raise RebaseError(f"distil.style: cot needs examples with a rationale. Set `cot: true` in task {task.name!r}.")
    if parameters.style == "chain_of_density" and task.answer.type != "text":
        raise RebaseError(f"distil.style: chain_of_density is for texts; answers of {task.name!r} are of another type.")
    if parameters.samples > 1 and (is_free or parameters.style == "chain_of_density"):
        raise RebaseError("distil.samples: free texts reach no majority. Set it to 1.")


def _screen(
    task: Task, inputs: list[dict[str, Any]], protected: list[tuple[str, ...]], ngram: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The inputs that may be asked about, and lines of those rejected: by the filter that rows pass, or as duplicates."""
    row_filter = contamination_filter(protected, ngram)
    seen: set[str] = set()
    clean: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for item in inputs:
        fields = json.loads(item["fields"])
        query = normalize(task.render_query(fields))
        if query in seen:
            rejected.append(rejected_line(item, Rejection("duplicate")))
        elif rejection := row_filter(Candidate(item["row_id"], "", "", fields, "")):
            rejected.append(rejected_line(item, Rejection(rejection.reason, rejection.detail)))
        else:
            seen.add(query)
            clean.append(item)
    return clean, rejected


async def _ask_inputs(
    task: Task,
    inputs: list[dict[str, Any]],
    teacher: CachedTeacher,
    prompt: DistilPrompt,
    parameters: DistilParameters,
    known: Known,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Usage]:
    """The lines of ``distilled_examples``, without what all share, and of what was rejected; and what was asked."""
    room = max(1, teacher.concurrency // parameters.samples)
    async with teacher.open() as session:

        async def ask(item: dict[str, Any]) -> Asked:
            fields = json.loads(item["fields"])
            if parameters.style == "chain_of_density":
                asked = await densify(session, task, item, fields, prompt, parameters)
            else:
                asked = await label(session, task, item, fields, prompt, parameters)
            if isinstance(asked.outcome, Rejection):
                return asked
            return Asked(item, asked.response, examine(task, asked.outcome, known), more=asked.more)

        found = await collect(task, inputs, ask, lambda *_: room, max(1, len(inputs)), session.usage, "distil")
    return (*found, session.usage)


async def label(
    session: CachedSession,
    task: Task,
    item: dict[str, Any],
    fields: Mapping[str, str],
    prompt: DistilPrompt,
    parameters: DistilParameters,
) -> Asked:
    """The label that most samples agree on, with the shortest rationale that leads to it, if they reason."""
    reasoned = parameters.style == "cot"
    asks = label_requests(task, fields, prompt, parameters)

    def read(text: str) -> tuple[str | None, str]:
        return read_rationale(text) if reasoned else (None, read_check(task, fields, text))

    samples = [
        read_sample(task, fields, response, read) for response in await asyncio.gather(*map(session.generate, asks))
    ]
    verdict = vote(samples)
    # The one that counts comes last.
    response = _with_costs(
        sorted((sample.response for sample in samples), key=lambda response: response is verdict.response)
    )
    if verdict.rejected:
        detail = verdict.detail or (response.reason if isinstance(response, Failure) else "")
        return Asked(item, response, Rejection(verdict.rejected, detail))
    more = {"rationale": verdict.rationale or None, "agreement": verdict.agreement}
    return Asked(item, response, Example(dict(fields), verdict.answer), more=more)


async def densify(
    session: CachedSession,
    task: Task,
    item: dict[str, Any],
    fields: Mapping[str, str],
    prompt: DistilPrompt,
    parameters: DistilParameters,
) -> Asked:
    """A first answer and denser ones, of which the last counts; ``drafts`` holds all."""

    def read(text: str) -> tuple[str, str]:
        return read_denser(task, fields, text) if drafts else ("", read_check(task, fields, text))

    request = check_request(task, fields, prompt, parameters.sampling)
    responses: list[Response | Failure] = []
    drafts: list[tuple[str, str]] = []
    told = set(ngrams(tokens(prompt.densify.user), _REPEATED_WORDS))
    for number in range(1, parameters.rounds + 1):
        response = await session.generate(request)
        responses.append(response)
        draft = read_response(response, read)
        if not isinstance(draft, Rejection) and not told.isdisjoint(ngrams(tokens(draft[1]), _REPEATED_WORDS)):
            # A weak teacher loses sight of the item after some turns.
            draft = Rejection("repeats_prompt", draft[1])
        if isinstance(draft, Rejection):
            return Asked(item, _with_costs(responses), draft)
        drafts.append(draft)
        request = densify_request(task, request, draft, number + 1, parameters.rounds, prompt.densify)
    rounds = [{"missing": missing, "answer": answer} for missing, answer in drafts]
    more = {"drafts": json.dumps(rounds, ensure_ascii=False)}
    return Asked(item, _with_costs(responses), Example(dict(fields), drafts[-1][1]), more=more)


def _with_costs(responses: Sequence[Response | Failure]) -> Response | Failure:
    """The last response, with what all of them cost; a failure where there is none."""
    given = [response for response in responses if isinstance(response, Response)]
    return reduce(lambda earlier, later: later.with_cost_of(earlier), given) if given else responses[0]
