"""When something behind the API fails: 500 and 503, the probes meanwhile, and the way back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import psycopg
import pytest

from conftest import SECRET, Server, User, client_of, make_settings, running
from taskctl.server import migrations
from taskctl.server.app import create_app

pytestmark = pytest.mark.usefixtures("executor")

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"
NOWHERE = "postgresql://postgres:hunter2@127.0.0.1:1/nothing"

BLOCKED = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"

OPERATIONS = [
    ("GET", TASKS, None),
    ("POST", TASKS, {"title": "x"}),
    ("GET", TASK, None),
    ("PUT", TASK, {"title": "x"}),
    ("PATCH", TASK, {"title": "x"}),
    ("PATCH", f"{TASK}/complete", None),
    ("DELETE", TASK, None),
]


@contextlib.asynccontextmanager
async def locked_task(database_url: str, user: User) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection that keeps the user's tasks from being changed."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("SELECT FROM task WHERE user_id = %s FOR UPDATE", [user.id])
        yield connection


async def until_blocked(connection: psycopg.AsyncConnection[Any]) -> None:
    """Until a statement waits for a lock that `connection` holds."""
    while not await (await connection.execute(BLOCKED, [connection.info.backend_pid])).fetchall():
        pass


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    if answer.json()["instance"].startswith("/api"):
        assert answer.headers["cache-control"] == "no-store"
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    for leak in ("Traceback", "psycopg", "SELECT", "relation", "hunter2", "127.0.0.1", ".py"):
        assert leak not in answer.text


async def test_failing_endpoint_is_an_internal_error(database_url: str, user: User) -> None:
    """A bug in the server is 500 with no word of it in the answer."""
    application = create_app(make_settings(database_url))

    async def fail(_: object) -> None:
        raise RuntimeError("hunter2")

    application.add_route("/api/fail", fail)
    async with client_of(application) as client:
        answer = await client.get("/api/fail", headers=user.headers)
    assert_problem(answer, 500, "internal_error")
    assert answer.json().keys() == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert "server-timing" in answer.headers


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
async def test_missing_schema_is_unavailable(
    empty_database: str, user: User, method: str, path: str, body: Any
) -> None:
    """A database without the tables is 503, and nothing of the statement leaves the server."""
    async with running(empty_database, user) as client:
        answer = await client.request(method, path, json=body)
        assert_problem(answer, 503, "database_unavailable")
        assert "SELECT" not in answer.text


async def test_database_that_was_not_migrated_is_not_ready(empty_database: str, user: User) -> None:
    """On an empty database the server lives, is not ready and says why; after the upgrade it is ready."""
    async with running(empty_database, user) as client:
        answer = await client.get("/readyz")
        assert_problem(answer, 503, "not_ready")
        assert answer.json()["checks"] == {"database": "ok", "schema": "empty (none)"}
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/health")).json()["status"] != "ok"
        await asyncio.to_thread(migrations.upgrade, make_settings(empty_database))
        assert (await client.get("/readyz")).json()["checks"] == {"database": "ok", "schema": "ok"}
        assert (await client.post(TASKS, json={"title": "x"})).status_code == 201


async def test_schema_that_is_behind_is_no_server_error(empty_database: str, user: User) -> None:
    """What an older schema cannot carry is 503, before it was ever upgraded and after it was taken back."""
    settings = make_settings(empty_database)
    await asyncio.to_thread(migrations.upgrade, settings, "0001")
    async with running(empty_database, user) as client:
        assert_problem(await client.post(TASKS, json={"title": "x"}), 503, "database_unavailable")
        await asyncio.to_thread(migrations.upgrade, settings)
        assert (await client.post(TASKS, json={"title": "x"})).status_code == 201
        await asyncio.to_thread(migrations.downgrade, settings, "0001")
        assert_problem(await client.post(TASKS, json={"title": "x"}), 503, "database_unavailable")
        assert_problem(await client.get(TASK), 503, "database_unavailable")


@pytest.mark.parametrize(
    ("revision", "ready"), [("0000", False), ("0001", False), ("9999", True), ("other", False)]
)
async def test_readiness_follows_the_revision(
    empty_database: str, user: User, revision: str, ready: bool
) -> None:
    """A schema behind this build, or unknown to it, is not ready; a newer one can be served."""
    migrations.upgrade(make_settings(empty_database))
    async with await psycopg.AsyncConnection.connect(empty_database) as connection:
        await connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
    async with running(empty_database, user) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == (200 if ready else 503)
    assert (answer.json()["checks"]["schema"] == "ok") is ready


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
async def test_database_away(user: User, method: str, path: str, body: Any) -> None:
    """Without a database every operation is 503 `database_unavailable`, soon."""
    async with running(NOWHERE, user, TASKCTL_POOL_TIMEOUT="0.05") as client, asyncio.timeout(2):
        answer = await client.request(method, path, json=body)
    assert_problem(answer, 503, "database_unavailable")
    assert "db;dur=" in answer.headers["server-timing"]


async def test_probes_without_a_database(user: User) -> None:
    """Without a database the server lives, is not ready, and tells which check failed."""
    async with running(NOWHERE, user, TASKCTL_POOL_TIMEOUT="0.05") as client:
        live, ready, health = [await client.get(path) for path in ("/livez", "/readyz", "/health")]
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert_problem(ready, 503, "not_ready")
    assert ready.json()["checks"]["database"] == "database_unavailable"
    assert health.status_code == 200
    assert health.json()["status"] != "ok"
    assert health.json()["database"]["reachable"] is False
    assert "hunter2" not in health.text


async def test_bad_requests_need_no_database(user: User) -> None:
    """What is wrong with a request is told without the database."""
    async with running(NOWHERE, user, TASKCTL_POOL_TIMEOUT="5") as client, asyncio.timeout(2):
        assert (await client.post(TASKS, json={})).status_code == 422
        assert (await client.get("/api/v1/other/tasks")).status_code == 403
        assert (await client.get(TASKS, params={"cursor": "x"})).status_code == 400
        assert (await client.put(TASK, json={"title": "x"}, headers={"If-Match": "x"})).status_code == 400


async def test_lost_connections_are_replaced(empty_database: str, user: User) -> None:
    """After PostgreSQL has ended every connection, nothing but 503 is seen, and soon 200 again."""
    migrations.upgrade(make_settings(empty_database))
    async with (
        running(empty_database, user) as client,
        await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as other,
    ):
        assert (await client.post(TASKS, json={"title": "x"})).status_code == 201
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        async with asyncio.timeout(5):
            while (answer := await client.get(TASK)).status_code != 200:
                assert_problem(answer, 503, "database_unavailable")


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS[3:])
async def test_statement_timeout(database_url: str, user: User, method: str, path: str, body: Any) -> None:
    """A statement that waits too long is given up: 503 `statement_timeout`; nothing is changed."""
    async with running(database_url, user, TASKCTL_STATEMENT_TIMEOUT="0.05") as client:
        made = await client.post(TASKS, json={"title": "Old"})
        async with locked_task(database_url, user), asyncio.timeout(2):
            answer = await client.request(method, path, json=body)
            assert_problem(answer, 503, "statement_timeout")
            assert (await client.get(TASK)).content == made.content
        assert (await client.request(method, path, json=body)).is_success


async def test_busy_pool_is_overloaded(database_url: str, user: User) -> None:
    """Where every connection stays busy, requests are told 503 `overloaded`; the busy one goes on."""
    small = {"TASKCTL_POOL_SIZE": "1", "TASKCTL_POOL_TIMEOUT": "0.05"}
    async with running(database_url, user, **small) as client:
        await client.post(TASKS, json={"title": "Old"})
        async with locked_task(database_url, user) as holder:
            busy = asyncio.create_task(client.patch(TASK, json={"title": "New"}))
            await until_blocked(holder)
            for method, path, body in OPERATIONS:
                assert_problem(await client.request(method, path, json=body), 503, "overloaded")
            assert_problem(await client.get("/readyz"), 503, "not_ready")
            assert (await client.get("/livez")).status_code == 200
        assert (await busy).json()["title"] == "New"
        assert (await client.get(TASK)).json()["version"] == 2


async def test_queue_is_bounded(database_url: str, user: User) -> None:
    """Beyond what may wait for a connection requests are refused at once, not after the wait limit."""
    small = {"TASKCTL_POOL_SIZE": "1", "TASKCTL_POOL_TIMEOUT": "30", "TASKCTL_STATEMENT_TIMEOUT": "30"}
    async with running(database_url, user, **small) as client:
        await client.post(TASKS, json={"title": "Old"})
        async with locked_task(database_url, user) as holder:
            busy = asyncio.create_task(client.patch(TASK, json={"title": "New"}))
            await until_blocked(holder)
            requests = [asyncio.create_task(client.get(TASK)) for _ in range(40)]
            async with asyncio.timeout(5):
                done, _ = await asyncio.wait(requests, return_when="FIRST_COMPLETED")
            for request in done:
                assert_problem(request.result(), 503, "overloaded")
        statuses = [(await request).status_code for request in requests]
        assert set(statuses) == {200, 503}
        assert (await busy).status_code == 200


async def test_cancelled_statement_is_no_server_error(database_url: str, user: User) -> None:
    """A statement that an operator cancels is 503, and its connection serves on."""
    async with running(database_url, user, TASKCTL_POOL_SIZE="1") as client:
        await client.post(TASKS, json={"title": "Old"})
        async with locked_task(database_url, user) as holder:
            busy = asyncio.create_task(client.delete(TASK))
            await until_blocked(holder)
            await holder.execute(CANCEL, [holder.info.backend_pid])
            assert (await busy).status_code == 503
        assert (await client.get(TASK)).status_code == 200


def test_crash_report_holds_no_secret(
    start_server: Callable[..., Server], empty_database: str, user: User
) -> None:
    """What the log tells of an internal error holds neither the token nor the secret nor the task."""
    migrations.upgrade(make_settings(empty_database))
    server = start_server(TASKCTL_ENV="test", DATABASE_URL=empty_database, BETTER_AUTH_SECRET=SECRET)
    with psycopg.connect(empty_database) as connection:
        connection.execute("ALTER TABLE task ADD CHECK (title <> 'hunter2')")
    answer = httpx.post(server.url + TASKS, json={"title": "hunter2"}, headers=user.headers, timeout=10)
    assert_problem(answer, 500, "internal_error")
    log = server.log.read_text()
    assert "internal_error" in log
    for secret in (user.token[:60], user.token[-20:], SECRET, "hunter2"):
        assert secret not in log
