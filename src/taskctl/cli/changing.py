"""`taskctl tasks done|reopen|rm|restore`: what changes the state of one task or many."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from taskctl.cli import offline, output
from taskctl.cli.offline import desk
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.cli.selection import Ids, IfVersion, change_each, each, references
from taskctl.errors import UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskctl.client import TaskDict
    from taskctl.desk import Desk
    from taskctl.operations import Reference
    from taskctl.outbox import Waiting

_NAMED_IN_A_QUESTION = 10


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(done)
    app.command("complete", hidden=True)(done)
    app.command()(reopen)
    app.command()(rm)
    app.command("delete", hidden=True)(rm)
    app.command()(restore)


def _command(
    name: str, verb: str, do: "Callable[[Desk, Reference, int | None], TaskDict | Waiting]", doc: str
) -> "Callable[..., None]":
    """A command that does the same to each of some tasks; `do` is told which version is meant."""

    def command(
        context: typer.Context,
        *,
        ids: Ids,
        if_version: IfVersion = None,
        as_json: Json = False,
        ndjson: Ndjson = False,
        quiet: Quiet = False,
    ) -> None:
        how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
        chosen = references(ids, if_version)
        change_each(context, chosen, how, verb, lambda opened, one: do(opened, one, if_version))

    command.__name__, command.__doc__ = name, doc
    return command


done = _command(
    "done",
    "Done",
    lambda opened, one, version: opened.complete_task(one, if_version=version),
    """Complete tasks (also: complete): `done 3-5 8`, or `done -` for the ids on stdin.

    With --json: the task, or an array if several ids were given.
    """,
)
reopen = _command(
    "reopen",
    "Reopened",
    lambda opened, one, version: opened.complete_task(one, completed=False, if_version=version),
    "Reopen completed tasks. With --json: the task, or an array if several ids were given.",
)
restore = _command(
    "restore",
    "Restored",
    lambda opened, one, version: opened.client.restore_task(opened.resolved(one), if_version=version),
    "Take tasks out of the trash. With --json: the task, or an array if several ids were given.",
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
    chosen = references(ids, if_version)
    if dry_run:
        if if_version is not None:
            raise UsageInvalid("--dry-run and --if-version exclude each other.")
        change_each(
            context,
            chosen,
            how,
            "Would delete",
            lambda opened, one: opened.client.read_task(opened.resolved(one)),
        )
    if chosen and not yes and sys.stdin.isatty() and sys.stderr.isatty():
        _ask(chosen)
    deleted: list[Reference] = []
    kept: list[Reference] = []
    with desk(context) as opened:

        def delete(reference: "Reference") -> None:
            waiting = opened.delete_task(reference, if_version=if_version)
            (deleted if waiting is None else kept).append(reference)
            if how is Form.NDJSON:
                output.print_json(output.compact({"deleted" if waiting is None else "waiting": reference}))
            elif how is not Form.JSON and waiting is not None:
                offline.print_kept(waiting, how)
            elif how is not Form.JSON:
                typer.echo(f"Deleted {reference}" if how is Form.TERMINAL else reference)

        code = each(chosen, delete, how)
    if how is Form.JSON:
        output.print_json(output.compact({"deleted": deleted, **({"waiting": kept} if kept else {})}))
    raise typer.Exit(code)


def _ask(chosen: "list[Reference]") -> None:
    what = "task" if len(chosen) == 1 else f"{len(chosen)} tasks:"
    named = ", ".join(map(str, chosen[:_NAMED_IN_A_QUESTION]))
    more = ", …" if len(chosen) > _NAMED_IN_A_QUESTION else ""
    if not typer.confirm(f"Delete {what} {named}{more}?", err=True):
        typer.echo("Nothing is deleted.", err=True)
        raise typer.Exit(1)
