"""The API's operations: one method each, in plain arguments and plain dicts.

What the server sends is passed on, not validated: the server has, and a model would take longer to import
than the request takes. Standard library only.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, Self, TypedDict, TypeVar, cast
from urllib.parse import urlencode

from taskctl import errors
from taskctl.addresses import server_root
from taskctl.answers import Answer, unexpected
from taskctl.contexts import TIMEOUT_DEFAULT
from taskctl.transport import Transport, Try
from taskctl.vocabulary import API_PREFIX, IDEMPOTENCY_KEY_MAX, PAGE_LIMIT_MAX, Order, Status

if TYPE_CHECKING:
    from http.client import HTTPResponse

RENEW_BEFORE = 60.0
"""Seconds before its expiry when a token is renewed."""

_TASKS = f"{API_PREFIX}/me/tasks"
_CHANGES = f"{API_PREFIX}/me/changes"

_Answer = TypeVar("_Answer")


class TaskDict(TypedDict):
    """A task as the API returns it; times are RFC 3339 in UTC."""

    id: int
    user_id: str
    title: str
    description: str | None
    due_at: str | None
    priority: str
    tags: list[str]
    project: str | None
    recurrence: str | None
    time_zone: str | None
    extra: dict[str, Any] | None
    completed: bool
    completed_at: str | None
    next_id: int | None
    deleted_at: str | None
    version: int
    created_at: str
    updated_at: str


class ChangeDict(TypedDict):
    """A change of a task, with the task as the change has left it."""

    number: int
    type: str
    at: str
    task: TaskDict


class ChangePageDict(TypedDict):
    """Changes in their order; `next_cursor` leads to those after them, now or later."""

    items: list[ChangeDict]
    next_cursor: str
    more: bool


class PageDict(TypedDict):
    """One page of a list."""

    items: list[TaskDict]
    next_cursor: str | None
    count: NotRequired[int]
    """With the filter `count`: tasks on all pages."""


class ContentDict(TypedDict, total=False):
    """What can be written of a task besides its title; what is left out takes its default."""

    description: str | None
    due_at: str | None
    priority: str
    tags: list[str]
    project: str | None
    recurrence: str | None
    time_zone: str | None
    extra: dict[str, Any] | None
    completed: bool


class ChangesDict(ContentDict, total=False):
    """A JSON merge patch (RFC 7396): left out means unchanged."""

    title: str


class ResultDict(TypedDict):
    """What has become of an operation of a bulk request."""

    status: int
    task: NotRequired[TaskDict]
    replayed: NotRequired[bool]
    problem: NotRequired[dict[str, Any]]


class Client:
    """One server, as one user. A context manager: it keeps its connection open between operations.

    Each operation is safe to repeat, and is repeated as `Transport` says. Each raises what `Transport.send`
    does, and `UnexpectedAnswer` where the JSON is not the API's.

    Args:
        server: its root URL, without `/api/v1`; a path in front is kept.
        token: the bearer token; None sends none.
        renew: returns a fresh token. Asked before a request when less than a minute is left by what the
            token says and by this machine's clock, and once when the server says that it has expired. `early`
            says which: the token may still be good, so that it need not take trouble.
        allow_http: whether plain HTTP may go to another machine.
        timeout, on_retry, on_try, sleep, clock: as for `Transport`.

    Raises:
        SettingsInvalid: the server's URL is not one, or plain HTTP is not allowed to it.
    """

    def __init__(
        self,
        server: str,
        token: str | None,
        *,
        renew: Callable[[bool], str] | None = None,
        allow_http: bool = False,
        timeout: float = TIMEOUT_DEFAULT,
        on_retry: Callable[[int, str, float], None] | None = None,
        on_try: Callable[[Try], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.raw = b""
        """The body of the last answer about tasks, byte for byte."""
        self.cursor: str | None = None
        """After which change the last page or stream of changes has come to stand."""
        self.token = token
        """What is sent; another one after it has been renewed."""
        self._renew = renew
        self._renews_early = renew is not None
        self._sleep = sleep
        self._transport = Transport(
            server_root(server, allow_http=allow_http),
            timeout=timeout,
            on_retry=on_retry,
            on_try=on_try,
            sleep=sleep,
            clock=clock,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next operation opens a new one."""
        self._transport.close()

    def hurry(self, seconds: float | None) -> None:
        """From now on wait no longer than this for a connection, as `Transport.patience`."""
        self._transport.patience = seconds

    def list_tasks(
        self,
        *,
        status: Status = Status.all,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = Order.asc,
        filters: Mapping[str, str | Sequence[str]] | None = None,
    ) -> PageDict:
        """One page: at most `limit` tasks (1-200), after `cursor`.

        `filters` are more of the list's parameters (`docs/api.md`); several values repeat a parameter.

        Raises:
            UsageInvalid: one of them is no text in UTF-8.
        """
        query: dict[str, Any] = {
            "status": status.value,
            "order": order.value,
            "limit": limit,
            "cursor": cursor,
            **(filters or {}),
        }
        try:
            given = urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        except UnicodeEncodeError:
            raise errors.UsageInvalid("What is looked for is no text in UTF-8.") from None
        page = self._object(self._send("GET", f"?{given}"))
        if not isinstance(page.get("items"), list):
            raise self._unexpected("JSON that is no list of tasks")
        return cast("PageDict", page)

    def pages(
        self,
        *,
        status: Status = Status.all,
        order: Order = Order.asc,
        filters: Mapping[str, str | Sequence[str]] | None = None,
        total: int | None = None,
    ) -> Iterator[PageDict]:
        """Page after page, fetched when asked for, up to `total` tasks (None: all of them).

        The last page's `next_cursor` is null only where no further task exists.
        """
        cursor: str | None = None
        left = total
        while True:
            limit = PAGE_LIMIT_MAX if left is None else min(left, PAGE_LIMIT_MAX)
            page = self.list_tasks(status=status, limit=limit, cursor=cursor, order=order, filters=filters)
            yield page
            if left is not None:
                left -= len(page["items"])
            if not page["next_cursor"] or (left is not None and left <= 0):
                return
            if page["next_cursor"] == cursor:
                raise self._unexpected("the same page twice")
            cursor = page["next_cursor"]

    def create_task(
        self,
        title: str,
        *,
        content: ContentDict | None = None,
        idempotency_key: str | None = None,
    ) -> TaskDict:
        """Create a task. The same key with the same content returns the task made before.

        A key is always sent, a fresh one where none is given, so that a repeat makes no second task.

        Raises:
            UsageInvalid: the key is not 1 to 255 visible ASCII characters.
        """
        return self._task("POST", "", {"title": title, **(content or {})}, headers=_key(idempotency_key))

    def read_task(self, task_id: int) -> TaskDict:
        """Read one task."""
        return self._task("GET", f"/{task_id}")

    def replace_task(
        self,
        task_id: int,
        title: str,
        *,
        content: ContentDict | None = None,
        if_version: int | None = None,
    ) -> TaskDict:
        """Replace all of a task; `VersionConflict` where `if_version` is not its version."""
        return self._task("PUT", f"/{task_id}", {"title": title, **(content or {})}, if_version=if_version)

    def edit_task(self, task_id: int, changes: ChangesDict, *, if_version: int | None = None) -> TaskDict:
        """Change what `changes` names; `VersionConflict` where `if_version` is not the task's version."""
        return self._task("PATCH", f"/{task_id}", changes, if_version=if_version)

    def complete_task(
        self, task_id: int, *, completed: bool = True, if_version: int | None = None
    ) -> TaskDict:
        """Complete a task, or reopen it; twice is as good as once."""
        body = {"completed": completed}
        return self._task("PATCH", f"/{task_id}/complete", body, if_version=if_version)

    def delete_task(self, task_id: int, *, if_version: int | None = None) -> None:
        """Put a task into the trash; one that is gone after a try was cut off was deleted by that try."""
        self._send("DELETE", f"/{task_id}", headers=_condition(if_version))

    def restore_task(self, task_id: int, *, if_version: int | None = None) -> TaskDict:
        """Take a task out of the trash; twice is as good as once."""
        return self._task("POST", f"/{task_id}/restore", if_version=if_version)

    def bulk(
        self,
        operations: Sequence[Mapping[str, Any]],
        *,
        atomic: bool = True,
        idempotency_key: str | None = None,
    ) -> list[ResultDict]:
        """Do up to 500 operations at once, each as docs/api.md has it; one result for each, in their order.

        A key is always sent, as by `create_task`.

        Args:
            operations: no two about one task.
            atomic: all or nothing; else each on its own, and a result tells whether it was done.
            idempotency_key: the same key with the same operations returns the first answer.

        Raises:
            BulkRefused: all or nothing, and nothing was done; its member `results` tells why.
            BodyTooLarge: send fewer at a time.
            UsageInvalid: the key is not 1 to 255 visible ASCII characters.
        """
        body = {"atomic": atomic, "operations": list(operations)}
        answer = self._object(self._send("POST", "/bulk", body, _key(idempotency_key)))
        results = answer.get("results")
        if not isinstance(results, list) or len(results) != len(operations):
            raise self._unexpected("JSON that is no list of results")
        return cast("list[ResultDict]", results)

    def changes(self, since: str | None = None, *, limit: int | None = None) -> ChangePageDict:
        """Changes after a cursor, at most `limit` (1-500).

        Args:
            since: a cursor; `now` for none but the present cursor; None for all that are kept.
            limit: 100 when left out.

        Raises:
            ChangesExpired: what comes after the cursor is no longer kept: list the tasks, then go on from
                a cursor that was fetched before.
        """
        given = urlencode({k: v for k, v in {"since": since, "limit": limit}.items() if v is not None})
        page = self._object(self._send("GET", f"?{given}", resource=_CHANGES))
        if not isinstance(page.get("items"), list) or not isinstance(page.get("next_cursor"), str):
            raise self._unexpected("JSON that is no page of changes")
        self.cursor = page["next_cursor"]
        return cast("ChangePageDict", page)

    def stream(
        self, since: str | None = "now", *, on_beat: Callable[[], None] = lambda: None
    ) -> Iterator[ChangeDict]:
        """Changes as they happen, without an end; `cursor` says after which one to go on another time.

        A connection that is lost is made again and nothing is missed. It is tried for the client's timeout at
        first, and for a quarter of an hour once there was one.

        Args:
            since: as for `changes`.
            on_beat: called whenever something comes that is no change, which is at least every half minute.

        Raises:
            ChangesExpired: as `changes`.
        """
        from taskctl import events  # noqa: PLC0415 - for the few that follow

        def connect(patience: float | None) -> "HTTPResponse":
            # What a stream was lost at goes before `since`.
            last = {} if self.cursor is None else {"Last-Event-ID": self.cursor}
            path = _CHANGES if since is None else f"{_CHANGES}?{urlencode({'since': since})}"
            return self._signed(
                lambda headers: self._transport.stream(
                    path, headers=headers, silence=events.SILENCE_SECONDS, patience=patience
                ),
                last,
            )

        self.cursor = None
        for event in events.follow(connect, self._sleep):
            self.cursor = event.id or self.cursor
            if not event.data:
                on_beat()
                continue
            self.raw = event.data
            try:
                change = json.loads(event.data)
            except ValueError:
                change = None
            if not isinstance(change, dict) or not isinstance(change.get("task"), dict):
                raise self._unexpected("an event that is no change")
            yield cast("ChangeDict", change)

    def me(self) -> dict[str, Any]:
        """Whom the server takes the token's bearer for, and how it knows.

        Raises:
            RouteNotFound: the server is too old to say.
        """
        return self._object(self._send("GET", "", resource=f"{API_PREFIX}/me"))

    def health(self) -> dict[str, Any]:
        """The server's details, its `version` among them. Tried once, without the token."""
        return self._object(self._transport.send("GET", "/health", once=True))

    def ready(self) -> dict[str, Any]:
        """Whether the server takes requests: `NotReady` if not. Tried once, without the token."""
        return self._object(self._transport.send("GET", "/readyz", once=True))

    def _task(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        if_version: int | None = None,
    ) -> TaskDict:
        headers = {**_condition(if_version), **(headers or {})}
        task = self._object(self._send(method, path, body, headers))
        if not isinstance(task.get("id"), int):
            raise self._unexpected("JSON that is no task")
        return cast("TaskDict", task)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        resource: str = _TASKS,
    ) -> Answer:
        answer = self._signed(
            lambda signed: self._transport.send(method, resource + path, body, headers=signed), headers
        )
        self.raw = answer.body
        return answer

    def _signed(self, ask: Callable[[dict[str, str]], _Answer], headers: Mapping[str, str] | None) -> _Answer:
        """Ask with a token that is good, as far as one can be had."""
        if self._renew and self._renews_early:
            self._renew_early(self._renew)
        try:
            return ask(self._with_token(headers))
        except errors.TokenExpired:
            if self._renew is None:
                raise
            self.token = self._renew(False)  # this clock is behind the server's
            return ask(self._with_token(headers))

    def _with_token(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        bearer = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        return {**bearer, **(headers or {})}

    def _renew_early(self, renew: Callable[[bool], str]) -> None:
        """Renew a token of which less than a minute is left; what is left will do where that fails."""
        from taskctl.claims import seconds_left  # noqa: PLC0415 - for the few whose tokens are renewed

        left = seconds_left(self.token)
        if left is None or left >= RENEW_BEFORE:
            return
        try:
            self.token = renew(True)
        except errors.TaskctlError:
            if left <= 0:
                raise
            self._renews_early = False
        else:
            # A fresh token that looks old means that this clock is ahead: only the server's word counts.
            self._renews_early = (seconds_left(self.token) or 0) >= RENEW_BEFORE

    def _object(self, answer: Answer) -> dict[str, Any]:
        if not isinstance(answer.json, dict):
            raise self._unexpected("JSON that is no object")
        return answer.json

    def _unexpected(self, what: str) -> errors.UnexpectedAnswer:
        return unexpected(self._transport.server, what)


def _condition(if_version: int | None) -> dict[str, str]:
    return {} if if_version is None else {"If-Match": f'"{if_version}"'}


def _key(given: str | None) -> dict[str, str]:
    """The header that makes a repeat do nothing more; a fresh key where none is given."""
    key = os.urandom(16).hex() if given is None else given
    if not re.fullmatch(rf"[\x21-\x7e]{{1,{IDEMPOTENCY_KEY_MAX}}}", key):
        raise errors.UsageInvalid(
            f"An idempotency key is 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters."
        )
    return {"Idempotency-Key": key}
