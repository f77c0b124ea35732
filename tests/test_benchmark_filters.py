"""The benchmark's own parts: its search for leaks against cases by hand, its mixtures, and its tasks."""

import json
import random

import pandas as pd
import pytest
from benchmarks.filters import LeakIndex, final_answer, find_leaks, make_task, mix, plain

QUESTION = "Who carried the letter over the pass in the winter of the great snow?"
KNOWN = LeakIndex(
    [[QUESTION], ["Nobody was there."], ["It had snowed for nine days and nine nights."], ["Fine.", "I did say so."]],
    13,
)


@pytest.mark.parametrize(
    ("cells", "leaks"),
    [
        ([f"q: {QUESTION.upper()}"], True),
        ([" ".join(QUESTION.split()[1:])], True),
        ([" ".join(QUESTION.split()[2:])], False),
        (["nobody was there"], False),
        (["So it had snowed, for nine days and nine nights!"], True),
        (["It had snowed for nine days and nine more nights."], False),
        (["I did say so", "label", "fine"], True),
        (["I did say", "fine"], False),
        ([], False),
    ],
)
def test_leaks_by_hand(cells, leaks):
    assert find_leaks(cells, KNOWN) is leaks


def test_japanese_leaks_by_hand():
    leak_index = LeakIndex([["二十六の文字があればこの文はどこにあっても見つかるはずである"]], 13)
    assert find_leaks(["前に何か、二十六の文字があればこの文は どこにあっても見つかるは、後に何か"], leak_index)
    assert not find_leaks(["前に何か、二十六の文字があればこの文はどこにでもある"], leak_index)


def test_plain():
    assert plain("«Ｄｏｎ'ｔ» naïve_日本 İ") == plain("don T  NAÏVE 日本 i̇")


def test_mix():
    lines = pd.DataFrame({"d": [*"aabbcd"], "q": [*"xxyzzz"], "a": [*"111122"]})
    assert mix(lines, "d", ["q", "a"]) == {"duplicates": 0.333, "three_datasets": 0.833}


def test_final_answer():
    assert final_answer("The answer is hidden. So the answer is (B).") == "(B)"


def test_tasks_of_both_kinds(tmp_path):
    (tmp_path / "mconala/ja").mkdir(parents=True)
    items = [{"intent": "足す方法は?", "rewritten_intent": "`a`に`b`を足す", "snippet": "a + b", "question_id": 1}]
    pd.DataFrame(items).to_parquet(tmp_path / "mconala/ja/test.parquet")
    task, evaluation_items = make_task("mconala", tmp_path, tmp_path, random.Random(1))
    assert task.answer.type == "code"
    assert [json.loads(fields)["intent"] for fields in evaluation_items["fields"]] == ["足す方法は?", "`a`に`b`を足す"]
    (tmp_path / "bbh/sums").mkdir(parents=True)
    pd.DataFrame([{"input": "1 + 1 =", "target": "2"}]).to_parquet(tmp_path / "bbh/sums/test.parquet")
    prompts = {"sums": {"instruction": "Add.", "examples": [["1 + 2 =", "1 and 2 are 3. The answer is 3."]]}}
    (tmp_path / "bbh_tasks.json").write_text(json.dumps(prompts))
    task, evaluation_items = make_task("bbh/sums", tmp_path, tmp_path, random.Random(1))
    assert (task.name, task.cot, task.examples[0]["answer"]) == ("sums", True, "3")
    assert evaluation_items["references"].tolist() == ['["2"]']
