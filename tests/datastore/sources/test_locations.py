"""What the setting ``sources`` names: folders, hub ids and catalogs; the committed catalog of hub datasets."""

import re
from pathlib import Path

import pandas as pd
import pytest

from rebase.datastore.sources import HubSource, find_sources
from rebase.errors import RebaseError

OLD = f"{1:040}"
TOKEN = "hf_sesame"


def test_locations_are_folders_or_hub_ids(tmp_path):
    for name in ("x/a", "x/b", "y/a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x" / "notes.csv").write_text("no catalog unless it is named")
    locations = [f"{tmp_path}/x/*", f"{tmp_path}/x/a", "hf://squad", "hf://o/n@refs/pr/1?config=c%20d&split=test"]
    found = find_sources([*locations, "hf://o/m?split=dev"])
    assert [source.dataset for source in found] == ["a", "b", "o/m", "o/n", "squad"]
    assert [(source.revision, source.selected, source.split) for source in found[2:]] == [
        (None, (), "dev"), ("refs/pr/1", ("c d",), "test"), (None, (), None)]  # fmt: skip
    with pytest.raises(RebaseError, match="two datasets are called 'a'"):
        find_sources([f"{tmp_path}/*/a"])
    with pytest.raises(RebaseError, match="no folder matches"):
        find_sources([f"{tmp_path}/z"])
    with pytest.raises(RebaseError, match=r"sources: there is no file '.*/z\.csv'\.$"):
        find_sources([f"{tmp_path}/z.csv#nli"])


def test_locations_between_commas_are_several_unless_a_path_has_the_comma(tmp_path):
    for name in ("x/a", "y/b", "with, comma/c"):
        (tmp_path / name).mkdir(parents=True)
    assert [source.dataset for source in find_sources([f"{tmp_path}/x/*, {tmp_path}/y/*,hf://o/n"])] == [
        "a",
        "b",
        "o/n",
    ]
    assert [source.dataset for source in find_sources([f"{tmp_path}/with, comma/*", f"{tmp_path}/x/a"])] == ["a", "c"]
    with pytest.raises(RebaseError, match="no folder matches '/nowhere'"):
        find_sources([f"{tmp_path}/x/*,/nowhere"])


def test_configs_of_a_hub_dataset_that_are_listed_one_by_one_are_one_source(tmp_path: Path) -> None:
    catalog = tmp_path / "list.csv"
    catalog.write_text(f"id,config,revision,group\no/n,b,{OLD},nli\no/n,c,{OLD},qa\n")
    several = [f"hf://o/n@{OLD}?config=d", f"hf://o/n@{OLD}?config=a", f"hf://o/n@{OLD}?config=a", f"{catalog}#qa"]
    assert find_sources(several) == find_sources(reversed(several)) == [HubSource("o/n", OLD, None, ("a", "c", "d"))]
    assert find_sources([str(catalog)]) == [HubSource("o/n", OLD, None, ("b", "c"))]


@pytest.mark.parametrize("other", ["hf://o/n", "hf://o/n?config=a&split=test", f"hf://o/n@{1:040}?config=a"])
def test_configs_with_another_revision_or_split_are_not_joined(other: str) -> None:
    with pytest.raises(RebaseError, match=r"two datasets are called 'o/n'.* all with the same revision"):
        find_sources(["hf://o/n?config=b", other])


@pytest.mark.parametrize(
    "location",
    ["hf://o/n?configs=a", "hf://o/n?config=a&config=b", "hf://o/n?test", "hf://../x", "hf://", "hf://a/b/c"],
)
def test_a_hub_id_that_is_none_is_rejected(location):
    with pytest.raises(RebaseError, match=r"is not understood|is not a hub id|gives one name twice"):
        find_sources([location])


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_catalog_lists_hub_datasets(tmp_path, ending):
    table = pd.DataFrame({
        "id": [" o/b ", "a"], "revision": [OLD, None], "split": [None, "test"], "likes": [3, 4],
        "description": ["NA", 'Über "alles",\nzwei Zeilen'],
    })  # fmt: skip
    file = tmp_path / f"list.{ending}"
    table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    assert find_sources([str(file)], TOKEN) == [
        HubSource("a", None, TOKEN, (), "test", 'Über "alles",\nzwei Zeilen'),
        HubSource("o/b", OLD, TOKEN, (), None, "NA"),
    ]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("name,revision\na/b,\n", "no column 'id'; it has name, revision"),
        ("id,split\na/b,\n,test\n", "row 3, column 'id': it is empty"),
        ("id\na/b\nc/d\na/b\n", r"row 4, column 'id': 'a/b' is in row 2 already"),
        ("id,config\na/b,x\na/b,y\na/b,x\n", r"row 4, column 'id': 'a/b' is in row 2 already"),
        ("id,config\na/b,x\na/b,\n", r"row 3, column 'id': 'a/b' is in row 2 already"),
        ("id,config\na/b,\na/b,x\n", r"row 3, column 'id': 'a/b' is in row 2 already"),
        ("id\n../../etc\n", r"row 2, column 'id': '../../etc' is not a hub id"),
        ("id\n/etc/passwd\n", r"row 2, column 'id': '/etc/passwd' is not a hub id"),
        ("id\na/b,c,d\n1,2\n", "cannot be read"),
        ("", "sources: the catalog '.*' is empty"),
        ("id\n", "sources: the catalog '.*' is empty"),
    ],
)
def test_catalog_with_an_error_names_file_row_and_column(tmp_path, lines, complaint):
    (tmp_path / "list.csv").write_text(lines)
    with pytest.raises(RebaseError, match=complaint) as error:
        find_sources([str(tmp_path / "list.csv")])
    assert "list.csv" in str(error.value)


HUB = Path(__file__).parents[3] / "data" / "01_raw" / "catalogs" / "hub.csv"


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


def test_a_folder_by_any_path_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "birds")
    monkeypatch.chdir(tmp_path / "birds")
    assert datasets(".") == datasets("data/..") == datasets("../birds/") == ["birds"]
    assert datasets("../link") == ["link"]


SOURCE = (
    "id,config,group\nowner/inference,a,nli\nowner/sums,,math\nowner/plain,,\nowner/more,,nli\nowner/inference,b,nli\n"
)


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    file = tmp_path / "catalog.csv"
    file.write_text(SOURCE)
    return file


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
