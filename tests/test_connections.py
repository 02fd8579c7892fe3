"""Where a server listens, whom it takes its clients for, and how long it waits for them."""

import asyncio
import contextlib
import gc
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from conftest import Server, bare_environ, make_settings, stop, taskctl, until, wait_until_ready
from load import TASKS, variables
from taskctl.server import listening, process


@contextlib.contextmanager
def unix_client(path, **options):
    """A client of the server that listens on a path."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://unix", **options) as it:
        yield it


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]])
def test_unix_socket(launch, database_url, user, tmp_path, arguments):
    """`--uds` listens on a path, in place of a dead server's and not of a living one's, and removes it."""
    path = tmp_path / "taskctl.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    server = wait_until_ready(launch("--uds", str(path), *arguments, **variables(database_url)))
    assert server.url == f"unix:{path}"
    with unix_client(path, headers=user.headers) as client:
        assert client.get(TASKS).status_code == 200
    done = taskctl("serve", "--uds", str(path), environ=bare_environ(tmp_path, **variables(database_url)))
    assert (done.code, f"Cannot listen on {path}" in done.err) == (1, True)
    assert stop(server) == 0
    assert not path.exists()
    assert "client=unix" in server.log.read_text()


# What systemd does for a service with a socket (sd_listen_fds(3)).
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("how", ["--fd", "LISTEN_FDS"])
@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]])
def test_a_socket_that_is_open_already(tmp_path, database_url, user, how, arguments):
    """A socket from outside is served, and lives on when the server ends: who connects then waits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        words = [sys.executable, "-m", "taskctl", "serve", *arguments]
        if how == "--fd":
            words += ["--fd", str(number)]
        else:
            words = [sys.executable, "-c", ACTIVATE, str(number), *words]
        log, out = tmp_path / "log", tmp_path / "out"
        with log.open("wb") as stderr, out.open("wb") as stdout:
            process = subprocess.Popen(
                words,
                env=bare_environ(tmp_path, **variables(database_url)),
                stdout=stdout,
                stderr=stderr,
                pass_fds=[number],
            )
        server = wait_until_ready(Server("", process, log, out))
        assert httpx.URL(server.url).port == listener.getsockname()[1]
        assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
        assert stop(server) == 0
        listener.settimeout(10)
        with socket.create_connection(listener.getsockname()):
            listener.accept()[0].close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fd", "99"], "Descriptor 99 is not a listening socket"),
        (["--fd", "1"], "Descriptor 1 is not a listening socket"),
        (["--fd", "3", "--uds", "x"], "--uds, or --fd"),
        (["--port", "1", "--uds", "x"], "--host or --port, or --uds"),
    ],
)
def test_places_that_make_no_sense(tmp_path, database_url, arguments, says):
    """A descriptor that is no listening socket, and two places at once, are mistakes of the command line."""
    done = taskctl("serve", *arguments, environ=bare_environ(tmp_path, **variables(database_url)))
    assert (done.code, says in done.err) == (2, True), done.err


def clients(server):
    """The clients of all requests that were logged so far."""
    return [
        line.partition("client=")[2].split()[0]
        for line in server.log.read_text().splitlines()
        if "client=" in line
    ]


FORWARDED = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.1.2.3", "X-Forwarded-Proto": "https"}


@pytest.mark.parametrize(
    ("proxies", "client"),
    [("", "127.0.0.1"), ("127.0.0.1,10.0.0.0/8", "203.0.113.9"), ("10.0.0.0/8", "127.0.0.1")],
)
def test_forwarded_addresses(launch, database_url, proxies, client):
    """The nearest address that no trusted proxy has is the client; without trust nothing is believed."""
    server = wait_until_ready(launch(**variables(database_url, TASKCTL_TRUSTED_PROXIES=proxies)))
    httpx.get(f"{server.url}/livez", headers=FORWARDED)
    assert until(lambda: clients(server)) == [client]


def test_forwarded_addresses_through_a_unix_socket(launch, database_url, tmp_path):
    """Whoever connects to the path is believed when `unix` is trusted."""
    path = tmp_path / "s"
    settings = variables(database_url, TASKCTL_TRUSTED_PROXIES="unix,10.0.0.0/8")
    server = wait_until_ready(launch("--uds", str(path), **settings))
    with unix_client(path) as client:
        client.get("/livez", headers=FORWARDED)
    assert until(lambda: clients(server)) == ["203.0.113.9"]


@pytest.mark.parametrize("proxies", ["*", "proxy.example.com", "10.0.0.1/8"])
def test_wrong_proxies(tmp_path, database_url, proxies):
    """What is neither an address nor a network is a wrong setting, and so is everybody."""
    environ = bare_environ(tmp_path, **variables(database_url, TASKCTL_TRUSTED_PROXIES=proxies))
    done = taskctl("serve", environ=environ)
    assert (done.code, "TASKCTL_TRUSTED_PROXIES is wrong" in done.err) == (2, True)


@pytest.fixture(scope="module")
def impatient(start_server, database_url):
    """A server that gives its clients little time."""
    return start_server(**variables(database_url, TASKCTL_REQUEST_TIMEOUT="500ms"))


HEAD = "POST /api/v1/me/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n"


@pytest.mark.parametrize(
    ("sent", "trickle"),
    [
        ("", ""),
        ("", "\r\n"),
        ("GET /livez HTTP/1.1\r\n", ""),
        ("GET /livez HTTP/1.1\r\n", "x-a: b\r\n"),
        (HEAD + "Content-Length: 1000\r\n\r\n{{", ""),
        (HEAD + "Content-Length: 1000\r\n\r\n{{", " "),
        ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n"),
    ],
    ids=["nothing", "blank lines", "half", "headers", "half a body", "a body", "after an answer"],
)
def test_slow_clients_are_closed(impatient, user, sent, trickle):
    """A request that does not arrive in time, or only in drops, ends its connection."""
    address = httpx.URL(impatient.url)
    with socket.create_connection((address.host, address.port), timeout=0.05) as client:
        client.sendall(sent.format(user.token).encode())

        def closed():
            try:
                client.sendall(trickle.encode())
                return client.recv(1 << 16) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        until(closed, seconds=10)
    assert httpx.get(f"{impatient.url}/livez").status_code == 200


def test_patient_clients_are_not(impatient, user):
    """A kept-alive connection stays open between requests, and an answer may take longer than the limit."""
    with httpx.Client(base_url=impatient.url, headers=user.headers) as client:
        assert client.get(TASKS).status_code == 200
        address = httpx.URL(impatient.url)
        # Meanwhile a connection that sends nothing lives and ends: a clock that both go by.
        with socket.create_connection((address.host, address.port), timeout=10) as silent:
            assert silent.recv(1) == b""
        ports = [each.get_extra_info("client_addr") for each in _streams(client)]
        assert client.get(TASKS).status_code == 200
        assert [each.get_extra_info("client_addr") for each in _streams(client)] == ports


def _streams(client):
    """The open connections of a client."""
    return [connection._connection._network_stream for connection in client._transport._pool.connections]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit, seen in /proc")
def test_clients_that_read_nothing_are_closed(impatient, user):
    """A client that takes nothing of its answer loses its connection."""
    for number in range(30):
        body = {"title": str(number), "description": "x" * 10_000}
        assert httpx.post(impatient.url + TASKS, json=body, headers=user.headers).status_code == 201
    address = httpx.URL(impatient.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.host, address.port))
        pair = f":{address.port:04X} 0100007F:{client.getsockname()[1]:04X}"
        assert pair in Path("/proc/net/tcp").read_text()
        head = f"GET {TASKS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {user.token}\r\n\r\n"
        client.sendall(head.encode())
        until(lambda: pair not in Path("/proc/net/tcp").read_text())


async def test_requests_leave_nothing_to_collect(database_url, user):
    """What belongs to a request is gone when it is answered: nothing waits for the garbage collector."""
    listener, ready = listening.listen("127.0.0.1", 0), asyncio.Event()
    server = process.Server(make_settings(database_url), listener, announce=ready.set)
    serving = asyncio.create_task(server.serve([listener.socket]))
    await ready.wait()
    reader, writer = await asyncio.open_connection(*listener.socket.getsockname())

    async def ask(method, path, body):
        headers = f"Authorization: {user.headers['Authorization']}\r\nContent-Length: {len(body)}"
        writer.write(f"{method} {TASKS}{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]))
        return head

    questions = [("POST", "", '{"title": "Buy milk"}'), ("GET", "", ""), ("GET", "/1", ""), ("GET", "/0", "")]
    for question in questions:
        await ask(*question)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        statuses = [(await ask(*question))[9:12] for question in questions for _ in range(5)]
        gc.collect()
        left = {type(each).__name__ for each in gc.garbage} & {"Exchange", "_Cycle", "Call", "_Request"}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert statuses == [status for status in (b"201", b"200", b"200", b"404") for _ in range(5)]
    assert left == set()
    writer.close()
    server.handle_exit(signal.SIGTERM, None)
    await serving
