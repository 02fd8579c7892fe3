"""PgBouncer in transaction mode, 1.18 as Debian has it, between the server and PostgreSQL."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx
import psycopg
import pytest

from conftest import (
    SECRET,
    Server,
    User,
    bare_environ,
    client_of,
    free_port,
    make_settings,
    make_user,
    taskctl,
    until,
    wait_until_ready,
)
from taskctl.server import migrations
from taskctl.server.app import create_app
from taskctl.server.database import Database
from taskctl.server.embedded import EmbeddedPostgres
from test_changes import Watcher, watching
from test_faults_database import NEVER_REPEATED, OPERATIONS, TASK, TASKS, Load, clusters, stop_database

PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"

pytestmark = pytest.mark.skipif(
    not os.access(PGBOUNCER, os.X_OK), reason="there is no PgBouncer: apt-get install pgbouncer"
)

CONFIGURATION = """
[databases]
taskctl = host={host} port=5432 user=postgres dbname=taskctl

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
server_login_retry = 0.2
"""


class PgBouncer:
    """A PgBouncer that has three connections for everybody, and can be killed and started again."""

    def __init__(self, cluster: EmbeddedPostgres) -> None:
        port = free_port()
        self.url = f"postgresql://taskctl@127.0.0.1:{port}/taskctl"
        self._account = cluster._account()
        # Where PostgreSQL's account may read it: PgBouncer does not run as root either.
        self._configuration = cluster.data_dir / "pgbouncer.ini"
        self._configuration.write_text(CONFIGURATION.format(host=cluster._socket_dir(), port=port))
        self._configuration.chmod(0o644)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        uid, gid = self._account or (None, None)
        groups = None if uid is None else []
        with self._configuration.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [PGBOUNCER, str(self._configuration)],
                stderr=log,
                user=uid,
                group=gid,
                extra_groups=groups,
                cwd="/",
            )
        until(lambda: answers(self.url))

    def kill(self) -> None:
        """End it with no time to say goodbye."""
        self._process.kill()
        self._process.wait()


class Pooled(NamedTuple):
    """A database, and the way to it through PgBouncer."""

    cluster: EmbeddedPostgres
    url: str
    pgbouncer: PgBouncer


@pytest.fixture(scope="module")
def pooled() -> Iterator[Pooled]:
    """An empty database behind PgBouncer."""
    with clusters("data") as (cluster,):
        cluster.start()
        pgbouncer = PgBouncer(cluster)
        yield Pooled(cluster, pgbouncer.url, pgbouncer)
        pgbouncer.kill()


@pytest.fixture(scope="module")
def migrated(pooled: Pooled) -> Pooled:
    """The same, migrated past PgBouncer."""
    migrations.upgrade(make_settings(pooled.url, TASKCTL_MIGRATION_DATABASE_URL=pooled.cluster.url))
    return pooled


def answers(url: str) -> bool:
    """Whether a connection can be had."""
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
        return True
    return False


def test_upgrade_and_serve(
    pooled: Pooled, launch: Callable[..., Server], fresh_home: os.PathLike[str]
) -> None:
    """`serve` through PgBouncer becomes ready when `db upgrade` has gone past it."""
    variables = {
        "TASKCTL_ENV": "test",
        "DATABASE_URL": pooled.url,
        "TASKCTL_MIGRATION_DATABASE_URL": pooled.cluster.url,
        "BETTER_AUTH_SECRET": SECRET,
    }
    server = launch(**variables)
    until(lambda: "schema: empty" in server.log.read_text())
    done = taskctl("db", "upgrade", environ=bare_environ(fresh_home, **variables))  # type: ignore[arg-type]
    assert done.code == 0, done.err
    wait_until_ready(server)


async def test_every_operation_through_pgbouncer(migrated: Pooled) -> None:
    """Many connections on few sessions of PostgreSQL: every operation of two replicas works."""
    replicas = [create_app(make_settings(migrated.url, TASKCTL_POOL_TIMEOUT="20")) for _ in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for application in replicas:
            await stack.enter_async_context(application.router.lifespan_context(application))
            clients.append(await stack.enter_async_context(client_of(application)))

        async def work(client: httpx.AsyncClient) -> None:
            headers = make_user().headers
            for _ in range(3):
                for method, path, options in OPERATIONS + NEVER_REPEATED:
                    mine = {**options, "headers": headers | options.get("headers", {})}
                    answer = await client.request(method, path, **mine)
                    assert answer.status_code < 500, answer.text

        await asyncio.gather(*(work(client) for client in clients for _ in range(20)))


async def test_nothing_stays_in_a_session(migrated: Pooled) -> None:
    """No setting and no prepared statement is left in the sessions that PgBouncer gives to others."""
    database = Database(make_settings(migrated.url), migrated.url)
    await database.open()
    try:
        await asyncio.gather(*(database.revision() for _ in range(30)))
        async with await psycopg.AsyncConnection.connect(
            migrated.url, autocommit=True, prepare_threshold=None
        ) as connection:
            query = (
                "SELECT current_setting('statement_timeout'), (SELECT count(*) FROM pg_prepared_statements)"
            )
            for _ in range(10):
                assert await (await connection.execute(query)).fetchone() == ("0", 0)
        assert await database.connection_shortage(1000) is None
    finally:
        await database.close()


async def test_statement_timeout_through_pgbouncer(migrated: Pooled, user: User) -> None:
    """A statement that takes too long is 503 `statement_timeout` and ended in PostgreSQL, too."""
    application = create_app(make_settings(migrated.url, TASKCTL_STATEMENT_TIMEOUT="0.2"))
    async with application.router.lifespan_context(application), client_of(application) as client:
        client.headers.update(user.headers)
        await client.post(TASKS, json={"title": "Old"})
        async with await psycopg.AsyncConnection.connect(migrated.cluster.url) as holder:
            await holder.execute("SELECT FROM task WHERE user_id = %s FOR UPDATE", [user.id])
            async with asyncio.timeout(5):
                answer = await client.patch(TASK, json={"title": "New"})
            assert (answer.status_code, answer.json()["code"]) == (503, "statement_timeout")
            waiting = "SELECT FROM pg_locks WHERE NOT granted"
            with psycopg.connect(migrated.cluster.url, autocommit=True) as other:
                until(lambda: not other.execute(waiting).fetchall())
            assert (await client.get(TASK)).json()["title"] == "Old"
        assert (await client.patch(TASK, json={"title": "New"})).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("how", ["immediate", "fast"])
async def test_restart_behind_pgbouncer(
    migrated: Pooled, start_server: Callable[..., Server], how: str
) -> None:
    """PostgreSQL dies and returns behind PgBouncer: only 503, nothing acknowledged is lost or made twice."""
    server = start_server(TASKCTL_ENV="test", DATABASE_URL=migrated.url, BETTER_AUTH_SECRET=SECRET)
    async with Load(server.url) as load:
        await load.more()
        await asyncio.to_thread(stop_database, migrated.cluster, how)
        await load.refusals()
        await asyncio.to_thread(migrated.cluster.start)
        await load.more()
    load.check(migrated.cluster.url)
    assert {status for status, _ in load.refused} == {503}


@pytest.mark.slow
async def test_pgbouncer_is_killed(migrated: Pooled, start_server: Callable[..., Server]) -> None:
    """PgBouncer itself dies and returns: only 503, nothing acknowledged is lost or made twice."""
    server = start_server(TASKCTL_ENV="test", DATABASE_URL=migrated.url, BETTER_AUTH_SECRET=SECRET)
    async with Load(server.url) as load:
        await load.more()
        await asyncio.to_thread(migrated.pgbouncer.kill)
        await load.refusals()
        await asyncio.to_thread(migrated.pgbouncer.start)
        await load.more()
    load.check(migrated.cluster.url)
    assert set(load.refused) == {(503, "database_unavailable")}


def test_streams_of_changes_look_by_themselves(migrated: Pooled, launch: Callable[..., Server]) -> None:
    """Through PgBouncer, where nothing can be listened to, streams look for changes and miss none."""
    variables = {
        "TASKCTL_ENV": "test",
        "DATABASE_URL": migrated.url,
        "BETTER_AUTH_SECRET": SECRET,
        "TASKCTL_STREAM_POLL": "0.1",
        # Longer than the pause between two looks, which must not put it off.
        "TASKCTL_STREAM_HEARTBEAT": "0.3",
    }
    one, two = (wait_until_ready(server) for server in [launch(**variables) for _ in range(2)])
    user = make_user()
    watcher = Watcher(user, one.url)
    with watching([watcher]):
        for number in range(1, 4):
            assert httpx.post(two.url + TASKS, json={"title": "x"}, headers=user.headers).status_code == 201
            until(lambda number=number: watcher.numbers == list(range(1, number + 1)))
        httpx.post(one.url + TASKS, json={"title": "x"}, headers=user.headers)
        until(lambda: watcher.numbers == [1, 2, 3, 4])
    assert "a pooler stands in between" in one.log.read_text()
    assert "changes_listening" not in one.log.read_text()
