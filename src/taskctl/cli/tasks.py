"""`taskctl tasks`: the client's commands, each one or more calls of `taskctl.client`."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskctl.cli import offline, output, watch
from taskctl.cli.offline import desk
from taskctl.cli.output import Form, Json, Ndjson, Quiet
from taskctl.errors import TaskctlError, UsageInvalid
from taskctl.operations import is_new
from taskctl.vocabulary import PAGE_LIMIT_DEFAULT, TASK_ID_MAX, Order, Status

if TYPE_CHECKING:
    from taskctl.client import ChangesDict, Client, ContentDict, TaskDict
    from taskctl.operations import Reference
    from taskctl.outbox import Waiting

app = typer.Typer(
    invoke_without_command=True,
    epilog="In a pipe a task is one line of tab-separated fields: id, status (pending or completed), title, "
    "time of its last change. In a title a tab is written \\t, a line's end \\n, and other control "
    "characters \\xNN.",
)

StatusOption = Annotated[Status, typer.Option("--status", help="Which tasks.")]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help=f"At most so many tasks; {PAGE_LIMIT_DEFAULT}."),
]
AllOption = Annotated[bool, typer.Option("--all", help="No limit.")]
OrderOption = Annotated[Order, typer.Option("--order", help="By id.")]
Id = Annotated[str, typer.Argument(metavar="ID", hidden=True)]
Ids = Annotated[list[str], typer.Argument(metavar="ID", hidden=True)]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", min=1, metavar="N", help="Only if this is the task's version."),
]


@app.callback()
def tasks(
    context: typer.Context,
    *,
    status: StatusOption = Status.all,
    limit: LimitOption = None,
    everything: AllOption = False,
    order: OrderOption = Order.asc,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Add, list and change tasks. Without a command: list them."""
    if context.invoked_subcommand is None:
        list_(
            context,
            status=status,
            limit=limit,
            everything=everything,
            order=order,
            as_json=as_json,
            ndjson=ndjson,
            quiet=quiet,
        )
    elif any((status is not Status.all, limit, everything, order is not Order.asc, as_json, ndjson, quiet)):
        raise UsageInvalid(
            f"Options go after the command, as in `taskctl tasks {context.invoked_subcommand} --json`."
        )


# Extra words are let through to here because the reason is nearly always the same: a title without quotes.
@app.command(context_settings={"allow_extra_args": True})
def add(
    context: typer.Context,
    *,
    title: Annotated[str, typer.Argument(metavar="TITLE", hidden=True)],
    description: Annotated[str | None, typer.Option("--description", "-d", metavar="TEXT")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The same key with the same content never adds a second task."),
    ] = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Add a task."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    if context.args:
        raise UsageInvalid('A title of several words goes in quotes, as in `taskctl tasks add "Buy milk"`.')
    content: ContentDict = {} if description is None else {"description": description}
    with desk(context) as opened:
        task = opened.create_task(title, content=content, idempotency_key=idempotency_key)
        _print_task("Added", task, how, opened.client.raw)


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    context: typer.Context,
    *,
    status: StatusOption = Status.all,
    limit: LimitOption = None,
    everything: AllOption = False,
    order: OrderOption = Order.asc,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """List tasks (also: ls)."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    if everything and limit is not None:
        raise UsageInvalid("--limit and --all exclude each other.")
    total = None if everything else limit or PAGE_LIMIT_DEFAULT
    shown, more = 0, False

    def pages(client: "Client") -> Iterator[list["TaskDict"]]:
        nonlocal shown, more
        streaming = how not in {Form.TERMINAL, Form.JSON}
        with output.progress(total, streaming=streaming) as progress:  # gone before a table is printed
            for page in client.pages(status=status, order=order, total=total):
                shown, more = shown + len(page["items"]), page["next_cursor"] is not None
                progress.advance(len(page["items"]))
                yield page["items"]

    with desk(context) as opened:
        try:
            output.print_tasks(pages(opened.client), how)
        except TaskctlError:
            if how not in {Form.JSON, Form.NDJSON}:  # there the error is all that stderr has
                offline.tell_waiting(opened)
            raise
        offline.tell_waiting(opened)
    if more and how is Form.TERMINAL:
        output.note(f"{shown} shown; --all for all of them.")


@app.command()
def show(
    context: typer.Context,
    *,
    task_id: Id,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Show one task, with its description."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    reference = _reference(task_id)
    with desk(context) as opened:
        task = opened.client.read_task(opened.resolved(reference))
        if how is not Form.TERMINAL:
            _print_task("", task, how, opened.client.raw)
            return
    completed_at = task["completed_at"]
    fields = [
        ("Task", str(task["id"])),
        ("Title", output.escaped(task["title"])),
        ("Completed", output.local_time(completed_at) if completed_at else "no"),
        ("Created", output.local_time(task["created_at"])),
        ("Changed", f"{output.local_time(task['updated_at'])}  (version {task['version']})"),
    ]
    output.print_fields(fields, how)
    if task["description"]:
        typer.echo()
        for line in task["description"].splitlines():
            typer.echo(output.escaped(line.expandtabs()))


@app.command()
def edit(
    context: typer.Context,
    *,
    task_id: Id,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT")] = None,
    description: Annotated[str | None, typer.Option("--description", "-d", metavar="TEXT")] = None,
    clear_description: Annotated[
        bool, typer.Option("--clear-description", help="Leave it without a description.")
    ] = False,
    if_version: IfVersion = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Change a task's title or description."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    reference = _reference(task_id)
    if clear_description and description is not None:
        raise UsageInvalid("--description and --clear-description exclude each other.")
    changes: ChangesDict = {}
    if title is not None:
        changes["title"] = title
    if description is not None or clear_description:
        changes["description"] = description
    if not changes:
        raise UsageInvalid("Nothing to change: give --title, --description or --clear-description.")
    with desk(context) as opened:
        task = opened.edit_task(reference, changes, if_version=if_version)
        _print_task("Changed", task, how, opened.client.raw)


@app.command()
@app.command("complete", hidden=True)
def done(
    context: typer.Context,
    *,
    ids: Ids,
    if_version: IfVersion = None,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Complete tasks (also: complete). With --json: the task, or an array if several ids were given."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    _complete(context, ids, if_version, how, completed=True)


@app.command()
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
    _complete(context, ids, if_version, how, completed=False)


@app.command()
@app.command("delete", hidden=True)
def rm(
    context: typer.Context,
    *,
    ids: Ids,
    if_version: IfVersion = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    ndjson: Ndjson = False,
    quiet: Quiet = False,
) -> None:
    """Delete tasks (also: delete). Asks in a terminal. With --json: {"deleted": [ID, ...]}."""
    how = output.form(as_json=as_json, ndjson=ndjson, quiet=quiet)
    references = _references(ids, if_version)
    if not yes and sys.stdin.isatty() and sys.stderr.isatty():
        what = "task" if len(references) == 1 else f"{len(references)} tasks:"
        if not typer.confirm(f"Delete {what} {', '.join(map(str, references))}?", err=True):
            typer.echo("Nothing is deleted.", err=True)
            raise typer.Exit(1)
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

        code = _each(references, delete, how)
    if how is Form.JSON:
        output.print_json(output.compact({"deleted": deleted, **({"waiting": kept} if kept else {})}))
    raise typer.Exit(code)


app.command("watch")(watch.watch)


def _complete(
    context: typer.Context, ids: list[str], if_version: int | None, how: Form, *, completed: bool
) -> None:
    references = _references(ids, if_version)
    verb = "Done" if completed else "Reopened"
    together = how is Form.JSON and len(references) > 1
    gathered: list[Mapping[str, Any]] = []
    with desk(context) as opened:

        def complete(reference: "Reference") -> None:
            task = opened.complete_task(reference, completed=completed, if_version=if_version)
            if together:
                gathered.append(task if isinstance(task, dict) else offline.kept_json(task))
            else:
                _print_task(verb, task, how, opened.client.raw)

        code = _each(references, complete, how)
    if together:
        output.print_json(output.compact(gathered))
    raise typer.Exit(code)


def _each(references: "list[Reference]", do: "Callable[[Reference], None]", how: Form) -> int:
    """Try each, report each failure, and return the exit code of the first; a single one just raises."""
    if len(references) == 1:
        do(references[0])
        return 0
    code = 0
    with output.progress(len(references), streaming=how is not Form.JSON) as progress:
        for reference in references:
            try:
                do(reference)
            except TaskctlError as error:
                output.report(error, as_json=how in {Form.JSON, Form.NDJSON}, task_id=reference)
                code = code or error.exit_code
            progress.advance()
    return code


def _print_task(verb: str, task: "TaskDict | Waiting", how: Form, raw: bytes) -> None:
    """Print one task, as JSON what the server sent; or the change that was kept instead."""
    if not isinstance(task, dict):
        offline.print_kept(task, how)
    elif how is Form.JSON:
        output.print_json(raw)
    elif how is Form.TERMINAL:
        typer.echo(f"{verb} {task['id']}  {output.escaped(task['title'])}")
    else:
        output.print_tasks([[task]], how)


def _reference(text: str) -> "Reference":
    if is_new(text):
        return text
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(TASK_ID_MAX)) else 0
    if not 1 <= number <= TASK_ID_MAX:
        raise UsageInvalid(f"{text!r} is no task's id: ids are whole numbers from 1.")
    return number


def _references(texts: list[str], if_version: int | None) -> "list[Reference]":
    references = [_reference(text) for text in texts]
    if if_version is not None and len(references) > 1:
        raise UsageInvalid("--if-version goes with one id only.")
    return references


offline.register(app)
