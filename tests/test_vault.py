"""Secrets in the system's keyring, through its library and a backend that works without a desktop."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import bare_environ, taskctl
from taskctl import contexts
from test_client import Scripted, ok
from test_device_login import GRANTED
from test_login import HEALTH, PAGE, QUICK, bearers, jwt


@pytest.fixture
def servers() -> Iterator[tuple[Scripted, Scripted]]:
    """The API and the auth server."""
    made = Scripted(), Scripted()
    yield made
    for each in made:
        each.close()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return bare_environ(tmp_path, TASKCTL_CONFIG_DIR=str(tmp_path / "config"))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """What is in the keyring."""
    return tmp_path / "keyring.json"


@pytest.fixture
def run(environ, kept):
    """Run `taskctl` with the test's keyring, or with another backend."""

    def run(*words: str, given: str = "", backend: str = "keyring_backend.FileKeyring", **more: str):
        variables = {
            "PYTHON_KEYRING_BACKEND": backend,
            "PYTHONPATH": str(Path(__file__).parent),
            "KEYRING_FILE": str(kept),
        }
        return taskctl(*words, environ=environ | variables | more, given=given)

    return run


def stored(environ) -> dict:
    """The context `work` as it is in the file."""
    return json.loads(contexts.path(environ).read_text())["contexts"]["work"]


def test_secrets_are_in_the_keyring_and_not_in_the_file(run, servers, environ, kept):
    """From login over renewal to logout the file holds no secret; the choice outlasts the logout."""
    server, auth = servers
    first, second = jwt(30), jwt(email="x")
    server.script = [HEALTH, PAGE, PAGE]
    auth.script = [ok(QUICK), GRANTED, ok({"token": first}), ok({"token": second})]
    words = ("login", "--context", "work", "--server", server.url, "--auth-url", auth.url, "--keyring")
    assert run(*words).code == 0
    [(entry, secret)] = json.loads(kept.read_text()).items()
    assert entry == f"taskctl\t{contexts.path(environ)}:work"
    assert json.loads(secret) == {"token": first, "session": "session-token"}
    assert stored(environ) == {
        "server": server.url,
        "token": None,
        "allow_http": False,
        "auth_url": auth.url,
        "keyring": True,
        "held": True,
    }
    assert json.loads(run("context", "list", "--json").out)[0]["logged_in"]

    assert run("tasks", "list", "-q").out == "7\n"
    assert bearers(server)[-1] == second
    assert json.loads(kept.read_text())[entry] == json.dumps({"token": second, "session": "session-token"})
    assert stored(environ)["token"] is None

    auth.script = [ok({"success": True})]
    assert run("logout").code == 0
    assert bearers(auth)[-1] == "session-token"
    assert json.loads(kept.read_text()) == {}
    assert stored(environ)["keyring"]
    assert run("tasks", "list").code == 4


def test_moving_in_and_out(run, environ, kept):
    """A login keeps to the last choice, then to TASKCTL_KEYRING; --no-keyring moves the secrets out."""
    token = jwt()
    words = ("login", "--context", "work", "--server", "http://127.0.0.1:1", "--token-stdin", "--no-check")
    assert run(*words, given=token, TASKCTL_KEYRING="1").code == 0
    assert (stored(environ)["token"], len(json.loads(kept.read_text()))) == (None, 1)
    assert run(*words, given=token).code == 0
    assert stored(environ)["token"] is None
    assert run(*words, "--no-keyring", given=token, TASKCTL_KEYRING="1").code == 0
    assert (stored(environ)["token"], json.loads(kept.read_text())) == (token, {})
    assert run(*words, "--keyring", given=token).code == 0
    assert run("context", "rm", "work").code == 0
    assert json.loads(kept.read_text()) == {}


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("keyring.backends.fail.Keyring", "The keyring does not open"),
        ("keyring.backends.null.Keyring", "The keyring has kept nothing of what it was given"),
        ("nowhere.Keyring", "nowhere"),
        ("keyring_backend.FileKeyring", "The keyring does not open: The collection is locked!"),
    ],
)
def test_a_keyring_that_cannot_be_used(run, environ, kept, backend, sentence):
    """No keyring, one that keeps nothing, an unknown one, a locked one: one line, and nothing stored."""
    kept.write_text("locked")
    words = ("login", "--server", "http://127.0.0.1:1", "--token-stdin", "--no-check", "--keyring")
    done = run(*words, given=jwt(), backend=backend)
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert sentence in done.err
    assert done.err.endswith(" (keyring_failed)\n")
    assert not contexts.path(environ).exists()


def test_a_keyring_that_stops_working(run, environ, kept):
    """Locked, emptied or damaged it is an error of its own; a locked one keeps nobody from logging out."""
    words = ("login", "--context", "work", "--server", "http://127.0.0.1:1", "--token-stdin", "--no-check")
    assert run(*words, "--keyring", given=jwt()).code == 0
    sound = kept.read_text()
    entry = next(iter(json.loads(sound)))
    for text, sentence in (
        ("locked", "The collection is locked!"),
        ("{}", "run `taskctl login` again"),
        (json.dumps({entry: "{bad"}), "is damaged"),
        (json.dumps({entry: '{"token": 1, "session": null}'}), "is damaged"),
    ):
        kept.write_text(text)
        done = run("tasks", "list")
        assert (done.code, sentence in done.err, "(keyring_failed)" in done.err) == (1, True, True), done.err
    kept.write_text("locked")
    done = run("logout")
    assert (done.code, "The keyring does not forget the token" in done.err) == (1, True)
    assert "held" not in stored(environ)
    kept.write_text(sound)
    assert run("tasks", "list").code == 4


def test_without_the_library(environ):
    """Without the extra the sentence says how to install it."""
    code = "import sys; sys.modules['keyring'] = None; from taskctl.cli import main; main(sys.argv[1:])"
    words = ["login", "--server", "http://127.0.0.1:1", "--token-stdin", "--keyring"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env=environ,
        input="",
        check=False,
    )
    assert (done.returncode, "pip install 'taskctl[keyring]'. (settings_invalid)" in done.stderr) == (2, True)
