"""Self-consistency: what several samples of one reasoning come to (docs/method.md section 6)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rebase.generation.verification import reject_rationale, same_answer, tidy_answer
from rebase.records import Task
from rebase.teacher.protocol import Failure, Response, why_unreadable


@dataclass(frozen=True)
class Sample:
    """What one response came to: a rationale and the answer it leads to, or why it counts for nothing."""

    response: Response | Failure
    rationale: str = ""
    answer: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What all samples come to: answer, rationale, the response that gave it, and agreement; or why there is none."""

    answer: str = ""
    rationale: str = ""
    response: Response | Failure | None = None
    agreement: float = 0.0
    rejected: str | None = None
    detail: str = ""


def read_sample(
    task: Task, fields: Mapping[str, str], response: Response | Failure, read: Callable[[str], tuple[str | None, str]]
) -> Sample:
    """What a response says, checked: a rationale with a wrong sum in it, say, has a fault.

    ``read`` parts its text into rationale (None where none was asked for) and answer; ``fields`` are the query's.
    """
    if isinstance(response, Failure) or response.finish != "stop":
        return Sample(response, fault=why_unreadable(response))
    try:
        rationale, answer = read(response.text)
    except ValueError:
        return Sample(response, fault="not_as_asked")
    answer = tidy_answer(task, fields, answer)
    fault = None if rationale is None else reject_rationale(task, rationale, answer)
    return Sample(response, rationale or "", answer, fault)


def vote(samples: Sequence[Sample]) -> Verdict:
    """The answer that more than half of the samples reach, with the shortest rationale that leads to it.

    Faulty samples count against a majority.
    """
    sound = [sample for sample in samples if sample.fault is None]
    if not sound:
        fault = Counter(sample.fault for sample in samples).most_common(1)[0][0]
        return Verdict(rejected=fault)
    groups: list[list[Sample]] = []
    for sample in sound:
        group = next((group for group in groups if same_answer(group[0].answer, sample.answer)), None)
        if group is None:
            groups.append([sample])
        else:
            group.append(sample)
    majority = max(groups, key=len)
    if 2 * len(majority) <= len(samples):
        return Verdict(rejected="no_majority", detail=", ".join(sample.answer for sample in sound))
    shortest = min(majority, key=lambda sample: len(sample.rationale))
    return Verdict(majority[0].answer, shortest.rationale, shortest.response, len(majority) / len(samples))
