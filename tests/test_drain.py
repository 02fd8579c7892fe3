"""How a server ends: unready at once, serving on for a while, finishing what is in flight, losing nothing."""

import contextlib
import http.client
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from conftest import free_port, make_user, until, wait_until_ready
from load import PAUSE, TASKS, Balancer, load, titles, variables

WAITING = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"


def listens(server):
    """Whether something accepts connections where the server does."""
    address = httpx.URL(server.url)
    try:
        socket.create_connection((address.host, address.port), timeout=5).close()
    except (ConnectionRefusedError, TimeoutError):
        return False
    return True


@contextlib.contextmanager
def stuck_request(server, database_url, user):
    """A request in flight that waits for a lock; yields its future and the function that lets it go on."""
    task = httpx.post(server.url + TASKS, json={"title": "Locked"}, headers=user.headers).json()
    with psycopg.connect(database_url) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT FROM task WHERE user_id = %s FOR UPDATE", [user.id])
        future = pool.submit(
            httpx.patch, f"{server.url}{TASKS}/{task['id']}/complete", headers=user.headers, timeout=60
        )
        until(lambda: connection.execute(WAITING, [connection.info.backend_pid]).fetchall())
        yield future, connection.rollback


@pytest.fixture
def serving(launch, database_url):
    """Start a server that is ready, with the given settings."""

    def start(*arguments, **more):
        return wait_until_ready(launch(*arguments, **variables(database_url, **more)))

    return start


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]])
def test_unready_at_once_and_serving_on(serving, user, arguments):
    """After SIGTERM `/readyz` is 503, all else is served to new clients for the delay, and the exit is 0."""
    server = serving(*arguments, TASKCTL_DRAIN_DELAY="1.5s")
    server.process.terminate()
    refusal = until(lambda: (got := httpx.get(f"{server.url}/readyz")).status_code == 503 and got)
    assert refusal.json()["code"] == "not_ready"
    assert list(refusal.json()["checks"]) == ["draining"]
    assert httpx.get(f"{server.url}/livez").status_code == 200
    made = httpx.post(server.url + TASKS, json={"title": "Late"}, headers=user.headers)
    assert (made.status_code, made.headers["connection"]) == (201, "close")
    until(lambda: not listens(server))
    assert server.process.wait(timeout=10) == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]])
def test_what_is_in_flight_finishes(serving, database_url, user, arguments):
    """A request in flight is answered after the listener has closed."""
    server = serving(*arguments)
    with stuck_request(server, database_url, user) as (future, let_go):
        server.process.terminate()
        until(lambda: not listens(server))
        assert not future.done()
        let_go()
        assert future.result().json()["completed"] is True
    assert server.process.wait(timeout=10) == 0


def test_kept_alive_connections_are_told(serving, database_url, user):
    """A kept-alive connection's request after the listener closed is 503 `shutting_down`, and its last."""
    server = serving()
    with httpx.Client(base_url=server.url, headers=user.headers) as client:
        assert client.get(TASKS).status_code == 200
        with stuck_request(server, database_url, user) as (future, let_go):
            server.process.terminate()
            until(lambda: not listens(server))
            refusal = client.get(TASKS)
            let_go()
            assert future.result().status_code == 200
    assert (refusal.status_code, refusal.json()["code"]) == (503, "shutting_down")
    assert refusal.headers["connection"] == "close"
    assert int(refusal.headers["retry-after"]) >= 1
    assert server.process.wait(timeout=10) == 0


def test_who_has_connected_is_served(serving, user):
    """A client that had connected before the listener closed gets its first request answered."""
    server = serving()
    address = httpx.URL(server.url)
    client = http.client.HTTPConnection(address.host, address.port, timeout=10)
    client.connect()
    server.process.terminate()
    until(lambda: not listens(server))
    client.request("GET", TASKS, headers=user.headers)
    assert client.getresponse().status == 200
    client.close()
    assert server.process.wait(timeout=10) == 0


def test_the_timeout_is_the_end(serving, database_url, user):
    """What is still in flight after the drain's timeout gets 503 `shutting_down`, and the exit is 0."""
    server = serving(TASKCTL_DRAIN_TIMEOUT="300ms", TASKCTL_STATEMENT_TIMEOUT="60s")
    with stuck_request(server, database_url, user) as (future, _):
        server.process.terminate()
        refusal = future.result()
        assert (refusal.status_code, refusal.json()["code"]) == (503, "shutting_down")
        assert server.process.wait(timeout=10) == 0
    assert "cut_off" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(("workers", "number", "code"), [("1", signal.SIGINT, 130), ("2", signal.SIGTERM, 0)])
def test_told_again_it_hurries(serving, database_url, user, workers, number, code):  # noqa: PLR0917
    """A second signal ends the delay, and a third one the wait for what is in flight."""
    server = serving(
        TASKCTL_WORKERS=workers,
        TASKCTL_DRAIN_DELAY="10m",
        TASKCTL_DRAIN_TIMEOUT="10m",
        TASKCTL_STATEMENT_TIMEOUT="10m",
    )
    with stuck_request(server, database_url, user) as (future, _):
        server.process.terminate()
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        server.process.send_signal(number)
        until(lambda: not listens(server))
        assert not future.done()
        server.process.send_signal(number)
        assert future.result().json()["code"] == "shutting_down"
        assert server.process.wait(timeout=10) == code


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]])
def test_a_rolling_restart_loses_nothing(launch, database_url, arguments):
    """Two servers are restarted in turn under load: each request is answered 201, each task there once."""
    user = make_user()
    ports = [free_port(), free_port()]
    settings = variables(database_url)
    servers = [wait_until_ready(launch("--port", str(port), *arguments, **settings)) for port in ports]
    with load(Balancer(ports, user), pause=PAUSE) as outcomes:
        for server, port in zip(servers, ports, strict=True):
            server.process.terminate()
            assert server.process.wait(timeout=30) == 0
            wait_until_ready(launch("--port", str(port), *arguments, **settings))
            reached = len(outcomes) + 20
            until(lambda reached=reached: len(outcomes) > reached)
    assert {outcome for _, outcome in outcomes} == {201}
    assert titles(database_url, user) == sorted(title for title, _ in outcomes)


def test_a_kept_alive_load_is_let_go_of(serving, user):
    """A client that keeps its connection through the delay loses nothing: it is told to connect anew."""
    server = serving(TASKCTL_DRAIN_DELAY="1s")
    statuses = []
    with httpx.Client(base_url=server.url, headers=user.headers, timeout=20) as client:
        assert client.get(TASKS).headers.get("connection") != "close"
        server.process.terminate()
        ends = time.monotonic() + 20
        with contextlib.suppress(httpx.ConnectError):
            while time.monotonic() < ends:
                statuses.append(client.get(TASKS).status_code)
    assert set(statuses) == {200}
    assert server.process.wait(timeout=10) == 0
