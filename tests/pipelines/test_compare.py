"""The compare pipeline over a tiny student; the teacher's outputs are given."""

import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset
from rich.console import Console

from rebase.datasets.adapter import AdapterDataset
from rebase.errors import RebaseError, StageError
from rebase.parameters import CompareParameters
from rebase.pipelines.compare import create_pipeline
from rebase.pipelines.compare.attempts import no_adapter, no_examples, tolerate
from rebase.pipelines.compare.nodes import learn_curve, score_curves, tabulate
from rebase.pipelines.compare.pipeline import TRAINING_SETS
from rebase.records import Adapter, Task, Untrained
from rebase.reporting.console import comparison_tables
from rebase.student.answering import as_generations
from rebase.student.handle import Student
from tests.pipelines.test_train_evaluate import evaluation_items
from tests.tiny import evaluate_parameters, make_student, reasoned_examples, train_parameters

TARGETS = dict.fromkeys(TRAINING_SETS, "answer") | {"rebase_cot": "rationale_then_answer"}
USAGE = {"used": 12, "used_dollars": 0.5}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


def teacher_generations() -> pd.DataFrame:
    items = evaluation_items(5)
    return as_generations("teacher", items, items["query"], [f"in barn {n}" for n in range(5)])


def run(task: Task, student: Student, folder: Path, seeds=(), synthesized=6) -> dict[str, object]:
    """Outputs of the pipeline for given examples, without the stages that use the teacher."""
    examples = reasoned_examples(10)
    unproven = examples.assign(dataset=None, license=None).drop(columns="rationale")
    given = {
        "task": task,
        "examples": examples.drop(columns="rationale"),
        "reasoned_examples": examples,
        "synthesized_examples": unproven.head(synthesized),
        "distilled_examples": examples.head(7),
        "mapped_examples": examples.head(8),
        "mapped_rebase_examples": examples.head(9),
        "teacher_generations": teacher_generations(),
        "evaluation_items": evaluation_items(5),
        "params:train": train_parameters(),
        "params:evaluate": evaluate_parameters(),
        "params:compare": CompareParameters(sizes=(), seeds=seeds, targets=TARGETS),
        **{f"params:compare.targets.{name}": target for name, target in TARGETS.items()},
        **{
            f"{stage}_summary": {"usage": USAGE}
            for stage in ("transform", "cot", "synthesize", "distil", "map", "teacher")
        },
    }
    catalog = DataCatalog(
        {name: MemoryDataset(value) for name, value in given.items()}
        | {"student": MemoryDataset(student, copy_mode="assign")}
        | {"comparison_scores": JSONDataset(filepath=str(folder / "scores.json"))}
        | {name: ParquetDataset(filepath=str(folder / name)) for name in ("curves", "comparison_predictions")}
        | {f"{name}_adapter": AdapterDataset(str(folder / name)) for name in TRAINING_SETS}
    )
    pipeline = create_pipeline().from_inputs("student")
    made = SequentialRunner().run(pipeline.to_outputs("comparison_plot", "curves_plot", "comparison"), catalog)
    return {name: dataset.load() for name, dataset in made.items()} | {
        "scores": catalog.load("comparison_scores"),
        "curves": catalog.load("curves"),
        "predictions": catalog.load("comparison_predictions"),
    }


@pytest.fixture(scope="module")
def made(student: Student, reading_task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    shots = [{**example, "rationale": "It says so."} for example in reading_task.examples]
    task = reading_task.model_copy(update={"cot": True, "examples": shots})
    return run(task, student, tmp_path_factory.mktemp("compared"), seeds=(2,))


def test_every_system_answers_the_same_items(made):
    predictions = made["predictions"]
    systems = ["student", "student_few_shot", *TRAINING_SETS, "teacher"]
    assert list(predictions["system"].unique()) == systems
    assert (predictions.groupby("item_id").size() == len(systems)).all()
    prompts = predictions[predictions["item_id"] == "i0"].set_index("system")["prompt"]
    assert "So the answer is" in prompts["student_few_shot"]
    assert prompts.drop(["student_few_shot", "teacher"]).nunique() == 1


def test_the_table_has_the_cost_of_each_system(made):
    table = made["comparison"]
    assert len(table) == 3 * 9  # metrics, with the lenient score, x systems
    rows = table.drop_duplicates("system").set_index("system")
    assert rows["examples"].to_dict() == {
        "student": 0, "student_few_shot": 2, "synthesized": 6, "distilled": 7, "rebase": 10, "rebase_cot": 10,
        "mapped": 8, "mapped_rebase": 9, "teacher": 2,
    }  # fmt: skip
    assert rows["requests"].to_list() == [0, 0, 12, 24, 12, 24, 12, 24, 12]
    assert rows["dollars"].to_list() == [0, 0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0, 0.5]
    assert rows["seeds"].to_list() == [0, 0, 2, 2, 2, 2, 2, 2, 0]
    assert rows.loc["rebase", "seed_deviation"] >= 0
    assert len(made["scores"]["differences"]) == 9 * 8 / 2


def test_curves_have_every_seed(made):
    curves = made["curves"]
    runs = curves[curves["metric"] == "f1"].groupby("training_set")[["examples", "seed"]].apply(
        lambda frame: sorted(map(tuple, frame.to_numpy().tolist()))
    )  # fmt: skip
    assert runs["synthesized"] == [(0, 1), (6, 1), (6, 2)]
    assert runs["rebase"] == [(0, 1), (10, 1), (10, 2)]
    names = {trace.name for trace in made["curves_plot"].data}
    assert names == set(TRAINING_SETS)


def test_every_size_is_trained_with_every_seed(student: Student, monkeypatch: pytest.MonkeyPatch):
    sets: list[tuple[int, list[str]]] = []

    def record(student, training_set, parameters):
        sets.append((parameters.seed, training_set["prompt"].to_list()))
        return Adapter(Path("somewhere"), "tiny"), None, {}

    monkeypatch.setattr("rebase.pipelines.compare.nodes.train_adapter", record)
    full = pd.DataFrame({"prompt": list("abcdef"), "completion": list("abcdef")})
    compare = CompareParameters(sizes=(4, 2, 100), seeds=(2,), targets=TARGETS)
    runs = learn_curve(full, student, train_parameters(), compare)
    assert list(zip(runs["examples"], runs["seed"], strict=True)) == [(4, 1), (2, 1), (4, 2), (2, 2), (6, 2)]
    assert [(len(chosen), seed) for seed, chosen in sets] == list(zip(runs["examples"], runs["seed"], strict=True))
    assert set(sets[1][1]) < set(sets[0][1])  # with one seed a smaller set is part of a larger one
    assert sets[-1][1] == list("abcdef")


def test_without_chain_of_thought_rebase_is_compared_once(student: Student, reading_task: Task, tmp_path: Path):
    made = run(reading_task, student, tmp_path)
    assert list(made["scores"]["systems"]) == [
        "student",
        "student_few_shot",
        "synthesized",
        "distilled",
        "rebase",
        "mapped",
        "mapped_rebase",
        "teacher",
    ]
    assert set(made["curves"]["training_set"]) == {*TRAINING_SETS} - {"rebase_cot"}


def test_a_set_that_is_too_small_is_left_out_with_the_reason(student: Student, reading_task: Task, tmp_path: Path):
    made = run(reading_task, student, tmp_path, synthesized=1)
    assert list(made["scores"]["systems"]) == [
        "student", "student_few_shot", "distilled", "rebase", "mapped", "mapped_rebase", "teacher",
    ]  # fmt: skip
    assert "fewer than one batch" in made["scores"]["left_out"]["synthesized"]
    assert set(made["curves"]["training_set"]) == {"distilled", "rebase", "mapped", "mapped_rebase"}
    assert AdapterDataset(str(tmp_path / "synthesized")).load() == Untrained(made["scores"]["left_out"]["synthesized"])
    console = Console(width=200, file=StringIO())
    console.print(comparison_tables("tiny", made["comparison"], made["scores"]))
    assert "Left out: synthesized. train: there are 1 training examples" in console.file.getvalue()


def test_curves_need_a_training_set(student: Student, reading_task: Task):
    scores = {"systems": {"student": {}, "teacher": {}}, "left_out": {"rebase": "train: too few"}}
    with pytest.raises(RebaseError, match=r"none of the training sets could be trained: .*train: too few"):
        score_curves(reading_task, evaluation_items(2), student, scores, train_parameters(), evaluate_parameters())


def test_a_failed_stage_leaves_its_set_out():
    def label(task):
        raise StageError("distil: nothing usable", pd.DataFrame({"row_id": ["r1"]}))

    def train(preflight):
        raise AssertionError("not called")

    pipeline = tolerate(
        Pipeline(
            [
                Node(label, "task", ["labels", "labels_rejected", "summary"], name="label"),
                Node(train, "summary", ["adapter", "log", "train_summary"], name="train"),
            ]
        ),
        {"label": no_examples("distil"), "train": no_adapter},
    )
    outputs = SequentialRunner().run(pipeline, DataCatalog({"task": MemoryDataset(1)}))
    assert outputs["adapter"].load() == Untrained("distil: nothing usable")
    assert outputs["labels"].load().empty
    assert list(outputs["labels_rejected"].load()["row_id"]) == ["r1"]


def test_an_unknown_price_is_null(reading_task: Task):
    cell = {"value": 1.0, "low": 0.0, "high": 2.0}
    scores = {"n": 3, "systems": {"rebase": {"f1": cell}}}
    curves = pd.DataFrame(columns=["training_set", "metric", "examples", "value"])
    summaries = {
        "transform_summary": {"usage": {"used": 3, "used_dollars": None}},
        "rebase_train_summary": {"kept": 3, "seconds": 60},
    }
    (row,) = tabulate(scores, reading_task, curves, **summaries).to_dict("records")
    assert row["dollars"] is None
    assert row["minutes"] == 1
    assert json.dumps(row)
