"""One statement a session at a time, on psycopg's pool: what a pooler in front can carry."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, Overloaded, StatementTimeout
from taskctl.server.queries import Statement
from taskctl.server.sessions import (
    GRACE_SECONDS,
    MIN_SESSIONS,
    PARAMETERS,
    RECONNECT_SECONDS,
    WAITING_PER_SESSION,
    Lost,
    Row,
    Session,
    Sessions,
)


class Pool:
    """Runs statements on sessions that each has for itself.

    Args:
        settings: the pool's size and the time limits.
        url: a libpq URL; several hosts are allowed.
        sessions: what is known of the database.
    """

    def __init__(self, settings: ServerSettings, url: str, sessions: Sessions) -> None:
        self._sessions = sessions
        self._statement_timeout = settings.statement_timeout
        self._executing = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._reviving: asyncio.Task[None] | None = None
        self._pool = AsyncConnectionPool(
            url,
            connection_class=Session,
            min_size=min(MIN_SESSIONS, settings.pool_size),
            max_size=settings.pool_size,
            max_waiting=settings.pool_size * WAITING_PER_SESSION,
            timeout=settings.pool_timeout,
            # The pool's own patience grows by doubling; it is told to give up, and `_revive` goes on.
            reconnect_timeout=RECONNECT_SECONDS,
            reconnect_failed=self._reconnect_failed,
            kwargs=PARAMETERS,
            configure=sessions.configure,
            open=False,
        )

    async def open(self) -> None:
        """Start connecting; returns at once, whether or not the database answers."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close the sessions; a statement that still runs is ended."""
        tasks = [*self._tasks, *([self._reviving] if self._reviving else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()

    def use(self) -> dict[str, int]:
        """As `Database.pool_use`."""
        stats = self._pool.get_stats()
        return {
            "max": self._pool.max_size,
            "open": stats.get("pool_size", 0),
            "idle": stats.get("pool_available", 0),
            "waiting": stats.get("requests_waiting", 0),
        }

    async def run(self, statement: Statement, parameters: Mapping[str, Any], patience: float) -> Row | None:
        """Run a statement once it has a session, which it waits for no longer than `patience` seconds.

        Raises:
            Lost: the session was lost under the statement.
            DatabaseUnavailable, Overloaded, StatementTimeout, SchemaMissing, StatementFailed: as
                `Database.fetch`.
        """
        sessions = self._sessions
        before = sessions.reachable, sessions.generation
        try:
            async with self._pool.connection(timeout=patience) as session:
                if not session.is_alive():
                    await self._condemn(session)
                    raise Lost(unsent=True)
                self._executing += 1
                limit = self._watch(session)
                try:
                    cursor = await session.execute(statement.sql, parameters)
                    if session.overdue:
                        # Cancelled in its wait for a standby, PostgreSQL reports success all the same.
                        raise StatementTimeout
                    return await cursor.fetchone()
                except psycopg.Error as error:
                    failure = StatementTimeout() if session.overdue else sessions.failure(statement, error)
                    if sessions.is_of_no_more_use(failure):
                        await self._condemn(session)
                    raise failure from failure.__cause__
                finally:
                    self._executing -= 1
                    limit.cancel()
                    if session.overdue:
                        await session.close()
        except (PoolTimeout, TooManyRequests) as error:
            # Who waited through an outage was not kept waiting by other requests.
            busy = sessions.reachable and before == (True, sessions.generation)
            raise (Overloaded if busy else DatabaseUnavailable) from error
        except PoolClosed as error:
            raise DatabaseUnavailable from error

    def _watch(self, session: Session) -> asyncio.TimerHandle:
        """See to it that a statement ends in time, even where nothing answers any more."""
        loop = asyncio.get_running_loop()
        if session.pooled:
            return loop.call_later(self._statement_timeout, self._start_cancelling, session)
        # PostgreSQL's own limit comes first.
        return loop.call_later(self._statement_timeout + GRACE_SECONDS, session.cut)

    def _start_cancelling(self, session: Session) -> None:
        # From here on the session is spoilt: the cancellation could hit a later statement.
        session.overdue = True
        task = asyncio.create_task(self._cancel(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, session: Session) -> None:
        with contextlib.suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await session.cancel_safe(timeout=GRACE_SECONDS)
        await asyncio.sleep(GRACE_SECONDS)
        if not session.closed:
            session.cut()

    async def _condemn(self, session: Session) -> None:
        """Replace every session of this one's generation; the first of several that ask does it."""
        # By itself too: one that was still being opened when the pool was drained is of an older generation.
        await session.close()
        if self._sessions.condemn(session):
            await self._pool.drain()

    def _reconnect_failed(self, _pool: AsyncConnectionPool[Session]) -> None:
        self._sessions.reachable = self._sessions.reachable and self._executing > 0
        if self._reviving is None or self._reviving.done():
            self._reviving = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        """Let the pool connect again, also when no request makes it."""
        await asyncio.sleep(RECONNECT_SECONDS)
        if not self._pool.get_stats()["pool_available"]:
            await self._pool.check()
