"""Lists of one user's tasks: GET `/api/v1/{user_id}/tasks`."""

import functools
from datetime import UTC, date, datetime, time
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Response
from psycopg.types.numeric import Int8

from taskctl.list_query import DueRange, ListQuery
from taskctl.models import TaskPage
from taskctl.server import cursors, lists
from taskctl.server.call import Call, path_as_sent
from taskctl.server.queries import Statement
from taskctl.server.routes.tasks import BAD, BEARER, PROBLEMS, owner
from taskctl.server.routing import JSON, TaskRoute, sent_parameters
from taskctl.vocabulary import API_PREFIX, DueWord, Priority, Sort

router = APIRouter(
    prefix=f"{API_PREFIX}/{{user_id}}",
    route_class=TaskRoute,
    dependencies=[Depends(owner), Depends(BEARER)],
    responses=PROBLEMS,
    tags=["tasks"],
)

_PAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "model": TaskPage,
        "headers": {
            "Link": {
                "description": 'The next page, where there is one, with `rel="next"`.',
                "schema": {"type": "string"},
            }
        },
    }
}

_PRIORITIES = list(Priority)

_WEEK = 7
"""Days, today included."""


class _Query(ListQuery):
    """A list's query, and what it is for PostgreSQL: worked out once, as routes remember good queries."""

    @functools.cached_property
    def statement(self) -> Statement:
        """The statement for lists of this kind."""
        return lists.statement(_shape(self))

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """The statement's parameters but for where the page starts."""
        return {"limit": self.limit, **_filters(self)}


@router.get("/tasks", responses=BAD | _PAGE)
async def list_tasks(call: Call, query: Annotated[_Query, Query()]) -> Response:
    """List tasks, page by page."""
    place = None if query.cursor is None else cursors.decode(query.cursor, query)
    row = await call.fetch(
        query.statement,
        start=place and Int8(place.id),
        key=place and place.key,
        **query.values,
    )
    items, next_id, next_key, count = row or (None, None, None, None)
    headers = {}
    cursor = b"null"
    if next_id is not None:
        text = cursors.encode(cursors.Place(next_id, next_key and next_key.decode()), query)
        cursor = f'"{text}"'.encode()
        headers["Link"] = f'<{_next_page(call, text)}>; rel="next"'
    counted = b"" if count is None else b',"count":%d' % count
    body = b'{"items":[%b],"next_cursor":%b%b}' % (items or b"", cursor, counted)
    return Response(body, headers=headers, media_type=JSON)


def _next_page(call: Call, cursor: str) -> str:
    # A cursor is made of what needs no quoting.
    return f"{path_as_sent(call.scope)}?{_without_cursor(call.scope['query_string'])}cursor={cursor}"


@functools.lru_cache(maxsize=200)
def _without_cursor(query: bytes) -> str:
    """A query string up to where its cursor goes."""
    sent = [(name, value) for name, value in sent_parameters(query) if name != "cursor"]
    return f"{urlencode(sent)}&" if sent else ""


def _shape(query: ListQuery) -> lists.Shape:
    due: lists.DueFilter | None
    match query.due:
        case None:
            due = None
        case DueRange():
            due = lists.DueFilter.range
        case DueWord.today | DueWord.week:
            due = lists.DueFilter.ahead
        case word:
            due = lists.DueFilter(word)
    return lists.Shape(
        status=query.status,
        sort=Sort.id if query.sort is Sort.created else query.sort,
        order=query.order,
        words=query.q is not None,
        terms=bool(query.tag) or query.project is not None,
        priority=query.priority is not None,
        due=due,
        completed_at=query.completed_after is not None or query.completed_before is not None,
        count=query.count is not None,
    )


def _filters(query: ListQuery) -> dict[str, Any]:
    """What the filters' parameters are, for whatever shape of a statement."""
    bounds = query.due if isinstance(query.due, DueRange) else DueRange(None, None)
    return {
        "q": query.q,
        "tags": " ".join(query.tag),
        "project": query.project,
        "priority": None if query.priority is None else _PRIORITIES.index(query.priority),
        "tz": query.tz,
        "due_days": _WEEK if query.due is DueWord.week else 1,
        "due_from": _instant(bounds.first),
        "due_first": _midnight(bounds.first),
        "due_to": _instant(bounds.last),
        "due_last": _midnight(bounds.last),
        "done_from": _instant(query.completed_after),
        "done_first": _midnight(query.completed_after),
        "done_to": _instant(query.completed_before),
        "done_before": _midnight(query.completed_before),
    }


def _instant(bound: date | datetime | None) -> datetime | None:
    return bound if isinstance(bound, datetime) else None


def _midnight(bound: date | datetime | None) -> datetime | None:
    """A date as its midnight in UTC."""
    return None if bound is None or isinstance(bound, datetime) else datetime.combine(bound, time(), UTC)
