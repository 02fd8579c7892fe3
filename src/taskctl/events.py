"""A stream of server-sent events as its reader has it: events, and the connections that they come over.

https://html.spec.whatwg.org/multipage/server-sent-events.html. Standard library only.
"""

import http.client
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from taskctl.vocabulary import HEARTBEAT_MAX

SILENCE_SECONDS = 2 * HEARTBEAT_MAX
"""How long nothing may come before the connection is taken for dead."""

PATIENCE_SECONDS = 900.0
"""How long it is tried to get a connection again."""

_RETRY_SECONDS = 3.0
"""The pause before that, where the server names none; the longest one, where it does."""

_PIECE_BYTES = 1 << 16
_LINE_MAX = 4 << 20
"""Bytes in a line, which is more than the longest task takes."""


class Event(NamedTuple):
    """An event. One without data only says that the stream is alive, and where it has come to."""

    id: str
    type: str
    data: bytes


def follow(
    connect: Callable[[float | None], http.client.HTTPResponse], sleep: Callable[[float], None]
) -> Iterator[Event]:
    """All events, over as many connections as it takes.

    Args:
        connect: opens a stream, trying for so many seconds, or as long as for any request. What it raises
            ends all.
        sleep: waits so many seconds.
    """
    patience = None
    while True:
        response = connect(patience)
        patience = PATIENCE_SECONDS
        retry = _RETRY_SECONDS
        try:
            reader = _Reader(response)
            for event in reader.events():
                retry = reader.retry
                yield event
        except (OSError, http.client.HTTPException):
            pass
        finally:
            response.close()
        sleep(random.uniform(0, retry))  # noqa: S311 - it spreads clients and hides nothing


class _Reader:
    """The events of one connection."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.retry = _RETRY_SECONDS
        self._response = response

    def events(self) -> Iterator[Event]:
        """Each event as its end comes; what is cut off is none."""
        last_id, kind = "", ""
        data: list[bytes] = []
        for line in self._lines():
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if not line:
                yield Event(last_id, kind, b"\n".join(data))
                kind, data = "", []
            elif name == b"id" and b"\0" not in value:
                last_id = value.decode("utf-8", "replace")
            elif name == b"event":
                kind = value.decode("utf-8", "replace")
            elif name == b"data":
                data.append(value)
            elif name == b"retry" and value.isdigit():
                self.retry = min(int(value) / 1000, _RETRY_SECONDS)

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        while piece := self._response.read1(_PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.removesuffix(b"\r") for line in lines)
            if len(rest) > _LINE_MAX:
                raise http.client.LineTooLong("event")
