"""Rate limits: how often each user may ask, and each address without a good token.

A window starts with its first request and is fixed: one counter, one step a request. Limits are written and
counted in Redis as the `limits` library has it. In memory they are counted here: that library's asynchronous
memory starts a task for every request, which goes through every key.
"""

import asyncio
import fcntl
import functools
import hashlib
import ipaddress
import math
import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog
from limits import RateLimitItem, parse_many
from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError, StorageError

from taskctl.config import ServerSettings
from taskctl.errors import RateLimited, SettingsInvalid
from taskctl.setting import OnError

log: Any = structlog.get_logger()

MEMORY = "memory://"

_STORAGE_SECONDS = 0.25
"""How long a request may wait for Redis."""

_PAUSE_SECONDS = 1.0
"""How long a Redis that failed is left alone: otherwise each request would wait for it in turn."""

_WINDOWS_MAX = 100_000
"""How many keys are counted in memory; beyond it the oldest is forgotten."""


Windowed = list[tuple[int, float]]
"""For each limit of a setting: requests in the window so far, and when it ends."""


class Windows(Protocol):
    """Counts in fixed windows."""

    def hit(self, key: str, seconds: int, now: float) -> tuple[int, float]:
        """Count one request; return the count in the window that `now` lies in, and when that window ends."""


class OwnWindows:
    """Counts of this process. All keys of one instance have windows of one length.

    A dict keeps its order: as each new window goes to the end, those in front are the first to lapse.
    """

    def __init__(self, capacity: int = _WINDOWS_MAX) -> None:
        self._windows: dict[str, tuple[int, float]] = {}
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._windows)

    def hit(self, key: str, seconds: int, now: float) -> tuple[int, float]:
        """As `Windows.hit`."""
        windows = self._windows
        count, end = windows.get(key, (0, 0.0))
        if now >= end:
            windows.pop(key, None)
            self._forget(now)
            count, end = 0, now + seconds
        windows[key] = window = (count + 1, end)
        return window

    def _forget(self, now: float) -> None:
        """Drop up to two lapsed windows for the one that comes, and the oldest where there are too many."""
        for _ in range(2):
            first = next(iter(self._windows), None)
            if first is None or (self._windows[first][1] > now and len(self._windows) < self._capacity):
                return
            del self._windows[first]


class SharedWindows:
    """Counts that all workers of one `serve` share: a hash table in a file, a lock a bucket.

    The kernel drops the locks of a process that dies, and a lock is held for microseconds. A full bucket
    gives up the window that ends first. The clock must be the same for all processes, as
    `time.monotonic` is.
    """

    _SLOT = struct.Struct("=16sdQ")
    _SLOTS = 8
    _BUCKET = _SLOT.size * _SLOTS

    def __init__(self, file: Path, buckets: int = 8192) -> None:
        self._buckets = buckets
        self._file = file.open("a+b", buffering=0)
        self._file.truncate(buckets * self._BUCKET)
        self._descriptor = self._file.fileno()
        self._map = mmap.mmap(self._descriptor, buckets * self._BUCKET)

    def hit(self, key: str, seconds: int, now: float) -> tuple[int, float]:
        """As `Windows.hit`."""
        digest, number = _digest(key)
        start = number % self._buckets * self._BUCKET
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, self._BUCKET, start)
        try:
            found, first, count, end = start, math.inf, 0, now + seconds
            for place in range(start, start + self._BUCKET, self._SLOT.size):
                owner, ends, counted = self._SLOT.unpack_from(self._map, place)
                if owner == digest:
                    found = place
                    if now < ends:
                        count, end = counted, ends
                    break
                if ends < first:
                    found, first = place, ends
            self._SLOT.pack_into(self._map, found, digest, end, count + 1)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, self._BUCKET, start)
        return count + 1, end

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()
        self._file.close()


@functools.lru_cache(maxsize=10_000)
def _digest(key: str) -> tuple[bytes, int]:
    """What stands for a key in a table, and a number that chooses its bucket."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return digest, int.from_bytes(digest[:8])


class Limit:
    """The limits of one setting, and their counters in memory.

    Args:
        name: `user` or `anonymous`.
        text: in the syntax of the `limits` library; empty for none.
        make_windows: makes a counter in memory; called once for each limit.
    """

    def __init__(self, name: str, text: str, make_windows: Callable[[], Windows]) -> None:
        self.name = name
        self.items: list[RateLimitItem] = parse_many(text) if text else []
        self.windows = [(make_windows(), item.get_expiry()) for item in self.items]
        self._amounts = [
            (f'"default-{number}"' if number > 1 else '"default"', item.amount)
            for number, item in enumerate(self.items, 1)
        ]
        self.policy = ", ".join(
            f"{name};q={amount};w={item.get_expiry()}"
            for (name, amount), item in zip(self._amounts, self.items, strict=True)
        )
        """The `RateLimit-Policy` header (draft-ietf-httpapi-ratelimit-headers-10, section 3)."""

    def judge(self, windows: Windowed, now: float) -> tuple[float | None, str]:
        """Seconds to wait where a limit is exceeded, and the `RateLimit` header (section 4 of the draft)."""
        wait: float | None = None
        parts = []
        for (name, amount), (counted, end) in zip(self._amounts, windows, strict=True):
            if counted > amount:
                wait = max(wait or 0.0, end - now)
            parts.append(f"{name};r={max(amount - counted, 0)};t={math.ceil(end - now)}")
        return wait, ", ".join(parts)


class Limiter:
    """Counts requests and refuses those beyond the limits that the settings set.

    Args:
        settings: the limits and where they are counted.
        directory: where the workers of one `serve` share their counts; None where there is one process.
        decided: told of each decision: which limit, and `allowed` or `refused`.
        storage_failed: called each time the storage could not be asked.
        clock: seconds, the same for all workers.

    Raises:
        SettingsInvalid: the storage needs what is not installed.
    """

    def __init__(
        self,
        settings: ServerSettings,
        directory: Path | None = None,
        *,
        decided: Callable[[str, str], None] = lambda _limit, _decision: None,
        storage_failed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._decided = decided
        self._storage_failed = storage_failed
        self._on_error = settings.rate_limit_on_error
        self._directory = directory
        self._tables: list[SharedWindows] = []
        self._user = Limit("user", settings.rate_limit, self._make_windows)
        self._anonymous = Limit("anonymous", settings.rate_limit_anonymous, self._make_windows)
        self._redis = _redis_storage(settings.rate_limit_storage.get_secret_value())
        self._redis_ends: dict[str, float] = {}
        """When windows in Redis end, so that it need not be asked with each request."""
        self._redis_failed_at: float | None = None

    @property
    def policy(self) -> str:
        """The `RateLimit-Policy` header for signed-in users; empty where there is no limit."""
        return self._user.policy

    async def admit(self, user_id: str) -> str | None:
        """Count a request of a signed-in user; return the `RateLimit` header, if there is something to say.

        Raises:
            RateLimited: there were too many; with the headers that say so.
        """
        if not self._user.items:
            return None
        wait, header = await self._hit(self._user, user_id)
        if wait is not None:
            headers = {"Retry-After": _whole(wait), "RateLimit-Policy": self._user.policy}
            raise RateLimited(
                f"You have sent too many requests; go on in {_whole(wait)} s.",
                headers=headers | ({"RateLimit": header} if header else {}),
            )
        return header

    async def refuse(self, address: str | None) -> None:
        """Count a request without a good token.

        Raises:
            RateLimited: there were too many from this address.
        """
        if not self._anonymous.items:
            return
        wait, _ = await self._hit(self._anonymous, network(address))
        if wait is not None:
            raise RateLimited(
                "Too many requests without a good token came from your address; "
                f"try again in {_whole(wait)} s.",
                headers={"Retry-After": _whole(wait)},
            )

    async def close(self) -> None:
        """Close the connections to the storage, and the tables."""
        for table in self._tables:
            table.close()
        if self._redis is not None:
            bridge: Any = self._redis.bridge
            await bridge.get_connection().aclose()

    def _make_windows(self) -> Windows:
        if self._directory is None:
            return OwnWindows()
        table = SharedWindows(self._directory / f"limit-{len(self._tables)}.table")
        self._tables.append(table)
        return table

    async def _hit(self, limit: Limit, key: str) -> tuple[float | None, str | None]:
        """Seconds to wait where a limit is exceeded, and the `RateLimit` header."""
        now = self._clock()
        wait: float | None
        header: str | None
        windows = None if self._redis is None else await self._count_in_redis(self._redis, limit, key, now)
        if windows is not None:
            wait, header = limit.judge(windows, now)
        elif self._redis is None or self._on_error is OnError.memory:
            wait, header = limit.judge([each.hit(key, length, now) for each, length in limit.windows], now)
        else:
            wait, header = (None if self._on_error is OnError.allow else _PAUSE_SECONDS), None
        self._decided(limit.name, "allowed" if wait is None else "refused")
        return wait, header

    async def _count_in_redis(
        self, redis: RedisStorage, limit: Limit, key: str, now: float
    ) -> Windowed | None:
        """Count in Redis; None where it did not answer in time, or failed a moment ago."""
        failed_at = self._redis_failed_at
        if failed_at is not None and now < failed_at + _PAUSE_SECONDS:
            return None
        # A digest: whatever a user is called, and nobody's name in Redis.
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        try:
            async with asyncio.timeout(_STORAGE_SECONDS):
                windows = [await self._count_item(redis, item, limit.name, name, now) for item in limit.items]
        except (OSError, StorageError) as error:
            if failed_at is None:
                log.warning("rate_limit_storage_failed", reason=type(error).__name__, then=self._on_error)
            self._storage_failed()
            self._redis_failed_at = self._clock()
            return None
        if failed_at is not None:
            log.info("rate_limit_storage_recovered")
            self._redis_failed_at = None
        return windows

    async def _count_item(
        self, redis: RedisStorage, item: RateLimitItem, limit: str, name: str, now: float
    ) -> tuple[int, float]:
        key = item.key_for(limit, name)
        counted = await redis.incr(key, item.get_expiry())
        end = now + item.get_expiry() if counted == 1 else self._redis_ends.get(key, 0.0)
        if end <= now:  # another process has started this window
            end = now + max(await redis.get_expiry(key) - time.time(), 1.0)
        if len(self._redis_ends) >= _WINDOWS_MAX:
            self._redis_ends.clear()
        self._redis_ends[key] = end
        return counted, end


def _redis_storage(url: str) -> RedisStorage | None:
    """The storage behind a URL; None for memory.

    Raises:
        SettingsInvalid: without repeating the URL, which may hold a password.
    """
    if url == MEMORY:
        return None
    try:
        from redis.asyncio.retry import Retry  # noqa: PLC0415 - an extra
        from redis.backoff import NoBackoff  # noqa: PLC0415 - an extra
    except ImportError:
        raise SettingsInvalid(
            "TASKCTL_RATE_LIMIT_STORAGE needs the extra `redis`: pip install 'taskctl[redis]'"
        ) from None
    options: Any = {
        "socket_timeout": _STORAGE_SECONDS,
        "socket_connect_timeout": _STORAGE_SECONDS,
        # By itself the client would try again for seconds.
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        return RedisStorage(
            # One client for both: Valkey speaks Redis's protocol.
            "async+" + url.replace("valkey", "redis", 1),
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="taskctl",
            **options,
        )
    except (ConfigurationError, ValueError, TypeError):
        raise SettingsInvalid(
            "TASKCTL_RATE_LIMIT_STORAGE is not a URL that the Redis client reads: it takes one such as "
            "redis://host:6379/0"
        ) from None


def _whole(seconds: float) -> str:
    return str(max(math.ceil(seconds), 1))


def network(address: str | None) -> str:
    """Whom an address stands for: itself, or its /64, which is what one subscriber has of IPv6."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "local"  # a Unix socket
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        parsed = parsed.ipv4_mapped
    return str(parsed)
