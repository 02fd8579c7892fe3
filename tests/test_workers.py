"""`serve --workers N`: processes on one socket, replaced when they end, gone when their supervisor is."""

import os
import signal
import sys
import time
from pathlib import Path

import httpx
import psycopg
import pytest

import taskctl as package
from conftest import (
    REVISIONS,
    SECRET,
    bare_environ,
    embedded_in,
    free_port,
    make_user,
    stop,
    taskctl,
    until,
    wait_until_ready,
)
from load import TASKS, Balancer, load, titles, variables

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
    assert [log.count(f"'{number} ") for number in REVISIONS] == [1] * len(REVISIONS)
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


BLOCKER = """
import signal, sys, time
def block_the_loop(*_):
    time.sleep(1000)
if 'taskctl.server.worker' in sys.orig_argv:
    signal.signal(signal.SIGUSR2, block_the_loop)
"""


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR2])
def test_a_worker_that_hangs_is_replaced(launch, database_url, tmp_path, number):
    """Stopped, or with a loop that something blocks, it is killed; if it can it says where it was."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    settings = variables(database_url, PYTHONPATH=str(tmp_path), TASKCTL_WORKER_TIMEOUT="2s")
    server = wait_until_ready(launch("--workers", "2", **settings))
    first, second = children(server)
    os.kill(first, number)
    until(lambda: server.log.read_text().count("worker_serving") == 3)
    assert second in children(server)
    assert not lives(first)
    assert len(served_by(server)) == 2
    log = server.log.read_text()
    assert log.count("worker_hung") == log.count("reason=SIGKILL") == 1
    assert ("in block_the_loop" in log) == (number == signal.SIGUSR2)
    assert stop(server) == 0


def test_suspended_together_they_go_on(launch, database_url):
    """Where supervisor and workers stood still for longer than the limit, nobody is taken to hang."""
    settings = variables(database_url, TASKCTL_WORKER_TIMEOUT="2s")
    server = wait_until_ready(launch("--workers", "2", **settings))
    workers = children(server)
    everybody = [server.process.pid, *workers]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    over = time.monotonic() + 3
    until(lambda: time.monotonic() > over)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    assert len(served_by(server)) == 2
    assert children(server) == workers
    assert stop(server) == 0
    assert "worker_hung" not in server.log.read_text()


def test_a_supervisor_that_stands_still_stops_nobody(launch, database_url, user):
    """Workers serve on while their supervisor is stopped, and it goes on with them afterwards."""
    server = wait_until_ready(launch("--workers", "2", **variables(database_url)))
    workers = children(server)
    server.process.send_signal(signal.SIGSTOP)
    assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
    assert len(served_by(server)) == 2
    server.process.send_signal(signal.SIGCONT)
    assert stop(server) == 0
    assert not any(lives(pid) for pid in workers)


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
    assert [logs.count(f"'{number} ") for number in REVISIONS] == [1] * len(REVISIONS)


def test_workers_started_before_their_database(launch, fresh_home, user):
    """Without a database yet the workers live, unready; once it is there, it is migrated and served."""
    embedded = embedded_in(fresh_home)
    port = str(free_port())
    address = f"http://127.0.0.1:{port}"
    server = launch("--port", port, "--workers", "2", "--migrate", **variables(embedded.url))
    until(lambda: server.log.read_text().count("worker_serving") == 2)
    assert httpx.get(f"{address}/livez").status_code == 200
    assert httpx.get(f"{address}/readyz", timeout=10).status_code == 503
    with embedded:
        wait_until_ready(server)
        assert httpx.get(server.url + TASKS, headers=user.headers).status_code == 200
        assert stop(server) == 0
    log = server.log.read_text()
    assert log.count("waiting_for_database") <= 1
    assert "Traceback" not in log


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
