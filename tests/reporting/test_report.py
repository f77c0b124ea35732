import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from rebase.records import Task
from rebase.reporting.plots import KINDS
from rebase.reporting.report import (
    ALL_PIECES,
    PIECES,
    compare_answers,
    describe_run,
    examples_with_rows,
    flow,
    limits,
    list_examples,
    seed_variance,
    sources,
    write_report,
)
from tests.test_end_to_end import copy_of_project, kedro
from tests.tiny import reasoned_examples

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
LIBRARY = get_plotlyjs()
ITEMS = "abcdefghijklmnopqrstuvwx"
CELL = {"value": 33.3, "low": 20.0, "high": 41.5}


@pytest.fixture
def predictions() -> pd.DataFrame:
    lines = [
        (system, item, f"prompt {item}", raw, "yes", '["yes"]', value, value)
        for system, values in {"student": (0.0, 1.0), "expert": (1.0, 0.0)}.items()
        for item, value in zip(ITEMS, [*values, *[1.0] * 22], strict=True)
        for raw in [f"<b>{system} says {item}</b>"]
    ]
    columns = ["system", "item_id", "prompt", "raw_output", "extracted", "references", "exact_match", "f1"]
    return pd.DataFrame(lines, columns=columns)


@pytest.fixture
def retrieved() -> pd.DataFrame:
    row = json.dumps({"title": f"Trees & {HOSTILE}", "year": "1871"})
    scores = {"score": 0.5, "score_dataset": 0.4, "score_query": 0.61, "score_answer": 0.49}
    matched = {"query_column": "title", "query_value": "Trees", "answer_column": "year", "passage": None}
    return pd.DataFrame(
        {"row_id": [f"e{n}" for n in range(9)], "dataset": HOSTILE, "license": "cc0-1.0", "row": row, **scores}
        | matched
    )


def rejected(*reasons: str) -> pd.DataFrame:
    lines = [
        {"row_id": "e1", "dataset": HOSTILE, "rank": 7, "reason": reason, "detail": "", "text": f"cut {HOSTILE}"}
        for reason in reasons
    ]
    return pd.DataFrame(lines)


@pytest.fixture
def pieces(reading_task: Task, predictions: pd.DataFrame, retrieved: pd.DataFrame) -> dict[str, Any]:
    """A whole run's, with hostile text in it."""
    metrics = dict.fromkeys(reading_task.metrics, CELL)
    usage = {"used": 9, "responses": 7, "cached": 2, "dollars": 0.0123, "used_dollars": 0.02}
    summary = {"in": 9, "kept": 7, "rejected": {"few": 1, HOSTILE: 2}}
    estimate = dict.fromkeys(
        ["estimated_requests_low", "estimated_requests_high", "estimated_dollars_low", "estimated_dollars_high"], 1
    )
    points = [
        {"kind": kind, "id": "e1", "dataset": HOSTILE, "text": HOSTILE, "x": 0.0, "y": 1.0,
         "cosine": 0.91 if kind == KINDS[1] else np.nan, "nearest_id": "e1"} for kind in KINDS
    ]  # fmt: skip
    words = {"mean": 3.0, "p10": 1.0, "p50": 3.0, "p90": 9.0}
    return {
        **{
            f"{stage}_summary": {"stage": stage, **summary, "seconds": 4.5, "usage": usage}
            for stage in ("map", "transform")
        },
        **{
            f"{stage}_summary": {"stage": stage, **summary}
            for stage in ("ingest", "embed", "index", "retrieve", "cot", "evaluate")
        },
        "train_summary": {
            "stage": "train", **summary, "base_model": HOSTILE, "learning_rate": 0.0003, "epochs": 4.0,
            "batch_size": 2, "gradient_accumulation": 4, "lora": {"rank": 32, "alpha": 64, "dropout": 0.0},
            "fault": "the student memorizes",
        },
        "mappings": pd.DataFrame(
            [{"dataset": HOSTILE, "config": HOSTILE, "state": "used", "detail": HOSTILE, "mapping": HOSTILE,
              "rows": 900, "used": 12, "agreement": 0.85, "low": 0.64, "high": 0.95, "written_by": "the teacher",
              "requests": 61, "dollars": 0.0789}]
        ),
        "retrieved": retrieved,
        "reasoned_examples": reasoned_examples(9, f"because {HOSTILE}"),
        "teacher_usage": pd.DataFrame(
            [{"stage": "total", **usage, "input_tokens": 10, "output_tokens": 5, **estimate}]
        ),
        "diversity": {
            "n": 9, "distinct_share": 0.5, "mean_cosine": None, "distinct_1": 0.5, "distinct_2": None,
            "labels": {"counts": {HOSTILE: 9}}, "words": {"query": words, "rationale": None},
        },
        "preflight": {
            "in": 9, "kept": 9, "steps": 3, "epochs": 1.0, "tokens": 1700, "tokens_with_loss": 53,
            "padding_share": 0.08, "longest": 140, "max_length": 192,
            "examples": [
                {"which": "first", "tokens": 9, "tokens_with_loss": 2, "text": f"{HOSTILE} ⟦<i>learned</i>⟧"}
            ],
        },
        "training_log": pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]}),
        "predictions": predictions,
        "scores": {
            "task": HOSTILE, "n": 24, "confidence": 0.95, "verdict": "The expert answers as many.",
            "warnings": [HOSTILE], "run": "2026-11-29T11.29.15.123Z",
            "systems": dict.fromkeys(("student", "expert", "teacher", HOSTILE), metrics),
            "differences": {"expert - student": {name: {**cell, "p": 0.01} for name, cell in metrics.items()}},
        },
        "embedding_map": pd.DataFrame(points),
        "run_record": {
            "models": {"teacher": HOSTILE}, "versions": {"git": None}, "machine": "CPU", "parameters": {"x": HOSTILE}
        },
        "examples_rejected": rejected("answer_not_in_passage", HOSTILE),
        "reasoning_rejected": rejected("no_majority"),
        "evaluation_items": pd.DataFrame({"item_id": list(ITEMS), "query": [f"query {item}" for item in ITEMS]}),
        "judge_scores": {
            "judge": HOSTILE, "grades": {"student": {"true": CELL}, "expert": {"true": CELL}},
            "doubts": [f"every answer has the same grade {HOSTILE}"],
            "pairwise": {"systems": ["expert", "student"], "win": CELL, "tie": CELL, "loss": CELL,
                         "position_bias": {"flips": CELL}},
        },
        "comparison_scores": {
            "task": "t", "n": 3, "confidence": 0.95, "systems": {"synthesized": metrics}, "differences": {},
            "left_out": {"distilled": HOSTILE, "mapped": HOSTILE},
        },
        "comparison": pd.DataFrame(
            [{"system": "synthesized", "metric": metric, "examples": 12, "requests": 4321.0, "dollars": 0.0456}
             | {"seeds": 2, "seed_mean": 31.25, "seed_deviation": 7.78} for metric in reading_task.metrics]
        ),
        "curves": pd.DataFrame(
            [{"training_set": "synthesized", "examples": size, "seed": 0, "metric": "f1", **CELL} for size in (0, 12)]
        ),
    }  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, its text, its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: list[dict[str, Any]] = []
        self._inside = ""
        # The library's 5 MB are as they are; the parser would read them for seconds.
        self.feed(page.replace(LIBRARY, ""))
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            if data.startswith("{"):
                self.data.append(json.loads(data))
        elif self._inside != "style":
            self.text += data


def test_the_page_shows_everything(reading_task: Task, pieces: dict[str, Any]) -> None:
    assert set(pieces) == set(ALL_PIECES)
    page = Page(write_report(reading_task, **pieces))
    for words in (
        "33.3 → 33.3", "before → after", "Of the 24 items the expert answers 1 better", "1 are still wrong", "few 1",
        "29 November 2026, 11:29 UTC", "run 2026-11-29T11.29.15.123Z", "query b", "answer not in passage",
        "The passage does not have the answer, word for word.", "all 12", "all 24", "$0.0123",
        "7 responses", "expert - student",
        "matches the queries 0.61", "because", "cosine of 0.91", "cosine 0.91", "cc0-1.0",
        "The sets did not cost the same", "4,321", "$0.0456", "Left out: distilled, mapped.",
        "Do not trust this judge: every",
        "Mean grades from 1 to 5", "33.3 % of the verdicts change",
        "1,700", "24 evaluation items are few", "The expert answers",
        "Steps of 8 examples, 2 at once; learning rate 0.0003; LoRA rank 32, alpha 64.",
        "speaks against this learning rate: the student memorizes.", "$0.0789",
        "over the 22 that both answer in the right form", "This page shows a complete run.",
    ):  # fmt: skip
        assert words in page.text, words
    assert ("mark", {}) in page.elements
    assert "Missing:" not in page.text
    assert len(page.data) == 8  # scores, comparison, curves, two of sources, nearness, map, loss


def test_nothing_of_the_data_becomes_markup(reading_task: Task, pieces: dict[str, Any]) -> None:
    page = Page(write_report(reading_task, **pieces))
    assert page.text.count("alert(1)") > 15
    assert not [tag for tag, attributes in page.elements if tag in {"img", "i"} and attributes.keys() - {"style"}]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # One for each picture, the library, and two of the page's own.
    assert sum(tag == "script" for tag, _ in page.elements) == len(page.data) + 3


def test_the_page_needs_nothing_beside_it(reading_task: Task, pieces: dict[str, Any]) -> None:
    page = Page(write_report(reading_task, **pieces))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed"}
        assert "src" not in attributes
        href = attributes.get("href")
        assert href is None or (href.startswith("#") and href[1:] in ids), href
    [policy] = [meta["content"] for _, meta in page.elements if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    style = re.search(r"<style>(.*?)</style>", write_report(reading_task), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_half_a_run_says_what_is_missing(reading_task: Task, pieces: dict[str, Any]) -> None:
    for name in (name for name in pieces if not name.endswith("_summary")):
        without = Page(write_report(reading_task, **{other: piece for other, piece in pieces.items() if other != name}))
        assert (f"Missing: {name}." in without.text) == (name in PIECES), name
    nothing = Page(write_report(reading_task))
    assert "a partial run" in nothing.text
    assert nothing.data == []
    assert reading_task.instruction in nothing.text
    for count in (4, 9, 12, 15):
        begun = Page(write_report(reading_task, **{name: pieces[name] for name in list(PIECES)[:count]}))
        assert f"Missing: {', '.join(list(PIECES)[count:])}." in begun.text


def test_pieces_that_are_empty_or_of_another_version_count_as_missing(
    reading_task: Task, pieces: dict[str, Any]
) -> None:
    other = {
        "scores": {},
        "predictions": pieces["predictions"].head(0),
        "retrieved": pieces["retrieved"].drop(columns="license"),
        "training_log": pd.DataFrame({"loss": [1.0]}),
    }
    page = Page(write_report(reading_task, **pieces | other))
    for name in other:
        assert re.search(rf"Missing: [^.]*\b{name}\b", page.text), name


def test_scores_of_another_version_of_the_task_do_no_harm(reading_task: Task, pieces: dict[str, Any]) -> None:
    cells = {name: {**CELL, "p": 0.01} for name in ("f1", "accuracy")}
    old = {"systems": {"student": cells, "expert": cells}, "differences": {"expert - student": cells}}
    page = Page(write_report(reading_task, **pieces | {"scores": pieces["scores"] | old}))
    assert "Mean grades from 1 to 5" in page.text
    assert "before → after" not in page.text


@pytest.mark.parametrize(
    ("gain", "words", "color"),
    [
        ({"value": 5.0, "low": 0.2, "high": 9.0, "p": 0.061}, "no clear difference (p = 0.061)", ""),
        ({"value": 5.0, "low": -0.2, "high": 9.0, "p": 0.041}, "better", "good"),
        ({"value": -5.0, "low": -9.0, "high": 0.2, "p": 0.041}, "worse", "bad"),
    ],
)
def test_a_difference_is_clear_by_its_p_value(
    reading_task: Task, pieces: dict[str, Any], gain: dict[str, float], words: str, color: str
) -> None:
    gains = dict.fromkeys(reading_task.metrics, gain)
    scores = pieces["scores"] | {"differences": {"expert - student": gains}}
    html = write_report(reading_task, **pieces | {"scores": scores})
    assert f"{gain['value']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]: {words}" in Page(html).text
    assert f'<span class="{color}">{gain["value"]:+.1f}' in html


def test_what_other_seeds_gave_stands_beside_the_intervals(reading_task: Task, pieces: dict[str, Any]) -> None:
    page = Page(write_report(reading_task, **pieces))
    assert page.text.count("31.2 ± 7.8") == len(reading_task.metrics)
    once = pieces["comparison"].assign(seeds=1)
    assert "Seed variance" not in Page(write_report(reading_task, **pieces | {"comparison": once})).text
    assert seed_variance(pieces["comparison"].drop(columns="seeds")) == {}


def test_a_comparison_without_its_table_has_no_costs(reading_task: Task, pieces: dict[str, Any]) -> None:
    page = Page(write_report(reading_task, **{name: pieces[name] for name in ("scores", "comparison_scores")}))
    assert "The sets did not cost the same" in page.text
    assert "requests" not in page.text.lower()


def test_what_is_left_from_an_earlier_run_is_said(reading_task: Task) -> None:
    assert "has changed since): scores." in Page(write_report(reading_task, ["scores"])).text


def test_a_system_that_is_missing_is_no_comparison(reading_task: Task, pieces: dict[str, Any]) -> None:
    expert = pieces["predictions"].query("system == 'expert'")
    page = Page(write_report(reading_task, **pieces | {"predictions": expert}))
    assert "answers of student and expert to the same items" in page.text
    assert compare_answers(reading_task, expert, None) is None
    for ungraded in (
        pieces["predictions"].assign(exact_match=np.nan),
        pieces["predictions"].drop(columns="exact_match"),
    ):
        page = Page(write_report(reading_task, **pieces | {"predictions": ungraded}))
        assert "answers of student and expert to the same items" in page.text
        assert "nan" not in page.text


def test_nothing_is_diagnosed_on_few_items(reading_task: Task, pieces: dict[str, Any]) -> None:
    few = pieces["predictions"][pieces["predictions"]["item_id"] < "d"]
    page = Page(write_report(reading_task, **pieces | {"predictions": few}))
    assert "3 evaluation items are too few: diagnostics need 20." in page.text
    assert "improve only the form" not in page.text
    assert "cosine of 0.91" not in page.text
    wrong = pieces["predictions"].assign(exact_match=0.0)
    page = Page(write_report(reading_task, **pieces | {"predictions": wrong}))
    assert "Only 0 of 24 items are answered in the right form by both" in page.text


def test_answers_are_compared_and_what_is_wrong_is_listed(reading_task: Task, predictions: pd.DataFrame) -> None:
    outcomes = compare_answers(reading_task, predictions, None)
    assert outcomes is not None
    assert [item["query"] for item in outcomes["won"]] == ["prompt a"]
    assert [item["query"] for item in outcomes["lost"]] == ["prompt b"]
    assert outcomes["lost"][0]["student"] == "<b>student says b</b>"
    assert outcomes["counts"] == {"won": 1, "lost": 1, "wrong": 0, "right": 22}
    assert ([item["query"] for item in outcomes["still_wrong"]], outcomes["wrong_count"]) == (["prompt b"], 1)
    assert [line["outcome"] for line in outcomes["lines"][:3]] == ["won", "lost", "right"]
    few_shot = predictions[predictions["system"] == "student"].assign(system="student_few_shot", raw_output="shots")
    items = pd.DataFrame({"item_id": ["b"], "query": ["the query of b"]})
    outcomes = compare_answers(reading_task, pd.concat([predictions, few_shot]), items)
    assert outcomes is not None
    assert (outcomes["lost"][0]["query"], outcomes["won"][0]["query"]) == ("the query of b", "prompt a")
    assert outcomes["lost"][0]["few_shot"] == "shots"
    nothing = compare_answers(reading_task, predictions.assign(exact_match=0.0), None)
    assert nothing is not None
    assert (nothing["counts"]["wrong"], nothing["wrong_count"], len(nothing["still_wrong"])) == (24, 24, 4)


def test_all_examples_are_listed_with_row_and_reason(retrieved: pd.DataFrame) -> None:
    examples = reasoned_examples(2)
    listed = list_examples(
        {"reasoned_examples": examples, "retrieved": retrieved, "examples_rejected": rejected("empty")}
    )
    assert listed["reasons"] == {"kept": 2, "empty": 1}
    assert [line["reason"] for line in listed["lines"]] == ["kept", "kept", "empty"]
    assert listed["lines"][2]["row"] == retrieved["row"].iloc[1]
    assert listed["lines"][0]["text"] == f"{examples['query'].iloc[0]}\n→ {examples['answer'].iloc[0]}"
    many = list_examples({"examples_rejected": pd.concat([rejected("empty")] * 1002)})
    assert (len(many["lines"]), many["left_out"], many["lines"][0]["row"]) == (1000, 2, "")
    assert list_examples({})["lines"] == []


def test_the_run_is_named(pieces: dict[str, Any]) -> None:
    made = describe_run(pieces)
    assert (made["run"], made["date"]) == ("2026-11-29T11.29.15.123Z", "29 November 2026, 11:29 UTC")
    assert (made["teacher"], made["student"]) == (HOSTILE, HOSTILE)
    assert set(describe_run({}).values()) == {None}
    assert describe_run({"scores": {"run": ""}})["date"] is None


def test_examples_are_spread_and_stand_beside_their_row(retrieved: pd.DataFrame) -> None:
    chosen = examples_with_rows(reasoned_examples(9), retrieved)
    assert [example["rank"] for example in chosen] == [1, 3, 5, 7]
    assert chosen[0]["source"][1] == ("year", "1871", ["matches the answers 0.49"])
    assert examples_with_rows(reasoned_examples(1), retrieved.head(0))[0]["source"] == []
    synthetic = reasoned_examples(2).drop(columns=["row_id", "rank", "dataset"])
    assert [example["source"] for example in examples_with_rows(synthetic, None)] == [[], []]


def test_sources_add_up_and_small_ones_stand_together() -> None:
    rows = pd.DataFrame({"dataset": [f"d{n}" for n in range(40)], "license": "mit"})
    lines = sources(rows, reasoned_examples(9))
    assert [(line["dataset"], line["examples"]) for line in lines[:2]] == [("foxes", 5), ("birds", 4)]
    assert lines[-1]["dataset"] == "12 others"
    assert sum(line["rows"] for line in lines) == 40
    assert sources(None, None) == []


def test_flow_is_in_the_order_of_the_stages_with_the_largest_reason_first() -> None:
    counts = {"in": 10, "kept": 5, "rejected": {"a": 1, "b": 4}}
    lines = flow({"train_summary": {"stage": "train", **counts}, "cot_summary": {"stage": "cot", **counts}})
    assert [line["stage"] for line in lines] == ["cot", "train"]
    assert list(lines[0]["rejected"]) == ["b", "a"]
    assert lines[0]["share"] == 50


def test_limits_are_those_of_the_run(pieces: dict[str, Any]) -> None:
    unknown = pieces["retrieved"].assign(license="unknown")
    text = " ".join(limits({"retrieved": unknown, "evaluate_summary": {"rejected": {"over_limit": 94}}}))
    assert "license of 9 retrieved rows is unknown" in text
    assert "94 evaluation items were left out" in text
    assert "few" not in text
    one_sided = {"diversity": {"labels": {"counts": {"yes": 32, "no": 1}}}}
    assert "32 of 33 examples have the label yes" in " ".join(limits(one_sided))


def test_labels_of_the_teacher_are_not_counted_as_those_of_people() -> None:
    mapped = pd.DataFrame({"mapping_id": ["m", "m", None], "teacher": ["people", "openai/x", "people"]})
    text = " ".join(limits({"reasoned_examples": mapped}))
    assert "1 training examples have the labels of their datasets" in text
    assert "were written by a model" in text
    assert "were written by a model" not in " ".join(limits({"reasoned_examples": mapped.head(1)}))


@pytest.mark.slow
def test_the_commands_work_on_a_run_that_was_killed(tmp_path: Path) -> None:
    project = copy_of_project(tmp_path)
    folder = project / "data" / "test" / "08_reporting" / "reading_qa"
    assert "There are no runs" in kedro(project, "runs", "--env=test").stdout
    assert "Made from 0 of" in kedro(project, "report", "--env=test").stdout
    folder.joinpath("cot_summary.json").write_text('{"stage": "cot", "in": 9, "kept": 8, "rejected": {"vague": 1}}')
    folder.joinpath("training_log.parquet").write_text("cut off")
    scores = {"task": "reading_qa", "n": 3, "confidence": 0.9, "systems": {"expert": {"f1": CELL}}, "differences": {}}
    (folder / "scores.json" / "2026-01-01T10.00.00.000Z").mkdir(parents=True)
    (folder / "scores.json" / "2026-01-01T10.00.00.000Z" / "scores.json").write_text(json.dumps(scores))
    done = kedro(project, "report", "--env=test", "--params=task=reading_qa")
    assert "Made from 2 of" in done.stdout
    assert "training_log cannot be read and is left out" in done.stderr
    page = (folder / "report.html").read_text()
    assert "vague" in page
    assert "33.3" in page
    output = kedro(project, "runs", "reading_qa", "--env=test").stdout
    assert "33.3 [20, 42]" in output
    assert "no record" in output
    assert "There are no runs" in kedro(project, "runs", "news_topic", "--env=test").stdout
