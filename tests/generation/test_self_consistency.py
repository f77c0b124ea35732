"""The majority of several samples, and which samples count."""

import asyncio
from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from rebase.generation.prompts.parsing import read_rationale
from rebase.generation.prompts.requests import label_requests
from rebase.generation.self_consistency import AnswerSample, sample_answers, vote
from rebase.parameters import DistilParameters
from rebase.teacher.protocol import Failure, Response
from tests.pipelines.test_distil import PROMPT, SAMPLING, SUMS, texts_of
from tests.scripted import Scripted, cached

RESPONSE = Response("key", "{}", "stop", 1, 1)
SAMPLES = st.builds(
    AnswerSample,
    st.just(RESPONSE),
    st.sampled_from(["", "Short.", "A long way to it."]),
    st.sampled_from(["6", "6.0", "9"]),
    st.sampled_from([None, None, None, "wrong_equation", "answer_not_derived"]),
)


@example([AnswerSample(RESPONSE, "Short.", "6"), AnswerSample(RESPONSE, "", "6.0")])
@given(st.lists(SAMPLES, min_size=1, max_size=7))
def test_an_answer_wins_if_more_than_half_of_all_samples_agree_on_it(samples):
    counting = [sample for sample in samples if sample.fault is None]
    outcome = vote(samples)
    for answers in (["6", "6.0"], ["9"]):
        agreeing = [sample for sample in counting if sample.answer in answers]
        if 2 * len(agreeing) > len(samples):
            assert outcome.answer == agreeing[0].answer
            assert outcome.rationale == min((sample.rationale for sample in agreeing), key=len)
            assert outcome.agreement == len(agreeing) / len(samples)
            return
    faults = Counter(sample.fault for sample in samples)
    assert outcome.reason == "no_majority" if counting else faults[outcome.reason] == max(faults.values())


def test_if_no_request_was_answered_the_provider_s_reason_is_quoted():
    failed = AnswerSample(Failure("key", "no route"), fault="teacher_failed")
    outcome = vote([AnswerSample(RESPONSE, fault="wrong_equation"), failed, failed])
    assert (outcome.reason, outcome.detail) == ("teacher_failed", "no route")


def test_samples_that_cannot_be_read_or_are_wrong_have_a_fault():
    fields = {"question": "Hen 1 lays 3 eggs and then 3 more. How many eggs are that?"}
    says = iter(
        [
            texts_of("3 + 3 = 6. The answer is 6.", "6.0"),
            texts_of("3 + 3 = 7.", 7),
            "six",
            ("{", "length"),
            OSError("no route"),
        ]
    )
    parameters = DistilParameters(style="cot", samples=5, rounds=2, max_inputs=None, sampling=SAMPLING)

    async def sample():
        async with cached(Scripted(lambda _: next(says))).open() as session:
            requests = label_requests(SUMS, fields, PROMPT, parameters)
            return await sample_answers(session, requests, SUMS, fields, read_rationale)

    samples = asyncio.run(sample())
    assert [sample.fault for sample in samples] == [
        None, "wrong_equation", "invalid_response", "response_cut_off", "teacher_failed",
    ]  # fmt: skip
    assert (samples[0].rationale, samples[0].answer) == ("3 + 3 = 6.", "6")
