"""uvicorn's HTTP connections, bounded in number of requests, size of a head and time to arrive."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

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


_GATHERED_MAX = 64 * 1024
"""Bytes beyond which nothing is held back: the transport has to say when a client reads too slowly."""


class _Gathering:
    """A transport that sends in one system call what is written in one turn of the event loop.

    uvicorn writes an answer's head and its body separately.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this soon, after what was written before."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)
        self._size += len(data)
        if self._size > _GATHERED_MAX:
            self._flush()

    def close(self) -> None:
        """Close, once all was sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            self._size = 0
            self._transport.write(data)


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
        gathering = _Gathering(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", gathering))
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
        super().on_headers_complete()

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
