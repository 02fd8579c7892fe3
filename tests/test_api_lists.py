"""Lists: filter, order, pages and cursors; and the rule that no parameter is ever ignored."""

import base64
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI

from conftest import User, client_of, make_user

TASKS = "/api/v1/me/tasks"


async def make(api: httpx.AsyncClient, count: int, done: set[int] = frozenset()) -> None:
    for number in range(1, count + 1):
        made = await api.post(TASKS, json={"title": f"Task {number}", "completed": number in done})
        assert made.status_code == 201, made.text


async def page(api: httpx.AsyncClient, **parameters: Any) -> dict[str, Any]:
    answer = await api.get(TASKS, params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"items", "next_cursor"}
    return dict(answer.json())


async def ids(api: httpx.AsyncClient, **parameters: Any) -> list[int]:
    return [task["id"] for task in (await page(api, **parameters))["items"]]


async def walk(api: httpx.AsyncClient, **parameters: Any) -> list[list[int]]:
    """The ids on each page, following `next_cursor` to the end."""
    pages = []
    cursor: dict[str, str] = {}
    while True:
        answer = await page(api, **parameters, **cursor)
        pages.append([task["id"] for task in answer["items"]])
        if answer["next_cursor"] is None:
            return pages
        cursor = {"cursor": answer["next_cursor"]}


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


async def test_empty_list(api: httpx.AsyncClient) -> None:
    """Somebody without tasks gets an empty page, and no next one."""
    answer = await api.get(TASKS)
    assert answer.json() == {"items": [], "next_cursor": None}
    assert "link" not in answer.headers


async def test_list_shows_tasks_in_full(api: httpx.AsyncClient) -> None:
    """A list's items are the tasks as reading each one shows them."""
    await make(api, 2, {2})
    items = (await page(api))["items"]
    assert items == [(await api.get(f"{TASKS}/{number}")).json() for number in (1, 2)]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"status": "all"}, [1, 2, 3, 4, 5]),
        ({"status": "pending"}, [1, 3, 5]),
        ({"status": "completed"}, [2, 4]),
        ({"order": "asc"}, [1, 2, 3, 4, 5]),
        ({"order": "desc"}, [5, 4, 3, 2, 1]),
        ({"order": "desc", "status": "pending"}, [5, 3, 1]),
        ({"order": "desc", "status": "completed"}, [4, 2]),
        ({"limit": 1}, [1]),
        ({"limit": 2, "order": "desc", "status": "pending"}, [5, 3]),
        ({"limit": 200}, [1, 2, 3, 4, 5]),
    ],
)
async def test_filter_and_order(
    api: httpx.AsyncClient, parameters: dict[str, Any], expected: list[int]
) -> None:
    """The status chooses which tasks are listed, the order in which direction, the limit how many."""
    await make(api, 5, {2, 4})
    assert await ids(api, **parameters) == expected


@pytest.mark.parametrize("status", ["all", "pending", "completed"])
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
async def test_cursor_walks_every_task_once(
    api: httpx.AsyncClient, status: str, order: str, limit: int
) -> None:
    """Following `next_cursor` yields each task once, on full pages but for the last, which is not empty."""
    await make(api, 6, {1, 4, 5})
    expected = {"all": [1, 2, 3, 4, 5, 6], "pending": [2, 3, 6], "completed": [1, 4, 5]}[status]
    if order == "desc":
        expected.reverse()
    pages = await walk(api, status=status, order=order, limit=limit)
    assert pages == [expected[start : start + limit] for start in range(0, len(expected), limit)]


async def test_default_limit_is_fifty(api: httpx.AsyncClient) -> None:
    """Without a limit a page holds 50 tasks."""
    await make(api, 51)
    assert await walk(api) == [list(range(1, 51)), [51]]


@pytest.mark.parametrize("limit", ["0", "-1", "201", "1e2", "x", "", "9" * 30, "1.5", "NaN", "0x10"])
async def test_limit_out_of_bounds(api: httpx.AsyncClient, limit: str) -> None:
    """A limit that is no whole number from 1 to 200 is 422, and the error names it."""
    answer = await api.get(TASKS, params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["code"] == "validation_failed"
    assert [error["loc"] for error in answer.json()["errors"]] == [["query", "limit"]]


@pytest.mark.parametrize(
    "parameters",
    [{"status": "done"}, {"status": ""}, {"status": "ALL"}, {"order": "up"}, {"order": ""}, {"order": "ASC"}],
)
async def test_unknown_values(api: httpx.AsyncClient, parameters: dict[str, str]) -> None:
    """A status or order that there is not is 422, and the error names the parameter."""
    answer = await api.get(TASKS, params=parameters)
    assert answer.status_code == 422
    assert answer.json()["code"] == "validation_failed"
    assert [error["loc"] for error in answer.json()["errors"]] == [["query", *parameters]]


@pytest.mark.parametrize("owner", ["me", "own id"])
async def test_link_leads_to_the_next_page(api: httpx.AsyncClient, user: User, owner: str) -> None:
    """`Link` accompanies `next_cursor`, and leads to the same list's next page until there is none."""
    await make(api, 5, {3})
    path = TASKS if owner == "me" else f"/api/v1/{user.id}/tasks"
    url = f"{path}?status=pending&limit=2&order=desc"
    seen = []
    while url:
        answer = await api.get(url)
        assert answer.status_code == 200, answer.text
        seen += [task["id"] for task in answer.json()["items"]]
        cursor = answer.json()["next_cursor"]
        assert ("link" in answer.headers) is (cursor is not None)
        url = ""
        if cursor is not None:
            target, _, relation = answer.headers["link"].partition(">")
            assert relation == '; rel="next"'
            url = target.removeprefix("<")
            assert urlsplit(url).path == path
            assert parse_qs(urlsplit(url).query) == {
                "status": ["pending"],
                "limit": ["2"],
                "order": ["desc"],
                "cursor": [cursor],
            }
    assert seen == [5, 4, 2, 1]


async def test_cursor_is_fit_for_a_url(api: httpx.AsyncClient) -> None:
    """A cursor can be put into a URL as it is."""
    await make(api, 2)
    cursor = (await page(api, limit=1))["next_cursor"]
    assert str(httpx.QueryParams(cursor=cursor)) == f"cursor={cursor}"


async def test_cursor_survives_changes(api: httpx.AsyncClient) -> None:
    """A cursor still works when tasks around it were deleted, changed or created."""
    await make(api, 6)
    cursor = (await page(api, limit=2))["next_cursor"]
    for number in (1, 2, 3):
        await api.delete(f"{TASKS}/{number}")
    await api.patch(f"{TASKS}/4", json={"title": "Changed"})
    await make(api, 1)
    assert await ids(api, cursor=cursor) == [4, 5, 6, 7]
    for number in (4, 5, 6, 7):
        await api.delete(f"{TASKS}/{number}")
    assert await page(api, cursor=cursor) == {"items": [], "next_cursor": None}


async def test_page_size_may_change_on_the_way(api: httpx.AsyncClient) -> None:
    """A cursor belongs to a place in the list, not to a page size."""
    await make(api, 5)
    cursor = (await page(api, limit=1))["next_cursor"]
    assert await ids(api, cursor=cursor, limit=3) == [2, 3, 4]


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "1",
        "é",
        "🥛",
        "A" * 5000,
        "%00",
        encoded("asc:0"),
        encoded("asc:-1"),
        encoded("asc:01"),
        encoded("asc:" + "9" * 19),
        encoded("asc:" + "9" * 40),
        encoded("asc:2 "),
        encoded("asc:१"),
        encoded("up:2"),
        encoded("asc:2") + "=",
        encoded("asc:2") + "==",
        "\n" + encoded("asc:2"),
        " " + encoded("asc:2"),
        encoded("asc:2")[:-1] + "!",
    ],
)
async def test_bad_cursor(api: httpx.AsyncClient, cursor: str) -> None:
    """A cursor that this server did not give out is 400."""
    answer = await api.get(TASKS, params={"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize(("given", "used"), [("asc", "desc"), ("desc", "asc")])
async def test_cursor_of_another_order(api: httpx.AsyncClient, given: str, used: str) -> None:
    """A cursor of a list in the other order is 400, and the detail says why."""
    await make(api, 2)
    cursor = (await page(api, order=given, limit=1))["next_cursor"]
    answer = await api.get(TASKS, params={"order": used, "cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert given in answer.json()["detail"]


async def test_foreign_cursor_shows_nothing_foreign(api: httpx.AsyncClient, app: FastAPI) -> None:
    """Another user's cursor shows only the caller's own tasks."""
    await make(api, 3)
    cursor = (await page(api, limit=1))["next_cursor"]
    other = make_user()
    async with client_of(app) as client:
        client.headers.update(other.headers)
        await make(client, 1)
        assert (await client.get(TASKS, params={"cursor": cursor})).json() == {
            "items": [],
            "next_cursor": None,
        }


ROUTES = [
    ("GET", "", None),
    ("HEAD", "", None),
    ("POST", "", {"title": "x"}),
    ("GET", "/1", None),
    ("HEAD", "/1", None),
    ("PUT", "/1", {"title": "x"}),
    ("PATCH", "/1", {"title": "x"}),
    ("PATCH", "/1/complete", None),
    ("PATCH", "/1/complete", {"completed": True}),
    ("DELETE", "/1", None),
]


@pytest.mark.parametrize(("method", "suffix", "body"), ROUTES)
@pytest.mark.parametrize(
    "query",
    ["staus=pending", "x=", "x", "=x", "Status=all", "status%20=all", "user_id=me", "token=x", "%C3%A9=1"],
)
async def test_unknown_parameter(
    api: httpx.AsyncClient, method: str, suffix: str, body: Any, query: str
) -> None:
    """A parameter that a route does not know is 422 on every route, and nothing is done."""
    await make(api, 1)
    before = (await api.get(f"{TASKS}/1")).content
    answer = await api.request(method, f"{TASKS}{suffix}?{query}", json=body)
    assert answer.status_code == 422
    if method != "HEAD":
        (error,) = answer.json()["errors"]
        assert answer.json()["code"] == "validation_failed"
        assert error["loc"][0] == "query"
        assert error["type"] == "extra_forbidden"
    assert (await api.get(f"{TASKS}/1")).content == before
    assert await ids(api) == [1]


@pytest.mark.parametrize(("method", "suffix", "body"), ROUTES[2:])
@pytest.mark.parametrize("query", ["limit=1", "status=all", "cursor=x", "order=asc", "limit=1&limit=1"])
async def test_parameters_of_lists_are_unknown_elsewhere(
    api: httpx.AsyncClient, method: str, suffix: str, body: Any, query: str
) -> None:
    """What a list knows is 422 on the other routes."""
    assert (await api.request(method, f"{TASKS}{suffix}?{query}", json=body)).status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        "limit=1&limit=1",
        "limit=1&limit=2",
        "status=all&status=pending",
        "order=asc&order=",
        "cursor=a&cursor=a",
        "limit=1&l%69mit=1",
    ],
)
async def test_repeated_parameter(api: httpx.AsyncClient, query: str) -> None:
    """A parameter that is sent twice is 422, even with the same value."""
    answer = await api.get(f"{TASKS}?{query}")
    assert answer.status_code == 422
    assert answer.json()["code"] == "validation_failed"
    assert ["query", query.partition("=")[0]] in [error["loc"] for error in answer.json()["errors"]]


async def test_every_wrong_parameter_is_named(api: httpx.AsyncClient) -> None:
    """All that is wrong with the parameters is told at once."""
    answer = await api.get(f"{TASKS}?limit=0&status=x&order=y&nope=1")
    assert {tuple(error["loc"]) for error in answer.json()["errors"]} == {
        ("query", name) for name in ("limit", "status", "order", "nope")
    }


async def test_separators_alone_are_no_parameters(api: httpx.AsyncClient) -> None:
    """An empty query string is no parameter."""
    for query in ("?", "?&", "?&&"):
        assert (await api.get(TASKS + query)).status_code == 200
