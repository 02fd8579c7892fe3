"""The request path's way to PostgreSQL: one statement at a time, in autocommit, on a pool.

A statement whose connection was lost is run once more where that can do no harm. All connections that are as
old as a lost one are replaced at once, since what ends one usually ends all: a restart, a failover.
"""

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

import psycopg
import structlog
from psycopg import errors as postgres
from psycopg.adapt import Loader
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, Overloaded, SettingsInvalid, StatementTimeout
from taskctl.server.queries import CONNECTION_LIMIT, READ_REVISION, Statement
from taskctl.setting import PreparedStatements

log: Any = structlog.get_logger()

Row = tuple[Any, ...]

_CONNECT_TIMEOUT_SECONDS = 5
_RECONNECT_SECONDS = 0.25
"""Between two attempts to reach a database that is away; it is used again within a second of its return."""

_AWAY_WAIT_SECONDS = 1.0
"""The longest that a request waits for a connection while there is no database to connect to."""

_GRACE_SECONDS = 0.5
"""How long after its time limit a statement may take to end, before its connection is cut."""

_WAITING_PER_CONNECTION = 20
"""How many requests may wait for each connection before the next one is turned away at once."""

_LOST = {"57P01", "57P02", "57P03"}
"""PostgreSQL ends the session: an administrator's command, a crash, not accepting connections."""

_PROBE = """
SELECT pg_backend_pid() = %(pid)s,
       CASE WHEN pg_backend_pid() = %(pid)s THEN set_config('statement_timeout', %(timeout)s, false) END
"""
"""A pooler gives out process ids of its own: what answers under another one is not the server itself."""


class StatementFailed(Exception):
    """PostgreSQL refused a statement for a reason that no request should be able to bring about."""


class SchemaMissing(DatabaseUnavailable):
    """The database's schema is not what this build needs; `taskctl db upgrade` upgrades it."""


class _Lost(Exception):
    """The connection was lost under a statement; `unsent` where the statement was certainly not run."""

    def __init__(self, *, unsent: bool) -> None:
        super().__init__()
        self.unsent = unsent


class _BytesLoader(Loader):
    """PostgreSQL's JSON goes over the wire as it came: it is never decoded."""

    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)


class _Connection(psycopg.AsyncConnection[Row]):
    """A connection that knows what it is connected to."""

    generation = -1
    """Connections of one generation are replaced together."""

    pooled = False
    """Whether a pooler answers, which gives each statement another session of PostgreSQL."""

    overdue = False
    """Whether a statement ran out of time; such a connection is not used again."""

    def is_alive(self) -> bool:
        """Whether the other side still holds the connection, as far as the kernel knows: no round trip."""
        if not hasattr(select, "poll"):  # Windows
            return True
        poller = select.poll()
        try:
            poller.register(self.pgconn.socket, select.POLLIN)
            # Something to read while nothing runs: the end, or a notice, such as of a changed setting.
            for _ in range(3):
                if not poller.poll(0):
                    return True
                self.pgconn.consume_input()
                self.pgconn.is_busy()
        except psycopg.OperationalError:
            pass
        return False

    def cut(self) -> None:
        """End the connection under whatever waits on it."""
        self.overdue = True
        with (
            contextlib.suppress(OSError, psycopg.OperationalError),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate,
        ):
            duplicate.shutdown(socket.SHUT_RDWR)


class Database:
    """A pool of connections, and `fetch`.

    Args:
        settings: the pool's size, the time limits, and whether statements are prepared.
        url: a libpq URL; several hosts are allowed.
    """

    def __init__(self, settings: ServerSettings, url: str) -> None:
        self._timeout = settings.pool_timeout
        self._statement_timeout = settings.statement_timeout
        self._prepare = settings.prepared_statements
        self._generation = 0
        self._discarded_at = 0.0
        self._reachable = False
        self._behind_pooler = False
        self._executing = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reviving: asyncio.Task[None] | None = None
        self._pool = AsyncConnectionPool(
            url,
            connection_class=_Connection,
            min_size=min(2, settings.pool_size),
            max_size=settings.pool_size,
            max_waiting=settings.pool_size * _WAITING_PER_CONNECTION,
            timeout=self._timeout,
            # The pool's own patience grows by doubling; it is told to give up, and `_revive` goes on.
            reconnect_timeout=_RECONNECT_SECONDS,
            reconnect_failed=self._reconnect_failed,
            kwargs={
                "autocommit": True,
                "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
                "application_name": "taskctl",
            },
            configure=self._configure,
            open=False,
        )

    async def open(self) -> None:
        """Start connecting; returns at once, whether or not the database answers."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close the connections; a statement that still runs is ended."""
        tasks = [*self._tasks, *([self._reviving] if self._reviving else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> Row | None:
        """Run one statement and return its first row. Texts come as bytes.

        Raises:
            DatabaseUnavailable: there is no connection, or it was lost. What a statement that may not be
                repeated has done then is unknown.
            Overloaded: every connection stayed busy for as long as a request may wait.
            StatementTimeout: PostgreSQL gave up on the statement.
            SchemaMissing: a table or column that the statement names is not there.
            StatementFailed: anything else, which is a defect.
        """
        patience = self._patience()
        started = time.monotonic()
        try:
            return await self._run(statement, parameters, patience)
        except _Lost as lost:
            if not lost.unsent and not statement.may_repeat(parameters):
                raise DatabaseUnavailable(
                    "The connection to the database was lost; look whether the change was made."
                ) from lost.__cause__
        left = max(patience - (time.monotonic() - started), patience / 2)
        try:
            return await self._run(statement, parameters, min(left, self._patience()))
        except _Lost as lost:
            raise DatabaseUnavailable from lost.__cause__

    def _patience(self) -> float:
        """Seconds that a request may wait for a connection."""
        return self._timeout if self._reachable else min(self._timeout, _AWAY_WAIT_SECONDS)

    async def _run(self, statement: Statement, parameters: Mapping[str, Any], patience: float) -> Row | None:
        before = self._reachable, self._generation
        try:
            async with self._pool.connection(timeout=patience) as connection:
                if not connection.is_alive():
                    await self._discard(connection)
                    raise _Lost(unsent=True)
                self._executing += 1
                limit = self._watch(connection)
                try:
                    cursor = await connection.execute(statement.sql, parameters)
                    if connection.overdue:
                        # Cancelled in its wait for a standby, PostgreSQL reports success all the same.
                        raise StatementTimeout
                    return await cursor.fetchone()
                except psycopg.Error as error:
                    await self._raise_for(statement, connection, error)
                    raise
                finally:
                    self._executing -= 1
                    limit.cancel()
                    if connection.overdue:
                        await connection.close()
        except (PoolTimeout, TooManyRequests) as error:
            # Who waited through an outage was not kept waiting by other requests.
            busy = self._reachable and before == (True, self._generation)
            raise (Overloaded if busy else DatabaseUnavailable) from error
        except PoolClosed as error:
            raise DatabaseUnavailable from error

    async def _raise_for(self, statement: Statement, connection: _Connection, error: psycopg.Error) -> None:
        """Raise what an error means for the request; discard the connection where it is of no more use."""
        state = error.sqlstate or ""
        match error:
            case postgres.QueryCanceled():
                raise StatementTimeout from error
            case _ if connection.overdue:
                raise StatementTimeout from error
            case postgres.UndefinedTable() | postgres.UndefinedColumn():
                raise SchemaMissing from error
            case postgres.ReadOnlySqlTransaction():
                # A standby by now, or read-only for everybody: then its readers are not to suffer.
                if time.monotonic() > self._discarded_at + _AWAY_WAIT_SECONDS:
                    await self._discard(connection)
                raise DatabaseUnavailable("The database takes no writes right now.") from error
            case postgres.InvalidSqlStatementName() | postgres.DuplicatePreparedStatement() if (
                self._prepare is PreparedStatements.auto
            ):
                log.warning("prepared_statements_off", detail="a pooler in between loses them")
                self._prepare = PreparedStatements.off
                await self._discard(connection)
                raise _Lost(unsent=True) from error
            case psycopg.OperationalError() if connection.closed or state in _LOST or state.startswith("08"):
                await self._discard(connection)
                raise _Lost(unsent=False) from error
            case psycopg.OperationalError():
                raise DatabaseUnavailable from error
            case _:
                # Not chained: PostgreSQL's DETAIL holds the row, and people's tasks do not belong in a log.
                reason = f"{statement.name}: {error.sqlstate} {error.diag.message_primary}"
                raise StatementFailed(reason) from None

    async def revision(self) -> str | None:
        """The schema's revision, or None where nothing was migrated yet.

        Raises:
            DatabaseUnavailable: also where the database takes no writes, as a standby does.
            Unavailable: as `fetch`.
        """
        try:
            row = await self.fetch(READ_REVISION, {})
        except SchemaMissing:
            return None
        if row is None:
            return None
        revision, read_only = row
        if read_only:
            raise DatabaseUnavailable("The database takes no writes right now.")
        return str(revision, "utf-8")

    async def connection_shortage(self, workers: int) -> str | None:
        """Say so when this many processes can want more connections than PostgreSQL has to give.

        None where it is well, and behind a pooler, whose business it is; raises as `fetch`.
        """
        row = await self.fetch(CONNECTION_LIMIT, {})
        if row is None or self._behind_pooler:
            return None
        wanted, limit = workers * self._pool.max_size, row[0]
        if wanted <= limit:
            return None
        return (
            f"TASKCTL_POOL_SIZE ({self._pool.max_size}) times {workers} processes is {wanted}, and "
            f"PostgreSQL has {limit} connections to give: lower it, raise max_connections, or use a pooler"
        )

    async def ping(self) -> float:
        """Milliseconds that the smallest statement takes; raises as `fetch`."""
        started = time.perf_counter()
        await self.fetch(Statement("ping", "SELECT 1", reads_only=True), {})
        return (time.perf_counter() - started) * 1000

    @property
    def reachable(self) -> bool:
        """Whether the database answered lately."""
        return self._reachable

    def pool_use(self) -> dict[str, int]:
        """How many connections there may be, are, and are idle, and how many requests wait for one."""
        stats = self._pool.get_stats()
        return {
            "max": self._pool.max_size,
            "open": stats.get("pool_size", 0),
            "idle": stats.get("pool_available", 0),
            "waiting": stats.get("requests_waiting", 0),
        }

    async def _configure(self, connection: _Connection) -> None:
        connection.row_factory = tuple_row
        connection.adapters.register_loader("text", _BytesLoader)
        connection.generation = self._generation
        parameters = {
            "pid": connection.info.backend_pid,
            "timeout": str(int(self._statement_timeout * 1000)),
        }
        limit = asyncio.get_running_loop().call_later(_CONNECT_TIMEOUT_SECONDS, connection.cut)
        try:
            row = await (await connection.execute(_PROBE, parameters, prepare=False)).fetchone()
        finally:
            limit.cancel()
        connection.pooled = self._behind_pooler = row is None or not row[0]
        prepare = self._prepare is PreparedStatements.on or (
            self._prepare is PreparedStatements.auto and not connection.pooled
        )
        connection.prepare_threshold = 0 if prepare else None
        if not self._reachable:
            self._reachable = True
            log.info("database_connected", pooler=connection.pooled, prepared_statements=prepare)

    def _watch(self, connection: _Connection) -> asyncio.TimerHandle:
        """See to it that a statement ends in time, even where nothing answers any more."""
        loop = asyncio.get_running_loop()
        if connection.pooled:
            return loop.call_later(self._statement_timeout, self._start_cancelling, connection)
        # PostgreSQL's own limit comes first.
        return loop.call_later(self._statement_timeout + _GRACE_SECONDS, connection.cut)

    def _start_cancelling(self, connection: _Connection) -> None:
        # From here on the connection is spoilt: the cancellation could hit a later statement.
        connection.overdue = True
        task = asyncio.create_task(self._cancel(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, connection: _Connection) -> None:
        with contextlib.suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await connection.cancel_safe(timeout=_GRACE_SECONDS)
        await asyncio.sleep(_GRACE_SECONDS)
        if not connection.closed:
            connection.cut()

    async def _discard(self, connection: _Connection) -> None:
        """Replace every connection of this one's generation; the first of several that ask does it."""
        if connection.generation != self._generation:
            return
        self._generation += 1
        self._discarded_at = time.monotonic()
        if self._reachable:
            self._reachable = False
            log.warning("database_connection_lost")
        await self._pool.drain()

    def _reconnect_failed(self, _pool: AsyncConnectionPool[_Connection]) -> None:
        self._reachable = self._reachable and self._executing > 0
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        """Let the pool connect again, also when no request makes it."""
        await asyncio.sleep(_RECONNECT_SECONDS)
        if not self._pool.get_stats()["pool_available"]:
            await self._pool.check()


def check_url(url: str, variable: str = "DATABASE_URL") -> None:
    """Refuse a URL that libpq cannot read, before anything waits for it.

    Raises:
        SettingsInvalid: without repeating the URL, which may hold a password.
    """
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise SettingsInvalid(
            f"{variable} is not a libpq URL: it takes one such as postgresql://user@host:5432/database"
        ) from None
