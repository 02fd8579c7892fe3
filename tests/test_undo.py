"""Taking changes back: the journal, and `taskctl tasks undo`."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cable import Cable, opened
from conftest import Server, User, logged_in, make_user, taskctl, taskctl_in_terminal
from taskctl import contexts, journal
from taskctl.desk import Undone
from taskctl.errors import LocalError, ServerUnreachable, TaskNotFound, VersionConflict


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


def undo(environ: dict[str, str]) -> list[Undone]:
    """Take the last change back, as a command of its own."""
    with opened(environ) as desk:
        return list(desk.undo())


def content(task: dict[str, Any]) -> dict[str, Any]:
    """What a person sees of a task, without when it was changed and how often."""
    return {name: task[name] for name in ("id", "title", "description", "completed")}


def test_each_command_is_taken_back(environ, api):
    """add, done, reopen and edit are taken back, the last one first; what became of the task is said."""
    assert taskctl("tasks", "add", "Buy milk", "-d", "two", environ=environ).code == 0
    states = [content(api.get("/tasks/1").json())]
    for command in (
        ["done", "1"],
        ["reopen", "1"],
        ["edit", "1", "--title", "Buy tea", "--clear-description"],
    ):
        assert taskctl("tasks", *command, environ=environ).code == 0
        states.append(content(api.get("/tasks/1").json()))
    assert states[-1] == {"id": 1, "title": "Buy tea", "description": None, "completed": False}
    said = []
    for state in reversed(states[:-1]):
        said.append(taskctl("tasks", "undo", environ=environ).out)
        assert content(api.get("/tasks/1").json()) == state
    assert said == ["1\tchanged back\tBuy milk\n", "1\tdone\tBuy milk\n", "1\treopened\tBuy milk\n"]
    assert taskctl_in_terminal("tasks", "undo", environ=environ).out == "Deleted 1  Buy milk\n"
    assert api.get("/tasks/1").status_code == 404
    done = taskctl("tasks", "undo", environ=environ)
    assert (done.code, "has made no change that could be taken back" in done.err) == (1, True)


def test_a_task_comes_back_from_the_trash(environ, api):
    """`rm` is taken back, and then what was done before it, too; several ids at once."""
    for title in ("one", "two"):
        api.post("/tasks", json={"title": title})
    assert taskctl("tasks", "edit", "2", "--title", "second", environ=environ).code == 0
    assert taskctl("tasks", "rm", "1", "2", environ=environ).code == 0
    assert taskctl("tasks", "undo", environ=environ).out == "2\trestored\tsecond\n1\trestored\tone\n"
    assert [each.error for each in undo(environ)] == [None]
    assert [task["title"] for task in api.get("/tasks").json()["items"]] == ["one", "two"]


def test_every_field_is_put_back(environ, api):
    """Whatever members an edit has changed get their values back, and no others are touched."""
    fields = {
        "due_at": "2030-01-31",
        "tags": ["a", "b"],
        "priority": "high",
        "project": "p",
        "extra": {"x": 1},
    }
    api.post("/tasks", json={"title": "one", **fields})
    with opened(environ) as desk:
        desk.edit_task(1, {"due_at": None, "tags": [], "priority": "none", "project": None})
    assert [each.error for each in undo(environ)] == [None]
    task = api.get("/tasks/1").json()
    assert {name: task[name] for name in fields} == fields


def test_the_next_one_of_a_recurring_task_goes_with_it(environ, api):
    """Undoing `done` trashes the next task that it made; done again, that one is back; undo works again."""
    api.post("/tasks", json={"title": "daily", "due_at": "2030-01-31", "recurrence": "FREQ=DAILY"})
    for _ in range(2):
        with opened(environ) as desk:
            done = desk.complete_task(1)
        assert isinstance(done, dict)
        pending = api.get("/tasks", params={"status": "pending"}).json()["items"]
        assert [task["id"] for task in pending] == [done["next_id"]] == [2]
        assert [(each.error, each.left) for each in undo(environ)] == [(None, ())]
        assert [task["id"] for task in api.get("/tasks").json()["items"]] == [1]


def test_the_next_one_stays_where_somebody_has_changed_it(environ, api):
    """A next task that was edited meanwhile is left, and the command says so."""
    api.post("/tasks", json={"title": "daily", "due_at": "2030-01-31", "recurrence": "FREQ=DAILY"})
    with opened(environ) as desk:
        desk.complete_task(1)
    api.patch("/tasks/2", json={"title": "theirs"})
    done = taskctl("tasks", "undo", environ=environ)
    assert (done.code, done.err) == (0, "Task 2, which came of it, has been changed since and stays.\n")
    assert [task["completed"] for task in api.get("/tasks").json()["items"]] == [False, False]


def test_what_one_command_did_is_one_change(environ, api):
    """Several ids are taken back together; what the command did not change stays as it was."""
    for title in ("one", "two", "three"):
        api.post("/tasks", json={"title": title, "completed": title == "two"})
    assert taskctl("tasks", "done", "1", "2", "3", "9", environ=environ).code == 5
    done = taskctl("tasks", "undo", "--json", environ=environ)
    assert [(each["id"], each["undone"]) for each in json.loads(done.out)] == [(3, "done"), (1, "done")]
    assert [task["completed"] for task in api.get("/tasks").json()["items"]] == [False, True, False]


def test_what_somebody_has_changed_since_stays(environ, api):
    """Such a task is refused with 6, the others are taken back; the next undo asks again, until `--skip`."""
    for title in ("one", "two"):
        api.post("/tasks", json={"title": title})
    assert taskctl("tasks", "edit", "2", "--title", "second", environ=environ).code == 0
    assert taskctl("tasks", "done", "1", "2", environ=environ).code == 0
    api.patch("/tasks/1", json={"title": "theirs"})
    done = taskctl("tasks", "undo", "-q", environ=environ)
    assert (done.code, done.out) == (6, "2\n")
    assert "taskctl: 1: The task has been changed since, and stays as it is. (version_conflict" in done.err
    assert api.get("/tasks/1").json()["completed"]
    with opened(environ) as desk:
        assert [type(each.error) for each in desk.undo()] == [VersionConflict]
    done = taskctl("tasks", "undo", "--skip", environ=environ)
    assert (done.code, done.err) == (0, "Left as it is: done 1\n")
    assert taskctl("tasks", "undo", environ=environ).code == 0
    assert api.get("/tasks/2").json()["title"] == "two"


def test_what_is_so_already(environ, api):
    """Where somebody else has done what an undo is to do, all is well; a task that is gone stays gone."""
    with opened(environ) as desk:
        desk.create_task("one", content={})
    with opened(environ) as desk:
        desk.edit_task(1, {"title": "first"})
    with opened(environ) as desk:
        desk.complete_task(1)
    api.patch("/tasks/1/complete", json={"completed": False})
    assert [each.error for each in undo(environ)] == [None]
    api.delete("/tasks/1")
    assert [type(each.error) for each in undo(environ)] == [TaskNotFound]
    with opened(environ) as desk:
        assert [part.did for part in desk.forget_last_change().parts] == ["edit"]
    assert [each.error for each in undo(environ)] == [None]


def test_another_terminal_s_changes_are_its_own(environ, api):
    """A terminal takes back what it did itself, whatever others have done in between."""
    api.post("/tasks", json={"title": "one"})
    with opened(environ) as desk:
        desk.edit_task(1, {"title": "here"})
    command = [sys.executable, "-m", "taskctl", "tasks"]
    for words, code in ((["undo"], 1), (["add", "elsewhere"], 0)):
        done = subprocess.run([*command, *words], env=environ, start_new_session=True, check=False)
        assert done.returncode == code
    assert [each.part.did for each in undo(environ)] == ["edit"]
    assert [task["title"] for task in api.get("/tasks").json()["items"]] == ["one", "elsewhere"]


def test_another_user_s_changes_are_not_taken_back(environ, cable):
    """A context that is another user's now has nothing of what was done before."""
    with opened(environ) as desk:
        desk.create_task("one", content={})
    contexts.save_context("here", cable.url, make_user().token, environ=environ)
    with pytest.raises(LocalError, match="no change"):
        undo(environ)


# Together with the outbox


def test_what_still_waits_is_just_given_up(environ, cable, api):
    """What the server never got is taken out of the outbox, without the server."""
    api.post("/tasks", json={"title": "one"})
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("new", content={})
    with opened(environ) as desk:
        desk.complete_task(1)
        desk.edit_task("new1", {"title": "newer"})
    done = taskctl_in_terminal("tasks", "undo", environ=environ)
    assert (done.code, done.out) == (0, "Given up edit new1  newer\nGiven up done 1\n")
    assert [each.part.did for each in undo(environ)] == ["add"]
    with pytest.raises(LocalError, match="no change"):
        undo(environ)
    cable.mend()
    with opened(environ) as desk:
        assert desk.waiting() == []
    assert [task["version"] for task in api.get("/tasks").json()["items"]] == [1]


def test_what_was_sent_meanwhile_is_taken_back_at_the_server(environ, cable, api):
    """A change that waited and was sent is undone like any other, to what the task was before."""
    api.post("/tasks", json={"title": "one"})
    cable.cut()
    with opened(environ) as desk:
        desk.create_task("new", content={})
        desk.edit_task(1, {"title": "changed"})
        desk.complete_task(1)
    cable.mend()
    with opened(environ):
        pass
    assert [task["title"] for task in api.get("/tasks").json()["items"]] == ["changed", "new"]
    assert [each.error for each in undo(environ)] == [None] * 3
    assert [content(task) for task in api.get("/tasks").json()["items"]] == [
        {"id": 1, "title": "one", "description": None, "completed": False}
    ]


def test_what_the_server_may_have_is_not_given_up(environ, cable, api):
    """While nobody knows whether a create has arrived it stays; when the server answers it is taken back."""
    cable.loses_answers = True
    with opened(environ) as desk:
        desk.create_task("T", content={})
    cable.cut()
    assert [type(each.error) for each in undo(environ)] == [ServerUnreachable]
    cable.mend()
    assert [each.error for each in undo(environ)] == [None]
    assert api.get("/tasks").json()["items"] == []


def test_nothing_is_lost_when_the_server_is_away(environ, cable, api):
    """An undo that cannot reach the server ends with 8, and works afterwards."""
    with opened(environ) as desk:
        desk.create_task("T", content={})
    cable.cut()
    assert taskctl("tasks", "undo", environ=environ).code == 8
    cable.mend()
    assert taskctl("tasks", "undo", environ=environ).code == 0
    assert api.get("/tasks").json()["items"] == []


# The journal's file


def test_the_file_is_bounded_and_private(environ, tmp_path, monkeypatch):
    """The last changes are remembered, the earlier forgotten; only the owner reads them."""
    monkeypatch.setattr(journal, "CHANGES_MAX", 2)
    for title in ("one", "two", "three"):
        with opened(environ) as desk:
            desk.create_task(title, content={})
    assert [undo(environ)[0].part.title for _ in range(2)] == ["three", "two"]
    with pytest.raises(LocalError, match="no change"):
        undo(environ)
    for file in (tmp_path / "config" / "journal").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"{bad",
        lambda text: text.replace(b'"did"', b'"done"'),
        lambda text: text.replace(b'"delete"', b'"explode"'),
        lambda text: text.replace(b'"kept": null', b'"kept": "x"'),
        lambda text: text.replace(b'"terminal": "', b'"terminal": null, "x": "'),
    ],
)
def test_a_damaged_journal_stops_no_change(environ, tmp_path, damage):
    """A change is made although it cannot be noted, and the command says so; the file is set aside."""
    with opened(environ) as desk:
        desk.create_task("one", content={})
    (file,) = (tmp_path / "config" / "journal").glob("*.json")
    file.write_bytes(damage(file.read_bytes()))
    unnoted: list[LocalError] = []
    with opened(environ, on_unnoted=unnoted.append) as desk:
        desk.create_task("two", content={})
    assert ["damaged" in error.detail for error in unnoted] == [True]
    with opened(environ) as desk:
        desk.create_task("three", content={})
    assert undo(environ)[0].part.title == "three"


def test_what_a_task_was_like_may_be_unknown(environ, cable, user):
    """With a token that may only write a change is made, and `undo` says that it cannot be taken back."""
    contexts.save_context("here", cable.url, make_user(user.id, scope="tasks:write").token, environ=environ)
    with opened(environ) as desk:
        desk.create_task("one", content={})
        desk.complete_task(1)
    with opened(environ) as desk:
        assert [each.error and each.error.detail for each in desk.undo()] == [
            "It cannot be taken back: what the task was like before is not known.",
            "The task has been changed since, and stays as it is.",
        ]
