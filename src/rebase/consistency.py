"""Self-consistency: what several samples of one reasoning come to (docs/method.md section 6)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rebase.records import Task
from rebase.teacher.protocol import Failure, Reply, why_unreadable
from rebase.verification import refuse_rationale, same_answer, tidy_answer


@dataclass(frozen=True)
class Sample:
    """What one reply came to: a rationale and the answer it leads to, or why it counts for nothing."""

    reply: Reply | Failure
    rationale: str = ""
    answer: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What all samples come to: answer, rationale, the reply that gave it, and agreement; or why there is none."""

    answer: str = ""
    rationale: str = ""
    reply: Reply | Failure | None = None
    agreement: float = 0.0
    refused: str | None = None
    detail: str = ""


def read_sample(
    task: Task, fields: Mapping[str, str], reply: Reply | Failure, read: Callable[[str], tuple[str | None, str]]
) -> Sample:
    """What a reply says, checked: a rationale with a wrong sum in it, say, has a fault.

    ``read`` parts its text into rationale (None where none was asked for) and answer; ``fields`` are the query's.
    """
    if isinstance(reply, Failure) or reply.finish != "stop":
        return Sample(reply, fault=why_unreadable(reply))
    try:
        rationale, answer = read(reply.text)
    except ValueError:
        return Sample(reply, fault="not_as_asked")
    answer = tidy_answer(task, fields, answer)
    fault = None if rationale is None else refuse_rationale(task, rationale, answer)
    return Sample(reply, rationale or "", answer, fault)


def vote(samples: Sequence[Sample]) -> Verdict:
    """The answer that more than half of the samples reach, with the shortest rationale that leads to it.

    Faulty samples count against a majority.
    """
    sound = [sample for sample in samples if sample.fault is None]
    if not sound:
        fault = Counter(sample.fault for sample in samples).most_common(1)[0][0]
        return Verdict(refused=fault)
    groups: list[list[Sample]] = []
    for sample in sound:
        group = next((group for group in groups if same_answer(group[0].answer, sample.answer)), None)
        if group is None:
            groups.append([sample])
        else:
            group.append(sample)
    majority = max(groups, key=len)
    if 2 * len(majority) <= len(samples):
        return Verdict(refused="no_majority", detail=", ".join(sample.answer for sample in sound))
    shortest = min(majority, key=lambda sample: len(sample.rationale))
    return Verdict(majority[0].answer, shortest.rationale, shortest.reply, len(majority) / len(samples))
