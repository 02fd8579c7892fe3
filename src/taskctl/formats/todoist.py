"""Todoist's CSV, as "Export as a template" and its backups have it: read only.

A file is a project, named as the file is. Priority 1 is the highest and 4 none, as Todoist's help has it; an
empty cell is none. A section, the place of a subtask, who it is from and for, duration and deadline are kept
in `extra`, under `todoist`; comments end the description. Dates are understood in ISO 8601, in the English of
the export (`Nov 30 2026`), and in `every … starting DATE`; without a start, `every monday` begins with the
next one from today on, with a warning. `tomorrow` says no date by itself, so it is kept in `extra` too.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, time, timedelta
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from taskctl.dates import rfc3339, zone_of
from taskctl.formats.record import Entry, Intake, Refused, Source
from taskctl.formats.repeating import FREQUENCIES
from taskctl.formats.table import rows
from taskctl.recurrence import WEEKDAYS
from taskctl.vocabulary import TITLE_MAX

_PRIORITIES = {"1": "high", "2": "medium", "3": "low", "4": "none", "": "none"}
_KEPT = (
    "author",
    "responsible",
    "duration",
    "duration_unit",
    "deadline",
    "deadline_lang",
    "is_collapsed",
)
_LABEL = re.compile(r"(?<!\S)@(\S+)")
_WEEKDAY = "(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?"
_EVERY = re.compile(
    r"(?i)every!? (?:(?P<number>[1-9][0-9]{0,2}|other) )?"
    rf"(?P<unit>days?|weeks?|months?|years?|weekdays?|{_WEEKDAY}(?:(?:, ?| and | & ){_WEEKDAY})*)"
    r"(?: (?:at )?(?P<at>[0-9][0-9:apm ]*?))?(?: (?:starting|from) (?P<start>.+))?"
)
_FORMATS = ("%b %d %Y", "%d %b %Y", "%B %d %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")
_TIMES = ("%H:%M", "%I%p", "%I:%M%p", "%I %p", "%I:%M %p")


def read(stream: BinaryIO, source: Source) -> Iterator[Entry]:
    """The tasks of a project."""
    intake = Intake()
    project = re.sub(r"( \[[0-9]+\])?\.csv$", "", source.name, flags=re.IGNORECASE) or None
    section: str | None = None
    above: list[str] = []
    for line, row, notes in _with_notes(_checked(rows(stream))):
        if isinstance(row, Refused):
            yield row
        elif row["type"].strip().lower() == "section":
            section = row["content"].strip() or None
        else:
            level = int(row["indent"]) if row.get("indent", "").strip() in {"2", "3", "4", "5"} else 1
            content, warnings = _content(row, source.zone)
            kept = content["extra"]["todoist"]
            kept |= {"section": section} if section else {}
            kept |= {"indent": level, "parent": above[: level - 1][-1]} if level > 1 and above else {}
            above = [*above[: level - 1], content["title"][:TITLE_MAX]]
            described = "\n\n".join(filter(None, (content["description"], *notes))) or None
            extra = content["extra"] if kept else None
            whole = {**content, "description": described, "project": project, "extra": extra}
            as_written = {"project": project, **row, "notes": notes}
            yield intake.take(line, whole, None, warnings=warnings, instead=as_written)


_Rows = Iterable[tuple[int, dict[str, str] | Refused]]


def _checked(found: _Rows) -> _Rows:
    """The rows without the header; that alone, refused, where it is not Todoist's."""
    for line, row in found:
        if line:
            yield line, row
        elif not {"type", "content"} <= dict(row if isinstance(row, dict) else {}).keys():
            yield 1, Refused(1, "the header names no columns TYPE and CONTENT")
            return


def _with_notes(
    found: _Rows,
) -> Iterator[tuple[int, dict[str, str] | Refused, list[str]]]:
    """The tasks with the comments below them, the sections, and what is refused."""
    task: tuple[int, dict[str, str], list[str]] | None = None
    for line, row in found:
        kind = "" if isinstance(row, Refused) else row.get("type", "").strip().lower()
        if kind == "note" and task is not None and isinstance(row, dict):
            task[2].append(row["content"])
            continue
        if task is not None:
            yield task
            task = None
        if isinstance(row, Refused):
            yield line, row, []
        elif kind == "task":
            task = line, row, []
        elif kind == "section":
            yield line, row, []
        elif kind != "meta":
            why = (
                "a comment with no task above it"
                if kind == "note"
                else "TYPE is none of task, section and note"
            )
            yield line, Refused(line, why), []
    if task is not None:
        yield task


def _content(row: dict[str, str], zone: ZoneInfo) -> tuple[dict[str, Any], list[str]]:
    warnings = []
    text = row["content"].strip()
    tags = _LABEL.findall(text)
    while (found := re.search(r"\s@\S+$", text)) is not None:
        text = text[: found.start()].rstrip()
    kept = {name: row[name] for name in _KEPT if row.get(name)}
    priority = row.get("priority", "").strip()
    if priority not in _PRIORITIES:
        warnings.append(f"the priority {priority!r:.30} is none of 1 to 4")
        kept["priority"] = priority
    written = row.get("date", "").strip()
    own_zone = _zone(row.get("timezone", "").strip(), zone)
    due_at, rule, begins = _due(written, own_zone)
    if begins:
        warnings.append(f"the date {written!r:.60} names no day: it begins on the first one from today on")
    if written and due_at is None:
        warnings.append(f"the date {written!r:.60} is kept in extra only: it names no day")
    if written and (due_at is None or rule):
        kept["date"] = written
    return {
        "title": text,
        "description": row.get("description") or None,
        "due_at": due_at,
        "priority": _PRIORITIES.get(priority, "none"),
        "tags": tags,
        "recurrence": rule,
        "time_zone": own_zone.key if rule and due_at and "T" in due_at else None,
        "extra": {"todoist": kept},
    }, warnings


def _zone(name: str, otherwise: ZoneInfo) -> ZoneInfo:
    try:
        return zone_of(name) if name else otherwise
    except ValueError:
        return otherwise


def _due(written: str, zone: ZoneInfo) -> tuple[str | None, str | None, bool]:
    """A date as the wire has it and an RRULE, as far as the words say them; and whether today began them."""
    found = _EVERY.fullmatch(written)
    if found is None:
        return _day(written, zone), None, False
    unit, number = found["unit"].lower(), found["number"]
    interval = {"other": ";INTERVAL=2", None: "", "1": ""}.get(number, f";INTERVAL={number}")
    days = [each[:2].upper() for each in re.findall("[a-z]+", unit) if each != "and"]
    if unit.startswith("weekday"):
        days = list(WEEKDAYS[:5])
        rule = f"FREQ=WEEKLY;BYDAY={','.join(days)}"
    elif re.fullmatch("(day|week|month|year)s?", unit):
        days = []
        rule = f"FREQ={FREQUENCIES[unit[0]]}{interval}"
    else:
        rule = f"FREQ=WEEKLY{interval};BYDAY={','.join(days)}"
    start = found["start"] or _first(days, zone)
    due_at = _day(start if found["at"] is None else f"{start} at {found['at']}", zone)
    return due_at, rule if due_at else None, bool(due_at) and found["start"] is None


def _first(days: Sequence[str], zone: ZoneInfo) -> str:
    """The first of these weekdays from today on; without any, today."""
    day = datetime.now(zone).date()
    while days and WEEKDAYS[day.weekday()] not in days:
        day += timedelta(days=1)
    return day.isoformat()


def _day(written: str, zone: ZoneInfo) -> str | None:
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        pass
    else:
        if len(written) == len("2026-11-30"):
            return written
        return rfc3339(moment if moment.tzinfo else moment.replace(tzinfo=zone))
    day, _, clock = re.sub(
        r" (?:at |@ ?|(?=[0-9]{1,2}(?::[0-9]{2}|[ap]m)))", "|", written, count=1
    ).partition("|")
    for form in _FORMATS:
        try:
            date = datetime.strptime(day.strip(), form).date()  # noqa: DTZ007 - the zone comes with the time
        except ValueError:
            continue
        at = _clock(clock.strip())
        if not clock:
            return date.isoformat()
        return rfc3339(datetime.combine(date, at, zone)) if at is not None else None
    iso, _, clock = written.replace(" at ", " ").partition(" ")
    at = _clock(clock)
    try:
        return rfc3339(datetime.combine(datetime.fromisoformat(iso), at, zone)) if at is not None else None
    except ValueError:
        return None


def _clock(text: str) -> time | None:
    for form in _TIMES:
        try:
            return datetime.strptime(text.strip().upper(), form).time()  # noqa: DTZ007 - a time of day
        except ValueError:
            continue
    return None
