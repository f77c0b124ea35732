"""Pilot: transform a few rows of the top, the middle and the end of the retrieved ones, as a full run would."""

import json
import logging
import time
from collections import Counter
from typing import Any

import pandas as pd

from rebase.errors import RebaseError
from rebase.generation.generate import ExampleStage, GenerationResult, explain_nothing_kept
from rebase.generation.pilot import UNANSWERED, choose_positions
from rebase.generation.prompts.templates import TransformPrompt
from rebase.generation.rows import RowTransformer
from rebase.generation.verification import ProtectedTexts
from rebase.parameters import ContaminationParameters, PilotParameters, TransformParameters
from rebase.records import PILOT_COLUMNS, Task, summarize_stage
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Response

logger = logging.getLogger(__name__)

Line = dict[str, Any]


def try_rows(
    task: Task,
    retrieved: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    transform_prompt: TransformPrompt,
    transform: TransformParameters,
    contamination: ContaminationParameters,
    parameters: PilotParameters,
) -> tuple[pd.DataFrame, Line]:
    """Send some rows through the requests and checks of transform, so that its responses count for a full run.

    Returns a line for each row, with the prompt, the response, and the example or the reason of its rejection; and the
    summary, whose ``nothing_kept`` explains if no example passed. Raises RebaseError if there are no rows or the
    teacher answers no request.
    """
    if transform.mode == "map":
        raise RebaseError("pilot: transform.mode is map, which sends no row to the teacher. Run the pipeline map.")
    if retrieved.empty:
        raise RebaseError("pilot: there are no retrieved rows. Run the pipeline retrieve first, with other sources.")
    rows = retrieved.to_dict("records")
    if len(rows) < parameters.rows:
        logger.warning("pilot: %d rows were retrieved, fewer than pilot.rows (%d)", len(rows), parameters.rows)
    chosen = [
        rows[position] | {"part": part, "position": position + 1}
        for part, position in choose_positions(len(rows), parameters.rows)
    ]
    stage = ExampleStage("pilot", task, teacher, transform_prompt)
    transformer = RowTransformer(task, rows, transform_prompt, transform)
    protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)
    responses: dict[str, Response] = {}

    async def generate(session: CachedSession, row: Line) -> GenerationResult:
        result = await transformer.generate(session, row, protected)
        if isinstance(result.response, Response):
            responses[row["row_id"]] = result.response
        return result

    stage.generate(chosen, generate, len(chosen), lambda *_: teacher.concurrency)
    advice = (
        f"Check the instruction and the examples of the task and {transform_prompt.path}, use a stronger teacher, or "
        "retrieve other rows (`sources`)."
    )
    unusable = "" if stage.kept else explain_nothing_kept("pilot", task, teacher, stage.rejected, advice)
    if not responses or (not stage.kept and {line["reason"] for line in stage.rejected} <= UNANSWERED):
        raise RebaseError(unusable)
    outcomes = {line["row_id"]: line for line in [*stage.kept, *stage.rejected]}
    lines = [
        row | outcomes[row["row_id"]] | _exchange(transformer, row, responses.get(row["row_id"])) for row in chosen
    ]
    summary = summarize_stage(
        "pilot", kept=len(stage.kept), rejected=Counter(line["reason"] for line in stage.rejected),
        seconds=time.monotonic() - stage.started, usage=stage.usage.summary(), nothing_kept=unusable,
    )  # fmt: skip
    return pd.DataFrame(lines, columns=PILOT_COLUMNS), summary


def _exchange(transformer: RowTransformer, row: Line, response: Response | None) -> Line:
    """The prompt, as JSON messages, and the response with its cost; empty if no request was sent."""
    request = transformer.request(row)
    turns = [{"role": "system", "content": request.system}, *map(vars, request.messages)] if request else None
    return {
        "prompt": json.dumps(turns, ensure_ascii=False) if turns else None,
        "response": response.text if response else None,
        **{name: getattr(response, name, None) for name in ("input_tokens", "output_tokens", "dollars")},
    }
