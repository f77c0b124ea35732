"""Judge: what a model says of the systems' answers, and the sheet on which people say it."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.judge.nodes import judge_answers, score_judgments, write_sheets


def create_pipeline() -> Pipeline:
    """``predictions`` to ``judgments`` and ``judge_scores``, and to ``grading_sheet`` and ``grading_form``."""
    return Pipeline(
        [
            Node(
                write_sheets,
                ["task", "evaluation_items", "predictions", "judge_rubric", "params:judge"],
                ["grading_sheet", "grading_form", "grading_key"],
                name="write_sheets",
            ),
            Node(
                judge_answers,
                ["task", "evaluation_items", "predictions", "judge", "judge_rubric", "judge_pair", "params:judge"],
                ["judgments", "judge_rejected", "judge_summary"],
                name="judge_answers",
            ),
            Node(
                score_judgments,
                ["task", "predictions", "judgments", "judge_rejected", "judge_rubric", "params:judge"],
                "judge_scores",
                name="score_judgments",
            ),
        ]
    )
