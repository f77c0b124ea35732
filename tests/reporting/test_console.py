import json
import os
import re
import subprocess
import sys
import termios
from io import StringIO
from typing import Any

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rebase.records import Task
from rebase.reporting.console import (
    ask_line,
    comparison_tables,
    estimate_line,
    estimate_table,
    final_table,
    grades_table,
    retrieved_lines,
    stage_line,
    visible,
)
from rebase.reporting.runs import RunScores, runs_tables

SUMMARY = {"stage": "retrieve", "in": 1200, "kept": 1000, "rejected": {"license": 50, "duplicate": 150}}


def test_stage_line_counts_add_up_and_the_largest_reason_comes_first():
    line = " ".join(stage_line(SUMMARY, 12.4).split())
    assert line == "retrieve in 1,200 · kept 1,000 · rejected 200 (duplicate 150, license 50) · 12 s"


def test_retrieved_rows_are_shown_without_a_passage_and_without_spaces():
    line = {"rank": 1, "score": 0.5, "dataset": "birds", "row": json.dumps({"a": "梟" * 90, "b": "x"}), "passage": None}
    (_, shown) = retrieved_lines(pd.DataFrame([line]), 1)
    assert shown.endswith(f"  {'梟' * 40}…")
    (_, shown) = retrieved_lines(pd.DataFrame([line | {"passage": float("nan")}]), 1)
    assert shown.endswith(f"  {'梟' * 40}…")
    (_, shown) = retrieved_lines(pd.DataFrame([line | {"passage": "An owl."}]), 1)
    assert shown.endswith("  An owl.")


def test_stage_line_reports_annoys_recall():
    assert "Annoy's recall 0.97" in stage_line({**SUMMARY, "annoy_recall": 0.968}, 1)
    assert "Annoy" not in stage_line({**SUMMARY, "annoy_recall": None}, 1)


def test_stage_line_without_rejections_says_nothing_of_them():
    assert "rejected" not in stage_line({**SUMMARY, "rejected": {}}, 1)


def test_stage_line_tells_what_the_teacher_was_asked():
    usage = {"used": 120, "responses": 100, "cached": 20, "dollars": 0.25}
    assert "· 100 responses, 20 cached, $0.2500 ·" in stage_line({**SUMMARY, "usage": usage}, 1)
    assert "responses" not in stage_line({**SUMMARY, "usage": {**usage, "used": 0}}, 1)


ESTIMATE = {
    "stage": "estimate", "task": "squad", "teacher": "anthropic/m", "price": "$1 / $5 per million tokens",
    "tokens": "as counted", "rows": 220, "stages": {}, "total": {
        "requests": [120, 220], "input_tokens": [40_000, 80_000], "output_tokens": [5_000, 9_000],
        "dollars": [0.065, 0.125], "dollars_batch": [0.0325, 0.0625],
    },
}  # fmt: skip


def test_estimate_is_told_from_low_to_high():
    assert "120–220 requests to anthropic/m" in estimate_line(ESTIMATE)
    assert "$0.0650–$0.1250, by batches $0.0325–$0.0625" in estimate_line(ESTIMATE)
    out = StringIO()
    Console(file=out, width=140).print(estimate_table(ESTIMATE))
    text = out.getvalue()
    assert "40,000– 80,000" in text


def test_unknown_price_is_said():
    total = {**ESTIMATE["total"], "dollars": None, "dollars_batch": None}
    unknown = {**ESTIMATE, "total": total, "price": "no price for anthropic/m"}
    assert "no price for anthropic/m" in estimate_line(unknown)
    out = StringIO()
    Console(file=out, width=140).print(estimate_table(unknown))
    assert "no price for anthropic/m" in " ".join(out.getvalue().split())


CELL = {"value": 51.0, "low": 41.2, "high": 100.0}
SYSTEMS = ("student", "student_few_shot", "teacher", "synthesized", "rebase_cot")


def lines_of(table: Any, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in out.getvalue()
    return lines


def test_comparisons_fit_80_columns_with_whole_names_and_intervals() -> None:
    costs = {"examples": 1700, "requests": 7300.0, "dollars": 12.5, "minutes": 100.8}
    seeds = {"seeds": 2, "seed_mean": 23.5, "seed_deviation": 17.78}
    comparison = pd.DataFrame(
        [
            {"system": name, "metric": metric, **CELL, "value": value, **costs, **seeds}
            for name in SYSTEMS
            for metric, value in (("f1", 51.0), ("accuracy", 52.0), ("answer_found", 52.0))
        ]
    )
    comparison.loc[comparison["system"] == "student", ["seed_mean", "seed_deviation"]] = float("nan")
    gains = {f"{name} - student": {"f1": {"value": -100.0, "p": 0.0002}} for name in SYSTEMS[1:]}
    left_out = {"mapped": "There are none.", "mapped_rebase": "There are none.", "rebase_cot": "No rationales."}
    scores = {"n": 200, "differences": gains, "left_out": left_out, "warnings": ["distilled gives nearly one label."]}
    lines = lines_of(comparison_tables("squad", comparison, scores), 80)
    assert lines[-3] == "distilled gives nearly one label."
    assert lines[-2:] == ["Left out: mapped, mapped_rebase. There are none.", "Left out: rebase_cot. No rationales."]
    for name in SYSTEMS:
        rows = [line.split() for line in lines if line.split()[:1] == [name]]
        values = [["51.0", "41.2–100.0"], ["52.0", "41.2–100.0"]]
        assert [row[1:3] for row in rows] == [*values, ["1,700", "7,300"]], name
    assert "answer_found: the same scores as accuracy" in lines


def test_estimates_fit_80_columns_with_whole_numbers() -> None:
    total = {"requests": [1200, 2200], "input_tokens": [1_400_000, 2_800_000], "output_tokens": [205_000, 409_000]}
    dollars = {"dollars": [10.065, 20.125], "dollars_batch": [5.0325, 10.0625]}
    text = " ".join(lines_of(estimate_table({**ESTIMATE, "total": total | dollars}), 80)).split()
    assert {"1,200–", "2,200", "1,400,000–", "2,800,000", "$10.0650–", "$20.1250", "$5.0325–", "$10.0625"} <= set(text)


def test_runs_fit_80_columns_with_whole_names_and_intervals() -> None:
    systems = {name: {"f1": CELL} for name in SYSTEMS[:3]}
    runs = [RunScores(f"2026-01-0{day}T10.00.00.000Z", {"n": 60, "systems": systems}, None) for day in (2, 1)]
    lines = lines_of(runs_tables("squad", runs), 80)
    assert "51.0 [41, 100]   51.0 [41, 100]" in next(line for line in lines if "2026-01-02T10.00.00 " in line)
    assert next(line for line in lines if "run " in line).split() == ["run", *SYSTEMS[:3]]


def python(code: str, errors: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    head = "import logging\nfrom tqdm import tqdm\nfrom rebase.reporting.console import *\n"
    command = [sys.executable, "-c", head + code]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=True)


def test_in_a_terminal_a_bar_disappears_at_its_end() -> None:
    terminal, program = os.openpty()
    termios.tcsetwinsize(program, (24, 80))
    python("set_up_bars()\nbar = tqdm(total=4, desc='train', mininterval=0)\nbar.update(2)\nbar.close()", program)
    shown = os.read(terminal, 10_000).decode()
    assert "train:  50%" in shown
    assert re.search(r"\r +\r$", shown)


def test_without_a_terminal_bars_are_lines_and_short_ones_are_not_shown() -> None:
    done = python(
        "set_up_bars()\nlist(tqdm(range(3)))\nbar = tqdm(total=4, desc='train', delay=1e-9, mininterval=0)\n"
        "bar.update(1)\nbar.set_postfix_str('loss=1', refresh=False)\nbar.update(2)\nbar.close()"
    )
    first, second = done.stderr.strip().splitlines()
    assert re.fullmatch(r"train: 1/4, 00:00, \S+ left", first)
    assert re.fullmatch(r"train: 3/4, 00:00, \S+ left, loss=1", second)


def test_without_a_terminal_messages_and_paths_are_not_wrapped() -> None:
    done = python(
        "from kedro.logging import RichHandler\nlogging.basicConfig(handlers=[RichHandler()])\nuse_plain_logs()\n"
        "logging.warning('ingest [x] ' + 100 * 'word ')\nmake_console().print(100 * 'word ')"
    )
    logged, printed = done.stdout.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING ingest \[x\] (word ?){100}", logged.strip())
    assert printed.count("word") == 100
    assert not done.stderr


def test_final_table_shows_stages_that_ran_and_scores_with_intervals():
    scores = {"n": 80, "systems": {"student": {"f1": {"value": 12.34, "low": 8.0, "high": 17.5}}}}
    out = StringIO()
    Console(file=out, width=120).print(final_table("reading_qa", {"retrieve": SUMMARY}, scores))
    text = out.getvalue()
    assert "1,000 of 1,200; rejected: duplicate 150, license 50" in text
    assert "12.3  [8.0, 17.5]  (n = 80)" in text
    assert "transform" not in text
    told = scores | {"verdict": "The expert answers 11 more items.", "warnings": ["It gives one label: [x]."]}
    Console(file=out, width=120).print(final_table("reading_qa", {}, told))
    assert "The expert answers 11 more items." in out.getvalue()
    assert "It gives one label: [x]." in out.getvalue()


def test_grades_are_shown_with_intervals_and_doubts() -> None:
    cell = {"value": 3.25, "low": 3.0, "high": 3.5, "n": 40}
    scores: dict[str, Any] = {
        "judge": "anthropic/m",
        "grades": {"student": {"helpful": cell, "brief": {"n": 0}}},
        "doubts": ["every answer has the same grade"],
        "pairwise": {"systems": ["expert", "student"], "win": {"value": 60.0}, "loss": {"value": 30.0}},
    }
    out = StringIO()
    Console(file=out, width=80).print(grades_table(scores))
    text = " ".join(out.getvalue().split())
    assert re.search("student +helpful +3.25 +3.00–3.50 +40", text)
    assert "brief" not in text
    assert "expert wins 60.0 % against student and loses 30.0 %." in text
    assert "Do not trust this judge: every answer has the same grade" in text


def test_a_comparison_tells_what_other_seeds_gave_and_no_chance_of_nought():
    cell = {"value": 18.0, "low": 13.0, "high": 23.0}
    made = {"metric": "f1", **cell, "examples": 17, "requests": 73.0, "dollars": 0.0, "minutes": 0.8}
    lines = pd.DataFrame(
        [
            {"system": "student", **made, "seeds": 0, "seed_mean": None, "seed_deviation": None},
            {"system": "synthesized", **made, "seeds": 2, "seed_mean": 23.5, "seed_deviation": 7.78},
        ]
    )
    scores = {"n": 200, "differences": {"synthesized - student": {"f1": {**cell, "p": 0.0002}}}}

    def shown(comparison):
        out = StringIO()
        Console(file=out, width=160).print(comparison_tables("squad", comparison, scores))
        return out.getvalue()

    assert "23.5 ± 7.8 (2)" in shown(lines)
    assert "<0.001" in shown(lines)
    assert "over seeds" not in shown(lines.assign(seeds=1))


def test_the_last_line_of_a_run_is_the_command_that_asks_the_expert(reading_task: Task) -> None:
    line = ask_line(reading_task, None)
    assert line == 'Next: kedro ask --task=tiny_reading --context="…" --question="…"'
    assert ask_line(reading_task, "gpu").startswith("Next: kedro ask --task=tiny_reading --env=gpu --context=")


@given(st.text())
def test_what_is_visible_can_be_printed_and_changes_nothing_else(text: str) -> None:
    printable = visible(text)
    printable.encode()
    assert not any(ord(char) < 32 and char not in "\n\t" for char in printable)
    if text.isprintable() and not set(text) & set("\u061c\u200e\u200f"):
        assert printable == text
    assert visible(printable) == printable
