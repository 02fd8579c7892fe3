"""Removing for good what nobody can ask for any more: old trash, and old entries of the log of changes.

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

_MINE = f"WITH mine AS MATERIALIZED (SELECT pg_try_advisory_xact_lock({_LOCK}) AS locked)"

PURGE_TASKS = Statement(
    "purge_tasks",
    f"""
    {_MINE}, old AS MATERIALIZED (
        SELECT user_id, id FROM task
        WHERE (SELECT locked FROM mine) AND deleted_at < now() - make_interval(days => %(days)s::int)
        LIMIT {_PART}
    ), gone AS (
        DELETE FROM task USING old
        WHERE task.user_id = old.user_id AND task.id = old.id
              AND task.deleted_at < now() - make_interval(days => %(days)s::int)
        RETURNING task.id
    )
    SELECT count(*) FROM gone
    """,  # noqa: S608 - constants of this module
)
"""-> how many. What is restored meanwhile stays."""

PURGE_CHANGES = Statement(
    "purge_changes",
    f"""
    {_MINE}, old AS MATERIALIZED (
        SELECT user_id, number FROM change
        WHERE (SELECT locked FROM mine) AND at < now() - make_interval(days => %(days)s::int)
        LIMIT {_PART}
    ), gone AS (
        DELETE FROM change USING old WHERE change.user_id = old.user_id AND change.number = old.number
        RETURNING change.number
    )
    SELECT count(*) FROM gone
    """,  # noqa: S608 - constants of this module
)
"""-> how many."""


@dataclass(frozen=True, slots=True)
class Purged:
    """How much was removed."""

    tasks: int
    changes: int


def _rules(settings: ServerSettings) -> dict[str, tuple[Statement, int]]:
    return {
        "tasks": (PURGE_TASKS, settings.trash_days),
        "changes": (PURGE_CHANGES, settings.changes_days),
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
            if done != Purged(0, 0):
                log.info("purged", **asdict(done))
