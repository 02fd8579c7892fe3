"""How a server ends: unready at once, serving on for a while, and then refusing what comes too late."""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from taskctl.errors import ShuttingDown

_PROBES = ("/livez", "/readyz")


@dataclass(slots=True)
class Drain:
    """How far a process is on its way out."""

    draining: bool = False
    """It was told to end: `/readyz` says 503, and everything else is served as ever."""

    closed: bool = False
    """It listens no more: only what has begun is finished, and what has no end of its own is ended."""


class Refusal:
    """Turns away what a kept-alive connection asks after the listener was closed, and what took too long.

    The first request of a connection is served whenever it comes: its client could not know.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI), or raise ShuttingDown."""
        if self._drain.closed and scope.get("taskctl.kept_alive") and scope["path"] not in _PROBES:
            raise ShuttingDown
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._drain.closed:
                raise
            raise ShuttingDown("This server has ended before the request was done.") from None
