"""Commands of the project beside Kedro's own.

``kedro near`` looks around in the datastore; ``kedro responses`` looks after the store of the teacher's responses;
``kedro lineage`` writes what kedro-viz shows as a static site; ``kedro trace`` says where something comes from and
what became of it; ``kedro push`` hands examples and adapter on.
"""

import json
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run  # noqa: F401  # `rebase` and `python -m rebase` look for it here
from kedro.framework.cli.utils import _split_params
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError
from rich.console import Console

from rebase.datastore.annoy_index import find_near
from rebase.datastore.vectors import DESCRIPTION, cells_at
from rebase.errors import RebaseError
from rebase.files import replacing_file, replacing_folder
from rebase.reporting.console import visible
from rebase.reporting.runs import read_runs, runs_table
from rebase.teacher.response_cache import ResponseCache

_env = click.option("--env", "-e", help="The environment whose store is meant.")


@click.group(name="rebase")
def cli() -> None:
    """Commands of rebase."""


@cli.command()
@click.argument("text")
@click.option("--count", "-n", default=10, help="How many texts.", show_default=True, type=click.IntRange(min=1))
@click.option("--datastore", help="The datastore's name, if it is not the environment's.")
@_env
def near(text: str, count: int, datastore: str | None, env: str | None) -> None:
    """What lies near TEXT in the datastore, and in which datasets (by the Annoy forest, so about)."""
    with _catalog(env, {"datastore": datastore} if datastore else {}) as catalog:
        index, forest, vectors, rows, cards = map(catalog.load, ("index", "forest", "vectors", "rows", "cards"))
        with catalog.load("encoder").open() as encoder:
            query = encoder.encode([text]).vectors
        found = find_near(index, forest, query, count)
        descriptions = cards.set_index("dataset")["description"]
        for line in found.itertuples():
            row, column = cells_at(vectors[line.dataset], line.place)[-1]
            if row == DESCRIPTION:
                where, value = f"{line.dataset} (its description)", descriptions[line.dataset]
            else:
                stored = rows[line.dataset].slice(row, 1).to_pylist()[0]
                where, value = f"{stored['row_id']} · {column}", json.loads(stored["row"])[column]
            click.echo(f"{line.similarity:.3f}  {click.style(where, bold=True)}")
            click.echo(textwrap.indent(textwrap.fill(visible(textwrap.shorten(value, 240)), 100), " " * 7))
    counts = found["dataset"].value_counts()
    click.echo("In " + ", ".join(f"{dataset} ({number})" for dataset, number in counts.items()))


@cli.group()
def responses() -> None:
    """The teacher's responses: everything that was ever paid for."""


@responses.command("list")
@_env
def list_responses(env: str | None) -> None:
    """How many responses of which teacher are stored."""
    with _store(env) as store:
        summary = store.summary()
    for provider, model, count, read, written, first, last in summary:
        days = f"{first[:10]} to {last[:10]}"
        click.echo(f"{provider}/{model}: {count:,} responses, tokens in {read:,}, out {written:,}, {days}")
    if not summary:
        click.echo("No responses are stored.")


@responses.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_env
def export_responses(file: Path, env: str | None) -> None:
    """Write all responses, with their requests, to FILE as JSON lines."""
    with _store(env) as store, replacing_file(file) as part, part.open("w", encoding="utf-8") as out:
        count = sum(1 for line in store.export() if out.write(json.dumps(line) + "\n"))
    click.echo(f"{count:,} responses written to {file}")


@responses.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_env
def import_responses(file: Path, env: str | None) -> None:
    """Add the responses of FILE, which ``export`` wrote: runs that need no others then need no teacher."""
    with _store(env) as store, file.open(encoding="utf-8") as lines:
        new, total = store.load(_parse(lines, file))
    click.echo(f"{new:,} of {total:,} responses were new")


@responses.command("prune")
@click.option("--provider", help="Only those of a provider.")
@click.option("--model", help="Only those of a model.")
@click.option("--before", help="Only those older than a day, as 2026-01-31.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_env
def prune_responses(provider: str | None, model: str | None, before: str | None, yes: bool, env: str | None) -> None:
    """Delete responses: they would have to be paid for again."""
    if not (provider or model or before):
        raise click.UsageError("Say which: --provider, --model or --before.")
    if not yes:
        click.confirm(
            "Responses that are deleted must be paid for again when they are needed. Delete them?", abort=True
        )
    with _store(env) as store:
        count = store.prune(provider, model, before)
    click.echo(f"{count:,} responses deleted")


@contextmanager
def _catalog(env: str | None, parameters: dict[str, Any] | None = None) -> Iterator[Any]:
    """The catalog of an environment; what is wrong with it, or while it is used, is told in plain words."""
    metadata = bootstrap_project(Path.cwd())
    try:
        with KedroSession.create(metadata.project_path, env=env, runtime_params=parameters) as session:
            yield session.load_context().catalog  # type: ignore[attr-defined]
    except (RebaseError, DatasetError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _store(env: str | None) -> Iterator[ResponseCache]:
    """The store that the catalog's teacher uses."""
    with _catalog(env) as catalog, closing(ResponseCache(catalog["teacher"].filepath)) as store:
        yield store


def _parse(lines: Iterator[str], file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            said = json.loads(line)
        except ValueError as error:
            raise RebaseError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(said, dict):
            raise RebaseError(f"{file}, line {number}: not an exported response.")
        yield said


@cli.command()
@click.option("--to", "folder", default="build/lineage", show_default=True, type=click.Path(path_type=Path))
@click.option("--params", default="", callback=_split_params, help="As of `kedro run`: --params=task=NAME, say.")
@_env
def lineage(folder: Path, params: dict[str, Any], env: str | None) -> None:
    """Write the lineage, with previews of the data, as a static site that asks nothing of other machines."""
    from rebase.reporting.lineage import write_site

    if folder.exists() and any(folder.iterdir()) and not (folder / "api" / "main").is_file():
        raise click.UsageError(f"{folder} holds something else, which would be lost: name another folder.")
    with replacing_folder(folder) as part:
        write_site(part, Path.cwd(), env, params)
    click.echo(f"To look at it: python -m http.server --bind 127.0.0.1 --directory {folder}")


@cli.command()
@click.option("--params", default="", callback=_split_params, help="As of `kedro run`: --params=task=NAME, say.")
@_env
def report(params: dict[str, Any], env: str | None) -> None:
    """Write report.html from whatever there is of a run: of one that was killed, say."""
    from rebase.reporting.report import ALL_PIECES, find_outdated, write_report

    with _catalog(env, params) as catalog:
        pieces, times = {}, {}
        for name in ALL_PIECES:
            try:
                if name in catalog and catalog.exists(name):
                    pieces[name] = catalog.load(name)
                    times[name] = Path(catalog[name]._get_load_path()).stat().st_mtime
            except DatasetError as error:
                click.echo(f"{name} cannot be read and is left out: {error}", err=True)
        catalog.save("report", write_report(catalog.load("task"), find_outdated(times), **pieces))
        click.echo(f"Made from {len(pieces)} of {len(ALL_PIECES)} pieces: {catalog['report']._get_load_path()}")


@cli.command()
@click.argument("task", required=False)
@_env
def runs(task: str | None, env: str | None) -> None:
    """The runs of TASK in one table, the newest first; without TASK those of every task."""
    with _catalog(env) as catalog:
        folder = Path(catalog["scores"]._filepath).parent.parent
    found = {
        name: read_runs(folder / name) for name in ([task] if task else sorted(path.name for path in folder.glob("*")))
    }
    for name, own in found.items():
        if own:
            Console().print(runs_table(name, own))
    if not any(found.values()):
        click.echo(f"There are no runs with scores in {folder}{f' of the task {task}' if task else ''}.")


@cli.command()
@click.argument("identifier", metavar="ID")
@click.option("--task", help="The task, if it is not the environment's.")
@click.option("--system", help="Of an evaluation item: whose answer is meant, as student, expert, rebase.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with everything in full.")
@_env
def trace(identifier: str, task: str | None, system: str | None, as_json: bool, env: str | None) -> None:
    """Where ID comes from and what became of it.

    ID is an evaluation item, an example, a source row or a dataset, as the run's tables and its report name them.
    """
    from rebase.reporting.trace import read_run, render_trace
    from rebase.reporting.trace import trace as find

    with _catalog(env, {"task": task} if task else {}) as catalog:
        found = find(identifier, read_run(partial(load_entry, catalog), env, task), system)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        Console(highlight=False).print(render_trace(found))


@cli.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--only", type=click.Choice(["dataset", "adapter"]), help="One of them; without it, both.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Into a folder, not to the hub.")
@click.option("--no-dry-run", is_flag=True, help="Do it: without this it is only said what would be done.")
@click.option("--public", is_flag=True, help="For all the world to read; without it, a repository is private.")
@click.option("--license-checked", multiple=True, metavar="DATASET", help="Its license was looked up and permits it.")
@click.option("--task", help="The task, if it is not the environment's.")
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
    """Hand the training examples and the adapter on, with cards, to the Hugging Face hub or into a folder.

    Rejects what the licenses of the sources forbid. The hub's token is that of `hf auth login`, or HF_TOKEN.
    """
    from rebase.reporting.publishing import describe_parcels, packed, published_examples, put, scores_of, upload

    with _catalog(env, {"task": task} if task else {}) as catalog:
        load = partial(load_entry, catalog)
        adapter = load("adapter") if only != "dataset" else None
        examples = published_examples(load("reasoned_examples"), load("training_set")) if only != "adapter" else None
        known = [load(name) if catalog.exists(name) else None for name in ("scores", "evaluate_summary")]
        scores = adapter and scores_of(adapter, *known)
        with packed(repo, load("task"), examples, adapter, scores, license_checked) as (parcels, conditions):
            click.echo(describe_parcels(parcels, repo, folder, public=public))
            for condition in conditions:
                click.echo(f"Condition of {condition}")
            if adapter and not scores:
                click.echo("The card has no scores: this adapter was not evaluated. kedro run --pipelines=evaluate")
            if not no_dry_run:
                click.echo("Nothing was written: this was a dry run. --no-dry-run does it.")
                return
            for parcel in parcels:
                click.echo(put(parcel, folder) if folder else upload(parcel, repo, public=public))


def load_entry(catalog: Any, name: str) -> Any:
    """A catalog entry; RebaseError where it is not there or cannot be read."""
    from rebase.reporting.trace import MADE_BY

    if name in MADE_BY and not catalog.exists(name):
        raise RebaseError(f"not there yet; kedro run --pipelines={MADE_BY[name]} makes it.")
    try:
        return catalog.load(name)
    except DatasetError as error:
        raise RebaseError(str(error)) from error
