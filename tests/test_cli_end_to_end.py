"""`taskctl tasks` against a real server, as people and scripts run it, in pipes and in a terminal."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import httpx
import psycopg
import pytest
from rich.cells import cell_len

from conftest import (
    SECRET,
    bare_environ,
    free_port,
    make_settings,
    make_user,
    stop,
    taskctl,
    taskctl_in_terminal,
    until,
    wait_until_ready,
)
from taskctl.server.migrations import upgrade

MANY = 10_000
PASSWORD = "a-database-password"
TASKS = "/api/v1/me/tasks"
BLOCKED = "SELECT FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
COUNT = "SELECT count(*) FROM task WHERE user_id = %s"


@pytest.fixture
def environ(server, user, tmp_path):
    """The environment of a script that works as `user`."""
    return bare_environ(tmp_path, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token)


@pytest.fixture(scope="module")
def hoarder(database_url):
    """Somebody with ten thousand tasks."""
    user = make_user()
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO account (user_id, last_task_id) VALUES (%s, %s)", [user.id, MANY])
        connection.execute(
            "INSERT INTO task (user_id, id, title, completed, version)"
            " SELECT %s, id, 'Task ' || id, false, 1 FROM generate_series(1, %s) AS id",
            [user.id, MANY],
        )
    return user


@pytest.fixture
def tasks(environ):
    """Run `taskctl tasks`, which must go well and say nothing but its data."""

    def run(*words, **more):
        done = taskctl("tasks", *words, environ={**environ, **more})
        assert (done.code, done.err) == (0, "")
        return done.out

    return run


def lines(text):
    """The fields of each line but the time, which no test can know."""
    return [tuple(line.split("\t")[:3]) for line in text.splitlines()]


def test_a_life_of_a_task(tasks):
    """Each command does what it says, and a pipe gets one line of fields."""
    assert lines(tasks("add", "Buy milk", "-d", "two litres")) == [("1", "pending", "Buy milk")]
    assert lines(tasks("add", "Buy tea")) == [("2", "pending", "Buy tea")]
    assert lines(tasks("edit", "1", "--title", "Buy oat milk")) == [("1", "pending", "Buy oat milk")]
    assert lines(tasks("done", "1", "2")) == [
        ("1", "completed", "Buy oat milk"),
        ("2", "completed", "Buy tea"),
    ]
    assert lines(tasks("reopen", "2")) == [("2", "pending", "Buy tea")]
    assert lines(tasks("list", "--status", "pending")) == [("2", "pending", "Buy tea")]
    assert tasks("list", "--order", "desc", "-q") == "2\n1\n"
    assert json.loads(tasks("show", "1", "--json"))["description"] == "two litres"
    assert tasks("rm", "1") == "1\n"
    assert tasks("ls", "-q") == "2\n"
    assert tasks("rm", "2", "--json") == '{"deleted":[2]}\n'
    assert (tasks(), tasks("list", "--json"), tasks("list", "--ndjson")) == ("", "[]\n", "")


def test_json_is_the_apis_own(tasks, server, user):
    """`--json` is what the API answers, but for escapes of what acts on a terminal; a list is its items."""
    added = tasks("add", 'Ünïcode "quotes" \\ ☕', "--json").encode()
    with httpx.Client(base_url=server.url, headers=user.headers) as client:
        assert added == client.get(f"{TASKS}/1").content + b"\n"
        assert tasks("show", "1", "--json").encode() == added
        assert tasks("show", "1", "--ndjson").encode() == added
        tasks("add", "Another", "-d", "line\n\ttab / \u2028")
        items = client.get(TASKS).content.removeprefix(b'{"items":').removesuffix(b',"next_cursor":null}')
        assert tasks("list", "--json").encode() == items.replace("\u2028".encode(), b"\\u2028") + b"\n"
        done = tasks("done", "1", "--json").encode()
        assert done == client.get(f"{TASKS}/1").content + b"\n"


def test_head_of_many(environ, hoarder):
    """`| head -1` of ten thousand tasks ends quietly, in every form."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    variables = {**environ, "TASKCTL_TOKEN": hoarder.token}
    command = shlex.join([sys.executable, "-m", "taskctl", "tasks", "list", "--all"])
    firsts = {"": "1\tpending\tTask 1\t", "--ndjson": '{"id":1,', "-q": "1\n", "--json": '[{"id":1,'}
    for option, first in firsts.items():
        script = f"{command} {option} | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            [bash, "-c", script], env=variables, capture_output=True, timeout=60, check=True
        )
        assert done.stdout.startswith(first.encode())
        assert done.stdout.endswith(b"\n0\n")
        assert done.stderr == b""


def test_many_are_complete(environ, hoarder):
    """`--all` lists every task once, in order; without it there are fifty."""
    variables = {**environ, "TASKCTL_TOKEN": hoarder.token}
    done = taskctl("tasks", "list", "--all", "--json", environ=variables)
    assert [task["id"] for task in json.loads(done.out)] == list(range(1, MANY + 1))
    assert taskctl("tasks", "-q", environ=variables).out.count("\n") == 50
    done = taskctl("tasks", "list", "--limit", "201", "--order", "desc", "-q", environ=variables)
    assert [int(line) for line in done.out.split()] == list(range(MANY, MANY - 201, -1))


def test_a_terminal_is_safe_from_titles(launch, empty_database, user, tmp_path):
    """Whatever a database holds, no line is wider than the terminal, and no control character arrives."""
    upgrade(make_settings(empty_database))
    with psycopg.connect(empty_database) as connection:
        connection.execute("ALTER TABLE task DROP CONSTRAINT task_title_one_line")
        connection.execute("INSERT INTO account (user_id, last_task_id) VALUES (%s, 4)", [user.id])
        for number, title in enumerate(
            (
                "\x1b]0;owned\x07\x1b[31mred\x1b[2J",
                "牛乳を買う" * 20,
                "a\u202etxt.exe\r\nb\x9b31m",
                "q" * 200,
            ),
            1,
        ):
            connection.execute(
                "INSERT INTO task (user_id, id, title, completed, version) VALUES (%s, %s, %s, false, 1)",
                [user.id, number, title],
            )
    variables = {"TASKCTL_ENV": "test", "DATABASE_URL": empty_database, "BETTER_AUTH_SECRET": SECRET}
    server = wait_until_ready(launch(**variables))
    environ = bare_environ(
        tmp_path, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token, NO_COLOR="1", TERM="dumb"
    )
    for words in (["list"], ["show", "1"], ["show", "3"], ["done", "3"], ["edit", "1", "-d", "x"]):
        done = taskctl_in_terminal("tasks", *words, environ=environ)
        assert done.code == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.out)
        if words == ["list"]:
            assert max(map(cell_len, done.out.splitlines())) <= 60
            assert done.out.count("牛") == 20
            assert done.out.count("q") == 200
            assert r"\x1b]0;owned\x07\x1b[31mred\x1b[2J" in done.out
    done = taskctl_in_terminal("tasks", "add", "\x1b[31mred", environ=environ)
    assert (done.code, "\x1b" in done.out) == (2, False)


def test_colour_is_for_who_wants_it(environ, tasks):
    """A terminal gets colour unless NO_COLOR is set; a pipe gets none even with FORCE_COLOR."""
    tasks("add", "x p:high")
    coloured = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert coloured.search(taskctl_in_terminal("tasks", environ=environ).out)
    assert not coloured.search(taskctl_in_terminal("tasks", environ={**environ, "NO_COLOR": "1"}).out)
    assert "\x1b" not in tasks(FORCE_COLOR="1")


FAILURES = [
    (["show", "99"], {}, 5, "task_not_found"),
    (["add", "x" * 201], {}, 2, "validation_failed"),
    (["add", "a\nb"], {}, 2, "validation_failed"),
    (["done", "1", "--if-version", "7"], {}, 6, "version_conflict"),
    (["add", "Other", "--idempotency-key", "once"], {}, 6, "idempotency_key_reused"),
    (["list"], {"TASKCTL_TOKEN": make_user("eve", lifetime=-3600).token}, 4, "token_expired"),
    (
        ["add", "x"],
        {"TASKCTL_TOKEN": make_user("eve", scope="tasks:read").token},
        4,
        "insufficient_scope",
    ),
    (
        ["list"],
        {"TASKCTL_SERVER": "http://127.0.0.1:1", "TASKCTL_TIMEOUT": "0.3"},
        8,
        "server_unreachable",
    ),
    (["list"], {"TASKCTL_SERVER": "http://tasks.example.com"}, 2, "settings_invalid"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=[says for *_, says in FAILURES])
def test_exit_codes(environ, tasks, failure):
    """Each failure has its exit code, and is one line with its code and, from a server, its request."""
    words, more, code, says = failure
    assert tasks("add", "Once", "--idempotency-key", "once", "-q") == "1\n"
    done = taskctl("tasks", *words, environ={**environ, **more})
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    local = says in {"server_unreachable", "settings_invalid"}
    assert re.search(rf" \({says}{'' if local else ', request [0-9a-f]+'}\)$", done.err)
    as_json = taskctl("tasks", *words, "--json", environ={**environ, **more})
    assert (as_json.code, as_json.out, json.loads(as_json.err)["code"]) == (code, "", says)


def test_if_version(tasks, environ):
    """`--if-version` changes what nobody else has changed, and says which version there is where one has."""
    tasks("add", "x")
    assert lines(tasks("edit", "1", "--title", "y", "--if-version", "1")) == [("1", "pending", "y")]
    for words in (["edit", "1", "--title", "z"], ["rm", "1"], ["reopen", "1"]):
        done = taskctl("tasks", *words, "--if-version", "1", "--json", environ=environ)
        assert (done.code, json.loads(done.err)["current_version"]) == (6, 2)
    assert lines(tasks()) == [("1", "pending", "y")]


def test_the_c_locale_keeps_every_character(tasks):
    """A title goes there and back unharmed where the locale knows ASCII only."""
    title = "Купить молоко ☕ 牛乳"
    assert lines(tasks("add", title, LC_ALL="C")) == [("1", "pending", title)]
    assert lines(tasks(LC_ALL="C")) == [("1", "pending", title)]
    assert json.loads(tasks("show", "1", "--json", LC_ALL="C", PYTHONCOERCECLOCALE="0"))["title"] == title


def test_adding_at_once(environ, tasks):
    """Processes that add at the same moment, the very first tasks too, get ids of their own."""
    command = [sys.executable, "-m", "taskctl", "tasks", "add", "-q"]
    adding = [
        subprocess.Popen([*command, str(n)], env=environ, stdout=subprocess.PIPE, text=True) for n in range(4)
    ]
    ids = sorted(process.communicate(timeout=60)[0] for process in adding)
    assert ids == ["1\n", "2\n", "3\n", "4\n"]
    assert [process.returncode for process in adding] == [0] * 4
    assert sorted(title for _, _, title in lines(tasks())) == ["0", "1", "2", "3"]


def test_a_restart_in_mid_add_makes_one_task(launch, database_url, user, tmp_path):
    """The server is killed after the task was sent and before it answered: the repeat finds it there."""
    port = free_port()
    variables = {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET}
    first = wait_until_ready(launch("--port", str(port), **variables))
    environ = bare_environ(tmp_path, TASKCTL_SERVER=first.url, TASKCTL_TOKEN=user.token)
    command = [sys.executable, "-m", "taskctl", "--debug", "--timeout", "90", "tasks", "add", "Once"]
    log = tmp_path / "err"
    with psycopg.connect(database_url) as holder, log.open("wb") as stderr:
        holder.execute("INSERT INTO account (user_id, last_task_id) VALUES (%s, 0)", [user.id])
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=stderr) as adding:
            until(lambda: holder.execute(BLOCKED, [holder.info.backend_pid]).fetchone() is not None)
            first.process.kill()
            first.process.wait()
            until(lambda: "try 1" in log.read_text())
            holder.commit()  # what nobody waits for any more is stored now
            until(lambda: holder.execute(COUNT, [user.id]).fetchone() == (1,))
            wait_until_ready(launch("--port", str(port), **variables))
            out = adding.communicate(timeout=90)[0].decode()
        assert (adding.returncode, lines(out)) == (0, [("1", "pending", "Once")])
        assert holder.execute(COUNT, [user.id]).fetchone() == (1,)
    tries = log.read_text().splitlines()
    assert len(tries) >= 2
    assert re.search(r": 201, \d+ ms, try \d+$", tries[-1])
    assert user.token not in log.read_text()


def test_login_and_out(server, user, tmp_path):
    """A login reads the token from a pipe only, and lasts; a logout forgets it and keeps the server."""
    environ = bare_environ(tmp_path)
    words = ["login", "--server", server.url, "--context", "here", "--token-stdin"]
    forged = user.token[:-4] + "AAAA"
    assert taskctl(*words, environ=environ, given=forged).code == 4
    for argument in (user.token, f"--token={user.token}"):
        done = taskctl(*words, argument, environ=environ)
        assert (done.code, done.out, user.token in done.err) == (2, "", False)
    assert not (tmp_path / ".config").exists()
    done = taskctl(*words, environ=environ, given=user.token)
    assert done == (0, "", f"Logged in to {server.url} as {user.id} (context here).\n")
    assert taskctl("tasks", "add", "x", "-q", environ=environ).out == "1\n"
    status = json.loads(taskctl("status", "--json", environ=environ).out)
    assert (status["user"], status["ready"], status["token_accepted"]) == (user.id, True, True)
    assert taskctl("logout", environ=environ).code == 0
    assert taskctl("tasks", environ=environ).code == 4
    assert user.token not in (tmp_path / ".config" / "taskctl" / "contexts.json").read_text()


def test_config_show(tmp_path):
    """Every setting is listed with what is in force and where it came from; secrets are masked."""
    (tmp_path / ".env").write_text(f"BETTER_AUTH_SECRET={SECRET}\nTASKCTL_POOL_SIZE=7\nTASKCTL_PORT=7777\n")
    url = f"postgresql://u:{PASSWORD}@db/tasks"
    environ = bare_environ(
        tmp_path, DATABASE_URL=url, TASKCTL_PORT="9999", BETTER_AUTH_SECRET_PREVIOUS=SECRET[::-1]
    )
    done = taskctl("config", "show", "--json", environ=environ)
    shown = {row["name"]: (row["value"], row["source"]) for row in json.loads(done.out)}
    assert shown["TASKCTL_PORT"] == ("9999", "environment")
    assert shown["TASKCTL_POOL_SIZE"] == ("7", ".env")
    assert shown["TASKCTL_LOG_LEVEL"] == ("info", "default")
    assert [shown[name][1] for name in ("BETTER_AUTH_SECRET", "DATABASE_URL")] == [".env", "environment"]
    text = taskctl("config", "show", environ=environ)
    for secret in (SECRET, SECRET[::-1], PASSWORD):
        assert secret not in done.out + done.err + text.out + text.err
    assert re.search(r"^TASKCTL_PORT +9999  \(environment\)$", text.out, re.MULTILINE)


def test_secrets_stay_secret(launch, empty_database, tmp_path):
    """After a run with all that can go wrong, no log, error, probe or setting shows any secret."""
    upgrade(make_settings(empty_database))
    user, expired = make_user(), make_user(lifetime=-3600)
    variables = {
        "TASKCTL_ENV": "test",
        "TASKCTL_LOG_LEVEL": "debug",
        "DATABASE_URL": empty_database.replace("postgres@", f"postgres:{PASSWORD}@"),
        "BETTER_AUTH_SECRET": SECRET,
    }
    server = wait_until_ready(launch(**variables))
    environ = bare_environ(tmp_path, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token, TASKCTL_TIMEOUT="2")
    said = []

    def run(*words, **more):
        done = taskctl("--debug", *words, environ={**environ, **more})
        said.extend((done.out, done.err))
        return done.code

    assert run("tasks", "add", "x") == 0
    assert run("tasks", "show", "9") == 5
    assert run("tasks", "list", TASKCTL_TOKEN=expired.token) == 4
    assert run("tasks", "list", TASKCTL_TOKEN=user.token + "AAAA") == 4
    assert run("status", "--json") == 0
    assert run("config", "show", **variables) == 0
    headers = {"Authorization": f"Bearer {user.token}", "X-Request-ID": user.token}
    httpx.get(f"{server.url}{TASKS}?token={user.token}", headers=headers)
    httpx.get(f"{server.url}/api/v1/{user.token}/tasks", headers=headers)
    with psycopg.connect(empty_database) as connection:
        connection.execute("DROP TABLE task")
    assert run("tasks", "list") == 8
    said += [httpx.get(server.url + path).text for path in ("/health", "/readyz", "/livez", "/openapi.json")]
    assert stop(server) == 0
    said += [server.log.read_text(), server.out.read_text()]
    assert os.linesep.join(said).count("request") > 10
    for text in said:
        for secret in (SECRET, PASSWORD, user.token[-20:], expired.token[-20:]):
            assert secret not in text
