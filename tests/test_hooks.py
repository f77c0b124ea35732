import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from kedro.framework.context import KedroContext
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import AbstractRunner, SequentialRunner, ThreadRunner

from rebase.errors import StageError
from rebase.hooks import OriginRecorder, RunReporter, load_origins
from rebase.records import Task
from rebase.reporting.freshness import find_outdated

ROOT = Path(__file__).parents[1]


def test_the_line_of_a_stage_has_the_stage_s_own_seconds(caplog: pytest.LogCaptureFixture) -> None:
    summary = {"stage": "cot", "in": 1, "kept": 1, "rejected": {}, "seconds": 12.5}
    before = dict(summary)
    with caplog.at_level("INFO"):
        RunReporter().after_node_run({"cot_summary": summary, "other": {}})
    assert summary == before
    assert [record.getMessage() for record in caplog.records] == ["cot       in 1 · kept 1 · 12 s"]


def run_of(*outputs: str) -> Pipeline:
    return Pipeline([Node(lambda: None, None, [*outputs], name="made")])


def catalog_of(folder: Path, **data: object) -> DataCatalog:
    entries = {
        name: {"type": "json.JSONDataset", "filepath": str(folder / f"{name}.json"), "versioned": name == "run_record"}
        for name in (*data, "run_record")
    }
    partitions = {"path": str(folder / "origins"), "dataset": "json.JSONDataset", "filename_suffix": ".origin.json"}
    entries["origins"] = {"type": "partitions.PartitionedDataset", **partitions}
    catalog = DataCatalog.from_config(entries)
    for name, content in data.items():
        catalog.save(name, content)
    return catalog


def end(pipeline: Pipeline, catalog: DataCatalog) -> None:
    reporter = RunReporter()
    parameters = {"only_missing_outputs": False, "env": "test"}
    reporter.before_pipeline_run(parameters, pipeline, catalog)
    reporter.after_pipeline_run(parameters, pipeline, catalog)


def test_a_run_without_the_report_prints_and_records_its_scores(
    tmp_path: Path, reading_task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = {"value": 40.0, "low": 30.0, "high": 50.0}
    scores = {"task": "t", "n": 9, "systems": {"expert": {"f1": cell}}, "verdict": "Too few.", "warnings": []}
    train = {"stage": "train", "in": 12, "kept": 9, "rejected": {"excluded_dataset": 3}, "base_model": "tiny"}
    catalog = catalog_of(tmp_path, scores=scores, train_summary=train, adapter={}, parameters={"train": {"seed": 1}})
    catalog["task"] = MemoryDataset(reading_task)
    end(run_of("scores", "adapter"), catalog)
    output = capsys.readouterr().out
    for words in ("9 of 12", "40.0  [30.0, 50.0]", "Too few.", f"{tmp_path}/adapter.json", "kedro report --env=test"):
        assert words in output, words
    record = catalog.load("run_record")
    assert record["scores"] == scores
    assert record["counts"]["train"]["kept"] == 9
    assert record["models"]["student"] == "tiny"


def test_a_judge_prints_its_grades_and_where_the_form_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grades = {"expert": {"helpful": {"value": 3.25, "low": 3.0, "high": 3.5, "n": 40}}}
    catalog = catalog_of(tmp_path, judge_scores={"judge": "local/tiny", "grades": grades}, grading_form={})
    end(run_of("judge_scores", "grading_form"), catalog)
    output = capsys.readouterr().out
    assert "3.25" in output
    assert f"{tmp_path}/grading_form.json" in output


def run_and_record(catalog: DataCatalog, runner: AbstractRunner, value: str) -> dict[str, Any]:
    """The origins after a run of two nodes, of which the second one has two outputs."""
    table = pd.DataFrame({"answer": [value]})
    nodes = [
        Node(lambda: table, None, "generations", name="predict"),
        Node(lambda table: (table, {"answer": value}), "generations", ["predictions", "scores"], name="score"),
    ]
    hooks = _create_hook_manager()
    hooks.register(OriginRecorder())
    with suppress(TypeError):  # of a dataset that cannot be saved
        runner.run(Pipeline(nodes), catalog, hook_manager=hooks)
    return {name: load() for name, load in load_origins(catalog).items()}


@pytest.mark.parametrize("runner", [SequentialRunner(), SequentialRunner(is_async=True), ThreadRunner(max_workers=2)])
def test_each_output_has_its_origin(tmp_path: Path, runner: AbstractRunner) -> None:
    catalog = catalog_of(tmp_path)
    assert load_origins(catalog) == {}
    origins = run_and_record(catalog, runner, "old")
    assert set(origins) == {"generations", "predictions", "scores"}
    assert origins["scores"]["made_from"] == {"generations": origins["generations"]["content"]}
    assert find_outdated(origins, [*origins]) == []


def test_an_output_that_was_not_saved_is_outdated_until_it_is(tmp_path: Path) -> None:
    """A run that ends between two saves leaves an output of an earlier run beside a new one."""
    catalog = catalog_of(tmp_path, scores={})
    run_and_record(catalog, SequentialRunner(), "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog["scores"], "save", None)
        origins = run_and_record(catalog, SequentialRunner(), "new")
    assert find_outdated(origins, [*origins]) == ["scores"]
    origins = run_and_record(catalog, SequentialRunner(), "new")
    assert find_outdated(origins, [*origins]) == []


def test_the_tables_of_a_failed_stage_are_saved() -> None:
    def fail() -> None:
        raise StageError("nothing", pd.DataFrame({"row_id": ["r"]}), pd.DataFrame({"state": ["unsuitable"]}))

    outputs = ["mappings", "mapped_examples", "mapped_rejected", "map_summary"]
    node = Node(fail, None, outputs, name="map_datasets")
    catalog = DataCatalog({name: MemoryDataset() for name in outputs})
    with pytest.raises(StageError) as error:
        node.run()
    RunReporter().on_node_error(error.value, node, catalog)
    assert [name for name in outputs if catalog.exists(name)] == ["mappings", "mapped_rejected"]
    assert list(catalog.load("mappings")["state"]) == ["unsuitable"]


def test_kedro_orders_what_tables_of_examples_are_read_and_made() -> None:
    bootstrap_project(ROOT)
    for names in ("distil,students", "mix,students", "distil,mix", "transform,distil", "evaluate,groups"):
        maker, reader = (pipelines[name] for name in names.split(","))
        assert reader.inputs() & maker.all_outputs(), names


def create_context(conf: Path | None = None, env: str = "base", **params: object) -> KedroContext:
    """The context of a run with these ``--params``, and with another configuration than the project's."""
    bootstrap_project(ROOT)
    source = str(conf) if conf else None
    with KedroSession.create(ROOT, env=env, runtime_params=params, conf_source=source) as session:
        return session.load_context()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"teacher": {"budgt_usd": 1}}, r"nothing reads teacher\.budgt_usd\. Did you mean teacher\.budget_usd"),
        ({"trian": {"epochs": 1}}, r"nothing reads trian\.epochs\. Did you mean train"),
        ({"task": "squad", "zzz": 1}, r"nothing reads zzz\. Allowed: .*student\.model, .*train"),
    ],
)
def test_a_setting_that_nothing_reads_stops_the_run(params: dict[str, object], words: str) -> None:
    with pytest.raises(click.ClickException, match=words):
        create_context(**params)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"transform": {"led": False}}, r"--params: transform\.led is now called transform\.guided"),
        (
            {"replies": "a.sqlite", "synthesize": {"spend": "dollars"}},
            r"synthesize\.spend no longer exists.* responses",
        ),
    ],
)
def test_an_old_name_stops_the_run_with_the_new_one(params: dict[str, object], words: str) -> None:
    with pytest.raises(click.ClickException, match=words):
        create_context(**params)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("parameters.yml", "train: {exclude: {licences: [x]}}", r"train\.exclude\.licences is now .*exclude\.licenses"),
        ("globals.yml", "teacher: {in_flight: 4}", r"globals\.yml: teacher\.in_flight is now .*max_concurrency"),
        ("catalog_own.yml", "evaluation_set: {type: pandas.CSVDataset}", "evaluation_items"),
        ("parameters.yml", "train: {epochs: [", r"test/parameters\.yml: not valid YAML"),
        ("parameters.yml", 'train: {epochs: "${globals:nothing}"}', r"'nothing' not found.*\n.*train\.epochs"),
        ("globals.yml", "taskk: squad", r"test/globals\.yml: nothing reads taskk\. Did you mean task\?"),
        ("globals.yml", "budget_usd: 2", r"nothing reads budget_usd\. Did you mean teacher\.budget_usd\?"),
        ("globals.yml", "teacher: {budgt_usd: 2}", r"nothing reads teacher\.budgt_usd\. .* teacher\.budget_usd\?"),
        ("globals.yml", "student: {mdel: x}", r"nothing reads student\.mdel\. Did you mean student\.model\?"),
        ("parameters.yml", "trian: {epochs: 2}", r"test/parameters\.yml: nothing reads trian\. Did you mean train\?"),
        ("globals.yml", "datastore: ../x", r"datastore: String should match"),
        ("parameters.yml", "students: [{model: x}]", r"test/parameters\.yml: students is a group .* in globals\.yml"),
        ("parameters_own.yml", "max_examples: 5", r"nothing reads max_examples\. Allowed: .* train, transform"),
    ],
)
def test_a_mistake_or_old_name_in_the_environment_s_files_stops_the_run(
    tmp_path: Path, file: str, content: str, words: str
) -> None:
    conf = Path(shutil.copytree(ROOT / "conf", tmp_path / "conf"))
    (conf / "test" / file).write_text(content)
    with pytest.raises(click.ClickException, match=words):
        create_context(conf, "test")


def test_an_environment_that_does_not_exist_is_one_message() -> None:
    with pytest.raises(click.ClickException, match=r"There is no environment 'gpuu' in .*conf\. Did you mean gpu\?"):
        create_context(env="gpuu")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"train": {"epoch": 2}}, r"train\.epoch is unknown\. Did you mean train\.epochs\?"),
        ({"evaluate": {"limit": "x"}}, r"evaluate\.limit: .*integer \(allowed: integer ≥ 1, ≤ 10,000,000 or `null`\)"),
        ({"retrieve": {"aggregation": "median"}}, r"retrieve\.aggregation: .*'mean_of_max', not 'median'"),
        ({"seed": -1}, r"train\.seed: .* \(allowed: integer ≥ 0"),
        ({"task": None}, r"\(--params, or globals\.yml\) are wrong:\n  task: Input should be a valid string"),
        ({"sources": ["a", 1]}, r"globals\.yml\) are wrong:\n  sources\.1: .* string, not 1 .*: write it in quotes"),
        ({"train": [1]}, r"--params: train is a group of parameters, not a list: set train\.NAME\.$"),
        ({"students": [{"model": "x"}]}, r"students is a group .* The list of students belongs in globals\.yml\."),
    ],
)
def test_a_wrong_value_stops_the_run_before_kedro_reads_it(params: dict[str, object], words: str) -> None:
    with pytest.raises(click.ClickException, match=words):
        create_context(**params)


def test_settings_of_stages_and_of_the_catalog_are_taken() -> None:
    judge = {"provider": "local", "model": "a"}  # declared as a whole
    context = create_context(judge_model=judge, teacher={"budget_usd": 1}, train={"epochs": 2}, seed=5)
    assert (context.params["train"].epochs, context.params["train"].seed) == (2, 5)


def test_what_an_environment_of_ones_own_declares_is_taken(tmp_path: Path) -> None:
    conf_folder = Path(shutil.copytree(ROOT / "conf", tmp_path / "conf"))
    (conf_folder / "local").mkdir(exist_ok=True)
    (conf_folder / "local" / "catalog_own.yml").write_text("_own: ${runtime_params:own,null}\n")
    (conf_folder / "local" / "parameters_own.yml").write_text("# nothing yet\n")
    assert create_context(conf_folder, own="x").params["train"].seed == 3407


FREE = """
_bucket: s3://bucket
datastores: ${_bucket}/rebase
own: 1
sources: [hf://OWNER/NAME]
engine: {kind: ray, workers: 2}
teacher: {extra_body: {chat_template_kwargs: {enable_thinking: false}}, headers: {a: b}}
judge_model: {provider: anthropic, model: claude-opus-5-5}
students: [{model: OWNER/NAME, revision: COMMIT}]
prices: {models: {openai: {my-model: {input: 0, output: 0}}}}
"""


def test_globals_that_a_file_reads_are_taken_with_all_that_is_in_them(tmp_path: Path) -> None:
    conf = Path(shutil.copytree(ROOT / "conf", tmp_path / "conf"))
    (conf / "test" / "globals.yml").write_text(FREE)
    (conf / "test" / "catalog_own.yml").write_text("_own: ${globals:own}\n")
    loader = create_context(conf, "test").config_loader
    assert loader["globals"]["datastores"] == "s3://bucket/rebase"


def test_a_packed_configuration_takes_parameters(tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "conf"), "gztar", ROOT, "conf")
    assert create_context(Path(packed), task="squad", seed=5).params["train"].seed == 5
