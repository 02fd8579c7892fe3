"""`taskctl tasks list|today|next`: which tasks, in what order, and with which columns."""

from typing import TYPE_CHECKING, Annotated

import typer

from taskctl.cli import clock, output
from taskctl.cli.columns import Column, Group
from taskctl.cli.offline import desk, tell_waiting
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.errors import TaskctlError, UsageInvalid
from taskctl.vocabulary import PAGE_LIMIT_DEFAULT, DueWord, Order, Priority, Sort, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from taskctl.client import Client, TaskDict

    Filters = dict[str, str | list[str]]
    """Parameters of the API's list."""


def _completed_columns(incomplete: str) -> list[str]:
    begin, comma, _ = incomplete.rpartition(",")
    return [f"{begin}{comma}{column}" for column in Column]


NEXT_DEFAULT = 10
"""Tasks that `next` shows."""

StatusOption = Annotated[
    Status | None,
    typer.Option("--status", help="Which tasks; all, in a terminal pending.", show_default=False),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help=f"At most so many tasks; {PAGE_LIMIT_DEFAULT}."),
]
AllOption = Annotated[bool, typer.Option("--all", help="No limit.")]
OrderOption = Annotated[
    Order | None,
    typer.Option("--order", help="By id, or by --sort; what suits that, when left out.", show_default=False),
]
TagOption = Annotated[
    list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="With this tag; with all of several.")
]
ProjectOption = Annotated[str | None, typer.Option("--project", metavar="NAME", help="Of this project.")]
PriorityOption = Annotated[
    str | None,
    typer.Option(
        "--priority",
        "-p",
        metavar="WORD",
        help="high, medium, low or none, or a first letter.",
        autocompletion=lambda: [*Priority],
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="NAMES",
        help=f"Such as id,due,title; of {', '.join(Column)}.",
        autocompletion=_completed_columns,
    ),
]
GroupOption = Annotated[
    Group | None, typer.Option("--group", "-g", help="Under headings, in a terminal.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("list")(list_)
    app.command("ls", hidden=True)(list_)
    app.command()(today)
    app.command("next")(next_)


def list_(
    context: typer.Context,
    *,
    status: StatusOption = None,
    due: Annotated[
        str | None,
        typer.Option(
            "--due",
            metavar="WHEN",
            help="overdue, today, week, none, any, a day (fri) or a range (mon..fri, ..eow).",
            autocompletion=lambda: [*DueWord, "tomorrow", "..eow", "..eom"],
        ),
    ] = None,
    tags: TagOption = None,
    project: ProjectOption = None,
    priority: PriorityOption = None,
    search: Annotated[
        str | None,
        typer.Option("--search", "-s", metavar="TEXT", help="With words that begin so, anywhere in them."),
    ] = None,
    completed_after: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Completed on this day, at this time, or later.")
    ] = None,
    completed_before: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Completed before this day or time.")
    ] = None,
    sort: Annotated[
        Sort | None, typer.Option("--sort", help="By id; in a terminal by due date.", show_default=False)
    ] = None,
    order: OrderOption = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    limit: LimitOption = None,
    everything: AllOption = False,
    columns: ColumnsOption = None,
    group: GroupOption = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """List tasks (also: ls).

    A terminal shows what is to be done, by due date, unless told otherwise; a pipe, and any form for
    programs, gets all tasks by id.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    chosen = _columns(columns, how)
    if order is not None and reverse:
        raise UsageInvalid("--order and --reverse exclude each other.")
    filters = _filters(tags, project, priority)
    if search is not None:
        filters["q"] = search
    _add_dates(filters, due, completed_after, completed_before)
    if status is None:
        to_do = how is Form.TERMINAL and not (completed_after or completed_before)
        status = Status.pending if to_do else Status.all
    if sort is None:
        # `--order` alone is the order of ids.
        planned = how is Form.TERMINAL and order is None and status is Status.pending
        sort = Sort.priority if planned and group is Group.priority else Sort.due if planned else Sort.id
    order = order or _natural(sort, reverse=reverse)
    if sort is not Sort.id:
        filters["sort"] = sort.value
    total = _total(limit, everything=everything)
    _show(context, how, status, order, filters, total=total, chosen=chosen, group=group)


def today(
    context: typer.Context,
    *,
    tags: TagOption = None,
    project: ProjectOption = None,
    limit: LimitOption = None,
    everything: AllOption = False,
    columns: ColumnsOption = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """List what is due today or overdue, the oldest first."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    chosen = _columns(columns, how)
    filters = {**_filters(tags, project, None), **_until_today(), "sort": Sort.due.value}
    total = _total(limit, everything=everything)
    _show(context, how, Status.pending, Order.asc, filters, total=total, chosen=chosen)


def next_(
    context: typer.Context,
    *,
    tags: TagOption = None,
    project: ProjectOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help=f"At most so many tasks; {NEXT_DEFAULT}."),
    ] = None,
    columns: ColumnsOption = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """List what to do next: overdue and due today first, then by priority, then the oldest."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    chosen = _columns(columns, how)
    total = limit or NEXT_DEFAULT
    base = _filters(tags, project, None)

    def pages(client: "Client") -> "Iterator[list[TaskDict]]":
        """What is due, then the tasks of each priority: by id, the oldest is the first."""
        seen: set[int] = set()
        urgent = {**base, **_until_today(), "sort": Sort.due.value}
        for filters in (urgent, *({**base, "priority": each.value} for each in reversed(Priority))):
            for page in client.pages(status=Status.pending, filters=filters, total=total):
                fresh = [task for task in page["items"] if task["id"] not in seen][: total - len(seen)]
                seen.update(task["id"] for task in fresh)
                yield fresh
                if len(seen) == total:
                    return

    _print(context, pages, how, total=total, chosen=chosen)


def _show(
    context: typer.Context,
    how: Form,
    status: Status,
    order: Order,
    filters: "Filters",
    *,
    total: int | None,
    chosen: list[Column],
    group: Group | None = None,
) -> None:
    """Print a list as the server has it, and say so in a terminal where there is more of it."""
    more = False

    def pages(client: "Client") -> "Iterator[list[TaskDict]]":
        nonlocal more
        for page in client.pages(status=status, order=order, filters=filters, total=total):
            more = page["next_cursor"] is not None
            yield page["items"]

    shown = _print(context, pages, how, total=total, chosen=chosen, group=group)
    if more and how is Form.TERMINAL:
        output.note(f"{shown} shown; --all for all of them.")


def _print(
    context: typer.Context,
    pages: "Callable[[Client], Iterable[list[TaskDict]]]",
    how: Form,
    *,
    total: int | None,
    chosen: list[Column],
    group: Group | None = None,
) -> int:
    """Print pages as they come, with a bar where it takes long, and return how many tasks there were."""
    shown = 0

    def counted(client: "Client") -> "Iterator[list[TaskDict]]":
        nonlocal shown
        streaming = how not in {Form.TERMINAL, Form.JSON}
        with output.progress(total, streaming=streaming) as progress:  # gone before a table is printed
            for page in pages(client):
                shown += len(page)
                progress.advance(len(page))
                yield page

    with desk(context) as opened:
        try:
            output.print_tasks(counted(opened.client), how, chosen, group)
        except TaskctlError:
            if how not in {Form.JSON, Form.NDJSON}:  # there the error is all that stderr has
                tell_waiting(opened)
            raise
        tell_waiting(opened)
    return shown


def _total(limit: int | None, *, everything: bool) -> int | None:
    if everything and limit is not None:
        raise UsageInvalid("--limit and --all exclude each other.")
    return None if everything else limit or PAGE_LIMIT_DEFAULT


def _natural(sort: Sort, *, reverse: bool) -> Order:
    """The order that a person expects: the latest and the most urgent first, else upwards."""
    falling = sort in {Sort.priority, Sort.updated, Sort.created}
    return Order.desc if falling != reverse else Order.asc


def _filters(tags: list[str] | None, project: str | None, priority: str | None) -> "Filters":
    filters: Filters = {}
    if tags:
        filters["tag"] = [tag.removeprefix("+") for tag in tags]
    if project is not None:
        filters["project"] = project
    if priority is not None:
        from taskctl import entry

        try:
            filters["priority"] = entry.priority(priority)
        except ValueError as error:
            raise UsageInvalid(str(error)) from None
    return filters


def _add_dates(filters: "Filters", due: str | None, after: str | None, before: str | None) -> None:
    """Add the filters by date, and the time zone that their days are in.

    Raises:
        UsageInvalid: one is no date.
    """
    if due is None and after is None and before is None:
        return
    from taskctl import dates

    now, zone = clock.here()
    filters["tz"] = zone.key
    try:
        if due is not None:
            filters["due"] = dates.span(due, now, zone)
        for name, text in (("completed_after", after), ("completed_before", before)):
            if text is not None:
                filters[name] = _moment(text, now, zone)
    except ValueError as error:
        raise UsageInvalid(str(error)) from None


def _moment(text: str, now: "datetime", zone: "ZoneInfo") -> str:
    from taskctl import dates

    found = dates.read_past(text, now, zone)
    if found is None:
        raise ValueError("'none' is no date here; write one such as mon, -7d or 2026-11-01.")
    return dates.wire(found)


def _until_today() -> "Filters":
    now, zone = clock.here()
    return {"due": f"..{now.date().isoformat()}", "tz": zone.key}


def _columns(names: str | None, how: Form) -> list[Column]:
    """The columns that are asked for.

    Raises:
        UsageInvalid: there is no such column, or the form has none.
    """
    if names is None:
        return []
    if how not in {Form.TERMINAL, Form.ROWS}:
        raise UsageInvalid("--columns goes with tables and rows, not with --json, --ndjson or --quiet.")
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in wanted:
        if name not in set(Column):
            raise UsageInvalid(f"{name[:40]!r} is no column; there are {', '.join(Column)}.")
    return [Column(name) for name in wanted]
