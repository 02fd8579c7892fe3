"""What is forked off a warm process is what a new interpreter would have been."""

import signal
import subprocess

import pytest

import warm
from conftest import bare_environ, taskctl, taskctl_in_terminal

WRONG = "not-a-token"
NOWHERE = "postgresql://postgres@127.0.0.1:1/nothing"


@pytest.fixture
def environ(tmp_path):
    """The environment of a place whose `.env` counts."""
    (tmp_path / ".env").write_text("TASKCTL_PORT=4711\n")
    secret = "a secret of this module, and long"
    return bare_environ(tmp_path, TASKCTL_ENV="test", BETTER_AUTH_SECRET=secret, DATABASE_URL=NOWHERE)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (taskctl, ("config", "show", "--json")),
        (taskctl, ("token", "mint", "--sub", "a\udcff")),
        (taskctl, ("token", "verify")),
        (taskctl_in_terminal, ("token", "verify")),
        (taskctl_in_terminal, ("db", "current")),
    ],
)
def test_warm_is_what_cold_is(environ, monkeypatch, run, words):
    """Arguments, directory, environment, streams and exit code are those of a new interpreter."""
    given = {"given": WRONG} if run is taskctl else {"typed": f"{WRONG}\n\x04"}
    found = run(*words, environ=environ, **given)
    monkeypatch.setenv("COLD_STARTS", "1")
    assert found == run(*words, environ=environ, **given)
    assert found.out + found.err


def test_a_warm_process_is_our_child(environ):
    """It runs by itself, takes signals, is waited for, and ends as the signal says."""
    waiting = ["db", "check", "--wait", "60"]
    with warm.Process(waiting, env=environ, cwd=environ["HOME"], stderr=subprocess.PIPE) as process:
        assert process._warm
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert process.stderr.read() == b""
