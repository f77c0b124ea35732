"""Report: diversity, teacher usage, plots, the run record and one page that shows everything."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import prepare
from rebase.pipelines.report.nodes import compare_usage, measure_diversity, project_embeddings
from rebase.reporting.console import STAGES
from rebase.reporting.plots import plot_embedding_map, plot_nearness, plot_scores_of_rows
from rebase.reporting.report import LISTED, PIECES, write_report
from rebase.reporting.runs import record_run


def create_pipeline() -> Pipeline:
    """From the outputs of all stages to ``diversity``, ``teacher_usage``, plots, ``run_record`` and ``report``."""
    diversity = ["task", "reasoned_examples", "encoder"]
    usage = ["estimate", "map_summary", "transform_summary", "cot_summary"]
    texts = ["task", "retrieved", "reasoned_examples", "evaluation_items", "encoder"]
    record = ["parameters", "scores", "teacher_usage", *(f"{stage}_summary" for stage in STAGES)]
    pieces = {name: name for name in ("task", "mappings", *PIECES, *LISTED, "evaluation_items")}
    nodes = [
        Node(measure_diversity, diversity, "diversity", name="measure_diversity"),
        Node(compare_usage, usage, "teacher_usage", name="compare_usage"),
        Node(project_embeddings, texts, "embedding_map", name="project_embeddings"),
        Node(plot_embedding_map, "embedding_map", "embedding_plot", name="plot_embedding_map"),
        Node(plot_nearness, "embedding_map", "nearness_plot", name="plot_nearness"),
        Node(plot_scores_of_rows, "retrieved", "row_scores_plot", name="plot_scores_of_rows"),
        Node(record_run, record, "run_record", name="record_run"),
        Node(write_report, pieces, "report", name="write_report"),
    ]
    return prepare.create_pipeline() + Pipeline(
        nodes, tags="report", namespace="report", prefix_datasets_with_namespace=False
    )
