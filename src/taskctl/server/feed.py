"""Who follows whose changes, and what tells them that there are some.

A write wakes the streams of its user in this process, and a NOTIFY those in the others. It is sent after the
write, over the one connection that also listens, and for all users at once that wrote within a moment: within
the write's own statement it would make all commits of the database queue for one lock. A notification only
says that it is worth looking, and one that is lost is made up for by looking now and then. Behind a pooler
nothing can be listened to, and streams look more often.
"""

import asyncio
import base64
import contextlib
import hashlib
import math
import random
import time
from typing import Any

import psycopg
import structlog

from taskctl.config import ServerSettings
from taskctl.errors import Overloaded, TooManyStreams
from taskctl.server.queries import PROBE
from taskctl.server.sessions import CONNECT_TIMEOUT_SECONDS, PARAMETERS, RECONNECT_SECONDS, Session

log: Any = structlog.get_logger()

APPLICATION_NAME = "taskctl-changes"
"""How the listening connection is called in `pg_stat_activity`."""

_CHANNEL = "taskctl_changes"
_LISTEN = f"LISTEN {_CHANNEL}"
_NOTIFY = "SELECT pg_notify(%s, %s)"
_SETTINGS = "SELECT set_config('synchronous_commit', 'off', false)"
"""A notification is not worth waiting for a disk."""

_GATHER_SECONDS = 0.05
"""How often notifications are sent, and a stream looks for changes, at the most."""

_SELDOM_SECONDS = 15.0
"""How often a stream looks for changes that nobody told of, and how often it is asked whether the listening
connection is alive."""

_RETRY_MAX_SECONDS = 5.0
"""The longest pause before it is tried again to listen."""

_USERS_MAX = 600
"""How many users one notification names: PostgreSQL takes less than 8000 bytes."""

_WAITING_MAX = 10_000
"""How many users' changes are told of once the connection is back; those of others are found by looking."""

_MARK_BYTES = 9
_MARK_LENGTH = 12


class Stream:
    """One of those who follow a user's changes. `leave` must follow."""

    def __init__(self, feed: "Feed", mark: str) -> None:
        self._ended = False
        self._feed = feed
        self._mark = mark
        self._event = asyncio.Event()
        self._looked_at = self._due = 0.0

    def wake(self) -> None:
        """Let the stream look for changes."""
        self._event.set()

    def end(self) -> None:
        """Let the stream end."""
        self._ended = True
        self._event.set()

    def is_over(self) -> bool:
        """Whether the stream is to end."""
        return self._ended

    def leave(self) -> None:
        """Follow no more."""
        self._feed.forget(self, self._mark)

    def looks(self) -> None:
        """Note that the stream looks now: it is woken by what is written from here on."""
        self._event.clear()
        self._looked_at = time.monotonic()
        self._due = self._looked_at + self._feed.interval
        if self._ended:
            self._event.set()

    def looks_again(self, seconds: float) -> None:
        """Note that the stream has seen nothing, and looks again after `seconds`."""
        self._due = time.monotonic() + seconds

    async def wait(self, seconds: float) -> bool:
        """Wait until it is worth looking or the stream is to end, or for `seconds`; whether to look."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(seconds, self._due - time.monotonic()))):
                await self._event.wait()
        if self._event.is_set() and not self._ended:
            await asyncio.sleep(self._looked_at + _GATHER_SECONDS - time.monotonic())
        return self._event.is_set() or time.monotonic() >= self._due


class Feed:
    """The streams of a process, and its connection that listens and notifies.

    It is opened when first somebody writes or follows.

    Args:
        settings: how many streams there may be, and how often they look.
        url: a libpq URL; several hosts are allowed.
    """

    def __init__(self, settings: ServerSettings, url: str) -> None:
        self._settings = settings
        self._url = url
        self._followed: dict[str, set[Stream]] = {}
        """By the user's mark."""
        self._count = 0
        self._marks: set[str] = set()
        """Whose changes other processes have not been told of."""
        self._stirred: asyncio.Event | None = None
        self._running: asyncio.Task[None] | None = None
        self._listening = False
        self._told_of = True
        self._pooled = False
        self._ended = False
        self._pid = 0
        """Of the session of PostgreSQL that listens."""

    def open(self) -> None:
        """Be ready to connect."""
        self._stirred = asyncio.Event()

    async def close(self) -> None:
        """End the streams and the connection."""
        self.end()
        self._stirred = None
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def end(self) -> None:
        """Let all streams end, those included that are about to begin."""
        self._ended = True
        for streams in self._followed.values():
            for stream in streams:
                stream.end()

    @property
    def interval(self) -> float:
        """Seconds until a stream looks by itself; not for all at the same moment."""
        seconds = _SELDOM_SECONDS if self._listening else self._settings.stream_poll
        return seconds * random.uniform(0.8, 1.0)  # noqa: S311 - it spreads load and hides nothing

    def follow(self, user_id: str) -> Stream:
        """Be woken by this user's changes.

        Raises:
            TooManyStreams: the user has as many streams as they may.
            Overloaded: the process has.
        """
        mark, settings = _mark(user_id), self._settings
        if len(self._followed.get(mark, ())) >= settings.streams_per_user:
            raise TooManyStreams(
                f"You have {settings.streams_per_user} streams open here, which is as many as you may.",
                headers={"Retry-After": str(math.ceil(settings.stream_heartbeat))},
            )
        if self._count >= settings.streams:
            raise Overloaded
        stream = Stream(self, mark)
        if self._ended:
            stream.end()
        self._followed.setdefault(mark, set()).add(stream)
        self._count += 1
        self._start()
        return stream

    def forget(self, stream: Stream, mark: str) -> None:
        """Wake a stream no more."""
        streams = self._followed.get(mark, set())
        if stream in streams:
            self._count -= 1
            streams.remove(stream)
            if not streams:
                del self._followed[mark]

    def wrote(self, user_id: str) -> None:
        """Note that this user may have changes that nobody knows of."""
        mark = _mark(user_id)
        self._wake(mark)
        if not self._pooled and self._stirred is not None and len(self._marks) < _WAITING_MAX:
            if not self._marks:
                self._stirred.set()
                self._start()
            self._marks.add(mark)

    def _wake(self, mark: str) -> None:
        for stream in self._followed.get(mark, ()):
            stream.wake()

    def _start(self) -> None:
        if self._running is None and self._stirred is not None:
            self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Have a connection, again and again, unless there is a pooler."""
        pause = RECONNECT_SECONDS
        while not self._pooled:
            try:
                async with await Session.connect(
                    self._url, **PARAMETERS | {"application_name": APPLICATION_NAME}
                ) as session:
                    if await self._listen(session):
                        pause = RECONNECT_SECONDS
                        await self._exchange(session)
            except (psycopg.Error, OSError, TimeoutError) as error:
                self._became(listening=False, reason=" ".join(str(error).split()))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)
        self._marks.clear()

    async def _listen(self, session: Session) -> bool:
        """Begin to listen, where PostgreSQL itself answers."""
        async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
            pid = session.info.backend_pid
            timeout = str(CONNECT_TIMEOUT_SECONDS * 1000)
            row = await (await session.execute(PROBE, {"pid": pid, "timeout": timeout})).fetchone()
            self._pooled = row is None or not row[0]
            if self._pooled:
                self._became(listening=False, reason="a pooler stands in between")
                return False
            self._pid = pid
            session.add_notify_handler(lambda found: self._take(found.pid, found.payload))
            await session.execute(_SETTINGS)
            await session.execute(_LISTEN)
        self._became(listening=True)
        return True

    async def _exchange(self, session: Session) -> None:
        """Pass on what comes, and what is to go, until the connection is lost."""
        assert self._stirred is not None, "it was opened"  # noqa: S101 - as it says
        stirred, descriptor = self._stirred, session.pgconn.socket
        loop = asyncio.get_running_loop()
        send_at = alive_at = time.monotonic()
        while True:
            due = send_at if self._marks else alive_at + _SELDOM_SECONDS
            loop.add_reader(descriptor, stirred.set)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, due - time.monotonic())):
                        await stirred.wait()
            finally:
                loop.remove_reader(descriptor)
            stirred.clear()
            now = time.monotonic()
            if (self._marks and now >= send_at) or now >= alive_at + _SELDOM_SECONDS:
                # Nobody's mark asks no more than whether the connection is alive.
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    await self._send(session)
                send_at, alive_at = now + _GATHER_SECONDS, now
            session.pgconn.consume_input()
            while (found := session.pgconn.notifies()) is not None:
                self._take(found.be_pid, found.extra.decode("ascii", "replace"))

    async def _send(self, session: Session) -> None:
        marks = [self._marks.pop() for _ in range(min(len(self._marks), _USERS_MAX))]
        try:
            await session.execute(_NOTIFY, (_CHANNEL, "".join(marks)))
        except BaseException:
            self._marks.update(marks)
            raise

    def _take(self, sender: int, payload: str) -> None:
        if sender == self._pid:  # its streams were woken by the write itself
            return
        for start in range(0, len(payload), _MARK_LENGTH):
            self._wake(payload[start : start + _MARK_LENGTH])

    def _became(self, *, listening: bool, reason: str | None = None) -> None:
        """Let all streams look when it is listened, or no longer: what was told meanwhile was missed."""
        if listening is not self._listening or (not listening and self._told_of):
            self._told_of = False
            if listening:
                log.info("changes_listening")
            else:
                log.warning("changes_polling", reason=reason)
        self._listening = listening
        for streams in self._followed.values():
            for stream in streams:
                stream.wake()


def _mark(user_id: str) -> str:
    """What stands for a user in notifications: short, of one length, and nobody's name."""
    digest = hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).digest()
    return base64.b64encode(digest[:_MARK_BYTES]).decode("ascii")
