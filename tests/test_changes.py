"""The log of changes and its streams: each change once, in order, to its owner alone, whatever happens."""

import asyncio
import contextlib
import http.client
import json
import random
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from conftest import SECRET, Server, User, make_settings, make_user, stop, until, wait_until_ready
from taskctl.server import migrations
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.server.purge import purge
from taskctl.server.users import erase as erase_user

CHANGES = "/api/v1/me/changes"
TASKS = "/api/v1/me/tasks"
STREAM = {"Accept": "text/event-stream"}


class Event(NamedTuple):
    """An event as it came."""

    id: str
    type: str
    item: dict[str, Any]


class Watcher(threading.Thread):
    """Follows a user's changes, and connects again wherever it is cut off, as a browser would."""

    def __init__(self, user: User, *urls: str, since: str | None = None) -> None:
        super().__init__(daemon=True)
        self.events: list[Event] = []
        self.last_id = ""
        self.connections = 0
        self._user, self._urls, self._since = user, urls, since
        self._over = threading.Event()

    def run(self) -> None:
        """Follow until it is told to stop."""
        while not self._over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._follow(self._urls[self.connections % len(self._urls)])

    def stop(self) -> None:
        """Stop at the next event or heartbeat."""
        self._over.set()
        self.join(30)
        assert not self.is_alive()

    def _follow(self, url: str) -> None:
        headers = {**STREAM, **self._user.headers}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        query = "" if self._since is None else f"?since={self._since}"
        with contextlib.closing(connection_to(url)) as connection:
            connection.request("GET", CHANGES + query, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                assert response.status in {429, 503}, response.read()
                return
            self.connections += 1
            for event in events(response):
                self.last_id = event.id or self.last_id
                if event.item:
                    self.events.append(event)
                if self._over.is_set():
                    return

    @property
    def numbers(self) -> list[int]:
        """Of the changes it has seen, as they came."""
        return [event.item["number"] for event in self.events]


def connection_to(url: str) -> http.client.HTTPConnection:
    """A connection of one's own."""
    address = urlsplit(url)
    return http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)


def events(response: http.client.HTTPResponse) -> Iterator[Event]:
    """What comes over a stream, block by block; the item of a block without data is empty."""
    fields: dict[str, str] = {}
    for line in iter(response.readline, b""):
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        else:
            item = json.loads(fields["data"]) if "data" in fields else {}
            yield Event(fields.get("id", ""), fields.get("event", ""), item)
            fields = {}


@contextlib.contextmanager
def stream(server: Server, user: User, query: str = "", **headers: str) -> Iterator[Any]:
    """An open stream's answer."""
    with contextlib.closing(connection_to(server.url)) as connection:
        connection.request("GET", CHANGES + query, headers={**STREAM, **user.headers, **headers})
        # What is read from it keeps the connection open.
        with connection.getresponse() as response:
            yield response


@contextlib.contextmanager
def watching(watchers: list[Watcher]) -> Iterator[None]:
    """The watchers follow within the block, from its beginning on."""
    for each in watchers:
        each.start()
    try:
        until(lambda: all(each.last_id for each in watchers))
        yield
    finally:
        for each in watchers:
            each.stop()


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A migrated database that no other module's servers listen to."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE test_changes")
        url = postgres.url.replace("/taskctl?", "/test_changes?")
        migrations.upgrade(make_settings(url))
        yield url
        connection.execute("DROP DATABASE test_changes WITH (FORCE)")


@pytest.fixture(scope="module")
def replicas(start_server: Callable[..., Server], database: str) -> list[Server]:
    """Two servers on one database, the second with two workers; ten heartbeats a second, and few streams."""
    variables = {
        "TASKCTL_ENV": "test",
        "DATABASE_URL": database,
        "BETTER_AUTH_SECRET": SECRET,
        "TASKCTL_JWT_LEEWAY": "0",
        "TASKCTL_STREAM_HEARTBEAT": "0.1",
        # Where nothing is heard, nothing is seen within these tests' time.
        "TASKCTL_STREAM_POLL": "600",
        "TASKCTL_STREAMS": "30",
        "TASKCTL_STREAMS_PER_USER": "25",
        # A server that took streams for requests would have room for 21.
        "TASKCTL_POOL_SIZE": "1",
        "TASKCTL_POOL_TIMEOUT": "20",
    }
    return [
        start_server(**variables),
        start_server("--workers", "2", **variables | {"TASKCTL_POOL_SIZE": "5"}),
    ]


def execute(database: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def write(servers: list[Server], user: User, writer: int) -> None:
    """Nine changes of tasks that many change, each until the server has room for it."""
    chance = random.Random(writer)  # noqa: S311 - the same at each run
    url = servers[writer % len(servers)].url
    with httpx.Client(base_url=url, headers=user.headers, timeout=60) as client:

        def ask(method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
            return until(
                lambda: (answer := client.request(method, path, json=body)).status_code != 503 and answer
            )

        own = ask("POST", TASKS, {"title": f"Of writer {writer}"}).json()["id"]
        for step in range(8):
            task = f"{TASKS}/{own if step == 4 else chance.randint(1, 10)}"
            change = chance.choice(
                [
                    ("PATCH", task, {"title": f"{writer}-{step}"}),
                    ("PATCH", f"{task}/complete"),
                    ("PATCH", f"{task}/complete", {"completed": False}),
                    ("DELETE", task),
                    ("POST", f"{task}/restore"),
                ]
            )
            assert ask(*change).status_code in {200, 204, 404}


def read_to_the_end(url: str, user: User, over: threading.Event) -> list[dict[str, Any]]:
    """What a reader sees who asks for pages all the time, until nothing has come since it is over."""
    items: list[dict[str, Any]] = []
    since: dict[str, str] = {}
    with httpx.Client(base_url=url, headers=user.headers, timeout=60) as client:
        while True:
            last = over.is_set()
            answer = client.get(CHANGES, params={"limit": 7, **since})
            if answer.status_code == 503:
                continue
            page = answer.json()
            items += page["items"]
            since = {"since": page["next_cursor"]}
            if last and not page["more"] and not page["items"]:
                return items


def test_everybody_sees_each_change_once(replicas: list[Server], database: str, user: User) -> None:
    """Fifty writers on shared tasks, three watchers and a reader of pages: the same log for all, in order.

    Each task's versions follow one another, and what another user does meanwhile is in nobody else's log.
    """
    one, two = replicas
    other = make_user()
    watchers = [Watcher(user, one.url), Watcher(user, two.url), Watcher(user, two.url, one.url, since="now")]
    others = Watcher(other, two.url)
    over = threading.Event()
    with watching([*watchers, others]), ThreadPoolExecutor(60) as pool:
        reading = pool.submit(read_to_the_end, one.url, user, over)
        writing = [pool.submit(write, replicas, user, writer) for writer in range(50)]
        writing += [pool.submit(write, replicas, other, writer) for writer in range(2)]
        for each in writing:
            each.result()
        over.set()
        logged = [
            number
            for (number,) in execute(
                database, "SELECT number FROM change WHERE user_id = %s ORDER BY number", user.id
            )
        ]
        assert len(logged) > 100
        until(lambda: all(each.numbers[-1:] == logged[-1:] for each in watchers))
        read = reading.result()
        until(lambda: others.events)
    assert [item["number"] for item in read] == logged
    versions = defaultdict(list)
    for item in read:
        assert item["task"]["user_id"] == user.id
        versions[item["task"]["id"]].append(item["task"]["version"])
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
    for each in watchers:
        assert [event.item for event in each.events] == read
        assert all(event.type == event.item["type"] for event in each.events)
        assert each.connections == 1
    assert {event.item["task"]["user_id"] for event in others.events} == {other.id}


def test_the_listening_connection_is_made_again(replicas: list[Server], database: str, user: User) -> None:
    """Streams hear of other processes' writes again after PostgreSQL has ended what listens."""
    one, two = replicas
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'taskctl-changes'"
    kill += " AND datname = current_database()"
    watcher = Watcher(user, one.url)
    with watching([watcher]):
        httpx.post(two.url + TASKS, json={"title": "Before"}, headers=user.headers)
        until(lambda: len(watcher.events) == 1)
        lost = one.log.read_text().count("changes_polling")
        assert execute(database, kill)
        httpx.post(two.url + TASKS, json={"title": "While nobody listens"}, headers=user.headers)
        until(lambda: one.log.read_text().count("changes_polling") > lost)
        until(lambda: len(watcher.events) == 2)
        httpx.post(two.url + TASKS, json={"title": "After"}, headers=user.headers)
        until(lambda: len(watcher.events) == 3)
    assert watcher.connections == 1


def test_streams_are_bounded_and_cost_no_room(replicas: list[Server], user: User) -> None:
    """Beyond the limits 429 and 503; requests have all their room beside the streams; places come back."""
    server = replicas[0]
    with contextlib.ExitStack() as stack:
        for _ in range(25):
            assert stack.enter_context(stream(server, user)).status == 200
        with stream(server, user) as refusal:
            assert (refusal.status, refusal.headers["Retry-After"]) == (429, "1")
            assert json.loads(refusal.read())["code"] == "too_many_streams"
        other = make_user()
        for _ in range(5):
            assert stack.enter_context(stream(server, other)).status == 200
        with stream(server, other) as refusal:
            assert (refusal.status, json.loads(refusal.read())["code"]) == (503, "overloaded")
        assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
        metrics = httpx.get(f"{server.url}/metrics").text
        assert re.findall(
            r"^taskctl_streams (\S+)|^taskctl_http_requests_in_flight (\S+)", metrics, re.MULTILINE
        ) == [
            ("", "1.0"),
            ("30.0", ""),
        ]
    until(lambda: "taskctl_streams 0.0" in httpx.get(f"{server.url}/metrics").text)
    with stream(server, user) as response:
        assert response.status == 200


def test_a_stream_ends_with_its_token(replicas: list[Server]) -> None:
    """When the token expires the stream is ended in order, and the token is refused from then on."""
    passing = make_user(lifetime=1)
    with stream(replicas[0], passing) as response:
        assert response.status == 200
        blocks = list(events(response))
    assert all(not block.item for block in blocks)
    with stream(replicas[0], passing) as response:
        assert (response.status, json.loads(response.read())["code"]) == (401, "token_expired")


def test_a_stream_in_detail(replicas: list[Server], user: User) -> None:
    """Its head, its first blocks, heartbeats, the id for who has seen no event, and what HEAD answers."""
    server = replicas[0]
    for title in ("One", "Two"):
        httpx.post(server.url + TASKS, json={"title": title}, headers=user.headers)
    pages = httpx.get(server.url + CHANGES, headers=user.headers).json()
    with stream(server, user, "?since=now") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        lines = [response.readline().decode().strip() for _ in range(5)]
    assert re.fullmatch(r"retry: [123]\d{3}", lines[0])
    assert lines[1:] == ["", f"id: {pages['next_cursor']}", "", ":"]
    with stream(server, user) as response:
        found = [event for event, _ in zip(events(response), range(3), strict=False) if event.item]
    assert [event.item for event in found] == pages["items"]
    with stream(server, user, "?since=now", **{"Last-Event-ID": found[0].id}) as response:
        later = next(event for event in events(response) if event.item)
    assert later == found[1]
    head = httpx.head(server.url + CHANGES, headers={**user.headers, **STREAM})
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    with stream(server, user, **{"Last-Event-ID": "nonsense"}) as response:
        assert (response.status, json.loads(response.read())["code"]) == (400, "bad_request")
    mixed = {"Accept": "application/json, text/event-stream;q=0.5"}
    assert httpx.get(server.url + CHANGES, headers={**user.headers, **mixed}).json() == pages


def test_readers_that_stall_are_not_remembered(replicas: list[Server], database: str, user: User) -> None:
    """Five streams that nobody reads cost no memory, however long the log is, and keep nobody waiting."""
    server = replicas[0]
    httpx.post(server.url + TASKS, json={"title": "x"}, headers=user.headers)
    execute(
        database,
        "INSERT INTO change SELECT user_id, n, 'changed', task_id, at,"
        " json_build_object('id', 1, 'description', (SELECT string_agg(md5((n * 400 + i)::text), '')"
        " FROM generate_series(1, 300) AS i))"
        " FROM change, generate_series(2, 2500) AS n WHERE user_id = %s",
        user.id,
    )
    execute(database, "UPDATE account SET last_change = 2500 WHERE user_id = %s", user.id)

    def read() -> None:
        with stream(server, user) as response:
            assert [event.item["number"] for event in numbered(events(response), 2500)][-1] == 2500

    def memory() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1024

    read()
    before = memory()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stalled = stack.enter_context(contextlib.closing(socket.socket()))
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = urlsplit(server.url)
            stalled.connect((address.hostname, address.port))
            lines = [f"GET {CHANGES} HTTP/1.1", "Host: x", *(f"{n}: {v}" for n, v in user.headers.items())]
            stalled.sendall("\r\n".join([*lines, "Accept: text/event-stream", "", ""]).encode())
            assert stalled.recv(1)
        read()
        # All of it would be 24 MiB for each.
        assert memory() - before < 15
    assert httpx.get(server.url + CHANGES, headers=user.headers).json()["more"]


def numbered(found: Iterator[Event], last: int) -> Iterator[Event]:
    """The events with an item, up to the one with this number."""
    for event in found:
        if event.item:
            yield event
            if event.item["number"] == last:
                return


def test_streams_end_when_the_server_does(launch: Callable[..., Server], database: str, user: User) -> None:
    """Through the drain's delay a stream goes on; then it is ended in order, and the server does not wait."""
    server = wait_until_ready(
        launch(
            TASKCTL_ENV="test",
            DATABASE_URL=database,
            BETTER_AUTH_SECRET=SECRET,
            TASKCTL_DRAIN_DELAY="1s",
        )
    )
    with stream(server, user) as response:
        blocks = events(response)
        server.process.terminate()
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        httpx.post(server.url + TASKS, json={"title": "Late"}, headers=user.headers)
        assert [event.type for event in blocks if event.item] == ["created"]
    assert stop(server) == 0
    assert "cut_off" not in server.log.read_text()
    assert "Exception" not in server.log.read_text()


# Pages, of an application in this process.


async def add(api: httpx.AsyncClient, count: int, **content: Any) -> None:
    for number in range(count):
        answer = await api.post(TASKS, json={"title": f"Task {number}", **content})
        assert answer.status_code == 201


async def numbers(api: httpx.AsyncClient, **parameters: Any) -> tuple[list[int], str, bool]:
    """Of one page: the changes' numbers, the cursor, whether there is more."""
    answer = await api.get(CHANGES, params=parameters)
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert list(page) == ["items", "next_cursor", "more"]
    return [item["number"] for item in page["items"]], page["next_cursor"], page["more"]


async def test_pages(api: httpx.AsyncClient) -> None:
    """A page has what follows its cursor, up to the limit, with each task as the change has left it."""
    assert (await numbers(api))[0] == []
    start = (await numbers(api, since="now"))[1]
    await add(api, 2)
    await api.patch(f"{TASKS}/1", json={"title": "New"})
    await api.patch(f"{TASKS}/1", json={"title": "New"})
    await api.patch(f"{TASKS}/1/complete")
    await api.patch(f"{TASKS}/1/complete", json={"completed": False})
    await api.delete(f"{TASKS}/1")
    await api.post(f"{TASKS}/1/restore")
    items = (await api.get(CHANGES, params={"since": start})).json()["items"]
    assert [(item["type"], item["task"]["id"], item["task"]["version"]) for item in items] == [
        ("created", 1, 1),
        ("created", 2, 1),
        ("changed", 1, 2),
        ("completed", 1, 3),
        ("reopened", 1, 4),
        ("deleted", 1, 5),
        ("restored", 1, 6),
    ]
    assert [item["task"]["deleted_at"] is None for item in items] == [True] * 5 + [False, True]
    assert all(item["at"] == item["task"]["updated_at"] for item in items)
    assert items[-1]["task"] == (await api.get(f"{TASKS}/1")).json()
    first, cursor, more = await numbers(api, limit=3)
    assert (first, more) == ([1, 2, 3], True)
    assert await numbers(api, since=cursor, limit=4) == ([4, 5, 6, 7], (await numbers(api))[1], False)
    assert (await numbers(api, since="now"))[::2] == ([], False)


async def test_a_page_of_long_tasks_is_short(api: httpx.AsyncClient) -> None:
    """A page of long tasks ends at about a mebibyte, and says that there is more."""
    await add(api, 40, description="🥛\n" * 5000)
    first, cursor, more = await numbers(api, limit=500)
    assert 20 <= len(first) < 40
    assert more
    assert first + (await numbers(api, since=cursor, limit=500))[0] == list(range(1, 41))


@pytest.mark.parametrize("since", ["", "Now", "AAAAAAAAAAA", "A" * 20, "A" * 32, "%00", "é" * 32])
async def test_a_cursor_that_is_none(api: httpx.AsyncClient, since: str) -> None:
    """What is no cursor is 400."""
    answer = await api.get(CHANGES, params={"since": since})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_cursors_of_others_and_of_the_future(
    api: httpx.AsyncClient, database_url: str, user: User
) -> None:
    """A cursor is its user's alone, and 400 on a database that has not come so far."""
    await add(api, 2)
    cursor = (await numbers(api))[1]
    answer = await api.get(CHANGES, params={"since": cursor}, headers=make_user().headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    execute(database_url, "DELETE FROM change WHERE user_id = %s AND number = 2", user.id)
    execute(database_url, "UPDATE account SET last_change = 1 WHERE user_id = %s", user.id)
    answer = await api.get(CHANGES, params={"since": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_cursor_is_of_one_life(replicas: list[Server], database: str, user: User) -> None:
    """Who begins anew after they were erased has other changes under the numbers: old cursors are 410.

    A stream from before ends. A cursor of when there was no account yet has missed nothing.
    """
    url = replicas[0].url

    def read(since: str | None = None) -> httpx.Response:
        return httpx.get(url + CHANGES, params={"since": since} if since else {}, headers=user.headers)

    def write(count: int) -> None:
        for _ in range(count):
            assert httpx.post(url + TASKS, json={"title": "x"}, headers=user.headers).status_code == 201

    nothing = read().json()["next_cursor"]
    write(2)
    old = read().json()["next_cursor"]
    assert read(old).json()["items"] == []
    with stream(replicas[0], user) as response:
        found = events(response)
        assert [each.id for each in numbered(found, 2)][-1] == old
        erase_user(make_settings(database), user.id)
        assert read(old).status_code == 410
        assert read(nothing).json() == {"items": [], "next_cursor": nothing, "more": False}
        write(3)
        assert [each for each in found if each.item] == []
    answer = read(old)
    assert (answer.status_code, answer.json()["code"]) == (410, "changes_expired")
    with stream(replicas[0], user, **{"Last-Event-ID": old}) as response:
        assert response.status == 410
    assert [item["number"] for item in read(nothing).json()["items"]] == [1, 2, 3]
    assert read("now").json()["next_cursor"] != old
    assert read(read().json()["next_cursor"]).json()["items"] == []
    execute(database, "UPDATE account SET last_change = 0 WHERE user_id = %s", user.id)
    execute(database, "DELETE FROM change WHERE user_id = %s", user.id)
    with_tasks = read().json()["next_cursor"]
    assert read(with_tasks).status_code == 200
    erase_user(make_settings(database), user.id)
    write(1)
    assert read(with_tasks).status_code == 410


async def test_changes_that_are_no_longer_kept(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """410 where a change after the cursor was purged; who has seen all of those goes on as ever."""
    beginning = (await numbers(api, since="now"))[1]
    await add(api, 4)
    cursors = [(await numbers(api, limit=limit))[1] for limit in (1, 2, 3, 4)]
    purge = "DELETE FROM change WHERE user_id = %s AND number <= %s"
    execute(database_url, purge, user.id, 2)
    for expired in (beginning, cursors[0]):
        answer = await api.get(CHANGES, params={"since": expired})
        assert (answer.status_code, answer.json()["code"]) == (410, "changes_expired")
    assert (await numbers(api, since=cursors[1]))[0] == [3, 4]
    assert (await numbers(api))[0] == [3, 4]
    execute(database_url, purge, user.id, 4)
    assert (await api.get(CHANGES, params={"since": cursors[2]})).status_code == 410
    assert await numbers(api, since=cursors[3]) == ([], cursors[3], False)
    assert await numbers(api) == ([], cursors[3], False)


async def test_gaps_and_what_was_before_the_log(
    api: httpx.AsyncClient, database_url: str, user: User
) -> None:
    """Numbers taken in vain hide nothing, and tasks older than the log enter it when they change."""
    body = {"json": {"title": "Once"}, "headers": {"Idempotency-Key": "key"}}
    await asyncio.gather(*(api.post(TASKS, **body) for _ in range(20)))
    [[taken]] = execute(database_url, "SELECT last_change FROM account WHERE user_id = %s", user.id)
    seen, cursor, _ = await numbers(api)
    assert seen == [1]
    execute(database_url, "DELETE FROM change WHERE user_id = %s", user.id)
    assert (await numbers(api, since=cursor))[0] == []
    await api.patch(f"{TASKS}/1", json={"title": "Again"})
    assert (await numbers(api, since=cursor))[0] == [taken + 1]
    # As a migration leaves an account with tasks.
    execute(database_url, "DELETE FROM change WHERE user_id = %s", user.id)
    execute(database_url, "UPDATE account SET last_change = 0 WHERE user_id = %s", user.id)
    seen, cursor, _ = await numbers(api)
    assert seen == []
    await api.delete(f"{TASKS}/1")
    assert (await numbers(api, since=cursor))[0] == [1]


def test_purging_leaves_no_hole(replicas: list[Server], database: str, user: User) -> None:
    """With an old change go all before it, though one began later: what is left begins after what is gone."""
    url = replicas[1].url + CHANGES
    cursors = []
    for title in ("One", "Two", "Three", "Four"):
        httpx.post(replicas[1].url + TASKS, json={"title": title}, headers=user.headers)
        cursors.append(httpx.get(url, headers=user.headers).json()["next_cursor"])
    old = "UPDATE change SET at = now() - interval '31 days' WHERE user_id = %s AND number IN (1, 3)"
    execute(database, old, user.id)
    assert purge(make_settings(database)).changes == 3
    answers = [httpx.get(url, params={"since": cursor}, headers=user.headers) for cursor in cursors]
    assert [answer.status_code for answer in answers] == [410, 410, 200, 200]
    assert [item["number"] for item in answers[2].json()["items"]] == [4]
