import json

import pytest

from rebase.errors import RebaseError
from rebase.evaluation import evaluation_items
from rebase.records import Task


def make_task(fields=None, **changes):
    return Task.parse(
        {
            "name": "topic", "version": 1, "instruction": "Name it.", "query": "Text: {text}",
            "examples": [{"text": "t", "answer": "sport"}],
            "answer": {"type": "label", "labels": ["sport", "science"]}, "metrics": ["accuracy"],
            "evaluation": {"source": "e", "fields": fields or {"text": "text", "answers": "label"}} | changes,
        }, "topic.yml",
    )  # fmt: skip


def test_rows_become_items():
    rows = [{"id": "q1", "text": "Goal!", "label": "sport"}, {"id": None, "text": "Atoms", "label": "science"}]
    items = evaluation_items(make_task(), rows, "e.jsonl")
    assert items["item_id"].tolist() == ["q1", "1"]
    assert items["query"].tolist() == ["Text: Goal!", "Text: Atoms"]
    assert items["answers"].tolist() == ['["sport"]', '["science"]']
    assert json.loads(items["fields"][0]) == {"text": "Goal!"}


def test_nested_columns_label_names_and_repeated_answers():
    task = make_task({"text": "doc.text", "answers": "answers.label"}, label_names=["science", "sport"])
    rows = [{"doc": {"text": "Goal!"}, "answers": {"label": [1, 1, 0, None]}}]
    assert evaluation_items(task, rows, "e")["answers"].tolist() == ['["sport", "science"]']


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "t"}, "no column 'label'"),
        ({"txt": "t", "label": "sport"}, r"no column 'text' \(there are \['label', 'txt'\]\)"),
        ({"text": "t", "label": "art"}, "outside the task's labels"),
        ({"text": "t", "label": None}, "no answer"),
        ({"text": None, "label": "sport"}, "no value in text"),
    ],
)
def test_a_wrong_row_is_named(row, said):
    rows = [{"text": "Goal!", "label": "sport"}, row]
    with pytest.raises(RebaseError, match=f"e.jsonl, row 1: .*{said}"):
        evaluation_items(make_task(), rows, "e.jsonl")


def test_an_empty_set_is_refused():
    with pytest.raises(RebaseError, match=r"'topic' is empty: e\.jsonl"):
        evaluation_items(make_task(), [], "e.jsonl")
