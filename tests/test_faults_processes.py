"""`kill -9` of what serves, under creates and completes of which every acknowledgement is written down."""

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from conftest import free_port, make_user, until, wait_until_ready
from load import journal, variables
from test_limits import Redis, redis  # noqa: F401 - a fixture
from test_workers import children, lives

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_server_is_started_again(launch, database_url, workers):
    """Everything acknowledged before and after is there once; the port can be had again at once."""
    port = str(free_port())
    words = ["--port", port, "--workers", workers]
    user = make_user()
    server = wait_until_ready(launch(*words, **variables(database_url)))
    left = children(server)
    with journal(server.url, user) as writers:
        server.process.kill()
        server.process.wait()
        wait_until_ready(launch(*words, **variables(database_url)))
        writers.more()
    until(lambda: not any(lives(pid) for pid in left))
    # The connections break or are refused; nobody is told anything wrong.
    assert {len(failure) for failure in writers.failures} <= {2}
    writers.check(database_url)


def test_a_killed_worker_breaks_its_own_connections_only(launch, database_url):
    """Each worker is killed in turn: what was acknowledged is there once, and nobody gets a 5xx."""
    user = make_user()
    server = wait_until_ready(launch("--workers", "2", **variables(database_url)))
    with journal(server.url, user) as writers:
        for pid in sorted(children(server)):
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: len(children(server) - {pid}) == 2)
            writers.more()
    assert {len(failure) for failure in writers.failures} <= {2}
    assert len(writers.failures) <= 8
    writers.check(database_url)


def test_a_killed_redis_is_not_noticed(launch, database_url, redis):  # noqa: F811 - the fixture
    """The limiter's storage dies and returns under load, and no request fails."""
    limits = {"TASKCTL_RATE_LIMIT": "1000000/minute", "TASKCTL_RATE_LIMIT_STORAGE": redis.url}
    server = wait_until_ready(launch("--workers", "2", **variables(database_url, **limits)))
    with journal(server.url, make_user()) as writers:
        redis.stop()
        writers.more()
        redis.start()
        writers.more()
    assert writers.failures == []
    writers.check(database_url)
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert "Traceback" not in Path(server.log).read_text()
