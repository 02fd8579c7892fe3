"""Spreading the tables over a Citus cluster by user, for when one machine is outgrown.

Every key and every statement starts with `user_id`, so a user's account and tasks lie in one shard of one
machine, and each request goes to that shard alone. Functions and catalogs are those of
https://docs.citusdata.com/en/stable/develop/api_udf.html.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

from taskctl.config import ServerSettings
from taskctl.errors import MigrationFailed
from taskctl.server import migrations

if TYPE_CHECKING:
    from sqlalchemy import Connection

_TABLES = ("account", "task", "change", "bulk")
"""In this order: the others are put where the first one's users are."""

_COLUMN = "user_id"

_EXTENSION = "SELECT extversion FROM pg_extension WHERE extname = 'citus'"
_DISTRIBUTED = f"""
SELECT c.relname::text, column_to_column_name(p.logicalrelid, p.partkey) = '{_COLUMN}'
FROM pg_dist_partition AS p JOIN pg_class AS c ON c.oid = p.logicalrelid
WHERE c.relname IN ('{"', '".join(_TABLES)}') AND p.logicalrelid = to_regclass(c.relname::text)
"""  # noqa: S608 - constants of this module


class Distribution(StrEnum):
    """How the tables lie."""

    none = "none"
    """On one machine."""
    partial = "partial"
    """Some of them by user: `distribute` was interrupted."""
    complete = "complete"
    """All of them by user."""


def read(settings: ServerSettings) -> Distribution:
    """How the tables of this database lie; on a PostgreSQL without Citus always on one machine.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    with migrations.session(settings) as connection:
        if connection.execute(_EXTENSION).fetchone() is None:
            return Distribution.none
        return _judge(dict(connection.execute(_DISTRIBUTED).fetchall()))


def distribute(
    settings: ServerSettings,
    *,
    shards: int,
    wait: float = 0,
    lock_timeout: float = 5,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Distribute the tables by user; return those that were not distributed before.

    Writes wait while a table's rows move; each table commits by itself, and running this again goes on
    where it was interrupted.

    Args:
        settings: where the database is: the cluster's coordinator.
        shards: into how many parts each table is divided; cannot be changed by running this again.
        wait: seconds to wait for the server to come up.
        lock_timeout: seconds to wait for a table's lock.
        report: called with a table's name as it is done.

    Raises:
        DatabaseUnavailable: the server did not come up.
        MigrationFailed: the server has no Citus, the schema is not this build's, a table is distributed in
            another way, or PostgreSQL refused.
    """
    present = migrations.current(settings, wait=wait)
    if (state := migrations.compare(present)) is not migrations.State.head:
        raise MigrationFailed(migrations.describe(present, state))
    with migrations.exclusive(settings, lock_timeout=lock_timeout) as connection:
        if connection.exec_driver_sql(_EXTENSION).first() is None:
            raise MigrationFailed(
                "This PostgreSQL has no Citus, so there is nothing to distribute over: install the extension "
                "on all machines and run `CREATE EXTENSION citus` in this database. Nothing was changed."
            )
        by_user: dict[str, bool] = dict(connection.exec_driver_sql(_DISTRIBUTED).tuples().all())
        if not all(by_user.values()):
            raise MigrationFailed("A table is distributed by something else than the user; undo that first.")
        connection.commit()
        done = [table for table in _TABLES if table not in by_user]
        for table in _TABLES:
            if table in done:
                _distribute_table(connection, table, shards)
                report(table)
            # What was moved to the shards otherwise stays, unseen, in the table itself.
            connection.exec_driver_sql(f"SELECT truncate_local_data_after_distributing_table('{table}')")
            connection.commit()
    return done


def _distribute_table(connection: "Connection", table: str, shards: int) -> None:
    place = f"shard_count => {shards:d}" if table == _TABLES[0] else f"colocate_with => '{_TABLES[0]}'"
    connection.exec_driver_sql(f"SELECT create_distributed_table('{table}', '{_COLUMN}', {place})")
    connection.commit()


def _judge(by_user: dict[str, bool]) -> Distribution:
    right = [table for table in _TABLES if by_user.get(table)]
    if len(right) == len(_TABLES):
        return Distribution.complete
    return Distribution.partial if by_user else Distribution.none


def describe(distribution: Distribution) -> str:
    """The distribution as a sentence for people."""
    match distribution:
        case Distribution.none:
            return "The tables are not distributed."
        case Distribution.partial:
            return "The tables are distributed in part; run `taskctl db distribute` again."
        case Distribution.complete:
            return "The tables are distributed by user."
