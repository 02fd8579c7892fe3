"""Tasks as a table in a terminal: as wide as it is, in groups if asked for, readable without colour."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, NamedTuple

import typer

from taskctl.cli import clock
from taskctl.cli.columns import Column, Group, shown
from taskctl.cli.output import escaped

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from rich.table import Table
    from rich.text import Text

    from taskctl.client import TaskDict

_DETAILS = (Column.due, Column.priority, Column.project, Column.tags)
"""Shown beside the title, where any task has them."""

_GAP = 2
"""Cells between columns."""

_TITLE_MIN = 24
"""With less room than this beside them, the details go below the title."""

_FLOWING = (Column.title, Column.description)
"""These columns share what the others leave."""

_FLOWING_MIN = 10
"""Cells, also where there is no room for them."""

_FOLDED = (Column.tags, Column.project, Column.every)
"""These may take several lines where there is little room."""

_HEADS = {Column.id: "ID", Column.status: "", Column.priority: "Prio"}

_PRIORITIES = {"high": "red", "medium": "yellow", "low": "blue"}


class _Here(NamedTuple):
    """When and where the table is read, and whether its letters are more than ASCII."""

    now: "datetime"
    zone: "ZoneInfo"
    wide: bool


def print_table(
    tasks: Sequence["TaskDict"], chosen: Sequence[Column] = (), group: Group | None = None
) -> None:
    """Print tasks with these columns, or with those that suit them."""
    if not tasks:
        typer.echo("No tasks.", err=True)
        return
    from rich.console import Console

    # Left to itself, rich takes every TERM=dumb for 80 columns, whatever its size.
    size = get_terminal_size()
    console = Console(width=size.columns, height=size.lines, highlight=False, markup=False, emoji=False)
    now, zone = clock.here()
    here = _Here(now, zone, "utf" in console.encoding)
    columns = list(chosen) or _suiting(tasks)
    below: list[Column] = []
    widths = _widths(tasks, columns, here)
    if not chosen and size.columns - sum(width + _GAP for width in widths.values()) < _TITLE_MIN:
        below = [column for column in columns if column in _DETAILS]
        columns = [column for column in columns if column not in below]
    groups = list(_groups(tasks, group, here))
    aligned = _aligned(tasks, columns, widths, here, size.columns) if len(groups) > 1 else {}
    stacked = bool(chosen) and size.columns < _least(columns, widths)
    for number, (heading, members) in enumerate(groups):
        if heading:
            console.print(f"{chr(10) if number else ''}{heading}", style="bold underline")
        console.print(
            _stack(members, columns, here) if stacked else _table(members, columns, below, here, aligned)
        )


def _suiting(tasks: Sequence["TaskDict"]) -> list[Column]:
    """The columns that have anything in them; for tasks without details, when they were changed."""
    details = [column for column in _DETAILS if any(_has(task, column) for task in tasks)]
    state = [Column.status] if any(task["completed"] for task in tasks) else []
    return [Column.id, *state, Column.title, *(details or [Column.changed])]


def _has(task: "TaskDict", column: Column) -> bool:
    member = "due_at" if column is Column.due else column.value
    return task.get(member) not in (None, [], "none")


def _widths(tasks: Sequence["TaskDict"], columns: Iterable[Column], here: _Here) -> dict[Column, int]:
    """How wide the columns are of themselves, but for those that share what is left."""
    return {
        column: max(map(_width, [_head(column), *(_cell(task, column, here).plain for task in tasks)]))
        for column in columns
        if column not in _FLOWING
    }


def _least(columns: Sequence[Column], widths: Mapping[Column, int]) -> int:
    """Cells that these columns need beside one another."""
    return sum(
        min(widths.get(column, _FLOWING_MIN), _FLOWING_MIN)
        if column in (*_FLOWING, *_FOLDED)
        else widths[column]
        for column in columns
    ) + _GAP * (len(columns) - 1)


def _aligned(
    tasks: Iterable["TaskDict"],
    columns: Sequence[Column],
    widths: Mapping[Column, int],
    here: _Here,
    room: int,
) -> dict[Column, int]:
    """The widths that the columns of all groups have, so that they stand below one another."""
    flowing = [column for column in columns if column in _FLOWING]
    if len(flowing) != 1:
        return dict(widths)
    [column] = flowing
    left = room - sum(widths[each] + _GAP for each in columns if each is not column)
    widest = max(_width(_cell(task, column, here).plain) for task in tasks)
    return {**widths, column: max(_FLOWING_MIN, min(widest, left))}


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _head(column: Column) -> str:
    return _HEADS.get(column, column.value.capitalize())


def _table(
    tasks: Iterable["TaskDict"],
    columns: Sequence[Column],
    below: Sequence[Column],
    here: _Here,
    aligned: Mapping[Column, int],
) -> "Table":
    """The tasks of a group; `aligned` has the widths that its columns share with those of other groups."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, header_style="bold", show_header=not aligned, pad_edge=False, padding=(0, _GAP, 0, 0)
    )
    for column in columns:
        flows = column in _FLOWING
        table.add_column(
            _head(column),
            overflow="fold",
            no_wrap=not (flows or column in _FOLDED),
            ratio=1 if flows else None,
            min_width=aligned.get(column, _FLOWING_MIN if flows else None),
            justify="right" if column is Column.id else "left",
        )
    for task in tasks:
        cells = [_cell(task, column, here) for column in columns]
        details = [cell for column in below if (cell := _cell(task, column, here))]
        if details:
            title = columns.index(Column.title)
            cells[title] = Text("\n").join([cells[title], Text("  ").join(details)])
        table.add_row(*cells)
    return table


def _stack(tasks: Iterable["TaskDict"], columns: Sequence[Column], here: _Here) -> "Table":
    """The tasks below one another, a line or more for each column: for more than stand side by side."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for number, task in enumerate(tasks):
        if number:
            table.add_row()
        for column in columns:
            table.add_row(_head(column) or column.value.capitalize(), _cell(task, column, here))
    return table


def _cell(task: "TaskDict", column: Column, here: _Here) -> "Text":
    from rich.text import Text

    if column is Column.status:
        return Text(("✓" if here.wide else "x") if task["completed"] else "", style="green")
    text = shown(task, column, here.now, here.zone)
    if column is Column.due and text and task.get("recurrence"):
        text += " ↻" if here.wide else " *"
    return Text(text, style=_style(task, column, here))


def _style(task: "TaskDict", column: Column, here: _Here) -> str:
    if task["completed"]:
        return "dim"
    if column is Column.priority:
        return _PRIORITIES.get(task.get("priority", ""), "")
    if column is Column.due:
        return {"Overdue": "bold red", "Today": "yellow"}.get(_when(task, here), "")
    return {Column.tags: "cyan", Column.project: "magenta", Column.changed: "dim"}.get(column, "")


_WHEN = ("Overdue", "Today", "Tomorrow", "In the next seven days", "Later", "No due date")


def _when(task: "TaskDict", here: _Here) -> str:
    from taskctl import dates

    try:
        due = dates.from_wire(task.get("due_at") or "")
    except ValueError:
        return _WHEN[-1]
    if not task["completed"] and dates.overdue(due, here.now, here.zone):
        return _WHEN[0]
    days = (dates.day_of(due, here.zone) - here.now.astimezone(here.zone).date()).days
    return _WHEN[1 if days <= 0 else 2 if days == 1 else 3 if days < 7 else 4]  # noqa: PLR2004 - a week


_UNNAMED = {Group.project: "No project", Group.tag: "No tag", Group.priority: "No priority"}


def _groups(
    tasks: Sequence["TaskDict"], group: Group | None, here: _Here
) -> "Iterator[tuple[str, list[TaskDict]]]":
    """Headings and the tasks below each, in the order that they came in; a task is below each of its tags."""
    if group is None:
        yield "", list(tasks)
        return
    found: dict[str, list[TaskDict]] = {}
    for task in tasks:
        for heading in _headings(task, group, here):
            found.setdefault(heading, []).append(task)
    orders = {Group.due: _WHEN, Group.priority: ("High", "Medium", "Low")}
    order = orders.get(group) or sorted(found)
    last = _UNNAMED.get(group)
    for heading in [*(each for each in order if each != last), last or ""]:
        if heading in found:
            yield f"{heading} ({len(found[heading])})", found[heading]


def _headings(task: "TaskDict", group: Group, here: _Here) -> list[str]:
    if group is Group.due:
        return [_when(task, here)]
    if group is Group.tag:
        return [f"+{escaped(tag)}" for tag in task.get("tags") or ()] or [_UNNAMED[group]]
    value = task.get(group.value)
    if not value or value == "none":
        return [_UNNAMED[group]]
    return [str(value).capitalize() if group is Group.priority else escaped(str(value))]
