"""Commands of the project beside Kedro's own.

``kedro near`` looks around in the datastore; ``kedro replies`` looks after the store of the teacher's replies.
"""

import json
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run  # noqa: F401  # `rebase` and `python -m rebase` look for it here
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DatasetError

from rebase.errors import RebaseError
from rebase.files import replacing_file
from rebase.forest import find_near
from rebase.teacher.store import ReplyStore
from rebase.vectors import DESCRIPTION, cells_at

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
            click.echo(textwrap.indent(textwrap.fill(textwrap.shorten(value, 240), 100), " " * 7))
    counts = found["dataset"].value_counts()
    click.echo("In " + ", ".join(f"{dataset} ({number})" for dataset, number in counts.items()))


@cli.group()
def replies() -> None:
    """The teacher's replies: everything that was ever paid for."""


@replies.command("list")
@_env
def list_replies(env: str | None) -> None:
    """How many replies of which teacher are stored."""
    with _store(env) as store:
        summary = store.summary()
    for provider, model, count, read, written, first, last in summary:
        days = f"{first[:10]} to {last[:10]}"
        click.echo(f"{provider}/{model}: {count:,} replies, tokens in {read:,}, out {written:,}, {days}")
    if not summary:
        click.echo("No replies are stored.")


@replies.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_env
def export_replies(file: Path, env: str | None) -> None:
    """Write all replies, with their requests, to FILE as JSON lines."""
    with _store(env) as store, replacing_file(file) as part, part.open("w", encoding="utf-8") as out:
        count = sum(1 for line in store.export() if out.write(json.dumps(line) + "\n"))
    click.echo(f"{count:,} replies written to {file}")


@replies.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_env
def import_replies(file: Path, env: str | None) -> None:
    """Add the replies of FILE, which ``export`` wrote: runs that need no others then need no teacher."""
    with _store(env) as store, file.open(encoding="utf-8") as lines:
        new, total = store.load(_parse(lines, file))
    click.echo(f"{new:,} of {total:,} replies were new")


@replies.command("prune")
@click.option("--provider", help="Only those of a provider.")
@click.option("--model", help="Only those of a model.")
@click.option("--before", help="Only those older than a day, as 2026-01-31.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_env
def prune_replies(provider: str | None, model: str | None, before: str | None, yes: bool, env: str | None) -> None:
    """Delete replies: they would have to be paid for again."""
    if not (provider or model or before):
        raise click.UsageError("Say which: --provider, --model or --before.")
    if not yes:
        click.confirm("Replies that are deleted must be paid for again when they are needed. Delete them?", abort=True)
    with _store(env) as store:
        count = store.prune(provider, model, before)
    click.echo(f"{count:,} replies deleted")


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
def _store(env: str | None) -> Iterator[ReplyStore]:
    """The store that the catalog's teacher uses."""
    with _catalog(env) as catalog, closing(ReplyStore(catalog["teacher"].filepath)) as store:
        yield store


def _parse(lines: Iterator[str], file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            said = json.loads(line)
        except ValueError as error:
            raise RebaseError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(said, dict):
            raise RebaseError(f"{file}, line {number}: not an exported reply.")
        yield said
