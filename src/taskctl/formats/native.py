"""taskctl's own tasks, as the API answers them: in a JSON array, or one JSON object a line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from taskctl.formats.elements import elements
from taskctl.formats.lines import lines
from taskctl.formats.record import Entry, Intake, Refused, Source, content_of, identity_here, identity_of
from taskctl.strict_json import loads


def read_array(stream: BinaryIO, _source: Source) -> Iterator[Entry]:
    """The tasks of a JSON array, or of a sequence of objects."""
    intake = Intake()
    for line, task in elements(stream):
        yield task if isinstance(task, Refused) else entry(intake, line, task)


def read_lines(stream: BinaryIO, _source: Source) -> Iterator[Entry]:
    """The tasks of a file with one JSON object a line."""
    intake = Intake()
    for number, line in lines(stream):
        if isinstance(line, Refused):
            yield line
        elif line.strip():
            try:
                task = loads(line)
            except json.JSONDecodeError as error:
                yield Refused(number, f"not JSON: {error.msg} at character {error.pos + 1}")
            except ValueError as error:
                yield Refused(number, f"not JSON: {error}")
            else:
                whole = isinstance(task, dict)
                yield entry(intake, number, task) if whole else Refused(number, "not a JSON object")


def entry(intake: Intake, line: int, task: Mapping[str, Any]) -> Entry:
    """A task of the wire as an entry."""
    content = content_of(task)
    warnings = ["it was in the trash"] if task.get("deleted_at") else []
    return intake.take(line, content, identity_of(content), warnings=warnings, otherwise=identity_here(task))


def write_array(tasks: Iterable[Mapping[str, Any]], _source: Source) -> Iterator[str]:
    """A JSON array, an object a line."""
    before = "[\n"
    for task in tasks:
        yield before + _compact(task)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def write_lines(tasks: Iterable[Mapping[str, Any]], _source: Source) -> Iterator[str]:
    """One JSON object a line."""
    for task in tasks:
        yield _compact(task) + "\n"


def _compact(task: Mapping[str, Any]) -> str:
    return json.dumps(task, ensure_ascii=False, separators=(",", ":"))
