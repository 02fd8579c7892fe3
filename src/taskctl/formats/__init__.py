"""The formats that tasks are exported to and imported from: conversion only, no HTTP and no command line.

Each has a `read`, from a stream of bytes to entries, and, where tasks can be written in it, a `write`, from
the wire's tasks to text. Both go task by task. Each format's module says what its members become.

- `record`, `fitting`: an entry, its key, and how what a file holds is made to fit the API's bounds.
- `carrying`: how a format takes along what it has no place for.
- `lines`, `elements`: a file's lines, and the elements of a JSON array, as they are read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, cast

from taskctl.formats.record import Entry, Record, Refused, Source

__all__ = ["FORMATS", "Entry", "Format", "Record", "Refused", "Source", "detected"]

Reader = Callable[[BinaryIO, Source], Iterator[Entry]]
Writer = Callable[[Iterable[Mapping[str, Any]], Source], Iterator[str]]


@dataclass(frozen=True)
class Format:
    """A format: where its functions are, loaded when they are asked for, and what its files are called."""

    module: str
    reader: str
    writer: str | None
    suffix: str

    @property
    def read(self) -> Reader:
        """Read a file, entry by entry; nothing is raised but what the stream raises."""
        return cast("Reader", self._function(self.reader))

    @property
    def write(self) -> Writer | None:
        """Write tasks of the wire as text, task by task; None where the format can only be read."""
        return None if self.writer is None else cast("Writer", self._function(self.writer))

    def _function(self, name: str) -> Any:
        return getattr(import_module(f"taskctl.formats.{self.module}"), name)


FORMATS: Mapping[str, Format] = {
    "json": Format("native", "read_array", "write_array", ".json"),
    "ndjson": Format("native", "read_lines", "write_lines", ".ndjson"),
    "csv": Format("table", "read", "write", ".csv"),
    "todo.txt": Format("todotxt", "read", "write", ".txt"),
    "ics": Format("ics", "read", "write", ".ics"),
    "taskwarrior": Format("taskwarrior", "read", "write", ".json"),
    "todoist": Format("todoist", "read", None, ".csv"),
    "vikunja": Format("vikunja", "read", None, ".json"),
}
"""By the names that the command line knows."""

_SUFFIXES = {".ndjson": "ndjson", ".jsonl": "ndjson", ".ics": "ics", ".txt": "todo.txt", ".zip": "vikunja"}


def detected(name: str, head: bytes) -> str | None:
    """The format of a file by its name and how it begins (some KiB are enough); None where neither tells."""
    lower = name.lower()
    for suffix, found in _SUFFIXES.items():
        if lower.endswith(suffix):
            return found
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if head.startswith(b"PK\x03\x04"):
        return "vikunja"
    if text[:15].upper() == "BEGIN:VCALENDAR":
        return "ics"
    if text.startswith(("[", "{")):
        return _json(text)
    columns = {each.strip(' "').lower() for each in re.split("[,;\t]", text.split("\n", 1)[0].strip())}
    if {"type", "content"} <= columns:
        return "todoist"
    return "csv" if lower.endswith(".csv") or ("title" in columns and len(columns) > 1) else None


def _json(text: str) -> str:
    if re.search(r'"(is_archived|parent_project_id|hex_color|background_file_id)"\s*:', text):
        return "vikunja"
    if (
        re.search(r'"(uuid|entry)"\s*:', text)
        and '"description"' in text
        and not re.search(r'"title"\s*:', text)
    ):
        return "taskwarrior"
    return "json" if text.startswith("[") else "ndjson"
