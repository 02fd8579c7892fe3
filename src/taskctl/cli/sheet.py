"""A task as a text to edit: a line for each field, an empty line, the description. And back, and merged."""

import re
from typing import TYPE_CHECKING, cast

from taskctl.errors import UsageInvalid

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from taskctl.client import ChangesDict, TaskDict

Sheet = dict[str, str]
"""Each field's text by its name; empty where the task has none."""

_LINES = ("title", "due", "every", "priority", "tags", "project")

FIELDS = (*_LINES, "description")


def of(task: "TaskDict", zone: "ZoneInfo") -> Sheet:
    """What there is to edit of a task, its times in `zone`."""
    due_at = task.get("due_at")
    return {
        "title": task["title"],
        "due": _due(due_at, zone) if due_at else "",
        "every": task.get("recurrence") or "",
        "priority": task.get("priority", "none"),
        "tags": " ".join(task.get("tags") or ()),
        "project": task.get("project") or "",
        "description": _normal(task["description"] or ""),
    }


def _due(due_at: str, zone: "ZoneInfo") -> str:
    from datetime import datetime

    from taskctl import dates

    due = dates.from_wire(due_at)
    if not isinstance(due, datetime):
        return due.isoformat()
    local = due.astimezone(zone)
    exact = local.second or local.microsecond or local.fold
    return local.isoformat() if exact else f"{local:%Y-%m-%d %H:%M}"


def _normal(text: str) -> str:
    """Lines as editors leave them: their own ends are not a change."""
    return re.sub(r"\r\n?", "\n", text).rstrip("\n")


def write(sheet: Sheet, remarks: list[str]) -> str:
    """The text for an editor, with remarks above that mean nothing."""
    comments = [f"# {line}".rstrip() for remark in remarks for line in remark.splitlines()]
    fields = [f"{name + ':':<10}{sheet[name]}".rstrip() for name in _LINES]
    return "\n".join([*comments, *fields, "", sheet["description"]]).rstrip("\n") + "\n"


def read(text: str) -> Sheet | None:
    """What an edited text says; a line that is gone is an empty field. None where nothing is left of it.

    Raises:
        UsageInvalid: a line above the description is no field.
    """
    sheet: Sheet = dict.fromkeys(FIELDS, "")
    lines = _normal(text.removeprefix("\ufeff")).split("\n")
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() and seen:
            sheet["description"] = "\n".join(lines[number:])
            break
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or name not in _LINES:
            raise UsageInvalid(
                f"Line {number} is no field: {line[:40]!r}. Fields are {', '.join(_LINES)}; "
                "the description follows after an empty line."
            )
        if name in seen:
            raise UsageInvalid(f"Line {number}: {name} stands twice.")
        seen.add(name)
        sheet[name] = value.strip()
    return sheet if seen else None


def changes(
    before: Sheet, after: Sheet, task: "TaskDict", now: "datetime", zone: "ZoneInfo"
) -> "ChangesDict":
    """What to send so that the task has what `after` says otherwise than `before`.

    Raises:
        UsageInvalid: some of it is not understood; the detail names each such field.
    """
    found: ChangesDict = {}
    wrong = []
    for name in FIELDS:
        if before[name] != after[name]:
            try:
                found.update(_change(name, after, task, now, zone))
            except ValueError as error:
                wrong.append(f"{name}: {str(error).rstrip('.')}")
    if wrong:
        raise UsageInvalid(f"{'; '.join(wrong)}.")
    return found


def _change(name: str, after: Sheet, task: "TaskDict", now: "datetime", zone: "ZoneInfo") -> "ChangesDict":
    from taskctl import dates, entry

    text = after[name]
    if name == "due":
        due = dates.read(text or dates.NONE, now, zone)
        return {"due_at": dates.wire(due) if due else None}
    if name == "every":
        return _recurrence(text, after["due"], task, now, zone)
    if name == "priority":
        return {"priority": entry.priority(text or "none")}
    if name == "tags":
        return {"tags": [tag.removeprefix("+") for tag in re.split(r"[\s,]+", text) if tag]}
    if name == "title" and not text:
        raise ValueError("a task has one")
    return cast("ChangesDict", {name: text or None})


def _recurrence(
    text: str, due_text: str, task: "TaskDict", now: "datetime", zone: "ZoneInfo"
) -> "ChangesDict":
    from taskctl import dates, entry, recurrence

    if not text or text.lower() == dates.NONE:
        return {"recurrence": None, "time_zone": None}
    if text.upper().startswith("FREQ="):
        rule = recurrence.check(text)
    else:
        due = dates.read(due_text, now, zone) if due_text else None
        if due is None:
            raise ValueError("what recurs has a due date")
        rule = str(entry.every(text, dates.day_of(due, zone)))
    return {"recurrence": rule, "time_zone": task.get("time_zone") or zone.key}


def merge(base: Sheet, mine: Sheet, theirs: Sheet) -> tuple[Sheet, list[str]]:
    """Both sides' changes of `base` together, and the fields that both have changed, each in its own way.

    Of these the result has `mine`.
    """
    merged, both = {}, []
    for name in FIELDS:
        merged[name] = theirs[name] if mine[name] == base[name] else mine[name]
        if mine[name] != theirs[name] and base[name] not in {mine[name], theirs[name]}:
            both.append(name)
    return merged, both
