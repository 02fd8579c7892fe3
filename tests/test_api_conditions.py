"""Conditional and repeated requests: If-Match, If-None-Match, Idempotency-Key, and many of them at once."""

import asyncio
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from conftest import User, client_of, make_user

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"

CHANGES = [
    ("PUT", "", {"title": "New"}),
    ("PATCH", "", {"title": "New"}),
    ("PATCH", "/complete", None),
    ("DELETE", "", None),
]
NO_CHANGES = [
    ("PUT", "", {"title": "Old"}),
    ("PATCH", "", {"title": "Old"}),
    ("PATCH", "", {}),
    ("PATCH", "/complete", {"completed": False}),
]


async def make(api: httpx.AsyncClient, *, version: int = 1) -> dict[str, Any]:
    """A task titled Old at this version."""
    task = await api.post(TASKS, json={"title": "Old" if version == 1 else "0"})
    assert task.status_code == 201, task.text
    for number in range(2, version + 1):
        title = "Old" if number == version else str(number)
        task = await api.patch(task.headers.get("location", TASK), json={"title": title})
    assert task.json()["version"] == version
    return dict(task.json())


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


async def send(
    api: httpx.AsyncClient, change: tuple[str, str, Any], tag: str | bytes | None, path: str = TASK
) -> httpx.Response:
    method, suffix, body = change
    headers = {} if tag is None else {"If-Match": tag}
    return await api.request(method, path + suffix, json=body, headers=headers)


async def waits_or_is_answered(
    connection: psycopg.AsyncConnection[Any], request: asyncio.Task[httpx.Response]
) -> None:
    """Until the request waits for a lock that `connection` holds, or needed none."""
    query = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    while not request.done():
        if await (await connection.execute(query, [connection.info.backend_pid])).fetchall():
            return


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "tag", [None, "*", ' "2" ', '"2"', '"1", "2"', '"2","3"', '"x", , "2"', 'W/"1", "2"', '"a,b", "2"']
)
async def test_matching_change_is_made(
    api: httpx.AsyncClient, change: tuple[str, str, Any], tag: str | None
) -> None:
    """Where If-Match names the task's version among others, or any, or is left out, the change is made."""
    await make(api, version=2)
    answer = await send(api, change, tag)
    assert answer.status_code == (204 if change[0] == "DELETE" else 200), answer.text
    left = await api.get(TASK)
    assert left.status_code == 404 if change[0] == "DELETE" else left.json()["version"] == 3


@pytest.mark.parametrize("change", CHANGES + NO_CHANGES)
@pytest.mark.parametrize(
    "tag",
    [
        '"1"',
        '"3"',
        '"1", "3"',
        'W/"2"',
        'W/"1", W/"2"',
        '""',
        '"x"',
        '"02"',
        '"+2"',
        f'"{2**63}"',
        f'"{2**64 + 2}"',
        f'"{"9" * 1000}"',
        '"2.0"',
        '"a,2,b"',
    ],
)
async def test_stale_change_is_refused(
    api: httpx.AsyncClient, change: tuple[str, str, Any], tag: str
) -> None:
    """A version that If-Match does not name is 412 with the current one, also where nothing would change."""
    before = await make(api, version=2)
    answer = await send(api, change, tag)
    assert problem(answer) == (412, "version_conflict")
    assert answer.json()["current_version"] == 2
    assert (await api.get(TASK)).json() == before


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "tag",
    [
        "",
        " ",
        ",",
        "2",
        "x",
        '"2',
        '2"',
        'w/"2"',
        '"2" "3"',
        '"1", *',
        "*, *",
        "**",
        'W/ "2"',
        '"2 "',
        '"2";x',
        "'2'",
    ],
)
async def test_garbage_is_no_entity_tag(
    api: httpx.AsyncClient, change: tuple[str, str, Any], tag: str
) -> None:
    """An If-Match that holds no entity tag is 400, and nothing is done."""
    before = await make(api, version=2)
    assert problem(await send(api, change, tag)) == (400, "bad_request")
    assert (await api.get(TASK)).json() == before


async def test_several_lines_of_if_match_are_one_list(api: httpx.AsyncClient) -> None:
    """If-Match on several lines is one list (RFC 9110, section 5.3)."""
    await make(api, version=2)
    lines = [("If-Match", '"1"'), ("If-Match", '"2"')]
    assert (await api.patch(TASK, json={"title": "New"}, headers=lines)).status_code == 200
    assert (await api.patch(TASK, json={"title": "Newer"}, headers=lines)).status_code == 412


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tag", ['"1"', "*", 'W/"1"'])
async def test_absent_task_comes_before_the_precondition(
    api: httpx.AsyncClient, change: tuple[str, str, Any], tag: str
) -> None:
    """On a task that is not there If-Match is not looked at: 404."""
    assert problem(await send(api, change, tag)) == (404, "task_not_found")


@pytest.mark.parametrize("change", NO_CHANGES)
async def test_matching_change_of_nothing(api: httpx.AsyncClient, change: tuple[str, str, Any]) -> None:
    """A matching change that changes nothing answers the task as it was."""
    before = await make(api, version=2)
    answer = await send(api, change, '"2"')
    assert (answer.status_code, answer.json()) == (200, before)


@pytest.mark.parametrize("change", CHANGES)
async def test_precondition_holds_for_the_version_it_is_applied_to(
    api: httpx.AsyncClient, user: User, database_url: str, change: tuple[str, str, Any]
) -> None:
    """A version that comes into being while the request waits is either refused or really changed."""
    await make(api)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("UPDATE task SET version = 2 WHERE user_id = %s AND id = 1", [user.id])
        waiting = asyncio.create_task(send(api, change, '"2"'))
        await waits_or_is_answered(other, waiting)
        await other.commit()
        answer = await waiting
    left = await api.get(TASK)
    if answer.status_code == 412:
        assert left.json()["version"] == 2
    else:
        assert answer.is_success
        assert left.status_code == 404 if change[0] == "DELETE" else left.json()["version"] == 3


@pytest.mark.parametrize("change", NO_CHANGES[:2])
async def test_change_is_applied_to_what_a_concurrent_one_left(
    api: httpx.AsyncClient, user: User, database_url: str, change: tuple[str, str, Any]
) -> None:
    """A change that finds nothing to change and waits for another's is applied after it: the last wins."""
    await make(api)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("UPDATE task SET version = 2, title = 'New' WHERE user_id = %s", [user.id])
        waiting = asyncio.create_task(send(api, change, None))
        await waits_or_is_answered(other, waiting)
        await other.commit()
        answer = await waiting
    assert answer.status_code == 200
    assert answer.json()["title"] == "Old"
    assert (await api.get(TASK)).json() == answer.json()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("tag", ['"2"', 'W/"2"', "*", '"1", "2"', '"2", W/"7"', '"a,b", "2"'])
async def test_unchanged_task_is_304(api: httpx.AsyncClient, method: str, tag: str) -> None:
    """An If-None-Match that names the version, weakly too, is 304 with the entity tag and no body."""
    await make(api, version=2)
    answer = await api.request(method, TASK, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == '"2"'
    assert answer.headers["cache-control"] == "no-store"
    assert "content-type" not in answer.headers
    assert answer.headers.get("content-length", "0") == "0"


@pytest.mark.parametrize("tag", ['"1"', '"1", "3"', 'W/"1"', '""', "", "2", "garbage"])
async def test_changed_task_is_200(api: httpx.AsyncClient, tag: str) -> None:
    """An If-None-Match that does not name the version answers the task."""
    task = await make(api, version=2)
    answer = await api.get(TASK, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.json()) == (200, task)


async def test_absent_task_is_no_304(api: httpx.AsyncClient) -> None:
    """On a task that is not there If-None-Match is not looked at: 404."""
    assert problem(await api.get(TASK, headers={"If-None-Match": "*"})) == (404, "task_not_found")


async def test_concurrent_read_modify_write_loops_lose_nothing(app: FastAPI) -> None:
    """Twenty clients that add to one task with If-Match: every success is there at the end."""
    user = make_user()

    async def add_three(client: httpx.AsyncClient) -> None:
        added = 0
        while added < 3:
            read = await client.get(TASK)
            answer = await client.patch(
                TASK,
                json={"description": (read.json()["description"] or "") + "+"},
                headers={"If-Match": read.headers["etag"]},
            )
            assert answer.status_code in {200, 412}, answer.text
            added += answer.status_code == 200

    async with client_of(app) as client:
        client.headers.update(user.headers)
        await make(client)
        await asyncio.gather(*(add_three(client) for _ in range(20)))
        task = (await client.get(TASK)).json()
    assert task["description"] == "+" * 60
    assert task["version"] == 61
