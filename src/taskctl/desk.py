"""Where a person's changes are made: at the server, or in the outbox while it is away; noted in the journal.

Standard library only, and the outbox's module is imported only for those who have one.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from taskctl import operations
from taskctl.claims import unverified
from taskctl.contexts import path
from taskctl.errors import (
    InsufficientScope,
    LocalError,
    ServerUnreachable,
    SettingsInvalid,
    TaskctlError,
    TaskNotFound,
    UsageInvalid,
    VersionConflict,
)
from taskctl.vocabulary import TITLE_MAX

if TYPE_CHECKING:
    from taskctl.client import ChangesDict, Client, ContentDict, TaskDict
    from taskctl.contexts import ClientSettings
    from taskctl.journal import Change, Journal, Part
    from taskctl.operations import Operation, Reference
    from taskctl.outbox import Delivered, Made, Outbox, Waiting


_TRASHED_UNTOUCHED = 2
"""The version of a task that nobody has done anything to, but put it into the trash."""


class Undone(NamedTuple):
    """What became of a part of a change that was to be taken back.

    Attributes:
        part: what had been done.
        task: the task as it is now, if there is one.
        dropped: the waiting changes that were given up for it, where it had not been sent.
        left: ids of tasks that it had brought about, and that stay because they have been changed since.
        error: why it is not taken back.
    """

    part: "Part"
    task: "TaskDict | None" = None
    dropped: "tuple[Waiting, ...]" = ()
    left: tuple[int, ...] = ()
    error: TaskctlError | None = None


def keeps(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether changes are kept while the server is away: unless TASKCTL_OFFLINE is `never`.

    Raises:
        SettingsInvalid: it is something else.
    """
    word = environ.get("TASKCTL_OFFLINE") or "keep"
    if word not in {"keep", "never"}:
        raise SettingsInvalid("TASKCTL_OFFLINE is `keep`, which is the default, or `never`.")
    return word == "keep"


class Desk:
    """One command's changes. A context manager: what waits is sent first, and at the end all is noted.

    Each change is made by its method and returns the task (deleting returns None), or what is kept instead
    while the server is away. A task may be named as the outbox names it. Each raises what the client's method
    raises, and `LocalError` where a change can be neither made nor kept.

    Args:
        client: connects to the server; closed at the end.
        settings: whose it is.
        environ: the environment's variables.
        sends: whether to send what waits at once, if the server answers; else it is left to `send_waiting`.
        patience: seconds that a request waits for a connection, where `sends` and changes are kept; None for
            as long as for an answer.
        on_delivered: told of each waiting change that was sent or refused.
        on_unnoted: told where the journal cannot be written, which is no reason to fail.

    Attributes:
        client: for what only reads.
        away: why the server is taken to be away; None while it is not.
        kept: whether something was kept.
    """

    def __init__(
        self,
        client: "Client",
        settings: "ClientSettings",
        *,
        environ: Mapping[str, str] = os.environ,
        sends: bool = True,
        patience: float | None = None,
        on_delivered: "Callable[[Delivered], None]" = lambda _: None,
        on_unnoted: Callable[[LocalError], None] = lambda _: None,
    ) -> None:
        self.client = client
        self.away: TaskctlError | None = None
        self.kept = False
        self._settings = settings
        self._folder = path(environ).parent
        self._keeps = keeps(environ)
        self._sends = sends and self._keeps
        self._patience = patience
        self._on_delivered = on_delivered
        self._on_unnoted = on_unnoted
        self._parts: list[Part] = []

    def __enter__(self) -> Self:
        """Send what waits, if the server answers."""
        if self._sends:
            self.client.hurry(self._patience)
        if self._sends and (outbox := self.outbox()) is not None and outbox.load().sendable():
            try:
                self._send_if_reachable(outbox)
            except BaseException:
                self.client.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Note what was done, and close the connection."""
        self.client.close()
        if self._parts:
            self._note(lambda journal: journal.record(self._parts))

    def outbox(self, *, make: bool = False) -> "Outbox | None":
        """This user's outbox at this server.

        None where nothing has ever been kept, unless one is to be made, and where the token does not say who
        the user is.
        """
        folder = self._folder / "outbox"
        if not make and not folder.is_dir():
            return None
        from taskctl.outbox import Outbox  # noqa: PLC0415 - for the few that have one

        user = self._user()
        return None if user is None else Outbox(folder, self._settings.server, user)

    def waiting(self) -> "list[Waiting]":
        """What waits for the server, refused changes included."""
        outbox = self.outbox()
        return [] if outbox is None else list(outbox.load().waiting)

    def send_waiting(self, outbox: "Outbox") -> None:
        """Send what waits, with all the patience that requests have. Raises as `Outbox.deliver`."""
        for delivered in outbox.deliver(self.client, self._settle):
            self._on_delivered(delivered)

    def _send_if_reachable(self, outbox: "Outbox") -> None:
        """Send what waits, without the patience for a server that is away still."""
        from taskctl.outbox import is_away  # noqa: PLC0415 - for the few that have one

        try:
            self.client.health()
        except TaskctlError as error:
            if is_away(error):
                self.away = error
                return
        try:
            self.send_waiting(outbox)
        except TaskctlError as error:
            if is_away(error):
                self.away = error
            elif isinstance(error, LocalError):
                raise
            # What is wrong with the token the command's own request will meet, too.

    def resolved(self, reference: "Reference") -> int:
        """The id of a task for a request of its own.

        Raises:
            TaskNotFound: it is to be made by a change that waits, or by none that is known.
        """
        outbox = self.outbox()
        found = reference if outbox is None else outbox.resolve(reference)
        if isinstance(found, str):
            raise TaskNotFound(f"There is no task {found} at the server yet.")
        return found

    def drop(self, number: int) -> "list[Waiting]":
        """Give a waiting change up, as `Outbox.drop`."""
        outbox = self.outbox()
        if outbox is None:
            raise UsageInvalid("Nothing waits to be sent.")
        gone = outbox.drop(number)
        numbers = {waiting.number for waiting in gone}
        self._note(lambda journal: journal.forget(numbers))
        return gone

    def create_task(
        self, title: str, *, content: "ContentDict", idempotency_key: str | None = None
    ) -> "TaskDict | Waiting":
        """Create a task, as `Client.create_task`."""
        key = os.urandom(16).hex() if idempotency_key is None else idempotency_key
        return self._made({"op": "create", "task": {"title": title, **content}, "key": key})

    def edit_task(
        self,
        reference: "Reference",
        changes: "ChangesDict",
        *,
        if_version: int | None = None,
        before: "TaskDict | None" = None,
    ) -> "TaskDict | Waiting":
        """Change a task, as `Client.edit_task`; `before` is the task where it has been read already."""
        return self._made(_bound({"op": "patch", "id": reference, "changes": changes}, if_version), before)

    def complete_task(
        self, reference: "Reference", *, completed: bool = True, if_version: int | None = None
    ) -> "TaskDict | Waiting":
        """Complete or reopen a task, as `Client.complete_task`."""
        return self._made(_bound({"op": "complete", "id": reference, "completed": completed}, if_version))

    def delete_task(self, reference: "Reference", *, if_version: int | None = None) -> "Waiting | None":
        """Delete a task, as `Client.delete_task`."""
        return cast("Waiting | None", self._make(_bound({"op": "delete", "id": reference}, if_version)))

    def undo(self) -> Iterator[Undone]:
        """Take back this terminal's last change, part by part, the last one first.

        What cannot be taken back stays noted, and is asked for again by the next `undo`.

        Raises:
            LocalError: there is no such change.
            TaskctlError: the server does not answer; what is not taken back yet stays noted.
        """
        journal, change = self._last_change()
        for index in reversed(range(len(change.parts))):
            undone = self._undo(journal, change.parts[index])
            if undone.error is None:
                change = journal.without(change, index)
            yield undone

    def forget_last_change(self) -> "Change":
        """Let this terminal's last change be, so that `undo` is about the one before. Raises as `undo`."""
        journal, change = self._last_change()
        journal.drop(change)
        return change

    def _made(self, operation: "Operation", before: "TaskDict | None" = None) -> "TaskDict | Waiting":
        return cast("TaskDict | Waiting", self._make(operation, before))

    def _make(self, operation: "Operation", before: "TaskDict | None" = None) -> "TaskDict | Waiting | None":
        if "id" in operation and (outbox := self.outbox()) is not None:
            operation = {**operation, "id": outbox.resolve(operation["id"])}
        if isinstance(operation.get("id"), str):
            if not self._keeps or outbox is None:
                raise TaskNotFound(f"There is no task {operation['id']} at the server.")
            return self._keep(operation, tried=False)
        tried = False
        if self.away is None:
            try:
                before = before or self._read(operation)
                return self._make_now(operation, before)
            except TaskctlError as error:
                from taskctl.outbox import is_away  # noqa: PLC0415 - for what goes wrong only

                if not self._keeps or not is_away(error) or self._user() is None:
                    raise
                self.away, tried = error, error.maybe_done
        if before is not None and operation["op"] == "patch":
            operation = {"if_version": before["version"], **operation}
        return self._keep(operation, tried=tried)

    def _read(self, operation: "Operation") -> "TaskDict | None":
        """The task before a change, where that is needed to take the change back."""
        if operation["op"] not in {"patch", "complete"}:
            return None
        try:
            return self.client.read_task(operation["id"])
        except InsufficientScope:  # of a token that may only write
            return None
        except TaskctlError as error:
            error.maybe_done = False  # reading has changed nothing
            raise

    def _make_now(self, operation: "Operation", before: "TaskDict | None") -> "TaskDict | None":
        from taskctl.journal import part_of  # noqa: PLC0415 - for changes only

        after = operations.perform(self.client, operation)
        raw = self.client.raw  # what is printed, whatever else is asked
        part = part_of(operation, before, after, self._successor(before, after))
        self.client.raw = raw
        if part is not None:
            self._parts.append(part)
        return after

    def _successor(self, before: "TaskDict | None", after: "TaskDict | None") -> tuple[int, int] | None:
        """Id and version of the next one of a recurring task, which completing it has brought about.

        The server makes it once, whatever happens to it. So when the task is completed once more after an
        `undo`, the one that the undo has put into the trash is brought back from there.
        """
        if before is None or after is None or before["completed"] or not after["completed"]:
            return None
        next_id = after.get("next_id")  # a server of an earlier release has none
        if next_id is None or before["next_id"] is None:
            return None if next_id is None else (next_id, 1)
        with suppress(TaskctlError):  # what this is about is done
            restored = self.client.restore_task(next_id, if_version=_TRASHED_UNTOUCHED)
            if restored["version"] > _TRASHED_UNTOUCHED:
                return next_id, restored["version"]
        return None

    def _keep(self, operation: "Operation", *, tried: bool) -> "Waiting":
        from taskctl.journal import Part  # noqa: PLC0415 - for changes only

        title = None if operation["op"] == "delete" else operations.wanted(operation).get("title")
        if title is not None and not 1 <= len(title.strip()) <= TITLE_MAX:
            raise UsageInvalid(f"A title has 1 to {TITLE_MAX} characters.")
        outbox = self.outbox(make=True)
        assert outbox is not None  # noqa: S101 - the token says who the user is
        waiting = outbox.keep(operation, tried=tried)
        self.kept = True
        self._parts.append(Part(operations.verb(operation), waiting.subject, title, kept=waiting.number))
        return waiting

    def _settle(self, waiting: "Waiting", made: "Made") -> None:
        from taskctl.journal import part_of  # noqa: PLC0415 - as for the outbox

        part = None
        if made.own:
            successor = self._successor(made.before, made.after)
            part = part_of(waiting.operation, made.before, made.after, successor)
        self._note(lambda journal: journal.settle(waiting.number, part))

    def _last_change(self) -> "tuple[Journal, Change]":
        journal = self._journal()
        change = None if journal is None else journal.last()
        if journal is None or change is None:
            raise LocalError("This terminal has made no change that could be taken back.")
        return journal, change

    def _undo(self, journal: "Journal", part: "Part") -> Undone:
        if part.kept is not None:
            return self._give_up(part)
        if part.undo is None:
            unknown = "It cannot be taken back: what the task was like before is not known."
            return Undone(part, error=LocalError(unknown))
        first, *further = part.undo
        try:
            task = self._reversed(first)
        except (TaskNotFound, VersionConflict) as error:
            return Undone(part, error=error)
        if task is not None:
            # Deleting tells no version, but it was one, and restoring is another.
            upon = task["version"] - 2 if part.upon is None else part.upon
            journal.rebase(task["id"], upon, task["version"])
        return Undone(part, task, left=tuple(self._untouched(further)))

    def _reversed(self, operation: "Operation") -> "TaskDict | None":
        try:
            return operations.perform(self.client, operation)
        except TaskNotFound:
            if operation["op"] != "delete":
                raise
            return None
        except VersionConflict as error:
            with suppress(InsufficientScope):  # of a token that may only write
                task = self.client.read_task(operation["id"])
                if operations.is_so(operation, task):  # by a try that was cut off, or by somebody
                    return task
            error.detail = "The task has been changed since, and stays as it is."
            raise

    def _untouched(self, further: "Iterable[Operation]") -> "Iterator[int]":
        """Make those changes whose tasks nobody has changed; yield the ids of the other tasks."""
        for operation in further:
            try:
                operations.perform(self.client, operation)
            except VersionConflict:
                yield operation["id"]
            except TaskNotFound:
                pass

    def _give_up(self, part: "Part") -> Undone:
        """Take back what has not been sent."""
        known = next((waiting for waiting in self.waiting() if waiting.number == part.kept), None)
        if known is None:
            gone = "It cannot be taken back: it waits no longer, and what became of it is not known here."
            return Undone(part, error=LocalError(gone))
        if known.tried and not known.refused:
            perhaps = "The server may have it already: it can be taken back when the server answers again."
            return Undone(part, error=ServerUnreachable(perhaps))
        others = self.drop(known.number)
        return Undone(part, dropped=tuple(others))

    def _journal(self) -> "Journal | None":
        from taskctl.journal import Journal  # noqa: PLC0415 - for changes only

        user = self._user()
        return None if user is None else Journal(self._folder / "journal", self._settings.server, user)

    def _note(self, note: "Callable[[Journal], None]") -> None:
        """Write to the journal. A change that was made is made, whether it can be noted or not."""
        if (journal := self._journal()) is None:
            return
        try:
            note(journal)
        except LocalError as error:
            self._on_unnoted(error)

    def _user(self) -> str | None:
        """Who the token says that its bearer is."""
        user = unverified(self.client.token).get("sub")
        return user if isinstance(user, str) else None


def _bound(operation: "Operation", if_version: int | None) -> "Operation":
    return operation if if_version is None else {**operation, "if_version": if_version}
