"""Real parts for every test: a PostgreSQL of our own, the application, and a server behind a socket."""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from taskctl.config import ServerSettings
from taskctl.server import migrations
from taskctl.server.app import create_app
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.tokens import mint

SECRET = "a secret for tests that is long enough to sign"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class User:
    """Somebody with a token; every test gets users of its own, so tests share a database in peace."""

    id: str
    token: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def make_user(user_id: str | None = None, **options: Any) -> User:
    """Make a user that nobody else has; options go to `mint`."""
    user_id = user_id or f"user-{os.getpid()}-{next(_numbers)}"
    return User(user_id, mint(SECRET, user_id, options.pop("lifetime", 3600), **options))


def make_settings(database_url: str, **variables: str) -> ServerSettings:
    """Settings for tests; variables by their environment names."""
    environ = {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET} | variables
    return ServerSettings.load(environ, env_file=None)


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
    options = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
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
def database_url(postgres: EmbeddedPostgres) -> str:
    """The URL of a migrated database that all tests share, each with users of its own."""
    migrations.upgrade(make_settings(postgres.url))
    return postgres.url


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


@dataclass
class Server:
    """A `taskctl serve` in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start `taskctl serve` on a free port with the given variables; it is stopped at the end of the run."""
    servers: list[Server] = []

    def start(**variables: str) -> Server:
        log = tmp_path_factory.mktemp("serve") / "log"
        environ = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "TASKCTL_PORT": "0"} | {
            name: value for name, value in os.environ.items() if name.startswith("COVERAGE")
        }
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskctl", "serve"],
                env=environ | variables,
                cwd=log.parent,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ready at "):
                server = Server(line.split()[2], process, log)
                servers.append(server)
                return server
        process.wait(timeout=30)
        raise AssertionError(f"serve ended with {process.returncode}: {log.read_text()}")

    yield start
    for server in servers:
        stop(server)


def stop(server: Server) -> int:
    """Ask a server to stop, wait for it, and return its exit code."""
    server.process.terminate()
    code = server.process.wait(timeout=60)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], database_url: str) -> Server:
    """A running server that all tests share."""
    return start_server(TASKCTL_ENV="test", DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET)


