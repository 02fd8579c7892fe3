"""Real tokens: what Better Auth issues, and what a `taskctl serve` that trusts it makes of that."""

import re
import ssl
import uuid
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest

from better_auth import DEVICE_GRANT, PASSWORD, waiting_login
from conftest import SECRET, bare_environ, free_port, taskctl, until
from taskctl import contexts
from taskctl.tokens import mint

TASKS = "/api/v1/me/tasks"

_no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def ask(server, token, method="GET", path=TASKS, **options):
    """Call the API with a token."""
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.request(
        method, server.url + path, headers=headers, trust_env=False, verify=_no_tls, **options
    )


def outcome(answer):
    """The status of an answer, and its error code or None."""
    return answer.status_code, answer.json().get("code")


@pytest.fixture(scope="module")
def trusting(start_server, database_url):
    """Start a `taskctl serve` that trusts the Better Auth at this URL."""

    def start(url, **variables):
        return start_server(TASKCTL_ENV="test", DATABASE_URL=database_url, BETTER_AUTH_URL=url, **variables)

    return start


@pytest.fixture(scope="module")
def insider(start_better_auth, trusting):
    """A Better Auth that signs its cookies with its keys, and a server that was given its secret too.

    Its tokens last a second, so `taskctl` replaces them before every use; the server's leeway is longer.
    """
    issuer = start_better_auth(
        BETTER_AUTH_SECRET=SECRET, AUTH_COOKIE_CACHE="keys", JWT_LIFETIME="1s", DEVICE_INTERVAL="1s"
    )
    return issuer, trusting(issuer.url, BETTER_AUTH_SECRET=SECRET)


@pytest.fixture(scope="module")
def follower(trusting):
    """A server that trusts whichever Better Auth is at a URL, which has a path of its own; and that URL."""
    url = f"http://127.0.0.1:{free_port()}/identity"
    return trusting(url), url


@pytest.fixture
def followed(follower, start_better_auth):
    """Start the next Better Auth that the follower trusts."""
    _, url = follower
    started = []

    def start(**variables):
        started.append(start_better_auth(PORT=str(urlsplit(url).port), BETTER_AUTH_URL=url, **variables))
        return started[-1]

    yield start
    for issuer in started:
        issuer.stop()


def is_short(user_id):
    """Better Auth's own ids: 32 letters and digits."""
    return re.fullmatch(r"[A-Za-z0-9]{32}", user_id)


def is_uuid(user_id):
    """Ids such as PostgreSQL makes."""
    return str(uuid.UUID(user_id)) == user_id


def is_number(user_id):
    """Ids that a database counts."""
    return user_id == "1"


@pytest.mark.parametrize(
    ("algorithm", "ids", "looks_right"),
    [
        ("EdDSA", "", is_short),
        ("ES256", "uuid", is_uuid),
        ("ES512", "serial", is_number),
        ("RS256", "", is_short),
        ("PS256", "uuid", is_uuid),
    ],
)
def test_every_algorithm_and_kind_of_id(follower, followed, algorithm, ids, looks_right):
    """Whatever Better Auth signs with from now on, and whatever its ids are, users have their own tasks."""
    server, _ = follower
    issuer = followed(JWT_ALGORITHM=algorithm, AUTH_IDS=ids)
    account, other = issuer.sign_up(), issuer.sign_up()
    token, of_other = issuer.token(account), issuer.token(other)
    assert looks_right(account.id)
    assert jwt.get_unverified_header(token)["alg"] == algorithm
    created = ask(server, token, "POST", json={"title": "Buy milk"})
    assert (created.status_code, created.json()["user_id"]) == (201, account.id)
    # Other tests, too, have users called 1 and 2.
    assert created.json() in ask(server, token).json()["items"]
    assert created.json() not in ask(server, of_other).json()["items"]
    assert ask(server, of_other, path=f"/api/v1/{account.id}/tasks").status_code == 403
    tampered = token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBA")
    assert outcome(ask(server, tampered)) == (401, "token_signature_invalid")


def test_claims_of_ones_own(follower, followed):
    """A payload of one's own may leave out who the user is, and narrow what the token is good for."""
    server, _ = follower
    issuer = followed(JWT_SCOPE="tasks:read")
    token = issuer.token(issuer.sign_up())
    assert "email" not in jwt.decode(token, options={"verify_signature": False})
    assert ask(server, token).status_code == 200
    assert outcome(ask(server, token, "POST", json={"title": "Buy milk"})) == (403, "insufficient_scope")


def key_of(token):
    """The id of the key that signed a token."""
    return jwt.get_unverified_header(token)["kid"]


def test_new_key_signs_at_once(follower, followed):
    """The first token of a new key works, although nobody had seen the key; tokens of the old key go on."""
    server, _ = follower
    issuer = followed(JWKS_ROTATION="1")
    account = issuer.sign_up()
    old, unused = issuer.token(account), issuer.token(account)
    assert ask(server, old).status_code == 200

    def of_a_new_key():
        token = issuer.token(account)
        return token if key_of(token) != key_of(old) else None

    new = until(of_a_new_key)
    assert [ask(server, token).status_code for token in (new, old, unused)] == [200, 200, 200]


def test_issuer_that_comes_and_goes(better_auth_pair, start_better_auth, trusting):
    """Without its keys no token is at fault; once fetched they serve on, until others replace them."""
    stranger, _ = better_auth_pair
    foreign = stranger.token(stranger.sign_up())
    port = free_port()
    settings = {"PORT": str(port), "AUTH_IDS": "serial", "JWKS_PATH": "/keys.json"}
    url = f"http://127.0.0.1:{port}"
    keys = {"TASKCTL_JWKS_URL": f"{url}/api/auth/keys.json", "TASKCTL_JWKS_MAX_AGE": "1"}
    server = trusting(url, BETTER_AUTH_SECRET=SECRET, **keys)

    answer = ask(server, foreign)
    assert outcome(answer) == (503, "auth_keys_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert ask(server, mint(SECRET, "by-hand", 60)).status_code == 200
    assert ask(server, foreign, path="/readyz").status_code == 200

    issuer = start_better_auth(**settings)
    seen, unseen = issuer.token(issuer.sign_up()), issuer.token(issuer.sign_up())
    until(lambda: ask(server, seen).status_code == 200)
    assert outcome(ask(server, foreign)) == (401, "token_key_unknown")

    issuer.stop()
    until(lambda: ask(server, seen, path="/health").json()["key_set"]["state"] == "stale")
    assert [ask(server, token).status_code for token in (seen, unseen)] == [200, 200]
    assert outcome(ask(server, foreign)) == (401, "token_key_unknown")
    assert ask(server, foreign, path="/readyz").status_code == 200

    successor = start_better_auth(**settings)
    new = successor.token(successor.sign_up())
    assert key_of(new) == key_of(seen) == "1"
    assert ask(server, new).status_code == 200
    assert [outcome(ask(server, token)) for token in (seen, unseen)] == [(401, "token_signature_invalid")] * 2


def test_link_in_a_mail_is_no_token(insider):
    """The JWT in the link that confirms an address is signed with the secret; it says nobody's `sub`."""
    issuer, server = insider
    account = issuer.sign_up()
    [link] = re.findall(rf"Mail to {re.escape(account.email)}: (\S+)", issuer.log.read_text())
    [token] = parse_qs(urlsplit(link).query)["token"]
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert claims["email"] == account.email
    assert outcome(ask(server, token)) == (401, "token_claim_missing")


def cookie_of(issuer, account):
    """The token that Better Auth keeps in a browser's cookie, to be asked for the session less often."""
    body = {"email": account.email, "password": PASSWORD}
    return issuer.ask("POST", "/sign-in/email", json=body).cookies["better-auth.session_data"]


def test_cookie_signed_with_the_keys_is_no_token(insider):
    """It has a `sub`, the right issuer and a published key, but is meant for somebody else: `aud`."""
    issuer, server = insider
    account = issuer.sign_up()
    token = cookie_of(issuer, account)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["iss"]) == (account.id, issuer.url)
    good = issuer.token(account)
    assert key_of(token) == key_of(good)
    assert ask(server, good).status_code == 200
    assert outcome(ask(server, token)) == (401, "token_audience_wrong")


def test_cookie_signed_with_the_secret_is_no_token(insider, start_better_auth):
    """It verifies with the secret and names the user, but not in `sub`."""
    _, server = insider
    issuer = start_better_auth(BETTER_AUTH_SECRET=SECRET, AUTH_COOKIE_CACHE="secret")
    account = issuer.sign_up()
    token = cookie_of(issuer, account)
    assert jwt.decode(token, SECRET, algorithms=["HS256"])["user"]["id"] == account.id
    assert outcome(ask(server, token)) == (401, "token_claim_missing")


def test_session_token_is_no_token(better_auth_pair):
    """The session's own token is refused, in both of the forms that Better Auth gives it, with what to do."""
    issuer, server = better_auth_pair
    account = issuer.sign_up()
    body = {"email": account.email, "password": PASSWORD}
    signed = issuer.ask("POST", "/sign-in/email", json=body).headers["set-auth-token"]
    assert issuer.ask("GET", "/token", signed).status_code == 200
    for session in (account.session, signed):
        answer = ask(server, session)
        assert outcome(answer) == (401, "token_malformed")
        assert "/api/auth/token" in answer.json()["detail"]


def test_token_outlives_the_sign_out(better_auth_pair):
    """Signing out ends the session, which gets no new token; the token that was given out stays good."""
    issuer, server = better_auth_pair
    account = issuer.sign_up()
    token = issuer.token(account)
    issuer.ask("POST", "/sign-out", account.session, json={}).raise_for_status()
    assert issuer.ask("GET", "/token", account.session).status_code == 401
    assert ask(server, token).status_code == 200


def test_device_flow_by_hand(better_auth_pair):
    """What `taskctl login` relies on: each answer of Better Auth on the way from a code to a task."""
    issuer, server = better_auth_pair
    account = issuer.sign_up()
    code = issuer.ask("POST", "/device/code", json={"client_id": "taskctl"}).raise_for_status().json()
    assert code["verification_uri"] == f"{issuer.url}/device"
    assert code["verification_uri_complete"] == f"{issuer.url}/device?user_code={code['user_code']}"
    assert (code["interval"], code["expires_in"]) == (1, 1800)
    question = {"grant_type": DEVICE_GRANT, "device_code": code["device_code"], "client_id": "taskctl"}

    assert issuer.ask("POST", "/device/token", data=question).status_code == 415

    def poll():
        answer = issuer.ask("POST", "/device/token", json=question)
        return answer.json() if answer.status_code == 200 else answer.json()["error"]

    assert poll() == "authorization_pending"
    until(lambda: poll() == "slow_down")
    issuer.decide(account, code["user_code"])

    session = until(lambda: said if "access_token" in (said := poll()) else None)["access_token"]
    assert "." not in session
    assert session != account.session
    token = issuer.ask("GET", "/token", session).raise_for_status().json()["token"]
    assert issuer.ask("GET", "/token", token).status_code == 401
    assert ask(server, token, "POST", json={"title": "Buy milk"}).json()["user_id"] == account.id
    assert poll() == "invalid_grant"


@pytest.mark.parametrize(
    ("client", "error"), [("taskctl", "access_denied"), ("somebody-else", "invalid_client")]
)
def test_device_flow_refused(better_auth_pair, client, error):
    """A program that was denied, or that Better Auth does not know, is told so."""
    issuer, _ = better_auth_pair
    answer = issuer.ask("POST", "/device/code", json={"client_id": client})
    if answer.status_code == 200:
        code = answer.json()
        issuer.decide(issuer.sign_up(), code["user_code"], "deny")
        question = {"grant_type": DEVICE_GRANT, "device_code": code["device_code"], "client_id": client}
        answer = issuer.ask("POST", "/device/token", json=question)
    assert (answer.status_code, answer.json()["error"]) == (400, error)


@pytest.fixture
def environ(tmp_path):
    """The environment of somebody who has not logged in yet."""
    return bare_environ(tmp_path, TASKCTL_CONFIG_DIR=str(tmp_path / "config"))


def current(environ):
    """What is stored of the login."""
    stored = contexts.load(environ)
    return stored.get(stored.current)


def test_login_renews_its_token_until_it_is_revoked(insider, environ):
    """A token near its end is replaced unnoticed; once the session is revoked, that end is the login's."""
    issuer, server = insider
    account = issuer.sign_up()
    with waiting_login(server.url, issuer.url, environ) as login:
        issuer.decide(account, login.user_code)
        code, said = login.end()
    assert (code, f" as {account.email} " in said) == (0, True), said
    first = current(environ).token

    def renewed():
        assert taskctl("tasks", "list", environ=environ).code == 0
        return current(environ).token != first

    until(renewed)
    issuer.ask("POST", "/revoke-sessions", account.session, json={}).raise_for_status()

    def refused():
        done = taskctl("tasks", "list", environ=environ)
        return done if done.code else None

    done = until(refused)
    assert (done.code, "taskctl login --context" in done.err) == (4, True)
