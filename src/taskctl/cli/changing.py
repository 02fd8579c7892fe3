"""`taskctl tasks done|reopen|rm|restore`: what changes the state of one task or many."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from taskctl.cli import output
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.cli.selection import Ids, IfVersion, each, task_ids
from taskctl.errors import UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskctl.client import Client, TaskDict

_NAMED_IN_A_QUESTION = 10


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(done)
    app.command("complete", hidden=True)(done)
    app.command()(reopen)
    app.command()(rm)
    app.command("delete", hidden=True)(rm)
    app.command()(restore)


def done(
    context: typer.Context,
    *,
    ids: Ids,
    if_version: IfVersion = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Complete tasks (also: complete): `done 3-5 8`, or `done -` for the ids on stdin.

    With --json: the task, or an array if several ids were given.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    _change(
        context,
        task_ids(ids, if_version),
        how,
        "Done",
        lambda client, number: client.complete_task(number, if_version=if_version),
    )


def reopen(
    context: typer.Context,
    *,
    ids: Ids,
    if_version: IfVersion = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Reopen completed tasks. With --json: the task, or an array if several ids were given."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    _change(
        context,
        task_ids(ids, if_version),
        how,
        "Reopened",
        lambda client, number: client.complete_task(number, completed=False, if_version=if_version),
    )


def restore(
    context: typer.Context,
    *,
    ids: Ids,
    if_version: IfVersion = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Take tasks out of the trash. With --json: the task, or an array if several ids were given."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    _change(
        context,
        task_ids(ids, if_version),
        how,
        "Restored",
        lambda client, number: client.restore_task(number, if_version=if_version),
    )


def rm(
    context: typer.Context,
    *,
    ids: Ids,
    if_version: IfVersion = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would be deleted.")] = False,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Delete tasks (also: delete), into the trash. Asks in a terminal.

    With --json: {"deleted": [ID, ...]}. What is in the trash, `list --status deleted` shows and `restore`
    takes out.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    numbers = task_ids(ids, if_version)
    if dry_run:
        if if_version is not None:
            raise UsageInvalid("--dry-run and --if-version exclude each other.")
        _change(context, numbers, how, "Would delete", lambda client, number: client.read_task(number))
    if numbers and not yes and sys.stdin.isatty() and sys.stderr.isatty():
        _ask(numbers)
    deleted = []
    with output.client(context) as client:

        def delete(number: int) -> None:
            client.delete_task(number, if_version=if_version)
            deleted.append(number)
            if how is Form.NDJSON:
                output.print_json(output.compact({"deleted": number}))
            elif how is not Form.JSON:
                typer.echo(f"Deleted {number}" if how is Form.TERMINAL else number)

        code = each(numbers, delete, how)
    if how is Form.JSON:
        output.print_json(output.compact({"deleted": deleted}))
    raise typer.Exit(code)


def _ask(numbers: list[int]) -> None:
    what = "task" if len(numbers) == 1 else f"{len(numbers)} tasks:"
    named = ", ".join(map(str, numbers[:_NAMED_IN_A_QUESTION]))
    more = ", …" if len(numbers) > _NAMED_IN_A_QUESTION else ""
    if not typer.confirm(f"Delete {what} {named}{more}?", err=True):
        typer.echo("Nothing is deleted.", err=True)
        raise typer.Exit(1)


def _change(
    context: typer.Context,
    numbers: list[int],
    how: Form,
    verb: str,
    do: "Callable[[Client, int], TaskDict]",
) -> None:
    """Do the same to each task, say so, and exit."""
    together = how is Form.JSON and len(numbers) != 1
    gathered: list[TaskDict] = []
    with output.client(context) as client:

        def change(number: int) -> None:
            task = do(client, number)
            if together:
                gathered.append(task)
            else:
                output.print_task(verb, task, how, client.raw)

        code = each(numbers, change, how)
    if together:
        output.print_json(output.compact(gathered))
    raise typer.Exit(code)
