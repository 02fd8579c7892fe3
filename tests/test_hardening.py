"""What protects the server and its users: security headers, the host check, and the events of refusals."""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from conftest import SECRET, Server, client_of, make_settings, make_user, until
from taskctl import __version__
from taskctl.server.app import create_app

TASKS = "/api/v1/me/tasks"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", TASKS),
        ("GET", f"{TASKS}/99"),
        ("POST", TASKS),
        ("HEAD", TASKS),
        ("GET", "/livez"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/docs/assets/swagger-ui.css"),
        ("GET", "/openapi.json"),
        ("GET", "/errors/task_not_found"),
        ("GET", "/nowhere"),
        ("OPTIONS", TASKS),
    ],
)
async def test_no_answer_is_sniffed(api: httpx.AsyncClient, method: str, path: str) -> None:
    """Every answer, errors and files included, is to be taken for the type that it states."""
    answer = await api.request(method, path)
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


def directives(answer: httpx.Response) -> dict[str, list[str]]:
    """The Content-Security-Policy of a page."""
    policy = answer.headers["content-security-policy"]
    return {words[0]: words[1:] for words in (part.split() for part in policy.split(";"))}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/errors/task_not_found"])
async def test_pages_may_do_little(api: httpx.AsyncClient, path: str) -> None:
    """A page may load nothing from elsewhere, run no script that was put into it, and be framed nowhere."""
    policy = directives(await api.get(path))
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == ["'none'"]
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*"} & set(policy.get("script-src", []))
    assert not re.search(r"https?:", str(policy))


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_documentation_works_under_its_policy(api: httpx.AsyncClient, path: str) -> None:
    """Each script, style, icon and file of the documentation is allowed by its page's policy."""
    page = await api.get(path)
    policy = directives(page)
    scripts = re.findall(r"(?s)<script(?: src=\"([^\"]*)\")?>(.*?)</script>", page.text)
    assert scripts
    for source, text in scripts:
        if source:
            assert source.startswith("/")
            assert "'self'" in policy["script-src"]
            assert (await api.get(source)).headers["content-type"].startswith("text/javascript")
        else:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy["script-src"]
    for link in re.findall(r"<link[^>]* href=\"([^\"]*)\"", page.text):
        assert link.startswith(("/", "data:"))
    assert {"'self'", "'unsafe-inline'"} <= set(policy["style-src"])
    assert "data:" in policy["img-src"]
    assert policy["connect-src"] == ["'self'"]
    assert path == "/docs" or policy["worker-src"] == ["blob:"]
    assert not re.search(r"\son\w+=", page.text)


# Hosts


@pytest.fixture(scope="module")
async def guarded(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that goes by two names."""
    variables = {
        "TASKCTL_ALLOWED_HOSTS": "tasks.example.com, *.example.org, [::1]",
        "TASKCTL_CORS_ORIGINS": "https://app.test",
    }
    application = create_app(make_settings(database_url, **variables))
    async with application.router.lifespan_context(application), client_of(application) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "tasks.example.com",
        "TASKS.example.com:8443",
        "tasks.example.com:",
        "a.example.org",
        "a.b.example.org:80",
        "[::1]:8000",
    ],
)
async def test_own_hosts_are_served(guarded: httpx.AsyncClient, host: str) -> None:
    """A request to one of the allowed names is served, whatever its port and case."""
    answer = await guarded.get(TASKS, headers=make_user().headers | {"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "tasks.example.com.evil.test",
        "example.org",
        "xexample.org",
        "tasks.example.com@evil.test",
        "tasks.example.com:80:80",
        "tasks.example.com.",
        "",
        "[::2]",
    ],
)
async def test_other_hosts_are_refused(guarded: httpx.AsyncClient, host: str) -> None:
    """A request to any other name is a 400 problem, before anything is looked at."""
    for method, headers in (("GET", {}), ("OPTIONS", {"Origin": "https://app.test"})):
        answer = await guarded.request(method, TASKS, headers=headers | {"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"]


async def test_two_hosts_are_refused(guarded: httpx.AsyncClient) -> None:
    """A request with two Host headers is refused."""
    headers = [("Host", "tasks.example.com"), ("Host", "evil.test")]
    assert (await guarded.get(TASKS, headers=headers)).status_code == 400


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
async def test_probes_ask_an_address(guarded: httpx.AsyncClient, path: str) -> None:
    """Probes and Prometheus, which ask an address, are served under any name."""
    assert (await guarded.get(path, headers={"Host": "10.0.0.7:8000"})).status_code == 200


async def test_any_host_by_default(api: httpx.AsyncClient) -> None:
    """Without the setting every name is served."""
    assert (await api.get(TASKS, headers={"Host": "whatever.test"})).status_code == 200


# A server behind a socket


@pytest.fixture(scope="module")
def strict(start_server: Callable[..., Server], database_url: str) -> Server:
    """A server that logs JSON and has limits."""
    return start_server(
        TASKCTL_ENV="test",
        DATABASE_URL=database_url,
        BETTER_AUTH_SECRET=SECRET,
        TASKCTL_LOG_FORMAT="json",
        TASKCTL_RATE_LIMIT="2/hour",
    )


def events(server: Server, request_id: str) -> dict[str, dict[str, Any]]:
    """The events of a request, once that of the request itself is there."""

    def written() -> dict[str, dict[str, Any]]:
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if request_id in line]
        return {event["event"]: event for event in lines}

    found: dict[str, dict[str, Any]] = until(lambda: (seen := written()) and "request" in seen and seen)
    return found


@pytest.mark.parametrize("path", [TASKS, "/livez", "/docs", "/metrics", "/nowhere"])
def test_headers_name_no_version(strict: Server, path: str) -> None:
    """No header tells what the server is made of, or which version of it."""
    headers = httpx.get(strict.url + path).headers
    text = str(headers).lower()
    assert "server" not in headers
    assert "x-powered-by" not in headers
    assert not [word for word in ("uvicorn", "python", "fastapi", "starlette", __version__) if word in text]


REFUSED = make_user("refused-user", lifetime=-3600)


def forged(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token with nobody's signature."""
    parts = (json.dumps(part).encode() for part in (header, claims))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + ".c2ln"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (None, {"code": "token_missing"}),
        ("opaque-session-token", {"code": "token_malformed", "sub_unverified": None}),
        (REFUSED.token, {"code": "token_expired", "sub_unverified": "refused-user", "alg": "HS256"}),
        (
            forged({"alg": "EdDSA", "kid": "key-1"}, {"sub": "somebody", "exp": 1}),
            {
                "code": "token_algorithm_not_allowed",
                "sub_unverified": "somebody",
                "kid": "key-1",
                "alg": "EdDSA",
            },
        ),
        (
            forged({"alg": "HS256", "kid": ["x" * 500]}, {"sub": "a\n\x1b[31mb" + "c" * 500, "exp": 1}),
            {"code": "token_signature_invalid", "alg": "HS256"},
        ),
    ],
    ids=["none", "opaque", "expired", "other algorithm", "hostile"],
)
def test_refusals_are_events(strict: Server, token: str | None, expected: dict[str, Any]) -> None:
    """A refusal is an event: code, what the token says of itself, client and request id; never the token."""
    headers = {"X-Request-ID": f"refusal-{expected['code']}"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    assert httpx.get(strict.url + TASKS, headers=headers).status_code == 401
    event = events(strict, headers["X-Request-ID"])["auth_refused"]
    assert expected.items() <= event.items()
    assert event["client"] == "127.0.0.1"
    assert len(json.dumps(event)) < 600
    assert "sub" not in event
    if token is not None:
        log = strict.log.read_text()
        assert not [part for part in token.split(".") if len(part) > 5 and part in log]


def test_what_a_good_token_may_not_do_is_an_event(strict: Server) -> None:
    """A refusal of a good token names its user, who is verified, and what it was signed with."""
    user = make_user(scope="tasks:read")
    for path, method, code in (
        ("/api/v1/somebody-else/tasks", "GET", "not_your_tasks"),
        (TASKS, "POST", "insufficient_scope"),
    ):
        headers = user.headers | {"X-Request-ID": f"forbidden-{code}"}
        assert httpx.request(method, strict.url + path, headers=headers).status_code == 403
        event = events(strict, f"forbidden-{code}")["auth_refused"]
        assert (event["code"], event["sub"]) == (code, user.id)
        assert (event["kid"], event["alg"]) == (None, "HS256")


def test_acceptances_and_limits_are_in_the_event_of_the_request(strict: Server) -> None:
    """A token is told of once, when it is verified; after that the request's event has the user."""
    user = make_user()
    for number, status in enumerate((200, 200, 429)):
        headers = user.headers | {"X-Request-ID": f"accepted-{number}"}
        assert httpx.get(strict.url + TASKS, headers=headers).status_code == status
        found = events(strict, f"accepted-{number}")
        assert found.keys() == ({"request"} if number else {"request", "auth_accepted"})
        assert (found["request"]["user_id"], found["request"]["status"]) == (user.id, status)
    told = events(strict, "accepted-0")["auth_accepted"]
    assert told["client"] == "127.0.0.1"
    assert {name: told[name] for name in ("code", "sub", "kid", "alg", "trust")} == {
        "code": "accepted",
        "sub": user.id,
        "kid": None,
        "alg": "HS256",
        "trust": "secret",
    }
