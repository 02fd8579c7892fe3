"""What of a task is shown, and how: as raw fields for programs, in words for people."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from taskctl.cli import clock
from taskctl.cli.output import escaped, local_time

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from taskctl.client import TaskDict


class Column(StrEnum):
    """A column of a list; its name here is what `--columns` takes."""

    id = "id"
    status = "status"
    title = "title"  # type: ignore[assignment] # as `str.title`, which nobody asks of it
    due = "due"
    priority = "priority"
    tags = "tags"
    project = "project"
    every = "every"
    description = "description"
    created = "created"
    changed = "changed"
    completed = "completed"
    deleted = "deleted"
    version = "version"


class Group(StrEnum):
    """What tasks may stand under headings by."""

    due = "due"
    priority = "priority"
    project = "project"
    tag = "tag"


ROW = (Column.id, Column.status, Column.title, Column.changed)
"""A row's fields where none are chosen: scripts rely on them."""

_MEMBERS = {
    Column.due: "due_at",
    Column.every: "recurrence",
    Column.created: "created_at",
    Column.changed: "updated_at",
    Column.completed: "completed_at",
    Column.deleted: "deleted_at",
}
"""Columns whose names are not those of the task's members."""


def row(task: "TaskDict", chosen: Sequence[Column] = ()) -> str:
    """A task as tab-separated fields, each as the API has it; nothing for null, tags with commas between."""
    return "\t".join(escaped(_raw(task, column)) for column in chosen or ROW)


def _raw(task: "TaskDict", column: Column) -> str:
    if column is Column.status:
        return "completed" if task["completed"] else "pending"
    value = task.get(_MEMBERS.get(column, column.value))
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def shown(task: "TaskDict", column: Column, now: "datetime", zone: "ZoneInfo") -> str:
    """A field for people: dates at a glance, nothing for what is empty."""
    raw = _raw(task, column)
    if not raw or (column is Column.priority and raw == "none"):
        return ""
    if column is Column.due:
        return _glance(raw, now, zone)
    if column is Column.every:
        return _rule(raw)
    if column is Column.tags:
        return tags(task)
    if column in {Column.created, Column.changed, Column.completed, Column.deleted}:
        return local_time(raw)
    return escaped(raw)


def tags(task: "TaskDict") -> str:
    """A task's tags as quick entry has them: `+home +urgent`."""
    return " ".join(f"+{escaped(tag)}" for tag in task.get("tags") or ())


def _glance(due_at: str, now: "datetime", zone: "ZoneInfo") -> str:
    from taskctl import dates

    try:
        return dates.relative(dates.from_wire(due_at), now, zone)
    except ValueError:
        return escaped(due_at)


def due_in_full(due_at: str, zone: "ZoneInfo") -> str:
    """A due date without doubt; what cannot be read is shown as it is."""
    from taskctl import dates

    try:
        return dates.full(dates.from_wire(due_at), zone)
    except ValueError:
        return escaped(due_at)


def _rule(recurrence: str) -> str:
    from taskctl import recurrence as rules

    try:
        return rules.words(recurrence)
    except ValueError:
        return escaped(recurrence)


def sentence(task: "TaskDict") -> str:
    """A task in one line, with its dates resolved: `7  Pay rent  due Tue 1 Dec 2026, +home, high`."""
    head = f"{task['id']}  {escaped(task['title'])}"
    if task["completed"]:
        following = task.get("next_id")
        return f"{head}  (next: {following})" if following else head
    said = []
    if due_at := task.get("due_at"):
        _, zone = clock.here()
        said.append(f"due {due_in_full(due_at, zone)}")
    if rule := task.get("recurrence"):
        said.append(_rule(rule))
    said += [f"+{escaped(tag)}" for tag in task.get("tags") or ()]
    if task.get("priority", "none") != "none":
        said.append(escaped(task["priority"]))
    if project := task.get("project"):
        said.append(f"project {escaped(project)}")
    return f"{head}  {', '.join(said)}" if said else head
