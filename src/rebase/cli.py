"""Commands of the project beside Kedro's own: ``kedro replies`` looks after the store of the teacher's replies."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run  # noqa: F401  # `rebase` and `python -m rebase` look for it here
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from rebase.errors import RebaseError
from rebase.files import replacing_file
from rebase.teacher.store import ReplyStore

_env = click.option("--env", "-e", help="The environment whose store is meant.")


@click.group(name="rebase")
def cli() -> None:
    """Commands of rebase."""


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
def _store(env: str | None) -> Iterator[ReplyStore]:
    """The store that the catalog's teacher uses."""
    metadata = bootstrap_project(Path.cwd())
    try:
        with KedroSession.create(metadata.project_path, env=env) as session:
            context: Any = session.load_context()  # type: ignore[attr-defined]
            path = context.catalog["teacher"].filepath
        with closing(ReplyStore(path)) as store:
            yield store
    except RebaseError as error:
        raise click.ClickException(str(error)) from None


def _parse(lines: Iterator[str], file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            said = json.loads(line)
        except ValueError as error:
            raise RebaseError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(said, dict):
            raise RebaseError(f"{file}, line {number}: not an exported reply.")
        yield said
