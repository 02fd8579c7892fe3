"""The operator's commands for a bad day: `db backup` and `db restore`."""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from taskctl.cli import output
from taskctl.errors import UsageInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from taskctl.config import ServerSettings
    from taskctl.server.backup import Relation

_MEGABYTE = 1_000_000


def register(db: typer.Typer) -> None:
    """Add the commands to `db`."""
    db.command()(backup)
    db.command()(restore)


def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; `-` is stdout.", show_default=False)],
) -> None:
    """Write the whole database to a file, with pg_dump.

    Servers may go on meanwhile. The file is in pg_dump's custom format, and appears when it is complete.
    """
    from taskctl.server import backup as backups

    if file == "-" and sys.stdout.isatty():
        raise UsageInvalid("A backup is no text for a terminal; name a file, or send stdout to one.")
    with _ended_by_signals(), _progress("Writing", None) as report:
        revision = backups.backup(_settings(), None if file == "-" else Path(file), report=report)
    if file != "-":
        output.note(
            f"Backed up revision {revision} to {output.escaped(file)} ({_size(Path(file).stat().st_size)})."
        )


def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A backup; `-` is stdin.", show_default=False)],
    *,
    clean: Annotated[
        bool, typer.Option("--clean", help="Replace what the database holds; else it must be empty.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Bring the database back to what a backup holds.

    All of it or nothing: what goes wrong leaves the database as it was.
    """
    from taskctl.server import backup as backups
    from taskctl.server import migrations

    def confirm(relations: "Sequence[Relation]") -> None:
        if not yes and sys.stdin.isatty():
            names = output.escaped(", ".join(map(str, relations)))
            typer.confirm(f"Replace all that the database holds ({names})?", abort=True, err=True)

    settings = _settings()
    with _ended_by_signals(), _opened(file) as stream, backups.seekable(stream) as source:
        size = os.fstat(source.fileno()).st_size
        with _progress("Reading", size) as report:
            revision = backups.restore(settings, source, clean=clean, confirm=confirm, report=report)
    state = migrations.compare(revision)
    if state is migrations.State.head:
        output.note(f"Restored revision {revision}.")
    else:
        typer.echo(f"Restored. {migrations.describe(revision, state)}", err=True)


def _settings() -> "ServerSettings":
    from taskctl.config import ServerSettings

    settings = ServerSettings.load()
    settings.check_database()
    return settings


@contextlib.contextmanager
def _opened(file: str) -> "Iterator[IO[bytes]]":
    if file == "-":
        if sys.stdin.isatty():
            raise UsageInvalid("A backup is not typed; name a file, or send one to stdin.")
        yield sys.stdin.buffer
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 - closed below; only opening is explained here
    except OSError as error:
        raise UsageInvalid(f"{file} cannot be read: {error.strerror}.") from error
    with stream:
        yield stream


@contextlib.contextmanager
def _progress(verb: str, total: int | None) -> "Iterator[Callable[[int], None]]":
    """Where stderr is a terminal, show from the first report on how many bytes were written or read."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[size]}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = bar.add_task(verb, total=total, size="")

    def report(done: int) -> None:
        bar.start()
        bar.update(task, completed=done, size=_size(done) + (f" of {_size(total)}" if total else ""))

    try:
        yield report
    finally:
        bar.stop()


def _size(size: int) -> str:
    return f"{size / _MEGABYTE:.1f} MB"


@contextlib.contextmanager
def _ended_by_signals() -> "Iterator[None]":
    """Let SIGTERM and SIGHUP end this as an interrupt does, so that nothing half-done is left behind."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
