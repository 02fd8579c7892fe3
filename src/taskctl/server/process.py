"""One process that serves: uvicorn, which gets ready after it listens and drains before it ends."""

import asyncio
import contextlib
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import structlog
import uvicorn

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, TaskctlError
from taskctl.server import migrations
from taskctl.server.app import Application, create_app
from taskctl.server.listening import Listener
from taskctl.server.routes.probes import readiness

log: Any = structlog.get_logger()

_POLL_SECONDS = 0.1
_KEEP_ALIVE_SECONDS = 65
"""Longer than the 60 s for which nginx and most load balancers keep idle connections: they, who know what
they are about to send, shall be the ones to close."""

_SETTLE_SECONDS = 0.1
"""For handshakes that are under way when no more begin."""

_LINGER_SECONDS = 1.0
"""How long idle connections are left open after the listener, for requests that are on their way."""

_CANCEL_SECONDS = 5.0
"""How long requests that were cut off may take to say so."""


class Server(uvicorn.Server):
    """Serves until it is told to end, which `handle_exit` does, and then drains.

    Unready at once, it serves on for the drain's delay; then nothing new connects, and what is in flight has
    until the drain's timeout. Being told again skips the stage that it is at.

    Args:
        settings: complete, as `create_app` needs them.
        listener: what to listen on.
        prepare: is awaited once it listens, before it can be ready.
        announce: is called when it is ready for the first time.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listener: Listener,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
        announce: Callable[[], None],
    ) -> None:
        self._app = create_app(settings)
        super().__init__(_configure(self._app, settings))
        self._settings = settings
        self._listener = listener
        self._prepare = prepare
        self._announce = announce
        self._preparing: asyncio.Task[None] | None = None
        self._failure: TaskctlError | None = None
        self._drain = self._app.state.service.drain
        self._close_at: float | None = None
        self._last = True
        """Whether nobody else goes on accepting from the listener."""

    def run(self, sockets: Any = None) -> None:
        """Serve to the end; raises what kept it from getting ready."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets or [self._listener.socket]))
        if self._failure is not None:
            raise self._failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to end; told again, hurry."""
        if not self._drain.draining:
            self.drain(self._settings.drain_delay)
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    def drain(self, delay: float) -> None:
        """Be unready from now on, and close after `delay` seconds. Every answer ends its connection."""
        self._drain.draining = True
        self._close_at = time.monotonic() + delay
        close = (b"connection", b"close")
        self.config.encoded_headers = [*self.config.encoded_headers, close]
        self.server_state.default_headers = [*self.server_state.default_headers, close]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to whoever runs us."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and begin to get ready."""
        await super().startup(sockets)
        self._preparing = asyncio.create_task(self._become_ready())

    async def on_tick(self, counter: int) -> bool:
        """Say whether it is time to close; ten times a second."""
        if self._close_at is not None and time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Close the listener, let what is in flight finish, and end."""
        self._drain.draining = True
        if self._preparing is not None:
            self._preparing.cancel()
        deadline = time.monotonic() + self._settings.drain_timeout
        if self._last:
            self._listener.refuse()
            await asyncio.sleep(_SETTLE_SECONDS)
        for server in self.servers:
            server.close()
        self._listener.close()
        self._drain.closed = True
        self._app.state.service.feed.end()
        state = self.server_state
        linger = time.monotonic() + _LINGER_SECONDS
        await self._while(lambda: state.connections and (state.tasks or time.monotonic() < linger), deadline)
        for connection in list(state.connections):
            connection.shutdown()
        await self._while(lambda: state.connections, deadline)
        if unfinished := set(state.tasks):
            log.warning("cut_off", requests=len(unfinished))
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=_CANCEL_SECONDS)
        await self.lifespan.shutdown()

    async def _while(self, condition: Callable[[], Any], deadline: float) -> None:
        while condition() and not self.force_exit and time.monotonic() < deadline:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_POLL_SECONDS / 2)

    async def _become_ready(self) -> None:
        """Prepare, wait until every check is passed, and say so."""
        try:
            if self._prepare is not None:
                await self._prepare()
            service = self._app.state.service
            told = ""
            while failed := [
                f"{name}: {result}" for name, result in (await readiness(service)).items() if result != "ok"
            ]:
                if told != (told := "; ".join(failed)):
                    log.warning("not_ready", detail=told)
                await asyncio.sleep(_POLL_SECONDS)
            if shortage := await service.database.connection_shortage(service.settings.workers):
                log.warning("connection_shortage", detail=shortage)
            self._announce()
        except TaskctlError as error:
            self._failure = error
            self.should_exit = True


async def upgrade(settings: ServerSettings) -> None:
    """Upgrade the schema as soon as the database can be reached; raises MigrationFailed."""
    told = False
    while True:
        try:
            await asyncio.to_thread(
                migrations.upgrade, settings, report=lambda step: log.info("migrated", revision=step)
            )
        except DatabaseUnavailable as error:
            if not told:
                log.warning("waiting_for_database", detail=error.detail)
                told = True
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return


def _configure(app: Application, settings: ServerSettings) -> uvicorn.Config:
    http: Any = "auto"
    if sys.platform != "win32":
        from taskctl.server.connections import Admission, Connection  # noqa: PLC0415 - httptools is not on Windows

        http = functools.partial(
            Connection,
            request_timeout=settings.request_timeout,
            admission=Admission(settings.pool_size),
            refuse=app.refuse,
        )
    return uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        http=http,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
