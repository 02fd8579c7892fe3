"""iCalendar (RFC 5545): a VTODO a task.

High, medium and low are priorities 1, 5 and 9. A due date without time is a DATE, an instant is in UTC, or,
where it recurs in a time zone, in local time with the zone's name in the IANA database as TZID, without a
VTIMEZONE (as RFC 7809 has it). `X-TASKCTL` carries what iCalendar has no place for. Lines that taskctl has no
member for, alarms among them, are kept in `extra`, under `ics`, as they are.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from taskctl.dates import rfc3339
from taskctl.formats.carrying import only_history, parsed, to_carry, with_carried
from taskctl.formats.fitting import DEFAULTS, as_read
from taskctl.formats.lines import LONGEST, decoded, raw_lines
from taskctl.formats.record import (
    Entry,
    Intake,
    Refused,
    Source,
    content_of,
    identity_here,
    identity_of,
    own,
    uuid,
)
from taskctl.formats.vtimezone import Zones, named

_LINE = re.compile(
    r'(?P<name>[A-Za-z0-9-]+)(?P<parameters>(?:;[A-Za-z0-9-]+=(?:"[^"]*"|[^";:,])*(?:,(?:"[^"]*"|[^";:,])*)*)*):(?P<value>.*)',
    re.DOTALL,
)
_PARAMETER = re.compile(r';([A-Za-z0-9-]+)=("[^"]*"|[^";:,]*)')
_MOMENT = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:T([0-9]{2})([0-9]{2})([0-9]{2})(Z?))?", re.ASCII)
_NO_TASKS = {"VEVENT": "an event", "VJOURNAL": "a journal entry", "VFREEBUSY": "free and busy times"}
_AFTER_ZONE = {"END:VTIMEZONE", "BEGIN:VTODO", "BEGIN:VEVENT", "END:VCALENDAR"}
_ZONE_MAX = 1000
"""Content lines of a time zone; those that tell of each year since 1900 have fewer."""
_PRIORITIES = {"high": "1", "medium": "5", "low": "9"}
_LEVELS = dict(zip("123456789", ["high"] * 4 + ["medium"] + ["low"] * 4, strict=True))  # section 3.8.1.9
_OCTETS = 75
_READ = {"DUE", "RRULE", "PRIORITY", "CATEGORIES", "DESCRIPTION", "STATUS", "COMPLETED"}
_COMPLETED = {"COMPLETED", "CANCELLED"}


def read(stream: BinaryIO, source: Source) -> Iterator[Entry]:
    """The VTODOs as tasks; other components of a calendar are refused, save time zones."""
    intake, zones = Intake(), Zones(source.zone)
    for start, todo in _todos(stream, zones):
        yield todo if isinstance(todo, Refused) else _entry(intake, start, todo, zones, source.zone)


class _Todo:
    """The content lines of a VTODO, as they come in."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.lines: list[str] = []
        self._refused: Refused | None = None
        self._size = 0

    def add(self, line: str | Refused) -> None:
        """Take a line, as long as there is no reason to refuse all of them."""
        if isinstance(line, Refused):
            self._refused = self._refused or line
            return
        self._size += len(line)
        if self._size > LONGEST:
            self._refused = Refused(self.start, f"longer than {LONGEST:,} characters")
        elif self._refused is None:
            self.lines.append(line)

    def finished(self) -> tuple[int, list[str] | Refused]:
        """What there is of it, with the line where it begins."""
        return self.start, self._refused or self.lines

    def unfinished(self) -> tuple[int, Refused]:
        """What there is to say of it where it does not end."""
        return self.start, Refused(self.start, "its end is missing: END:VTODO")


def _todos(stream: BinaryIO, zones: Zones) -> Iterator[tuple[int, list[str] | Refused]]:
    """The content lines inside each VTODO, with the line where it begins; time zones go among the zones."""
    todo: _Todo | None = None
    number, whole = 1, False
    for number, line in _without_zones(_unfolded(stream), zones):
        name, _, value = ("", "", "") if isinstance(line, Refused) else line.strip().upper().partition(":")
        if (name, value) == ("BEGIN", "VTODO"):
            if todo is not None:
                yield todo.unfinished()
            todo = _Todo(number)
        elif (name, value) == ("END", "VTODO") and todo is not None:
            yield todo.finished()
            todo = None
        elif todo is not None:
            todo.add(line)
        elif isinstance(line, Refused):
            yield number, line
        elif name == "BEGIN":
            yield from _other(number, value)
        else:
            whole = (name, value) == ("END", "VCALENDAR")
    if todo is not None:
        yield todo.unfinished()
    elif not whole:
        yield number, Refused(number, "no whole calendar: END:VCALENDAR is missing")


def _without_zones(
    lines: Iterable[tuple[int, str | Refused]], zones: Zones
) -> Iterator[tuple[int, str | Refused]]:
    """The content lines, without those of time zones, which go among the zones."""
    zone: list[str] | None = None
    for number, line in lines:
        mark = "" if isinstance(line, Refused) else line.strip().upper()
        if mark == "END:VTIMEZONE":
            zones.add(zone or [])
        zone = [] if mark == "BEGIN:VTIMEZONE" else None if mark in _AFTER_ZONE else zone
        if zone is None:
            yield number, line
        elif isinstance(line, str) and len(zone) < _ZONE_MAX:
            zone.append(line)


def _other(number: int, component: str) -> Iterator[tuple[int, Refused]]:
    if component in _NO_TASKS:
        yield number, Refused(number, f"{_NO_TASKS[component]}, no task")


def write(tasks: Iterable[Mapping[str, Any]], source: Source) -> Iterator[str]:
    """A calendar with a VTODO a task."""
    yield "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//taskctl//taskctl//EN\r\n"
    for task in tasks:
        content = {**DEFAULTS, **content_of(task)}
        todo = _with_kept(content, source.zone)
        rest = to_carry(
            content, {**as_read(_read(todo, source.zone)), "extra": {"ics": own(content["extra"], "ics")}}
        )
        if own(content["extra"], "ics").get("uid") and only_history(rest):
            rest = {}  # where a task from another calendar was in between is nothing to put into it
        carried = [f"X-TASKCTL:{_escape(json.dumps(rest, separators=(',', ':')))}"] if rest else []
        yield "".join(_folded(line) for line in ("BEGIN:VTODO", *todo, *carried, "END:VTODO"))
    yield "END:VCALENDAR\r\n"


def _unfolded(stream: BinaryIO) -> Iterator[tuple[int, str | Refused]]:
    """Content lines with the numbers of the lines where they start.

    Some programs fold within a character, and bytes are what is put together again (section 3.1).
    """
    start, size, pieces = 0, 0, list[bytes]()
    for number, line in raw_lines(stream):
        if isinstance(line, Refused):
            yield number, line
        elif line[:1] in {b" ", b"\t"} and start and size <= LONGEST:
            pieces.append(line.rstrip(b"\r\n")[1:])
            size += len(pieces[-1])
        else:
            if size:
                yield start, decoded(start, b"".join(pieces))
            start, pieces = number, [line.rstrip(b"\r\n")]
            size = len(pieces[0])
    if size:
        yield start, decoded(start, b"".join(pieces))


def _folded(line: str) -> str:
    """A content line in lines of at most 75 octets."""
    if line.isascii():
        first, rest = line[:_OCTETS], range(_OCTETS, len(line), _OCTETS - 1)
        return "\r\n ".join([first, *(line[start : start + _OCTETS - 1] for start in rest)]) + "\r\n"
    pieces, piece, size = [], "", 0
    for character in line:
        width = len(character.encode("utf-8", "replace"))
        if size + width > _OCTETS:
            pieces.append(piece)
            piece, size = " ", 1
        piece += character
        size += width
    return "\r\n".join([*pieces, piece]) + "\r\n"


def _entry(intake: Intake, start: int, given: list[str], zones: Zones, zone: ZoneInfo) -> Entry:
    translated = [zones.translated(line) for line in given]
    todo = [line for line, _ in translated]
    try:
        shown = _read(todo, zone)
    except ValueError as error:
        return Refused(start, str(error))
    rest, warnings = {}, []
    unnamed = next((name for line, name in translated if name and _name(line) == "DUE"), None)
    if unnamed and shown["recurrence"]:
        warnings.append(f"it recurs in UTC, as {unnamed!r:.60} is no IANA time zone")
    for line in todo:
        if line.upper().startswith("X-TASKCTL:"):
            try:
                rest = parsed(_unescape(line.partition(":")[2]))
            except ValueError:
                warnings.append("X-TASKCTL is broken")
    content = with_carried(shown, rest, lambda content: _read(_todo(content), zone))
    written = set(_todo(content))
    kept = [line for line in todo if line not in written and not line.upper().startswith("X-TASKCTL:")]
    names = {_name(line) for line in kept}
    if kept:
        uid = next((_unescape(line.partition(":")[2]) for line in todo if _name(line) == "UID"), None)
        ics = own(content["extra"], "ics") | ({"uid": uid} if "UID" in names else {}) | {"lines": kept}
        content["extra"] = {**(content["extra"] or {}), "ics": ics}
    identity = identity_of(content)
    if identity and "RECURRENCE-ID" in names:
        identity += next(line for line in kept if _name(line) == "RECURRENCE-ID")
    origin = own(content["extra"], "taskctl")
    return intake.take(start, content, identity, warnings=warnings, otherwise=identity_here(origin))


def _read(todo: Iterable[str], zone: ZoneInfo) -> dict[str, Any]:
    """What the properties of a VTODO say.

    Raises:
        ValueError: one that a task needs cannot be read.
    """
    content: dict[str, Any] = {**DEFAULTS, "tags": []}
    for name, parameters, value in _properties(todo):
        if name in {"SUMMARY", "DESCRIPTION"}:
            content["title" if name == "SUMMARY" else "description"] = _unescape(value)
        elif name == "DUE":
            content["due_at"], content["time_zone"] = _moment(value, parameters.get("TZID"), zone)
        elif name == "CATEGORIES":
            content["tags"] = sorted({*content["tags"], *filter(None, map(_unescape, _split(value)))})
        elif name == "PRIORITY":
            content["priority"] = _LEVELS.get(value.strip(), "none")
        elif name == "RRULE":
            content["recurrence"] = value.strip() or None
        elif name in {"STATUS", "COMPLETED"}:
            content["completed"] = name == "COMPLETED" or value.strip().upper() in _COMPLETED
    return content


def _properties(todo: Iterable[str]) -> Iterator[tuple[str, dict[str, str], str]]:
    """The content lines of the task itself, taken apart; what is none is left out."""
    for line, nested in _nested(todo):
        if not nested and (found := _LINE.fullmatch(line)):
            parameters = _PARAMETER.findall(found["parameters"])
            yield (
                found["name"].upper(),
                {name.upper(): each.strip('"') for name, each in parameters},
                found["value"],
            )


def _moment(value: str, zone_name: str | None, zone: ZoneInfo) -> tuple[str, str | None]:
    """A DATE or DATE-TIME (sections 3.3.4 and 3.3.5) as the wire has it, and its zone where it names one.

    Raises:
        ValueError: it is neither, or in a time zone of its own making.
    """
    found = _MOMENT.fullmatch(value.strip().upper())
    try:
        if found and found[4] is None:
            return date(*(int(part) for part in found.group(1, 2, 3))).isoformat(), None
        if found:
            year, month, day, hour, minute, second = map(int, found.group(1, 2, 3, 4, 5, 6))
            own_zone = None if found[7] or zone_name is None else _zone(zone_name)
            there = UTC if found[7] else own_zone or zone
            moment = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=there)
            return rfc3339(moment), own_zone.key if own_zone else None
    except (ValueError, OverflowError) as error:
        if "zone" in str(error):
            raise
    raise ValueError(f"DUE is {value!r:.50}, neither a date nor a time")


def _zone(name: str) -> ZoneInfo:
    found = named(name)
    if found is None:
        raise ValueError(f"the time zone {name!r:.60} is none that is known")
    return found


def _todo(content: Mapping[str, Any]) -> list[str]:
    """The content lines of a task, unfolded, without what iCalendar has no place for."""
    origin, ics = own(content["extra"], "taskctl"), own(content["extra"], "ics")
    changed = _utc(origin.get("updated_at") or origin.get("created_at")) or "19700101T000000Z"
    identity = identity_of({"extra": {"taskctl": origin}}) or ""
    todo = [f"UID:{_escape(ics.get('uid') or uuid(identity))}", f"DTSTAMP:{changed}"]
    if created := _utc(origin.get("created_at")):
        todo += [f"CREATED:{created}", f"LAST-MODIFIED:{changed}"]
    todo.append(f"SUMMARY:{_escape(content['title'])}")
    if content["description"] is not None:
        todo.append(f"DESCRIPTION:{_escape(content['description'])}")
    if content["due_at"]:
        when = _when(content)
        todo += [f"DTSTART{when}"] if content["recurrence"] else []  # RRULE needs it (section 3.8.2.4)
        todo.append(f"DUE{when}")
    if content["recurrence"]:
        todo.append(f"RRULE:{content['recurrence']}")
    if content["priority"] in _PRIORITIES:
        todo.append(f"PRIORITY:{_PRIORITIES[content['priority']]}")
    if content["tags"]:
        todo.append("CATEGORIES:" + ",".join(map(_escape, content["tags"])))
    if content["completed"]:
        todo.append("STATUS:COMPLETED")
        todo += [f"COMPLETED:{at}"] if (at := _utc(origin.get("completed_at"))) else []
    else:
        todo.append("STATUS:NEEDS-ACTION")
    return todo


def _when(content: Mapping[str, Any]) -> str:
    """The due date with its parameters."""
    if len(content["due_at"]) == len("2026-11-30"):
        return f";VALUE=DATE:{content['due_at'].replace('-', '')}"
    moment = datetime.fromisoformat(content["due_at"])
    if content["recurrence"] and content["time_zone"]:
        local = moment.astimezone(ZoneInfo(content["time_zone"]))
        return f";TZID={content['time_zone']}:{_digits(local)}"
    return f":{_digits(moment.astimezone(UTC))}Z"


def _utc(moment: Any) -> str | None:
    try:
        return f"{_digits(datetime.fromisoformat(moment).astimezone(UTC))}Z"
    except (TypeError, ValueError, OverflowError):
        return None


def _digits(moment: datetime) -> str:
    """A time without separators; strftime would write the year 1 as `1`."""
    return moment.replace(tzinfo=None, microsecond=0).isoformat().replace("-", "").replace(":", "")


def _with_kept(content: Mapping[str, Any], zone: ZoneInfo) -> list[str]:
    """A task's lines with those that were kept, in place of ours where they mean the same."""
    todo, kept = _todo(content), own(content["extra"], "ics").get("lines")
    if not isinstance(kept, list) or not all(isinstance(line, str) for line in kept):
        return todo
    names = {_name(line) for line in kept}
    both = [line for line in todo if _name(line) not in names] + kept
    try:
        if as_read(_read(both, zone)) == {**content, "extra": None}:
            return both
    except ValueError:
        pass
    names = {_name(line) for line in todo} | _READ
    return [*todo, *(line for line, nested in _nested(kept) if nested or _name(line) not in names)]


def _nested(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The lines, and whether each belongs to a component inside, such as an alarm."""
    depth = 0
    for line in lines:
        depth += _name(line) == "BEGIN"
        yield line, depth > 0
        depth -= _name(line) == "END"


def _name(line: str) -> str:
    return re.split("[;:]", line, maxsplit=1)[0].upper()


def _escape(text: str) -> str:
    text = text.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,")
    return re.sub("\r\n|\r|\n", r"\\n", text)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] in "nN" else found[1], text, flags=re.DOTALL)


def _split(text: str) -> list[str]:
    """A list of texts, apart at the commas that are not escaped."""
    return re.findall(r"(?:\\.|[^,\\])+", text)
