"""Sessions with PostgreSQL, as the pool and the pipeline both open them, and what their errors mean.

Sessions belong to generations: what ends one usually ends all (a restart, a failover), so that one lost
session condemns all that are as old as it.
"""

import asyncio
import contextlib
import os
import select
import socket
import time
from typing import Any

import psycopg
import structlog
from psycopg import errors as postgres
from psycopg.adapt import Loader
from psycopg.rows import tuple_row

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, StatementTimeout, ValidationFailed
from taskctl.models import RECURRENCE_NEEDS_DUE
from taskctl.server.queries import PROBE, Statement
from taskctl.setting import PreparedStatements
from taskctl.vocabulary import RECURRENCE_HAS_DUE

log: Any = structlog.get_logger()

Row = tuple[Any, ...]

CONNECT_TIMEOUT_SECONDS = 5
RECONNECT_SECONDS = 0.25
"""Between two attempts to reach a database that is away; it is used again within a second of its return."""

AWAY_WAIT_SECONDS = 1.0
"""The longest that a request waits for a session while there is no database to connect to."""

GRACE_SECONDS = 0.5
"""How long after its time limit a statement may take to end, before its connection is cut."""

WAITING_PER_SESSION = 20
"""How many requests may wait for each session before the next one is turned away at once."""

PREPARED_MAX = 100
"""Statements that a session keeps prepared; lists have more shapes than that, and each takes memory."""

MIN_SESSIONS = 2
"""How many sessions are kept when nobody asks for any."""

PARAMETERS: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "application_name": "taskctl",
}
"""What every session is opened with, besides the URL."""

_LOST = {"57P01", "57P02", "57P03"}
"""PostgreSQL ends the session: an administrator's command, a crash, not accepting connections."""

_STALE_PLAN = "RevalidateCachedQuery"
"""Where in PostgreSQL it is noticed that a prepared statement's result has another type since a migration."""


class StatementFailed(Exception):
    """PostgreSQL refused a statement for a reason that no request should be able to bring about."""


class SchemaMissing(DatabaseUnavailable):
    """The database's schema is not what this build needs; `taskctl db upgrade` upgrades it."""


class WritesRefused(DatabaseUnavailable):
    """The database is a standby by now, or read-only for everybody."""


class Contended(Exception):
    """Another statement has just made what this one was about to make; nothing was done."""


class Lost(Exception):
    """The session was lost under a statement; `unsent` where the statement was certainly not run."""

    def __init__(self, *, unsent: bool) -> None:
        super().__init__()
        self.unsent = unsent


class Session(psycopg.AsyncConnection[Row]):
    """A connection that knows what it is connected to."""

    generation = -1
    """Sessions of one generation are replaced together."""

    pooled = False
    """Whether a pooler answers, which gives each statement another session of PostgreSQL."""

    overdue = False
    """Whether a statement ran out of time; such a session is not used again."""

    def is_readable(self) -> bool:
        """Whether there is something to read, or the end; not known on Windows."""
        if not hasattr(select, "poll"):
            return False
        poller = select.poll()
        poller.register(self.pgconn.socket, select.POLLIN)
        return bool(poller.poll(0))

    def is_alive(self) -> bool:
        """Whether the other side still holds the connection, as far as the kernel knows: no round trip."""
        with contextlib.suppress(psycopg.OperationalError):
            # Something to read while nothing runs: the end, or a notice, such as of a changed setting.
            for _ in range(3):
                if not self.is_readable():
                    return True
                self.pgconn.consume_input()
                self.pgconn.is_busy()
        return False

    def cut(self) -> None:
        """End the connection under whatever waits on it."""
        self.overdue = True
        with (
            contextlib.suppress(OSError, psycopg.OperationalError),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate,
        ):
            duplicate.shutdown(socket.SHUT_RDWR)


class Sessions:
    """How sessions are set up, which generation of them is good, and whether there is a database at all."""

    def __init__(self, settings: ServerSettings) -> None:
        self.generation = 0
        self.reachable = False
        """Whether the last that was heard of the database is good."""
        self.pooled = False
        """Whether a pooler answered last."""
        self._prepare = settings.prepared_statements
        self._statement_timeout = settings.statement_timeout
        self._condemned_at = 0.0

    async def configure(self, session: Session) -> None:
        """Make a fresh session ready for statements, and learn what it is connected to."""
        session.row_factory = tuple_row
        session.adapters.register_loader("text", _BytesLoader)
        session.generation = self.generation
        parameters = {
            "pid": session.info.backend_pid,
            "timeout": str(int(self._statement_timeout * 1000)),
        }
        limit = asyncio.get_running_loop().call_later(CONNECT_TIMEOUT_SECONDS, session.cut)
        try:
            row = await (await session.execute(PROBE, parameters, prepare=False)).fetchone()
        finally:
            limit.cancel()
        session.pooled = self.pooled = row is None or not row[0]
        prepare = self._prepare is PreparedStatements.on or (
            self._prepare is PreparedStatements.auto and not session.pooled
        )
        session.prepare_threshold = 0 if prepare else None
        session.prepared_max = PREPARED_MAX
        if not self.reachable:
            self.reachable = True
            log.info("database_connected", pooler=session.pooled, prepared_statements=prepare)

    def condemn(self, session: Session) -> bool:
        """Say that no session of this one's generation is to be used again; true for the first to say so."""
        if session.generation != self.generation:
            return False
        self.generation += 1
        self._condemned_at = time.monotonic()
        if self.reachable:
            self.reachable = False
            log.warning("database_connection_lost")
        return True

    def is_of_no_more_use(self, failure: Exception) -> bool:
        """Whether a session should be condemned for what came of a statement on it."""
        if isinstance(failure, WritesRefused):
            # Where all of the database is read-only, its readers are not to suffer from each write.
            return time.monotonic() > self._condemned_at + AWAY_WAIT_SECONDS
        return isinstance(failure, Lost)

    def failure(self, statement: Statement, error: psycopg.Error) -> Exception:
        """What an error of PostgreSQL means for the request; its cause is set where that tells no secret."""
        if (wrong := _wrong(error)) is not None:
            name = ".".join(wrong["loc"])
            return ValidationFailed(f"{name}: {wrong['msg']}.", errors=[wrong])
        state = error.sqlstate or ""
        failure: Exception
        match error:
            case postgres.QueryCanceled():
                failure = StatementTimeout()
            # The last is a unique index that ON CONFLICT needs.
            case postgres.UndefinedTable() | postgres.UndefinedColumn() | postgres.InvalidColumnReference():
                failure = SchemaMissing()
            case postgres.UniqueViolation():
                # Not chained: PostgreSQL's DETAIL holds the key.
                return Contended(f"{statement.name}: {error.diag.constraint_name}")
            case postgres.ReadOnlySqlTransaction():
                failure = WritesRefused("The database takes no writes right now.")
            case postgres.InvalidSqlStatementName() | postgres.DuplicatePreparedStatement() if (
                self._prepare is PreparedStatements.auto
            ):
                log.warning("prepared_statements_off", detail="a pooler in between loses them")
                self._prepare = PreparedStatements.off
                failure = Lost(unsent=True)
            case postgres.FeatureNotSupported() if error.diag.source_function == _STALE_PLAN:
                failure = Lost(unsent=True)
            case psycopg.OperationalError() if state in _LOST or state.startswith("08") or not state:
                failure = Lost(unsent=False)
            case psycopg.OperationalError():
                failure = DatabaseUnavailable()
            case _:
                # Not chained: PostgreSQL's DETAIL holds the row, and people's tasks do not belong in a log.
                return StatementFailed(f"{statement.name}: {state} {error.diag.message_primary}")
        failure.__cause__ = error
        return failure


def _wrong(error: psycopg.Error) -> dict[str, Any] | None:
    """What PostgreSQL finds wrong with a request's values that only it can know; else None."""
    diagnosis = error.diag
    if (
        isinstance(error, postgres.CheckViolation)
        and diagnosis.constraint_name == f"task_{RECURRENCE_HAS_DUE}"
    ):
        return {"loc": ["body", "due_at"], "msg": RECURRENCE_NEEDS_DUE, "type": "value_error"}
    # No other parameter is looked up; PostgreSQL's list of zones may be older than Python's.
    if isinstance(error, postgres.InvalidParameterValue) and "time zone" in (diagnosis.message_primary or ""):
        return {
            "loc": ["query", "tz"],
            "msg": "The database knows no time zone of this name",
            "type": "value_error",
        }
    return None


class _BytesLoader(Loader):
    """PostgreSQL's JSON goes over the wire as it came: it is never decoded."""

    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)
