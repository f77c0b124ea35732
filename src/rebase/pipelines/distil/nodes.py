"""Distil: the task's own inputs, labeled by the teacher (arXiv 2410.18588; docs/method.md section 9)."""

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import pandas as pd

from rebase.datastore.sampling import systematic_positions
from rebase.errors import RebaseError
from rebase.generation.filters.base import Rejection
from rebase.generation.filters.contamination import ContaminationFilter
from rebase.generation.generate import ExampleStage, GenerationResult, read_response, rejected_line, verify
from rebase.generation.prompts.parsing import Example, read_check, read_denser, read_rationale
from rebase.generation.prompts.requests import answer_request, densify_request, label_requests
from rebase.generation.prompts.templates import DistilPrompt
from rebase.generation.self_consistency import sample_answers, vote
from rebase.generation.verification import ProtectedTexts
from rebase.parameters import ContaminationParameters, DistilParameters
from rebase.records import DISTILLED_COLUMNS, Task
from rebase.teacher.cached import CachedSession, CachedTeacher
from rebase.teacher.protocol import Failure, Response
from rebase.text import ngrams, normalize, tokens

#: A draft that shares this many consecutive words with the prompt repeats it.
_REPEATED_WORDS = 8

Line = dict[str, Any]


def distil_inputs(
    task: Task,
    unlabeled_inputs: pd.DataFrame,
    examples: pd.DataFrame,
    evaluation_items: pd.DataFrame,
    teacher: CachedTeacher,
    distil_prompt: DistilPrompt,
    parameters: DistilParameters,
    contamination: ContaminationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, Line]:
    """Label inputs of the task by the teacher, in the style that ``parameters`` name.

    ``unlabeled_inputs`` has ``row_id`` and ``fields`` (JSON), and its provenance if there is one. If it is empty, the
    inputs of ``examples`` are labeled, and their answers are ignored. Inputs that contain a part of the evaluation set
    and duplicates are rejected before any request; labels must pass the checks that all examples pass.

    Returns the labeled examples in the form of ``reasoned_examples``; the rejected inputs with reasons; the summary.
    Raises RebaseError if there are no inputs, the style does not suit the task, no label is left, or the teacher
    answers no request.
    """
    _check_style(task, parameters)
    inputs = examples if unlabeled_inputs.empty else unlabeled_inputs
    if inputs.empty:
        raise RebaseError(
            f"distil: there are no inputs of task {task.name!r}. Run transform first, or name a file or a hub id: "
            "--params=inputs_source=FILE."
        )
    stage = ExampleStage("distil", task, teacher, distil_prompt)
    selected = inputs.iloc[systematic_positions(len(inputs), parameters.max_inputs or len(inputs))].to_dict("records")
    contaminated = ContaminationFilter.of(task, evaluation_items, contamination.ngram)
    clean, stage.rejected = _filter_inputs(task, selected, contaminated)
    protected = ProtectedTexts(task, evaluation_items["query"], contamination.ngram)
    request_label = densify if parameters.style == "chain_of_density" else label

    async def generate(session: CachedSession, item: Line) -> GenerationResult:
        outcome, responses, details = await request_label(
            session, task, json.loads(item["fields"]), distil_prompt, parameters
        )
        return GenerationResult(item, _with_costs(responses), verify(task, outcome, protected), details)

    concurrency = max(1, teacher.concurrency // parameters.samples)
    stage.generate(clean, generate, max(1, len(clean)), lambda *_: concurrency)
    advice = f"Check the inputs and {distil_prompt.path}, or use a stronger teacher."
    not_listed = {"over_limit": len(inputs) - len(selected)}
    return stage.conclude(advice, DISTILLED_COLUMNS, not_listed, style=parameters.style)


def _check_style(task: Task, parameters: DistilParameters) -> None:
    """Raise RebaseError if the style, or the number of samples, cannot work for the task."""
    if parameters.style == "cot" and not task.cot:
        raise RebaseError(f"distil.style: cot needs examples with a rationale. Set `cot: true` in task {task.name!r}.")
    if parameters.style == "chain_of_density" and task.answer.type != "text":
        raise RebaseError(f"distil.style: chain_of_density is for texts; answers of {task.name!r} are of another type.")
    is_free = task.answer.type in ("text", "code")
    if parameters.samples > 1 and (is_free or parameters.style == "chain_of_density"):
        raise RebaseError("distil.samples: free texts reach no majority. Set it to 1.")


def _filter_inputs(task: Task, inputs: list[Line], contaminated: ContaminationFilter) -> tuple[list[Line], list[Line]]:
    """The inputs to be labeled, and lines of the rejected ones: contaminated, or duplicates."""
    clean: dict[str, Line] = {}
    rejected: list[Line] = []
    for item in inputs:
        fields = json.loads(item["fields"])
        query = normalize(task.render_query(fields))
        if rejection := Rejection("duplicate") if query in clean else contaminated.reject(fields):
            rejected.append(rejected_line(item, rejection))
        else:
            clean[query] = item
    return list(clean.values()), rejected


#: A label or why there is none, the responses to its requests, and further columns of the example.
_Labeled = tuple[Example | Rejection, list[Response | Failure], Line]


async def label(
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


async def densify(
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


def _with_costs(responses: Sequence[Response | Failure]) -> Response | Failure:
    """The last response with the costs of all of them; a failure if there is no response."""
    received = [response for response in responses if isinstance(response, Response)]
    return reduce(lambda earlier, later: later.with_cost_of(earlier), received) if received else responses[0]
