"""`taskctl.better_auth` against a real socket that answers by a script, for what a real one rarely says."""

import contextlib
import math
from collections.abc import Iterator

import pytest

from taskctl import errors
from taskctl.better_auth import BetterAuth
from test_client import FakeTime, Scripted, http, ok, problem

CODE = {
    "device_code": "device-secret",
    "user_code": "ABCD-1234",
    "verification_uri": "https://app.example.com/device",
    "verification_uri_complete": "https://app.example.com/device?user_code=ABCD-1234",
    "expires_in": 1800,
    "interval": 5,
}


def oauth(error: str, status: int = 400, words: str = "Words") -> bytes:
    """A refusal as OAuth has it."""
    return ok({"error": error, "error_description": words}, status)


GRANTED = ok({"access_token": "session-token", "token_type": "Bearer", "expires_in": 604800, "scope": ""})
PENDING = oauth("authorization_pending")


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


@pytest.fixture
def auth(server: Scripted, fake: FakeTime) -> Iterator[BetterAuth]:
    with BetterAuth(server.url, sleep=fake.sleep, clock=fake.clock) as made:
        yield made


def wait(auth: BetterAuth, server: Scripted, *answers: bytes, **changes: object) -> str:
    """Start a login and poll until it ends."""
    server.script = [ok(CODE | changes), *answers]
    return auth.wait_for_session(auth.start_login())


# Log in


def test_a_login_goes_over_the_wire_as_better_auth_reads_it(auth, server):
    """The code and the polls are asked for as JSON, without a token, on one connection."""
    assert wait(auth, server, PENDING, GRANTED) == "session-token"
    assert [seen.line.split()[:2] for seen in server.seen] == [
        ["POST", "/api/auth/device/code"],
        ["POST", "/api/auth/device/token"],
        ["POST", "/api/auth/device/token"],
    ]
    assert server.seen[0].json == {"client_id": "taskctl", "scope": "openid profile email"}
    assert server.seen[2].json == {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": "device-secret",
        "client_id": "taskctl",
    }
    assert {seen.headers["content-type"] for seen in server.seen} == {"application/json"}
    assert not any("authorization" in seen.headers for seen in server.seen)
    assert {seen.connection for seen in server.seen} == {1}


def test_another_client_id_is_used_throughout(auth, server):
    """The client that asks for the code is the one that polls for it."""
    server.script = [ok(CODE), GRANTED]
    auth.wait_for_session(auth.start_login("other"), "other")
    assert [seen.json["client_id"] for seen in server.seen] == ["other", "other"]


def test_the_code_is_as_it_was_sent(auth, server):
    """What is shown comes as sent; a relative address is the auth server's; repr hides the secret."""
    shorter = {
        name: value for name, value in CODE.items() if name not in {"verification_uri_complete", "interval"}
    }
    server.script = [ok(CODE), ok(shorter), ok(shorter | {"verification_uri": "/device"})]
    device = auth.start_login()
    assert (device.user_code, device.url_complete) == ("ABCD-1234", CODE["verification_uri_complete"])
    assert "secret" not in repr(device)
    device = auth.start_login()
    assert (device.url_complete, device.interval) == (CODE["verification_uri"], 5)
    assert auth.start_login().url_complete == f"{server.url}/device"


@pytest.mark.parametrize(
    ("path", "below"),
    [("", "/api/auth"), ("/", "/api/auth"), ("/api/auth", "/api/auth"), ("/auth/", "/auth")],
)
def test_a_path_is_the_base_path(server, path, below):
    """As in Better Auth's own base URL, a path says where its endpoints are; without one it is /api/auth."""
    server.script = [ok({"token": "jwt"})]
    with BetterAuth(server.url + path) as auth:
        assert auth.token("s") == "jwt"
    assert server.seen[0].line == f"GET {below}/token HTTP/1.1"


def test_polls_keep_the_interval_and_slow_down(auth, server, fake):
    """The interval passes before each poll; every slow_down makes it 5 s longer, for good."""
    slow = oauth("slow_down")
    wait(auth, server, PENDING, slow, PENDING, slow, GRANTED, interval=7)
    assert fake.slept == [7, 7, 12, 12, 17]


def test_an_interval_of_nothing_is_a_second(auth, server, fake):
    """A server that rounds its interval down to 0 is not flooded."""
    wait(auth, server, PENDING, GRANTED, interval=0)
    assert fake.slept == [1, 1]


def test_a_poll_that_is_cut_off_is_made_again(auth, server):
    """A lost connection, a proxy's 502 and a 429 do not end the wait."""
    assert wait(auth, server, b"", http(502), http(429), PENDING, b"", GRANTED) == "session-token"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (oauth("access_denied"), errors.LoginDenied),
        (oauth("expired_token"), errors.LoginExpired),
        (oauth("invalid_grant"), errors.LoginDenied),
        (oauth("access_denied", 403), errors.LoginDenied),
        (oauth("server_error", 500), errors.ServerFailed),
        (ok({"token": "x"}), errors.UnexpectedAnswer),
        (ok({"access_token": "two words"}), errors.UnexpectedAnswer),
        (ok({"access_token": "x" * 9000}), errors.UnexpectedAnswer),
        (ok({"access_token": 1}), errors.UnexpectedAnswer),
        (ok(["x"]), errors.UnexpectedAnswer),
        (http(200, b"<p>", Content_Type="text/html"), errors.UnexpectedAnswer),
        (http(415), errors.UnexpectedAnswer),
        (problem(403, "forbidden"), errors.Forbidden),
    ],
)
def test_how_a_wait_ends_without_a_session(auth, server, answer, error):
    """Denied, expired and answers that nobody understands each end the wait with their own error."""
    with pytest.raises(error):
        wait(auth, server, PENDING, answer)


def test_nobody_is_waited_for_longer_than_the_code_lasts(auth, server, fake):
    """A server that says pending for ever is asked until the code has expired, and a last time then."""
    with pytest.raises(errors.LoginExpired):
        wait(auth, server, *[PENDING] * 3, expires_in=12)
    assert fake.slept == [5, 5, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device_code", None),
        ("device_code", ""),
        ("device_code", "a b"),
        ("user_code", ["A"]),
        ("user_code", "A\x1b[2J"),
        ("user_code", "\u202e4321"),
        ("expires_in", "soon"),
        ("expires_in", None),
        ("expires_in", -1),
        ("expires_in", True),
        ("expires_in", math.nan),
        ("expires_in", 1e9),
        ("interval", -5),
        ("interval", "5"),
        ("interval", math.inf),
        ("verification_uri", "javascript:alert(1)"),
        ("verification_uri", "file:///etc/passwd"),
        ("verification_uri", "https://"),
        ("verification_uri", "https://[::1"),
        ("verification_uri_complete", "ssh://host"),
        ("verification_uri_complete", "https://a.example/\x1b[2J"),
    ],
)
def test_a_code_that_cannot_be_used(auth, server, name, value):
    """Members that are missing, of another type, or no web address are refused before anybody sees them."""
    server.script = [ok(CODE | {name: value})]
    with pytest.raises(errors.UnexpectedAnswer, match=f"no usable '{name}'"):
        auth.start_login()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (oauth("invalid_client"), errors.SettingsInvalid, "'taskctl'.*--client-id"),
        (http(404), errors.UnexpectedAnswer, "plugin deviceAuthorization"),
        (http(500), errors.ServerFailed, "failed"),
        (http(401, b"<p>", Content_Type="text/html"), errors.UnexpectedAnswer, "not be a Better Auth server"),
        (http(200, b"{", Content_Type="application/json"), errors.UnexpectedAnswer, "damaged"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", errors.UnexpectedAnswer, "not be a Better Auth server"),
    ],
)
def test_a_server_that_gives_no_code(auth, server, answer, error, words):
    """A client that is not known, a plugin that is not there, and other servers are told apart."""
    server.script = [answer] * 1000  # what looks like an accident is tried until the time is up
    with pytest.raises(error, match=words):
        auth.start_login()


# Whom to trust


def test_no_redirect_is_followed(auth, server):
    """A redirect to another origin, or to another path, is an error, and nothing is sent after it."""
    other = Scripted()
    try:
        for status, where in ((302, f"{other.url}/api/auth/token"), (307, other.url), (308, "/elsewhere")):
            server.script = [http(status, Location=where)] * 3
            for ask in (auth.token, auth.sign_out):
                with pytest.raises(errors.UnexpectedAnswer, match="No redirect is followed"):
                    ask("session-token")
            with pytest.raises(errors.UnexpectedAnswer, match="No redirect is followed"):
                auth.start_login()
        assert other.seen == []
        assert len(server.seen) == 9
    finally:
        other.close()


def test_plain_http_is_for_this_machine():
    """The session token goes to another machine over https only, unless that is allowed."""
    with pytest.raises(errors.SettingsInvalid, match="Plain HTTP"):
        BetterAuth("http://auth.example.com")
    BetterAuth("http://auth.example.com", allow_http=True)


def test_an_answer_without_end_is_not_read_to_it(auth, server):
    """More than a megabyte is refused, announced or not."""
    announced = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for answer in (announced, chunked + chunk * 20):
        server.script = [lambda answer=answer: answer]
        with (
            contextlib.suppress(ConnectionError),
            pytest.raises(errors.UnexpectedAnswer, match="more than 1048576 bytes"),
        ):
            auth.token("s")


def test_a_server_that_hangs_is_given_up(server):
    """No answer within the time is an error of its own."""
    with BetterAuth(server.url, timeout=0.2) as auth, pytest.raises(errors.ServerTimedOut):
        auth.start_login()


# Tokens and the end


def test_a_session_yields_tokens(auth, server):
    """The session token is the bearer, and the answer's token is the API's."""
    server.script = [ok({"token": "jwt"})]
    assert auth.token("session-token") == "jwt"
    assert server.seen[0].headers["authorization"] == "Bearer session-token"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (ok({"code": "UNAUTHORIZED", "message": "x"}, 401), errors.NotLoggedIn, "log in again"),
        (http(401), errors.NotLoggedIn, "log in again"),
        (http(404), errors.UnexpectedAnswer, "plugin jwt"),
        (ok({}), errors.UnexpectedAnswer, "no usable 'token'"),
        (http(204), errors.UnexpectedAnswer, "no object"),
        (http(503, Retry_After="99"), errors.ServerFailed, "503"),
        (http(429, Retry_After="99"), errors.RateLimited, "try again later"),
        (ok({"code": "BANNED", "message": "You\x1b[31m are banned."}, 403), errors.Forbidden, "are banned"),
    ],
)
def test_a_session_that_yields_none(auth, server, answer, error, words):
    """An ended session asks for a login; everything else says what it is."""
    server.script = [answer]
    with pytest.raises(error, match=words):
        auth.token("s")


def test_sign_out(auth, server):
    """A session that has ended already is signed out; a failure is one, and is not tried again."""
    server.script = [ok({"success": True}), http(401), http(503)]
    auth.sign_out("session-token")
    auth.sign_out("session-token")
    with pytest.raises(errors.ServerFailed):
        auth.sign_out("session-token")
    assert {seen.line for seen in server.seen} == {"POST /api/auth/sign-out HTTP/1.1"}
    assert {(seen.headers["authorization"], seen.body) for seen in server.seen} == {
        ("Bearer session-token", b"{}")
    }
