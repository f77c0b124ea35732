"""Mappings of whole datasets, from the request to the examples."""

import json
import re
from collections import Counter
from itertools import cycle

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebase.errors import RebaseError, StageError
from rebase.pipelines.cot.nodes import reason_examples
from rebase.pipelines.distil.nodes import distil_inputs
from rebase.pipelines.map.nodes import map_datasets
from rebase.pipelines.transform.nodes import transform_rows
from rebase.records import EXAMPLE_COLUMNS, DatasetMapping, Task
from rebase.teacher.budget import Price
from tests.generation.test_mapping import NAMES, PARAMETERS
from tests.pipelines.maps import (
    CONTAMINATION,
    LABELS,
    MAPPING,
    NLI,
    NO_EVALUATION,
    READING,
    RETRIEVE,
    UNLABELED,
    answers_like_people,
    cards_of,
    map_,
    maps_by_columns,
    pairs,
    retrieved_of,
    store,
    unlabeled,
)
from tests.pipelines.test_estimate import COT, COT_PROMPT
from tests.pipelines.test_estimate import LABELS as LABELING
from tests.pipelines.test_transform import PROMPT as TRANSFORM_PROMPT
from tests.pipelines.test_transform import parameters as transform_parameters
from tests.scripted import Scripted, cached
from tests.shipped import shipped_prompt
from tests.teacher.server import Answer, serving
from tests.teacher.teachers import hosted

#: Another boat, so that two datasets share no sentence.
ARKS = "ark on a journey far away, called"


def test_one_request_and_an_audit_turn_a_dataset_into_examples():
    mappings, examples, rejected, summary, teacher = map_({"boats": pairs()}, max_examples=9)
    assert len(teacher.requests) == 1 + PARAMETERS.audit
    assert Counter(examples["answer"]) == dict.fromkeys(LABELS, 3)
    assert all(LABELS[int(query.partition("Case ")[2][0])] == answer
               for query, answer in zip(examples["query"], examples["answer"], strict=True))  # fmt: skip
    assert set(examples["teacher"]) == {"people"}
    assert set(examples["mapping_id"]) == set(mappings["mapping_id"])
    assert set(examples["license"]) == {"mit"}
    assert examples["row_id"].str.startswith("boats/default/train/").all()
    (line,) = mappings.to_dict("records")
    assert (line["state"], line["detail"], line["written_by"]) == ("used", "A pair of sentences.", "the teacher")
    assert (line["rows"], line["used"], line["audited"], line["agreement"]) == (60, 9, 4, 1)
    assert line["low"] > line["baseline"]
    assert line["requests"] == 5
    assert line["dollars"] == pytest.approx(5 * 10 / 1e6)
    assert summary["mappings"] == {"used": 1}
    assert summary["rejected"]["not_needed"] == 60 - 9 - len(rejected)
    ranked = examples.dropna(subset="rank")
    assert set(ranked["row_id"]) == set(examples["row_id"]) & {f"boats/default/train/{n}" for n in range(6)}


def test_a_mapping_from_the_table_can_be_pasted_into_the_task_file_and_costs_no_request():
    mappings, examples, *_ = map_({"boats": pairs()})
    written = yaml.safe_load(mappings["mapping"][0])
    task = Task.parse(NLI.model_dump() | {"mappings": written}, "mnli.yml")
    again, same, _, summary, teacher = map_({"boats": pairs()}, task=task)
    assert not teacher.requests
    assert summary["usage"]["used"] == 0
    assert list(same["query"]) == list(examples["query"])
    assert list(again["written_by"]) == ["a person"]
    assert same["response_key"].isna().all()
    audited = Task.parse(NLI.model_dump() | {"mappings": [written[0] | {"audit": True}]}, "mnli.yml")
    assert len(map_({"boats": pairs()}, task=audited)[-1].requests) == PARAMETERS.audit


def disagrees(request):
    """A teacher whose labels have nothing to do with people's."""
    if "<data>" in request.messages[-1].content:
        return json.dumps({"row": "Pairs.", "mapping": MAPPING})
    number = int(re.search(r"Case (\d) of vessel (\d+)", request.messages[-1].content)[2]) // 7919
    return json.dumps({"rationale": "So.", "answer": LABELS[number // 3 % 3]})


@pytest.mark.parametrize("mode", ["map", "both"])
def test_labels_that_disagree_with_the_teacher_are_rejected(mode):
    if mode == "map":
        with pytest.raises(StageError, match=r"boats \(default\): low_agreement 0\.\d\d \[0\.") as error:
            map_({"boats": pairs()}, disagrees, mode=mode)
        assert list(error.value.table("mappings")["state"]) == ["low_agreement"]
        assert error.value.table("mapped_examples") is None
        return
    mappings, examples, _, summary, _ = map_({"boats": pairs()}, disagrees, mode=mode)
    assert list(mappings["state"]) == ["low_agreement"]
    assert summary["rejected"] == {"mapping_rejected": 60}
    assert examples.empty


def test_a_teacher_that_calls_everything_suitable_and_answers_one_label_maps_nothing():
    def say(request):
        answer = {"rationale": "So.", "answer": "neutral"}
        if "<data>" in request.messages[-1].content:
            answer = {"row": "Fine.", "mapping": MAPPING}
        return json.dumps(answer)

    mappings, *_ = map_({"boats": pairs(), "ships": pairs(30)}, say, mode="both", audit=20)
    assert set(mappings["state"]) == {"low_agreement"}


def test_licenses_and_excluded_datasets_give_no_examples():
    mappings, *_ = map_({"boats": pairs()}, mode="both", license="cc-by-nc-4.0")
    assert (mappings["state"][0], mappings["detail"][0]) == ("no_examples", "license 60")
    mapping = DatasetMapping(dataset="glue-copy", fields=MAPPING["fields"], answer="gold", values=NAMES)
    task = NLI.model_copy(update={"mappings": (mapping,)})
    mappings, *_ = map_({"glue-copy": pairs()}, task=task, mode="both")
    assert mappings["detail"][0] == "excluded_dataset 60"


def test_labels_and_datasets_take_turns_and_copies_are_used_once():
    few = [row for row in pairs(60) if row["gold"] == "0"]
    ships = [
        row | {"sentence1": row["sentence1"].replace("boat", "ship on a journey far away, called")} for row in pairs()
    ]
    _, examples, rejected, _, _ = map_({"boats": pairs(), "copies": few, "ships": ships}, max_examples=30)
    assert Counter(examples["answer"]) == dict.fromkeys(LABELS, 10)
    assert 10 <= (examples["dataset"] == "ships").sum() <= 20
    _, examples, *_ = map_({"boats:one": pairs(30), "boats:two": pairs()[30:], "ships": ships}, max_examples=30)
    assert (examples["dataset"] == "ships").sum() == 15, "configs of one dataset share its turns"
    _, examples, rejected, _, _ = map_({"boats": pairs(30), "copies": pairs(30)}, max_examples=100)
    assert "duplicate" in set(rejected["reason"])
    assert not examples["query"].duplicated().any()


def test_without_enough_rows_no_request_is_sent():
    with pytest.raises(RebaseError, match=r"no config has `map.min_rows` retrieved rows"):
        map_({"boats": pairs()}, min_rows=7)


def test_cards_of_other_rows_are_an_error(monkeypatch):
    cards = cards_of(["boats"])
    cards.attrs["made_of"] = "another"
    monkeypatch.setattr("tests.pipelines.maps.cards_of", lambda _: cards)
    with pytest.raises(RebaseError, match=r"The cards, .* not made of"):
        map_({"boats": pairs()})


def test_in_the_mode_rewrite_nothing_happens(caplog):
    mapping = DatasetMapping(dataset="boats", fields=MAPPING["fields"], answer="gold", values=NAMES)
    task = NLI.model_copy(update={"mappings": (mapping,)})
    mappings, examples, _, summary, teacher = map_({"boats": pairs()}, task=task, mode="rewrite")
    assert "set transform.mode to map or both" in caplog.text
    assert mappings.empty
    assert examples.empty
    assert examples.attrs["left_out"].startswith("transform.mode is rewrite")
    assert summary["in"] == 0
    assert not teacher.requests


def test_the_budget_ends_requests():
    rows = store({"boats": pairs(), "ships": pairs(30)})
    cards = cards_of(rows)
    teacher = cached(Scripted(answers_like_people, 1), price=Price(input=1, output=1), max_requests=1)
    mappings, *_ = map_datasets(
        NLI, retrieved_of(rows), rows, cards, NO_EVALUATION, teacher, shipped_prompt("map"), shipped_prompt("distil"),
        "both", PARAMETERS, LABELING, RETRIEVE, CONTAMINATION,
    )  # fmt: skip
    assert set(mappings["state"]) == {"budget_reached"}
    rows = store({"boats": unlabeled()})
    teacher = cached(Scripted(maps_by_columns, 1), price=Price(input=1, output=1), max_requests=4)
    mappings, examples, rejected, summary = map_datasets(
        NLI, retrieved_of(rows), rows, cards.head(1), NO_EVALUATION, teacher, shipped_prompt("map"),
        shipped_prompt("distil"), "map", PARAMETERS, LABELING, RETRIEVE, CONTAMINATION,
    )  # fmt: skip
    assert (len(examples), mappings["requests"][0], summary["usage"]["used"]) == (3, 4, 4)
    assert summary["rejected"]["budget_reached"] == len(rejected) == PARAMETERS.max_examples - 3


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["sentence1", "sentence2", "gold", "x"]), st.text(max_size=8)),
                min_size=5, max_size=12), st.sampled_from([MAPPING, UNLABELED]),
       st.lists(st.sampled_from([*LABELS, "maybe", "", None]), min_size=1))  # fmt: skip
def test_any_rows_are_counted(rows, mapping, answers):
    given_answers = cycle(answers)

    def say(request):
        if "<data>" in request.messages[-1].content:
            return json.dumps({"row": "Rows.", "mapping": mapping})
        answer = next(given_answers)
        return json.dumps({"answer": answer}) if answer is not None else OSError("no route")

    *_, summary, teacher = map_({"odd": rows}, say, mode="both", audit=0)
    assert summary["kept"] <= PARAMETERS.max_examples
    assert len(teacher.requests) <= 1 + PARAMETERS.max_examples


def test_where_no_column_has_the_answer_the_teacher_labels_the_mapped_inputs():
    mappings, examples, _, summary, teacher = map_({"boats": unlabeled()}, maps_by_columns, max_examples=9)
    assert len(examples) == 9
    assert all(LABELS[int(query.partition("Case ")[2][0])] == answer
               for query, answer in zip(examples["query"], examples["answer"], strict=True))  # fmt: skip
    assert set(examples["teacher"]) == {"scripted/test"}
    assert examples["response_key"].is_unique
    assert examples["dollars"].sum() == pytest.approx(9 * 10 / 1e6)
    assert set(examples["mapping_id"]) == set(mappings["mapping_id"])
    (line,) = mappings.to_dict("records")
    assert (line["state"], line["rows"], line["used"]) == ("labeled_by_teacher", 60, 9)
    assert pd.isna([line["agreement"], line["low"], line["audited"]]).all()
    assert (line["requests"], summary["usage"]["used"], len(teacher.requests)) == (10, 10, 10)
    assert line["dollars"] == pytest.approx(summary["usage"]["used_dollars"])
    assert (summary["mappings"], summary["labels"]["missing"]) == ({"labeled_by_teacher": 1}, [])
    distilled, *_ = distil_inputs(
        NLI, pd.DataFrame(), examples, NO_EVALUATION, cached(again := Scripted(maps_by_columns)),
        shipped_prompt("distil"), LABELING, CONTAMINATION,
    )  # fmt: skip
    assert again.requests == teacher.requests[1:], "the requests of distil"
    assert list(distilled["prompt_hash"]) == list(examples["prompt_hash"])


def test_labels_that_people_gave_come_first():
    datasets = {"arks": unlabeled(boat=ARKS), "boats": pairs(12)}
    _, people, *_ = map_({"boats": pairs(12)}, max_examples=30)
    mappings, examples, _, summary, teacher = map_(datasets, maps_by_columns, max_examples=len(people) + 3)
    assert Counter(examples["teacher"]) == {"people": len(people), "scripted/test": 3}
    assert list(mappings["state"]) == ["labeled_by_teacher", "used"]
    assert summary["usage"]["used"] == len(teacher.requests) == 2 + PARAMETERS.audit + 3
    mappings, examples, _, summary, teacher = map_(datasets, maps_by_columns, max_examples=9)
    assert set(examples["teacher"]) == {"people"}
    assert list(mappings["state"]) == ["not_needed", "used"]
    assert len(teacher.requests) == 2 + PARAMETERS.audit


def test_an_input_with_the_query_of_a_labeled_example_is_not_labeled_again():
    _, examples, rejected, _, teacher = map_(
        {"boats": pairs(30), "copies": unlabeled(30)}, maps_by_columns, max_examples=99
    )
    assert set(examples["teacher"]) == {"people"}
    assert set(rejected.loc[rejected["dataset"] == "copies", "reason"]) == {"duplicate"}
    assert len(teacher.requests) == 2 + PARAMETERS.audit


def test_bad_labels_are_rejected_with_their_reason_and_counted():
    bad = {0: '{"answer": "maybe"}', 1: OSError("no route"), 2: ('{"answer', "length")}

    def say(request):
        query = request.messages[-1].content
        number = int(query.partition("vessel ")[2].split()[0]) // 7919 if "vessel" in query else 9
        return bad.get(number % 12) or maps_by_columns(request)

    mappings, examples, rejected, _, teacher = map_({"boats": unlabeled()}, say, max_examples=24)
    assert set(rejected["reason"]) == {"unknown_label", "teacher_failed", "response_cut_off"}
    assert len(teacher.requests) == 1 + 24, "no more requests than examples"
    assert len(examples) + len(rejected) == 24
    assert mappings["requests"][0] == 1 + 24 - (rejected["reason"] == "teacher_failed").sum()
    assert set(rejected.loc[rejected["reason"] == "unknown_label", "text"]) == {'{"answer": "maybe"}'}


def test_where_no_label_can_be_used_the_mapping_is_rejected():
    def say(request):
        return maps_by_columns(request) if "<data>" in request.messages[-1].content else '{"answer": "maybe"}'

    mappings, examples, rejected, summary, _ = map_({"boats": unlabeled()}, say, mode="both", max_examples=5)
    assert (mappings["state"][0], mappings["detail"][0]) == ("no_examples", "unknown_label 5")
    assert examples.empty
    assert rejected.empty
    assert summary["rejected"] == {"mapping_rejected": 60}
    with pytest.raises(StageError, match=r"boats \(default\): no_examples unknown_label 5"):
        map_({"boats": unlabeled()}, say, max_examples=5)


def test_labels_that_are_all_the_same_show_that_the_mapping_is_wrong():
    def say(request):
        return maps_by_columns(request) if "<data>" in request.messages[-1].content else '{"answer": "neutral"}'

    datasets = {"arks": unlabeled(boat=ARKS), "boats": pairs(12)}
    mappings, examples, _, summary, _ = map_(datasets, say, audit=0, max_examples=20)
    assert list(mappings["state"]) == ["one_label", "used"]
    assert set(examples["teacher"]) == {"people"}
    assert summary["rejected"]["mapping_rejected"] == 60
    mappings, *_ = map_({"boats": unlabeled()}, say, max_examples=4)
    assert list(mappings["state"]) == ["labeled_by_teacher"], "four of one label may be chance"


def says_neutral_of_arks(request):
    query = request.messages[-1].content
    return '{"answer": "neutral"}' if "<data>" not in query and "ark " in query else maps_by_columns(request)


def test_the_inputs_of_other_mappings_replace_those_with_one_label():
    datasets = {"arks": unlabeled(boat=ARKS), "boats": unlabeled()}
    mappings, examples, *_, teacher = map_(datasets, says_neutral_of_arks, max_examples=20)
    assert list(mappings["state"]) == ["one_label", "labeled_by_teacher"]
    assert set(examples["dataset"]) == {"boats"}
    assert len(examples) == 15, "five inputs showed that the labels of the arks are all the same"
    assert len(teacher.requests) == 2 + 20, "no more inputs than examples"
    datasets["people"] = [row | {"sentence2": f"{row['sentence2']} It is known."} for row in pairs(9)]
    mappings, examples, *_ = map_(datasets, says_neutral_of_arks, audit=0, max_examples=20)
    assert list(mappings["state"]) == ["one_label", "labeled_by_teacher", "used"]
    assert len(examples) == 20


def test_a_mapping_whose_first_labels_are_the_same_is_used_if_later_ones_differ():
    counted = []

    def say(request):
        if "ark " not in request.messages[-1].content or "<data>" in request.messages[-1].content:
            return maps_by_columns(request)
        counted.append(request)
        return json.dumps({"answer": LABELS[len(counted) > 5]})

    datasets = {"arks": unlabeled(boat=ARKS), "boats": unlabeled(6)}
    mappings, examples, *_ = map_(datasets, say, max_examples=20)
    assert list(mappings["state"]) == ["labeled_by_teacher"] * 2
    assert Counter(examples["dataset"]) == {"arks": 14, "boats": 6}


def test_a_mapping_without_an_answer_in_the_task_file_is_labeled_too():
    mappings, *_ = map_({"boats": unlabeled()}, maps_by_columns, max_examples=9)
    (written,) = yaml.safe_load(mappings["mapping"][0])
    assert set(written) == {"dataset", "config", "fields"}
    for answer in ({}, {"answer": None}):
        task = Task.parse(NLI.model_dump() | {"mappings": [written | answer]}, "mnli.yml")
        again, examples, _, _, teacher = map_({"boats": unlabeled()}, maps_by_columns, task=task, max_examples=9)
        assert list(again["written_by"]) == ["a person"]
        assert len(teacher.requests) == len(examples) == 9
        assert examples["response_key"].notna().all()


def test_inputs_are_filtered_before_a_label_is_requested():
    rows = unlabeled()
    rows[0]["sentence1"] = "Die Biber bauen einen Damm aus Holz und Schlamm, damit der Eingang ihrer Burg nass bleibt."
    rows[1]["sentence1"] = ""
    rows[2] = {"sentence1": NLI.examples[0]["premise"], "sentence2": "Case 2 of vessel 15838 is open."}
    item = json.loads(json.dumps({"premise": rows[3]["sentence1"], "hypothesis": rows[3]["sentence2"]}))
    evaluation = pd.DataFrame(
        [{"item_id": "1", "fields": json.dumps(item), "query": NLI.render_query(item), "references": '["neutral"]'}]
    )
    _, examples, rejected, _, teacher = map_({"boats": rows}, maps_by_columns, evaluation=evaluation, max_examples=99)
    reasons = rejected.set_index("row_id")["reason"]
    assert [reasons[f"boats/default/train/{n}"] for n in range(4)] == [
        "language", "empty", "contamination_exact", "contamination_exact"
    ]  # fmt: skip
    assert len(teacher.requests) == 1 + len(examples)


def test_the_teacher_answers_questions_about_mapped_passages():
    """Fields of a reading task: the passage is cut, and the label must be in it."""
    rows = [
        {"text": " ".join(f"Sentence {k} of row {n} names the wheel {k}." for k in range(9)),
         "query": f"Which wheel does sentence {n % 3} name, in row {n}?"}
        for n in range(12)
    ]  # fmt: skip

    def say(request):
        query = request.messages[-1].content
        if "<data>" in query:
            fields = {"context": "text", "question": "query"}
            return json.dumps({"row": "A question.", "mapping": {"fields": fields, "answer": None}})
        number = query.partition("does sentence ")[2][0]
        return json.dumps({"answer": "the axle" if number == "2" else f"wheel {number}"})

    retrieve = RETRIEVE.model_copy(update={"near_duplicate": 1.0})
    _, examples, rejected, _, _ = map_({"mills": rows}, say, READING, retrieve=retrieve, max_examples=12)
    assert Counter(examples["answer"]) == {"wheel 0": 4, "wheel 1": 4}
    assert Counter(rejected["reason"]) == {"answer_not_in_passage": 4}
    assert all(len(json.loads(fields)["context"].split()) <= 40 for fields in examples["fields"])


def test_samples_and_rationales_of_distil_are_used_for_labels():
    distil = LABELING.model_copy(update={"style": "cot", "samples": 3})
    mappings, examples, _, summary, teacher = map_(
        {"boats": unlabeled()}, maps_by_columns, distil=distil, max_examples=4
    )
    assert len(examples) == 4
    assert all("rationale" in request.schema["properties"] for request in teacher.requests[1:])
    assert mappings["requests"][0] == summary["usage"]["used"] == 1 + 3 * 4
    dense = LABELING.model_copy(update={"style": "chain_of_density"})
    with pytest.raises(RebaseError, match="chain_of_density is for texts"):
        map_({"boats": unlabeled()}, maps_by_columns, distil=dense)


def test_labels_of_an_api_are_bought_once(tmp_path):
    def answer(prompt):
        mapping = {"row": "Two sentences.", "mapping": UNLABELED}
        label = LABELS[int((prompt.partition("Case ")[2] or "0")[0])]
        return Answer(json.dumps(mapping if "<data>" in prompt else {"answer": label}))

    def run(provider):
        teacher = cached(hosted("openai", provider.address), tmp_path / "responses.sqlite", Price(input=1, output=5))
        rows = store({"boats": unlabeled()})
        cards = cards_of(rows)
        return map_datasets(
            NLI, retrieved_of(rows), rows, cards, NO_EVALUATION, teacher, shipped_prompt("map"),
            shipped_prompt("distil"), "map", PARAMETERS, LABELING, RETRIEVE, CONTAMINATION,
        )  # fmt: skip

    with serving(default=answer) as provider:
        mappings, examples, _, summary = run(provider)
        assert len(examples) == PARAMETERS.max_examples == len(provider.billed()) - 1
        assert mappings["dollars"].sum() == pytest.approx(summary["usage"]["dollars"])
        *_, again = run(provider)
        assert (again["usage"]["responses"], again["usage"]["used"]) == (0, summary["usage"]["used"])
        assert len(provider.billed()) == 1 + PARAMETERS.max_examples


def test_labels_of_people_need_a_rationale_only_if_the_student_learns_it():
    datasets = {"arks": unlabeled(boat=ARKS), "boats": pairs(12)}
    _, examples, *_ = map_(datasets, maps_by_columns, max_examples=15)
    count = (examples["teacher"] != "people").sum()
    assert 0 < count < 15

    def reason(request):
        number = int(request.messages[-1].content.partition("Case ")[2][0])
        return json.dumps({"rationale": "It is so.", "answer": LABELS[number]})

    def reasoned_for(target):
        retrieved = pd.DataFrame(columns=["row_id"])
        reasoned, _, summary = reason_examples(
            NLI, examples, retrieved, cached(Scripted(reason)), COT_PROMPT, target, COT
        )
        assert summary["usage"]["used"] == reasoned["rationale"].notna().sum() * COT.samples
        return reasoned

    assert reasoned_for("answer")["rationale"].notna().sum() == count
    assert reasoned_for("rationale_then_answer")["rationale"].notna().all()


def test_transform_adds_what_was_mapped_and_sends_the_other_rows():
    rows = store({"boats": pairs(), "other": [{"text": f"Text {n} about boats and the sea."} for n in range(20)]})
    _, mapped, *_ = map_(rows, mode="both")
    retrieved = retrieved_of(rows)

    def say(request):
        premise = f"The text of {hash(request.messages[-1].content)} is long."
        return json.dumps({"example": {"premise": premise, "hypothesis": "So.", "answer": "neutral"}})

    def transform(mode):
        teacher = cached(Scripted(say))
        given = transform_parameters(max_examples=50).model_copy(update={"mode": mode})
        tables = transform_rows(NLI, retrieved, NO_EVALUATION, teacher, TRANSFORM_PROMPT, given, CONTAMINATION, mapped)
        return *tables, teacher

    examples, rejected, summary, _ = transform("both")
    assert list(examples) == EXAMPLE_COLUMNS
    assert examples["mapping_id"].notna().sum() == len(mapped)
    assert (summary["in"], summary["kept"], summary["rejected"]) == (12, 6, {"mapped_dataset": 6})
    assert set(rejected["reason"]) == {"mapped_dataset"}
    only, rejected, summary, teacher = transform("map")
    assert list(only["query"]) == list(mapped["query"])
    assert summary["rejected"] == {"mapped_dataset": 6, "not_needed": 6}
    assert not teacher.teacher.requests
    assert transform("rewrite")[2]["kept"] == 12
    mapped = mapped.head(0)
    with pytest.raises(RebaseError, match="Run the pipeline map first"):
        transform("map")

    def reason(request):
        return json.dumps({"rationale": "It is so.", "answer": "neutral"})

    teacher = cached(Scripted(reason))
    reasoned, _, _ = reason_examples(NLI, examples, retrieved, teacher, COT_PROMPT, "answer", COT)
    assert len(teacher.teacher.requests) == 6 * COT.samples
    assert reasoned["rationale"].notna().sum() == 6
    assert len(reasoned) == len(examples)
