"""Quick entry: which words of a line are fields, which stay text, and what is refused."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskctl import entry, recurrence
from taskctl.errors import UsageInvalid

BERLIN = ZoneInfo("Europe/Berlin")

NOW = datetime(2026, 11, 25, 15, 30, tzinfo=BERLIN)
"""A Wednesday."""


def read(text):
    """A line's title and fields."""
    found = entry.read(text, NOW, BERLIN)
    return found.title, found.fields


def test_all_fields():
    """The title is what is left; the fields are those of the API."""
    assert read("Pay rent due:1st every:month +home p:high project:flat") == (
        "Pay rent",
        {
            "due_at": "2026-12-01",
            "recurrence": "FREQ=MONTHLY;BYMONTHDAY=1",
            "time_zone": "Europe/Berlin",
            "priority": "high",
            "tags": ["home"],
            "project": "flat",
        },
    )


@pytest.mark.parametrize(
    ("text", "title", "fields"),
    [
        ("+home Buy  milk +shop +home", "Buy  milk", {"tags": ["home", "shop"]}),
        ("Buy due:fri milk", "Buy milk", {"due_at": "2026-11-27"}),
        ("Call DUE:Tomorrow@17:00", "Call", {"due_at": "2026-11-26T17:00:00+01:00"}),
        ('Call due:"in 3 days"', "Call", {"due_at": "2026-11-28"}),
        ("Call due:'jan 5' now", "Call now", {"due_at": "2027-01-05"}),
        ("Call due:none", "Call", {"due_at": None}),
        ("Call P:H", "Call", {"priority": "high"}),
        ("Call priority:med", "Call", {"priority": "medium"}),
        ("Call p:n", "Call", {"priority": "none"}),
        ('Call pro:"New flat"', "Call", {"project": "New flat"}),
        ("Call due:fri +x 17:00", "Call 17:00", {"due_at": "2026-11-27", "tags": ["x"]}),
        ("Meet due:fri at the pub", "Meet at the pub", {"due_at": "2026-11-27"}),
        ("Pay due:fri on", "Pay on", {"due_at": "2026-11-27"}),
        ("Buy due:fri 3 pears", "Buy 3 pears", {"due_at": "2026-11-27"}),
        ("Call due:'fri' 17:00", "Call 17:00", {"due_at": "2026-11-27"}),
        ("Call project:none", "Call", {"project": None}),
        ("Call +дом", "Call", {"tags": ["дом"]}),
        ("Call every:none", "Call", {"recurrence": None, "time_zone": None}),
    ],
)
def test_fields(text, title, fields):
    """Each field has its ways to be written, wherever it stands."""
    assert read(text) == (title, fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Buy milk",
        "see http://x.test/a?p=1 and mailto:me",
        "C++ is 1+1, +1 for this",
        "overdue:fri xp:h xyz:abc 17:00",
        "Call Bob -- urgent",
        'Read "due:fri by +x" today',
        'say "hello',
        r"clean C:\temp and \n",
        "a\ttab  and  spaces",
        "e-mail +49",
    ],
)
def test_what_looks_alike_is_text(text):
    """What is no field stays in the title as it is written."""
    assert read(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (r"mark \+home", "mark +home"),
        (r"explain \due:fri", "explain due:fri"),
        (r'explain \due:"in 3 days"', 'explain due:"in 3 days"'),
        (r"Project\: \project: kick-off", r"Project\: project: kick-off"),
        ("Discuss -- due:fri and +1", "Discuss due:fri and +1"),
        ("-- +home", "+home"),
        ("a -- b +x -- p:h", "a b +x -- p:h"),
    ],
)
def test_literal(text, title):
    """A backslash, quotes or `--` keep as text what would be a field."""
    assert read(text) == (title, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x due:someday", r"due:someday: 'someday' is no day .* or \\due:someday to keep it as text"),
        ("x due:5/6", "write 5 jun"),
        ("x due:", "Nothing follows due:; write due:fri"),
        ("x due: fri", "Nothing follows due:"),
        ('x project:" "', "Nothing follows project:"),
        ('x due:"in 3 days', 'quote in due:"in is not closed'),
        ("x p:12", "no priority; write high"),
        ("x p:", "write p:high"),
        ("x every:moon", "no recurrence; write day"),
        ("x every:mon@9am", "no recurrence"),
        ("x every:15th,30th", "write last"),
        ("x every:31nd", "no recurrence"),
        ("x every:jan40", "no recurrence"),
        ("x every:0d", "INTERVAL takes 1 to 1000"),
        ("x every:5000d", "INTERVAL takes 1 to 1000"),
        ("x every:day due:none", "leave out due:none or every:"),
        ("x due:fri due:mon", "'due:mon' after 'due:fri'"),
        ("x p:h priority:l", "'priority:l' after 'p:h'"),
        ("x +a,b", r"write \+a \+b"),
        ("x +" + "a" * 65, "at most 64 characters"),
        ("due:fri +home", "has no title"),
        ("x due:fri 17:00 now", "write due:fri@17:00, or 17:00 before due:fri"),
        ("x due:fri at 5pm", "write due:fri@at@5pm, or at 5pm before due:fri"),
        ("x due:in 3 days time", "write due:in@3@days[.]"),
        ("every:2 weeks x", "write every:2@weeks[.]"),
        ("x due:15th jan", "write due:15th@jan"),
        ("x every:last fri", "write every:last@fri"),
    ],
)
def test_refused(text, reason):
    """What begins like a field and cannot be read is refused, never put into the title."""
    with pytest.raises(UsageInvalid, match=reason):
        read(text)


@pytest.mark.parametrize(
    ("every", "due_at", "rule"),
    [
        ("day", "2026-11-25", "FREQ=DAILY"),
        ("daily", "2026-11-25", "FREQ=DAILY"),
        ("3d", "2026-11-25", "FREQ=DAILY;INTERVAL=3"),
        ("week", "2026-11-25", "FREQ=WEEKLY;BYDAY=WE"),
        ("2w", "2026-11-25", "FREQ=WEEKLY;INTERVAL=2;BYDAY=WE"),
        ("other@week", "2026-11-25", "FREQ=WEEKLY;INTERVAL=2;BYDAY=WE"),
        ("month", "2026-11-25", "FREQ=MONTHLY;BYMONTHDAY=25"),
        ("3months", "2026-11-25", "FREQ=MONTHLY;INTERVAL=3;BYMONTHDAY=25"),
        ("year", "2026-11-25", "FREQ=YEARLY;BYMONTH=11;BYMONTHDAY=25"),
        ("weekday", "2026-11-25", "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR"),
        ("mon,thu", "2026-11-26", "FREQ=WEEKLY;BYDAY=MO,TH"),
        ("Wednesday", "2026-11-25", "FREQ=WEEKLY;BYDAY=WE"),
        ("tue", "2026-12-01", "FREQ=WEEKLY;BYDAY=TU"),
        ("1st", "2026-12-01", "FREQ=MONTHLY;BYMONTHDAY=1"),
        ("25th", "2026-11-25", "FREQ=MONTHLY;BYMONTHDAY=25"),
        ("1st,15th,last", "2026-11-30", "FREQ=MONTHLY;BYMONTHDAY=-1,1,15"),
        ("30th", "2026-11-30", "FREQ=MONTHLY;BYMONTHDAY=28,29,30;BYSETPOS=-1"),
        ("31st", "2026-11-30", "FREQ=MONTHLY;BYMONTHDAY=-1"),
        ("2nd@tue", "2026-12-08", "FREQ=MONTHLY;BYDAY=2TU"),
        ("last@fri", "2026-11-27", "FREQ=MONTHLY;BYDAY=-1FR"),
        ("jan5", "2027-01-05", "FREQ=YEARLY;BYMONTH=1;BYMONTHDAY=5"),
        ("5th@january", "2027-01-05", "FREQ=YEARLY;BYMONTH=1;BYMONTHDAY=5"),
        ("feb29", "2027-02-28", "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=-1"),
    ],
)
def test_every(every, due_at, rule):
    """Without a due date what recurs is due first on the first of its days, today included."""
    _, fields = read(f"x every:{every}")
    assert (fields["due_at"], fields["recurrence"]) == (due_at, rule)
    assert recurrence.check(rule) == rule


@pytest.mark.parametrize(
    ("due", "every", "rule"),
    [
        ("fri", "week", "FREQ=WEEKLY;BYDAY=FR"),
        ("31@jan", "month", "FREQ=MONTHLY;BYMONTHDAY=-1"),
        ("30@jan", "month", "FREQ=MONTHLY;BYMONTHDAY=28,29,30;BYSETPOS=-1"),
        ("2028-02-29", "year", "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=-1"),
        ("2026-11-26T23:30Z", "week", "FREQ=WEEKLY;BYDAY=FR"),
        ("fri", "mon", "FREQ=WEEKLY;BYDAY=MO"),
    ],
)
def test_every_with_due(due, every, rule):
    """A due date decides on which day, in the person's zone, something recurs that does not say it."""
    assert read(f"x due:{due} every:{every}")[1]["recurrence"] == rule


WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["due:", "due:fri", 'due:"', '"', "--", "\\", "+", "+a", "every:week", "p:h", "project:x", " "]
    ),
)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6).map("".join) | st.lists(WORDS, max_size=6).map(" ".join))
def test_any_line_is_read_or_refused(text):
    """Whatever is written is refused, or its title consists of its own characters, in order."""
    try:
        found = entry.read(text, NOW, BERLIN)
    except UsageInvalid:
        return
    characters = iter(text)
    assert all(character in characters for character in found.title)
    assert found.fields or "--" in text or "\\" in text or found.title == text.strip()
