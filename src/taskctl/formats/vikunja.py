"""Vikunja's export of a user's data: `data.json`, or the ZIP file that holds it. Read only.

It is one JSON text on one line, an array of projects with their tasks, so entries are numbered by task.
Priorities 1 and 2 are low and medium, 3 to 5 high. `repeat_after` in whole days and monthly repetition become
an RRULE; comments end the description, whose HTML becomes plain text. What else there is is kept in `extra`,
under `vikunja`.
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from html.parser import HTMLParser
from typing import Any, BinaryIO

from taskctl.dates import rfc3339
from taskctl.formats.record import Entry, Intake, Refused, Source
from taskctl.strict_json import loads

LARGEST = 2**28
"""Bytes of `data.json`, which is held in memory as a whole."""

_NONE = "0001-01-01T00:00:00Z"
_PRIORITIES = {0: "none", 1: "low", 2: "medium", 3: "high", 4: "high", 5: "high"}
_HIGH = 3
_DAY = 86_400
_TAKEN = {"title", "description", "done", "due_date", "labels", "comments"}
_SPARED = {"created_by", "position", "kanban_position", "bucket_id", "subscription", "reactions"}
_FROM_DONE = 2


def read(stream: BinaryIO, _source: Source) -> Iterator[Entry]:
    """The tasks of all projects, numbered from 1."""
    try:
        projects = loads(_text(stream))
        if not isinstance(projects, list) or not all(isinstance(each, dict) for each in projects):
            raise ValueError("it is no array of projects")  # noqa: TRY301 - one reason like the others
    except json.JSONDecodeError as error:
        yield Refused(1, f"not JSON: {error.msg} at character {error.pos + 1}")
        return
    except (ValueError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        yield Refused(1, f"not an export of Vikunja's: {error}")
        return
    intake = Intake()
    number = 0
    while projects:
        project = projects.pop(0)
        projects[:0] = _objects(project.get("child_projects"))
        tasks = project.get("tasks")
        for task in tasks if isinstance(tasks, list) else []:
            number += 1
            yield _entry(intake, number, task, str(project.get("title") or "") or None)


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects of an array; none where it is no array."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _text(stream: BinaryIO) -> str:
    data = stream.read(LARGEST + 1)
    if data.startswith(b"PK\x03\x04"):
        from io import BytesIO  # noqa: PLC0415 - beside zipfile's own use

        with zipfile.ZipFile(BytesIO(data)) as archive, archive.open("data.json") as inside:
            data = inside.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    return data.decode("utf-8-sig")


def _entry(intake: Intake, number: int, task: Any, project: str | None) -> Entry:
    if not isinstance(task, dict):
        return Refused(number, "a task that is not a JSON object")
    warnings: list[str] = []
    kept = {name: value for name, value in task.items() if name not in _TAKEN | _SPARED and not _empty(value)}
    description = _plain(task.get("description"))
    if description != (task.get("description") or None):
        kept["description"] = task["description"]
    for comment in _objects(task.get("comments")):
        description = "\n\n".join(filter(None, (description, _plain(comment.get("comment")))))
    priority = task.get("priority") or 0
    if not isinstance(priority, int) or priority not in _PRIORITIES:
        warnings.append(f"the priority {priority!r:.20} is none of 0 to 5")
        priority = 0
    elif priority <= _HIGH:
        kept.pop("priority", None)
    content = {
        "title": task.get("title"),
        "description": description or None,
        "due_at": _moment(task.get("due_date")),
        "priority": _PRIORITIES[priority],
        "tags": [str(label.get("title")) for label in _objects(task.get("labels"))],
        "project": project,
        "recurrence": _rule(task, warnings),
        "completed": task.get("done"),
        "extra": {"vikunja": kept} if kept else None,
    }
    identity = f"vikunja:{task['id']}:{task.get('created')}" if task.get("id") else None
    return intake.take(number, content, identity, warnings=warnings)


def _empty(value: Any) -> bool:
    return value in (None, "", 0, False, [], {}, _NONE)


def _moment(value: Any) -> str | None:
    if not isinstance(value, str) or value in {"", _NONE}:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return rfc3339(moment) if moment.tzinfo and moment.year > 1 else None
    except (ValueError, OverflowError):
        return value  # refused, with its text


def _rule(task: Mapping[str, Any], warnings: list[str]) -> str | None:
    seconds, mode = task.get("repeat_after") or 0, task.get("repeat_mode") or 0
    if mode == 1:
        return "FREQ=MONTHLY"
    if not seconds:
        return None
    if mode == _FROM_DONE or not isinstance(seconds, int) or seconds % _DAY or seconds < 0:
        how = "from the day when it is done" if mode == _FROM_DONE else f"every {seconds} seconds"
        warnings.append(f"taskctl cannot repeat {how}; it is kept in extra only")
        return None
    days = seconds // _DAY
    number, frequency = (days // 7, "WEEKLY") if days % 7 == 0 else (days, "DAILY")
    return f"FREQ={frequency};INTERVAL={number}" if number > 1 else f"FREQ={frequency}"


class _Text(HTMLParser):
    """Collects the text of HTML, with a line for each block, and links behind their words."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "li":
            checked = {"true": "[x] ", "false": "[ ] "}.get(given.get("data-checked") or "", "")
            self.pieces.append(f"\n- {checked}")
        elif tag in {"p", "br", "h1", "h2", "h3", "h4", "pre", "blockquote", "tr"}:
            # Vikunja's editor puts a paragraph into each item of a list.
            self.pieces.append("" if "".join(self.pieces[-1:]).startswith("\n- ") else "\n")
        elif tag == "a":
            self._links.append(given.get("href") or "")
        elif tag == "mention-user":
            self.pieces.append(f"@{given.get('data-label') or given.get('data-id') or ''}")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._links:
            link = self._links.pop()
            self.pieces += [f" <{link}>"] if link and not "".join(self.pieces[-1:]).endswith(link) else []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def _plain(text: Any) -> str | None:
    """HTML as plain text; what is none as it is."""
    if not isinstance(text, str) or not re.match(r"\s*<[a-z][a-z0-9]*[ >]", text):
        return text or None if isinstance(text, str) else None
    parser = _Text()
    parser.feed(text)
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", "".join(parser.pieces))).strip() or None
