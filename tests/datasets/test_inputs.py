import json

import pandas as pd
import pytest
import yaml
from kedro.io import DatasetError

from rebase.datasets import (
    EvaluationRowsDataset,
    InputsDataset,
    RealDataset,
    SourcesDataset,
    TaskDataset,
)
from rebase.errors import RebaseError

TASK = {
    "name": "topic",
    "version": 1,
    "instruction": "Name the topic.",
    "query": "{text}",
    "examples": [{"text": "t", "answer": "sport"}],
    "answer": {"type": "label", "labels": ["sport", "science"]},
    "metrics": ["accuracy"],
    "evaluation": {"source": "unused", "fields": {"text": "text", "references": "label"}},
}


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()

    def write(file="topic", content=None, **changes):
        (folder / f"{file}.yml").write_text(content if content is not None else yaml.safe_dump(TASK | changes))
        return folder

    return write


def message(call):
    """The words of the RebaseError behind a call, which Kedro wraps into its own error."""
    with pytest.raises(DatasetError) as error:
        call()
    assert isinstance(error.value.__cause__, RebaseError)
    return str(error.value.__cause__)


def test_task_is_loaded_and_previewed(tasks):
    dataset = TaskDataset(str(tasks()), "topic")
    assert dataset.load().answer.labels == ("sport", "science")
    assert yaml.safe_load(dataset.preview()) == TASK


def test_sources_are_shown_unread_by_where_they_are(tmp_path):
    (tmp_path / "birds").mkdir()
    shown = SourcesDataset([str(tmp_path / "*"), "hf://owner/name@v2", "hf://owner/other"]).preview()
    assert shown["data"] == [
        ["birds", str(tmp_path / "birds")],
        ["owner/name", "hf://owner/name@v2"],
        ["owner/other", "hf://owner/other@main"],
    ]


def test_an_unknown_task_names_the_known_ones(tasks):
    assert "Did you mean topic?" in message(TaskDataset(str(tasks()), "topik").load)


def test_a_task_file_with_errors_names_file_and_field(tasks):
    assert "other" in message(TaskDataset(str(tasks("other")), "other").load)
    assert "metrics.0" in message(TaskDataset(str(tasks(metrics=["best"])), "topic").load)
    assert "not valid YAML" in message(TaskDataset(str(tasks(content="name: [")), "topic").load)
    assert "not a valid task" in message(TaskDataset(str(tasks(content="")), "topic").load)


PUBLISHED = {
    "topic": {
        "instruction": "Which topic is it?",
        "examples": [["Goal!", "A goal is scored.So it is sport. The answer is sport."], ["Atoms", "The answer is B."]],
    }
}


def published(tmp_path, content):
    file = tmp_path / "prompts.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


@pytest.mark.parametrize(("name", "entry"), [("topic", "topic"), ("bbh_topic", "topic"), ("topic", "bbh_topic")])
@pytest.mark.parametrize("cot", [True, False])
def test_published_prompts_take_the_place_of_the_tasks_own(tasks, tmp_path, name, entry, cot):
    examples = [{"text": "t", "answer": "sport"} | ({"rationale": "r"} if cot else {})]
    folder = tasks(name, name=name, cot=cot, examples=examples)
    good = {"instruction": "Which topic is it?", "examples": PUBLISHED["topic"]["examples"][:1]}
    task = TaskDataset(str(folder), name, published(tmp_path, {entry: good})).load()
    assert task.instruction == "Which topic is it?"
    rationale = {"rationale": "A goal is scored.So it is sport."} if cot else {}
    assert task.examples == ({"text": "Goal!", "answer": "sport"} | rationale,)
    assert task.query == TASK["query"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (PUBLISHED, "topic, example 1: no answer can be read"),
        ({"other": PUBLISHED["topic"]}, "no prompt for task 'topic'. Prompts there: other"),
        ({"topic": {"instruction": "x"}}, "topic: needs `instruction` and `examples`"),
        ({"topic": {"instruction": "x", "examples": [["a"]]}}, "topic: needs `instruction` and `examples`"),
        ({"topic": {"instruction": "x", "examples": [["Goal!", "It is sport."]]}}, "example 0: no answer can be read"),
        ({"topic": {"instruction": "x", "examples": []}}, "examples: "),
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
    ],
)
def test_published_prompts_with_faults_say_where(tasks, tmp_path, content, expected):
    assert expected in message(TaskDataset(str(tasks()), "topic", published(tmp_path, content)).load)


def test_published_prompts_that_do_not_fit_say_so(tasks, tmp_path):
    assert "no file of prompts" in message(TaskDataset(str(tasks()), "topic", str(tmp_path / "none.json")).load)
    two = {
        "query": "{text} {mood}",
        "examples": [{"text": "t", "mood": "m", "answer": "sport"}],
        "evaluation": {"source": "e", "fields": {"text": "text", "mood": "mood", "references": "label"}},
    }
    error_message = message(TaskDataset(str(tasks(**two)), "topic", published(tmp_path, PUBLISHED)).load)
    assert "the task's query has text, mood" in error_message


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_evaluation_rows_from_every_format(tasks, tmp_path, ending):
    file = tmp_path / f"items[1].{ending}"
    frame = pd.DataFrame({"text": ["Goal!", "Atoms,\n\tand more"], "label": ["sport", "science"]})
    {
        "jsonl": lambda: frame.to_json(file, orient="records", lines=True),
        "json": lambda: frame.to_json(file, orient="records"),
        "csv": lambda: frame.to_csv(file, index=False),
        "tsv": lambda: frame.to_csv(file, index=False, sep="\t"),
        "parquet": lambda: frame.to_parquet(file),
    }[ending]()
    evaluation = TASK["evaluation"] | {"source": str(file)}
    source = EvaluationRowsDataset(str(tasks(evaluation=evaluation)), "topic").load()
    assert source.rows == frame.to_dict("records")
    assert source.origin == {"dataset": file.name}, "the path of this machine is not handed on"


def test_values_of_mixed_types_are_not_quoted(tasks, tmp_path):
    file = tmp_path / "items.jsonl"
    file.write_text('{"text": 7, "label": "sport"}\n{"text": "se\\"ven", "label": "science"}\n')
    dataset = EvaluationRowsDataset(str(tasks()), "topic", source=str(file))
    assert dataset.preview(1)["data"] == [["7", "sport"]]
    file.unlink()  # It is read once.
    assert [str(row["text"]) for row in dataset.load().rows] == ["7", 'se"ven']


def test_an_evaluation_set_that_cannot_be_had_says_what_to_do(tasks, tmp_path):
    folder = str(tasks())

    def load(source):
        return message(EvaluationRowsDataset(folder, "topic", source=str(source)).load)

    assert "missing: there is no file" in load(tmp_path / "none.jsonl")
    for name, content in {"broken.jsonl": '{"text": ', "broken.parquet": "PAR1"}.items():
        (tmp_path / name).write_text(content)
        assert name in load(tmp_path / name)
    assert "evaluation_source=FILE" in load("owner/not-reachable")


def test_sources_take_one_location_or_several(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert [source.dataset for source in SourcesDataset(str(tmp_path / "*")).load()] == ["a", "b"]
    both = [str(tmp_path / "*"), str(tmp_path / "a"), "hf://owner/name@v1"]
    assert [source.dataset for source in SourcesDataset(both).load()] == ["a", "b", "owner/name"]
    [hub_source] = SourcesDataset("hf://owner/name", {"token": ""}).load()
    assert hub_source.token is None, "an empty variable would be sent as a header that the client rejects"
    assert "no folder matches" in message(SourcesDataset(str(tmp_path / "c*")).load)


def test_the_token_is_never_shown():
    dataset = SourcesDataset("hf://owner/name", credentials={"token": "hf_sesame"})
    assert "sesame" not in f"{dataset!r} {dataset} {dataset.load()}"


def test_inputs_are_read_only(tasks):
    with pytest.raises(DatasetError, match="read-only"):
        TaskDataset(str(tasks()), "topic").save("x")


def test_inputs_are_read_without_answers_and_are_none_without_a_source(tasks, tmp_path):
    folder, file = str(tasks()), tmp_path / "own.csv"
    file.write_text("text,other\nA match.,x\nA star.,y\n")
    inputs = InputsDataset(folder, "topic", source=str(file)).load()
    assert list(inputs["query"]) == ["A match.", "A star."]
    assert list(inputs["row_id"]) == ["own.csv/0", "own.csv/1"]
    assert str(tmp_path) not in inputs.to_csv(), "the path is this machine's business"
    assert InputsDataset(folder, "topic").load().empty
    assert "inputs of task 'topic' is missing" in message(InputsDataset(folder, "topic", source="gone.csv").load)


def test_real_examples_are_those_of_a_file_or_none(tasks, tmp_path):
    folder, file = str(tasks()), tmp_path / "own.csv"
    file.write_text("text,label\nA match.,sport\n")
    real = RealDataset(folder, "topic", source=str(file)).load()
    assert (list(real["references"]), list(real["dataset"])) == (['["sport"]'], ["own.csv"])
    assert RealDataset(folder, "topic").load().empty
