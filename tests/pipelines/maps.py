"""A datastore of pairs of sentences and teachers that map it, for the tests of mappings."""

import json
from collections import Counter

import pandas as pd
import pyarrow as pa

from rebase.datastore.cells import content_hash
from rebase.datastore.shards import Shards
from rebase.parameters import ContaminationParameters, RetrieveParameters
from rebase.pipelines.map.nodes import map_datasets
from rebase.records import EXAMPLE_COLUMNS, MAPPING_COLUMNS, REJECTED_COLUMNS, RETRIEVED_COLUMNS
from rebase.teacher.budget import Price
from tests.generation.test_mapping import NAMES, PARAMETERS
from tests.pipelines.test_estimate import LABELS as LABELING
from tests.scripted import Scripted, cached
from tests.shipped import shipped_prompt, shipped_task

NLI = shipped_task("mnli")
READING = shipped_task("squad")
LABELS = NLI.answer.labels
RETRIEVE = RetrieveParameters(
    top_n=50, aggregation="max_of_mean", search="exact", annoy_candidates=10, near_duplicate=0.8, max_dataset_share=1,
    balance_labels=True,
    min_passage_words=5, max_passage_words=40, licenses={"allow": ["*"], "deny": ["*-nc-*"], "unknown": "allow"},
)  # fmt: skip
CONTAMINATION = ContaminationParameters(ngram=13)
NO_EVALUATION = pd.DataFrame(columns=["item_id", "fields", "query", "references"])
COLORS = ("red", "green", "blue", "white", "black", "brown", "gray", "pink", "gold", "teal")
MAPPING = {
    "fields": {"premise": "sentence1", "hypothesis": "sentence2"},
    "answer": {"column": "gold", "values": NAMES},
}
UNLABELED = MAPPING | {"answer": None}


def pairs(count=60, **changes):
    """Rows of an NLI set: the label follows from the number in the hypothesis."""
    return [
        {
            "sentence1": f"The {COLORS[n % 10]} boat {n} left the {COLORS[n // 10]} harbor at {n} past noon.",
            "sentence2": f"Case {n % 3} of vessel {n * 7919} is near the {COLORS[n // 10]} pier.",
            "gold": str(n % 3),
        }
        | changes
        for n in range(count)
    ]


def unlabeled(count=60, boat="boat"):
    """The rows without their labels."""
    return [{name: text.replace("boat", boat) for name, text in row.items() if name != "gold"} for row in pairs(count)]


def store(datasets, license="mit"):
    """A datastore; the name ``a:b`` is the config ``b`` of the dataset ``a``."""
    lines = {}
    for name, rows in datasets.items():
        dataset, _, config = name.partition(":")
        config = config or "default"
        lines.setdefault(dataset, []).extend(
            {"row_id": f"{dataset}/{config}/train/{n}", "dataset": dataset, "config": config, "split": "train",
             "revision": "r1", "row_index": n, "license": license, "row": json.dumps(row),
             "content_hash": content_hash({name: str(cell) for name, cell in row.items()})}
            for n, row in enumerate(rows)
        )  # fmt: skip
    return Shards(dict.fromkeys(lines, "1"), lambda name, _: pa.Table.from_pylist(lines[name]))


def retrieved_of(rows, count=6):
    lines = [line for name in rows for line in rows[name].to_pylist()[:count]]
    frame = pd.DataFrame(lines).assign(rank=range(1, len(lines) + 1), score=0.5)
    return frame.reindex(columns=RETRIEVED_COLUMNS)


def cards_of(rows):
    return pd.DataFrame({"dataset": list(rows), "description": "Sentences.", "duplicate_of": ""})


def answers_like_people(request):
    """A teacher that maps as MAPPING says, and answers NLI queries right."""
    query = request.messages[-1].content
    if "<data>" in query:
        return json.dumps({"row": "A pair of sentences.", "mapping": MAPPING})
    response = {"rationale": "It is so.", "answer": LABELS[int(query.partition("Case ")[2][0])]}
    return json.dumps({name: response[name] for name in request.schema["properties"]})


def maps_by_columns(request):
    """A teacher that maps datasets with and without labels, and answers NLI queries right."""
    if "<data>" not in (query := request.messages[-1].content) or '"gold"' in query:
        return answers_like_people(request)
    return json.dumps({"row": "Two sentences.", "mapping": UNLABELED})


def map_(datasets, say=answers_like_people, task=NLI, mode="map", *, evaluation=NO_EVALUATION, retrieve=RETRIEVE,
         license="mit", distil=LABELING, retrieved=None, **changes):  # fmt: skip
    rows = datasets if isinstance(datasets, Shards) else store(datasets, license)
    teacher = cached(Scripted(say), price=Price(input=1, output=1))
    retrieved = retrieved_of(rows) if retrieved is None else retrieved
    tables = map_datasets(
        task, retrieved, rows, cards_of(rows), evaluation, teacher, shipped_prompt("map"), shipped_prompt("distil"),
        mode, PARAMETERS.model_copy(update=changes), distil, retrieve, CONTAMINATION,
    )  # fmt: skip
    mappings, examples, rejected, summary = tables
    assert list(mappings) == MAPPING_COLUMNS
    assert list(examples) == EXAMPLE_COLUMNS
    assert list(rejected) == REJECTED_COLUMNS
    assert summary["in"] == summary["kept"] + sum(summary["rejected"].values()) == mappings["rows"].sum()
    assert len(examples) == summary["kept"] == mappings["used"].sum()
    assert json.loads(json.dumps(summary)) == summary
    listed = Counter(rejected["reason"])
    assert {name: summary["rejected"].get(name) for name in listed} == listed
    return *tables, teacher.teacher
