"""The client's commands, run as a person or a script runs them, against a server that answers by a script."""

import base64
import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from taskctl import contexts
from taskctl.cli import root, tasks
from test_client import CUT, TASK, Scripted, closed_port, http, ok, problem

TOKEN = "e30.{}.x".format(
    base64.urlsafe_b64encode(b'{"sub": "alice", "exp": 4102444800}').decode().rstrip("=")
)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def environ(server: Scripted, tmp_path: Path) -> dict[str, str]:
    changing = ("TASKCTL_", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changing)}
    made = {**kept, "TASKCTL_CONFIG_DIR": str(tmp_path), "TZ": "UTC", "NO_PROXY": "*"}
    contexts.save_context("local", server.url, TOKEN, environ=made)
    return made


@pytest.fixture
def run(environ):
    """Run `taskctl` with pipes; what is left of `environ` may be changed by name."""

    def run(*arguments: str, given: bytes = b"", **more: str) -> Done:
        command = [sys.executable, "-m", "taskctl", *arguments]
        done = subprocess.run(command, input=given, capture_output=True, env={**environ, **more}, check=False)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def terminal(environ):
    """Run `taskctl` in a terminal of 60 columns; what it writes there is `out`."""

    def run(*arguments: str, typed: bytes = b"", **more: str) -> Done:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 60))
        command = [sys.executable, "-m", "taskctl", *arguments]
        variables = {**environ, "TERM": "dumb", **more}
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables) as process:
            os.close(slave)
            os.write(master, typed)
            written = b""
            try:
                while chunk := os.read(master, 1 << 16):
                    written += chunk
            except OSError:  # Linux says EIO where others say that it is the end
                pass
        os.close(master)
        return Done(process.returncode, written.decode().replace("\r\n", "\n"), "")

    return run


def page(*tasks: dict, cursor: str | None = None) -> bytes:
    return ok({"items": list(tasks), "next_cursor": cursor})


# What is printed


def test_a_pipe_gets_tab_separated_rows(run, server):
    """One task is one line without header or colour, whatever its title holds."""
    server.script = [page(TASK, {**TASK, "id": 8, "title": "a\tb\nc\x1b[31m\u202e\x9b", "completed": True})]
    done = run("tasks", FORCE_COLOR="1")
    assert done == Done(
        0,
        f"7\tpending\t{TASK['title']}\t{TASK['updated_at']}\n"
        f"8\tcompleted\ta\\tb\\nc\\x1b[31m\\u202e\\x9b\t{TASK['updated_at']}\n",
        "",
    )


def test_a_terminal_gets_a_table_that_fits(terminal, server):
    """At 60 columns no line is longer, nothing is lost, and controls are shown instead of sent."""
    server.script = [page({**TASK, "title": "word " * 20 + "\x1b[31mend", "completed": True}, cursor="more")]
    done = terminal("tasks", "list", "--limit", "1")
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].split() == ["ID", "Title", "Changed"]
    assert done.out.count("word") == 20
    assert "\\x1b[31mend" in done.out
    assert "\x1b" not in done.out
    assert "✓" in lines[1]
    assert lines[-1] == "1 shown; --all for all of them."


def test_an_empty_list(run, terminal, server):
    """Nothing is nothing in a pipe, `[]` as JSON, and a friendly word in a terminal."""
    server.script = [page()] * 4
    assert run("tasks", "list") == Done(0, "", "")
    assert run("tasks", "list", "--json") == Done(0, "[]\n", "")
    assert run("tasks", "list", "--ndjson") == Done(0, "", "")
    assert terminal("tasks", "list").out == "No tasks.\n"


@pytest.mark.parametrize("words", [["show", "7", "--json"], ["list", "--json"], ["list", "--ndjson"]])
def test_json_steers_no_terminal(run, terminal, server, words):
    """JSON has control characters and what reorders a line escaped, and means the same."""
    title = "a\x7fb\x9b31mc\u202etxt.exe\u2066\u2028d\x1b\n"
    task = {**TASK, "title": title}
    body = task if words[0] == "show" else {"items": [task], "next_cursor": None}
    server.script = [
        http(200, json.dumps(body, ensure_ascii=False).encode(), Content_Type="application/json")
    ] * 2
    for done in (run("tasks", *words), terminal("tasks", *words)):
        assert done.code == 0
        assert done.out.rstrip("\n").isprintable()
        found = json.loads(done.out)
        assert (found[0] if isinstance(found, list) else found)["title"] == title


def test_one_task_as_json_is_what_the_server_sent(run, server):
    """`--json` prints the answer byte for byte, in UTF-8 whatever the locale."""
    body = '{ "id": 7,  "title": "Купить" }'
    server.script = [http(200, body.encode(), Content_Type="application/json")] * 2
    expected = Done(0, body + "\n", "")
    assert run("tasks", "show", "7", "--json") == expected
    assert (
        run("tasks", "show", "7", "--json", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii") == expected
    )


def test_text_never_fails_for_a_locale(run, server):
    """A terminal that cannot show a character gets an escape or another, not a traceback."""
    server.script = [ok(TASK)]
    done = run(
        "tasks", "show", "7", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii"
    )
    assert (done.code, done.err, done.out.split("\t")[0]) == (0, "", "7")


def test_lists_of_several_pages(run, server):
    """`--all` fetches every page: one array, one object a line, or ids."""
    first, last = {**TASK, "id": 1}, {**TASK, "id": 2, "title": "\udc00"}
    server.script = [page(first, cursor="x"), page(last)] * 3
    assert json.loads(run("tasks", "list", "--all", "--json").out) == [first, last]
    lines = run("tasks", "list", "--all", "--ndjson").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]
    assert run("tasks", "list", "--all", "-q").out == "1\n2\n"
    assert "limit=200" in server.seen[0].line


def test_the_limit_is_sent(run, server):
    """Without options 50 tasks are asked for; status, order and limit are passed on."""
    server.script = [page(), page()]
    run("tasks")
    run("tasks", "ls", "--status", "pending", "--order", "desc", "--limit", "3")
    assert [seen.line.split()[1].partition("?")[2] for seen in server.seen] == [
        "status=all&order=asc&limit=50",
        "status=pending&order=desc&limit=3",
    ]


def test_a_closed_pipe_ends_quietly(environ, server):
    """`| head -1` makes no noise, not even when the interpreter exits."""
    server.script = [page(*[TASK] * 200, cursor=str(number)) for number in range(20)]
    command = [sys.executable, "-m", "taskctl", "tasks", "list", "--all", "--ndjson"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# Changing tasks


def test_add(run, terminal, server):
    """`add` sends the title, what follows `--` included, and says what was added."""
    server.script = [ok({**TASK, "id": 9, "title": "-5"}, 201)] * 2
    assert run("tasks", "add", "-d", "two\nlines", "--idempotency-key", "k", "--", "-5").out.startswith(
        "9\tpending\t-5\t"
    )
    assert server.seen[0].json == {"title": "-5", "description": "two\nlines"}
    assert server.seen[0].headers["idempotency-key"] == "k"
    assert terminal("tasks", "add", " x ").out == "Added 9  -5\n"
    assert server.seen[1].json == {"title": "x"}


def test_add_is_repeated_with_its_key(run, server):
    """A dropped answer is repeated silently, with the same key."""
    server.script = [CUT, ok(TASK, 201)]
    assert run("tasks", "add", "T", "-q") == Done(0, "7\n", "")
    assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1


def test_edit(run, server):
    """`edit` reads the task, for `undo`, and sends only what is given; `--clear-description` sends null."""
    server.script = [ok(TASK)] * 4
    assert run("tasks", "edit", "7", "--title", "T", "--if-version", "3").code == 0
    assert run("tasks", "edit", "7", "--clear-description").code == 0
    assert [seen.line.split()[0] for seen in server.seen] == ["GET", "PATCH"] * 2
    assert [seen.json for seen in server.seen[1::2]] == [{"title": "T"}, {"description": None}]
    assert [seen.headers.get("if-match") for seen in server.seen[1::2]] == ['"3"', None]


def test_several_ids_are_each_tried(run, server):
    """Failures go to stderr, one line each; the first decides the exit code; successes are printed."""
    missing, conflict = problem(404, "task_not_found"), problem(412, "version_conflict")
    server.script = [ok(TASK), ok(TASK), missing, ok(TASK), conflict, ok(TASK), ok(TASK)]
    done = run("tasks", "complete", "7", "8", "9", "7", "--json")
    assert (done.code, len(json.loads(done.out))) == (5, 2)
    errors = [json.loads(line) for line in done.err.splitlines()]
    assert [(error["id"], error["code"]) for error in errors] == [
        (8, "task_not_found"),
        (9, "version_conflict"),
    ]
    server.script = [ok(TASK), conflict, missing]
    done = run("tasks", "reopen", "7", "8")
    assert (done.code, done.out) == (6, "")
    assert done.err.splitlines()[0] == (
        "taskctl: 7: Detail of version_conflict. (version_conflict, request req-1)"
    )


def test_rm_never_asks_in_a_pipe(run, server):
    """In a pipe tasks are deleted without a question; with `--json` one object names them."""
    server.script = [http(204)] * 5
    assert run("tasks", "rm", "7", "--if-version", "2") == Done(0, "7\n", "")
    assert run("tasks", "delete", "7", "8", "--json") == Done(0, '{"deleted":[7,8]}\n', "")
    assert run("tasks", "rm", "7", "8", "--ndjson").out == '{"deleted":7}\n{"deleted":8}\n'


def test_rm_asks_once_in_a_terminal(terminal, server):
    """A person is asked about all the ids at once; no means that nothing is sent."""
    done = terminal("tasks", "rm", "7", "8", typed=b"n\n")
    assert done.code == 1
    assert "Delete 2 tasks: 7, 8? [y/N]: " in done.out
    assert "Nothing is deleted." in done.out
    assert server.seen == []
    server.script = [http(204)] * 2
    assert "Deleted 7\nDeleted 8\n" in terminal("tasks", "rm", "7", "8", typed=b"y\n").out
    server.script = [http(204)]
    assert terminal("tasks", "rm", "7", "--yes").out == "Deleted 7\n"


# Errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["tasks", "done", "0"],
        ["tasks", "done", "abc"],
        ["tasks", "show", "1" * 20],
        ["tasks", "done"],
        ["tasks", "done", "1", "2", "--if-version", "1"],
        ["tasks", "edit", "1"],
        ["tasks", "edit", "1", "-d", "x", "--clear-description"],
        ["tasks", "add", "Buy", "milk", "due:nonsense"],
        ["tasks", "add", "x due:fri", "--due", "mon"],
        ["tasks", "add", "x", "--priority", "urgent"],
        ["tasks", "add", "+home"],
        ["tasks", "edit", "1", "New", "title"],
        ["tasks", "done", "5-3"],
        ["tasks", "rm", "1-5000"],
        ["tasks", "list", "--due", "someday"],
        ["tasks", "list", "--columns", "id,colour"],
        ["tasks", "list", "--columns", "id", "-q"],
        ["tasks", "list", "--limit", "0"],
        ["tasks", "list", "--limit", "x"],
        ["tasks", "list", "--limit", "5", "--all"],
        ["tasks", "list", "--status", "odd"],
        ["tasks", "--status", "all", "--limit", "1", "show", "7"],
        ["--timeout", "-1", "tasks"],
        ["--context", "nope", "tasks"],
        ["nope"],
        ["tasks", "--nope"],
        ["login"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_usage_is_2(run, server, arguments):
    """Wrong usage sends nothing and ends with 2, one line with its code, and perhaps where help is."""
    done = run(*arguments)
    assert (done.code, done.out, server.seen) == (2, "", [])
    first, *rest = done.err.splitlines()
    assert re.fullmatch(r"taskctl: .+ \((usage|settings)_invalid\)", first)
    assert not rest or (len(rest) == 1 and re.fullmatch(r"Try 'taskctl.* --help'\.", rest[0]))


def test_wrong_usage_as_json(run):
    """With `--json` the error is one JSON object, and nothing else is on stderr."""
    done = run("tasks", "list", "--limit", "x", "--json")
    error = json.loads(done.err)
    assert json.loads(run("tasks", "list", "--json", "-q").err)["code"] == "usage_invalid"
    assert (done.code, error["code"], error["request_id"], error["status"]) == (
        2,
        "usage_invalid",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("answer", "code", "exit_code"),
    [
        (problem(401, "token_expired"), "token_expired", 4),
        (problem(403, "insufficient_scope"), "insufficient_scope", 4),
        (problem(404, "task_not_found"), "task_not_found", 5),
        (problem(412, "version_conflict"), "version_conflict", 6),
        (problem(429, "rate_limited", retry_after="99"), "rate_limited", 7),
        (problem(503, "overloaded", retry_after="99"), "overloaded", 8),
        (http(500), "server_failed", 8),
        (http(200, b"<p>", Content_Type="text/html"), "unexpected_answer", 1),
    ],
)
def test_each_outcome_has_its_exit_code(run, server, answer, code, exit_code):
    """An error is one line with its code and request id on stderr, and an exit code that means something."""
    server.script = [answer]
    done = run("tasks", "show", "7")
    assert (done.code, done.out, len(done.err.splitlines())) == (exit_code, "", 1)
    request = ", request req-1" if b"req-1" in answer else ""
    assert done.err.endswith(f"({code}{request})\n")


def test_what_validation_found_is_shown(run, server):
    """A refusal names the field and the reason; control characters from the server are escaped."""
    found = [{"loc": ["body", "title"], "msg": "too\x1b[31m long", "type": "x"}]
    server.script = [problem(422, "validation_failed", errors=found)] * 2
    done = run("tasks", "add", "T")
    assert "title: too\\x1b[31m long (validation_failed, request req-1)" in done.err
    assert json.loads(run("tasks", "add", "T", "--json").err)["errors"] == found


def test_an_unreachable_server_is_8(run):
    """A connection refused until the time is up ends with 8, silently but for the last line."""
    done = run(
        "--server", f"http://127.0.0.1:{closed_port()}", "--timeout", "0.3", "tasks", TASKCTL_TOKEN="t"
    )
    assert (done.code, len(done.err.splitlines())) == (8, 1)
    assert "connection refused" in done.err


def test_repeats_are_shown_in_a_terminal(terminal, server):
    """A person sees why it takes longer."""
    server.script = [problem(503, "overloaded"), page()]
    assert "Detail of overloaded. Try 2 in " in terminal("tasks", "list").out


def test_no_token_is_4(run, environ):
    """A server that the stored token is not for is never sent it."""
    done = run("--server", "https://elsewhere.example", "tasks", "list")
    assert (done.code, "not_logged_in" in done.err) == (4, True)
    contexts.save_context("local", "https://elsewhere.example", None, environ=environ)
    assert run("tasks", "list").code == 4


def test_debug_shows_requests_but_no_token(run, server):
    """`--debug` logs each request on stderr, and the token nowhere."""
    server.script = [problem(404, "task_not_found")]
    done = run("--debug", "tasks", "show", "7")
    assert f"taskctl: GET {server.url}/api/v1/me/tasks/7: 404 task_not_found" in done.err
    assert "Traceback" in done.err
    assert TOKEN not in done.err + done.out


def test_what_nobody_expected_is_one_line(run, server):
    """A bug is one line with its cause and exit code 1; the traceback only with `--debug`."""
    server.script = [page({"id": 7})] * 2
    done = run("tasks", "list")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith("taskctl: KeyError: ")
    assert "Traceback" in run("--debug", "tasks", "list").err


def test_an_interrupt_is_130(environ, server):
    """Ctrl-C ends quietly with 130."""
    command = [sys.executable, "-m", "taskctl", "tasks", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        while not server.seen:
            os.sched_yield()
        process.send_signal(2)
        assert process.communicate() == (b"", b"")
    assert process.returncode == 130


# Who and where


def test_login_checks_and_stores_the_token(run, server, environ):
    """The token is read from stdin, tried once, stored under the host's name and made current."""
    server.script = [page()]
    done = run("login", "--server", server.url + "/", "--token-stdin", given=b" fresh-token\n")
    name = f"127.0.0.1-{server.port}"
    assert done == Done(0, "", f"Logged in to {server.url} (context {name}).\n")
    assert server.seen[0].headers["authorization"] == "Bearer fresh-token"
    stored = contexts.load(environ)
    assert (stored.current, stored.get(name)) == (name, contexts.Context(server.url, "fresh-token"))


def test_a_refused_login_stores_nothing(run, server, environ):
    """A token that the server refuses ends with 4, and the contexts stay as they were."""
    before = contexts.load(environ)
    server.script = [problem(401, "token_expired")]
    assert run("login", "--server", server.url, "--token-stdin", given=b"bad").code == 4
    for given in (b"", b"two words", b"\xff", b"x" * 10_000):
        assert run("login", "--server", server.url, "--token-stdin", given=given).code == 2
    assert contexts.load(environ) == before


def test_login_again_and_logout(run, server, environ):
    """`logout` keeps the server, so that the next login needs only a token."""
    assert run("logout").code == 0
    assert contexts.load(environ).get("local") == contexts.Context(server.url, None)
    assert run("tasks", "list").code == 4
    done = run("login", "--token-stdin", "--no-check", given=TOKEN.encode())
    assert "as alice (context local)" in done.err
    assert contexts.load(environ).get("local").token == TOKEN
    assert server.seen == []


def test_status(run, server):
    """`status` says which server, as whom, until when, and whether it is ready."""
    server.script = [ok({"version": "9.9"}), ok({"status": "ready"}), page()] * 2
    report = json.loads(run("status", "--json").out)
    assert report == {
        "context": "local",
        "server": server.url,
        "version": "9.9",
        "reachable": True,
        "ready": True,
        "user": "alice",
        "token_expires_at": "2100-01-01T00:00:00+00:00",
        "token_accepted": True,
        "renewed_by": None,
    }
    assert f"Server\t{server.url}: ready (version 9.9)\n" in run("status").out


def test_status_of_what_is_not_well(run, server, environ):
    """A server that is not ready or not there is 8, a refused or missing token 4; the report is printed."""
    server.script = [ok({"version": "9.9"}), problem(503, "not_ready")]
    done = run("status")
    assert (done.code, f"{server.url}: not ready" in done.out) == (8, True)
    server.script = [ok({"version": "9.9"}), ok({"status": "ready"}), problem(401, "token_expired")]
    done = run("status", "--json")
    assert (done.code, json.loads(done.out)["token_accepted"]) == (4, False)
    run("logout")
    server.script = [ok({"version": "9.9"}), ok({"status": "ready"})]
    assert run("status").code == 4
    contexts.save_context("local", f"http://127.0.0.1:{closed_port()}", TOKEN, environ=environ)
    done = run("status", "--json")
    assert (done.code, json.loads(done.out)["reachable"]) == (8, False)


def test_contexts(run, terminal, server):
    """Contexts are listed with the current one marked, changed and removed; tokens are not shown."""
    run("login", "--server", "https://b.example", "--token-stdin", "--no-check", given=b"t")
    assert run("context", "list").out == f"b.example\thttps://b.example\tcurrent\nlocal\t{server.url}\t\n"
    assert run("context", "list", "-q").out == "b.example\nlocal\n"
    assert run("context", "use", "local").code == 0
    assert terminal("context", "ls").out == f"  b.example  https://b.example\n* local      {server.url}\n"
    assert run("context", "rm", "b.example").code == 0
    listed = json.loads(run("context", "list", "--json").out)
    assert listed == [{"name": "local", "server": server.url, "current": True, "logged_in": True}]
    assert run("context", "use", "nope").code == 2


# The program itself


def test_version_and_help(run):
    """The version is one line; help lists the commands; nothing at all is wrong usage, with the help."""
    for option in (["--version"], ["-V"], ["--debug", "--version"]):
        assert re.fullmatch(r"taskctl \d+\.\d+\.\d+\n", run(*option).out)
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    assert {"tasks", "login", "status", "context", "completion"} <= set(done.out.split())
    assert (run().code, run().err) == (2, done.out)


def test_parts_have_the_commands_that_they_are_loaded_for():
    """What a group loads for a name is there then, and every command can be reached by its name."""
    for group in (root.app, tasks.app):
        for names, add in group.info.cls.parts.items():
            part = typer.Typer()
            add(part)
            assert set(typer.main.get_group(part).commands) == set(names)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(run, shell):
    """The script names the command; where the shell is here, it finds no fault with it."""
    script = run("completion", shell).out
    assert "taskctl" in script
    try:
        subprocess.run([shell, "-n"], input=script.encode(), check=True)
    except FileNotFoundError:
        pytest.skip(f"no {shell} here")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("taskctl tasks l", "list"),
        ("taskctl tasks list --st", "--status"),
        ("taskctl tasks list --status p", "pending"),
        ("taskctl tasks list --columns id,pri", "id,priority"),
        ("taskctl --cont", "--context"),
        ("taskctl completion f", "fish"),
    ],
)
def test_completion_completes(run, words, expected):
    """What bash asks is answered: commands, options and their values."""
    count = len(words.split()) - 1
    done = run(_TASKCTL_COMPLETE="complete_bash", COMP_WORDS=words.replace(" ", "\n"), COMP_CWORD=str(count))
    assert done == Done(0, expected + "\n", "")


def test_completion_in_fish(environ):
    """In fish the script that people source completes commands, options and values."""
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("no fish here")
    lines = ["tasks l", "tasks list --status p", "--cont"]
    asked = "; ".join(f"complete -C 'taskctl {line}'" for line in lines)
    done = subprocess.run(
        [fish, "--no-config", "-c", f"taskctl completion fish | source; {asked}"],
        capture_output=True,
        text=True,
        env={**environ, "PATH": f"{Path(sys.executable).parent}:{environ['PATH']}"},
        check=True,
    )
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == ["list", "pending", "--context"]


def test_completion_in_zsh(environ):
    """In zsh the Tab key completes a word, once the script was read as the help says."""
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh here")
    master, slave = pty.openpty()
    variables = {**environ, "PATH": f"{Path(sys.executable).parent}:{environ['PATH']}", "TERM": "dumb"}
    shell = subprocess.Popen(
        [zsh, "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True
    )
    os.close(slave)
    # Ctrl-A goes to the start of the line, so that the completed line is what echo gets.
    os.write(
        master,
        b'autoload -U compinit; compinit -u -D; eval "$(taskctl completion zsh)"\n'
        b"taskctl completion f\t\x01echo got: \nexit\n",
    )
    written = b""
    with contextlib.suppress(OSError):  # Linux says EIO where others say that it is the end
        while chunk := os.read(master, 1 << 16):
            written += chunk
    os.close(master)
    assert shell.wait() == 0
    assert b"got: taskctl completion fish\r\n" in written


def test_commands_load_no_pydantic(environ, server):
    """A whole command, options and all, loads neither pydantic nor rich."""
    server.script = [page(TASK)]
    code = (
        "import atexit, sys; from taskctl.cli import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "main(['--timeout', '5', 'tasks', 'list', '--limit', '5', '--status', 'all', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True
    )
    assert {"pydantic", "rich", "httpx", "fastapi", "platformdirs"}.isdisjoint(done.stderr.split())
