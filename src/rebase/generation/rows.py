"""Turn one retrieved row into an example: the request and the checks that transform, estimate and the pilot share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rebase.generation.cues import Guidance, can_be_guided, find_cue, source_text_columns
from rebase.generation.filters.base import Rejection
from rebase.generation.generate import GenerationResult, apply_consistency_filter, read_response, verify
from rebase.generation.prompts.parsing import Example, read_example
from rebase.generation.prompts.requests import transform_request, visible_cells
from rebase.generation.prompts.templates import TransformPrompt
from rebase.generation.verification import ProtectedTexts, names_label
from rebase.parameters import TransformParameters
from rebase.records import Task
from rebase.teacher.cached import CachedSession
from rebase.teacher.protocol import Failure, Request, Response

Row = Mapping[str, Any]


class RowTransformer:
    """Requests an example for a row of ``retrieved``, and checks it.

    ``rows`` are all retrieved rows, also if only some are sent: the request for a guided teacher depends on all rows of
    a config.
    """

    def __init__(
        self, task: Task, rows: Sequence[Row], prompt: TransformPrompt, parameters: TransformParameters
    ) -> None:
        self._task, self._prompt, self._parameters = task, prompt, parameters
        self._guided = parameters.guided and can_be_guided(task)
        self._columns = source_text_columns(rows) if self._guided else {}

    def request(self, row: Row) -> Request | None:
        """The request for an example; None if a guided teacher has nothing to write about."""
        cue = self._cue(row)
        is_unfit = self._guided and cue is None
        return None if is_unfit else transform_request(self._task, row, self._prompt, self._parameters, cue)

    async def generate(
        self, session: CachedSession, row: dict[str, Any], protected: ProtectedTexts
    ) -> GenerationResult:
        """The example that the teacher made of the row, or why there is none."""
        task, parameters, cue = self._task, self._parameters, self._cue(row)
        if self._guided and cue is None:
            return GenerationResult(row, None, Rejection("no_cue"))
        response = await session.generate(transform_request(task, row, self._prompt, parameters, cue))
        _, cut = visible_cells(task, row, parameters, cue)
        details = {"cut": json.dumps(cut, ensure_ascii=False)}
        result = GenerationResult(row, response, _read_outcome(task, row, response, cue, protected), details)
        if parameters.consistency_filter:
            return await apply_consistency_filter(session, task, result, self._prompt.check, parameters.sampling)
        return result

    def _cue(self, row: Row) -> Guidance | None:
        return find_cue(self._task, row, self._columns) if self._guided else None


def _read_outcome(
    task: Task, row: Row, response: Response | Failure, cue: Guidance | None, protected: ProtectedTexts
) -> Example | Rejection:
    """The example in the response about a row, or why there is none."""
    example = read_response(response, lambda text: read_example(task, text, row["passage"], cue))
    if example is None:
        return Rejection("unfit_row")
    outcome = verify(task, example, protected)
    if isinstance(outcome, Example) and task.answer.labels and cue:
        # A weak teacher guesses if the row does not contain the label.
        cells = map(str, json.loads(row["row"]).values())
        return outcome if names_label(outcome.answer, cells) else Rejection("label_not_in_row", outcome.answer)
    return outcome
