"""`taskctl tasks export|import` against a real server: nothing lost, nothing twice, and bad lines told."""

import json
import subprocess
import sys

import httpx
import psycopg
import pytest

from conftest import SECRET, bare_environ, make_user, taskctl, taskctl_in_terminal, until, wait_until_ready

TASKS = "/api/v1/me/tasks"
READ_ONLY = {"id", "user_id", "version", "created_at", "updated_at", "completed_at", "next_id", "extra"}
TAUGHT = [
    {"title": "Buy milk"},
    {
        "title": "=Pay; the, rent",
        "description": "two\nlines",
        "due_at": "2030-11-30",
        "priority": "high",
        "tags": ["home", "bank"],
        "project": "Flat upstairs",
        "recurrence": "FREQ=MONTHLY",
        "extra": {"other": [1, None, "é"]},
    },
    {"title": "Call", "due_at": "2030-11-30T17:00:00+01:00", "time_zone": "Europe/Berlin", "completed": True},
]


@pytest.fixture
def person(server, tmp_path):
    """Makes people: the environment of each, and their client of the API."""
    clients = []

    def make():
        user = make_user()
        folder = tmp_path / user.id
        folder.mkdir()
        environ = bare_environ(
            folder, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token, TZ="Europe/Berlin"
        )
        clients.append(httpx.Client(base_url=server.url, headers=user.headers))
        return environ, clients[-1]

    yield make
    for client in clients:
        client.close()


def listed(api):
    """All tasks of somebody."""
    return api.get(TASKS, params={"limit": 200}).json()["items"]


def writable(task):
    """What a person writes of a task."""
    return {name: value for name, value in task.items() if name not in READ_ONLY}


def counts(done):
    """What an import in a pipe says."""
    return {name: int(count) for name, count in (line.split("\t") for line in done.out.splitlines())}


@pytest.mark.parametrize("form", ["json", "ndjson", "csv", "todo.txt", "ics", "taskwarrior"])
def test_round_trip_through_two_accounts(person, tmp_path, form):
    """What one person exports another one imports whole, and once however often."""
    (environ, api), (other_environ, other_api) = person(), person()
    for task in TAUGHT:
        assert api.post(TASKS, json=task).status_code == 201
    file = tmp_path / f"export.{form}"
    done = taskctl("tasks", "export", "--format", form, "--output", str(file), environ=environ)
    assert (done.code, done.out, done.err) == (0, "", "")
    done = taskctl("tasks", "import", "--format", form, str(file), environ=other_environ)
    assert (done.code, done.err) == (0, "")
    assert counts(done) == {"imported": 3, "existing": 0, "differing": 0, "refused": 0}
    assert [writable(task) for task in listed(other_api)] == [writable(task) for task in listed(api)]
    again = taskctl("tasks", "import", "--format", form, str(file), environ=other_environ)
    assert counts(again) == {"imported": 0, "existing": 3, "differing": 0, "refused": 0}
    assert len(listed(other_api)) == 3


def test_taskwarrior_through_the_server(person):
    """Tasks of Taskwarrior's are the same when they were in the database, and changed where they were."""
    environ, api = person()
    tasks = [
        {
            "uuid": "11111111-1111-4111-8111-111111111111",
            "description": "word " * 60,
            "status": "waiting",
            "entry": "20261101T100000Z",
            "modified": "20261102T100000Z",
            "wait": "20300101T000000Z",
            "tags": ["Home", "x.y"],
            "annotations": [{"entry": "20261103T100000Z", "description": "called\ntwice"}],
            "estimate": 2.5,
            "depends": ["22222222-2222-4222-8222-222222222222"],
        },
        {
            "uuid": "22222222-2222-4222-8222-222222222222",
            "description": "rent",
            "status": "recurring",
            "entry": "20261101T100000Z",
            "modified": "20261102T100000Z",
            "due": "20301130T230000Z",
            "recur": "monthly",
            "mask": "+-",
            "until": "20311130T230000Z",
        },
        {
            "uuid": "33333333-3333-4333-8333-333333333333",
            "description": "gone",
            "status": "deleted",
            "entry": "20261101T100000Z",
            "modified": "20261102T100000Z",
            "end": "20261102T100000Z",
            "project": "Home.Garden",
        },
    ]
    done = taskctl(
        "tasks", "import", "-", "--format", "taskwarrior", environ=environ, given=json.dumps(tasks)
    )
    assert (done.code, done.err) == (
        0,
        "-:1: the title was cut to 200 characters; all of it starts the description\n",
    )
    done = taskctl("tasks", "export", "--format", "taskwarrior", environ=environ)
    assert json.loads(done.out) == tasks
    assert api.patch(f"{TASKS}/1", json={"title": "short"}).status_code == 200
    first, *rest = json.loads(taskctl("tasks", "export", "--format", "taskwarrior", environ=environ).out)
    assert (first["description"], first["wait"], rest) == ("short", "20300101T000000Z", tasks[1:])


def test_bad_lines(person, tmp_path):
    """The lines that are refused are told by number, by file and by server, and the rest is imported."""
    environ, api = person()
    file = tmp_path / "some.csv"
    file.write_bytes(b"title,due_at,tags\na,,x y\nb,never\n,2030-11-30\nc\xff\nd,2030-11-30\n")
    strict = taskctl("tasks", "import", "--strict", str(file), environ=environ)
    assert (strict.code, listed(api)) == (2, [])
    assert strict.err.splitlines()[-1] == (
        "taskctl: Nothing is imported, as 3 of the entries are refused. (usage_invalid)"
    )
    done = taskctl("tasks", "import", "--json", str(file), environ=environ)
    assert done.code == 2
    assert json.loads(done.out) == {"imported": 2, "existing": 0, "differing": 0, "refused": 3}
    assert done.err.splitlines() == [
        f"{file}:2: the tag 'x y' became 'x-y'",
        f"{file}:3: refused: the due date 'never' is neither a date nor a time with its offset",
        f"{file}:4: refused: it has no title",
        f"{file}:5: refused: not UTF-8: byte 0xff at position 2",
    ]
    assert [(task["title"], task["tags"]) for task in listed(api)] == [("a", ["x-y"]), ("d", [])]


def test_terminal(person, tmp_path):
    """A person is told in a sentence what has become of the file."""
    environ, _ = person()
    file = tmp_path / "todo.txt"
    file.write_bytes(b"(A) one\ntwo\n\xff\n")
    done = taskctl_in_terminal("tasks", "import", str(file), environ=environ)
    assert done.out.replace("\n", "").endswith("not UTF-8: byte 0xff at position 12 imported; 1 refused.")
    assert taskctl_in_terminal("tasks", "import", str(file), environ=environ).out.endswith(
        "0 imported; 2 were there already; 1 refused.\n"
    )


def test_dry_run_sends_nothing(person):
    """What would be imported is printed, without asking the server or for a token."""
    environ, api = person()
    given = '{"title": "a\\tb", "completed": true}\n{"title": "c", "due_at": "2030-11-30"}\n5\n'
    arguments = ("tasks", "import", "--dry-run", "-")
    done = taskctl(*arguments, environ={**environ, "TASKCTL_TOKEN": ""}, given=given)
    assert done.out == "-:1\tcompleted\ta b\t\n-:2\tpending\tc\t2030-11-30\n"
    assert (done.code, done.err.splitlines()[-1]) == (2, "-:3: refused: not a JSON object")
    done = taskctl(*arguments, "--json", environ=environ, given=given)
    assert [(each["line"], each["title"]) for each in json.loads(done.out)] == [(1, "a b"), (2, "c")]
    assert (
        json.loads(taskctl(*arguments, "--json", "--format", "json", environ=environ, given="[]").out) == []
    )
    assert listed(api) == []


def test_content_that_has_changed(person):
    """A task whose source was changed since is left as it is, and told."""
    environ, api = person()
    task = {"uuid": "11111111-1111-4111-8111-111111111111", "description": "a", "status": "pending"}
    for description in ("a", "b"):
        given = json.dumps([{**task, "description": description}])
        done = taskctl("tasks", "import", "-f", "taskwarrior", "-", environ=environ, given=given)
    assert done.code == 0
    assert counts(done) == {"imported": 0, "existing": 0, "differing": 1, "refused": 0}
    assert done.err == "-:1: imported before, and not the same any more; left as it is\n"
    assert [each["title"] for each in listed(api)] == ["a"]


def test_deleted_task_comes_back_from_an_export(person):
    """A task that was deleted after the export is imported again; what is there still is not."""
    environ, api = person()
    for title in ("kept", "deleted"):
        api.post(TASKS, json={"title": title})
    export = taskctl("tasks", "export", environ=environ).out
    api.delete(f"{TASKS}/2")
    done = taskctl("tasks", "import", "-", environ=environ, given=export)
    assert counts(done) == {"imported": 1, "existing": 1, "differing": 0, "refused": 0}
    assert [task["title"] for task in listed(api)] == ["kept", "deleted"]


def test_server_that_goes_away(start_server, launch, database_url, tmp_path):
    """An import that the server's end cuts off goes on when it is run again, and no task is there twice."""
    user = make_user()
    server = wait_until_ready(launch(DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET))
    environ = bare_environ(tmp_path, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token, TASKCTL_TIMEOUT="1")
    file = tmp_path / "many.ndjson"
    file.write_text(
        "".join(f'{{"title": "{number}", "description": "{"x" * 700}"}}\n' for number in range(3000))
    )
    command = [sys.executable, "-m", "taskctl", "tasks", "import", str(file)]
    with (
        psycopg.connect(database_url, autocommit=True) as database,
        subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        count = "SELECT count(*) FROM task WHERE user_id = %s"
        until(lambda: database.execute(count, [user.id]).fetchone()[0])
        server.process.kill()
        _, told = process.communicate(timeout=60)
        assert process.returncode == 8, told
        done = database.execute(count, [user.id]).fetchone()[0]
        assert 0 < done < 3000
        assert "Run the same again to go on" in told
        other = start_server(DATABASE_URL=database_url, BETTER_AUTH_SECRET=SECRET)
        again = taskctl("tasks", "import", str(file), environ={**environ, "TASKCTL_SERVER": other.url})
        assert (again.code, counts(again)["refused"]) == (0, 0)
        assert counts(again)["imported"] + counts(again)["existing"] == 3000
        titles = "SELECT count(*), count(DISTINCT title) FROM task WHERE user_id = %s"
        assert database.execute(titles, [user.id]).fetchone() == (3000, 3000)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "none.csv"], "none.csv cannot be read: no such file or directory."),
        (["import", "-"], "The format of - cannot be told; say it with --format."),
        (["export", "-o", "none/x.json"], "Cannot write none/x.json: no such file or directory."),
    ],
)
def test_what_cannot_be_done(person, arguments, said):
    """What is wrong with a command is one line, and its code 2, or 1 where it is the disk."""
    environ, _ = person()
    done = taskctl("tasks", *arguments, environ=environ, given="hello")
    assert (done.code, done.out) == (1 if "export" in arguments else 2, "")
    assert done.err.startswith(f"taskctl: {said}")
    assert done.err.count("\n") == 1


def test_export_is_whole_or_not_there(person, tmp_path):
    """An export that fails leaves the file that was there."""
    environ, _ = person()
    file = tmp_path / "old.json"
    file.write_text("old")
    done = taskctl("tasks", "export", "-o", str(file), environ={**environ, "TASKCTL_TOKEN": "none"})
    assert done.code == 4
    assert (file.read_text(), [each.name for each in tmp_path.glob("*old*")]) == (
        "old",
        ["old.json"],
    )
