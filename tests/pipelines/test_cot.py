import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError, StageError
from rebase.parameters import CotParameters
from rebase.pipelines.cot.nodes import reason_examples
from rebase.records import PEOPLE, REJECTED_COLUMNS
from tests.scripted import Scripted, cached
from tests.shipped import shipped_prompt, shipped_task

PROMPT = shipped_prompt("cot")


READING, SUMS, NLI = shipped_task("reading_qa"), shipped_task("word_problems"), shipped_task("mnli")


def parameters(samples=1, on_disagreement="reject"):
    return CotParameters.model_validate(
        {
            "samples": samples,
            "on_disagreement": on_disagreement,
            "max_row_tokens": 100,
            "sampling": {"temperature": 0.7, "max_tokens": 200},
        }
    )


def examples(count=1, answer="6"):
    fields = [{"question": f"Hen {n} lays 3 eggs and then 3 more. How many eggs?"} for n in range(count)]
    return pd.DataFrame(
        {
            "example_id": [f"hens/{n}" for n in range(count)],
            "row_id": [f"hens/{n}" for n in range(count)],
            "dataset": "hens",
            "rank": range(1, count + 1),
            "fields": list(map(json.dumps, fields)),
            "query": [SUMS.render_query(one) for one in fields],
            "answer": answer,
        }
    )


def retrieved(count=1):
    return pd.DataFrame(
        {
            "row_id": [f"hens/{n}" for n in range(count)],
            "row": json.dumps({"working": "3 + 3 = 6"}),
            "query_column": None,
            "answer_column": "working",
        }
    )


def solution(rationale, answer):
    return json.dumps({"rationale": rationale, "answer": answer})


RIGHT, OTHER, FALSE = solution("3 + 3 = 6.", 6), solution("3 * 3 = 9.", 9), solution("3 + 3 = 7, no: 6.", 6)


def run(responses, samples=1, on_disagreement="reject", count=1):
    lines = iter(responses)
    return reason_examples(
        SUMS, examples(count), retrieved(count), cached(Scripted(lambda _: next(lines))), PROMPT,
        "answer", parameters(samples, on_disagreement),
    )  # fmt: skip


def rejected_with(*responses, **settings):
    """Why an example is rejected, beside another that passes."""
    samples = settings.get("samples", 1)
    _, rejected, summary = run([*responses, *[RIGHT] * samples], count=2, **settings)
    assert list(rejected) == REJECTED_COLUMNS
    assert (summary["in"], summary["kept"], sum(summary["rejected"].values())) == (2, 1, 1)
    return rejected.iloc[0]


def test_a_task_without_cot_passes_all_on_and_opens_no_teacher():
    teacher = Scripted(str)
    passed, rejected, summary = reason_examples(
        READING, examples(3), retrieved(3), cached(teacher), PROMPT, "answer", parameters()
    )
    assert teacher.opened == 0
    assert passed.drop(columns=["rationale", "agreement"]).equals(examples(3))
    assert passed[["rationale", "agreement"]].isna().all(axis=None)
    assert len(rejected) == 0
    assert (summary["in"], summary["kept"], summary["rejected"]) == (3, 3, {})


def test_reasoning_that_leads_to_the_answer_is_kept():
    kept, _, summary = run([RIGHT])
    assert (kept.iloc[0]["rationale"], kept.iloc[0]["answer"], kept.iloc[0]["agreement"]) == ("3 + 3 = 6.", "6", 1.0)
    assert summary.pop("usage")["responses"] == 1
    assert summary.pop("seconds") >= 0
    assert summary == {"stage": "cot", "in": 1, "kept": 1, "rejected": {}, "relabeled": 0}


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (OTHER, "another_answer"),
        (FALSE, "wrong_equation"),
        (solution("They have six.", 6), "answer_not_derived"),
        (solution("3 + 3 = 6. So the answer is 5.", 6), "states_another_answer"),
        (solution("", 6), "empty_rationale"),
        (('{"rationale": "3 + 3', "length"), "response_cut_off"),
        (("No.", "refusal"), "teacher_refused"),
        ("six", "invalid_response"),
        (ConnectionError("no line"), "teacher_failed"),
    ],
)
def test_reasoning_that_does_not_is_rejected(response, reason):
    assert rejected_with(response)["reason"] == reason


def test_the_majority_decides():
    kept, _, _ = run([OTHER, RIGHT, RIGHT], samples=3)
    assert (kept.iloc[0]["answer"], kept.iloc[0]["agreement"]) == ("6", pytest.approx(2 / 3))


def test_half_is_no_majority():
    assert rejected_with(RIGHT, OTHER, samples=2)["reason"] == "no_majority"


def test_faulty_samples_count_against_a_majority():
    assert rejected_with(RIGHT, FALSE, FALSE, samples=3)["reason"] == "no_majority"


def test_samples_are_told_apart():
    teacher = Scripted(lambda _: RIGHT)
    reason_examples(SUMS, examples(2), retrieved(2), cached(teacher), PROMPT, "answer", parameters(3))
    assert [request.sample for request in teacher.requests] == [0, 1, 2, 0, 1, 2]
    assert len({request.key("p", "m") for request in teacher.requests}) == 6


def test_another_majority_relabels_if_it_may():
    kept, _, summary = run([OTHER, OTHER, RIGHT], samples=3, on_disagreement="relabel")
    assert (kept.iloc[0]["answer"], kept.iloc[0]["rationale"]) == ("9", "3 * 3 = 9.")
    assert summary["relabeled"] == 1
    assert rejected_with(OTHER, OTHER, RIGHT, samples=3)["detail"] == "9 for 6"


def test_another_answer_passes_the_checks_of_all_answers_and_is_the_teachers():
    fields = [{"premise": "A boat left.", "hypothesis": f"Boat {n} left."} for n in range(3)]
    lines = pd.DataFrame(
        {"example_id": ["a", "b", "c"], "row_id": ["a", "b", "c"], "mapping_id": "m", "teacher": PEOPLE,
         "fields": list(map(json.dumps, fields)), "query": list(map(NLI.render_query, fields)), "answer": "neutral"}
    )  # fmt: skip
    answers = iter(["neutral", "entailment", "maybe"])
    teacher = cached(Scripted(lambda _: solution("So it is.", next(answers))))
    kept, rejected, summary = reason_examples(
        NLI, lines, retrieved(0), teacher, PROMPT, "rationale_then_answer", parameters(on_disagreement="relabel")
    )
    assert list(kept["answer"]) == ["neutral", "entailment"]
    assert list(kept["teacher"]) == [PEOPLE, "scripted/test"]
    assert summary["relabeled"] == 1
    assert rejected[["row_id", "reason", "detail"]].to_dict("records") == [
        {"row_id": "c", "reason": "unknown_label", "detail": "maybe"}
    ]


def test_an_agreeing_answer_keeps_its_spelling():
    kept, _, summary = run([solution("3 + 3 = 6.", 6.0)], on_disagreement="relabel")
    assert (kept.iloc[0]["answer"], summary["relabeled"]) == ("6", 0)


def test_nothing_left_says_what_and_what_to_do():
    with pytest.raises(StageError, match=r"(?s)'word_problems': another_answer 2\..*relabel") as raised:
        run([OTHER, OTHER], count=2)
    assert list(raised.value.rejected["reason"]) == ["another_answer"] * 2


def test_a_teacher_out_of_order_is_quoted():
    with pytest.raises(RebaseError, match=r"(?s)answered none.*the quota is used up.*credentials"):
        run([ConnectionError("the quota is used up")] * 2, count=2)


def test_an_example_whose_source_row_is_gone_is_reasoned_about_without_it():
    teacher = Scripted(lambda _: RIGHT)
    kept, _, _ = reason_examples(SUMS, examples(), retrieved(0), cached(teacher), PROMPT, "answer", parameters())
    assert len(kept) == 1
    assert "3 + 3 = 6" not in teacher.requests[0].messages[-1].content


@given(
    st.lists(st.sampled_from([RIGHT, OTHER, FALSE, "six"]), min_size=3, max_size=3),
    st.sampled_from(["reject", "relabel"]),
)
def test_what_is_kept_has_a_sound_majority(responses, on_disagreement):
    kept, rejected, summary = run([*responses, RIGHT, RIGHT, RIGHT], 3, on_disagreement, count=2)
    agreeing, disagreeing = responses.count(RIGHT) > 1, responses.count(OTHER) > 1
    assert len(kept) == 1 + (agreeing or (disagreeing and on_disagreement == "relabel"))
    assert summary["in"] == 2 == len(kept) + len(rejected)
    assert (kept["agreement"] > 0.5).all()
