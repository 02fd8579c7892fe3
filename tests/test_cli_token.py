"""`taskctl token`: what it mints a server accepts, what it refuses a server refuses, and no secret shows."""

import json
import re
import stat
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import jwt
import pytest

import warm
from conftest import SECRET, bare_environ, make_user, taskctl, taskctl_in_terminal
from taskctl.signing_keys import key_set, make_key
from taskctl.tokens import mint
from taskctl.vocabulary import Algorithm

TASKS = "/api/v1/me/tasks"
AUTH = "https://auth.example.com"
OTHER = "another secret that is long enough to sign with"


@pytest.fixture
def environ(tmp_path):
    """The environment of somebody who has the shared server's secret."""
    return bare_environ(tmp_path, TASKCTL_ENV="test", BETTER_AUTH_SECRET=SECRET)


def minted(*options, environ):
    """A token for the user `ada`, as `mint` prints it."""
    done = taskctl("token", "mint", "--sub", "ada", *options, environ=environ)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    return done.out.strip()


def inspected(token, *, environ):
    """What `inspect --json` says."""
    done = taskctl("token", "inspect", "--json", environ=environ, given=token)
    assert (done.code, done.err) == (0, "")
    assert SECRET not in done.out
    return json.loads(done.out)


def test_round_trip(environ, server):
    """A minted token holds what was asked for, verifies, and opens the door of the running server."""
    options = ("--claim", "team=7", "--claim", "name=Ada L", "--scope", "tasks:read", "--expires", "15m")
    token = minted(*options, environ=environ)
    report = inspected(token, environ=environ)
    claims = report["claims"]
    assert (report["accepted"], report["code"], report["header"]["alg"]) == (True, None, "HS256")
    assert (claims["sub"], claims["team"], claims["name"], claims["scope"]) == (
        "ada",
        7,
        "Ada L",
        "tasks:read",
    )
    assert claims["exp"] - claims["iat"] == 900
    assert {check["passed"] for check in report["checks"]} == {True}
    assert taskctl("token", "verify", environ=environ, given=f"  {token}\n") == (0, "", "")

    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(server.url + TASKS, headers=headers).status_code == 200
    refused = httpx.post(server.url + TASKS, json={"title": "x"}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (make_user("ada", lifetime=-3600).token, "token_expired"),
        (make_user("ada").token[:-4] + "AAAA", "token_signature_invalid"),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.", "token_algorithm_not_allowed"),
        ("no-token", "token_malformed"),
    ],
)
def test_verify_refuses_as_the_server_does(environ, server, token, code):
    """A token that the server would refuse is 4 with the server's own code, in one line."""
    done = taskctl("token", "verify", environ=environ, given=token)
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    assert done.err.endswith(f" ({code})\n")
    assert httpx.get(server.url + TASKS, headers={"Authorization": f"Bearer {token}"}).json()["code"] == code
    assert token not in done.err
    assert inspected(token, environ=environ)["code"] == code


def test_the_wrong_secret(environ):
    """A token signed with another secret is refused, unless that secret is a previous one."""
    token = minted(environ={**environ, "BETTER_AUTH_SECRET": OTHER})
    assert taskctl("token", "verify", environ=environ, given=token).code == 4
    both = {**environ, "BETTER_AUTH_SECRET_PREVIOUS": OTHER}
    assert taskctl("token", "verify", environ=both, given=token).code == 0


def test_inspect_for_people(environ):
    """`inspect` shows header, claims and every check, with times that can be read and nothing raw."""
    token = minted("--claim", "note=\x1b[31mred", "--expires", "90s", environ=environ)
    done = taskctl_in_terminal("token", "inspect", environ=environ, typed=f"{token}\n\x04")
    shown = done.out.replace(token, "")
    assert (done.code, "\x1b" in shown) == (0, False)
    assert 'claims  sub = "ada"' in shown
    assert "+00:00" in shown
    assert shown.splitlines()[-1] == "accepted"
    expired = make_user("ada", lifetime=-3600).token
    report = inspected(expired, environ=environ)
    assert (report["accepted"], report["code"]) == (False, "token_expired")
    done = taskctl("token", "inspect", environ=environ, given=expired)
    assert done.code == 0
    assert "FAIL  expiry" in done.out
    assert done.out.splitlines()[-1] == "refused: token_expired"


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "a.b.c"],
        ["inspect", "a.b.c"],
        ["verify"],
        ["inspect", "--json"],
        ["mint"],
        ["mint", "--sub", ""],
        ["mint", "--sub", "a\nb"],
        ["mint", "--sub", "ada", "--claim", "sub=bob"],
        ["mint", "--sub", "ada", "--scope", "tasks:everything"],
        ["mint", "--sub", "ada", "--expires", "soon"],
        ["mint", "--sub", "ada", "--claim", "nothing"],
        ["mint", "--sub", "ada", "--claim", "iss=1"],
        ["mint", "--sub", "ada", "--claim", "exp=soon"],
        ["mint", "--sub", "ada", "--claim", "scope=[]"],
        ["mint", "--sub", "ada", "--claim", "note=" + "x" * 8192],
        ["mint", "--sub", "ada", "--expires", "99999999999d"],
        ["mint", "--sub", "ada", "--alg", "EdDSA"],
        ["mint", "--sub", "ada", "--alg", "none"],
        ["mint", "--sub", "ada", "--key", "missing.pem"],
        ["mint", "--sub", "ada", "--key", "-----BEGIN PRIVATE KEY-----\na.b.c"],
        ["jwks"],
        ["jwks", "--key", "missing.pem"],
        ["keygen"],
        ["keygen", "--key", "key.pem", "--alg", "HS256"],
    ],
)
def test_wrong_usage_is_2(environ, words):
    """A token as an argument, none at all, and what is no token's content are refused with one code."""
    done = taskctl("token", *words, environ=environ)
    assert (done.code, done.out) == (2, "")
    assert "usage_invalid" in done.err
    assert "Traceback" not in done.err
    assert "a.b.c" not in done.err


def test_input_without_end_is_not_read_to_it(environ):
    """A stream that goes on and on is refused as too long for a token, while it goes on."""
    pipes = dict.fromkeys(("stdin", "stderr"), subprocess.PIPE)
    with warm.Process(["token", "verify"], env=environ, cwd=environ["HOME"], **pipes) as verifying:
        verifying.stdin.write(b"a" * (1 << 16))
        verifying.stdin.flush()
        try:
            assert verifying.wait(timeout=30) == 4
        finally:
            verifying.kill()
        assert b"token_malformed" in verifying.stderr.read()


@pytest.mark.parametrize("algorithm", ["EdDSA", "PS256"])
def test_a_key_signs_what_its_key_set_verifies(tmp_path, algorithm):
    """`keygen` writes a private file and prints the public half; `jwks` publishes what `mint` signs with."""
    environ = bare_environ(tmp_path, TASKCTL_ENV="prod")  # no secret, and none is needed
    options = ("--key", "key.pem", "--alg", algorithm)
    made = taskctl("token", "keygen", *options, environ=environ)
    assert (made.code, made.err, made.out.count("\n")) == (0, "", 1)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    published = taskctl("token", "jwks", *options, environ=environ)
    assert (published.code, published.err) == (0, "")
    assert json.loads(published.out) == {"keys": [json.loads(made.out)]}

    claims = ("--claim", "iss=https://auth.example.com", "--claim", "aud=taskctl", "--expires", "15m")
    token = minted(*options, *claims, environ=environ)
    [key] = jwt.PyJWKSet.from_json(published.out).keys
    assert jwt.get_unverified_header(token)["kid"] == key.key_id
    decoded = jwt.decode(token, key, [algorithm], audience="taskctl", issuer="https://auth.example.com")
    assert (decoded["sub"], decoded["exp"] - decoded["iat"]) == ("ada", 900)


@pytest.fixture
def published(tmp_path):
    """A directory that is published, and its URL."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


@pytest.fixture
def trusting(tmp_path, published):
    """The environment of a server that trusts the published key set, and nothing else."""
    return bare_environ(
        tmp_path,
        TASKCTL_ENV="prod",
        TASKCTL_JWKS_URL=f"{published[1]}/jwks.json",
        TASKCTL_JWT_ISSUERS=AUTH,
        TASKCTL_JWT_AUDIENCES="taskctl",
    )


def publish(folder, *keys):
    """Publish the public halves of these keys and no others."""
    (folder / "jwks.json").write_text(json.dumps(key_set(keys)))


def issued(key, lifetime=3600, **claims):
    """A token for the user `ada`, signed with a key."""
    return mint(key, "ada", lifetime, claims={"iss": AUTH, "aud": "taskctl"} | claims)


def test_a_key_set_verifies(published, trusting):
    """With a key set in the settings each check is listed in order, and what it holds now is what counts."""
    old, new = make_key(Algorithm.EdDSA), make_key(Algorithm.ES256)
    token = issued(old)
    publish(published[0], old)
    assert taskctl("token", "verify", environ=trusting, given=token) == (0, "", "")
    publish(published[0], new, old)
    report = inspected(token, environ=trusting)
    assert (report["accepted"], report["header"]["alg"]) == (True, "EdDSA")
    assert [(check["name"], check["passed"]) for check in report["checks"]] == [
        (name, True)
        for name in (
            *("well-formed", "algorithm", "key known", "signature", "subject", "expiry", "not before"),
            *("issuer", "audience", "scope"),
        )
    ]
    publish(published[0], new)
    assert taskctl("token", "verify", environ=trusting, given=token).code == 4
    assert inspected(token, environ=trusting)["code"] == "token_key_unknown"


@pytest.mark.parametrize(
    ("lifetime", "claims", "code"),
    [
        (3600, {"iss": f"{AUTH}/"}, "token_issuer_wrong"),
        (3600, {"aud": "other"}, "token_audience_wrong"),
        (-3600, {}, "token_expired"),
    ],
)
def test_what_a_key_set_does_not_verify(published, trusting, lifetime, claims, code):
    """A token of a published key that is not meant for this server is 4, with the server's code."""
    key = make_key(Algorithm.EdDSA)
    publish(published[0], key)
    token = issued(key, lifetime, **claims)
    done = taskctl("token", "verify", environ=trusting, given=token)
    assert (done.code, done.out, done.err.count("\n")) == (4, "", 1)
    assert done.err.endswith(f"({code})\n")


@pytest.mark.parametrize("content", [None, "no key set", '{"keys": []}'])
def test_a_key_set_that_cannot_be_had(published, trusting, content):
    """That is neither the token's fault nor wrong usage: 8, and the reason."""
    if content is not None:
        (published[0] / "jwks.json").write_text(content)
    token = issued(make_key(Algorithm.EdDSA))
    done = taskctl("token", "verify", environ=trusting, given=token)
    assert (done.code, done.out, done.err.count("\n")) == (8, "", 1)
    assert done.err.endswith("(auth_keys_unavailable)\n")
    report = inspected(token, environ=trusting)
    assert [check["name"] for check in report["checks"] if not check["passed"]] == ["key known", "signature"]


def test_without_a_secret_nothing_is_signed_with_one(trusting):
    """Where only a key set is trusted, `mint` without a key says what would do."""
    done = taskctl("token", "mint", "--sub", "ada", environ=trusting)
    assert (done.code, done.out) == (2, "")
    assert "--key" in done.err


def test_the_issuer_is_played_as_the_docs_say(published, trusting):
    """The lines of docs/authentication.md that play the issuer end in a token that verifies."""
    page = (Path(__file__).parents[1] / "docs" / "authentication.md").read_text(encoding="utf-8")
    lines = re.search(r"(?s)## To play the issuer\n.*?```\n(.*?)```", page)[1].splitlines()
    served = [line for line in lines if "http.server" not in line]  # which the fixture does
    assert len(lines) == len(served) + 1
    script = "\n".join(served).replace("http://127.0.0.1:9000", published[1])
    bin_path = f"{Path(sys.executable).parent}:{trusting['PATH']}"
    environ = bare_environ(published[0], TASKCTL_ENV="test") | {"PATH": bin_path}
    done = subprocess.run(
        ["/usr/bin/env", "bash", "-euc", script],
        env=environ,
        cwd=published[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_several_keys_and_one_that_is_kept(tmp_path):
    """A key set takes several files in order, and `keygen` replaces a file only when it is told to."""
    environ = bare_environ(tmp_path)
    made = [json.loads(taskctl("token", "keygen", "--key", name, environ=environ).out) for name in ("a", "b")]
    both = taskctl("token", "jwks", "--key", "b", "--key", "a", environ=environ)
    assert json.loads(both.out) == {"keys": made[::-1]}
    held = (tmp_path / "a").read_bytes()
    again = taskctl("token", "keygen", "--key", "a", environ=environ)
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err
    assert (tmp_path / "a").read_bytes() == held
    assert taskctl("token", "keygen", "--key", "a", "--force", environ=environ).code == 0
    assert (tmp_path / "a").read_bytes() != held


@pytest.mark.parametrize("environment", ["test", "prod"])
def test_outside_development_a_secret_is_needed(tmp_path, environment):
    """Without a secret there is nothing to sign or verify with: 2, and nothing is kept."""
    environ = bare_environ(tmp_path, TASKCTL_ENV=environment)
    for words in (["mint", "--sub", "ada"], ["verify"]):
        done = taskctl("token", *words, environ=environ, given="a.b.c")
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("taskctl: BETTER_AUTH_SECRET is not set")
    assert list(tmp_path.iterdir()) == []


def test_in_development_the_kept_secret_signs(tmp_path):
    """Development needs no secret: one is made and kept, and signs and verifies from then on."""
    environ = bare_environ(tmp_path)
    token = minted(environ=environ)
    kept = tmp_path / ".local" / "share" / "taskctl" / "secret"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert taskctl("token", "verify", environ=environ, given=token).code == 0
    report = taskctl("--debug", "token", "inspect", environ=environ, given=token)
    assert kept.read_text() not in report.out + report.err
    assert token.rpartition(".")[2] not in report.out + report.err
