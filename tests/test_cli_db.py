"""`taskctl db …` and `migrate` as people and pipelines run them, on the embedded database and on others."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import psycopg
import pytest

import taskctl as package
import warm
from conftest import (
    HEAD,
    NEXT,
    STEPS,
    bare_environ,
    embedded_in,
    launch_server,
    make_settings,
    stop,
    taskctl,
    taskctl_in_terminal,
    until,
    wait_until_ready,
)
from taskctl.server.embedded import bin_dir
from taskctl.server.migrations import current, upgrade

PASSWORD = "a-database-password"
NOWHERE = f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/nothing"


@pytest.fixture
def environ(empty_database, tmp_path):
    """The environment of a pipeline that knows a database and nothing else."""
    with_password = empty_database.replace("postgres@", f"postgres:{PASSWORD}@")
    return bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=with_password)


def at(environ, revision):
    """Write into a database that it is at a revision."""
    with psycopg.connect(environ["DATABASE_URL"]) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])


def run(*arguments, environ):
    """Run a command that must say nothing but its data; return its exit code and its lines."""
    done = taskctl(*arguments, environ=environ)
    assert done.err == ""
    assert PASSWORD not in done.out
    return done.code, done.out.splitlines()


def test_the_embedded_database(home):
    """Without `serve` each command starts the embedded database, and stops it when it is done."""
    environ = bare_environ(home)
    code, [said] = run("db", "check", environ=environ)
    assert (code, "no schema yet" in said) == (1, True)
    assert run("db", "upgrade", environ=environ) == (0, STEPS)
    assert run("db", "current", environ=environ) == (0, [HEAD])
    assert not embedded_in(home).is_running()
    code, [url] = run("db", "url", environ=environ)
    assert (code, url) == (0, embedded_in(home).url)
    assert not (home / ".config").exists()


def test_the_embedded_database_of_a_running_server(home, tmp_path):
    """While `serve` runs the commands share its database, and it notices what they do."""
    environ = bare_environ(home)
    server = launch_server(tmp_path, HOME=str(home))
    try:
        wait_until_ready(server)
        assert run("db", "check", environ=environ)[0] == 0
        [url] = run("db", "url", environ=environ)[1]
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
        assert run("db", "downgrade", "base", environ=environ) == (0, STEPS[::-1])
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert run("migrate", environ=environ) == (0, STEPS)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200)
        assert taskctl("tasks", "add", "After all that", environ=environ).code == 0
    finally:
        assert stop(server) == 0
    assert not embedded_in(home).is_running()


def test_waiting_for_postgresql(home):
    """`--wait` makes `upgrade` outlast a database that is still to come; without it that is 8."""
    embedded = embedded_in(home)
    environ = bare_environ(home, TASKCTL_ENV="prod", DATABASE_URL=embedded.url)
    assert taskctl("db", "upgrade", environ=environ).code == 8
    words = ["db", "check", "--wait", "60"]
    with warm.Process(words, env=environ, stdout=subprocess.PIPE, cwd=home) as waiting, embedded:
        assert run("db", "upgrade", "--wait", "30", environ=environ)[0] == 0
        out, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode in {0, 1}, b"The database " in out) == (True, True)


def test_each_state_has_its_exit_code(environ):
    """`check` exits 1 when empty or behind, 0 at head, 3 ahead or unknown, and says which."""
    seen = []

    def check():
        code, [said] = run("db", "check", "--json", environ=environ)
        state = json.loads(said)
        assert state["head"] == HEAD
        seen.append((code, state["state"], state["revision"]))

    check()
    assert run("db", "current", "--json", environ=environ) == (0, ['{"revision":null}'])
    assert run("db", "current", environ=environ) == (0, ["empty"])
    assert run("db", "upgrade", "0001", environ=environ) == (0, STEPS[:1])
    check()
    assert run("db", "current", "--json", environ=environ) == (0, ['{"revision":"0001"}'])
    assert run("migrate", environ=environ) == (0, STEPS[1:])
    assert run("db", "upgrade", environ=environ) == (0, [])
    check()
    for revision in ("0099", "zzzz"):
        at(environ, revision)
        check()
    assert seen == [
        (1, "empty", None),
        (1, "behind", "0001"),
        (0, "head", HEAD),
        (3, "ahead", "0099"),
        (3, "unknown", "zzzz"),
    ]
    code, [said] = run("db", "check", environ=environ)
    assert (code, "zzzz" in said) == (3, True)
    done = taskctl("db", "upgrade", environ=environ)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("taskctl: The database is at zzzz")
    assert done.err.endswith(" (migration_failed)\n")


@pytest.mark.parametrize("command", ["upgrade", "current", "check", "downgrade"])
def test_an_unreachable_database_is_8(tmp_path, command):
    """One line says so; as JSON it is one object; the password is in neither, nor in a traceback."""
    environ = bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=NOWHERE)
    words = ["db", command, *(["base"] if command == "downgrade" else [])]
    if command in {"current", "check"}:
        done = taskctl(*words, "--json", environ=environ)
        assert json.loads(done.err)["code"] == "database_unavailable"
    else:
        done = taskctl(*words, environ=environ)
        assert done.err.count("\n") == 1
    assert (done.code, done.out, "Connection refused" in done.err) == (8, "", True)
    debugged = taskctl("--debug", *words, environ=environ)
    assert "Traceback" in debugged.err
    assert PASSWORD not in done.err + debugged.err


@pytest.mark.parametrize(
    "words",
    [["upgrade", "nope"], ["upgrade", " "], ["downgrade"], ["downgrade", "nope"], ["check", "--wait", "x"]],
)
def test_wrong_usage_is_2(environ, words):
    """What is no revision or no number is wrong usage, and nothing is done."""
    done = taskctl("db", *words, environ=environ)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[0].endswith(" (usage_invalid)")
    assert PASSWORD not in done.err
    assert run("db", "current", environ=environ) == (0, ["empty"])


def test_production_names_its_database(tmp_path):
    """In production no command falls back on an embedded database."""
    environ = bare_environ(tmp_path, TASKCTL_ENV="prod")
    for words in (["check"], ["url"]):
        done = taskctl("db", *words, environ=environ)
        assert (done.code, done.err.startswith("taskctl: DATABASE_URL is not set")) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_the_sql_can_be_run_by_hand(environ, empty_database, tmp_path):
    """`--sql` needs no database, and what it prints brings one up and down as `upgrade` would."""
    nowhere = bare_environ(tmp_path)
    up, down = (
        taskctl("db", *words, "--sql", environ=nowhere) for words in (["upgrade"], ["downgrade", "base"])
    )
    assert (up.code, up.err, down.code, down.err) == (0, "", 0, "")
    assert taskctl("migrate", "--sql", environ=nowhere) == up
    assert list(tmp_path.iterdir()) == []
    for text, code, state in ((up.out, 0, "head"), (down.out, 1, "empty")):
        command = [bin_dir() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", empty_database]
        subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL, timeout=60)
        checked, [said] = run("db", "check", "--json", environ=environ)
        assert (checked, json.loads(said)["state"]) == (code, state)


def test_downgrade_asks_in_a_terminal_only(environ):
    """No keeps the schema and is 1; yes, or --yes, takes it back; a pipe is not asked."""
    upgrade(make_settings(environ["DATABASE_URL"]))
    done = taskctl_in_terminal("db", "downgrade", "0001", environ=environ, typed="n\n")
    assert "Take the schema back to 0001? Data may be lost. [y/N]" in done.out
    assert current(make_settings(environ["DATABASE_URL"])) == HEAD
    said_no = done.code
    done = taskctl_in_terminal("db", "downgrade", "0001", environ=environ, typed="y\n")
    assert (done.code, STEPS[1] in done.out) == (0, True)
    done = taskctl_in_terminal("db", "downgrade", "base", "--yes", environ=environ)
    assert (done.code, done.out) == (0, STEPS[0] + "\n")
    assert taskctl_in_terminal("db", "downgrade", "base", "-y", environ=environ).out == "Nothing to do.\n"
    upgrade(make_settings(environ["DATABASE_URL"]))
    assert run("db", "downgrade", "base", environ=environ) == (0, STEPS[::-1])
    assert said_no == 1


def test_upgrades_at_once(environ):
    """Of several that start at the same moment one runs each revision, and all succeed."""
    processes = [
        warm.Process(["db", "upgrade"], env=environ, stdout=subprocess.PIPE, text=True, cwd=environ["HOME"])
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted("".join(outputs).splitlines()) == STEPS


def test_history(tmp_path):
    """The revisions are listed oldest first, with no database at all."""
    environ = bare_environ(tmp_path)
    assert run("db", "history", environ=environ) == (0, [step.replace(" ", "\t", 1) for step in STEPS])
    code, [said] = run("db", "history", "--json", environ=environ)
    expected = [dict(zip(("revision", "title"), step.split(" ", 1), strict=True)) for step in STEPS]
    assert (code, json.loads(said)) == (0, expected)


def test_a_new_revision(environ, tmp_path):
    """In a checkout `revision` writes the next file, which `history` and `check` know at once."""
    source = Path(package.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, tmp_path / "src" / "taskctl", ignore=ignored)
    shutil.copytree(source.parents[1] / "alembic", tmp_path / "alembic", ignore=ignored)
    environ = {name: text for name, text in environ.items() if not name.startswith("COVERAGE")}
    environ["PYTHONPATH"] = os.fspath(tmp_path / "src")
    words = ["db", "revision", "--autogenerate", "-m", "Add due dates"]
    assert taskctl(*words, environ=environ).code == 2
    upgrade(make_settings(environ["DATABASE_URL"]))
    done = taskctl(*words, environ=environ)
    written = done.out.rstrip("\n")
    assert (done.code, Path(written)) == (0, tmp_path / "alembic" / "versions" / f"{NEXT}_add_due_dates.py")
    assert Path(written).read_text().startswith('"""Add due dates."""\n')
    assert run("db", "history", environ=environ)[1][-1] == f"{NEXT}\tAdd due dates"
    assert run("db", "check", environ=environ)[0] == 1
    assert run("db", "upgrade", environ=environ) == (0, [f"{NEXT} Add due dates"])


def test_the_password_stays_secret(environ):
    """No command but `url`, which exists to print it, shows the database's password, in whatever form."""
    assert taskctl("db", "url", environ=environ).out == environ["DATABASE_URL"] + "\n"
    for words in (["upgrade"], ["current", "--json"], ["check"], ["upgrade", "nope"], ["downgrade", "base"]):
        done = taskctl("--debug", "db", *words, environ=environ)
        assert PASSWORD not in done.out + done.err
    for words in (["show"], ["show", "--json"]):
        done = taskctl("config", *words, environ=environ)
        assert (done.code, PASSWORD in done.out + done.err) == (0, False)
