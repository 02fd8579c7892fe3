"""Changes that wait for the server, in the order in which they were made. Standard library only.

There is one outbox for each user of each server, so that what was meant for one never goes to another,
however the contexts change. A command that finds no folder of outboxes knows at once that nothing waits. The
file has its name while something waits in it, and another one afterwards, because the numbers go on: `new3`
never comes to mean another task.

A change is sent as often as it takes and has its effect once. A create carries its idempotency key. For any
other the version that it is made upon is written down before it is sent; when the version has moved on and
the task is as the change wanted it, an earlier try has made it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskctl import operations, private_file
from taskctl.errors import (
    InsufficientScope,
    InternalError,
    LocalError,
    QuotaExceeded,
    RouteNotFound,
    ServerFailed,
    ServerTimedOut,
    ServerUnreachable,
    TaskctlError,
    TaskNotFound,
    Unavailable,
    UsageInvalid,
    VersionConflict,
)

if TYPE_CHECKING:
    from taskctl.client import Client, TaskDict
    from taskctl.operations import Operation, Reference

WAITING_MAX = 1000
"""Changes that wait at once: the file is written anew for each."""

_SENT_MAX = 100
"""Tasks that were new, and whose ids are remembered."""

_REFUSALS = frozenset({400, 404, 409, 410, 412, 413, 415, 422})
"""Statuses that are about the change, and not about who sends it or how the server is."""


class Waiting(NamedTuple):
    """A change that waits.

    Attributes:
        number: its own for good, from 1; later ones have larger numbers.
        kept_at: when it was made, RFC 3339 by this machine's clock.
        operation: the change.
        tried: whether the server may have made it already.
        refused: why the server has refused it, with `code`, `detail` and, of the members that it changes,
            what the task has (`theirs`); None while it is to be sent.
    """

    number: int
    kept_at: str
    operation: "Operation"
    tried: bool = False
    refused: Mapping[str, Any] | None = None

    @property
    def subject(self) -> "Reference":
        """The task that it is about."""
        if self.operation["op"] == "create":
            return operations.reference_to(self.number)
        reference: Reference = self.operation["id"]
        return reference


class Box(NamedTuple):
    """What an outbox holds: the last number given, what waits, and the ids of new tasks that were sent."""

    last: int = 0
    waiting: tuple[Waiting, ...] = ()
    sent: Mapping[str, int] = {}

    def sendable(self) -> list[Waiting]:
        """What waits and depends on nothing that was refused."""
        held = {waiting.subject for waiting in self.waiting if waiting.refused}
        return [waiting for waiting in self.waiting if waiting.subject not in held]


class Made(NamedTuple):
    """A change that the server has: the task before it where that is known, and after it if there is one.

    `own` is false where the task was as wanted already, and nothing was changed.
    """

    before: "TaskDict | None"
    after: "TaskDict | None"
    own: bool = True


class Delivered(NamedTuple):
    """What became of a change: sent, with the task as it is now if there is one, or refused with an error."""

    waiting: Waiting
    task: "TaskDict | None" = None
    error: TaskctlError | None = None


Settle = Callable[[Waiting, Made], None]
"""Told of each change that was sent, before it leaves the outbox."""


def is_away(error: TaskctlError) -> bool:
    """Whether an error says that the server cannot be reached, or cannot answer anybody."""
    return isinstance(error, ServerUnreachable | ServerTimedOut | ServerFailed | Unavailable)


class Outbox:
    """The outbox of one user of one server, in `folder`.

    Each method raises `LocalError` where the file cannot be read or written, or is damaged: then it has been
    set aside.
    """

    def __init__(self, folder: Path, server: str, user: str) -> None:
        self._owner = {"server": server, "user": user}
        self._file = private_file.of_user(folder, server, user)
        self._idle = self._file.with_suffix(".sent.json")

    def load(self) -> Box:
        """What it holds; nothing where there is no file."""
        return private_file.load(self._file, self._owner, _box) or Box()

    def elsewhere(self) -> list[tuple[str, str, int]]:
        """Servers and users for whom something else waits on this machine, and how many changes."""
        found = []
        for file in sorted(self._file.parent.glob("*.json")):
            with suppress(OSError, ValueError, TypeError, KeyError):
                data = json.loads(file.read_text("utf-8"))
                if data["waiting"] and file != self._file:
                    found.append((str(data["server"]), str(data["user"]), len(data["waiting"])))
        return found

    def keep(self, operation: "Operation", *, tried: bool) -> Waiting:
        """Keep a change, the last in the order.

        Raises:
            LocalError: too many wait already, too.
        """
        with private_file.exclusive(self._file):
            box = self._load_to_change()
            if len(box.waiting) >= WAITING_MAX:
                raise LocalError(f"{WAITING_MAX} changes wait already; no more are kept.")
            waiting = Waiting(box.last + 1, operations.now(), operation, tried)
            self._write(box._replace(last=waiting.number, waiting=(*box.waiting, waiting)))
        return waiting

    def resolve(self, reference: "Reference") -> "Reference":
        """The id of a task that was new and has been sent; what waits, or is an id, as it is.

        Raises:
            TaskNotFound: it names a task that is neither.
        """
        if not operations.is_new(reference):
            return reference
        box = self._load_to_change()
        if any(reference == waiting.subject for waiting in box.waiting):
            return reference
        if str(reference) not in box.sent:
            raise TaskNotFound(f"No task waits to be sent as {reference}.")
        return box.sent[str(reference)]

    def drop(self, number: int) -> list[Waiting]:
        """Give a change up, and with a create all changes of its task; return them.

        Raises:
            UsageInvalid: no change has this number, too.
        """
        with private_file.exclusive(self._file, ".sending"), private_file.exclusive(self._file):
            box = self.load()
            gone = [waiting for waiting in box.waiting if waiting.number == number]
            if not gone:
                raise UsageInvalid(f"No change waits under number {number}.")
            if gone[0].operation["op"] == "create":
                gone = [waiting for waiting in box.waiting if waiting.subject == gone[0].subject]
            numbers = {waiting.number for waiting in gone}
            self._write(box._replace(waiting=tuple(one for one in box.waiting if one.number not in numbers)))
        return gone

    def retry(self) -> None:
        """Have what was refused sent again, over what has become of the tasks since."""
        with private_file.exclusive(self._file):
            box = self.load()
            again = (_anew(waiting) if waiting.refused else waiting for waiting in box.waiting)
            self._write(box._replace(waiting=tuple(again)))

    def deliver(self, client: "Client", settle: Settle) -> Iterator[Delivered]:
        """Send what waits, in order, and tell of each change.

        A change that is refused stays, and with it those of the same task that follow it. One process at a
        time sends; another waits for it.

        Raises:
            TaskctlError: the server is away, or does not take this token; what is left waits on.
        """
        with private_file.exclusive(self._file, ".sending"):
            failed: set[Reference] = set()
            number = 0
            while True:
                left = [each for each in self.load().sendable() if each.number > number]
                waiting = next((each for each in left if each.subject not in failed), None)
                if waiting is None:
                    return
                number = waiting.number
                try:
                    yield self._send(client, waiting, settle)
                except InternalError:
                    failed.add(waiting.subject)  # a fault that this change may have met alone

    def _send(self, client: "Client", waiting: Waiting, settle: Settle) -> Delivered:
        try:
            made = self._make(client, waiting)
        except TaskctlError as error:
            about_it = error.status in _REFUSALS and not isinstance(error, RouteNotFound)
            if about_it or isinstance(error, QuotaExceeded):
                refused = {"code": error.code, "detail": error.detail, "theirs": _theirs(client, waiting)}
                self._update(waiting._replace(refused=refused))
                return Delivered(waiting, error=error)
            if is_away(error) and not error.maybe_done:
                self._update(waiting)
            raise
        settle(waiting, made)
        self._remove(waiting, made)
        return Delivered(waiting, made.after)

    def _make(self, client: "Client", waiting: Waiting) -> Made:
        """Make a change, unless it has been made."""
        operation = waiting.operation
        if operation["op"] == "create":
            self._update(waiting._replace(tried=True))
            return Made(None, operations.perform(client, operation))
        try:
            before = client.read_task(operation["id"])
        except InsufficientScope:  # of a token that may only write
            self._update(waiting._replace(tried=True))
            return Made(None, operations.perform(client, operation))
        except TaskNotFound:
            if operation["op"] != "delete":
                raise
            return Made(None, None, own=waiting.tried)
        if operations.is_so(operation, before):
            own = waiting.tried and operation.get("if_version") == before["version"] - 1
            return Made(None, before, own)
        operation = _bound(waiting, before)
        self._update(waiting._replace(operation=operation, tried=True))
        try:
            return Made(before, operations.perform(client, operation))
        except VersionConflict:
            now = client.read_task(operation["id"])
            if not operations.is_so(operation, now):
                raise
            return Made(before, now)  # by a try that was cut off

    def _update(self, waiting: Waiting) -> None:
        with private_file.exclusive(self._file):
            box = self.load()
            self._write(
                box._replace(
                    waiting=tuple(waiting if each.number == waiting.number else each for each in box.waiting)
                )
            )

    def _remove(self, sent: Waiting, made: Made) -> None:
        """Take out what was sent; what follows it for the same task is now about that task, as it is."""
        with private_file.exclusive(self._file):
            box = self.load()
            ids = dict(box.sent)
            if sent.operation["op"] == "create" and made.after is not None:
                ids[str(sent.subject)] = made.after["id"]
                ids = dict(list(ids.items())[-_SENT_MAX:])
            rest = tuple(
                _following(waiting, sent, made) if waiting.subject == sent.subject else waiting
                for waiting in box.waiting
                if waiting.number != sent.number
            )
            self._write(box._replace(waiting=rest, sent=ids))

    def _load_to_change(self) -> Box:
        return (
            private_file.load(self._file, self._owner, _box)
            or private_file.load(self._idle, self._owner, _box)
            or Box()
        )

    def _write(self, box: Box) -> None:
        data = {
            "version": 1,
            **self._owner,
            "last": box.last,
            "sent": box.sent,
            "waiting": [waiting._asdict() for waiting in box.waiting],
        }
        if box.waiting:
            private_file.replace(self._file, data)
            return
        private_file.replace(self._idle, data)
        self._file.unlink(missing_ok=True)


def _bound(waiting: Waiting, task: "TaskDict") -> "Operation":
    """A change as it is to be sent: for the version that the task is at, so that it has its effect once.

    Raises:
        VersionConflict: it was made for another version, or before somebody has changed the task. What only
            completes or reopens a task goes well with any change.
    """
    operation = waiting.operation
    version = operation.get("if_version")
    if version not in {None, task["version"]}:
        raise VersionConflict(f"The task is at version {task['version']} and not at {version}.")
    changed_since = _moment(task["updated_at"]) > _moment(waiting.kept_at)
    if version is None and changed_since and operation["op"] != "complete":
        raise VersionConflict("The task has been changed since this change was made.")
    return {**operation, "if_version": task["version"]}


def _following(waiting: Waiting, sent: Waiting, made: Made) -> Waiting:
    """A change that follows one that was sent, of the same task.

    It is made upon what that one has made, so it must meet that version: a task that somebody has changed in
    between is for a person to look at. Completing goes well with any version.
    """
    if made.after is None:
        return waiting
    operation = {**waiting.operation, "id": made.after["id"]}
    if made.own and operation["op"] != "complete":
        version = 1 if sent.operation["op"] == "create" else made.after["version"]
        if operation.get("if_version") in {None, version - 1}:
            operation["if_version"] = version
    return waiting._replace(operation=operation)


def _anew(waiting: Waiting) -> Waiting:
    """A change as if it were made now, upon the task as it is."""
    operation = {name: value for name, value in waiting.operation.items() if name != "if_version"}
    return waiting._replace(operation=operation, kept_at=operations.now(), refused=None)


def _theirs(client: "Client", waiting: Waiting) -> dict[str, Any]:
    """What the task has of the members that a change is about, to be shown beside it; empty where unknown."""
    if waiting.operation["op"] not in {"patch", "complete"}:
        return {}
    try:
        task = client.read_task(waiting.operation["id"])
    except TaskctlError:
        return {}
    return {name: task.get(name) for name in operations.wanted(waiting.operation)}


def _box(data: Mapping[str, Any]) -> Box:
    """What a file says. Raises ValueError, TypeError or KeyError where it is not what `_write` writes."""
    waiting = tuple(
        Waiting(int(each["number"]), each["kept_at"], each["operation"], bool(each["tried"]), each["refused"])
        for each in data["waiting"]
    )
    numbers = [each.number for each in waiting]
    if numbers != sorted(set(numbers)) or not 0 <= max(numbers, default=0) <= data["last"]:
        raise ValueError("numbers grow")
    for each in waiting:
        _moment(each.kept_at)
        operations.check(each.operation)
    sent = {str(name): int(task_id) for name, task_id in data["sent"].items()}
    return Box(int(data["last"]), waiting, sent)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
