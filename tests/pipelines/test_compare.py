"""The compare pipeline over a tiny student; the teacher's outputs are given."""

import json
from collections import Counter
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
from rebase.pipelines.compare.attempts import REPLACEMENTS, no_adapter, no_examples, tolerate
from rebase.pipelines.compare.nodes import add_mapped, learn_curve, score_curves, score_systems, tabulate
from rebase.pipelines.compare.pipeline import TRAINING_SETS
from rebase.records import (
    COMPARISON_COLUMNS,
    CURVE_COLUMNS,
    CURVES_COLUMNS,
    DISTILLED_COLUMNS,
    TRAINING_COLUMNS,
    TRAINING_LOG_COLUMNS,
    Adapter,
    Task,
    Untrained,
    summarize_stage,
)
from rebase.reporting.console import comparison_tables
from rebase.student.answering import as_generations
from rebase.student.handle import Student
from tests.shipped import shipped_task
from tests.tiny import evaluate_parameters, evaluation_items, make_student, reasoned_examples, train_parameters

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
        "mapped_sample": examples.head(8),
        "mapped_rebase_examples": examples.head(9).assign(origin=["mapped_examples"] * 4 + ["examples"] * 5),
        "mapped_rebase_price_examples": examples.head(9).assign(origin="mapped_examples"),
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
    shots = tuple({**example, "rationale": "It says so."} for example in reading_task.examples)
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
    assert list(table) == COMPARISON_COLUMNS
    assert len(table) == 3 * 10  # metrics, with the lenient score, x systems
    rows = table.drop_duplicates("system").set_index("system")
    assert rows["examples"].to_dict() == {
        "student": 0, "student_few_shot": 2, "synthesized": 6, "distilled": 7, "rebase": 10, "rebase_cot": 10,
        "mapped": 8, "mapped_rebase": 9, "mapped_rebase_price": 9, "teacher": 2,
    }  # fmt: skip
    assert rows["requests"].to_list() == [0, 0, 12, 24, 12, 24, 12, 18, 12, 12]
    assert rows["dollars"].to_list() == [0, 0, 0.5, 1.0, 0.5, 1.0, 0.5, 0.75, 0.5, 0.5]
    assert rows["seeds"].to_list() == [0, 0, 2, 2, 2, 2, 2, 2, 2, 0]
    assert rows.loc["rebase", "seed_deviation"] >= 0
    assert len(made["scores"]["differences"]) == 10 * 9 / 2


def test_curves_have_every_seed(made):
    curves = made["curves"]
    assert list(curves) == CURVES_COLUMNS
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


def test_a_size_that_cannot_be_trained_is_left_out_of_the_curve_alone(
    student: Student, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def train(student, training_set, parameters):
        if len(training_set) < 4:
            raise RebaseError("train: there are too few")
        return Adapter(Path("somewhere"), "tiny"), None, {}

    monkeypatch.setattr("rebase.pipelines.compare.nodes.train_adapter", train)
    full = pd.DataFrame({"prompt": list("abcdef"), "completion": list("abcdef")})
    runs = learn_curve(full, student, train_parameters(), CompareParameters(sizes=(2, 4), seeds=(2,), targets=TARGETS))
    assert list(zip(runs["examples"], runs["seed"], strict=True)) == [(4, 1), (4, 2), (6, 2)]
    assert "no run on 2 examples (seed 1): train: there are too few" in caplog.text
    assert "no run on 2 examples (seed 2)" in caplog.text


@pytest.mark.slow
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
        "mapped_rebase_price",
        "teacher",
    ]
    assert set(made["curves"]["training_set"]) == {*TRAINING_SETS} - {"rebase_cot"}


def test_why_there_is_no_training_set_is_passed_on() -> None:
    table = REPLACEMENTS["format_training_set"]("train.exclude excludes all examples")
    assert (list(table.columns), table.attrs) == (TRAINING_COLUMNS, {"left_out": "train.exclude excludes all examples"})


def test_a_set_that_is_too_small_is_left_out_with_the_reason(student: Student, reading_task: Task, tmp_path: Path):
    made = run(reading_task, student, tmp_path, synthesized=1)
    systems = ["student", "student_few_shot", *TRAINING_SETS, "teacher"]
    assert list(made["scores"]["systems"]) == [name for name in systems if name not in ("synthesized", "rebase_cot")]
    assert "fewer than one step" in made["scores"]["left_out"]["synthesized"]
    assert set(made["curves"]["training_set"]) == {*TRAINING_SETS} - {"rebase_cot", "synthesized"}
    assert AdapterDataset(str(tmp_path / "synthesized")).load() == Untrained(made["scores"]["left_out"]["synthesized"])
    console = Console(width=200, file=StringIO())
    console.print(comparison_tables("tiny", made["comparison"], made["scores"]))
    assert "Left out: synthesized. train: there are 1 training examples" in console.file.getvalue()


def test_a_trained_system_that_gives_one_label_is_named():
    task, items = shipped_task("mnli"), [str(n) for n in range(30)]
    one, *others = task.answer.labels
    gold = [one, *others] * 10
    outputs = {"student": [one] * 30, "student_few_shot": gold, "rebase": [one] * 30, "mapped": gold, "teacher": gold}
    generations = pd.concat(
        pd.DataFrame(
            {"system": system, "item_id": items, "prompt": "", "raw_output": output, "references": map(_as_json, gold)}
        )
        for system, output in outputs.items()
    )
    _, scores = score_systems(task, evaluate_parameters(), {"left_out": {}}, generations)
    assert [line.partition(":")[0] for line in scores["warnings"]] == [
        "rebase is not clearly above the most frequent label",
        "rebase gives nearly one label",
        "rebase is below the student with examples in its prompt",
    ]


def _as_json(label: str) -> str:
    return json.dumps([label])


def test_a_failed_map_leaves_its_mappings():
    def fail(task):
        raise StageError("none could be mapped", mappings=pd.DataFrame({"state": ["unsuitable"]}))

    outputs = ["mappings", "mapped_examples", "mapped_rejected", "map_summary"]
    node = Node(fail, "task", outputs, name="map_datasets")
    made = SequentialRunner().run(tolerate(Pipeline([node])), DataCatalog({"task": MemoryDataset(1)}))
    assert list(made["mappings"].load()["state"]) == ["unsuitable"]
    assert made["mapped_examples"].load().empty
    assert made["mapped_rejected"].load().empty
    assert made["map_summary"].load()["left_out"] == "none could be mapped"


def test_curves_need_a_training_set(student: Student, reading_task: Task):
    scores = {"systems": {"student": {}, "teacher": {}}, "left_out": {"rebase": "train: too few"}}
    with pytest.raises(RebaseError, match=r"none of the training sets could be trained: .*train: too few"):
        score_curves(reading_task, evaluation_items(2), student, scores, train_parameters(), evaluate_parameters())


def test_curves_count_what_each_run_was_given(student: Student, reading_task: Task):
    """All runs on the full set have one number of examples, by which the seeds are found."""
    scores = {"systems": {name: {"f1": {"value": 1.0, "low": 0.0, "high": 2.0}} for name in ("student", "rebase")}}
    rejected = {"target_truncated": 1, "validation": 2, "license_excluded": 4}
    trained = {
        "rebase_curve": pd.DataFrame(columns=CURVE_COLUMNS),
        "rebase_train_summary": summarize_stage("train", kept=8, rejected=rejected, seconds=1),
    }
    settings = (train_parameters(), evaluate_parameters())
    curves = score_curves(reading_task, evaluation_items(2), student, scores, *settings, **trained)
    assert list(curves["examples"]) == [0, 11]


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
        {"label": no_examples("distil", DISTILLED_COLUMNS), "train": no_adapter},
    )
    outputs = SequentialRunner().run(pipeline, DataCatalog({"task": MemoryDataset(1)}))
    assert outputs["adapter"].load() == Untrained("distil: nothing usable")
    assert list(outputs["labels"].load()) == DISTILLED_COLUMNS
    assert outputs["labels"].load().empty
    assert list(outputs["log"].load()) == TRAINING_LOG_COLUMNS
    assert list(outputs["labels_rejected"].load()["row_id"]) == ["r1"]


def mapped_sets(mapped, rewritten, of_map=10, of_transform=100, mapped_from=0, seed=1):
    """The three sets with mapped examples; mapped queries count from ``mapped_from``, the others from 0."""
    tables = [
        pd.DataFrame({"example_id": map(str, numbers), "query": [f"question {n}" for n in numbers]})
        for numbers in (range(mapped_from, mapped_from + mapped), range(rewritten))
    ]
    usage = [{"usage": {"used": used}} for used in (of_map, of_transform)]
    return add_mapped(*tables, *usage, train_parameters(seed=seed))


@pytest.mark.parametrize(
    ("counts", "sizes", "bought"),
    [
        ((300, 40), (40, (20, 20), 300), 36),
        ((12, 40), (12, (12, 12), 12), 36),
        ((300, 40, 100, 100), (40, (20, 20), 300), 0),
        ((300, 40, 130, 100), (40, (20, 20), 300), 0),
        ((300, 40, 0, 0), (40, (20, 20), 300), 0),
        ((300, 1), (1, (1, 0), 300), 0),
    ],
)
def test_mapped_sets_have_the_size_or_the_price_of_the_rewritten_one(counts, sizes, bought):
    sample, mixed, priced = mapped_sets(*counts, mapped_from=1000)
    count = Counter(mixed["origin"])
    assert (len(sample), (count["mapped_examples"], count["examples"])) == sizes[:2]
    assert Counter(priced["origin"]) == +Counter(mapped_examples=sizes[2], examples=bought)
    rewritten = priced[priced["origin"] == "examples"]["query"]
    assert list(rewritten) == [f"question {n}" for n in range(bought)], "the first ones"
    assert list(sample["query"]) == list(mapped_sets(*counts, mapped_from=1000)[0]["query"])


def test_a_query_that_was_mapped_and_rewritten_counts_once():
    sample, mixed, priced = mapped_sets(30, 40, mapped_from=20)
    assert Counter(mixed["origin"]) == {"mapped_examples": 20, "examples": 20}
    assert Counter(priced["origin"]) == {"mapped_examples": 30, "examples": 20}
    assert all(table["query"].is_unique for table in (sample, mixed, priced))
    assert list(mapped_sets(30, 40, seed=2)[0]["query"]) != list(sample["query"])


def test_without_mapped_examples_each_set_has_the_reason():
    examples = pd.DataFrame({"query": ["a"]})
    nothing = examples.head(0)
    usage = {"usage": {"used": 1}}
    nothing.attrs = {"left_out": "transform.mode is rewrite"}
    sets = add_mapped(nothing, examples, usage, usage, train_parameters())
    assert [table.attrs["left_out"] for table in sets] == ["transform.mode is rewrite"] * 3


def test_an_unknown_price_is_null(reading_task: Task):
    cell = {"value": 1.0, "low": 0.0, "high": 2.0}
    scores = {"n": 3, "systems": {"rebase": {"f1": cell}}}
    curves = pd.DataFrame(columns=["training_set", "metric", "examples", "value"])
    summaries = {
        "transform_summary": {"usage": {"used": 3, "used_dollars": None}},
        "rebase_train_summary": {"kept": 3, "seconds": 60},
    }
    (row,) = tabulate(scores, reading_task, curves, *[pd.DataFrame()] * 3, **summaries).to_dict("records")
    assert row["dollars"] is None
    assert row["minutes"] == 1
    assert json.dumps(row)
