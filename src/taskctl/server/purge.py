"""Removing for good what nobody can ask for any more: old trash, old changes, old answers to bulk requests.

Each statement removes a part and is complete by itself. Of several servers that purge at the same moment one
does, and the others find nothing to do.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from taskctl.config import ServerSettings
from taskctl.errors import Unavailable
from taskctl.server import migrations
from taskctl.server.database import Database
from taskctl.server.queries import Statement

log: Any = structlog.get_logger()

_PART = 1000
"""Rows that one statement removes: few enough that nobody waits long for their locks."""

_LOCK = 0x7461736B707267
"""`taskprg` in ASCII, an advisory lock's key."""

_OLD = "now() - make_interval(days => %(days)s::int)"


def _statement(what: str, table: str, key: str, since: str, delete: str) -> Statement:
    """A statement that removes a part of a table's rows that are `days` old -> how many it has removed.

    Args:
        what: goes into the statement's name.
        table: whose rows.
        key: what identifies a row beside its user.
        since: the column that says how old a row is.
        delete: removes the rows whose keys are in `old`.
    """
    return Statement(
        f"purge_{what}",
        f"""
        WITH mine AS MATERIALIZED (
            SELECT pg_try_advisory_xact_lock({_LOCK}) AS locked
        ), old AS MATERIALIZED (
            SELECT user_id, {key} FROM {table}
            WHERE (SELECT locked FROM mine) AND {since} < {_OLD}
            LIMIT {_PART}
        ), gone AS (
            {delete}
            RETURNING 1
        )
        SELECT count(*) FROM gone
        """,  # noqa: S608 - constants of this module
    )


PURGE_TASKS = _statement(
    "tasks",
    "task",
    "id",
    "deleted_at",
    f"""DELETE FROM task USING old
            WHERE task.user_id = old.user_id AND task.id = old.id AND task.deleted_at < {_OLD}""",  # noqa: S608 - as above
)
"""What is restored meanwhile stays."""

PURGE_CHANGES = _statement(
    "changes",
    "change",
    "number",
    "at",
    """DELETE FROM change USING (SELECT user_id, max(number) AS number FROM old GROUP BY user_id) AS last
            WHERE change.user_id = last.user_id AND change.number <= last.number""",
)
"""With an entry go all before it: from the first that is left readers know what they missed."""

PURGE_ANSWERS = _statement(
    "answers",
    "bulk",
    "key",
    "created_at",
    "DELETE FROM bulk USING old WHERE bulk.user_id = old.user_id AND bulk.key = old.key",
)

_ANSWERS_DAYS = 1
"""How long a bulk request that is sent again gets the first answer."""


@dataclass(frozen=True, slots=True)
class Purged:
    """How much was removed."""

    tasks: int
    changes: int
    answers: int


def _rules(settings: ServerSettings) -> dict[str, tuple[Statement, int]]:
    return {
        "tasks": (PURGE_TASKS, settings.trash_days),
        "changes": (PURGE_CHANGES, settings.changes_days),
        "answers": (PURGE_ANSWERS, _ANSWERS_DAYS),
    }


def purge(settings: ServerSettings, *, report: Callable[[int], None] = lambda _: None) -> Purged:
    """Remove all that is old enough, and call `report` with how much each part was.

    Nothing is removed while another process does so.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    done = {}
    with migrations.session(settings) as connection:
        connection.autocommit = True
        for name, (statement, days) in _rules(settings).items():
            done[name] = 0
            while part := (connection.execute(statement.sql, {"days": days}).fetchone() or (0,))[0]:
                done[name] += part
                report(part)
    return Purged(**done)


async def _purge(settings: ServerSettings, database: Database) -> Purged:
    done = {}
    for name, (statement, days) in _rules(settings).items():
        done[name] = 0
        while part := (await database.fetch(statement, {"days": days}) or (0,))[0]:
            done[name] += part
    return Purged(**done)


async def keep_purging(settings: ServerSettings, database: Database) -> None:
    """Purge now and then, until this is cancelled. A failure is logged, and the next round tries again."""
    while True:
        # Servers that start together should not all come at the same moment.
        await asyncio.sleep(settings.purge_interval * random.uniform(0.5, 1))  # noqa: S311 - no secret
        try:
            done = await _purge(settings, database)
        except Unavailable as error:
            log.warning("purge_failed", code=error.code)
        except Exception:
            log.exception("purge_failed")
        else:
            if done != Purged(0, 0, 0):
                log.info("purged", **asdict(done))
