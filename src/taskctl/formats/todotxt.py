"""todo.txt (github.com/todotxt/todo.txt): a task a line.

    x 2026-11-22 2026-11-01 Pay the rent +home @bank due:2026-11-30 pri:A

Priority A is high, B medium, C and below low. The first `+project` is the project and every `@context` a
tag; at the end of the line they are taken off the title, in the middle of a sentence they stay. Of the pairs
`key:value`, `due`, `pri` and `rec` are understood, and `taskctl` carries what the format has no place for;
others stay in the title.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, BinaryIO
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from taskctl.formats.carrying import parsed, to_carry, with_carried
from taskctl.formats.fitting import DEFAULTS
from taskctl.formats.lines import lines
from taskctl.formats.record import (
    READ_ONLY,
    Entry,
    Intake,
    Refused,
    Source,
    content_of,
    identity_here,
    identity_of,
    own,
)
from taskctl.formats.repeating import FREQUENCIES

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_PRIORITY = re.compile(r"\(([A-Z])\)")
_PAIR = re.compile(r"(due|pri|rec|taskctl):(\S+)")
_REPEATS = re.compile(r"\+?([1-9][0-9]{0,2})([dwmy])")
_LETTERS = {"high": "A", "medium": "B", "low": "C"}
_NAMES = {"A": "high", "B": "medium"}
_SAFE = "\"'{}[]():,;/\\!?.=&+@#*<>|~$-_"


def read(stream: BinaryIO, source: Source) -> Iterator[Entry]:
    """The lines as tasks; blank ones are none."""
    intake = Intake()
    for number, line in lines(stream):
        if isinstance(line, Refused):
            yield line
        elif line.strip():
            content, warnings = _content(line.strip(), source.zone)
            origin = own(content["extra"], "taskctl")
            yield intake.take(
                number, content, identity_of(content), warnings=warnings, otherwise=identity_here(origin)
            )


def write(tasks: Iterable[Mapping[str, Any]], source: Source) -> Iterator[str]:
    """A line a task."""
    for task in tasks:
        content = {**DEFAULTS, **content_of(task)}
        line = _line(content, source.zone)
        rest = _shortened(to_carry(content, _shown(line)))
        text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"))
        yield f"{line} taskctl:{quote(text, safe=_SAFE)}\n" if rest else f"{line}\n"


def _content(line: str, zone: ZoneInfo) -> tuple[dict[str, Any], list[str]]:
    shown = _shown(line)
    carried = re.search(r"(?:^|\s)taskctl:(\S+)$", line)
    if carried is None:
        return shown, []
    try:
        rest = _lengthened(parsed(unquote(carried[1], errors="strict")))
    except ValueError:
        return {**shown, "title": f"{shown['title']} {carried[0].strip()}"}, [
            "the value of taskctl: is broken"
        ]
    content = with_carried(shown, rest, lambda content: _shown(_line(content, zone)))
    if isinstance(rest.get("extra"), dict) and "todo_txt" in rest["extra"]:
        return content, []
    # Marks that the members give by themselves are none of the line's own.
    bare = _without_marks(content)
    again = own(_shown(_line({**content, "extra": bare}, zone))["extra"], "todo_txt")
    marks = own(content["extra"], "todo_txt")
    marks = {name: value for name, value in marks.items() if again.get(name) != value}
    extra = {**(bare or {}), **({"todo_txt": marks} if marks else {})}
    return {**content, "extra": extra or None}, []


def _shortened(rest: dict[str, Any]) -> dict[str, Any]:
    """What a line carries, with the task's history beside its members and without what that implies."""
    history = own(rest.get("extra"), "taskctl")
    implied = _implied(history)
    short = {name: rest[name] for name in rest if name != "extra"}
    short |= {name: history[name] for name in history if history[name] != implied.get(name)}
    if extra := {name: value for name, value in rest.get("extra", {}).items() if name != "taskctl"}:
        short["extra"] = extra
    return short if _lengthened(short) == rest else rest


def _lengthened(short: dict[str, Any]) -> dict[str, Any]:
    """What was shortened, as it was."""
    if short.keys().isdisjoint(READ_ONLY):
        return short
    whole = _implied(short) | short
    history = {name: whole[name] for name in READ_ONLY if name in whole}
    rest = {name: value for name, value in short.items() if name not in READ_ONLY}
    extra = rest["extra"] if isinstance(rest.get("extra"), dict) else {}
    return {**rest, "extra": {**extra, "taskctl": history}}


def _implied(history: Mapping[str, Any]) -> dict[str, Any]:
    """What is so of a task that was never changed."""
    return {"version": 1, "updated_at": history.get("created_at")}


def _without_marks(content: Mapping[str, Any]) -> dict[str, Any] | None:
    extra = content["extra"]
    return extra and {name: value for name, value in extra.items() if name != "todo_txt"}


def _shown(line: str) -> dict[str, Any]:
    """What a line says without what it carries."""
    words = line.split()
    content: dict[str, Any] = {**DEFAULTS, "tags": []}
    marks: dict[str, Any] = {}
    if words and words[0] == "x" and len(words) > 1:
        content["completed"] = bool(words.pop(0))
    if len(words) > 1 and (found := _PRIORITY.fullmatch(words[0])):
        words.pop(0)
        _set_priority(found[1], content, marks)
    dates: list[str] = []
    while len(words) > 1 and len(dates) < 1 + content["completed"] and _is_date(words[0]):
        dates.append(words.pop(0))
    marks |= dict(zip(["completed", "created"] if content["completed"] else ["created"], dates, strict=False))
    words = [word for word in words if not _take_pair(word, content, marks)]
    projects = [word[1:] for word in words if word.startswith("+") and len(word) > 1]
    content["project"] = projects[0] if projects else None
    content["tags"] = sorted({word[1:].lower() for word in words if word.startswith("@") and len(word) > 1})
    while len(words) > 1 and (words[-1] == f"+{content['project']}" or re.match("@.", words[-1])):
        words.pop()
    content["title"] = " ".join(words)
    content["extra"] = {"todo_txt": marks} if marks else None
    return content


def _is_date(word: str) -> bool:
    try:
        return bool(_DATE.fullmatch(word) and date.fromisoformat(word))
    except ValueError:
        return False


def _set_priority(letter: str, content: dict[str, Any], marks: dict[str, Any]) -> None:
    content["priority"] = _NAMES.get(letter, "low")
    if letter > "C":
        marks["priority"] = letter


def _take_pair(word: str, content: dict[str, Any], marks: dict[str, Any]) -> bool:
    """Whether a word is a pair that is understood, and has been taken."""
    found = _PAIR.fullmatch(word)
    if found is None:
        return False
    name, value = found[1], found[2]
    if name == "due" and content["due_at"] is None and _is_date(value):
        content["due_at"] = value
    elif name == "pri" and content["priority"] == "none" and re.fullmatch("[A-Z]", value):
        _set_priority(value, content, marks)
    elif name == "rec" and content["recurrence"] is None and (repeats := _REPEATS.fullmatch(value)):
        interval = f";INTERVAL={repeats[1]}" if repeats[1] != "1" else ""
        content["recurrence"] = f"FREQ={FREQUENCIES[repeats[2]]}{interval}"
        marks["rec"] = value
    else:
        return name == "taskctl"
    return True


def _line(content: Mapping[str, Any], zone: ZoneInfo) -> str:
    """A task as a line, without what the format has no place for."""
    marks, origin = own(content["extra"], "todo_txt"), own(content["extra"], "taskctl")
    letter = _LETTERS.get(content["priority"])
    if _NAMES.get(str(marks.get("priority")), "low") == content["priority"]:
        letter = marks.get("priority", letter)
    created = marks.get("created") or _day(origin.get("created_at"), zone)
    words = []
    if content["completed"]:
        completed = marks.get("completed") or _day(origin.get("completed_at"), zone)
        words += ["x", completed, created if completed else None]
    else:
        words += [f"({letter})" if letter else None, created]
    words += map(_no_pair, content["title"].split())
    there = set(words)
    project = content["project"] and "+" + "-".join(content["project"].split())
    words += [project if project not in there else None]
    words += [f"@{tag}" for tag in content["tags"] if f"@{tag}" not in there]
    words += [f"due:{_day(content['due_at'], zone)}" if content["due_at"] else None]
    words += [f"rec:{_rec(content, marks)}" if _rec(content, marks) else None]
    words += [f"pri:{letter}" if letter and content["completed"] else None]
    return " ".join(str(word) for word in words if word)


def _no_pair(word: str) -> str:
    """A word of a title so that it is not taken for a pair: with a space in it, it is none."""
    return word.replace(":", ": ", 1) if _take_pair(word, {**DEFAULTS}, {}) else word


def _rec(content: Mapping[str, Any], marks: Mapping[str, Any]) -> str | None:
    """The recurrence in the words that other programs know."""
    rule = content["recurrence"]
    found = re.fullmatch(r"FREQ=(DAILY|WEEKLY|MONTHLY|YEARLY)(?:;INTERVAL=([1-9][0-9]{0,2}))?", rule or "")
    if found is None:
        return None
    value = f"{found[2] or 1}{found[1][0].lower()}"
    kept = marks.get("rec")
    return kept if kept in {value, f"+{value}"} else f"+{value}"


def _day(moment: Any, zone: ZoneInfo) -> str | None:
    """The date of an instant in a zone; a date as it is."""
    if not isinstance(moment, str) or _is_date(moment):
        return moment if isinstance(moment, str) else None
    try:
        return datetime.fromisoformat(moment).astimezone(zone).date().isoformat()
    except (ValueError, OverflowError):
        return None
