"""Report: diversity, teacher usage, plots, the run record and one page that shows everything."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.report.nodes import compare_usage, measure_diversity, project_embeddings
from rebase.reporting.console import STAGES
from rebase.reporting.plots import plot_embedding_map, plot_nearness, plot_scores_of_rows
from rebase.reporting.report import PIECES, write_report
from rebase.reporting.runs import record_run


def create_pipeline() -> Pipeline:
    """From the outputs of all stages to ``diversity``, ``teacher_usage``, plots, ``run_record`` and ``report``."""
    summaries = [f"{stage}_summary" for stage in STAGES]
    return prepare.create_pipeline() + Pipeline(
        [
            Node(
                measure_diversity,
                ["task", "reasoned_examples", "encoder"],
                "diversity",
                name="measure_diversity",
                tags="report",
            ),
            Node(
                compare_usage,
                ["estimate", "transform_summary", "cot_summary"],
                "teacher_usage",
                name="compare_usage",
                tags="report",
            ),
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
