"""Send many requests to the teacher in one loop, and turn the responses into tables of examples and rejections.

Shared by ``transform``, whose items are retrieved rows, ``synthesize``, whose items are numbers, and ``distil``, whose
items are inputs without answers. ``cot``, ``evaluate_teacher`` and ``judge`` use the loop alone.
"""

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd
from tqdm import tqdm

from rebase.errors import RebaseError, StageError
from rebase.generation.filters.base import Rejection
from rebase.generation.prompts.parsing import Example, read_check
from rebase.generation.prompts.requests import answer_request
from rebase.generation.prompts.templates import CheckPrompt, Prompt, prompt_hash
from rebase.generation.verification import (
    ProtectedTexts,
    agrees,
    label_balance,
    one_sided,
    reject_example,
    tidy_answer,
)
from rebase.parameters import SamplingParameters
from rebase.records import EXAMPLE_COLUMNS, PROVENANCE_COLUMNS, REJECTED_COLUMNS, Task, summarize_stage
from rebase.teacher.budget import Usage, progress
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.concurrency import in_order, run
from rebase.teacher.protocol import Failure, Response, why_unreadable
from rebase.text import comparable

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Line = dict[str, Any]

#: Characters of a response in an error message.
_LONGEST_QUOTE = 300


def generate_all(
    teacher: CachedTeacher,
    items: Sequence[T],
    generate: Callable[[CachedSession, T], Coroutine[Any, Any, R]],
    is_kept: Callable[[R], bool],
    *,
    stage: str,
    stop_at: int | None = None,
    concurrency: Callable[[int, int, Usage], int] | None = None,
) -> tuple[list[R], Usage]:
    """Results of ``generate`` in the order of the items, under a progress bar; and what the teacher used.

    ``concurrency(kept, rejected, usage)`` is the number of items in progress, at most; the teacher's own limit by
    default. The loop ends at the end of the items, when it returns 0, or when ``stop_at`` results are kept. The bar
    counts results, or kept results with ``stop_at``. ``is_kept`` sees each result once, in order.
    """
    total = stop_at or len(items)

    async def loop() -> tuple[list[R], Usage]:
        results: list[R] = []
        kept = 0
        async with teacher.open() as session:

            def limit() -> int:
                return concurrency(kept, len(results) - kept, session.usage) if concurrency else teacher.concurrency

            in_progress = in_order(lambda item: generate(session, item), items, limit)
            with tqdm(total=total, desc=stage, unit="item") as bar:
                async with aclosing(in_progress) as completed:
                    async for result in completed:
                        was_kept = is_kept(result)
                        results.append(result)
                        kept += was_kept
                        bar.update(was_kept if stop_at else 1)
                        text = progress(kept, len(results) - kept, total / max(1, bar.n), session.usage)
                        bar.set_postfix_str(text, refresh=False)
                        if kept == stop_at:
                            break
        return results, session.usage

    return run(loop())


@dataclass(frozen=True)
class GenerationResult:
    """An item, the teacher's response (None if no request was sent), and the outcome.

    ``item`` is a row of ``retrieved``, an input with its provenance, or has only a ``row_id``. ``details`` are further
    columns of the example.
    """

    item: Line
    response: Response | Failure | None
    outcome: Example | Rejection
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class ExampleStage:
    """A stage that makes examples: its kept and rejected lines, and the tables and summary made of them.

    ``earlier`` are examples to which the stage adds its own: queries and the balance of labels are compared with them.
    """

    name: str
    task: Task
    teacher: CachedTeacher
    prompt: Prompt
    earlier: pd.DataFrame = field(default_factory=pd.DataFrame)
    kept: list[Line] = field(default_factory=list)
    rejected: list[Line] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    started: float = field(default_factory=time.monotonic)

    def generate(
        self,
        items: Sequence[T],
        generate: Callable[[CachedSession, T], Coroutine[Any, Any, GenerationResult]],
        stop_at: int,
        concurrency: Callable[[int, int, Usage], int],
    ) -> None:
        """Run ``generate_all`` on the items and record each result.

        An example whose query another example has, also an ``earlier`` one, is rejected as ``duplicate``. If the
        teacher raises a RebaseError, it becomes a StageError with what was rejected before.
        """
        queries = set(map(comparable, self.earlier.get("query", ())))

        def is_kept(result: GenerationResult) -> bool:
            outcome = result.outcome
            if isinstance(outcome, Example):
                query = comparable(self.task.render_query(outcome.fields))
                if query not in queries:
                    queries.add(query)
                    self.kept.append(self.line(result, outcome))
                    return True
                outcome = Rejection("duplicate", outcome.answer)
            self.rejected.append(rejected_line(result.item, outcome, result.response))
            return False

        try:
            _, self.usage = generate_all(
                self.teacher, items, generate, is_kept, stage=self.name, stop_at=stop_at, concurrency=concurrency
            )
        except RebaseError as error:
            raise StageError(str(error), self._rejected_table()) from error

    def conclude(
        self,
        advice: str | None,
        columns: list[str] = EXAMPLE_COLUMNS,
        not_listed: Mapping[str, int] | None = None,
        **details: Any,
    ) -> tuple[pd.DataFrame, pd.DataFrame, Line]:
        """The table of examples, the table of rejected items, and the summary with ``details``.

        ``not_listed`` counts rejected items without a line, by reason. Raises StageError if there is no example
        (``explain_nothing_kept``), unless ``advice`` is None.
        """
        rejected = self._rejected_table()
        if advice and not self.kept:
            message = explain_nothing_kept(self.name, self.task, self.teacher, self.rejected, advice)
            raise StageError(message, rejected)
        shared = {
            "teacher": f"{self.teacher.provider}/{self.teacher.model}",
            "prompt_hash": prompt_hash(self.prompt, self.task),
        }
        examples = pd.DataFrame([shared | line for line in self.kept], columns=columns)
        answers = [*self.earlier.get("answer", ()), *examples["answer"]]
        if self.task.answer.labels and answers:
            details["labels"] = balance = label_balance(self.task.answer.labels, answers)
            if balance["missing"]:
                logger.warning("%s: no example has the label %s", self.name, ", ".join(balance["missing"]))
            if warning := one_sided(balance["counts"]):
                logger.warning("%s: %s", self.name, warning)
        summary = summarize_stage(
            self.name, kept=len(examples), rejected=Counter(rejected["reason"]) + Counter(not_listed),
            seconds=time.monotonic() - self.started, **shared, dtype=self.teacher.compute_dtype,
            usage=self.usage.summary(), **details,
        )  # fmt: skip
        return examples, rejected, summary

    def _rejected_table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rejected, columns=REJECTED_COLUMNS)

    def line(self, result: GenerationResult, example: Example) -> Line:
        """A line of ``examples``, without the columns that all examples share."""
        return {
            "example_id": result.item["row_id"],
            **{name: result.item.get(name) for name in (*PROVENANCE_COLUMNS, "mapping_id")},
            "fields": json.dumps(example.fields, ensure_ascii=False),
            "query": self.task.render_query(example.fields),
            "answer": example.answer,
            "cut": "[]",
            "response_key": result.response.key if result.response else None,
            **{name: getattr(result.response, name, None) for name in ("input_tokens", "output_tokens", "dollars")},
            **result.details,
        }


def read_response(response: Response | Failure, read: Callable[[str], T]) -> T | Rejection:
    """The result of ``read``, which may raise ValueError, on the text of a response; or why there is none."""
    if isinstance(response, Failure) or response.finish != "stop":
        return Rejection(why_unreadable(response), response.reason if isinstance(response, Failure) else "")
    try:
        return read(response.text)
    except ValueError as error:
        return Rejection("invalid_response", str(error))


def verify(task: Task, outcome: Example | Rejection, protected: ProtectedTexts) -> Example | Rejection:
    """The example with its answer tidied, or why it is rejected."""
    if isinstance(outcome, Rejection):
        return outcome
    answer = tidy_answer(task, outcome.fields, outcome.answer)
    reason = reject_example(task, outcome.fields, answer, protected)
    return Rejection(reason, answer) if reason else Example(outcome.fields, answer)


async def apply_consistency_filter(
    session: CachedSession, task: Task, result: GenerationResult, prompt: CheckPrompt, sampling: SamplingParameters
) -> GenerationResult:
    """Request the answer to the new query again, without showing it; reject the example if the answers disagree.

    A result that is already rejected is returned unchanged.
    """
    example = result.outcome
    if isinstance(example, Rejection):
        return result
    response = await session.generate(answer_request(task, example.fields, prompt, sampling))
    answer = read_response(response, lambda text: read_check(task, example.fields, text))
    if isinstance(answer, Rejection):
        return replace(result, outcome=answer)
    if agrees(task, example.fields, example.answer, answer):
        return result
    return replace(result, outcome=Rejection("inconsistent", f"{answer} for {example.answer}"))


def rejected_line(item: Line, rejection: Rejection, response: Response | Failure | None = None) -> Line:
    """A line of a table of rejected items."""
    return {
        **{name: item.get(name) for name in ("row_id", "dataset", "rank")},
        **vars(rejection),
        "response_key": response.key if response else None,
        "text": response.text if isinstance(response, Response) else None,
    }


def require_examples(stage: str, examples: pd.DataFrame) -> None:
    """Raise RebaseError if no run has written the table of examples yet (see ``OptionalTableDataset``)."""
    if examples.columns.empty:
        raise RebaseError(f"{stage}: there are no examples. Run the pipelines transform and cot first.")


def explain_nothing_kept(stage: str, task: Task, teacher: CachedTeacher, rejected: list[Line], advice: str) -> str:
    """The message for a stage without a result: why the teacher did not respond, or the reasons and ``advice``.

    The response that it quotes is one of the most frequent reason.
    """
    name = f"{teacher.provider}/{teacher.model}"
    details = defaultdict(list)
    for line in rejected:
        details[line["reason"]].append(line["detail"])
    is_silent = not any(line["text"] for line in rejected)
    if is_silent and (failures := details["teacher_failed"]):
        return (
            f"{stage}: the teacher {name} answered none of {len(failures)} requests. The most frequent failure: "
            f"{max(failures, key=failures.count)}\n"
            "Check `teacher` in globals.yml and the credentials, then run again: cached responses are not paid for "
            "twice."
        )
    if is_silent and (unsent := details["budget_reached"]):
        return (
            f"{stage}: the budget left no request for the teacher {name}: {unsent[0]}. Raise that limit in "
            "globals.yml and run again: cached responses are not paid for twice."
        )
    counts = Counter(line["reason"] for line in rejected if line["reason"] != "not_requested").most_common()
    words = ", ".join(f"{reason} {count}" for reason, count in counts) or "there were no rows"
    examples = [line for reason, _ in counts for line in rejected if line["reason"] == reason and line["text"]]
    quoted = "".join(
        f"\nFor example {line['row_id']}: {line['reason']} {line['detail']}".rstrip()
        + f", in the response {line['text'][:_LONGEST_QUOTE]!r}"
        for line in examples[:1]
    )
    return f"{stage}: the teacher {name} wrote nothing usable for task {task.name!r}: {words}.{quoted}\n{advice}"
