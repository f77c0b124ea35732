from io import StringIO

from rich.console import Console

from rebase.console import final_table, stage_line

SUMMARY = {"stage": "retrieve", "in": 1200, "kept": 1000, "refused": {"licence": 50, "duplicate": 150}}


def test_stage_line_counts_add_up_and_the_largest_reason_comes_first():
    said = " ".join(stage_line(SUMMARY, 12.4).split())
    assert said == "retrieve in 1,200 · kept 1,000 · refused 200 (duplicate 150, licence 50) · 12 s"


def test_stage_line_reports_annoys_recall():
    assert "Annoy's recall 0.97" in stage_line({**SUMMARY, "annoy_recall": 0.968}, 1)
    assert "Annoy" not in stage_line({**SUMMARY, "annoy_recall": None}, 1)


def test_stage_line_without_refusals_says_nothing_of_them():
    assert "refused" not in stage_line({**SUMMARY, "refused": {}}, 1)


def test_final_table_shows_stages_that_ran_and_scores_with_intervals():
    scores = {"n": 80, "systems": {"student": {"f1": {"value": 12.34, "low": 8.0, "high": 17.5}}}}
    out = StringIO()
    Console(file=out, width=120).print(final_table("reading_qa", {"retrieve": SUMMARY}, scores))
    text = out.getvalue()
    assert "1,000 of 1,200; refused: duplicate 150, licence 50" in text
    assert "12.3  [8.0, 17.5]  (n = 80)" in text
    assert "transform" not in text
