"""A standby takes over from a primary that died, with writers at work."""

import asyncio
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import quote

import httpx
import psycopg
import pytest

from conftest import SECRET, Server, User, make_settings, until
from taskctl.server import migrations
from taskctl.server.embedded import EmbeddedPostgres
from test_faults_database import TASK, TASKS, Load, clusters, stop_database

pytestmark = pytest.mark.usefixtures("executor")


class Pair(NamedTuple):
    """A primary that answers a write once its standby has it, too."""

    primary: EmbeddedPostgres
    standby: EmbeddedPostgres

    @property
    def url(self) -> str:
        """Names both; whichever takes writes is used."""
        hosts = ",".join(quote(str(each._socket_dir()), safe="") for each in self)
        return f"postgresql://postgres@/taskctl?host={hosts}&port=5432,5432&target_session_attrs=read-write"


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A migrated database, replicated synchronously."""
    with clusters("primary", "standby") as (primary, standby):
        primary.start()
        migrations.upgrade(make_settings(primary.url))
        standby.data_dir.mkdir(0o755)
        copy = ("pg_basebackup", "-h", str(primary._socket_dir()), "-U", "postgres", "-c", "fast", "-R", "-D")
        # Where the account of PostgreSQL may write; the copy then goes to its place.
        place = primary._pgdata / "standby"
        done = primary._run(*copy, str(place), timeout=60)
        assert done.returncode == 0, done.stderr
        place.rename(standby._pgdata)
        standby.start()
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            query = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
            until(lambda: connection.execute(query).fetchall())
        yield Pair(primary, standby)


@pytest.mark.slow
async def test_failover_loses_nothing(pair: Pair, start_server: Callable[..., Server], user: User) -> None:
    """The primary dies, the standby is promoted: each acknowledged task is there once, with no restart."""
    server = start_server(TASKCTL_ENV="test", DATABASE_URL=pair.url, BETTER_AUTH_SECRET=SECRET)
    async with (
        httpx.AsyncClient(base_url=server.url, headers=user.headers, timeout=20) as client,
        Load(server.url) as load,
    ):
        await load.more()
        await asyncio.to_thread(stop_database, pair.primary, "immediate")
        await load.refusals()
        # Only a standby is left, which takes no writes.
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]) == (503, "database_unavailable")
        for method, path in (("GET", TASKS), ("DELETE", TASK)):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert (await client.get("/livez")).status_code == 200
        promote = ("pg_ctl", "promote", "-w")
        assert (await asyncio.to_thread(pair.standby._run, *promote, timeout=60)).returncode == 0
        await load.more()
        assert (await client.get("/readyz")).status_code == 200
    load.check(pair.standby.url)
    assert set(load.refused) == {(503, "database_unavailable")}
