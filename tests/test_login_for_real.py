"""`taskctl login` at a real Better Auth, for a real server that trusts it."""

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from better_auth import Account, waiting_login
from conftest import Done, bare_environ, taskctl, taskctl_in_terminal, until
from taskctl import contexts
from taskctl.contexts import Context
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
def log_in(better_auth_pair, account, environ) -> Callable[..., tuple[int, str]]:
    """Log in with pipes, and decide as soon as the code is shown; the exit code, and what was said then."""
    issuer, server = better_auth_pair

    def log_in(decision: str = "approve") -> tuple[int, str]:
        with waiting_login(server.url, issuer.url, environ) as login:
            issuer.decide(account, login.user_code, decision)
            return login.end()

    return log_in


def make_token_old(environ: Mapping[str, str]) -> tuple[str, Context]:
    """Put a token that has expired into the current context, as time would; its name and the context."""
    stored = contexts.load(environ)
    name, known = stored.current, stored.get(stored.current)
    members = {"auth_url": known.auth_url, "session": known.session}
    contexts.save_context(name, known.server, jwt(-5), environ=environ, **members)
    return name, known


def test_from_login_to_logout(better_auth_pair, log_in, account, environ):
    """After the login tasks are the account's own; an old token is renewed; after the logout all is over."""
    issuer, server = better_auth_pair
    code, said = log_in()
    assert (code, f"Logged in to {server.url} as {account.email} (context " in said) == (0, True)
    assert taskctl("tasks", "add", "Buy milk", "-q", environ=environ).out == "1\n"
    [task] = json.loads(taskctl("tasks", "list", "--json", environ=environ).out)
    assert (task["user_id"], task["title"]) == (account.id, "Buy milk")

    name, known = make_token_old(environ)
    assert taskctl("tasks", "list", "-q", environ=environ) == Done(0, "1\n", "")
    report = json.loads(taskctl("status", "--json", environ=environ).out)
    assert (report["user"], report["token_accepted"]) == (account.id, True)
    report = json.loads(taskctl("doctor", "--json", environ=environ).out)
    assert {step["result"] for step in report["steps"]} == {"passed"}
    details = {step["name"]: step["detail"] for step in report["steps"]}
    assert (details["algorithm"], details["signature"]) == ("EdDSA", "by the issuer's key")
    assert (details["subject"], details["issuer"]) == (account.id, issuer.url)

    assert taskctl("logout", environ=environ).err == f"Logged out of {server.url} (context {name}).\n"
    assert issuer.ask("GET", "/token", known.session).status_code == 401
    assert issuer.ask("GET", "/token", account.session).status_code == 200
    assert taskctl("tasks", "list", environ=environ).code == 4


def test_a_login_that_is_denied(log_in, environ):
    """Who says no in the browser is believed: exit code 4, and nothing is stored."""
    code, said = log_in("deny")
    assert (code, said.splitlines()[-1]) == (4, "taskctl: The login was denied. (login_denied)")
    assert not contexts.path(environ).exists()


def test_a_session_that_ends_elsewhere(better_auth_pair, log_in, environ):
    """Where the session was ended at Better Auth, the next renewal asks for a login."""
    issuer, _ = better_auth_pair
    assert log_in()[0] == 0
    name, known = make_token_old(environ)
    issuer.ask("POST", "/sign-out", known.session, json={}).raise_for_status()
    done = taskctl("tasks", "list", environ=environ)
    assert (done.code, f"run `taskctl login --context {name}`" in done.err) == (4, True)


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
