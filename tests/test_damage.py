"""Every kind of file of a small project is cut, emptied, or has a bit turned: what is said, and what is made again."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rebase.datastore.shards import Shards
from rebase.errors import user_message
from rebase.hooks import load_origins
from rebase.records import Adapter
from rebase.reporting.doctor import examine
from tests.damage import DAMAGES, damage_file, every_damage
from tests.state import TASK, make_state, run, session_of

pytestmark = pytest.mark.slow
Damage = Callable[[bytes], bytes]

#: By the entry: its file, and the pipeline that makes it again. Shards that are whole are not built again.
STORES = [
    ("rows", "02_intermediate/sample/rows/history-moments.*", "ingest"),
    ("rows", "02_intermediate/sample/rows/manifest.json", "ingest"),
    ("vectors", "03_primary/sample/vectors/history-moments.*", "embed"),
    ("vectors", "03_primary/sample/vectors/manifest.json", "embed"),
    ("index", "04_feature/datastores/sample/index/*.arrow", "index"),
    ("annoy_index", "04_feature/datastores/sample/annoy_index/*.file", "index"),
]
FILES = [
    ("cards", "02_intermediate/sample/cards.parquet", "ingest"),
    ("ingest_summary", "08_reporting/datastores/sample/ingest_summary.json", "ingest"),
    ("evaluation_items", f"02_intermediate/{TASK}/evaluation_items.parquet/*/*.parquet", "evaluate"),
    ("retrieved", f"04_feature/{TASK}/retrieved.parquet/*/*.parquet", "retrieve"),
    ("examples", f"05_model_input/{TASK}/examples.parquet/*/*.parquet", "transform"),
    ("examples_rejected", f"05_model_input/{TASK}/examples_rejected.parquet", "transform"),
    ("reasoned_examples", f"05_model_input/{TASK}/reasoned_examples.parquet/*/*.parquet", "cot"),
    ("training_set", f"05_model_input/{TASK}/training_set.parquet/*/*.parquet", "train"),
    ("training_log", f"08_reporting/{TASK}/training_log.parquet", "train"),
    ("train_summary", f"08_reporting/{TASK}/train_summary.json", "train"),
    ("adapter", f"06_models/{TASK}/adapter/*/adapter/adapter_model.safetensors", "train"),
    ("adapter", f"06_models/{TASK}/adapter/*/adapter/adapter_config.json", "train"),
    ("adapter", f"06_models/{TASK}/adapter/*/adapter/expert.json", "train"),
    ("adapter", f"06_models/{TASK}/adapter/*/adapter/.checksums.json", "train"),
    ("predictions", f"07_model_output/{TASK}/predictions.parquet/*/*.parquet", "evaluate"),
    ("scores", f"08_reporting/{TASK}/scores.json/*/scores.json", "evaluate"),
    ("scores_plot", f"08_reporting/{TASK}/scores_plot.json/*/scores_plot.json", "evaluate"),
]
#: By the pipeline that reads it: a file that is made again by the run that reads it, and what the run says.
CACHES = [
    ("train", f"06_models/{TASK}/training/*/result/log.parquet", "is damaged, so it is trained again"),
    ("train", f"06_models/{TASK}/training/*/result/counts.json", "is damaged, so it is trained again"),
    ("train", f"06_models/{TASK}/training/*/result/adapter/adapter_model.safetensors", "so it is trained again"),
    ("evaluate", f"06_models/{TASK}/training/answers/*.jsonl", "evaluate"),
]


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage has run once."""
    return make_state(tmp_path_factory.mktemp("state"))


@pytest.fixture
def project(state: Path, tmp_path: Path) -> Path:
    """A copy of the state, with the times of its files and the same student."""
    shutil.copytree(state, tmp_path / "project", ignore=shutil.ignore_patterns("tiny", "src"))
    (tmp_path / "project" / "tiny").symlink_to(state / "tiny")
    (tmp_path / "project" / "src").mkdir()
    return tmp_path / "project"


def load(project: Path, name: str) -> Any:
    """The content of an entry as plain data, without what differs from run to run."""
    with session_of(project) as session:
        content = session.load_context().catalog.load(name)
    if isinstance(content, Shards):
        return {shard: str(table if isinstance(table, Path) else table.to_pylist()) for shard, table in content.items()}
    if isinstance(content, Adapter):
        return (content.folder / "adapter_model.safetensors").read_bytes()
    if isinstance(content, pd.DataFrame):
        return content.to_json(orient="records")  # where NaN equals NaN
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key not in ("seconds", "run")}
    return content


def doctor(project: Path) -> dict[str, str]:
    """What ``kedro doctor`` says about damaged entries."""
    from kedro.framework.project import pipelines

    pipelines.set_requested(None)
    with session_of(project) as session:
        catalog = session.load_context().catalog
        origins = {name: read() for name, read in load_origins(catalog).items()}
        findings = list(examine(catalog, origins, pipelines))
    return {finding.name: finding.advice for finding in findings if finding.state == "damaged"}


def find_file(project: Path, pattern: str) -> Path:
    return max((project / "data" / "test").glob(pattern))


def break_file(project: Path, pattern: str, damage: Damage) -> Path:
    file = find_file(project, pattern)
    damage_file(file, damage)
    return file


def message_of(error: BaseException) -> str:
    """What a command prints instead of a traceback."""
    message = user_message(error)
    assert message, f"a traceback: {error!r}"
    return message


def test_the_state_is_whole(project: Path) -> None:
    assert doctor(project) == {}


def message_of_load(project: Path, name: str) -> str:
    """The message of the error that loading an entry raises."""
    with pytest.raises(Exception) as error:  # noqa: PT011 - its message is checked
        load(project, name)
    return message_of(error.value)


@every_damage
@pytest.mark.parametrize(("name", "pattern", "pipeline"), STORES)
def test_a_damaged_store_is_named_and_its_pipeline_builds_what_is_damaged(
    project: Path, caplog: pytest.LogCaptureFixture, name: str, pattern: str, pipeline: str, damage: Damage
) -> None:
    before = load(project, name)
    file = break_file(project, pattern, damage)
    message = message_of_load(project, name)
    assert file.name in message
    assert "damaged" in message
    assert "kedro run --pipelines=ingest,embed,index" in message
    assert set(doctor(project)) == {name}
    run(project, pipeline)
    assert load(project, name) == before
    assert doctor(project) == {}


@pytest.mark.parametrize(
    ("name", "pattern", "pipeline", "last"),
    [(*file, damage) for file, damage in zip(FILES, itertools.cycle(DAMAGES), strict=False)],
)
def test_a_damaged_file_is_named_with_the_pipeline_that_makes_it_again(
    project: Path, name: str, pattern: str, pipeline: str, last: Damage
) -> None:
    """After each damage; the pipeline meets the last one."""
    before = load(project, name)
    file = find_file(project, pattern)
    content = file.read_bytes()
    for damage in (*(other for other in DAMAGES if other is not last), last):
        file.write_bytes(content)
        damage_file(file, damage)
        message = message_of_load(project, name)
        assert "damaged" in message
        assert str(file.parent if name == "adapter" else file) in message
        assert f"kedro run --pipelines={pipeline}" in message or "`kedro doctor` says what to run" in message
        assert set(doctor(project)) == {name}
    run(project, pipeline)
    assert load(project, name) == before


@every_damage
@pytest.mark.parametrize(("pipeline", "pattern", "words"), CACHES)
def test_the_run_that_reads_a_damaged_cache_makes_it_again(
    project: Path, caplog: pytest.LogCaptureFixture, pipeline: str, pattern: str, words: str, damage: Damage
) -> None:
    names = ("adapter", "training_log") if pipeline == "train" else ("predictions", "scores")
    before = [load(project, name) for name in names]
    break_file(project, pattern, damage)
    run(project, pipeline)
    assert words in caplog.text
    assert [load(project, name) for name in names] == before
    assert doctor(project) == {}
