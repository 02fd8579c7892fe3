"""Repeated creates: one Idempotency-Key makes one task."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from conftest import User, client_of, make_user

TASKS = "/api/v1/me/tasks"


async def post(api: httpx.AsyncClient, key: str | bytes, body: bytes | dict[str, Any]) -> httpx.Response:
    headers = {"Idempotency-Key": key}
    if isinstance(body, bytes):
        return await api.post(TASKS, content=body, headers=headers)
    return await api.post(TASKS, json=body, headers=headers)


async def count(api: httpx.AsyncClient) -> int:
    return len((await api.get(TASKS)).json()["items"])


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b'{"title": "x"}', b'{"title": "x"}'),
        (b'{"title": "x"}', b'{ "title" :"  x\\t" }'),
        (b'{"title": "x"}', b'{"title": "\\u0078"}'),
        (b'{"title": "x"}', b'{"title": "x", "description": null}'),
        (b'{"title": "x"}', b'{"completed": false, "description": null, "title": "x"}'),
        (
            b'{"completed": true, "title": "x", "description": "d"}',
            b'{"description":"d","title":"x","completed":true}',
        ),
    ],
)
async def test_same_content_is_one_task(api: httpx.AsyncClient, first: bytes, again: bytes) -> None:
    """The same key and content, after trimming and defaults, answers 201 with the task made before."""
    made = await post(api, "key", first)
    assert made.status_code == 201
    assert "idempotency-replayed" not in made.headers
    for _ in range(2):
        replayed = await post(api, "key", again)
        assert replayed.status_code == 201
        assert replayed.content == made.content
        assert replayed.headers["idempotency-replayed"] == "true"
        assert replayed.headers["location"] == made.headers["location"]
        assert replayed.headers["etag"] == made.headers["etag"]
    assert await count(api) == 1


@pytest.mark.parametrize(
    "again",
    [
        {"title": "y"},
        {"title": "X"},
        {"title": "x", "description": ""},
        {"title": "x", "description": "d"},
        {"title": "x", "completed": True},
    ],
)
async def test_other_content_is_refused(api: httpx.AsyncClient, again: dict[str, Any]) -> None:
    """The same key with other content is 422, and makes and changes nothing."""
    made = await post(api, "key", {"title": "x"})
    assert problem(await post(api, "key", again)) == (422, "idempotency_key_reused")
    assert (await api.get(TASKS)).json()["items"] == [made.json()]


async def test_replay_answers_the_task_as_it_is_now(api: httpx.AsyncClient) -> None:
    """A replay shows later changes; content still means the original request."""
    made = await post(api, "key", {"title": "x"})
    changed = await api.put(made.headers["location"], json={"title": "y", "completed": True})
    replayed = await post(api, "key", {"title": "x"})
    assert replayed.status_code == 201
    assert replayed.headers["idempotency-replayed"] == "true"
    assert replayed.headers["etag"] == '"2"'
    assert replayed.content == changed.content
    present = await post(api, "key", {"title": "y", "completed": True})
    assert problem(present) == (422, "idempotency_key_reused")


async def test_deleted_task_frees_its_key(api: httpx.AsyncClient) -> None:
    """A key lives as long as its task: afterwards it makes a new one, whatever the content."""
    made = await post(api, "key", {"title": "x"})
    await api.delete(made.headers["location"])
    again = await post(api, "key", {"title": "other"})
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers
    assert again.json()["id"] > made.json()["id"]


async def test_keys_are_per_user(api: httpx.AsyncClient, app: FastAPI) -> None:
    """Two users may use one key, for different tasks."""
    other = make_user()
    await post(api, "key", {"title": "x"})
    async with client_of(app) as client:
        client.headers.update(other.headers)
        answer = await post(client, "key", {"title": "y"})
    assert answer.status_code == 201
    assert "idempotency-replayed" not in answer.headers
    assert answer.json()["user_id"] == other.id


async def test_keys_are_compared_exactly(api: httpx.AsyncClient) -> None:
    """Keys that differ in case make different tasks, as does no key."""
    for key in ("key", "KEY", "kEy"):
        assert (await post(api, key, {"title": "x"})).json()["version"] == 1
    await api.post(TASKS, json={"title": "x"})
    await api.post(TASKS, json={"title": "x"})
    assert await count(api) == 5


@pytest.mark.parametrize("key", ["a", "!", "~", "k" * 255, '"quoted"', "a,b", "%00", "*"])
async def test_good_keys(api: httpx.AsyncClient, key: str) -> None:
    """Any 1 to 255 visible ASCII characters are a key."""
    for _ in range(2):
        assert (await post(api, key, {"title": "x"})).status_code == 201
    assert await count(api) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "a b", "é".encode(), b"\xff", "a\tb", b"\x7f", "🥛".encode()])
async def test_bad_keys(api: httpx.AsyncClient, key: str | bytes) -> None:
    """What is not 1 to 255 visible ASCII characters is 400, and makes nothing."""
    assert problem(await post(api, key, {"title": "x"})) == (400, "bad_request")
    assert await count(api) == 0


async def test_two_keys_are_refused(api: httpx.AsyncClient) -> None:
    """A request with two keys is 400."""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert problem(await api.post(TASKS, json={"title": "x"}, headers=headers)) == (400, "bad_request")


async def test_refused_content_uses_no_key(api: httpx.AsyncClient) -> None:
    """A create that was refused leaves its key free."""
    assert problem(await post(api, "key", {"title": ""})) == (422, "validation_failed")
    answer = await post(api, "key", {"title": "x"})
    assert answer.status_code == 201
    assert "idempotency-replayed" not in answer.headers


async def test_concurrent_duplicates_create_one_task(app: FastAPI, user: User) -> None:
    """Thirty creates with one key at the same moment, the user's first, make one task for all of them."""
    async with client_of(app) as client:
        client.headers.update(user.headers)
        answers = await asyncio.gather(*(post(client, "key", {"title": "x"}) for _ in range(30)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert len({answer.headers["location"] for answer in answers}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert await count(client) == 1
        later = await client.post(TASKS, json={"title": "y"})
    assert later.json()["id"] > answers[0].json()["id"]


async def test_concurrent_creates_make_as_many_tasks(app: FastAPI, user: User) -> None:
    """Thirty creates without a key at the same moment make thirty tasks with ids of their own."""
    async with client_of(app) as client:
        client.headers.update(user.headers)
        answers = await asyncio.gather(*(client.post(TASKS, json={"title": "x"}) for _ in range(30)))
    assert {answer.json()["id"] for answer in answers} == set(range(1, 31))
