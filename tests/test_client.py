"""`taskctl.client`, and the transport below it, against a real server that answers by a script."""

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from taskctl import errors
from taskctl.client import Client
from taskctl.vocabulary import Order, Status

TASK = {
    "id": 7,
    "user_id": "alice",
    "title": "Купить молоко",
    "description": None,
    "completed": False,
    "completed_at": None,
    "version": 3,
    "created_at": "2026-01-02T03:04:05.000000Z",
    "updated_at": "2026-01-02T03:04:05.000000Z",
}

CUT = b""
"""The connection is closed without an answer."""


class Seen(NamedTuple):
    """A request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self):
        """The body's value."""
        return json.loads(self.body)


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ok(value: object, status: int = 200, **headers: str) -> bytes:
    return http(status, json.dumps(value).encode(), Content_Type="application/json", **headers)


def problem(status: int, code: str, *, retry_after: str | None = None, **members: object) -> bytes:
    body = {
        "type": f"/errors/{code}",
        "title": "T",
        "status": status,
        "detail": f"Detail of {code}.",
        "instance": "/",
    }
    body |= {"code": code, "request_id": "req-1", **members}
    headers = {"Content_Type": "application/problem+json"}
    if retry_after is not None:
        headers["Retry_After"] = retry_after
    return http(status, json.dumps(body).encode(), **headers)


class Scripted:
    """Answers each request with the next of `script`; one that is shorter than it says ends the connection.

    A callable is called for the answer. After the script's end nothing is answered until the test is over.
    """

    def __init__(self, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.script: list[bytes | Callable[[], bytes]] = []
        self.seen: list[Seen] = []
        self.listener = socket.create_server(
            ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family
        )
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        """Take connections until the test is over."""
        number = 0
        while True:
            connection, _ = self.listener.accept()
            if self.over.is_set():
                connection.close()
                return
            number += 1
            thread = threading.Thread(target=self.serve, args=(connection, number))
            self.threads.append(thread)
            thread.start()

    def serve(self, connection: socket.socket, number: int) -> None:
        """Answer the requests of one connection."""
        connection.settimeout(20)  # so that nothing a client keeps open can hang the run
        with contextlib.suppress(TimeoutError), connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                headers = {}
                while (header := stream.readline()) not in {b"\r\n", b""}:
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", 0)))
                self.seen.append(Seen(line.decode().strip(), headers, body, number))
                if not self.script:
                    self.over.wait()
                    return
                answer = self.script.pop(0)
                answer = answer() if callable(answer) else answer
                connection.sendall(answer)
                head, _, content = answer.partition(b"\r\n\r\n")
                if not answer or f"Content-Length: {len(content)}".encode() not in head:
                    return

    def close(self) -> None:
        """Let go of every connection and wait until all threads have ended."""
        self.over.set()
        socket.create_connection(self.listener.getsockname()[:2]).close()
        for thread in self.threads:
            thread.join()
        self.listener.close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


class FakeTime:
    """A clock that moves only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        """Seconds since the start."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass the time."""
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


@pytest.fixture
def client(server: Scripted, fake: FakeTime) -> Iterator[Client]:
    with Client(server.url, "secret-token", sleep=fake.sleep, clock=fake.clock) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# What goes over the wire


def test_every_operation_sends_what_the_contract_says(client, server):
    """Each operation uses its method, path, body and headers, on one kept-alive connection."""
    server.script = [ok(TASK)] * 5 + [http(204), ok(TASK)] + [ok({"items": [TASK], "next_cursor": None})] * 2
    assert client.create_task("Buy milk", content={"description": "2 l"}, idempotency_key="k1")["id"] == 7
    assert client.read_task(7) == TASK
    client.replace_task(7, "T", content={"completed": True}, if_version=3)
    client.edit_task(7, {"description": None}, if_version=4)
    client.complete_task(7, completed=False)
    client.delete_task(7, if_version=5)
    client.restore_task(7, if_version=6)
    client.list_tasks(status=Status.pending, limit=5, cursor="a/b=", order=Order.desc)
    client.list_tasks(filters={"tag": ["a", "b&c"], "q": "é"})
    assert [seen.line for seen in server.seen] == [
        "POST /api/v1/me/tasks HTTP/1.1",
        "GET /api/v1/me/tasks/7 HTTP/1.1",
        "PUT /api/v1/me/tasks/7 HTTP/1.1",
        "PATCH /api/v1/me/tasks/7 HTTP/1.1",
        "PATCH /api/v1/me/tasks/7/complete HTTP/1.1",
        "DELETE /api/v1/me/tasks/7 HTTP/1.1",
        "POST /api/v1/me/tasks/7/restore HTTP/1.1",
        "GET /api/v1/me/tasks?status=pending&order=desc&limit=5&cursor=a%2Fb%3D HTTP/1.1",
        "GET /api/v1/me/tasks?status=all&order=asc&tag=a&tag=b%26c&q=%C3%A9 HTTP/1.1",
    ]
    bodies = [seen.json if seen.body else None for seen in server.seen]
    assert bodies == [
        {"title": "Buy milk", "description": "2 l"},
        None,
        {"title": "T", "completed": True},
        {"description": None},
        {"completed": False},
        None,
        None,
        None,
        None,
    ]
    matches = [seen.headers.get("if-match") for seen in server.seen]
    assert matches == [None, None, '"3"', '"4"', None, '"5"', '"6"', None, None]
    assert server.seen[0].headers["idempotency-key"] == "k1"
    assert {seen.headers["authorization"] for seen in server.seen} == {"Bearer secret-token"}
    assert {seen.connection for seen in server.seen} == {1}


def test_raw_is_the_answer_byte_for_byte(client, server):
    """What `--json` prints is exactly what the server sent, white space and all."""
    body = b'{ "id": 7 }'
    server.script = [http(200, body, Content_Type="application/json; charset=utf-8")]
    client.read_task(7)
    assert client.raw == body


def test_pages_ask_for_no_more_than_needed(client, server):
    """A total of 250 is a page of 200 and one of 50, and the third is never asked for."""
    server.script = [
        ok({"items": [TASK] * 200, "next_cursor": "a"}),
        ok({"items": [TASK] * 50, "next_cursor": "b"}),
    ]
    pages = list(client.pages(total=250))
    assert [len(page["items"]) for page in pages] == [200, 50]
    assert ["limit=200" in server.seen[0].line, "limit=50" in server.seen[1].line] == [True, True]
    assert "cursor=a" in server.seen[1].line


def test_pages_end_at_the_last_and_notice_a_loop(client, server):
    """All pages are fetched up to the null cursor; a server that repeats a cursor is not asked for ever."""
    server.script = [ok({"items": [TASK], "next_cursor": "a"}), ok({"items": [], "next_cursor": None})]
    assert [len(page["items"]) for page in client.pages()] == [1, 0]
    server.script = [ok({"items": [TASK], "next_cursor": "a"})] * 2
    with pytest.raises(errors.UnexpectedAnswer):
        list(client.pages())


def test_a_prefix_in_the_servers_path_is_kept(server):
    """A server behind https://host/prefix is asked below that prefix."""
    server.script = [ok(TASK), ok({"version": "1"})]
    with Client(f"{server.url}/tasks/api/v1/", None) as client:
        client.read_task(1)
        client.health()
    assert [seen.line.split()[1] for seen in server.seen] == ["/tasks/api/v1/me/tasks/1", "/tasks/health"]


def test_an_ipv6_address_works(fake):
    """A URL with an IPv6 address in brackets is understood."""
    try:
        server = Scripted(socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    server.script = [ok(TASK)]
    with Client(f"http://[::1]:{server.port}", "t", clock=fake.clock) as client:
        assert client.read_task(7)["id"] == 7
    assert server.seen[0].headers["host"] == f"[::1]:{server.port}"
    server.close()


def test_a_lone_surrogate_is_the_servers_to_refuse(client, server):
    """A title that has no UTF-8, as from a mangled argument, is sent escaped."""
    server.script = [problem(422, "validation_failed")]
    with pytest.raises(errors.ValidationFailed):
        client.create_task("\udcff")
    assert b"\\udcff" in server.seen[0].body


@pytest.mark.parametrize("key", ["", "with space", "line\nbreak", "ключ", "k" * 256])
def test_a_key_that_is_none_is_refused_here(client, key):
    """An idempotency key that no header can carry is wrong usage, and nothing is sent."""
    with pytest.raises(errors.UsageInvalid):
        client.create_task("T", idempotency_key=key)


# Errors


def test_a_problem_becomes_the_class_of_its_code(client, server):
    """Code, detail, request id and further members of a problem document are taken over."""
    server.script = [problem(412, "version_conflict", current_version=9)]
    with pytest.raises(errors.VersionConflict) as caught:
        client.edit_task(7, {}, if_version=3)
    error = caught.value
    assert (error.detail, error.request_id) == ("Detail of version_conflict.", "req-1")
    assert (error.members, error.exit_code) == ({"current_version": 9}, 6)


@pytest.mark.parametrize(
    ("status", "exit_code"),
    [(400, 2), (401, 4), (403, 4), (404, 5), (409, 6), (418, 2), (500, 8), (507, 8)],
)
def test_an_unknown_code_keeps_its_name_and_goes_by_its_status(client, server, status, exit_code):
    """A newer server's code is shown as it is, with the exit code of its status."""
    server.script = [problem(status, "quite_new")]
    with pytest.raises(errors.TaskctlError) as caught:
        client.read_task(1)
    assert (caught.value.code, caught.value.status) == ("quite_new", status)
    assert caught.value.exit_code == exit_code
    assert errors.by_code("quite_new") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (http(200, b"<html>", Content_Type="text/html"), errors.UnexpectedAnswer),
        (http(404, b"<html>", Content_Type="text/html"), errors.UnexpectedAnswer),
        (http(401, b"{}", Content_Type="application/json"), errors.UnexpectedAnswer),
        (http(500, b"oops", Content_Type="text/plain"), errors.ServerFailed),
        (http(501), errors.ServerFailed),
        (ok([1]), errors.UnexpectedAnswer),
        (ok({"hello": 1}), errors.UnexpectedAnswer),
        (b"SSH-2.0-OpenSSH\r\n\r\n", errors.UnexpectedAnswer),
    ],
)
def test_what_is_not_the_api_is_told_apart(client, server, answer, expected):
    """Another server's answer is neither taken for data nor repeated; a 5xx is the server's failure."""
    server.script = [answer]
    with pytest.raises(expected):
        client.read_task(1)
    assert len(server.seen) == 1


def test_a_redirect_is_not_followed(client, server):
    """The token goes nowhere else; the error names where it points, without secrets."""
    server.script = [http(302, Location="https://user:pw@login.example:444/x?y=z")]
    with pytest.raises(errors.UnexpectedAnswer, match=r"https://login\.example:444 \(302\)") as caught:
        client.read_task(1)
    assert "pw" not in str(caught.value)


def test_a_name_that_does_not_exist_fails_at_once(fake):
    """A host name that cannot be looked up is not tried again."""
    with (
        Client("https://nowhere.invalid", "t", sleep=fake.sleep, clock=fake.clock) as client,
        pytest.raises(errors.ServerUnreachable, match=r"nowhere\.invalid"),
    ):
        client.read_task(1)


def test_tls_against_a_plain_server_fails_at_once(fake):
    """An https URL of a server that speaks no TLS ends in one sentence, without a second try."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Client(url, "t", sleep=fake.sleep, clock=fake.clock) as client,
            pytest.raises(errors.ServerUnreachable, match="TLS"),
        ):
            client.read_task(1)
        thread.join()
    assert fake.slept == []


def test_plain_http_to_another_machine_needs_leave():
    """Plain HTTP beyond loopback is refused unless it is allowed."""
    with pytest.raises(errors.SettingsInvalid, match="allow-http"):
        Client("http://tasks.example", "t")
    Client("http://tasks.example", "t", allow_http=True).close()


# Repeats


@pytest.mark.parametrize(
    "failure",
    [
        CUT,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        http(200, b'{"id": ', Content_Type="application/json"),
        problem(429, "rate_limited"),
        problem(503, "overloaded"),
        http(502, b"<html>", Content_Type="text/html"),
        http(504),
    ],
)
def test_what_passes_is_tried_again_with_the_same_key(client, server, fake, failure):
    """A dropped or damaged answer, 429, 502, 503 and 504 are repeated, always with the same key."""
    server.script = [failure, failure, ok(TASK, 201)]
    assert client.create_task("T")["id"] == 7
    keys = {seen.headers["idempotency-key"] for seen in server.seen}
    assert (len(server.seen), len(keys), len(fake.slept)) == (3, 1, 2)


def test_500_is_not_tried_again(client, server):
    """An internal error is reported at once."""
    server.script = [problem(500, "internal_error")]
    with pytest.raises(errors.InternalError):
        client.read_task(1)
    assert len(server.seen) == 1


def test_a_refused_connection_is_tried_until_the_time_is_up(fake):
    """The waits stay below the doubling cap, and none would pass the deadline."""
    told: list[int] = []
    client = Client(
        f"http://127.0.0.1:{closed_port()}",
        "t",
        timeout=30,
        sleep=fake.sleep,
        clock=fake.clock,
        on_retry=lambda number, _reason, _wait: told.append(number),
    )
    with pytest.raises(errors.ServerUnreachable, match="refused"):
        client.read_task(1)
    client.close()
    assert all(slept <= min(5.0, 0.1 * 2**tried) for tried, slept in enumerate(fake.slept))
    assert 0 < fake.now < 30
    assert told == list(range(2, len(told) + 2))


def test_a_connection_is_waited_for_no_longer_than_patience(server, fake):
    """Once in a hurry a refused connection ends the request soon; a server that answers has all the time."""
    with Client(f"http://127.0.0.1:{closed_port()}", "t", sleep=fake.sleep, clock=fake.clock) as client:
        client.hurry(1.0)
        with pytest.raises(errors.ServerUnreachable, match="refused"):
            client.read_task(1)
    assert 0 < fake.now < 1
    server.script = [problem(503, "overloaded", retry_after="20"), ok(TASK)]
    with Client(server.url, "t", sleep=fake.sleep, clock=fake.clock) as client:
        client.hurry(1.0)
        assert client.read_task(7)["id"] == 7


def test_retry_after_is_honoured(client, server, fake, monkeypatch):
    """At least the seconds, or the time until the date, that the server names are waited."""
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)
    date = {"Retry_After": "Thu, 01 Jan 2026 00:00:09 GMT", "Date": "Thu, 01 Jan 2026 00:00:02 GMT"}
    server.script = [
        problem(429, "rate_limited", retry_after="3"),
        http(503, **date),
        http(503, Retry_After="soon"),
    ]
    server.script.append(ok(TASK))
    client.read_task(7)
    assert fake.slept == [3, 7, 0]


def test_a_wait_past_the_deadline_fails_now(client, server, fake):
    """Where the server asks for more time than is left, its error is reported without waiting."""
    server.script = [problem(429, "rate_limited", retry_after="31")]
    with pytest.raises(errors.RateLimited):
        client.read_task(7)
    assert fake.slept == []


def test_a_server_that_never_answers_times_out(server):
    """Silence ends with ServerTimedOut once the time is up."""
    with Client(server.url, "t", timeout=0.2) as client, pytest.raises(errors.ServerTimedOut):
        client.read_task(7)


def test_a_kept_alive_connection_that_was_closed_is_opened_again(client, server, fake):
    """The server may close an idle connection; the next request opens another without any wait."""
    server.script = [ok(TASK), CUT, ok(TASK)]
    client.read_task(7)
    client.read_task(7)
    assert fake.slept == []
    assert [seen.connection for seen in server.seen] == [1, 1, 2]


def test_a_repeated_delete_that_finds_nothing_is_done(client, server):
    """A DELETE cut off and then answered 404 was done by the first try; a first 404 is an error."""
    server.script = [CUT, problem(404, "task_not_found")]
    client.delete_task(7)
    server.script = [http(504), problem(404, "task_not_found")]
    client.delete_task(7)
    for first in ([], [problem(503, "overloaded")]):
        server.script = [*first, problem(404, "task_not_found")]
        with pytest.raises(errors.TaskNotFound):
            client.delete_task(7)


def test_a_conflict_after_a_cut_is_reported(client, server):
    """With If-Match, a try that may have worked is not guessed about: the conflict says so."""
    server.script = [CUT, problem(412, "version_conflict", current_version=4)]
    with pytest.raises(errors.VersionConflict, match=r"version_conflict") as caught:
        client.edit_task(7, {"title": "T"}, if_version=3)
    assert "may have made it" in caught.value.detail


def test_a_probe_is_tried_once(client, server):
    """`status` wants to know how things are, not how they are after half a minute; and sends no token."""
    server.script = [problem(503, "not_ready", checks={"database": "behind"})]
    with pytest.raises(errors.NotReady) as caught:
        client.ready()
    assert caught.value.members == {"checks": {"database": "behind"}}
    assert "authorization" not in server.seen[0].headers


def test_each_try_is_told_without_the_token(server, fake):
    """`--debug` sees method, URL, outcome and number of each try, and nothing secret."""
    tries = []
    server.script = [problem(503, "overloaded"), ok(TASK)]
    with Client(
        server.url, "secret-token", sleep=fake.sleep, clock=fake.clock, on_try=tries.append
    ) as client:
        client.read_task(7)
    assert [(one.outcome, one.number) for one in tries] == [("503 overloaded", 1), ("200", 2)]
    assert "secret" not in repr(tries)


# Proxies


def test_a_proxy_is_used_except_for_loopback(server, monkeypatch, fake):
    """HTTP_PROXY gets the whole URL and its own credentials; NO_PROXY and this machine go direct."""
    monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@127.0.0.1:{server.port}")
    server.script = [ok(TASK), ok(TASK)]
    with Client("http://tasks.example:8080/p", "t", allow_http=True, clock=fake.clock) as client:
        client.read_task(7)
    assert server.seen[0].line == "GET http://tasks.example:8080/p/api/v1/me/tasks/7 HTTP/1.1"
    assert server.seen[0].headers["host"] == "tasks.example:8080"
    assert server.seen[0].headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    with Client(server.url, "t", clock=fake.clock) as client:
        client.read_task(7)
    assert server.seen[1].line == "GET /api/v1/me/tasks/7 HTTP/1.1"
    monkeypatch.setenv("NO_PROXY", "example")
    with Client("http://tasks.example:8080", "t", allow_http=True) as client:
        assert client._transport._connection.host == "tasks.example"


def test_https_goes_through_a_tunnel(server, monkeypatch, fake):
    """HTTPS_PROXY is asked for a tunnel, and never sees the token."""
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{server.port}")
    server.script = [http(403)]
    with (
        Client("https://tasks.example", "secret-token", sleep=fake.sleep, clock=fake.clock) as client,
        pytest.raises(errors.ServerUnreachable, match="403"),
    ):
        client.read_task(7)
    assert server.seen[0].line.startswith("CONNECT tasks.example:443 ")
    assert "secret" not in repr(server.seen)


# What it costs


def test_the_client_loads_nothing_heavy():
    """A command of the client loads neither the server's libraries nor pydantic, rich or httpx."""
    code = "import sys, taskctl.client, taskctl.cli.tasks, taskctl.cli.root; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "fastapi",
        "sqlalchemy",
        "sqlmodel",
        "psycopg",
        "alembic",
        "pydantic",
        "rich",
        "httpx",
        "uvicorn",
        "starlette",
    }
    assert heavy.isdisjoint(done.stdout.split())
