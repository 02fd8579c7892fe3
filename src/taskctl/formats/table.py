"""CSV (RFC 4180) with the wire's members as columns: comma, UTF-8, CRLF, a header.

A spreadsheet runs a cell that starts with `=`, `+`, `-`, `@`, a tab or a carriage return as a formula. Such a
cell is written with an apostrophe in front, and so is one that starts with an apostrophe, which reading takes
off again. Null is an empty cell, an empty text an apostrophe alone; tags are separated by commas; `extra` is
JSON.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from taskctl.dates import rfc3339
from taskctl.formats.lines import lines
from taskctl.formats.native import entry
from taskctl.formats.record import Entry, Intake, Refused, Source
from taskctl.strict_json import loads

COLUMNS = (
    "id",
    "title",
    "description",
    "due_at",
    "priority",
    "tags",
    "project",
    "recurrence",
    "time_zone",
    "completed",
    "completed_at",
    "created_at",
    "updated_at",
    "next_id",
    "deleted_at",
    "version",
    "user_id",
    "extra",
)
_WHOLE_NUMBERS = {"id", "next_id", "version"}
_LOCAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2})?", re.ASCII)
_DOTTED = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})( [0-9]{2}:[0-9]{2}(?::[0-9]{2})?)?", re.ASCII)
_TRUE = {"true", "1", "yes", "wahr", "vrai", "verdadero", "vero"}
_FALSE = {"false", "0", "no", "falsch", "faux", "falso"}
"""As spreadsheets save them, which do it in their own language."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def write(tasks: Iterable[Mapping[str, Any]], _source: Source) -> Iterator[str]:
    """A header and a row a task."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for task in tasks:
        writer.writerow([_cell(task.get(name)) for name in COLUMNS])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    if text := out.getvalue():
        yield text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = ",".join(value) if isinstance(value, list) else str(value)
    return f"'{text}" if not text or text.startswith(_FORMULA) else text


def read(stream: BinaryIO, source: Source) -> Iterator[Entry]:
    """The rows as tasks. Commas, semicolons or tabs between the cells, as the header has them.

    A due time without an offset is one in the person's zone.
    """
    intake = Intake()
    for line, row in rows(stream):
        if isinstance(row, Refused):
            yield row
            continue
        if line == 0 and "title" not in row:
            yield Refused(1, "the header names no column 'title'")
            return
        if line:
            try:
                task = {
                    name: _value(name, cell, source.zone)
                    for name, cell in row.items()
                    if cell or name == "title"
                }
            except ValueError as error:
                yield Refused(line, str(error))
            else:
                yield entry(intake, line, task)


def rows(stream: BinaryIO) -> Iterator[tuple[int, dict[str, str] | Refused]]:
    """The rows by the header's names, in lower case, with the lines where they start.

    The header itself comes first, as line 0. Rows with nothing in them are left out.
    """
    refused: list[Refused] = []
    source = _texts(stream, refused)
    header_line = next(source, "")
    if refused or not header_line:
        yield from ((found.line, found) for found in refused)
        return
    delimiter = max(",;\t", key=header_line.count)
    try:
        header = next(csv.reader([header_line], delimiter=delimiter), [])
    except csv.Error as error:
        why = "its lines end in carriage returns alone" if "\r" in header_line.rstrip("\r\n") else error
        yield 1, Refused(1, f"not CSV: {why}")
        return
    names = [name.strip().lower() for name in header]
    yield 0, dict.fromkeys(names, "")
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    start = 2
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            end = reader.line_num + 1
            upto = f" (up to line {end})" if end > start else ""
            yield start, Refused(start, f"not CSV: {error}{upto}")
        else:
            yield from ((found.line, found) for found in refused)
            if not refused and any(cells):
                yield start, _row(start, names, cells)
        refused.clear()
        start = reader.line_num + 2
    yield from ((found.line, found) for found in refused)


def _row(line: int, names: list[str], cells: list[str]) -> dict[str, str] | Refused:
    if any(cells[len(names) :]):
        return Refused(line, f"{len(cells)} cells, but the header names {len(names)}")
    return dict(zip(names, cells, strict=False))


def _texts(stream: BinaryIO, refused: list[Refused]) -> Iterator[str]:
    """The lines; an empty one for one that is no text, which is put among the refused."""
    for _, line in lines(stream):
        if isinstance(line, Refused):
            refused.append(line)
            yield "\r\n"
        else:
            yield line


def _value(name: str, cell: str, zone: ZoneInfo) -> Any:
    if name in {"priority", "due_at"}:
        return cell.strip().lower() if name == "priority" else _due(cell.strip(), zone)
    if name == "completed":
        word = cell.strip().lower()
        if word not in _TRUE | _FALSE:
            raise ValueError(f"completed is {cell!r:.30}, neither true nor false")
        return word in _TRUE
    if name == "extra":
        try:
            return loads(cell)
        except ValueError as error:
            raise ValueError(f"extra is not JSON: {error}") from None
    if cell == "'" or (cell.startswith("'") and cell[1:].startswith(_FORMULA)):
        cell = cell[1:]
    if name == "tags":
        return [tag for tag in cell.split(",") if tag.strip()]
    if name in _WHOLE_NUMBERS:
        return int(cell) if cell.isascii() and cell.isdecimal() else cell
    return cell


def _due(cell: str, zone: ZoneInfo) -> str:
    """A time without an offset with that of the zone, with dots the day first; all else as it is."""
    if dotted := _DOTTED.fullmatch(cell):
        cell = f"{dotted[3]}-{dotted[2]:0>2}-{dotted[1]:0>2}{dotted[4] or ''}"
    if not _LOCAL.fullmatch(cell):
        return cell
    try:
        return rfc3339(datetime.fromisoformat(cell).replace(tzinfo=zone))
    except (ValueError, OverflowError):
        return cell
