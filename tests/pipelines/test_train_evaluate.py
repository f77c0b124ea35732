"""Train and evaluate, run as pipelines over a tiny student."""

import json
from pathlib import Path

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset
from sacrebleu.metrics import CHRF

from rebase.datasets.adapter import AdapterDataset
from rebase.errors import RebaseError
from rebase.pipelines import prepare
from rebase.pipelines.evaluate import create_pipeline as create_evaluate
from rebase.pipelines.evaluate.nodes import predict
from rebase.pipelines.train import create_pipeline as create_train
from rebase.records import Task
from rebase.student.handle import Student
from rebase.tasks.evaluation_items import remove_shown_items
from rebase.tasks.scoring import score_predictions
from tests.tiny import evaluate_parameters, make_student, reasoned_examples, train_parameters


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


def evaluation_items(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "fields": [
                json.dumps({"context": f"The owl sleeps in barn {n}.", "question": "Where?"}) for n in range(count)
            ],
            "query": [f"The owl sleeps in barn {n}.\n\nQuestion: Where?" for n in range(count)],
            "references": [json.dumps([f"in barn {n}", f"barn {n}"]) for n in range(count)],
        }
    )


def test_from_examples_to_scores(student: Student, reading_task: Task, tmp_path: Path) -> None:
    examples = reasoned_examples(9)
    summary = {"in": 9, "kept": 9, "rejected": {}}
    stages = ("ingest", "embed", "index", "retrieve", "transform", "cot")
    catalog = DataCatalog(
        {
            "task": MemoryDataset(reading_task),
            "student": MemoryDataset(student, copy_mode="assign"),
            "reasoned_examples": MemoryDataset(examples),
            "evaluation_items": MemoryDataset(evaluation_items(7)),
            "retrieved": MemoryDataset(examples.assign(row='{"title": "Birds"}')),
            "adapter": AdapterDataset(str(tmp_path / "adapter")),
            "training_log": ParquetDataset(filepath=str(tmp_path / "log.parquet")),
            "preflight": JSONDataset(filepath=str(tmp_path / "preflight.json")),
            "scores": JSONDataset(filepath=str(tmp_path / "scores.json")),
            "run_version": MemoryDataset("2026-11-29T10.00.00.000Z"),
            "params:train": MemoryDataset(train_parameters()),
            "params:train.target": MemoryDataset("answer"),
            "params:evaluate": MemoryDataset(evaluate_parameters(limit=5)),
            **{f"{stage}_summary": MemoryDataset({"stage": stage, **summary}) for stage in stages},
        }
    )
    outputs = SequentialRunner().run(create_train() + (create_evaluate() - prepare.create_pipeline()), catalog)
    made = {name: dataset.load() for name, dataset in outputs.items()}

    adapter = catalog.load("adapter")
    card = (adapter.folder / "README.md").read_text()
    assert "| birds | cc0-1.0 | local:tiny | 4 |" in card
    assert "| foxes | cc0-1.0 | local:tiny | 5 |" in card
    assert str(tmp_path) not in card

    assert catalog.load("training_log")["step"].tolist() == [1, 2, 3]
    assert catalog.load("preflight")["steps"] == 3
    assert list(made["loss_plot"].data[0].x) == [1, 2, 3]
    assert catalog.load("scores")["run"] == "2026-11-29T10.00.00.000Z"
    assert [bar.name for bar in made["scores_plot"].data] == ["student", "student_few_shot", "expert"]


@pytest.fixture
def generations() -> pd.DataFrame:
    lines = [
        ("student", "a", "p", "somewhere", '["in barn 1", "barn 1"]'),
        ("student", "b", "p", "in barn 2", '["in barn 2"]'),
        ("expert", "a", "p", "Barn 1.\nIt sleeps.", '["in barn 1", "barn 1"]'),
        ("expert", "b", "p", "In barn 2", '["in barn 2"]'),
    ]
    return pd.DataFrame(lines, columns=["system", "item_id", "prompt", "raw_output", "references"])


def test_items_that_the_prompt_shows_are_left_out(student: Student, reading_task: Task) -> None:
    items = evaluation_items(3)
    items.loc[1, "fields"] = json.dumps({**reading_task.examples[0], "question": "What does it catch?"})
    with pytest.raises(RebaseError, match="show every evaluation item"):
        predict(reading_task, items.iloc[[1]], student, None, evaluate_parameters())
    kept, shown = remove_shown_items(reading_task, items)
    assert (kept["item_id"].to_list(), shown["item_id"].to_list()) == (["i0", "i2"], ["i1"])


def test_chrf_is_the_corpus_score(generations: pd.DataFrame, reading_task: Task) -> None:
    task = reading_task.model_copy(update={"metrics": ("chrf",)})
    predictions, scores = score_predictions(task, generations, evaluate_parameters())
    for system, frame in predictions.groupby("system"):
        references = [json.loads(answers) for answers in frame["references"]]
        width = max(map(len, references))
        padded = [[row[place] if place < len(row) else row[0] for row in references] for place in range(width)]
        published = CHRF(word_order=2).corpus_score(frame["extracted"].to_list(), padded).score
        assert scores["systems"][system]["chrf"]["value"] == pytest.approx(published, abs=0.01)
    gain = scores["differences"]["expert - student"]["chrf"]["value"]
    systems = scores["systems"]
    assert gain == pytest.approx(systems["expert"]["chrf"]["value"] - systems["student"]["chrf"]["value"], abs=0.02)


def test_scores_and_paired_difference(generations: pd.DataFrame, reading_task: Task) -> None:
    predictions, scores = score_predictions(reading_task, generations, evaluate_parameters())
    assert list(predictions["extracted"]) == ["somewhere", "in barn 2", "Barn 1.", "In barn 2"]
    assert list(predictions["exact_match"]) == [0, 1, 1, 1]
    assert scores["systems"]["student"]["exact_match"]["value"] == 50
    assert scores["systems"]["expert"]["exact_match"] == {"value": 100, "low": 100, "high": 100}
    assert scores["differences"]["expert - student"]["exact_match"]["value"] == 50
    json.dumps(scores)
