"""`taskctl tasks add`: a task in one line, with flags, or one for each line of stdin."""

import re
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from taskctl.cli import clock, output
from taskctl.cli.offline import desk, kept_json
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.cli.selection import STDIN, stdin_lines
from taskctl.errors import TaskctlError, UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskctl.client import ContentDict
    from taskctl.desk import Desk
    from taskctl.entry import Entry

DueOption = Annotated[
    str | None,
    typer.Option("--due", metavar="WHEN", help="A day, a time or both: fri, 1st, +3d, 'jan 5 17:00'."),
]
EveryOption = Annotated[
    str | None,
    typer.Option("--every", metavar="WHEN", help="Repeats: day, week, 2w, weekday, mon,thu, 1st, last."),
]
PriorityOption = Annotated[
    str | None,
    typer.Option(
        "--priority",
        "-p",
        metavar="WORD",
        help="high, medium, low or none.",
        autocompletion=lambda: ["high", "medium", "low", "none"],
    ),
]
ProjectOption = Annotated[str | None, typer.Option("--project", metavar="NAME")]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(add)


def add(
    context: typer.Context,
    *,
    words: Annotated[list[str], typer.Argument(metavar="TEXT", hidden=True)],
    due: DueOption = None,
    every: EveryOption = None,
    priority: PriorityOption = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="May be given several times.")
    ] = None,
    project: ProjectOption = None,
    description: Annotated[str | None, typer.Option("--description", "-d", metavar="TEXT")] = None,
    literal: Annotated[
        bool, typer.Option("--literal", help="All words are the title: due: and the like mean nothing.")
    ] = False,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The same key with the same content never adds a second task."),
    ] = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    r"""Add a task: `add Pay rent due:1st every:month +home p:high project:flat`.

    A backslash keeps such a word in the title, as in \\due:1st. `add -` adds a task for each line of stdin,
    once all of them are understood; flags hold for each.
    """
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    flags = as_words(due=due, every=every, priority=priority, project=project)
    many = words == [STDIN]
    if many and idempotency_key is not None:
        raise UsageInvalid("--idempotency-key goes with one task only.")
    lines = stdin_lines() if many else [(1, one_line(words))]
    entries = _understood(lines, flags, literal=literal, many=many)
    for _, entry in entries:
        if tags:
            bare = [tag.removeprefix("+") for tag in tags]
            entry.fields["tags"] = list(dict.fromkeys([*bare, *entry.fields.get("tags", ())]))
        if description is not None:
            entry.fields["description"] = description
    with desk(context) as opened:
        if many:
            raise typer.Exit(_add_each(opened, entries, how))
        [(_, entry)] = entries
        content = cast("ContentDict", entry.fields)
        task = opened.create_task(entry.title, content=content, idempotency_key=idempotency_key)
        output.print_task("Added", task, how, opened.client.raw)


def _add_each(opened: "Desk", entries: "list[tuple[int, Entry]]", how: Form) -> int:
    """Add each, report each failure by its line, and return the exit code of the first."""
    code = 0
    added: list[Mapping[str, Any]] = []
    with output.progress(len(entries), streaming=how is not Form.JSON) as progress:
        for number, entry in entries:
            try:
                task = opened.create_task(entry.title, content=cast("ContentDict", entry.fields))
            except TaskctlError as error:
                output.report(error, as_json=how in {Form.JSON, Form.NDJSON}, line=number)
                code = code or error.exit_code
            else:
                added.append(task if isinstance(task, dict) else kept_json(task))
                if how is not Form.JSON:
                    output.print_task("Added", task, how, opened.client.raw)
            progress.advance()
    if how is Form.JSON:
        output.print_json(output.compact(added))
    return code


def one_line(words: list[str]) -> str:
    """The words as one line; what the shell's quotes kept together after a field's colon stays together."""
    if len(words) == 1:
        return words[0]
    return " ".join(
        _quoted(found[1], found[2])
        if (found := re.fullmatch(r"(?i)(due|every|priority|project|pro|p):([^\"'].*\s.*)", word))
        else word
        for word in words
    )


def as_words(**flags: str | None) -> str:
    """Flags as words of quick entry, so that both are read, and contradict each other, in one way."""
    return " ".join(_quoted(name, value) for name, value in flags.items() if value is not None)


def _quoted(name: str, value: str) -> str:
    quote = "'" if '"' in value else '"'
    if quote in value:
        raise UsageInvalid(f"--{name} takes no text with both kinds of quotes.")
    return f"{name}:{quote}{value}{quote}"


def _understood(
    lines: list[tuple[int, str]], flags: str, *, literal: bool, many: bool
) -> "list[tuple[int, Entry]]":
    """What numbered lines say, and flags say of each.

    Raises:
        UsageInvalid: one is not understood; of several, the first.
    """
    from taskctl import entry

    now, zone = clock.here()
    entries = []
    for number, line in lines:
        if not line.strip():
            raise UsageInvalid("There is nothing to add: a task has a title.")
        try:
            found = entry.read(f"{flags} {'title' if literal else line}".lstrip(), now, zone)
        except UsageInvalid as error:
            if not many:
                raise
            raise UsageInvalid(f"Nothing is added; line {number}: {error.detail}") from None
        entries.append((number, entry.Entry(line, found.fields) if literal else found))
    return entries
