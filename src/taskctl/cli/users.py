"""`taskctl users`: the people in the database, for its operator."""

import itertools
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from taskctl import quantities
from taskctl.cli import output
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.cli.server import database
from taskctl.errors import UsageInvalid
from taskctl.vocabulary import QUOTA_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(help="The people in the database.", no_args_is_help=True, rich_markup_mode=None)

_LINE = "{:>8}  {:>8}  {:>8}  {:>11}  {:16}  {}"
"""Of the list in a terminal; ids are long, and stand last."""

User = Annotated[str, typer.Argument(metavar="USER", help="A user's id, as tokens have it in `sub`.")]


@app.command("list")
def list_(*, as_json: Json = False, ndjson: Ndjson = False, quiet: Quiet = False) -> None:
    """List everybody: id, tasks, those pending, those in the trash, last change, bytes. Reads all tasks."""
    from taskctl.server import users

    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    with database() as settings:
        rows = users.list_users(settings)
        if how is Form.JSON:
            output.print_json(output.compact(list(rows)))
            return
        if how is Form.TERMINAL:
            typer.echo(_LINE.format("Tasks", "Pending", "Trash", "Bytes", "Changed", "User"))
        for row in rows:
            user, changed = output.escaped(row["user_id"]), row["changed_at"] or ""
            counts = (row["tasks"], row["pending"], row["trash"])
            if how is Form.NDJSON:
                output.print_json(output.compact(row))
            elif how is Form.IDS:
                typer.echo(user)
            elif how is Form.TERMINAL:
                typer.echo(_LINE.format(*counts, row["bytes"], output.local_time(changed), user))
            else:
                typer.echo("\t".join(map(str, (user, *counts, changed, row["bytes"]))))


@app.command()
def export(
    user: User,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; `-` is stdout.")] = "-",
) -> None:
    """Write all that the database has about a person, a JSON object a line.

    The last line is the proof: the rows of each table, and the SHA-256 of the lines before it.
    The file is private, and appears when it is complete.
    """
    from taskctl.cli.exporting import written
    from taskctl.server import users

    with database() as settings:
        lines = users.export(settings, user)
        first = next(lines)  # whether there is anything at all, before a file is made
        with written(None if file == "-" else file) as out:
            out.writelines(line.encode() for line in itertools.chain([first], lines))


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


@app.command()
def quota(
    user: User,
    *,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Tasks outside the trash: a number, `none` or `default`."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", metavar="SIZE", help="Of their texts: such as 50MiB, `none` or `default`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how much a person has and may have, or let them have more or less than all people.

    What all people may have is TASKCTL_QUOTA_TASKS and TASKCTL_QUOTA_BYTES. A person who has more already
    loses nothing, but cannot add to it.
    """
    from taskctl.server import users

    quotas = {}
    if tasks is not None:
        quotas["tasks"] = _limit("--tasks", tasks, _number)
    if size is not None:
        quotas["bytes"] = _limit("--bytes", size, quantities.size)
    with database() as settings:
        if quotas:
            users.set_quotas(settings, user, quotas)
        figures = users.usage(settings, user)
    if as_json:
        output.print_json(output.compact({"user_id": user, **figures}))
        return
    for of in ("tasks", "bytes"):
        most = figures[f"quota_{of}"]
        typer.echo(f"{of}\t{figures[of]}\t{'no limit' if most is None else most}")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("not a whole number")
    return int(text)


def _limit(option: str, text: str, read: "Callable[[str], int]") -> int | None:
    """A quota as it is stored.

    Raises:
        UsageInvalid: it is none.
    """
    if text in {"none", "default"}:
        return 0 if text == "none" else None
    try:
        if 0 < (limit := read(text)) <= QUOTA_MAX:
            return limit
    except ValueError:
        pass
    raise UsageInvalid(f"{option} takes `none`, `default` or a number from 1, not {output.escaped(text)}.")
