"""What the commands about tasks do where the server is away, and `tasks sync` and `tasks undo`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskctl import operations
from taskctl.cli import output
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.contexts import Flags, resolve
from taskctl.desk import Desk
from taskctl.errors import TaskctlError, UsageInvalid, VersionConflict

if TYPE_CHECKING:
    from taskctl.desk import Undone
    from taskctl.outbox import Delivered, Waiting


_PATIENCE = 5.0
"""Seconds that a person waits for a connection, unless they have set a timeout."""


@contextmanager
def desk(context: typer.Context, *, sends: bool = True) -> Iterator[Desk]:
    """Where a command makes its changes, after what waits has been sent. Says in the end what it has kept."""
    flags: Flags = context.find_root().obj
    settings = resolve(flags)
    settings.require_token()
    sent: list[Delivered] = []
    chosen = flags.timeout is not None or os.environ.get("TASKCTL_TIMEOUT")

    def show(delivered: "Delivered") -> None:
        if delivered.error is None:
            sent.append(delivered)
        else:
            _tell(f"Refused: {_summary(delivered.waiting)}. {_reason(delivered.error)} {_WHERE}")

    with Desk(
        output.connect(settings, debug=flags.debug),
        settings,
        sends=sends,
        patience=_PATIENCE if sys.stderr.isatty() and not chosen else None,
        on_delivered=show,
        on_unnoted=lambda error: _tell(f"`undo` does not know of this change: {_reason(error)}"),
    ) as opened:
        try:
            _tell_sent(sent)
            sent.clear()
            yield opened
        finally:
            _tell_sent(sent)
            if opened.kept and opened.away is not None:
                _tell(_reason(opened.away))
                _tell(f"Kept: will be sent when the server answers again ({len(opened.waiting())} waiting)")
            elif opened.kept:
                _tell(f"Kept: will be sent after what it depends on ({len(opened.waiting())} waiting)")


def tell_waiting(opened: Desk) -> None:
    """Say what a list may lack, if something waits."""
    if waiting := len(opened.waiting()):
        what = "1 change waits" if waiting == 1 else f"{waiting} changes wait"
        _tell(f"{what} to be sent: `taskctl tasks sync --list` shows which.")


def print_kept(waiting: "Waiting", how: Form) -> None:
    """Print a change that was kept, in the place of the task that it makes."""
    if how in {Form.JSON, Form.NDJSON}:
        output.print_json(output.compact(kept_json(waiting)))
    elif how is Form.IDS:
        typer.echo(waiting.subject)
    elif how is Form.TERMINAL:
        typer.echo(f"Kept {_summary(waiting)}")
    else:
        typer.echo(f"{waiting.subject}\twaiting\t{output.escaped(_title(waiting))}\t{waiting.kept_at}")


def kept_json(waiting: "Waiting") -> dict[str, Any]:
    """A change that was kept, as JSON: `id` is the task's, or what stands for it until it has one."""
    return {
        "id": waiting.subject,
        "waiting": waiting.number,
        "did": operations.verb(waiting.operation),
        **({} if waiting.operation["op"] == "delete" else operations.wanted(waiting.operation)),
        "kept_at": waiting.kept_at,
        "refused": waiting.refused,
    }


def register(app: typer.Typer) -> None:
    """Add the commands to those of `taskctl tasks`."""
    app.command()(sync)
    app.command()(undo)


def sync(
    context: typer.Context,
    *,
    show_list: Annotated[bool, typer.Option("--list", help="Show what waits, and send nothing.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Send what was refused, too, over what others have changed.")
    ] = False,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="N", help="Give up change N; may be repeated.")
    ] = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Send the changes that wait since the server was away.

    What the server refuses is kept for you to decide: --drop it, or --retry it over what is there now.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    if show_list + retry + bool(drop) > 1:
        raise UsageInvalid("--list, --retry and --drop exclude each other.")
    numbers = [_number(text) for text in drop or ()]
    with desk(context, sends=False) as opened:
        if numbers:
            for waiting in (gone for number in numbers for gone in opened.drop(number)):
                _tell(f"Given up: {_summary(waiting)}")
            return
        outbox = opened.outbox()
        if show_list or outbox is None or not outbox.load().waiting:
            _print_waiting(opened.waiting(), how)
            for server, user, count in outbox.elsewhere() if outbox else ():
                _tell(output.escaped(f"{count} more of {user}'s at {server}; they are sent as {user}."))
            return
        if retry:
            outbox.retry()
        try:
            opened.send_waiting(outbox)
        finally:
            left = opened.waiting()
            if left:
                _tell(f"{len(left)} waiting. {_WHERE}")
    if left:
        raise typer.Exit(VersionConflict.exit_code)


def undo(
    context: typer.Context,
    *,
    skip: Annotated[
        bool, typer.Option("--skip", help="Let the last change be; the next undo is about the one before.")
    ] = False,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Take back this terminal's last change.

    That is what the last add, done, reopen, edit or rm did, to however many tasks; a further undo takes back
    the one before. A task that somebody has changed since stays as it is.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    code = 0
    undone: list[Undone] = []
    with desk(context) as opened:
        if skip:
            for part in opened.forget_last_change().parts:
                _tell(f"Left as it is: {part.did} {part.task}")
            return
        for each in opened.undo():
            if each.error is not None:
                subject = each.part.task if isinstance(each.part.task, int) else None
                output.report(each.error, as_json=how in {Form.JSON, Form.NDJSON}, task_id=subject)
                code = code or each.error.exit_code
                continue
            undone.append(each)
            for left in each.left:
                _tell(f"Task {left}, which came of it, has been changed since and stays.")
            if how is not Form.JSON:
                _print_undone(each, how)
    if how is Form.JSON:
        output.print_json(output.compact([_undone_json(each) for each in undone]))
    if code:
        _tell("`taskctl tasks undo --skip` lets it be.")
    raise typer.Exit(code)


_NAMED = 10
"""New tasks whose ids are told when they were sent; `new3` goes on naming them all."""

_WHERE = "`taskctl tasks sync --list` shows what waits."

_REVERSE = {"add": "Deleted", "rm": "Restored", "done": "Reopened", "reopen": "Done", "edit": "Changed back"}


def _print_undone(undone: "Undone", how: Form) -> None:
    if how is Form.NDJSON:
        output.print_json(output.compact(_undone_json(undone)))
    elif how is Form.IDS:
        typer.echo(undone.part.task)
    else:
        verb = "Given up" if undone.dropped else _REVERSE[undone.part.did]
        title = output.escaped(undone.task["title"] if undone.task else undone.part.title or "")
        if how is Form.TERMINAL:
            what = f"{undone.part.did} {undone.part.task}" if undone.dropped else undone.part.task
            typer.echo(f"{verb} {what}  {title}".rstrip())
        else:
            typer.echo(f"{undone.part.task}\t{verb.lower()}\t{title}")


def _undone_json(undone: "Undone") -> dict[str, Any]:
    return {"id": undone.part.task, "undone": undone.part.did, "task": undone.task, "left": undone.left}


def _print_waiting(waiting: "list[Waiting]", how: Form) -> None:
    """Print what waits, in order."""
    if how is Form.JSON:
        output.print_json(output.compact([kept_json(each) for each in waiting]))
    elif how is Form.TERMINAL and not waiting:
        _tell("Nothing waits to be sent.")
    for each in waiting:
        if how is Form.NDJSON:
            output.print_json(output.compact(kept_json(each)))
        elif how is Form.IDS:
            typer.echo(each.number)
        elif how is Form.ROWS:
            state = "refused" if each.refused else "waiting"
            typer.echo(f"{each.number}\t{state}\t{_summary(each)}\t{each.kept_at}")
        elif how is Form.TERMINAL:
            typer.echo(f"{each.number:>3}  {_summary(each)}  ({output.local_time(each.kept_at)})")
            if each.refused:
                typer.echo(output.escaped(f"     refused: {each.refused['detail']} ({each.refused['code']})"))
                for name, value in each.refused["theirs"].items():
                    typer.echo(output.escaped(f"     it has {name}: {value}"))


def _summary(waiting: "Waiting") -> str:
    """A change as a person would say it: `edit 5  title: Buy oat milk`."""
    operation = waiting.operation
    command = f"{operations.verb(operation)} {waiting.subject}"
    if operation["op"] == "create":
        return f"{command}  {output.escaped(_title(waiting))}"
    if operation["op"] == "patch":
        changes = ", ".join(f"{name}: {value}" for name, value in operation["changes"].items())
        return f"{command}  {output.escaped(changes)}"
    return command


def _title(waiting: "Waiting") -> str:
    if waiting.operation["op"] == "delete":
        return ""
    return str(operations.wanted(waiting.operation).get("title", ""))


def _tell_sent(sent: "list[Delivered]") -> None:
    if not sent:
        return
    what = "1 change that waited" if len(sent) == 1 else f"{len(sent)} changes that waited"
    made = [
        f"{each.waiting.subject} is task {each.task['id']}"
        for each in sent
        if each.task is not None and each.waiting.operation["op"] == "create"
    ]
    more = [f"and {len(made) - _NAMED} more"] if len(made) > _NAMED else []
    _tell(f"Sent: {'; '.join([what, *made[:_NAMED], *more])}.")


def _reason(error: TaskctlError) -> str:
    return output.escaped(f"{error.detail} ({error.code})")


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):  # noqa: PLR2004 - digits
        raise UsageInvalid(f"{text!r} is no change's number; `taskctl tasks sync --list` shows them.")
    return int(text)
