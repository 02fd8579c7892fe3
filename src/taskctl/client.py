"""The HTTP client: one method per operation of the API, in plain arguments and plain dicts.

Standard library only, because a person types `taskctl tasks list` fifty times a day and every other HTTP
library takes longer to import than the request takes. What the server sends is passed on, not validated.
"""

import contextlib
import http.client
import json
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple, NotRequired, Self, TypedDict, cast
from urllib.parse import unquote, urlencode, urlsplit

from taskctl import errors
from taskctl.contexts import TIMEOUT_DEFAULT, is_loopback, server_root
from taskctl.vocabulary import API_PREFIX, IDEMPOTENCY_KEY_MAX, PAGE_LIMIT_MAX, Order, Status

TRY_TIMEOUT = 10.0
"""Seconds that one try may wait for the server's next byte."""

BACKOFF_FIRST, BACKOFF_MAX = 0.1, 5.0
"""Seconds: the most that is waited before the first repeat, doubled before each further one up to the cap."""

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_GATEWAY_LOST_IT = frozenset({502, 504})
_STANDARD_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})

_BY_STATUS: Mapping[int, type[errors.TaskctlError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.TaskNotFound,
    409: errors.VersionConflict,
    412: errors.VersionConflict,
    429: errors.RateLimited,
    503: errors.Unavailable,
}
"""What an error is whose code this release does not know; other 4xx are `BadRequest`, 5xx `ServerFailed`."""


class TaskDict(TypedDict):
    """A task as the API returns it; times are RFC 3339 in UTC."""

    id: int
    user_id: str
    title: str
    description: str | None
    completed: bool
    completed_at: str | None
    version: int
    created_at: str
    updated_at: str


class PageDict(TypedDict):
    """One page of a list."""

    items: list[TaskDict]
    next_cursor: str | None


class ChangesDict(TypedDict):
    """A JSON merge patch (RFC 7396): left out means unchanged."""

    title: NotRequired[str]
    description: NotRequired[str | None]
    completed: NotRequired[bool]


class Try(NamedTuple):
    """One try of a request, for whoever watches: `outcome` is the status or the reason it has none."""

    method: str
    url: str
    outcome: str
    seconds: float
    number: int


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: Message
    body: bytes
    json: Any = None
    """The body's value; None where it is not JSON."""


class _Failed(Exception):
    """One try has failed, with this error if no further try is made.

    Attributes:
        again: whether a further try may help.
        wait: seconds that the server asks to wait.
        sent: whether the server may have done what was asked.
        status: that of the answer; None where there was none.
    """

    def __init__(
        self,
        error: errors.TaskctlError,
        *,
        again: bool = False,
        wait: float = 0.0,
        sent: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(error.detail)
        self.error, self.again, self.wait, self.sent, self.status = error, again, wait, sent, status


class Client:
    """One server, as one user. A context manager: it keeps its connection open between requests.

    429, 502, 503, 504, refused and dropped connections and timeouts are tried again, with exponential
    backoff and full jitter, honouring `Retry-After` (RFC 9110, section 10.2.3), until `timeout` seconds
    have passed since the operation began. Each operation is safe to repeat. Not for use by several threads
    at once. Proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY; none stands before this machine.

    Every operation raises the class of `errors` that its problem document names; `ServerUnreachable`,
    `ServerTimedOut` and `ServerFailed` where there is none, and `UnexpectedAnswer` where what answers is
    no taskctl server.

    Args:
        server: its root URL, without `/api/v1`; a path in front is kept.
        token: the bearer token; None sends none.
        timeout: seconds for one operation, its repeats included.
        allow_http: whether plain HTTP may go to another machine.
        on_retry: told before each wait: which try comes next, why, and after how many seconds.
        on_try: told after each try.
        sleep: waits so many seconds.
        clock: seconds that only grow.

    Raises:
        SettingsInvalid: the server's URL is not one, or plain HTTP is not allowed to it.
    """

    def __init__(
        self,
        server: str,
        token: str | None,
        *,
        timeout: float = TIMEOUT_DEFAULT,
        allow_http: bool = False,
        on_retry: Callable[[int, str, float], None] | None = None,
        on_try: Callable[[Try], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = server_root(server, allow_http=allow_http)
        self.raw = b""
        """The body of the last answer, byte for byte."""
        self._timeout = timeout
        self._on_retry = on_retry
        self._on_try = on_try
        self._sleep = sleep
        self._clock = clock
        self._prefix = urlsplit(self.server).path
        self._connection, self._before_path, self._headers = _connection(self.server)
        self._bearer = {} if token is None else {"Authorization": f"Bearer {token}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next operation opens a new one."""
        self._connection.close()

    def list_tasks(
        self,
        *,
        status: Status = Status.all,
        limit: int | None = None,
        cursor: str | None = None,
        order: Order = Order.asc,
    ) -> PageDict:
        """One page: at most `limit` tasks (1-200), after `cursor`, by id."""
        query = {"status": status.value, "order": order.value, "limit": limit, "cursor": cursor}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        page = self._object(self._call("GET", f"{API_PREFIX}/me/tasks?{given}"))
        if not isinstance(page.get("items"), list):
            raise self._not_ours("JSON that is no list of tasks")
        return cast("PageDict", page)

    def pages(
        self, *, status: Status = Status.all, order: Order = Order.asc, total: int | None = None
    ) -> Iterator[PageDict]:
        """Page after page, fetched when asked for, up to `total` tasks (None: all of them).

        The last page's `next_cursor` is null only where no further task exists.
        """
        cursor: str | None = None
        left = total
        while True:
            limit = PAGE_LIMIT_MAX if left is None else min(left, PAGE_LIMIT_MAX)
            page = self.list_tasks(status=status, limit=limit, cursor=cursor, order=order)
            yield page
            if left is not None:
                left -= len(page["items"])
            if not page["next_cursor"] or (left is not None and left <= 0):
                return
            if page["next_cursor"] == cursor:
                raise self._not_ours("the same page twice")
            cursor = page["next_cursor"]

    def create_task(
        self,
        title: str,
        *,
        description: str | None = None,
        completed: bool = False,
        idempotency_key: str | None = None,
    ) -> TaskDict:
        """Create a task. The same key with the same content returns the task made before.

        A key is always sent, a fresh one where none is given, so that a repeat makes no second task.

        Raises:
            UsageInvalid: the key is not 1 to 255 visible ASCII characters.
        """
        key = os.urandom(16).hex() if idempotency_key is None else idempotency_key
        if not re.fullmatch(rf"[\x21-\x7e]{{1,{IDEMPOTENCY_KEY_MAX}}}", key):
            raise errors.UsageInvalid(
                f"An idempotency key is 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters."
            )
        body = {"title": title, "description": description, "completed": completed}
        return self._task("POST", "", body, headers={"Idempotency-Key": key})

    def read_task(self, task_id: int) -> TaskDict:
        """Read one task."""
        return self._task("GET", f"/{task_id}")

    def replace_task(
        self,
        task_id: int,
        title: str,
        *,
        description: str | None = None,
        completed: bool = False,
        if_version: int | None = None,
    ) -> TaskDict:
        """Replace all of a task; `VersionConflict` where `if_version` is not its version."""
        body = {"title": title, "description": description, "completed": completed}
        return self._task("PUT", f"/{task_id}", body, if_version=if_version)

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
        """Delete a task. One that is gone after an earlier try was cut off counts as deleted by that try."""
        self._call("DELETE", f"{API_PREFIX}/me/tasks/{task_id}", headers=_condition(if_version))

    def health(self) -> dict[str, Any]:
        """The server's details, its `version` among them. Tried once, without the token."""
        return self._object(self._call("GET", "/health", probe=True))

    def ready(self) -> dict[str, Any]:
        """Whether the server takes requests: `NotReady` if not. Tried once, without the token."""
        return self._object(self._call("GET", "/readyz", probe=True))

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
        task = self._object(self._call(method, f"{API_PREFIX}/me/tasks{path}", body, headers=headers))
        if not isinstance(task.get("id"), int):
            raise self._not_ours("JSON that is no task")
        return cast("TaskDict", task)

    def _object(self, answer: _Answer) -> dict[str, Any]:
        if not isinstance(answer.json, dict):
            raise self._not_ours("JSON that is no object")
        return answer.json

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        probe: bool = False,
    ) -> _Answer:
        """Try until it works, a repeat cannot help, or the time is up."""
        deadline = self._clock() + self._timeout
        sending = {**self._headers, **({} if probe else self._bearer), **(headers or {})}
        content = None
        if body is not None:
            # ASCII, because a lone surrogate has no UTF-8: escaped, it is the server's to refuse.
            content = json.dumps(body).encode("ascii")
            sending["Content-Type"] = "application/json"
        number, maybe_done = 1, False
        while True:
            started = self._clock()
            reused = self._connection.sock is not None
            try:
                answer = self._attempt(method, path, content, sending, deadline)
            except _Failed as failure:
                error = failure.error
                self._tell(method, path, f"{failure.status or ''} {error.code}".strip(), started, number)
                if failure.again or failure.status is None:
                    self.close()
                if maybe_done and method == "DELETE" and isinstance(error, errors.TaskNotFound):
                    return _Answer(HTTPStatus.NO_CONTENT, "", Message(), b"")
                if maybe_done and isinstance(error, errors.VersionConflict):
                    error.detail += " An earlier try of this change was cut off and may have made it."
                if probe or not failure.again:
                    raise error from failure.__cause__
                maybe_done = maybe_done or failure.sent
                number += 1
                # A kept-alive connection that the server has closed meanwhile is no sign of trouble.
                if not (reused and isinstance(failure.__cause__, ConnectionError)):
                    self._pause(number, failure, deadline)
            else:
                self._tell(method, path, str(answer.status), started, number)
                self.raw = answer.body
                return answer

    def _pause(self, number: int, failure: _Failed, deadline: float) -> None:
        """Wait before try `number`, or raise the failure's error where that would pass the deadline.

        Full jitter, but never less than the server asks for.
        """
        most = min(BACKOFF_MAX, BACKOFF_FIRST * 2.0 ** min(number - 2, 30))
        wait = max(failure.wait, random.uniform(0, most))  # noqa: S311 - it spreads clients and hides nothing
        if self._clock() + wait >= deadline:
            raise failure.error from failure.__cause__
        if self._on_retry:
            self._on_retry(number, failure.error.detail, wait)
        self._sleep(wait)

    def _tell(self, method: str, path: str, outcome: str, started: float, number: int) -> None:
        if self._on_try:
            self._on_try(Try(method, self.server + path, outcome, self._clock() - started, number))

    def _attempt(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str], deadline: float
    ) -> _Answer:
        """Send once and read the answer, or raise `_Failed`."""
        connection, sent = self._connection, False
        try:
            self._limit(deadline)
            if connection.sock is None:
                connection.connect()
            sent = True
            # A server that refuses a body without reading it closes early, but has answered first.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._before_path + self._prefix + path, content, headers)
            answer = self._read(connection.getresponse(), deadline)
        except TimeoutError as error:
            timed_out = errors.ServerTimedOut(f"{self.server} did not answer in time.")
            raise _Failed(timed_out, again=True, sent=sent) from error
        except (ConnectionError, http.client.IncompleteRead, ssl.SSLEOFError) as error:
            raise _Failed(self._unreachable(error, sent=sent), again=True, sent=sent) from error
        except http.client.HTTPException as error:
            raise _Failed(self._not_ours("something other than HTTP"), sent=sent) from error
        except OSError as error:
            # A name that does not exist or a certificate that does not hold will not mend itself.
            again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise _Failed(self._unreachable(error, sent=sent), again=again, sent=sent) from error
        self._judge(answer)
        return answer

    def _limit(self, deadline: float) -> None:
        """Let the next wait on the socket last until the deadline, but no longer than one try may wait."""
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        self._connection.timeout = min(left, TRY_TIMEOUT)
        if self._connection.sock is not None:
            self._connection.sock.settimeout(self._connection.timeout)

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> _Answer:
        with response:
            chunks = []
            while chunk := response.read1(1 << 16):
                chunks.append(chunk)
                self._limit(deadline)
            if response.length:  # unlike read, read1 takes an early end for the end
                raise http.client.IncompleteRead(b"", response.length)
            body = b"".join(chunks)
            value = None
            if _media_type(response.headers) in {"application/json", "application/problem+json"}:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(body)
            return _Answer(response.status, response.reason, response.headers, body, value)

    def _judge(self, answer: _Answer) -> None:
        """Let a success pass, and raise `_Failed` for everything else."""
        if answer.status == HTTPStatus.NO_CONTENT:
            return
        if answer.status in range(200, 300):
            if _media_type(answer.headers) != "application/json":
                raise _Failed(self._not_ours(_described(answer)), status=answer.status)
            if answer.json is None:
                damaged = self._not_ours("JSON that is damaged")
                raise _Failed(damaged, again=True, sent=True, status=answer.status)
            return
        again = answer.status in _TRY_AGAIN
        raise _Failed(
            self._error(answer),
            again=again,
            wait=_retry_after(answer.headers) if again else 0.0,
            sent=answer.status in _GATEWAY_LOST_IT,
            status=answer.status,
        )

    def _error(self, answer: _Answer) -> errors.TaskctlError:
        if isinstance(answer.json, dict) and isinstance(answer.json.get("code"), str):
            return _from_problem(answer.json, answer)
        request_id = answer.headers.get("X-Request-ID")
        match answer.status // 100:
            case 3:
                parts = urlsplit(answer.headers.get("Location") or "")
                where = (
                    f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "another path"
                )
                return errors.UnexpectedAnswer(
                    f"{self.server} redirects to {where} ({answer.status}). No redirect is followed with the "
                    "token; if that is the server, give its URL."
                )
            case 4 if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
                return errors.RateLimited(request_id=request_id)
            case 5:
                described = f"{answer.status} {answer.reason}".rstrip()
                return errors.ServerFailed(
                    f"The server, or a proxy in front of it, answered {described}.", request_id=request_id
                )
            case _:
                return self._not_ours(_described(answer))

    def _not_ours(self, what: str) -> errors.UnexpectedAnswer:
        return errors.UnexpectedAnswer(f"{self.server} answered {what}; it may not be a taskctl server.")

    def _unreachable(self, error: Exception, *, sent: bool) -> errors.ServerUnreachable:
        if isinstance(error, ConnectionRefusedError):
            why = "nothing listens there (connection refused)"
        elif isinstance(error, socket.gaierror):
            why = f"the name {self._connection.host} cannot be looked up ({error.strerror})"
        elif isinstance(error, ssl.SSLCertVerificationError):
            why = f"its certificate is not trusted ({error.verify_message})"
        elif isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            why = f"TLS failed ({error.reason or error.strerror})"
        elif sent:
            why = "the connection was cut off"
        else:
            why = getattr(error, "strerror", None) or str(error)
        return errors.ServerUnreachable(f"{self.server} cannot be reached: {why}.")


def _connection(server: str) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection, not yet open; what goes in front of each path on it; the headers of each request."""
    parts = urlsplit(server)
    secure = parts.scheme == "https"
    host, port = str(parts.hostname), parts.port or (443 if secure else 80)
    make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    headers = {"Accept": "application/json", "User-Agent": "taskctl"}
    proxy = None if is_loopback(host) else _proxy(parts.scheme, parts.netloc)
    if proxy is None:
        return make(host, port), "", headers
    via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if via.scheme != "http" or not via.hostname:
        raise errors.SettingsInvalid(f"{parts.scheme.upper()}_PROXY names no http:// proxy; no other works.")
    signed = {}
    if via.username is not None:
        from base64 import b64encode  # noqa: PLC0415 - for the few that need it

        pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
        signed["Proxy-Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    connection = make(via.hostname, via.port or 80)
    if secure:
        connection.set_tunnel(host, port, headers=signed)
        return connection, "", headers
    return connection, f"http://{parts.netloc}", {**headers, **signed, "Host": parts.netloc}


def _proxy(scheme: str, netloc: str) -> str | None:
    if not any(name.lower() == f"{scheme}_proxy" for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415 - slow, rarely needed

    return None if proxy_bypass(netloc) else getproxies_environment().get(scheme) or None


def _condition(if_version: int | None) -> dict[str, str]:
    return {} if if_version is None else {"If-Match": f'"{if_version}"'}


def _media_type(headers: Message) -> str:
    return str(headers.get("Content-Type") or "").partition(";")[0].strip().lower()


def _described(answer: _Answer) -> str:
    kind = _media_type(answer.headers) or "no content type"
    return f"{answer.status} {answer.reason}".rstrip() + f" with {kind}"


def _retry_after(headers: Message) -> float:
    """Seconds that `Retry-After` asks for; 0 where it asks for nothing that can be read.

    A date is measured against the answer's own `Date`, so that a wrong clock here does no harm.
    """
    value = str(headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        sent = headers.get("Date")
        now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _from_problem(problem: Mapping[str, Any], answer: _Answer) -> errors.TaskctlError:
    """The error that a problem document (RFC 9457) names; by its status where its code is not known."""
    known = errors.by_code(problem["code"])
    make = known or _BY_STATUS.get(answer.status)
    if make is None:
        make = errors.BadRequest if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR else errors.ServerFailed
    detail, request_id = problem.get("detail"), problem.get("request_id")
    error = make(
        detail if isinstance(detail, str) else None,
        headers=dict(answer.headers.items()),
        request_id=request_id if isinstance(request_id, str) else answer.headers.get("X-Request-ID"),
    )
    error.members = {name: value for name, value in problem.items() if name not in _STANDARD_MEMBERS}
    if known is None:  # a newer server's; class variables, but of no class that exists here
        error.code = problem["code"]  # type: ignore[misc]
        error.status = answer.status  # type: ignore[misc]
    return error
