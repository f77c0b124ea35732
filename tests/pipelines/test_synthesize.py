import json
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.parameters import ContaminationParameters, SynthesizeParameters
from rebase.pipelines.report.nodes import measure_diversity
from rebase.pipelines.synthesize.nodes import synthesize_examples
from rebase.records import EXAMPLE_COLUMNS, REJECTED_COLUMNS
from rebase.student.adapters import render_card
from rebase.student.handle import Student
from rebase.teacher.budget import FREE, Price
from tests.scripted import Scripted, cached
from tests.shipped import shipped_prompt, shipped_task
from tests.tiny import train_parameters

PROMPT, TRANSFORM_PROMPT = (shipped_prompt(name) for name in ("synthesize", "transform"))
COLUMNS = ["item_id", "fields", "query", "references"]
CONTAMINATION = ContaminationParameters(ngram=13)
NO_EVALUATION = pd.DataFrame(columns=COLUMNS)


SAMPLING = {"temperature": 0.7, "max_tokens": 100}


READING, TOPIC, SUMS = shipped_task("reading_qa"), shipped_task("news_topic"), shipped_task("word_problems")


def evaluation(task, fields, answers):
    line = {"item_id": "1", "fields": json.dumps(fields), "query": task.render_query(fields)}
    return pd.DataFrame([line | {"references": json.dumps(answers)}])


def summary_of(used, dollars=0.0, consistency_filter=False, repaired=0):
    return {
        "consistency_filter": consistency_filter,
        "usage": {"used": used, "repaired": repaired, "used_dollars": dollars},
    }


def synthesize(
    task,
    say,
    before,
    evaluation_items=NO_EVALUATION,
    price=FREE,
    concurrency=16,
    guided=False,
    **budget,
):
    teacher = Scripted(say, concurrency)
    parameters = SynthesizeParameters.model_validate({"guided": guided, "sampling": SAMPLING})
    made = synthesize_examples(
        task,
        before,
        evaluation_items,
        cached(teacher, price=price, **budget),
        PROMPT,
        TRANSFORM_PROMPT,
        parameters,
        CONTAMINATION,
    )
    return (*made, teacher)


def number_of(request):
    return int(re.search(r"example (\d+)", request.messages[-1].content)[1])


def bell(n):
    return f"The bell of tower number {n} was cast in 16{n:02d} by a smith. It hangs in the north room."


def about_bells(request):
    n = number_of(request)
    fields = {"context": bell(n), "question": "When was the bell of this tower cast?", "answer": f"16{n:02d}"}
    return json.dumps({name: fields[name] for name in request.schema["properties"]})


def about_hens(request):
    return json.dumps({"question": f"There are {number_of(request)} hens. How many hens are there?", "answer": 6.0})


def test_examples_come_from_no_row_and_are_numbered():
    examples, rejected, summary, teacher = synthesize(READING, about_bells, summary_of(4))
    assert list(examples) == EXAMPLE_COLUMNS
    assert list(rejected) == REJECTED_COLUMNS
    assert list(examples["row_id"]) == [f"synthesized-0000{n}" for n in range(1, 5)]
    assert examples[["dataset", "license", "rank", "score"]].isna().all(axis=None)
    # The task's own three examples come first.
    assert [number_of(request) for request in teacher.requests] == [4, 5, 6, 7]
    assert list(examples["answer"]) == ["1604", "1605", "1606", "1607"]
    assert (summary["in"], summary["kept"], summary["rejected"]) == (4, 4, {})


def test_diversity_and_the_model_card_say_that_there_is_no_source(encoder):
    examples, *_ = synthesize(READING, about_bells, summary_of(3))
    measures = measure_diversity(READING, examples, encoder)
    assert (measures["n"], measures["sources"]) == (3, None)
    counts = {"kept": 3, "rejected": {}, "steps": 1, "first_loss": 2.0, "last_loss": 1.0}
    student = Student("some/model", None, Path(), Path())
    real = examples.assign(dataset="own.jsonl", license="mit", teacher="people")
    card = render_card(READING, student, "{question}", pd.concat([examples, real]), train_parameters(), counts)
    assert "| none | none | scripted/test | 3 |" in card
    assert "| own.jsonl | mit | people | 3 |" in card
    assert "retrieval" not in card
    assert "rows of" not in card


def test_the_teacher_is_shown_the_tasks_examples_and_writes_the_passage():
    _, _, _, teacher = synthesize(READING, about_bells, summary_of(1))
    (request,) = teacher.requests
    assert set(request.schema["properties"]) == {"context", "question", "answer"}
    assert json.loads(request.messages[1].content) == READING.examples[0]
    assert READING.instruction in request.system


def test_numbers_are_asked_for_as_numbers():
    examples, _, _, teacher = synthesize(SUMS, about_hens, summary_of(2))
    assert teacher.requests[0].schema["properties"]["answer"] == {"type": "number"}
    assert json.loads(teacher.requests[0].messages[1].content)["answer"] == 18
    assert list(examples["answer"]) == ["6", "6"]


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("well", "invalid_response"),
        ("null", "invalid_response"),
        (("{", "length"), "response_cut_off"),
        (ConnectionError("no line"), "teacher_failed"),
        ({"context": "A smith cast it.", "question": "Who cast it?", "answer": "a baker"}, "answer_not_in_passage"),
        ({"context": "A smith cast it.", "question": "It was a smith.", "answer": "smith"}, "answer_given_away"),
        ({"context": " ", "question": "Who cast it?", "answer": "smith"}, "empty"),
        (READING.examples[0], "copies_prompt_example"),
        (READING.examples[0] | {"question": "When was the lamp changed?", "answer": "1884"}, "copies_prompt_example"),
    ],
)
def test_bad_responses_are_rejected_with_their_reason(response, reason):
    text = json.dumps(response) if isinstance(response, dict) else response
    examples, rejected, _, _ = synthesize(
        READING, lambda request: text if number_of(request) == 4 else about_bells(request), summary_of(2)
    )
    assert len(examples) == 1
    assert list(rejected["reason"]) == [reason]


def test_an_evaluation_passage_is_rejected_even_with_another_question():
    evaluation_items = evaluation(
        READING, {"context": bell(4), "question": "Where does it hang?"}, ["in the north room"]
    )
    examples, rejected, _, _ = synthesize(READING, about_bells, summary_of(2), evaluation_items)
    assert list(rejected["row_id"]) == ["synthesized-00001"]
    assert rejected.iloc[0]["reason"] in {"overlaps_evaluation", "contamination_exact"}
    assert len(examples) == 1


def test_a_guided_teacher_writes_a_passage_and_then_the_question_for_a_span():
    def say(request):
        if "context" in request.schema["properties"]:
            return about_bells(request)
        return '{"question": "In what year was the bell in this tower cast?"}'

    examples, rejected, summary, teacher = synthesize(READING, say, summary_of(5), guided=True)
    requested_fields = sorted(name for request in teacher.requests for name in request.schema["properties"])
    assert requested_fields == ["context"] * 2 + ["question"] * 2
    assert list(examples["answer"]) == ["1604", "1605"]
    assert list(examples["input_tokens"]) == [14, 14], "of both responses"
    assert rejected.empty
    assert summary["usage"]["used"] == 4


def test_a_guided_teachers_passage_without_a_span_is_rejected():
    def say(request):
        return about_bells(request) if number_of(request) > 4 else '{"context": "Nothing here."}'

    with pytest.raises(RebaseError, match="no_cue"):
        synthesize(READING, say, summary_of(2), guided=True)


def test_a_guided_teachers_unreadable_passage_gets_no_question():
    def say(request):
        if "context" not in request.schema["properties"]:
            return '{"question": "In what year was the bell in this tower cast?"}'
        return about_bells(request) if number_of(request) > 4 else ("{", "length")

    examples, rejected, _, teacher = synthesize(READING, say, summary_of(4), guided=True)
    assert (len(examples), list(rejected["reason"])) == (1, ["response_cut_off"])
    assert len(teacher.requests) == 3


def test_the_same_query_twice_is_a_duplicate():
    response = json.dumps({"text": "The rovers won at home on Sunday.", "answer": "sport"})
    examples, rejected, summary, _ = synthesize(TOPIC, lambda _: response, summary_of(3))
    assert len(examples) == 1
    assert list(rejected["reason"]) == ["duplicate"] * 2
    assert summary["labels"]["largest_share"] == 1


def test_the_consistency_filter_applies_if_transform_applied_it():
    def say(request):
        return about_bells(request) if "context" in request.schema["properties"] else '{"answer": "1604"}'

    examples, rejected, summary, _ = synthesize(READING, say, summary_of(5, consistency_filter=True))
    assert list(examples["answer"]) == ["1604"]
    assert list(rejected["reason"]) == ["inconsistent"]
    assert summary["usage"]["used"] == 4, "two questions an example: the fifth would buy half a one"


@given(
    st.lists(st.sampled_from(["good", "bad", "cut", "failed", "invalid"]), min_size=30, max_size=30),
    st.integers(1, 20), st.booleans(), st.integers(1, 20),
)  # fmt: skip
def test_counts_add_up_and_the_budget_is_kept(script, allowed, consistency_filter, ahead):
    responses = {"bad": '{"context": "A", "question": "B?", "answer": "C"}', "cut": ("{", "length"), "invalid": "oh"}
    responses["failed"] = ConnectionError("no line")

    def say(request):
        if "context" not in request.schema["properties"]:
            return json.dumps({"answer": re.search(r"cast in (\d+) by a smith", request.messages[-1].content)[1]})
        kind = script[number_of(request) - 4]
        return about_bells(request) if kind == "good" else responses[kind]

    try:
        examples, rejected, summary, teacher = synthesize(
            READING, say, summary_of(allowed, consistency_filter=consistency_filter), concurrency=ahead
        )
    except RebaseError:
        assert consistency_filter or "good" not in script[:allowed]
        return
    assert len(examples) == summary["kept"]
    assert summary["in"] == summary["kept"] + sum(summary["rejected"].values())
    assert summary["rejected"] == rejected["reason"].value_counts().to_dict()
    assert len({*examples["row_id"], *rejected["row_id"]}) == summary["in"]
    assert summary["usage"]["used"] - summary["usage"]["repaired"] <= allowed
    assert len(teacher.requests) <= allowed + summary["usage"]["failed"]


def test_the_budget_of_the_run_holds_as_well(caplog):
    examples, _, summary, _ = synthesize(READING, about_bells, summary_of(9), max_requests=4)
    assert len(examples) == 4
    assert summary["rejected"] == {"budget_reached": 5}
    assert "(teacher.max_requests 4)" in caplog.text
    assert "used 4 responses, transform 9: its share is smaller" in caplog.text


@pytest.mark.parametrize("budget", [{"max_requests": 9}, {"budget_usd": 1e-6}])
def test_a_budget_that_transform_has_used_up_is_named(budget):
    teacher = cached(Scripted(about_bells), price=Price(input=1, output=1), **budget)
    teacher.budget.requests = 9
    parameters = SynthesizeParameters.model_validate({"guided": False, "sampling": SAMPLING})
    with pytest.raises(RebaseError, match=rf"synthesize: .*left no request.*teacher\.{next(iter(budget))}"):
        synthesize_examples(
            READING, summary_of(9), NO_EVALUATION, teacher, PROMPT, TRANSFORM_PROMPT, parameters, CONTAMINATION
        )  # fmt: skip


def test_nothing_usable_says_what_and_what_to_do():
    with pytest.raises(
        RebaseError, match=r"(?s)nothing usable for task 'reading_qa'.*invalid_response.*synthesize\.yml"
    ):
        synthesize(READING, lambda _: "x", summary_of(3))
    with pytest.raises(RebaseError, match=r"(?s)answered none of 3 requests.*no line.*credentials"):
        synthesize(READING, lambda _: ConnectionError("no line"), summary_of(3))
    with pytest.raises(RebaseError, match="no budget to match"):
        synthesize(READING, about_bells, summary_of(0))
