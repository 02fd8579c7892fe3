"""Due dates, priorities, tags, projects, what programs keep, and the trash."""

import asyncio
import json
from typing import Any

import httpx
import psycopg
import pytest

from conftest import User
from taskctl import models
from test_statements import assert_wire

pytestmark = pytest.mark.usefixtures("executor")

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"

FULL = {
    "title": "Pay rent",
    "description": "by transfer",
    "due_at": "2026-12-01",
    "priority": "high",
    "tags": ["flat", "home"],
    "project": "Household",
    "recurrence": "FREQ=DAILY",
    "time_zone": "Europe/Berlin",
    "extra": {"taskwarrior": {"uuid": "6f2a", "n": [1, -2.5, None, True, 'ü\u0000\n"<']}},
    "completed": False,
}
EMPTY = {
    "description": None, "due_at": None, "priority": "none", "tags": [], "project": None, "recurrence": None,
    "time_zone": None, "extra": None,
}  # fmt: skip


async def create(api: httpx.AsyncClient, **content: Any) -> dict[str, Any]:
    answer = await api.post(TASKS, json={"title": "x"} | content)
    assert answer.status_code == 201, answer.text
    assert_wire(models.Task, answer)
    return dict(answer.json())


async def test_all_fields_come_back(api: httpx.AsyncClient) -> None:
    """What was written is answered by every operation, in the bytes of the wire model."""
    assert FULL.items() <= (await create(api, **FULL)).items()
    for answer in [
        await api.get(TASK),
        await api.patch(TASK, json={"title": "Pay the rent"}),
        await api.patch(TASK, json=FULL),
        await api.put(TASK, json=FULL),
    ]:
        assert_wire(models.Task, answer)
    assert FULL.items() <= answer.json().items()
    page = await api.get(TASKS)
    assert_wire(models.TaskPage, page)
    assert FULL.items() <= page.json()["items"][0].items()


@pytest.mark.parametrize("name", EMPTY)
async def test_each_field_is_cleared(api: httpx.AsyncClient, name: str) -> None:
    """A patch empties one field and leaves the others; sent again, it changes nothing."""
    made = await create(api, **FULL | {"recurrence": None})
    changed = (await api.patch(TASK, json={name: EMPTY[name]})).json()
    after = made | {name: EMPTY[name], "version": changed["version"], "updated_at": changed["updated_at"]}
    assert changed == after
    assert changed["version"] == (1 if made[name] == EMPTY[name] else 2)
    assert (await api.patch(TASK, json={name: EMPTY[name]})).json() == changed


async def test_replacing_empties_what_is_left_out(api: httpx.AsyncClient) -> None:
    """PUT gives each field that is left out its default."""
    await create(api, **FULL)
    assert EMPTY.items() <= (await api.put(TASK, json={"title": "x"})).json().items()


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("2026-11-30", "2026-11-30"),
        ("0001-01-01", "0001-01-01"),
        ("9999-12-31", "9999-12-31"),
        ("2024-02-29", "2024-02-29"),
        ("2026-11-30T00:00:00Z", "2026-11-30T00:00:00.000000Z"),
        ("2026-11-30T17:00:00+01:00", "2026-11-30T16:00:00.000000Z"),
        ("2026-11-30t17:00:00.123456789z", "2026-11-30T17:00:00.123456Z"),
        ("2026-11-30T00:00:00+14:00", "2026-11-29T10:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
async def test_due_dates(api: httpx.AsyncClient, sent: str, stored: str) -> None:
    """A date stays a date; an instant is answered in UTC; a midnight is not taken for a date."""
    made = await create(api, due_at=sent)
    assert made["due_at"] == stored
    for due_at in ("2000-01-01", "2000-01-01T10:00:00Z", sent):
        assert (await api.patch(TASK, json={"due_at": due_at})).json()["version"] > made["version"]
    assert (await api.patch(TASK, json={"title": "y"})).json()["due_at"] == stored


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("due_at", each)
            for each in (
                "", "2026-13-01", "2026-02-29", "2026-11-30T17:00:00", "2026-11-30T25:00:00Z", "20261130", 1,
                True,
                "0000-01-01", "10000-01-01", "2026-11-30 ", "٢٠٢٦-11-30", "0001-01-01T00:00:00+01:00",
                "9999-12-31T23:59:59-01:00", "2026-W48-1", "tomorrow", [], {}, 1e400, "2026-11-30T17:00Z",
                "2026-11-30T23:59:60Z", "2026-11-30T17:00:00+24:00",
            )
        ),
        *(("priority", each) for each in ("urgent", "HIGH", "", 1, None, ["high"])),
        *(
            ("tags", each)
            for each in (
                None, "home", [1], [""], [" "], ["a b"], ["a,b"], ["a\x00"], ["x" * 65], [["a"]], ["t"] * 33,
                ["\ud800"],
            )
        ),
        *(("project", each) for each in ("", "  ", "a\nb", "x" * 101, 1)),
        *(("recurrence", each) for each in ("", "x" * 501, 1, "FREQ=HOURLY")),
        *(
            ("time_zone", each)
            for each in ("", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "x" * 65, 1, "\0")
        ),
        *(("extra", each) for each in ([], "x", 1, {"a": "x" * 8192}, {"ü" * 4096: 1}, {"a": "\ud800"})),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused(api: httpx.AsyncClient, name: str, value: Any) -> None:
    """A bad value is 422 and names its member, in a create, a replacement and a patch; nothing changes."""
    made = await create(api, due_at="2026-11-30")
    body = json.dumps({"title": "x", "due_at": "2026-11-30", name: value}).replace("Infinity", "1e400")
    for answer in (
        await api.post(TASKS, content=body),
        await api.put(TASK, content=body),
        await api.patch(TASK, content=body),
    ):
        if "1e400" in body:
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        else:
            assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), answer.text
            assert answer.json()["errors"][0]["loc"][:2] == ["body", name]
    assert (await api.get(TASKS)).json()["items"] == [made]


async def test_tags_are_normalised(api: httpx.AsyncClient) -> None:
    """Tags are trimmed, in one Unicode form, lower case, sorted and there once."""
    made = await create(
        api, tags=["  Home", "ÄRGER", "A\u0308rger", "home", "zoo", "#1", "straße", "漢字", "x" * 64]
    )
    assert made["tags"] == ["#1", "home", "straße", "x" * 64, "zoo", "ärger", "漢字"]
    assert (await api.patch(TASK, json={"tags": ["#1", *made["tags"]]})).json()["version"] == 1


async def test_a_recurrence_needs_a_date(api: httpx.AsyncClient) -> None:
    """Neither a create nor a patch makes a task recur from no date, or takes the date of one that recurs."""
    problem = (await api.post(TASKS, json={"title": "x", "recurrence": "FREQ=DAILY"})).json()
    assert (problem["code"], "due date" in problem["detail"]) == ("validation_failed", True)
    made = await create(api)
    for body in ({"recurrence": "FREQ=DAILY"},):
        answer = await api.patch(TASK, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert answer.json()["errors"][0]["loc"] == ["body", "due_at"]
    assert (await api.get(TASK)).json() == made
    recurring = await api.patch(TASK, json={"recurrence": "FREQ=DAILY", "due_at": "2026-11-30"})
    assert recurring.status_code == 200
    for body in ({"due_at": None}, {"due_at": None, "completed": True}, {"recurrence": "x", "due_at": None}):
        assert (await api.patch(TASK, json=body)).status_code == 422
    assert (await api.get(TASK)).json() == recurring.json()
    assert (await api.patch(TASK, json={"due_at": None, "recurrence": None})).status_code == 200


async def test_fields_count_for_a_repeated_create(api: httpx.AsyncClient) -> None:
    """The same key with other tags is another content; with a default spelled out it is the same."""
    headers = {"Idempotency-Key": "k"}
    made = await api.post(TASKS, json={"title": "x", "tags": ["a"]}, headers=headers)
    again = await api.post(TASKS, json={"title": "x", "tags": [" A", "a"], "due_at": None}, headers=headers)
    assert (again.status_code, again.json()) == (201, made.json())
    other = await api.post(TASKS, json={"title": "x", "tags": ["b"]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def changes(database_url: str, user: User) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute(
            "SELECT number, type, task_id, task FROM change WHERE user_id = %s ORDER BY number", [user.id]
        )
        return await cursor.fetchall()


async def test_the_trash(api: httpx.AsyncClient) -> None:
    """What is deleted is gone for every operation but the list of the trash and `restore`."""
    made = await create(api, **FULL)
    await create(api, title="another")
    assert (await api.delete(TASK)).status_code == 204
    for answer in [
        await api.get(TASK),
        await api.delete(TASK),
        await api.put(TASK, json={"title": "y"}),
        await api.patch(TASK, json={"title": "y"}),
        await api.patch(TASK, json={}),
        await api.patch(f"{TASK}/complete"),
    ]:
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
    for status in ("all", "pending"):
        assert [task["id"] for task in (await api.get(f"{TASKS}?status={status}")).json()["items"]] == [2]
    trash = await api.get(f"{TASKS}?status=deleted")
    assert_wire(models.TaskPage, trash)
    [deleted] = trash.json()["items"]
    assert deleted == made | {
        "deleted_at": deleted["updated_at"], "updated_at": deleted["updated_at"], "version": 2
    }  # fmt: skip
    restored = await api.post(f"{TASK}/restore")
    assert_wire(models.Task, restored)
    assert restored.headers["etag"] == '"3"'
    assert restored.json() == made | {"version": 3, "updated_at": restored.json()["updated_at"]}
    assert (await api.post(f"{TASK}/restore")).json() == restored.json()
    assert (await api.get(f"{TASKS}?status=deleted")).json()["items"] == []
    assert (await api.get(TASK)).json() == restored.json()


async def test_the_trash_and_versions(api: httpx.AsyncClient) -> None:
    """Deleting and restoring heed `If-Match`, and what was never there is 404."""
    await create(api)
    stale, fresh = {"If-Match": '"9"'}, {"If-Match": '"1"'}
    assert (await api.delete(TASK, headers=stale)).status_code == 412
    assert (await api.delete(TASK, headers=fresh)).status_code == 204
    answer = await api.post(f"{TASK}/restore", headers=fresh)
    assert (answer.status_code, answer.json()["current_version"]) == (412, 2)
    assert (await api.post(f"{TASK}/restore", headers={"If-Match": '"2"'})).json()["version"] == 3
    assert (await api.post(f"{TASKS}/9/restore")).status_code == 404
    assert (await api.post(f"{TASKS}/x/restore")).status_code == 404


async def test_deleted_by_many_at_once(api: httpx.AsyncClient) -> None:
    """Of many that delete a task at the same moment one does, and the others find nothing."""
    await create(api)
    answers = await asyncio.gather(*(api.delete(TASK) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [204] + [404] * 19
    answers = await asyncio.gather(*(api.post(f"{TASK}/restore") for _ in range(20)))
    assert {(answer.status_code, answer.json()["version"]) for answer in answers} == {(200, 3)}


async def test_every_change_is_logged(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """The log has each change once, in order, with the task as it then was, and nothing else."""
    key = {"Idempotency-Key": "k"}
    seen = []
    for kind, answer in [
        ("created", await api.post(TASKS, json={"title": "x"}, headers=key)),
        (None, await api.post(TASKS, json={"title": "x"}, headers=key)),
        ("changed", await api.patch(TASK, json={"title": "y"})),
        (None, await api.patch(TASK, json={"title": "y"})),
        (None, await api.patch(TASK, json={"title": "z"}, headers={"If-Match": '"1"'})),
        ("completed", await api.patch(f"{TASK}/complete")),
        (None, await api.patch(f"{TASK}/complete")),
        ("reopened", await api.patch(f"{TASK}/complete", json={"completed": False})),
        ("changed", await api.put(TASK, json=FULL)),
        (None, await api.patch(f"{TASKS}/9", json={"title": "y"})),
    ]:
        if kind:
            seen.append((kind, answer.json()))
    await api.delete(TASK)
    seen.append(("deleted", (await api.get(f"{TASKS}?status=deleted")).json()["items"][0]))
    await api.delete(TASK)
    seen.append(("restored", (await api.post(f"{TASK}/restore")).json()))
    await api.post(f"{TASK}/restore")
    assert await changes(database_url, user) == [
        (number, kind, 1, task) for number, (kind, task) in enumerate(seen, 1)
    ]


async def test_numbers_of_changes_by_many_at_once(
    api: httpx.AsyncClient, database_url: str, user: User
) -> None:
    """Of many writers of one task each gets a number, and versions rise with the numbers."""
    await create(api)
    answers = await asyncio.gather(*(api.patch(TASK, json={"title": f"t{n}"}) for n in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    logged = await changes(database_url, user)
    assert [task["version"] for *_, task in logged] == list(range(1, 42))
    assert [number for number, *_ in logged] == sorted({number for number, *_ in logged})
