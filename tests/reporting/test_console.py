from io import StringIO

import pandas as pd
from rich.console import Console

from rebase.records import Task
from rebase.reporting.console import ask_line, comparison_tables, estimate_line, estimate_table, final_table, stage_line

SUMMARY = {"stage": "retrieve", "in": 1200, "kept": 1000, "rejected": {"license": 50, "duplicate": 150}}


def test_stage_line_counts_add_up_and_the_largest_reason_comes_first():
    line = " ".join(stage_line(SUMMARY, 12.4).split())
    assert line == "retrieve in 1,200 · kept 1,000 · rejected 200 (duplicate 150, license 50) · 12 s"


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


def test_final_table_shows_stages_that_ran_and_scores_with_intervals():
    scores = {"n": 80, "systems": {"student": {"f1": {"value": 12.34, "low": 8.0, "high": 17.5}}}}
    out = StringIO()
    Console(file=out, width=120).print(final_table("reading_qa", {"retrieve": SUMMARY}, scores))
    text = out.getvalue()
    assert "1,000 of 1,200; rejected: duplicate 150, license 50" in text
    assert "12.3  [8.0, 17.5]  (n = 80)" in text
    assert "transform" not in text


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
