"""Every statement of the request path, by name.

Each is complete by itself: one statement, in autocommit, bound to one user, so that it is atomic, safe
behind a transaction-mode pooler, and routed to one shard where the tables are distributed. PostgreSQL makes
the JSON that goes over the wire. Time is the database's (`now()`).

A change says in the same statement why it changed nothing: no row means that there is no such task,
`matched` is false when the task's version is not among `versions`, and null when the task has become
something to change only while the statement waited for a concurrent change: run it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskctl.vocabulary import Order, Status


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


def _moment(column: str) -> str:
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS {column}"""


_JSON = f"""(
    SELECT row_to_json(wire) FROM (
        SELECT id, user_id, title, description, completed, {_moment("completed_at")}, version,
               {_moment("created_at")}, {_moment("updated_at")}
    ) AS wire
)::text"""
"""One task exactly as `models.Task` serialises it; reads the columns of the row that surrounds it."""

_COLUMNS = "user_id, id, title, description, completed, completed_at, version, created_at, updated_at"

_MATCHED = "(%(versions)s::bigint[] IS NULL OR version = ANY(%(versions)s::bigint[]))"

READ_TASK = Statement(
    "read_task",
    f"""
    SELECT true, version, {_JSON}
    FROM task WHERE user_id = %(user_id)s AND id = %(id)s
    """,
    reads_only=True,
)
"""-> matched, version, JSON."""

# The first create of a user makes the account, every later one takes its next number. A repeated create
# finds the task of its key in `existing`. Of several at the same moment, those that lose the race see no
# row yet in `existing`; the conflict clause then hands them the winner's row, and the number they took
# remains a gap.
CREATE_TASK = Statement(
    "create_task",
    f"""
    WITH existing AS (
        SELECT {_COLUMNS}, idempotency_digest
        FROM task WHERE user_id = %(user_id)s AND idempotency_key = %(key)s::text
    ), next AS (
        INSERT INTO account AS a (user_id, last_task_id)
        SELECT %(user_id)s::text, 1 WHERE NOT EXISTS (SELECT FROM existing)
        ON CONFLICT (user_id) DO UPDATE SET last_task_id = a.last_task_id + 1
        RETURNING last_task_id
    ), made AS (
        INSERT INTO task AS t (user_id, id, title, description, completed, completed_at, version,
                               idempotency_key, idempotency_digest)
        SELECT %(user_id)s::text, last_task_id, %(title)s::text, %(description)s::text,
               %(completed)s::boolean, CASE WHEN %(completed)s::boolean THEN now() END, 1,
               %(key)s::text, %(digest)s::bytea
        FROM next
        ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL
        DO UPDATE SET idempotency_key = excluded.idempotency_key
        RETURNING {_COLUMNS}, idempotency_digest
    ), result AS (
        SELECT *, id <> (SELECT last_task_id FROM next) AS replayed FROM made
        UNION ALL
        SELECT *, true FROM existing
    )
    SELECT replayed, %(digest)s::bytea IS NOT DISTINCT FROM idempotency_digest, id, version, {_JSON}
    FROM result
    """,
    repeatable=True,
)
"""-> replayed, same content, id, version, JSON."""

_WRITTEN = """(
    coalesce(%(title)s::text, title),
    CASE WHEN %(set_description)s::boolean THEN %(description)s::text ELSE description END,
    coalesce(%(completed)s::boolean, completed)
)"""
_DIFFERS = f"(title, description, completed) IS DISTINCT FROM {_WRITTEN}"

# The moment is picked from an array, as Citus refuses now() within CASE.
#
# `changed` is the ordinary case. Only when it changed nothing is the row looked at again, under a lock that
# follows it to its newest version: what a concurrent change has left there decides between a stale version,
# a change that changes nothing, and one that must be made after all.
CHANGE_TASK = Statement(
    "change_task",
    f"""
    WITH changed AS (
        UPDATE task SET
            (title, description, completed) = {_WRITTEN},
            completed_at = (ARRAY[completed_at, now()])[CASE
                WHEN NOT coalesce(%(completed)s::boolean, completed) THEN NULL
                WHEN completed THEN 1
                ELSE 2
            END],
            version = version + 1,
            updated_at = now()
        WHERE user_id = %(user_id)s AND id = %(id)s AND {_MATCHED} AND {_DIFFERS}
        RETURNING {_COLUMNS}
    ), unchanged AS (
        SELECT {_COLUMNS} FROM task
        WHERE user_id = %(user_id)s AND id = %(id)s AND NOT EXISTS (SELECT FROM changed)
        FOR UPDATE
    )
    SELECT true, version, {_JSON} FROM changed
    UNION ALL
    SELECT CASE WHEN NOT {_MATCHED} THEN false WHEN NOT {_DIFFERS} THEN true END, version, {_JSON}
    FROM unchanged
    """,
    repeatable=True,
)
"""-> matched, version, JSON."""

DELETE_TASK = Statement(
    "delete_task",
    f"""
    WITH deleted AS (
        DELETE FROM task WHERE user_id = %(user_id)s AND id = %(id)s AND {_MATCHED}
        RETURNING version
    ), kept AS (
        SELECT version FROM task
        WHERE user_id = %(user_id)s AND id = %(id)s AND NOT EXISTS (SELECT FROM deleted)
        FOR UPDATE
    )
    SELECT true, version FROM deleted
    UNION ALL
    SELECT CASE WHEN NOT {_MATCHED} THEN false END, version FROM kept
    """,
)
"""-> matched, version."""


def _list(status: Status, order: Order) -> Statement:
    """A page, and the id at which the next one starts.

    The cursor names the first task of the page (null: from the beginning). One row more than the page is
    read, to know whether there is another page and where it starts.
    """
    only = {Status.all: "", Status.pending: "AND NOT completed", Status.completed: "AND completed"}[status]
    compare, direction = {Order.asc: (">=", "ASC"), Order.desc: ("<=", "DESC")}[order]
    start = {Order.asc: "0", Order.desc: "9223372036854775807"}[order]
    return Statement(
        f"list_{status}_{order}",
        f"""
        SELECT string_agg(body, ',' ORDER BY n) FILTER (WHERE n <= %(limit)s::bigint),
               max(id) FILTER (WHERE n > %(limit)s::bigint)
        FROM (
            SELECT id, row_number() OVER (ORDER BY id {direction}) AS n, {_JSON} AS body
            FROM task
            WHERE user_id = %(user_id)s AND id {compare} coalesce(%(cursor)s::bigint, {start}) {only}
            ORDER BY id {direction} LIMIT %(limit)s::bigint + 1
        ) AS page
        """,
        reads_only=True,
    )


LIST_TASKS = {(status, order): _list(status, order) for status in Status for order in Order}
"""-> the page's tasks as JSON, comma-separated, or null when there are none; the next page's first id."""

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
