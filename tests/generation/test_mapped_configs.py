"""The configs that map works on: their mappings, checks and audits."""

import json
import re
from collections import Counter

import pandas as pd
import pytest
import yaml

from rebase.datastore.shards import Shards, with_metadata
from rebase.errors import RebaseError
from rebase.generation import mapped_configs
from rebase.generation.mapped_configs import MappedConfig
from rebase.records import DatasetMapping
from tests.generation.test_mapping import NAMES
from tests.pipelines.maps import (
    COLORS,
    LABELS,
    MAPPING,
    NLI,
    READING,
    RETRIEVE,
    UNLABELED,
    answers_like_people,
    map_,
    pairs,
    retrieved_of,
    store,
)
from tests.shipped import shipped_task

MAPPING_OF_A_PERSON = {"fields": MAPPING["fields"], "answer": "gold", "values": NAMES}


def test_a_mapping_without_a_config_is_for_all_of_them():
    mapping = DatasetMapping(dataset="boats", **MAPPING_OF_A_PERSON)
    task = NLI.model_copy(update={"mappings": (mapping,)})
    mappings, *_ = map_({"boats:one": pairs(), "boats:two": pairs(30)}, task=task)
    assert list(mappings["config"]) == ["one", "two"]


def test_a_mapping_for_all_configs_is_used_for_those_that_have_its_columns():
    mapping = DatasetMapping(dataset="boats", **MAPPING_OF_A_PERSON)
    task = NLI.model_copy(update={"mappings": (mapping,)})
    mappings, *_ = map_({"boats:one": pairs(), "boats:raw": [{"text": "A boat."}]}, task=task)
    assert list(zip(mappings["config"], mappings["state"], strict=True)) == [("one", "used"), ("raw", "unknown_column")]


def test_a_wrong_mapping_in_the_task_file_stops_the_run_before_any_request():
    mapping = DatasetMapping(
        dataset="boats", fields={"premise": "sentence1", "hypothesis": "text"}, answer="gold", values=NAMES
    )
    requests = []
    with pytest.raises(RebaseError, match="'text', which no row of the config 'default' has: there are gold, sen"):
        map_({"boats": pairs()}, requests.append, task=NLI.model_copy(update={"mappings": (mapping,)}))
    assert not requests
    absent = mapping.model_copy(update={"dataset": "rafts"})
    mappings, *_ = map_({"boats": pairs()}, task=NLI.model_copy(update={"mappings": (absent,)}))
    assert list(mappings["state"]) == ["not_in_datastore", "used"]


@pytest.mark.parametrize("config", [None, "default"])
@pytest.mark.parametrize(
    ("duplicate_of", "detail"),
    [("boats", "the same data files as boats: set `dataset`"), ("", "see `ingest_rejected`")],
)
def test_a_mapping_in_the_task_file_of_a_dataset_without_rows_is_rejected(config, duplicate_of, detail):
    boats = store({"boats": pairs()})["boats"]
    empty = with_metadata(boats.slice(0, 0), {"duplicate_of": duplicate_of})
    rows = Shards({"boats": "1", "rafts": "1"}, lambda name, _: boats if name == "boats" else empty)
    mapping = DatasetMapping(dataset="rafts", config=config, fields=MAPPING["fields"], answer="gold", values=NAMES)
    mappings, *_ = map_(rows, task=NLI.model_copy(update={"mappings": (mapping,)}))
    assert list(mappings["state"]) == ["no_rows", "used"]
    assert detail in mappings["detail"][0]


@pytest.mark.parametrize("earlier", ["rafts", "boats:old"])
def test_retrieved_rows_that_the_datastore_no_longer_has_cost_no_request(earlier):
    requests = []
    retrieved = retrieved_of(store({earlier: pairs()}))
    mappings, *_ = map_({"boats": pairs()}, requests.append, retrieved=retrieved, mode="both")
    assert list(mappings["state"]) == ["not_in_datastore"]
    assert "run retrieve again" in mappings["detail"][0]
    assert not requests


def test_a_config_without_a_column_that_can_be_named_costs_no_request():
    requests = []
    mappings, *_ = map_({"boats": [{"text {en}": f"Boat {n}."} for n in range(12)]}, requests.append, mode="both")
    assert list(mappings["state"]) == ["no_columns"]
    assert not requests


def test_queries_of_signs_are_no_duplicates():
    mapping = DatasetMapping(dataset="signs", fields={"question": "open"}, answer="close")
    task = shipped_task("bbh_dyck_languages").model_copy(update={"mappings": (mapping,)})
    _, examples, rejected, *_ = map_(
        {"signs": [{"open": "[ { (", "close": ") } ]"}, {"open": "< ( {", "close": "} ) >"}]}, task=task
    )
    assert set(examples["query"]) == {"[ { (", "< ( {"}
    assert rejected.empty


SWAPPED = MAPPING | {"answer": {"column": "gold", "values": dict(zip(NAMES, [*LABELS[1:], LABELS[0]], strict=True))}}


def maps_with_swapped_labels(request):
    if "<data>" in request.messages[-1].content:
        return json.dumps({"row": "Pairs.", "mapping": SWAPPED})
    return answers_like_people(request)


def test_swapped_labels_are_corrected_by_the_audit_and_audited_by_other_rows():
    mappings, examples, *_, teacher = map_({"boats": pairs()}, maps_with_swapped_labels, max_examples=9, audit=12)
    (line,) = mappings.to_dict("records")
    assert (line["state"], line["audited"], line["agreement"]) == ("used", 12, 1)
    assert line["written_by"] == "the teacher, corrected by its answers"
    assert yaml.safe_load(line["mapping"])[0]["values"] == NAMES
    assert Counter(examples["answer"]) == dict.fromkeys(LABELS, 3)
    assert line["requests"] == len(teacher.requests) == 1 + 12 + 12
    assert len({request.messages[-1].content for request in teacher.requests}) == 1 + 12 + 12


def maps_to_one_label(answer=answers_like_people):
    """A teacher that gives one label to every value."""

    def say(request):
        if "<data>" in request.messages[-1].content:
            values = dict.fromkeys(NAMES, "neutral")
            return json.dumps({"row": "Pairs.", "mapping": MAPPING | {"answer": {"column": "gold", "values": values}}})
        return answer(request)

    return say


def test_swapped_fields_show_as_labels_that_a_correction_would_merge():
    seen = dict(zip(LABELS, ["neutral", "contradiction", "contradiction"], strict=True))

    def says(request):
        query = request.messages[-1].content
        if "<data>" in query:
            swapped = {"premise": "sentence2", "hypothesis": "sentence1"}
            return json.dumps({"row": "Pairs.", "mapping": MAPPING | {"fields": swapped}})
        answer = json.loads(answers_like_people(request))
        if query.index("Case") < query.index("boat"):
            answer["answer"] = seen[answer["answer"]]
        return json.dumps(answer)

    mappings, *_ = map_({"boats": pairs()}, says, mode="both", max_examples=60, audit=60)
    assert list(mappings["state"]) == ["low_agreement"]
    assert mappings["written_by"][0] == "the teacher"


def test_the_letters_of_options_are_not_corrected():
    exam = shipped_task("mmlu")
    rows = [
        {"question": f"Which color has boat {n * 7919}?", "options": str([f"{c} {n}" for c in COLORS[:4]]),
         "key": "ABCD"[n % 4]}
        for n in range(40)
    ]  # fmt: skip
    fields = {"question": "question", "choices": "options|options"}

    def says(request):
        if "<data>" in request.messages[-1].content:
            return json.dumps({"row": "Exams.", "mapping": {"fields": fields, "answer": {"column": "key"}}})
        number = int(re.findall(r"boat (\d+)", request.messages[-1].content)[-1]) // 7919
        answer = {"rationale": "It is so.", "answer": f"({'BCDA'[number % 4]})"}
        return json.dumps({name: answer[name] for name in request.schema["properties"]})

    mappings, *_, teacher = map_({"boats": rows}, says, exam, mode="both", audit=20)
    assert (mappings["state"][0], mappings["agreement"][0]) == ("low_agreement", 0)
    assert len(teacher.requests) == 1 + 20


def test_options_that_are_right_first_are_no_examples():
    exam = shipped_task("mmlu")
    rows = [
        {"question": f"Which number has boat {n * 7919}?", "options": str([f"{n}", f"{n + 1}"]), "right": f"{n}"}
        for n in range(40)
    ]
    fields = {"question": "question", "choices": "options|options"}
    says = respond({"fields": fields, "answer": {"column": "right"}})
    mappings, *_, teacher = map_({"boats": rows}, says, exam, mode="both", audit=20)
    assert (mappings["state"][0], mappings["detail"][0]) == ("one_label", "(A)")
    assert len(teacher.requests) == 1, "no answer could correct what the letter means"


def test_a_column_that_explains_the_label_is_no_part_of_the_query():
    rows = [row | {"why": f"It is {LABELS[int(row['gold'])]} because of {n}."} for n, row in enumerate(pairs())]
    fields = {"premise": "sentence1", "hypothesis": "{sentence2} {why}"}
    mappings, *_, teacher = map_({"boats": rows}, respond(MAPPING | {"fields": fields}), mode="both")
    assert list(mappings["state"]) == ["answer_given_away"]
    assert len(teacher.requests) == 1, "an audit would only show that the teacher reads"


def test_a_mapping_of_a_person_is_trusted_unless_it_is_to_be_audited():
    rows = [row | {"sentence2": f"{row['sentence2']} It is {LABELS[int(row['gold'])]}."} for row in pairs()]
    for is_audited, state in ((False, "used"), (True, "answer_given_away")):
        mapping = DatasetMapping(dataset="boats", **MAPPING_OF_A_PERSON, audit=is_audited)
        mappings, *_ = map_({"boats": rows}, task=NLI.model_copy(update={"mappings": (mapping,)}), mode="both")
        assert list(mappings["state"]) == [state]


def test_near_duplicates_leave_room_for_other_rows():
    asked = ["Case 0 of the vessel is near.", "Case 1 of the vessel is near.", "Case 2 of the vessel is near."]
    story = " ".join(f"Word {n} of the log of the boat." for n in range(12))
    rows = [row | {"sentence1": f"{row['sentence1']} {story}", "sentence2": asked[int(row["gold"])]} for row in pairs()]
    copies = [rows[n] | {"sentence1": f"{rows[n]['sentence1']} End."} for n in range(30)]
    retrieve = RETRIEVE.model_copy(update={"near_duplicate": 0.95})
    _, examples, rejected, _, _ = map_({"boats": rows + copies}, retrieve=retrieve, max_examples=60)
    assert len(examples) == 60
    assert set(rejected["reason"]) == {"duplicate"}


def test_values_with_one_label_are_told_apart_by_the_audit():
    mappings, examples, *_, teacher = map_({"boats": pairs()}, maps_to_one_label(), max_examples=9, audit=12)
    (line,) = mappings.to_dict("records")
    assert (line["state"], line["agreement"]) == ("used", 1)
    assert yaml.safe_load(line["mapping"])[0]["values"] == NAMES
    assert Counter(examples["answer"]) == dict.fromkeys(LABELS, 3)
    # Of nine rows with the one label, all were audited; the correction has rows of its own.
    assert line["requests"] == len(teacher.requests) > 1 + 9


def test_a_mapping_with_one_label_that_is_not_corrected_is_rejected():
    def says_neutral(request):
        answer = {"rationale": "So.", "answer": "neutral"}
        return json.dumps({name: answer[name] for name in request.schema["properties"]})

    mappings, *_, teacher = map_(
        {"boats": pairs()}, maps_to_one_label(says_neutral), mode="both", max_examples=60, audit=60
    )
    assert (mappings["state"][0], mappings["detail"][0], mappings["written_by"][0]) == (
        "one_label", "neutral", "the teacher"
    )  # fmt: skip
    assert len(teacher.requests) == 1 + 20, "more answers would change nothing"
    mappings, *_, teacher = map_({"boats": pairs()}, maps_to_one_label(), mode="both", audit=0)
    assert (list(mappings["state"]), len(teacher.requests)) == (["one_label"], 1)
    mappings, *_, teacher = map_({"boats": pairs(gold="0")}, maps_to_one_label(), mode="both")
    assert (list(mappings["state"]), len(teacher.requests)) == (["one_label"], 1), "one value cannot be told apart"


def test_labels_that_were_corrected_need_other_rows_to_audit_them():
    mappings, *_, teacher = map_({"boats": pairs(12)}, maps_with_swapped_labels, mode="both", audit=20)
    (line,) = mappings.to_dict("records")
    assert line["state"] == "low_agreement"
    assert line["detail"] == "no other rows are left to audit the corrected labels"
    assert pd.isna([line["audited"], line["agreement"]]).all(), "those of the first audit are of another mapping"
    assert line["requests"] == len(teacher.requests) == 1 + 12


def test_the_labels_of_a_person_are_not_corrected():
    mapping = DatasetMapping(
        dataset="boats", fields=MAPPING["fields"], answer="gold", values=SWAPPED["answer"]["values"]
    )
    task = NLI.model_copy(update={"mappings": (mapping.model_copy(update={"audit": True}),)})
    mappings, *_, teacher = map_({"boats": pairs()}, task=task, mode="both", audit=12)
    assert list(mappings["state"]) == ["low_agreement"]
    assert len(teacher.requests) == 12


def test_an_audit_asks_until_the_agreement_is_clear():
    def is_often_right(request):
        response = json.loads(answers_like_people(request))
        if "answer" in response and sum(map(int, re.findall(r"\d", request.messages[-1].content))) % 5 < 2:
            response["answer"] = LABELS[LABELS.index(response["answer"]) - 1]
        return json.dumps(response)

    changes = {"mode": "both", "audit": 60, "max_examples": 60}
    clear, *_ = map_({"boats": pairs(90)}, **changes)
    unclear, *_ = map_({"boats": pairs(90)}, is_often_right, **changes)
    assert (clear["state"][0], clear["audited"][0]) == ("used", 20)
    assert (unclear["state"][0], unclear["audited"][0] > 20) == ("used", True)


def respond(mapping):
    def say(request):
        if "<data>" in request.messages[-1].content:
            return (
                mapping
                if isinstance(mapping, str | tuple | Exception)
                else json.dumps({"row": "Rows.", "mapping": mapping})
            )
        return answers_like_people(request)

    return say


@pytest.mark.parametrize(
    ("rows", "response", "state"),
    [
        (pairs(gold="0"), MAPPING, "one_label"),
        ([{"text": f"{n} {n}"} for n in range(40)], None, "unsuitable"),
        ([{"text": f"{n} {n}"} for n in range(40)], UNLABELED, "unknown_column"),
        (pairs(), MAPPING | {"answer": {"column": None, "values": NAMES}}, "invalid_mapping"),
        (pairs(sentence1=""), UNLABELED, "no_examples"),
        (pairs(), None, "unsuitable"),
        (pairs(), MAPPING | {"fields": {"premise": "sentence1", "hypothesis": "sentence1"}}, "invalid_mapping"),
        (pairs(), MAPPING | {"fields": {"premise": "gold", "hypothesis": "sentence2"}}, "invalid_mapping"),
        (pairs(), MAPPING | {"fields": {"premise": "title", "hypothesis": "sentence2"}}, "unknown_column"),
        (pairs(), MAPPING | {"answer": {"column": "gold", "values": {"0": "maybe", "1": "no"}}}, "invalid_mapping"),
        (pairs(), MAPPING | {"answer": {"column": "gold", "values": {"7": "neutral", "8": LABELS[0]}}}, "no_examples"),
        (pairs(), MAPPING | {"answer": {"column": "gold", "values": {"0": "neutral", "8": LABELS[0]}}}, "one_label"),
        (pairs(), "Sorry, I cannot.", "invalid_response"),
        (pairs(), ("{", "length"), "response_cut_off"),
        (pairs(), OSError("no route"), "teacher_failed"),
    ],
)
def test_what_cannot_be_mapped_is_recorded_with_its_reason(rows, response, state):
    mappings, _, _, summary, _ = map_({"boats": rows}, respond(response), mode="both")
    assert list(mappings["state"]) == [state]
    assert summary["mappings"] == {state: 1}
    assert summary["rejected"] == {"mapping_rejected": len(rows)}


def test_rows_pass_the_same_filters_as_retrieved_ones():
    rows = pairs(60)
    rows[0]["gold"] = "['0', '1']"
    del rows[1]["sentence2"]
    rows[2]["sentence1"] = "Beavers fell poplars along the river, and with the trunks they build a dam that floods it."
    rows[3]["sentence1"] = "Die Biber bauen einen Damm aus Holz und Schlamm, damit der Eingang ihrer Burg nass bleibt."
    rows[4]["sentence1"] = ""
    rows[7]["sentence2"] = "Die Biber bauen einen Damm aus Holz und Schlamm."
    rows[5] = rows[8]
    rows[6]["sentence1"] = NLI.examples[0]["premise"]
    item = {"premise": rows[2]["sentence1"], "hypothesis": "Beavers build."}
    evaluation = pd.DataFrame(
        [{"item_id": "1", "fields": json.dumps(item), "query": NLI.render_query(item), "references": '["neutral"]'}]
    )
    _, examples, rejected, _, _ = map_({"boats": rows}, evaluation=evaluation, max_examples=100)
    reasons = rejected.drop_duplicates("row_id").set_index("row_id")["reason"]
    found = {int(row_id.rpartition("/")[2]): reason for row_id, reason in reasons.items()}
    assert found[0] == "unmapped_value"
    assert found[1] == "missing_column"
    assert found[2] == found[6] == "contamination_exact"
    assert found[3] == found[7] == "language"
    assert found[4] == "empty"
    assert "duplicate" in (found.get(5), found.get(8))
    assert not set(examples["row_id"]) & set(rejected["row_id"])


def test_a_reading_passage_is_cut_around_its_answer():
    short = "The mill is old."
    long = " ".join(f"Sentence {n} of this passage names the wheel {n}." for n in range(9))
    rows = [
        {"context": f"{long} Row {n}. The owner is Anna {n}.", "question": f"Which wheel does sentence {n % 3} name?",
         "answers.text": f"wheel {n % 3}; the wheel {n % 3}", "answers.answer_start": "3; 4"}
        for n in range(12)
    ]  # fmt: skip
    rows[0] |= {"answers.text": "Anna 0; Anna", "question": "Which Anna is the owner?"}
    rows[1]["context"] = short
    mapping = {"fields": {"context": "context", "question": "question"}, "answer": {"column": "answers.text|1"}}

    def say(request):
        if "<data>" in request.messages[-1].content:
            return json.dumps({"row": "A passage.", "mapping": mapping})
        sentence = request.messages[-1].content.partition("does sentence ")[2]
        return json.dumps({"answer": f"wheel {sentence[0]}" if sentence else "Anna 0"})

    retrieve = RETRIEVE.model_copy(update={"near_duplicate": 1.0})
    mappings, examples, rejected, _, _ = map_({"mills": rows}, say, READING, retrieve=retrieve, max_examples=50)
    reasons = rejected.set_index("row_id")["reason"]
    assert reasons["mills/default/train/1"] == "no_passage"
    passages = examples.set_index("row_id")["fields"].map(json.loads).str["context"]
    assert passages.pop("mills/default/train/0").endswith("The owner is Anna 0.")
    assert all(passages.str.startswith("Sentence 0"))
    assert mappings["agreement"][0] == 1
    assert all(len(json.loads(fields)["context"].split()) <= 40 for fields in examples["fields"])


def test_a_dataset_without_long_texts_is_not_asked_about_for_a_task_with_a_passage():
    requests = []
    rows = [{"name": f"Boat {n}", "owner": f"Ada {n}"} for n in range(12)]
    mappings, *_ = map_({"boats": rows}, requests.append, READING, mode="both")
    assert list(mappings["state"]) == ["no_passage"]
    assert not requests


def test_each_row_of_a_config_comes_once_in_an_order_of_the_seed(monkeypatch):
    monkeypatch.setattr(mapped_configs, "_ROWS_AT_ONCE", 7)
    rows = store({"boats:one": pairs(30), "boats:two": pairs(5)})
    config = MappedConfig("boats", "one", rows)
    order = [line["row_index"] for line in config.lines(1)]
    assert sorted(order) == list(range(30)) != order
    assert [line["row_index"] for line in config.lines(1)] == order != [line["row_index"] for line in config.lines(2)]
    assert (config.size, config.license) == (30, "mit")
    absent = MappedConfig("boats", "three", rows)
    assert ([*absent.lines(1)], absent.size, absent.license) == ([], 0, None)
