"""`taskctl login`, `logout` and renewal, between an API and an auth server that answer by a script."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import Done, bare_environ, taskctl, taskctl_in_terminal, until
from taskctl import contexts
from taskctl.contexts import Context, Session
from test_client import TASK, Scripted, closed_port, http, ok, problem
from test_device_login import CODE, GRANTED, PENDING, oauth

PAGE = ok({"items": [TASK], "next_cursor": None})
HEALTH = ok({"version": "9.9"})
QUICK = CODE | {"interval": 0}


def jwt(seconds: float = 900, **claims: object) -> str:
    """What looks like a token that expires in so many seconds."""
    said = {"sub": "u1", "exp": time.time() + seconds, **claims}
    return f"e30.{base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip('=')}.x"


@pytest.fixture
def scripted() -> Iterator[Callable[[], Scripted]]:
    made: list[Scripted] = []

    def make() -> Scripted:
        made.append(Scripted())
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(scripted) -> Scripted:
    """The API."""
    return scripted()


@pytest.fixture
def auth(scripted) -> Scripted:
    """The auth server."""
    return scripted()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return bare_environ(tmp_path, TASKCTL_CONFIG_DIR=str(tmp_path / "config"))


@pytest.fixture
def run(environ):
    """Run `taskctl` with pipes."""

    def run(*arguments: str, given: str = "", **more: str) -> Done:
        return taskctl(*arguments, environ=environ | more, given=given)

    return run


@pytest.fixture
def logged_in(server, auth, environ):
    """Store a context `work` with a session, and a token that lasts so many seconds."""

    def log_in(seconds: float = -10, **changes: object) -> str:
        token = jwt(seconds)
        members = {"auth_url": auth.url, "session": "session-token"} | changes
        contexts.save_context("work", server.url, token, environ=environ, **members)
        return token

    return log_in


def paths(server: Scripted) -> list[str]:
    """What a server was asked for."""
    return [seen.line.split()[1].partition("?")[0] for seen in server.seen]


def bearers(server: Scripted) -> list[str | None]:
    """With which tokens."""
    return [seen.headers.get("authorization", "").removeprefix("Bearer ") or None for seen in server.seen]


# Log in


def test_login_in_a_browser(run, server, auth, environ):
    """The code is shown on stderr; the session goes to the auth server alone, the JWT to the API alone."""
    token = jwt(email="ada@example.com")
    server.script = [HEALTH, PAGE]
    auth.script = [ok(QUICK), PENDING, GRANTED, ok({"token": token})]
    done = run("login", "--server", server.url, "--auth-url", auth.url + "/", "--context", "work")
    assert done == Done(
        0,
        "",
        f"Open  {CODE['verification_uri_complete']}\nand confirm the code  ABCD-1234\n"
        "Waiting for the confirmation.\n"
        f"Logged in to {server.url} as ada@example.com (context work).\n",
    )
    assert paths(auth) == ["/api/auth/device/code", *["/api/auth/device/token"] * 2, "/api/auth/token"]
    assert bearers(auth) == [None, None, None, "session-token"]
    assert bearers(server) == [None, token]
    stored = contexts.load(environ)
    assert (stored.current, stored.get("work")) == (
        "work",
        Context(server.url, token, auth_url=auth.url, session="session-token"),
    )
    assert contexts.path(environ).stat().st_mode & 0o777 == 0o600


def test_a_terminal_gets_a_spinner_and_a_browser(server, auth, environ, tmp_path):
    """In a terminal the browser is opened at the complete address, unless told not to."""
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    browser.chmod(0o755)

    def log_in(*more: str, **variables: str) -> Done:
        server.script = [HEALTH, PAGE]

        def confirmed() -> bytes:
            if not more and variables:
                until(opened.exists)
            return GRANTED

        auth.script = [ok(QUICK), confirmed, ok({"token": jwt()})]
        words = ("login", "--server", server.url, "--auth-url", auth.url, *more)
        return taskctl_in_terminal(*words, environ=environ | variables)

    done = log_in(BROWSER=f"{browser} %s")
    assert done.code == 0, done.out
    assert "ABCD-1234" in done.out
    assert "Waiting for the confirmation; Ctrl-C gives up" in done.out
    assert done.out.splitlines()[-1].endswith(f"(context 127.0.0.1-{server.port}).")
    assert opened.read_text() == CODE["verification_uri_complete"] + "\n"
    opened.unlink()
    assert log_in("--no-browser", BROWSER=f"{browser} %s").code == 0
    assert log_in().code == 0  # neither BROWSER nor a display
    assert not opened.exists()


def test_without_a_terminal_no_browser_is_opened(run, server, auth, tmp_path):
    """A pipe gets no window, whatever BROWSER says."""
    server.script, auth.script = [HEALTH, PAGE], [ok(QUICK), GRANTED, ok({"token": jwt()})]
    words = ("login", "--server", server.url, "--auth-url", auth.url)
    assert run(*words, BROWSER=f"touch {tmp_path}/opened %s").code == 0
    assert not (tmp_path / "opened").exists()


def test_login_again_needs_no_options(run, server, auth, environ):
    """After a logout, server, auth server and client id are those of the last time."""
    script = [ok(QUICK), GRANTED, ok({"token": jwt()})]
    server.script, auth.script = [HEALTH, PAGE] * 2, [*script, ok({"success": True}), *script]
    words = ("login", "--server", server.url, "--auth-url", auth.url)
    assert run(*words, "--client-id", "mine", "--context", "work").code == 0
    assert run("logout").code == 0
    assert contexts.load(environ).get("work") == Context(server.url, auth_url=auth.url, client_id="mine")
    assert run("login").code == 0
    assert {seen.json["client_id"] for seen in auth.seen if "device" in seen.line} == {"mine"}
    assert contexts.load(environ).get("work").session == "session-token"


def test_what_another_server_was_given_is_not_reused(run, server, auth, environ):
    """A context that is given another server does not bring its auth server along."""
    contexts.save_context("work", "https://old.example.com", None, auth_url=auth.url, environ=environ)
    done = run("login", "--context", "work", "--server", server.url)
    assert (done.code, auth.seen) == (2, [])
    assert "--auth-url URL" in done.err


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ([oauth("access_denied")], 4, "taskctl: The login was denied. (login_denied)\n"),
        ([PENDING, oauth("expired_token")], 4, "(login_expired)\n"),
        ([GRANTED, http(401)], 1, "its plugin bearer must be on"),
        ([GRANTED, http(404)], 1, "its plugin jwt must be on"),
        ([GRANTED, http(302, Location="https://elsewhere.example.com")], 1, "(unexpected_answer)\n"),
    ],
)
def test_a_login_that_fails_stores_nothing(run, server, auth, *, environ, answers, code, words):
    """Denied, expired or half done: an exit code, a sentence, and no context; a session is signed out."""
    server.script = [HEALTH]
    auth.script = [ok(QUICK), *answers, ok({"success": True})]
    done = run("login", "--server", server.url, "--auth-url", auth.url)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert not contexts.path(environ).exists()
    assert ("/api/auth/sign-out" in paths(auth)) == (GRANTED in answers)


def test_a_token_that_the_api_refuses_is_not_stored(run, server, auth, environ):
    """Where the API trusts another issuer, nothing is stored, and the session is signed out again."""
    server.script = [HEALTH, problem(401, "token_issuer_wrong")]
    auth.script = [ok(QUICK), GRANTED, ok({"token": jwt()}), ok({"success": True})]
    done = run("login", "--server", server.url, "--auth-url", auth.url)
    assert (done.code, "token_issuer_wrong" in done.err) == (4, True)
    assert paths(auth)[-1] == "/api/auth/sign-out"
    assert not contexts.path(environ).exists()


def test_nobody_is_sent_to_the_browser_in_vain(run, auth):
    """A server that is not there is noticed before the auth server is asked for a code."""
    words = ("login", "--server", f"http://127.0.0.1:{closed_port()}", "--auth-url", auth.url)
    done = run("--timeout", "0.2", *words)
    assert (done.code, auth.seen) == (8, [])


def test_ctrl_c_ends_a_login(server, auth, environ):
    """An interrupt while waiting ends with 130, without a traceback and with nothing stored."""
    server.script, auth.script = [HEALTH], [ok(CODE)]
    words = ["login", "--server", server.url, "--auth-url", auth.url]
    with subprocess.Popen(
        [sys.executable, "-m", "taskctl", *words], stderr=subprocess.PIPE, env=environ, text=True
    ) as process:
        assert process.stderr is not None
        while "Waiting" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(2)
        assert process.communicate() == (None, "")
    assert process.returncode == 130
    assert not contexts.path(environ).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--server", "http://127.0.0.1:1"],
        ["--server", "http://127.0.0.1:1", "--auth-url", "http://auth.example.com"],
        ["--server", "http://127.0.0.1:1", "--auth-url", "ftp://127.0.0.1", "--no-check"],
        ["--server", "http://127.0.0.1:1", "--auth-url", "http://127.0.0.1:1", "--token-stdin"],
        ["--server", "http://127.0.0.1:1", "--client-id", "x", "--token-stdin"],
        ["--server", "http://127.0.0.1:1", "--auth-url", "https://u:p@auth.example.com", "--no-check"],
        ["--auth-url", "https://auth.example.com"],
    ],
)
def test_wrong_usage_is_2(run, environ, arguments):
    """Options that do not go together, plain HTTP to another machine and what is no URL are refused."""
    done = run("login", *arguments)
    assert (done.code, done.out, contexts.path(environ).exists()) == (2, "", False), done.err


def test_debug_shows_no_secret(run, server, auth):
    """`--debug` shows the requests to both servers, and no code, session or token."""
    token = jwt()
    server.script, auth.script = [HEALTH, PAGE], [ok(QUICK), GRANTED, ok({"token": token})]
    done = run("--debug", "login", "--server", server.url, "--auth-url", auth.url)
    assert f"taskctl: GET {auth.url}/api/auth/token: 200" in done.err
    assert not any(secret in done.err for secret in ("device-secret", "session-token", token))


# Renewal


def test_a_token_is_renewed_in_time(run, server, auth, environ, logged_in):
    """With less than a minute left a new token is fetched, used and kept, and nobody notices."""
    new = jwt(email="x")
    for seconds in (-10, 50):
        logged_in(seconds)
        server.script, auth.script = [PAGE], [ok({"token": new})]
        done = run("tasks", "list", "-q")
        assert done == Done(0, "7\n", "")
        assert (bearers(auth)[-1], bearers(server)[-1]) == ("session-token", new)
        assert contexts.load(environ).get("work").token == new
    logged_in(90)
    server.script = [PAGE]
    assert run("tasks", "list", "-q").code == 0
    assert len(auth.seen) == 2


def test_a_clock_that_is_behind_costs_one_request(run, server, auth, logged_in):
    """A token that the server calls expired is renewed once, and the request is repeated with the new one."""
    old, new = logged_in(600), jwt(email="x")
    expired = problem(401, "token_expired")
    server.script, auth.script = [expired, PAGE], [ok({"token": new})]
    assert run("tasks", "list", "-q").out == "7\n"
    assert bearers(server) == [old, new]
    server.script, auth.script = [expired, expired], [ok({"token": new})]
    done = run("tasks", "list", "-q")
    assert (done.code, len(server.seen), len(auth.seen)) == (4, 4, 2)


def test_a_clock_that_is_ahead_does_not_renew_for_every_page(run, server, auth, logged_in):
    """A fresh token that looks expired is believed to be good: one renewal for a command of many pages."""
    logged_in(-1000)
    auth.script = [ok({"token": jwt(-500)})]
    more = ok({"items": [TASK], "next_cursor": "a"})
    server.script = [more, PAGE]
    assert run("tasks", "list", "--all", "-q").out == "7\n7\n"
    assert len(auth.seen) == 1


def test_an_ended_login_asks_for_another(run, server, auth, logged_in):
    """Where the auth server does not know the session any more, 4, and the command that mends it."""
    logged_in()
    auth.script = [ok({"code": "UNAUTHORIZED", "message": "Unauthorized"}, 401)]
    done = run("tasks", "list")
    assert done == Done(
        4,
        "",
        f"taskctl: The login at {auth.url} has ended; run `taskctl login --context work`. (not_logged_in)\n",
    )
    assert server.seen == []


def test_an_auth_server_that_is_down(run, server, logged_in):
    """What is left of a token is used; without anything left the auth server is what cannot be reached."""
    gone = f"http://127.0.0.1:{closed_port()}"
    logged_in(50, auth_url=gone)
    server.script = [PAGE]
    assert run("tasks", "list", "-q") == Done(0, "7\n", "")
    logged_in(-10, auth_url=gone)
    done = run("--timeout", "0.2", "tasks", "list", "-q")
    assert (done.code, f"{gone} cannot be reached" in done.err.replace("/api/auth", "")) == (8, True)


def test_only_the_contexts_own_token_is_renewed(run, server, auth, logged_in):
    """TASKCTL_TOKEN is used as it is, and another server gets neither token nor session."""
    logged_in()
    server.script = [problem(401, "token_expired")]
    assert run("tasks", "list", TASKCTL_TOKEN=jwt(-5)).code == 4
    other = f"http://127.0.0.1:{closed_port()}"
    assert run("--server", other, "tasks", "list").code == 4
    assert auth.seen == []


def test_status_shows_the_renewed_token(run, server, auth, logged_in):
    """`status` renews as every command does, and shows whom the new token is for."""
    logged_in()
    auth.script = [ok({"token": jwt(sub="u2")})]
    server.script = [HEALTH, ok({"status": "ready"}), PAGE] * 2
    report = json.loads(run("status", "--json").out)
    assert (report["user"], report["token_accepted"], report["renewed_by"]) == ("u2", True, auth.url)
    assert f"(in 14 min), renewed by {auth.url}\n" in run("status").out


def test_terminals_that_renew_at_once(server, auth, environ, logged_in):
    """Six commands that renew at the same time all work, and leave one of their tokens in a sound file."""
    logged_in()
    tokens = [jwt(number=number) for number in range(6)]
    auth.script, server.script = [ok({"token": token}) for token in tokens], [PAGE] * 6
    command = [sys.executable, "-m", "taskctl", "tasks", "list", "-q"]
    started = [subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) for _ in tokens]
    assert [process.wait() for process in started] == [0] * 6
    context = contexts.load(environ).get("work")
    assert context.token in tokens
    assert (context.session, context.auth_url) == ("session-token", auth.url)
    names = sorted(path.name for path in contexts.path(environ).parent.iterdir())
    assert names == ["contexts.json", "contexts.lock"]


def test_a_token_that_cannot_be_kept_is_used(run, server, auth, environ, logged_in):
    """Where the file cannot be written the command works, and the next one renews again."""
    old = logged_in()
    lock = contexts.path(environ).with_suffix(".lock")
    lock.unlink()
    lock.mkdir()
    for _ in range(2):
        server.script, auth.script = [PAGE], [ok({"token": jwt()})]
        assert run("tasks", "list", "-q") == Done(0, "7\n", "")
    assert (contexts.load(environ).get("work").token, len(auth.seen)) == (old, 2)


def test_a_renewal_does_not_undo_a_logout(environ, logged_in, auth):
    """A token that comes after the context was logged out, removed or logged in again is not kept."""
    logged_in()
    for session in (Session(auth.url, "older"), Session("https://other.example.com", "session-token")):
        before = contexts.load(environ)
        contexts.renew_token("work", session, "late", environ=environ)
        assert contexts.load(environ) == before
    contexts.forget_tokens("work", environ=environ)
    for _ in range(2):
        before = contexts.load(environ)
        contexts.renew_token("work", Session(auth.url, "session-token"), "late", environ=environ)
        assert contexts.load(environ) == before
        if before.contexts:
            contexts.remove_context("work", environ=environ)


# Log out


@pytest.mark.parametrize("words", [["logout"], ["context", "rm", "work"]])
def test_logout_ends_the_session_and_forgets(run, auth, environ, logged_in, words):
    """`logout`, and removing a context, sign out at the auth server with the session and keep no secret."""
    logged_in()
    auth.script = [ok({"success": True})]
    assert run(*words).code == 0
    assert (paths(auth), bearers(auth)) == (["/api/auth/sign-out"], ["session-token"])
    assert "session-token" not in contexts.path(environ).read_text()


@pytest.mark.parametrize("answer", [http(500), http(302, Location="https://elsewhere.example.com"), b""])
def test_logout_forgets_whatever_the_auth_server_says(run, auth, environ, logged_in, answer):
    """Where the auth server cannot be told, that is said, and the tokens are forgotten all the same."""
    logged_in()
    auth.script = [answer]
    done = run("logout")
    assert (done.code, len(done.err.splitlines())) == (0, 2)
    assert f"The login could not be ended at {auth.url}" in done.err
    assert not contexts.load(environ).get("work").logged_in


def test_ctrl_c_in_a_logout_forgets(auth, environ, logged_in):
    """Who does not want to wait for the auth server is logged out here."""
    logged_in()
    command = [sys.executable, "-m", "taskctl", "logout"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environ) as process:
        until(lambda: auth.seen)
        process.send_signal(2)
        assert process.communicate() == (None, b"")
    assert process.returncode == 130
    assert not contexts.load(environ).get("work").logged_in
