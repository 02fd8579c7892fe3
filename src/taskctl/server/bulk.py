"""The statement that does many operations of one user at once.

It first locks the user's account, which every writer of their tasks changes before it changes a task. So from
there on nobody else writes, and the tasks, which are locked after it, are seen as they are and not as they
were when the statement began. Then it judges each operation by that state, so that none sees what another
one does, and changes everything or, for one of four reasons, nothing:

- an operation is refused, and it is all or nothing;
- a task that recurs would be completed: the answer has these tasks, and the statement is run again with what
  follows each of them at its version;
- there is a quota, and the account is not counted (`queries.COUNT_USAGE` mends that);
- another statement has made a row since this one began, which it could not see and makes again: a task of the
  same key, the answer to the same request, the account. That is `Contended`: run it again.

Ids and the numbers of changes are given out in the order of the operations. In that order, too, they use up
what a quota leaves; one that is refused for it counts for those that follow.
"""

import dataclasses
import json
import re

from taskctl import errors
from taskctl.server.queries import (
    COLUMNS,
    CONTENT,
    SIZED,
    TASK_JSON,
    Statement,
    exceeds,
    log_of,
    octets,
    wire_time,
)

_PARAMETER = re.compile(r"%\((\w+)\)s::(\w+)")

_TYPES = dict(_PARAMETER.findall(" ".join(CONTENT.values())))
"""The columns that clients write, with the types in which the server sends them."""

_SENT = {column: _PARAMETER.sub(r"o.\1", value) for column, value in CONTENT.items()}

_NEW = {
    column: f"CASE WHEN o.op = 'create' OR '{column}' = ANY(o.sent) THEN {value} ELSE b.{column} END"
    for column, value in _SENT.items()
}
"""What an operation `o` makes of the columns of the row `b`."""

_FOLLOWING = {column: column for column in CONTENT} | {
    "due_at": "next_due_at",
    "recurrence": "next_recurrence",
    "completed": "false",
}
"""A copy of what a completed task has become, as the one that follows it."""

_DIFFERS = f"(b.{', b.'.join(_NEW)}) IS DISTINCT FROM ({', '.join(_NEW.values())})"

_RECURS = f"""(
    o.op IN ('patch', 'complete') AND NOT b.completed AND {_NEW["completed"]} AND b.next_id IS NULL
    AND {_NEW["recurrence"]} IS NOT NULL
)"""

_FULL = "('tasks', 'bytes')"
"""What an operation is that a quota leaves no room for."""

_REFUSED = "('absent', 'stale', 'reused', 'undated', 'invalid', 'tasks', 'bytes')"
"""What an operation can be that is not done."""


def _columns(row: str) -> str:
    return ", ".join(f"{row}.{column}" for column in COLUMNS.split(", "))


def _problem(error: type[errors.TaskctlError], detail: str | None = None, **members: object) -> str:
    """An operation's result where it is refused, as an SQL text; `members` are SQL within it."""
    described = {"code": error.code, "detail": detail or error.title()}
    text = json.dumps({"status": error.status, "problem": described}, separators=(",", ":"))
    text = "'" + text.replace("'", "''") + "'"
    for name, sql in members.items():
        text = f"""left({text}, -2) || ',"{name}":' || {sql} || '}}}}'"""
    return text


_KIND = """CASE op
    WHEN 'create' THEN 'created' WHEN 'patch' THEN 'changed'
    WHEN 'delete' THEN 'deleted' WHEN 'restore' THEN 'restored'
    ELSE CASE WHEN completed THEN 'completed' ELSE 'reopened' END
END"""
"""The type of a change, as the log has it."""

_UNDONE = """'{"status":424,"problem":{"code":"bulk_refused","detail":"Another operation was refused."}}'"""

_RESULT = f"""CASE
    WHEN v.refused AND p.state NOT IN {_REFUSED} THEN {_UNDONE}
    WHEN p.state = 'made' THEN '{{"status":201,"task":' || s.body || '}}'
    WHEN p.state IN ('copied', 'replayed') THEN '{{"status":201,"task":' || s.body || ',"replayed":true}}'
    WHEN p.state IN ('changed', 'same') THEN CASE
        WHEN p.op = 'delete' THEN '{{"status":204}}' ELSE '{{"status":200,"task":' || s.body || '}}'
    END
    WHEN p.state = 'absent' THEN {_problem(errors.TaskNotFound)}
    WHEN p.state = 'stale' THEN {_problem(errors.VersionConflict, current_version="p.version")}
    WHEN p.state = 'reused' THEN {_problem(errors.IdempotencyKeyReused)}
    WHEN p.state IN {_FULL} THEN {_problem(errors.QuotaExceeded, quota="to_json(p.state)")}
    WHEN p.state = 'undated' THEN p.undated
    ELSE p.answer
END"""

BULK = Statement(
    "bulk",
    f"""
    WITH earlier AS MATERIALIZED (
        SELECT digest, answer FROM bulk WHERE user_id = %(user_id)s AND key = %(key)s::text
    ), operation AS MATERIALIZED (
        SELECT o.*, first_value(o.position) OVER same_key AS first,
               first_value(o.digest) OVER same_key AS first_digest
        FROM json_to_recordset(%(operations)s::text::json) AS o (
            position int, op text, id bigint, version bigint, key text, digest bytea, sent text[],
            {", ".join(f"{column} {kind}" for column, kind in _TYPES.items())},
            bound bigint, follows int, next_due_at timestamptz, next_recurrence text,
            undated text, answer text
        )
        WHERE NOT EXISTS (SELECT FROM earlier)
        WINDOW same_key AS (PARTITION BY coalesce(o.key, ' ' || o.position) ORDER BY o.position)
    ), locked AS MATERIALIZED (
        SELECT last_task_id, last_change, counted, tasks, bytes, quota_tasks, quota_bytes FROM account
        WHERE user_id = %(user_id)s AND NOT EXISTS (SELECT FROM earlier)
        FOR UPDATE
    ), found AS MATERIALIZED (
        SELECT o.position, {_columns("t")}, t.idempotency_digest
        FROM locked CROSS JOIN operation AS o JOIN task AS t ON t.user_id = %(user_id)s AND t.id = o.id
        FOR UPDATE OF t
    ), keyed AS MATERIALIZED (
        SELECT o.position, {_columns("t")}, t.idempotency_digest
        FROM locked CROSS JOIN operation AS o
        JOIN task AS t ON t.user_id = %(user_id)s AND t.idempotency_key = o.key
        FOR UPDATE OF t
    ), before AS MATERIALIZED (
        SELECT * FROM found UNION ALL SELECT * FROM keyed
    ), judged AS MATERIALIZED (
        SELECT o.position, o.op, o.first, o.key, o.digest, o.undated, o.answer, o.next_due_at,
               o.next_recurrence, b.id, b.version, b.deleted_at IS NOT NULL AS trashed,
               {octets({column: f"b.{column}" for column in SIZED})} AS old_bytes,
               {", ".join(f"{value} AS {column}" for column, value in _NEW.items())},
               CASE WHEN {_RECURS} THEN coalesce(o.follows, 0) ELSE 0 END AS follows,
               CASE
                   WHEN o.op = 'invalid' THEN 'invalid'
                   WHEN o.op = 'create' AND b.id IS NOT NULL THEN
                       CASE WHEN b.idempotency_digest = o.digest THEN 'replayed' ELSE 'reused' END
                   WHEN o.op = 'create' AND o.position = o.first THEN 'made'
                   WHEN o.op = 'create' AND o.digest = o.first_digest THEN 'copied'
                   WHEN o.op = 'create' THEN 'reused'
                   WHEN b.id IS NULL OR b.deleted_at IS NOT NULL AND o.op <> 'restore' THEN 'absent'
                   WHEN b.version <> o.version THEN 'stale'
                   WHEN o.op = 'delete' OR b.deleted_at IS NOT NULL THEN 'changed'
                   WHEN o.op = 'restore' OR NOT {_DIFFERS} THEN 'same'
                   WHEN {_NEW["recurrence"]} IS NOT NULL AND {_NEW["due_at"]} IS NULL THEN 'undated'
                   WHEN {_RECURS} AND o.bound IS DISTINCT FROM b.version THEN 'recurs'
                   ELSE 'changed'
               END AS claim
        FROM operation AS o LEFT JOIN before AS b ON b.position = o.position
    ), weighed AS MATERIALIZED (
        SELECT *, sum(more_tasks) OVER so_far AS all_tasks, sum(more_bytes) OVER so_far AS all_bytes
        FROM judged CROSS JOIN LATERAL (
            SELECT CASE
                       WHEN claim NOT IN ('made', 'changed') THEN 0
                       WHEN op = 'delete' THEN -1
                       WHEN claim = 'made' OR trashed THEN 1
                       ELSE follows
                   END AS more_tasks,
                   CASE
                       WHEN claim NOT IN ('made', 'changed') THEN 0
                       WHEN op = 'delete' THEN -old_bytes
                       WHEN claim = 'made' OR trashed THEN {octets()}
                       ELSE {octets()} - old_bytes + follows * {octets({"recurrence": "next_recurrence"})}
                   END AS more_bytes
        ) AS growth
        WINDOW so_far AS (ORDER BY position)
    ), fitted AS MATERIALIZED (
        SELECT o.*, CASE
                   WHEN o.claim NOT IN ('made', 'copied', 'changed') THEN o.claim
                   WHEN {exceeds("tasks", "f.more_tasks", "f.all_tasks")} THEN 'tasks'
                   WHEN {exceeds("bytes", "f.more_bytes", "f.all_bytes")} THEN 'bytes'
                   ELSE o.claim
               END AS state
        FROM weighed AS o JOIN weighed AS f ON f.position = o.first LEFT JOIN locked AS a ON true
    ), verdict AS MATERIALIZED (
        SELECT bool_or(state IN {_FULL}) AND EXISTS (
                   SELECT FROM locked WHERE counted <> last_change
               ) AS uncounted,
               %(atomic)s::boolean AND bool_or(state IN {_REFUSED}) AS refused,
               bool_or(state = 'recurs') AS recurs
        FROM fitted
    ), numbered AS MATERIALIZED (
        SELECT *, coalesce((SELECT last_task_id FROM locked), 0)
                      + sum((state = 'made')::int + follows) OVER so_far AS new_id,
               coalesce((SELECT last_change FROM locked), 0) + sum(1 + follows) OVER so_far - follows
                   AS number
        FROM fitted
        WHERE state IN ('made', 'changed')
              AND (SELECT NOT uncounted AND NOT refused AND NOT recurs FROM verdict)
        WINDOW so_far AS (ORDER BY position)
    ), taken AS MATERIALIZED (
        SELECT max(new_id) AS last_task_id, max(number + follows) AS last_change,
               sum(1 + follows) AS changes, sum(more_tasks) AS more_tasks, sum(more_bytes) AS more_bytes
        FROM numbered HAVING count(*) > 0
    ), counted AS (
        UPDATE account AS a
        SET last_task_id = taken.last_task_id, last_change = taken.last_change,
            counted = a.counted + changes, tasks = a.tasks + more_tasks, bytes = a.bytes + more_bytes
        FROM taken WHERE a.user_id = %(user_id)s
    ), opened AS (
        INSERT INTO account (user_id, last_task_id, last_change, counted, tasks, bytes)
        SELECT %(user_id)s::text, last_task_id, last_change, last_change, more_tasks, more_bytes FROM taken
        WHERE NOT EXISTS (SELECT FROM locked)
    ), made AS (
        INSERT INTO task (user_id, id, {", ".join(CONTENT)}, completed_at, version,
                          idempotency_key, idempotency_digest)
        SELECT %(user_id)s::text, new_id, {", ".join(CONTENT)}, CASE WHEN completed THEN now() END, 1,
               key, digest
        FROM numbered WHERE state = 'made'
        UNION ALL
        SELECT %(user_id)s::text, new_id, {", ".join(_FOLLOWING.values())}, NULL, 1, NULL, NULL
        FROM numbered WHERE follows = 1
        RETURNING {COLUMNS}
    ), changed AS (
        UPDATE task AS t SET {", ".join(f"{column} = n.{column}" for column in CONTENT)},
            completed_at = (ARRAY[t.completed_at, now()])[
                CASE WHEN NOT n.completed THEN NULL WHEN t.completed THEN 1 ELSE 2 END
            ],
            deleted_at = (ARRAY[now()])[CASE WHEN n.op = 'delete' THEN 1 END],
            idempotency_key = CASE WHEN n.op <> 'delete' THEN t.idempotency_key END,
            idempotency_digest = CASE WHEN n.op <> 'delete' THEN t.idempotency_digest END,
            next_id = CASE WHEN n.follows = 1 THEN n.new_id ELSE t.next_id END,
            version = t.version + 1, updated_at = now()
        FROM numbered AS n
        WHERE t.user_id = %(user_id)s AND t.id = n.id AND n.state = 'changed'
        RETURNING n.position, n.number, n.op, {_columns("t")}
    ), told AS MATERIALIZED (
        SELECT position, number, op, user_id, id, completed, updated_at, {TASK_JSON} AS body
        FROM (
            SELECT * FROM changed
            UNION ALL
            SELECT CASE WHEN n.state = 'made' THEN n.position END, n.number + n.follows, 'create', made.*
            FROM made JOIN numbered AS n ON n.new_id = made.id AND (n.state = 'made' OR n.follows = 1)
        ) AS row
    ), logged AS (
        {log_of("told", _KIND)}
    ), shown AS MATERIALIZED (
        SELECT position, body FROM told
        UNION ALL
        SELECT position, {TASK_JSON} FROM (
            SELECT before.* FROM before JOIN fitted USING (position)
            WHERE state IN ('same', 'replayed', 'recurs')
        ) AS row
    ), answered AS MATERIALIZED (
        SELECT string_agg({_RESULT}, ',' ORDER BY p.position) AS results,
               string_agg('{{"position":' || p.position || ',"version":' || p.version || ',"task":' || s.body
                          || '}}', ',') FILTER (WHERE p.state = 'recurs') AS recurring
        FROM verdict AS v CROSS JOIN fitted AS p
        LEFT JOIN shown AS s ON s.position = CASE WHEN p.state = 'copied' THEN p.first ELSE p.position END
    ), kept AS (
        INSERT INTO bulk (user_id, key, digest, answer)
        SELECT %(user_id)s::text, %(key)s::text, %(digest)s::bytea, results FROM answered, verdict
        WHERE %(key)s::text IS NOT NULL AND NOT uncounted AND NOT refused AND NOT recurs
    )
    SELECT CASE WHEN digest = %(digest)s::bytea THEN 'replayed' ELSE 'reused' END, answer, NULL FROM earlier
    UNION ALL
    SELECT CASE
               WHEN uncounted THEN 'uncounted' WHEN refused THEN 'refused' WHEN recurs THEN 'recurring'
               ELSE 'done'
           END,
           CASE WHEN recurs AND NOT refused THEN recurring ELSE results END, {wire_time("now()")}
    FROM answered, verdict WHERE NOT EXISTS (SELECT FROM earlier)
    """,
    repeatable=True,
)
"""For a request with a key. -> what has become of it, JSON values with commas between, the time.

Besides what a client writes, `operations` has `position`, `op` (or `invalid`), `answer` (the result of what
is invalid), `undated` (that of a patch that leaves a rule without a date), `sent` (the columns that a patch
writes), and of a completed task that recurs `bound`, its version, with `follows`, `next_due_at` and
`next_recurrence`.
"""

BULK_ONCE = dataclasses.replace(BULK, repeatable=False)
"""The same without a key: run again it would do all of it again."""
