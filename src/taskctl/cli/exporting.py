"""`taskctl tasks export`: all tasks to a file in one of the formats of `taskctl.formats`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from taskctl.cli import clock, output
from taskctl.errors import LocalError, UsageInvalid
from taskctl.vocabulary import Status

if TYPE_CHECKING:
    from taskctl.client import TaskDict


class Target(StrEnum):
    """What tasks can be written as."""

    json = "json"
    ndjson = "ndjson"
    csv = "csv"
    todo_txt = "todo.txt"
    ics = "ics"
    taskwarrior = "taskwarrior"


def export(
    context: typer.Context,
    *,
    form: Annotated[
        Target | None,
        typer.Option("--format", "-f", help="By --output's ending, else json.", show_default=False),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout; whole or not at all."),
    ] = None,
    status: Annotated[Status, typer.Option("--status", help="Which tasks.")] = Status.all,
) -> None:
    """Write all tasks in a format of other programs; `import` reads them again."""
    from taskctl.formats import FORMATS, Source, detected

    chosen = str(form or (detected(to, b"") if to else None) or Target.json)
    write = FORMATS[chosen].write
    if write is None:
        raise UsageInvalid(f"{chosen} can only be imported.")
    _, zone = clock.here()
    with (
        output.client(context) as client,
        written(to) as out,
        output.progress(None, streaming=to is None) as progress,
    ):

        def tasks() -> Iterator["TaskDict"]:
            for page in client.pages(status=status):
                yield from page["items"]
                progress.advance(len(page["items"]))

        for text in write(tasks(), Source("", zone)):
            out.write(text.encode("utf-8", "backslashreplace"))
    if to is not None:
        output.note(f"{progress.done} exported to {output.escaped(to)}.")


@contextmanager
def written(to: str | None) -> Iterator[IO[bytes]]:
    """Where an export goes: stdout, or a private file that takes its place when it is whole.

    Raises:
        LocalError: it cannot be written; what stood there is as it was.
    """
    if to is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from tempfile import NamedTemporaryFile

    target = Path(os.path.realpath(to))
    if target.exists() and not target.is_file():
        raise LocalError(f"Cannot write {to}: it is no regular file.")
    try:
        with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as out:
            try:
                yield out
                out.flush()
                os.fsync(out.fileno())
                Path(out.name).replace(target)
            except BaseException:
                Path(out.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise LocalError(f"Cannot write {to}: {(error.strerror or str(error)).lower()}.") from error
