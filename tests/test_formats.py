"""Export formats: what is read from them, what is refused, and that a round trip loses nothing."""

import datetime as dt
import io
import json
import tracemalloc
import zipfile
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskctl.formats import FORMATS, Record, Refused, Source, detected
from taskctl.formats.fitting import fitted, tag
from taskctl.formats.lines import LONGEST
from taskctl.models import TaskContent

BERLIN = Source("Work [12].csv", ZoneInfo("Europe/Berlin"))

TASK = {
    "id": 7,
    "user_id": "somebody",
    "title": "Pay the rent",
    "description": "IBAN;\r\nand so on",
    "due_at": "2026-11-30",
    "priority": "high",
    "tags": ["bank", "home"],
    "project": "Flat, upstairs",
    "recurrence": "FREQ=MONTHLY",
    "time_zone": "Europe/Berlin",
    "extra": {"other": [1, None]},
    "completed": True,
    "completed_at": "2026-11-22T10:00:00.123456Z",
    "next_id": 8,
    "deleted_at": None,
    "version": 2,
    "created_at": "2026-11-01T09:00:00.000001Z",
    "updated_at": "2026-11-22T10:00:00.123456Z",
}


def read(form, data, source=BERLIN):
    """The entries of a file."""
    data = data.encode() if isinstance(data, str) else data
    return list(FORMATS[form].read(io.BytesIO(data), source))


def written(form, tasks, source=BERLIN):
    """Tasks in a format, as text."""
    return "".join(FORMATS[form].write(tasks, source))


def contents(entries):
    """What the records among entries hold, without what has its default."""
    return [
        {name: value for name, value in entry.content.items() if value not in (None, [], "none", False)}
        for entry in entries
        if isinstance(entry, Record)
    ]


def refusals(entries):
    """The lines that are refused, with the reasons."""
    return [(entry.line, entry.reason) for entry in entries if isinstance(entry, Refused)]


_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40)
_TRAPS = st.sampled_from(
    [
        "x done",
        "(A) first",
        "+home call @bob",
        "due:2026-01-01",
        "=SUM(A1)",
        "'quoted'",
        "a, b; c\\n",
        "rec:1m",
        "taskctl:{}",
        "2026-01-01 2026-01-02 y",
        "@a",
        "+b",
        "pri:A",
        "two  spaces",
        "BEGIN:VTODO",
        "-1",
        "'",
    ]
)
_TITLES = st.one_of(_TEXT, _TRAPS).map(str.strip).filter(bool)
_BREAKS = st.sampled_from(["", "2026-11-01T10:00:00Z x\ny", "a\r\nb\rc\n\n", "'", "=1", "\t", "END:VTODO"])
_INSTANTS = st.datetimes(
    min_value=dt.datetime(1, 1, 3),  # noqa: DTZ001 - the strategy adds the zone
    max_value=dt.datetime(9999, 12, 28),  # noqa: DTZ001
    timezones=st.just(dt.UTC),
).map(lambda moment: moment.isoformat(timespec="microseconds").replace("+00:00", "Z"))
_RULES = st.sampled_from(
    [
        "FREQ=DAILY",
        "FREQ=MONTHLY;BYMONTHDAY=1",
        "FREQ=WEEKLY;INTERVAL=2",
        "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR",
        "FREQ=YEARLY;COUNT=3",
        "FREQ=WEEKLY;UNTIL=20300101T000000Z",
        "FREQ=MONTHLY",
        "FREQ=MONTHLY;BYMONTHDAY=28,29,30,31;BYSETPOS=-1",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=4,
)
_TAGS = st.lists(_TEXT.map(tag).filter(lambda text: text and text == tag(text)), max_size=3)


def _is_not_ours(name):
    """Whether a name in `extra` is not one under which importers keep things."""
    return name not in {"taskctl", "import", "ics", "taskwarrior", "todo_txt", "todoist", "vikunja"}


@st.composite
def _tasks(draw):
    due_at = draw(st.none() | st.dates().map(str) | _INSTANTS)
    completed = draw(st.booleans())
    return {
        **TASK,
        "id": draw(st.integers(1, 10**6)),
        "title": draw(_TITLES),
        "description": draw(st.none() | _TEXT | _BREAKS),
        "due_at": due_at,
        "priority": draw(st.sampled_from(["none", "low", "medium", "high"])),
        "tags": sorted(set(draw(_TAGS))),
        "project": draw(st.none() | _TITLES),
        "recurrence": draw(st.none() | _RULES) if due_at else None,
        "time_zone": draw(st.sampled_from([None, "Europe/Berlin", "America/New_York"])),
        "extra": draw(st.none() | st.dictionaries(_TEXT.filter(_is_not_ours), _JSON, max_size=2)),
        "completed": completed,
        "completed_at": draw(_INSTANTS) if completed else None,
        "created_at": draw(_INSTANTS),
        "updated_at": draw(_INSTANTS),
    }


@settings(max_examples=50, deadline=None)
@given(
    tasks=st.lists(_tasks(), max_size=2, unique_by=lambda task: task["id"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia"]),
)
def test_round_trip_loses_nothing(tasks, zone):
    """Whatever tasks hold, each format gives back what JSON does: contents, keys, and no complaint."""
    source = Source("tasks", ZoneInfo(zone))
    expected = read("json", written("json", tasks, source), source)
    assert [entry.content["title"] for entry in expected] == [task["title"] for task in tasks]
    for form, each in FORMATS.items():
        if each.write is not None:
            assert read(form, written(form, tasks, source), source) == [
                Record(entry.line, known.content, known.key)
                for entry, known in zip(
                    read(form, written(form, tasks, source), source), expected, strict=True
                )
            ], form


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.write is not None])
def test_round_trip_of_a_task(form):
    """All members come back; those that nobody can write are in `extra`."""
    [entry] = read(form, written(form, [TASK]))
    read_only = ("id", "user_id", "completed_at", "next_id", "version", "created_at", "updated_at")
    origin = {name: TASK[name] for name in read_only}
    assert entry.content == {
        **{name: TASK[name] for name in entry.content},
        "extra": {"other": [1, None], "taskctl": {**origin, "occurrence": "2026-11-30"}},
    }
    assert entry.warnings == ()
    TaskContent.model_validate(entry.content)


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.write is not None])
def test_no_tasks(form):
    """An empty list is a file without tasks, and no error."""
    assert read(form, written(form, [])) == []


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.write is not None])
def test_second_journey_keeps_the_first_history(form):
    """A task that was imported elsewhere, with another id, is exported with the key of where it was first."""
    [first] = read(form, written(form, [TASK]))
    moved = {
        **TASK,
        **first.content,
        "id": 99,
        "user_id": "other",
        "created_at": "2027-01-01T00:00:00.000000Z",
    }
    [second] = read(form, written(form, [moved]))
    assert second.key == first.key
    assert second.content["extra"]["taskctl"]["created_at"] == TASK["created_at"]


def test_next_occurrence_is_another_task():
    """What the server copies into the next occurrence does not make it the task that it was copied from."""
    [first] = read("json", written("json", [TASK]))
    copies = {
        **TASK,
        **first.content,
        "id": 8,
        "due_at": "2026-12-30",
        "completed": False,
        "completed_at": None,
    }
    for form in ("json", "ics", "taskwarrior"):
        keys = [entry.key for entry in read(form, written(form, [{**TASK, **first.content}, copies]))]
        assert len(set(keys)) == 2, form


class Endless(io.RawIOBase):
    """Text as a file, made as it is read."""

    def __init__(self, pieces):
        self.pieces, self.rest = pieces, b""

    def readable(self):
        """It can be read."""
        return True

    def readinto(self, buffer):
        """Make what fits into the buffer."""
        self.rest = self.rest or next(self.pieces, "").encode()
        size = min(len(self.rest), len(buffer))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.write is not None])
def test_formats_stream(form):
    """Neither reading nor writing holds more than a few tasks at a time."""
    read(form, written(form, [TASK]))  # imports
    tasks = ({**TASK, "id": number, "description": "x" * 9000} for number in range(1, 81))
    stream = io.BufferedReader(Endless(iter(FORMATS[form].write(tasks, BERLIN))))
    tracemalloc.start()
    assert sum(1 for _ in FORMATS[form].read(stream, BERLIN)) == 80
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 9000  # the descriptions alone


# What files hold that is no task.


@pytest.mark.parametrize("form", ["json", "taskwarrior"])
def test_bad_elements_are_refused_by_line(form):
    """What is wrong in an array is refused by its line, and the rest is read."""
    name = "title" if form == "json" else "description"
    data = (
        f'[\n{{"{name}": "one"}},\n{{"{name}": broken}},\n5,\n\n{{"{name}": "caf\xe9"}},\n'.encode("latin-1")
        + f'{{"{name}": "two", "{name}": "2"}},\n{{"{name}": "three"}}\n]\nmore'.encode()
    )
    entries = read(form, data)
    assert [entry["title"] for entry in contents(entries)] == ["one", "three"]
    assert refusals(entries) == [
        (3, f"not JSON: Expecting value at character {len(name) + 6}"),
        (4, "not a JSON object"),
        (6, f"not UTF-8: byte 0xe9 at character {len(name) + 10}"),
        (7, "not JSON: an object has the same member twice"),
        (10, "it stands behind the end of the array"),
    ]


def test_characters_in_two_halves():
    """Two halves of a character, as Taskwarrior 2 writes what it was given as JSON escapes, are one."""
    halves = "\ud83c\udf89".encode("utf-8", "surrogatepass")
    data = b'[{"description": "a %b"}, {"description": "%b %b"}]' % (halves, halves[:3], halves)
    entries = read("taskwarrior", data)
    assert [entry["title"] for entry in contents(entries)] == ["a \U0001f389"]
    assert refusals(entries) == [(1, "not UTF-8: byte 0xed at character 18")]


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        ('[{"title": "a"},\n{"title": "b', 2, "the file ends before this does"),
        ('[{"title": "a"},\n', 2, "the array is not closed"),
        ("[{}]", 1, "it has no title"),
        ('[{"title": 5}]', 1, "title is not text"),
        ('[{"title": "a", "tags": "b"}]', 1, "tags is not an array"),
        ('[{"title": "a", "tags": [1]}]', 1, "tags holds what is not text"),
        ('[{"title": "a", "extra": []}]', 1, "extra is not an object"),
        ('[{"title": "a", "completed": "yes"}]', 1, "completed is not true or false"),
        ('[{"title": "a", "priority": "urgent"}]', 1, "the priority 'urgent' is none of"),
        ('[{"title": "a", "due_at": "tomorrow"}]', 1, "the due date 'tomorrow' is neither"),
        ('[{"title": "a", "due_at": "2026-02-30"}]', 1, "the due date '2026-02-30' is neither"),
        ('[{"title": "a", "due_at": "9999-12-31T23:00:00-05:00"}]', 1, "the due date"),
        ('[{"title": "\\ud800"}]', 1, "title is not valid Unicode"),
        ('[{"title": "a", "description": "' + "x" * 10_001 + '"}]', 1, "the description has 10,001"),
        ("[" * 200 + "]" * 200, 1, "not JSON: it is nested too deeply"),
        ('[{"title": "' + "x" * LONGEST * 2 + '"}]', 1, "longer than"),
        ("\ufeff[]".encode("utf-16"), 1, "the file is in UTF-16"),
    ],
)
def test_array_that_is_no_list_of_tasks(data, line, reason):
    """Each way in which an array goes wrong is told with its line, and nothing is made of it."""
    refused = [entry for entry in read("json", data) if isinstance(entry, Refused)]
    assert [entry.line for entry in refused] == [line]
    assert refused[0].reason.startswith(reason)


def test_objects_without_an_array():
    """Objects one behind the other are read too, with commas between them or without."""
    entries = read("json", '\ufeff{"title":"a"}\n{"title":"b"},{"title":"c"}')
    assert [(entry.line, entry.content["title"]) for entry in entries] == [(1, "a"), (2, "b"), (2, "c")]


def test_bad_lines_are_refused_by_number():
    """In NDJSON each line stands for itself."""
    data = (
        b'\xef\xbb\xbf{"title":"a"}\r\n\n{"title":}\n[1]\n{"title":"\xff"}\n'
        + b"x" * (LONGEST * 2)
        + b"\n{}\n\0"
    )
    entries = read("ndjson", data)
    assert contents(entries) == [{"title": "a"}]
    assert refusals(entries) == [
        (3, "not JSON: Expecting value at character 10"),
        (4, "not a JSON object"),
        (5, "not UTF-8: byte 0xff at position 11"),
        (6, "longer than 1,048,576 bytes"),
        (7, "it has no title"),
        (8, "it holds a NUL, so it is no text"),
    ]


def test_same_task_twice():
    """An id that is there twice is refused the second time; equal tasks without ids are several tasks."""
    twice = read("json", json.dumps([TASK, {"title": "a"}, TASK, {"title": "a"}]))
    assert refusals(twice) == [(1, "the same task as on line 1: its id is there twice")]
    keys = [entry.key for entry in twice if isinstance(entry, Record)]
    assert len(set(keys)) == 3
    assert [entry.key for entry in read("json", json.dumps([TASK, {"title": "a"}, {"title": "a"}]))] == keys


# What is made to fit.


def test_what_the_api_refuses_is_made_to_fit():
    """Titles are cut, tags and control characters replaced, and each change is told; nothing is lost."""
    fit, changed = fitted(
        {
            "title": "a\tb " + "c" * 300,
            "description": "d\x07e",
            "tags": ["Two Words", "ok", "a,b", "  ", "OK"],
            "project": "x" * 101,
            "recurrence": "FREQ=HOURLY",
            "due_at": "2026-11-30T17:00:00+01:00",
            "time_zone": "Moon/Base",
            "extra": {"nul": "\0"},
            "colour": "red",
        }
    )
    TaskContent.model_validate(fit)
    assert fit["title"] == "a b " + "c" * 195 + "…"
    assert fit["description"] == "a\tb " + "c" * 300 + "\n\nd\ufffde"
    assert fit["tags"] == ["a-b", "ok", "two-words"]
    assert fit["due_at"] == "2026-11-30T16:00:00.000000Z"
    assert fit["extra"] == {
        "nul": "\ufffd",
        "import": {
            "colour": "red",
            "project": "x" * 101,
            "recurrence": "FREQ=HOURLY",
            "time_zone": "Moon/Base",
        },
    }
    assert len(changed) == 11, changed


@pytest.mark.parametrize(
    ("content", "kept", "told"),
    [
        ({"recurrence": "FREQ=DAILY"}, {"recurrence": "FREQ=DAILY"}, "there is no due date"),
        (
            {"recurrence": "often", "due_at": "2026-11-30"},
            {"recurrence": "often"},
            "is no part of a recurrence",
        ),
        ({"tags": [f"{n:02}" for n in range(34)]}, {"tags": ["32", "33"]}, "tags beyond 32"),
        ({"tags": ["x" * 65]}, {"tags": ["x" * 65]}, "the tag"),
        ({"time_zone": "Factory"}, {"time_zone": "Factory"}, "there is none of this name"),
    ],
)
def test_what_has_no_place_is_kept_in_extra(content, kept, told):
    """What does not fit is in `extra`, under `import`, and a sentence says so."""
    fit, changed = fitted({"title": "a", **content})
    assert fit["extra"] == {"import": kept}
    assert [told in sentence for sentence in changed] == [True]
    TaskContent.model_validate(fit)


def test_extra_that_is_too_large():
    """What is largest in `extra` is left out until the rest fits, and named."""
    fit, changed = fitted(
        {"title": "a", "extra": {"source": {"big": "é" * 5000, "small": 1}, "more": "x" * 100}}
    )
    assert fit["extra"] == {"source": {"small": 1}, "more": "x" * 100}
    assert changed == ["left out: big of extra, as extra has more than 8,192 bytes"]


# CSV


def test_csv_is_safe_in_a_spreadsheet():
    """No cell starts as a formula does, and reading takes off what keeps it from that."""
    task = {
        "title": '=HYPERLINK("x")',
        "description": "",
        "project": "+1",
        "tags": ["@a", "b"],
        "extra": None,
    }
    header, row, _ = written("csv", [task]).split("\r\n")
    assert header.startswith("id,title,description,due_at,priority,tags,project")
    assert row.startswith(""","'=HYPERLINK(""x"")",',,,"'@a,b",'+1,""")
    assert contents(read("csv", written("csv", [task]))) == [
        {"title": '=HYPERLINK("x")', "description": "", "project": "+1", "tags": ["@a", "b"]}
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_from_a_spreadsheet(delimiter):
    """Other delimiters, a byte order mark, capitals in the header and lines inside of cells are read."""
    data = (
        '\ufeffTitle,Description,DUE_AT,completed\r\n"a ""b""","c\nd",2026-11-30,TRUE\r\n,,,\r\n\'tis,,,\r\n'
    )
    entries = read("csv", data.replace(",", delimiter))
    assert [entry.line for entry in entries] == [2, 5]
    assert contents(entries) == [
        {"title": 'a "b"', "description": "c\nd", "due_at": "2026-11-30", "completed": True},
        {"title": "'tis"},
    ]


def test_csv_as_people_fill_it_in():
    """Capitals are read, due times without an offset in the person's zone, and a spreadsheet's language."""
    data = (
        "title,due_at,priority,completed\na,2026-11-30 17:00,High,\nb,2026-07-30T17:00:05,LOW,FALSCH\n"
        "c,2026-02-30 17:00,,\nd,1.12.2026,,WAHR\ne,01.12.2026 09:30,,\nf,30.2.2026,,\ng,11/30/2026,,\n"
    )
    entries = read("csv", data)
    assert contents(entries) == [
        {"title": "a", "due_at": "2026-11-30T16:00:00.000000Z", "priority": "high"},
        {"title": "b", "due_at": "2026-07-30T15:00:05.000000Z", "priority": "low"},
        {"title": "d", "due_at": "2026-12-01", "completed": True},
        {"title": "e", "due_at": "2026-12-01T08:30:00.000000Z"},
    ]
    assert refusals(entries) == [
        (line, f"the due date '{cell}' is neither a date nor a time with its offset")
        for line, cell in ((4, "2026-02-30 17:00"), (7, "2026-02-30"), (8, "11/30/2026"))
    ]


def test_csv_rows_that_are_refused():
    """Each broken row is refused with the line where it starts, and the others are read."""
    data = (
        b'title,completed,extra,description\na\nb,perhaps\nc,,{\nd,,,\xe4\n,yes\ne,,,f,g\n"h"i\nj\n"k\nl,m\n'
    )
    entries = read("csv", data)
    assert [entry["title"] for entry in contents(entries)] == ["a", "j"]
    assert refusals(entries) == [
        (3, "completed is 'perhaps', neither true nor false"),
        (4, "extra is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (5, "not UTF-8: byte 0xe4 at position 5"),
        (6, "it has no title"),
        (7, "5 cells, but the header names 4"),
        (8, "not CSV: ',' expected after '\"'"),
        (10, "not CSV: unexpected end of data (up to line 11)"),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("name\na\n", "the header names no column 'title'"),
        ("title,priority\ra,high\r", "not CSV: its lines end in carriage returns alone"),
        (f"title,{'x' * 140_000}\na,\n", "not CSV: field larger than field limit (131072)"),
        ("title\na\n".encode("utf-16"), "the file is in UTF-16; save it as UTF-8"),
    ],
)
def test_csv_that_is_no_list_of_tasks(data, reason):
    """A table of other things is refused once, as a whole."""
    assert refusals(read("csv", data)) == [(1, reason)]


# The format of todo.txt


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (
            "x 2026-11-22 2026-11-01 Pay the rent +home @Bank due:2026-11-30 pri:A",
            {
                "title": "Pay the rent",
                "completed": True,
                "priority": "high",
                "project": "home",
                "tags": ["bank"],
                "due_at": "2026-11-30",
                "extra": {"todo_txt": {"completed": "2026-11-22", "created": "2026-11-01"}},
            },
        ),
        (
            "(B) 2026-11-01 Call @mum about +party",
            {
                "title": "Call @mum about",
                "priority": "medium",
                "project": "party",
                "tags": ["mum"],
                "extra": {"todo_txt": {"created": "2026-11-01"}},
            },
        ),
        ("(D) a", {"title": "a", "priority": "low", "extra": {"todo_txt": {"priority": "D"}}}),
        ("xylophone (A) b", {"title": "xylophone (A) b"}),
        ("X 2026-11-01 c", {"title": "X 2026-11-01 c"}),
        ("(a) d", {"title": "(a) d"}),
        (
            "see http://example.com due:soon t:2026-11-01",
            {"title": "see http://example.com due:soon t:2026-11-01"},
        ),
        ("@work", {"title": "@work", "tags": ["work"]}),
        (
            "water due:2026-11-30 rec:+2w",
            {
                "title": "water",
                "due_at": "2026-11-30",
                "recurrence": "FREQ=WEEKLY;INTERVAL=2",
                "extra": {"todo_txt": {"rec": "+2w"}, "taskctl": {"occurrence": "2026-11-30"}},
            },
        ),
    ],
)
def test_todo_txt(line, content):
    """A line is understood as the format's rules say, and written again as it was."""
    entries = read("todo.txt", f"\n{line}\r\n")
    assert [entry.line for entry in entries] == [2]
    assert contents(entries) == [content]
    again = written("todo.txt", [entries[0].content]).partition(" taskctl:")[0].split()
    assert sorted(again) == sorted(line.replace("@Bank", "@bank").split())


def test_todo_txt_edited_elsewhere():
    """What another program has changed in a line that taskctl wrote counts, and the rest stays."""
    line = written("todo.txt", [{**TASK, "recurrence": None}]).replace("due:2026-11-30", "due:2026-12-24")
    [entry] = read("todo.txt", line.replace("Pay the rent", "Pay it"))
    assert (entry.content["title"], entry.content["due_at"]) == ("Pay it", "2026-12-24")
    assert (entry.content["project"], entry.content["description"]) == (TASK["project"], TASK["description"])
    [broken] = read("todo.txt", "a taskctl:{")
    assert broken.content["title"] == "a taskctl:{"
    assert broken.warnings == ("the value of taskctl: is broken",)


def test_todo_txt_lines_are_short():
    """A line carries of a task that was never changed no more than what tells it from others."""
    empty = dict.fromkeys(("description", "due_at", "project", "recurrence", "time_zone", "extra", "next_id"))
    changed = {**TASK, **empty, "tags": [], "completed": False, "completed_at": None}
    new = {**changed, "version": 1, "updated_at": TASK["created_at"]}
    start = '(A) 2026-11-01 Pay the rent taskctl:{"id":7,"user_id":"somebody",'
    made, since = '"created_at":"2026-11-01T09:00:00.000001Z"', '"updated_at":"2026-11-22T10:00:00.123456Z"'
    assert written("todo.txt", [new]) == f"{start}{made}}}\n"
    assert written("todo.txt", [changed]) == f'{start}"version":2,{made},{since}}}\n'
    for task in (new, changed, {**new, "extra": {"taskctl": {"id": 1}}}, {**new, "extra": {"a": 1}}):
        [entry], [known] = (read(form, written(form, [task])) for form in ("todo.txt", "json"))
        assert (entry.content, entry.key, entry.warnings) == (known.content, known.key, ())


# iCalendar


def test_ics_is_read_by_others():
    """A library that knows all of RFC 5545 finds in a calendar what was written; lines have 75 octets."""
    instants = {
        **TASK,
        "id": 8,
        "due_at": "2026-11-30T16:00:00.000000Z",
        "title": "ü" * 200,
        "completed": False,
    }
    plain = {**instants, "id": 9, "recurrence": None, "priority": "none", "tags": [], "description": None}
    text = written("ics", [TASK, instants, plain])
    assert max(len(line.encode()) for line in text.split("\r\n")) <= 75
    first, second, third = icalendar.Calendar.from_ical(text).walk("VTODO")
    assert (str(first["SUMMARY"]), str(first["DESCRIPTION"])) == ("Pay the rent", "IBAN;\nand so on")
    assert first["DUE"].dt == dt.date(2026, 11, 30)
    assert (first["STATUS"], first["PRIORITY"], first["CATEGORIES"].cats) == (
        "COMPLETED",
        1,
        ["bank", "home"],
    )
    assert first["COMPLETED"].dt == dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
    assert first["RRULE"] == {"FREQ": ["MONTHLY"]}
    assert second["DUE"].dt.isoformat() == "2026-11-30T17:00:00+01:00"
    assert second["DUE"].params["TZID"] == "Europe/Berlin"
    assert third["DUE"].dt == dt.datetime(2026, 11, 30, 16, tzinfo=dt.UTC)
    assert (str(third["SUMMARY"]), third["STATUS"]) == ("ü" * 200, "NEEDS-ACTION")
    assert len({str(todo["UID"]) for todo in (first, second, third)}) == 3


FOREIGN = """\
BEGIN:VCALENDAR
BEGIN:VTIMEZONE
TZID:Europe/Berlin
END:VTIMEZONE
BEGIN:VTODO
UID:abc@example.com
DTSTAMP:20261101T000000Z
SUMMARY;LANGUAGE=en:Buy\\, or "fetch"
 \\; milk
DESCRIPTION;ALTREP="cid:a:b;c":two\\nlines
DUE;TZID="/example.org/Europe/Berlin":20261130T170000
CATEGORIES:Shop\\,ping,Home
CATEGORIES:x
PRIORITY:3
STATUS:IN-PROCESS
PERCENT-COMPLETE:50
BEGIN:VALARM
TRIGGER:-PT15M
DESCRIPTION:not the task's
END:VALARM
RELATED-TO:def
END:VTODO
BEGIN:VEVENT
SUMMARY:party
END:VEVENT
BEGIN:VTODO
DUE;VALUE=DATE:20260230
END:VTODO
BEGIN:VTODO
SUMMARY:floating
DUE:20261130T170000
COMPLETED:20261122T100000Z
RRULE:FREQ=DAILY;COUNT=2
END:VTODO
BEGIN:VTODO
SUMMARY:no end
END:VCALENDAR
""".replace("\n", "\r\n")


def test_ics_of_others():
    """What other programs write is understood; what has no place is kept, alarms too, and written again."""
    entries = read("ics", FOREIGN)
    assert refusals(entries) == [
        (23, "an event, no task"),
        (26, "DUE is '20260230', neither a date nor a time"),
        (35, "its end is missing: END:VTODO"),
    ]
    first, second = (entry for entry in entries if isinstance(entry, Record))
    assert first.content["title"] == 'Buy, or "fetch"; milk'
    assert first.content["description"] == "two\nlines"
    assert (first.content["due_at"], first.content["time_zone"]) == (
        "2026-11-30T16:00:00.000000Z",
        "Europe/Berlin",
    )
    assert first.content["tags"] == ["home", "shop-ping", "x"]
    assert (first.content["priority"], first.content["completed"]) == ("high", False)
    assert first.warnings == ("the tag 'Shop,ping' became 'shop-ping'",)
    assert second.content["completed"] is True
    assert second.content["due_at"] == "2026-11-30T16:00:00.000000Z"
    assert second.content["recurrence"] == "FREQ=DAILY;COUNT=2"

    imported = {**TASK, **first.content, "completed_at": None}
    again = written("ics", [imported])
    assert first.content["extra"]["ics"]["uid"] == "abc@example.com"
    for line in (
        "UID:abc@example.com",
        "PRIORITY:3",
        "STATUS:IN-PROCESS",
        "TRIGGER:-PT15M",
        "RELATED-TO:def",
    ):
        assert f"\r\n{line}\r\n" in again
    changed = written(
        "ics", [{**imported, "priority": "low", "completed": True, "completed_at": TASK["updated_at"]}]
    )
    [todo] = icalendar.Calendar.from_ical(changed).walk("VTODO")
    assert (todo["PRIORITY"], todo["STATUS"], str(todo["UID"])) == (9, "COMPLETED", "abc@example.com")
    assert [str(alarm["DESCRIPTION"]) for alarm in todo.walk("VALARM")] == ["not the task's"]


@pytest.mark.parametrize("carried", ["{", "[]", "[" * 5000])
def test_what_travels_along_and_is_broken(carried):
    """What taskctl has put into a file counts only where it is a JSON object; else that is told."""
    lines = [
        "BEGIN:VCALENDAR",
        "BEGIN:VTODO",
        "SUMMARY:a",
        f"X-TASKCTL:{carried}",
        "END:VTODO",
        "END:VCALENDAR",
    ]
    [todo] = read("ics", "\r\n".join(lines))
    [task] = read("taskwarrior", json.dumps([{"description": "a", "taskctl": carried}]))
    [line] = read("todo.txt", f"a taskctl:{carried}")
    assert (todo.content["title"], todo.warnings) == ("a", ("X-TASKCTL is broken",))
    assert (task.content["title"], task.warnings) == ("a", ("the attribute taskctl is broken",))
    assert line.warnings[0] == "the value of taskctl: is broken"


OUTLOOK = """\
BEGIN:VCALENDAR
BEGIN:VTIMEZONE
TZID:W. Europe Standard Time
BEGIN:STANDARD
DTSTART:16010101T030000
TZNAME:winter
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10
END:STANDARD
BEGIN:DAYLIGHT
DTSTART:16010101T020000
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3
END:DAYLIGHT
END:VTIMEZONE
BEGIN:VTIMEZONE
TZID:Ours
X-LIC-LOCATION:America/New_York
END:VTIMEZONE
BEGIN:VTIMEZONE
TZID:Endless
BEGIN:STANDARD
DTSTART:16010101T000000
TZOFFSETFROM:+0000
TZOFFSETTO:+0000
RRULE:FREQ=SECONDLY
END:STANDARD
END:VTIMEZONE
BEGIN:VTIMEZONE
TZID:Broken
BEGIN:STANDARD
DTSTART:1601
END:STANDARD
END:VTIMEZONE
{}END:VCALENDAR
"""


def test_ics_with_zones_of_its_own():
    """A time in a zone that the calendar brings along is that time; it recurs in one of the database's."""
    todos = (
        "BEGIN:VTODO\nUID:{0}\nSUMMARY:{0}\nDUE;TZID={0}:20260730T170000\nRRULE:FREQ=DAILY\n"
        "EXDATE;TZID={0}:20260801T170000,20260802T170000\nEND:VTODO\n"
    )
    names = ("W. Europe Standard Time", "Ours", "Endless", "Broken", "Nowhere")
    never = todos.format(names[0]).replace(":20260730", ":20260230")
    text = OUTLOOK.format("".join(map(todos.format, names)) + never)
    entries = read("ics", text)
    due = [(entry["due_at"], entry["time_zone"]) for entry in contents(entries)]
    assert due == [
        ("2026-07-30T15:00:00.000000Z", "Europe/Berlin"),
        ("2026-07-30T21:00:00.000000Z", "America/New_York"),
    ]
    assert [reason for _, reason in refusals(entries)] == [
        *(f"the time zone '{name}' is none that is known" for name in ("Endless", "Broken", "Nowhere")),
        "DUE is '20260230T170000', neither a date nor a time",
    ]
    [elsewhere, _] = [
        entry for entry in read("ics", text, Source(zone=ZoneInfo("Asia/Tokyo"))) if isinstance(entry, Record)
    ]
    assert (elsewhere.content["due_at"], elsewhere.content["time_zone"]) == (
        "2026-07-30T15:00:00.000000Z",
        None,
    )
    assert elsewhere.content["extra"]["ics"]["lines"] == [
        "UID:W. Europe Standard Time",
        "EXDATE:20260801T150000Z,20260802T150000Z",
    ]
    assert elsewhere.warnings == ("it recurs in UTC, as 'W. Europe Standard Time' is no IANA time zone",)


def test_ics_folded_within_a_character():
    """A line that is folded between the bytes of a character is whole again; what is no text is refused."""
    todo = b"BEGIN:VTODO\r\nUID:%d\r\nSUMMARY:%b\r\nEND:VTODO\r\n"
    todos = todo % (1, b"f\xc3\r\n \xbcr\r\n\t alle") + todo % (2, b"f\xc3\r\n r")
    entries = read("ics", b"BEGIN:VCALENDAR\r\n" + todos + b"END:VCALENDAR\r\n")
    assert contents(entries)[0]["title"] == "für alle"
    assert refusals(entries) == [(10, "not UTF-8: byte 0xc3 at position 10")]


def test_ics_edited_elsewhere():
    """What another program has changed in a task that taskctl wrote counts, and the rest stays."""
    text = written("ics", [{**TASK, "due_at": "2026-11-30T16:00:00.123456Z"}]).replace(
        "Pay the rent", "Pay it"
    )
    [entry] = read("ics", text)
    assert (entry.content["title"], entry.content["project"]) == ("Pay it", TASK["project"])
    assert entry.content["due_at"] == "2026-11-30T16:00:00.123456Z"


@pytest.mark.parametrize("data", ["", "BEGIN:VCALENDAR\r\n", "hello\r\n"])
def test_ics_that_is_no_calendar(data):
    """A file that is no calendar, or a part of one, is refused."""
    assert [reason for _, reason in refusals(read("ics", data))] == [
        "no whole calendar: END:VCALENDAR is missing"
    ]


# Taskwarrior without Taskwarrior; with it: test_taskwarrior.py

TEMPLATE = {"description": "rent", "uuid": "11111111-1111-4111-8111-111111111111", "status": "recurring"}


@pytest.mark.parametrize(
    ("attributes", "due_at", "recurrence"),
    [
        ({"due": "20260930T220000Z", "recur": "monthly", "mask": "+-"}, "2026-12-01", "FREQ=MONTHLY"),
        (
            {"due": "20260130T230000Z", "recur": "P1M", "mask": "-"},
            "2026-02-28",
            "FREQ=MONTHLY;BYMONTHDAY=28,29,30,31;BYSETPOS=-1",
        ),
        (
            {"due": "20261120T160000Z", "recur": "2weeks"},
            "2026-11-20T16:00:00.000000Z",
            "FREQ=WEEKLY;INTERVAL=2",
        ),
        (
            {"due": "20261119T230000Z", "recur": "weekdays", "mask": "-"},
            "2026-11-23",
            "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR",
        ),
        (
            {"due": "20261024T150000Z", "recur": "daily", "mask": "-"},
            "2026-10-25T16:00:00.000000Z",
            "FREQ=DAILY",
        ),
        (
            {"due": "20261119T230000Z", "recur": "quarterly", "until": "20270630T220000Z"},
            "2026-11-20",
            "FREQ=MONTHLY;INTERVAL=3;UNTIL=20270701",
        ),
        ({"due": "20261119T230000Z", "recur": "12hours"}, "2026-11-20", None),
    ],
)
def test_taskwarrior_template(attributes, due_at, recurrence):
    """A template is due when its next task would be, on the clock in its zone, and goes back as it was."""
    times = {"entry": "20260101T000000Z", "modified": "20260101T000000Z"}
    original = {**TEMPLATE, **times, **attributes}
    [entry] = read("taskwarrior", json.dumps([original]))
    assert (entry.content["due_at"], entry.content["recurrence"]) == (due_at, recurrence)
    assert entry.content["completed"] is False
    assert bool(entry.warnings) == (recurrence is None)
    imported = {**TASK, **entry.content, "version": 1, "completed_at": None, "next_id": None}
    assert json.loads(written("taskwarrior", [imported])) == [original]
    [done] = json.loads(written("taskwarrior", [{**imported, "completed": True, "version": 2}]))
    assert (done["status"], done["uuid"]) == ("completed", TEMPLATE["uuid"])


def test_taskwarrior_changed_here():
    """What was changed in taskctl goes to Taskwarrior, and what it keeps besides goes with it."""
    original = {
        "uuid": "22222222-2222-4222-8222-222222222222",
        "description": "word " * 60,
        "status": "waiting",
        "entry": "20261101T100000Z",
        "modified": "20261102T100000Z",
        "wait": "20300101T000000Z",
        "tags": ["Home", "x.y"],
        "annotations": [{"entry": "20261103T100000Z", "description": "called"}],
        "estimate": 2.5,
        "id": 4,
        "urgency": 1.2,
    }
    [entry] = read("taskwarrior", json.dumps([original]))
    assert entry.content["description"].endswith("word\n\n2026-11-03T10:00:00Z called")
    imported = {**TASK, **entry.content, "version": 1, "completed_at": None, "next_id": None}
    [same] = json.loads(written("taskwarrior", [imported]))
    assert same == {name: value for name, value in original.items() if name not in {"id", "urgency"}}
    changed = {
        **imported,
        "title": "new",
        "tags": ["other"],
        "completed": True,
        "completed_at": "2026-11-22T10:00:00.000000Z",
        "version": 3,
    }
    [task] = json.loads(written("taskwarrior", [changed]))
    assert (task["description"], task["tags"], task["status"]) == ("new", ["other"], "completed")
    assert (task["end"], task["modified"]) == ("20261122T100000Z", "20261122T100000Z")
    assert (task["uuid"], task["wait"], task["estimate"]) == (original["uuid"], "20300101T000000Z", 2.5)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"due": "soon"}, "due is 'soon', no time"),
        ({"annotations": "x"}, "annotations is not an array of objects"),
        ({"tags": [1]}, "tags is not an array of texts"),
        ({"project": 5}, "project is not text"),
        ({"description": ""}, "it has no title"),
    ],
)
def test_taskwarrior_tasks_that_are_refused(attributes, reason):
    """An attribute of another type than Taskwarrior's is a reason to refuse the task."""
    assert refusals(read("taskwarrior", json.dumps([{"description": "a", **attributes}]))) == [(1, reason)]


# Todoist

TODOIST = """\
TYPE,CONTENT,DESCRIPTION,PRIORITY,INDENT,AUTHOR,RESPONSIBLE,DATE,DATE_LANG,TIMEZONE,DURATION,DURATION_UNIT
meta,view_style=list,,,,,,,,,,
task,Call @mum about it @Phone @home,,1,1,Somebody (1),,2026-11-30,en,Europe/Berlin,,
note,first,,,,Somebody (1),,,,,,
note,second,,,,,,,,,,
,,,,,,,,,,,
section,Later,,,,,,,,,,
task,Parent,Some words,2,1,,Other (2),2026-11-30 17:00,en,America/New_York,30,minute
task,Child,,3,2,,,every 2 weeks at 9am starting Nov 30 2026,en,Europe/Berlin,,
task,Child's child,,4,3,,,every last day,en,,,
task,Odd,,7,1,,,"Nov 30, 2026 at 17:00",en,,,
tusk,,,,,,,,,,,
"""


def test_todoist():
    """Labels, priorities, dates, comments, sections and subtasks of a project are understood or kept."""
    entries = read("todoist", TODOIST)
    assert refusals(entries) == [(12, "TYPE is none of task, section and note")]
    assert contents(entries) == [
        {
            "title": "Call @mum about it",
            "description": "first\n\nsecond",
            "tags": ["home", "mum", "phone"],
            "priority": "high",
            "project": "Work",
            "due_at": "2026-11-30",
            "extra": {"todoist": {"author": "Somebody (1)"}},
        },
        {
            "title": "Parent",
            "description": "Some words",
            "priority": "medium",
            "project": "Work",
            "due_at": "2026-11-30T22:00:00.000000Z",
            "extra": {
                "todoist": {
                    "responsible": "Other (2)",
                    "duration": "30",
                    "duration_unit": "minute",
                    "section": "Later",
                }
            },
        },
        {
            "title": "Child",
            "priority": "low",
            "project": "Work",
            "due_at": "2026-11-30T08:00:00.000000Z",
            "recurrence": "FREQ=WEEKLY;INTERVAL=2",
            "time_zone": "Europe/Berlin",
            "extra": {
                "taskctl": {"occurrence": "2026-11-30T08:00:00.000000Z"},
                "todoist": {
                    "date": "every 2 weeks at 9am starting Nov 30 2026",
                    "section": "Later",
                    "indent": 2,
                    "parent": "Parent",
                },
            },
        },
        {
            "title": "Child's child",
            "project": "Work",
            "extra": {
                "todoist": {"date": "every last day", "section": "Later", "indent": 3, "parent": "Child"}
            },
        },
        {
            "title": "Odd",
            "project": "Work",
            "due_at": "2026-11-30T16:00:00.000000Z",
            "extra": {"todoist": {"priority": "7", "section": "Later"}},
        },
    ]
    assert [warning for entry in entries if isinstance(entry, Record) for warning in entry.warnings] == [
        "the date 'every last day' is kept in extra only: it names no day",
        "the priority '7' is none of 1 to 4",
    ]


@pytest.mark.parametrize(
    ("written_as", "due_at", "recurrence"),
    [
        ("every weekday starting 2026-11-30", "2026-11-30", "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR"),
        ("every other month starting 30 Nov 2026", "2026-11-30", "FREQ=MONTHLY;INTERVAL=2"),
        ("Every Friday starting 2026-12-04", "2026-12-04", "FREQ=WEEKLY;BYDAY=FR"),
        ("2026-11-30T17:00:00-05:00", "2026-11-30T22:00:00.000000Z", None),
        ("30 November 2026", "2026-11-30", None),
        ("30 Nov 2026 17:00", "2026-11-30T16:00:00.000000Z", None),
        ("every week starting Nov 30 2026 5pm", "2026-11-30T16:00:00.000000Z", "FREQ=WEEKLY"),
        ("Nov 30 17:00", None, None),
        ("2026-11-30 at 5pm", "2026-11-30T16:00:00.000000Z", None),
        ("2026-11-30 at noon", None, None),
        ("Nov 31 2026", None, None),
        ("tomorrow", None, None),
    ],
)
def test_todoist_dates(written_as, due_at, recurrence):
    """Dates that say which day they mean are understood, and no others."""
    [entry] = read("todoist", f"TYPE,CONTENT,DATE\ntask,a,{written_as}\n")
    assert (entry.content["due_at"], entry.content["recurrence"]) == (due_at, recurrence)
    assert bool(entry.warnings) == (due_at is None)


@pytest.mark.parametrize(
    ("written_as", "recurrence", "weekdays"),
    [
        ("every day", "FREQ=DAILY", {0, 1, 2, 3, 4, 5, 6}),
        ("every monday at 9am", "FREQ=WEEKLY;BYDAY=MO", {0}),
        ("every tue, thursday 17:00", "FREQ=WEEKLY;BYDAY=TU,TH", {1, 3}),
        ("every weekday", "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR", {0, 1, 2, 3, 4}),
    ],
)
def test_todoist_without_a_start(written_as, recurrence, weekdays):
    """What begins on no day begins on the first from today on, and is the same task on every day."""
    data = f'TYPE,CONTENT,DATE\ntask,a,"{written_as}"\ntask,a,"{written_as}"\n'
    west, east = ZoneInfo("Etc/GMT+12"), ZoneInfo("Etc/GMT-14")  # where it is never the same day
    keys = []
    for zone in (west, east):
        today = dt.datetime.now(zone).date()
        entries = read("todoist", data, Source("x.csv", zone))
        keys.append([entry.key for entry in entries])
        due = dt.datetime.fromisoformat(entries[0].content["due_at"])
        day = (due.astimezone(zone) if due.tzinfo else due).date()
        assert (day.weekday() in weekdays, today <= day <= today + dt.timedelta(days=7)) == (True, True)
        assert entries[0].content["recurrence"] == recurrence
        assert entries[0].warnings == (
            f"the date '{written_as}' names no day: it begins on the first one from today on",
        )
    assert keys[0] == keys[1]
    assert len({*keys[0]}) == 2


def test_todoist_in_another_zone():
    """A time that names no zone is another one elsewhere, and the task is the same."""
    data = "TYPE,CONTENT,DATE\ntask,a,2026-11-30 17:00\n"
    [here], [there] = read("todoist", data), read("todoist", data, Source(BERLIN.name))
    assert here.key == there.key
    assert here.content["due_at"] != there.content["due_at"]


def test_todoist_that_is_none():
    """Another table, and a comment on nothing, are refused."""
    assert refusals(read("todoist", "title\na\n")) == [(1, "the header names no columns TYPE and CONTENT")]
    assert refusals(read("todoist", "TYPE,CONTENT\nnote,a\n")) == [(2, "a comment with no task above it")]


# Vikunja

VIKUNJA = [
    {
        "id": 1,
        "title": "Home",
        "is_archived": False,
        "tasks": [
            {
                "id": 11,
                "title": "Clean",
                "description": '<p>See <a href="https://example.com">this</a></p><ul><li>and &amp; that</ul>',
                "done": True,
                "done_at": "2026-11-20T10:00:00Z",
                "due_date": "2026-11-30T16:00:00+01:00",
                "priority": 5,
                "repeat_after": 1_209_600,
                "labels": [{"id": 1, "title": "Two words"}, {"id": 2, "title": "b"}],
                "comments": [{"id": 1, "comment": "<p>done it</p>", "author": {"username": "x"}}],
                "created": "2026-11-01T00:00:00Z",
                "percent_done": 0.5,
                "start_date": "0001-01-01T00:00:00Z",
                "position": 65536,
            },
            {"id": 12, "title": "No date", "due_date": "0001-01-01T00:00:00Z", "repeat_after": 86_400},
            {
                "id": 13,
                "title": "Odd",
                "due_date": "2026-11-30T16:00:00Z",
                "repeat_after": 3600,
                "priority": 1,
            },
            5,
        ],
        "child_projects": [
            {
                "title": "Garden",
                "tasks": [{"title": "x", "due_date": "2026-11-30T16:00:00Z", "repeat_mode": 1}],
            }
        ],
    },
    {"id": 2, "title": "Empty", "tasks": None},
]


def test_vikunja():
    """Projects, labels, priorities, dates, repetition and comments are understood, the rest is kept."""
    entries = read("vikunja", json.dumps(VIKUNJA))
    assert refusals(entries) == [(4, "a task that is not a JSON object")]
    first, second, third, fourth = contents(entries)
    assert first == {
        "title": "Clean",
        "description": "See this <https://example.com>\n- and & that\n\ndone it",
        "due_at": "2026-11-30T15:00:00.000000Z",
        "priority": "high",
        "tags": ["b", "two-words"],
        "project": "Home",
        "recurrence": "FREQ=WEEKLY;INTERVAL=2",
        "completed": True,
        "extra": {
            "taskctl": {"occurrence": "2026-11-30T15:00:00.000000Z"},
            "vikunja": {
                "id": 11,
                "description": VIKUNJA[0]["tasks"][0]["description"],
                "done_at": "2026-11-20T10:00:00Z",
                "priority": 5,
                "repeat_after": 1_209_600,
                "created": "2026-11-01T00:00:00Z",
                "percent_done": 0.5,
            },
        },
    }
    assert second["extra"] == {
        "vikunja": {"id": 12, "repeat_after": 86_400},
        "import": {"recurrence": "FREQ=DAILY"},
    }
    assert (third["priority"], "recurrence" in third) == ("low", False)
    assert (fourth["project"], fourth["recurrence"]) == ("Garden", "FREQ=MONTHLY")
    assert [entry.warnings for entry in entries if isinstance(entry, Record)] == [
        ("the tag 'Two words' became 'two-words'",),
        ("the recurrence 'FREQ=DAILY' is kept in extra only: there is no due date",),
        ("taskctl cannot repeat every 3600 seconds; it is kept in extra only",),
        (),
    ]


def test_vikunja_as_its_editor_writes():
    """A list keeps its items on their lines, with their ticks, and somebody who is mentioned their name."""
    item = (
        '<li data-checked="{}"><label><input type="checkbox"><span></span></label><div><p>{}</p></div></li>'
    )
    html = (
        '<p>ask <mention-user data-id="x" data-label="Xenia"></mention-user></p>'
        f"<ul><li><p>one</p><p>more</p></li>{item.format('true', 'two')}{item.format('false', 'three')}</ul>"
        "<p>end</p>"
    )
    data = json.dumps([{"title": "Work", "tasks": [{"id": 1, "title": "a", "description": html}]}])
    [entry] = read("vikunja", data)
    assert entry.content["description"] == "ask @Xenia\n- one\nmore\n- [x] two\n- [ ] three\nend"


def test_vikunja_as_it_is_downloaded():
    """The ZIP file is read as the file in it is."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("VERSION", "v1")
        archive.writestr("data.json", json.dumps(VIKUNJA))
    assert read("vikunja", packed.getvalue()) == read("vikunja", json.dumps(VIKUNJA))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("{}", "not an export of Vikunja's: it is no array of projects"),
        ("[", "not JSON: Expecting value at character 2"),
        (b"PK\x03\x04", "not an export of Vikunja's: File is not a zip file"),
        (b"[\xff]", "not an export of Vikunja's"),
    ],
)
def test_vikunja_that_is_none(data, reason):
    """Other files are refused as a whole."""
    [refused] = read("vikunja", data)
    assert isinstance(refused, Refused)
    assert refused.reason.startswith(reason)


# Which format


@pytest.mark.parametrize(
    ("name", "head", "form"),
    [
        ("tasks.json", b'\xef\xbb\xbf [\n{"id":1,"title":"uuid","description":null}]', "json"),
        (
            "tasks.json",
            b'[\n{"id":1,"description":"a","entry":"20261101T101010Z","uuid":"x"}]',
            "taskwarrior",
        ),
        ("data.json", b'[{"id":1,"title":"Home","hex_color":"","tasks":[]}]', "vikunja"),
        ("", b'{"title":"a"}\n', "ndjson"),
        ("a.jsonl", b"", "ndjson"),
        ("a.NDJSON", b"", "ndjson"),
        ("todo.txt", b"anything", "todo.txt"),
        ("a.zip", b"PK\x03\x04", "vikunja"),
        ("-", b"PK\x03\x04", "vikunja"),
        ("", b"begin:vcalendar\r\n", "ics"),
        ("a.ics", b"", "ics"),
        ("Inbox.csv", b"\xef\xbb\xbfTYPE,CONTENT,PRIORITY\n", "todoist"),
        ("a.csv", b"title;due_at\n", "csv"),
        ("", b"id,title\n", "csv"),
        ("", b"title\n", None),
        ("", b"buy milk", None),
        ("", b"", None),
    ],
)
def test_detection(name, head, form):
    """A format is known by the file's name, or by how the file begins; else it is not guessed."""
    assert detected(name, head) == form


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.write is not None])
def test_own_files_are_detected(form):
    """What is written is known again by its suffix and content."""
    text = written(form, [TASK]).encode()
    assert detected(f"x{FORMATS[form].suffix}", text) == form
    if form != "todo.txt":
        assert detected("", text) == form


@pytest.mark.parametrize("form", list(FORMATS))
@settings(max_examples=15, deadline=None)
@given(data=st.binary(max_size=60) | st.text('[]{}",:\n\\tile;-BEGINVTODO', max_size=60).map(str.encode))
def test_no_file_breaks_the_reader(form, data):
    """Whatever bytes are read, each entry is a record or refused, and nothing is raised."""
    entries: list[Any] = read(form, data)
    assert all(isinstance(entry, Record | Refused) and entry.line >= 1 for entry in entries)


_MEMBERS = st.sampled_from(
    [
        "id",
        "title",
        "description",
        "due_at",
        "due",
        "due_date",
        "priority",
        "tags",
        "project",
        "recurrence",
        "extra",
        "completed",
        "status",
        "annotations",
        "recur",
        "mask",
        "until",
        "taskctl",
        "labels",
        "comments",
        "done",
        "repeat_after",
        "repeat_mode",
        "created",
        "uuid",
        "user_id",
        "created_at",
        "time_zone",
        "tasks",
        "entry",
    ]
)


@pytest.mark.parametrize("form", ["json", "taskwarrior", "vikunja"])
@settings(max_examples=40, deadline=None)
@given(
    members=st.dictionaries(
        _MEMBERS, _JSON | _INSTANTS | st.just({"taskctl": 5, "taskwarrior": [1]}), max_size=8
    )
)
def test_no_member_breaks_the_reader(form, members):
    """Whatever members hold, the entry is a record that the API takes, or refused, and is written again."""
    tasks = [{"tasks": [{"title": "a", **members}, members]}] if form == "vikunja" else [members]
    for entry in read(form, json.dumps(tasks)):
        assert isinstance(entry, Record | Refused)
        if isinstance(entry, Record):
            TaskContent.model_validate(entry.content)
            for other in FORMATS:
                if FORMATS[other].write is not None:
                    assert written(other, [{**TASK, **entry.content}])
