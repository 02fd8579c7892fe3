"""From settings to a server that listens, gets its database ready, says so, and ends when it is told to."""

import asyncio
import contextlib
import getpass
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import uvicorn

from taskctl.config import LogFormat, ServerSettings
from taskctl.errors import DatabaseUnavailable, LocalError, SettingsInvalid, TaskctlError
from taskctl.server import logs, migrations
from taskctl.server.app import Application, create_app
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.server.protocol import BoundedHttpProtocol
from taskctl.server.routes.probes import readiness
from taskctl.tokens import mint
from taskctl.vocabulary import Environment

log: Any = structlog.get_logger()

_LOCAL_TOKEN_SECONDS = 30 * 86400
_POLL_SECONDS = 0.1
_GRACEFUL_SECONDS = 30

SaveContext = Callable[[str, str], str]
"""Stores a URL and a token where the command line on this machine finds them; returns how to ask for them."""


def serve(settings: ServerSettings, *, migrate: bool, save_context: SaveContext) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; return the exit code.

    It listens at once and is ready once the database answers and its schema is as this build needs it. In
    development it upgrades the schema by itself and, bound to loopback, gives the local user a token.

    Raises:
        LocalError: the address cannot be listened on, or the embedded PostgreSQL cannot be used.
        SettingsInvalid: something in the settings cannot be used.
        MigrationFailed: the schema could not be upgraded.
    """
    logs.configure(settings)
    for warning in settings.warnings():
        log.warning("setting", detail=warning)
    settings = settings.with_kept_secret()
    development = settings.environment is Environment.dev
    with _signals() as signals, contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(settings.host, settings.port))
        where = ""
        if settings.database_url is None:
            stack.enter_context(_without_libpq_variables())
            embedded = stack.enter_context(EmbeddedPostgres(settings.data_dir))
            settings = settings.with_database(embedded.url)
            where = f"   (embedded PostgreSQL in {_short(settings.data_dir)})"
        server = _Server(
            create_app(settings),
            settings,
            listener=listener,
            migrate=migrate or development,
            announce=lambda url: _announce(settings, url, where, save_context),
        )
        signals.serving = True
        log.info("listening", url=_url(listener))
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))
        if server.failure is not None:
            raise server.failure
    return 128 + signal.SIGINT if signals.last == signal.SIGINT else 0


class _Server(uvicorn.Server):
    """uvicorn, which after it listens gets the database ready and tells."""

    def __init__(
        self,
        app: Application,
        settings: ServerSettings,
        *,
        listener: socket.socket,
        migrate: bool,
        announce: Callable[[str], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttpProtocol,
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACEFUL_SECONDS,
            )
        )
        self.failure: TaskctlError | None = None
        self._app = app
        self._settings = settings
        self._listener = listener
        self._migrate = migrate
        self._announce = announce
        self._preparing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._preparing = asyncio.create_task(self._prepare())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
        await super().shutdown(sockets)

    async def _prepare(self) -> None:
        """Upgrade the schema if that is asked for, wait until everything is ready, and say so."""
        try:
            if self._migrate:
                await self._upgrade()
            service = self._app.state.service
            told = ""
            while failed := [
                f"{name}: {result}" for name, result in (await readiness(service)).items() if result != "ok"
            ]:
                if told != (told := "; ".join(failed)):
                    log.warning("not_ready", detail=told)
                await asyncio.sleep(_POLL_SECONDS)
            self._announce(_url(self._listener))
        except TaskctlError as error:
            self.failure = error
            self.should_exit = True

    async def _upgrade(self) -> None:
        told = False
        while True:
            try:
                await asyncio.to_thread(
                    migrations.upgrade,
                    self._settings,
                    report=lambda step: log.info("migrated", revision=step),
                )
            except DatabaseUnavailable as error:
                if not told:
                    log.warning("waiting_for_database", detail=error.detail)
                    told = True
                await asyncio.sleep(_POLL_SECONDS)
            else:
                return


def _announce(settings: ServerSettings, url: str, where: str, save_context: SaveContext) -> None:
    if settings.log_format is LogFormat.json:
        log.info("ready", url=url)
        return
    print(f"Ready at {url}{where}", flush=True)  # noqa: T201 - what the person waits for
    secret = settings.secret
    if settings.environment is Environment.dev and _is_loopback(settings.host) and secret is not None:
        token = mint(
            secret.get_secret_value(), _local_user(), _LOCAL_TOKEN_SECONDS, claims=_local_claims(settings)
        )
        try:
            command = save_context(url, token)
        except TaskctlError as error:  # the server is well, and others may use it
            log.warning("context_not_saved", detail=error.detail)
            return
        print(f'In another terminal:  {command} tasks add "Buy milk"', flush=True)  # noqa: T201 - as above


def _local_claims(settings: ServerSettings) -> dict[str, str]:
    """What the local user's token needs besides, so that this server accepts it."""
    claims = {"iss": settings.jwt_issuers, "aud": settings.jwt_audiences}
    return {name: accepted[0] for name, accepted in claims.items() if accepted}


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "local"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except socket.gaierror as error:
        raise SettingsInvalid(f"TASKCTL_HOST is wrong: there is no address {host!r}") from error
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise LocalError(
            f"Cannot listen on {host} port {port}: {reason}; --port 0 takes a free port"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _short(path: Path) -> str:
    """A path as people write it, with `~` for their home."""
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


@contextlib.contextmanager
def _without_libpq_variables() -> Iterator[None]:
    """Keep PGHOSTADDR, PGOPTIONS and their like, meant for other databases, from the embedded one."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(kept)


class _Signals:
    """What the process was told. Until it serves, a signal ends it; then uvicorn does, gracefully."""

    serving = False
    last: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        self.last = number
        if not self.serving:
            sys.exit(128 + number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal was closed
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Handle the signals that end a server; uvicorn raises them once more when it is done."""
    signals = _Signals()
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {
        number: signal.signal(number, signals.handle) for number in (getattr(signal, name) for name in names)
    }
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
