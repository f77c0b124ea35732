import shutil
from pathlib import Path

import click
import pytest
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.pipeline import Pipeline

from rebase.hooks import RunReporter

ROOT = Path(__file__).parents[1]


def test_a_summary_tells_how_long_its_stage_took() -> None:
    reporter = RunReporter()
    summaries = [{"stage": "cot", "in": 1, "kept": 1, "rejected": {}} for _ in range(2)]
    summaries[1]["seconds"] = 12.5  # what a stage measured itself stays
    reporter.after_node_run({"cot_summary": summaries[0], "train_summary": summaries[1], "other": {}})
    assert summaries[0]["seconds"] >= 0
    assert summaries[1]["seconds"] == 12.5


def check(names: str, **params: str) -> None:
    """What is checked before ``kedro run --pipelines=NAMES --params=...`` begins its work."""
    bootstrap_project(ROOT)
    with KedroSession.create(ROOT, env="base", runtime_params=params) as session:
        catalog = session.load_context().catalog
    asked = sum((pipelines[name] for name in names.split(",")), Pipeline([]))
    RunReporter().before_pipeline_run({}, asked, catalog)


@pytest.mark.parametrize(
    ("names", "params", "words"),
    [
        ("distil,students", {"students_examples": "distilled_examples"}, "train_students reads .* distilled_examples"),
        ("mix,students", {"students_examples": "mixed_examples"}, "train_students reads .* mixed_examples"),
    ],
)
def test_a_run_does_not_read_by_path_what_it_makes(names: str, params: dict[str, str], words: str) -> None:
    with pytest.raises(click.ClickException, match=f"{words}.*one after the other"):
        check(names, **params)


@pytest.mark.parametrize(
    ("names", "params"),
    [
        ("distil,students", {}),
        ("groups", {}),
        ("mix,train", {}),
        ("compare", {}),
    ],
)
def test_files_of_earlier_runs_may_be_read(names: str, params: dict[str, str]) -> None:
    check(names, **params)


def create_context(conf: Path | None = None, **params: object) -> KedroContext:
    """The context of a run with these ``--params``, and with another configuration than the project's."""
    bootstrap_project(ROOT)
    source = str(conf) if conf else None
    with KedroSession.create(ROOT, env="base", runtime_params=params, conf_source=source) as session:
        return session.load_context()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"teacher": {"budgt_usd": 1}}, r"nothing reads teacher\.budgt_usd\. Is teacher\.budget_usd meant"),
        ({"trian": {"epochs": 1}}, r"nothing reads trian\.epochs\. Is train meant"),
        ({"task": "squad", "zzz": 1}, r"nothing reads zzz\. A run takes .*student\.model, .*train"),
    ],
)
def test_a_setting_that_nothing_reads_stops_the_run(params: dict[str, object], words: str) -> None:
    with pytest.raises(click.ClickException, match=words):
        create_context(**params)


def test_settings_of_stages_and_of_the_catalog_are_taken() -> None:
    judge = {"provider": "local", "model": "a"}  # declared as a whole
    context = create_context(judge_model=judge, teacher={"budget_usd": 1}, train={"epochs": 2}, seed=5)
    assert (context.params["train"].epochs, context.params["train"].seed) == (2, 5)


def test_what_an_environment_of_ones_own_declares_is_taken(tmp_path: Path) -> None:
    own = Path(shutil.copytree(ROOT / "conf", tmp_path / "conf"))
    (own / "local").mkdir(exist_ok=True)
    (own / "local" / "catalog_own.yml").write_text("_own: ${runtime_params:own,null}\n")
    (own / "local" / "parameters_own.yml").write_text("# nothing yet\n")
    assert create_context(own, own="x").params["train"].seed == 3407


def test_a_packed_configuration_takes_parameters(tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "conf"), "gztar", ROOT, "conf")
    assert create_context(Path(packed), task="squad", seed=5).params["train"].seed == 5
