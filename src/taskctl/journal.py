"""What was changed last from this machine, and how to take it back. Standard library only.

There is one journal for each user of each server, with the changes of all terminals in it, each under its
terminal's name. A change is what one command did; its parts are the tasks that it did it to. A part carries
the operations that take it back, bound to the version that it made: they have no effect on a task that
somebody has changed since.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskctl import operations, private_file

if TYPE_CHECKING:
    from taskctl.client import TaskDict
    from taskctl.operations import Operation, Reference

CHANGES_MAX = 100
"""Changes that are remembered, of all terminals together."""


class Part(NamedTuple):
    """What was done to one task.

    Attributes:
        did: the command that did it.
        task: its id, or what an outbox calls it.
        title: as it is now, where that is known.
        undo: what takes it back, the first first; what follows the first is done where it still can be. None
            where it cannot be taken back, as the task before it is not known.
        upon: the version that the task was at before, where that is known.
        kept: its number in the outbox while it waits there; then `undo` is not known yet.
    """

    did: str
    task: "Reference"
    title: str | None = None
    undo: "tuple[Operation, ...] | None" = None
    upon: int | None = None
    kept: int | None = None


class Change(NamedTuple):
    """What one command did, when (RFC 3339, UTC) and in which terminal."""

    terminal: str
    at: str
    parts: tuple[Part, ...]


def terminal() -> str:
    """What tells this terminal from others: the session of its shell, and when that has begun.

    In a pipe it is the session all the same, so that a script takes back what it did itself.
    """
    if sys.platform == "win32":
        return str(os.getppid())
    session = os.getsid(0)
    try:
        stat = Path(f"/proc/{session}/stat").read_text("ascii", "replace")
    except OSError:  # another system than Linux
        return str(session)
    return f"{session} {stat.rpartition(')')[2].split()[19]}"


def part_of(
    operation: "Operation",
    before: "TaskDict | None",
    after: "TaskDict | None",
    successor: tuple[int, int] | None = None,
) -> Part | None:
    """What a change did and what takes it back; None where it changed nothing.

    Args:
        operation: what was asked for.
        before: the task before it, where that is known.
        after: the task after it; None for one that was deleted.
        successor: id and version of the next one of a recurring task, which completing it has brought about.
    """
    kind, did = operation["op"], operations.verb(operation)
    if after is None:
        return Part(did, operation["id"], None, ({"op": "restore", "id": operation["id"]},))
    bound: dict[str, Any] = {"id": after["id"], "if_version": after["version"]}
    if kind == "create":
        return Part(did, after["id"], after["title"], ({"op": "delete", **bound},))
    if before is not None and before["version"] == after["version"]:
        return None
    undo: tuple[Operation, ...] | None = None
    if before is not None and before["version"] == after["version"] - 1:
        members: Mapping[str, Any] = before
        if kind == "complete":
            undo = ({"op": "complete", **bound, "completed": before["completed"]},)
            if successor is not None:
                undo += ({"op": "delete", "id": successor[0], "if_version": successor[1]},)
        else:
            earlier = {name: members[name] for name in operations.wanted(operation) if name in members}
            undo = ({"op": "patch", **bound, "changes": earlier},)
    return Part(did, after["id"], after["title"], undo, None if before is None else before["version"])


class Journal:
    """The journal of one user of one server, in `folder`.

    Each method raises `LocalError` where the file cannot be read or written, or is damaged: then it has been
    set aside.
    """

    def __init__(self, folder: Path, server: str, user: str) -> None:
        self._owner = {"server": server, "user": user}
        self._file = private_file.of_user(folder, server, user)

    def record(self, parts: list[Part]) -> None:
        """Remember what this command has done."""
        change = Change(terminal(), operations.now(), tuple(parts))
        self._change(lambda changes: (*changes, change)[-CHANGES_MAX:])

    def last(self) -> Change | None:
        """This terminal's last change that has not been taken back."""
        mine = [change for change in self._load() if change.terminal == terminal()]
        return mine[-1] if mine else None

    def without(self, change: Change, index: int) -> Change:
        """Forget one part of a change, and return what is stored of the change then."""
        left = change

        def shorten(known: Change) -> Change:
            nonlocal left
            if known[:2] != change[:2]:
                return known
            left = known._replace(parts=known.parts[:index] + known.parts[index + 1 :])
            return left

        self._change(lambda changes: tuple(map(shorten, changes)))
        return left

    def drop(self, change: Change) -> None:
        """Forget a change."""
        self._change(lambda changes: tuple(known for known in changes if known[:2] != change[:2]))

    def settle(self, number: int, part: Part | None) -> None:
        """Put what a kept change has done, now that it was sent, in place of its number; None is nothing."""

        def settle(known: Change) -> Change:
            parts = (part if each.kept == number else each for each in known.parts)
            return known._replace(parts=tuple(each for each in parts if each is not None))

        self._change(lambda changes: tuple(map(settle, changes)))

    def forget(self, numbers: set[int]) -> None:
        """Forget kept changes that were given up."""

        def forget(known: Change) -> Change:
            return known._replace(parts=tuple(part for part in known.parts if part.kept not in numbers))

        self._change(lambda changes: tuple(map(forget, changes)))

    def rebase(self, task_id: int, version: int, onto: int) -> None:
        """Take a task that is at version `onto` for the one that it was at `version`: it is so again."""

        def rebase(operation: "Operation") -> "Operation":
            same = operation["id"] == task_id and operation.get("if_version") == version
            return {**operation, "if_version": onto} if same else operation

        def rebased(part: Part) -> Part:
            return part._replace(undo=None if part.undo is None else tuple(map(rebase, part.undo)))

        self._change(
            lambda changes: tuple(
                change._replace(parts=tuple(map(rebased, change.parts))) for change in changes
            )
        )

    def _change(self, change: Callable[[tuple[Change, ...]], tuple[Change, ...]]) -> None:
        with private_file.exclusive(self._file):
            before = self._load()
            after = tuple(each for each in change(before) if each.parts)
            if after == before:
                return
            data = {
                "version": 1,
                **self._owner,
                "changes": [
                    {**each._asdict(), "parts": [part._asdict() for part in each.parts]} for each in after
                ],
            }
            private_file.replace(self._file, data, durable=False)  # what is lost with the power is not missed

    def _load(self) -> tuple[Change, ...]:
        changes = private_file.load(self._file, self._owner, _changes)
        return () if changes is None else changes


def _changes(data: Mapping[str, Any]) -> tuple[Change, ...]:
    """What a file says. Raises ValueError, TypeError or KeyError where it is not what a journal writes."""
    changes = tuple(
        Change(each["terminal"], each["at"], tuple(_part(part) for part in each["parts"]))
        for each in data["changes"]
    )
    if not all(isinstance(text, str) for change in changes for text in change[:2]):
        raise TypeError("terminals and times are texts")
    return changes


def _part(data: Mapping[str, Any]) -> Part:
    undo = data["undo"]
    if undo is not None:
        undo = tuple(undo)
        for operation in undo:
            operations.check(operation)
    if not all(isinstance(data[name], int | None) for name in ("upon", "kept")):
        raise TypeError("versions and numbers are whole")
    return Part(str(data["did"]), data["task"], data["title"], undo, data["upon"], data["kept"])
