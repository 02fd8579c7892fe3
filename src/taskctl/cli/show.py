"""`taskctl tasks show`: all that there is to know of one task."""

from typing import TYPE_CHECKING

import typer

from taskctl.cli import clock, output
from taskctl.cli.columns import Column, due_in_full, shown, tags
from taskctl.cli.offline import desk
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.cli.selection import Id, reference

if TYPE_CHECKING:
    from taskctl.client import TaskDict


def show(
    context: typer.Context,
    *,
    number: Id,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Show one task, with its description."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    found = reference(number)
    with desk(context) as opened:
        task = opened.client.read_task(opened.resolved(found))
        if how is not Form.TERMINAL:
            output.print_task("", task, how, opened.client.raw)
            return
    output.print_fields(_fields(task), how)
    if task["description"]:
        typer.echo()
        for line in task["description"].splitlines():
            typer.echo(output.escaped(line.expandtabs()))


def _fields(task: "TaskDict") -> list[tuple[str, str]]:
    """What the task has, by name; what it may have and has not is left out."""
    now, zone = clock.here()
    due_at, extra, following = task.get("due_at"), task.get("extra"), task.get("next_id")
    due = ""
    if due_at:
        due = due_in_full(due_at, zone)
        glance = shown(task, Column.due, now, zone)
        due += "" if glance[:1].isupper() else f"  ({glance})"  # which begins with a weekday, too
    repeats = shown(task, Column.every, now, zone)
    if repeats and task.get("time_zone"):
        repeats += f"  ({output.escaped(str(task['time_zone']))})"
    fields = [
        ("Task", str(task["id"])),
        ("Title", output.escaped(task["title"])),
        ("Due", due),
        ("Repeats", repeats),
        ("Priority", shown(task, Column.priority, now, zone)),
        ("Tags", tags(task)),
        ("Project", shown(task, Column.project, now, zone)),
        ("Completed", shown(task, Column.completed, now, zone) or "no"),
        ("Next", f"task {following}" if following else ""),
        ("Deleted", shown(task, Column.deleted, now, zone)),
        ("Extra", output.escaped(output.compact(extra).decode()) if extra else ""),
        ("Created", output.local_time(task["created_at"])),
        ("Changed", f"{output.local_time(task['updated_at'])}  (version {task['version']})"),
    ]
    return [(name, value) for name, value in fields if value]
