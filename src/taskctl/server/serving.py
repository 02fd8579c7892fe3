"""From settings to a server that listens, gets its database ready, says so, and ends when it is told to."""

import contextlib
import functools
import getpass
import ipaddress
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from taskctl.config import ServerSettings
from taskctl.errors import TaskctlError
from taskctl.server import listening, logs, metrics
from taskctl.server.app import create_app
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.server.listening import Listener
from taskctl.server.process import Server, upgrade
from taskctl.server.supervisor import Supervisor
from taskctl.setting import LogFormat
from taskctl.tokens import mint
from taskctl.vocabulary import Environment

log: Any = structlog.get_logger()

_LOCAL_TOKEN_SECONDS = 30 * 86400

SaveContext = Callable[[str, str], str]
"""Stores a URL and a token where the command line on this machine finds them; returns how to ask for them."""


def serve(
    settings: ServerSettings,
    *,
    migrate: bool,
    save_context: SaveContext,
    uds: Path | None = None,
    descriptor: int | None = None,
    reload: bool = False,
) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; return the exit code.

    It listens at once and is ready once the database answers and its schema is as this build needs it. In
    development it upgrades the schema by itself and, bound to loopback, gives the local user a token.

    Args:
        settings: complete but for what development provides by itself.
        migrate: upgrade the schema, also outside development.
        save_context: where the local user's token goes.
        uds: listen on this path instead of an address.
        descriptor: listen on this socket, which is open already, instead of an address.
        reload: start afresh when the package's files change.

    Raises:
        LocalError: it cannot be listened there, the embedded PostgreSQL cannot be used, or no worker starts.
        SettingsInvalid: something in the settings cannot be used.
        UsageInvalid: the descriptor is not a listening socket's.
        MigrationFailed: the schema could not be upgraded.
    """
    logs.configure(settings)
    for warning in settings.warnings():
        log.warning("setting", detail=warning)
    settings = settings.with_kept_secret()
    development = settings.environment is Environment.dev
    _raise_file_limit()
    with _signals() as signals, contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(_listen(settings, uds, descriptor)))
        where = ""
        if settings.database_url is None:
            stack.enter_context(_without_libpq_variables())
            embedded = stack.enter_context(EmbeddedPostgres(settings.data_dir))
            settings = settings.with_database(embedded.url)
            where = f"   (embedded PostgreSQL in {_short(settings.data_dir)})"
        stack.enter_context(metrics.shared(settings.workers))
        prepare = functools.partial(upgrade, settings) if migrate or development else None
        # The address is known now; once the drain has begun the listener may be closed.
        announce = functools.partial(_announce, settings, listener.url, listener.host, where, save_context)
        running: Server | Supervisor
        if settings.workers > 1 or reload:
            create_app(settings)  # finds what is wrong with the settings, once and here
            running = Supervisor(settings, listener, prepare=prepare, announce=announce, reload=reload)
        else:
            running = Server(settings, listener, prepare=prepare, announce=announce)
        log.info("listening", url=listener.url)
        signals.running = running
        running.run()
    return 128 + signal.SIGINT if signals.last == signal.SIGINT else 0


def _listen(settings: ServerSettings, uds: Path | None, descriptor: int | None) -> Listener:
    if uds is None and descriptor is None:
        descriptor = listening.activated()
    if uds is not None:
        listener = listening.listen_at(uds)
    elif descriptor is not None:
        listener = listening.adopt(descriptor)
    else:
        listener = listening.listen(settings.host, settings.port)
    listener.limit_stalls(settings.request_timeout)
    return listener


def _announce(settings: ServerSettings, url: str, host: str, where: str, save_context: SaveContext) -> None:
    if settings.log_format is LogFormat.json:
        log.info("ready", url=url)
        return
    print(f"Ready at {url}{where}", flush=True)  # noqa: T201 - what the person waits for
    secret = settings.secret
    if settings.environment is Environment.dev and _is_loopback(host) and secret is not None:
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
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
    """What the process was told. Until something runs that can end in order, a signal ends it at once."""

    running: Server | Supervisor | None = None
    last: int | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.last = number
        if self.running is None:
            sys.exit(128 + number)
        self.running.handle_exit(number, frame)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    """Handle the signals that end a server; a closed terminal's SIGHUP is one of them."""
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


def _raise_file_limit() -> None:
    """Allow as many connections as the system does: the usual soft limit of 1024 is for select(2)."""
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - not on Windows

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
