"""Hooks: they check what can be checked before any work, and tell how the run goes. They do none of the work."""

import difflib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml
from kedro.config import AbstractConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from rich.console import Console

from rebase.errors import RebaseError
from rebase.reporting.console import STAGES, comparison_table, estimate_line, estimate_table, final_table, stage_line
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.teacher.settings import TeacherSettings

logger = logging.getLogger(__name__)

_SUMMARY = "_summary"
_ESTIMATES = ("estimate", "comparison_estimate")
#: What only a teacher that answers can make: for an estimate no key is needed.
_ASKING = frozenset({"examples", "reasoned_examples", "synthesized_examples", "distilled_examples"})
#: Inputs that are cheap to load and that people get wrong: a wrong one stops the run before any work.
_CHECKED_FIRST = (
    "task", "encoder", "student", "transform_prompt", "cot_prompt", "synthesize_prompt", "distil_prompt",
    "judge_rubric", "judge_pair",
)  # fmt: skip


class RunReporter:
    """Prints a line when a stage ends and a table when the run ends, and turns our errors into plain words."""

    def __init__(self) -> None:
        self._stage_started = 0.0

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check that whatever ``--params`` sets is read by something."""
        try:
            _check_runtime_params(context.config_loader)
        except RebaseError as error:
            raise _plain(error) from error

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Check task, evaluation set, prompts and the teacher's key before anything is computed."""
        self._stage_started = time.monotonic()
        inputs, outputs = pipeline.inputs(), pipeline.all_outputs()
        if "estimate" in outputs and "examples" not in outputs:
            nodes = ", ".join(node.name for node in pipeline.nodes)
            logger.info("estimate: runs %s; sends no request to the teacher", nodes)
        try:
            for name in sorted(inputs):
                _check_order(name, pipeline, catalog)
            for name in _CHECKED_FIRST:
                if name in inputs:
                    catalog.load(name)
            if "evaluation_rows" in inputs:
                make_evaluation_items(catalog.load("task"), catalog.load("evaluation_rows"))
            if "teacher" in inputs and not _ASKING.isdisjoint(pipeline.all_outputs()):
                catalog.load("teacher").check()
            if "judge" in inputs:
                catalog.load("judge").check()
        except Exception as error:
            raise _plain(error) from error

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Print the line of a stage whose summary is there, and note in it the time since the stage before it ended."""
        for name, output in outputs.items():
            if name.endswith(_SUMMARY):
                now = time.monotonic()
                # Only here is it known when the stage began. Kedro saves the summary after this.
                output.setdefault("seconds", round(now - self._stage_started, 1))
                logger.info(stage_line(output, now - self._stage_started))
                self._stage_started = now
            elif name in _ESTIMATES:
                logger.info(estimate_line(output))

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Print the table of a run that ends with scores, or with an estimate."""
        if "comparison" in pipeline.all_outputs():
            scores = catalog.load("comparison_scores")
            Console().print(comparison_table(scores["task"], catalog.load("comparison"), scores))
        else:
            for name in pipeline.outputs().intersection(_ESTIMATES):
                Console().print(estimate_table(catalog.load(name)))
        if "report" not in pipeline.all_outputs():
            return
        names = [f"{stage}{_SUMMARY}" for stage in STAGES]
        summaries = {name.removesuffix(_SUMMARY): catalog.load(name) for name in names if catalog.exists(name)}
        scores = catalog.load("scores")
        console = Console()
        console.print(final_table(scores["task"], summaries, scores))
        for name in ("adapter", "examples", "predictions", "report"):
            console.print(f"{name:<12} {catalog[name]._get_load_path()}", soft_wrap=True, highlight=False)
        console.print("Next: open the report; look at the lineage with `kedro viz run`; "
                      "another task with `kedro run --params=task=NAME`.")  # fmt: skip

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Show an error that the user can mend as its words alone."""
        plain = _plain(error)
        if plain is not error:
            raise plain from error


def _check_runtime_params(loader: AbstractConfigLoader) -> None:
    """Raise RebaseError where a parameter of this run is neither a stage's nor declared in the catalog.

    Kedro takes any name, and what is misspelled would change nothing: a budget, say. What is in a stage is checked by
    the stage's type. A configuration that is packed, or lies elsewhere, is not looked into.
    """
    if not loader.runtime_params or not Path(loader.conf_source).is_dir():
        return
    texts = [(file.name, file.read_text("utf-8")) for file in Path(loader.conf_source).rglob("*.yml")]
    stages = {name for file, text in texts if file.startswith("parameters") for name in yaml.safe_load(text) or ()}
    declared = {name for _, text in texts for name in re.findall(r"\$\{runtime_params:([\w.]+)", text)}
    # The catalog takes the whole group; its type has the names.
    declared = declared - {"teacher"} | {f"teacher.{name}" for name in TeacherSettings.model_fields}
    given = {name: value for name, value in loader.runtime_params.items() if name not in stages}
    known = sorted(declared | stages)
    for name in _leaves(given, declared):
        if name not in declared:
            near = [*difflib.get_close_matches(name, known), *difflib.get_close_matches(name.split(".")[0], known)]
            meant = f"Is {near[0]} meant?" if near else f"A run takes {', '.join(known)}."
            raise RebaseError(f"--params: nothing reads {name}. {meant}")


def _leaves(given: Mapping[str, Any], declared: set[str], prefix: str = "") -> Iterator[str]:
    """The dotted names of what is set: of single values, and of mappings that are declared as a whole."""
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in declared:
            yield from _leaves(value, declared, f"{name}.")
        else:
            yield name


def _check_order(name: str, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
    """Raise RebaseError where the run makes what it also reads by this input, which names files, not datasets.

    Kedro does not see that the one needs the other, and may well run it first, on the files of an earlier run.
    """
    found: Iterable[str] = ()
    if name == "students_examples":
        found = [Path(catalog[name]._describe().get("filepath", "")).stem]
    if made := sorted(pipeline.all_outputs().intersection(found)):
        readers = ", ".join(node.name for node in pipeline.only_nodes_with_inputs(name).nodes)
        raise RebaseError(
            f"{readers} reads the files of {', '.join(made)}, which this run makes as well: it could take those of an "
            "earlier run. Run the pipelines one after the other."
        )


def _plain(error: BaseException) -> BaseException:
    """The RebaseError behind an error, as click shows it; the error itself where there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RebaseError):
            return click.ClickException(str(cause))
        cause = cause.__cause__ or cause.__context__
    return error
