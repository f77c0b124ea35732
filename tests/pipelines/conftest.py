"""A small datastore with rows for every filter, built once by the pipelines."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import ParquetDataset

from rebase.datasets import ShardStore, SourcesDataset
from rebase.datastore.encoder import Encoder
from rebase.parameters import EmbedParameters, IndexParameters, IngestParameters
from rebase.pipelines import embed, index, ingest

ANIMALS = [
    "The otter swims at dusk and cracks mussels on a stone that it carries under its arm.",
    "Storks return from Africa in March and repair the same nest on the church roof every year.",
    "A hedgehog rolls into a ball when a fox comes near, and waits until the danger has passed.",
    "Bees tell one another with a dance how far away the flowers are and in which direction.",
    "The barn owl hears a mouse under the snow and takes it without seeing it at all.",
    "Salmon climb waterfalls to reach the brook in which they hatched four years before.",
]
TRADE = [
    "The central bank raised its interest rate by half a percent to slow the rise of prices.",
    "Shares of the shipping company fell after it warned that freight would stay cheap.",
]
GERMAN = "Die Biber bauen einen Damm aus Holz und Schlamm, damit der Eingang ihrer Burg nass bleibt."
LEAKED = "Beavers fell poplars along the river, and with the trunks they build a dam that floods the whole meadow."
#: The evaluation set of the reading task.
EVALUATION = {"context": LEAKED, "question": "What do beavers build?"}


def write_datasets(folder: Path) -> Path:
    """Datasets as people publish them: two near copies, and one for each reason to reject."""
    copy = [*ANIMALS[:5], ANIMALS[5].replace("brook", "stream")]
    write(
        folder / "animals",
        "Short texts about wild animals.",
        "mit",
        [{"id": n, "text": t} for n, t in enumerate(ANIMALS)],
    )
    write(folder / "animals-copy", "Animals, again.", "mit", [{"passage": text} for text in copy])
    write(folder / "banned-animals", "More animals.", "mit", [{"text": ANIMALS[0] + " It is shy."}])
    write(folder / "closed-animals", "Animals, not for sale.", "cc-by-nc-4.0", [{"text": ANIMALS[1] + " Twice."}])
    write(folder / "leaky", "Rivers and animals.", "mit", [{"text": f"He said: {LEAKED.lower()}"}])
    write(folder / "tiere", "Texts about animals in German.", "mit", [{"text": GERMAN}])
    write(folder / "numbers", "A table of numbers.", "mit", [{"a": 1, "b": 2.5}, {"a": 3, "b": None}])
    write(folder / "trade", "News of trade.", "mit", [{"headline": "News", "body": text} for text in TRADE])
    (folder / "broken").mkdir()
    (folder / "broken" / "a.parquet").write_bytes(b"PAR1 not really")
    return folder


def write(folder: Path, description: str, license: str, rows: list[dict]) -> None:
    """A folder with a card and one JSONL file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n{description}\n")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))


@dataclass(frozen=True)
class Datastore:
    """The folder of the datastore, and its catalog."""

    folder: Path
    catalog: DataCatalog

    def load(self, name: str):
        return self.catalog.load(name)


@pytest.fixture(scope="session")
def datastore(tmp_path_factory, encoder: Encoder) -> Datastore:
    """The datastore that the pipelines ingest, embed and index build."""
    folder = tmp_path_factory.mktemp("datastore")
    return build_datastore(folder, str(write_datasets(folder / "raw") / "*"), encoder)


def build_datastore(folder: Path, sources: str, encoder: Encoder) -> Datastore:
    """The datastore of these sources, with three datasets in a segment."""
    catalog = DataCatalog(
        {
            "sources": SourcesDataset(sources),
            "rows": ShardStore(str(folder / "rows")),
            "cards": ParquetDataset(filepath=str(folder / "cards.parquet")),
            "ingest_rejected": ParquetDataset(filepath=str(folder / "rejected.parquet")),
            "encoder": MemoryDataset(encoder),
            "vectors": ShardStore(str(folder / "vectors"), "arrow"),
            "index": ShardStore(str(folder / "index"), "arrow"),
            "annoy_index": ShardStore(str(folder / "annoy_index"), "file"),
            **{
                f"{stage}_summary": JSONDataset(filepath=str(folder / f"{stage}.json"))
                for stage in ("ingest", "embed", "index")
            },
            "params:ingest": MemoryDataset(IngestParameters(max_rows=1000)),
            "params:embed": MemoryDataset(EmbedParameters(batch_tokens=512, cells="text")),
            "params:index": MemoryDataset(IndexParameters(trees=5, seed=1)),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.pipelines.index.nodes.SEGMENT_DATASETS", 3)
        for stage in (ingest, embed, index):
            SequentialRunner().run(stage.create_pipeline(), catalog)
    return Datastore(folder, catalog)
