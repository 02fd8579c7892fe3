"""`taskctl tasks` as somebody uses it every day, against a real server: entry, finding, editing, deleting."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from conftest import bare_environ, taskctl, taskctl_in_terminal

EDITOR = """#!{python}
import pathlib, subprocess, sys
file, seen = pathlib.Path(sys.argv[1]), pathlib.Path({seen!r})
text = file.read_text()
with seen.open("a") as log:
    log.write(text + "=====\\n")
turn = seen.read_text().count("=====")
if turn == 1:
    subprocess.run([sys.executable, "-m", "taskctl", "tasks", "edit", "1", "--title", "Theirs", "p:high"])
    text = text.replace("Mine to be", "Mine").replace("due:", "due: nonsense") + "\\nMilk\\n# and honey\\n"
elif turn == 2:
    text = text.replace("nonsense", "2031-05-06")
file.write_text(text)
"""


@pytest.fixture
def environ(server, user, tmp_path):
    """The environment of somebody in Berlin."""
    return bare_environ(
        tmp_path, TASKCTL_SERVER=server.url, TASKCTL_TOKEN=user.token, TZ="Europe/Berlin", TERM="dumb"
    )


@pytest.fixture
def run(environ):
    """Run `taskctl`, which must go well and say nothing but its data."""

    def run(*words, given="", **more):
        done = taskctl(*words, environ={**environ, **more}, given=given)
        assert (done.code, done.err) == (0, "")
        return done.out

    return run


def ids(text):
    """The ids that `-q` prints."""
    return [int(line) for line in text.split()]


def test_a_task_in_one_line(run):
    """Words and flags say the same, without quotes, and a time of day repeats in this machine's zone."""
    words = ("add", "Pay", "rent", "due:2031-12-01 09:00", "every:month", "+home", "p:h", "project:flat")
    flags = ("--due", "2031-12-01 09:00", "--every", "month", "-t", "home", "-p", "high", "--project", "flat")
    by_words = json.loads(run(*words, "--json"))
    by_flags = json.loads(run("tasks", "add", "Pay rent", *flags, "--json"))
    names = ("title", "due_at", "recurrence", "time_zone", "tags", "priority", "project")
    assert [by_words[name] for name in names] == [
        "Pay rent",
        "2031-12-01T08:00:00.000000Z",
        "FREQ=MONTHLY;BYMONTHDAY=1",
        "Europe/Berlin",
        ["home"],
        "high",
        "flat",
    ]
    assert [by_words[name] for name in names] == [by_flags[name] for name in names]
    literal = json.loads(run("add", "--literal", "due:fri +x", "--due", "2031-01-02", "--json"))
    assert (literal["title"], literal["due_at"], literal["tags"]) == ("due:fri +x", "2031-01-02", [])


def test_what_was_understood_is_said(environ):
    """A terminal hears the dates resolved, and which task follows one that is done."""
    words = ["add", "Pay rent", "due:2031-12-01", "every:month", "+home", "p:high"]
    expected = "Added 1  Pay rent  due Mon 1 Dec 2031, every month on the 1st, +home, high\n"
    assert taskctl_in_terminal(*words, environ={**environ, "COLUMNS": "100"}).out == expected
    assert taskctl_in_terminal("done", "1", environ=environ).out == "Done 1  Pay rent  (next: 2)\n"


def test_lines_of_stdin(run, environ):
    """`add -` adds a task for each line, or none where one is not understood; flags hold for each."""
    added = json.loads(run("add", "-", "-t", "bulk", "--json", given="One p:low\r\n\n Two +x\n"))
    assert [(task["title"], task["tags"], task["priority"]) for task in added] == [
        ("One", ["bulk"], "low"),
        ("Two", ["bulk", "x"], "none"),
    ]
    done = taskctl("add", "-", environ=environ, given="Three\n\nFour due:nonsense\n")
    assert (done.code, done.out) == (2, "")
    assert "line 3: due:nonsense: " in done.err
    done = taskctl("add", "-", environ=environ, given=f"\nFive\n{'x' * 201}\nSix\n")
    assert (done.code, [line.split("\t")[2] for line in done.out.splitlines()]) == (2, ["Five", "Six"])
    assert done.err.startswith("taskctl: line 3: title: ")
    done = taskctl("add", " ", environ=environ)
    assert (done.code, done.out) == (2, "")
    assert "a task has a title" in done.err


def test_ids_in_ranges_and_from_stdin(run, environ):
    """`3-5,8` and the lines of a list name tasks; what is deleted can be looked at before, and taken back."""
    run("add", "-", given="\n".join("abcdefgh"))
    assert ids(run("done", "1-2,3,", "5", "-q")) == [1, 2, 3, 5]
    for words in (["3-"], ["3-1"], [","], ["1", "2-99999"]):
        assert taskctl("tasks", "reopen", *words, environ=environ).code == 2
    rows = run("tasks", "list", "--status", "completed")
    assert ids(run("tasks", "reopen", "-", "-q", given=rows)) == [1, 2, 3, 5]
    assert ids(run("tasks", "rm", "--dry-run", "7-8", "-q")) == [7, 8]
    assert ids(run("tasks", "rm", "-", given="7-8 1\n")) == [7, 8, 1]
    assert ids(run("ls", "--status", "deleted", "-q")) == [1, 7, 8]
    done = taskctl("tasks", "restore", "7", "9", "1", "-q", environ=environ)
    assert (done.code, ids(done.out)) == (5, [7, 1])
    assert ids(run("ls", "-q")) == [1, 2, 3, 4, 5, 6, 7]


def test_edit_by_words_and_flags(run, environ):
    """Several tasks change alike; tags come and go one by one; a new rule starts at the due date there is."""
    run("add", "-", given="A due:2031-12-03 +work +old project:x\nB\n")
    changed = json.loads(run("tasks", "edit", "1-2", "+home", "-t", "-old", "p:low", "--json"))
    assert [(task["tags"], task["priority"]) for task in changed] == [
        (["home", "work"], "low"),
        (["home"], "low"),
    ]
    task = json.loads(run("tasks", "edit", "1", "every:month", "--project", "none", "--json"))
    assert (task["due_at"], task["recurrence"]) == ("2031-12-03", "FREQ=MONTHLY;BYMONTHDAY=3")
    assert (task["project"], task["version"]) == (None, 3)
    task = json.loads(run("tasks", "edit", "1", "every:none", "due:none", "--json"))
    assert (task["due_at"], task["recurrence"], task["time_zone"]) == (None, None, None)
    for words in (["New", "title"], ["due:nonsense"], []):
        assert taskctl("tasks", "edit", "1", *words, environ=environ).code == 2


def test_the_editor_merges(run, environ, tmp_path):
    """What both changed is shown and asked for again, what one changed is kept, and nonsense is not sent."""
    run("add", "Mine to be +shop")
    script, seen = tmp_path / "editor", tmp_path / "seen"
    script.write_text(EDITOR.format(python=sys.executable, seen=str(seen)))
    script.chmod(0o700)
    variables = {**environ, "VISUAL": str(script), "COLUMNS": "100", "TMPDIR": str(tmp_path)}
    done = taskctl_in_terminal("tasks", "edit", "1", environ=variables, typed="y\ny\n")
    assert done.code == 0
    assert done.out.endswith("Changed 1  Mine  due Tue 6 May 2031, +shop, high\n")
    assert "Meanwhile somebody else has changed title too." in done.out
    first, _, last, _ = seen.read_text().split("=====\n")
    assert first.splitlines()[1:] == [
        "title:    Mine to be",
        "due:",
        "every:",
        "priority: none",
        "tags:     shop",
        "project:",
    ]
    assert "# title is now, on the server:\n#   Theirs\ntitle:    Mine\ndue:      2031-05-06\n" in last
    task = json.loads(run("tasks", "show", "1", "--json"))
    assert (task["title"], task["priority"], task["description"]) == ("Mine", "high", "Milk\n# and honey")
    assert not list(tmp_path.glob("taskctl-*"))


def test_the_editor_loses_nothing(run, environ, tmp_path):
    """An unchanged text changes nothing; whoever gives up a faulty one is told where it is.

    So is one whose editor saves it under another name, or fails when it is opened for the second time.
    """
    run("add", "A")
    same = taskctl_in_terminal("tasks", "edit", "1", environ={**environ, "EDITOR": "true"})
    assert (same.code, same.out) == (0, "Nothing is changed.\n")
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\necho "colour: red" > "$1"\n')
    script.chmod(0o700)
    variables = {**environ, "EDITOR": str(script), "TMPDIR": str(tmp_path), "COLUMNS": "200"}
    done = taskctl_in_terminal("tasks", "edit", "1", environ=variables, typed="n\n")
    assert done.code == 1
    place = done.out.partition("Your text is in ")[2].splitlines()[0]
    assert Path(place).read_text() == "colour: red\n"
    shutil.rmtree(Path(place).parent)
    again = 'test -e "$1.seen" && exit 1; touch "$1.seen"; echo "title:" > "$1"'
    for lines, left in (('mv "$1" "$1.new"', ["task-1.txt.new"]), (again, ["task-1.txt"]), ("exit 3", [])):
        script.write_text(f"#!/bin/sh\n{lines}\n")
        done = taskctl_in_terminal("tasks", "edit", "1", environ=variables, typed="y\n")
        assert done.code == 1
        said = [
            line.partition("Your text is in ")[2] for line in done.out.splitlines() if "Your text" in line
        ]
        assert [Path(each).name for each in said] == left
        assert len(list(tmp_path.glob("taskctl-*"))) == len(left)
        for place in said:
            shutil.rmtree(Path(place).parent)
    assert json.loads(run("tasks", "show", "1", "--json"))["version"] == 1


TASKS = """\
Pay rent due:-2d p:low +home project:flat
Buy milk due:today p:high
Call mum due:+3d +home +family
Read
Write p:high
Sleep p:medium
"""


def test_finding(run, environ):
    """Each filter finds what it says, `today` and `next` what is to be done, in the order of the help."""
    run("add", "-", given=TASKS)
    run("done", "6")
    for words, expected in (
        (["ls"], [1, 2, 3, 4, 5, 6]),
        (["ls", "--due", "overdue"], [1]),
        (["ls", "--due", "today..", "--sort", "due", "--reverse"], [3, 2]),
        (["ls", "-t", "home", "-t", "+family"], [3]),
        (["ls", "--project", "flat"], [1]),
        (["ls", "-p", "H", "--order", "desc"], [5, 2]),
        (["ls", "-s", "wri"], [5]),
        (["ls", "--completed-after", "today", "--completed-before", "tomorrow"], [6]),
        (["ls", "--completed-before", "today"], []),
        (["ls", "--sort", "priority", "--limit", "3"], [5, 2, 6]),
        (["today"], [1, 2]),
        (["next"], [1, 2, 5, 3, 4]),
        (["next", "--limit", "3"], [1, 2, 5]),
    ):
        assert ids(run(*words, "-q")) == expected, words
    for words, advice in (
        (["ls", "-p", "urgent"], "write high, medium"),
        (["stats"], "write `taskctl tasks stats`"),
        (["ls", "--search", "caf\udce9"], "is no text in UTF-8"),
    ):
        done = taskctl(*words, environ=environ)
        assert (done.code, advice in done.err) == (2, True), words
    assert run("ls", "--columns", "id,tags,project", "-t", "home") == "1\thome\tflat\n3\tfamily,home\t\n"
    counted = json.loads(run("tasks", "stats", "--json"))
    by_day = counted.pop("completed_by_day")
    assert (len(by_day), sum(by_day.values())) == (14, 1)
    assert counted == {
        "open": 5,
        "overdue": 1,
        "due_today": 1,
        "completed": 1,
        "open_by_priority": {"high": 2, "medium": 0, "low": 1, "none": 2},
        "open_by_project": {"flat": 1},
    }


def test_today_is_where_the_person_is(run):
    """What is due today on an island west of the date line is not yet due on one a day behind."""
    ahead, behind = {"TZ": "Pacific/Kiritimati"}, {"TZ": "Etc/GMT+12"}
    run("add", "A due:today", **ahead)
    run("add", "B due:today", **behind)
    assert ids(run("today", "-q", **ahead)) == [2, 1]
    assert ids(run("today", "-q", **behind)) == [2]
    assert ids(run("ls", "--due", "overdue", "-q", **ahead)) == [2]


def test_a_terminal_shows_what_is_to_be_done(environ, run):
    """A terminal gets pending tasks by due date, with their details beside or, where narrow, below.

    Chosen columns that do not fit beside one another are below one another, and none is missing.

    The columns of groups stand below one another.
    """
    run("add", "-", given=TASKS)
    run("done", "6")
    wide = taskctl_in_terminal("ls", environ={**environ, "COLUMNS": "80"}).out.splitlines()
    assert wide[0].split() == ["ID", "Title", "Due", "Prio", "Project", "Tags"]
    assert [line.split()[0] for line in wide[1:]] == ["1", "2", "3", "4", "5"]
    assert wide[1].split() == ["1", "Pay", "rent", "2", "days", "ago", "low", "flat", "+home"]
    narrow = taskctl_in_terminal("ls", "--limit", "1", environ={**environ, "COLUMNS": "30"}).out
    assert [line.rstrip() for line in narrow.splitlines()] == [
        "ID  Title",
        " 1  Pay rent",
        "    2 days ago  low  flat",
        "    +home",
        "1 shown; --all for all of them.",
    ]
    chosen = ("ls", "--limit", "2", "--columns", "id,title,due,status,version")
    stacked = taskctl_in_terminal(*chosen, environ={**environ, "COLUMNS": "20"}).out
    assert [line.rstrip() for line in stacked.splitlines()[:8]] == [
        "ID       1",
        "Title    Pay rent",
        "Due      2 days ago",
        "Status",
        "Version  1",
        "",
        "ID       2",
        "Title    Buy milk",
    ]
    groups = taskctl_in_terminal("ls", "--group", "tag", environ=environ).out
    assert [line for line in groups.splitlines() if "(" in line] == ["+family (1)", "+home (2)", "No tag (3)"]
    run("tasks", "edit", "1", "--title", "Pay all of the rent")
    words = ("--group", "tag", "--columns", "id,title,tags")
    rows = taskctl_in_terminal("ls", *words, environ=environ).out.splitlines()
    assert {row.index("+") for row in rows if row.startswith((" 1", " 3"))} == {
        len("ID  Pay all of the rent  ")
    }
    charts = taskctl_in_terminal("tasks", "stats", environ=environ).out
    assert charts.startswith("5 open, 1 overdue, 1 due today, 1 completed\n")
