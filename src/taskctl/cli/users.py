"""`taskctl users`: the people in the database, for its operator."""

import contextlib
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from taskctl.cli import output
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.cli.server import database

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="The people in the database.", no_args_is_help=True, rich_markup_mode=None)

_LINE = "{:>8}  {:>8}  {:>8}  {:16}  {}"
"""Of the list in a terminal; ids are long, and stand last."""

User = Annotated[str, typer.Argument(metavar="USER", help="A user's id, as tokens have it in `sub`.")]


@app.command("list")
def list_(*, as_json: Json = False, ndjson: Ndjson = False, quiet: Quiet = False) -> None:
    """List everybody: id, tasks, those pending, those in the trash, last change. Reads all tasks."""
    from taskctl.server import users

    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    with database() as settings:
        rows = users.list_users(settings)
        if how is Form.JSON:
            output.print_json(output.compact(list(rows)))
            return
        if how is Form.TERMINAL:
            typer.echo(_LINE.format("Tasks", "Pending", "Trash", "Changed", "User"))
        for row in rows:
            user, changed = output.escaped(row["user_id"]), row["changed_at"] or ""
            counts = (row["tasks"], row["pending"], row["trash"])
            if how is Form.NDJSON:
                output.print_json(output.compact(row))
            elif how is Form.IDS:
                typer.echo(user)
            elif how is Form.TERMINAL:
                typer.echo(_LINE.format(*counts, output.local_time(changed), user))
            else:
                typer.echo("\t".join(map(str, (user, *counts, changed))))


@app.command()
def export(
    user: User,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; `-` is stdout.")] = "-",
) -> None:
    """Write all that the database has about a person, a JSON object a line.

    The last line is the proof: the rows of each table, and the SHA-256 of the lines before it.
    """
    from taskctl.server import users

    with database() as settings:
        lines = users.export(settings, user)
        first = next(lines)  # whether there is anything at all, before a file is made
        with _opened(file) as stream:
            stream.write(first)
            stream.writelines(lines)


@app.command()
def erase(
    user: User,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove all that the database has about a person, for good.

    Backups still have it. Asks in a terminal; in a pipe it needs --yes.
    """
    from taskctl.errors import UsageInvalid
    from taskctl.server import users

    if not yes:
        if not sys.stdin.isatty():
            raise UsageInvalid("Erasing a person needs --yes where nobody can be asked.")
        if not typer.confirm(f"Erase all tasks of {output.escaped(user)} for good?", err=True):
            typer.echo("Nothing is erased.", err=True)
            raise typer.Exit(1)
    with database() as settings:
        rows = users.erase(settings, user)
    if as_json:
        output.print_json(output.compact({"user_id": user, "erased": rows, "left": 0}))
    else:
        told = ", ".join(f"{count} of {table}" for table, count in rows.items())
        typer.echo(f"Erased {output.escaped(user)}: {told}; nothing is left.")


@contextlib.contextmanager
def _opened(file: str) -> "Iterator[IO[str]]":
    """Stdout, or a new file that only its owner reads."""
    if file == "-":
        yield sys.stdout
        return
    path = Path(file)
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream
