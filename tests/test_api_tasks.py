"""One task: created, read, replaced, changed, completed, deleted, with every status and header on the way."""

import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from conftest import User, client_of, make_user

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


async def make(api: httpx.AsyncClient, title: str = "Buy milk", **content: Any) -> dict[str, Any]:
    answer = await api.post(TASKS, json={"title": title, **content})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


async def test_created_task_is_answered_in_full(api: httpx.AsyncClient, user: User) -> None:
    """A create answers 201 with every field of the task, its address and its entity tag."""
    answer = await api.post(TASKS, json={"title": "Buy milk"})
    task = answer.json()
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == TASK
    assert answer.headers["etag"] == '"1"'
    assert "idempotency-replayed" not in answer.headers
    assert TIMESTAMP.fullmatch(task["created_at"])
    assert task == {
        "id": 1,
        "user_id": user.id,
        "title": "Buy milk",
        "description": None,
        "due_at": None,
        "priority": "none",
        "tags": [],
        "project": None,
        "recurrence": None,
        "time_zone": None,
        "extra": None,
        "completed": False,
        "completed_at": None,
        "next_id": None,
        "deleted_at": None,
        "version": 1,
        "created_at": task["created_at"],
        "updated_at": task["created_at"],
    }


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ({"title": "  Buy milk \t\n"}, {"title": "Buy milk"}),
        ({"title": "x" * 200}, {"title": "x" * 200}),
        ({"title": " " * 500 + "x" * 200 + "\u3000"}, {"title": "x" * 200}),
        ({"title": "🥛" * 200}, {"title": "🥛" * 200}),
        (
            {"title": "a\u200bb \u202e 'q' \"q\" \\ % $1 {x}"},
            {"title": "a\u200bb \u202e 'q' \"q\" \\ % $1 {x}"},
        ),
        ({"title": "x", "description": None}, {"description": None}),
        ({"title": "x", "description": ""}, {"description": ""}),
        ({"title": "x", "description": " \tkept\r\n as it is "}, {"description": " \tkept\r\n as it is "}),
        ({"title": "x", "description": "é" * 10_000}, {"description": "é" * 10_000}),
        ({"title": "x", "completed": False}, {"completed": False}),
    ],
)
async def test_created_task_holds_what_was_sent(
    api: httpx.AsyncClient, sent: dict[str, Any], stored: dict[str, Any]
) -> None:
    """Titles are trimmed and everything else is stored as it was sent, up to the bounds."""
    answer = await api.post(TASKS, json=sent)
    assert answer.status_code == 201, answer.text
    assert stored.items() <= answer.json().items()
    assert (await api.get(TASK)).content == answer.content


async def test_task_can_be_created_completed(api: httpx.AsyncClient) -> None:
    """A task created completed was completed when it was created."""
    task = await make(api, completed=True)
    assert task["completed"] is True
    assert task["completed_at"] == task["created_at"]


@pytest.mark.parametrize(
    "user_id",
    [
        "a@b.example",
        "caf\u00e9 x",
        "100%",
        "a?b#c",
        "a+b",
        "%2F",
        '"quoted"',
        "🥛",
        "u" * 255,
        "1",
        "Me",
        "a,b;c=d",
    ],
)
async def test_user_id_is_percent_encoded(app: FastAPI, user_id: str) -> None:
    """A user id in a path is percent-encoded, and `Location` repeats exactly that form."""
    user = make_user(user_id)
    path = f"/api/v1/{quote(user_id, safe='')}/tasks"
    async with client_of(app) as client:
        made = await client.post(path, json={"title": "x"}, headers=user.headers)
        assert made.status_code == 201, made.text
        assert made.headers["location"] == f"{path}/{made.json()['id']}"
        assert made.json()["user_id"] == user_id
        through_me = await client.get(f"{TASKS}/{made.json()['id']}", headers=user.headers)
        assert through_me.content == made.content
        assert (await client.get(made.headers["location"], headers=user.headers)).content == made.content


async def test_location_repeats_needless_encoding(app: FastAPI) -> None:
    """`Location` repeats the request's form even where it encodes what need not be encoded."""
    user = make_user("needless")
    async with client_of(app) as client:
        made = await client.post("/api/v1/%6eeedles%73/tasks", json={"title": "x"}, headers=user.headers)
    assert made.headers["location"] == f"/api/v1/%6eeedles%73/tasks/{made.json()['id']}"


async def test_subject_with_slash_uses_me(app: FastAPI) -> None:
    """A subject with a slash in it reaches its tasks through `me`."""
    user = make_user("auth0/with/slash")
    async with client_of(app) as client:
        made = await client.post(TASKS, json={"title": "x"}, headers=user.headers)
        assert made.json()["user_id"] == "auth0/with/slash"
        assert made.headers["location"] == f"{TASKS}/{made.json()['id']}"
        assert (await client.get(made.headers["location"], headers=user.headers)).status_code == 200


async def test_ids_count_from_one_for_each_user(app: FastAPI) -> None:
    """Every user's ids are 1, 2, 3, whatever others do meanwhile."""
    users = [make_user(), make_user()]
    async with client_of(app) as client:
        for number in (1, 2, 3):
            for user in users:
                made = await client.post(TASKS, json={"title": "x"}, headers=user.headers)
                assert made.json()["id"] == number


async def test_ids_are_never_used_again(api: httpx.AsyncClient) -> None:
    """The id of a deleted task, the newest included, is never given to another."""
    for expected in (1, 2, 3):
        assert (await make(api))["id"] == expected
        assert (await api.delete(f"{TASKS}/{expected}")).status_code == 204
    assert (await make(api))["id"] == 4


@pytest.mark.parametrize(
    ("method", "suffix", "body", "expected"),
    [
        ("PUT", "", {"title": "New"}, {"title": "New", "description": None, "completed": False}),
        ("PUT", "", {"title": " New "}, {"title": "New", "description": None, "completed": False}),
        (
            "PUT",
            "",
            {"title": "Old", "description": "d", "completed": True},
            {"title": "Old", "description": "d", "completed": True},
        ),
        ("PUT", "", {"title": "Old", "description": None}, {"description": None, "completed": False}),
        ("PATCH", "", {"title": " New "}, {"title": "New", "description": "old", "completed": True}),
        ("PATCH", "", {"description": "new"}, {"title": "Old", "description": "new", "completed": True}),
        ("PATCH", "", {"description": None}, {"title": "Old", "description": None, "completed": True}),
        ("PATCH", "", {"description": ""}, {"title": "Old", "description": "", "completed": True}),
        ("PATCH", "", {"completed": False}, {"title": "Old", "description": "old", "completed": False}),
        (
            "PATCH",
            "/complete",
            {"completed": False},
            {"title": "Old", "description": "old", "completed": False},
        ),
    ],
)
async def test_change(
    api: httpx.AsyncClient, method: str, suffix: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A change answers 200 with the changed task, one version later, and the next read shows the same."""
    before = await make(api, "Old", description="old", completed=True)
    answer = await api.request(method, TASK + suffix, json=body)
    task = answer.json()
    assert answer.status_code == 200, answer.text
    assert expected.items() <= task.items()
    assert (task["completed_at"] is not None) is task["completed"]
    assert task["version"] == 2
    assert answer.headers["etag"] == '"2"'
    assert task["updated_at"] > before["updated_at"]
    assert {task[name] == before[name] for name in ("id", "user_id", "created_at")} == {True}
    assert (await api.get(TASK)).content == answer.content


@pytest.mark.parametrize(
    ("method", "suffix", "body"),
    [
        ("PUT", "", {"title": "Old", "description": "old", "completed": True}),
        ("PUT", "", {"title": " Old ", "description": "old", "completed": True}),
        ("PATCH", "", {}),
        ("PATCH", "", {"title": "Old"}),
        ("PATCH", "", {"title": "  Old"}),
        ("PATCH", "", {"title": "Old", "description": "old", "completed": True}),
        ("PATCH", "/complete", None),
        ("PATCH", "/complete", {}),
        ("PATCH", "/complete", {"completed": True}),
    ],
)
async def test_change_that_changes_nothing(
    api: httpx.AsyncClient, method: str, suffix: str, body: dict[str, Any] | None
) -> None:
    """A change to the values that are there leaves every field, version and times included, as it was."""
    before = await make(api, "Old", description="old", completed=True)
    answer = (
        await api.request(method, TASK + suffix, json=body)
        if body is not None
        else await api.patch(TASK + suffix)
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == before
    assert answer.headers["etag"] == '"1"'


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_clearing_what_is_empty_changes_nothing(api: httpx.AsyncClient, method: str) -> None:
    """A null description set to null, and an open task opened, is no change."""
    before = await make(api)
    body = {"title": "Buy milk", "description": None, "completed": False}
    assert (await api.request(method, TASK, json=body)).json() == before
    assert (await api.patch(f"{TASK}/complete", json={"completed": False})).json() == before


@pytest.mark.parametrize("options", [{}, {"json": {}}, {"json": {"completed": True}}])
async def test_complete_is_a_state(api: httpx.AsyncClient, options: dict[str, Any]) -> None:
    """Completing, with no body too, sets `completed_at` once; a second time changes nothing."""
    await make(api)
    first = await api.patch(f"{TASK}/complete", **options)
    assert first.status_code == 200
    assert first.headers["etag"] == '"2"'
    assert first.json()["completed"] is True
    assert first.json()["completed_at"] == first.json()["updated_at"]
    assert (await api.patch(f"{TASK}/complete", **options)).content == first.content


async def test_completed_at_survives_other_changes(api: httpx.AsyncClient) -> None:
    """Changing another field of a completed task keeps `completed_at`; reopening clears it."""
    before = await make(api, completed=True)
    edited = (await api.patch(TASK, json={"title": "New"})).json()
    assert edited["completed_at"] == before["completed_at"]
    replaced = (await api.put(TASK, json={"title": "Newer", "completed": True})).json()
    assert replaced["completed_at"] == before["completed_at"]
    assert (await api.patch(TASK, json={"completed": False})).json()["completed_at"] is None
    again = (await api.patch(f"{TASK}/complete")).json()
    assert again["completed_at"] > before["completed_at"]


@pytest.mark.parametrize("suffix", ["", "/complete"])
@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json", None])
async def test_patch_reads_both_media_types(
    api: httpx.AsyncClient, suffix: str, media_type: str | None
) -> None:
    """PATCH takes JSON and merge patches, and reads a body without a type as JSON."""
    await make(api)
    headers = {"Content-Type": media_type} if media_type else {}
    answer = await api.patch(TASK + suffix, content=b'{"completed": true}', headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["completed"] is True


async def test_deleted_task_is_gone(api: httpx.AsyncClient) -> None:
    """A delete answers 204 with no body; afterwards every operation on the task is 404."""
    await make(api)
    answer = await api.delete(TASK)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-type" not in answer.headers
    assert (await api.get(TASKS)).json()["items"] == []
    for method, suffix, body in [
        ("GET", "", None),
        ("PUT", "", {"title": "x"}),
        ("PATCH", "", {"title": "x"}),
        ("PATCH", "", {}),
        ("PATCH", "/complete", None),
        ("DELETE", "", None),
    ]:
        assert problem(await api.request(method, TASK + suffix, json=body)) == (404, "task_not_found")


@pytest.mark.parametrize(
    "task_id",
    [
        "abc",
        "0",
        "-1",
        "2",
        "1" * 20,
        str(2**63),
        str(2**63 - 1),
        "1.0",
        "01",
        "+1",
        "1e0",
        "1%0A",
        "%201",
        "१",
        "%00",
    ],
)
@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("PUT", ""), ("PATCH", ""), ("PATCH", "/complete"), ("DELETE", "")]
)
async def test_what_cannot_be_an_id_is_not_found(
    api: httpx.AsyncClient, method: str, suffix: str, task_id: str
) -> None:
    """An id that no task has, or that cannot be one, is 404 with every method."""
    await make(api)
    body = {"title": "x"} if method == "PUT" or (method, suffix) == ("PATCH", "") else None
    answer = await api.request(method, f"{TASKS}/{task_id}{suffix}", json=body)
    assert problem(answer) == (404, "task_not_found")
