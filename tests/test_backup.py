"""`taskctl db backup` and `db restore` as people and pipelines run them, by PostgreSQL's own programs."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import warm
from conftest import (
    HEAD,
    bare_environ,
    embedded_in,
    launch_server,
    make_settings,
    stop,
    taskctl,
    taskctl_in_terminal,
    temporary_home,
    until,
    wait_until_ready,
)
from taskctl.server import migrations
from taskctl.server.backup import _Run
from taskctl.server.embedded import bin_dir

MANY = 100_000
PASSWORD = "a-database-password"
SEED = """
INSERT INTO account (user_id, last_task_id) SELECT 'user-' || u, %(each)s FROM generate_series(1, 10) u;
INSERT INTO task (user_id, id, title, description, completed, completed_at, version)
SELECT 'user-' || u, i, 'Task ' || md5(i::text), repeat('é', i %% 7), i %% 2 = 0,
       CASE WHEN i %% 2 = 0 THEN now() END, 1 + i %% 3
FROM generate_series(1, 10) u, generate_series(1, %(each)s) i
"""
CHECKSUM = """
SELECT (SELECT count(*) FROM task), (SELECT md5(string_agg(t::text, ' ' ORDER BY user_id, id)) FROM task t),
       (SELECT md5(string_agg(a::text, ' ' ORDER BY user_id)) FROM account a)
"""


def on_path(environ):
    """The environment with the bundled PostgreSQL's programs first on PATH."""
    return environ | {"PATH": f"{bin_dir()}{os.pathsep}{environ['PATH']}"}


def seed(url, each):
    """Give ten users so many tasks each."""
    with psycopg.connect(url) as connection, psycopg.ClientCursor(connection) as cursor:
        cursor.execute(SEED, {"each": each})


def checksum(url):
    """How many tasks there are, and sums over all tasks and all accounts."""
    with psycopg.connect(url) as connection:
        return connection.execute(CHECKSUM).fetchone()


@pytest.fixture
def environ(empty_database, tmp_path):
    """The environment of a pipeline that knows an empty database, by a URL with a password."""
    url = empty_database.replace("postgres@", f"postgres:{PASSWORD}@")
    return on_path(bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=url))


@pytest.fixture
def filled(environ):
    """The same with ten tasks in it."""
    migrations.upgrade(make_settings(environ["DATABASE_URL"]))
    seed(environ["DATABASE_URL"], 1)
    return environ


@pytest.fixture(scope="module")
def archive(postgres, tmp_path_factory):
    """A backup of ten tasks, made once."""
    place = tmp_path_factory.mktemp("archive")
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE archived")
    url = postgres.url.replace("/taskctl?", "/archived?")
    migrations.upgrade(make_settings(url))
    seed(url, 1)
    environ = on_path(bare_environ(place, TASKCTL_ENV="prod", DATABASE_URL=url))
    done = taskctl("db", "backup", "ten.dump", environ=environ)
    assert done == (0, "", "")
    return place / "ten.dump"


def failed(done, code, *said):
    """Check that a command failed in one line that says this, and nothing else."""
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("taskctl: ")
    assert done.err.count("\n") == 1, done.err
    for text in said:
        assert text in done.err


def test_a_hundred_thousand_tasks_and_the_embedded_database():
    """From one home's running server to another's stopped one: the same rows, and the next id after it."""
    with temporary_home() as old, temporary_home() as new:
        # The programs on PATH may be of any version: the embedded database has its own.
        environ = bare_environ(old)
        server = launch_server(old, HOME=str(old))
        try:
            wait_until_ready(server)
            [url] = taskctl("db", "url", environ=environ).out.splitlines()
            seed(url, MANY // 10)
            before = checksum(url)
            done = taskctl_in_terminal("db", "backup", "all.dump", environ=environ)
            assert (done.code, f"Backed up revision {HEAD} to all.dump" in done.out) == (0, True)
        finally:
            assert stop(server) == 0
        file = old / "all.dump"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        environ = bare_environ(new)
        done = taskctl_in_terminal("db", "restore", str(file), environ=environ)
        assert (done.code, f"Restored revision {HEAD}." in done.out) == (0, True)
        assert f"of {file.stat().st_size / 1e6:.1f} MB" in done.out
        assert not embedded_in(new).is_running()
        with embedded_in(new) as embedded:
            assert checksum(embedded.url) == before
            assert before[0] == MANY
        server = launch_server(new, HOME=str(new), TASKCTL_LOG_FORMAT="console")
        try:
            wait_until_ready(server)
            token = taskctl("token", "mint", "--sub", "user-3", environ=environ).out.strip()
            added = taskctl(
                "tasks",
                "add",
                "Next",
                "-q",
                environ=environ | {"TASKCTL_SERVER": server.url, "TASKCTL_TOKEN": token},
            )
            assert (added.code, added.out) == (0, f"{MANY // 10 + 1}\n")
            # And again, over what a running server holds, which goes on without a restart.
            assert taskctl("db", "restore", str(file), "--clean", environ=environ) == (0, "", "")
            with psycopg.connect(embedded_in(new).url) as connection:
                assert connection.execute("SELECT count(*) FROM task").fetchone() == (MANY,)
            added = taskctl(
                "tasks",
                "add",
                "Next",
                "-q",
                environ=environ | {"TASKCTL_SERVER": server.url, "TASKCTL_TOKEN": token},
            )
            assert (added.code, added.out) == (0, f"{MANY // 10 + 1}\n")
        finally:
            assert stop(server) == 0


def test_through_pipes(filled, tmp_path):
    """`-` is stdout and stdin; a backup of a database brings the same database back."""
    before = checksum(filled["DATABASE_URL"])
    command = [sys.executable, "-m", "taskctl", "db"]
    done = subprocess.run(
        [*command, "backup", "-"], env=filled, cwd=tmp_path, capture_output=True, check=True
    )
    assert (done.stdout[:5], done.stderr) == (b"PGDMP", b"")
    with psycopg.connect(filled["DATABASE_URL"]) as connection:
        connection.execute("DELETE FROM task")
    words = [*command, "restore", "-", "--clean"]
    restored = subprocess.run(
        words, input=done.stdout, env=filled, cwd=tmp_path, capture_output=True, check=False
    )
    assert (restored.returncode, restored.stdout, restored.stderr) == (0, b"", b"")
    assert checksum(filled["DATABASE_URL"]) == before


def test_a_database_that_is_not_empty(filled, archive):
    """Without --clean it is refused; a terminal asks; a table of somebody else's is never dropped."""
    with psycopg.connect(filled["DATABASE_URL"]) as connection:
        connection.execute("UPDATE task SET title = 'Newer'")
    before = checksum(filled["DATABASE_URL"])
    failed(taskctl("db", "restore", str(archive), environ=filled), 2, "not empty", "task", "--clean")
    done = taskctl_in_terminal("db", "restore", str(archive), "--clean", environ=filled, typed="n\n")
    assert (done.code != 0, "(account, alembic_version, task)? [y/N]" in " ".join(done.out.split())) == (
        True,
        True,
    )
    with psycopg.connect(filled["DATABASE_URL"]) as connection:
        connection.execute("CREATE VIEW theirs AS SELECT title FROM task")
    failed(taskctl("db", "restore", str(archive), "--clean", environ=filled), 2, "theirs")
    assert checksum(filled["DATABASE_URL"]) == before
    with psycopg.connect(filled["DATABASE_URL"]) as connection:
        connection.execute("DROP VIEW theirs")
    done = taskctl_in_terminal("db", "restore", str(archive), "--clean", environ=filled, typed="y\n")
    assert (done.code, f"Restored revision {HEAD}." in done.out) == (0, True)
    assert checksum(filled["DATABASE_URL"]) != before


def test_an_older_schema(environ):
    """After the restore of an older backup it says what to do, and doing it is enough."""
    migrations.upgrade(make_settings(environ["DATABASE_URL"]), "0001")
    assert taskctl("db", "backup", "old.dump", environ=environ) == (0, "", "")
    migrations.upgrade(make_settings(environ["DATABASE_URL"]))
    done = taskctl("db", "restore", "old.dump", "--clean", environ=environ)
    assert (done.code, done.out) == (0, "")
    assert done.err == f"Restored. The database is at 0001, behind {HEAD}; run `taskctl db upgrade`.\n"
    assert taskctl("db", "upgrade", environ=environ).code == 0
    assert taskctl("db", "check", environ=environ).code == 0


def test_an_older_pg_dump_is_refused(filled, tmp_path):
    """Programs older than the server, or none at all, are named with what to install."""
    old = tmp_path / "old"
    old.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (old / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 13.4'\n")
        (old / name).chmod(0o755)
    done = taskctl("db", "backup", "x.dump", environ=filled | {"PATH": f"{old}{os.pathsep}{filled['PATH']}"})
    failed(done, 2, f"{old}/pg_dump is of PostgreSQL 13, older than the server's 18", "PATH")
    failed(
        taskctl("db", "backup", "x.dump", environ=filled | {"PATH": str(tmp_path)}), 2, "no pg_dump on PATH"
    )
    assert list(tmp_path.glob("*.dump")) == []


@pytest.mark.parametrize("content", [b"", b"SELECT 1;\n", b"PGDMP" + bytes(100)])
def test_what_is_no_backup(environ, tmp_path, content):
    """A file of anything else is refused before the database is touched."""
    (tmp_path / "x").write_bytes(content)
    done = taskctl("db", "restore", "x", environ=environ)
    failed(done, 1 if len(content) > 20 else 2, "backup")
    assert taskctl("db", "current", environ=environ).out == "empty\n"


def test_files_that_cannot_be(filled):
    """A missing file, a directory, a device: one sentence, exit code 2, or 1 where the system refuses."""
    failed(taskctl("db", "restore", "nowhere", environ=filled), 2, "nowhere cannot be read: No such file")
    failed(taskctl("db", "backup", ".", environ=filled), 2, "is a directory")
    failed(taskctl("db", "backup", "/dev/null", environ=filled), 2, "not a regular file")
    failed(taskctl("db", "backup", "nowhere/x", environ=filled), 1, "No such file")
    assert Path("/dev/null").is_char_device()


def test_a_truncated_backup_changes_nothing(filled, archive, tmp_path):
    """What breaks off in the middle leaves the database as it was, also with --clean."""
    before = checksum(filled["DATABASE_URL"])
    (tmp_path / "most").write_bytes(archive.read_bytes()[:-20])
    done = taskctl("db", "restore", "most", "--clean", environ=filled)
    failed(done, 1, "the database is as it was", "end of file")
    assert checksum(filled["DATABASE_URL"]) == before


def test_a_full_disk_leaves_the_old_file(filled, tmp_path):
    """Where the disk is full the sentence says so, and the backup of yesterday stays."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(mounted)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        (mounted / "x.dump").write_text("yesterday's")
        with psycopg.connect(filled["DATABASE_URL"]) as connection:
            noise = "SELECT string_agg(md5(user_id || i), '') FROM generate_series(1, 300) i"
            connection.execute(f"UPDATE task SET description = ({noise})")  # noqa: S608 - see above
        done = taskctl("db", "backup", str(mounted / "x.dump"), environ=filled)
        failed(done, 1, "x.dump was not touched", "No space left on device")
        assert [(path.name, path.read_text()) for path in mounted.iterdir()] == [("x.dump", "yesterday's")]
    finally:
        subprocess.run(["umount", str(mounted)], check=True)  # noqa: S607 - the system's


def test_a_full_disk_behind_a_pipe(filled):
    """The same for stdout."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "taskctl", "db", "backup", "-"]
        done = subprocess.run(
            command, env=filled, cwd=filled["HOME"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, b"No space left on device" in done.stderr) == (1, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_backup(filled, tmp_path, number, code):
    """It leaves the old file, nothing beside it, and no pg_dump."""
    (tmp_path / "x.dump").write_text("yesterday's")
    words = ["db", "backup", "x.dump"]
    with (
        psycopg.connect(filled["DATABASE_URL"]) as holder,
        psycopg.connect(filled["DATABASE_URL"], autocommit=True) as watcher,
    ):
        holder.execute("LOCK TABLE task")
        with warm.Process(words, env=filled, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {}"
            until(lambda: watcher.execute(waiting.format("wait_event_type = 'Lock'")).fetchone()[0])
            process.send_signal(number)
            assert (process.wait(30), process.stderr.read()) == (code, b"")
        holder.rollback()
        until(lambda: watcher.execute(waiting.format("application_name = 'pg_dump'")).fetchone()[0] == 0)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.dump", "yesterday's")]


def test_a_database_that_is_away_is_8(tmp_path, archive):
    """Both commands say that it cannot be reached; the password is in no word of it."""
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/nothing"
    environ = on_path(bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=url))
    for words in (["backup", "x"], ["restore", str(archive)]):
        done = taskctl("db", *words, environ=environ)
        failed(done, 8, "cannot be reached")
        assert PASSWORD not in taskctl("--debug", "db", *words, environ=environ).err
    assert list(tmp_path.iterdir()) == []


def test_the_password_is_on_no_command_line(filled, tmp_path):
    """While pg_dump runs, the system's list of processes does not have it."""
    words = ["db", "backup", "x.dump"]
    with (
        psycopg.connect(filled["DATABASE_URL"]) as holder,
        psycopg.connect(filled["DATABASE_URL"], autocommit=True) as watcher,
    ):
        holder.execute("LOCK TABLE task")
        with warm.Process(words, env=filled, cwd=tmp_path) as process:
            waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            waiting += "WHERE NOT l.granted AND d.datname = current_database()"
            until(lambda: watcher.execute(waiting).fetchone()[0])
            ps = ["ps", "-eww", "-o", "args"]
            listed = subprocess.run(ps, capture_output=True, text=True, check=True).stdout
            holder.rollback()
            assert process.wait(30) == 0
    assert "pg_dump" in listed
    assert PASSWORD not in listed


def test_nothing_to_back_up(environ, tmp_path):
    """An empty database makes no backup."""
    failed(taskctl("db", "backup", "x.dump", environ=environ), 1, "no schema")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_gone_before_it_is_listened_to():
    """Nothing is heard, and no thread dies of it: so it is when Ctrl-C comes while a program starts."""
    with subprocess.Popen([sys.executable, "-c", ""], stderr=subprocess.PIPE) as process:
        run = _Run(process)
    run.listener.start()
    run.listener.join()
    assert not run.complaints
