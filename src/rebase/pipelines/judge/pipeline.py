"""Judge: a model grades and compares the systems' answers, people grade a blind sheet, and both are compared."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.judge.nodes import compare_graders, judge_answers, read_grades, score_judgments, write_sheets


def create_pipeline() -> Pipeline:
    """From ``predictions`` to ``judge_scores``, the grading sheet and, once sheets are returned, ``agreement``."""
    answers, rubric, parameters = ["task", "evaluation_items", "predictions"], "judge_rubric", "params:judge"
    sheets = ["grading_sheet", "grading_form", "grading_key"]
    requested = [*answers, "judge", rubric, "judge_pair", parameters]
    judgments = ["judgments", "judge_rejected", "judge_summary"]
    judged = ["task", "predictions", "judgments", "judge_rejected", rubric, parameters]
    returned, grades = ["returned_sheets", "grading_key", rubric], ["grades", "grades_rejected", "agreement_summary"]
    graded = ["task", "grades", "grading_key", "judgments", rubric, parameters]
    nodes = [
        Node(write_sheets, [*answers, rubric, parameters], sheets, name="write_sheets"),
        Node(judge_answers, requested, judgments, name="judge_answers"),
        Node(score_judgments, judged, "judge_scores", name="score_judgments"),
        Node(read_grades, returned, grades, name="read_grades"),
        Node(compare_graders, graded, "agreement", name="compare_graders"),
    ]
    return prepare.create_pipeline() + Pipeline(nodes)
