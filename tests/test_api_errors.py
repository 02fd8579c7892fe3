"""Errors: the problem document of every path, and the order in which a request is checked."""

import re
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from conftest import User, client_of, make_user
from taskctl import errors, models

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"

EXTRA = {"validation_failed": {"errors"}, "version_conflict": {"current_version"}}
"""Members of a problem beyond the usual ones, by code."""


async def make(api: httpx.AsyncClient) -> None:
    assert (await api.post(TASKS, json={"title": "x"})).status_code == 201


async def ask(
    app: FastAPI, method: str, path: str, headers: dict[str, str], receive: Any = None
) -> tuple[int, dict[str, str], bytes]:
    """One request as a server hands it to the application, its body as the test has it."""
    sent: list[Message] = []

    async def untouched() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("taskctl.test", 80),
    }
    await app(scope, receive or untouched, send)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    ("method", "path", "options", "code"),
    [
        ("GET", "/nowhere", {}, "route_not_found"),
        ("GET", "/", {}, "route_not_found"),
        ("GET", "/api/v1/ada", {}, "route_not_found"),
        ("GET", "/api/v2/me/tasks", {}, "route_not_found"),
        ("GET", "/api/v1/%C3%A9/x%20y", {}, "route_not_found"),
        ("GET", "/errors/no_such_code", {}, "route_not_found"),
        ("GET", "/docs/assets/nothing.js", {}, "route_not_found"),
        ("GET", "/docs/assets/%00", {}, "route_not_found"),
        ("GET", "/docs/assets/..%2f..%2fpyproject.toml", {}, "route_not_found"),
        ("POST", "/livez", {}, "method_not_allowed"),
        ("DELETE", "/readyz", {}, "method_not_allowed"),
        ("PUT", "/health", {}, "method_not_allowed"),
        ("POST", "/openapi.json", {}, "method_not_allowed"),
        ("POST", "/docs", {}, "method_not_allowed"),
        ("POST", "/redoc", {}, "method_not_allowed"),
        ("POST", "/errors/bad_request", {}, "method_not_allowed"),
        ("POST", "/docs/assets/swagger-ui.css", {}, "method_not_allowed"),
        ("OPTIONS", TASKS, {}, "method_not_allowed"),
        ("MADEUP", TASKS, {}, "method_not_allowed"),
        ("DELETE", TASKS, {}, "method_not_allowed"),
        ("GET", TASKS, {"headers": {"Authorization": ""}}, "token_missing"),
        ("GET", TASKS, {"headers": {"Authorization": "Bearer x"}}, "token_malformed"),
        ("GET", "/api/v1/other/tasks", {}, "not_your_tasks"),
        ("POST", TASKS, {"content": b"{"}, "bad_request"),
        ("GET", TASKS, {"params": {"cursor": "x"}}, "bad_request"),
        ("POST", TASKS, {"content": b"x" * 262_145}, "body_too_large"),
        (
            "POST",
            TASKS,
            {"content": b"x", "headers": {"Content-Type": "text/plain"}},
            "unsupported_media_type",
        ),
        ("POST", TASKS, {"json": {}}, "validation_failed"),
        ("GET", TASKS, {"params": {"x": "1"}}, "validation_failed"),
        ("GET", f"{TASKS}/2", {}, "task_not_found"),
        ("DELETE", TASK, {"headers": {"If-Match": '"9"'}}, "version_conflict"),
    ],
)
async def test_problem_document(
    api: httpx.AsyncClient, method: str, path: str, options: dict[str, Any], code: str
) -> None:
    """Every error of every path is a problem document with exactly the members that the contract names."""
    await make(api)
    answer = await api.request(method, path, **options)
    problem = answer.json()
    error = errors.by_code(code)
    assert error is not None
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code
    assert answer.status_code == problem["status"] == error.status
    assert problem["type"] == f"/errors/{code}"
    assert problem["title"] == error.title()
    assert problem["detail"]
    assert problem["instance"] == path
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem.keys() == {
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "code",
        "request_id",
    } | EXTRA.get(code, set())
    models.Problem.model_validate(problem)
    if code == "method_not_allowed":
        assert re.fullmatch(r"[A-Z]+(, [A-Z]+)*", answer.headers["allow"])
        assert method not in answer.headers["allow"].split(", ")
    if path.startswith("/api"):
        assert answer.headers["cache-control"] == "no-store"


async def test_validation_error_names_everything_wrong(api: httpx.AsyncClient) -> None:
    """A 422 has one entry for each thing that is wrong, with its place, a sentence and a type."""
    body = {"title": "", "description": 1, "completed": "yes", "nope": {"secret": "hunter2"}}
    answer = await api.post(TASKS, params={"x": "hunter2"}, json=body)
    problem = answer.json()
    assert answer.status_code == 422
    assert {tuple(error["loc"]) for error in problem["errors"]} == {
        ("body", "title"),
        ("body", "description"),
        ("body", "completed"),
        ("body", "nope"),
        ("query", "x"),
    }
    for error in problem["errors"]:
        assert error.keys() == {"loc", "msg", "type"}
        assert error["msg"]
        assert error["type"]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"title": "x", "S3cret" * 10_000: 1},
        {"title": "x", "description": "S3cret" * 10_000},
        {"title": "x", **{f"{number:05}S3cret": 0 for number in range(10_000)}},
        {"title": "x", "description": {f"{number:05}S3cret": 0 for number in range(10_000)}},
    ],
    ids=["long name", "long value", "many names", "deep names"],
)
async def test_errors_never_echo_the_whole_input(api: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """However large a wrong body is, the answer to it is small."""
    answer = await api.post(TASKS, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert len(answer.content) < 20_000
    assert answer.json()["errors"]


async def test_errors_never_echo_many_parameters(api: httpx.AsyncClient) -> None:
    """However many unknown parameters there are, the answer is small."""
    answer = await api.get(TASKS + "?" + "&".join(f"p{number}" for number in range(5000)))
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert len(answer.content) < 20_000


async def test_query_string_is_no_part_of_the_instance(api: httpx.AsyncClient) -> None:
    """What a query string holds, such as a token, is not repeated."""
    answer = await api.get(f"{TASKS}?access_token=hunter2")
    assert answer.json()["instance"] == TASKS
    assert "hunter2" not in answer.text


TOO_LARGE = b'{"nope": 1' + b" " * 300_000
"""Too large, no JSON, and nothing that is wanted."""

STEPS: list[tuple[str | None, str, bytes, str]] = [
    (None, "text/plain", TOO_LARGE, "token_missing"),
    ("other", "text/plain", TOO_LARGE, "not_your_tasks"),
    ("read", "text/plain", TOO_LARGE, "insufficient_scope"),
    ("own", "text/plain", TOO_LARGE, "unsupported_media_type"),
    ("own", "application/json", TOO_LARGE, "body_too_large"),
    ("own", "application/json", b'{"nope": 1', "bad_request"),
    ("own", "application/json", b'{"nope": 1}', "validation_failed"),
    ("own", "application/json", b"good", "task_not_found"),
]
"""Token, media type, body and answer: each step mends what the one before was refused for."""

WRITES = {
    ("POST", ""): None,
    ("PUT", "/1"): b'{"title": "x"}',
    ("PATCH", "/1"): b'{"title": "x"}',
    ("PATCH", "/1/complete"): b"{}",
}
"""The operations that read a body, and a good one where a task may be absent."""


def tokens(user: User) -> dict[str | None, dict[str, str]]:
    """Headers of the user, of somebody else, of a token that may only read, and none."""
    return {
        None: {},
        "malformed": {"Authorization": "Bearer x"},
        "basic": {"Authorization": "Basic x"},
        "own": user.headers,
        "other": make_user().headers,
        "read": make_user(user.id, scope="tasks:read").headers,
    }


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[3])
@pytest.mark.parametrize(("method", "suffix"), WRITES)
async def test_order_of_checks(
    app: FastAPI, user: User, step: tuple[str | None, str, bytes, str], method: str, suffix: str
) -> None:
    """Of all that is wrong with a request, the first in the order of checks is what it is told."""
    token, media_type, content, code = step
    good = WRITES[method, suffix]
    if code == "task_not_found":
        if good is None:
            return
        content = good
    headers = {"Content-Type": media_type, "If-Match": '"9"', **tokens(user)[token]}
    async with client_of(app) as client:
        path = f"/api/v1/{user.id}/tasks{suffix}"
        answer = await client.request(method, path, content=content, headers=headers)
    assert answer.json()["code"] == code


@pytest.mark.parametrize("body", [b'{"title": ""}', b'{"title": "x", "nope": 1}'])
async def test_validation_comes_before_the_task_and_its_version(api: httpx.AsyncClient, body: bytes) -> None:
    """A wrong body is 422 for an absent task and for a stale version."""
    for path in (TASK, f"{TASKS}/abc"):
        assert (await api.put(path, content=body)).status_code == 422
    await make(api)
    assert (await api.put(TASK, content=body, headers={"If-Match": '"9"'})).status_code == 422


async def test_wrong_parameter_comes_before_the_task(api: httpx.AsyncClient) -> None:
    """An unknown parameter is 422 for an absent task too."""
    assert (await api.get(f"{TASKS}/abc?x=1")).status_code == 422
    assert (await api.delete(f"{TASKS}/1?x=1")).status_code == 422


@pytest.mark.parametrize(("method", "suffix"), WRITES)
@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("malformed", 401), ("basic", 401), ("read", 403), ("other", 403)]
)
async def test_body_is_not_read_before_the_token_is_good(
    app: FastAPI, method: str, suffix: str, token: str | None, status: int
) -> None:
    """A request that is refused for its token, owner or scope leaves the body unread."""
    user = make_user()
    headers = {"Content-Type": "application/json", "Content-Length": "15", **tokens(user)[token]}
    assert (await ask(app, method, f"/api/v1/{user.id}/tasks{suffix}", headers))[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain", "Content-Length": "15"}, 415),
        ({"Content-Type": "application/json", "Content-Length": "262145"}, 413),
        ({"Content-Type": "application/json", "Content-Length": "9" * 5000}, 413),
    ],
)
async def test_body_is_not_read_when_its_headers_are_enough(
    app: FastAPI, user: User, headers: dict[str, str], status: int
) -> None:
    """A wrong media type or an announced size beyond the limit is refused without reading."""
    assert (await ask(app, "POST", TASKS, user.headers | headers))[0] == status


@pytest.mark.parametrize("length", ["\u00b2", "-1", "abc", "", "1, 1"])
async def test_senseless_content_length_is_no_server_error(app: FastAPI, user: User, length: str) -> None:
    """What a lenient server lets through as a Content-Length never ends in 5xx."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"title": "x"}', "more_body": False}

    status, _, body = await ask(app, "POST", TASKS, user.headers | {"Content-Length": length}, receive)
    assert status < 500, body
