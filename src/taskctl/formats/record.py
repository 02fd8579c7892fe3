"""What reading a file gives, entry by entry: a task's content with its key, or why it is none."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5
from zoneinfo import ZoneInfo

from taskctl.formats.fitting import fitted

READ_ONLY = ("id", "user_id", "completed_at", "next_id", "deleted_at", "version", "created_at", "updated_at")
"""The wire's members that nobody can write."""


@dataclass(frozen=True)
class Source:
    """Where entries come from or go to: the file's name without its folder, and its person's time zone.

    The zone decides which instants are midnights, and so dates, in formats that know no dates without time.
    """

    name: str = ""
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))


@dataclass(frozen=True)
class Record:
    """A task to be created.

    Attributes:
        line: where it starts, from 1; in JSON that has one line only, which of its tasks it is.
        content: the wire's writable members, all of them.
        key: an `Idempotency-Key`, the same at every reading of the same file.
        warnings: what had to be changed to fit, in sentences without a period.
    """

    line: int
    content: dict[str, Any]
    key: str
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Refused:
    """An entry that is no task, or cannot become one; nothing of it is imported."""

    line: int
    reason: str


Entry = Record | Refused


class Intake:
    """Makes entries of one file: fits each content into what the API takes, and gives it its key."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._equal: Counter[bytes] = Counter()

    def take(
        self,
        line: int,
        content: Mapping[str, Any],
        identity: str | None,
        *,
        warnings: Sequence[str] = (),
        otherwise: str | None = None,
        instead: Mapping[str, Any] | None = None,
    ) -> Entry:
        """An entry of a content.

        Args:
            line: where it starts.
            content: the wire's writable members as the file has them; what is left out takes its default.
            identity: the source's own name for the task; None makes one of the content and of its ordinal
                among equal ones.
            warnings: what the format had to change already.
            otherwise: the identity where another task of the file has that one.
            instead: what makes the identity, where the content is not the same at every reading.
        """
        try:
            fit, changed = fitted(content)
        except ValueError as error:
            return Refused(line, str(error))
        if fit["recurrence"] is not None:
            # The server copies `extra` to the next occurrence: this tells the copy from what was imported.
            fit["extra"] = (fit["extra"] or {}) | {
                "taskctl": {"occurrence": fit["due_at"]} | own(fit["extra"], "taskctl")
            }
        if identity is None:
            digest = hashlib.sha256(
                json.dumps(fit if instead is None else instead, sort_keys=True).encode()
            ).digest()
            self._equal[digest] += 1
            identity = f"content:{digest.hex()}:{self._equal[digest]}"
        elif identity in self._lines and otherwise is not None:
            identity = otherwise
        if identity in self._lines:
            return Refused(line, f"the same task as on line {self._lines[identity]}: its id is there twice")
        self._lines[identity] = line
        return Record(line, fit, f"import-{uuid(identity)}", (*warnings, *changed))


def uuid(identity: str) -> str:
    """A UUID for an identity; itself where it is one."""
    try:
        return str(UUID(identity))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, f"taskctl:{identity}"))


def own(extra: Any, name: str) -> dict[str, Any]:
    """What an importer keeps under its name; empty where it is not an object."""
    kept = extra.get(name) if isinstance(extra, Mapping) else None
    return dict(kept) if isinstance(kept, Mapping) else {}


def content_of(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task of the wire as content: what nobody can write is kept in `extra`, under `taskctl`.

    What is kept there already stays, so that a task that moves from server to server keeps its first history;
    unless it came with `extra` from the occurrence before.
    """
    content = {name: value for name, value in task.items() if name not in READ_ONLY}
    here = {name: task[name] for name in READ_ONLY if task.get(name) is not None}
    extra = content.get("extra")
    if isinstance(extra, Mapping) and copied(task):
        extra = {
            name: value for name, value in extra.items() if name not in {"taskctl", "taskwarrior", "ics"}
        }
    if here and (extra is None or isinstance(extra, Mapping)):
        extra = {**(extra or {}), "taskctl": here | own(extra, "taskctl")}
    return {**content, "extra": extra}


def copied(task: Mapping[str, Any]) -> bool:
    """Whether `extra` speaks of the occurrence before this one."""
    occurrence = own(task.get("extra"), "taskctl").get("occurrence")
    return bool(task.get("recurrence")) and occurrence is not None and occurrence != task.get("due_at")


def identity_of(content: Mapping[str, Any]) -> str | None:
    """What tells a task from all others, wherever it has been: the id where it was first; None for none."""
    extra = content.get("extra")
    for source, name in (("taskwarrior", "uuid"), ("ics", "uid")):
        if isinstance(own(extra, source).get(name), str):
            return str(own(extra, source)[name])
    return identity_here(own(extra, "taskctl"))


def identity_here(task: Mapping[str, Any]) -> str | None:
    """What tells a task of the wire from all others of all servers; None where the members are not there."""
    names = ("user_id", "id", "created_at")
    return "/".join(str(task[name]) for name in names) if all(task.get(name) for name in names) else None
