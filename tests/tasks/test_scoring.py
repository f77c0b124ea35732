import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from rebase.records import Task
from rebase.tasks.extraction import extract
from rebase.tasks.metrics import score
from rebase.tasks.scoring import answer_found, score_predictions
from tests.tiny import evaluate_parameters

LABELS = ["yes", "no", "maybe"]


def task_of(answer_type: str, metric: str) -> Task:
    labels = LABELS if answer_type == "label" else []
    answer = {"label": "yes", "number": "7"}.get(answer_type, "colza oil")
    return Task.parse(
        {
            "name": "tiny",
            "version": 1,
            "instruction": "Answer.",
            "query": "{question}",
            "examples": [{"question": "What?", "answer": answer}],
            "answer": {"type": answer_type, "labels": labels},
            "metrics": [metric],
            "evaluation": {"source": "tiny.jsonl", "fields": {"question": "question", "references": "answer"}},
        },
        "tiny.yml",
    )


@pytest.mark.parametrize(
    ("answer_type", "metric", "raw_output", "references", "found"),
    [
        ("span", "exact_match", "The lamp first burned colza oil, then paraffin.", ["Colza oil"], 1),
        ("span", "exact_match", "The lamp first burned colzas oil.", ["colza oil"], 0),
        ("span", "exact_match", "It burned oil of colza.", ["colza oil", "oil of colza"], 1),
        ("span", "exact_match", "<think>colza oil?</think>paraffin", ["colza oil"], 0),
        ("span", "exact_match", "\u6771\u4eac\u306b\u4f4f\u3080", ["\u6771\u4eac"], 1),
        ("span", "exact_match", "anything", ["the"], 0),  # nothing is left of it
        ("label", "accuracy", "I would say no. Or yes, after all.", ["yes"], 1),
        ("label", "accuracy", "Either yes, no or maybe.", ["yes"], 1),  # as the strict score: the first one counts
        ("label", "accuracy", "Either no, yes or maybe.", ["yes"], 0),  # all labels are no choice
        ("label", "accuracy", "no, not yes", ["yes"], 0),
        ("number", "numeric_match", "3 + 4 = 7, and 7 - 5 = 2", ["7"], 1),
        ("number", "numeric_match", "3 and $1,200", ["1200"], 1),
        ("number", "numeric_match", "17", ["7"], 0),
        ("text", "exact_match", "Sure! apple pear. Anything else?", ["apple pear"], 1),
        ("text", "exact_match", "pear apple", ["apple pear"], 0),
        ("text", "rouge_l", "pear, then: apple", ["apple pear plum fig"], 0.5),
        ("code", "chrf", "sorted(x)", ["x.sort()"], 0.5),
        ("span", "f1", "oil, I think", ["colza oil"], 0.5),
    ],
)
def test_content_is_found_in_whatever_form(
    answer_type: str, metric: str, raw_output: str, references: list[str], found: float
) -> None:
    assert answer_found(task_of(answer_type, metric), raw_output, references) == found


@given(
    kind=st.sampled_from(
        [("span", "exact_match"), ("label", "accuracy"), ("number", "numeric_match"), ("text", "rouge_l"),
         ("code", "chrf"), ("span", "f1"), ("text", "exact_match")]
    ),
    raw_output=st.lists(
        st.sampled_from([*LABELS, "7", "-7.5", "the answer is", "not", "colza", "oil", ".", "\n", "####", "<think>"]),
        max_size=8,
    ).map(" ".join),
    references=st.lists(st.sampled_from([*LABELS, "7", "-7.5", "colza oil", "the"]), min_size=1, max_size=2),
)  # fmt: skip
def test_the_lenient_score_is_never_below_the_strict_one(
    kind: tuple[str, str], raw_output: str, references: list[str]
) -> None:
    task = task_of(*kind)
    strict = score(task.metrics[0], extract(raw_output, task.answer), references)
    assert strict <= answer_found(task, raw_output, references) <= 1


@given(
    before=st.sampled_from(["", "Well, ", "It is said that "]),
    reference=st.sampled_from(["colza oil", "42", "in barn 2"]),
    after=st.sampled_from(["", ".", ", I think", "\nAnd so on."]),
)
def test_words_around_the_answer_do_not_change_the_lenient_score(before: str, reference: str, after: str) -> None:
    task = task_of("span", "exact_match")
    assert answer_found(task, f"{before}{reference}{after}", [reference]) == 1


def test_the_scores_have_the_lenient_one_beside_the_strict_one_and_the_verdict() -> None:
    lines = [
        (system, f"i{n}", "p", output, json.dumps([f"barn {n}"]))
        for system, outputs in {
            "student": [f"It sleeps in barn {n}" if n < 20 else "?" for n in range(40)],
            "student_few_shot": [f"barn {n}" if n < 30 else "?" for n in range(40)],
            "expert": [f"barn {n}" if n < 24 else "?" for n in range(40)],
        }.items()
        for n, output in enumerate(outputs)
    ]
    generations = pd.DataFrame(lines, columns=["system", "item_id", "prompt", "raw_output", "references"])
    predictions, scores = score_predictions(task_of("span", "exact_match"), generations, evaluate_parameters())
    assert predictions.groupby("system")[["exact_match", "answer_found"]].sum().to_dict("index") == {
        "student": {"exact_match": 0, "answer_found": 20},
        "student_few_shot": {"exact_match": 30, "answer_found": 30},
        "expert": {"exact_match": 24, "answer_found": 24},
    }
    gain = scores["differences"]["expert - student"]["answer_found"]
    assert gain["value"] == 10
    assert 0.05 < gain["p"] < 0.3  # four items won, none lost: 1/8
    assert scores["verdict"].startswith(
        "The expert answers 4 more items of 40 than the student (24 and 20), 24 and 0 of them in the asked format; "
        "the difference in content is not clear (p = 0.1"
    )
    assert "It answers 6 fewer than the student with examples in its prompt (30, 30 of them" in scores["verdict"]
    assert len(scores["warnings"]) == 1
    assert scores["warnings"][0].startswith(
        "The expert is below the student with examples in its prompt: 60.0 and 75.0"
    )


@pytest.fixture
def generations() -> pd.DataFrame:
    lines = [
        ("student", "a", "p", "somewhere", '["in barn 1", "barn 1"]'),
        ("student", "b", "p", "in barn 2", '["in barn 2"]'),
        ("expert", "a", "p", "Barn 1.\nIt sleeps.", '["in barn 1", "barn 1"]'),
        ("expert", "b", "p", "In barn 2", '["in barn 2"]'),
    ]
    return pd.DataFrame(lines, columns=["system", "item_id", "prompt", "raw_output", "references"])


def test_chrf_is_the_corpus_score(generations: pd.DataFrame, reading_task: Task) -> None:
    task = reading_task.model_copy(update={"metrics": ("chrf",)})
    predictions, scores = score_predictions(task, generations, evaluate_parameters())
    for system, frame in predictions.groupby("system"):
        references = [json.loads(answers) for answers in frame["references"]]
        width = max(map(len, references))
        padded = [[row[place] if place < len(row) else row[0] for row in references] for place in range(width)]
        published = CHRF(word_order=2).corpus_score(frame["extracted"].to_list(), padded).score
        assert scores["systems"][system]["chrf"]["value"] == pytest.approx(published, abs=0.01)
    gain = scores["differences"]["expert - student"]["chrf"]["value"]
    systems = scores["systems"]
    assert gain == pytest.approx(systems["expert"]["chrf"]["value"] - systems["student"]["chrf"]["value"], abs=0.02)


def test_scores_and_paired_difference(generations: pd.DataFrame, reading_task: Task) -> None:
    predictions, scores = score_predictions(reading_task, generations, evaluate_parameters())
    assert list(predictions["extracted"]) == ["somewhere", "in barn 2", "Barn 1.", "In barn 2"]
    assert list(predictions["exact_match"]) == [0, 1, 1, 1]
    assert scores["systems"]["student"]["exact_match"]["value"] == 50
    assert scores["systems"]["expert"]["exact_match"] == {"value": 100, "low": 100, "high": 100}
    assert scores["differences"]["expert - student"]["exact_match"]["value"] == 50
    json.dumps(scores)
