"""Self-consistency: the majority of several samples of one answer (docs/method.md section 6)."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rebase.generation.filters.base import Rejection
from rebase.generation.generate import read_response
from rebase.generation.verification import reject_rationale, same_answer, tidy_answer
from rebase.records import Task
from rebase.tasks.extraction import without_conclusion
from rebase.teacher.cached import CachedSession
from rebase.teacher.protocol import Failure, Request, Response


@dataclass(frozen=True)
class AnswerSample:
    """The rationale and the answer in one response, or the ``fault`` because of which they do not count.

    ``agreement`` is the share of samples with this answer, once they have voted.
    """

    response: Response | Failure
    rationale: str = ""
    answer: str = ""
    fault: str | None = None
    agreement: float | None = None


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
    samples = []
    for response in await asyncio.gather(*map(session.generate, requests)):
        parsed = read_response(response, read)
        if isinstance(parsed, Rejection):
            samples.append(AnswerSample(response, fault=parsed.reason))
            continue
        rationale, answer = parsed[0], tidy_answer(task, fields, parsed[1])
        fault = None if rationale is None else reject_rationale(task, rationale, answer)
        # What the student learns to write ends with the answer anyway.
        samples.append(AnswerSample(response, without_conclusion(rationale or ""), answer, fault))
    return samples


def vote(samples: Sequence[AnswerSample]) -> AnswerSample | Rejection:
    """The answer of more than half of the samples, with the shortest rationale for it; or why there is none.

    Faulty samples count against a majority.
    """
    sound = [sample for sample in samples if sample.fault is None]
    if not sound:
        ((fault, _),) = Counter(sample.fault for sample in samples).most_common(1)
        first = next(sample.response for sample in samples if sample.fault == fault)
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
    return replace(shortest, answer=largest[0].answer, agreement=len(largest) / len(samples))
