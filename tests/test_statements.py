"""What PostgreSQL is asked, once a request and prepared; and that the bytes it makes are the wire model's."""

import re
from typing import Any

import httpx
import psycopg
import pytest

from conftest import User, make_settings, running
from taskctl import models
from taskctl.server import migrations
from taskctl.server.embedded import EmbeddedPostgres

pytestmark = pytest.mark.usefixtures("executor")

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"

OPERATIONS = [
    ("GET", TASKS, {}),
    ("GET", f"{TASKS}?status=pending&order=desc&limit=1", {}),
    ("GET", f"{TASKS}?status=completed", {}),
    ("POST", TASKS, {"json": {"title": "x"}}),
    ("POST", TASKS, {"json": {"title": "x"}, "headers": {"Idempotency-Key": "key"}}),
    ("GET", TASK, {}),
    ("GET", TASK, {"headers": {"If-None-Match": "*"}}),
    ("HEAD", TASK, {}),
    ("GET", f"{TASKS}/99", {}),
    ("PUT", TASK, {"json": {"title": "New"}}),
    ("PUT", TASK, {"json": {"title": "Old"}}),
    ("PATCH", TASK, {"json": {"description": "New"}}),
    ("PATCH", TASK, {"json": {}}),
    ("PATCH", TASK, {"json": {"title": "x"}, "headers": {"If-Match": '"1", "2"'}}),
    ("PATCH", TASK, {"json": {"title": "x"}, "headers": {"If-Match": '"9"'}}),
    ("PATCH", TASK, {"json": {"title": "x"}, "headers": {"If-Match": 'W/"1"'}}),
    ("PATCH", f"{TASKS}/99", {"json": {"title": "x"}}),
    ("PATCH", f"{TASK}/complete", {}),
    ("PATCH", f"{TASK}/complete", {"json": {"completed": False}}),
    ("DELETE", TASK, {}),
    ("DELETE", TASK, {"headers": {"If-Match": '"9"'}}),
    ("DELETE", f"{TASKS}/99", {}),
]

REFUSED = [
    ("GET", "/api/v1/other/tasks", {}),
    ("GET", f"{TASKS}?x=1", {}),
    ("GET", f"{TASKS}?cursor=x", {}),
    ("POST", TASKS, {"json": {}}),
    ("POST", TASKS, {"content": b"{"}),
    ("POST", TASKS, {"json": {"title": "x"}, "headers": {"Idempotency-Key": "a b"}}),
    ("PUT", TASK, {"json": {"title": "x"}, "headers": {"If-Match": "x"}}),
    ("GET", "/livez", {}),
    ("GET", "/nowhere", {}),
]

TEXTS = [
    "plain",
    "é ü ß ñ Ω 漢字 العربية हिन्दी",
    "🥛 👩\u200d👩\u200d👧 \U0001f1fa\U0001f1f8 \U0010fffd",
    "\"double\" 'single' `back` \\ \\\\ \\n \\u0041 / </script> & < >",
    "\u2028 \u2029 \u200b \ufeff \u202e \u00a0 \ufffd \uffff",
    "%s %(title)s $1 {x} ; -- /* */ \\x00 null true 1e400",
    "a\u0301 vs á",
]
LINES = ["", " ", "\t", "\n", "\r\n", "a\tb\nc\r\nd\r", "\\\t\"\n'", "x" * 10_000, "🥛\n" * 5_000]
MOMENTS = [
    "2026-01-02T03:04:05Z",
    "2026-01-02T03:04:05.000001Z",
    "2026-01-02T03:04:05.1Z",
    "2026-12-31T23:59:59.999999Z",
    "2026-07-01T00:00:00+05:30",
    "1970-01-01T00:00:00Z",
    "0099-03-04T05:06:07Z",
    "9999-12-31T23:59:59.5Z",
]


async def execute(database_url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        cursor = await connection.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else []


async def backend(database_url: str) -> int:
    """The process that serves the application's only connection."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'taskctl'"
    )
    ((pid,),) = await execute(database_url, query)
    return int(pid)


def assert_wire(model: type[models.Task | models.TaskPage], answer: httpx.Response) -> None:
    assert answer.is_success, answer.text
    assert model.model_validate_json(answer.content).model_dump_json().encode() == answer.content


def seen(postgres: EmbeddedPostgres, pid: int, start: int) -> list[str]:
    """What a backend has logged since: `execute` for each prepared execution, `statement` for plain text."""
    with postgres.log.open("rb") as log:
        log.seek(start)
        lines = log.read().decode().splitlines()
    marked = [line.partition(f"[{pid}] LOG:  ")[2] for line in lines]
    return [line for line in marked if line.startswith(("execute ", "statement: "))]


@pytest.fixture
def logged_database(postgres: EmbeddedPostgres, empty_database: str) -> str:
    """A migrated database whose every statement goes to PostgreSQL's log."""
    migrations.upgrade(make_settings(empty_database))
    with psycopg.connect(empty_database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")  # type: ignore[arg-type]
    assert postgres.log.exists()
    return empty_database


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
async def test_bytes_are_the_wire_models(api: httpx.AsyncClient, text: str) -> None:
    """Every operation answers byte for byte what the wire model serialises."""
    content = {"title": text, "description": text}
    headers = {"Idempotency-Key": "key"}
    made = await api.post(TASKS, json=content, headers=headers)
    assert made.json()["title"] == text.strip()
    assert made.json()["description"] == text
    for answer in [
        made,
        await api.post(TASKS, json=content, headers=headers),
        await api.get(TASK),
        await api.put(TASK, json={"title": text + "!"}),
        await api.patch(TASK, json={"description": text}),
        await api.patch(TASK, json={}),
        await api.patch(f"{TASK}/complete"),
        await api.patch(f"{TASK}/complete"),
        await api.patch(f"{TASK}/complete", json={"completed": False}),
    ]:
        assert_wire(models.Task, answer)
    await api.post(TASKS, json={"title": "second", "completed": True})
    for query in ("", "?limit=1", "?order=desc&limit=1", "?status=pending", "?status=completed", "?limit=2"):
        assert_wire(models.TaskPage, await api.get(TASKS + query))


@pytest.mark.parametrize("description", LINES, ids=lambda text: ascii(text)[:30])
async def test_description_bytes_are_the_wire_models(api: httpx.AsyncClient, description: str) -> None:
    """Line breaks, tabs and the longest descriptions come back as they went in, in the model's bytes."""
    made = await api.post(TASKS, json={"title": "x", "description": description})
    assert made.json()["description"] == description
    assert_wire(models.Task, made)
    assert_wire(models.TaskPage, await api.get(TASKS))


async def test_empty_page_is_the_wire_models(api: httpx.AsyncClient) -> None:
    """An empty page, and an empty last page, are the model's bytes too."""
    assert_wire(models.TaskPage, await api.get(TASKS))
    await api.post(TASKS, json={"title": "x"})
    assert_wire(models.TaskPage, await api.get(f"{TASKS}?status=completed"))


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
async def test_timestamps_are_the_wire_models(
    database_url: str, user: User, api: httpx.AsyncClient, moment: str, zone: str
) -> None:
    """Times are UTC with six digits, as in the model, whatever the time and the session's time zone."""
    await api.post(TASKS, json={"title": "x", "completed": True})
    await execute(
        database_url,
        "UPDATE task SET created_at = %s, updated_at = %s, completed_at = %s WHERE user_id = %s",
        *[moment] * 3,
        user.id,
    )
    url = f"{database_url}&options=-c%20TimeZone%3D{zone.replace('/', '%2F')}%20-c%20DateStyle%3DGerman"
    async with running(url, user, TASKCTL_POOL_SIZE="1") as client:
        answer = await client.get(TASK)
        assert_wire(models.Task, answer)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", answer.json()["created_at"])
        assert_wire(models.TaskPage, await client.get(TASKS))


async def test_largest_numbers_are_the_wire_models(
    database_url: str, user: User, api: httpx.AsyncClient
) -> None:
    """Ids and versions at the end of 64 bits are read, listed and served exactly."""
    await api.post(TASKS, json={"title": "x"})
    largest = 2**63 - 1
    await execute(
        database_url, "UPDATE task SET id = %s, version = %s WHERE user_id = %s", largest, largest, user.id
    )
    answer = await api.get(f"{TASKS}/{largest}")
    assert answer.headers["etag"] == f'"{largest}"'
    assert answer.json()["id"] == answer.json()["version"] == largest
    assert_wire(models.Task, answer)
    for order in ("asc", "desc"):
        assert (await api.get(f"{TASKS}?order={order}")).json()["items"] == [answer.json()]


async def test_one_prepared_statement_per_request(
    postgres: EmbeddedPostgres, logged_database: str, user: User
) -> None:
    """Every operation, whatever comes of it, is one prepared statement in autocommit; a refusal is none."""
    async with running(logged_database, user, TASKCTL_POOL_SIZE="1") as client:
        await client.post(TASKS, json={"title": "Old"})
        pid = await backend(logged_database)
        for operations, expected in ((OPERATIONS, 1), (REFUSED, 0), (OPERATIONS, 1)):
            for method, path, options in operations:
                start = postgres.log.stat().st_size
                answer = await client.request(method, path, **options)
                assert answer.status_code < 500, answer.text
                executed = seen(postgres, pid, start)
                assert len(executed) == expected, (method, path, executed)
                assert all(re.match(r"execute (_pg3_\w+|[a-z_]+_\d+):", each) for each in executed), executed


async def test_statements_are_prepared_once(
    logged_database: str, postgres: EmbeddedPostgres, user: User
) -> None:
    """A request like one before executes what was prepared then."""
    async with running(logged_database, user, TASKCTL_POOL_SIZE="1") as client:
        rounds = []
        for number in (1, 2):
            start = postgres.log.stat().st_size
            for method, path, options in OPERATIONS:
                await client.request(method, path.replace("/1", f"/{number}"), **options)
            pid = await backend(logged_database)
            rounds.append({each.split(":")[0] for each in seen(postgres, pid, start)})
        assert rounds[1] <= rounds[0]


async def test_nothing_stays_open(database_url: str, user: User) -> None:
    """Between requests no connection is inside a transaction."""
    url = f"{database_url}&application_name={user.id}"
    async with running(url, user) as client:
        for method, path, options in OPERATIONS:
            await client.request(method, path, **options)
        states = await execute(
            database_url,
            "SELECT state FROM pg_stat_activity WHERE pid IN"
            " (SELECT pid FROM pg_stat_activity WHERE application_name IN ('taskctl', %s))",
            user.id,
        )
    assert states
    assert {state for (state,) in states} == {"idle"}
