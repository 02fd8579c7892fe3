"""`taskctl users`: who is there, all about one person, and none of it any more."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from conftest import CONTENT, Done, bare_environ, make_settings, taskctl, taskctl_in_terminal
from taskctl.server import migrations
from taskctl.server.queries import COMPLETE_TASK, CREATE_TASK, DELETE_TASK

ODD = "o'dd \"/%\u202e"
"""A user id that needs care wherever it is printed or asked for."""


TABLES = ("account", "bulk", "change", "task")


@pytest.fixture
def environ(empty_database: str, tmp_path: Path) -> dict[str, str]:
    """A database with three people in it."""
    migrations.upgrade(make_settings(empty_database))
    with psycopg.connect(empty_database, autocommit=True) as connection:
        for user, count in (("ada", 3), ("bob", 1), (ODD, 2)):
            for number in range(count):
                key = {"user_id": user, "key": f"k{number}", "digest": b"d", "title": f"{user} {number}"}
                connection.execute(CREATE_TASK.sql, CONTENT | key)
            connection.execute("INSERT INTO bulk VALUES (%s, 'k', 'd', %s)", [user, f"answer to {user}"])
        on = CONTENT | {"user_id": "ada", "versions": None}
        connection.execute(DELETE_TASK.sql, on | {"id": 1})
        connection.execute(COMPLETE_TASK.sql, on | {"id": 2, "completed": True})
    return bare_environ(tmp_path, TASKCTL_ENV="prod", DATABASE_URL=empty_database)


def rows(environ: dict[str, str], user: str) -> dict[str, int]:
    found = {}
    with psycopg.connect(environ["DATABASE_URL"]) as connection:
        for table in TABLES:
            query = sql.SQL("SELECT count(*) FROM {} WHERE user_id = %s").format(sql.Identifier(table))
            [found[table]] = connection.execute(query, [user]).fetchone() or ()
    return found


def test_list(environ: dict[str, str]) -> None:
    """Everybody is there with what they have, in each form."""
    done = taskctl("users", "list", "--json", environ=environ)
    found = {row["user_id"]: (row["tasks"], row["pending"], row["trash"]) for row in json.loads(done.out)}
    assert found == {"ada": (2, 1, 1), "bob": (1, 1, 0), ODD: (2, 2, 0)}
    moments = [row[name] for row in json.loads(done.out) for name in ("created_at", "changed_at")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", each) for each in moments)
    lines = taskctl("users", "list", environ=environ).out.splitlines()
    assert [line.split("\t")[:4] for line in lines] == [
        ["ada", "2", "1", "1"], ["bob", "1", "1", "0"], [ODD.replace("\u202e", "\\u202e"), "2", "2", "0"]
    ]  # fmt: skip
    assert taskctl("users", "list", "-q", environ=environ).out.splitlines()[:2] == ["ada", "bob"]
    assert len(taskctl("users", "list", "--ndjson", environ=environ).out.splitlines()) == 3
    lines = taskctl_in_terminal("users", "list", environ=environ).out.splitlines()
    assert lines[0].split() == ["Tasks", "Pending", "Trash", "Bytes", "Changed", "User"]
    assert [(*line.split()[:3], line.split()[-1]) for line in lines[1:3]] == [
        ("2", "1", "1", "ada"), ("1", "1", "0", "bob")
    ]  # fmt: skip


@pytest.mark.parametrize("user", ["ada", ODD])
def test_export(environ: dict[str, str], tmp_path: Path, user: str) -> None:
    """Every row of every table is there, once, nobody else's, and the proof fits."""
    file = tmp_path / "all.ndjson"
    assert taskctl("users", "export", user, str(file), environ=environ) == (0, "", "")
    assert file.stat().st_mode & 0o777 == 0o600
    *lines, last = file.read_bytes().splitlines(keepends=True)
    proof = json.loads(last)["proof"]
    assert proof == {"rows": rows(environ, user), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
    told = [json.loads(line) for line in lines]
    assert {each["row"]["user_id"] for each in told} == {user}
    titles = {each["row"]["title"] for each in told if each["table"] == "task"}
    assert titles == {f"{user} {number}" for number in range(proof["rows"]["task"])}
    assert taskctl("users", "export", user, environ=environ).out.encode() == file.read_bytes()


def test_an_export_that_cannot_be_written(environ: dict[str, str], tmp_path: Path) -> None:
    """It is told plainly and leaves nothing; what stood there is replaced by a private file, or stays."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for nowhere in (folder, folder / "none" / "ada.ndjson", Path("/dev/null")):
        done = taskctl("users", "export", "ada", str(nowhere), environ=environ)
        assert (done.code, "(local_error)" in done.err, str(nowhere) in done.err) == (1, True, True), done.err
    file = folder / "ada.ndjson"
    file.write_text("Earlier")
    file.chmod(0o644)
    command = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, "-m", "taskctl", "users", "export"]
    full = subprocess.run([*command, "ada", str(file)], env=environ, stderr=subprocess.PIPE, check=False)
    assert (full.returncode, b"file too large. (local_error)" in full.stderr) == (1, True), full.stderr
    assert taskctl("users", "export", "nobody", str(file), environ=environ).code == 5
    assert (file.read_text(), [*folder.iterdir()]) == ("Earlier", [file])
    assert taskctl("users", "export", "ada", str(file), environ=environ).code == 0
    assert (file.stat().st_mode & 0o777, [*folder.iterdir()]) == (0o600, [file])
    assert json.loads(file.read_bytes().splitlines()[-1])["proof"]["rows"] == rows(environ, "ada")


def test_erase(environ: dict[str, str]) -> None:
    """Nothing of the person is left in any table, and everything of the others."""
    before = {user: rows(environ, user) for user in ("ada", "bob", ODD)}
    done = taskctl("users", "erase", "ada", "--yes", "--json", environ=environ)
    assert json.loads(done.out) == {"user_id": "ada", "erased": before["ada"], "left": 0}
    assert rows(environ, "ada") == dict.fromkeys(TABLES, 0)
    assert {user: rows(environ, user) for user in ("bob", ODD)} == {
        user: before[user] for user in ("bob", ODD)
    }
    done = taskctl("users", "erase", ODD, "-y", environ=environ)
    assert done.out.endswith("nothing is left.\n")
    assert "\u202e" not in done.out
    with psycopg.connect(environ["DATABASE_URL"]) as connection:
        for table in TABLES:
            query = sql.SQL("SELECT coalesce(string_agg(t::text, ''), '') FROM {} t")
            [text] = connection.execute(query.format(sql.Identifier(table))).fetchone() or ()
            assert "ada" not in text


def test_erasing_is_asked_for(environ: dict[str, str]) -> None:
    """A terminal asks and no means no; a pipe needs `--yes`; somebody who is not there is 5."""
    done = taskctl_in_terminal("users", "erase", "ada", environ=environ, typed="n\n")
    assert (done.code, "Nothing is erased." in done.out) == (1, True)
    done = taskctl("users", "erase", "ada", environ=environ)
    assert (done.code, "--yes" in done.err) == (2, True)
    assert rows(environ, "ada")["task"] == 3
    nobody: list[Done] = [
        taskctl("users", "erase", "nobody", "--yes", environ=environ),
        taskctl("users", "export", "nobody", environ=environ),
    ]
    assert [(done.code, done.out, "user_not_found" in done.err) for done in nobody] == [(5, "", True)] * 2
    done = taskctl_in_terminal("users", "erase", "ada", environ=environ, typed="y\n")
    assert (done.code, "Erased ada: 1 of account" in done.out) == (0, True)


def test_a_column_that_comes_later(environ: dict[str, str]) -> None:
    """A table that another release has added is exported and erased as well."""
    with psycopg.connect(environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE TABLE zettel AS SELECT 'ada' AS user_id, 7 AS number")
    done: Any = taskctl("users", "export", "ada", environ=environ)
    assert '{"table":"zettel","row":{"user_id":"ada","number":7}}' in done.out
    done = taskctl("users", "erase", "ada", "--yes", environ=environ)
    assert "1 of zettel" in done.out
