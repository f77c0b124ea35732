"""Every environment's configuration: it resolves, it is used, and it follows the house's rules."""

from pathlib import Path

import pytest
import yaml
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from parse import parse

from rebase.cli import _full_name
from rebase.errors import RebaseError

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ("base", "local", "api", "gpu", "cluster", "test")
LAYERS = {
    "01_raw",
    "02_intermediate",
    "03_primary",
    "04_feature",
    "05_model_input",
    "06_models",
    "07_model_output",
    "08_reporting",
}
#: Entries that only commands read: `kedro runs`.
OF_COMMANDS = {"all_scores", "all_run_records", "origins"}
STAGES = {"ingest", "embed", "index", "retrieve", "map", "transform", "cot", "train", "evaluate"}
PROMISED = {
    "cards", "rows", "vectors", "index", "task", "retrieved", "retrieval_rejected", "examples", "examples_rejected",
    "mappings", "mapped_examples", "mapped_rejected", "reasoned_examples", "training_set", "adapter", "training_log",
    "predictions", "scores", "report",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def project():
    bootstrap_project(ROOT)
    pipelines.set_requested(None)


def context_of(environment: str, **params):
    with KedroSession.create(ROOT, env=environment, runtime_params=params) as session:
        return session.load_context()


def entries() -> dict[str, dict]:
    files = (ROOT / "conf").rglob("catalog*.yml")
    return {
        name: entry
        for file in files
        for name, entry in yaml.safe_load(file.read_text()).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_catalog_resolves_in_every_environment(environment):
    catalog = context_of(environment).catalog
    for name in entries():
        assert catalog.get(name) is not None, name


def test_every_file_that_a_run_writes_has_a_checksum():
    catalog = context_of("base").catalog
    written = set().union(*(pipeline.all_outputs() for pipeline in pipelines.values()))
    unchecked = {"merged_model", "item_scores", "students_adapters"}  # not read again; their parts have checksums
    for name in (written & set(entries())) - unchecked:
        assert hasattr(catalog.get(name), "problem"), name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_parameters_are_valid_in_every_environment(environment):
    parameters = context_of(environment).params
    assert set(parameters) >= STAGES
    assert all(not isinstance(parameters[stage], dict) for stage in STAGES), "typed groups are instantiated"


def test_the_promised_names_and_pipelines_are_there():
    assert set(entries()) >= PROMISED
    assert set(pipelines) >= STAGES | {"rebase", "__default__"}
    assert pipelines["__default__"].nodes == pipelines["rebase"].nodes


def test_every_entry_and_every_parameter_is_used():
    used = pipelines["__default__"].datasets()
    named = set().union(*(pipeline.datasets() for pipeline in pipelines.values()))
    for name in entries():
        # A name in braces is a pattern.
        assert name in OF_COMMANDS or any(parse(name, other) for other in named), name
    groups = {name.partition(".")[0] for name in used if name.startswith("params:")}
    assert groups == {f"params:{name}" for name in STAGES | {"contamination", "distil"}}


def test_nothing_but_parameters_is_left_in_memory():
    in_memory = {name for name in pipelines["__default__"].datasets() if not name.startswith("params:")} - set(
        entries()
    )
    in_memory -= {"parameters"}  # all of them, for the run's record
    assert not in_memory, "a run must be able to start from any node"


def test_files_lie_in_a_known_layer_and_kedro_viz_shows_none():
    """kedro-viz's bands of layers would leave the default view half its size; the groups of nodes say more."""
    for name, entry in entries().items():
        [layer] = {part for part in str(entry.get("filepath", "")).split("/") if part[:1] == "0"} or {"01_raw"}
        assert layer in LAYERS, name
        assert "layer" not in entry.get("metadata", {}).get("kedro-viz", {}), name


def test_what_can_be_looked_at_has_a_preview_and_the_rest_says_it_has_none():
    catalog = context_of("base").catalog
    for name, entry in entries().items():
        if entry.get("metadata", {}).get("kedro-viz", {}).get("preview", True):
            assert hasattr(catalog.get(name), "preview"), name
    for file in (ROOT / "conf").rglob("catalog*.yml"):
        for line in file.read_text().splitlines():
            assert "preview: false" not in line or "# " in line, f"{file.name}: why not? {line}"


def test_names_of_nodes_work_without_their_group():
    nodes = pipelines["rebase"].nodes
    assert _full_name("retrieve_rows", nodes) == _full_name("retrieve.retrieve_rows", nodes) == "retrieve.retrieve_rows"
    short_names = [node.short_name for node in nodes]
    assert [_full_name(name, nodes) for name in short_names] == [node.name for node in nodes]
    with pytest.raises(RebaseError, match=r"There is no node 'trian_student'.* Did you mean train_student\?"):
        _full_name("trian_student", nodes)
    assert _full_name("train_student", pipelines["compare"].nodes) == "train_student", "of four training sets"


def test_groups_of_nodes_change_no_name_of_a_dataset_or_parameter():
    named = set().union(*(pipeline.datasets() for name, pipeline in pipelines.items() if name != "compare"))
    assert not [name for name in named if "side" in name or name.startswith(("datastore", "params:datastore"))]


def test_what_an_older_run_is_opened_with_is_versioned():
    tables = {"evaluation_items", "retrieved", "examples", "reasoned_examples", "training_set", "predictions"}
    versioned = {name for name, entry in entries().items() if entry.get("versioned")}
    assert tables | {"adapter", "scores", "run_record"} <= versioned


def test_a_task_has_its_own_folder():
    first, second = (context_of("base", task=task).catalog for task in ("reading_qa", "news_topic"))
    for name in ("retrieved", "examples", "predictions"):
        assert str(first.get(name)) != str(second.get(name))


def test_base_holds_no_structure_of_other_environments():
    for environment in ("api", "gpu", "cluster", "test"):
        assert not list((ROOT / "conf" / environment).glob("catalog*.yml")), "differences belong in globals"


def test_only_the_placeholder_of_local_is_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "conf/local/*" in ignored
    assert "!conf/local/.gitkeep" in ignored
