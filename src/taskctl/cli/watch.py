"""`taskctl tasks watch`: shows changes as they happen, until it is interrupted."""

import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from taskctl.cli import output
from taskctl.cli.output import Form

if TYPE_CHECKING:
    from taskctl.client import ChangeDict

_START = "start"


def watch(
    context: typer.Context,
    *,
    since: Annotated[
        str,
        typer.Option(
            metavar="CURSOR|now|start",
            help="From where on: a cursor of the API, this moment, or the oldest change that is kept.",
        ),
    ] = "now",
    ndjson: Annotated[bool, typer.Option("--ndjson", help="Print one JSON object a line.")] = False,
) -> None:
    """Show what changes, as it changes, until Ctrl-C.

    A connection that is lost is made again and nothing is missed. In a pipe a change is one line of
    tab-separated fields: time, type (created, changed, completed, reopened, deleted or restored), id, title.
    """
    how = output.form(as_json=False, ndjson=ndjson, quiet=False)
    with output.client(context) as client:
        on_beat = _closed_pipe_noticed()
        for change in client.stream(None if since == _START else since, on_beat=on_beat):
            if how is Form.NDJSON:
                output.print_json(client.raw)
            else:
                typer.echo(_line(change, how))
                sys.stdout.flush()


def _line(change: "ChangeDict", how: Form) -> str:
    task = change["task"]
    title = output.escaped(str(task["title"]))
    kind, at = output.escaped(change["type"]), output.escaped(change["at"])
    if how is not Form.TERMINAL:
        return f"{at}\t{kind}\t{task['id']}\t{title}"
    return f"{_clock(at)}  {kind:<9}  {task['id']:>4}  {title}"


def _clock(moment: str) -> str:
    """A time in this machine's time zone to the second, with the day where that is not today."""
    from datetime import datetime

    try:
        local = datetime.fromisoformat(moment).astimezone()
    except (ValueError, OverflowError):
        return moment
    today = datetime.now().astimezone().date() == local.date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _closed_pipe_noticed() -> Callable[[], None]:
    """Raises BrokenPipeError once nobody reads any more, which a program that does not write is not told."""
    if not hasattr(select, "poll"):
        return lambda: None
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)

    def look() -> None:
        if any(event & select.POLLERR for _, event in poller.poll(0)):
            raise BrokenPipeError

    return look
