"""Finding: what filters, words and sorts let through, in which order, on pages that join without a seam."""

import base64
import random
import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql

from conftest import User, client_of, make_settings, make_user, running
from taskctl.list_query import ListQuery
from taskctl.server import cursors, lists, migrations
from taskctl.server.embedded import EmbeddedPostgres
from taskctl.server.lists import FAR, FEW, NEAR, DueFilter, Shape
from taskctl.server.pipeline import numbered
from taskctl.server.queries import Statement
from taskctl.server.sessions import PREPARED_MAX
from taskctl.vocabulary import Order, Priority, Sort, Status

TASKS = "/api/v1/me/tasks"

SORTS = [each.value for each in Sort]
ORDERS = [each.value for each in Order]
STATUSES = [each.value for each in Status]

FILTERS: list[dict[str, Any]] = [
    {},
    {"q": "milk"},
    {"q": "cafe berlin", "project": "Home"},
    {"tag": "home"},
    {"tag": ["home", "urgent"]},
    {"tag": "nobody-has-this"},
    {"project": "Home"},
    {"project": "home"},
    {"priority": "high"},
    {"priority": "none", "tag": "home"},
    {"due": "none"},
    {"due": "none", "priority": "low"},
    {"due": "any"},
    {"due": "overdue"},
    {"due": "overdue", "tag": "urgent"},
    {"due": "today", "tz": "Pacific/Kiritimati"},
    {"due": "week", "tz": "America/New_York"},
    {"due": "2026-03-28..2026-03-29", "tz": "Europe/Berlin"},
    {"due": "2026-03-29.."},
    {"due": "..2026-03-29T00:30:00Z", "tz": "America/New_York"},
    {"due": "2026-03-28T23:00:00+01:00..2026-03-29", "priority": "medium"},
    {"completed_after": "2026-01-03"},
    {"completed_after": "2026-01-02", "completed_before": "2026-01-04T12:00:00Z", "tz": "Asia/Tokyo"},
]


async def walk(api: httpx.AsyncClient, limit: int, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """All tasks of a list, page by page, each full but for the last."""
    tasks: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await api.get(TASKS, params={**parameters, "limit": limit, **cursor})
        assert answer.status_code == 200, (parameters, answer.text)
        page = answer.json()
        tasks += page["items"]
        if page["next_cursor"] is None:
            assert page["items"] or not cursor
            return tasks
        assert len(page["items"]) == limit
        cursor = {"cursor": page["next_cursor"]}


async def ids(api: httpx.AsyncClient, **parameters: Any) -> list[int]:
    return [task["id"] for task in await walk(api, 200, parameters)]


def folded(text: str) -> str:
    """A text without case and accents."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", text) if not 0x300 <= ord(each) <= 0x36F)
    return plain.lower().translate(str.maketrans("øłđħı", "oldhi"))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", folded(text).replace("ß", "ss")))


def local(moment: str, zone: str) -> date:
    return datetime.fromisoformat(moment).astimezone(ZoneInfo(zone)).date()


def due_matches(task: dict[str, Any], due: str, zone: str, now: datetime) -> bool:
    """Whether a due date is what is asked for, as the documentation has it."""
    at = task["due_at"]
    if at is None or due in {"none", "any"}:
        return (at is None) == (due == "none")
    today, all_day = now.astimezone(ZoneInfo(zone)).date(), len(at) == 10
    day = date.fromisoformat(at) if all_day else local(at, zone)
    if due == "overdue":
        return not task["completed"] and (day < today if all_day else datetime.fromisoformat(at) < now)
    if due in {"today", "week"}:
        return today <= day < today + timedelta(days=7 if due == "week" else 1)
    first, last = due.split("..")
    for bound, is_first in ((first, True), (last, False)):
        if not bound:
            continue
        if len(bound) == 10:
            good = day >= date.fromisoformat(bound) if is_first else day <= date.fromisoformat(bound)
        elif all_day:
            moment = datetime.fromisoformat(bound)
            edge = (
                (moment if is_first else moment - timedelta(microseconds=1)).astimezone(ZoneInfo(zone)).date()
            )
            good = day >= edge if is_first else day <= edge
        else:
            moment = datetime.fromisoformat(bound)
            good = (datetime.fromisoformat(at) >= moment) is is_first
        if not good:
            return False
    return True


def matches(task: dict[str, Any], asked: dict[str, Any], status: str, now: datetime) -> bool:
    zone = asked.get("tz", "UTC")
    state = "deleted" if task["deleted_at"] else "completed" if task["completed"] else "pending"
    if status != state and (status != "all" or state == "deleted"):
        return False
    tags = asked.get("tag", [])
    done = task["completed_at"]
    for name, is_first in (("completed_after", True), ("completed_before", False)):
        if (bound := asked.get(name)) is None:
            continue
        if done is None:
            return False
        later = (
            local(done, zone) >= date.fromisoformat(bound)
            if len(bound) == 10
            else datetime.fromisoformat(done) >= datetime.fromisoformat(bound)
        )
        if later is not is_first:
            return False
    found = words(f"{task['title']} {task['description'] or ''}")
    return (
        all(any(word.startswith(each) for word in found) for each in words(asked.get("q", "")))
        and set([tags] if isinstance(tags, str) else tags) <= set(task["tags"])
        and asked.get("project") in {None, task["project"]}
        and asked.get("priority") in {None, task["priority"]}
        and ("due" not in asked or due_matches(task, asked["due"], zone, now))
    )


def sort_key(task: dict[str, Any], sort: str) -> tuple[Any, int]:
    at = task["due_at"]
    key: Any = {
        "id": 0,
        "created": 0,
        "due": (at is None, at if at is None or len(at) > 10 else f"{at}T00:00:00.000000Z"),
        "priority": list(Priority).index(task["priority"]),
        "updated": task["updated_at"],
        "title": folded(task["title"])[:100],
    }[sort]
    return key, task["id"]


TITLES = ["Buy milk", "buy Milk", "Büy milk", "Café in Berlin", "cafe, berlin!", "Zürich", "zulu", "Ærø", "a"]


async def fill(app: FastAPI, user: User, database_url: str) -> None:
    """Give somebody tasks of every kind, with many ties and nulls."""
    chance = random.Random(6)  # noqa: S311 - no secret
    now = datetime.now(UTC)
    dues = [
        None,
        None,
        "2026-03-28",
        "2026-03-29",
        "2026-03-29T00:30:00Z",
        "2026-03-28T23:00:00Z",
        "9999-12-31",
    ]
    dues += [(now + timedelta(hours=hours)).isoformat() for hours in (-30, -3, 3, 30, 200)]
    dues += [(now + timedelta(days=days)).date().isoformat() for days in range(-2, 9)]
    async with client_of(app) as client:
        client.headers.update(user.headers)
        for number in range(1, 91):
            task = {
                "title": chance.choice(TITLES),
                "description": chance.choice([None, "Milk, please", "in Berlin"]),
                "due_at": chance.choice(dues),
                "priority": chance.choice(list(Priority)),
                "tags": chance.sample(["home", "urgent", "café"], chance.randrange(4)),
                "project": chance.choice([None, "Home", "home", "Work"]),
                "completed": chance.random() < 0.4,
            }
            assert (await client.post(TASKS, json=task)).status_code == 201
            if chance.random() < 0.1:
                assert (await client.delete(f"{TASKS}/{number}")).status_code == 204
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE task SET updated_at = timestamptz '2026-01-01Z' + id %% 5 * interval '1 hour',"
            " completed_at = CASE WHEN completed"
            "  THEN timestamptz '2026-01-01Z' + id %% 9 * interval '11 hours' END"
            " WHERE user_id = %s",
            [user.id],
        )


@pytest.fixture(scope="module")
async def many(app: FastAPI, database_url: str) -> User:
    """Somebody whose tasks no test of this module changes."""
    user = make_user()
    await fill(app, user, database_url)
    return user


async def test_lists_are_what_filtering_and_sorting_in_python_makes(app: FastAPI, many: User) -> None:
    """Every sort, order and status gives with every filter the same tasks in the same order, on any pages.

    Every one without filters, and some of the others, drawn anew each time.
    """
    drawn = random.Random()  # noqa: S311 - no secret
    combined = list(product(FILTERS[1:], STATUSES, SORTS, ORDERS))
    cases = [*product(FILTERS[:1], STATUSES, SORTS, ORDERS), *drawn.sample(combined, 150)]
    cases += [(each, "all", "due", "desc") for each in FILTERS]
    async with client_of(app) as client:
        client.headers.update(many.headers)
        everything = await walk(client, 200, {}) + await walk(client, 200, {"status": "deleted"})
        assert len(everything) == 90
        for asked, status, sort, order in cases:
            parameters = asked | {"status": status, "sort": sort, "order": order}
            before = datetime.now(UTC)
            found = await walk(client, drawn.choice([3, 7, 40]), parameters)
            expected = [
                sorted(
                    (task for task in everything if matches(task, asked, status, now)),
                    key=lambda task: sort_key(task, sort),
                    reverse=order == "desc",
                )
                for now in (before, datetime.now(UTC))
            ]
            assert found in expected, parameters


async def test_exact_count(app: FastAPI, many: User) -> None:
    """`count=exact` counts the tasks of all pages; without it nothing is counted."""
    async with client_of(app) as client:
        client.headers.update(many.headers)
        for asked, status, sort in product(FILTERS, ("all", "pending"), ("id", "title")):
            parameters = asked | {"status": status, "sort": sort}
            total = len(await ids(client, **parameters))
            page = (await client.get(TASKS, params=parameters | {"limit": 1, "count": "exact"})).json()
            assert page["count"] == total, parameters
            assert list(page) == ["items", "next_cursor", "count"]
            if page["next_cursor"]:
                further = parameters | {"cursor": page["next_cursor"], "count": "exact"}
                assert (await client.get(TASKS, params=further)).json()["count"] == total
            assert "count" not in (await client.get(TASKS, params=parameters | {"limit": 1})).json()


SEARCHED = {
    1: "Buy milk at Müller's",
    2: "Crème brûlée for Ægir, Łukasz and Straßer",
    3: "Zahnarzt: Termin!",
    4: "買牛奶和麵包",
    5: "東京タワーへ行く",
    6: "ΕΛΛΆΔΑ и Привет",
    7: "C:\\path 'quoted' & a|b (c) d:*",
    8: "🥛 order-4711/b",
    9: "\uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48 \ufb01le",
    10: "x" * 60,
}


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("milk", [1]),
        ("MIL", [1]),
        ("ilk", []),
        ("milk buy", [1]),
        ("milk tea", []),
        ("muller", [1]),
        ("MÜLLER", [1]),
        ("mu\u0308ller", [1]),
        ("creme brulee", [2]),
        ("aegir lukasz strass", [2]),
        ("Straß", [2]),
        ("termin zahn", [3]),
        ("zahnarzt:", [3]),
        ("牛奶", [4]),
        ("麵包 買", [4]),
        ("奶牛", []),
        ("タワー", [5]),
        ("ελλαδα", [6]),
        ("ПРИВ", [6]),
        ("c path", [7]),
        ("'quoted'", [7]),
        ("a|b", [1, 2, 7]),
        ("d:*", [7]),
        ("\\", []),
        ("🥛", [8]),
        ("4711", [8]),
        ("order-4711", [8]),
        ("full width file", [9]),
        ("x" * 60, [10]),
        ("x" * 31 + "y", []),
        ("...", []),
        ("'", []),
        ("%", []),
    ],
)
async def test_words(app: FastAPI, searched: User, q: str, found: list[int]) -> None:
    """All words of `q` are, or begin, words of title or description, whatever their case and accents."""
    async with client_of(app) as client:
        client.headers.update(searched.headers)
        assert await ids(client, q=q) == found


@pytest.fixture(scope="module")
async def searched(app: FastAPI) -> User:
    """Somebody with tasks to search for, and another one with the same."""
    for user in (make_user(), make_user()):
        async with client_of(app) as client:
            client.headers.update(user.headers)
            for title in SEARCHED.values():
                assert (await client.post(TASKS, json={"title": title})).status_code == 201
    return user


async def test_search_follows_every_change(api: httpx.AsyncClient) -> None:
    """What was changed, completed, deleted or restored is found as what it is now."""
    await api.post(TASKS, json={"title": "One", "description": "alpha beta", "tags": ["t"]})
    assert await ids(api, q="alph") == await ids(api, q="alpha", tag="t", status="pending") == [1]
    await api.patch(f"{TASKS}/1", json={"description": "gamma", "tags": []})
    assert (await ids(api, q="alpha"), await ids(api, tag="t"), await ids(api, q="gam")) == ([], [], [1])
    await api.patch(f"{TASKS}/1/complete")
    assert (await ids(api, q="gam", status="pending"), await ids(api, q="gam", status="completed")) == (
        [],
        [1],
    )
    await api.delete(f"{TASKS}/1")
    assert (await ids(api, q="gam"), await ids(api, q="gam", status="deleted")) == ([], [1])
    await api.post(f"{TASKS}/1/restore")
    assert await ids(api, q="gam") == [1]


ZONES = {
    "Europe/Berlin": ["2026-03-29", "2026-10-25"],
    "America/New_York": ["2026-03-08", "2026-11-01"],
    "America/Havana": ["2026-11-01"],  # where midnight comes twice
    "America/Sao_Paulo": ["2018-11-04"],  # where there was none
    "Pacific/Apia": ["2011-12-31"],  # where a day was left out
    "Pacific/Kiritimati": ["2026-11-30"],
    "Etc/GMT+12": ["2026-11-30"],
    "Asia/Kathmandu": ["2026-11-30"],
}


@pytest.mark.parametrize("zone", ZONES)
async def test_days_are_those_of_the_zone(
    api: httpx.AsyncClient, user: User, database_url: str, zone: str
) -> None:
    """A day begins and ends where it does in `tz`, on either side of midnight and of a change of the clocks.

    Dates without a time belong to their day everywhere.
    """
    for day in map(date.fromisoformat, ZONES[zone]):
        start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=40)
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DELETE FROM task WHERE user_id = %s", [user.id])
            connection.execute(
                "INSERT INTO task (user_id, id, title, completed, completed_at, version, due_at, due_all_day)"
                " SELECT %(user)s, n, 'x', true, at, 1, at, n %% 96 = 0 FROM generate_series(1, 400) AS n,"
                " LATERAL (SELECT CASE WHEN n %% 96 = 0"
                "  THEN date_trunc('day', %(start)s::timestamptz, 'UTC') + n / 96 * interval '1 day'"
                "  ELSE %(start)s + n * interval '15 minutes' - n %% 2 * interval '1 microsecond' END AS at)",
                {"user": user.id, "start": start},
            )
        tasks = await walk(api, 200, {})
        for ahead in (-1, 0, 1):
            asked = (day + timedelta(days=ahead)).isoformat()
            following = (day + timedelta(days=ahead + 1)).isoformat()
            expected = [task["id"] for task in tasks if due_matches(task, f"{asked}..{asked}", zone, start)]
            assert await ids(api, due=f"{asked}..{asked}", tz=zone) == expected
            done = [task["id"] for task in tasks if local(task["completed_at"], zone).isoformat() == asked]
            assert await ids(api, completed_after=asked, completed_before=following, tz=zone) == done
            assert expected or zone == "Pacific/Apia"


async def test_today_is_that_of_the_zone(api: httpx.AsyncClient) -> None:
    """Where it is another day already, other tasks are due today, overdue or due this week."""
    first = datetime.now(UTC).date() - timedelta(days=3)
    for number in range(14):
        await api.post(TASKS, json={"title": "x", "due_at": (first + timedelta(days=number)).isoformat()})
    tasks = await walk(api, 200, {})
    for zone, due in product(("Etc/GMT+12", "UTC", "Pacific/Kiritimati"), ("overdue", "today", "week")):
        before = datetime.now(UTC)
        found = await ids(api, due=due, tz=zone)
        assert found in [
            [task["id"] for task in tasks if due_matches(task, due, zone, now)]
            for now in (before, datetime.now(UTC))
        ]
        assert found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sort", ["due", "priority", "title", "updated"])
async def test_pages_join_while_tasks_change(api: httpx.AsyncClient, sort: str, order: str) -> None:
    """What is changed, deleted or created between two pages hides no other task and repeats none."""
    for number in range(12):
        due = None if number % 3 == 0 else f"2026-05-{1 + number // 4:02}"
        task = {"title": f"T{number // 4}", "due_at": due, "priority": list(Priority)[number // 4]}
        await api.post(TASKS, json=task)
    parameters = {"sort": sort, "order": order}
    expected = await ids(api, **parameters)
    page = (await api.get(TASKS, params=parameters | {"limit": 4})).json()
    first = [task["id"] for task in page["items"]]
    # The task at which the next page would begin, one that was seen, and one that comes yet.
    await api.delete(f"{TASKS}/{expected[4]}")
    await api.patch(f"{TASKS}/{expected[1]}", json={"description": "seen"})
    await api.delete(f"{TASKS}/{expected[7]}")
    made = (await api.post(TASKS, json={"title": "new"})).json()["id"]
    rest = await ids(api, **parameters, cursor=page["next_cursor"])
    untouched = [each for each in expected[4:] if each not in {expected[4], expected[7]}]
    assert first == expected[:4]
    assert [each for each in rest if each not in {made, expected[1]}] == untouched


async def test_cursor_belongs_to_its_list(api: httpx.AsyncClient) -> None:
    """A cursor is refused by a list with another sort, order or filter, and kept by another page size."""
    for number in range(4):
        await api.post(TASKS, json={"title": f"x{number}", "tags": ["a", "b"], "due_at": "2026-05-01"})
    lists_of = [
        {"sort": "due"},
        {"sort": "title"},
        {"sort": "due", "tag": "a"},
        {"sort": "due", "tag": "b"},
        {"sort": "due", "status": "pending"},
        {"sort": "due", "order": "desc"},
        {"q": "x"},
        {"due": "any"},
        {"due": "any", "tz": "Asia/Tokyo"},
        {},
    ]
    for given, used in product(lists_of, lists_of):
        cursor = (await api.get(TASKS, params=given | {"limit": 1})).json()["next_cursor"]
        answer = await api.get(TASKS, params=used | {"limit": 3, "cursor": cursor})
        assert answer.status_code == (200 if given == used else 400), (given, used)
        if given != used:
            assert answer.json()["code"] == "bad_request"


def forged(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("sort", "keys"),
    [
        (
            "due",
            [
                "x",
                "now",
                "2026-01-01",
                "2026-02-30T00:00:00.000000Z",
                "0000-01-01T00:00:00.000000Z",
                "-infinity",
            ],
        ),
        ("updated", ["tomorrow", "99999-01-01T00:00:00.000000Z"]),
        ("priority", ["4", "-1", "1.5", "99999999999", "one"]),
        ("title", ["a\0b"]),
        ("id", ["x"]),
    ],
)
async def test_forged_keys(api: httpx.AsyncClient, sort: str, keys: list[str]) -> None:
    """A cursor whose key its sort cannot have is 400, and never asked of the database."""
    query = ListQuery.model_validate({"sort": sort, "tag": ["a"]})
    start = base64.urlsafe_b64decode(cursors.encode(cursors.Place(1, None), query) + "==").decode()
    for key in keys:
        answer = await api.get(TASKS, params={"sort": sort, "tag": "a", "cursor": forged(start + key)})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), key


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_titles_without_letters_are_walked_past(api: httpx.AsyncClient, order: str) -> None:
    """Titles of nothing but accents, which are sorted by an empty text, do not lead a reader back."""
    for title in ("a", "\u0301", "\u0302", "b"):
        await api.post(TASKS, json={"title": title})
    found, cursor = [], {}
    for _ in range(4):
        page = (await api.get(TASKS, params={"sort": "title", "order": order, "limit": 1, **cursor})).json()
        found += [task["id"] for task in page["items"]]
        cursor = {"cursor": page["next_cursor"]}
    assert (found, page["next_cursor"]) == ([2, 3, 1, 4] if order == "asc" else [4, 1, 3, 2], None)


async def test_cursors_of_before_still_lead_on(api: httpx.AsyncClient) -> None:
    """A cursor that was given out before there were sorts is good for lists by id."""
    for _ in range(3):
        await api.post(TASKS, json={"title": "x"})
    for parameters in ({}, {"status": "pending"}, {"sort": "id"}, {"sort": "created"}):
        assert await ids(api, **parameters, cursor=forged("asc:2")) == [2, 3]


async def test_link_keeps_every_parameter(api: httpx.AsyncClient) -> None:
    """`Link` leads to the next page of the same list, whatever characters its filters have."""
    project = "Häuser & Gärten, 50% = ½ #1?"
    for number in range(3):
        await api.post(TASKS, json={"title": f"größer {number}", "tags": ["ä&b", "c"], "project": project})
    sent = [
        ("tag", "ä&b"),
        ("tag", "c"),
        ("q", "grö"),
        ("project", project),
        ("limit", "1"),
        ("sort", "title"),
    ]
    seen, url, parameters = [], TASKS, httpx.QueryParams(sent)
    for _ in range(3):
        answer = await api.get(url, params=parameters)
        assert answer.status_code == 200, answer.text
        seen += [task["id"] for task in answer.json()["items"]]
        if "link" in answer.headers:
            assert answer.headers["link"].isascii()
            target = urlsplit(answer.headers["link"].partition(">")[0].removeprefix("<"))
            assert (target.path, parse_qsl(target.query)[:-1]) == (TASKS, sent)
            url, parameters = target.geturl(), httpx.QueryParams(parse_qsl(target.query))
    assert seen == [1, 2, 3]
    assert "link" not in answer.headers


@pytest.mark.parametrize(
    "query",
    [
        "q=",
        "q=" + "x" * 201,
        "q=a%00b",
        "q=a&q=b",
        "tag=",
        "tag=a%20b",
        "tag=" + "x" * 65,
        "&".join(["tag=a"] * 33),
        "project=",
        "project=a&project=b",
        "priority=urgent",
        "priority=1",
        "due=",
        "due=..",
        "due=tomorrow",
        "due=2026-13-01..",
        "due=2026-01-01",
        "due=2026-01-01..2026-01-02..2026-01-03",
        "due=2026-01-01T00:00:00..",
        "completed_after=yesterday",
        "completed_before=",
        "tz=",
        "tz=Mars/Olympus",
        "tz=localtime",
        "tz=%2Fetc%2Fpasswd",
        "sort=",
        "sort=ID",
        "sort=due&sort=due",
        "count=true",
        "count=",
    ],
)
async def test_wrong_values(api: httpx.AsyncClient, query: str) -> None:
    """A filter that is not understood is 422, and the error names it: it never returns everything."""
    answer = await api.get(f"{TASKS}?{query}")
    assert answer.status_code == 422, answer.text
    for error in answer.json()["errors"]:
        assert error["loc"][:2] == ["query", query.partition("=")[0]]
        assert all(isinstance(part, int) for part in error["loc"][2:])
        assert error["type"] != "none_required"


async def test_text_that_was_not_encoded(api: httpx.AsyncClient) -> None:
    """Letters that a client put into the URL as they are, in UTF-8, are understood."""
    await api.post(TASKS, json={"title": "Käse"})
    assert [task["id"] for task in (await api.get(f"{TASKS}?q=Käse")).json()["items"]] == [1]


@pytest.mark.usefixtures("executor")
async def test_prepared_statements_are_bounded(database_url: str, user: User) -> None:
    """Whatever lists are asked for, a session keeps no more statements prepared than it may."""
    async with running(database_url, user, TASKCTL_POOL_SIZE="1") as client:
        for asked, status, sort, order in product(FILTERS[1:9], ("all", "pending"), SORTS, ORDERS):
            parameters = asked | {"status": status, "sort": sort, "order": order, "limit": 1}
            assert (await client.get(TASKS, params=parameters)).status_code == 200
        database = client._transport.app.state.service.database
        counted = Statement("counted", "SELECT count(*) FROM pg_prepared_statements", reads_only=True)
        (count,) = await database.fetch(counted, {})
        assert PREPARED_MAX / 2 < count <= PREPARED_MAX


SHAPES = [
    *(Shape(status, sort, order) for status, sort, order in product(Status, Sort, Order)),
    *(
        Shape(status, sort, order, **filters)
        for status, sort, order, filters in product(
            (Status.all, Status.pending),
            (Sort.id, Sort.due, Sort.priority, Sort.updated, Sort.title),
            Order,
            [
                {"terms": True},
                {"priority": True},
                {"terms": True, "priority": True},
                {"terms": True, "due": DueFilter.overdue},
                {"completed_at": True},
                *({"due": due} for due in DueFilter),
            ],
        )
    ),
]
"""What a person asks for, by all but words."""

VALUES = {
    "user_id": "owner", "limit": 50, "start": None, "key": None, "q": "task 17", "tags": "t5",
    "project": None, "priority": 3, "tz": "Europe/Berlin", "due_days": 7, "due_from": None, "due_to": None,
    "due_first": "2026-11-01Z", "due_last": "2026-11-30Z", "done_from": None, "done_to": None,
    "done_first": "2026-10-01Z", "done_before": "2026-11-01Z",
}  # fmt: skip


@pytest.fixture(scope="module")
def million(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """A database with a hundred thousand tasks of one user among a million, of which nothing is known yet.

    They are scattered among those of others, and ordered by nothing.
    """
    with psycopg.connect(postgres.url, autocommit=True) as outside:
        outside.execute("CREATE DATABASE million")
        url = postgres.url.replace("/taskctl?", "/million?")
        migrations.upgrade(make_settings(url))
        with psycopg.connect(url, autocommit=True) as connection:
            made = "SELECT indexdef FROM pg_indexes WHERE tablename = 'task'"
            indexes = [definition for (definition,) in connection.execute(made).fetchall()]
            # Indexes are built once all is there, and the rules were tested elsewhere.
            connection.execute("CREATE UNLOGGED TABLE bare (LIKE task INCLUDING DEFAULTS)")
            connection.execute("DROP TABLE task")
            connection.execute("ALTER TABLE bare RENAME TO task")
            connection.execute(
                """
                INSERT INTO task (user_id, id, title, completed, completed_at, version, updated_at, due_at,
                                  due_all_day, priority, tags, project)
                SELECT CASE WHEN big THEN 'owner' ELSE 'user-' || n % 9000 END, n,
                       CASE WHEN big THEN 'Task ' || n % 5000 || ' of ' || n % 7 ELSE 'x' END, n % 3 = 0,
                       CASE WHEN n % 3 = 0 THEN now() - n % 100000 * 7919 % 100000 * interval '1 minute' END,
                       1, now() - n % 100000 * 6521 % 100000 * interval '1 second',
                       CASE WHEN n % 5 > 0 THEN date_trunc('day', now()) + n % 700 * interval '1 day'
                            - interval '350 days' END,
                       n % 5 > 0, CASE WHEN n % 97 = 0 THEN 3 ELSE n % 3 END,
                       CASE WHEN big THEN ARRAY['t' || n % 50] ELSE '{}' END
                           || CASE WHEN n <= 6000 THEN ARRAY['old'] ELSE '{}' END,
                       CASE WHEN big THEN 'p' || n % 20 END
                FROM generate_series(1, 1000000) AS m,
                     LATERAL (SELECT m % 10 = 0 AS big, CASE WHEN m % 10 > 0 THEN m ELSE m / 10 END AS n)
                """
            )
            connection.execute("SET maintenance_work_mem = '512MB'")
            for definition in indexes:
                connection.execute(definition)
            yield connection
        outside.execute("DROP DATABASE million WITH (FORCE)")


def plan(connection: psycopg.Connection[Any], shape: Shape, **values: Any) -> list[dict[str, Any]]:
    """The nodes that were run of a statement's plan, which knew none of the values."""
    text, names = numbered(lists.statement(shape).sql)
    literals = sql.SQL(", ").join(sql.Literal((VALUES | values)[name]) for name in names)
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute(b"PREPARE listed AS " + text)
    explain = sql.SQL("EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF, FORMAT JSON) EXECUTE listed({})").format(
        literals
    )
    ((found,),) = connection.execute(explain).fetchall()
    connection.execute("DEALLOCATE listed")
    nodes, waiting = [], [found[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        if node.get("Actual Loops"):
            nodes.append(node)
    return nodes


def rows_read(nodes: list[dict[str, Any]]) -> float:
    """How many rows of tasks were looked at."""
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes
        if node.get("Relation Name") == "task"
    )


@pytest.mark.parametrize("analyzed", [False, True])
def test_lists_read_little_of_a_hundred_thousand_tasks(
    million: psycopg.Connection[Any], analyzed: bool
) -> None:
    """Every list reads a few thousand rows at most by an index, and a plain one little more than its page.

    Whether PostgreSQL knows how many tasks the users have or nothing at all, and also if those that a filter
    picks are all at one end.
    """
    if analyzed:
        million.execute("ANALYZE task")
    for shape in SHAPES:
        for place in ({}, {"start": 50_000} if shape.sort is Sort.id else {"tags": "old"}):
            nodes = plan(million, shape, **place)
            assert "Seq Scan" not in {node["Node Type"] for node in nodes}, shape
            most = NEAR + FEW + FAR + (6000 if shape.terms and "tags" in place else 0) + 500
            assert rows_read(nodes) <= most, (shape, place, rows_read(nodes))
            if not shape.filters and shape.status is not Status.deleted:
                assert rows_read(nodes) <= 2 * 51, shape
                assert all(node["Actual Rows"] <= 51 for node in nodes if node["Node Type"] == "Sort"), shape


def test_search_reads_what_it_finds(million: psycopg.Connection[Any]) -> None:
    """A search reads the tasks that have its words, found by their index, and no others."""
    for sort, order, more in product(Sort, Order, ({}, {"terms": True}, {"due": DueFilter.any})):
        nodes = plan(million, Shape(Status.pending, sort, order, words=True, **more), q="4711 task")
        assert "Seq Scan" not in {node["Node Type"] for node in nodes}
        used = {node["Index Name"]: node["Actual Rows"] for node in nodes if "Index Name" in node}
        assert used.keys() - {"task_pkey"} == {"task_terms_idx"}, (sort, more)
        assert used.get("task_pkey", 1) == 1, "more than the page's tasks, one by one"
        found = [node for node in nodes if node.get("Index Name") != "task_pkey"]
        assert rows_read(found) <= 20
        assert rows_read(nodes) <= 2 * rows_read(found), "each once by the index, and once more for the page"


def test_search_of_a_user_of_whom_nothing_is_known(million: psycopg.Connection[Any]) -> None:
    """Somebody's new tasks with long descriptions are searched by the index before they are counted."""
    million.execute("ANALYZE task")
    million.execute(
        """
        INSERT INTO task (user_id, id, title, description, completed, version)
        SELECT 'new', n, 'Task ' || n, repeat('word' || n || ' ', 500), false, 1
        FROM generate_series(1, 400) AS n
        """
    )
    for status, more in product(
        (Status.all, Status.pending), ({}, {"terms": True}, {"due": DueFilter.overdue})
    ):
        nodes = plan(million, Shape(status, words=True, **more), user_id="new", q="word17", tags="")
        assert rows_read(nodes) <= 2 * 11, "more than the index has found"
