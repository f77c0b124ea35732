"""Self-consistency: the majority of several samples of one answer (docs/method.md section 6)."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rebase.generation.filters import Rejection
from rebase.generation.generate import read_response
from rebase.generation.verification import reject_rationale, same_answer, tidy_answer
from rebase.records import Task
from rebase.teacher.cached import CachedSession
from rebase.teacher.protocol import Failure, Request, Response


@dataclass(frozen=True)
class AnswerSample:
    """The rationale and the answer in one response, or the ``fault`` because of which they do not count."""

    response: Response | Failure
    rationale: str = ""
    answer: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Majority:
    """The answer of the majority, a rationale for it with its response, and the share of samples that agree."""

    answer: str
    rationale: str
    response: Response | Failure
    agreement: float


async def sample_answers(
    session: CachedSession,
    requests: Iterable[Request],
    task: Task,
    fields: Mapping[str, str],
    read: Callable[[str], tuple[str | None, str]],
) -> list[AnswerSample]:
    """Generate the responses to all requests about one query, and check them.

    ``read`` splits the text of a response into rationale (None if none was requested) and answer; ``fields`` are those
    of the query.
    """
    responses = await asyncio.gather(*map(session.generate, requests))
    return [_read_sample(task, fields, response, read) for response in responses]


def _read_sample(
    task: Task, fields: Mapping[str, str], response: Response | Failure, read: Callable[[str], tuple[str | None, str]]
) -> AnswerSample:
    parsed = read_response(response, read)
    if isinstance(parsed, Rejection):
        return AnswerSample(response, fault=parsed.reason)
    rationale, answer = parsed[0], tidy_answer(task, fields, parsed[1])
    fault = None if rationale is None else reject_rationale(task, rationale, answer)
    return AnswerSample(response, rationale or "", answer, fault)


def vote(samples: Sequence[AnswerSample]) -> Majority | Rejection:
    """The answer of more than half of the samples, with the shortest rationale for it; or why there is none.

    Faulty samples count against a majority.
    """
    sound = [sample for sample in samples if sample.fault is None]
    if not sound:
        ((fault, _),) = Counter(sample.fault for sample in samples).most_common(1)
        first = samples[0].response
        return Rejection(str(fault), first.reason if isinstance(first, Failure) else "")
    groups: list[list[AnswerSample]] = []
    for sample in sound:
        group = next((group for group in groups if same_answer(group[0].answer, sample.answer)), None)
        if group is None:
            groups.append([sample])
        else:
            group.append(sample)
    largest = max(groups, key=len)
    if 2 * len(largest) <= len(samples):
        return Rejection("no_majority", ", ".join(sample.answer for sample in sound))
    shortest = min(largest, key=lambda sample: len(sample.rationale))
    return Majority(largest[0].answer, shortest.rationale, shortest.response, len(largest) / len(samples))
