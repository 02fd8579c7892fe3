"""Running the Alembic migrations, from a checkout or an installed wheel, in any directory.

Revisions are numbered `0001`, `0002`, …, and a file's name starts with its revision. So the revision that
this build needs can be read off the folder, without loading Alembic and SQLAlchemy into a server.
"""

import contextlib
import io
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors as postgres

from taskctl.config import ServerSettings
from taskctl.errors import DatabaseUnavailable, MigrationFailed, SettingsInvalid, UsageInvalid
from taskctl.server.database import check_url

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

_ADVISORY_LOCK = 0x7461736B63746C
"""`taskctl` in ASCII: one key for all replicas that may migrate at once."""

_POLL_SECONDS = 0.2


class State(StrEnum):
    """How the database's schema compares with what this build needs."""

    head = "head"
    behind = "behind"
    empty = "empty"
    ahead = "ahead"
    unknown = "unknown"


def folder() -> Path:
    """Where the migrations are: inside the installed package, or at the top of the checkout."""
    packaged = Path(__file__).with_name("alembic")
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "alembic"


@cache
def revisions() -> tuple[str, ...]:
    """The revisions that this build knows, oldest first."""
    names = (path.name for path in (folder() / "versions").glob("[0-9]*_*.py"))
    return tuple(sorted(name.split("_", 1)[0] for name in names))


def compare(revision: str | None) -> State:
    """How a database at `revision` (None: without a schema) compares with this build's newest revision.

    A number above this build's newest is ahead: a newer release has upgraded the database, and by the rule
    that columns go one release after the code stopped using them, this build can still serve.
    """
    known = revisions()
    if revision is None:
        return State.empty
    if revision == known[-1]:
        return State.head
    if revision in known:
        return State.behind
    return State.ahead if re.fullmatch(r"\d{4}", revision) and revision > known[-1] else State.unknown


def database_url(settings: ServerSettings) -> str:
    """The libpq URL to migrate through: the direct one where a pooler stands in front.

    Raises:
        SettingsInvalid: neither variable is set.
    """
    url = settings.migration_database_url or settings.database_url
    if url is None:
        raise SettingsInvalid("DATABASE_URL is not set")
    return url.get_secret_value()


def current(settings: ServerSettings, *, wait: float = 0) -> str | None:
    """The revision that the database is at, or None without a schema.

    Raises:
        DatabaseUnavailable: it did not answer within `wait` seconds.
    """
    with session(settings, wait=wait) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except postgres.UndefinedTable:
            return None
        return row[0] if row else None


@contextlib.contextmanager
def session(settings: ServerSettings, *, wait: float = 0) -> Iterator[psycopg.Connection]:
    """A connection to what is migrated, tried again for up to `wait` seconds.

    Raises:
        DatabaseUnavailable: the server did not come up.
    """
    url = database_url(settings)
    check_url(url)
    deadline = time.monotonic() + wait
    connection = None
    while connection is None:
        try:
            # libpq's least is 2 seconds.
            left = max(2, min(10, math.ceil(deadline - time.monotonic())))
            connection = psycopg.connect(url, connect_timeout=left, application_name="taskctl migrate")
        except psycopg.OperationalError as error:
            if time.monotonic() >= deadline:
                raise DatabaseUnavailable(f"The database cannot be reached: {_one_line(error)}") from error
            time.sleep(min(_POLL_SECONDS, max(0, deadline - time.monotonic())))
    with connection:
        yield connection


@contextlib.contextmanager
def connect(settings: ServerSettings, *, wait: float = 0) -> Iterator["Connection"]:
    """A SQLAlchemy connection for migrations; waits up to `wait` seconds for the server to come up.

    Raises:
        DatabaseUnavailable: it did not.
    """
    from sqlalchemy import create_engine  # noqa: PLC0415 - costs a server 30 MiB that it does not need
    from sqlalchemy.pool import NullPool  # noqa: PLC0415 - as above

    with session(settings, wait=wait) as raw:
        # What libpq understands (several hosts, target_session_attrs) must not be parsed again.
        engine = create_engine("postgresql+psycopg://", creator=lambda: raw, poolclass=NullPool)
        with engine.connect() as connection:
            yield connection


def upgrade(
    settings: ServerSettings,
    revision: str = "head",
    *,
    wait: float = 0,
    lock_timeout: float = 5,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Bring the database up to `revision`; return the revisions that were run.

    However many processes call this at once, each revision runs once: the others wait, then find nothing
    left to do.

    Args:
        settings: where the database is.
        revision: a revision, or `head`.
        wait: seconds to wait for the server to come up.
        lock_timeout: seconds that a statement may wait for a table lock, so that a migration queued behind
            a long transaction does not block everyone else.
        report: called with `0001 Accounts and tasks` as each revision has run.

    Raises:
        DatabaseUnavailable: the server did not come up.
        MigrationFailed: a lock was not to be had, or a statement failed; earlier revisions stay. Or the
            database is at a revision that this build does not know.
        UsageInvalid: there is no such revision.
    """
    present = current(settings, wait=wait)
    if compare(present) in {State.ahead, State.unknown}:
        raise MigrationFailed(describe(present, compare(present)))
    return _run("upgrade", settings, revision, wait=wait, lock_timeout=lock_timeout, report=report)


def downgrade(
    settings: ServerSettings,
    revision: str,
    *,
    wait: float = 0,
    lock_timeout: float = 5,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Take the database back to `revision` (`base`: no schema at all); as `upgrade` otherwise."""
    return _run("downgrade", settings, revision, wait=wait, lock_timeout=lock_timeout, report=report)


def sql(direction: str, revision: str) -> str:
    """The SQL that `upgrade` (from nothing) or `downgrade` would run, for people who run it by hand.

    Raises:
        UsageInvalid: there is no such revision.
    """
    from alembic import command  # noqa: PLC0415 - costs a server 30 MiB that it does not need

    output = io.StringIO()
    configuration = _configuration(output_buffer=output)
    with _alembic_errors():
        if direction == "upgrade":
            command.upgrade(configuration, revision, sql=True)
        else:
            command.downgrade(configuration, f"head:{revision}", sql=True)
    return output.getvalue()


def history() -> list[tuple[str, str]]:
    """Each revision that this build knows with its title, oldest first."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - costs a server 30 MiB that it does not need

    scripts = ScriptDirectory.from_config(_configuration())
    return [(script.revision, _title(script.doc)) for script in reversed(list(scripts.walk_revisions()))]


def new_revision(settings: ServerSettings, message: str, *, autogenerate: bool) -> Path:
    """Write the next revision's file into the checkout, filled in from the tables if `autogenerate`.

    Raises:
        UsageInvalid: this is an installed package, not a checkout.
    """
    from alembic import command  # noqa: PLC0415 - costs a server 30 MiB that it does not need

    if folder() == Path(__file__).with_name("alembic"):
        raise UsageInvalid("Revisions are written in a checkout of taskctl, not in an installed package.")
    with connect(settings) as connection, _alembic_errors():
        script = command.revision(
            _configuration(connection=contextlib.nullcontext(connection)),
            message,
            autogenerate=autogenerate,
            rev_id=f"{int(revisions()[-1]) + 1:04d}",
        )
    if script is None or isinstance(script, list):
        raise MigrationFailed("Alembic wrote no revision.")
    return Path(script.path)


def _run(
    direction: str,
    settings: ServerSettings,
    revision: str,
    *,
    wait: float,
    lock_timeout: float,
    report: Callable[[str], None],
) -> list[str]:
    from alembic import command  # noqa: PLC0415 - costs a server 30 MiB that it does not need

    done: list[str] = []

    def applied(*, step: Any, **_: Any) -> None:
        done.append(step.up_revision_id)
        report(f"{step.up_revision_id} {_title(step.up_revision.doc)}")

    if not revision.strip():
        raise UsageInvalid("The revision is empty; name one, or `head` or `base`.")
    with exclusive(settings, wait=wait, lock_timeout=lock_timeout) as connection:
        configuration = _configuration(
            connection=contextlib.nullcontext(connection), on_version_apply=[applied]
        )
        getattr(command, direction)(configuration, revision)
    return done


def _configuration(output_buffer: io.StringIO | None = None, **attributes: Any) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - costs a server 30 MiB that it does not need

    configuration = Config(output_buffer=output_buffer, stdout=io.StringIO())
    configuration.set_main_option("script_location", str(folder()).replace("%", "%%"))
    configuration.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    configuration.attributes.update(attributes)
    return configuration


@contextlib.contextmanager
def exclusive(settings: ServerSettings, *, wait: float = 0, lock_timeout: float) -> Iterator["Connection"]:
    """As `connect`, while nobody else migrates; no statement waits longer than `lock_timeout` for a table.

    Raises:
        DatabaseUnavailable: the server did not come up, or the connection was lost.
        MigrationFailed: a lock was not to be had, or PostgreSQL refused a statement.
    """
    with connect(settings, wait=wait) as connection, _advisory_lock(connection), _alembic_errors():
        connection.exec_driver_sql(f"SET lock_timeout = {int(lock_timeout * 1000)}")
        connection.commit()
        yield connection


@contextlib.contextmanager
def _advisory_lock(connection: "Connection") -> Iterator[None]:
    # Asked for again and again rather than waited for: a session that waits inside a statement holds a
    # snapshot, and CREATE INDEX CONCURRENTLY in the session that has the lock would wait for it in turn.
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - as above

    while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_ADVISORY_LOCK})").scalar():
        connection.commit()
        time.sleep(_POLL_SECONDS)
    connection.commit()
    try:
        yield
    finally:
        # A lost session has lost its lock too; what lost it is already on its way up.
        with contextlib.suppress(SQLAlchemyError):
            connection.rollback()
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_ADVISORY_LOCK})")
            connection.commit()


@contextlib.contextmanager
def _alembic_errors() -> Iterator[None]:
    from alembic.util import CommandError  # noqa: PLC0415 - costs a server 30 MiB that it does not need
    from sqlalchemy.exc import DBAPIError, PendingRollbackError  # noqa: PLC0415 - as above

    try:
        yield
    except CommandError as error:
        raise UsageInvalid(f"{error}.") from error
    except PendingRollbackError as error:
        # Alembic went on with a session that was lost in mid-statement.
        raise DatabaseUnavailable("The connection was lost in mid-migration; run it again.") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable("The connection was lost in mid-migration; run it again.") from error
        if isinstance(error.orig, postgres.LockNotAvailable):
            raise MigrationFailed(
                "Another session held a table, or a transaction on it, beyond the lock timeout; this "
                "revision was not applied; try again, or raise --lock-timeout."
            ) from error
        raise MigrationFailed(f"PostgreSQL refused: {_one_line(error.orig)}") from error


def _one_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]


def _title(doc: str | None) -> str:
    return (doc or "").strip().partition("\n")[0].rstrip(".")


def describe(revision: str | None, state: State, known: Sequence[str] | None = None) -> str:
    """The comparison as a sentence for people."""
    newest = (known or revisions())[-1]
    match state:
        case State.head:
            return f"The database is at {newest}, as this build needs."
        case State.empty:
            return "The database has no schema yet; run `taskctl db upgrade`."
        case State.behind:
            return f"The database is at {revision}, behind {newest}; run `taskctl db upgrade`."
        case State.ahead:
            return f"The database is at {revision}, ahead of {newest}; a newer taskctl has upgraded it."
        case State.unknown:
            return f"The database is at {revision}, a revision that this build does not know."
