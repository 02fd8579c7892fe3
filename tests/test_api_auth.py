"""Tokens over HTTP: every refusal with its challenge, scopes, and whose tasks they are."""

import base64
import hmac
import json
import time
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI

from conftest import SECRET, User, client_of, make_settings, make_user
from taskctl.server.app import create_app

TASKS = "/api/v1/me/tasks"
NOW = int(time.time())
GOOD = {"sub": "somebody", "exp": NOW + 3600}

OPERATIONS = [
    ("GET", "", None),
    ("HEAD", "", None),
    ("POST", "", {"title": "x"}),
    ("GET", "/1", None),
    ("HEAD", "/1", None),
    ("PUT", "/1", {"title": "Stolen"}),
    ("PATCH", "/1", {"title": "Stolen"}),
    ("PATCH", "/1/complete", None),
    ("PATCH", "/1/complete", {"completed": False}),
    ("DELETE", "/1", None),
]
READS = [operation for operation in OPERATIONS if operation[0] in {"GET", "HEAD"}]
WRITES = [operation for operation in OPERATIONS if operation not in READS]


def sign(claims: dict[str, Any], secret: str = SECRET, **header: Any) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", headers=header)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def sign_anything(claims: dict[str, Any]) -> str:
    """As `sign`, for claims that PyJWT refuses to make a token of."""
    signing = f"{part({'alg': 'HS256'})}.{part(claims)}"
    signature = hmac.digest(SECRET.encode(), signing.encode(), "sha256")
    return f"{signing}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


async def get(app: FastAPI, token: str | None) -> httpx.Response:
    async with client_of(app) as client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await client.get(TASKS, headers=headers)


def assert_refused(answer: httpx.Response, code: str) -> None:
    """A 401 with this code and its challenge (RFC 6750, section 3)."""
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith("Bearer ")
    assert ('error="invalid_token"' in challenge) is (code != "token_missing")


REFUSED = [
    (sign(GOOD | {"exp": NOW - 3600}), "token_expired"),
    (sign(GOOD | {"exp": 0}), "token_expired"),
    (sign(GOOD | {"nbf": NOW + 3600}), "token_not_yet_valid"),
    (sign(GOOD, "another secret that is long enough to sign"), "token_signature_invalid"),
    (sign(GOOD)[:-8] + "AAAAAAAA", "token_signature_invalid"),
    (sign(GOOD).rpartition(".")[0] + ".", "token_signature_invalid"),
    (f"{part({'alg': 'none'})}.{part(GOOD)}.", "token_algorithm_not_allowed"),
    (f"{part({'alg': 'None'})}.{part(GOOD)}.AAAA", "token_algorithm_not_allowed"),
    (f"{part({'alg': 'hs256'})}.{part(GOOD)}.AAAA", "token_algorithm_not_allowed"),
    (f"{part({'alg': 'RS256', 'kid': 'x'})}.{part(GOOD)}.AAAA", "token_algorithm_not_allowed"),
    (f"{part({'alg': 'EdDSA', 'kid': 'x'})}.{part(GOOD)}.AAAA", "token_algorithm_not_allowed"),
    (jwt.encode(GOOD, SECRET * 2, algorithm="HS512"), "token_algorithm_not_allowed"),
    (sign(without("sub")), "token_claim_missing"),
    (sign(without("exp")), "token_claim_missing"),
    (sign(without("sub") | {"userId": "x", "email": "x@example.com"}), "token_claim_missing"),
    (sign(GOOD | {"aud": "somebody-else"}), "token_audience_wrong"),
    ("x", "token_malformed"),
    ("x.y", "token_malformed"),
    ("x.y.z", "token_malformed"),
    ("....", "token_malformed"),
    (f"{part({'alg': 'HS256'})}.{part([])}.AAAA", "token_malformed"),
    (f"{part({})}.{part(GOOD)}.AAAA", "token_malformed"),
    (f"{part({'alg': 1})}.{part(GOOD)}.AAAA", "token_malformed"),
    (sign(GOOD) + "=", "token_malformed"),
    (sign(GOOD) + ".x", "token_malformed"),
    (sign(GOOD) + " x", "token_malformed"),
    (sign(GOOD, crit=["x"]), "token_malformed"),
    (sign(GOOD | {"x": "y" * 8192}), "token_malformed"),
    (sign(GOOD | {"exp": "never"}), "token_malformed"),
    (sign(GOOD | {"exp": True}), "token_malformed"),
    (sign(GOOD | {"scope": ["tasks:read"]}), "token_malformed"),
    (sign(GOOD | {"sub": "u" * 256}), "token_malformed"),
    (sign(GOOD | {"sub": "a\nb"}), "token_malformed"),
    (sign(GOOD | {"sub": "a\x00b"}), "token_malformed"),
    (sign(GOOD | {"sub": "a\x85b"}), "token_malformed"),
    (sign(GOOD | {"sub": "a\ud800b"}), "token_malformed"),
]


@pytest.mark.parametrize(
    ("token", "code"), REFUSED, ids=[f"{i}-{code}" for i, (_, code) in enumerate(REFUSED)]
)
async def test_bad_token(app: FastAPI, token: str, code: str) -> None:
    """Each thing that can be wrong with a token is 401 with its code, and the answer does not repeat it."""
    answer = await get(app, token)
    assert_refused(answer, code)
    assert len(token) < 8 or token not in answer.text


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        ("", "token_claim_missing"),
        (None, "token_claim_missing"),
        (1, "token_malformed"),
        (True, "token_malformed"),
        (["x"], "token_malformed"),
        ({"x": 1}, "token_malformed"),
    ],
)
async def test_bad_subject(app: FastAPI, subject: Any, code: str) -> None:
    """A `sub` that says nothing is missing, and one that is not text is malformed."""
    assert_refused(await get(app, sign_anything(GOOD | {"sub": subject})), code)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Token {good}",
        "{good}",
        "BearerX {good}",
        "Digest x",
    ],
)
async def test_missing_token(app: FastAPI, user: User, value: str | None) -> None:
    """No header, another scheme and a scheme without a token are a missing token."""
    headers = {} if value is None else {"Authorization": value.format(good=user.token)}
    async with client_of(app) as client:
        answer = await client.get(TASKS, headers=headers)
    assert_refused(answer, "token_missing")
    assert "error" not in answer.headers["www-authenticate"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_scheme_ignores_case(app: FastAPI, user: User, scheme: str) -> None:
    """The scheme's name is case-insensitive (RFC 9110, section 11.1)."""
    async with client_of(app) as client:
        answer = await client.get(TASKS, headers={"Authorization": f"{scheme} {user.token}"})
    assert answer.status_code == 200


async def test_two_authorization_headers(app: FastAPI, user: User) -> None:
    """Two `Authorization` headers are malformed, even when they are the same."""
    both = [("Authorization", f"Bearer {user.token}")] * 2
    async with client_of(app) as client:
        assert_refused(await client.get(TASKS, headers=both), "token_malformed")


@pytest.mark.parametrize("name", ["access_token", "token", "Authorization"])
async def test_token_in_the_query_is_never_read(app: FastAPI, user: User, name: str) -> None:
    """A good token in the query string signs nobody in."""
    async with client_of(app) as client:
        answer = await client.get(TASKS, params={name: user.token})
    assert_refused(answer, "token_missing")
    assert user.token not in answer.text


@pytest.mark.parametrize(("method", "suffix", "body"), OPERATIONS)
@pytest.mark.parametrize("owner", ["me", "somebody"])
async def test_every_operation_needs_a_token(
    app: FastAPI, owner: str, method: str, suffix: str, body: Any
) -> None:
    """Nothing under `/api` is done without a token, or with a wrong one."""
    async with client_of(app) as client:
        for headers in ({}, {"Authorization": "Bearer x"}):
            answer = await client.request(
                method, f"/api/v1/{owner}/tasks{suffix}", json=body, headers=headers
            )
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize(
    ("variables", "claims", "code"),
    [
        ({"TASKCTL_JWT_ISSUERS": "https://a.example"}, {"iss": "https://b.example"}, "token_issuer_wrong"),
        ({"TASKCTL_JWT_ISSUERS": "https://a.example"}, {"iss": "https://a.example/"}, "token_issuer_wrong"),
        ({"TASKCTL_JWT_ISSUERS": "https://a.example"}, {}, "token_claim_missing"),
        ({"TASKCTL_JWT_ISSUERS": "https://a.example"}, {"iss": 1}, "token_malformed"),
        ({"TASKCTL_JWT_AUDIENCES": "taskctl"}, {"aud": "other"}, "token_audience_wrong"),
        ({"TASKCTL_JWT_AUDIENCES": "taskctl"}, {"aud": ["other", "more"]}, "token_audience_wrong"),
        ({"TASKCTL_JWT_AUDIENCES": "taskctl"}, {"aud": []}, "token_audience_wrong"),
        ({"TASKCTL_JWT_AUDIENCES": "taskctl"}, {}, "token_claim_missing"),
        ({"TASKCTL_JWT_AUDIENCES": "taskctl"}, {"aud": [1]}, "token_malformed"),
    ],
)
async def test_issuer_and_audience(
    database_url: str, variables: dict[str, str], claims: dict[str, Any], code: str
) -> None:
    """Where issuers or audiences are configured, a token must carry an accepted one."""
    application = create_app(make_settings(database_url, **variables))
    assert_refused(await get(application, sign_anything(GOOD | claims)), code)


async def test_previous_secret_still_verifies(database_url: str) -> None:
    """Tokens signed with a previous secret are accepted while it is configured."""
    previous = "the previous secret that is long enough"
    token = sign(GOOD, previous)
    application = create_app(make_settings(database_url, BETTER_AUTH_SECRET_PREVIOUS=previous))
    async with application.router.lifespan_context(application):
        assert (await get(application, token)).status_code == 200


@pytest.mark.parametrize("offset", [-20, 20])
async def test_clock_difference_is_allowed(app: FastAPI, offset: int) -> None:
    """A token that expired, or becomes valid, within the leeway is accepted."""
    claim = {"exp" if offset < 0 else "nbf": int(time.time()) + offset}
    assert (await get(app, sign(GOOD | claim))).status_code == 200


@pytest.mark.parametrize(
    ("scope", "reads", "writes"),
    [
        (None, True, True),
        ("tasks:read", True, False),
        ("tasks:write", False, True),
        ("tasks:read tasks:write", True, True),
        ("openid tasks:read email", True, False),
        ("", False, False),
        (" ", False, False),
        ("tasks", False, False),
        ("TASKS:READ", False, False),
        ("tasks:read,tasks:write", False, False),
        ("tasks:*", False, False),
    ],
)
async def test_scopes(app: FastAPI, scope: str | None, reads: bool, writes: bool) -> None:
    """A scope narrows what a token may do; what it may not is 403 with a challenge that names the scope."""
    owner = make_user()
    user = make_user(owner.id, scope=scope)
    async with client_of(app) as client:
        for operations, allowed, needed in ((READS, reads, "tasks:read"), (WRITES, writes, "tasks:write")):
            for method, suffix, body in operations:
                answer = await client.request(method, TASKS + suffix, json=body, headers=user.headers)
                assert (answer.status_code != 403) is allowed
                if not allowed:
                    challenge = answer.headers["www-authenticate"]
                    assert challenge.startswith("Bearer ")
                    assert 'error="insufficient_scope"' in challenge
                    assert f'scope="{needed}"' in challenge
                    assert method == "HEAD" or answer.json()["code"] == "insufficient_scope"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("exists", [True, False])
async def test_not_your_tasks(
    app: FastAPI, api: httpx.AsyncClient, operation: tuple[str, str, Any], exists: bool
) -> None:
    """Another user's tasks are 403, word for word the same whether or not the user or the task exists."""
    method, suffix, body = operation
    owner = make_user()
    async with client_of(app) as client:
        client.headers.update(owner.headers)
        if exists:
            await client.post(TASKS, json={"title": "Mine"})
        path = f"/api/v1/{owner.id}/tasks{suffix}"
        answer = await api.request(method, path, json=body, headers={"X-Request-ID": "same"})
        assert answer.status_code == 403
        if method != "HEAD":
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json() == {
                "type": "/errors/not_your_tasks",
                "title": "The user in the path is not the user of the token.",
                "status": 403,
                "detail": answer.json()["detail"],
                "instance": path,
                "code": "not_your_tasks",
                "request_id": "same",
            }
            nobody = await api.request(method, f"/api/v1/nobody/tasks{suffix}", json=body)
            assert answer.json()["detail"] == nobody.json()["detail"]
        left = (await client.get(TASKS)).json()["items"]
        assert [task["title"] for task in left] == (["Mine"] if exists else [])


@pytest.mark.parametrize("scope", ["", "tasks:read"])
async def test_owner_comes_before_the_scope(app: FastAPI, scope: str) -> None:
    """With both wrong, the owner is what is told."""
    async with client_of(app) as client:
        answer = await client.post(
            "/api/v1/other/tasks", json={"title": "x"}, headers=make_user(scope=scope).headers
        )
    assert (answer.status_code, answer.json()["code"]) == (403, "not_your_tasks")
