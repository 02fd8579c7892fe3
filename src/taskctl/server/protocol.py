"""HTTP over a socket: uvicorn's own, with a bound on what a client may send before its request begins."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers go on for more than `MAX_HEAD_BYTES`.

    The parser has no bound of its own, and joins a header's pieces anew as each arrives.
    """

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        """Take what has arrived (asyncio.Protocol)."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        """Start to count: a request begins (httptools)."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Stop to count: the headers are whole (httptools)."""
        self._in_head = False
        super().on_headers_complete()
