"""`serve --workers N`: processes on one socket, replaced when they end, gone when their supervisor is."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psycopg
import pytest

import taskctl as package
from conftest import (
    SECRET,
    Server,
    bare_environ,
    embedded_in,
    free_port,
    make_user,
    stop,
    taskctl,
    until,
    wait_until_ready,
)
from test_drain import Balancer, load, titles, variables

TASKS = "/api/v1/me/tasks"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def children(server):
    """The ids of the processes that the server's process has started."""
    pid = server.process.pid
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def lives(pid):
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def served_by(server, count=60):
    """The processes that answer, told apart by the random part of their request ids."""
    return {httpx.get(f"{server.url}/livez").headers["x-request-id"][:24] for _ in range(count)}


def test_several_processes_serve_and_one_prepares(launch, empty_database):
    """Both workers answer; each migration ran once, readiness was told once; no secret is in `ps`."""
    server = wait_until_ready(launch("--migrate", "--workers", "2", **variables(empty_database)))
    workers = children(server)
    assert len(workers) == 2
    until(lambda: len(served_by(server)) == 2)
    for pid in {server.process.pid, *workers}:
        words = Path(f"/proc/{pid}/cmdline").read_text()
        assert SECRET not in words
        assert empty_database not in words
    assert stop(server) == 0
    assert not any(lives(pid) for pid in workers)
    log = server.log.read_text()
    assert [log.count(f"'{number} ") for number in ("0001", "0002")] == [1, 1]
    assert server.out.read_text().count("Ready") == 1
    assert "Traceback" not in log


def test_one_worker_is_one_process(server):
    """Without the option there is no supervisor."""
    assert children(server) == set()


def test_a_killed_worker_is_replaced(launch, database_url):
    """`kill -9` of workers under load: every task that was answered 201 is there once, and workers again."""
    user = make_user()
    server = wait_until_ready(launch(TASKCTL_WORKERS="2", **variables(database_url)))
    before = children(server)
    with load(Balancer([httpx.URL(server.url).port], user)) as outcomes:
        for pid in before:
            os.kill(pid, signal.SIGKILL)
            reached = len(outcomes) + 20
            until(lambda reached=reached: len(outcomes) > reached)
            until(lambda pid=pid: len(children(server) - {pid}) == 2)
        until(lambda: server.log.read_text().count("worker_serving") == 4)
    assert children(server).isdisjoint(before)
    acknowledged = [title for title, outcome in outcomes if outcome == 201]
    kept = titles(database_url, user)
    assert len(kept) == len(set(kept))
    assert set(acknowledged) <= set(kept)
    # Only what a killed worker had in hand was not answered.
    assert len(outcomes) - len(acknowledged) <= 6
    assert server.log.read_text().count("reason=SIGKILL") == 2
    assert stop(server) == 0


def test_a_worker_that_is_told_to_end_is_replaced(launch, database_url, user):
    """SIGTERM to one worker drains it alone, and another takes its place without a lost request."""
    server = wait_until_ready(launch("--workers", "2", **variables(database_url)))
    first = min(children(server))
    with load(Balancer([httpx.URL(server.url).port], user)) as outcomes:
        os.kill(first, signal.SIGTERM)
        until(lambda: first not in children(server))
        until(lambda: server.log.read_text().count("worker_serving") == 3)
    assert {outcome for _, outcome in outcomes} == {201}
    assert stop(server) == 0


def test_workers_do_not_outlive_their_supervisor(launch, database_url, user):
    """After `kill -9` of the supervisor the workers end, and it can be started on the port at once."""
    port = str(free_port())
    server = wait_until_ready(launch("--port", port, "--workers", "2", **variables(database_url)))
    workers = children(server)
    server.process.kill()
    server.process.wait()
    again = wait_until_ready(launch("--port", port, "--workers", "2", **variables(database_url)))
    assert httpx.get(again.url + TASKS, headers=user.headers).status_code == 200
    until(lambda: not any(lives(pid) for pid in workers), seconds=10)
    assert stop(again) == 0


def test_workers_that_cannot_start(tmp_path, database_url):
    """Where workers end before they serve, the supervisor gives up after some tries, and says so."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'taskctl.server.worker' in sys.orig_argv:\n    os._exit(9)\n"
    )
    environ = bare_environ(
        tmp_path, PYTHONPATH=str(tmp_path), TASKCTL_PORT="0", **variables(database_url, TASKCTL_WORKERS="2")
    )
    done = taskctl("serve", environ=environ)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("taskctl: The workers end before they serve (exit code 9)")
    assert 5 <= done.err.count("worker_ended") <= 10
    assert "Traceback" not in done.err


def test_ctrl_c_is_for_the_supervisor(home, launch):
    """SIGINT ends all workers, quietly, with 130, and the embedded PostgreSQL with the supervisor."""
    server = wait_until_ready(launch("--workers", "2", HOME=str(home)))
    workers = children(server)
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=30) == 130
    assert not any(lives(pid) for pid in workers)
    assert not embedded_in(home).is_running()
    assert "Traceback" not in server.log.read_text()


def test_a_migration_that_fails_ends_all(launch, empty_database, tmp_path):
    """Where the upgrade cannot be done, the workers end too, and the reason is the last line."""
    assert taskctl("migrate", environ=bare_environ(tmp_path, **variables(empty_database))).code == 0
    with psycopg.connect(empty_database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'zzzz'")
    server = launch("--migrate", "--workers", "2", **variables(empty_database))
    assert server.process.wait(timeout=30) == 1
    log = server.log.read_text()
    assert log.splitlines()[-1].startswith("taskctl: The database is at zzzz")
    assert "Traceback" not in log


def test_ten_at_once_migrate_once(launch, empty_database):
    """Ten `serve --migrate` that start together all get ready, and each migration runs once."""
    servers = [launch("--migrate", **variables(empty_database)) for _ in range(10)]
    for server in servers:
        wait_until_ready(server)
    logs = "".join(server.log.read_text() for server in servers)
    assert [logs.count(f"'{number} ") for number in ("0001", "0002")] == [1, 1]


def test_reload_is_for_development(tmp_path, database_url):
    """`--reload` elsewhere is a mistake in the command line."""
    done = taskctl("serve", "--reload", environ=bare_environ(tmp_path, **variables(database_url)))
    assert (done.code, "--reload is for development" in done.err) == (2, True)


def test_reload(home, launch):
    """In development `--reload` starts afresh when a file of the package changes, on the same port."""
    server = wait_until_ready(launch("--reload", HOME=str(home)))
    before = children(server)
    assert len(before) == 1
    os.utime(Path(package.__file__))
    until(lambda: len(now := children(server)) == 1 and now.isdisjoint(before))
    until(lambda: httpx.get(f"{server.url}/readyz", timeout=20).status_code == 200)
    assert stop(server) == 0


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
