"""`taskctl doctor`: each step made to fail on its own, by a script and by a real server."""

import contextlib
import datetime as dt
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conftest import SECRET, bare_environ, make_user, taskctl, taskctl_in_terminal
from taskctl import contexts
from taskctl.tokens import mint
from test_client import Scripted, closed_port, http, ok, problem
from test_login import HEALTH, PAGE, jwt

STEPS = [
    "server reachable",
    "TLS",
    "taskctl server",
    "clock",
    "ready",
    "token present",
    "well-formed",
    "algorithm",
    "key known",
    "signature",
    "subject",
    "expiry",
    "not before",
    "issuer",
    "audience",
    "path",
    "scope",
    "tasks",
]
READY = ok({"status": "ready"})
OLD = problem(404, "route_not_found")
"""What a server says that knows no /api/v1/me."""
ME = ok({"user_id": "u1", "issuer": None, "scopes": ["tasks:read"], "verified_by": {"trust": "secret"}})


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


@pytest.fixture
def examine(tmp_path):
    """Run `doctor --json`, and return its exit code, the steps' results and the whole report."""

    def examine(server: str, token: str | None, *words: str, **more: str):
        environ = bare_environ(tmp_path, TASKCTL_SERVER=server, **more)
        if token is not None:
            environ["TASKCTL_TOKEN"] = token
        done = taskctl(*words, "doctor", "--json", environ=environ)
        report = json.loads(done.out)
        assert [step["name"] for step in report["steps"]] == STEPS
        assert (json.loads(done.err)["code"] if done.err else None) == report["code"]
        return done.code, {step["name"]: step["result"] for step in report["steps"]}, report

    return examine


def stopped_at(step: str) -> dict[str, str]:
    """The results where one step has failed, those before it have passed, and no other is reached."""
    before, after = STEPS[: STEPS.index(step)], STEPS[STEPS.index(step) + 1 :]
    return dict.fromkeys(before, "passed") | {step: "failed"} | dict.fromkeys(after, "not_reached")


@pytest.mark.parametrize("who", [ME, OLD], ids=["new server", "old server"])
def test_all_is_well(examine, scripted, who):
    """Where nothing is wrong every step has passed, whether or not the server says who somebody is."""
    scripted.script = [HEALTH, READY, who, PAGE]
    code, results, report = examine(scripted.url, jwt())
    assert (code, set(results.values()), report["code"], report["advice"]) == (0, {"passed"}, None, None)
    details = {step["name"]: step["detail"] for step in report["steps"]}
    assert (details["taskctl server"], details["subject"]) == ("version 9.9", "u1")
    assert details["scope"] == ("tasks:read" if who == ME else "")


@pytest.mark.parametrize(
    ("code", "step", "exit_code"),
    [
        ("token_malformed", "well-formed", 4),
        ("token_algorithm_not_allowed", "algorithm", 4),
        ("token_key_unknown", "key known", 4),
        ("auth_keys_unavailable", "key known", 8),
        ("token_signature_invalid", "signature", 4),
        ("token_expired", "expiry", 4),
        ("token_not_yet_valid", "not before", 4),
        ("token_issuer_wrong", "issuer", 4),
        ("token_audience_wrong", "audience", 4),
        ("token_claim_missing", "issuer", 4),
    ],
)
def test_what_the_server_says_of_the_token(examine, scripted, code, step, exit_code):
    """Each refusal of a token is the failure of its step: what is checked before it has passed."""
    status = 503 if code == "auth_keys_unavailable" else 401
    scripted.script = [HEALTH, READY, problem(status, code, retry_after="99")]
    done, results, report = examine(scripted.url, jwt())
    assert (done, results, report["code"]) == (exit_code, stopped_at(step), code)
    assert report["advice"]


@pytest.mark.parametrize(
    ("answer", "step", "code", "exit_code"),
    [
        (problem(403, "not_your_tasks"), "path", "not_your_tasks", 4),
        (problem(403, "insufficient_scope"), "scope", "insufficient_scope", 4),
        (problem(429, "rate_limited", retry_after="99"), "tasks", "rate_limited", 7),
        (problem(418, "from_the_future"), "tasks", "from_the_future", 2),
    ],
)
def test_what_the_server_says_of_the_tasks(examine, scripted, *, answer, step, code, exit_code):
    """What keeps the tasks away although the token is good comes after the token's own steps."""
    scripted.script = [HEALTH, READY, ME, answer]
    done, results, report = examine(scripted.url, jwt())
    assert (done, report["code"], results["audience"], results[step]) == (exit_code, code, "passed", "failed")
    scripted.script = [HEALTH, READY, OLD, answer]
    done, results, _ = examine(scripted.url, jwt())
    token = "passed" if step in {"path", "scope"} else "not_reached"
    assert (done, results[step], results["audience"]) == (exit_code, "failed", token)


@pytest.mark.parametrize(
    ("answers", "step", "code", "exit_code"),
    [
        ([http(200, b"<p>", Content_Type="text/html")], "taskctl server", "unexpected_answer", 1),
        ([ok({"status": "ok"})], "taskctl server", "unexpected_answer", 1),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "taskctl server", "unexpected_answer", 1),
        ([problem(400, "bad_request")], "taskctl server", "bad_request", 2),
        ([http(301, Location="https://tasks.example.com")], "taskctl server", "unexpected_answer", 1),
        ([b""], "server reachable", "server_unreachable", 8),
    ],
)
def test_what_is_no_taskctl_server(examine, scripted, *, answers, step, code, exit_code):
    """Other servers, redirects and cut connections end the walk before the token is sent anywhere."""
    scripted.script = answers
    done, results, report = examine(scripted.url, jwt())
    assert (done, results, report["code"]) == (exit_code, stopped_at(step), code)
    assert not any("authorization" in seen.headers for seen in scripted.seen)


def test_a_server_that_is_not_there(examine):
    """A refused connection is the first step's failure."""
    done, results, _ = examine(f"http://127.0.0.1:{closed_port()}", jwt())
    assert (done, results) == (8, stopped_at("server reachable"))


def test_a_server_that_is_not_ready(examine, scripted):
    """A server that runs and cannot serve says so; the clock has been compared by then."""
    scripted.script = [HEALTH, problem(503, "not_ready")]
    done, results, report = examine(scripted.url, jwt())
    assert (done, report["code"]) == (8, "not_ready")
    assert results == stopped_at("ready")


@pytest.mark.parametrize(("seconds", "word"), [(300, "behind"), (-300, "ahead of")])
def test_a_clock_that_is_off(examine, scripted, seconds, word):
    """A clock that differs by minutes is what is wrong first, and the walk goes on."""
    date = formatdate(time.time() + seconds, usegmt=True)
    scripted.script = [ok({"version": "9.9"}, Date=date), READY, ME, PAGE]
    done, results, report = examine(scripted.url, jwt())
    assert (done, report["code"], results) == (
        1,
        "clock_wrong",
        dict.fromkeys(STEPS, "passed") | {"clock": "failed"},
    )
    assert word in next(step["detail"] for step in report["steps"] if step["name"] == "clock")


def test_no_token(examine, scripted):
    """Without a token the walk ends where one would be sent."""
    scripted.script = [HEALTH, READY]
    done, results, _ = examine(scripted.url, None)
    assert (done, results) == (4, stopped_at("token present"))


def test_an_ended_login(scripted, tmp_path):
    """A session that the auth server has ended is a token that is missing."""
    auth = Scripted()
    environ = bare_environ(tmp_path, TASKCTL_CONFIG_DIR=str(tmp_path))
    contexts.save_context("w", scripted.url, jwt(-5), auth_url=auth.url, session="s", environ=environ)
    scripted.script, auth.script = [HEALTH, READY], [http(401)]
    done = taskctl("doctor", environ=environ)
    auth.close()
    assert done.code == 4
    assert f"token present\tfailed\tThe login at {auth.url} has ended" in done.out
    assert "What to do: Log in with `taskctl login`.\n" in done.err


def test_a_terminal_gets_a_list(scripted, tmp_path):
    """A person sees a mark for each step, what is wrong, and what to do about it."""
    scripted.script = [HEALTH, READY, problem(401, "token_expired", detail="It \x1b[31mexpired.")]
    environ = bare_environ(tmp_path, TASKCTL_SERVER=scripted.url, TASKCTL_TOKEN=jwt())
    done = taskctl_in_terminal("doctor", environ=environ)
    assert done.code == 4
    lines = done.out.splitlines()
    assert "  ok    taskctl server: version 9.9" in lines
    assert "  FAIL  expiry: It \\x1b[31mexpired." in lines
    assert "  -     issuer: not reached" in lines
    assert lines[-2].startswith("What to do: Log in again")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate that only who knows it trusts, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def listen() -> Iterator[Callable[..., str]]:
    """Answer connections with HTML, through TLS if a context for that is given; returns the https:// URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    threads = []

    def answer(context: ssl.SSLContext | None) -> None:
        while True:
            connection, _address = listener.accept()
            if over.is_set():
                connection.close()
                return
            connection.settimeout(20)
            with connection, contextlib.suppress(OSError):
                stream = context.wrap_socket(connection, server_side=True) if context else connection
                with stream:
                    stream.recv(1 << 16)
                    stream.sendall(http(400, b"<p>", Content_Type="text/html"))

    def start(context: ssl.SSLContext | None = None) -> str:
        threads.append(threading.Thread(target=answer, args=[context]))
        threads[0].start()
        return f"https://localhost:{listener.getsockname()[1]}"

    yield start
    over.set()
    socket.create_connection(listener.getsockname()).close()
    for thread in threads:
        thread.join()
    listener.close()


def test_a_certificate(examine, certificate, listen):
    """A certificate that nobody vouches for fails its own step; with SSL_CERT_FILE it passes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    url = listen(context)
    done, results, report = examine(url, jwt())
    assert (done, results, report["code"]) == (8, stopped_at("TLS"), "server_unreachable")
    assert "SSL_CERT_FILE" in report["advice"]
    _, results, _ = examine(url, jwt(), SSL_CERT_FILE=str(certificate))
    assert results == stopped_at("taskctl server")


def test_plain_http_where_tls_is_expected(examine, listen):
    """A server that answers https:// in plain HTTP fails at TLS, with advice of its own."""
    done, results, report = examine(listen(), jwt())
    assert (done, results) == (8, stopped_at("TLS"))
    assert "say http://" in report["advice"]


def test_a_real_server(examine, server):
    """A real server's answers find the step: good, expired, signed with another secret, read-only, no JWT."""
    user = make_user()
    assert examine(server.url, user.token)[0] == 0
    for token, step in (
        (make_user(lifetime=-100).token, "expiry"),
        (mint("another secret that is long enough, too", user.id, 60), "signature"),
        ("a-session-token", "well-formed"),
        (make_user(claims={"aud": "elsewhere"}).token, "audience"),
        (make_user(scope="tasks:write").token, "scope"),
        (mint(SECRET, user.id, 60, claims={"exp": None}), "expiry"),
    ):
        done, results, report = examine(server.url, token)
        assert (done, results) == (4, stopped_at(step)), report
