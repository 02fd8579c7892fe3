"""Changes that are made while the server is away: the outbox, and the commands that fill and empty it."""

import json
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cable import Cable, opened
from conftest import (
    SECRET,
    Server,
    User,
    bare_environ,
    free_port,
    logged_in,
    make_user,
    stop,
    taskctl,
    taskctl_in_terminal,
    wait_until_ready,
)
from taskctl import contexts, outbox
from taskctl.client import Client
from taskctl.desk import Desk
from taskctl.errors import LocalError, ServerUnreachable, TaskNotFound, UsageInvalid, catalogue
from taskctl.outbox import Outbox, Waiting
from test_client import CUT, TASK, FakeTime, Scripted, http, ok, problem


@pytest.fixture
def environ(cable: Cable, user: User, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of somebody at the end of the cable, which is whole again afterwards."""
    yield logged_in(tmp_path, cable.url, user.token, TASKCTL_TIMEOUT="0.3")
    cable.mend()


@pytest.fixture
def api(server: Server, user: User) -> Iterator[httpx.Client]:
    """Somebody else at the same tasks, whom no cable concerns."""
    with httpx.Client(base_url=f"{server.url}/api/v1/me", headers=user.headers) as client:
        yield client


def box_of(environ: dict[str, str]) -> Outbox:
    with opened(environ, sends=False) as desk:
        made = desk.outbox(make=True)
    assert made is not None
    return made


def send(environ: dict[str, str]) -> list[outbox.Delivered]:
    """Send what waits, and return what became of it."""
    delivered: list[outbox.Delivered] = []
    with opened(environ | {"TASKCTL_TIMEOUT": "30"}, on_delivered=delivered.append):
        pass
    return delivered


def test_a_person_waits_for_a_connection_a_little(environ, cable):
    """Reading gives up as soon as a change is kept; where nothing is to be kept both have all the time."""
    cable.cut()
    for keeps, least, most in (({}, 0, 5), ({"TASKCTL_OFFLINE": "never"}, 5, 30)):
        fake = FakeTime()
        options = {"timeout": 30, "sleep": fake.sleep, "clock": fake.clock}
        settings = contexts.resolve(contexts.Flags(), environ)
        client = Client(settings.server, settings.token, **options)
        with (
            Desk(client, settings, environ=environ | keeps, patience=5) as desk,
            pytest.raises(ServerUnreachable),
        ):
            desk.client.read_task(1)
        assert least < fake.now < most


# The commands


def test_changes_wait_for_the_server(database_url, user, tmp_path, launch):
    """What is changed while the server is stopped is kept and said, and made when it runs again."""
    port = str(free_port())
    variables = {"TASKCTL_ENV": "test", "DATABASE_URL": database_url, "BETTER_AUTH_SECRET": SECRET}
    first = wait_until_ready(launch(TASKCTL_PORT=port, **variables))
    environ = bare_environ(tmp_path, TASKCTL_CONFIG_DIR=str(tmp_path), TASKCTL_TIMEOUT="0.2")
    contexts.save_context("here", first.url, user.token, environ=environ)
    assert taskctl("tasks", "add", "Buy milk", environ=environ).code == 0
    assert stop(first) == 0

    kept = taskctl("tasks", "add", "Buy bread", environ=environ)
    assert (kept.code, kept.out.split("\t")[:3]) == (0, ["new1", "waiting", "Buy bread"])
    assert kept.err.splitlines()[-1] == "Kept: will be sent when the server answers again (1 waiting)"
    assert taskctl("tasks", "done", "new1", "1", "-q", environ=environ).out == "new1\n1\n"
    kept = json.loads(taskctl("tasks", "edit", "1", "--title", "Buy oat milk", "--json", environ=environ).out)
    assert (kept["id"], kept["waiting"], kept["did"], kept["title"]) == (1, 4, "edit", "Buy oat milk")
    listed = taskctl("tasks", "list", environ=environ)
    assert (listed.code, listed.out, "4 changes wait to be sent" in listed.err) == (8, "", True)
    synced = taskctl("tasks", "sync", environ=environ)
    assert (synced.code, "4 waiting." in synced.err) == (8, True)

    second = wait_until_ready(launch(TASKCTL_PORT=port, **variables))
    assert second.url == first.url
    listed = taskctl("tasks", "list", environ=environ)
    rows = [line.split("\t")[:3] for line in listed.out.splitlines()]
    assert rows == [["1", "completed", "Buy oat milk"], ["2", "completed", "Buy bread"]]
    assert listed.err == "Sent: 4 changes that waited; new1 is task 2.\n"
    assert taskctl("tasks", "reopen", "new1", "-q", environ=environ).out == "2\n"
    assert taskctl("tasks", "done", "new2", environ=environ).code == 5
    assert taskctl("tasks", "list", "-q", environ=environ).err == ""


def test_never(environ, cable, tmp_path):
    """With TASKCTL_OFFLINE=never nothing is kept and the exit code is 8; another word is wrong."""
    cable.cut()
    # Nor is it with a token that does not say whose it is.
    for variable in ({"TASKCTL_OFFLINE": "never"}, {"TASKCTL_TOKEN": "opaque"}):
        done = taskctl("tasks", "add", "T", environ=environ | variable)
        assert (done.code, done.out, "(server_unreachable)" in done.err) == (8, "", True)
    assert taskctl("tasks", "add", "T", environ=environ | {"TASKCTL_OFFLINE": "no"}).code == 2
    assert [path.name for path in (tmp_path / "config").iterdir() if path.is_dir()] == []


def test_what_is_refused_is_shown_and_decided_by_a_person(environ, cable, api):
    """`sync` ends with 6 while something is refused; `--list` shows both sides for --retry or --drop."""
    for title in ("one", "two", "three"):
        api.post("/tasks", json={"title": title})
    cable.cut()
    with opened(environ) as desk:
        for number in (1, 2):
            desk.edit_task(number, {"title": f"mine {number}"})
        desk.complete_task(1)
        desk.complete_task(3)
    cable.mend()
    for number in (1, 2):
        api.patch(f"/tasks/{number}", json={"title": f"theirs {number}"})

    done = taskctl("tasks", "sync", environ=environ)
    assert done.code == 6
    assert "Refused: edit 1  title: mine 1. The task has been changed since" in done.err
    assert done.err.splitlines()[-2].startswith("3 waiting.")
    assert done.err.splitlines()[-1] == "Sent: 1 change that waited."
    assert api.get("/tasks/3").json()["completed"]
    listed = json.loads(taskctl("tasks", "sync", "--list", "--json", environ=environ).out)
    refused = {each["waiting"]: each["refused"] and each["refused"]["theirs"] for each in listed}
    assert refused == {1: {"title": "theirs 1"}, 2: {"title": "theirs 2"}, 3: None}

    done = taskctl("tasks", "sync", "--drop", "2", environ=environ)
    assert (done.code, done.err) == (0, "Given up: edit 2  title: mine 2\n")
    assert taskctl("tasks", "sync", "--retry", environ=environ).code == 0
    assert api.get("/tasks/2").json()["title"] == "theirs 2"
    task = api.get("/tasks/1").json()
    assert (task["title"], task["completed"]) == ("mine 1", True)
    assert taskctl("tasks", "sync", "--list", environ=environ).out == ""
    assert taskctl("tasks", "sync", "--drop", "2", environ=environ).code == 2


def test_what_depends_on_the_task_is_not_kept(environ, cable, api):
    """A tag is added to those that the server knows: without it nothing is kept, and that is said of each."""
    for title in ("one", "two"):
        api.post("/tasks", json={"title": title})
    cable.cut()
    done = taskctl("tasks", "edit", "1-2", "+urgent", environ=environ)
    assert (done.code, done.out, done.err.count("Nothing is kept: tags")) == (8, "", 2)
    assert taskctl("tasks", "sync", "--list", "-q", environ=environ).out == ""


# Once, and in order


def test_the_order_and_the_tasks_are_kept(environ, cable, api):
    """Changes of one task follow one another, also of one that was made offline; each has its effect once."""
    api.post("/tasks", json={"title": "old"})
    cable.cut()
    with opened(environ) as desk:
        new = desk.create_task("new", content={"description": "d"})
        assert isinstance(new, Waiting)
        desk.edit_task(new.subject, {"title": "newer"})
        desk.complete_task(new.subject)
        desk.edit_task(1, {"title": "older"}, if_version=1)
        desk.edit_task(1, {"description": "also"}, if_version=1)
        desk.delete_task(1)
        with pytest.raises(TaskNotFound, match="no task new1 at"):
            desk.resolved("new1")
    cable.mend()
    assert [each.error for each in send(environ)] == [None] * 6
    task = api.get("/tasks/2").json()
    assert (task["title"], task["description"], task["completed"], task["version"]) == ("newer", "d", True, 3)
    assert api.get("/tasks/1").status_code == 404


SENDING = """
import os, signal, sys
from taskctl.client import Client
from taskctl.contexts import Flags, resolve
from taskctl.desk import Desk

left = int(sys.argv[1])
def settle(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

settings = resolve(Flags())
with Desk(Client(settings.server, settings.token), settings, sends=False) as desk:
    desk._settle = settle
    desk.send_waiting(desk.outbox())
"""


def test_killed_between_the_answer_and_the_removal(environ, cable, api):
    """A process that ends there leaves a change to be sent again, with no effect; whatever change it is."""
    for title in ("one", "two"):
        api.post("/tasks", json={"title": title})
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("new", content={})
        desk.edit_task(1, {"title": "changed"})
        desk.complete_task("new1")
        desk.complete_task(1)
        desk.delete_task(2)
    cable.mend()
    for deaths in range(5):  # each sends once more what the one before it has sent, and then one further
        command = [sys.executable, "-c", SENDING, "1" if deaths == 0 else "2"]
        assert subprocess.run(command, env=environ, check=False).returncode == -signal.SIGKILL
    assert [each.error for each in send(environ)] == [None]
    tasks = api.get("/tasks").json()["items"]
    assert [(task["title"], task["completed"], task["version"]) for task in tasks] == [
        ("changed", True, 3),
        ("new", True, 2),
    ]
    assert box_of(environ).load().waiting == ()


def test_an_answer_that_was_lost(environ, cable, api):
    """What the server may have done already is sent again with the same key and changes nothing more."""
    api.post("/tasks", json={"title": "one"})
    cable.loses_answers = True
    with opened(environ) as desk:
        assert isinstance(desk.create_task("new", content={}), Waiting)
    assert [each.tried for each in box_of(environ).load().waiting] == [True]
    cable.cut()
    cable.mend()
    assert [each.error for each in send(environ)] == [None]
    assert [task["title"] for task in api.get("/tasks").json()["items"]] == ["one", "new"]


def test_two_that_send_at_once(environ, cable, api):
    """Processes that send the same outbox at the same time take turns: each change is made once."""
    cable.cut()
    with opened(environ) as desk:
        for number in range(10):
            desk.create_task(f"T{number}", content={})
            desk.complete_task(f"new{2 * number + 1}")
    cable.mend()
    command = [sys.executable, "-c", SENDING, "0"]
    processes = [subprocess.Popen(command, env=environ) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    tasks = api.get("/tasks").json()["items"]
    assert [(task["title"], task["version"]) for task in tasks] == [(f"T{number}", 2) for number in range(10)]
    assert box_of(environ).load().waiting == ()


# What is kept stays kept


KEEPING = """
import sys
from pathlib import Path
from taskctl.outbox import Outbox
box = Outbox(Path(sys.argv[1]), "http://localhost", "alice")
for number in range(int(sys.argv[2])):
    print(box.keep({"op": "delete", "id": number + 1}, tried=False).number, flush=True)
"""


def test_processes_at_once_lose_nothing(tmp_path):
    """Five processes keep twenty changes each: a hundred wait, each under a number of its own."""
    command = [sys.executable, "-c", KEEPING, str(tmp_path), "20"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(5)]
    told = [int(line) for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0] * 5
    waiting = Outbox(tmp_path, "http://localhost", "alice").load().waiting
    assert sorted(told) == [each.number for each in waiting] == list(range(1, 101))
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_killed_while_it_writes(tmp_path):
    """Whatever was said to be kept is there after a kill in the middle of a write."""
    box = Outbox(tmp_path, "http://localhost", "alice")
    for reads in (1, 7, 20):
        command = [sys.executable, "-c", KEEPING, str(tmp_path), "1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            lines = [process.stdout.readline() for _ in range(reads)]
            process.kill()
            told = [int(line) for line in [*lines, *process.stdout.read().splitlines()]]
        assert set(told) <= {each.number for each in box.load().waiting}
    assert box.keep({"op": "delete", "id": 1}, tried=False).number > told[-1]


def test_a_full_disk(tmp_path):
    """When nothing more can be written, the error says so, and what was kept before is there."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    box = Outbox(folder, "http://localhost", "alice")
    try:
        box.keep({"op": "create", "task": {"title": "t" * 5000}, "key": "k"}, tried=False)
        before = box.load()
        with pytest.raises(LocalError, match="No space left"):
            box.keep({"op": "create", "task": {"title": "t" * 9000}, "key": "l"}, tried=False)
        assert box.load() == before
        assert len(list(folder.iterdir())) == 2
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - wherever it is


GOOD = {
    "version": 1,
    "server": "http://localhost",
    "user": "alice",
    "last": 3,
    "sent": {},
    "waiting": [],
}
ENTRY = {"number": 3, "kept_at": "2026-11-22T20:00:00Z", "tried": False, "refused": None}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{bad",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        *(
            json.dumps(GOOD | change).encode()
            for change in (
                {"user": "bob"},
                {"last": None},
                {"waiting": [{}]},
                {"waiting": [ENTRY | {"operation": {"op": "delete", "id": "5"}}]},
                {"waiting": [ENTRY | {"operation": {"op": "delete", "id": 5}, "kept_at": "now"}]},
                {"waiting": [ENTRY | {"operation": {"op": "delete", "id": 5}}] * 2},
            )
        ),
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path, content):
    """What cannot be understood is named in the error and put aside as it is; then the outbox works again."""
    box = Outbox(tmp_path, "http://localhost", "alice")
    box.keep({"op": "delete", "id": 1}, tried=False)
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(content)
    with pytest.raises(LocalError, match=r"damaged\. It is set aside as .+\.damaged-"):
        box.load()
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes() == content
    assert box.keep({"op": "delete", "id": 1}, tried=False).number == 1


def test_a_newer_release_s_file_stays(tmp_path):
    """A file of a release to come is no damage: it is left alone, and the error says what to do."""
    box = Outbox(tmp_path, "http://localhost", "alice")
    box.keep({"op": "delete", "id": 1}, tried=False)
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps(GOOD | {"version": 2}))
    with pytest.raises(LocalError, match="newer taskctl"):
        box.load()
    assert json.loads(file.read_text())["version"] == 2


# Whose it is, and what is not kept


def test_another_user_s_changes_are_not_sent(environ, cable, server, api):
    """A context that is another user's or another server's now sends nothing of what was kept before."""
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("for the first user", content={})
    cable.mend()
    other = make_user()
    contexts.save_context("here", cable.url, other.token, environ=environ)
    assert send(environ) == []
    contexts.save_context("here", server.url, other.token, environ=environ)
    assert send(environ) == []
    assert api.get("/tasks").json()["items"] == []


def test_a_token_that_is_refused_keeps_all_waiting(environ, cable, user, api):
    """What the server says about the token is no verdict on a change: it waits for a better token."""
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("T", content={})
    cable.mend()
    for token in (make_user(user.id, scope="tasks:read").token, make_user(user.id, lifetime=-600).token):
        contexts.save_context("here", cable.url, token, environ=environ)
        assert taskctl("tasks", "sync", environ=environ).code == 4
    assert [each.refused for each in box_of(environ).load().waiting] == [None]
    contexts.save_context("here", cable.url, make_user(user.id, scope="tasks:write").token, environ=environ)
    with opened(environ, sends=False) as desk:
        desk.away = ServerUnreachable()
        desk.complete_task("new1")
    assert [each.error for each in send(environ)] == [None, None]
    assert [task["completed"] for task in api.get("/tasks").json()["items"]] == [True]


def test_what_can_never_be_sent_is_refused_at_once(environ, cable):
    """A title that is none, and a task that is not known, are errors while the server is away, too."""
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("T", content={})
        for title in ("", " ", "x" * 201):
            with pytest.raises(UsageInvalid, match="1 to 200 characters"):
                desk.create_task(title, content={})
        with pytest.raises(TaskNotFound):
            desk.complete_task("new7")
        assert len(desk.waiting()) == 1


def test_what_the_server_refuses_blocks_nothing_else(environ, cable, api):
    """Invalid content, a missing task, a key of other content: each stays with its reason, the rest goes."""
    api.post("/tasks", json={"title": "one"}, headers={"Idempotency-Key": "used"})
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("T", content={"description": "d" * 10_001})
        desk.complete_task("new1")
        desk.complete_task(77)
        desk.create_task("T", content={}, idempotency_key="used")
        desk.delete_task(78)
        desk.complete_task(1)
    cable.mend()
    codes = [each.error and each.error.code for each in send(environ)]
    assert codes == ["validation_failed", "task_not_found", "idempotency_key_reused", None, None]
    assert send(environ) == []
    assert [(each.number, bool(each.refused)) for each in box_of(environ).load().waiting] == [
        (1, True),
        (2, False),
        (3, True),
        (4, True),
    ]
    with opened(environ) as desk:
        assert [each.number for each in desk.drop(1)] == [1, 2]


def test_it_is_bounded(environ, cable, monkeypatch):
    """So many changes wait, and no more."""
    monkeypatch.setattr(outbox, "WAITING_MAX", 2)
    cable.cut()
    with opened(environ) as desk:
        desk.delete_task(1)
        desk.delete_task(2)
        with pytest.raises(LocalError, match="2 changes wait already"):
            desk.delete_task(3)


def test_which_errors_mean_that_the_server_is_away():
    """What is wrong with a request, a token or this machine is an error at once, and nothing is kept."""
    away = {error.code for error in catalogue() if outbox.is_away(error())}
    assert away == {
        "auth_keys_unavailable",
        "database_unavailable",
        "not_ready",
        "overloaded",
        "server_failed",
        "server_timed_out",
        "server_unreachable",
        "shutting_down",
        "statement_timeout",
    }


def test_what_an_editor_has_read_is_known(environ, cable, api):
    """A change upon a task that was read is in conflict with any other since, whatever the clocks say."""
    task = api.post("/tasks", json={"title": "one"}).json()
    api.patch("/tasks/1", json={"title": "theirs"})
    cable.cut()
    with opened(environ) as desk:
        desk.edit_task(1, {"title": "mine"}, before=task)
    cable.mend()
    (delivered,) = send(environ)
    assert delivered.error is not None
    assert delivered.error.detail == "The task is at version 2 and not at 1."


@pytest.fixture
def scripted(environ, user) -> Iterator[Scripted]:
    """A server that answers by a script, in place of the one of `environ`."""
    made = Scripted()
    contexts.save_context("here", made.url, user.token, environ=environ)
    yield made
    made.close()


def keep(environ, *changes) -> None:
    """Keep changes, as if the server were away."""
    with opened(environ) as desk:
        desk.away = ServerUnreachable()
        for change in changes:
            change(desk)


def test_a_fault_that_one_change_meets(environ, scripted):
    """A change that the server fails at waits on, with what depends on it; a proxy may hide `/health`."""
    keep(
        environ,
        lambda desk: desk.create_task("one", content={}),
        lambda desk: desk.complete_task("new1"),
        lambda desk: desk.create_task("two", content={}),
    )
    hidden = http(404, b"<p>", Content_Type="text/html")
    scripted.script = [hidden, problem(500, "internal_error"), ok({**TASK, "id": 9}, 201)]
    assert [each.waiting.number for each in send(environ)] == [3]
    assert [seen.json["title"] for seen in scripted.seen[1:]] == ["one", "two"]
    assert [each.number for each in box_of(environ).load().waiting] == [1, 2]


@pytest.mark.parametrize("code", ["quota_exceeded", "insufficient_scope"])
def test_what_is_forbidden(environ, scripted, code):
    """A task that a quota has no room for is refused, and others are sent; what a token lacks stops all."""
    for title in ("one", "two"):
        keep(environ, lambda desk, title=title: desk.create_task(title, content={}))
    scripted.script = [ok({"status": "ok"}), problem(403, code), ok({**TASK, "id": 9}, 201)]
    delivered = send(environ)
    waiting = box_of(environ).load().waiting
    if code == "quota_exceeded":
        assert [each.error and each.error.code for each in delivered] == [code, None]
        assert [(each.number, each.refused and each.refused["code"]) for each in waiting] == [(1, code)]
    else:
        assert delivered == []
        assert [(each.number, each.refused) for each in waiting] == [(1, None), (2, None)]


def test_a_conflict_with_oneself_is_none(environ, scripted):
    """A try that was cut off and has made the change leaves a version that the next try does not meet."""
    keep(environ, lambda desk: desk.edit_task(7, {"title": "T"}))
    conflict, changed = problem(412, "version_conflict"), {**TASK, "title": "T", "version": 4}
    scripted.script = [ok({"status": "ok"}), ok(TASK), CUT, conflict, ok(changed)]
    assert [each.task for each in send(environ)] == [changed]
    assert [seen.headers.get("if-match") for seen in scripted.seen] == [None, None, '"3"', '"3"', None]


def test_a_server_that_goes_away_again(environ, scripted):
    """What was not done waits as before: it may still be given up, and is still in order."""
    keep(environ, lambda desk: desk.delete_task(7), lambda desk: desk.delete_task(8))
    before = box_of(environ).load()
    scripted.script = [ok({"status": "ok"}), ok(TASK), *[problem(503, "overloaded", retry_after="9")] * 2]
    with opened(environ) as desk:
        assert desk.away is not None
        assert desk.away.code == "overloaded"
    assert box_of(environ).load() == before


def test_what_waits_is_shown_in_a_terminal(environ, cable, server):
    """`sync --list` tells each change, why it was refused, and that others wait elsewhere."""
    cable.cut()
    kept = taskctl_in_terminal("tasks", "add", "x" * 5, "-d", "d" * 10_001, environ=environ).out
    assert kept.splitlines()[-3] == "Kept add new1  xxxxx"
    cable.mend()
    send(environ)
    done = taskctl_in_terminal("tasks", "done", "new1", environ=environ)
    assert done.out.splitlines()[-1] == "Kept: will be sent after what it depends on (2 waiting)"
    lines = taskctl_in_terminal("tasks", "sync", "--list", environ=environ).out.splitlines()
    assert [line[:13] for line in lines] == ["  1  add new1", "     refused:", "  2  done new"]
    contexts.save_context("here", server.url, make_user().token, environ=environ)
    said = taskctl_in_terminal("tasks", "sync", "--list", environ=environ).out
    assert re.fullmatch(
        r"Nothing waits to be sent\.\n2 more of user-\S+'s at http://\S+; they are .+\n", said
    )
