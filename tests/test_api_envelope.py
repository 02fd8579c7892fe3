"""What surrounds every answer: methods, paths, request ids, times and caching."""

import re
from typing import Any

import httpx
import pytest

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"


async def make(api: httpx.AsyncClient) -> None:
    assert (await api.post(TASKS, json={"title": "x"})).status_code == 201


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize("path", [TASKS, TASK, f"{TASKS}/2", "/api/v1/somebody-else/tasks"])
async def test_head_is_get_without_the_body(api: httpx.AsyncClient, path: str) -> None:
    """HEAD answers with GET's status and headers, and no body, for errors too."""
    await make(api)
    get, head = await api.get(path), await api.head(path)
    vary = {"x-request-id", "server-timing", "content-length" if get.status_code >= 400 else ""}
    assert head.status_code == get.status_code
    assert head.content == b""
    assert head.headers.keys() == get.headers.keys()
    assert {k: v for k, v in head.headers.items() if k not in vary} == {
        k: v for k, v in get.headers.items() if k not in vary
    }


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (TASKS, {"GET", "HEAD", "POST"}),
        (TASK, {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
        (f"{TASK}/complete", {"PATCH"}),
    ],
)
async def test_other_methods_are_not_allowed(api: httpx.AsyncClient, path: str, allowed: set[str]) -> None:
    """A method that a path does not answer is 405, and `Allow` names all that it does."""
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"} - allowed:
        answer = await api.request(method, path)
        assert answer.status_code == 405, method
        assert answer.headers["allow"] == ", ".join(sorted(allowed))
        if method != "HEAD":
            assert problem(answer) == (405, "method_not_allowed")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", [f"{TASKS}/", f"{TASK}/", f"{TASK}/complete/"])
async def test_trailing_slash_is_another_path(api: httpx.AsyncClient, method: str, path: str) -> None:
    """A trailing slash makes another path, which is 404 and redirects nowhere."""
    await make(api)
    assert problem(await api.request(method, path, json={"title": "x"})) == (404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", f"{TASKS}%0A"), ("PATCH", f"{TASK}/complete%0A"), ("GET", "/livez%0A")]
)
async def test_trailing_line_feed_is_another_path(api: httpx.AsyncClient, method: str, path: str) -> None:
    """A line feed after a path makes another path, which is 404."""
    assert problem(await api.request(method, path)) == (404, "route_not_found")


@pytest.mark.parametrize("sent", ["a", "A-z_0.9", "x" * 128])
async def test_request_id_is_kept(api: httpx.AsyncClient, sent: str) -> None:
    """A client's own request id comes back, in the header and in a problem."""
    answer = await api.get(TASK, headers={"X-Request-ID": sent})
    assert answer.headers.get_list("x-request-id") == [sent]
    assert answer.json()["request_id"] == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "a,b", "é".encode(), "a\tb", "a/b", "a:b"])
async def test_request_id_is_made(api: httpx.AsyncClient, sent: str | bytes | None) -> None:
    """Where the client sent no usable request id, each request gets a new one."""
    headers = {} if sent is None else {"X-Request-ID": sent}
    ids = [(await api.get(TASKS, headers=headers)).headers["x-request-id"] for _ in range(2)]
    assert len({*ids, sent}) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,128}", each) for each in ids)


async def test_two_request_ids_are_none(api: httpx.AsyncClient) -> None:
    """Of two request ids none can be trusted: a new one is made."""
    answer = await api.get(TASKS, headers=[("X-Request-ID", "one"), ("X-Request-ID", "two")])
    assert answer.headers["x-request-id"] not in {"one", "two", "one, two"}


@pytest.mark.parametrize(
    ("method", "path", "body", "touches_data"),
    [
        ("GET", TASKS, None, True),
        ("POST", TASKS, {"title": "x"}, True),
        ("GET", f"{TASKS}/99", None, True),
        ("POST", TASKS, {"title": ""}, False),
        ("GET", "/api/v1/somebody-else/tasks", None, False),
        ("GET", "/api/v2", None, False),
        ("POST", TASK, None, False),
        ("GET", "/livez", None, False),
        ("GET", "/nowhere", None, False),
    ],
)
async def test_headers_that_every_answer_has(
    api: httpx.AsyncClient, method: str, path: str, body: Any, touches_data: bool
) -> None:
    """Every answer tells its request id and its times; under `/api` none may be stored."""
    answer = await api.request(method, path, json=body)
    duration = r"dur=\d+(\.\d+)?"
    expected = f"total;{duration}, db;{duration}" if touches_data else f"total;{duration}"
    assert re.fullmatch(expected, answer.headers["server-timing"])
    assert answer.headers["x-request-id"]
    assert answer.headers.get("cache-control") == ("no-store" if path.startswith("/api") else None)
