"""Quotas: how many tasks one may have, and how many bytes; counted exactly, whoever writes and how."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from conftest import (
    CONTENT,
    SECRET,
    Server,
    User,
    bare_environ,
    client_of,
    make_settings,
    make_user,
    running,
    taskctl,
)
from taskctl.server import migrations, users
from taskctl.server.queries import CREATE_TASK, octets

TASKS = "/api/v1/me/tasks"

RECURRING = {"title": "r", "due_at": "2099-11-30", "recurrence": "FREQ=DAILY"}

COUNTED = f"""
SELECT tasks, bytes, counted = last_change,
       (SELECT count(*) FROM task WHERE user_id = %(user)s AND deleted_at IS NULL),
       (SELECT coalesce(sum({octets()}), 0) FROM task WHERE user_id = %(user)s AND deleted_at IS NULL)
FROM account WHERE user_id = %(user)s
"""  # noqa: S608 - constants


@pytest.fixture
async def three(database_url: str, user: User) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose user may have three tasks."""
    async with running(database_url, user, TASKCTL_QUOTA_TASKS="3") as client:
        yield client


@pytest.fixture
async def hundred(database_url: str, user: User) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose user's texts may take a hundred bytes."""
    async with running(database_url, user, TASKCTL_QUOTA_BYTES="100") as client:
        yield client


async def create(api: httpx.AsyncClient, title: str = "x", **content: Any) -> httpx.Response:
    return await api.post(TASKS, json={"title": title, **content})


async def bulk(api: httpx.AsyncClient, *operations: dict[str, Any], atomic: bool = False) -> Any:
    """Each operation's status, or the quota that it was refused for, or why else."""
    answer = (await api.post(f"{TASKS}/bulk", json={"atomic": atomic, "operations": operations})).json()
    problems = [each.get("problem", {}) for each in answer["results"]]
    told = [problem.get("quota") or problem.get("code") for problem in problems]
    return [why or each["status"] for why, each in zip(told, answer["results"], strict=True)]


def make(title: str = "x", **content: Any) -> dict[str, Any]:
    return {"op": "create", "task": {"title": title, **content}}


def refused(answer: httpx.Response) -> tuple[str, int, int]:
    """The quota that was used up, how much of it is used, and how much there is."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (403, "quota_exceeded")
    assert f"{problem['used']} of the {problem['limit']} " in problem["detail"]
    return problem["quota"], problem["used"], problem["limit"]


async def is_counted(database_url: str, user: User) -> tuple[int, int]:
    """How many tasks and bytes are counted for a user, which is how many there are."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (await connection.execute(COUNTED, {"user": user.id})).fetchone()
    assert row is not None
    tasks, size, counted, really, really_size = row
    assert (tasks, size, counted) == (really, really_size, True)
    return tasks, size


async def test_no_more_tasks_than_that(three: httpx.AsyncClient, database_url: str, user: User) -> None:
    """One more is 403 and leaves nothing behind; all that does not add one still works."""
    first = {"Idempotency-Key": "k"}
    assert (await three.post(TASKS, json={"title": "a"}, headers=first)).status_code == 201
    assert (await create(three)).status_code == 201
    assert (await create(three, **RECURRING)).status_code == 201
    assert refused(await create(three)) == ("tasks", 3, 3)
    again = await three.post(TASKS, json={"title": "a"}, headers=first)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert (await three.patch(f"{TASKS}/1", json={"description": "longer"})).status_code == 200
    assert (await three.patch(f"{TASKS}/1/complete")).status_code == 200
    # The next one would be a fourth.
    assert refused(await three.patch(f"{TASKS}/3/complete")) == ("tasks", 3, 3)
    assert (await three.get(f"{TASKS}/3")).json()["version"] == 1
    assert await is_counted(database_url, user) == (3, 4 + len("longerFREQ=DAILY") - 1)
    assert (await three.delete(f"{TASKS}/1")).status_code == 204
    assert (await three.patch(f"{TASKS}/3/complete")).status_code == 200
    assert refused(await three.post(f"{TASKS}/1/restore")) == ("tasks", 3, 3)
    assert (await three.delete(f"{TASKS}/2")).status_code == 204
    assert (await three.post(f"{TASKS}/1/restore")).status_code == 200
    assert (await is_counted(database_url, user))[0] == 3


async def test_no_more_bytes_than_that(hundred: httpx.AsyncClient, database_url: str, user: User) -> None:
    """Bytes of UTF-8 in all texts are counted; what makes them more is 403, what makes them fewer is not."""
    assert refused(await create(hundred, "x", description="ä" * 50)) == ("bytes", 0, 100)
    made = await create(
        hundred, "ä" * 10, description="d" * 20, tags=["one", "two"], project="p", extra={"a": 1}
    )
    assert made.status_code == 201
    # Tags are kept with a space between; extra as compact JSON.
    assert await is_counted(database_url, user) == (1, 20 + 20 + 7 + 1 + 7)
    assert refused(await create(hundred, "x" * 46)) == ("bytes", 55, 100)
    assert (await create(hundred, "x" * 45)).status_code == 201
    assert refused(await hundred.patch(f"{TASKS}/2", json={"title": "x" * 46})) == ("bytes", 100, 100)
    assert refused(await hundred.put(f"{TASKS}/2", json={"title": "x" * 46})) == ("bytes", 100, 100)
    assert (
        await hundred.patch(f"{TASKS}/2", json={"title": "y" * 45, "priority": "high"})
    ).status_code == 200
    assert (await hundred.patch(f"{TASKS}/1", json={"description": None})).status_code == 200
    assert (await hundred.patch(f"{TASKS}/2", json={"title": "x" * 65})).status_code == 200
    assert await is_counted(database_url, user) == (2, 100)


async def test_in_bulk(three: httpx.AsyncClient, database_url: str, user: User) -> None:
    """Operations use up what is left in their order: all those that fit are done, or nothing."""
    assert await bulk(three, *(make() for _ in range(5))) == [201, 201, 201, "tasks", "tasks"]
    assert await is_counted(database_url, user) == (3, 3)
    remove = {"op": "delete", "id": 1}
    assert await bulk(three, make(), remove, atomic=True) == ["tasks", "bulk_refused"]
    assert await is_counted(database_url, user) == (3, 3)
    same = make("same") | {"key": "k"}
    assert await bulk(three, same, same) == ["tasks", "tasks"]
    assert await bulk(three, remove, same, same, make("longer"), atomic=False) == [204, 201, 201, "tasks"]
    assert await is_counted(database_url, user) == (3, 6)
    assert await bulk(three, {"op": "delete", "id": 4}, make(**RECURRING), atomic=True) == [204, 201]
    complete = {"op": "complete", "id": 5}
    patch = {"op": "patch", "id": 2, "changes": {"title": "new"}}
    assert await bulk(three, complete, patch) == ["tasks", 200]
    assert await bulk(three, {"op": "delete", "id": 3}, complete, {"op": "restore", "id": 1}) == [
        204,
        200,
        "tasks",
    ]
    assert (await is_counted(database_url, user))[0] == 3


async def test_bytes_in_bulk(hundred: httpx.AsyncClient, database_url: str, user: User) -> None:
    """What an operation frees, those after it may use; one that is refused still counts for them."""
    assert await bulk(hundred, make("x" * 60), make("y" * 41), make("z")) == [201, "bytes", "bytes"]
    shorter = {"op": "patch", "id": 1, "changes": {"title": "x" * 10}}
    assert await bulk(hundred, shorter, make("y" * 90)) == [200, 201]
    assert await is_counted(database_url, user) == (2, 100)


async def test_at_the_same_moment(database_url: str, user: User) -> None:
    """Of sixty creates at once, single and in bulk, the user's first, as many are made as are allowed."""
    async with running(database_url, user, TASKCTL_QUOTA_TASKS="20") as client:
        singles = asyncio.gather(*(create(client) for _ in range(40)))
        bulks = asyncio.gather(*(bulk(client, *(make() for _ in range(5))) for _ in range(4)))
        statuses = Counter(answer.status_code for answer in await singles)
        in_bulk = Counter(each for results in await bulks for each in results)
    assert statuses[201] + in_bulk[201] == 20
    assert (statuses[403], in_bulk["tasks"]) == (40 - statuses[201], 20 - in_bulk[201])
    assert (await is_counted(database_url, user))[0] == 20


async def test_room_that_comes_and_goes(three: httpx.AsyncClient) -> None:
    """While tasks are deleted and made at the limit, what is refused is told of the quota that there is."""
    for _ in range(3):
        await create(three)
    refusals: list[tuple[str, int, int]] = []

    async def restore() -> None:
        for _ in range(20):
            await three.delete(f"{TASKS}/1")
            answer = await three.post(f"{TASKS}/1/restore")
            if answer.status_code == 403:
                refusals.append(refused(answer))

    async def make_one() -> None:
        for _ in range(20):
            answer = await create(three)
            if answer.status_code == 201:
                await three.delete(f"{TASKS}/{answer.json()['id']}")
            elif answer.status_code == 403:
                refusals.append(refused(answer))

    await asyncio.gather(restore(), *(make_one() for _ in range(6)))
    assert set(refusals) == {("tasks", 3, 3)}


async def test_counted_whatever_is_done(app: FastAPI, database_url: str) -> None:
    """After any changes, many at the same moment, as many tasks and bytes are counted as there are."""
    user = make_user()
    chance = random.Random(7)  # noqa: S311 - no secret

    def change() -> tuple[str, str, Any]:
        task = f"{TASKS}/{chance.randrange(1, 12)}"
        text = {"title": "ö" * chance.randrange(1, 9), "tags": ["a", "b"][: chance.randrange(3)]}
        key = {"key": f"k{chance.randrange(9)}"}
        return chance.choice([
            ("POST", TASKS, text),
            ("POST", TASKS, text | RECURRING),
            ("PUT", task, text | {"description": "d" * chance.randrange(99)}),
            ("PATCH", task, {"extra": {"n": chance.randrange(10**9)}}),
            ("PATCH", f"{task}/complete", {"completed": chance.random() < 0.7}),
            ("DELETE", task, None),
            ("POST", f"{task}/restore", None),
            ("POST", f"{TASKS}/bulk", {"atomic": chance.random() < 0.3, "operations": [
                make(**text) | key,
                {"op": "complete", "id": chance.randrange(1, 12)},
                {"op": chance.choice(["delete", "restore"]), "id": chance.randrange(1, 12)},
                {"op": "patch", "id": chance.randrange(1, 12), "changes": text},
            ]}),
        ])  # fmt: skip

    async with client_of(app) as client:
        client.headers.update(user.headers)
        answers: list[httpx.Response] = []
        for _ in range(12):
            sent = (
                client.request(method, path, json=body)
                for method, path, body in (change() for _ in range(20))
            )
            answers += await asyncio.gather(*sent)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses.keys() <= {200, 201, 204, 404, 422}
    assert min(statuses[200], statuses[201], statuses[204]) > 10
    await is_counted(database_url, user)


@pytest.mark.parametrize("way", ["single", "bulk"])
async def test_what_an_earlier_release_wrote_is_counted(
    three: httpx.AsyncClient, database_url: str, user: User, way: str
) -> None:
    """A server that does not count, as before an upgrade and during it, does not lift the limit."""
    assert (await create(three)).status_code == 201
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(
            "UPDATE account SET last_task_id = 3, last_change = last_change + 2 WHERE user_id = %s", [user.id]
        )
        for number in (2, 3):
            await connection.execute(
                "INSERT INTO task (user_id, id, title, completed, version) VALUES (%s, %s, 'x', false, 1)",
                [user.id, number],
            )
    if way == "bulk":
        assert await bulk(three, make()) == ["tasks"]
    else:
        assert refused(await create(three)) == ("tasks", 3, 3)
    assert await is_counted(database_url, user) == (3, 3)


def test_of_one_user(empty_database: str, tmp_path: Path) -> None:
    """An operator gives one person more or less than others, and sees what they have."""
    settings = make_settings(empty_database)
    migrations.upgrade(settings)
    environ = bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=empty_database, TASKCTL_QUOTA_TASKS="5")

    def quota(*arguments: str) -> list[str]:
        done = taskctl("users", "quota", "ada", *arguments, environ=environ)
        assert (done.code, done.err) == (0, "")
        return [line.partition("\t")[2].replace("\t", "/") for line in done.out.splitlines()]

    assert taskctl("users", "quota", "ada", environ=environ).code == 5
    assert quota("--tasks", "1") == ["0/1", "0/no limit"]
    parameters = CONTENT | {"user_id": "ada", "digest": b"", "quota_tasks": 5}
    with psycopg.connect(empty_database, autocommit=True) as connection:
        assert connection.execute(CREATE_TASK.sql, parameters | {"key": "a"}).fetchone() is not None
        assert connection.execute(CREATE_TASK.sql, parameters | {"key": "b"}).fetchone() is None
        assert quota("--tasks", "none", "--bytes", "1GiB") == ["1/no limit", f"1/{1 << 30}"]
        assert quota("--tasks", "default") == ["1/5", f"1/{1 << 30}"]
        assert connection.execute(CREATE_TASK.sql, parameters | {"key": "b"}).fetchone() is not None
    assert next(users.list_users(settings)) | {"created_at": "", "changed_at": ""} == {
        "user_id": "ada", "tasks": 2, "pending": 2, "trash": 0, "bytes": 2, "quota_tasks": None,
        "quota_bytes": 1 << 30, "created_at": "", "changed_at": "",
    }  # fmt: skip
    for wrong in ("0", "-1", "many", "1e3", "9" * 30, "1_0"):
        done = taskctl("users", "quota", "ada", f"--tasks={wrong}", environ=environ)
        assert (done.code, "--tasks takes" in done.err) == (2, True)


def test_told_in_a_terminal(start_server: Any, database_url: str, tmp_path: Path, user: User) -> None:
    """`tasks add` says what is used up and what to do, and ends with 4."""
    server: Server = start_server(
        DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET, TASKCTL_ENV="test", TASKCTL_QUOTA_TASKS="1"
    )
    environ = bare_environ(tmp_path, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token)
    assert taskctl("tasks", "add", "one", environ=environ).code == 0
    done = taskctl("tasks", "add", "two", environ=environ)
    assert (done.code, "You have 1 of the 1 tasks that you may have: delete some." in done.err) == (4, True)
