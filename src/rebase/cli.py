"""The project's own Kedro commands, and `kedro run` with a `--params` that takes lists and values with commas."""

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import click
import pandas as pd
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.pipeline import Node
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import rebase.pipelines
from rebase.datasets.versions import RunCatalog, load_all_versions
from rebase.datastore.annoy_index import find_near
from rebase.datastore.vectors import DESCRIPTION, cells_at
from rebase.errors import RebaseError, did_you_mean
from rebase.files import replacing_file, replacing_folder
from rebase.hooks import load_origins, user_errors
from rebase.records import EVALUATION_COLUMNS, TASK_NAME
from rebase.reporting.console import make_console, retrieved_lines, stage_line, visible
from rebase.tasks.evaluation_items import make_evaluation_items
from rebase.teacher.response_cache import ResponseCache
from rebase.text import shorten

#: A comma between parameters: the name of the next one and "=" follow. Other commas are part of a value.
_NEXT_PARAMETER = re.compile(r",(?=\s*[A-Za-z_][\w.-]*\s*=)")


def _read_params(context: click.Context, option: click.Parameter, value: str | dict[str, Any]) -> Any:
    """The parameters of ``--params`` as a nested dict. Each value is read as YAML, so ``NAME=[A, B]`` is a list."""
    if isinstance(value, dict):  # of a file that --config names
        return value
    parameters = OmegaConf.create()
    for pair in filter(None, (part.strip(", \t\n") for part in _NEXT_PARAMETER.split(value))):
        name, equals, text = pair.partition("=")
        try:
            if not (name and equals):
                raise ValueError
            parameters.merge_with_dotlist([f"{name.strip()}={text}"])
        except (ValueError, YAMLError, OmegaConfBaseException):
            raise click.BadParameter(
                f"{pair!r} is not NAME=VALUE, with a value in YAML. Commas separate parameters; a list is NAME=[A,B]. "
                "Quote a text that starts with a sign (NAME='*'). Other values belong in conf/local/globals.yml or "
                "parameters.yml."
            ) from None
    return OmegaConf.to_container(parameters)


_env = click.option("--env", "-e", help="The Kedro environment.")
_task = click.option("--task", help="The task, if it is not the environment's.")
_datastore = click.option("--datastore", help="The datastore's name, if it is not the environment's.")
_version = click.option("--run", "version", metavar="VERSION", help="An older run, by its version in `kedro runs`.")
_params = click.option(
    "--params",
    type=click.UNPROCESSED,
    default="",
    callback=_read_params,
    help="NAME=VALUE, separated by commas; a list is NAME=[A,B]. For example --params=task=NAME,train.epochs=2.",
)


class _Command(click.Command):
    """A command that prints an error that the user can fix as one message."""

    def invoke(self, ctx: click.Context) -> Any:
        with user_errors():
            return super().invoke(ctx)


class _Group(click.Group):
    command_class = _Command
    group_class = type


@click.group(name="rebase", cls=_Group)
def cli() -> None:
    """Commands of rebase."""


def _run(**options: Any) -> Any:
    """Kedro's own; the name of a node may leave out the groups (namespaces) that kedro-viz shows it in."""
    names = options["pipelines"] or [options["pipeline"] or "__default__"]
    existing = [module.name for module in iter_modules(rebase.pipelines.__path__)]
    for name in names:
        if name not in (*existing, "__default__"):
            raise RebaseError(f"There is no pipeline {name!r}. {did_you_mean(name, existing)}")
    node_options = [name for name in ("node_names", "from_nodes", "to_nodes") if options[name]]
    if node_options:
        pipelines.set_requested(names)
        nodes = [node for name in names for node in pipelines[name].nodes]
        for option in node_options:
            options[option] = [_full_name(name, nodes) for name in options[option]]
    return kedro_run.callback(**options)  # type: ignore[misc]


def _full_name(name: str, nodes: list[Node]) -> str:
    matches = {node.name for node in nodes if name in (node.name, node.short_name)}
    if not matches:
        raise RebaseError(f"There is no node {name!r} in this run. {did_you_mean(name, [n.short_name for n in nodes])}")
    return matches.pop() if len(matches) == 1 else name


# `kedro run`, `rebase` and `python -m rebase` look for it here: Kedro's own, which splits values at each comma, with
# another option `--params`.
_options = [option for option in kedro_run.params if option.name != "params"]
run = _params(_Command("run", callback=_run, params=_options, help=kedro_run.help))
cli.add_command(run)


def _load_catalog(env: str | None, parameters: dict[str, Any]) -> Any:
    metadata = bootstrap_project(Path.cwd())
    with KedroSession.create(metadata.project_path, env=env, runtime_params=parameters) as session:
        return session.load_context().catalog  # type: ignore[attr-defined]


def _catalog(env: str | None, parameters: dict[str, Any] | None = None, **options: str | None) -> Any:
    """The catalog of an environment.

    ``options`` are parameters that have a command-line option of their own; None if it was not used.
    """
    chosen = {name: value for name, value in options.items() if value is not None}
    return _load_catalog(env, (parameters or {}) | chosen)


def _cache(env: str | None) -> closing[ResponseCache]:
    """The response cache of the catalog's teacher, which the ``with`` statement closes."""
    return closing(ResponseCache(_catalog(env)["teacher"].filepath))


@cli.command()
@click.argument("text")
@click.option("--count", "-n", default=10, help="The number of texts.", show_default=True, type=click.IntRange(min=1))
@_datastore
@_env
def near(text: str, count: int, datastore: str | None, env: str | None) -> None:
    """Show the texts of the datastore that are most similar to TEXT (by the approximate Annoy index)."""
    catalog = _catalog(env, datastore=datastore)
    names = ("index", "annoy_index", "vectors", "rows", "cards")
    index, annoy_index, vectors, rows, cards = map(catalog.load, names)
    index.check_made_of(vectors)
    vectors.check_made_of(rows)
    rows.check_cards(cards)
    with catalog.load("encoder").open() as encoder:
        query = encoder.encode([text]).vectors
    neighbors = find_near(index, annoy_index, query, count)
    descriptions = cards.set_index("dataset")["description"]
    for line in neighbors.itertuples():
        row, column = cells_at(vectors[line.dataset], line.position)[-1]
        if row == DESCRIPTION:
            title, value = f"{line.dataset} (its description)", descriptions[line.dataset]
        else:
            source = rows[line.dataset].slice(row, 1).to_pylist()[0]
            title, value = f"{source['row_id']} · {column}", json.loads(source["row"])[column]
        click.echo(f"{line.similarity:.3f}  {click.style(title, bold=True)}")
        click.echo(textwrap.indent(textwrap.fill(visible(shorten(value, 240)), 100), " " * 7))
    counts = neighbors["dataset"].value_counts()
    click.echo("In " + ", ".join(f"{dataset} ({number})" for dataset, number in counts.items()))


@cli.command("new-task")
@click.argument("name")
@click.option(
    "--from",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A YAML or JSON file with `instruction` and `examples`. Without it, the command asks for them.",
)
@click.option("--overwrite", is_flag=True, help="Replace the task file, and the evaluation items.")
@_datastore
@_env
def new_task(name: str, file: Path | None, overwrite: bool, datastore: str | None, env: str | None) -> None:
    """Write the file of the task NAME from an instruction and three examples, and show the rows it would retrieve.

    Further examples become evaluation items. Look at the task file, and correct what was proposed.
    """
    from rebase.tasks.new_task import find_free, propose_task, read_description, task_text, type_description

    if not re.fullmatch(TASK_NAME, name):
        raise click.ClickException(f"{name!r} cannot be the name of a task: use lowercase letters, digits and _.")
    catalog = _catalog(env, task=name, datastore=datastore)
    path = catalog["task"].filepath
    items_path = path.parents[1] / "evaluation" / f"{name}.jsonl"
    find_free(path, overwrite)
    description = read_description(file) if file else type_description()
    content, items = propose_task(description, name, items_path.as_posix(), str(file or name))
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    for target, text in ((items_path, lines), (path, task_text(content))):
        if text:
            find_free(target, overwrite)
            with replacing_file(target) as part:
                part.write_text(text, encoding="utf-8")
            click.echo(f"Written: {target}")
    click.echo("Read the task file and correct what it proposes.\n")
    has_items = "evaluation" in description or items_path.exists()
    _show_retrieved(catalog, has_items)
    if not has_items:
        line = json.dumps(dict.fromkeys(content["examples"][0], "…"), ensure_ascii=False)
        click.echo(f"\nA run needs evaluation items: write {items_path}, with lines such as\n{line}")
    options = [
        *([f"--env={env}"] if env else []),
        f"--params=task={name}" + (f",datastore={datastore}" * bool(datastore)),
    ]
    click.echo(f"\nNext: kedro run --pipelines=pilot {' '.join(options)}")


def _show_retrieved(catalog: Any, has_items: bool) -> None:
    """Print the first rows for the task in the datastore, as the pipeline ``retrieve`` finds them; nothing is saved."""
    from rebase.pipelines.retrieve.nodes import retrieve_rows

    if not all(map(catalog.exists, ("index", "vectors", "rows", "cards"))):
        click.echo("There is no datastore to search yet. To build it: kedro run --pipelines=ingest,embed,index")
        return
    task = catalog.load("task")
    if has_items:
        items = make_evaluation_items(task, catalog.load("evaluation_rows"))
    else:
        items = pd.DataFrame(columns=EVALUATION_COLUMNS)
    stores = map(catalog.load, ("encoder", "index", "annoy_index", "vectors", "rows", "cards"))
    settings = map(catalog.load, ("params:retrieve", "params:contamination"))
    retrieved, rejected, summary = retrieve_rows(*[task, *stores, items, *settings])
    for line in (stage_line(summary, summary["seconds"]), *retrieved_lines(retrieved, 10)):
        click.echo(line)
    datasets = ", ".join(f"{name} ({count})" for name, count in summary["datasets"].items())
    click.echo(shorten(f"In {datasets}", 80))
    if names := sorted(set(rejected.loc[rejected["detail"] == f"*{task.name}*", "dataset"])):
        click.echo(f"Rejected by the name {task.name!r}: {', '.join(names)}. To take them, name the task otherwise.")
    click.echo("Nothing was saved. If you would take other rows, name the subject of the texts in the instruction.")


@cli.group()
def responses() -> None:
    """Manage the cache of the teacher's responses."""


@responses.command("list")
@_env
def list_responses(env: str | None) -> None:
    """Count the cached responses of each teacher."""
    with _cache(env) as cache:
        summary = cache.summary()
    for provider, model, count, tokens_in, tokens_out, first, last, address in summary:
        click.echo(
            f"{provider}/{model}{address and f' at {address}'}: {count:,} responses, tokens in {tokens_in:,}, "
            f"out {tokens_out:,}, {first[:10]} to {last[:10]}"
        )
    if not summary:
        click.echo("No responses are cached.")


@responses.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_env
def export_responses(file: Path, env: str | None) -> None:
    """Write all cached responses, with their requests, to FILE as JSON lines."""
    with _cache(env) as cache, replacing_file(file) as part, part.open("w", encoding="utf-8") as out:
        count = sum(1 for line in cache.export() if out.write(json.dumps(line) + "\n"))
    click.echo(f"{count:,} responses written to {file}")


@responses.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_env
def import_responses(file: Path, env: str | None) -> None:
    """Add the responses of FILE, written by `export`, to the cache: a run that needs no others needs no teacher."""
    with _cache(env) as cache, file.open("rb") as lines:
        new, total = cache.load(_parse(lines, file))
    click.echo(f"{new:,} of {total:,} responses were new")


@responses.command("prune")
@click.option("--provider", help="Only those of a provider.")
@click.option("--model", help="Only those of a model.")
@click.option(
    "--before", type=click.DateTime(["%Y-%m-%d"]), help="Only those older than a day, for example 2026-01-31."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_env
def prune_responses(
    provider: str | None, model: str | None, before: datetime | None, yes: bool, env: str | None
) -> None:
    """Delete cached responses: a run that needs them pays for them again."""
    if not (provider or model or before):
        raise click.UsageError("Select responses with --provider, --model or --before.")
    if not yes:
        click.confirm("Deleted responses must be paid for again when they are needed. Delete them?", abort=True)
    with _cache(env) as cache:
        count = cache.prune(provider, model, f"{before:%Y-%m-%d}" if before else None)
    click.echo(f"{count:,} responses deleted")


def _parse(lines: Iterator[bytes], file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except ValueError as error:
            raise RebaseError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(content, dict):
            raise RebaseError(f"{file}, line {number}: not an exported response.")
        yield content


@cli.command()
@click.option("--to", "folder", default="build/lineage", show_default=True, type=click.Path(path_type=Path))
@_params
@_env
def lineage(folder: Path, params: dict[str, Any], env: str | None) -> None:
    """Write the lineage, with previews of the data, as a static site that works offline."""
    from rebase.reporting.lineage import write_site

    if folder.exists() and any(folder.iterdir()) and not (folder / "api" / "main").is_file():
        raise click.UsageError(f"{folder} holds something else, which would be lost: name another folder.")
    with replacing_folder(folder) as part:
        write_site(part, Path.cwd(), env, params)
    click.echo(f"To look at it: python -m http.server --bind 127.0.0.1 --directory {folder}")


@cli.command()
@_params
@_env
def doctor(params: dict[str, Any], env: str | None) -> None:
    """Examine the files of the datastore and of the task: which are whole, stale or damaged, and what to run."""
    from rebase.reporting.doctor import examine, render

    catalog = _catalog(env, params)
    catalog.load("task")  # A task that does not exist has no files to examine.
    origins = {name: load() for name, load in load_origins(catalog).items()}
    findings = list(examine(catalog, origins, pipelines))
    click.echo(render(findings))
    if any(finding.state == "damaged" for finding in findings):
        raise click.exceptions.Exit(1)


@cli.command()
@_version
@_params
@_env
def report(version: str | None, params: dict[str, Any], env: str | None) -> None:
    """Write report.html from all outputs that exist, for example of an interrupted or of an older run."""
    from rebase.reporting.freshness import find_outdated
    from rebase.reporting.report import ALL_PIECES, write_report
    from rebase.reporting.runs import is_scores, summaries_of

    catalog = _catalog(env, params)
    run_catalog = RunCatalog(catalog, dict.fromkeys(ALL_PIECES, "report"), version)
    pieces = {}
    for name in filter(run_catalog.exists, ALL_PIECES):
        try:
            pieces[name] = run_catalog.load(name)
        except RebaseError as error:
            click.echo(f"{name} cannot be read and is left out: {error}", err=True)
    if "scores" in pieces and not is_scores(pieces["scores"]):
        click.echo(
            "The scores have the shape of another version and are left out. Run the evaluate pipeline.", err=True
        )
        del pieces["scores"]
    if not run_catalog.is_newest:
        pieces = summaries_of(pieces.get("run_record", {})) | pieces
    # Origins are recorded of the newest outputs alone.
    origins = {name: load() for name, load in load_origins(catalog).items()} if run_catalog.is_newest else {}
    page = write_report(catalog.load("task"), find_outdated(origins, pieces), **pieces)
    file = run_catalog.path("report")
    if run_catalog.is_newest:
        catalog.save("report", page)
    else:
        file = file.with_stem(f"report-{run_catalog.version}")
        file.write_text(page, encoding="utf-8")
    click.echo(f"Made from {len(pieces)} of {len(ALL_PIECES)} pieces: {file}")


@cli.command()
@click.argument("task", required=False)
@_version
@_env
def runs(task: str | None, version: str | None, env: str | None) -> None:
    """Compare the runs of TASK, or of every task: settings, scores and costs, the newest run first."""
    from rebase.reporting.runs import find_runs, runs_tables

    catalog = _catalog(env)
    scores, records = (load_all_versions(catalog, name, task) for name in ("all_scores", "all_run_records"))
    count = 0
    for name in sorted(scores):
        task_runs = find_runs(scores[name], records.get(name, {}))
        if selected := [run for run in task_runs if run.version.startswith(version or "")]:
            make_console().print(runs_tables(name, selected))
        count += len(selected)
    if not count:
        click.echo("There are no runs with scores" + (f" of the task {task}." if task else "."))


@cli.command()
@click.argument("identifier", metavar="ID")
@_task
@click.option("--system", help="Of an evaluation item: one system's answer, for example student, expert, rebase.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with all values in full.")
@_version
@_env
def trace(
    identifier: str, task: str | None, system: str | None, as_json: bool, version: str | None, env: str | None
) -> None:
    """Show where ID comes from and what became of it.

    ID is an evaluation item, an example, a source row or a dataset, as the run's tables and its report name them.
    """
    from rebase.reporting.run_tables import CREATED_BY, RunTables
    from rebase.reporting.trace import trace as trace_identifier
    from rebase.reporting.trace_view import render_trace

    catalog = _catalog(env, task=task)
    run_catalog = RunCatalog(catalog, CREATED_BY, version)
    catalog.load("task")  # A task that does not exist has no tables.
    result = trace_identifier(identifier, RunTables(run_catalog.load, env, task), system)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        make_console().print(render_trace(result))


@cli.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@_task
@click.option("--inputs", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file of inputs.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), help="The file for their answers.")
@click.option("--beside", is_flag=True, help="Give the untrained student's answer too.")
@_env
@click.pass_context
def ask(
    context: click.Context, task: str | None, inputs: Path | None, to: Path | None, beside: bool, env: str | None
) -> None:
    """Answer with the expert: one input (--FIELD=TEXT for each field of the task), a file of inputs, or a dialog."""
    from rebase.serving.ask import answer_file, answer_typed, load_expert, parse_fields, show_answer

    if bool(inputs) != bool(to) or (inputs and context.args):
        raise click.UsageError("Give --inputs together with --to, and no fields.")
    catalog = _catalog(env, task=task)
    fields = parse_fields(context.args)
    expert = load_expert(catalog)
    if inputs and to:
        answer_file(expert, inputs, to, beside)
    elif fields or not sys.stdin.isatty():
        show_answer(expert, fields, beside)
    else:
        answer_typed(expert, beside)


@cli.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--only", type=click.Choice(["dataset", "adapter"]), help="Publish one of them, not both.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Write to a folder, not to the hub.")
@click.option("--no-dry-run", is_flag=True, help="Write: the default is a dry run that only lists the files.")
@click.option("--public", is_flag=True, help="Make the repository public; the default is private.")
@click.option("--license-checked", multiple=True, metavar="DATASET", help="You checked its license: it permits this.")
@_task
@_env
def push(
    repo: str,
    only: str | None,
    folder: Path | None,
    no_dry_run: bool,
    public: bool,
    license_checked: tuple[str, ...],
    task: str | None,
    env: str | None,
) -> None:
    """Publish the training examples and the adapter, with cards, on the Hugging Face hub or in a folder.

    Sources whose licenses forbid it are rejected. The hub's token is that of `hf auth login`, or HF_TOKEN.
    """
    from rebase.reporting.publishing import describe_parcels, packed, published_examples, put, scores_of, upload
    from rebase.reporting.run_tables import CREATED_BY

    catalog = _catalog(env, task=task)
    run_catalog = RunCatalog(catalog, CREATED_BY)
    published_task = catalog.load("task")

    def load(name: str) -> Any:
        try:
            return run_catalog.load(name)
        except RebaseError as error:
            raise RebaseError(f"push needs {name}: {error}") from error

    adapter = load("adapter") if only != "dataset" else None
    examples = published_examples(load("reasoned_examples"), load("training_set")) if only != "adapter" else None
    existing = [load(name) if catalog.exists(name) else None for name in ("scores", "evaluate_summary")]
    scores = adapter and scores_of(adapter, *existing)
    with packed(repo, published_task, examples, adapter, scores, license_checked) as (parcels, conditions):
        click.echo(describe_parcels(parcels, repo, folder, public=public))
        for condition in conditions:
            click.echo(f"Condition of {condition}")
        if adapter and not scores:
            click.echo("The card has no scores: this adapter was not evaluated. kedro run --pipelines=evaluate")
        if not no_dry_run:
            click.echo("Nothing was written: this was a dry run. Add --no-dry-run to write.")
            return
        for parcel in parcels:
            click.echo(put(parcel, folder) if folder else upload(parcel, repo, public=public))
