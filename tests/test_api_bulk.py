"""Many operations in one request: each as a request of its own, all or nothing, once, and among others."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Server, User, client_of, make_user, running
from taskctl import errors
from taskctl.bulk import BulkAnswer
from taskctl.client import Client
from taskctl.server.bulk import BULK, BULK_ONCE

TASKS = "/api/v1/me/tasks"
BULK_PATH = f"{TASKS}/bulk"

RECURRING = {"title": "r", "due_at": "2099-11-30", "recurrence": "FREQ=DAILY"}


async def bulk(
    api: httpx.AsyncClient, *given: dict[str, Any], atomic: bool = False, key: str | None = None
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await api.post(BULK_PATH, json={"atomic": atomic, "operations": given}, headers=headers)


async def done(api: httpx.AsyncClient, *given: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The results, which are the wire model's byte for byte."""
    answer = await bulk(api, *given, **options)
    assert answer.status_code == 200, answer.text
    model = BulkAnswer.model_validate_json(answer.content)
    assert model.model_dump_json(exclude_unset=True).encode() == answer.content
    return list(answer.json()["results"])


def make(title: str = "x", key: str | None = None, **content: Any) -> dict[str, Any]:
    return {"op": "create", "task": {"title": title, **content}} | ({} if key is None else {"key": key})


def short(results: list[dict[str, Any]]) -> list[Any]:
    """Each result's status, or the code of its problem."""
    return [each.get("problem", {}).get("code", each["status"]) for each in results]


async def changes(database_url: str, user_id: str) -> list[tuple[int, str, int, dict[str, Any]]]:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute(
            "SELECT number, type, task_id, task FROM change WHERE user_id = %s ORDER BY number", [user_id]
        )
        return await cursor.fetchall()


@contextlib.asynccontextmanager
async def somebody(app: FastAPI) -> AsyncIterator[tuple[httpx.AsyncClient, User]]:
    """A client of a user who has no tasks yet."""
    user = make_user()
    async with client_of(app) as client:
        client.headers.update(user.headers)
        yield client, user


async def test_everything_at_once(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """Each kind of operation has its result, its id and its line in the log, in the order that was sent."""
    assert short(await done(api, *(make(f"t{n}") for n in range(1, 6)))) == [201] * 5
    await api.delete(f"{TASKS}/5")
    results = await done(
        api,
        make("new", tags=["B", "a"], extra={"n": "\u0000%s"}, completed=True),
        {"op": "patch", "id": 1, "changes": {"title": "one", "completed": True}},
        {"op": "complete", "id": 2},
        {"op": "delete", "id": 3.0, "if_version": 1},
        {"op": "restore", "id": 5},
        {"op": "complete", "id": 4, "completed": False},
        make("last"),
    )
    assert short(results) == [201, 200, 200, 204, 200, 200, 201]
    assert [each["task"]["id"] for each in results if "task" in each] == [6, 1, 2, 5, 4, 7]
    for each in results:
        if "task" in each:
            assert (await api.get(f"{TASKS}/{each['task']['id']}")).json() == each["task"]
    logged = (await changes(database_url, user.id))[6:]
    kinds = ["created", "changed", "completed", "deleted", "restored", "created"]
    assert [line[:3] for line in logged] == list(zip(range(7, 13), kinds, [6, 1, 2, 3, 5, 7], strict=True))
    feed = (await api.get("/api/v1/me/changes")).json()["items"]
    assert [(each["number"], each["type"], each["task"]) for each in feed[6:]] == [
        (number, kind, task) for number, kind, _, task in logged
    ]
    told = {each["task"]["id"]: each["task"] for each in results if "task" in each}
    assert [task for *_, number, task in logged if number != 3] == [told[n] for n in (6, 1, 2, 5, 7)]
    trash = (await api.get(f"{TASKS}?status=deleted")).json()["items"]
    assert logged[3][3] == trash[0]


async def test_without_the_pipeline(database_url: str, user: User) -> None:
    """Behind a pooler, where statements have sessions of their own, it is the same."""
    async with running(database_url, user, TASKCTL_PIPELINE="off") as api:
        answers = await asyncio.gather(
            *(bulk(api, make(**RECURRING), {"op": "delete", "id": 9}, key="k") for _ in range(5))
        )
        assert len({answer.content for answer in answers}) == 1
        assert short(answers[0].json()["results"]) == [201, "task_not_found"]
        [completed] = await done(api, {"op": "complete", "id": 1}, atomic=True)
        assert completed["task"]["next_id"] == 2


async def test_all_or_nothing(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """One operation that cannot be done keeps all others from being done, and the results tell which."""
    await done(api, make(key="k"), make(**RECURRING), make())
    before = await changes(database_url, user.id)
    for bad, code in [
        ({"op": "complete", "id": 9}, "task_not_found"),
        ({"op": "delete", "id": 3, "if_version": 2}, "version_conflict"),
        (make("other", key="k"), "idempotency_key_reused"),
        ({"op": "patch", "id": 3, "changes": {"recurrence": "FREQ=DAILY"}}, "validation_failed"),
    ]:
        answer = await bulk(api, make(), {"op": "complete", "id": 2}, bad, atomic=True, key="whole")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (422, "bulk_refused")
        assert short(problem["results"]) == ["bulk_refused", "bulk_refused", code]
        assert [each["status"] for each in problem["results"][:2]] == [424, 424]
    assert await changes(database_url, user.id) == before
    # What was refused has used neither the key nor an id.
    assert (await done(api, make(), atomic=True, key="whole"))[0]["task"]["id"] == 4


async def test_each_on_its_own(api: httpx.AsyncClient) -> None:
    """What cannot be done says why, with what a person needs to go on, and the rest is done."""
    await done(api, make(), make())
    results = await done(
        api,
        {"op": "patch", "id": 1, "changes": {"title": "y"}, "if_version": 7},
        make(""),
        {"op": "patch", "id": 2, "changes": {"recurrence": "FREQ=DAILY"}},
        make("fine"),
        {"op": "patch", "id": 9, "changes": {"tags": None, "project": "\n"}},
    )
    stale, empty, undated, fine, invalid = results
    assert stale["problem"]["current_version"] == 1
    assert empty["problem"]["errors"][0]["loc"] == ["body", "operations", 1, "task", "title"]
    assert undated["problem"]["errors"][0]["loc"] == ["body", "operations", 2, "changes", "due_at"]
    assert (fine["status"], fine["task"]["id"]) == (201, 3)
    assert len(invalid["problem"]["errors"]) == 2
    assert [each["status"] for each in results] == [412, 422, 422, 201, 422]
    assert short(await done(api, make(""), make("x" * 201))) == ["validation_failed"] * 2


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, ["operations"]),
        ({"operations": []}, ["operations"]),
        ({"operations": [make()] * 501}, ["operations"]),
        ({"operations": {}}, ["operations"]),
        ({"operations": [make()], "atomic": None}, ["atomic"]),
        ({"operations": [make()], "x": 1}, ["x"]),
        ({"operations": [make(), 1]}, ["operations", 1]),
        ({"operations": [{"op": "erase", "id": 1}]}, ["operations", 0]),
        ({"operations": [{"id": 1}]}, ["operations", 0]),
        ({"operations": [{"op": "create"}]}, ["operations", 0, "task"]),
        ({"operations": [make() | {"x": 1}]}, ["operations", 0, "x"]),
        ({"operations": [make(key="a b")]}, ["operations", 0, "key"]),
        *(
            ({"operations": [{"op": "delete", "id": number}]}, ["operations", 0, "id"])
            for number in (0, 2**53, "1", 1.5)
        ),
        ({"operations": [{"op": "delete", "id": 1, "if_version": 0}]}, ["operations", 0, "if_version"]),
        ({"operations": [{"op": "complete", "id": 1}, {"op": "delete", "id": 1}]}, ["operations", 1, "id"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("atomic", [True, False])
async def test_malformed_requests(
    api: httpx.AsyncClient, body: dict[str, Any], where: list[Any], atomic: bool
) -> None:
    """What is no list of operations is refused as a whole, with the place of what is wrong."""
    problem = (await api.post(BULK_PATH, json={"atomic": atomic} | body)).json()
    assert problem["code"] == "validation_failed"
    assert problem["errors"][0]["loc"] == ["body", *where]
    assert (await api.get(TASKS)).json()["items"] == []


async def test_an_unknown_op_is_not_repeated(api: httpx.AsyncClient) -> None:
    """The refusal of an `op` says what there is, and nothing of what was sent."""
    for op in ("secret", ["secret"], None):
        answer = await bulk(api, {"op": op, "id": 1})
        assert answer.status_code == 422
        assert "secret" not in answer.text
        assert "restore" in answer.json()["errors"][0]["msg"]


async def test_malformed_content(api: httpx.AsyncClient) -> None:
    """All or nothing: bad content is refused before anything is done, and its place is told."""
    problem = (await bulk(api, make(), make(""), make(tags=["a b"]), atomic=True)).json()
    assert problem["code"] == "validation_failed"
    assert [each["loc"] for each in problem["errors"]] == [
        ["body", "operations", 1, "task", "title"],
        ["body", "operations", 2, "task", "tags", 0],
    ]
    repeated = (await bulk(api, make(""), {"op": "delete", "id": 1}, {"op": "delete", "id": 1})).json()
    assert repeated["errors"][0]["loc"] == ["body", "operations", 2, "id"]
    assert "Operation 1" in repeated["detail"]
    too_long = await bulk(api, *[make(description="x" * 9000)] * 50)
    assert (too_long.status_code, "send less" in too_long.json()["detail"]) == (413, True)
    assert (await api.get(TASKS)).json()["items"] == []


async def test_only_posted(api: httpx.AsyncClient) -> None:
    """Another method is refused, and not taken for one on a task."""
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = await api.request(method, BULK_PATH, json={"title": "x"})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_importing_twice_is_once(api: httpx.AsyncClient) -> None:
    """Creates with keys are found again, also among themselves; no id is spent on them."""
    lines = [make(f"t{n % 400}", key=f"k{n % 400}") for n in range(500)]
    first = await done(api, *lines)
    again = await done(api, *lines)
    assert [each["task"]["id"] for each in first] == [n % 400 + 1 for n in range(500)]
    assert [each.get("replayed", False) for each in first] == [n >= 400 for n in range(500)]
    assert [each | {"replayed": True} for each in first] == again
    clash, made = await done(api, make("other", key="k1"), make("last", key="k400"))
    assert clash["problem"]["code"] == "idempotency_key_reused"
    assert made["task"]["id"] == 401
    two = await done(api, make("a", key="n"), make("b", key="n"), make("a", key="n"))
    assert [each["status"] for each in two] == [201, 422, 201]
    await api.delete(f"{TASKS}/1")
    assert (await done(api, lines[0]))[0]["task"]["id"] == 403
    single = await api.post(TASKS, json={"title": "t1"}, headers={"Idempotency-Key": "k1"})
    assert (single.json()["id"], single.headers["idempotency-replayed"]) == (2, "true")


async def test_the_whole_is_done_once(api: httpx.AsyncClient, app: FastAPI) -> None:
    """The same key and content is answered as the first time, whatever has happened since."""
    given = [make(), make(""), {"op": "complete", "id": 1}]
    first = await bulk(api, *given, key="k")
    assert "idempotency-replayed" not in first.headers
    await api.patch(f"{TASKS}/1", json={"title": "since"})
    again = await bulk(api, *given, key="k")
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    for other in ([*given, make()], [given[0], make(completed=3), given[2]], given[:1]):
        assert (await bulk(api, *other, key="k")).json()["code"] == "idempotency_key_reused"
    assert (await bulk(api, *given, atomic=True, key="other")).json()["code"] == "validation_failed"
    assert (await bulk(api, make(), key="a b")).json()["code"] == "bad_request"
    async with somebody(app) as (client, _):
        assert "idempotency-replayed" not in (await bulk(client, *given, key="k")).headers


async def test_the_whole_is_done_once_at_the_same_moment(
    api: httpx.AsyncClient, database_url: str, user: User
) -> None:
    """Of twenty that are the same, the user's first, one is done and all have its answer."""
    answers = await asyncio.gather(*(bulk(api, make("a"), make("b"), key="k") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(await changes(database_url, user.id)) == 2


async def test_a_recurring_task_goes_on_once(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """Completed by many requests at once, a recurring task has one successor, with the next number."""
    await done(api, make(**RECURRING), make(), make(**RECURRING | {"recurrence": "FREQ=YEARLY"}))
    given = [
        {"op": "complete", "id": 1},
        {"op": "complete", "id": 2},
        {"op": "patch", "id": 3, "changes": {"completed": True, "recurrence": "FREQ=WEEKLY", "title": "w"}},
        make("after"),
    ]
    for atomic in (True, False):
        answers = await asyncio.gather(*(bulk(api, *given[:3], atomic=atomic) for _ in range(8)))
        assert {short(answer.json()["results"]) == [200] * 3 for answer in answers} == {True}
    results = await done(api, *given)
    assert [each["task"]["next_id"] for each in results] == [4, None, 5, None]
    assert results[3]["task"]["id"] == 6
    for number, due_at in ((4, "2099-12-01"), (5, "2099-12-07")):
        following = (await api.get(f"{TASKS}/{number}")).json()
        assert (following["due_at"], following["completed"], following["version"]) == (due_at, False, 1)
    assert following["title"] == "w"
    assert [(kind, number) for _, kind, number, _ in (await changes(database_url, user.id))[3:]] == [
        ("completed", 1), ("created", 4), ("completed", 2), ("changed", 3), ("created", 5), ("created", 6),
    ]  # fmt: skip


async def test_among_other_writers(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """Bulk requests and single ones on the same tasks lose nothing and skip no version."""
    await done(api, *(make("0") for _ in range(6)))

    async def count_up(client: httpx.AsyncClient) -> None:
        while True:
            tasks = (await client.get(TASKS)).json()["items"][:2]
            patches = [
                {"op": "patch", "id": task["id"], "if_version": task["version"],
                 "changes": {"title": str(int(task["title"]) + 1)}} for task in tasks
            ]  # fmt: skip
            answer = await bulk(client, *patches, atomic=True)
            if answer.status_code == 200:
                return
            assert answer.json()["code"] == "bulk_refused"

    titles = [
        [{"op": "patch", "id": n, "changes": {"title": f"b{k}"}} for n in (6, 5, 4, 3)] for k in range(8)
    ]
    mixed = [
        [{"op": "delete", "id": 3}, {"op": "complete", "id": 1 + k % 2, "completed": False}, make()]
        for k in range(8)
    ]
    others = [
        *(bulk(api, *each) for each in [*titles, *mixed]),
        *(api.patch(f"{TASKS}/{n}", json={"title": f"s{k}"}) for n in (3, 4, 5, 6) for k in range(5)),
        *(api.post(f"{TASKS}/3/restore") for _ in range(4)),
        *(api.post(TASKS, json={"title": "x"}) for _ in range(4)),
    ]
    answers, _ = await asyncio.gather(
        asyncio.gather(*others), asyncio.gather(*(count_up(api) for _ in range(6)))
    )
    assert {answer.status_code for answer in answers} <= {200, 201, 404}
    for number in (1, 2):
        assert (await api.get(f"{TASKS}/{number}")).json()["title"] == "6"
    logged = await changes(database_url, user.id)
    versions: Counter[int] = Counter()
    for _, _, number, task in logged:
        versions[number] += 1
        assert task["version"] == versions[number]


@contextlib.asynccontextmanager
async def holding(database_url: str, user: User) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Another writer of this user's, which has their account and has not committed yet."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute(
            "UPDATE account SET last_task_id = last_task_id + 1, last_change = last_change + 1"
            " WHERE user_id = %s",
            [user.id],
        )
        yield connection


async def wait_for_lock(database_url: str, pid: int) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        while (await (await connection.execute(query, [pid])).fetchone()) == (0,):
            pass


async def test_what_came_while_it_waited(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """What another writer commits while a request waits for it is what the request finds."""
    await done(api, make("a"), make("b"), make("c", key="freed"))
    async with holding(database_url, user) as other:
        await other.execute(
            "UPDATE task SET title = 'theirs', version = version + 1 WHERE user_id = %s AND id < 3", [user.id]
        )
        await other.execute(
            "UPDATE task SET idempotency_key = NULL, idempotency_digest = NULL, deleted_at = now()"
            " WHERE user_id = %s AND id = 3",
            [user.id],
        )
        waiting = asyncio.create_task(
            done(
                api,
                {"op": "complete", "id": 1},
                {"op": "complete", "id": 2, "if_version": 1},
                {"op": "complete", "id": 3},
                make("e", key="freed"),
            )
        )
        await wait_for_lock(database_url, other.info.backend_pid)
        await other.commit()
        results = await waiting
    assert [each["status"] for each in results] == [200, 412, 404, 201]
    assert (results[0]["task"]["title"], results[0]["task"]["version"]) == ("theirs", 3)
    assert results[3]["task"]["id"] == 5


async def test_a_key_that_came_while_it_waited(api: httpx.AsyncClient, database_url: str, user: User) -> None:
    """A key that another writer uses while a request waits for it is a used one, and the rest is undone."""
    await done(api, make())
    async with holding(database_url, user) as other:
        await other.execute(
            "INSERT INTO task (user_id, id, title, completed, version, idempotency_key, idempotency_digest)"
            " VALUES (%s, 2, 'd', false, 1, 'k', 'other')",
            [user.id],
        )
        waiting = asyncio.create_task(bulk(api, make("a"), make("b", key="k"), atomic=True))
        await wait_for_lock(database_url, other.info.backend_pid)
        await other.commit()
        answer = await waiting
    assert short(answer.json()["results"]) == ["bulk_refused", "idempotency_key_reused"]
    assert [task["id"] for task in (await api.get(TASKS)).json()["items"]] == [1, 2]


CONTENTS: dict[str, st.SearchStrategy[Any]] = {
    "title": st.sampled_from(["x", "y ", "", "z\n"]),
    "completed": st.booleans(),
    "tags": st.sampled_from([[], ["B", "a"], ["a b"]]),
    "due_at": st.sampled_from([None, "2099-01-01", "2099-01-01T10:00:00Z"]),
    "recurrence": st.sampled_from([None, "FREQ=DAILY", "FREQ=YEARLY"]),
    "priority": st.sampled_from(["none", "high"]),
    "extra": st.sampled_from([None, {}, {"a": [1]}]),
}
OTHERS = {name: each for name, each in CONTENTS.items() if name != "title"}
CHANGES = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["patch", "patch", "complete", "delete", "restore"]),
        "id": st.sampled_from([1, 2, 3, 4, 5, 99]),
        "if_version": st.sampled_from([None, None, 1, 2]),
        "changes": st.fixed_dictionaries({}, optional=CONTENTS),
        "completed": st.booleans(),
    }
)
CREATES = st.fixed_dictionaries(
    {
        "op": st.just("create"),
        "task": st.fixed_dictionaries({"title": CONTENTS["title"]}, optional=OTHERS),
        "key": st.sampled_from([None, "old", "new", "newer"]),
    }
)
MEMBERS = {"patch": {"changes"}, "complete": {"completed"}}
REQUESTS = st.tuples(
    st.lists(CHANGES, max_size=6, unique_by=lambda each: each["id"]),
    st.lists(CREATES, min_size=1, max_size=4),
).flatmap(lambda both: st.permutations([*both[0], *both[1]]))


@settings(max_examples=25, deadline=None)
@given(REQUESTS)
async def test_as_one_by_one(app: FastAPI, database_url: str, drawn: list[dict[str, Any]]) -> None:
    """Each on its own, operations do and answer what single requests do, down to the log of changes."""
    given = [
        each
        if each["op"] == "create"
        else {name: each[name] for name in {"op", "id", "if_version"} | MEMBERS.get(each["op"], set())}
        for each in drawn
    ]
    outcomes = []
    for send in (bulk_results, single_results):
        async with somebody(app) as (client, user):
            await done(client, make(), make(**RECURRING), make(completed=True), make(), make())
            await client.delete(f"{TASKS}/4")
            await done(client, make("old", key="old"))
            results = await send(client, given)
            logged = [(n, kind, task) for n, kind, _, task in await changes(database_url, user.id)]
            outcomes.append(comparable([results, logged]))
    assert outcomes[0] == outcomes[1]


async def bulk_results(client: httpx.AsyncClient, given: list[dict[str, Any]]) -> list[Any]:
    results = await done(client, *given)
    return [
        [each["status"], each.get("task"), each.get("replayed", False), each.get("problem", {}).get("code")]
        for each in results
    ]


async def single_results(client: httpx.AsyncClient, given: list[dict[str, Any]]) -> list[Any]:
    results: list[Any] = []
    for each in given:
        path = f"{TASKS}/{each.get('id')}"
        headers = {"If-Match": f'"{each["if_version"]}"'} if each.get("if_version") else {}
        match each["op"]:
            case "create":
                headers = {} if each["key"] is None else {"Idempotency-Key": each["key"]}
                answer = await client.post(TASKS, json=each["task"], headers=headers)
            case "patch":
                answer = await client.patch(path, json=each["changes"], headers=headers)
            case "complete":
                answer = await client.patch(
                    f"{path}/complete", json={"completed": each["completed"]}, headers=headers
                )
            case "delete":
                answer = await client.delete(path, headers=headers)
            case _:
                answer = await client.post(f"{path}/restore", headers=headers)
        body = answer.json() if answer.content else None
        task = body if answer.is_success else None
        code = None if answer.is_success else body["code"]
        results.append([answer.status_code, task, "idempotency-replayed" in answer.headers, code])
    return results


def comparable(value: Any) -> Any:
    """Without who and when."""
    if isinstance(value, dict):
        return {
            name: each is not None if name.endswith("_at") and name != "due_at" else comparable(each)
            for name, each in value.items()
            if name != "user_id"
        }
    return [comparable(each) for each in value] if isinstance(value, list | tuple) else value


def test_what_may_be_run_again() -> None:
    """With a key the statement may be repeated after a lost connection, without one it may not."""
    assert BULK.may_repeat({})
    assert not BULK_ONCE.may_repeat({})


def test_the_client(server: Server, user: User) -> None:
    """The client returns the results, sends a key by itself, and raises what was refused."""
    with Client(server.url, user.token) as client:
        results = client.bulk([make(), {"op": "complete", "id": 9}], atomic=False, idempotency_key="k")
        assert short(list(map(dict, results))) == [201, "task_not_found"]
        assert (
            client.bulk([make(), {"op": "complete", "id": 9}], atomic=False, idempotency_key="k") == results
        )
        with pytest.raises(errors.BulkRefused) as refused:
            client.bulk([{"op": "complete", "id": 9}])
        assert refused.value.members["results"][0]["status"] == 404
        with pytest.raises(errors.UsageInvalid):
            client.bulk([make()], idempotency_key="a b")
