"""Distil: the task's own inputs, labelled by the teacher (arXiv 2410.18588; docs/method.md section 9)."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import pandas as pd

from rebase.collecting import (
    EXAMPLE_COLUMNS,
    Asked,
    Refusal,
    collect,
    conclude,
    examine,
    read_reply,
    refused_line,
)
from rebase.consistency import read_sample, vote
from rebase.errors import RebaseError
from rebase.parameters import DistilParameters
from rebase.prompts import (
    Example,
    LabelPrompt,
    check_request,
    densify_request,
    read_check,
    read_denser,
    read_rationale,
)
from rebase.records import Task
from rebase.sampling import even_positions
from rebase.screening import Candidate, contamination_gate, protected_texts
from rebase.teacher.budget import Usage
from rebase.teacher.flow import run
from rebase.teacher.protocol import Failure, Reply, Request
from rebase.teacher.stored import StoredSession, StoredTeacher
from rebase.text import ngrams, normalise, tokens
from rebase.verification import Known

#: As ``examples`` after ``cot``; and of ``chain_of_density`` all rounds (JSON list of what was missing and said).
LABELLED_COLUMNS = [*EXAMPLE_COLUMNS, "rationale", "agreement", "drafts"]
#: So many words that a draft has in common with what it was asked for are no chance.
_REPEATED_WORDS = 8


def label_inputs(
    task: Task,
    unlabelled: pd.DataFrame,
    evaluation_set: pd.DataFrame,
    teacher: StoredTeacher,
    label_prompt: dict[str, Any],
    parameters: DistilParameters,
    contamination_ngram: int,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Have the teacher label inputs of the task, by the style that ``parameters`` name.

    ``unlabelled`` has ``row_id`` and ``fields`` (JSON), and a row's provenance where there is one; ``examples`` will
    do, whose answers are not looked at. Inputs that hold a part of the evaluation set, or that another one repeats, are
    refused before anything is paid for; labels must stand the checks that all examples stand.

    Returns:
        The labelled examples in the form of ``reasoned_examples``; what was refused, with reasons; the summary.

    Raises:
        RebaseError: The style does not fit the task, no label was left, or the teacher answers nothing.

    """
    prompt = LabelPrompt.parse(label_prompt, "data/01_raw/prompts/label.yml")
    _check_style(task, parameters)
    taken = unlabelled.iloc[even_positions(len(unlabelled), parameters.max_inputs or len(unlabelled))]
    protected = protected_texts(task, evaluation_set["fields"], evaluation_set["answers"])
    clean, refused = _screen(task, taken.to_dict("records"), protected, contamination_ngram)
    known = Known.of(task, evaluation_set["query"], contamination_ngram)
    kept, unusable, usage = run(_ask_inputs(task, clean, teacher, prompt, parameters, known))
    refused += unusable
    advice = "Look at the inputs and at data/01_raw/prompts/label.yml, or take a stronger teacher."
    found = conclude("distil", task, teacher, prompt, (kept, refused, usage), advice, LABELLED_COLUMNS)
    summary = found[2]
    summary["style"] = parameters.style
    if over := len(unlabelled) - len(taken):
        summary["in"] += over
        summary["refused"]["over_limit"] = over
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
    """The inputs that may be asked about, and lines of those refused: by the gate that rows pass, or as duplicates."""
    gate = contamination_gate(protected, ngram)
    seen: set[str] = set()
    clean: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for item in inputs:
        fields = json.loads(item["fields"])
        query = normalise(task.render_query(fields))
        if query in seen:
            refused.append(refused_line(item, Refusal("duplicate")))
        elif refusal := gate(Candidate(item["row_id"], "", "", fields, "")):
            refused.append(refused_line(item, Refusal(refusal.reason, refusal.detail)))
        else:
            seen.add(query)
            clean.append(item)
    return clean, refused


async def _ask_inputs(
    task: Task,
    inputs: list[dict[str, Any]],
    teacher: StoredTeacher,
    prompt: LabelPrompt,
    parameters: DistilParameters,
    known: Known,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Usage]:
    """The lines of ``labelled_examples``, without what all share, and of what was refused; and what was asked."""
    room = max(1, teacher.ahead // parameters.samples)
    async with teacher.open() as session:

        async def ask(item: dict[str, Any]) -> Asked:
            fields = json.loads(item["fields"])
            if parameters.style == "chain_of_density":
                asked = await densify(session, task, item, fields, prompt, parameters)
            else:
                asked = await label(session, task, item, fields, prompt, parameters)
            if isinstance(asked.outcome, Refusal):
                return asked
            return Asked(item, asked.reply, examine(task, asked.outcome, known), more=asked.more)

        found = await collect(task, inputs, ask, lambda *_: room, max(1, len(inputs)), session.usage, "distil")
    return (*found, session.usage)


async def label(
    session: StoredSession,
    task: Task,
    item: dict[str, Any],
    fields: Mapping[str, str],
    prompt: LabelPrompt,
    parameters: DistilParameters,
) -> Asked:
    """The label that most samples agree on, with the shortest rationale that leads to it, if they reason."""
    reasoned = parameters.style == "cot"
    asks = label_requests(task, fields, prompt, parameters)

    def read(text: str) -> tuple[str | None, str]:
        return read_rationale(text) if reasoned else (None, read_check(task, fields, text))

    samples = [read_sample(task, fields, reply, read) for reply in await asyncio.gather(*map(session.ask, asks))]
    verdict = vote(samples)
    # The one that counts comes last.
    reply = _with_costs(sorted((sample.reply for sample in samples), key=lambda reply: reply is verdict.reply))
    if verdict.refused:
        detail = verdict.detail or (reply.reason if isinstance(reply, Failure) else "")
        return Asked(item, reply, Refusal(verdict.refused, detail))
    more = {"rationale": verdict.rationale or None, "agreement": verdict.agreement}
    return Asked(item, reply, Example(dict(fields), verdict.answer), more=more)


def label_requests(
    task: Task, fields: Mapping[str, str], prompt: LabelPrompt, parameters: DistilParameters
) -> list[Request]:
    """One request a sample of the label."""
    reasoned = parameters.style == "cot"
    own = prompt.cot if reasoned else prompt
    return [
        check_request(task, fields, own, parameters.sampling, reasoned=reasoned, sample=sample)
        for sample in range(parameters.samples)
    ]


async def densify(
    session: StoredSession,
    task: Task,
    item: dict[str, Any],
    fields: Mapping[str, str],
    prompt: LabelPrompt,
    parameters: DistilParameters,
) -> Asked:
    """A first answer and denser ones, of which the last counts; ``drafts`` holds all."""

    def read(text: str) -> tuple[str, str]:
        return read_denser(task, fields, text) if drafts else ("", read_check(task, fields, text))

    request = check_request(task, fields, prompt, parameters.sampling)
    replies: list[Reply | Failure] = []
    drafts: list[tuple[str, str]] = []
    told = set(ngrams(tokens(prompt.densify.user), _REPEATED_WORDS))
    for number in range(1, parameters.rounds + 1):
        reply = await session.ask(request)
        replies.append(reply)
        draft = read_reply(reply, read)
        if not isinstance(draft, Refusal) and not told.isdisjoint(ngrams(tokens(draft[1]), _REPEATED_WORDS)):
            # A weak teacher loses sight of the item after some turns.
            draft = Refusal("repeats_prompt", draft[1])
        if isinstance(draft, Refusal):
            return Asked(item, _with_costs(replies), draft)
        drafts.append(draft)
        request = densify_request(task, request, draft, number + 1, parameters.rounds, prompt.densify)
    rounds = [{"missing": missing, "answer": answer} for missing, answer in drafts]
    more = {"drafts": json.dumps(rounds, ensure_ascii=False)}
    return Asked(item, _with_costs(replies), Example(dict(fields), drafts[-1][1]), more=more)


def _with_costs(replies: Sequence[Reply | Failure]) -> Reply | Failure:
    """The last reply, with what all of them cost; a failure where there is none."""
    given = [reply for reply in replies if isinstance(reply, Reply)]
    return reduce(lambda earlier, later: later.with_cost_of(earlier), given) if given else replies[0]
