"""How statements share sessions: what one may do to another, and what both executors owe."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from conftest import make_settings
from taskctl.errors import DatabaseUnavailable, Overloaded, StatementTimeout
from taskctl.server.database import Database
from taskctl.server.queries import Statement
from taskctl.server.sessions import StatementFailed

pytestmark = pytest.mark.usefixtures("executor")

PID = Statement("pid", "SELECT pg_backend_pid()", reads_only=True)
SLEEP = Statement("sleep", "SELECT pg_backend_pid() FROM pg_sleep(%(seconds)s::bigint)", reads_only=True)
ECHO = Statement("echo", "SELECT %(text)s::text, %(number)s::bigint, %(flag)s::boolean", reads_only=True)
DIVIDE = Statement("divide", "SELECT 12 / %(by)s::bigint", reads_only=True)
WRITE = Statement("write", "SELECT pg_advisory_xact_lock(%(key)s::bigint), pg_backend_pid()")


@contextlib.asynccontextmanager
async def connected(url: str, **variables: str) -> AsyncIterator[Database]:
    """A database that is ready."""
    database = Database(make_settings(url, **variables), url)
    await database.open()
    try:
        await database.ping()
        yield database
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def locked(url: str, key: int) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection that keeps `WRITE` with this key waiting."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [key])
        yield connection


async def until_blocked(connection: psycopg.AsyncConnection[Any]) -> None:
    """Until a statement waits for what `connection` holds."""
    query = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    while not await (await connection.execute(query, [connection.info.backend_pid])).fetchall():
        pass


@pytest.mark.parametrize("text", ["", "ä'\\\"$1%s", "\U0001f600", "a\tb\n", "x" * 100_000])
async def test_values_arrive_as_they_were_sent(database_url: str, text: str) -> None:
    """Texts, numbers, truth values and nulls come back as they went; texts as bytes."""
    async with connected(database_url) as database:
        for number, flag in ((0, True), (-(2**63), False), (2**63 - 1, None)):
            row = await database.fetch(ECHO, {"text": text, "number": number, "flag": flag})
            assert row == (text.encode(), number, flag)


async def test_text_with_a_null_character_is_refused(database_url: str) -> None:
    """What PostgreSQL cannot hold is an error, and never cut."""
    async with connected(database_url) as database:
        with pytest.raises(StatementFailed):
            await database.fetch(ECHO, {"text": "a\0b", "number": 1, "flag": None})


async def test_answers_find_their_requests(database_url: str) -> None:
    """Hundreds at once on two sessions: each gets its own answer, and an error stays with its statement."""
    async with connected(database_url, TASKCTL_POOL_SIZE="2", TASKCTL_POOL_TIMEOUT="30") as database:
        for _ in range(10):
            requests = [database.fetch(DIVIDE, {"by": number % 5}) for number in range(40)]
            answers = await asyncio.gather(*requests, return_exceptions=True)
            for number, answer in enumerate(answers):
                if number % 5:
                    assert answer == (12 // (number % 5),)
                else:
                    assert isinstance(answer, StatementFailed)


async def test_reads_go_past_a_write_that_waits(database_url: str) -> None:
    """A write that waits for a lock holds up nothing but its own session."""
    async with connected(database_url, TASKCTL_POOL_SIZE="2") as database, locked(database_url, 1) as holder:
        write = asyncio.create_task(database.fetch(WRITE, {"key": 1}))
        await until_blocked(holder)
        for _ in range(5):
            await asyncio.gather(*(database.fetch(PID, {}) for _ in range(30)))
        assert not write.done()
        await holder.rollback()
        assert await write


async def test_cancelled_request(database_url: str) -> None:
    """A request that is cancelled, sent or waiting, leaves nothing behind that harms the next one."""
    async with connected(database_url, TASKCTL_POOL_SIZE="1") as database, locked(database_url, 2) as holder:
        sent = asyncio.create_task(database.fetch(WRITE, {"key": 2}))
        await until_blocked(holder)
        waiting = [asyncio.create_task(database.fetch(PID, {})) for _ in range(5)]
        while database.pool_use()["waiting"] < 5:
            await asyncio.wait(waiting, timeout=0.001)
        for request in (*waiting, sent):
            request.cancel()
        await asyncio.gather(*waiting, sent, return_exceptions=True)
        assert database.pool_use()["waiting"] == 0
        await holder.rollback()
        assert await database.fetch(DIVIDE, {"by": 3}) == (4,)


async def test_refused_write_is_not_made(database_url: str) -> None:
    """What was told that the server is overloaded was never sent."""
    variables = {"TASKCTL_POOL_SIZE": "1", "TASKCTL_POOL_TIMEOUT": "0.05", "TASKCTL_STATEMENT_TIMEOUT": "30"}
    async with connected(database_url, **variables) as database:
        await database.fetch(Statement("make", "SELECT set_config('taskctl.mark', 'old', false)"), {})
        mark = Statement("mark", "SELECT set_config('taskctl.mark', 'new', false)")
        async with locked(database_url, 3) as holder:
            write = asyncio.create_task(database.fetch(WRITE, {"key": 3}))
            await until_blocked(holder)
            with pytest.raises(Overloaded):
                await database.fetch(mark, {})
        await write
        seen = Statement("seen", "SELECT current_setting('taskctl.mark')", reads_only=True)
        assert await database.fetch(seen, {}) == (b"old",)


async def test_every_read_of_a_slow_session_ends_in_time(database_url: str) -> None:
    """Reads that share a session with slow ones get an answer or a timeout within the limit of one."""
    variables = {"TASKCTL_POOL_SIZE": "1", "TASKCTL_STATEMENT_TIMEOUT": "0.1", "TASKCTL_POOL_TIMEOUT": "30"}
    async with connected(database_url, **variables) as database, asyncio.timeout(10):
        requests = [database.fetch(SLEEP, {"seconds": 60}) for _ in range(8)]
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StatementTimeout}
        assert await database.fetch(DIVIDE, {"by": 3}) == (4,)


async def test_schema_change_under_a_prepared_statement(empty_database: str) -> None:
    """A statement whose result has another type since a migration is prepared again, and nobody sees it."""
    read = Statement("read", "SELECT a FROM t WHERE a = %(a)s::bigint", reads_only=True)
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as other:
        await other.execute("CREATE TABLE t AS SELECT 1 AS a")
        async with connected(empty_database) as database:
            for kind in ("bigint", "integer", "text USING a::text"):
                for _ in range(5):
                    with contextlib.suppress(StatementFailed):
                        assert await database.fetch(read, {"a": 1}) == (1,)
                await other.execute(f"ALTER TABLE t ALTER a TYPE {kind}")  # type: ignore[arg-type]
            whole = Statement("whole", "SELECT a FROM t", reads_only=True)
            assert await database.fetch(whole, {}) == (b"1",)
            await other.execute("ALTER TABLE t ALTER a TYPE bigint USING a::bigint")
            assert await database.fetch(whole, {}) == (1,)


async def test_preparing_that_fails_is_no_pooler(empty_database: str) -> None:
    """Reads that wait for a statement whose preparing ran out of time do not end preparing for good."""
    read = Statement("read", "SELECT a FROM t WHERE a = %(a)s::bigint", reads_only=True)
    prepared = Statement("prepared", "SELECT count(*) FROM pg_prepared_statements", reads_only=True)
    variables = {"TASKCTL_POOL_SIZE": "1", "TASKCTL_STATEMENT_TIMEOUT": "0.2", "TASKCTL_POOL_TIMEOUT": "30"}
    async with await psycopg.AsyncConnection.connect(empty_database) as other:
        await other.execute("CREATE TABLE t AS SELECT 1 AS a")
        await other.commit()
        async with connected(empty_database, **variables) as database:
            await other.execute("LOCK TABLE t")
            reads = [database.fetch(read, {"a": 1}) for _ in range(4)]
            answers = await asyncio.gather(*reads, return_exceptions=True)
            assert {type(answer) for answer in answers} == {StatementTimeout}
            await other.rollback()
            for _ in range(2):
                assert await database.fetch(read, {"a": 1}) == (1,)
            row = await database.fetch(prepared, {})
            assert row is not None
            assert row[0] >= 2


async def test_closing_ends_what_waits(database_url: str) -> None:
    """Closing answers everybody, and nothing can be asked afterwards."""
    async with connected(database_url, TASKCTL_POOL_SIZE="1") as database, locked(database_url, 4) as holder:
        write = asyncio.create_task(database.fetch(WRITE, {"key": 4}))
        await until_blocked(holder)
        waiting = asyncio.create_task(database.fetch(PID, {}))
        while not database.pool_use()["waiting"]:
            await asyncio.wait([waiting], timeout=0.001)
        await database.close()
        with pytest.raises(DatabaseUnavailable):
            await waiting
        with pytest.raises(DatabaseUnavailable):
            await database.fetch(PID, {})
        write.cancel()
