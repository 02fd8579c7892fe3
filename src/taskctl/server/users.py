"""What an operator does about people: who is there, all of one, none of it any more, how much one may have.

The tables are not listed here: whatever has a `user_id` holds a person's data, in this release or the next.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from taskctl.config import ServerSettings
from taskctl.errors import UserNotFound
from taskctl.server import migrations
from taskctl.server.queries import COUNT_USAGE, octets, wire_time

_BATCH = 500
"""Rows that are fetched at a time, so that an export's size is no matter of memory."""

_TABLES = """
SELECT c.relname::text FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE a.attname = 'user_id' AND NOT a.attisdropped AND c.relkind IN ('r', 'p')
      AND c.relnamespace = current_schema()::regnamespace
ORDER BY c.relname <> 'account', c.relname
"""
"""The account first: its row is what a user's writes wait for."""

_LIST = f"""
SELECT json_build_object(
    'user_id', a.user_id, 'tasks', count(t.id) FILTER (WHERE t.deleted_at IS NULL),
    'pending', count(t.id) FILTER (WHERE t.deleted_at IS NULL AND NOT t.completed),
    'trash', count(t.deleted_at),
    'bytes', coalesce(sum({octets()}) FILTER (WHERE t.deleted_at IS NULL), 0),
    'quota_tasks', a.quota_tasks, 'quota_bytes', a.quota_bytes,
    'created_at', {wire_time("a.created_at")}, 'changed_at', {wire_time("max(t.updated_at)")}
)::text
FROM account AS a LEFT JOIN task AS t ON t.user_id = a.user_id
GROUP BY a.user_id ORDER BY a.user_id
"""  # noqa: S608 - constants

_SET_QUOTAS = """
INSERT INTO account AS a (user_id, last_task_id, last_change, counted, quota_tasks, quota_bytes)
VALUES (%(user_id)s, 0, 0, 0, %(tasks)s, %(bytes)s)
ON CONFLICT (user_id) DO UPDATE
SET quota_tasks = CASE WHEN %(set_tasks)s THEN excluded.quota_tasks ELSE a.quota_tasks END,
    quota_bytes = CASE WHEN %(set_bytes)s THEN excluded.quota_bytes ELSE a.quota_bytes END
"""


def list_users(settings: ServerSettings) -> Iterator[dict[str, Any]]:
    """Everybody who has or had tasks: how many, how many pending, how many in the trash, and since when.

    With the bytes of their texts, and quotas of their own: None where all people's are theirs, 0 for none.
    Reads all tasks. Raises DatabaseUnavailable where there is none.
    """
    with migrations.session(settings) as connection, connection.cursor("users") as cursor:
        cursor.itersize = _BATCH
        for (row,) in cursor.execute(_LIST):
            yield json.loads(row)


def export(settings: ServerSettings, user_id: str) -> Iterator[str]:
    """All that the database has about a person, a JSON object a line; the last line is the proof.

    Each line names its table and has a row of it, with all columns. The proof has the number of rows of each
    table and the SHA-256 of the lines before it, each with its line feed. All of it is of one moment.

    Raises:
        UserNotFound: there is nothing.
        DatabaseUnavailable: the database cannot be reached.
    """
    digest = hashlib.sha256()
    rows: dict[str, int] = {}
    with migrations.session(settings) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        for table in _tables(connection):
            rows[table] = 0
            query = sql.SQL("SELECT row_to_json(t)::text FROM {} AS t WHERE user_id = %s").format(
                sql.Identifier(table)
            )
            with connection.cursor("export") as cursor:
                cursor.itersize = _BATCH
                for (row,) in cursor.execute(query, [user_id]):
                    line = f'{{"table":"{table}","row":{row}}}\n'
                    digest.update(line.encode())
                    rows[table] += 1
                    yield line
    if not any(rows.values()):
        raise UserNotFound(_nothing(user_id))
    yield json.dumps({"proof": {"rows": rows, "sha256": digest.hexdigest()}}) + "\n"


def erase(settings: ServerSettings, user_id: str) -> dict[str, int]:
    """Remove all that the database has about a person, and return how many rows of each table that was.

    All or nothing, and looked for again before it is committed. A server that still accepts the person's
    token can begin a new account afterwards; its ids start from 1 again.

    Raises:
        UserNotFound: there is nothing.
        DatabaseUnavailable: the database cannot be reached.
    """
    rows: dict[str, int] = {}
    with migrations.session(settings) as connection:
        tables = _tables(connection)
        for table in tables:
            cursor = connection.execute(_about("DELETE FROM {} WHERE user_id = %s", table), [user_id])
            rows[table] = cursor.rowcount
        for table in tables:
            left = connection.execute(_about("SELECT count(*) FROM {} WHERE user_id = %s", table), [user_id])
            if (left.fetchone() or (0,))[0]:  # pragma: no cover - a writer that has not taken the account
                raise RuntimeError(f"rows of {table} came back while they were erased")
    if not any(rows.values()):
        raise UserNotFound(_nothing(user_id))
    return rows


def set_quotas(settings: ServerSettings, user_id: str, quotas: Mapping[str, int | None]) -> None:
    """Let a person have more or less than all people may, from their next request on.

    Args:
        settings: where the database is.
        user_id: who; they need not have any tasks yet.
        quotas: of `tasks` and `bytes`, what is to change: 0 for no limit, None for what all people may have.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    with migrations.session(settings) as connection:
        connection.execute(
            _SET_QUOTAS,
            {
                "user_id": user_id,
                **{of: quotas.get(of) for of in ("tasks", "bytes")},
                **{f"set_{of}": of in quotas for of in ("tasks", "bytes")},
            },
        )


def usage(settings: ServerSettings, user_id: str) -> dict[str, int | None]:
    """How many `tasks` and `bytes` a person has, and `quota_tasks` and `quota_bytes`, None for no limit.

    Raises:
        UserNotFound: there is nothing.
        DatabaseUnavailable: the database cannot be reached.
    """
    parameters = {
        "user_id": user_id,
        "quota_tasks": settings.quota_tasks,
        "quota_bytes": settings.quota_bytes,
    }
    with migrations.session(settings) as connection:
        connection.autocommit = True
        while row := connection.execute(COUNT_USAGE.sql, parameters).fetchone():
            uncounted, *figures = row
            if not uncounted:
                return dict(zip(("tasks", "bytes", "quota_tasks", "quota_bytes"), figures, strict=True))
    raise UserNotFound(_nothing(user_id))


def _tables(connection: psycopg.Connection) -> list[str]:
    return [name for (name,) in connection.execute(_TABLES)]


def _about(statement: LiteralString, table: str) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(table))


def _nothing(user_id: str) -> str:
    return f"The database has nothing about {user_id!r}."
