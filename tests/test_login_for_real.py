"""A terminal, `status` and `doctor` between a real Better Auth and a real server that trusts it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from better_auth import Account, waiting_login
from conftest import bare_environ, taskctl, taskctl_in_terminal, until
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


def test_status_and_doctor_after_a_login(better_auth_pair, account, environ):
    """An expired token is renewed by whatever command comes next; then the server vouches for all of it."""
    issuer, server = better_auth_pair
    with waiting_login(server.url, issuer.url, environ) as login:
        issuer.decide(account, login.user_code)
        assert login.end()[0] == 0
    stored = contexts.load(environ)
    members = {name: getattr(stored.get(stored.current), name) for name in ("auth_url", "session")}

    def report(command: str) -> dict:
        contexts.save_context(stored.current, server.url, jwt(-5), environ=environ, **members)
        done = taskctl(command, "--json", environ=environ)
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)

    status = report("status")
    assert (status["user"], status["renewed_by"]) == (account.id, issuer.url)
    steps = report("doctor")["steps"]
    assert {step["result"] for step in steps} == {"passed"}
    details = {step["name"]: step["detail"] for step in steps}
    assert (details["algorithm"], details["signature"]) == ("EdDSA", "by the issuer's key")
    assert (details["subject"], details["issuer"]) == (account.id, issuer.url)


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
