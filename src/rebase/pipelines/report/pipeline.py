"""Report: everything about a run on one page, and the record by which runs are compared."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines.report.nodes import project_embeddings, record_run
from rebase.reporting.console import STAGES
from rebase.reporting.plots import plot_embedding_map, plot_nearness, plot_scores_of_rows
from rebase.reporting.report import PIECES, write_report


def create_pipeline() -> Pipeline:
    """What the stages made to ``embedding_map``, its plots, ``run_record`` and ``report``."""
    summaries = [f"{stage}_summary" for stage in STAGES]
    return Pipeline(
        [
            Node(
                project_embeddings,
                ["task", "retrieved", "reasoned_examples", "evaluation_items", "encoder"],
                "embedding_map",
                name="project_embeddings",
                tags="report",
            ),
            Node(plot_embedding_map, "embedding_map", "embedding_plot", name="plot_embedding_map", tags="report"),
            Node(plot_nearness, "embedding_map", "nearness_plot", name="plot_nearness", tags="report"),
            Node(plot_scores_of_rows, "retrieved", "row_scores_plot", name="plot_scores_of_rows", tags="report"),
            Node(
                record_run,
                ["parameters", "scores", "teacher_usage", *summaries],
                "run_record",
                name="record_run",
                tags="report",
            ),
            Node(
                write_report,
                {name: name for name in ("task", *PIECES)},
                "report",
                name="write_report",
                tags="report",
            ),
        ]
    )
