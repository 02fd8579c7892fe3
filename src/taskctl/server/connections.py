"""uvicorn's HTTP connections, bounded in number of requests, size of a head and time to arrive."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import httptools
from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from taskctl.server.sessions import WAITING_PER_SESSION

MAX_HEAD_BYTES = 64 * 1024
"""The parser has no bound of its own for line and headers, and joins the pieces of a header anew."""

UNIX = "unix"
"""The client of a Unix socket, which has no address."""

_ALWAYS_ADMITTED = frozenset({b"/livez", b"/readyz", b"/health", b"/metrics"})
"""Who asks these decides on restarts, or looks for what is wrong."""

_CLOSE = (b"connection", b"close")

_TARGET_SECONDS = 0.15
"""What a request may take, once it has arrived, before fewer are taken in hand."""

_REFUSED_SECONDS = 0.1
"""How long nothing more is read from who was refused: who asks again at once would only be refused again."""

_PASSING_SECONDS = 1.0
"""How long answers may be slow for the sake of a burst, and how long quick until an overload is forgotten."""


class Admission:
    """Decides whether a process takes one more request in hand.

    A burst may queue up, and its answers are slow while it passes. Where they stay slow, a queue only makes
    everybody wait, and in it what is too late crowds out the rest: then the limit falls with each slow
    answer, though not below what keeps the database busy, and rises with each quick one.

    Args:
        connections: how many requests the database takes at once.
        clock: seconds from any moment on.
    """

    def __init__(self, connections: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._least, self._most = connections * 5, connections * (1 + WAITING_PER_SESSION)
        self._limit = float(self._most)
        self._clock = clock
        self._slow_since = self._slow_at = -math.inf
        self.arriving = 0
        """Requests that were begun and whose body is not whole: they cost no work yet."""
        self.lasting = 0
        """Answers that have no end of their own: between what they send they cost no work."""

    def admits(self, in_hand: int) -> bool:
        """Whether another request may be begun beside those that are in hand."""
        return in_hand < (self._most if self._is_calm(self._clock()) else self._limit)

    def ended(self, seconds: float) -> None:
        """Note how long a request took."""
        now = self._clock()
        if self._is_calm(now):
            self._slow_since, self._limit = now, float(self._most)
        if seconds <= _TARGET_SECONDS:
            self._limit = min(self._most, self._limit + 0.2)
            return
        self._slow_at = now
        if now - self._slow_since > _PASSING_SECONDS:
            self._limit = max(self._least, self._limit * 0.98)

    def _is_calm(self, now: float) -> bool:
        return now - self._slow_at > _PASSING_SECONDS


class _Cycle(RequestResponseCycle):
    """A request and its answer, which is sent in one piece where it is whole.

    uvicorn writes head and body separately and examines each header by itself. It still sends whatever has
    no length or comes in parts, and what ends the connection.
    """

    _start: Message | None = None
    """A head that waits for its body; only one that tells its length does, so that streams begin at once."""

    async def send(self, message: Message) -> None:  # type: ignore[override]
        """Take a message of the application (ASGI)."""
        start, self._start = self._start, None
        if message["type"] == "http.response.start":
            if not self.response_started and b"content-length" in dict(message["headers"]):
                self._start = message
                return
        elif start is not None:
            if self._is_whole(start["headers"], message):
                self._send_whole(start, message["body"])
                return
            await super().send(start)  # type: ignore[arg-type]
        await super().send(message)  # type: ignore[arg-type]

    def _is_whole(self, headers: list[tuple[bytes, bytes]], message: Message) -> bool:
        return (
            message["type"] == "http.response.body"
            and not message.get("more_body")
            and (b"content-length", b"%d" % len(message.get("body", b""))) in headers
            and self.scope["method"] != "HEAD"
            and self.keep_alive
            and _CLOSE not in headers
            and _CLOSE not in self.default_headers
            and not self.disconnected
            and not self.flow.write_paused
        )

    def _send_whole(self, start: Message, body: bytes) -> None:
        headers = self.default_headers + start["headers"]
        # Names are all our own; values are not.
        if HEADER_VALUE_RE.search(b" ".join([value for _, value in headers])):
            raise RuntimeError("a header's value has a control character")
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join((STATUS_LINE[start["status"]], *lines, b"\r\n", body)))
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        self.on_response()


class Connection(HttpToolsProtocol):
    """A connection that is closed when a request has not arrived in time, however slowly it trickles.

    uvicorn closes only those that are idle after an answer. The time is for the whole request, line, headers
    and body, and for the first one it starts with the connection.

    Args:
        request_timeout: seconds.
        admission: shared by all connections of the process.
        refuse: makes headers and body of the 503 for what is not admitted, from the ASGI scope.
    """

    def __init__(
        self,
        *arguments: Any,
        request_timeout: float,
        admission: Admission,
        refuse: Callable[[Scope], tuple[list[tuple[bytes, bytes]], bytes]],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._request_timeout = request_timeout
        self._admission = admission
        self._refuse = refuse
        self._counted = False
        self._refused = False
        self._lasting = False
        self._arrived_at = time.monotonic()
        self._arriving = True
        self._in_head = True
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and expect the first request."""
        super().connection_made(cast("asyncio.Transport", transport))
        self.client = self.client or (UNIX, 0)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and expect the rest where a request is not whole and not too long."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too large.")
        self._watch()

    def on_message_begin(self) -> None:
        """Note that a request begins, and whether it is the connection's first."""
        super().on_message_begin()
        self._arriving = True
        self._in_head, self._head_bytes = True, 0
        scope = cast("dict[str, Any]", self.scope)
        scope["taskctl.kept_alive"] = self.cycle is not None
        scope["taskctl.lasts"] = self._lasts

    def on_headers_complete(self) -> None:
        """Note that line and headers are whole."""
        self._in_head = False
        admission = self._admission
        if not (
            self._follows_another()
            or admission.admits(len(self.tasks) - admission.arriving - admission.lasting)
            or self.url in _ALWAYS_ADMITTED
        ):
            self._refused = True
            self._answer_refusal()
            return
        self._counted = True
        admission.arriving += 1
        self._begin()

    def _begin(self) -> None:
        """Start with the request, or let it wait for the one before it.

        As uvicorn does, but with our own cycle, and without what is never on here: WebSocket, a root path,
        `limit_concurrency`, the access log.
        """
        scope, url = cast("Scope", self.scope), httptools.parse_url(self.url)
        path, version = url.path.decode("ascii"), self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        follows_another = self._follows_another()
        self.cycle = _Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if follows_another:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def _follows_another(self) -> bool:
        """Whether the request was sent before the last one was answered; it waits for its turn here."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _answer_refusal(self) -> None:
        """Answer with none of the application's work; the connection is kept where a body soon ends."""
        if self.transport.is_closing():
            return
        scope = cast("Scope", self.scope)
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["raw_path"] = self.url
        scope["path"] = self.url.partition(b"?")[0].decode("ascii", "replace")
        headers, body = self._refuse(scope)
        headers = [*self.server_state.default_headers, *headers]
        sent = dict(self.headers)
        length = sent.get(b"content-length", b"0")
        keep = (
            self.parser.should_keep_alive()
            and _CLOSE not in headers
            and not sent.keys() & {b"expect", b"transfer-encoding"}
            and length.isdigit()
            and int(length) <= MAX_HEAD_BYTES
            and not self.flow.write_paused  # as of one who sends and reads nothing
        )
        lines = b"".join(b"%b: %b\r\n" % header for header in headers if header != _CLOSE)
        end = b"\r\n" if keep else b"connection: close\r\n\r\n"
        if scope["method"] == "HEAD":
            body = b""
        self.transport.write(b"HTTP/1.1 503 Service Unavailable\r\n%b%b%b" % (lines, end, body))
        if not keep:
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        """Take some of the body in."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self._arriving = False
        self._arrived()
        if not self._refused:
            self._arrived_at = time.monotonic()
            super().on_message_complete()
            return
        self._refused = False
        self._forget()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        if not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(_REFUSED_SECONDS, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Note how long it took, and go on with the next."""
        if not self._ended():
            self._admission.ended(time.monotonic() - self._arrived_at)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and expect nothing more."""
        self._forget()
        self._arrived()
        self._ended()
        super().connection_lost(exc)

    def _arrived(self) -> None:
        if self._counted:
            self._counted = False
            self._admission.arriving -= 1

    def _lasts(self) -> None:
        """Take the answer for one that goes on until somebody ends it."""
        if not self._lasting and not self.transport.is_closing():
            self._lasting = True
            self._admission.lasting += 1

    def _ended(self) -> bool:
        """Whether the answer was of that kind; it is one no more."""
        lasted, self._lasting = self._lasting, False
        self._admission.lasting -= lasted
        return lasted

    def _watch(self) -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        answering = cycle is not None and not cycle.response_complete
        if answering and not self._arriving:
            self._forget()
        elif self._timer is None and self.timeout_keep_alive_task is None:
            self._timer = self.loop.call_later(self._request_timeout, self.transport.close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
