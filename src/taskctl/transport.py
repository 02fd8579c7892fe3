"""One server over one HTTP connection: how a request is sent, for how long, and when it is sent again.

Standard library only: every other HTTP library takes longer to import than the request takes.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Mapping
from email.message import Message
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from taskctl import errors
from taskctl.addresses import is_loopback
from taskctl.answers import Answer, error_of, retry_after, unexpected, unexpected_kind
from taskctl.contexts import TIMEOUT_DEFAULT

TRY_TIMEOUT = 10.0
"""Seconds that one try may wait for the server's next byte."""

BACKOFF_FIRST, BACKOFF_MAX = 0.1, 5.0
"""Seconds: the most that is waited before the first repeat, doubled before each further one up to the cap."""

ANSWER_MAX = 64 << 20
"""Bytes in an answer: more than a page of the longest tasks takes."""

EVENT_STREAM = "text/event-stream"

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_GATEWAY_LOST_IT = frozenset({502, 504})


class Try(NamedTuple):
    """One try of a request, for whoever watches: `outcome` is the status or the reason it has none."""

    method: str
    url: str
    outcome: str
    seconds: float
    number: int


class _Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes | None


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


class Transport:
    """Sends requests to one server, each until it works, a repeat cannot help, or the time is up.

    429, 502, 503, 504, refused and dropped connections and timeouts are tried again, with exponential
    backoff and full jitter, honouring `Retry-After`. So what is sent must be safe to repeat. The connection
    stays open between requests. Proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY; none stands
    before this machine. Not for use by several threads at once.

    Args:
        server: its root URL, as `addresses.server_root` returns it.
        timeout: seconds for one request, its repeats included.
        on_retry: told before each wait: which try comes next, why, and after how many seconds.
        on_try: told after each try.
        sleep: waits so many seconds.
        clock: seconds that only grow.
        kind: what the server is expected to be, for messages.
        error_of: the error that an answer with a status other than 2xx stands for.
        answer_max: bytes; a longer answer is an unexpected one.

    Attributes:
        patience: seconds that a request waits for a connection, in place of `timeout` where that is longer;
            None while it waits as long as for an answer.

    Raises:
        SettingsInvalid: the proxy is not one that can be used.
    """

    def __init__(
        self,
        server: str,
        *,
        timeout: float = TIMEOUT_DEFAULT,
        on_retry: Callable[[int, str, float], None] | None = None,
        on_try: Callable[[Try], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        kind: str = "taskctl",
        error_of: Callable[[str, Answer], errors.TaskctlError] = error_of,
        answer_max: int = ANSWER_MAX,
    ) -> None:
        self.server = server
        self.patience: float | None = None
        self._kind = kind
        self._error_of = error_of
        self._answer_max = answer_max
        self._timeout = timeout
        self._on_retry = on_retry
        self._on_try = on_try
        self._sleep = sleep
        self._clock = clock
        self._connection, self._before_path, self._headers = _connection(server)

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._connection.close()

    def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        once: bool = False,
    ) -> Answer:
        """Send a request and return the answer: 204, or a 2xx with JSON in it.

        Args:
            method: GET, POST and so on.
            path: below the server's root, with its query.
            body: sent as JSON.
            headers: beyond those that every request has.
            once: make a single try.

        Raises:
            TaskctlError: the one that a problem document names; `ServerUnreachable`, `ServerTimedOut` or
                `ServerFailed` where there is none; `UnexpectedAnswer` where no taskctl server answers.
        """
        deadline = self._clock() + self._timeout
        unconnected = deadline if self.patience is None else min(deadline, self._clock() + self.patience)
        request = _Request(method, path, {**self._headers, **(headers or {})}, None)
        if body is not None:
            # ASCII, because a lone surrogate has no UTF-8: escaped, it is the server's to refuse.
            request = request._replace(
                headers={**request.headers, "Content-Type": "application/json"},
                content=json.dumps(body).encode("ascii"),
            )
        number, maybe_done = 1, False
        while True:
            started = self._clock()
            reused = self._connection.sock is not None
            try:
                answer = self._attempt(request, deadline, unconnected)
            except _Failed as failure:
                error = failure.error
                error.maybe_done = maybe_done or failure.sent
                self._tell(request, f"{failure.status or ''} {error.code}".strip(), started, number)
                if failure.again or failure.status is None:
                    self.close()
                if maybe_done and method == "DELETE" and isinstance(error, errors.TaskNotFound):
                    return Answer(HTTPStatus.NO_CONTENT, "", Message(), b"")
                if maybe_done and isinstance(error, errors.VersionConflict):
                    error.detail += " An earlier try of this change was cut off and may have made it."
                if once or not failure.again:
                    raise error from failure.__cause__
                maybe_done = error.maybe_done
                number += 1
                # A kept-alive connection that the server has closed meanwhile is no sign of trouble.
                if not (reused and isinstance(failure.__cause__, ConnectionError)):
                    is_there = failure.sent or failure.status is not None
                    unconnected = deadline if is_there else unconnected
                    self._pause(number, failure, unconnected)
            else:
                self._tell(request, str(answer.status), started, number)
                return answer

    def stream(
        self, path: str, *, headers: Mapping[str, str], silence: float, patience: float | None = None
    ) -> http.client.HTTPResponse:
        """Ask for an answer that has no end, on a connection of its own, and return it once it begins.

        Whoever reads it closes it, and gets an OSError or HTTPException when the connection is lost.

        Args:
            path: below the server's root, with its query.
            headers: beyond those that every request has.
            silence: seconds that a wait for the answer's next byte may last.
            patience: seconds until no further try is made to get it; those of any request when left out.

        Raises:
            TaskctlError: as `send`.
        """
        deadline = self._clock() + (self._timeout if patience is None else patience)
        number = 1
        while True:
            started = self._clock()
            try:
                response = self._begin_stream(path, headers, silence)
            except _Failed as failure:
                request = _Request("GET", path, headers, None)
                self._tell(request, f"{failure.status or ''} {failure.error.code}".strip(), started, number)
                if not failure.again:
                    raise failure.error from failure.__cause__
                number += 1
                self._pause(number, failure, deadline)
            else:
                self._tell(_Request("GET", path, headers, None), str(response.status), started, number)
                return response

    def _begin_stream(
        self, path: str, headers: Mapping[str, str], silence: float
    ) -> http.client.HTTPResponse:
        connection, before_path, usual = _connection(self.server)
        connection.timeout = TRY_TIMEOUT
        sent = False
        try:
            connection.connect()
            sent, link = True, connection.sock
            connection.request("GET", before_path + path, None, {**usual, **headers, "Accept": EVENT_STREAM})
            response = connection.getresponse()
            if response.status == HTTPStatus.OK and response.headers.get_content_type() == EVENT_STREAM:
                link.settimeout(silence)
                link.close()  # what was read from it keeps it open until that is closed, too
                return response
            answer = self._read(response, self._clock() + TRY_TIMEOUT)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._failed(error, sent=sent) from error
        connection.close()
        self._judge(answer)
        raise _Failed(unexpected_kind(self.server, answer, self._kind), status=answer.status)

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

    def _tell(self, request: _Request, outcome: str, started: float, number: int) -> None:
        if self._on_try:
            url = self.server + request.path
            self._on_try(Try(request.method, url, outcome, self._clock() - started, number))

    def _attempt(self, request: _Request, deadline: float, unconnected: float) -> Answer:
        """Send once and read the answer, or raise `_Failed`; a connection is there by `unconnected`."""
        connection, sent = self._connection, False
        try:
            if connection.sock is None:
                self._limit(unconnected)
                connection.connect()
            self._limit(deadline)
            sent = True
            # A server that refuses a body without reading it closes early, but has answered first.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                url = self._before_path + request.path
                connection.request(request.method, url, request.content, request.headers)
            answer = self._read(connection.getresponse(), deadline)
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error, sent=sent) from error
        self._judge(answer)
        return answer

    def _failed(self, error: OSError | http.client.HTTPException, *, sent: bool) -> _Failed:
        """What it means that a try has ended in this error."""
        if isinstance(error, TimeoutError):
            timed_out = errors.ServerTimedOut(f"{self.server} did not answer in time.")
            return _Failed(timed_out, again=True, sent=sent)
        if isinstance(error, (ConnectionError, http.client.IncompleteRead, ssl.SSLEOFError)):
            return _Failed(self._unreachable(error, sent=sent), again=True, sent=sent)
        if isinstance(error, http.client.HTTPException):
            return _Failed(unexpected(self.server, "something other than HTTP", self._kind), sent=sent)
        # Some versions of Python keep a refused tunnel's socket in the frames of the error.
        traceback.clear_frames(error.__traceback__)
        # A name that does not exist or a certificate that does not hold will not mend itself.
        again = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        return _Failed(self._unreachable(error, sent=sent), again=again, sent=sent)

    def _limit(self, deadline: float) -> None:
        """Let the next wait on the socket last until the deadline, but no longer than one try may wait."""
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        self._connection.timeout = min(left, TRY_TIMEOUT)
        if self._connection.sock is not None:
            self._connection.sock.settimeout(self._connection.timeout)

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> Answer:
        with response:
            chunks, size, stated = [], 0, response.length or 0
            while max(size, stated) <= self._answer_max and (chunk := response.read1(1 << 16)):
                chunks.append(chunk)
                size += len(chunk)
                self._limit(deadline)
            if max(size, stated) > self._answer_max:
                raise _Failed(unexpected(self.server, f"more than {self._answer_max} bytes", self._kind))
            if response.length:  # unlike read, read1 takes an early end for the end
                raise http.client.IncompleteRead(b"", response.length)
            return Answer(response.status, response.reason, response.headers, b"".join(chunks))

    def _judge(self, answer: Answer) -> None:
        """Let a success pass, and raise `_Failed` for everything else."""
        status = answer.status
        if status not in range(200, 300):
            raise _Failed(
                self._error_of(self.server, answer),
                again=status in _TRY_AGAIN,
                wait=retry_after(answer),
                sent=status in _GATEWAY_LOST_IT,
                status=status,
            )
        if status == HTTPStatus.NO_CONTENT:
            return
        if answer.media_type != "application/json":
            raise _Failed(unexpected_kind(self.server, answer, self._kind), status=status)
        if answer.json is None:
            damaged = unexpected(self.server, "JSON that is damaged", self._kind)
            raise _Failed(damaged, again=True, sent=True, status=status)

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
        return make(host, port), parts.path, headers
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
        return connection, parts.path, headers
    return connection, server, {**headers, **signed, "Host": parts.netloc}


def _proxy(scheme: str, netloc: str) -> str | None:
    if not any(name.lower() == f"{scheme}_proxy" for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415 - slow, rarely needed

    return None if proxy_bypass(netloc) else getproxies_environment().get(scheme) or None
