"""Taskwarrior's JSON, as `task export` writes it and `task import` reads it.

Both ways lose nothing. What taskctl has no member for (`uuid`, `entry`, `wait`, `depends`, attributes of
one's own and so on) is kept in `extra`, under `taskwarrior`; what Taskwarrior has none for goes in an
attribute `taskctl`, which it keeps as one that it does not know.

A due date at midnight is a date without time. Annotations are the description's lines, each with its time in
front. A recurring template becomes a recurring task, due when Taskwarrior would make its next one; those that
it has made are tasks of their own. Deleted tasks are completed ones.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

from taskctl.dates import rfc3339
from taskctl.formats import repeating
from taskctl.formats.carrying import only_history, parsed, to_carry, with_carried
from taskctl.formats.elements import elements
from taskctl.formats.fitting import DEFAULTS, as_read
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

_PRIORITIES = {"high": "H", "medium": "M", "low": "L"}
_NAMES = {letter: name for name, letter in _PRIORITIES.items()}
_COMPUTED = {"id", "urgency"}
_ENDED = {"completed", "deleted"}
_STAMP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z) ?", re.ASCII)
_DATE = len("2026-11-30")


def read(stream: BinaryIO, source: Source) -> Iterator[Entry]:
    """The tasks of an export."""
    intake = Intake()
    for line, task in elements(stream):
        yield task if isinstance(task, Refused) else _entry(intake, line, task, source.zone)


def write(tasks: Iterable[Mapping[str, Any]], source: Source) -> Iterator[str]:
    """A JSON array, a task a line."""
    before = "[\n"
    for task in tasks:
        yield before + json.dumps(_exported(task, source.zone), ensure_ascii=False, separators=(",", ":"))
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _entry(intake: Intake, line: int, task: dict[str, Any], zone: ZoneInfo) -> Entry:
    attributes = {name: value for name, value in task.items() if name not in _COMPUTED}
    carried = attributes.pop("taskctl", None)
    warnings: list[str] = []
    rest: dict[str, Any] = {}
    if carried is not None:
        try:
            rest = parsed(carried)
        except ValueError:
            warnings.append("the attribute taskctl is broken")
    try:
        shown = _read(attributes, zone)
    except ValueError as error:
        return Refused(line, str(error))
    content = with_carried(shown, rest, lambda content: _read(_attributes(content, zone), zone))
    ours = _attributes(as_read(content), zone)
    kept = {
        name: attributes.get(name) for name in [*attributes, *ours] if attributes.get(name) != ours.get(name)
    }
    if "recur" in attributes and attributes.get("status") == "recurring" and not content["recurrence"]:
        warnings.append(f"taskctl cannot recur {attributes['recur']!r:.40}; it is kept in extra only")
    if kept:
        content["extra"] = {**(content["extra"] or {}), "taskwarrior": kept}
    known = attributes.get("uuid")
    identity = known.lower() if isinstance(known, str) and known else identity_of(content)
    origin = own(content["extra"], "taskctl")
    return intake.take(line, content, identity, warnings=warnings, otherwise=identity_here(origin))


def _exported(task: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    content = {**DEFAULTS, **content_of(task)}
    kept = own(content["extra"], "taskwarrior")
    unchanged = task.get("version", 1) == 1
    attributes = _with_kept(content, kept, zone, unchanged=unchanged)
    shown = as_read(_read(attributes, zone))
    rest = to_carry(content, {**shown, "extra": {"taskwarrior": kept}})
    if "uuid" in kept and only_history(rest):
        return attributes  # a task of Taskwarrior's goes back as it came
    text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
    return {**attributes, "taskctl": text} if rest else attributes


def _with_kept(
    content: Mapping[str, Any], kept: Mapping[str, Any], zone: ZoneInfo, *, unchanged: bool
) -> dict[str, Any]:
    """A task's attributes with those that were kept, as far as they still mean the same as the task.

    One that was kept as null was not there.
    """
    attributes = _attributes(content, zone)
    kept = {name: value for name, value in kept.items() if name != "modified" or unchanged}
    if not content["completed"]:
        kept = {name: value for name, value in kept.items() if name != "end"}
    exact = {name: content[name] for name in DEFAULTS if name != "extra"}
    plain = _meaning(attributes, zone)
    for part in (kept, *({name: value} for name, value in kept.items())):
        candidate = {name: value for name, value in {**attributes, **part}.items() if value is not None}
        if (meaning := _meaning(candidate, zone)) in (exact, plain):
            attributes = candidate
            if meaning == exact:
                plain = exact
    return attributes


def _meaning(attributes: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any] | None:
    """What reading the attributes gives, without `extra`; None where they cannot be read."""
    try:
        content = as_read(_read(attributes, zone))
    except ValueError:
        return None
    return {name: value for name, value in content.items() if name != "extra"}


def _read(attributes: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """What the attributes say, before it is made to fit.

    Raises:
        ValueError: one that a task needs is not of its type.
    """
    content: dict[str, Any] = {**DEFAULTS, "tags": []}
    for name in ("description", "status", "project", "priority", "recur", "mask", "until"):
        if not isinstance(attributes.get(name, ""), str):
            raise ValueError(f"{name} is not text")  # noqa: TRY004 - one kind of refusal
    content["title"] = attributes.get("description", "")
    content["completed"] = attributes.get("status") in _ENDED
    content["project"] = attributes.get("project") or None
    content["priority"] = _NAMES.get(attributes.get("priority", ""), "none")
    tags = attributes.get("tags", [])
    tags = tags.split(",") if isinstance(tags, str) else tags
    if not isinstance(tags, list) or not all(isinstance(each, str) for each in tags):
        raise ValueError("tags is not an array of texts")
    content["tags"] = sorted(set(tags))
    content["description"] = _description(attributes.get("annotations", []))
    if "due" in attributes:
        due = _moment(attributes["due"])
        if due is None:
            raise ValueError(f"due is {attributes['due']!r:.40}, no time")
        local = due.astimezone(zone)
        if attributes.get("status") == "recurring":
            local = _read_template(attributes, local, content)
        content["due_at"] = _date_or_instant(local)
        if content["recurrence"] and len(content["due_at"]) > _DATE and zone.key != "UTC":
            content["time_zone"] = zone.key
    return content


def _read_template(attributes: Mapping[str, Any], first: datetime, content: dict[str, Any]) -> datetime:
    """Put a template's recurrence into its content; when the next task of it is due."""
    rule = repeating.rule(attributes.get("recur", ""), first)
    if rule is None:
        return first
    try:
        # Python's arithmetic within a zone is on the clock on the wall, as Taskwarrior's is.
        due = repeating.later(first, attributes["recur"], min(len(attributes.get("mask", "")), 100_000))
    except (ValueError, OverflowError):
        return first
    until = _moment(attributes.get("until"))
    if until is not None:
        day = len(_date_or_instant(due)) == _DATE
        rule += f";UNTIL={f'{until.astimezone(first.tzinfo):%Y%m%d}' if day else _stamp(until)}"
    content["recurrence"] = rule
    return due


def _attributes(content: Mapping[str, Any], zone: ZoneInfo) -> dict[str, Any]:
    """A task's attributes, without what Taskwarrior has none for."""
    origin = own(content["extra"], "taskctl")
    identity = own(content["extra"], "taskwarrior").get("uuid") or identity_of(content)
    ended = content["completed"]
    attributes: dict[str, Any] = {
        "description": content["title"],
        "status": "completed" if ended else "pending",
        "uuid": uuid(str(identity)) if identity else None,
        "entry": _wire(origin.get("created_at")),
        "modified": _wire(origin.get("updated_at")),
        "end": _wire(origin.get("completed_at")) if ended else None,
        "project": content["project"],
        "priority": _PRIORITIES.get(content["priority"]),
        "tags": list(content["tags"]) or None,
        "annotations": _annotations(content["description"], _wire(origin.get("created_at"))) or None,
        "due": _due(content["due_at"], zone),
    }
    if content["recurrence"] and not ended and (recur := repeating.recur(content["recurrence"])):
        template = {**attributes, "status": "recurring", "recur": recur}
        read = _read({name: value for name, value in template.items() if value is not None}, zone)
        if all(read[name] == content[name] for name in ("recurrence", "due_at")):
            attributes = template
    return {name: value for name, value in attributes.items() if value is not None}


def _description(annotations: Any) -> str | None:
    """Annotations as text, each from a line of its own that starts with its time."""
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        raise ValueError("annotations is not an array of objects")
    texts = []
    for each in annotations:
        moment = _moment(each.get("entry"))
        text = str(each.get("description", ""))
        texts.append(f"{_iso(moment)}Z {text}" if moment else text)
    return "\n".join(texts) or None


def _annotations(description: str | None, entry: str | None) -> list[dict[str, str]]:
    """A text as annotations: at its times where lines start with one, else one at the task's entry."""
    annotations: list[dict[str, str]] = []
    for line in (description or "").split("\n") if description else ():
        found = _STAMP.match(line)
        if found:
            annotations.append(
                {"entry": found[1].replace("-", "").replace(":", ""), "description": line[found.end() :]}
            )
        elif annotations:
            annotations[-1]["description"] += f"\n{line}"
        else:
            annotations.append({"entry": entry or "19700101T000000Z", "description": line})
    return annotations


def _moment(value: Any) -> datetime | None:
    """A time as Taskwarrior writes it, `20261130T230000Z`; None where it is none."""
    try:
        return datetime.strptime(value, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


def _stamp(moment: datetime) -> str:
    return _iso(moment).replace("-", "").replace(":", "") + "Z"


def _iso(moment: datetime) -> str:
    """A time in UTC to the second; strftime would write the year 1 as `1`."""
    return moment.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat()


def _wire(moment: Any) -> str | None:
    """A time of the wire as Taskwarrior writes it."""
    found = _moment(moment)
    return _stamp(found) if found else None


def _date_or_instant(local: datetime) -> str:
    midnight = (local.hour, local.minute, local.second, local.microsecond) == (0, 0, 0, 0)
    return local.date().isoformat() if midnight else rfc3339(local)


def _due(due_at: str | None, zone: ZoneInfo) -> str | None:
    if due_at is None:
        return None
    try:
        moment = datetime.fromisoformat(due_at)
        return _stamp(moment if moment.tzinfo else moment.replace(tzinfo=zone))
    except (ValueError, OverflowError):
        return None
