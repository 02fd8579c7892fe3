"""uvicorn's HTTP connections, bounded in the size of a request's head and in its time to arrive."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024
"""The parser has no bound of its own for line and headers, and joins the pieces of a header anew."""

UNIX = "unix"
"""The client of a Unix socket, which has no address."""


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this soon, after what was written before."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)
        if len(data) > _GATHERED_MAX:
            self._flush()

    def close(self) -> None:
        """Close, once all was sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            self._transport.write(data)


class Connection(HttpToolsProtocol):
    """A connection that is closed when a request has not arrived in time, however slowly it trickles.

    uvicorn closes only those that are idle after an answer. The time is for the whole request, line, headers
    and body, and for the first one it starts with the connection.

    Args:
        request_timeout: seconds.
    """

    def __init__(self, *arguments: Any, request_timeout: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._request_timeout = request_timeout
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
        cast("dict[str, Any]", self.scope)["taskctl.kept_alive"] = self.cycle is not None

    def on_headers_complete(self) -> None:
        """Note that line and headers are whole."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self._arriving = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and expect nothing more."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        answering = cycle is not None and not cycle.response_complete
        if answering and not self._arriving:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._request_timeout, self.transport.close)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
