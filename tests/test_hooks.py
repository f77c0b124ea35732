from rebase.hooks import RunReporter


def test_a_summary_tells_how_long_its_stage_took() -> None:
    reporter = RunReporter()
    summaries = [{"stage": "cot", "in": 1, "kept": 1, "refused": {}} for _ in range(2)]
    summaries[1]["seconds"] = 12.5  # what a stage measured itself stays
    reporter.after_node_run({"cot_summary": summaries[0], "train_summary": summaries[1], "other": {}})
    assert summaries[0]["seconds"] >= 0
    assert summaries[1]["seconds"] == 12.5
