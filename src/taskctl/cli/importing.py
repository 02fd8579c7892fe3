"""`taskctl tasks import`: tasks from files in the formats of `taskctl.formats`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from http import HTTPStatus
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from taskctl import errors
from taskctl.cli import clock, output
from taskctl.cli.output import Form, Json
from taskctl.errors import (
    BodyTooLarge,
    BulkRefused,
    IdempotencyKeyReused,
    TaskctlError,
    UsageInvalid,
    ValidationFailed,
    by_code,
)
from taskctl.vocabulary import BULK_MAX

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from taskctl.client import Client
    from taskctl.formats import Record

CHUNK_BYTES = 200_000
"""Bytes of JSON in one bulk request at most, which leaves room below the server's 256 KiB."""

_HEAD = 2**16


class Origin(StrEnum):
    """What tasks can be read from."""

    json = "json"
    ndjson = "ndjson"
    csv = "csv"
    todo_txt = "todo.txt"
    ics = "ics"
    taskwarrior = "taskwarrior"
    todoist = "todoist"
    vikunja = "vikunja"


def import_(
    context: typer.Context,
    *,
    files: Annotated[list[str], typer.Argument(metavar="FILE", hidden=True)],
    form: Annotated[
        Origin | None,
        typer.Option("--format", "-f", help="By the file's name and content.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be imported; send nothing.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Import nothing if anything in the files is refused.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add the tasks of files (- for stdin). What was imported before is not imported again."""
    how = output.form(as_json=as_json, ndjson=False, quiet=False)
    report = _Report()
    with ExitStack() as stack:
        sources = [stack.enter_context(_opened(name, form, again=strict)) for name in dict.fromkeys(files)]
        if strict:
            for source in sources:
                for _ in source.records(report):
                    pass
                source.rewind()
            if report.refused:
                raise UsageInvalid(f"Nothing is imported, as {report.refused} of the entries are refused.")
            report = _Report()
        if dry_run:
            _print_records(sources, report, how)
        else:
            with output.progress(None, streaming=False) as progress, output.client(context) as client:
                _send_all(client, sources, report, progress, strict=strict)
    report.print_summary(how, dry_run=dry_run)
    raise typer.Exit(report.exit_code)


class _File:
    """A file to import from."""

    def __init__(self, name: str, stream: BinaryIO, form: Origin | None, zone: "ZoneInfo") -> None:
        from taskctl.formats import FORMATS, Source, detected

        self.name = name
        self._stream = stream
        self._source = Source("" if name == "-" else Path(name).name, zone)
        head = stream.peek(_HEAD) if isinstance(stream, BufferedReader) else b""
        chosen = form or detected(self._source.name, head)
        if chosen is None:
            raise UsageInvalid(f"The format of {name} cannot be told; say it with --format.")
        self._format = FORMATS[str(chosen)]

    def records(self, report: "_Report") -> Iterator["Record"]:
        """The tasks of the file; what is refused, and what has changed, is told."""
        from taskctl.formats import Record

        for entry in self._format.read(self._stream, self._source):
            if isinstance(entry, Record):
                for warning in entry.warnings:
                    report.warn(self.name, entry.line, warning)
                yield entry
            else:
                report.refuse(self.name, entry.line, entry.reason)

    def rewind(self) -> None:
        """Begin again."""
        self._stream.seek(0)


class _Report:
    """What has become of the entries of all files: counted, and told on stderr as far as it is not good."""

    def __init__(self) -> None:
        self.imported = self.existing = self.differing = self.refused = 0
        self.exit_code = 0

    def warn(self, name: str, line: int, text: str) -> None:
        """Tell of something that was changed."""
        self._tell(name, line, text)

    def refuse(self, name: str, line: int, reason: str, exit_code: int = ValidationFailed.exit_code) -> None:
        """Count an entry as refused, and tell why."""
        self.refused += 1
        self.exit_code = self.exit_code or exit_code
        self._tell(name, line, f"refused: {reason}")

    def _tell(self, name: str, line: int, text: str) -> None:
        typer.echo(output.escaped(f"{name}:{line}: {text}"), err=True)

    def take(self, name: str, line: int, result: Mapping[str, Any]) -> None:
        """Count what the server has made of an entry."""
        problem = result.get("problem") or {}
        if result["status"] == HTTPStatus.CREATED:
            self.imported += not result.get("replayed")
            self.existing += bool(result.get("replayed"))
        elif problem.get("code") == IdempotencyKeyReused.code:
            self.differing += 1
            self._tell(name, line, "imported before, and not the same any more; left as it is")
        else:
            known = by_code(str(problem.get("code")))
            reason = errors.sentence(str(problem.get("detail")), problem.get("errors"))
            self.refuse(name, line, reason, known.exit_code if known else 1)

    def explain(self, name: str, line: int, result: Mapping[str, Any]) -> None:
        """Tell why an entry kept the others of its request from being imported."""
        if problem := result.get("problem"):
            reason = errors.sentence(str(problem.get("detail")), problem.get("errors"))
            self.refuse(name, line, reason)

    def print_summary(self, how: Form, *, dry_run: bool) -> None:
        """Print how many entries there were of each kind."""
        counts = {"imported": self.imported, "existing": self.existing}
        counts |= {"differing": self.differing, "refused": self.refused}
        if dry_run:
            output.note(f"{self.imported} would be imported; {self.refused} refused.")
        elif how is Form.JSON:
            output.print_json(output.compact(counts))
        elif how is Form.TERMINAL:
            words = {
                "existing": "were there already",
                "differing": "were there, with other content",
                "refused": "refused",
            }
            rest = [f"{counts[name]} {text}" for name, text in words.items() if counts[name]]
            typer.echo("; ".join([f"{counts['imported']} imported", *rest]) + ".")
        else:
            output.print_fields([(name, str(count)) for name, count in counts.items()], how)


def _send_all(
    client: "Client", files: Sequence[_File], report: _Report, progress: output.Progress, *, strict: bool
) -> None:
    """Create the tasks of the files, some hundred in a request.

    Raises:
        TaskctlError: the server cannot be reached, or refuses everything; what was imported stays.
    """
    here = _Here(client)
    try:
        for chunk in _chunks(files, report, here):
            _send(client, chunk, report, strict=strict)
            progress.advance(len(chunk))
    except (TaskctlError, KeyboardInterrupt):
        if report.imported:
            typer.echo(
                f"taskctl: {report.imported} tasks were imported before this. Run the same again to go on; "
                "none is imported twice.",
                err=True,
            )
        raise


Numbered = tuple[str, "Record"]
"""A record with the name of its file."""


def _chunks(files: Sequence[_File], report: _Report, here: "_Here") -> Iterator[list[Numbered]]:
    """The records, as many together as one request takes."""
    chunk: list[Numbered] = []
    size = 0
    for file in files:
        for record in file.records(report):
            if here.has(record):
                report.existing += 1
                continue
            bytes_ = len(output.compact(record.content)) + 400
            if chunk and (size + bytes_ > CHUNK_BYTES or len(chunk) == BULK_MAX):
                yield chunk
                chunk, size = [], 0
            chunk.append((file.name, record))
            size += bytes_
    if chunk:
        yield chunk


def _send(client: "Client", chunk: Sequence[Numbered], report: _Report, *, strict: bool) -> None:
    operations = [{"op": "create", "task": record.content, "key": record.key} for _, record in chunk]
    try:
        results = client.bulk(operations, atomic=strict)
    except BulkRefused as error:
        for (name, record), result in zip(chunk, error.members.get("results") or [], strict=False):
            report.explain(name, record.line, result)
        raise
    except BodyTooLarge:
        if len(chunk) == 1:
            report.refuse(chunk[0][0], chunk[0][1].line, "larger than the server takes")
            return
        for half in (chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]):
            _send(client, half, report, strict=strict)
        return
    for (name, record), result in zip(chunk, results, strict=True):
        report.take(name, record.line, result)


class _Here:
    """Which tasks of this account a file speaks of, so that importing one's own export adds no copies."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._user: str | None = None
        self._tasks: set[tuple[int, str]] | None = None

    def has(self, record: "Record") -> bool:
        """Whether the task that the record was is still there."""
        from taskctl.formats.record import own

        origin = own(record.content["extra"], "taskctl")
        if "user_id" not in origin or "id" not in origin:
            return False
        if self._user is None:
            self._user = str(self._client.me()["user_id"])
        if origin["user_id"] != self._user:
            return False
        if self._tasks is None:
            pages = self._client.pages()
            self._tasks = {(task["id"], task["created_at"]) for page in pages for task in page["items"]}
        return (origin["id"], origin.get("created_at")) in self._tasks


def _print_records(files: Sequence[_File], report: _Report, how: Form) -> None:
    """Print what would be imported: a line for each, or an array."""
    before = b"["
    for file in files:
        for record in file.records(report):
            report.imported += 1
            content = record.content
            if how is Form.JSON:
                output.print_json(
                    before + output.compact({"file": file.name, "line": record.line, **content})
                )
                before = b","
            else:
                status = "completed" if content["completed"] else "pending"
                cells = (f"{file.name}:{record.line}", status, content["title"], content["due_at"] or "")
                typer.echo("\t".join(map(output.escaped, cells)))
    if how is Form.JSON:
        output.print_json(b"[]" if before == b"[" else b"]")


@contextmanager
def _opened(name: str, form: Origin | None, *, again: bool) -> Iterator[_File]:
    """A file to import from; `again` makes one of stdin that can be read twice."""
    _, zone = clock.here()
    if name != "-":
        try:
            with Path(name).open("rb", buffering=_HEAD) as stream:
                yield _File(name, stream, form, zone)
        except OSError as error:
            raise UsageInvalid(f"{name} cannot be read: {(error.strerror or str(error)).lower()}.") from error
        return
    if not again:
        yield _File(name, sys.stdin.buffer, form, zone)
        return
    from shutil import copyfileobj
    from tempfile import TemporaryFile

    with TemporaryFile() as kept:
        copyfileobj(sys.stdin.buffer, kept)
        kept.seek(0)
        yield _File(name, BufferedReader(kept), form, zone)
