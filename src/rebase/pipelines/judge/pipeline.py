"""Judge: a model grades and compares the systems' answers, people grade a blind sheet, and both are compared."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.judge.nodes import compare_graders, judge_answers, read_grades, score_judgments, write_sheets


def create_pipeline() -> Pipeline:
    """From ``predictions`` to ``judge_scores``, the grading sheet and, once sheets are returned, ``agreement``."""
    return prepare.create_pipeline() + Pipeline(
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
            Node(
                read_grades,
                ["returned_sheets", "grading_key", "judge_rubric"],
                ["grades", "grades_rejected", "agreement_summary"],
                name="read_grades",
            ),
            Node(
                compare_graders,
                ["task", "grades", "grading_key", "judgments", "judge_rubric", "params:judge"],
                "agreement",
                name="compare_graders",
            ),
        ]
    )
