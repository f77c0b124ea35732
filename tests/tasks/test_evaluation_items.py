import json

import pytest

from rebase.errors import RebaseError
from rebase.records import Task
from rebase.tasks.evaluation_items import make_evaluation_items, remove_shown_items, select_items
from rebase.tasks.source_rows import SourceRows


def make_task(fields=None, **changes):
    return Task.parse(
        {
            "name": "topic", "version": 1, "instruction": "Name it.", "query": "Text: {text}",
            "examples": [{"text": "t", "answer": "sport"}],
            "answer": {"type": "label", "labels": ["sport", "science"]}, "metrics": ["accuracy"],
            "evaluation": {"source": "e", "fields": fields or {"text": "text", "references": "label"}} | changes,
        }, "topic.yml",
    )  # fmt: skip


def to_items(task, rows, location="e"):
    return make_evaluation_items(task, SourceRows(rows, location))


def test_rows_become_items():
    rows = [{"id": "q1", "text": "Goal!", "label": "sport"}, {"id": None, "text": "Atoms", "label": "science"}]
    items = to_items(make_task(), rows, "e.jsonl")
    assert items["item_id"].tolist() == ["q1", "1"]
    assert items["query"].tolist() == ["Text: Goal!", "Text: Atoms"]
    assert items["references"].tolist() == ['["sport"]', '["science"]']
    assert json.loads(items["fields"][0]) == {"text": "Goal!"}


def test_nested_columns_label_names_and_repeated_answers():
    task = make_task({"text": "doc.text", "references": "answers.label"}, label_names=["science", "sport"])
    rows = [{"doc": {"text": "Goal!"}, "answers": {"label": [1, 1, 0, None]}}]
    assert to_items(task, rows)["references"].tolist() == ['["sport", "science"]']
    flat = [{"doc.text": "Goal!", "answers.label": "1"}]
    assert to_items(task, flat)["references"].tolist() == ['["sport"]']


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "t"}, "no column 'label'"),
        ({"txt": "t", "label": "sport"}, r"no column 'text' \(there are \['label', 'txt'\]\)"),
        ({"text": "t", "label": "art"}, r"'art' in column 'label' is outside the task's labels \(sport, science\)"),
        ({"text": "t", "label": -1}, "'-1' in column 'label' is outside"),
        ({"text": [], "label": "sport"}, "no value in text"),
        ({"text": None, "label": "sport"}, "no value in text"),
        (
            {"text": "t", "label": {"name": "art", "id": 1}},
            r"'label' is a group \(name, id\): name one, such as label\.name",
        ),
        ({"text": {"A": "a"}, "label": "sport"}, r"'text' is a group \(A\): name one, such as text\.A\. Correct `eval"),
        ({"text": "t", "label": {}}, r"'label' is a group \(\)"),
        ({"text": "t", "label": [{"name": "art"}]}, r"'label' is a list of groups"),
    ],
)
def test_a_wrong_row_is_named(row, expected):
    rows = [{"text": "Goal!", "label": "sport"}, row]
    with pytest.raises(RebaseError, match=f"e.jsonl, row 1: .*{expected}"):
        to_items(make_task(), rows, "e.jsonl")


@pytest.mark.parametrize("gold", [None, [], [None], "", "  ", "-", -1, "-1", [-1, None]])
def test_a_row_without_a_gold_answer_is_left_out_and_counted(gold):
    task = make_task(label_names=["sport", "science"])
    rows = [{"text": "Goal!", "label": 0}, {"text": None, "label": gold}, {"text": "Atoms", "label": [1, -1]}]
    items = to_items(task, rows)
    assert items["item_id"].tolist() == ["0", "2"]
    assert items["references"].tolist() == ['["sport"]', '["science"]']
    assert items.attrs["rejected"] == {"no_gold": 1}
    selected, rejected = select_items(task, items, limit=1)
    assert rejected == {"no_gold": 1, "over_limit": 1}
    assert len(selected) + sum(rejected.values()) == len(rows)


@pytest.mark.parametrize(
    ("settings", "labels", "references"),
    [
        ({"outside_labels": True}, [1871.0, [1902.0, 0.5]], [["1871"], ["1902", "0.5"]]),
        ({"label_names": ["sport", "science"]}, [0.0, [1.0, -1.0]], [["sport"], ["science"]]),
    ],
)
def test_a_column_of_integers_has_floats_if_a_value_is_missing(settings, labels, references):
    rows = [{"text": text, "label": label} for text, label in zip([7.0, 2.5, ""], [*labels, float("nan")], strict=True)]
    items = to_items(make_task(**settings), rows)
    assert list(map(json.loads, items["references"])) == references
    assert items["query"].tolist() == ["Text: 7", "Text: 2.5"]
    assert items.attrs["rejected"] == {"no_gold": 1}


def test_questions_without_an_answer_are_left_out():
    task = make_task({"text": "text", "references": "answers.text"})
    rows = [{"text": "t", "answers": {"text": texts}} for texts in (["sport"], [])] + [{"text": "t", "answers": None}]
    assert to_items(task, rows).attrs["rejected"] == {"no_gold": 2}
    assert to_items(task, rows[:1]).attrs["rejected"] == {}


def test_a_set_without_any_gold_answer_is_rejected():
    rows = [{"text": "t", "label": -1}, {"text": "t", "label": None}]
    with pytest.raises(RebaseError, match=r"e\.jsonl: none of the 2 rows has a gold answer in column 'label'"):
        to_items(make_task(label_names=["sport", "science"]), rows, "e.jsonl")


@pytest.mark.parametrize(("label", "name"), [(1, "sport"), ("1", "sport"), (True, "sport"), ("sport", "sport")])
def test_class_labels_are_named_however_the_file_writes_them(label, name):
    task = make_task(label_names=["science", "sport"])
    assert to_items(task, [{"text": "t", "label": label}])["references"].tolist() == [f'["{name}"]']


def test_an_empty_set_is_rejected():
    with pytest.raises(RebaseError, match=r"'topic' is empty: e\.jsonl"):
        to_items(make_task(), [], "e.jsonl")


def test_ids_are_the_rows_own():
    rows = [{"id": name, "text": "t", "label": "sport"} for name in ("a", "b", "a")]
    with pytest.raises(RebaseError, match=r"e\.jsonl, row 2: column 'id' has 'a', as row 0 has"):
        to_items(make_task(), rows, "e.jsonl")


def test_labels_are_spelled_as_the_task_spells_them():
    rows = [{"text": "t", "label": " Sport."}]
    assert to_items(make_task(), rows)["references"].tolist() == ['["sport"]']


def test_some_benchmarks_have_answers_outside_the_labels():
    rows = [{"text": "t", "label": "art"}]
    task = make_task(outside_labels=True)
    assert to_items(task, rows)["references"].tolist() == ['["art"]']


def plain_task(query, examples, kind="number", **evaluation):
    fields = {name: name for name in examples[0] if name != "answer"} | {"references": "answer"}
    return Task.parse(
        {
            "name": "plain", "version": 1, "instruction": "Answer.", "query": query, "examples": examples,
            "answer": {"type": kind}, "metrics": ["exact_match"],
            "evaluation": {"source": "e", "fields": fields} | evaluation,
        }, "plain.yml",
    )  # fmt: skip


def test_a_list_is_shown_as_options():
    task = plain_task("{question}\n{choices}", [{"question": "q", "choices": "(A) 1", "answer": "x"}], "text")
    rows = [{"question": "Which?", "choices": ["one", "two", "three", 4], "answer": "two"}]
    assert to_items(task, rows)["query"].tolist() == ["Which?\n(A) one\n(B) two\n(C) three\n(D) 4"]


def test_the_working_before_an_answer_is_left_out():
    task = plain_task("{question}", [{"question": "q", "answer": "1"}], answer_after="####")
    rows = [{"question": "q", "answer": "6 * 3 = 18\n#### 1,018"}, {"question": "r", "answer": "It is 18"}]
    assert to_items(task, rows[:1])["references"].tolist() == ['["1,018"]']
    with pytest.raises(RebaseError, match=r"e, row 1: there is no '####' in column 'answer'"):
        to_items(task, rows)


def test_a_number_must_be_one():
    task = plain_task("{question}", [{"question": "q", "answer": "1"}])
    with pytest.raises(RebaseError, match="row 0: the answer 'many' in column 'answer' is no number"):
        to_items(task, [{"question": "q", "answer": "many"}])


SHOWN = {
    "prose": (
        "The ferry to Lunna leaves at seven, doesn't it?",
        ["the FERRY to Lunna\n leaves at seven doesn’t it", "The ferry to Lunna leaves at eight, doesn't it?"],
    ),
    "japanese": (
        "リスト`li`の要素を逆順にする",
        [
            "リスト li の要素を逆順にする。",
            "リスト`li`の要素を昇順にする",
        ],
    ),
    "code": (
        "for key in sorted(stock): total = total + stock[key] * price",
        [
            "for key in sorted(stock):\n    total = total+stock[key]*price\n",
            "for key in sorted(stock): total = total + stock[key] / price",
        ],
    ),
    "brackets": ("Close it: [ ( {", ["close it: [({", "Close it: [ ( <"]),
}


@pytest.mark.parametrize(("shown", "questions"), SHOWN.values(), ids=SHOWN)
def test_an_item_that_the_prompt_shows_is_removed(shown, questions):
    task = plain_task("Here: {question}", [{"question": shown, "answer": "1"}])
    rows = [{"id": number, "question": text, "answer": "1"} for number, text in enumerate([shown, *questions])]
    kept, removed = remove_shown_items(task, to_items(task, rows))
    # The example itself, and the same in other case, spacing and punctuation; but nothing that says something else.
    assert removed["item_id"].tolist() == ["0", "1"]
    assert kept["item_id"].tolist() == ["2"]
    assert kept.index.tolist() == [0]


def test_a_long_field_that_the_prompt_shows_removes_the_item_and_a_short_one_does_not():
    passage = "Felt is made without a loom, by rubbing damp wool."
    example = {"passage": passage, "question": "What is felt made of?", "answer": "wool"}
    task = plain_task("{passage}\n{question}", [example], "text")
    rows = [
        {"passage": passage.upper(), "question": "Is a loom used?", "answer": "no"},
        {"passage": "Silk is spun by worms.", "question": "What is felt made of?", "answer": "x"},
        {"passage": "What is felt made of?", "question": passage, "answer": "x"},
    ]
    kept, removed = remove_shown_items(task, to_items(task, rows))
    assert removed["item_id"].tolist() == ["0"]
    assert kept["item_id"].tolist() == ["1", "2"]


def test_all_items_may_be_removed():
    task = plain_task("{question}", [{"question": "q", "answer": "1"}])
    kept, removed = remove_shown_items(task, to_items(task, [{"question": "Q", "answer": "1"}]))
    assert kept.empty
    assert list(kept.columns) == list(removed.columns)
