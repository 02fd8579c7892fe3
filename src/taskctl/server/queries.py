"""Every statement of the request path, by name.

Each is complete by itself: one statement, in autocommit, bound to one user, so that it is atomic, safe
behind a transaction-mode pooler, and routed to one shard where the tables are distributed. PostgreSQL makes
the JSON that goes over the wire. Time is the database's (`now()`).

A change says in the same statement why it changed nothing: no row means that there is no such task, else the
first column is one of the states of `CHANGE_TASK`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskctl.vocabulary import Priority


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, the name it has in logs and metrics, and whether it only reads.

    A parameter's type is a cast's, or that of the column beside it: nothing else tells PostgreSQL.

    `repeatable`: run a second time, it finds what the first has done and changes nothing, unless it was bound
    to certain `versions`, which the first has left behind.
    """

    name: str
    sql: str
    reads_only: bool = False
    repeatable: bool = False

    def may_repeat(self, parameters: Mapping[str, Any]) -> bool:
        """Whether running it again is safe where nobody knows what became of the first time."""
        return self.reads_only or (self.repeatable and parameters.get("versions") is None)


def wire_time(moment: str) -> str:
    """A moment as the wire has it."""
    return f"""to_char({moment} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""


def _moment(column: str) -> str:
    return f"{wire_time(column)} AS {column}"


TASK_JSON = f"""(
    SELECT row_to_json(wire) FROM (
        SELECT id, user_id, title, description,
               CASE WHEN due_at IS NULL THEN NULL
                    WHEN due_all_day THEN to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')
                    ELSE {wire_time("due_at")} END AS due_at,
               (ARRAY['{"','".join(Priority)}'])[priority + 1] AS priority, tags, project, recurrence,
               time_zone, extra::json AS extra, completed, {_moment("completed_at")}, next_id,
               {_moment("deleted_at")}, version, {_moment("created_at")}, {_moment("updated_at")}
    ) AS wire
)"""
"""One task exactly as `models.Task` serialises it; reads the columns of the row that surrounds it."""

CONTENT = {
    "title": "%(title)s::text",
    "description": "%(description)s::text",
    "due_at": "%(due_at)s::timestamptz",
    "due_all_day": "%(due_all_day)s::boolean",
    "priority": "%(priority)s::smallint",
    "tags": "string_to_array(%(tags)s::text, ' ')",
    "project": "%(project)s::text",
    "recurrence": "%(recurrence)s::text",
    "time_zone": "%(time_zone)s::text",
    "extra": "%(extra)s::text",
    "completed": "%(completed)s::boolean",
}
"""What a client writes of a task: the columns, and their parameters. A tag has no space in it."""

COLUMNS = (
    f"user_id, id, {', '.join(CONTENT)}, completed_at, next_id, deleted_at, version, created_at, updated_at"
)

_MATCHED = "(%(versions)s::bigint[] IS NULL OR version = ANY(%(versions)s::bigint[]))"

READ_TASK = Statement(
    "read_task",
    f"""
    SELECT true, version, {TASK_JSON}::text
    FROM task WHERE user_id = %(user_id)s AND id = %(id)s AND deleted_at IS NULL
    """,
    reads_only=True,
)
"""-> matched, version, JSON."""


def log_of(rows: str, kind: str) -> str:
    """Writes into the log of changes what `rows` (with a `body` and a `number`) have become."""
    return f"""
        INSERT INTO change (user_id, number, type, task_id, at, task)
        SELECT user_id, number, {kind}, id, updated_at, body FROM {rows}
    """


SIZED = ("title", "description", "tags", "project", "recurrence", "extra")
"""The columns that a user's quota of bytes is about."""


def octets(columns: Mapping[str, str] | None = None) -> str:
    """How many bytes a task's texts take in UTF-8; `columns`: expressions for those not the row's own."""
    values = {column: column for column in SIZED} | dict(columns or {})
    values["tags"] = f"array_to_string({values['tags']}, ' ')"
    return f"({' + '.join(f'coalesce(octet_length({values[column]}), 0)' for column in SIZED)})"


def _quota(of: str) -> str:
    return f"nullif(coalesce(a.quota_{of}, %(quota_{of})s::bigint), 0)"


def exceeds(of: str, growth: str, total: str | None = None) -> str:
    """Whether the account `a` has no room for so many more `tasks` or `bytes`; what does not grow fits.

    True as well where there is a quota and the account is not counted: `COUNT_USAGE` mends that.

    Args:
        of: what is limited, by the account or else by the parameters `quota_tasks` and `quota_bytes`.
        growth: an expression for how much more it is.
        total: together with what else is done at once.
    """
    return (
        f"({growth} > 0 AND {_quota(of)} IS NOT NULL AND"
        f" (a.counted <> a.last_change OR coalesce(a.{of}, 0) + {total or growth} > {_quota(of)}))"
    )


# The first create of a user makes the account, every later one takes its next numbers. A repeated create
# finds the task of its key in `existing`. Of several at the same moment, those that lose the race see no
# row yet in `existing`; the unique key then fails them, and when they are run again they find it.
CREATE_TASK = Statement(
    "create_task",
    f"""
    WITH existing AS (
        SELECT {COLUMNS}, idempotency_digest
        FROM task WHERE user_id = %(user_id)s AND idempotency_key = %(key)s::text
    ), next AS (
        INSERT INTO account AS a (user_id, last_task_id, last_change, counted, tasks, bytes)
        SELECT %(user_id)s::text, 1, 1, 1, 1, {octets(CONTENT)}
        WHERE NOT EXISTS (SELECT FROM existing)
              AND coalesce({octets(CONTENT)} <= nullif(%(quota_bytes)s::bigint, 0), true)
        ON CONFLICT (user_id) DO UPDATE
        SET last_task_id = a.last_task_id + 1, last_change = a.last_change + 1, counted = a.counted + 1,
            tasks = a.tasks + 1, bytes = a.bytes + excluded.bytes
        WHERE NOT {exceeds("tasks", "1")} AND NOT {exceeds("bytes", "excluded.bytes")}
        RETURNING last_task_id, last_change
    ), made AS (
        INSERT INTO task (user_id, id, {", ".join(CONTENT)}, completed_at, version,
                          idempotency_key, idempotency_digest)
        SELECT %(user_id)s::text, last_task_id, {", ".join(CONTENT.values())},
               CASE WHEN %(completed)s::boolean THEN now() END, 1, %(key)s::text, %(digest)s::bytea
        FROM next
        RETURNING {COLUMNS}, idempotency_digest
    ), result AS (
        SELECT false AS replayed, last_change AS number, {TASK_JSON} AS body, made.*
        FROM made, next
        UNION ALL
        SELECT true, NULL, {TASK_JSON}, existing.* FROM existing
    ), logged AS (
        {log_of("result WHERE NOT replayed", "'created'")}
    )
    SELECT replayed, %(digest)s::bytea IS NOT DISTINCT FROM idempotency_digest, id, version, body::text
    FROM result
    """,
    repeatable=True,
)
"""-> replayed, same content, id, version, JSON; no row where a quota leaves no room.

Raises Contended where another create with the same key came first.
"""

# The moment is picked from an array, as Citus refuses now() within CASE.
_COMPLETED_AT = """(ARRAY[completed_at, now()])[CASE
    WHEN NOT {completed} THEN NULL WHEN completed THEN 1 ELSE 2
END]"""


def _change(
    name: str,
    written: Mapping[str, str],
    kind: str,
    *,
    also: str = "",
    live: str = "deleted_at IS NULL",
    tasks: int = 0,
    repeatable: bool = True,
) -> tuple[Statement, Statement]:
    """A change of one task, and the same for one that recurs and is completed by it.

    The account is locked before the task, as everything does that writes: from there on the user's tasks stay
    as they are, and the task is seen as that and not as it was when the statement began. So what is judged is
    what is changed, what is counted is exact, and numbers are given out in the order of the commits.

    Args:
        name: the statement's.
        written: columns, and the expressions over the row that they are set to.
        kind: an expression, the change's type.
        also: more assignments, for columns that are no part of the task.
        live: which rows are there to be changed.
        tasks: how many more tasks there are afterwards outside the trash.
        repeatable: as in `Statement`.
    """
    differs = f"({', '.join(written)}) IS DISTINCT FROM ({', '.join(written.values())})"
    recurs = "false"
    assignments = ", ".join(f"{column} = {value}" for column, value in written.items())
    if "completed" in written:
        completed = written["completed"]
        assignments += f", completed_at = {_COMPLETED_AT.format(completed=completed)}"
        recurs = (
            f"(NOT completed AND {completed} AND next_id IS NULL"
            f" AND {written.get('recurrence', 'recurrence')} IS NOT NULL)"
        )
    target = f"user_id = %(user_id)s AND id = %(id)s AND {live}"
    size = f"{tasks} * {octets()}" if tasks else "0"
    if written.keys() & set(SIZED):
        size = f"{octets(written)} - {octets()}"

    def statement(*, recurring: bool) -> str:
        follows = "%(follows)s::int" if recurring else "0"
        more, next_id, successor = "", "", ""
        if recurring:
            recurs_not, successor = "", _SUCCESSOR
            more = f" + {follows} * {octets({**written, 'recurrence': _NEXT_RECURRENCE})}"
            next_id = "next_id = CASE WHEN %(follows)s::int = 1 THEN new_task_id END,"
        else:
            recurs_not = f"WHEN {recurs} THEN 'recurs'"
        return f"""
    WITH a AS MATERIALIZED (
        SELECT last_task_id, last_change, counted, tasks, bytes, quota_tasks, quota_bytes
        FROM account WHERE user_id = %(user_id)s AND EXISTS (SELECT FROM task WHERE {target})
        FOR UPDATE
    ), before AS MATERIALIZED (
        SELECT {COLUMNS} FROM task WHERE {target} AND EXISTS (SELECT FROM a) FOR UPDATE
    ), judged AS MATERIALIZED (
        SELECT CASE
                   WHEN NOT {_MATCHED} THEN 'stale'
                   WHEN NOT {differs} THEN 'same'
                   {recurs_not}
                   WHEN {exceeds("tasks", "more_tasks")} THEN 'tasks'
                   WHEN {exceeds("bytes", "more_bytes")} THEN 'bytes'
                   ELSE 'changed'
               END AS state,
               last_task_id + 1 AS new_task_id, last_change + 1 AS number, more_tasks, more_bytes
        FROM before CROSS JOIN a CROSS JOIN LATERAL (
            SELECT {tasks} + {follows} AS more_tasks, {size}{more} AS more_bytes
        ) AS growth
    ), counted AS (
        UPDATE account
        SET last_task_id = last_task_id + {follows}, last_change = last_change + 1 + {follows},
            counted = counted + 1 + {follows}, tasks = tasks + more_tasks, bytes = bytes + more_bytes
        FROM judged WHERE user_id = %(user_id)s AND state = 'changed'
    ), changed AS (
        UPDATE task SET {assignments}, {also} {next_id} version = version + 1, updated_at = now()
        FROM judged WHERE {target} AND state = 'changed'
        RETURNING {COLUMNS}, number
    ), told AS (
        SELECT {TASK_JSON} AS body, changed.* FROM changed
    ), logged AS (
        {log_of("told", kind)}
    ){successor}
    SELECT 'changed', version, body::text, NULL FROM told
    UNION ALL
    SELECT state, version, {TASK_JSON}::text, {wire_time("now()")}
    FROM before, judged WHERE state <> 'changed'
    """

    return (
        Statement(name, statement(recurring=False), repeatable=repeatable),
        Statement(f"{name}_recurring", statement(recurring=True)),
    )


_SENT = "string_to_array(%(sent)s::text, ' ')"

_NEXT_RECURRENCE = "%(next_recurrence)s::text"

# A copy of what the completed task has become, as a new one.
_SUCCESSOR = f""", successor AS (
        INSERT INTO task (user_id, id, {", ".join(CONTENT)}, version)
        SELECT user_id, next_id, title, description, %(next_due_at)s::timestamptz, due_all_day, priority,
               tags, project, {_NEXT_RECURRENCE}, time_zone, extra, false, 1
        FROM changed WHERE %(follows)s::int = 1
        RETURNING {COLUMNS}
    ), successor_told AS (
        SELECT {TASK_JSON} AS body, number + 1 AS number, successor.* FROM successor, judged
    ), successor_logged AS (
        {log_of("successor_told", "'created'")}
    )"""

CHANGE_TASK, CHANGE_RECURRING = _change(
    "change_task",
    {
        column: f"CASE WHEN '{column}' = ANY({_SENT}) THEN {value} ELSE {column} END"
        for column, value in CONTENT.items()
    },
    "'changed'",
)
"""Changes the columns that `sent` names, with spaces between.

-> state, version, JSON, and where nothing was changed the time. The states, each with the task as it is:

- `changed`.
- `same`: it was so already.
- `stale`: its version is not among `versions`.
- `recurs`: it would be completed, and the statement for that needs what follows it.
- `tasks`, `bytes`: the quota of these leaves no room, or the account is not counted (`COUNT_USAGE`).
"""

COMPLETE_TASK, COMPLETE_RECURRING = _change(
    "complete_task",
    {"completed": "%(completed)s::boolean"},
    "CASE WHEN completed THEN 'completed' ELSE 'reopened' END",
)
"""-> as `CHANGE_TASK`."""

DELETE_TASK, _ = _change(
    "delete_task",
    {"deleted_at": "now()"},
    "'deleted'",
    also="idempotency_key = NULL, idempotency_digest = NULL,",
    tasks=-1,
    repeatable=False,
)
"""Puts a task into the trash, whose key is then free for another. -> as `CHANGE_TASK`."""

RESTORE_TASK, _ = _change(
    "restore_task", {"deleted_at": "NULL::timestamptz"}, "'restored'", live="true", tasks=1
)
"""Takes a task out of the trash. -> as `CHANGE_TASK`."""

COUNT_USAGE = Statement(
    "count_usage",
    f"""
    WITH a AS MATERIALIZED (
        SELECT last_change, counted <> last_change AS stale, tasks, bytes,
               {_quota("tasks")} AS quota_tasks, {_quota("bytes")} AS quota_bytes
        FROM account AS a WHERE user_id = %(user_id)s
    ), found AS MATERIALIZED (
        SELECT count(*) AS tasks, coalesce(sum({octets()}), 0) AS bytes
        FROM task
        WHERE user_id = %(user_id)s AND deleted_at IS NULL AND EXISTS (SELECT FROM a WHERE stale)
    ), counted AS (
        UPDATE account SET tasks = found.tasks, bytes = found.bytes, counted = a.last_change
        FROM a, found
        WHERE account.user_id = %(user_id)s AND account.last_change = a.last_change AND stale
    )
    SELECT stale, tasks, bytes, quota_tasks, quota_bytes FROM a
    """,
    repeatable=True,
)
"""Counts a user's tasks where something has written that does not count.

-> whether that was so; else how many tasks there are, how many bytes, and the quotas of both, null where
there is none. No row where there is no account. What is written meanwhile leaves it to be done another time.
"""


CHANGE_SEPARATOR = b"\x1e"
"""Between the changes of a page; no JSON text holds it (RFC 7464)."""

READ_CHANGES = Statement(
    "read_changes",
    f"""
    SELECT coalesce((SELECT last_change FROM account WHERE user_id = %(user_id)s), 0),
           coalesce((SELECT (extract(epoch FROM created_at) * 1000000)::bigint
                     FROM account WHERE user_id = %(user_id)s), 0),
           (SELECT number FROM change WHERE user_id = %(user_id)s ORDER BY number LIMIT 1),
           string_agg(
               (SELECT concat(number, ' ', type, ' ', row_to_json(wire))
                FROM (SELECT number, type, {_moment("at")}, task) AS wire),
               E'\\x1e' ORDER BY number
           ) FILTER (WHERE fits),
           max(number) FILTER (WHERE fits),
           count(*) FILTER (WHERE NOT fits) > 0
    FROM (
        SELECT number, type, at, task,
               row_number() OVER sofar <= %(limit)s::bigint
               AND sum(size) OVER sofar - size < %(bytes)s::bigint AS fits
        FROM (
            SELECT number, type, at, task, octet_length(task::text) AS size
            FROM change WHERE user_id = %(user_id)s AND number > %(after)s::bigint
            ORDER BY number LIMIT %(limit)s::bigint + 1
        ) AS following
        WINDOW sofar AS (ORDER BY number)
    ) AS page
    """,
    reads_only=True,
)
"""The changes after a number, up to a number of them and about so many bytes, at least one.

-> the last number that was taken; when the account was made, in microseconds since 1970 (both 0 without one);
the oldest that is kept; the page's changes (number, type and JSON, with a space between them) or null when
there are none; the last one's number; whether there are more. All of one moment: every change up to the last
number that was taken is in the log or has been purged from it.
"""

READ_REVISION = Statement(
    "read_revision",
    "SELECT version_num::text, current_setting('transaction_read_only') = 'on' FROM alembic_version",
    reads_only=True,
)
"""-> the schema's revision, whether writes are refused; UndefinedTable where nothing was migrated yet."""

CONNECTION_LIMIT = Statement(
    "connection_limit",
    """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0)
    """,
    reads_only=True,
)
"""-> how many connections PostgreSQL has for ordinary roles."""

PROBE = """
SELECT pg_backend_pid() = %(pid)s,
       CASE WHEN pg_backend_pid() = %(pid)s THEN set_config('statement_timeout', %(timeout)s, false) END
"""
"""Asked of each new session. A pooler gives out process ids of its own: what answers under another one is not
the server itself, and is left as it is."""
