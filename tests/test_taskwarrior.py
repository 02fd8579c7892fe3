"""The real Taskwarrior: thousands of its tasks come in, go out, and are the same in an empty one."""

import io
import json
import os
import random
import shutil
import subprocess
import uuid
from zoneinfo import ZoneInfo

import pytest

from better_auth import missing
from taskctl.formats import FORMATS, Record, Source

ZONE = "Europe/Berlin"
SOURCE = Source("tasks.json", ZoneInfo(ZONE))
TASKS = 3000
SETTINGS = """\
confirmation=off
hooks=off
recurrence=on
uda.estimate.type=numeric
uda.client.type=string
uda.seen.type=date
"""


@pytest.fixture
def taskwarrior(tmp_path):
    """Starts Taskwarrior on a folder's data and returns what it prints."""
    if shutil.which("task") is None:
        missing("Taskwarrior is not installed")

    def run(name, *arguments, stdin=None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "taskrc").write_text(f"data.location={folder / 'data'}\n{SETTINGS}")
        environ = {"TASKRC": str(folder / "taskrc"), "HOME": str(folder), "TZ": ZONE, "LANG": "C.UTF-8"}
        command = ["task", "rc.verbose=nothing", *arguments]
        done = subprocess.run(
            command,
            env={**environ, "PATH": os.environ["PATH"]},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def stored(export):
    """The tasks of an export without what Taskwarrior computes; its tags are in no order."""
    return {
        task["uuid"]: {
            name: sorted(value) if name == "tags" else value
            for name, value in task.items()
            if name not in {"id", "urgency"}
        }
        for task in json.loads(export)
    }


def tasks_of_years(chance):
    """What a long life with Taskwarrior leaves: everything that it knows, and what it was taught."""
    ids = [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(TASKS)]
    texts = ["Buy milk", 'Überweisung "x" [1]', "a\\b / c", "long " * 60, "日本", "x, y; z", "=1+1"]
    remarks = ["called", "https://example.com/a?b", "two\nlines", "2026-01-01T00:00:00Z tricky"]
    periods = ["daily", "weekly", "monthly", "P3M", "2weeks", "weekdays", "yearly", "12hours", "quarterly"]
    for number, each in enumerate(ids):
        hour = f"{number // 60 % 24:02}{number % 60:02}"
        task = {
            "uuid": each,
            "description": f"{chance.choice(texts)} {number}",
            "entry": f"20250301T{hour}00Z",
            "modified": f"20250401T{hour}05Z",
            "status": chance.choice(
                ["pending", "pending", "pending", "waiting", "completed", "deleted", "recurring"]
            ),
        }
        day = f"2030{chance.randint(1, 12):02}{chance.randint(1, 28):02}"
        due = chance.choice([f"{day}T{hour}00Z", "20301129T230000Z", "20300629T220000Z"])
        may_have = {
            "tags": chance.sample(["Home", "work", "a_b", "é", "X.y"], chance.randint(1, 3)),
            "due": due,
            "project": chance.choice(["Home", "Home.Garden", "Großes Projekt"]),
            "priority": chance.choice("HML"),
            "annotations": [
                {"entry": f"20250302T{hour}{second:02}Z", "description": chance.choice(remarks)}
                for second in range(chance.randint(1, 3))
            ],
            "estimate": chance.choice([1, 2.5, 3.25]),
            "client": 'ACME "Ltd"',
            "seen": f"20250303T{hour}00Z",
            "unknown": "kept",
            "scheduled": f"{day}T120000Z",
            "depends": [chance.choice(ids[:number])] if number else None,
        }
        task |= {name: value for name, value in may_have.items() if value and chance.random() < 0.3}
        if task["status"] in {"completed", "deleted"}:
            task["end"] = f"20250501T{hour}00Z"
        elif task["status"] == "waiting":
            task["wait"] = "20380101T000000Z"
        elif task["status"] == "recurring":
            task |= {"due": due, "recur": chance.choice(periods)}
        yield task


def test_taskwarrior_there_and_back(taskwarrior):
    """Some thousand tasks of every status are equal in an empty Taskwarrior after they were in taskctl."""
    chance = random.Random(6)  # noqa: S311 - the same tasks every time
    taskwarrior("first", "import", stdin=json.dumps(list(tasks_of_years(chance))))
    export = taskwarrior("first", "export")
    entries = list(FORMATS["taskwarrior"].read(io.BytesIO(export.encode()), SOURCE))
    assert len(entries) >= TASKS
    assert all(isinstance(entry, Record) for entry in entries)
    now = "2026-11-22T10:00:00.000000Z"
    tasks = [
        {
            **entry.content,
            "id": number,
            "user_id": "somebody",
            "completed_at": now if entry.content["completed"] else None,
            "created_at": now,
            "updated_at": now,
            "version": 1,
        }
        for number, entry in enumerate(entries, start=1)
    ]
    taskwarrior("second", "import", stdin="".join(FORMATS["taskwarrior"].write(tasks, SOURCE)))
    assert stored(taskwarrior("second", "rc.recurrence=off", "export")) == stored(export)


def test_own_task_in_taskwarrior(taskwarrior):
    """Taskwarrior keeps what it has no place for, and what it changes comes back changed."""
    task = {
        "id": 7,
        "user_id": "somebody",
        "title": 'Pay "rent" [now]',
        "description": "two\nlines\t\\ and {more}",
        "due_at": "2030-11-30T16:00:00.123456Z",
        "priority": "low",
        "tags": ["bank", "home"],
        "project": "Flat",
        "recurrence": None,
        "time_zone": "America/New_York",
        "extra": {"other": ["é", None, 1.5]},
        "completed": False,
        "completed_at": None,
        "next_id": None,
        "deleted_at": None,
        "version": 2,
        "created_at": "2026-11-01T09:00:00.000001Z",
        "updated_at": "2026-11-22T10:00:00.123456Z",
    }
    [expected] = FORMATS["json"].read(io.BytesIO(json.dumps([task]).encode()), SOURCE)
    taskwarrior("one", "import", stdin="".join(FORMATS["taskwarrior"].write([task], SOURCE)))
    [same] = FORMATS["taskwarrior"].read(io.BytesIO(taskwarrior("one", "export").encode()), SOURCE)
    assert (same.content, same.key) == (expected.content, expected.key)
    taskwarrior("one", "1", "modify", "Pay it", "priority:H", "+new")
    taskwarrior("one", "1", "done")
    [done] = FORMATS["taskwarrior"].read(io.BytesIO(taskwarrior("one", "export").encode()), SOURCE)
    changed = {"title": "Pay it", "priority": "high", "tags": ["bank", "home", "new"], "completed": True}
    kept = {name: value for name, value in expected.content.items() if name != "extra"}
    assert {name: done.content[name] for name in kept} == {**kept, **changed}
    assert done.key == expected.key


def test_own_recurring_task_in_taskwarrior(taskwarrior):
    """Taskwarrior goes on with a recurring task: it makes the next one, and the rest is due after it."""
    task = {
        "title": "Rent",
        "due_at": "2030-12-01",
        "recurrence": "FREQ=MONTHLY",
        "created_at": "2026-11-01T09:00:00Z",
    }
    task |= {"id": 1, "user_id": "u"}
    taskwarrior("two", "import", stdin="".join(FORMATS["taskwarrior"].write([task], SOURCE)))
    taskwarrior("two", "list")
    entries = FORMATS["taskwarrior"].read(io.BytesIO(taskwarrior("two", "export").encode()), SOURCE)
    due = {entry.content["due_at"]: entry.content["recurrence"] for entry in entries}
    assert due == {"2030-12-01": None, "2031-01-01": "FREQ=MONTHLY"}
