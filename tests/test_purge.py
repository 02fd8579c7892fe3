"""The trash and the log of changes are emptied of what is old: by servers, and by `taskctl db purge`."""

import asyncio
import json
from typing import Any

import httpx
import psycopg
import pytest

from conftest import HEAD, SECRET, User, bare_environ, make_settings, running, taskctl, until
from taskctl.server import migrations
from taskctl.server.purge import purge

TASKS = "/api/v1/me/tasks"


@pytest.fixture
def database(empty_database: str) -> str:
    """A database of its own, since a purge is about everybody."""
    assert migrations.upgrade(make_settings(empty_database))[-1] == HEAD
    return empty_database


def execute(url: str, statement: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def fill(url: str, *, tasks: int = 2500) -> None:
    """One user's trash, every second task of which went there 31 days ago, as did the first 100 changes."""
    execute(
        url,
        f"""
        INSERT INTO account (user_id, last_task_id, last_change) VALUES ('a', {tasks}, 200);
        INSERT INTO task (user_id, id, title, completed, version, deleted_at)
        SELECT 'a', n, 'x', false, 2, now() - make_interval(days => 31 * (n % 2), mins => 1)
        FROM generate_series(1, {tasks}) AS n;
        INSERT INTO task (user_id, id, title, completed, version, updated_at)
        VALUES ('a', {tasks + 1}, 'old, and not deleted', false, 1, now() - interval '1 year');
        INSERT INTO change (user_id, number, type, task_id, at, task)
        SELECT 'a', n, 'created', 1, now() - make_interval(days => 31 * (n <= 100)::int), '{{}}'
        FROM generate_series(1, 200) AS n
        """,  # noqa: S608 - numbers
    )


def left(url: str) -> list[tuple[Any, ...]]:
    return execute(url, "SELECT (SELECT count(*) FROM task), (SELECT min(number) FROM change)")


def test_purge(database: str, tmp_path: Any) -> None:
    """What is older than the settings say goes, part by part; what is younger, or not deleted, stays."""
    fill(database)
    environ = bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=database)
    done = taskctl("db", "purge", environ=environ)
    assert (done.code, done.out, done.err) == (0, "Purged 1250 tasks and 100 changes.\n", "")
    assert left(database) == [(1251, 101)]
    done = taskctl("db", "purge", "--json", environ=environ)
    assert json.loads(done.out) == {"tasks": 0, "changes": 0}
    done = taskctl("db", "purge", "--json", environ=environ | {"TASKCTL_TRASH_DAYS": "0"})
    assert json.loads(done.out) == {"tasks": 1250, "changes": 0}
    assert execute(database, "SELECT title FROM task") == [("old, and not deleted",)]


@pytest.mark.parametrize("days", ["-1", "x", "1.5", "36501"])
def test_settings(database: str, tmp_path: Any, days: str) -> None:
    """A number of days that cannot be is refused, and nothing is removed."""
    fill(database, tasks=2)
    environ = bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=database, TASKCTL_TRASH_DAYS=days)
    done = taskctl("db", "purge", environ=environ)
    assert (done.code, "TASKCTL_TRASH_DAYS" in done.err) == (2, True)
    assert left(database) == [(3, 1)]


async def test_several_at_once(database: str) -> None:
    """Of several that purge at the same moment, each row is removed by one."""
    await asyncio.to_thread(fill, database)
    settings = make_settings(database)
    done = await asyncio.gather(*(asyncio.to_thread(purge, settings) for _ in range(5)))
    assert (sum(each.tasks for each in done), sum(each.changes for each in done)) == (1250, 100)
    assert left(database) == [(1251, 101)]


def test_servers_purge_by_themselves(start_server: Any, database: str, user: User) -> None:
    """Two servers empty the trash without being asked, and go on serving."""
    fill(database)
    servers = [
        start_server(
            DATABASE_URL=database,
            BETTER_AUTH_SECRET=SECRET,
            TASKCTL_PURGE_INTERVAL="1",
            TASKCTL_LOG_FORMAT="json",
        )
        for _ in range(2)
    ]
    until(lambda: left(database) == [(1251, 101)])
    logs = [
        json.loads(line) for each in servers for line in each.log.read_text().splitlines() if "purged" in line
    ]
    assert (sum(each["tasks"] for each in logs), sum(each["changes"] for each in logs)) == (1250, 100)
    for server in servers:
        assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200


async def test_what_is_restored_meanwhile_stays(database: str, user: User) -> None:
    """A purge that waits for a task that somebody restores leaves it alone."""
    async with running(database, user) as api:
        await api.post(TASKS, json={"title": "x"})
        await api.delete(f"{TASKS}/1")
        await asyncio.to_thread(execute, database, "UPDATE task SET deleted_at = now() - interval '40 days'")
        async with await psycopg.AsyncConnection.connect(database) as other:
            await other.execute("UPDATE task SET deleted_at = NULL")
            purging = asyncio.create_task(asyncio.to_thread(purge, make_settings(database)))
            waiting = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await asyncio.to_thread(until, lambda: execute(database, waiting) == [(1,)])
            await other.commit()
        assert (await purging).tasks == 0
        assert (await api.get(f"{TASKS}/1")).status_code == 200
