"""The request path's way to PostgreSQL: one statement at a time, prepared, in autocommit, on a pool."""

import time
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import errors as postgres
from psycopg.adapt import Loader
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, Overloaded, SettingsInvalid, StatementTimeout
from taskctl.server.queries import READ_REVISION, Statement

Row = tuple[Any, ...]

_CONNECT_TIMEOUT_SECONDS = 5
_WAITING_PER_CONNECTION = 20
"""How many requests may wait for each connection before the next one is turned away at once."""


class StatementFailed(Exception):
    """PostgreSQL refused a statement for a reason that no request should be able to bring about."""


class SchemaMissing(DatabaseUnavailable):
    """The database's schema is not what this build needs; `taskctl db upgrade` upgrades it."""


class _BytesLoader(Loader):
    """PostgreSQL's JSON goes over the wire as it came: it is never decoded."""

    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)


class Database:
    """A pool of connections, and `fetch`.

    Args:
        settings: the pool's size and the time limits.
        url: a libpq URL; several hosts are allowed.
    """

    def __init__(self, settings: ServerSettings, url: str) -> None:
        self._timeout = settings.pool_timeout
        self._statement_timeout_ms = int(settings.statement_timeout * 1000)
        self._executing = 0
        self._pool = AsyncConnectionPool(
            url,
            min_size=min(2, settings.pool_size),
            max_size=settings.pool_size,
            max_waiting=settings.pool_size * _WAITING_PER_CONNECTION,
            timeout=self._timeout,
            # After a lost database, be back soon after it is.
            reconnect_timeout=_CONNECT_TIMEOUT_SECONDS,
            kwargs={
                "autocommit": True,
                "prepare_threshold": 0,
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
        await self._pool.close()

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> Row | None:
        """Run one statement and return its first row. Texts come as bytes.

        Raises:
            DatabaseUnavailable: there is no connection, or it was lost.
            Overloaded: every connection stayed busy for as long as a request may wait.
            StatementTimeout: PostgreSQL gave up on the statement.
            SchemaMissing: a table or column that the statement names is not there.
            StatementFailed: anything else, which is a defect.
        """
        try:
            async with self._pool.connection() as connection:
                self._executing += 1
                try:
                    cursor = await connection.execute(statement.sql, parameters)
                    return await cursor.fetchone()
                finally:
                    self._executing -= 1
        except (PoolTimeout, TooManyRequests) as error:
            if self._executing >= self._pool.max_size:
                raise Overloaded from error
            raise DatabaseUnavailable from error
        except postgres.QueryCanceled as error:
            raise StatementTimeout from error
        except (postgres.UndefinedTable, postgres.UndefinedColumn) as error:
            raise SchemaMissing from error
        except postgres.ReadOnlySqlTransaction as error:
            raise DatabaseUnavailable("The database takes no writes right now.") from error
        except (psycopg.OperationalError, PoolClosed) as error:
            raise DatabaseUnavailable from error
        except psycopg.Error as error:
            # Not chained: PostgreSQL's DETAIL holds the row, and people's tasks do not belong in a log.
            reason = f"{statement.name}: {error.sqlstate} {error.diag.message_primary}"
            raise StatementFailed(reason) from None

    async def revision(self) -> str | None:
        """The schema's revision, or None where nothing was migrated yet; raises as `fetch`."""
        try:
            row = await self.fetch(READ_REVISION, {})
        except SchemaMissing:
            return None
        return row[0].decode() if row else None

    async def ping(self) -> float:
        """Milliseconds that the smallest statement takes; raises as `fetch`."""
        started = time.perf_counter()
        await self.fetch(Statement("ping", "SELECT 1", reads_only=True), {})
        return (time.perf_counter() - started) * 1000

    def pool_use(self) -> dict[str, int]:
        """How many connections there may be, are, and are idle, and how many requests wait for one."""
        stats = self._pool.get_stats()
        return {
            "max": self._pool.max_size,
            "open": stats.get("pool_size", 0),
            "idle": stats.get("pool_available", 0),
            "waiting": stats.get("requests_waiting", 0),
        }

    async def _configure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        connection.row_factory = tuple_row
        connection.adapters.register_loader("text", _BytesLoader)
        await connection.execute(f"SET statement_timeout = {self._statement_timeout_ms}")


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
