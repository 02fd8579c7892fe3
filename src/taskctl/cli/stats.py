"""`taskctl tasks stats`: how much is open and how much gets done, counted by the server."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from taskctl.cli import clock, output
from taskctl.cli.offline import desk
from taskctl.cli.output import Form, Json
from taskctl.vocabulary import Order, Priority, Sort, Status

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from taskctl.client import Client

DAYS = 14

_LOOKED_AT = 1000
"""Tasks that are looked at for the names of projects: the server counts, but does not list them."""

_PROJECTS = 8

_BAR = 30

_LABEL = 20


def stats(context: typer.Context, *, as_json: Json = False) -> None:
    """Show how many tasks are open, overdue and completed in the last two weeks.

    Projects are the most frequent of the 1000 open tasks that were changed last. In a pipe each number is a
    line of tab-separated fields: what, which (a day, a priority or a project), how many.
    """
    how = output.form(as_json=as_json, ndjson=False, quiet=False)
    now, zone = clock.here()
    with desk(context) as opened:
        found = _count(opened.client, now, zone)
    if how is Form.JSON:
        output.print_json(output.compact(found))
    elif how is Form.ROWS:
        for what, value in found.items():
            if isinstance(value, dict):
                for which, number in value.items():
                    typer.echo(f"{what}\t{output.escaped(which)}\t{number}")
            else:
                typer.echo(f"{what}\t\t{value}")
    else:
        _print_charts(found)


def _count(client: "Client", now: "datetime", zone: "ZoneInfo") -> dict[str, Any]:
    """All the numbers, each by one request that reads no task, but for the projects' names."""
    from datetime import datetime, time, timedelta

    def count(status: Status, **filters: str) -> int:
        given = {**filters, "tz": zone.key, "count": "exact"}
        return client.list_tasks(status=status, limit=1, filters=given).get("count", 0)

    today = now.date()
    pending = Status.pending
    priorities = {each.value: count(pending, priority=each.value) for each in reversed(Priority)}
    days = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    done = {}
    for day in days:
        begin, end = (datetime.combine(each, time(), zone) for each in (day, day + timedelta(days=1)))
        done[day.isoformat()] = count(
            Status.completed, completed_after=begin.isoformat(), completed_before=end.isoformat()
        )
    projects = {name: count(pending, project=name) for name in _projects(client)}
    return {
        "open": sum(priorities.values()),
        "overdue": count(pending, due="overdue"),
        "due_today": count(pending, due="today"),
        "completed": count(Status.completed),
        "open_by_priority": priorities,
        "open_by_project": dict(sorted(projects.items(), key=lambda each: (-each[1], each[0]))),
        "completed_by_day": done,
    }


def _projects(client: "Client") -> list[str]:
    """The most frequent projects among what was changed last."""
    seen: dict[str, int] = {}
    filters = {"sort": Sort.updated.value}
    for page in client.pages(status=Status.pending, order=Order.desc, filters=filters, total=_LOOKED_AT):
        for task in page["items"]:
            if project := task.get("project"):
                seen[project] = seen.get(project, 0) + 1
    return sorted(seen, key=lambda project: -seen[project])[:_PROJECTS]


def _print_charts(found: Mapping[str, Any]) -> None:
    from shutil import get_terminal_size

    from rich.cells import cell_len, set_cell_size
    from rich.console import Console

    width = get_terminal_size().columns
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    block = "█" if "utf" in console.encoding else "#"
    console.print(f"{found['open']} open, ", end="")
    console.print(f"{found['overdue']} overdue", style="bold red" if found["overdue"] else "", end="")
    console.print(f", {found['due_today']} due today, {found['completed']} completed")
    done = {_day(day): number for day, number in found["completed_by_day"].items()}
    charts = (
        (f"Completed in {DAYS} days: {sum(done.values())}", done, "green"),
        ("Open by priority", found["open_by_priority"], "yellow"),
        ("Open by project", found["open_by_project"], "magenta"),
    )
    for title, numbers, style in charts:
        if not any(numbers.values()):
            continue
        most = max(numbers.values())
        labels = [output.escaped(name) for name in numbers]
        column = min(_LABEL, max(map(cell_len, labels)))
        longest = max(1, min(_BAR, width - column - 12))
        console.print(f"\n{title}", style="bold")
        for label, number in zip(labels, numbers.values(), strict=True):
            console.print(f"  {set_cell_size(label, column)}  ", end="")
            console.print(block * (-(-number * longest // most)), style=style, end=" " if number else "")
            console.print(str(number) if number else "·" if block == "█" else "-")


def _day(day: str) -> str:
    from datetime import date

    found = date.fromisoformat(day)
    return f"{found:%a} {found.day:>2} {found:%b}"
