"""`taskctl serve` outside development: what it refuses, what it logs, and how it waits for its database."""

import contextlib
import json
import socket

import httpx
import psycopg
import pytest

from conftest import (
    HEAD,
    SECRET,
    bare_environ,
    embedded_in,
    free_port,
    make_settings,
    make_user,
    stop,
    taskctl,
    until,
    wait_until_ready,
)
from taskctl.server.migrations import upgrade

GOOD = "kW3vQ0m6gq1xJ9yZr8bT5nD2cF7hL4pS"
NOWHERE = "postgresql://postgres:hunter2@127.0.0.1:1/nothing"
TASKS = "/api/v1/me/tasks"
ACCESS = {"request_id", "user_id", "method", "route", "status", "duration_ms", "db_ms", "bytes", "client"}


def answer(url):
    """The status that a server answers with, or None where nothing listens."""
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.ConnectError:
        return None


def variables(database_url, **more):
    """The settings of a server outside development."""
    return {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET, **more}


@pytest.fixture
def listening(launch):
    """Start a server that need not become ready, and wait until it listens."""

    def start(*arguments, **more):
        port = free_port()
        server = launch("--port", str(port), *arguments, **more)
        server.url = f"http://127.0.0.1:{port}"
        until(lambda: answer(f"{server.url}/livez") == 200 or server.process.poll() is not None)
        assert server.process.poll() is None, server.log.read_text()
        return server

    return start


def test_only_development_saves_anything(server):
    """Elsewhere no context is saved, no secret is kept, and no command is suggested."""
    home = server.log.parent
    assert server.out.read_text() == f"Ready at {server.url}\n"
    assert sorted(path.name for path in home.iterdir()) == ["log", "out"]


@pytest.mark.parametrize(
    ("given", "names", "says"),
    [
        ({"BETTER_AUTH_SECRET": GOOD}, "DATABASE_URL", "is not set"),
        ({"DATABASE_URL": NOWHERE, "BETTER_AUTH_SECRET": "s" * 31}, "BETTER_AUTH_SECRET", "31 bytes"),
        (
            {"DATABASE_URL": NOWHERE, "BETTER_AUTH_SECRET": "Better-Auth-Secret-12345678901234567890"},
            "BETTER_AUTH_SECRET",
            "publicly known",
        ),
        (
            {"DATABASE_URL": NOWHERE, "BETTER_AUTH_SECRET": GOOD, "BETTER_AUTH_SECRET_PREVIOUS": "changeme"},
            "BETTER_AUTH_SECRET_PREVIOUS",
            "publicly known",
        ),
    ],
)
def test_production_refuses_what_is_missing_or_weak(tmp_path, given, names, says):
    """One line names the variable and says what is wrong, never its value; the exit code is 2."""
    done = taskctl("serve", environ=bare_environ(tmp_path, TASKCTL_ENV="prod", **given))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"taskctl: {names} ")
    assert says in done.err
    for secret in ("hunter2", "s" * 31, "Better-Auth-Secret", "changeme"):
        assert secret not in done.err


def test_wrong_values_are_2(tmp_path):
    """All wrong values are named in one line, each with what it takes, none with what it was given."""
    wrong = {
        "TASKCTL_ENV": "staging",
        "TASKCTL_PORT": "http",
        "DATABASE_URL": "mysql://root:hunter2@localhost/tasks",
        "TASKCTL_LOG_FORMAT": "xml",
        "TASKCTL_DOCS": "perhaps",
        "TASKCTL_MAX_BODY": "hunter2",
    }
    done = taskctl("serve", environ=bare_environ(tmp_path, **variables(NOWHERE) | wrong))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    for name in wrong:
        assert f"{name} is wrong (" in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TASKCTL_HOST", "no.such.host.invalid"),
        ("DATABASE_URL", "postgresql://root:hunter2@localhost/tasks?nonsense=1"),
    ],
)
def test_values_that_turn_out_to_be_wrong_are_2(tmp_path, name, value):
    """What only its use shows to be wrong is said in the same way."""
    done = taskctl(
        "serve", environ=bare_environ(tmp_path, **variables(NOWHERE, TASKCTL_PORT="0") | {name: value})
    )
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"taskctl: {name} is ")
    assert "hunter2" not in done.err


def test_the_env_file_counts_less_than_the_environment(tmp_path):
    """`.env` in the working directory is read, and the environment wins over it."""
    (tmp_path / ".env").write_text("TASKCTL_ENV=prod\nTASKCTL_PORT=http\n")
    assert "TASKCTL_PORT" in taskctl("serve", environ=bare_environ(tmp_path)).err
    done = taskctl("serve", environ=bare_environ(tmp_path, TASKCTL_PORT="0"))
    assert (done.code, "DATABASE_URL is not set" in done.err) == (2, True)


def test_production_logs_json(launch, database_url):
    """Production writes one JSON object a line to stderr and nothing to stdout, and has no docs."""
    user, expired = make_user(), make_user(lifetime=-3600)
    server = launch(
        TASKCTL_ENV="prod",
        TASKCTL_HOST="127.0.0.1",
        TASKCTL_LOG_LEVEL="debug",
        DATABASE_URL=database_url,
        BETTER_AUTH_SECRET=SECRET,
    )
    wait_until_ready(server)
    with httpx.Client(base_url=server.url, headers={"X-Request-ID": "mine"}) as client:
        assert client.post(TASKS, json={"title": "x"}, headers=user.headers).status_code == 201
        assert client.get(TASKS, headers=expired.headers).status_code == 401
        assert client.get(f"{TASKS}/7?x=%0a%1b[31m", headers=user.headers).status_code == 422
        for path in ("/docs", "/redoc", "/openapi.json", "/%0a%1b[31m"):
            assert client.get(path).status_code == 404
    assert stop(server) == 0
    assert server.out.read_bytes() == b""
    events = [json.loads(line) for line in server.log.read_text().splitlines()]
    requests = [event for event in events if event["event"] == "request"]
    assert len(requests) == 7
    for event in requests:
        assert event.keys() == {"event", "level", "timestamp", *ACCESS}
        assert (event["request_id"], event["client"], event["level"]) == ("mine", "127.0.0.1", "info")
    added, refused, *_, unknown = requests
    assert (added["user_id"], added["method"], added["status"]) == (user.id, "POST", 201)
    assert added["route"] == "/api/v1/{user_id}/tasks"
    assert 0 < added["db_ms"] <= added["duration_ms"]
    assert added["bytes"] > 0
    assert (refused["user_id"], refused["db_ms"], refused["status"]) == (None, None, 401)
    assert (unknown["route"], unknown["status"]) == (None, 404)
    assert not (server.log.parent / ".config").exists()


def test_behind_until_it_is_upgraded(listening, empty_database, tmp_path, user):
    """A database without a schema leaves the server alive but not ready, until somebody upgrades it."""
    server = listening(**variables(empty_database))
    refusal = until(lambda: (got := httpx.get(f"{server.url}/readyz")).json().get("checks") and got)
    assert (refusal.status_code, refusal.json()["code"]) == (503, "not_ready")
    assert refusal.headers["retry-after"]
    until(lambda: "empty" in httpx.get(f"{server.url}/readyz").json()["checks"]["schema"])
    assert httpx.get(f"{server.url}/livez").status_code == 200
    assert httpx.get(server.url + TASKS, headers=user.headers).json()["code"] == "database_unavailable"
    assert server.out.read_text() == ""

    environ = bare_environ(tmp_path, **variables(empty_database))
    upgrade(make_settings(empty_database), "0001")
    until(lambda: "behind" in httpx.get(f"{server.url}/readyz").json()["checks"]["schema"])
    assert taskctl("db", "upgrade", environ=environ).code == 0
    address = server.url
    wait_until_ready(server)
    assert server.url == address
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
    assert stop(server) == 0


def test_serve_migrate(launch, empty_database, user):
    """`--migrate` upgrades first, and says which revisions it ran."""
    server = wait_until_ready(launch("--migrate", **variables(empty_database)))
    assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
    log = server.log.read_text()
    assert log.index("0001 Accounts and tasks") < log.index("0002 Indexes")
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)


def test_migrate_refuses_a_schema_it_does_not_know(launch, empty_database):
    """Where the upgrade cannot be done, `serve --migrate` ends with one sentence and 1."""
    upgrade(make_settings(empty_database))
    with psycopg.connect(empty_database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'zzzz'")
    server = launch("--migrate", **variables(empty_database))
    assert server.process.wait(timeout=30) == 1
    log = server.log.read_text()
    assert log.splitlines()[-1].startswith("taskctl: The database is at zzzz")
    assert "Traceback" not in log


@pytest.mark.parametrize("arguments", [[], ["--migrate"]])
def test_started_before_its_database(listening, fresh_home, user, arguments):
    """A server without a database yet listens, waits without noise, and serves once it is there."""
    embedded = embedded_in(fresh_home)
    server = listening(*arguments, **variables(embedded.url))
    refusal = until(
        lambda: (got := httpx.get(f"{server.url}/readyz", timeout=10)).json().get("checks") and got
    )
    assert (refusal.status_code, refusal.json()["checks"]["database"]) == (503, "database_unavailable")
    assert httpx.get(f"{server.url}/health", timeout=10).json()["database"]["reachable"] is False
    assert httpx.get(f"{server.url}/livez").status_code == 200
    with embedded:
        if not arguments:
            upgrade(make_settings(embedded.url))
        wait_until_ready(server)
        assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
        assert stop(server) == 0
    log = server.log.read_text()
    assert log.count("waiting_for_database") == len(arguments)
    assert log.count("not_ready ") <= 3
    assert "Traceback" not in log


@pytest.mark.parametrize("arguments", [[], ["--migrate"]])
def test_stopped_while_it_waits(listening, arguments):
    """A server that still waits for its database ends as any other does, without a traceback."""
    server = listening(*arguments, **variables(NOWHERE))
    until(lambda: "not_ready" in (log := server.log.read_text()) or "waiting_for_database" in log)
    assert stop(server) == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "hunter2" not in log


def test_a_head_without_end_is_refused(server):
    """A request line or header that goes on and on is answered 400 and the connection closed."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"a" * 10_000)
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(1000)
            assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert httpx.get(server.url + "/livez").status_code == 200
