"""`taskctl serve` in development, on the embedded PostgreSQL: a newcomer's first minute, and mishaps."""

import os
import re
import shlex
import signal
import subprocess
import sys

import httpx
import pytest

from conftest import (
    SECRET,
    Done,
    bare_environ,
    embedded_in,
    stop,
    taskctl,
    until,
    wait_until_ready,
)
from taskctl import contexts

LOCALS = (".local/share/taskctl/secret", ".config/taskctl/contexts.json")
"""What development keeps in a home, for its owner only."""

# The account may not even read the interpreter's files, so everything is imported before.
AS_NOBODY = """
import os, platformdirs
from taskctl.cli import main, root, output, server
from taskctl.server import serving
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
main(["serve"])
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def saved(home):
    """The contexts that are stored in a home."""
    return contexts.load({"TASKCTL_CONFIG_DIR": str(home / ".config" / "taskctl")})


def hinted(server):
    """Wait until a server is ready and has said what to do, and return all that it said."""
    wait_until_ready(server)
    return until(lambda: (said := server.out.read_text()).count("\n") == 2 and said)


def titles(home, *options):
    """What `taskctl tasks` lists: status and title of each."""
    done = taskctl(*options, "tasks", environ=bare_environ(home))
    assert (done.code, done.err) == (0, "")
    return [tuple(line.split("\t")[1:3]) for line in done.out.splitlines()]


def refusal(done):
    """The sentence with which a command refused: one line, and nothing else anywhere."""
    assert done.out == ""
    assert re.fullmatch(r"taskctl: .+ \(\w+\)\n", done.err), done.err
    return done.err


def test_the_first_minute(fresh_home, launch):
    """With no configuration at all `serve` works, and so does the command that it prints; all is kept."""
    server = launch(HOME=str(fresh_home))
    assert hinted(server) == (
        f"Ready at {server.url}   (embedded PostgreSQL in ~/.local/share/taskctl)\n"
        'In another terminal:  taskctl tasks add "Buy milk"\n'
    )
    assert [(fresh_home / name).stat().st_mode & 0o777 for name in LOCALS] == [0o600, 0o600]
    stored = saved(fresh_home)
    assert (stored.current, stored.get("local").server) == ("local", server.url)

    environ = bare_environ(fresh_home)
    hint = shlex.split(server.out.read_text().partition("terminal:")[2])
    assert hint[0] == "taskctl"
    done = taskctl(*hint[1:], environ=environ)
    assert (done.code, done.err) == (0, "")
    assert titles(fresh_home) == [("pending", "Buy milk")]
    assert taskctl("tasks", "done", "1", environ=environ).code == 0
    assert titles(fresh_home) == [("completed", "Buy milk")]
    assert taskctl("status", environ=environ).code == 0

    secret = (fresh_home / LOCALS[0]).read_text()
    assert stop(server) == 0
    assert not embedded_in(fresh_home).is_running()
    assert "Traceback" not in server.log.read_text()

    again = launch(HOME=str(fresh_home))
    hinted(again)
    assert titles(fresh_home) == [("completed", "Buy milk")]
    assert taskctl("tasks", "add", "Buy tea", "-q", environ=environ).out == "2\n"
    assert (fresh_home / LOCALS[0]).read_text() == secret
    assert stop(again) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_other_signals_stop_it_too(home, launch, number, code):
    """Ctrl-C is 130, a closed terminal an ordinary end; PostgreSQL goes along, quietly."""
    server = wait_until_ready(launch(HOME=str(home)))
    server.process.send_signal(number)
    assert server.process.wait(timeout=30) == code
    assert not embedded_in(home).is_running()
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "Exception" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_it_is_ready(fresh_home, launch, number):
    """A signal while PostgreSQL is still being set up ends it, with nothing left running."""
    server = launch(HOME=str(fresh_home))
    folder = fresh_home / ".local" / "share" / "taskctl"
    until(lambda: list(folder.glob("postgres.new-*")))
    server.process.send_signal(number)
    assert server.process.wait(timeout=30) == 128 + number
    assert not embedded_in(fresh_home).is_running()
    assert "Traceback" not in server.log.read_text()
    assert server.out.read_text() == ""


def test_killed_and_started_again(home, launch):
    """After `kill -9` the next `serve` takes over the PostgreSQL that still runs, with all that was added."""
    server = launch(HOME=str(home))
    hinted(server)
    added = taskctl("tasks", "add", "Survives", "-q", environ=bare_environ(home)).out.strip()
    pid_file = home / ".local" / "share" / "taskctl" / "postgres" / "postmaster.pid"
    pid = pid_file.read_text().split()[0]
    server.process.kill()
    server.process.wait()
    assert embedded_in(home).is_running()
    again = launch(HOME=str(home))
    hinted(again)
    assert pid_file.read_text().split()[0] == pid
    shown = taskctl("tasks", "show", added, environ=bare_environ(home))
    assert shown.out.split("\t")[:3] == [added, "pending", "Survives"]
    assert stop(again) == 0
    assert not embedded_in(home).is_running()


def test_two_at_once_share(home, launch):
    """Two servers on one data directory show the same tasks; PostgreSQL stops with the last of them."""
    servers = [launch(HOME=str(home)) for _ in range(2)]
    for server in servers:
        hinted(server)
    one, two = servers
    assert one.url != two.url
    token = saved(home).get("local").token
    environ = bare_environ(home, TASKCTL_TOKEN=token)
    key = taskctl("--server", one.url, "tasks", "add", "Shared", "-q", environ=environ).out.strip()
    assert taskctl("--server", two.url, "tasks", "done", key, environ=environ).code == 0
    assert stop(one) == 0
    assert embedded_in(home).is_running()
    assert (
        taskctl("--server", two.url, "tasks", "show", key, environ=environ).out.split("\t")[1] == "completed"
    )
    assert stop(two) == 0
    assert not embedded_in(home).is_running()


def test_a_context_of_ones_own_stays_current(home, launch):
    """Who has logged in elsewhere keeps using that; the context `local` is stored beside it."""
    environ = bare_environ(home, TASKCTL_CONFIG_DIR=str(home / "other"))
    login = ["login", "--server", "https://tasks.example.com", "--token-stdin", "--no-check"]
    assert taskctl(*login, environ=environ, given="t").code == 0
    server = launch(HOME=str(home), TASKCTL_CONFIG_DIR=str(home / "other"))
    hinted(server)
    stored = contexts.load(environ)
    assert (stored.current, set(stored.contexts)) == ("tasks.example.com", {"local", "tasks.example.com"})
    assert stored.get("local").server == server.url
    assert stop(server) == 0


def test_a_damaged_context_file(home, launch):
    """A server that has said that it is ready goes on where the context cannot be saved, and says why."""
    (home / "damaged").mkdir()
    (home / "damaged" / "contexts.json").write_text("garbage")
    server = wait_until_ready(launch(HOME=str(home), TASKCTL_CONFIG_DIR=str(home / "damaged")))
    until(lambda: "contexts.json is damaged" in server.log.read_text())
    assert stop(server) == 0
    assert (home / "damaged" / "contexts.json").read_text() == "garbage"


def test_the_port_is_taken(server, tmp_path, database_url):
    """A second server on the same port says so in one sentence; the first goes on."""
    port = server.url.rpartition(":")[2]
    variables = {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET}
    done = taskctl("serve", "--port", port, environ=bare_environ(tmp_path, **variables))
    assert (done.code, f"port {port}" in refusal(done)) == (1, True)
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_the_port_is_taken_in_development(home, server):
    """A taken port is found before PostgreSQL is started or a context is stored."""
    port = server.url.rpartition(":")[2]
    environ = bare_environ(home, TASKCTL_CONFIG_DIR=str(home / "none"))
    done = taskctl("serve", "--port", port, environ=environ)
    assert (done.code, "Cannot listen" in refusal(done)) == (1, True)
    assert not (home / "none").exists()


@pytest.mark.parametrize("environment", ["dev", "test"])
def test_the_data_directory_is_a_file(tmp_path, environment):
    """A data directory that is a file is a wrong setting: its name and what it takes are said."""
    (tmp_path / "file").touch()
    variables = {"TASKCTL_ENV": environment, "BETTER_AUTH_SECRET": SECRET, "TASKCTL_PORT": "0"}
    data_dir = {"TASKCTL_DATA_DIR": str(tmp_path / "file")}
    done = taskctl("serve", environ=bare_environ(tmp_path, **variables, **data_dir))
    sentence = refusal(done)
    assert str(tmp_path / "file") in sentence
    assert "TASKCTL_DATA_DIR" in sentence
    assert "Errno" not in sentence
    assert done.code == 2


def test_the_data_directory_holds_something_else(tmp_path):
    """What is no cluster of ours is left alone."""
    precious = tmp_path / "postgres" / "precious"
    precious.parent.mkdir()
    precious.touch()
    environ = bare_environ(tmp_path, TASKCTL_DATA_DIR=str(tmp_path), TASKCTL_PORT="0")
    done = taskctl("serve", environ=environ)
    assert (done.code, str(precious.parent) in refusal(done)) == (1, True)
    assert precious.exists()


@as_root
def test_the_data_directory_is_somebody_elses(fresh_home):
    """A data directory that this account may not write to is a wrong setting."""
    (fresh_home / "data").mkdir()
    environ = bare_environ(fresh_home, TASKCTL_DATA_DIR=str(fresh_home / "data"), TASKCTL_PORT="0")
    ended = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        env={name: text for name, text in environ.items() if not name.startswith("COVERAGE")},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    done = Done(ended.returncode, ended.stdout, ended.stderr)
    assert (done.code, "TASKCTL_DATA_DIR" in refusal(done)) == (2, True)
