"""Compare: train and evaluate every baseline and ReBase in the same way, in one table."""

from kedro.pipeline import Node, Pipeline

from rebase.pipelines import cot, distil, estimate, evaluate, synthesize, train, transform
from rebase.pipelines import map as mapping
from rebase.pipelines.compare.attempts import tolerate
from rebase.pipelines.compare.nodes import (
    add_mapped,
    learn_curve,
    predict_systems,
    score_curves,
    score_systems,
    tabulate,
)
from rebase.pipelines.estimate.nodes import estimate_comparison
from rebase.reporting.plots import plot_curves, plot_scores

#: The training sets that are compared, and the examples of each.
TRAINING_SETS = {
    "synthesized": "synthesized_examples",
    "distilled": "distilled_examples",
    "rebase": "examples",
    "rebase_cot": "reasoned_examples",
    "mapped": "mapped_sample",
    "mapped_rebase": "mapped_rebase_examples",
    "mapped_rebase_price": "mapped_rebase_price_examples",
}
_MAPPED_SETS = ("mapped_sample", "mapped_rebase_examples", "mapped_rebase_price_examples")


def create_pipeline() -> Pipeline:
    """From ``sources`` and ``task`` to ``comparison``, ``comparison_scores`` and ``curves``."""
    distilled = Pipeline(distil.create_pipeline(), inputs={"unlabeled_inputs": "examples"})
    tables = ["mapped_examples", "examples", "map_summary", "transform_summary", "params:train"]
    mixed = Pipeline([Node(add_mapped, tables, [*_MAPPED_SETS], name="add_mapped")])
    return sum(
        (_train(name, examples) for name, examples in TRAINING_SETS.items()),
        # `rebase` is rewritten rows alone, in any mode.
        estimate.create_pipeline(with_mapped=False)
        + transform.create_pipeline(with_mapped=False)
        + tolerate(synthesize.create_pipeline() + distilled + cot.create_pipeline() + mapping.create_pipeline() + mixed)
        + evaluate.create_teacher_pipeline().only_nodes("predict_teacher")
        + _compare(),
    )


def _train(name: str, examples: str) -> Pipeline:
    """The train pipeline, and the learning curve, on one training set."""
    inputs = ["training_set", "student", "params:train", "params:compare"]
    curve = Node(learn_curve, inputs, "curve", name="learn_curve", tags="gpu")
    return Pipeline(
        tolerate(Pipeline([*train.create_pipeline(namespace=None).nodes, curve])),
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
    """The nodes that estimate, evaluate and tabulate all systems."""
    estimated = ["estimate", "task", "evaluation_items", "teacher", "distil_prompt"]
    estimated += ["params:transform", "params:distil", "params:evaluate"]
    evaluated = {name: name for name in ("task", "evaluation_items", "student")} | {"parameters": "params:evaluate"}
    adapters = {name: f"{name}_adapter" for name in TRAINING_SETS}
    generations = ["comparison_generations", "teacher_generations"]
    curves = [f"{name}_curve" for name in TRAINING_SETS]
    summaries = [f"{name}_train_summary" for name in TRAINING_SETS]
    stages = [f"{stage}_summary" for stage in ("transform", "cot", "synthesize", "distil", "map", "teacher")]
    return Pipeline(
        [
            # Before any request is sent.
            Node(estimate_comparison, estimated, "comparison_estimate", name="estimate_comparison"),
            Node(
                predict_systems,
                evaluated | adapters,
                ["comparison_generations", "compare_summary"],
                name="predict_systems",
                tags="gpu",
            ),
            Node(
                score_systems,
                ["task", "params:evaluate", "compare_summary", *generations],
                ["comparison_predictions", "comparison_scores"],
                name="score_systems",
            ),
            Node(
                score_curves,
                evaluated
                | {"scores": "comparison_scores", "train": "params:train"}
                | {name: name for name in curves + summaries},
                "curves",
                name="score_curves",
                tags="gpu",
            ),
            Node(
                tabulate,
                {"scores": "comparison_scores"}
                | {name: name for name in ["task", "curves", "examples", *_MAPPED_SETS[1:], *stages, *summaries]},
                "comparison",
                name="tabulate",
            ),
            Node(plot_scores, "comparison_scores", "comparison_plot", name="plot_comparison", tags="report"),
            Node(plot_curves, "curves", "curves_plot", name="plot_curves", tags="report"),
        ]
    )
