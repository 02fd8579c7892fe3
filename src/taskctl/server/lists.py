"""The statements of lists: filtered, searched, sorted, and cut into pages by a key.

A page is read in the order of an index as far as the filters allow, so that it costs the same however many
tasks there are. Else there are two ways to it: walking the list's order, which is short where a filter picks
many, and collecting what an index of the filter finds, which is short where it picks few. Which of both it
is, nobody knows beforehand: a prepared plan does not know the filter's values, and matches may all lie at one
end. So a statement tries one after the other, each up to a limit, until one has got as far as a page.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from taskctl.server.queries import COLUMNS, TASK_JSON, Statement, wire_time
from taskctl.vocabulary import Order, Sort, Status

NEAR = 400
"""So many tasks are walked before anything is collected: where a filter picks many, they hold a page."""

PROMISING = 6
"""With so many matches among `NEAR` tasks, walking on is shorter than collecting, of a hundred thousand."""

FEW = 5000
"""So many tasks are collected."""

FAR = 5000
"""So many tasks are walked where that did not suffice, before all is collected."""

FEW_WORDS = 10_000
FAR_WORDS = 1000
"""The same where words are searched for, which takes far longer to see of a task."""

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

_ROUGH = 2
"""A condition on terms is followed by so many that hold wherever it does and cost little: each makes it seem
more selective. PostgreSQL does not know what will be searched for, and would otherwise read a user's whole
index beside that of the terms."""

_DEAR = "length(task_terms('', false, now(), NULL, NULL, '{}', NULL, NULL))"
"""What is never evaluated, but reckoned to cost thousands of times what a comparison does."""

_TERMS = "task_terms(user_id, completed, deleted_at, title, description, tags, project, priority)"

_QUOTED = r"""'''' || replace(replace(term, '\', '\\'), '''', '''''') || ''''"""
"""A term as `tsquery` reads it."""

_DAY = "(due_at AT TIME ZONE CASE WHEN due_all_day THEN 'UTC' ELSE %(tz)s::text END)::date"
"""The day on which a task is due, where its user is."""

_TODAY = "(SELECT (now() AT TIME ZONE %(tz)s::text)::date)"

_PAGE = "%(limit)s::bigint + 1"

_WANTED = "SELECT query FROM wanted"

_PRIORITY = "priority = %(priority)s::smallint"

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
    if (shape.words or shape.terms) and _states(shape):
        wanted = (
            f"SELECT ({_query(shape)})::tsquery AS query, ({_query(shape, rough=True)})::tsquery AS rough"
        )
        before = {"wanted": wanted, **before}
    named = ", ".join(f"{name} AS MATERIALIZED ({query})" for name, query in before.items())
    count = f"(SELECT count(*) FROM {_found(shape)} AS found)" if shape.count else "NULL::bigint"
    return Statement(
        _name(shape),
        f"""
        {f"WITH {named}" if named else ""}
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


def _page(shape: Shape, key: _Key | None, direction: str) -> tuple[dict[str, str], str]:
    """The common table expressions that come before, by name, and the query of the page's rows."""
    columns = f"{COLUMNS}, {key.column if key else 'NULL::text'} AS key"
    ordered = _ordered(key, direction)

    def read(source: str, *conditions: str, most: object = _PAGE) -> str:
        where = _every(*conditions, _start(shape, key, by_index=source == "task"))
        return f"(SELECT {columns} FROM {source} WHERE {where} ORDER BY {ordered} LIMIT {most})"

    def union(parts: list[str], most: object = _PAGE) -> str:
        return f"({' UNION ALL '.join(parts)} ORDER BY {ordered} LIMIT {most})" if parts[1:] else parts[0]

    states = _states(shape)
    if shape.status is Status.deleted or not states:
        return {}, read(f"{_found(shape)} AS found")
    if _is_walked(shape):
        return {}, union([read("task", _where(state), *_filters(shape, bounds=True)) for state in states])

    def walk(most: int, *conditions: str) -> str:
        """The page's tasks among so many in the list's order."""
        limits = [_DUE[shape.due][0]] if shape.due and shape.sort is Sort.due else []
        walked = [read("task", *conditions, _where(state), *limits, most=most) for state in states]
        rules = _every(*_filters(shape), *([f"{_TERMS} @@ ({_WANTED})"] if shape.words else []))
        return f"SELECT * FROM {union(walked, most)} AS walked WHERE {rules} ORDER BY {ordered} LIMIT {_PAGE}"

    # Words are not looked for in each task before it is known that many have them.
    most, furthest = (FEW_WORDS, FAR_WORDS) if shape.words else (FEW, FAR)
    near, few, far = (f"(SELECT size FROM {name}_size)" for name in ("near", "few", "far"))
    before = {"near": "SELECT WHERE false" if shape.words else walk(NEAR)}
    short = f"{near} <= %(limit)s::bigint"
    # Dates go along with the order of most lists: where one match is, there are more, and elsewhere none.
    promising = "false" if shape.due or shape.completed_at else f"{near} >= {PROMISING}"
    rule = _every(*_filters(shape), _start(shape, key))
    collected = " UNION ALL ".join(
        f"(SELECT id, {key.column if key else 'NULL::text'} AS key, {rule} AS good FROM task"
        f" WHERE {short} AND NOT {promising} AND {each})"
        for each in _indexed(shape, first=True)
    )
    before["few"] = f"{collected} LIMIT {most + 1}"
    further = f"{short} AND ({promising} OR {few} > {most})"
    before["far"] = walk(furthest, further)
    top = (
        f"(SELECT id AS found, key FROM few WHERE good AND {few} <= {most} ORDER BY {ordered} LIMIT {_PAGE})"
    )
    task = f"(SELECT {COLUMNS} FROM task WHERE {_OWNER} AND id = found OFFSET 0)"
    before = {
        each: query
        for name, rows in before.items()
        for each, query in ((name, rows), (f"{name}_size", f"SELECT count(*) AS size FROM {name}"))
    }
    parts = [
        f"(SELECT {COLUMNS}, key FROM {top} AS top CROSS JOIN LATERAL {task} AS task)",
        read("far", f"{far} > %(limit)s::bigint"),
        read(f"{_found(shape)} AS found", further, f"{far} <= %(limit)s::bigint"),
    ]
    if not shape.words:
        parts.append(read("near", f"NOT {short}"))
    return before, union(parts)


def _start(shape: Shape, key: _Key | None, *, by_index: bool = False) -> str:
    """Where the page starts.

    A bound that an index takes is evaluated once, and any other for each row that is read. So with a dear one
    (`by_index`) PostgreSQL walks the index that has the list's order, however few tasks it believes the user
    to have, and does not sort all of them.
    """
    ascending = shape.order is Order.asc
    compare = ">=" if ascending else "<="
    number = f"coalesce(%(start)s::bigint, {0 if ascending else 9223372036854775807})"
    if by_index:
        number = f"CASE WHEN now() IS NULL THEN {_DEAR} ELSE {number} END"
    if not key:
        return f"id {compare} {number}"
    first = f"coalesce(%(key)s::text::{key.type}, {key.first if ascending else key.last})"
    return f"({key.column}, id) {compare} ({first}, {number})"


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
    """All tasks of the list, as an index of a filter finds them."""
    read = " UNION ALL ".join(
        f"(SELECT {COLUMNS} FROM task WHERE {each} OFFSET 0)" for each in _indexed(shape)
    )
    return f"(SELECT * FROM ({read}) AS read WHERE {_every(*_filters(shape))})"


def _indexed(shape: Shape, *, first: bool = False) -> list[str]:
    """Conditions that a single index answers, of which each task of the list meets one.

    No other filter stands beside them, so that there is no choice between indexes. `first`: where two indexes
    come into question, that of dates, which are mostly few.
    """
    states = [_where(state) for state in _states(shape)]
    dates = first and not shape.words
    if shape.completed_at and (dates or shape.filters == 1):
        limits = _DONE[0]
    elif shape.due and (shape.filters == 1 or (dates and shape.due in (DueFilter.ahead, DueFilter.range))):
        limits = _DUE[shape.due][0]
    elif shape.words or shape.terms:
        found = f"{_TERMS} @@ ({_WANTED})"
        return (
            [_every(_OWNER, found, *[f"{_TERMS} @@ (SELECT rough FROM wanted)"] * _ROUGH)]
            if states
            else ["false"]
        )
    elif shape.priority:
        limits = _PRIORITY
    elif shape.due:
        limits = _DUE[shape.due][0]
    else:
        limits = "true"
    return [_every(state, limits) for state in states] or ["false"]


def _filters(shape: Shape, *, bounds: bool = False) -> list[str]:
    """What must hold of a task; with `bounds` also in such words that an index helps."""
    filters = []
    if shape.terms:
        filters.append("tags @> (SELECT string_to_array(%(tags)s::text, ' '))")
        filters.append("(%(project)s::text IS NULL OR project = %(project)s::text)")
    if shape.priority:
        filters.append(_PRIORITY)
    for limits, rule in (
        *([_DUE[shape.due]] if shape.due else ()),
        *([_DONE] if shape.completed_at else ()),
    ):
        filters += [limits, rule] if bounds else [rule]
    return filters


def _every(*conditions: str) -> str:
    return " AND ".join(conditions) or "true"


def _query(shape: Shape, *, rough: bool = False) -> str:
    """What is searched for in the index of terms: all words, as the beginnings of words, tags and the rest.

    Null, which finds nothing, where `q` has no word in it. `rough`: only the part of it that is found sooner,
    which are whole terms, else the longest word.
    """

    def terms(state: Status) -> str:
        who = f"%(user_id)s::text, {_STATES[state][0]}"
        parts = []
        if shape.words and not (rough and shape.terms):
            called = f"unnest(tsvector_to_array(task_terms({who}, %(q)s::text, NULL, '{{}}', NULL, NULL)))"
            if rough:
                called = f"(SELECT term FROM {called} AS term ORDER BY length(term) DESC LIMIT 1)"
            parts.append(f"SELECT string_agg({_QUOTED} || ':*', '&') FROM {called} AS each(term)")
        if shape.terms:
            tags = "string_to_array(%(tags)s::text, ' ')"
            priority = "%(priority)s::smallint" if shape.priority else "NULL"
            called = f"task_terms({who}, NULL, NULL, {tags}, %(project)s::text, {priority})"
            parts.append(
                f"SELECT string_agg({_QUOTED}, '&') FROM unnest(tsvector_to_array({called})) AS term"
            )
        return " || '&' || ".join(f"({part})" for part in parts)

    return " || '|' || ".join(f"'(' || {terms(state)} || ')'" for state in _states(shape))
