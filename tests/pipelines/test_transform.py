import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kedro.framework.hooks.manager import _create_hook_manager, _register_hooks
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.pandas import ParquetDataset

from rebase.errors import RebaseError, StageError
from rebase.generation.prompts.templates import SolvePrompt
from rebase.hooks import RunReporter
from rebase.parameters import ContaminationParameters, TransformParameters
from rebase.pipelines.transform import create_pipeline
from rebase.pipelines.transform.nodes import transform_rows
from rebase.records import EXAMPLE_COLUMNS, REJECTED_COLUMNS
from rebase.teacher.budget import Price
from rebase.teacher.local import LocalTeacher
from tests.scripted import Scripted, cached
from tests.shipped import shipped_prompt, shipped_task
from tests.tiny import make_student

PROMPT = shipped_prompt("transform")
CONTAMINATION = ContaminationParameters(ngram=13)
NO_EVALUATION = pd.DataFrame({"query": []})


READING, TOPIC, SUMS = shipped_task("reading_qa"), shipped_task("news_topic"), shipped_task("word_problems")
PASSAGES = [
    f"The bell of tower number {n} was cast in 16{n:02d} by a smith. It hangs in the north room." for n in range(12)
]


def parameters(max_examples=100, guided=False, max_tokens=200, consistency_filter=False, patience=20, mode="rewrite"):
    sampling = {"temperature": 0.7, "max_tokens": max_tokens}
    return TransformParameters.model_validate(
        {
            "mode": mode,
            "max_examples": max_examples,
            "max_row_tokens": 100,
            "guided": guided,
            "patience": patience,
            "consistency_filter": consistency_filter,
            "sampling": sampling,
        }
    )


def transform(task, rows, evaluation, teacher, prompt, given):
    return transform_rows(task, rows, evaluation, teacher, prompt, given, CONTAMINATION)


def retrieved(cells=None, passages=None, query_column=None, dataset="bells"):
    cells = cells or [{"text": passage} for passage in passages]
    return pd.DataFrame(
        {
            "rank": range(1, len(cells) + 1),
            "row_id": [f"{dataset}/{n}" for n in range(len(cells))],
            "dataset": dataset,
            "config": "default",
            "revision": "r1",
            "row_index": range(len(cells)),
            "license": "cc0-1.0",
            "score": 0.5,
            "score_dataset": 0.5,
            "score_query": 0.5,
            "score_answer": 0.5,
            "row": [json.dumps(cell) for cell in cells],
            "passage": passages if passages else None,
            "query_column": query_column,
            "answer_column": None,
        }
    )


def asks_for_the_year(request):
    """A good response about the passage in the request's last turn."""
    context = json.loads(request.messages[-1].content.split("\n")[1])["context"]
    year = context.split("cast in ")[1].split()[0]
    return json.dumps({"example": {"question": "When was the bell of this tower cast?", "answer": year}})


def test_good_responses_become_examples_with_their_provenance():
    teacher = Scripted(asks_for_the_year)
    examples, rejected, summary = transform(
        READING, retrieved(passages=PASSAGES[:3]), NO_EVALUATION, cached(teacher), PROMPT, parameters()
    )
    assert list(examples) == EXAMPLE_COLUMNS
    assert list(rejected) == REJECTED_COLUMNS
    assert list(examples["answer"]) == ["1600", "1601", "1602"]
    first = examples.iloc[0]
    assert first["query"] == READING.render_query(json.loads(first["fields"]))
    assert json.loads(first["fields"])["context"] == PASSAGES[0]
    assert (first["row_id"], first["example_id"], first["license"], first["revision"]) == (
        "bells/0",
        "bells/0",
        "cc0-1.0",
        "r1",
    )
    assert first["teacher"] == "scripted/test"
    assert first["response_key"] == teacher.requests[0].key("scripted", "test")
    assert (summary["in"], summary["kept"], summary["rejected"]) == (3, 3, {})


def test_it_stops_when_there_are_enough():
    teacher = Scripted(asks_for_the_year)
    examples, rejected, summary = transform(
        READING, retrieved(passages=PASSAGES), NO_EVALUATION, cached(teacher), PROMPT, parameters(max_examples=4)
    )
    assert len(examples) == len(teacher.requests) == 4
    assert list(rejected["reason"]) == ["not_needed"] * 8
    assert summary["rejected"] == {"not_needed": 8}


def test_the_rows_come_in_the_order_in_which_they_were_retrieved():
    rows = retrieved(passages=PASSAGES[:4]).sample(frac=1, random_state=1)
    examples, _, _ = transform(READING, rows, NO_EVALUATION, cached(Scripted(asks_for_the_year)), PROMPT, parameters(2))
    assert list(examples["row_id"]) == list(rows["row_id"][:2])


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ('{"example": null}', "unfit_row"),
        ("well, here it is", "invalid_response"),
        ('{"example": {"question": "Who?"}}', "invalid_response"),
        (('{"example": {"quest', "length"), "response_cut_off"),
        (("I would rather not.", "refusal"), "teacher_refused"),
        (ConnectionError("no line"), "teacher_failed"),
        ('{"example": {"question": "Who cast the bell?", "answer": "a baker"}}', "answer_not_in_passage"),
        ('{"example": {"question": "", "answer": "a smith"}}', "empty"),
    ],
)
def test_bad_responses_are_rejected_with_their_reason(response, reason):
    calls = iter(range(9))
    teacher = Scripted(lambda request: response if next(calls) == 0 else asks_for_the_year(request))
    examples, rejected, _ = transform(
        READING, retrieved(passages=PASSAGES[:2]), NO_EVALUATION, cached(teacher), PROMPT, parameters()
    )
    assert len(examples) == 1
    assert list(rejected["reason"]) == [reason]
    assert rejected.iloc[0]["row_id"] == "bells/0"
    assert rejected.iloc[0]["response_key"]


def test_evaluation_items_are_rejected():
    query = READING.render_query({"context": PASSAGES[0], "question": "When was the bell of this tower cast?"})
    _, rejected, _ = transform(
        READING,
        retrieved(passages=PASSAGES[:2]),
        pd.DataFrame({"query": [query]}),
        cached(Scripted(asks_for_the_year)),
        PROMPT,
        parameters(),
    )
    assert list(rejected["reason"]) == ["equals_evaluation_item"]


def test_nothing_usable_says_what_and_what_to_do():
    answers = iter(["a baker", None, "a cook"])

    def say(_):
        answer = next(answers)
        return json.dumps({"example": answer and {"question": "Who cast the bell?", "answer": answer}})

    words = (
        r"(?s)nothing usable for task 'reading_qa': answer_not_in_passage 2, unfit_row 1\.\n"
        r"For example bells/0: answer_not_in_passage a baker, in the response '.*Who cast.*'\n.*top_n"
    )
    with pytest.raises(StageError, match=words) as raised:
        transform(READING, retrieved(passages=PASSAGES[:3]), NO_EVALUATION, cached(Scripted(say)), PROMPT, parameters())
    assert list(raised.value.rejected["row_id"]) == ["bells/0", "bells/1", "bells/2"]


def test_a_teacher_out_of_order_is_quoted():
    teacher = Scripted(lambda _: ConnectionError("the quota is used up"))
    rows = retrieved(passages=[f"{passage} Again {n}." for n in range(9) for passage in PASSAGES])
    with pytest.raises(RebaseError, match=r"(?s)answered none of \d+ requests.*the quota is used up.*credentials"):
        transform(READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters())
    assert len(teacher.requests) < 20 + teacher.concurrency


class Hosted(Scripted):
    """Each response costs money."""

    is_hosted = True


def fail(folder, rows, teacher, given):
    """Run the node as Kedro does, with the project's hooks: its error, and the rejected rows on disk."""
    hooks = _create_hook_manager()
    _register_hooks(hooks, (RunReporter(),))
    tables = {
        name: ParquetDataset(filepath=str(folder / f"{name}.parquet")) for name in ("examples", "examples_rejected")
    }
    inputs = {
        "task": READING, "retrieved": rows, "evaluation_items": NO_EVALUATION, "transform_prompt": PROMPT,
        "params:transform": given, "params:contamination": CONTAMINATION,
    }  # fmt: skip
    catalog = DataCatalog(
        {name: MemoryDataset(value) for name, value in inputs.items()}
        | {"teacher": MemoryDataset(teacher, copy_mode="assign")}
        | tables
    )
    pipeline = create_pipeline(with_mapped=False).from_inputs("retrieved")
    with pytest.raises(StageError) as raised:
        SequentialRunner().run(pipeline, catalog, hook_manager=hooks)
    assert not tables["examples"].exists(), "an empty table would replace that of an earlier run"
    return str(raised.value), tables["examples_rejected"].load()


@pytest.mark.parametrize(("kind", "most"), [(Hosted, 21), (Scripted, 20 + 64)])
def test_a_run_stops_where_nothing_is_accepted_and_all_rows_are_in_the_rejected_table(tmp_path, kind, most):
    rows = retrieved(passages=[f"{passage} Again {n}." for n in range(18) for passage in PASSAGES])
    teacher = kind(lambda _: '{"example": null}', concurrency=64)
    message, rejected = fail(tmp_path, rows, cached(teacher), parameters())
    sent = len(teacher.requests)
    assert 20 <= sent < most
    assert f"nothing usable for task 'reading_qa': unfit_row {sent}." in message
    assert f"The other {len(rows) - sent} rows were not sent" in message
    assert list(rejected["row_id"]) == list(rows["row_id"])
    assert rejected["reason"].value_counts().to_dict() == {"unfit_row": sent, "not_requested": len(rows) - sent}


def test_a_teacher_that_stops_the_run_leaves_the_rows_that_it_rejected(tmp_path):
    def say(request):
        if len(teacher.requests) > 3:
            raise RebaseError("the key is wrong")
        return '{"example": null}'

    teacher = Scripted(say, concurrency=1)
    message, rejected = fail(tmp_path, retrieved(passages=PASSAGES), cached(teacher), parameters())
    assert message == "the key is wrong"
    assert list(rejected["row_id"]) == ["bells/0", "bells/1", "bells/2"]


def test_one_example_is_enough_to_continue():
    calls = iter(range(200))
    rows = retrieved(passages=[f"{passage} Again {n}." for n in range(9) for passage in PASSAGES])
    teacher = Hosted(lambda request: asks_for_the_year(request) if next(calls) == 19 else "x", concurrency=64)
    examples, _, summary = transform(READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters())
    assert (len(examples), summary["rejected"]) == (1, {"invalid_response": len(rows) - 1})
    with pytest.raises(StageError):
        transform(READING, rows, NO_EVALUATION, cached(Hosted(lambda _: "x")), PROMPT, parameters(patience=19))
    teacher = Hosted(lambda _: "x")
    with pytest.raises(StageError):
        transform(READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters(patience=None))
    assert len(teacher.requests) == len(rows)


def test_rows_that_are_not_sent_do_not_count_as_rejected_by_the_teacher():
    rows = retrieved(passages=[*["Nothing here."] * 30, PASSAGES[0]])
    teacher = Scripted(lambda _: '{"question": "In what year was the bell in this tower cast?"}')
    examples, _, _ = transform(READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters(guided=True))
    assert len(examples) == len(teacher.requests) == 1


def test_rows_without_a_cue_are_rejected_to_the_last():
    rows = retrieved(passages=[PASSAGES[0], "Nothing here.", "Nor here, alas."])
    teacher = Scripted(lambda _: '{"question": "In what year was the bell in this tower cast?"}')
    _, rejected, _ = transform(READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters(guided=True))
    assert list(rejected["reason"]) == ["no_cue"] * 2


RESPONSES = st.sampled_from(
    [
        "good",
        '{"example": null}',
        "x",
        ("{", "length"),
        ConnectionError("no line"),
        '{"example": {"question": "Who?", "answer": "y"}}',
    ]
)


@given(st.lists(RESPONSES, min_size=1, max_size=12), st.integers(1, 6))
def test_every_row_is_accounted_for(script, wanted):
    responses = iter(script)

    def say(request):
        one = next(responses)
        return asks_for_the_year(request) if one == "good" else one

    rows = retrieved(passages=PASSAGES[: len(script)])
    if "good" not in script:
        with pytest.raises(RebaseError):
            transform(READING, rows, NO_EVALUATION, cached(Scripted(say)), PROMPT, parameters(wanted))
        return
    examples, rejected, summary = transform(
        READING, rows, NO_EVALUATION, cached(Scripted(say)), PROMPT, parameters(wanted)
    )
    assert len(examples) == min(wanted, script.count("good")) == summary["kept"]
    assert sorted([*examples["row_id"], *rejected["row_id"]]) == sorted(rows["row_id"])
    assert summary["in"] == summary["kept"] + sum(summary["rejected"].values()) == len(rows)
    assert summary["rejected"] == rejected["reason"].value_counts().to_dict()


def test_no_more_rows_are_asked_about_than_are_needed():
    rows = retrieved(passages=[f"{passage} Again {n}." for n in range(20) for passage in PASSAGES])
    teacher = Scripted(asks_for_the_year, concurrency=64)
    examples, _, _ = transform(READING, rows, NO_EVALUATION, cached(teacher), PROMPT, parameters(7))
    assert len(examples) == len(teacher.requests) == 7


def test_a_budget_that_is_reached_keeps_what_there_is():
    rows = retrieved(passages=PASSAGES)
    teacher = cached(Scripted(asks_for_the_year), max_requests=5)
    examples, _, summary = transform(READING, rows, NO_EVALUATION, teacher, PROMPT, parameters())
    assert len(examples) == 5
    assert summary["rejected"] == {"budget_reached": 7}
    assert summary["usage"]["over_budget"] == 7
    larger = cached(Scripted(asks_for_the_year), teacher.path, max_requests=8)
    examples, _, summary = transform(READING, rows, NO_EVALUATION, larger, PROMPT, parameters())
    assert (len(examples), summary["usage"]["cached"], summary["usage"]["responses"]) == (8, 5, 3)


def test_a_budget_that_stops_says_so():
    teacher = cached(Scripted(asks_for_the_year), max_requests=5, on_budget="stop")
    with pytest.raises(RebaseError, match=r"max_requests 5.*5 responses so far.*All of them are cached"):
        transform(READING, retrieved(passages=PASSAGES), NO_EVALUATION, teacher, PROMPT, parameters())


def test_examples_tell_what_they_cost_and_what_was_cut():
    price = Price(input=1.0, output=2.0)
    cells = [{"story": "Six pens lie here.", "note": "word " * 300}]
    response = json.dumps({"example": {"question": "Anna has 3 pens and gets 3 more. How many?", "answer": 6}})
    examples, _, summary = transform(
        SUMS,
        retrieved(cells, query_column="story"),
        NO_EVALUATION,
        cached(Scripted(lambda _: response), price=price),
        PROMPT,
        parameters(),
    )
    assert json.loads(examples.iloc[0]["cut"]) == ["note"]
    assert examples.iloc[0]["dollars"] == pytest.approx((7 * 1.0 + 3 * 2.0) / 1e6)
    assert summary["usage"]["dollars"] == pytest.approx(13e-6)


def test_mapped_examples_count_for_duplicates_and_for_the_balance_of_labels(caplog):
    def write(texts, label):
        return lambda _: json.dumps({"example": {"text": next(texts), "answer": label}})

    rows = retrieved([{"lead": "The rovers."}, {"lead": "The others."}])
    mapped, *_ = transform(
        TOPIC, rows, NO_EVALUATION, cached(Scripted(write(iter("ab"), "sport"))), PROMPT, parameters()
    )
    caplog.clear()
    other = rows.assign(dataset="press", row_id=["press/0", "press/1"])
    examples, rejected, summary = transform_rows(
        TOPIC, other, NO_EVALUATION, cached(Scripted(write(iter("Ac"), "food"))), PROMPT, parameters(mode="both"),
        CONTAMINATION, mapped,
    )  # fmt: skip
    assert list(examples["query"]) == ["News item: a", "News item: b", "News item: c"]
    assert list(rejected["reason"]) == ["duplicate"]
    assert (summary["in"], summary["kept"]) == (2, 1)
    assert {label for label, count in summary["labels"]["counts"].items() if count} == {"sport", "food"}
    assert "a student may learn no other" not in caplog.text
    *_, summary = transform_rows(
        TOPIC, other, NO_EVALUATION, cached(Scripted(str)), PROMPT, parameters(mode="map"), CONTAMINATION, mapped
    )
    assert (summary["kept"], summary["labels"]["counts"]["sport"]) == (0, 2)


def test_a_real_model_gives_responses_in_shape(tmp_path):
    make_student(tmp_path)
    teacher = LocalTeacher(str(tmp_path / "tiny"), None, tmp_path)
    # The tiny model holds 1024 tokens of one byte: a short prompt.
    solve = SolvePrompt(version=1, system="Label it.", user="{query}\n{data}")
    prompt = PROMPT.model_copy(update={"solve": solve})
    task = TOPIC.model_copy(update={"examples": TOPIC.examples[:1]})
    cells = [{"lead": f"The rovers won match {n} at home.", "all": " ".join(TOPIC.answer.labels)} for n in range(5)]
    examples, _, summary = transform(
        task, retrieved(cells, query_column="lead"), NO_EVALUATION, cached(teacher), prompt, parameters(guided=True)
    )
    assert len(examples) == 5
    assert set(examples["answer"]) <= set(TOPIC.answer.labels)
    assert sum(summary["labels"]["counts"].values()) == 5
