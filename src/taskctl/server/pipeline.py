"""Statements of many requests on few sessions, in libpq's pipeline mode.

psycopg connects, and gives each statement to its low-level `pq` wrapper of libpq from there on: a request
puts its statement into a session and waits; when the event loop finds something to read, one callback takes
all results that have come and wakes their requests, in order. Each statement is followed by a sync of its
own, which makes it a transaction of its own: an error in one harms no other.

**A session carries one statement that writes, or several that only read.** So nothing ever waits behind a
statement that waits for a lock, writers share PostgreSQL's group commit, and whatever else was in flight on
a session that was lost can be run again.

https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

import asyncio
import contextlib
import functools
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import psycopg
from psycopg import pq
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq.abc import PGresult

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, Overloaded, StatementTimeout, Unavailable
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

_READERS = 8
"""How many reads a session carries at most; the last one waits for those before it."""

_SWEEP_SECONDS = 0.25
"""How often it is looked for statements whose time is over, while any runs."""

_AGE_MAX_SECONDS = 3600.0
"""Sessions older than this are ended when they are idle: PostgreSQL's memory for one only grows."""

_PARAMETER = re.compile(r"%\((\w+)\)s")
_TEXT, _BINARY = pq.Format.TEXT, pq.Format.BINARY

_FATAL_ERROR = pq.ExecStatus.FATAL_ERROR
_TUPLES_OK = pq.ExecStatus.TUPLES_OK
_PIPELINE_SYNC = pq.ExecStatus.PIPELINE_SYNC

_LOADERS: dict[int, Callable[[bytes], Any]] = {16: b"t".__eq__, 20: int, 21: int, 23: int}
"""From PostgreSQL's text to Python's values, by type: bool and integers; everything else stays bytes."""


class _Request:
    """A statement on its way, and the future that its answer goes to."""

    __slots__ = (
        "answer",
        "error",
        "formats",
        "parameters",
        "prepares",
        "row",
        "sent_at",
        "statement",
        "unprepared",
        "values",
    )

    def __init__(self, statement: Statement, parameters: Mapping[str, Any]) -> None:
        self.statement = statement
        self.parameters = parameters
        self.values: list[bytes | None] = []
        self.formats: list[int] = []
        for name in numbered(statement.sql)[1]:
            value, form = _encode(parameters[name])
            self.values.append(value)
            self.formats.append(form)
        self.answer: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self.row: Row | None = None
        self.error: psycopg.Error | None = None
        self.prepares = False
        self.unprepared: psycopg.Error | None = None
        """What became of the request before it that was to prepare the statement for both."""
        self.sent_at = 0.0

    def fail(self, error: Exception) -> None:
        """Let the request raise this, unless nobody waits for it any more."""
        if not self.answer.done():
            self.answer.set_exception(error)


class _Line(Session):
    """A session in pipeline mode."""

    in_flight: deque[_Request]
    """What was sent and is not answered, oldest first."""

    prepared: dict[str, bytes]
    """The names of the statements that were prepared here, by their SQL."""

    names: Iterator[int]
    opened_at: float

    descriptor: int
    """The socket's. libpq knows it no more once the connection is lost, and the event loop still does."""

    blocked = False
    """Whether the kernel did not take all that was sent."""


class Pipeline:
    """Runs statements on sessions that they share.

    Args:
        settings: how many sessions, and the time limits.
        url: a libpq URL; several hosts are allowed.
        sessions: what is known of the database.
        pooler_found: called when a pooler answers, which pipelines are not for.
    """

    def __init__(
        self, settings: ServerSettings, url: str, sessions: Sessions, pooler_found: Callable[[], None]
    ) -> None:
        self._url = url
        self._sessions = sessions
        self._pooler_found = pooler_found
        self._size = settings.pool_size
        self._time_limit = settings.statement_timeout + GRACE_SECONDS
        self._lines: list[_Line] = []
        self._idle: list[_Line] = []
        self._queue: deque[_Request] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._open = False

    async def open(self) -> None:
        """Start connecting; returns at once, whether or not the database answers."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._grow_to(MIN_SESSIONS)

    async def close(self) -> None:
        """Close the sessions; a statement that still runs is ended, and its request raises `Lost`."""
        self._open = False
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for line in self._lines.copy():
            self._end(line)
        for request in self._queue:
            request.fail(Lost(unsent=True))
        if self._sweeping is not None:
            self._sweeping.cancel()

    def use(self) -> dict[str, int]:
        """As `Database.pool_use`."""
        return {
            "max": self._size,
            "open": len(self._lines),
            "idle": len(self._idle),
            "waiting": len(self._queue),
        }

    async def run(self, statement: Statement, parameters: Mapping[str, Any], patience: float) -> Row | None:
        """Run a statement once it has a session, which it waits for no longer than `patience` seconds.

        A statement that was sent goes on when its request is cancelled; nobody sees what becomes of it.

        Raises:
            Lost: the session was lost under the statement.
            DatabaseUnavailable, Overloaded, StatementTimeout, SchemaMissing, StatementFailed: as
                `Database.fetch`.
        """
        if not self._open:
            raise DatabaseUnavailable
        request = _Request(statement, parameters)
        line = None if self._queue else self._line_for(request)
        if line is None:
            return await self._wait(request, patience)
        self._send(line, request)
        return await request.answer

    # Which session a statement goes to, and its wait for one.

    def _line_for(self, request: _Request) -> _Line | None:
        """An idle session, or for a read one that carries only reads, the fewest of all."""
        while self._idle:
            line = self._idle.pop()
            # What may not be run again is not sent into the void: the kernel may know already.
            if request.statement.may_repeat(request.parameters) or line.is_alive():
                return line
            self._lose(line)
        self._grow_to(len(self._lines) + 1)
        if not request.statement.reads_only:
            return None
        shared = [
            line
            for line in self._lines
            if len(line.in_flight) < _READERS
            and line.in_flight[0].statement.reads_only
            and line.generation == self._sessions.generation
        ]
        return min(shared, key=lambda line: len(line.in_flight), default=None)

    async def _wait(self, request: _Request, patience: float) -> Row | None:
        """Let the request wait in the queue until a session is there for it, and for its answer."""
        if len(self._queue) >= self._size * WAITING_PER_SESSION:
            raise self._refusal()
        self._queue.append(request)
        self._grow_to(len(self._lines) + len(self._queue))
        timer = self._loop.call_later(patience, self._give_up, request)
        try:
            return await request.answer
        finally:
            timer.cancel()
            if not request.sent_at:
                with contextlib.suppress(ValueError):
                    self._queue.remove(request)

    def _give_up(self, request: _Request) -> None:
        if not request.sent_at:
            request.fail(self._refusal())

    def _refusal(self) -> Unavailable:
        return Overloaded() if self._lines and self._sessions.reachable else DatabaseUnavailable()

    def _serve_queue(self) -> None:
        while self._queue:
            request = self._queue[0]
            if not request.answer.done():
                line = self._line_for(request)
                if line is None:
                    return
                self._send(line, request)
            self._queue.popleft()

    # Sending and receiving.

    def _send(self, line: _Line, request: _Request) -> None:
        request.sent_at = self._loop.time()
        line.in_flight.append(request)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        sql = request.statement.sql
        text, pgconn = numbered(sql)[0], line.pgconn
        try:
            name = line.prepared.get(sql)
            if name is None and line.prepare_threshold is not None:
                # The name is what PostgreSQL's log shows.
                name = line.prepared[sql] = f"{request.statement.name}_{next(line.names)}".encode()
                request.prepares = True
                pgconn.send_prepare(name, text)
            if name is None:
                pgconn.send_query_params(text, request.values, param_formats=request.formats)
            else:
                pgconn.send_query_prepared(name, request.values, request.formats)
            pgconn.pipeline_sync()
        except psycopg.OperationalError:
            self._lose(line)
        else:
            if not line.blocked:
                self._flush(line)

    def _flush(self, line: _Line) -> None:
        """See to it that all is sent, be it later, when the kernel takes more."""
        try:
            rest = line.pgconn.flush() != 0
        except psycopg.OperationalError:
            self._lose(line)
            return
        if rest is not line.blocked:
            line.blocked = rest
            if rest:
                self._loop.add_writer(line.descriptor, self._flush, line)
            else:
                self._loop.remove_writer(line.descriptor)

    def _receive(self, line: _Line) -> None:
        """Take the results that have come."""
        try:
            line.pgconn.consume_input()
            self._take_results(line)
            # libuv watches a socket no more once it has told of an error, although there was more to read.
            while line.in_flight and line.is_readable():
                line.pgconn.consume_input()
                self._take_results(line)
        except psycopg.OperationalError:
            self._lose(line)
        else:
            if not line.in_flight:
                self._release(line)
        self._serve_queue()

    def _take_results(self, line: _Line) -> None:
        pgconn = line.pgconn
        # libpq says None after the results of each command, and again where there is no more.
        ended = False
        while not pgconn.is_busy() and line.in_flight:
            result = pgconn.get_result()
            if result is not None:
                self._take(line, result)
            elif ended:
                break
            ended = result is None

    def _take(self, line: _Line, result: PGresult) -> None:
        """One result; the sync comes last of what belongs to a request."""
        request = line.in_flight[0]
        status = result.status
        if status == _TUPLES_OK:
            request.row = _first_row(result)
        elif status == _FATAL_ERROR:
            request.error = error_from_result(result)
        elif status == _PIPELINE_SYNC:
            line.in_flight.popleft()
            if request.error is not None:
                self._fail(line, request, request.error)
            elif not request.answer.done():
                request.answer.set_result(request.row)

    def _fail(self, line: _Line, request: _Request, error: psycopg.Error) -> None:
        if request.prepares:
            # Perhaps it is preparing that failed: the next one tries again.
            line.prepared.pop(request.statement.sql, None)
            for other in line.in_flight:
                if other.statement.sql == request.statement.sql:
                    other.unprepared = error
        elif request.unprepared is not None and isinstance(error, InvalidSqlStatementName):
            error = request.unprepared
        failure = self._sessions.failure(request.statement, error)
        if self._sessions.is_of_no_more_use(failure):
            self._condemn(line)
        request.fail(failure)

    # How sessions begin and end.

    def _grow_to(self, wanted: int) -> None:
        """See to it that there are so many sessions, as far as settings and the database allow."""
        while self._open and len(self._lines) + len(self._connecting) < min(wanted, self._size):
            self._connecting.add(self._loop.create_task(self._add_line()))

    async def _add_line(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is one
        try:
            while (line := await self._connect()) is None:
                self._sessions.reachable = self._sessions.reachable and bool(self._lines)
                await asyncio.sleep(RECONNECT_SECONDS)
                # One that goes on trying is enough, where there is no other session.
                if self._lines or len(self._connecting) > 1:
                    return
        finally:
            self._connecting.discard(task)
        if line.pooled:
            await line.close()
            self._pooler_found()
            return
        line.in_flight, line.prepared, line.names = deque(), {}, itertools.count()
        line.opened_at, line.descriptor = self._loop.time(), line.pgconn.socket
        line.pgconn.enter_pipeline_mode()
        self._loop.add_reader(line.descriptor, self._receive, line)
        self._lines.append(line)
        self._idle.append(line)
        self._serve_queue()

    async def _connect(self) -> _Line | None:
        """A new session of the present generation; None where it could not be had."""
        generation, good = self._sessions.generation, False
        try:
            line = await _Line.connect(self._url, **PARAMETERS)
        except (psycopg.Error, OSError):
            return None
        try:
            await self._sessions.configure(line)
            good = generation == self._sessions.generation
        except psycopg.Error:
            pass
        finally:
            if not good:
                await line.close()
        return line if good else None

    def _release(self, line: _Line) -> None:
        """A session has nothing in flight any more."""
        if line not in self._lines or line in self._idle:
            return
        if (
            line.generation == self._sessions.generation
            and self._loop.time() < line.opened_at + _AGE_MAX_SECONDS
        ):
            self._idle.append(line)
        else:
            self._end(line)
            self._grow_to(MIN_SESSIONS)

    def _condemn(self, line: _Line) -> None:
        """Replace every session of this one's generation: the idle ones now, the others after their work."""
        if self._sessions.condemn(line):
            for idle in self._idle.copy():
                self._end(idle)

    def _lose(self, line: _Line) -> None:
        """A session was lost, or is given up; `_serve_queue` is the caller's business."""
        if not line.overdue:
            self._condemn(line)
        self._end(line)
        self._grow_to(MIN_SESSIONS)

    def _end(self, line: _Line) -> None:
        """Close a session; what is in flight on it raises `Lost`, or StatementTimeout where that is why."""
        if line not in self._lines:
            return
        self._lines.remove(line)
        if line in self._idle:
            self._idle.remove(line)
        self._loop.remove_reader(line.descriptor)
        self._loop.remove_writer(line.descriptor)
        line.pgconn.finish()
        for request in line.in_flight:
            request.fail(StatementTimeout() if line.overdue else Lost(unsent=False))
        line.in_flight.clear()

    def _sweep(self) -> None:
        """Give up sessions that do not answer; PostgreSQL's own time limit comes first where it can."""
        self._sweeping = None
        limit = self._loop.time() - self._time_limit
        for line in self._lines.copy():
            if line.in_flight and line.in_flight[0].sent_at < limit:
                line.overdue = True
                self._lose(line)
        self._serve_queue()
        if len(self._idle) < len(self._lines):
            self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


@functools.cache
def numbered(sql: str) -> tuple[bytes, tuple[str, ...]]:
    """A statement with PostgreSQL's own `$1` for `%(name)s`, and the names in that order."""
    names: dict[str, int] = {}
    text = _PARAMETER.sub(lambda match: f"${names.setdefault(match[1], len(names) + 1)}", sql)
    return text.encode(), tuple(names)


def _encode(value: Any) -> tuple[bytes | None, int]:
    """A parameter and its format. Its type is what the statement says: a cast, or the column beside it."""
    match value:
        case None:
            return None, _TEXT
        # Binary text is its UTF-8, with its length: nothing in it needs to be escaped, or ends it.
        case str():
            return value.encode(), _BINARY
        case bytes():
            return value, _BINARY
        case bool():
            encoded = b"t" if value else b"f"
        case int():
            encoded = b"%d" % value
        case datetime():
            encoded = value.isoformat().encode()
        case list():
            encoded = b"{%b}" % b",".join(b"%d" % each for each in value)
        case _:
            raise TypeError(type(value))
    return encoded, _TEXT


def _first_row(result: PGresult) -> Row | None:
    if not result.ntuples:
        return None
    row: list[Any] = []
    for column in range(result.nfields):
        value = result.get_value(0, column)
        load = _LOADERS.get(result.ftype(column))
        row.append(value if value is None or load is None else load(value))
    return tuple(row)
