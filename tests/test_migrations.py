"""Migrations on a real PostgreSQL: up, down, at once, locked out, cut off, and what they leave behind."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from conftest import CONTENT, HEAD, NEXT, REVISIONS, STEPS, make_settings, until
from taskctl.errors import DatabaseUnavailable, MigrationFailed, SettingsInvalid, UsageInvalid
from taskctl.server import migrations
from taskctl.server.embedded import bin_dir
from taskctl.server.migrations import State, compare, current, describe, downgrade, revisions, upgrade
from taskctl.server.queries import CREATE_TASK
from taskctl.server.tables import metadata

INDEXES = {
    "task_terms_idx",
    "task_user_id_completed_at_idx",
    "task_user_id_completed_due_idx",
    "task_user_id_completed_id_live_idx",
    "task_user_id_completed_priority_idx",
    "task_user_id_completed_title_idx",
    "task_user_id_completed_updated_idx",
    "task_user_id_idempotency_key_idx",
    "task_user_id_trash_idx",
}


@pytest.fixture
def settings(empty_database):
    return make_settings(empty_database)


@pytest.fixture
def connection(empty_database):
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


def create(connection, user_id, title, key=None):
    parameters = CONTENT | {"user_id": user_id, "title": title, "key": key, "digest": key and b"d"}
    connection.execute(CREATE_TASK.sql, parameters)


def rows(connection):
    """What the first revision already has columns for."""
    task = "user_id, id, title, description, completed, completed_at, version, created_at, updated_at"
    queries = (
        "SELECT user_id, last_task_id, created_at FROM account ORDER BY 1",
        f"SELECT {task}, idempotency_key, idempotency_digest FROM task ORDER BY 1, 2",  # noqa: S608 - constants
    )
    return [connection.execute(query).fetchall() for query in queries]


def valid_indexes(connection):
    """The task table's indexes beside its primary key, each with whether it can be used."""
    query = """SELECT indexrelid::regclass::text, indisvalid FROM pg_index
        WHERE indrelid = to_regclass('task') AND NOT indisprimary"""
    return dict(connection.execute(query).fetchall())


def tables(connection):
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {name for (name,) in found}


def test_up_down_and_up_again(settings, connection):
    """Rows outlive a change of indexes both ways, and base leaves nothing but Alembic's own table."""
    reported = []
    assert upgrade(settings, report=reported.append) == REVISIONS
    assert reported == STEPS
    for user in ("a", "b"):
        create(connection, user, "once", key="k")
        create(connection, user, "twice")
        create(connection, user, "again", key="k")
    before = rows(connection)
    assert [len(table) for table in before] == [2, 4]

    assert downgrade(settings, "0001") == REVISIONS[:0:-1]
    assert current(settings) == "0001"
    assert valid_indexes(connection) == {}
    assert rows(connection) == before

    assert upgrade(settings) == REVISIONS[1:]
    assert valid_indexes(connection) == dict.fromkeys(INDEXES, True)
    assert rows(connection) == before
    assert upgrade(settings) == []

    reported.clear()
    assert downgrade(settings, "base", report=reported.append) == REVISIONS[::-1]
    assert reported == STEPS[::-1]
    assert tables(connection) == {"alembic_version"}
    assert current(settings) is None
    assert upgrade(settings, "0001") == ["0001"]
    assert upgrade(settings, "+1") == ["0002"]


def test_tables_have_no_difference(settings, empty_database):
    """Autogenerate finds nothing to do on an upgraded database."""
    upgrade(settings)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database))
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


COLUMNS = """SELECT table_name, column_name, data_type, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = %s AND table_name <> 'alembic_version'"""
CONSTRAINTS = """SELECT relname, conname, pg_get_constraintdef(c.oid)
    FROM pg_constraint AS c JOIN pg_class ON conrelid = pg_class.oid
    WHERE connamespace = %s::regnamespace AND contype <> 'n' AND relname <> 'alembic_version'"""
DEFINED_INDEXES = """SELECT tablename, indexname, regexp_replace(indexdef, '(public|declared)\\.', '', 'g')
    FROM pg_indexes WHERE schemaname = %s AND tablename <> 'alembic_version'"""

FUNCTIONS = """SELECT proname, pg_get_function_identity_arguments(oid), provolatile, procost, prosrc
    FROM pg_proc WHERE pronamespace = %s::regnamespace"""


@pytest.mark.parametrize(
    ("query", "count"),
    [(COLUMNS, 41), (CONSTRAINTS, 36), (DEFINED_INDEXES, 14), (FUNCTIONS, 2)],
    ids=["columns", "constraints", "indexes", "functions"],
)
def test_tables_and_migrations_make_the_same(settings, empty_database, query, count):
    """Columns, constraints and indexes are the same, migrated or made from the tables."""
    upgrade(settings)
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA declared")
        connection.exec_driver_sql("SET LOCAL search_path TO declared")
        metadata.create_all(connection)
        migrated, declared = (
            sorted(tuple(row) for row in connection.exec_driver_sql(query, (schema,)))
            for schema in ("public", "declared")
        )
    engine.dispose()
    assert migrated == declared
    assert len(declared) == count


def test_revisions_are_alembics_own():
    """The revisions read off the folder are those that Alembic knows, in its order."""
    scripts = ScriptDirectory(str(migrations.folder()))
    known = [script.revision for script in reversed(list(scripts.walk_revisions()))]
    assert list(revisions()) == known
    assert [revisions()[-1]] == scripts.get_heads()
    assert [" ".join(each) for each in migrations.history()] == STEPS


@pytest.mark.parametrize(
    ("revision", "state", "said"),
    [
        (None, State.empty, "no schema"),
        ("0001", State.behind, f"at 0001, behind {HEAD}"),
        (HEAD, State.head, f"at {HEAD}, as this build needs"),
        (NEXT, State.ahead, f"at {NEXT}, ahead of {HEAD}"),
        ("9999", State.ahead, f"at 9999, ahead of {HEAD}"),
        ("0000", State.unknown, "does not know"),
        ("00021", State.unknown, "does not know"),
        ("ae1027a6acf", State.unknown, "at ae1027a6acf"),
        ("", State.unknown, "does not know"),
    ],
)
def test_states(revision, state, said):
    """A revision is at head, behind, ahead or unknown; no revision is an empty database."""
    assert compare(revision) is state
    assert said in describe(revision, state)


@pytest.mark.parametrize("call", [upgrade, downgrade])
@pytest.mark.parametrize(
    "revision", ["9999", "nonsense", "00", "", "head:base", "+50", "-50", "'; DROP TABLE task"]
)
def test_unknown_revision(settings, call, revision):
    """A revision that does not exist is wrong usage, and nothing is run."""
    upgrade(settings, "0001")
    with pytest.raises(UsageInvalid):
        call(settings, revision)
    assert current(settings) == "0001"


@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_unknown_revision_for_sql(direction):
    """The SQL of a revision that does not exist is wrong usage too."""
    with pytest.raises(UsageInvalid):
        migrations.sql(direction, "9999")


def test_database_of_another_program(settings, connection):
    """A database whose revision this build does not know is left alone."""
    upgrade(settings)
    connection.execute("UPDATE alembic_version SET version_num = 'ae1027a6acf'")
    for call in (lambda: upgrade(settings), lambda: downgrade(settings, "base")):
        with pytest.raises((UsageInvalid, MigrationFailed), match="ae1027a6acf"):
            call()
    assert tables(connection) == {"account", "task", "change", "bulk", "alembic_version"}


def test_sql_runs_by_hand(settings, connection, empty_database):
    """What `--sql` prints brings psql to where `upgrade` would, and back."""
    quiet = os.environ | {"PGOPTIONS": "-c client_min_messages=warning"}

    def psql(script):
        command = [bin_dir() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=quiet)
        assert (done.returncode, done.stderr) == (0, "")

    psql(migrations.sql("upgrade", "head"))
    assert current(settings) == HEAD
    assert valid_indexes(connection) == dict.fromkeys(INDEXES, True)
    create(connection, "a", "works", key="k")
    psql(migrations.sql("downgrade", "base"))
    assert tables(connection) <= {"alembic_version"}
    assert current(settings) is None


def test_ten_processes_at_once(empty_database, tmp_path):
    """Of ten processes that upgrade at once, from any directory, each revision is run by one."""
    program = """
import os, sys, traceback
import alembic.command
from taskctl.config import ServerSettings
from taskctl.server.migrations import upgrade
settings = ServerSettings.load({"DATABASE_URL": sys.argv[1]}, env_file=None)
waiting, gate = os.pipe()
processes = []
for _ in range(10):
    if not (process := os.fork()):
        os.close(gate)
        os.read(waiting, 1)
        try:
            upgrade(settings, report=lambda title: os.write(1, f"{title}\\n".encode()))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    processes.append(process)
os.close(gate)
print([os.waitpid(process, 0)[1] for process in processes], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, empty_database],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, f"{[0] * 10}\n")
    assert sorted(done.stdout.splitlines()) == STEPS


@contextmanager
def holding(url, statement):
    """A session that has done something and does not commit."""
    with psycopg.connect(url) as connection:
        connection.execute(statement)
        yield
        connection.rollback()


INSERT = """INSERT INTO task (user_id, id, title, completed, version, idempotency_key, idempotency_digest)
    VALUES ('a', {}, 'x', false, 1, {}, {})"""
LOCK = "LOCK TABLE task IN ACCESS EXCLUSIVE MODE"


@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("0001", lambda settings: upgrade(settings, lock_timeout=0.3)),
        ("0001", lambda settings: downgrade(settings, "base", lock_timeout=0.3)),
        ("0002", lambda settings: downgrade(settings, "0001", lock_timeout=0.3)),
    ],
    ids=["upgrade to 0002", "downgrade from 0001", "downgrade from 0002"],
)
def test_lock_timeout(settings, connection, empty_database, at, call):
    """A revision that cannot have its lock gives up in time, changes nothing, and works later."""
    upgrade(settings, at)
    before = (valid_indexes(connection), tables(connection))
    with holding(empty_database, LOCK):
        with pytest.raises(MigrationFailed, match="lock timeout"):
            call(settings)
        assert current(settings) == at
    assert (valid_indexes(connection), tables(connection)) == before
    assert call(settings)


def test_writer_that_does_not_commit(settings, connection, empty_database):
    """An index that a long transaction holds up is given up, and the answer is true of what is left."""
    upgrade(settings, "0001")
    with holding(empty_database, INSERT.format(1, "NULL", "NULL")):
        with pytest.raises(MigrationFailed) as raised:
            upgrade(settings, lock_timeout=0.3)
        left = valid_indexes(connection)
    assert ("nothing" in raised.value.detail) == (left == {})
    assert upgrade(settings) == REVISIONS[1:]
    assert valid_indexes(connection) == dict.fromkeys(INDEXES, True)


def test_leftover_of_a_build_that_was_cut_off(settings, connection):
    """An invalid index that an earlier try left behind is built again."""
    upgrade(settings, "0001")
    for number in (1, 2):
        connection.execute(INSERT.format(number, "'k'", "''"))
    with pytest.raises(MigrationFailed, match="task_user_id_idempotency_key_idx"):
        upgrade(settings)
    assert current(settings) == "0001"
    assert valid_indexes(connection)["task_user_id_idempotency_key_idx"] is False
    connection.execute("DELETE FROM task WHERE id = 2")
    assert upgrade(settings) == REVISIONS[1:]
    assert valid_indexes(connection) == dict.fromkeys(INDEXES, True)


def test_connection_lost_while_migrating(settings, connection, empty_database):
    """A server that goes away in mid-migration is an error of ours, and the next try succeeds."""
    upgrade(settings, "0001")
    raised = []

    def run():
        try:
            upgrade(settings, lock_timeout=60)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at below
            raised.append(error)

    with holding(empty_database, LOCK):
        thread = threading.Thread(target=run)
        thread.start()
        end = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'taskctl migrate' AND wait_event_type = 'Lock'"
        )
        until(lambda: connection.execute(end).fetchone())
        thread.join(30)
    assert [type(error) for error in raised] in ([MigrationFailed], [DatabaseUnavailable])
    assert "\n" not in str(raised[0])
    assert upgrade(settings) == REVISIONS[1:]


@pytest.mark.parametrize(("port", "call"), [("closed", current), ("closed", upgrade), ("silent", current)])
def test_unreachable_database(port, call):
    """A database that does not answer is given up once the wait is over, and the password is not told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections and never says a word
        number = listener.getsockname()[1] if port == "silent" else 1
        settings = make_settings(f"postgresql://alice:hunter2@127.0.0.1:{number}/tasks")
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as raised:
            call(settings, wait=0.5)
    assert time.monotonic() - started >= 0.5
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__}"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://alice:hunter2%zz@127.0.0.1:1/tasks",
        "postgresql://alice:hunter2/x@127.0.0.1:1/tasks",
        "postgresql://alice:x#hunter2@127.0.0.1:1/tasks",
        "postgresql://alice:x@hunter2@127.0.0.1:1/tasks",
        "postgresql://alice:hunter2@127.0.0.1:port/tasks",
        "postgresql://alice@127.0.0.1:1/tasks?password=hunter2%zz",
        "postgresql://alice@127.0.0.1:1/tasks?pasword=hunter2",
    ],
)
def test_url_that_libpq_cannot_read(url):
    """A malformed URL names its variable and repeats no part of the password."""
    with pytest.raises((SettingsInvalid, DatabaseUnavailable)) as raised:
        current(make_settings(url))
    assert "hunter2" not in str(raised.value)


def test_direct_connection_for_migrations(settings, empty_database):
    """Migrations go through their own URL where there is one, and through several hosts as libpq does."""
    several = re.sub(r"host=([^&]+)", r"host=/nowhere,\1&target_session_attrs=read-write", empty_database)
    assert several != empty_database
    direct = make_settings("postgresql://pooler.invalid/x", TASKCTL_MIGRATION_DATABASE_URL=several)
    assert upgrade(direct) == REVISIONS
    assert current(settings) == HEAD
    with pytest.raises(SettingsInvalid, match="DATABASE_URL"):
        migrations.database_url(make_settings(""))


@pytest.fixture
def copied_folder(monkeypatch, tmp_path):
    """The migrations, where a test may write."""
    place = tmp_path / "100% mine" / "alembic"
    shutil.copytree(migrations.folder(), place, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrations, "folder", lambda: place)
    return place


def test_new_revision(settings, copied_folder):
    """A new revision takes the next number, says what was meant, and is empty where nothing differs."""
    with pytest.raises(UsageInvalid, match="not up to date"):
        migrations.new_revision(settings, "Add due dates", autogenerate=True)
    upgrade(settings)
    path = migrations.new_revision(settings, "Add due dates", autogenerate=True)
    assert path == copied_folder / "versions" / f"{NEXT}_add_due_dates.py"
    text = path.read_text()
    assert text.startswith('"""Add due dates."""\n')
    assert f'down_revision: str | None = "{HEAD}"' in text.replace("'", '"')
    assert "op." not in text
    assert upgrade(settings) == [NEXT]
    assert downgrade(settings, HEAD) == [NEXT]


def test_new_revision_needs_a_checkout(settings, monkeypatch, tmp_path):
    """An installed package is not written into."""
    module = tmp_path / "migrations.py"
    monkeypatch.setattr(migrations, "__file__", str(module))
    monkeypatch.setattr(migrations, "folder", lambda: module.with_name("alembic"))
    with pytest.raises(UsageInvalid, match="checkout"):
        migrations.new_revision(settings, "x", autogenerate=False)
