"""`taskctl login` at a real Better Auth, for a real server that trusts it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from better_auth import Account
from conftest import Done, bare_environ, taskctl, taskctl_in_terminal, until
from taskctl import contexts
from test_login import jwt


@pytest.fixture
def account(better_auth_pair) -> Account:
    """Somebody who has signed up."""
    issuer, _ = better_auth_pair
    return issuer.sign_up()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return bare_environ(tmp_path, TASKCTL_CONFIG_DIR=str(tmp_path))


@pytest.fixture
def login(better_auth_pair, account, environ) -> Callable[..., Done]:
    """Log in with pipes; the code is decided on as soon as it is shown."""
    issuer, server = better_auth_pair
    words = ["login", "--server", server.url, "--auth-url", issuer.url, "--context", "real"]

    def login(decision: str = "approve") -> Done:
        with subprocess.Popen(
            [sys.executable, "-m", "taskctl", *words], stderr=subprocess.PIPE, env=environ, text=True
        ) as process:
            assert process.stderr is not None
            shown = process.stderr.readline() + process.stderr.readline()
            issuer.decide(account, re.search(r"code  (\S+)", shown)[1], decision)
            rest = process.communicate()[1]
        return Done(process.returncode, "", rest)

    return login


def test_from_login_to_logout(better_auth_pair, login, account, environ):
    """After the login tasks are the account's own; an old token is renewed; after the logout all is over."""
    issuer, server = better_auth_pair
    done = login()
    assert done.err.splitlines()[-1] == f"Logged in to {server.url} as {account.email} (context real)."
    assert taskctl("tasks", "add", "Buy milk", "-q", environ=environ).out == "1\n"
    [task] = json.loads(taskctl("tasks", "list", "--json", environ=environ).out)
    assert (task["user_id"], task["title"]) == (account.id, "Buy milk")

    known = contexts.load(environ).get("real")
    members = {"auth_url": known.auth_url, "session": known.session}
    contexts.save_context("real", server.url, jwt(-5), environ=environ, **members)
    assert taskctl("tasks", "list", "-q", environ=environ) == Done(0, "1\n", "")
    report = json.loads(taskctl("status", "--json", environ=environ).out)
    assert (report["user"], report["token_accepted"]) == (account.id, True)
    report = json.loads(taskctl("doctor", "--json", environ=environ).out)
    assert {step["result"] for step in report["steps"]} == {"passed"}
    details = {step["name"]: step["detail"] for step in report["steps"]}
    assert (details["algorithm"], details["signature"]) == ("EdDSA", "by the issuer's key")
    assert (details["subject"], details["issuer"]) == (account.id, issuer.url)

    assert taskctl("logout", environ=environ).err == f"Logged out of {server.url} (context real).\n"
    assert issuer.ask("GET", "/token", known.session).status_code == 401
    assert issuer.ask("GET", "/token", account.session).status_code == 200
    assert taskctl("tasks", "list", environ=environ).code == 4


def test_a_login_that_is_denied(login, environ):
    """Who says no in the browser is believed: exit code 4, and nothing is stored."""
    done = login("deny")
    assert (done.code, done.err.splitlines()[-1]) == (4, "taskctl: The login was denied. (login_denied)")
    assert not contexts.path(environ).exists()


def test_a_session_that_ends_elsewhere(better_auth_pair, login, environ):
    """Where the session was ended at Better Auth, the next renewal asks for a login."""
    issuer, server = better_auth_pair
    assert login().code == 0
    known = contexts.load(environ).get("real")
    issuer.ask("POST", "/sign-out", known.session, json={}).raise_for_status()
    members = {"auth_url": known.auth_url, "session": known.session}
    contexts.save_context("real", server.url, jwt(-5), environ=environ, **members)
    done = taskctl("tasks", "list", environ=environ)
    assert (done.code, "run `taskctl login --context real`" in done.err) == (4, True)


def test_in_a_terminal(better_auth_pair, account, environ, tmp_path):
    """In a terminal the browser is sent to Better Auth's page for the code, and the login ends well."""
    issuer, server = better_auth_pair
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    browser.chmod(0o755)

    def confirm() -> None:
        until(opened.exists)
        issuer.decide(account, re.search(r"user_code=(\S+)", opened.read_text())[1])

    with ThreadPoolExecutor() as pool:
        confirming = pool.submit(confirm)
        words = ("login", "--server", server.url, "--auth-url", issuer.url)
        done = taskctl_in_terminal(*words, environ=environ | {"BROWSER": f"{browser} %s"})
        confirming.result()
    assert done.code == 0, done.out
    assert opened.read_text().startswith(f"{issuer.url}/device?user_code=")
    assert f"as {account.email}" in " ".join(done.out.split())


def test_doctor_finds_the_server_that_trusts_another(better_auth_pair, server, account, tmp_path):
    """Better Auth's token where only a secret is trusted, and its session token anywhere, are explained."""
    issuer, trusting = better_auth_pair
    for url, token, code in (
        (server.url, issuer.token(account), "token_algorithm_not_allowed"),
        (trusting.url, account.session, "token_malformed"),
    ):
        environ = bare_environ(tmp_path, TASKCTL_SERVER=url, TASKCTL_TOKEN=token)
        done = taskctl("doctor", "--json", environ=environ)
        report = json.loads(done.out)
        assert (done.code, report["code"]) == (4, code)
        assert token not in done.out + done.err
