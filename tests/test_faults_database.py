"""The database's bad days: killed, stopped, restarted, frozen, cut off; what was promised holds."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psycopg
import pytest

from conftest import (
    SECRET,
    Server,
    User,
    make_settings,
    make_user,
    running,
    until,
    wait_until_ready,
)
from taskctl.server import migrations
from taskctl.server.database import Database
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.server.queries import Statement
from taskctl.server.sessions import StatementFailed

pytestmark = pytest.mark.usefixtures("executor")

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"

OPERATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", TASKS, {}),
    ("GET", TASK, {}),
    ("POST", TASKS, {"json": {"title": "x"}}),
    ("POST", TASKS, {"json": {"title": "x"}, "headers": {"Idempotency-Key": "key"}}),
    ("PUT", TASK, {"json": {"title": "New"}}),
    ("PATCH", TASK, {"json": {"title": "Newer"}}),
    ("PATCH", f"{TASK}/complete", {}),
]
"""What is repeated when its connection was lost."""

NEVER_REPEATED: list[tuple[str, str, dict[str, Any]]] = [
    ("PATCH", TASK, {"json": {"title": "New"}, "headers": {"If-Match": '"1"'}}),
    ("PUT", TASK, {"json": {"title": "New"}, "headers": {"If-Match": '"1"'}}),
    ("DELETE", TASK, {}),
]


@contextlib.contextmanager
def clusters(*names: str) -> Iterator[list[EmbeddedPostgres]]:
    """PostgreSQL servers of a test's own, which it may stop and kill; nothing of them is left behind."""
    # Not tmp_path: as root PostgreSQL runs as another account, which has to reach it.
    place = Path(tempfile.mkdtemp(prefix="taskctl-faults-"))
    place.chmod(0o755)
    options = {"fsync": "off", "max_connections": "60"}
    servers = [EmbeddedPostgres(place / name, options=options) for name in names]
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(place)


def stop_database(cluster: EmbeddedPostgres, how: str) -> None:
    """End PostgreSQL: `fast`, `immediate`, or by `kill -9` of its first process."""
    if how == "kill":
        pid = int((cluster._pgdata / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        # A dead process that nobody has waited for yet would keep the next one from starting.
        until(lambda: not _exists(pid))
    else:
        assert cluster._run("pg_ctl", "stop", "-m", how, timeout=30).returncode == 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Load:
    """Writers in parallel that never repeat a request, and what they were answered."""

    def __init__(self, url: str, writers: int = 8) -> None:
        self.acknowledged: list[tuple[str, int, str]] = []
        self.refused: Counter[tuple[int, str]] = Counter()
        self._url = url
        self._writers = writers
        self._stopping = False

    async def __aenter__(self) -> Self:
        users = [make_user(), make_user()]
        self._tasks = [asyncio.create_task(self._write(users[n % 2], n)) for n in range(self._writers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int = 50) -> None:
        """Until so many further creates were acknowledged."""
        goal = len(self.acknowledged) + count
        await self._until(lambda: len(self.acknowledged) >= goal)

    async def refusals(self, count: int = 8) -> None:
        """Until so many requests were refused."""
        await self._until(lambda: self.refused.total() >= count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.wait(self._tasks, timeout=0.01)
                for task in self._tasks:
                    assert not task.done(), await task

    async def _write(self, user: User, writer: int) -> None:
        number = 0
        async with httpx.AsyncClient(base_url=self._url, headers=user.headers, timeout=20) as client:
            while not self._stopping:
                title = f"{writer}-{number}"
                number += 1
                headers = {"Idempotency-Key": title} if number % 2 else {}
                answer = await client.post(TASKS, json={"title": title}, headers=headers)
                if answer.status_code == 201:
                    assert "idempotency-replayed" not in answer.headers or headers
                    self.acknowledged.append((user.id, answer.json()["id"], title))
                else:
                    assert "retry-after" in answer.headers, answer.text
                    self.refused[answer.status_code, answer.json()["code"]] += 1

    def check(self, database_url: str) -> None:
        """Every acknowledged task is there once, and no create, acknowledged or not, made two."""
        users = sorted({user for user, _, _ in self.acknowledged})
        with psycopg.connect(database_url) as connection:
            rows = connection.execute(
                "SELECT user_id, id, title FROM task WHERE user_id = ANY(%s)", [users]
            ).fetchall()
        assert set(self.acknowledged) <= set(rows)
        assert len(set(self.acknowledged)) == len(self.acknowledged)
        titles = Counter((user, title) for user, _, title in rows)
        assert titles.most_common(1)[0][1] == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A migrated database that the tests of this module end and start, and leave running."""
    with clusters("data") as (server,):
        server.start()
        migrations.upgrade(make_settings(server.url))
        yield server


@pytest.fixture(scope="module")
def service(cluster: EmbeddedPostgres, start_server: Callable[..., Server], executor: str) -> Server:
    """A `taskctl serve` on that database, in a process of its own."""
    assert executor
    return start_server(TASKCTL_ENV="test", DATABASE_URL=cluster.url, BETTER_AUTH_SECRET=SECRET)


class Wire:
    """A proxy between the server and PostgreSQL's socket that can cut or hold the next answer.

    What is cut is the answer to a statement that names `cut_next`, a user: the connection that listens for
    changes has no such.
    """

    def __init__(self, cluster: EmbeddedPostgres, folder: Path) -> None:
        self._target = str(cluster._socket_dir() / ".s.PGSQL.5432")
        self._folder = folder
        self.url = f"postgresql://postgres@/taskctl?host={quote(str(folder), safe='')}&port=5432"
        self.cut_next = ""
        self.holding = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self._folder / ".s.PGSQL.5432")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        there, back = await asyncio.open_unix_connection(self._target)
        forward = asyncio.create_task(self._forward(reader, back))
        try:
            while data := await there.read(1 << 16):
                if self.holding:
                    await asyncio.Event().wait()
                if back in self._cut:
                    break
                writer.write(data)
        finally:
            forward.cancel()
            writer.close()
            back.close()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.cut_next and self.cut_next.encode() in data:
                self.cut_next = ""
                self._cut.add(writer)
            writer.write(data)
        writer.close()


@pytest.fixture
async def wire(cluster: EmbeddedPostgres) -> AsyncIterator[Wire]:
    """A proxy in front of the cluster."""
    with tempfile.TemporaryDirectory(prefix="taskctl-wire-") as folder:
        async with Wire(cluster, Path(folder)) as proxy:
            yield proxy


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "immediate", "fast"])
async def test_acknowledged_tasks_survive(cluster: EmbeddedPostgres, service: Server, how: str) -> None:
    """Whatever ends PostgreSQL under load, each acknowledged task is there once, and the server recovers."""
    async with Load(service.url) as load:
        await load.more()
        await asyncio.to_thread(stop_database, cluster, how)
        await load.refusals()
        await asyncio.to_thread(cluster.start)
        await load.more()
    load.check(cluster.url)
    assert set(load.refused) == {(503, "database_unavailable")}


@pytest.mark.slow
async def test_restarts_under_load(cluster: EmbeddedPostgres, service: Server) -> None:
    """Restarted again and again, PostgreSQL costs nothing but 503."""
    async with Load(service.url) as load:
        for how in ("fast", "immediate", "fast"):
            await load.more(20)
            await asyncio.to_thread(stop_database, cluster, how)
            await asyncio.to_thread(cluster.start)
        await load.more(20)
    load.check(cluster.url)
    assert set(load.refused) <= {(503, "database_unavailable")}


@pytest.mark.slow
async def test_database_away_and_back(cluster: EmbeddedPostgres, service: Server, user: User) -> None:
    """While PostgreSQL is stopped all is 503 at once, alive and unready; it comes back by itself."""
    async with httpx.AsyncClient(base_url=service.url, headers=user.headers, timeout=20) as client:
        await client.post(TASKS, json={"title": "x"})
        stop_database(cluster, "fast")
        try:

            async def refused(method: str, path: str, options: dict[str, Any]) -> None:
                answer = await client.request(method, path, **options)
                assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
                assert int(answer.headers["retry-after"]) >= 1

            requests = [refused(*each) for each in (OPERATIONS + NEVER_REPEATED) * 8]
            await asyncio.gather(*requests)
            assert (await client.get("/livez")).status_code == 200
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["database"]) == (503, "database_unavailable")
        finally:
            cluster.start()
        # Nobody asks, and it connects all the same.
        with psycopg.connect(cluster.url, autocommit=True) as connection:
            query = "SELECT FROM pg_stat_activity WHERE application_name = 'taskctl'"
            until(lambda: connection.execute(query).fetchall(), seconds=5)
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.delete(TASK)).status_code == 204


async def test_first_requests_after_a_restart_succeed(
    cluster: EmbeddedPostgres, service: Server, user: User
) -> None:
    """Connections that a restart has ended are noticed before a statement is sent: nobody sees it."""
    async with httpx.AsyncClient(base_url=service.url, headers=user.headers, timeout=20) as client:
        await client.post(TASKS, json={"title": "x"})
        await asyncio.gather(*(client.get(TASK) for _ in range(50)))
        for operations in (OPERATIONS, NEVER_REPEATED[-1:]):
            stop_database(cluster, "fast")
            cluster.start()
            answers = await asyncio.gather(*(client.request(m, p, **o) for m, p, o in operations))
            assert all(answer.is_success for answer in answers), [answer.text for answer in answers]


@pytest.mark.parametrize(("method", "path", "options"), OPERATIONS + NEVER_REPEATED)
async def test_lost_connection(
    cluster: EmbeddedPostgres, user: User, method: str, path: str, options: dict[str, Any]
) -> None:
    """A statement that loses its connection is run again where that is safe, and is 503 where it is not."""
    async with (
        running(cluster.url, user, TASKCTL_POOL_SIZE="2") as client,
        await psycopg.AsyncConnection.connect(cluster.url) as holder,
    ):
        await client.post(TASKS, json={"title": "Old"})
        await holder.execute("LOCK TABLE task")
        request = asyncio.create_task(client.request(method, path, **options))
        (first,) = await blocked_by(cluster, holder)
        await asyncio.to_thread(terminate, cluster, first)
        if (method, path, options) in OPERATIONS:
            assert await blocked_by(cluster, holder) != [first]
            await holder.rollback()
            answer = await request
            assert answer.is_success, answer.text
            assert "idempotency-replayed" not in answer.headers
        else:
            answer = await request
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            await holder.rollback()
            assert (await client.get(TASK)).json()["version"] == 1


async def blocked_by(cluster: EmbeddedPostgres, holder: psycopg.AsyncConnection[Any]) -> list[int]:
    """The processes that wait for a lock that `holder` has, once there are any."""
    query = "SELECT pid FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"

    def ask() -> list[int]:
        # On a connection of its own: within a transaction the view does not change.
        with psycopg.connect(cluster.url, autocommit=True) as connection:
            return [pid for (pid,) in connection.execute(query, [holder.info.backend_pid])]

    return list(await asyncio.to_thread(until, ask))


def terminate(cluster: EmbeddedPostgres, pid: int) -> None:
    """End one of PostgreSQL's sessions, and wait for it."""
    with psycopg.connect(cluster.url, autocommit=True) as connection:
        assert connection.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}])
async def test_create_cut_after_its_commit(
    cluster: EmbeddedPostgres, wire: Wire, user: User, headers: dict[str, str]
) -> None:
    """A create whose connection is cut between commit and answer is answered 201 and made one task."""
    async with running(wire.url, user, TASKCTL_POOL_SIZE="1") as client:
        await client.post(TASKS, json={"title": "first"})
        wire.cut_next = user.id
        answer = await client.post(TASKS, json={"title": "x"}, headers=headers)
        assert not wire.cut_next
        assert answer.status_code == 201, answer.text
        assert ("idempotency-replayed" in answer.headers) <= bool(headers)
    with psycopg.connect(cluster.url) as connection:
        query = "SELECT id FROM task WHERE user_id = %s AND title = 'x'"
        assert connection.execute(query, [user.id]).fetchall() == [(answer.json()["id"],)] == [(2,)]


async def test_change_cut_after_its_commit(wire: Wire, user: User) -> None:
    """A change without If-Match that is run twice is made once; one with If-Match, and a delete, are 503."""
    async with running(wire.url, user, TASKCTL_POOL_SIZE="1") as client:
        for _ in range(2):
            await client.post(TASKS, json={"title": "Old"})
        for path in (TASK, f"{TASKS}/2"):
            await client.patch(path, json={"description": "prepared"})
        wire.cut_next = user.id
        answer = await client.patch(TASK, json={"title": "New"})
        assert (answer.status_code, answer.json()["version"], answer.json()["title"]) == (200, 3, "New")
        tag = {"If-Match": '"3"'}
        await client.patch(TASK, json={"title": "New"}, headers=tag)
        wire.cut_next = user.id
        answer = await client.patch(TASK, json={"title": "Newer"}, headers=tag)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (await client.get(TASK)).json()["version"] == 4
        await client.delete(f"{TASKS}/2")
        wire.cut_next = user.id
        answer = await client.delete(TASK)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (await client.get(TASK)).status_code == 404


async def test_silent_database(wire: Wire, user: User) -> None:
    """A database that holds its answer back is given up after the statement's time, and tried afresh."""
    async with running(wire.url, user, TASKCTL_STATEMENT_TIMEOUT="0.1") as client:
        await client.post(TASKS, json={"title": "x"})
        wire.holding = True
        async with asyncio.timeout(5):
            answer = await client.get(TASK)
            assert (answer.status_code, answer.json()["code"]) == (503, "statement_timeout")
        wire.holding = False
        async with asyncio.timeout(15):
            while (answer := await client.get(TASK)).status_code != 200:
                assert answer.status_code == 503


async def test_one_key_many_times_at_once(service: Server, user: User) -> None:
    """Fifty creates with one key at the same time make one task, and all say which."""
    async with httpx.AsyncClient(base_url=service.url, headers=user.headers, timeout=20) as client:
        headers = {"Idempotency-Key": "key"}
        requests = [client.post(TASKS, json={"title": "x"}, headers=headers) for _ in range(50)]
        answers = await asyncio.gather(*requests)
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert len((await client.get(TASKS)).json()["items"]) == 1


async def test_internal_keys_are_not_a_clients(cluster: EmbeddedPostgres, user: User) -> None:
    """A create without a key gets one that no client can send; equal creates stay two tasks."""
    async with running(cluster.url, user) as client:
        for number in (1, 2):
            answer = await client.post(TASKS, json={"title": "x"})
            assert (answer.json()["id"], answer.headers.get("idempotency-replayed")) == (number, None)
        with psycopg.connect(cluster.url) as connection:
            query = "SELECT idempotency_key FROM task WHERE user_id = %s"
            keys = [key for (key,) in connection.execute(query, [user.id])]
        assert len(set(keys)) == 2
        for key in keys:
            headers = {"Idempotency-Key": key.encode()}
            answer = await client.post(TASKS, json={"title": "y"}, headers=headers)
            assert answer.status_code == 400


async def test_read_only_database(empty_database: str, user: User) -> None:
    """Where PostgreSQL takes no writes they are 503 and the server is not ready; reads go on."""
    migrations.upgrade(make_settings(empty_database))
    async with running(empty_database, user) as client:
        await client.post(TASKS, json={"title": "x"})
        with psycopg.connect(empty_database, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")  # type: ignore[arg-type]
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        answer = await client.post(TASKS, json={"title": "x"})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (await client.get("/readyz")).json()["checks"]["database"] == "database_unavailable"
        assert (await client.get(TASK)).status_code == 200


async def test_lost_prepared_statements(database_url: str) -> None:
    """Where prepared statements get lost on the way, they are switched off and the statement is run again."""
    database = Database(make_settings(database_url, TASKCTL_POOL_SIZE="1"), database_url)
    await database.open()
    prepared = Statement("prepared", "SELECT count(*) FROM pg_prepared_statements", reads_only=True)
    try:
        assert await database.fetch(prepared, {}) == (1,)
        with contextlib.suppress(StatementFailed):  # it has no row to give
            await database.fetch(Statement("forget", "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"), {})
        assert await database.fetch(prepared, {}) == (0,)
        assert await database.fetch(prepared, {}) == (0,)
    finally:
        await database.close()


@pytest.mark.parametrize(("choice", "count"), [("auto", 1), ("on", 1), ("off", 0)])
async def test_prepared_statements_setting(database_url: str, choice: str, count: int) -> None:
    """Connected directly, statements are prepared unless that is switched off."""
    settings = make_settings(database_url, TASKCTL_POOL_SIZE="1", TASKCTL_PREPARED_STATEMENTS=choice)
    database = Database(settings, database_url)
    await database.open()
    try:
        prepared = Statement("prepared", "SELECT count(*) FROM pg_prepared_statements", reads_only=True)
        assert await database.fetch(prepared, {}) == (count,)
    finally:
        await database.close()


async def test_connection_shortage(cluster: EmbeddedPostgres) -> None:
    """More connections than PostgreSQL has to give are told of, with the figures."""
    database = Database(make_settings(cluster.url), cluster.url)
    await database.open()
    try:
        assert await database.connection_shortage(5) is None
        told = await database.connection_shortage(6)
        assert told is not None
        assert "is 66, and PostgreSQL has 57" in told
    finally:
        await database.close()


@pytest.mark.slow
async def test_server_starts_before_its_database(
    cluster: EmbeddedPostgres, launch: Callable[..., Server]
) -> None:
    """Started while PostgreSQL is away, the server waits for it and is ready once it is there."""
    stop_database(cluster, "fast")
    try:
        server = launch(TASKCTL_ENV="test", DATABASE_URL=cluster.url, BETTER_AUTH_SECRET=SECRET)
        until(lambda: "database_unavailable" in server.log.read_text())
    finally:
        cluster.start()
    wait_until_ready(server)
