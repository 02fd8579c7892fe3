"""The request path's way to PostgreSQL: one statement at a time, in autocommit.

A statement whose session was lost is run once more where that can do no harm. What runs it is exchangeable:
`pipeline` for PostgreSQL itself, `pool` where a pooler stands in front or the settings say so.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, SettingsInvalid
from taskctl.server.pipeline import Pipeline
from taskctl.server.pool import Pool
from taskctl.server.queries import CONNECTION_LIMIT, READ_REVISION, Statement
from taskctl.server.sessions import AWAY_WAIT_SECONDS, Lost, Row, SchemaMissing, Sessions


class Database:
    """Sessions with PostgreSQL, and `fetch`.

    Args:
        settings: how many sessions, the time limits, and how statements are run.
        url: a libpq URL; several hosts are allowed.
    """

    def __init__(self, settings: ServerSettings, url: str) -> None:
        self._settings = settings
        self._url = url
        self._sessions = Sessions(settings)
        self._executor: Pipeline | Pool = (
            Pipeline(settings, url, self._sessions, self._pooler_found)
            if settings.pipeline
            else Pool(settings, url, self._sessions)
        )
        self._exchange: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start connecting; returns at once, whether or not the database answers."""
        await self._executor.open()

    async def close(self) -> None:
        """Close the sessions; a statement that still runs is ended."""
        if self._exchange is not None:
            await self._exchange
        await self._executor.close()

    def _pooler_found(self) -> None:
        if self._exchange is None:
            self._exchange = asyncio.create_task(self._use_pool())

    async def _use_pool(self) -> None:
        """Go over to the pool; what waits for the pipeline is run there."""
        pipeline, pool = self._executor, Pool(self._settings, self._url, self._sessions)
        await pool.open()
        self._executor = pool
        await pipeline.close()

    async def fetch(self, statement: Statement, parameters: Mapping[str, Any]) -> Row | None:
        """Run one statement and return its first row. Texts come as bytes.

        Raises:
            DatabaseUnavailable: there is no session, or it was lost. What a statement that may not be
                repeated has done then is unknown.
            Overloaded: every session stayed busy for as long as a request may wait.
            StatementTimeout: PostgreSQL gave up on the statement.
            SchemaMissing: a table, column or index that the statement needs is not there.
            StatementFailed: anything else, which is a defect.
        """
        patience = self._patience()
        started = time.monotonic()
        try:
            return await self._executor.run(statement, parameters, patience)
        except Lost as lost:
            if not lost.unsent and not statement.may_repeat(parameters):
                raise DatabaseUnavailable(
                    "The connection to the database was lost; look whether the change was made."
                ) from lost.__cause__
        left = max(patience - (time.monotonic() - started), patience / 2)
        try:
            return await self._executor.run(statement, parameters, min(left, self._patience()))
        except Lost as lost:
            raise DatabaseUnavailable from lost.__cause__

    def _patience(self) -> float:
        """Seconds that a request may wait for a session."""
        timeout = self._settings.pool_timeout
        return timeout if self._sessions.reachable else min(timeout, AWAY_WAIT_SECONDS)

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
        if row is None or self._sessions.pooled:
            return None
        # One more than the pool, which listens for changes.
        wanted, limit = workers * (self._settings.pool_size + 1), row[0]
        if wanted <= limit:
            return None
        return (
            f"TASKCTL_POOL_SIZE ({self._settings.pool_size}) and one, times {workers} processes, is "
            f"{wanted}, and PostgreSQL has {limit} connections to give: lower it, raise max_connections, or "
            "use a pooler"
        )

    async def ping(self) -> float:
        """Milliseconds that the smallest statement takes; raises as `fetch`."""
        started = time.perf_counter()
        await self.fetch(Statement("ping", "SELECT 1", reads_only=True), {})
        return (time.perf_counter() - started) * 1000

    @property
    def reachable(self) -> bool:
        """Whether the database answered lately."""
        return self._sessions.reachable

    def pool_use(self) -> dict[str, int]:
        """How many connections there may be, are, and are idle, and how many requests wait for one."""
        return self._executor.use()


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
