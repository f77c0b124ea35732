"""Hooks: check inputs before any work, print the progress of a run, and save what a failed stage rejected."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import yaml
from kedro.config import AbstractConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from rebase.datasets.checked import OptionalTableDataset
from rebase.datasets.inputs import ReadOnly
from rebase.datasets.versions import RunCatalog
from rebase.errors import RebaseError, StageError, did_you_mean, user_message
from rebase.files import DOWNLOADS, remove_temporaries
from rebase.old_names import reject_old_names
from rebase.parameters import check_globals, check_parameters, flat_parameters
from rebase.records import TEACHER_USAGE_COLUMNS
from rebase.reporting.console import (
    STAGES,
    ask_line,
    comparison_tables,
    estimate_line,
    estimate_table,
    final_table,
    grades_table,
    make_console,
    stage_line,
)
from rebase.reporting.doctor import smallest_writer
from rebase.reporting.freshness import describe_origin, unsaved_origin
from rebase.reporting.runs import record_run
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.teacher.settings import TeacherSettings

logger = logging.getLogger(__name__)

_SUMMARY = "_summary"
_ESTIMATES = ("estimate", "comparison_estimate")
#: Outputs that need a working teacher; an estimate needs no key.
_TEACHER_OUTPUTS = frozenset(
    {"mapped_examples", "examples", "reasoned_examples", "synthesized_examples", "distilled_examples", "pilot"}
)
#: Inputs that load fast and are often wrong: their errors should appear before any work.
_CHECKED_FIRST = (
    "task", "encoder", "student",
    "map_prompt", "transform_prompt", "cot_prompt", "synthesize_prompt", "distil_prompt", "judge_rubric", "judge_pair",
)  # fmt: skip


class RunReporter:
    """Print a line when a stage ends, a table when the run ends, and user errors without a traceback."""

    def __init__(self) -> None:
        self._outputs: RunCatalog

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check the environment, the names of parameters and their values; remove what killed runs left."""
        with user_errors():
            _check_names(context.config_loader, context.env or "local")
            check_parameters(context.config_loader["parameters"])
            settings = context.config_loader["globals"]
            check_globals({**settings, **(context.config_loader.runtime_params or {})})
            models = context.project_path / settings["data"] / "06_models"
        if leftovers := [*remove_temporaries(models), *remove_temporaries(DOWNLOADS)]:
            logger.info("removed %d temporary files or folders of killed runs: %s", len(leftovers), leftovers[0])

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Check the task, the evaluation items, prompts and the teacher's key before any work."""
        inputs, outputs = pipeline.inputs(), pipeline.all_outputs()
        if "estimate" in outputs and outputs.isdisjoint(_TEACHER_OUTPUTS):
            nodes = ", ".join(node.short_name for node in pipeline.nodes)
            logger.info("estimate: runs %s; sends no request to the teacher", nodes)
        self._outputs = RunCatalog(catalog, {})
        for name in _CHECKED_FIRST:
            if name in inputs:
                catalog.load(name)
        if not run_params["only_missing_outputs"]:
            _check_inputs(inputs, catalog)
        if "evaluation_rows" in inputs:
            make_evaluation_items(catalog.load("task"), catalog.load("evaluation_rows"))
        if "teacher" in inputs and not _TEACHER_OUTPUTS.isdisjoint(outputs):
            catalog.load("teacher").check()
        if "judge" in inputs:
            catalog.load("judge").check()
        if "student" in inputs:
            # Without this check, a model that is missing or gated would be noticed after the teacher's work. All that
            # students are used for needs the tokenizer. It is the last check, because it converts a packaged model.
            catalog.load("student").tokenizer()

    @hook_impl
    def after_node_run(self, outputs: dict[str, Any]) -> None:
        """Print the line of a stage that has ended, or of an estimate."""
        for name, output in outputs.items():
            if name.endswith(_SUMMARY) and (output["in"] or name != "map_summary"):
                logger.info(stage_line(output, output["seconds"]))
            elif name in _ESTIMATES:
                logger.info(estimate_line(output))

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Print the table of a comparison, an estimate or a report."""
        outputs, console = pipeline.all_outputs(), make_console()
        if "comparison" in outputs:
            scores = catalog.load("comparison_scores")
            console.print(comparison_tables(scores["task"], catalog.load("comparison"), scores))
        else:
            for name in pipeline.outputs().intersection(_ESTIMATES):
                console.print(estimate_table(catalog.load(name)))
        if "pilot_page" in outputs:
            from rebase.reporting.pilot import show_pilot

            console.print(show_pilot(*map(catalog.load, ("task", "pilot", "pilot_summary", "pilot_estimate"))))
            page = self._outputs.path("pilot_page")
            console.print(f"Next: open {page}; for the full run, the same command without --pipelines=pilot",
                          soft_wrap=True, highlight=False)  # fmt: skip
        if "merged_model" in outputs:
            console.print(f"Next: {catalog.load('merged_model')}/README.md says how to serve it", soft_wrap=True)
        if "judge_scores" in outputs:
            console.print(grades_table(catalog.load("judge_scores")))
        self._print_paths(outputs & {"grading_form"})
        if "scores" not in outputs:
            return
        names = [f"{stage}{_SUMMARY}" for stage in STAGES]
        summaries = {name.removesuffix(_SUMMARY): catalog.load(name) for name in names if catalog.exists(name)}
        scores = catalog.load("scores")
        if "run_record" not in outputs:
            usage = pd.DataFrame(columns=TEACHER_USAGE_COLUMNS)  # the teacher's is of an earlier run
            catalog.save("run_record", record_run(catalog.load("parameters"), scores, usage, *summaries.values()))
        console.print(final_table(scores["task"], summaries, scores))
        self._print_paths(outputs & {"adapter", "examples", "predictions", "report"})
        if "report" in outputs:
            console.print("Open the report; look at the lineage with `kedro viz run`; "
                          "another task with `kedro run --params=task=NAME`.")  # fmt: skip
        else:
            env = f" --env={run_params['env']}" if run_params.get("env") else ""
            click.echo(f"Write the report again: kedro report{env} --params=task={scores['task']}")
        line = ask_line(catalog.load("task"), run_params.get("env"))
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _print_paths(self, names: AbstractSet[str]) -> None:
        for name in sorted(names):
            click.echo(f"{name:<12} {self._outputs.path(name)}")

    @hook_impl
    def on_node_error(self, error: Exception, node: Node, catalog: CatalogProtocol) -> None:
        """Save what a failed stage rejected or mapped: a node that raises has no outputs."""
        if not isinstance(error, StageError):
            return
        for name in node.outputs:
            table = error.table(name)
            if table is not None and len(table):
                catalog.save(name, table)


class OriginRecorder:
    """Record what each output was made from, by content, for the report (``reporting.freshness``)."""

    def __init__(self) -> None:
        self._unsaved: dict[str, Callable[[], None]] = {}

    @hook_impl
    def after_node_run(self, catalog: CatalogProtocol, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Mark each output as outdated until it is saved: in one file each, so that parallel nodes do not wait."""
        written = load_origins(catalog)
        input_origins = {name: written[name]() for name in inputs if name in written}
        save = catalog["origins"].save
        save({name: unsaved_origin(name) for name in outputs})
        for name, output in outputs.items():
            self._unsaved[name] = partial(save, {name: describe_origin(output, inputs, input_origins)})

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Save the origin of an output."""
        self._unsaved.pop(dataset_name)()


def load_origins(catalog: CatalogProtocol) -> dict[str, Callable[[], dict[str, Any]]]:
    """The saved origins, by catalog entry, each with a function that loads it; none before the first run."""
    try:
        return {name: partial(_read_origin, load) for name, load in catalog["origins"].load().items()}
    except DatasetError:
        return {}


def _read_origin(load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return load()
    except DatasetError as error:
        logger.warning("%s What it describes counts as current.", user_message(error))
        return {"content": None, "made_from": {}}


def _check_inputs(inputs: AbstractSet[str], catalog: CatalogProtocol) -> None:
    """Raise RebaseError if an input was not written yet. The message names the pipelines that write it."""
    missing = {
        name
        for name in inputs
        if not isinstance(catalog.get(name), ReadOnly | OptionalTableDataset) and not catalog.exists(name)
    }
    if not missing:
        return
    pipelines.set_requested(None)  # Kedro has loaded only the pipelines of the run.
    writers = {name: writer for name in sorted(missing) if (writer := smallest_writer(pipelines, name))}
    if writers:
        names = [*list(writers)[:4], *["…"] * (len(writers) > 4)]
        raise RebaseError(
            f"This run reads what no run has written yet: {', '.join(names)}. First, with the same --env and --params: "
            f"kedro run --pipelines={','.join(sorted(set(writers.values())))}, or kedro run for all stages."
        )


def _check_names(loader: AbstractConfigLoader, environment: str) -> None:
    """Raise RebaseError for an old name, or one that nothing reads, in ``--params`` or in the run's environment.

    Kedro accepts any parameter and any global, so that a misspelled budget would have no effect. Parameters inside a
    stage's group are checked by the group's type. A packed configuration is not read.
    """
    given = loader.runtime_params or {}
    reject_old_names(given, "--params")
    folder = Path(loader.conf_source)
    if not folder.is_dir():
        return
    if not (folder / environment).is_dir():
        names = [path.name for path in folder.iterdir() if path.is_dir()]
        raise RebaseError(f"There is no environment {environment!r} in {folder}. {did_you_mean(environment, names)}")
    configuration = "\n".join(file.read_text("utf-8") for file in folder.rglob("*.yml"))
    groups = {name for file in (folder / "base").rglob("parameters*.yml") for name in _read_settings(file)}
    global_names, declared = (_names_read(configuration, source) for source in ("globals", "runtime_params"))
    for file in sorted((folder / environment).rglob("*.yml")):
        settings = _read_settings(file)
        reject_old_names(settings, str(file))
        # Names with an underscore are parts of other values.
        settings = {str(name): value for name, value in settings.items() if not str(name).startswith("_")}
        if file.name.startswith("parameters"):
            _reject_lists(settings, groups, str(file))
            _reject_unread(settings, groups, str(file))
        elif file.name.startswith("globals"):
            _reject_unread(flat_parameters(settings, global_names), global_names, str(file))
    _reject_lists(given, groups, "--params")
    given = {name: value for name, value in given.items() if name not in groups}
    _reject_unread(flat_parameters(given, declared), declared | groups, "--params")


def _names_read(configuration: str, source: str) -> set[str]:
    """The names that a configuration reads as ``${source:NAME}``."""
    names = set(re.findall(rf"\$\{{{source}:([\w.]+)", configuration))
    # The catalog takes the whole group of the teacher; its type has the names.
    return names - {"teacher"} | {f"teacher.{name}" for name in TeacherSettings.model_fields}


def _reject_unread(names: Iterable[str], allowed: AbstractSet[str], where: str) -> None:
    for name in names:
        if name not in allowed:
            raise RebaseError(f"{where}: nothing reads {name}. {did_you_mean(name, allowed)}")


def _reject_lists(parameters: Mapping[str, Any], groups: AbstractSet[str], where: str) -> None:
    """Raise RebaseError for a list in the place of a group: Kedro's own error has no name."""
    for name, value in parameters.items():
        if name in groups and isinstance(value, list):
            hint = " The list of students belongs in globals.yml." if name == "students" else ""
            raise RebaseError(f"{where}: {name} is a group of parameters, not a list: set {name}.NAME.{hint}")


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(file.read_text("utf-8")) or {}
    except yaml.YAMLError as error:
        raise RebaseError(f"{file}: not valid YAML. {error}") from None


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that the user can fix into those that Click prints as one message, without a traceback."""
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None or isinstance(error, click.ClickException):
            raise
        raise click.ClickException(message) from error
