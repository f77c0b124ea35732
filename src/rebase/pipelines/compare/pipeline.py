"""Compare: train and evaluate every baseline and ReBase in the same way, in one table."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import (
    cot,
    distil,
    embed,
    estimate,
    evaluate,
    index,
    ingest,
    retrieve,
    synthesize,
    train,
    transform,
)  # fmt: skip
from rebase.pipelines.compare.attempts import tolerate
from rebase.pipelines.compare.nodes import learn_curve, predict_systems, score_curves, score_systems, tabulate
from rebase.pipelines.estimate.nodes import estimate_comparison
from rebase.reporting.plots import plot_curves, plot_scores

#: The training sets that are compared, and the examples of each.
TRAINING_SETS = {
    "synthesized": "synthesized_examples",
    "distilled": "distilled_examples",
    "rebase": "examples",
    "rebase_cot": "reasoned_examples",
}


def create_pipeline() -> Pipeline:
    """From ``sources`` and ``task`` to ``comparison``, ``comparison_scores`` and ``curves``."""
    stages = (ingest, embed, index, retrieve, estimate, transform)
    pipeline = sum((stage.create_pipeline() for stage in stages), Pipeline([_estimate()]))
    distilled = Pipeline(distil.create_pipeline(), inputs={"unlabeled_inputs": "examples"})
    pipeline += tolerate(synthesize.create_pipeline() + distilled + cot.create_pipeline())
    pipeline += evaluate.create_teacher_pipeline().only_nodes("predict_teacher")
    return sum((_train(name, examples) for name, examples in TRAINING_SETS.items()), pipeline + _compare())


def _estimate() -> Node:
    """The cost of all systems' requests, before anything is sent."""
    parameters = ["params:transform", "params:distil", "params:evaluate"]
    return Node(
        estimate_comparison,
        ["estimate", "task", "evaluation_items", "teacher", "distil_prompt", *parameters],
        "comparison_estimate",
        name="estimate_comparison",
    )


def _train(name: str, examples: str) -> Pipeline:
    """The train pipeline, and the learning curve, on one training set."""
    curve = Node(
        learn_curve, ["training_set", "student", "params:train", "params:compare"], "curve", name="learn_curve",
        tags="gpu",
    )  # fmt: skip
    return Pipeline(
        tolerate(Pipeline([*train.create_pipeline().nodes, curve])),
        namespace=name,
        # Outputs that leave the namespace have names without a dot.
        outputs={output: f"{name}_{output}" for output in ("adapter", "curve", "train_summary")},
        inputs={"task": "task", "student": "student", "reasoned_examples": examples},
        parameters={
            "params:train": "params:train",
            "params:compare": "params:compare",
            "params:train.target": f"params:compare.targets.{name}",
        },
    )


def _compare() -> Pipeline:
    inputs = {name: name for name in ("task", "evaluation_items", "student")} | {"parameters": "params:evaluate"}
    adapters = {name: f"{name}_adapter" for name in TRAINING_SETS}
    curves = {f"{name}_curve": f"{name}_curve" for name in TRAINING_SETS}
    train_summaries = {name: f"{name}_train_summary" for name in TRAINING_SETS}
    stages = ("transform", "cot", "synthesize", "distil", "teacher")
    return Pipeline(
        [
            Node(
                predict_systems,
                inputs | adapters,
                ["comparison_generations", "compare_summary"],
                name="predict_systems",
                tags="gpu",
            ),
            Node(
                score_systems,
                ["task", "params:evaluate", "compare_summary", "comparison_generations", "teacher_generations"],
                ["comparison_predictions", "comparison_scores"],
                name="score_systems",
            ),
            Node(
                score_curves,
                inputs
                | {"scores": "comparison_scores", "train": "params:train"}
                | curves
                | {f"{name}_summary": summary for name, summary in train_summaries.items()},
                "curves",
                name="score_curves",
                tags="gpu",
            ),
            Node(
                tabulate,
                {"scores": "comparison_scores", "task": "task", "curves": "curves"}
                | {stage: f"{stage}_summary" for stage in stages}
                | {f"train_{name}": summary for name, summary in train_summaries.items()},
                "comparison",
                name="tabulate",
            ),
            Node(plot_scores, "comparison_scores", "comparison_plot", name="plot_comparison", tags="report"),
            Node(plot_curves, "curves", "curves_plot", name="plot_curves", tags="report"),
        ]
    )
