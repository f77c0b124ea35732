import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.errors import RebaseError
from rebase.parameters import ContaminationParameters, DistilParameters
from rebase.pipelines.distil.nodes import distil_inputs
from rebase.records import DISTILLED_COLUMNS, REJECTED_COLUMNS
from rebase.tasks.evaluation_items import make_unlabeled_inputs
from rebase.tasks.source_rows import SourceRows
from rebase.teacher.budget import Price
from tests.scripted import Scripted, cached
from tests.shipped import shipped_prompt, shipped_task
from tests.teacher.server import Answer, serving
from tests.teacher.teachers import hosted

PROMPT = shipped_prompt("distil")
SAMPLING = {"temperature": 0.7, "max_tokens": 100}
CONTAMINATION = ContaminationParameters(ngram=13)
NO_EXAMPLES = pd.DataFrame()
NO_EVALUATION = pd.DataFrame(columns=["item_id", "fields", "query", "references"])


READING, TOPIC, SUMS, SUMMARIES = map(shipped_task, ("reading_qa", "news_topic", "word_problems", "summaries"))


def inputs(task, texts):
    (field,) = task.query_fields
    column = task.evaluation.fields[field]
    return make_unlabeled_inputs(
        task, SourceRows([{column: text} for text in texts], "a/own.jsonl", {"dataset": "own.jsonl"})
    )


def distil(task, texts, say, evaluation_items=NO_EVALUATION, concurrency=16, **given):
    teacher = Scripted(say, concurrency)
    parameters = DistilParameters.model_validate(
        {"style": "direct", "samples": 1, "rounds": 3, "max_inputs": None} | {"sampling": SAMPLING} | given
    )
    unlabeled = texts if isinstance(texts, pd.DataFrame) else inputs(task, texts)
    return (
        *distil_inputs(
            task, unlabeled, NO_EXAMPLES, evaluation_items, cached(teacher), PROMPT, parameters, CONTAMINATION
        ),
        teacher,
    )


NEWS = [f"The rovers won match {n} of the season at home." for n in range(6)]
HENS = [f"Hen {n} lays 3 eggs and then 3 more. How many eggs are that?" for n in range(6)]
SPORT = '{"answer": "sport"}'


def texts_of(rationale, answer):
    return json.dumps({"rationale": rationale, "answer": answer})


def test_inputs_are_labeled_in_the_form_that_train_takes():
    examples, rejected, summary, teacher = distil(TOPIC, NEWS, lambda _: SPORT)
    assert list(examples) == DISTILLED_COLUMNS
    assert list(rejected) == REJECTED_COLUMNS
    assert list(examples["query"]) == [f"News item: {text}" for text in NEWS]
    assert set(examples["answer"]) == {"sport"}
    assert examples["rationale"].isna().all()
    assert list(examples["example_id"]) == [f"own.jsonl/{n}" for n in range(6)]
    assert set(examples["dataset"]) == {"own.jsonl"}
    assert (summary["in"], summary["kept"], summary["rejected"], summary["style"]) == (6, 6, {}, "direct")
    assert summary["labels"]["largest_share"] == 1
    # The task's examples come first, answered; then the input.
    assert len(teacher.requests[0].messages) == 7
    assert teacher.requests[0].messages[-1].content == f"News item: {NEWS[0]}"


def test_examples_of_rebase_will_do_and_keep_their_source():
    own_inputs = inputs(TOPIC, NEWS[:2]).assign(dataset="press", license="cc0-1.0", rank=[4, 7], answer="travel")
    examples, _, _, _ = distil(TOPIC, own_inputs, lambda _: SPORT)
    assert list(examples["rank"]) == [4, 7]
    assert list(examples["license"]) == ["cc0-1.0"] * 2
    assert list(examples["answer"]) == ["sport"] * 2


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ('{"answer": "gardening"}', "unknown_label"),
        ("sport", "invalid_response"),
        (("{", "length"), "response_cut_off"),
        (("No.", "refusal"), "teacher_refused"),
        (ConnectionError("no line"), "teacher_failed"),
    ],
)
def test_bad_labels_are_rejected_with_their_reason(response, reason):
    _, rejected, summary, _ = distil(TOPIC, NEWS[:2], lambda request: response if "match 0" in str(request) else SPORT)
    assert list(rejected["reason"]) == [reason]
    assert rejected.iloc[0]["row_id"] == "own.jsonl/0"
    assert summary["rejected"] == {reason: 1}


def test_evaluation_items_and_repeated_and_empty_inputs_are_not_requested():
    evaluation_items = pd.DataFrame(
        [
            {
                "item_id": "1",
                "fields": json.dumps({"text": NEWS[0]}),
                "query": f"News item: {NEWS[0]}",
                "references": "[]",
            }
        ]
    )
    texts = [*NEWS[:2], NEWS[1].upper(), " "]
    examples, rejected, _, teacher = distil(TOPIC, texts, lambda _: SPORT, evaluation_items)
    assert list(rejected["reason"]) == ["contamination_exact", "duplicate", "empty"]
    assert len(examples) == len(teacher.requests) == 1


def test_inputs_of_signs_are_no_duplicates():
    dyck = shipped_task("bbh_dyck_languages")
    examples, rejected, _, _ = distil(dyck, ["[ { (", "< ( {", "[{("], lambda _: '{"answer": ") }"}')
    assert list(examples["query"]) == ["[ { (", "< ( {"]
    assert list(rejected["reason"]) == ["duplicate"]


def test_max_inputs_are_taken_evenly():
    examples, rejected, summary, _ = distil(TOPIC, NEWS, lambda _: SPORT, max_inputs=3)
    assert list(examples["row_index"]) == [0, 2, 4]
    assert rejected.empty
    assert (summary["in"], summary["rejected"]) == (6, {"over_limit": 3})


def test_the_majority_of_samples_decides():
    responses = iter([texts_of("3 + 3 = 6.", 6), texts_of("3 * 3 = 9.", 9), texts_of("He has 3 + 3 = 6 eggs.", 6)])
    examples, _, summary, teacher = distil(SUMS, HENS[:1], lambda _: next(responses), style="cot", samples=3)
    (line,) = examples.to_dict("records")
    assert (line["answer"], line["rationale"], line["agreement"]) == ("6", "3 + 3 = 6.", pytest.approx(2 / 3))
    assert line["output_tokens"] == 9, "of all three"
    assert line["response_key"] == teacher.requests[0].key("scripted", "test"), "the one that was kept"
    assert summary["usage"]["responses"] == len({request.sample for request in teacher.requests}) == 3
    with pytest.raises(RebaseError, match="no_majority"):
        distil(SUMS, HENS[:1], lambda request: f'{{"answer": {request.sample}}}', samples=3)


def test_nothing_usable_says_what_and_what_to_do():
    with pytest.raises(RebaseError, match=r"(?s)nothing usable for task 'news_topic'.*unknown_label 2.*distil\.yml"):
        distil(TOPIC, NEWS[:2], lambda _: '{"answer": "x"}')
    with pytest.raises(RebaseError, match=r"(?s)answered none of 2 requests.*no line"):
        distil(TOPIC, NEWS[:2], lambda _: ConnectionError("no line"))


def test_a_budget_that_others_have_used_up_is_named():
    teacher = cached(Scripted(lambda _: SPORT), max_requests=1)
    teacher.budget.requests = 1
    parameters = DistilParameters(style="direct", samples=1, rounds=3, max_inputs=None, sampling=SAMPLING)
    with pytest.raises(RebaseError, match=r"distil: .*left no request.*teacher\.max_requests 1"):
        distil_inputs(
            TOPIC, inputs(TOPIC, NEWS), NO_EXAMPLES, NO_EVALUATION, teacher, PROMPT, parameters, CONTAMINATION
        )


RESPONSES = st.sampled_from([SPORT, '{"answer": "travel"}', "x", ("{", "length"), ConnectionError("no line")])


@given(st.lists(RESPONSES, min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 9), st.data())
def test_every_input_is_accounted_for(script, samples, most, data):
    places = data.draw(st.lists(st.integers(0, len(script) - 1), min_size=1, max_size=10))
    texts = [f"The rovers won match {place} of the season at home." for place in places]

    def say(request):
        return script[int(request.messages[-1].content.split("match ")[1].split()[0])]

    try:
        examples, rejected, summary, _ = distil(TOPIC, texts, say, samples=samples, max_inputs=most)
    except RebaseError:
        return
    assert summary["in"] == len(texts) == summary["kept"] + sum(summary["rejected"].values())
    over = summary["rejected"].pop("over_limit", 0)
    assert over == max(0, len(texts) - most)
    assert summary["rejected"] == rejected["reason"].value_counts().to_dict()
    assert summary["kept"] == len(examples) == examples["query"].nunique()


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_a_teacher_behind_an_api_labels_by_direct_and_by_reasoning(tmp_path, kind):
    """The labels are bought once: a second student costs nothing."""
    mnli = shipped_task("mnli")
    boats = [f"{n} boats lie in the harbour." for n in range(5)]
    fields = [{"premise": text, "hypothesis": f"It is wrong that {text}"} for text in boats]
    unlabeled = make_unlabeled_inputs(mnli, SourceRows(fields, "own.jsonl", {"dataset": "own.jsonl"}))
    price = Price(input=1.0, output=5.0)

    def answer(prompt):
        is_even = int(prompt.split()[1]) % 2 == 0
        return Answer(json.dumps({"answer": "entailment" if is_even else "neutral"}))

    def reason(prompt):
        return Answer(texts_of("Boats lie there, so one does.", "entailment"))

    def label(provider, style):
        parameters = DistilParameters.model_validate(
            {"style": style, "samples": 1, "rounds": 2, "max_inputs": None} | {"sampling": SAMPLING}
        )
        teacher = cached(hosted(kind, provider.address), tmp_path / "responses.sqlite", price)
        return distil_inputs(mnli, unlabeled, NO_EXAMPLES, NO_EVALUATION, teacher, PROMPT, parameters, CONTAMINATION)

    with serving(default=answer) as provider:
        direct, _, summary = label(provider, "direct")
        assert list(direct["answer"]) == ["entailment", "neutral"] * 2 + ["entailment"]
        assert summary["usage"]["responses"] == len(provider.billed()) == 5
        assert direct["dollars"].sum() == pytest.approx(summary["usage"]["dollars"])
        again, _, free = label(provider, "direct")
        assert again.equals(direct)
        assert (len(provider.billed()), free["usage"]["dollars"]) == (5, 0)
    with serving(default=reason) as provider:
        reasoned, _, _ = label(provider, "cot")
        assert set(reasoned["rationale"]) == {"Boats lie there, so one does."}
        assert len(provider.billed()) == 5


def test_without_inputs_those_of_the_examples_are_labeled():
    teacher, parameters = (
        cached(Scripted(lambda _: SPORT)),
        DistilParameters(style="direct", samples=1, rounds=3, max_inputs=None, sampling=SAMPLING),
    )
    examples = inputs(TOPIC, NEWS).assign(answer="business")
    labeled, _, _ = distil_inputs(
        TOPIC, NO_EXAMPLES, examples, NO_EVALUATION, teacher, PROMPT, parameters, CONTAMINATION
    )
    assert set(labeled["answer"]) == {"sport"}
    with pytest.raises(RebaseError, match=r"no inputs of task 'news_topic'.*Run transform.*inputs_source"):
        distil_inputs(TOPIC, NO_EXAMPLES, NO_EXAMPLES, NO_EVALUATION, teacher, PROMPT, parameters, CONTAMINATION)
