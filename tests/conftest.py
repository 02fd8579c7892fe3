"""Real parts for every test: a PostgreSQL of our own, the application, and a server behind a socket."""

import contextlib
import functools
import itertools
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest
from fastapi import FastAPI

import better_auth as issuers
import warm
from cable import Cable
from taskctl import contexts
from taskctl.config import ServerSettings
from taskctl.server import migrations
from taskctl.server.app import create_app
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.server.queries import octets
from taskctl.tokens import mint
from waiting import until

SECRET = "a secret for tests that is long enough to sign"

STEPS = [
    "0001 Accounts and tasks",
    "0002 Indexes for lists by status and for repeated creates",
    "0003 Due dates, priorities, tags, projects, recurrence, trash, and the log of changes",
    "0004 Indexes for sorting, filtering and searching",
    "0005 Answers to bulk requests",
    "0006 Quotas, and what is counted for them",
    "0007 What the terms of a task cost",
]
"""The migrations, as they are reported."""

REVISIONS = [step.partition(" ")[0] for step in STEPS]
HEAD = REVISIONS[-1]
NEXT = f"{int(HEAD) + 1:04}"

CONTENT: dict[str, Any] = {
    "title": "x",
    "description": None,
    "due_at": None,
    "due_all_day": False,
    "priority": 0,
    "tags": "",
    "project": None,
    "recurrence": None,
    "time_zone": None,
    "extra": None,
    "completed": False,
    "quota_tasks": 0,
    "quota_bytes": 0,
}
"""A task's content as the statements take it, and no limits."""

_MISCOUNTED = f"""
SELECT user_id, account.tasks, account.bytes, found.* FROM account CROSS JOIN LATERAL (
    SELECT count(*) AS tasks, coalesce(sum({octets()}), 0) AS bytes
    FROM task WHERE task.user_id = account.user_id AND deleted_at IS NULL
) AS found
WHERE counted = last_change AND (account.tasks, account.bytes) <> (found.tasks, found.bytes)
"""  # noqa: S608 - constants

_numbers = itertools.count(1)

DEFAULTS: dict[str, str] = {}
"""Settings of every server and application that a test starts, unless it says otherwise."""


def pytest_configure() -> None:
    """End as after Ctrl-C when a CI system ends the run, so that no PostgreSQL is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _keep_certificates()


def _keep_certificates() -> None:
    """Load everybody's certificates once, and not for each of thousands of clients: it takes 20 ms of CPU."""
    make = ssl.create_default_context
    kept = functools.cache(lambda cafile: make(cafile=cafile))
    ssl.create_default_context = lambda *args, **options: (
        kept(**options) if not args and options.keys() == {"cafile"} else make(*args, **options)
    )


def pytest_unconfigure() -> None:
    """End what processes are forked off."""
    warm.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules of few tests: those start and stop real parts, and none is left for the end."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (tests[item.path], item.path))


@dataclass(frozen=True)
class User:
    """Somebody with a token; every test gets users of its own, so tests share a database in peace."""

    id: str
    token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What a request of this user carries."""
        return {"Authorization": f"Bearer {self.token}"}


def make_user(user_id: str | None = None, **options: Any) -> User:
    """Make a user that nobody else has; options go to `mint`."""
    user_id = user_id or f"user-{os.getpid()}-{next(_numbers)}"
    return User(user_id, mint(SECRET, user_id, options.pop("lifetime", 3600), **options))


def make_settings(database_url: str, **variables: str) -> ServerSettings:
    """Settings for tests; variables by their environment names."""
    environ = {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET}
    return ServerSettings.load(environ | DEFAULTS | variables, env_file=None)


@pytest.fixture(scope="module", params=["pipeline", "pool"])
def executor(request: pytest.FixtureRequest) -> Iterator[str]:
    """What runs statements: a module that uses this is run once with each."""
    DEFAULTS["TASKCTL_PIPELINE"] = "on" if request.param == "pipeline" else "off"
    yield request.param
    del DEFAULTS["TASKCTL_PIPELINE"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One event loop for the whole run, so that applications may outlive a test."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL; nothing of it survives the run."""
    # Not tmp_path: as root PostgreSQL runs as another account, which has to reach it.
    place = Path(tempfile.mkdtemp(prefix="taskctl-tests-"))
    place.chmod(0o755)
    options = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": "200",
    }
    try:
        with EmbeddedPostgres(place / "data", options=options) as server:
            yield server
    finally:
        shutil.rmtree(place)


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres.url.replace("/taskctl?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a migrated database that all tests share, each with users of its own.

    Whatever they have done: what is counted of a user's tasks is what there is.
    """
    migrations.upgrade(make_settings(postgres.url))
    yield postgres.url
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute(_MISCOUNTED).fetchall() == []


@pytest.fixture
def user() -> User:
    """Somebody with no tasks yet."""
    return make_user()


@pytest.fixture(scope="session")
async def app(database_url: str) -> AsyncIterator[FastAPI]:
    """The application, started."""
    application = create_app(make_settings(database_url))
    async with application.router.lifespan_context(application):
        yield application


def client_of(application: FastAPI) -> httpx.AsyncClient:
    """A client that reaches the application through ASGI; errors come back as answers."""
    transport = httpx.ASGITransport(app=application, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://taskctl.test")


@pytest.fixture
async def api(app: FastAPI, user: User) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, signed in as `user`."""
    async with client_of(app) as client:
        client.headers.update(user.headers)
        yield client


@contextlib.asynccontextmanager
async def running(database_url: str, user: User, **variables: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client, signed in, of an application of its own."""
    application = create_app(make_settings(database_url, **variables))
    async with application.router.lifespan_context(application), client_of(application) as client:
        client.headers.update(user.headers)
        yield client


@dataclass
class Server:
    """A `taskctl serve` in a process of its own; `url` is empty until it is known."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    """What it wrote to stderr."""
    out: Path
    """What it wrote to stdout."""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def bare_environ(home: Path, **variables: str) -> dict[str, str]:
    """The environment of somebody whose home is `home` and who has set only these variables."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE")}
    return {"PATH": os.environ["PATH"], "HOME": str(home)} | kept | variables


def logged_in(home: Path, url: str, token: str, **variables: str) -> dict[str, str]:
    """The environment of somebody who has logged in at a server, with these variables."""
    environ = bare_environ(home, TASKCTL_CONFIG_DIR=str(home / "config"), **variables)
    contexts.save_context("here", url, token, environ=environ)
    return environ


def taskctl(*arguments: str, environ: Mapping[str, str], given: str = "", cwd: Path | None = None) -> Done:
    """Run `taskctl` to its end, with pipes and in this environment only."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with warm.Process(arguments, env=environ, cwd=cwd or environ["HOME"], **pipes) as process:
        try:
            out, err = process.communicate(given.encode(), timeout=60)
        finally:
            process.kill()
    return Done(process.returncode, out.decode(), err.decode())


def taskctl_in_terminal(*arguments: str, environ: Mapping[str, str], typed: str = "") -> Done:
    """Run `taskctl` in a terminal of 60 columns; what it writes there is `out`."""
    master, slave = pty.openpty()
    variables = {"TERM": "xterm-256color", "COLUMNS": "60", **environ}
    with warm.Process(
        arguments, stdin=slave, stdout=slave, stderr=slave, env=variables, cwd=environ["HOME"]
    ) as process:
        os.close(slave)
        os.write(master, typed.encode())
        killer = threading.Timer(60, process.kill)
        killer.start()
        written = b""
        # Linux says EIO where others say that it is the end.
        with contextlib.suppress(OSError):
            while chunk := os.read(master, 1 << 16):
                written += chunk
        killer.cancel()
        killer.join()
    os.close(master)
    return Done(process.returncode, written.decode().replace("\r\n", "\n"), "")


def free_port() -> int:
    """A port that nothing listens on, for a server whose address must be known before it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def launch_server(folder: Path, *arguments: str, **variables: str) -> Server:
    """Start `taskctl serve` with these variables only, and do not wait for it; `stop` must follow."""
    log, out = folder / "log", folder / "out"
    with log.open("wb") as stderr, out.open("wb") as stdout:
        process = warm.Process(
            ["serve", *arguments],
            env=bare_environ(folder, TASKCTL_PORT="0") | DEFAULTS | variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    return Server("", process, log, out)


def wait_until_ready(server: Server, seconds: float = 60) -> Server:
    """Wait until a server has said where it is ready; where it does not, stop it and fail with its log."""

    def said() -> re.Match[str] | None:
        ready = re.search(r"^Ready at (\S+)", server.out.read_text(), re.MULTILINE)
        return ready or re.search(r'"event": "ready", "url": "([^"]+)"', server.log.read_text())

    with contextlib.suppress(AssertionError):
        until(lambda: said() or server.process.poll() is not None, seconds)
    if (found := said()) is None:
        code = stop(server)
        raise AssertionError(f"serve was not ready and ended with {code}: {server.log.read_text()}")
    server.url = found[1]
    return server


def stop(server: Server) -> int:
    """Ask a server to stop, wait for it, and return its exit code."""
    server.process.terminate()
    try:
        return server.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
        raise


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start `taskctl serve` on a free port with the given variables; it is stopped at the end of the run."""
    servers: list[Server] = []

    def start(*arguments: str, **variables: str) -> Server:
        servers.append(launch_server(tmp_path_factory.mktemp("serve"), *arguments, **variables))
        return wait_until_ready(servers[-1])

    yield start
    for server in servers:
        server.process.terminate()
    for server in servers:
        stop(server)


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start `taskctl serve` as `start_server` does, without waiting; it is stopped at the end of the test."""
    servers: list[Server] = []

    def start(*arguments: str, **variables: str) -> Server:
        servers.append(launch_server(tmp_path_factory.mktemp("serve"), *arguments, **variables))
        return servers[-1]

    yield start
    for server in servers:
        stop(server)


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """A home that PostgreSQL's account may enter; an embedded server that was left there is ended."""
    # Not tmp_path: as root PostgreSQL runs as another account, which has to reach it.
    place = Path(tempfile.mkdtemp(prefix="taskctl-home-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        embedded = embedded_in(place)
        if (embedded._pgdata / "postmaster.pid").exists():
            embedded._run("pg_ctl", "stop", "-m", "immediate", timeout=30)
        shutil.rmtree(place)


def embedded_in(home: Path) -> EmbeddedPostgres:
    """The embedded server of somebody with this home."""
    return EmbeddedPostgres(home / ".local" / "share" / "taskctl", options={"fsync": "off"})


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    """The home of somebody who has never run taskctl."""
    with temporary_home() as place:
        yield place


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that the tests of a module share; each leaves nothing running there."""
    with temporary_home() as place:
        yield place


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], database_url: str) -> Server:
    """A running server that all tests share."""
    return start_server(TASKCTL_ENV="test", DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET)


@pytest.fixture(scope="module")
def cable(server: Server) -> Iterator[Cable]:
    """The way to that server, for the tests of a module; who cuts it mends it."""
    made = Cable(server.url)
    yield made
    made.cut()


@pytest.fixture(scope="session")
def start_better_auth(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., issuers.BetterAuth]]:
    """Start a Better Auth with the given settings; it is stopped at the end of the run."""
    place = tmp_path_factory.mktemp("example") / "better-auth"
    issuers.install(request.config.cache.mkdir("better-auth"), place)
    started: list[issuers.BetterAuth] = []

    def start(**variables: str) -> issuers.BetterAuth:
        started.append(issuers.start(place, tmp_path_factory.mktemp("better-auth"), **variables))
        return started[-1]

    yield start
    for issuer in started:
        issuer.stop()


@pytest.fixture(scope="session")
def better_auth_pair(
    start_better_auth: Callable[..., issuers.BetterAuth],
    start_server: Callable[..., Server],
    database_url: str,
) -> tuple[issuers.BetterAuth, Server]:
    """A Better Auth and a `taskctl serve` that know each other, as the example's README starts them."""
    port = str(free_port())
    issuer = start_better_auth(TASKCTL_URL=f"http://127.0.0.1:{port}", DEVICE_INTERVAL="1s")
    trusting = start_server(
        TASKCTL_ENV="test",
        TASKCTL_PORT=port,
        DATABASE_URL=database_url,
        BETTER_AUTH_URL=issuer.url,
        TASKCTL_CORS_ORIGINS=issuer.url,
    )
    return issuer, trusting
