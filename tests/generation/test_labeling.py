"""Labels of the teacher in each style."""

import json
from dataclasses import replace

import pytest

from rebase.errors import RebaseError
from rebase.generation.labeling import with_costs
from rebase.teacher.protocol import Failure, Response
from tests.pipelines.test_distil import HENS, SPORT, SUMMARIES, SUMS, TOPIC, distil, texts_of


def test_chains_of_thought_are_checked_and_kept():
    responses = iter([texts_of("3 + 3 = 6.", 6), texts_of("3 + 3 = 7.", 7), texts_of("That is 6.", 6)])
    examples, rejected, _, teacher = distil(SUMS, HENS[:3], lambda _: next(responses), style="cot")
    assert list(examples["rationale"]) == ["3 + 3 = 6."]
    assert list(rejected["reason"]) == ["wrong_equation", "answer_not_derived"]
    assert json.loads(teacher.requests[0].messages[1].content)["rationale"] == SUMS.examples[0]["rationale"]


def test_a_chain_of_density_keeps_its_last_round_and_records_all():
    def say(request):
        rounds = [turn.content for turn in request.messages if "Round" in turn.content]
        if "missing" not in request.schema["properties"]:
            return '{"answer": "A bridge is shut."}'
        return json.dumps({"missing": f"point {len(rounds)}", "answer": f"Bridge shut, {len(rounds)} more."})

    text = "The bridge over the Alder is shut for good because it is rotten, and nobody pays for a new one."
    examples, _, summary, teacher = distil(SUMMARIES, [text], say, style="chain_of_density")
    (line,) = examples.to_dict("records")
    assert line["answer"] == "Bridge shut, 2 more."
    assert [draft["answer"] for draft in json.loads(line["drafts"])] == [
        "A bridge is shut.", "Bridge shut, 1 more.", "Bridge shut, 2 more.",
    ]  # fmt: skip
    assert "Round 2 of 3" in teacher.requests[1].messages[-1].content
    assert line["input_tokens"] == 21
    assert summary["usage"]["responses"] == 3


def test_a_draft_that_repeats_what_was_asked_for_is_rejected():
    def say(request):
        return json.dumps(dict.fromkeys(request.schema["properties"], request.messages[-1].content))

    with pytest.raises(RebaseError, match="repeats_prompt"):
        distil(SUMMARIES, ["The bridge over the Alder is shut for good."], say, style="chain_of_density")


def test_a_round_that_fails_rejects_the_input():
    def say(request):
        return ("{", "length") if "missing" in request.schema["properties"] else '{"answer": "A bridge is shut."}'

    with pytest.raises(RebaseError, match="response_cut_off"):
        distil(SUMMARIES, ["The bridge over the Alder is shut for good."], say, style="chain_of_density")


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        (TOPIC, {"style": "cot"}, "needs examples with a rationale"),
        (TOPIC, {"style": "chain_of_density"}, "is for texts"),
        (SUMMARIES, {"samples": 3}, "no majority"),
    ],
)
def test_a_style_that_does_not_fit_the_task_is_named(task, given, words):
    with pytest.raises(RebaseError, match=words):
        distil(task, ["Some text that is long enough."], lambda _: SPORT, **given)


def test_an_example_has_the_costs_of_all_responses_to_its_requests():
    first, last = Response("a", "x", "stop", 1, 2, dollars=0.5), Response("b", "y", "stop", 3, 4, dollars=0.25)
    failure = Failure("c", "no route")
    assert with_costs([first, failure, last]) == replace(last, input_tokens=4, output_tokens=6, dollars=0.75)
    assert with_costs([failure]) is failure
