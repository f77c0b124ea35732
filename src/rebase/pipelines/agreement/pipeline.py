"""Agreement: what people graded, and how far they and the judge agree."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.agreement.nodes import compare_graders, read_grades


def create_pipeline() -> Pipeline:
    """``returned_sheets`` to ``grades`` and, with ``judgments``, to ``agreement``."""
    return Pipeline(
        [
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
