"""What commands print: a table for a person, rows for a pipe, JSON or ids where asked for.

Data goes to stdout, everything else to stderr. Text from elsewhere is never sent to a terminal raw.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from taskctl.errors import TaskctlError, UsageInvalid

if TYPE_CHECKING:
    from taskctl.cli.columns import Column, Group
    from taskctl.client import Client, TaskDict
    from taskctl.contexts import ClientSettings, Flags
    from taskctl.outbox import Waiting
    from taskctl.transport import Try

Json = Annotated[bool, typer.Option("--json", help="Print JSON; an array for a list.")]
Ndjson = Annotated[bool, typer.Option("--ndjson", help="Print one JSON object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids or names only.")]


class Form(Enum):
    """How a command prints its data."""

    TERMINAL = auto()
    ROWS = auto()
    JSON = auto()
    NDJSON = auto()
    IDS = auto()


def form(*, as_json: bool, ndjson: bool, quiet: bool) -> Form:
    """The form that the options ask for; without one, what suits where stdout goes.

    Raises:
        UsageInvalid: two forms were asked for.
    """
    if as_json + ndjson + quiet > 1:
        raise UsageInvalid("--json, --ndjson and --quiet exclude each other.")
    if as_json:
        return Form.JSON
    if ndjson:
        return Form.NDJSON
    if quiet:
        return Form.IDS
    return Form.TERMINAL if sys.stdout.isatty() else Form.ROWS


# C0, DEL, C1; marks, embeddings, overrides and isolates that reorder a line; line and paragraph separators.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# Those that JSON allows raw, which it does inside strings only.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\x1b": r"\x1b"}


def escaped(text: str) -> str:
    """Text as one line that moves no cursor, changes no colour and reorders nothing."""

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        code = ord(character)
        return _SHORT.get(character) or (f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}")  # noqa: PLR2004 - a byte

    return _UNSAFE.sub(escape, text)


def compact(value: Any) -> bytes:
    """A JSON text in UTF-8, on one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # What has no UTF-8 is a lone surrogate; Python's escape for it is JSON's.
    return text.encode("utf-8", "backslashreplace")


def print_json(text: bytes) -> None:
    """Write a JSON text and a line's end, in UTF-8 whatever the locale; what steers a terminal is escaped."""
    # Byte for byte but for that, even where a proxy's answer is not UTF-8.
    raw = text.decode("utf-8", "surrogateescape")
    safe = _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", raw)
    sys.stdout.flush()
    sys.stdout.buffer.write(safe.encode("utf-8", "surrogateescape").rstrip() + b"\n")
    sys.stdout.flush()


def print_tasks(
    pages: Iterable[Sequence["TaskDict"]],
    how: Form,
    chosen: Sequence["Column"] = (),
    group: "Group | None" = None,
) -> None:
    """Print a list, page by page where its form allows; an array is complete or not there at all.

    `chosen` are the columns of a table or of rows; `group` puts a table's tasks under headings.
    """
    if how is Form.JSON:
        print_json(compact([task for page in pages for task in page]))
        return
    if how is Form.TERMINAL:
        from taskctl.cli import table

        table.print_table([task for page in pages for task in page], chosen, group)
        return
    for page in pages:
        if page and how is Form.NDJSON:
            print_json(b"\n".join(map(compact, page)))
        elif page and how is Form.IDS:
            typer.echo("\n".join(str(task["id"]) for task in page))
        elif page:
            from taskctl.cli.columns import row

            typer.echo("\n".join(row(task, chosen) for task in page))


def print_task(verb: str, task: "TaskDict | Waiting", how: Form, raw: bytes) -> None:
    """Print one task, or the change that was kept instead; as JSON, what the server sent.

    A terminal is told what has been done, and to what.
    """
    if not isinstance(task, dict):
        from taskctl.cli import offline

        offline.print_kept(task, how)
    elif how is Form.JSON:
        print_json(raw)
    elif how is Form.TERMINAL:
        from taskctl.cli.columns import sentence

        typer.echo(f"{verb} {sentence(task)}")
    else:
        print_tasks([[task]], how)


def local_time(moment: str) -> str:
    """An RFC 3339 time in this machine's time zone, to the minute; anything else as it is."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return escaped(moment)


def print_fields(fields: Sequence[tuple[str, str]], how: Form) -> None:
    """Print names and values, aligned in a terminal and tab-separated in a pipe."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        typer.echo(f"{name:<{width}}  {value}" if how is Form.TERMINAL else f"{name}\t{value}")


def report(
    error: TaskctlError, *, as_json: bool, task_id: int | str | None = None, line: int | None = None
) -> None:
    """Print an error on stderr: one line, or one JSON object; with the task or the line that it is about."""
    about = {name: number for name, number in (("id", task_id), ("line", line)) if number is not None}
    if as_json:
        problem = {"code": error.code, "detail": error.detail, "request_id": error.request_id}
        data = {**error.members, **about, **problem, "status": error.status or None}
        # ASCII, because stderr has the locale's encoding.
        typer.echo(json.dumps(data), err=True)
        return
    subject = "".join(
        f"line {number}: " if name == "line" else f"{number}: " for name, number in about.items()
    )
    request = f", request {error.request_id}" if error.request_id else ""
    sentence = re.sub(r"(^|; )body\.", r"\1", error.sentence)  # a person has sent no body
    typer.echo(f"taskctl: {subject}{escaped(f'{sentence} ({error.code}{request})')}", err=True)


def client(context: typer.Context) -> "Client":
    """A client for whoever the options before the command, the environment and the contexts say.

    Raises:
        SettingsInvalid, KeyringFailed: as `contexts.resolve`.
        NotLoggedIn: there is no token for that server.
    """
    from taskctl.contexts import resolve

    flags: Flags = context.find_root().obj
    settings = resolve(flags)
    settings.require_token()
    return connect(settings, debug=flags.debug)


def connect(settings: "ClientSettings", *, debug: bool) -> "Client":
    """A client that shows its repeats in a terminal and, with `debug`, each request."""
    from taskctl.client import Client

    last = ""

    def show_retry(number: int, reason: str, wait: float) -> None:
        nonlocal last
        said, last = "" if reason == last else f"{escaped(reason)} ", reason
        if said or wait >= 1:
            note(f"taskctl: {said}Try {number} in {wait:.1f} s.")

    renew: Callable[[bool], str] | None = None
    if (session := settings.session) is not None:

        def renew(early: bool) -> str:
            from taskctl import better_auth

            on_try = show_try if debug else None
            return better_auth.renew(settings, session, once=early, on_try=on_try)

    return Client(
        settings.server,
        settings.token,
        renew=renew,
        timeout=settings.timeout,
        allow_http=settings.allow_http,
        on_retry=show_retry,
        on_try=show_try if debug else None,
    )


def show_try(done: "Try") -> None:
    """Show one try of a request on stderr, for `--debug`."""
    milliseconds = done.seconds * 1000
    line = f"taskctl: {done.method} {done.url}: {done.outcome}, {milliseconds:.0f} ms, try {done.number}"
    typer.echo(escaped(line), err=True)


def note(text: str) -> None:
    """Tell a person something on stderr; a pipe or a file is not told."""
    if not sys.stderr.isatty():
        return
    if Progress.drawn is not None:
        Progress.drawn.console.print(text)
    else:
        typer.echo(text, err=True)


class Progress:
    """How many tasks are done, of how many if that is known."""

    drawn: ClassVar[Any] = None
    """The bar that is in the terminal now, for what is written above it."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.done = 0
        self.bar: Any = None

    def advance(self, by: int = 1) -> None:
        """So many more are done."""
        self.done += by
        if self.bar is not None:
            self.bar.update(0, completed=self.done)

    def show(self) -> None:
        """Start to draw."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            BarColumn(),
            TextColumn("{task.completed:.0f} tasks"),
            console=Console(stderr=True, highlight=False, markup=False, emoji=False),
            transient=True,
            redirect_stdout=False,
        )
        bar.add_task("", total=self.total, completed=self.done)
        bar.start()
        self.bar = Progress.drawn = bar


@contextmanager
def progress(total: int | None, *, streaming: bool) -> Iterator[Progress]:
    """Show a bar on stderr after a second, where that is a terminal.

    None where data is `streaming` to a terminal: it would run through the bar, and is progress itself.
    """
    state = Progress(total)
    if not sys.stderr.isatty() or (streaming and sys.stdout.isatty()):
        yield state
        return
    from threading import Timer

    timer = Timer(1.0, state.show)
    timer.daemon = True
    timer.start()
    try:
        yield state
    finally:
        timer.cancel()
        timer.join()
        if state.bar is not None:
            Progress.drawn = None
            state.bar.stop()
