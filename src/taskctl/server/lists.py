"""The statements of lists: filtered, searched, sorted, and cut into pages by a key.

A page is read in the order of an index as far as the filters allow, so that it costs the same however many
tasks there are. Where a filter picks few tasks, an index of that filter finds them, and they are sorted;
where it picks many, walking the order meets them soon. Which of both it is, the statement sees for itself by
looking for a few of them first: a plan that PostgreSQL has prepared does not know the filter's values.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from taskctl.server.queries import COLUMNS, TASK_JSON, Statement, wire_time
from taskctl.vocabulary import Order, Sort, Status

FEW = 2000
"""So many tasks are sorted; of more than that the order's index is walked."""

NEAR = 1000
"""So many tasks are walked before anything is looked for: where a filter picks many, they hold a page."""

_CACHED = 256
"""Statements that are kept; any other is put together anew."""


class DueFilter(StrEnum):
    """What a statement asks of due dates; the parameters say which."""

    none = "none"
    any = "any"
    overdue = "overdue"
    ahead = "ahead"
    """From today on for `due_days` days."""
    range = "range"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a list asks for, without the values: one statement for each shape."""

    status: Status = Status.all
    sort: Sort = Sort.id
    order: Order = Order.asc
    words: bool = False
    """Whether there is a `q`."""
    terms: bool = False
    """Whether tags or a project are named."""
    priority: bool = False
    due: DueFilter | None = None
    completed_at: bool = False
    """Whether there are bounds for `completed_at`."""
    count: bool = False

    @property
    def filters(self) -> int:
        """How many kinds of filters there are, beside the status."""
        return sum((self.words, self.terms, self.priority, self.due is not None, self.completed_at))


@dataclass(frozen=True, slots=True)
class _Key:
    """What a list is sorted by, before the id.

    `first` and `last` are the least and the greatest value there can be, as SQL.
    """

    column: str
    type: str
    first: str
    last: str
    text: str


_KEYS = {
    Sort.due: _Key(
        "coalesce(due_at, 'infinity')",
        "timestamptz",
        "'-infinity'",
        "'infinity'",
        f"CASE WHEN key = 'infinity' THEN 'infinity' ELSE {wire_time('key')} END",
    ),
    Sort.priority: _Key("priority", "smallint", "0", "3", "key::text"),
    Sort.updated: _Key("updated_at", "timestamptz", "'-infinity'", "'infinity'", wire_time("key")),
    Sort.title: _Key('task_title_key(title COLLATE "C")', "text", "''", "repeat(U&'\\+10FFFF', 101)", "key"),
}
"""By id, and so by the time of creation, a list is sorted where none of these is named."""

_STATES = {
    Status.pending: ("false, NULL", "NOT completed AND deleted_at IS NULL"),
    Status.completed: ("true, NULL", "completed AND deleted_at IS NULL"),
    Status.deleted: ("NULL, now()", "deleted_at IS NOT NULL"),
}
"""A state as the function of terms is told of it, and what holds of its tasks."""

_REPEATED = 3
"""A condition on terms is written so many times, each of which makes it seem more selective: PostgreSQL does
not know what will be searched for, and would otherwise read a user's whole index beside that of the terms."""

_TERMS = "task_terms(user_id, completed, deleted_at, title, description, tags, project, priority)"

_QUOTED = r"""'''' || replace(replace(term, '\', '\\'), '''', '''''') || ''''"""
"""A term as `tsquery` reads it."""

_DAY = "(due_at AT TIME ZONE CASE WHEN due_all_day THEN 'UTC' ELSE %(tz)s::text END)::date"
"""The day on which a task is due, where its user is."""

_TODAY = "(now() AT TIME ZONE %(tz)s::text)::date"

_OWNER = "user_id = %(user_id)s::text"

_DUE_KEY = _KEYS[Sort.due].column


_DUE = {
    DueFilter.none: (f"{_DUE_KEY} = 'infinity'", "due_at IS NULL"),
    DueFilter.any: (f"{_DUE_KEY} < 'infinity'", "due_at IS NOT NULL"),
    DueFilter.overdue: (
        f"{_DUE_KEY} < now() + interval '2 days'",
        f"NOT completed AND CASE WHEN due_all_day THEN {_DAY} < {_TODAY} ELSE due_at < now() END",
    ),
    DueFilter.ahead: (
        f"""{_DUE_KEY} >= now() - interval '2 days'
        AND {_DUE_KEY} < now() + interval '2 days' + %(due_days)s::int * interval '1 day'""",
        f"{_DAY} >= {_TODAY} AND {_DAY} < {_TODAY} + %(due_days)s::int",
    ),
    # A date belongs to a range that has any of its day in it.
    DueFilter.range: (
        f"""{_DUE_KEY} < 'infinity'
        AND {_DUE_KEY} >= coalesce(%(due_from)s::timestamptz, %(due_first)s::timestamptz, '-infinity')
            - interval '2 days'
        AND {_DUE_KEY} < coalesce(%(due_to)s::timestamptz, %(due_last)s::timestamptz, 'infinity')
            + interval '2 days'""",
        f"""{_DAY} BETWEEN
            coalesce(%(due_first)s::timestamptz AT TIME ZONE 'UTC',
                %(due_from)s::timestamptz AT TIME ZONE %(tz)s::text, '-infinity')::date
            AND coalesce(%(due_last)s::timestamptz AT TIME ZONE 'UTC',
                (%(due_to)s::timestamptz - interval '1 microsecond') AT TIME ZONE %(tz)s::text,
                'infinity')::date
        AND (due_all_day OR due_at >= coalesce(%(due_from)s::timestamptz, '-infinity')
            AND due_at < coalesce(%(due_to)s::timestamptz, 'infinity'))""",
    ),
}
"""Each as bounds for the index, wide enough for every time zone, and as what must hold."""

_DONE_DAY = "(completed_at AT TIME ZONE %(tz)s::text)::date"

_DONE = (
    """completed_at >= coalesce(%(done_from)s::timestamptz,
            %(done_first)s::timestamptz - interval '2 days', '-infinity')
        AND completed_at < coalesce(%(done_to)s::timestamptz,
            %(done_before)s::timestamptz + interval '2 days', 'infinity')""",
    f"""completed
        AND {_DONE_DAY} >= coalesce(%(done_first)s::timestamptz AT TIME ZONE 'UTC', '-infinity')::date
        AND {_DONE_DAY} < coalesce(%(done_before)s::timestamptz AT TIME ZONE 'UTC', 'infinity')::date
        AND coalesce(completed_at, 'infinity') >= coalesce(%(done_from)s::timestamptz, '-infinity')
        AND coalesce(completed_at, '-infinity') < coalesce(%(done_to)s::timestamptz, 'infinity')""",
)
"""As `_DUE`."""


@lru_cache(_CACHED)
def statement(shape: Shape) -> Statement:
    """The statement for lists of this shape.

    It takes `limit`, where the page starts (`start`, an id, and `key`, the text of what the list is sorted
    by; null for the first page), and what the filters of its shape name.

    -> the page's tasks as JSON, comma-separated, or null when there are none; where the next page starts: id
    and key, null where there is none or no key; how many tasks the filters let through, where that is asked
    for, else null.
    """
    key = _key(shape)
    direction = "ASC" if shape.order is Order.asc else "DESC"
    before, page = _page(shape, key, direction)
    if _TERMS in page + "".join(before):
        before = [f"wanted AS MATERIALIZED (SELECT ({_query(shape)})::tsquery AS query)", *before]
    count = f"(SELECT count(*) FROM task WHERE {_found(shape)})" if shape.count else "NULL::bigint"
    return Statement(
        _name(shape),
        f"""
        {f"WITH {', '.join(before)}" if before else ""}
        SELECT string_agg(body, ',' ORDER BY n) FILTER (WHERE n <= %(limit)s::bigint),
               max(id) FILTER (WHERE n > %(limit)s::bigint),
               max({key.text if key else "NULL::text"}) FILTER (WHERE n > %(limit)s::bigint),
               {count}
        FROM (
            SELECT id, key, row_number() OVER (ORDER BY {_ordered(key, direction)}) AS n,
                   {TASK_JSON}::text AS body
            FROM ({page}) AS page
        ) AS numbered
        """,
        reads_only=True,
    )


def _name(shape: Shape) -> str:
    if shape.sort is Sort.id and not shape.filters and not shape.count:
        return f"list_{shape.status}_{shape.order}"
    return f"list_by_{shape.sort}"


def _key(shape: Shape) -> _Key | None:
    """What the list is sorted by; None: the id alone, also where a filter leaves one value of the key."""
    if (shape.sort is Sort.priority and shape.priority) or (
        shape.sort is Sort.due and shape.due is DueFilter.none
    ):
        return None
    return _KEYS.get(shape.sort)


def _ordered(key: _Key | None, direction: str) -> str:
    return f"{f'key {direction}, ' if key else ''}id {direction}"


def _page(shape: Shape, key: _Key | None, direction: str) -> tuple[list[str], str]:
    """The common table expressions that come before, and the query of the page's rows."""
    columns = f"{COLUMNS}, {key.column if key else 'NULL::text'} AS key"
    compare = ">=" if shape.order is Order.asc else "<="
    number = "0" if shape.order is Order.asc else "9223372036854775807"
    start = f"id {compare} coalesce(%(start)s::bigint, {number})"
    if key:
        least = key.first if shape.order is Order.asc else key.last
        start = (
            f"({key.column}, id) {compare} (coalesce(%(key)s::text::{key.type}, {least}),"
            f" coalesce(%(start)s::bigint, {number}))"
        )
    ordered = _ordered(key, direction)

    def read(source: str, condition: str, most: str = "%(limit)s::bigint + 1") -> str:
        return (
            f"(SELECT {columns} FROM {source} WHERE {condition} AND {start} ORDER BY {ordered} LIMIT {most})"
        )

    def union(parts: list[str], most: str = "%(limit)s::bigint + 1") -> str:
        return (
            f"({' UNION ALL '.join(parts)} ORDER BY {ordered} LIMIT {most})" if len(parts) > 1 else parts[0]
        )

    states = _states(shape)
    if shape.status is Status.deleted or shape.words or not states:
        return [], read("task", _found(shape))
    if _is_walked(shape):
        return [], union(
            [read("task", _every(_where(state), *_filters(shape, bounds=True))) for state in states]
        )
    filters = _filters(shape, bounds=shape.sort is Sort.due)
    limits = [_DUE[shape.due][0]] if shape.due and shape.sort is Sort.due else []
    first = union([read("task", _every(_where(state), *limits), str(NEAR)) for state in states], str(NEAR))
    seen = [_found(shape)]
    if not _has_terms(shape):
        seen = [_every(_where(state), *_filters(shape, bounds=True)) for state in states]
    near, size = "(SELECT count(*) FROM near)", "(SELECT count(*) FROM few)"
    missing = f"{near} <= %(limit)s::bigint"
    few = " UNION ALL ".join(
        f"(SELECT {COLUMNS} FROM task WHERE {missing} AND {condition})" for condition in seen
    )
    before = [
        f"""near AS MATERIALIZED (
            SELECT * FROM {first} AS first WHERE {_every(*filters)}
            ORDER BY {ordered} LIMIT %(limit)s::bigint + 1
        )""",
        f"few AS MATERIALIZED ({few} LIMIT {FEW + 1})",
    ]
    return before, union(
        [
            read("near", f"{near} > %(limit)s::bigint"),
            read("few", f"{missing} AND {size} <= {FEW}"),
            *(read("task", _every(f"{size} > {FEW}", _where(state), *filters)) for state in states),
        ]
    )


def _is_walked(shape: Shape) -> bool:
    """Whether one index has what the filters let through, in the list's order."""
    if shape.filters == 0:
        return True
    by_id = shape.sort is Sort.id
    return shape.filters == 1 and (
        (shape.priority and (by_id or shape.sort is Sort.priority))
        or (shape.due is DueFilter.none and by_id)
        or (shape.due is not None and shape.sort is Sort.due)
    )


def _has_terms(shape: Shape) -> bool:
    """Whether the index of terms finds what the filters let through."""
    return shape.words or shape.terms or shape.priority


def _states(shape: Shape) -> list[Status]:
    """The states whose tasks can be in the list."""
    states: list[Status] = [Status.pending, Status.completed]
    if shape.status is not Status.all:
        states = [shape.status]
    if shape.due is DueFilter.overdue:
        states = [state for state in states if state is not Status.completed]
    if shape.completed_at:
        states = [state for state in states if state is not Status.pending]
    return states


def _where(state: Status) -> str:
    """All tasks of one state."""
    return f"{_OWNER} AND {_STATES[state][1]}"


def _found(shape: Shape) -> str:
    """All tasks of the list, as indexes of the filters find them."""
    states = _states(shape)
    if not states:
        return "false"
    state = f"{_OWNER} AND deleted_at IS NULL" if len(states) > 1 else _where(states[0])
    conditions = [state, *_filters(shape, bounds=True)]
    if _has_terms(shape) and not _is_walked(shape):
        conditions += [f"{_TERMS} @@ (SELECT query FROM wanted)"] * _REPEATED
    return _every(*conditions)


def _filters(shape: Shape, *, bounds: bool) -> list[str]:
    """What must hold of a task; with `bounds` in such words that indexes help, else that none does."""
    filters = []
    if shape.terms:
        filters.append("tags @> string_to_array(%(tags)s::text, ' ')")
        filters.append("(%(project)s::text IS NULL OR project = %(project)s::text)")
    if shape.priority:
        filters.append(f"priority{'' if bounds else ' + 0'} = %(priority)s::smallint")
    for limits, rule in (
        *([_DUE[shape.due]] if shape.due else ()),
        *([_DONE] if shape.completed_at else ()),
    ):
        filters += [limits, rule] if bounds else [rule]
    return filters


def _every(*conditions: str) -> str:
    return " AND ".join(conditions)


def _query(shape: Shape) -> str:
    """What is searched for in the index of terms: all words, as the beginnings of words, tags and the rest.

    Null, which finds nothing, where `q` has no word in it.
    """

    def terms(state: Status) -> str:
        who = f"%(user_id)s::text, {_STATES[state][0]}"
        parts = []
        if shape.words:
            called = f"task_terms({who}, %(q)s::text, NULL, '{{}}', NULL, NULL)"
            parts.append(
                f"SELECT string_agg({_QUOTED} || ':*', '&') FROM unnest(tsvector_to_array({called})) AS term"
            )
        if shape.terms or shape.priority:
            tags = "string_to_array(%(tags)s::text, ' ')" if shape.terms else "'{}'"
            project = "%(project)s::text" if shape.terms else "NULL"
            priority = "%(priority)s::smallint" if shape.priority else "NULL"
            called = f"task_terms({who}, NULL, NULL, {tags}, {project}, {priority})"
            parts.append(
                f"SELECT string_agg({_QUOTED}, '&') FROM unnest(tsvector_to_array({called})) AS term"
            )
        return " || '&' || ".join(f"({part})" for part in parts)

    return " || '|' || ".join(f"'(' || {terms(state)} || ')'" for state in _states(shape))
