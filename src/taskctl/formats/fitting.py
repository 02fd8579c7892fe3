"""Fits what files hold into what the API takes, and says what had to be changed."""

import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from taskctl.dates import rfc3339, zone_of
from taskctl.recurrence import check
from taskctl.vocabulary import (
    DESCRIPTION_MAX,
    EXTRA_MAX,
    PROJECT_MAX,
    TAG_MAX,
    TAGS_MAX,
    TITLE_MAX,
    Priority,
)

DEFAULTS: Mapping[str, Any] = {
    "title": "",
    "description": None,
    "due_at": None,
    "priority": "none",
    "tags": [],
    "project": None,
    "recurrence": None,
    "time_zone": None,
    "extra": None,
    "completed": False,
}
"""The wire's writable members, in its order, with what they are where they are left out."""

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_BREAKS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


def fitted(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """All of the wire's writable members, as the API takes them, and a sentence for each change.

    What has no place any more is kept in `extra`, under `import`.

    Raises:
        ValueError: says why nothing that the API takes can be made of it.
    """
    fit = dict(DEFAULTS)
    changed: list[str] = []
    kept: dict[str, Any] = {}
    unknown = {name: value for name, value in content.items() if name not in DEFAULTS}
    if unknown:
        kept |= unknown
        changed.append(f"no member of a task, kept in extra: {', '.join(sorted(unknown))}")
    given = {name: content[name] for name in DEFAULTS if content.get(name) is not None}
    _check_types(given)
    fit["completed"] = given.get("completed", False)
    fit["priority"] = given.get("priority", "none")
    fit["title"], fit["description"] = _texts(given, changed)
    fit["tags"] = _tags(given.get("tags", []), kept, changed)
    fit["project"] = _project(given.get("project"), kept, changed)
    fit["due_at"] = due(given["due_at"]) if "due_at" in given else None
    fit["recurrence"] = _recurrence(given.get("recurrence"), fit["due_at"], kept, changed)
    fit["time_zone"] = _time_zone(given.get("time_zone"), kept, changed)
    fit["extra"] = _extra(given.get("extra"), kept, changed)
    return fit, changed


def due(text: str) -> str:
    """A date as it is, or an RFC 3339 instant as the wire has it: UTC, microseconds, `Z`.

    Raises:
        ValueError: it is neither, or not within the years 1 to 9999.
    """
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text).isoformat()
        if _INSTANT.fullmatch(text):
            return rfc3339(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"the due date {text!r:.50} is neither a date nor a time with its offset")


def cut(title: str) -> tuple[str, str | None]:
    """A text as a title, and the whole text where that is not all of it."""
    line = _one_line(title)
    if len(line) > TITLE_MAX:
        return line[: TITLE_MAX - 1].rstrip() + "…", title.strip()
    return line, None


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split()) if _CONTROL.search(text) else text.strip()


def tag(text: str) -> str:
    """A text as a tag; empty where nothing of it is left."""
    return re.sub(r"[\s,\x00-\x1f\x7f-\x9f]+", "-", _normal_tag(text))[:TAG_MAX]


def _normal_tag(text: str) -> str:
    """A tag as the API writes it, of a text that is one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text.strip()).lower())


def as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """A content as it is after reading, as far as formats have texts that tasks cannot hold.

    A long title is cut and all of it starts the description, tags are made to fit, and a recurrence has its
    normal form.
    """
    title, whole = cut(content["title"])
    description = content["description"]
    if whole is not None:
        description = whole if not description else f"{whole}\n\n{description}"
    tags = sorted({*map(tag, content["tags"])} - {""})
    fit = {"title": title, "description": description, "tags": tags}
    return {**content, **fit, "recurrence": _recurrence(content["recurrence"], content["due_at"], {}, [])}


_TYPES = {"completed": bool, "tags": list, "extra": dict}


def _check_types(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        expected = _TYPES.get(name, str)
        if not isinstance(value, expected):
            words = {bool: "true or false", list: "an array", dict: "an object", str: "text"}
            raise ValueError(f"{name} is not {words[expected]}")  # noqa: TRY004 - one kind of refusal
        for text in value if isinstance(value, list) else [value]:
            if name == "tags" and not isinstance(text, str):
                raise ValueError("tags holds what is not text")
            if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
                raise ValueError(f"{name} is not valid Unicode text: half of a surrogate pair stands alone")
    if given.get("priority", "none") not in set(Priority):
        raise ValueError(f"the priority {given['priority']!r:.30} is none of {', '.join(Priority)}")


def _texts(given: Mapping[str, Any], changed: list[str]) -> tuple[str, str | None]:
    whole = given.get("title", "")
    title, all_of_it = cut(whole)
    if not title:
        raise ValueError("it has no title")
    if _CONTROL.search(whole.strip()):
        changed.append("control characters in the title became spaces")
    description = given.get("description")
    if all_of_it is not None:
        changed.append(f"the title was cut to {TITLE_MAX} characters; all of it starts the description")
        description = all_of_it if not description else f"{all_of_it}\n\n{description}"
    if description is not None and _CONTROL_BUT_BREAKS.search(description):
        description = _CONTROL_BUT_BREAKS.sub("\ufffd", description)
        changed.append("control characters in the description became \ufffd")
    if description is not None and len(description) > DESCRIPTION_MAX:
        raise ValueError(
            f"the description has {len(description):,} characters; {DESCRIPTION_MAX:,} is the most"
        )
    return title, description


def _tags(tags: list[str], kept: dict[str, Any], changed: list[str]) -> list[str]:
    pairs = [(text, tag(text)) for text in tags]
    for text, fit in pairs:
        plain = _normal_tag(text)
        if fit != plain or not fit:
            changed.append(
                f"the tag {text!r:.80} became {fit!r}" if fit else f"the tag {text!r:.80} was left out"
            )
            if len(plain) > TAG_MAX:
                kept.setdefault("tags", []).append(text)
    fits = sorted({fit for _, fit in pairs if fit})
    if len(fits) > TAGS_MAX:
        kept.setdefault("tags", []).extend(fits[TAGS_MAX:])
        changed.append(f"tags beyond {TAGS_MAX} are kept in extra")
    return fits[:TAGS_MAX]


def _project(project: str | None, kept: dict[str, Any], changed: list[str]) -> str | None:
    if project is None:
        return None
    fit = _one_line(project)
    if len(fit) > PROJECT_MAX:
        fit = fit[: PROJECT_MAX - 1].rstrip() + "…"
    if fit != project.strip():
        kept["project"] = project
        changed.append("the project was made to fit; all of it is kept in extra")
    return fit or None


def _recurrence(rule: str | None, due_at: str | None, kept: dict[str, Any], changed: list[str]) -> str | None:
    if not rule:
        return None
    rule = rule.strip().removeprefix("RRULE:")
    try:
        normal = check(rule)
    except ValueError as error:
        why = str(error).rstrip(".")
    else:
        if due_at is not None:
            return normal
        why = "there is no due date"
    kept["recurrence"] = rule
    changed.append(f"the recurrence {rule!r:.80} is kept in extra only: {why}")
    return None


def _time_zone(name: str | None, kept: dict[str, Any], changed: list[str]) -> str | None:
    if not name:
        return None
    try:
        return zone_of(name).key
    except ValueError:
        kept["time_zone"] = name
        changed.append(f"the time zone {name!r:.80} is kept in extra only: there is none of this name")
        return None


def _extra(extra: dict[str, Any] | None, kept: dict[str, Any], changed: list[str]) -> dict[str, Any] | None:
    extra = dict(extra) if extra is not None else None
    if kept:
        earlier = (extra or {}).get("import")
        extra = {**(extra or {}), "import": {**(earlier if isinstance(earlier, dict) else {}), **kept}}
    if extra is None:
        return None
    clean = _clean(extra)
    if clean != extra:
        extra = clean
        changed.append("characters that no text holds became \ufffd in extra")
    while _size(extra) > EXTRA_MAX:
        inside, name = max(_parts(extra), key=lambda part: _size(part[0][part[1]]))
        changed.append(f"left out: {name} of extra, as extra has more than {EXTRA_MAX:,} bytes")
        del inside[name]
    return extra


def _parts(extra: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """What can be left out: members of what importers keep, and other members as a whole."""
    parts: list[tuple[dict[str, Any], str]] = []
    for source, value in list(extra.items()):
        if isinstance(value, dict) and value:
            extra[source] = dict(value)
            parts += [(extra[source], name) for name in value]
        else:
            parts.append((extra, source))
    return parts


def _size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _NO_TEXT.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_clean(name): _clean(each) for name, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value
