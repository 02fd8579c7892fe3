"""Request bodies: media types, size, JSON and values; bad input is always 4xx and never 5xx."""

import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from conftest import Server, User, make_user

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"
LIMIT = 256 * 1024
WRITES = [("POST", TASKS), ("PUT", TASK), ("PATCH", TASK), ("PATCH", f"{TASK}/complete")]


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def padded(size: int) -> bytes:
    """A good task in so many bytes."""
    body = b'{"title": "x"}'
    return body[:1] + b" " * (size - len(body)) + body[1:]


async def make(api: httpx.AsyncClient) -> None:
    assert (await api.post(TASKS, json={"title": "x"})).status_code == 201


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/json ;x=y",
        None,
    ],
)
async def test_json_is_read(api: httpx.AsyncClient, media_type: str | None) -> None:
    """JSON is read whatever its type's case and parameters, and without a type too."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    assert (await api.post(TASKS, content=b'{"title": "x"}', headers=headers)).status_code == 201


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/xml",
        "json",
        "*/*",
        "",
        "multipart/form-data; boundary=x",
        "application/vnd.api+json",
    ],
)
@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_other_media_types_are_refused(
    api: httpx.AsyncClient, method: str, path: str, media_type: str
) -> None:
    """Another type is 415, and the detail shows the right header."""
    await make(api)
    answer = await api.request(method, path, content=b'{"title": "x"}', headers={"Content-Type": media_type})
    assert problem(answer) == (415, "unsupported_media_type")
    assert "Content-Type: application/json" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), WRITES[:2])
async def test_merge_patch_is_for_patch_only(api: httpx.AsyncClient, method: str, path: str) -> None:
    """A merge patch is no body for POST and PUT."""
    headers = {"Content-Type": "application/merge-patch+json"}
    answer = await api.request(method, path, content=b'{"title": "x"}', headers=headers)
    assert problem(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize("size", [LIMIT, LIMIT - 1])
async def test_body_within_the_limit(api: httpx.AsyncClient, size: int) -> None:
    """A body of exactly the limit is read, in one piece or in chunks."""
    assert (await api.post(TASKS, content=padded(size))).status_code == 201
    body = padded(size)
    parts = [body[start : start + 10_000] for start in range(0, size, 10_000)]
    assert (await api.post(TASKS, content=chunks(*parts))).status_code == 201


@pytest.mark.parametrize("size", [LIMIT + 1, 10 * 1024 * 1024])
@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_body_beyond_the_limit(api: httpx.AsyncClient, method: str, path: str, size: int) -> None:
    """A larger body is 413, announced or not, and whatever Content-Length claims."""
    body = padded(size)
    assert problem(await api.request(method, path, content=body)) == (413, "body_too_large")
    assert problem(await api.request(method, path, content=chunks(body))) == (413, "body_too_large")
    lie = {"Content-Length": "10"}
    assert problem(await api.request(method, path, content=body, headers=lie)) == (413, "body_too_large")


async def test_growing_body_is_not_read_to_its_end(api: httpx.AsyncClient) -> None:
    """A chunked body is refused as soon as it is past the limit."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b" " * 64 * 1024

    assert problem(await api.post(TASKS, content=endless())) == (413, "body_too_large")
    assert taken <= 6


def exchange(server: Server, request: bytes) -> bytes:
    """What a real server answers on a socket, without waiting for the connection's end."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            received = connection.recv(65536)
            if not received:
                break
            answer += received
        return answer


def head(user: User | None, *lines: str) -> bytes:
    token = [f"Authorization: Bearer {user.token}"] if user else []
    return "\r\n".join([f"POST {TASKS} HTTP/1.1", "Host: x", *token, *lines, "", ""]).encode()


def test_socket_refuses_before_the_body_arrives(server: Server) -> None:
    """Over a socket too the answer to a bad token, type or size needs no byte of the body."""
    user = make_user()
    assert exchange(server, head(None, "Content-Length: 15")).startswith(b"HTTP/1.1 401 ")
    other = head(user, "Content-Length: 15", "Content-Type: text/plain")
    assert exchange(server, other).startswith(b"HTTP/1.1 415 ")
    assert exchange(server, head(user, f"Content-Length: {LIMIT + 1}")).startswith(b"HTTP/1.1 413 ")


def test_socket_counts_chunks(server: Server) -> None:
    """Over a socket a chunked body is counted: within the limit it is fine, beyond it 413."""
    user = make_user()
    start = head(user, "Transfer-Encoding: chunked")
    good = b'8\r\n{"title"\r\n6\r\n: "x"}\r\n0\r\n\r\n'
    assert exchange(server, start + good).startswith(b"HTTP/1.1 201 ")
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert exchange(server, start + part * 4 + b"1\r\n \r\n").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b"{}x",
        b"{'title': 'x'}",
        b'{"title": "x",}',
        b'{"title": NaN}',
        b'{"title": "x", "completed": NaN}',
        b'{"title": "x", "completed": 1e400}',
        b'{"title": Infinity}',
        b'{"title": -Infinity}',
        b'{"title": "x", "title": "y"}',
        b'{"title": "x", "description": {"a": 1, "a": 2}}',
        b'{"title": "x", "t\\u0069tle": "y"}',
        b'\xef\xbb\xbf{"title": "x"}',
        '{"title": "x"}'.encode("utf-16"),
        b'{"title": "\xff"}',
        b'{"title": "\xed\xa0\x80"}',
        b'{"title": "\xc0\x80"}',
        b'{"title": "\x00"}',
        b'{"title": "a\nb"}',
        b'{"title": "\\x41"}',
        b'{"title": "\\ud80"}',
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"title":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"completed": ' + b"1" * 100_000 + b"}",
        b"\x00",
        b"title=x",
    ],
)
@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_what_is_no_json(api: httpx.AsyncClient, method: str, path: str, content: bytes) -> None:
    """What is not the JSON of RFC 8259, once and in UTF-8, is 400."""
    await make(api)
    if not content and path.endswith("/complete"):
        return
    answer = await api.request(method, path, content=content, headers={"Content-Type": "application/json"})
    assert problem(answer) == (400, "bad_request")


NO_TASKS: list[Any] = [
    None,
    [],
    [{"title": "x"}],
    "x",
    1,
    True,
    {"title": ""},
    {"title": "   \t"},
    {"title": "\u3000\u2003"},
    {"title": None},
    {"title": 1},
    {"title": 1.5},
    {"title": True},
    {"title": ["x"]},
    {"title": {"x": 1}},
    {"title": "x" * 201},
    {"title": "🥛" * 201},
    {"title": "a\x00b"},
    {"title": "\x00"},
    {"title": "a\ud800b"},
    {"title": "\udfff"},
    *({"title": f"a{chr(code)}b"} for code in (1, 8, 9, 10, 13, 27, 31, 127, 128, 133, 159)),
    {"title": "x", "description": "x" * 10_001},
    {"title": "x", "description": 1},
    {"title": "x", "description": []},
    {"title": "x", "description": "\x00"},
    {"title": "x", "description": "\ud83d"},
    *({"title": "x", "description": f"a{chr(code)}b"} for code in (1, 8, 11, 12, 14, 27, 127, 133)),
    {"title": "x", "completed": None},
    {"title": "x", "completed": "true"},
    {"title": "x", "completed": 1},
    {"title": "x", "completed": 0},
    {"title": "x", "completed": []},
    {"title": "x", "titel": "x"},
    {"title": "x", "id": 1},
    {"title": "x", "user_id": "me"},
    {"title": "x", "version": 1},
    {"title": "x", "completed_at": None},
    {"title": "x", "created_at": "2026-01-01T00:00:00Z"},
    {"title": "x", "": 1},
    {"title": "x", "\ud800": 1},
    {"title": "x", "\x00": 1},
    {"Title": "x"},
    {"title": "x", "description": "x", "n" * 10_000: 1},
]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("body", NO_TASKS, ids=lambda body: ascii(body)[:40])
@pytest.mark.parametrize(("method", "path"), WRITES[:3])
async def test_what_is_no_task(api: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    """Values, types, lengths, characters and members that are not allowed are 422, and change nothing."""
    await make(api)
    before = (await api.get(TASKS)).content
    answer = await api.request(method, path, content=as_json(body))
    assert problem(answer) == (422, "validation_failed")
    assert {error["loc"][0] for error in answer.json()["errors"]} == {"body"}
    assert (await api.get(TASKS)).content == before


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "x",
        True,
        {"completed": None},
        {"completed": "true"},
        {"completed": 1},
        {"title": "x"},
        {"done": True},
    ],
)
async def test_what_is_no_completion(api: httpx.AsyncClient, body: Any) -> None:
    """Complete takes nothing but `completed`, true or false."""
    await make(api)
    answer = await api.patch(f"{TASK}/complete", content=as_json(body))
    assert problem(answer) == (422, "validation_failed")
    assert (await api.get(TASK)).json()["completed"] is False


async def test_what_is_wrong_is_said_plainly(api: httpx.AsyncClient) -> None:
    """The detail names the member and not the body, and says what is missing in words of JSON."""
    object_wanted = "This must be a JSON object."
    for path, body, detail in (
        (TASKS, [], f"body: {object_wanted}"),
        (f"{TASKS}/bulk", [], f"body: {object_wanted}"),
        (f"{TASKS}/bulk", {"operations": ["x"]}, f"operations.0: {object_wanted}"),
        (
            f"{TASKS}/bulk",
            {"operations": [{"op": "create", "key": "k", "task": []}]},
            f"operations.0.task: {object_wanted}",
        ),
        (TASKS, {"title": "x", "extra": []}, f"extra: {object_wanted}"),
        (TASKS, {}, "title: This is required."),
    ):
        answer = await api.post(path, content=as_json(body))
        assert (problem(answer), answer.json()["detail"]) == ((422, "validation_failed"), detail)


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_title_is_required(api: httpx.AsyncClient, method: str) -> None:
    """POST and PUT need a title, and the error says so."""
    await make(api)
    answer = await api.request(method, TASKS if method == "POST" else TASK, json={"description": "x"})
    assert problem(answer) == (422, "validation_failed")
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", "title"]]


@pytest.mark.parametrize(
    "owner", ["u" * 1000, "%00", "%0A", "%ff", "%ED%A0%80", "a%20b", "ME", "m%65x", "🥛"]
)
@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("POST", ""), ("GET", "/1"), ("DELETE", "/1")])
async def test_strange_owners(api: httpx.AsyncClient, method: str, suffix: str, owner: str) -> None:
    """A user id in the path that is not the caller's is 403, however long or strange."""
    answer = await api.request(
        method, f"/api/v1/{owner}/tasks{suffix}", json={"title": "x"} if method == "POST" else None
    )
    assert problem(answer) == (403, "not_your_tasks")
