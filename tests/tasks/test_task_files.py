"""The task files: each is valid, its examples pass the project's own checks, and its benchmark fits it."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rebase.datastore.sources import read_file
from rebase.errors import RebaseError
from rebase.generation.verification import ProtectedTexts, reject_example, reject_rationale, tidy_answer
from rebase.student.formatting import render_completion
from rebase.tasks.evaluation_items import make_evaluation_items, remove_shown_items
from rebase.tasks.extraction import extract
from rebase.tasks.source_rows import SourceRows
from rebase.tasks.task_files import load_task
from rebase.text import comparable

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "01_raw" / "tasks"
# A folder with the benchmarks' Parquet files, as CONTRIBUTING.md describes it.
BENCHMARKS = os.environ.get("REBASE_BENCHMARKS", "")
TASKS = [load_task(FOLDER, file.stem) for file in sorted(FOLDER.glob("*.yml"))]
BBH = [task for task in TASKS if task.name.startswith("bbh_")]
SETS = {
    "squad": "squad/validation",
    "mnli": "mnli/validation_matched",
    "mconala_ja": "mconala/ja/test",
    "gsm8k": "gsm8k/main/test",
    "mmlu": "mmlu/all/test",
} | {task.name: f"bbh/{task.evaluation.config}/test" for task in BBH}

every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@every_task
def test_examples_pass_the_checks_that_those_of_teachers_must_pass(task):
    nothing_known = ProtectedTexts(task.model_copy(update={"examples": ()}), [], 13)
    for example in task.examples:
        answer = example["answer"]
        fields = {name: example[name] for name in task.query_fields}
        assert all(text in task.render_query(fields) for text in fields.values())
        assert tidy_answer(task, fields, answer) == answer
        assert reject_example(task, fields, answer, nothing_known) is None
        if task.cot:
            assert reject_rationale(task, example["rationale"], answer) is None
        for target in ("answer", "rationale_then_answer"):
            assert extract(render_completion(answer, example.get("rationale"), target), task.answer) == answer


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_task_file_in_another_encoding_is_read_or_named(tmp_path, encoding):
    content = (FOLDER / "reading_qa.yml").read_text().replace("instruction: ", "instruction: Façade. ", 1)
    (tmp_path / "reading_qa.yml").write_bytes(content.encode(encoding, "replace"))
    if encoding == "cp1252":
        with pytest.raises(RebaseError, match=r"reading_qa\.yml: not valid YAML in UTF-8\. .*#x00e7"):
            load_task(tmp_path, "reading_qa")
    else:
        assert load_task(tmp_path, "reading_qa").instruction.startswith("Façade.")


@every_task
def test_the_examples_answers_differ(task):
    assert len({example["answer"] for example in task.examples}) > 1


def test_no_two_tasks_share_an_example():
    queries = Counter(comparable(task.render_query(example)) for task in TASKS for example in task.examples)
    assert [query for query, times in queries.items() if times > 1] == []


def test_big_bench_hard_is_whole_and_grouped_as_published():
    # 23 tasks in the paper's table, 12 of them NLP; two of the 11 algorithmic ones in three variants each.
    groups = Counter(task.groups for task in BBH)
    assert groups == {("bbh", "bbh_nlp"): 12, ("bbh", "bbh_algorithmic"): 15}
    assert all(task.cot and task.metrics == ("accuracy",) for task in BBH)
    assert all(task.name == f"bbh_{task.evaluation.config}" for task in BBH)


@pytest.mark.skipif(not BENCHMARKS, reason="REBASE_BENCHMARKS names no folder with the benchmarks' files")
@pytest.mark.parametrize("name", SETS)
def test_the_benchmark_fits_its_task(name):
    task = load_task(FOLDER, name)
    file = Path(BENCHMARKS, f"{SETS[name]}.parquet")
    items = make_evaluation_items(task, SourceRows(read_file(file)[:60], str(file)))
    kept, removed = remove_shown_items(task, items)
    assert len(kept) == 60
    assert removed.empty
    for answers in map(json.loads, items["references"]):
        # The right answer is found where it is written at the end of a reasoning.
        assert task.answer.type == "code" or extract(f"So the answer is {answers[0]}.", task.answer) == answers[0]
