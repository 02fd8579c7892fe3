"""nginx and HAProxy with the configurations of deploy/, in front of servers that are restarted in turn."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from conftest import free_port, make_user, until, wait_until_ready
from load import PAUSE, TASKS, journal, variables
from test_changes import Watcher, watching

TCP = Path("/proc/net/tcp")
DEPLOY = Path(__file__).parents[1] / "deploy"
PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))
NGINX, HAPROXY = (shutil.which(name, path=PATH) for name in ("nginx", "haproxy"))

pytestmark = pytest.mark.skipif(
    not (NGINX and HAPROXY and TCP.exists()),
    reason="there is no nginx or no HAProxy: apt-get install nginx-light haproxy",
)


def configured(name, listen, ports, named):
    """A configuration of deploy/ with these ports; it names each server so often, and is else as it was."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    for port, ours, times in ((8080, listen, 1), (8001, ports[0], named), (8002, ports[1], named)):
        text, count = re.subn(rf"\b{port}\b", str(ours), text)
        assert count == times
    return text


def nginx(folder, listen, ports):
    """The command of nginx; what Debian's nginx.conf has around a file of conf.d/ is here, too."""
    (folder / "taskctl.conf").write_text(configured("nginx.conf", listen, ports, 1))
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 2; pid {folder}/pid; error_log stderr;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + "events { worker_connections 768; }\nhttp { access_log off;\n"
        + "".join(f"{name}_temp_path {folder}/{name};\n" for name in paths)
        + f"include {folder}/taskctl.conf; }}\n"
    )
    return [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]


def haproxy(folder, listen, ports):
    """The command of HAProxy."""
    (folder / "haproxy.cfg").write_text(configured("haproxy.cfg", listen, ports, 2))
    return [HAPROXY, "-db", "-f", str(folder / "haproxy.cfg")]


@contextmanager
def running(proxy, folder, ports):
    """A proxy for as long as the block runs; yields its URL."""
    folder.mkdir()
    listen = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(proxy(folder, listen, ports), stdout=log, stderr=log, cwd=folder)
    try:
        until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{listen}"))
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{listen}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url):
    """Whether somebody is ready there."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def pair(launch, database_url, tmp_path):
    """Two servers, each with its arguments and the settings to start it again; URLs of the proxies before."""
    ports = [free_port(), free_port()]
    arguments = [["--port", str(ports[0])], ["--port", str(ports[1]), "--workers", "2"]]
    settings = variables(database_url, TASKCTL_DRAIN_DELAY="3s")
    servers = [wait_until_ready(launch(*each, **settings)) for each in arguments]
    with (
        running(nginx, tmp_path / "nginx", ports) as first,
        running(haproxy, tmp_path / "haproxy", ports) as second,
    ):
        yield list(zip(servers, arguments, strict=True)), (first, second)


def seen_all(url, user, watcher):
    """Whether a watcher has seen the last of a user's changes, and none has come meanwhile."""
    seen = watcher.last_id
    page = httpx.get(f"{url}/api/v1/me/changes?since=now", headers=user.headers).json()
    return seen == page["next_cursor"]


def test_a_rolling_restart_is_not_noticed(launch, database_url, pair):
    """Two servers are restarted in turn: each request through a proxy succeeds, each task is there once.

    Streams through the proxies come at once, go on elsewhere, and show each change once.
    """
    servers, urls = pair
    users = [make_user() for _ in urls]
    watchers = [Watcher(user, url) for user, url in zip(users, urls, strict=True)]
    with ExitStack() as stack:
        stack.enter_context(watching(watchers))
        journals = [
            stack.enter_context(journal(*each, pause=PAUSE)) for each in zip(urls, users, strict=True)
        ]
        for server, arguments in servers:
            server.process.terminate()
            assert server.process.wait(timeout=30) == 0
            for each in journals:
                each.more()
            wait_until_ready(launch(*arguments, **variables(database_url)))
            for each in journals:
                each.more()
        for each in journals:
            each.stop()
        for user, watcher in zip(users, watchers, strict=True):
            until(lambda url=urls[0], user=user, watcher=watcher: seen_all(url, user, watcher))
    for each in watchers:
        assert each.numbers == list(range(1, len(each.numbers) + 1))
        assert 2 <= each.connections <= 3
    for each in journals:
        assert each.failures == []
        each.check(database_url)


def test_idle_connections_are_not_used_too_late(pair, user):
    """Proxies that were left with idle connections to a server send nothing over them once it has ended."""
    [(server, _), _], urls = pair

    def burst():
        with ThreadPoolExecutor(16) as pool:
            sent = [
                pool.submit(httpx.post, url + TASKS, json={"title": "x"}, headers=user.headers)
                for url in urls
                for _ in range(16)
            ]
            return {each.result().status_code for each in sent}

    assert burst() == {201}
    server.process.terminate()
    # Who tried to connect would learn it too late.
    until(lambda: f":{httpx.URL(server.url).port:04X} 00000000:0000 0A" not in TCP.read_text())
    assert burst() == {201}
    assert server.process.wait(timeout=30) == 0
    assert burst() == {201}
