"""Tasks that recur: completing one creates the next, in the same statement and once."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest

from conftest import User
from taskctl import models
from test_api_fields import changes, create
from test_statements import assert_wire

pytestmark = pytest.mark.usefixtures("executor")

TASKS = "/api/v1/me/tasks"
TASK = f"{TASKS}/1"
DAILY = {"due_at": "2020-01-01", "recurrence": "FREQ=DAILY"}
BERLIN = {"time_zone": "Europe/Berlin"}


async def tasks(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await api.get(TASKS)
    assert_wire(models.TaskPage, answer)
    return list(answer.json()["items"])


@pytest.mark.parametrize(
    "sent",
    [
        ("PATCH", f"{TASK}/complete", None),
        ("PATCH", TASK, {"completed": True}),
        ("PUT", TASK, {"title": "Water the plants", "completed": True, "tags": ["home"], **DAILY}),
    ],
    ids=["complete", "change", "replace"],
)
async def test_completing_creates_the_next(
    api: httpx.AsyncClient, database_url: str, user: User, sent: tuple[str, str, Any]
) -> None:
    """Whatever completes it, what follows is a copy at the next date that is still to come, and is named."""
    made = await create(api, title="Water the plants", tags=["home"], **DAILY)
    method, path, body = sent
    answer = await api.request(method, path, json=body)
    assert_wire(models.Task, answer)
    done, following = await tasks(api)
    assert done == answer.json()
    assert (done["completed"], done["next_id"], done["version"]) == (True, 2, 2)
    assert date.fromisoformat(following["due_at"]) > datetime.now(UTC).date()
    same = ("title", "description", "priority", "tags", "project", "recurrence", "time_zone", "extra")
    assert {name: following[name] for name in same} == {name: made[name] for name in same}
    assert (following["completed"], following["next_id"], following["version"]) == (False, None, 1)
    logged = [(number, kind, task) for number, kind, _, task in await changes(database_url, user)]
    kind = "completed" if path.endswith("complete") else "changed"
    assert logged == [(1, "created", made), (2, kind, done), (3, "created", following)]


async def test_once_however_often_it_is_sent(api: httpx.AsyncClient) -> None:
    """Many at the same moment, again, and after it was reopened: there is one that follows."""
    await create(api, **DAILY)
    answers = await asyncio.gather(*(api.patch(f"{TASK}/complete") for _ in range(30)))
    assert {(answer.status_code, answer.json()["version"]) for answer in answers} == {(200, 2)}
    await api.patch(f"{TASK}/complete", json={"completed": False})
    again = (await api.patch(f"{TASK}/complete")).json()
    assert (again["completed"], again["next_id"], again["version"]) == (True, 2, 4)
    assert [task["id"] for task in await tasks(api)] == [1, 2]


async def test_a_stale_version_creates_nothing(api: httpx.AsyncClient) -> None:
    """`If-Match` is heeded: of many who complete the version that all have seen, one does."""
    await create(api, **DAILY)
    assert (await api.patch(f"{TASK}/complete", headers={"If-Match": '"7"'})).status_code == 412
    assert len(await tasks(api)) == 1
    answers = await asyncio.gather(
        *(api.patch(f"{TASK}/complete", headers={"If-Match": '"1"'}) for _ in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
    assert len(await tasks(api)) == 2


async def test_changed_and_completed_at_once(api: httpx.AsyncClient) -> None:
    """What a patch says of the rule, the date and the zone counts for what follows."""
    await create(api)
    body = {"recurrence": "FREQ=YEARLY", "due_at": "2020-02-29", "completed": True}
    assert (await api.patch(TASK, json=body)).json()["next_id"] == 2
    following = (await api.get(f"{TASKS}/2")).json()["due_at"]
    assert (following[4:], int(following[:4]) % 4) == ("-02-29", 0)
    body = {"recurrence": None, "completed": True}
    assert (await api.patch(f"{TASKS}/2", json=body)).json()["next_id"] is None
    assert len(await tasks(api)) == 2


async def test_a_rule_ends(api: httpx.AsyncClient) -> None:
    """The last of a rule is completed like any other task, and nothing follows."""
    await create(api, due_at="2020-01-01", recurrence="FREQ=DAILY;UNTIL=20200105")
    done = (await api.patch(f"{TASK}/complete")).json()
    assert (done["completed"], done["next_id"]) == (True, None)
    assert len(await tasks(api)) == 1


async def test_a_counted_rule(api: httpx.AsyncClient) -> None:
    """COUNT becomes one less with each, until the last."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    await create(api, due_at=tomorrow.isoformat(), recurrence="FREQ=DAILY;COUNT=3")
    for number in (1, 2, 3):
        assert (await api.patch(f"{TASKS}/{number}/complete")).status_code == 200
    expected = [
        ((tomorrow + timedelta(days=n)).isoformat(), f"FREQ=DAILY;COUNT={3 - n}", n + 2 if n < 2 else None)
        for n in range(3)
    ]
    seen = [(task["due_at"], task["recurrence"], task["next_id"]) for task in await tasks(api)]
    assert [each[0] for each in seen] == [each[0] for each in expected]
    assert [each[2] for each in seen] == [each[2] for each in expected]
    assert seen[0][1] == "FREQ=DAILY;COUNT=3"
    assert "COUNT=2" in seen[1][1]
    assert "COUNT=3" not in seen[2][1]


async def test_a_wall_clock_time_is_kept(api: httpx.AsyncClient) -> None:
    """Across a change to summer time a task stays at its time of day in its zone, not in UTC."""
    await create(api, due_at="2090-03-25T09:00:00+01:00", recurrence="FREQ=DAILY", **BERLIN)
    await create(api, due_at="2090-03-25T09:00:00+01:00", recurrence="FREQ=DAILY")
    for number in (1, 2):
        await api.patch(f"{TASKS}/{number}/complete")
    *_, there, here = await tasks(api)
    assert (there["due_at"], here["due_at"]) == ("2090-03-26T07:00:00.000000Z", "2090-03-26T08:00:00.000000Z")


async def test_what_follows_is_deleted_alone(api: httpx.AsyncClient) -> None:
    """Deleting what follows leaves the completed one, which creates no other when it is completed again."""
    await create(api, **DAILY)
    await api.patch(f"{TASK}/complete")
    assert (await api.delete(f"{TASKS}/2")).status_code == 204
    await api.patch(f"{TASK}/complete", json={"completed": False})
    assert (await api.patch(f"{TASK}/complete")).json()["next_id"] == 2
    assert [task["id"] for task in await tasks(api)] == [1]


@pytest.mark.parametrize(
    "rule", ["FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "FREQ=SECONDLY", "daily", "FREQ=DAILY;COUNT=0"]
)
async def test_rules_that_cannot_be(api: httpx.AsyncClient, rule: str) -> None:
    """A rule that is none is refused with what is wrong with it."""
    answer = await api.post(TASKS, json={"title": "x", "due_at": "2026-11-30", "recurrence": rule})
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["body", "recurrence"])
