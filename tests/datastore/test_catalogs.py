"""The committed catalog of hub datasets, and the choice of a group of a catalog."""

import re
from pathlib import Path

import pandas as pd
import pytest

from rebase.datastore.sources import find_sources
from rebase.errors import RebaseError

HUB = Path(__file__).parents[2] / "data" / "01_raw" / "catalogs" / "hub.csv"
SOURCE = "id,license,group\nowner/inference,mit,nli\nowner/sums,,math\nowner/plain,,\nowner/more,,nli\n"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    file = tmp_path / "catalog.csv"
    file.write_text(SOURCE)
    return file


def datasets(*locations: object) -> list[str]:
    return [source.dataset for source in find_sources(map(str, locations))]


def test_the_committed_catalog_lists_thousands_of_datasets_in_groups() -> None:
    table = pd.read_csv(HUB, dtype=str, keep_default_na=False)
    assert list(table.columns) == ["id", "config", "revision", "license", "group"]
    assert len(datasets(HUB)) == len(table) >= 2000
    assert not table["id"].str.lower().duplicated().any()
    # The installed client of the hub rejects the old ids without an owner.
    assert table["id"].str.fullmatch(r"[\w.-]+/[\w.-]+").all()
    assert table["revision"].map(lambda revision: bool(re.fullmatch(r"([0-9a-f]{40})?", revision))).all()
    groups = {"nli", "qa", "classification", "math", "code", "summarization", "dialog", "translation", "retrieval"}
    assert groups <= set(table["group"])
    assert table["group"].ne("").all()


def test_a_group_of_a_catalog_is_taken(catalog: Path) -> None:
    assert datasets(catalog) == ["owner/inference", "owner/more", "owner/plain", "owner/sums"]
    assert datasets(f"{catalog}#nli") == ["owner/inference", "owner/more"]
    assert datasets(f"{catalog}#nli,{catalog}#math") == ["owner/inference", "owner/more", "owner/sums"]
    table = catalog.with_suffix(".parquet")
    pd.read_csv(catalog).to_parquet(table)
    assert datasets(f"{table}#math") == ["owner/sums"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SOURCE, r"catalog\.csv: .* no group 'poems'. Its groups, with their datasets: math \(1\), nli \(2\)"),
        (
            "id\nowner/inference\n",
            "no group 'poems'. Its groups, with their datasets: none .a column 'group' names them.",
        ),
        ("name,group\nowner/inference,poems\n", "the catalog has no column 'id'; it has name, group"),
        ("id,group\n,poems\n", "row 2, column 'id': it is empty"),
    ],
)
def test_a_group_that_the_catalog_does_not_have_is_named(catalog: Path, content: str, expected: str) -> None:
    catalog.write_text(content)
    with pytest.raises(RebaseError, match=expected) as error:
        datasets(f"{catalog}#poems")
    assert "\n" not in str(error.value)
