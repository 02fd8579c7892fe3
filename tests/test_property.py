"""Properties that hold for whatever Hypothesis comes up with."""

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import client_of, make_user

TASKS = "/api/v1/me/tasks"

TITLES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200).filter(str.strip)
TEXT = st.characters(exclude_categories=["Cc", "Cs"], include_characters="\t\n\r")
DESCRIPTIONS = st.none() | st.text(TEXT, max_size=50)
STATUSES = st.sampled_from(["all", "pending", "completed"])
ORDERS = st.sampled_from(["asc", "desc"])
CONTENTS = st.fixed_dictionaries(
    {"title": TITLES}, optional={"description": DESCRIPTIONS, "completed": st.booleans()}
)
PATCHES = st.fixed_dictionaries(
    {}, optional={"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans()}
)
IDS = st.integers(1, 6)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), CONTENTS),
        st.tuples(st.just("create"), CONTENTS),
        st.tuples(st.just("replace"), IDS, CONTENTS),
        st.tuples(st.just("patch"), IDS, PATCHES),
        st.tuples(st.just("complete"), IDS, st.booleans()),
        st.tuples(st.just("delete"), IDS),
        st.tuples(st.just("read"), IDS),
        st.tuples(st.just("list"), STATUSES, ORDERS),
    ),
    max_size=15,
)


@contextlib.asynccontextmanager
async def somebody(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a user who has no tasks yet."""
    async with client_of(app) as client:
        client.headers.update(make_user().headers)
        yield client


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, word for word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def writable(task: dict[str, Any]) -> dict[str, Any]:
    return {name: task[name] for name in ("title", "description", "completed")}


def content(sent: dict[str, Any]) -> dict[str, Any]:
    """A body with its defaults, trimmed: what a task made of it holds."""
    full = {"description": None, "completed": False} | sent
    return full | {"title": full["title"].strip()}


@dataclasses.dataclass
class Model:
    """What a user's tasks should be, kept in a dictionary."""

    client: httpx.AsyncClient
    tasks: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    made: int = 0

    async def run(self, operations: list[Any]) -> None:
        """Do each on the server and here, and compare."""
        for name, *arguments in operations:
            await getattr(self, f"_{name}")(*arguments)
        assert await self._listed("all", "asc") == list(self.tasks.items())

    async def _create(self, body: dict[str, Any]) -> None:
        answer = await self.client.post(TASKS, json=body)
        assert answer.status_code == 201, answer.text
        self.made += 1
        self.tasks[self.made] = content(body) | {"version": 1}
        self._same(self.made, answer.json())

    async def _replace(self, number: int, body: dict[str, Any]) -> None:
        await self._change("PUT", number, body, content(body))

    async def _patch(self, number: int, body: dict[str, Any]) -> None:
        changes = body | ({"title": body["title"].strip()} if "title" in body else {})
        await self._change("PATCH", number, body, changes)

    async def _complete(self, number: int, completed: bool) -> None:
        await self._change("PATCH", number, {"completed": completed}, {"completed": completed}, "/complete")

    async def _change(
        self, method: str, number: int, body: dict[str, Any], changes: dict[str, Any], suffix: str = ""
    ) -> None:
        answer = await self.client.request(method, f"{TASKS}/{number}{suffix}", json=body)
        task = self.tasks.get(number)
        if task is None:
            assert answer.status_code == 404
            return
        if task | changes != task:
            self.tasks[number] = task | changes | {"version": task["version"] + 1}
        assert answer.status_code == 200, answer.text
        self._same(number, answer.json())

    async def _delete(self, number: int) -> None:
        answer = await self.client.delete(f"{TASKS}/{number}")
        assert answer.status_code == (204 if self.tasks.pop(number, None) else 404)

    async def _read(self, number: int) -> None:
        answer = await self.client.get(f"{TASKS}/{number}")
        assert answer.status_code == (200 if number in self.tasks else 404)
        if answer.status_code == 200:
            self._same(number, answer.json())

    async def _list(self, status: str, order: str) -> None:
        wanted = {"all": {True, False}, "pending": {False}, "completed": {True}}[status]
        expected = [(number, task) for number, task in self.tasks.items() if task["completed"] in wanted]
        assert await self._listed(status, order) == (expected if order == "asc" else expected[::-1])

    async def _listed(self, status: str, order: str) -> list[tuple[int, dict[str, Any]]]:
        answer = await self.client.get(TASKS, params={"status": status, "order": order})
        return [(task["id"], shown(task)) for task in answer.json()["items"]]

    def _same(self, number: int, task: dict[str, Any]) -> None:
        assert (task["id"], shown(task)) == (number, self.tasks[number])
        assert (task["completed_at"] is not None) is task["completed"]


def shown(task: dict[str, Any]) -> dict[str, Any]:
    return writable(task) | {"version": task["version"]}


@settings(max_examples=60, deadline=None)
@given(first=OPERATIONS, second=OPERATIONS)
async def test_each_user_sees_exactly_their_own(app: FastAPI, first: list[Any], second: list[Any]) -> None:
    """Two users who do anything at the same time each see what they did themselves, and nothing else."""
    async with somebody(app) as one, somebody(app) as other:
        await asyncio.gather(Model(one).run(first), Model(other).run(second))


@settings(max_examples=30, deadline=None)
@given(
    limit=st.integers(1, 5),
    order=ORDERS,
    deleted=st.sets(st.integers(1, 20), max_size=12),
    batch=st.integers(0, 3),
)
async def test_cursor_yields_every_task_once(
    app: FastAPI, limit: int, order: str, deleted: set[int], batch: int
) -> None:
    """While others create and delete, a walk yields each lasting task once, in order, and none twice."""
    async with somebody(app) as client:
        await asyncio.gather(*(client.post(TASKS, json={"title": "x"}) for _ in range(20)))
        doomed, seen = sorted(deleted), []
        query: dict[str, Any] = {"limit": limit, "order": order}
        for step in itertools.count():
            leaving = doomed[step * batch : (step + 1) * batch]
            changes = [client.delete(f"{TASKS}/{number}") for number in leaving]
            # New ids come last: only an ascending walk can meet them, so their number has an end.
            changes += [client.post(TASKS, json={"title": "new"})] if step < 8 else []
            answer, *_ = await asyncio.gather(client.get(TASKS, params=query), *changes)
            seen += [task["id"] for task in answer.json()["items"]]
            if answer.json()["next_cursor"] is None:
                break
            query["cursor"] = answer.json()["next_cursor"]
    assert seen == sorted(set(seen), reverse=order == "desc")
    assert set(range(1, 21)) - deleted <= set(seen)
    if order == "desc":
        assert len([number for number in seen if number > 20]) <= 1


@settings(max_examples=80, deadline=None)
@given(body=CONTENTS, patch=PATCHES)
async def test_merge_patch_is_rfc_7396(app: FastAPI, body: dict[str, Any], patch: dict[str, Any]) -> None:
    """A patched task is what RFC 7396 makes of its writable members; absent ones have their defaults."""
    async with somebody(app) as client:
        before = writable((await client.post(TASKS, json=body)).json())
        answer = await client.patch(
            f"{TASKS}/1", json=patch, headers={"Content-Type": "application/merge-patch+json"}
        )
    assert answer.status_code == 200, answer.text
    expected = content(merge_patch(before, patch))
    assert writable(answer.json()) == expected
    assert answer.json()["version"] == (1 if expected == before else 2)
