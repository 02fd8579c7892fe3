"""Due dates as people write and read them: what each text means, where, and what is refused."""

import contextlib
import os
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskctl import dates

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
AUCKLAND = ZoneInfo("Pacific/Auckland")

NOW = datetime(2026, 11, 25, 15, 30, 12, 345678, tzinfo=BERLIN)
"""A Wednesday."""


def wire(text, now=NOW, zone=BERLIN):
    """What is sent for a text."""
    due = dates.read(text, now, zone)
    return None if due is None else dates.wire(due)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("today", "2026-11-25"),
        ("  Tomorrow ", "2026-11-26"),
        ("yesterday", "2026-11-24"),
        ("fri", "2026-11-27"),
        ("FRIDAY", "2026-11-27"),
        ("on thurs", "2026-11-26"),
        ("wed", "2026-12-02"),
        ("tue", "2026-12-01"),
        ("in 3 days", "2026-11-28"),
        ("3 days", "2026-11-28"),
        ("in a week", "2026-12-02"),
        ("+2w", "2026-12-09"),
        ("+3d", "2026-11-28"),
        ("+ 3 d", "2026-11-28"),
        ("-1d", "2026-11-24"),
        ("2 weeks ago", "2026-11-11"),
        ("+1mo", "2026-12-25"),
        ("+1y", "2027-11-25"),
        ("eow", "2026-11-29"),
        ("eom", "2026-11-30"),
        ("eoy", "2026-12-31"),
        ("next week", "2026-11-30"),
        ("next month", "2026-12-01"),
        ("next year", "2027-01-01"),
        ("1st", "2026-12-01"),
        ("the 26th", "2026-11-26"),
        ("25th", "2026-12-25"),
        ("31st", "2026-12-31"),
        ("jan 5", "2027-01-05"),
        ("5 jan", "2027-01-05"),
        ("5jan", "2027-01-05"),
        ("January 5th, 2028", "2028-01-05"),
        ("25 nov", "2026-11-25"),
        ("24 nov", "2027-11-24"),
        ("feb 29", "2028-02-29"),
        ("2026-12-31", "2026-12-31"),
        ("20261231", "2026-12-31"),
        ("2026-W48-5", "2026-11-27"),
        ("0001-01-01", "0001-01-01"),
        ("9999-12-31", "9999-12-31"),
        ("none", None),
        ("17:00", "2026-11-25T17:00:00+01:00"),
        ("15:30", "2026-11-26T15:30:00+01:00"),
        ("5pm", "2026-11-25T17:00:00+01:00"),
        ("12am", "2026-11-26T00:00:00+01:00"),
        ("at noon", "2026-11-26T12:00:00+01:00"),
        ("tomorrow 17:00", "2026-11-26T17:00:00+01:00"),
        ("tomorrow@17:00", "2026-11-26T17:00:00+01:00"),
        ("today 9:00", "2026-11-25T09:00:00+01:00"),
        ("fri 9am", "2026-11-27T09:00:00+01:00"),
        ("9:15 am on friday", "2026-11-27T09:15:00+01:00"),
        ("jan 5 at 12:30pm", "2027-01-05T12:30:00+01:00"),
        ("in 2 hours", "2026-11-25T17:30:00+01:00"),
        ("+90min", "2026-11-25T17:00:00+01:00"),
        ("2026-12-31T17:00", "2026-12-31T17:00:00+01:00"),
        ("2026-12-31 17:00:30", "2026-12-31T17:00:30+01:00"),
        ("2026-12-31 5pm", "2026-12-31T17:00:00+01:00"),
        ("2026-12-31@9:00", "2026-12-31T09:00:00+01:00"),
        ("2026-12-31 at 9am", "2026-12-31T09:00:00+01:00"),
        ("9:00 2026-12-31", "2026-12-31T09:00:00+01:00"),
        ("at 5pm on fri", "2026-11-27T17:00:00+01:00"),
        ("2026-07-31T17:00", "2026-07-31T17:00:00+02:00"),
        ("2026-12-31T17:00Z", "2026-12-31T17:00:00+00:00"),
        ("2026-12-31T17:00:00-05:30", "2026-12-31T17:00:00-05:30"),
        ("20261231T170000Z", "2026-12-31T17:00:00+00:00"),
    ],
)
def test_text_means(text, expected):
    """Each way to write a day or a time means one thing."""
    assert wire(text) == expected


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "write a day such as"),
        ("someday", "write a day such as"),
        ("and", "write a day such as"),
        ("2th", "write a day such as"),
        ("32nd", "write a day such as"),
        ("in 3 days ago", "write a day such as"),
        ("at 9", "write a day such as"),
        ("tomorrow fri", "write a day such as"),
        ("5/6", "write 5 jun, or 2026-06-05"),
        ("5/6 17:00", "write 5 jun, or 2026-06-05"),
        ("05.06.2026", "write 5 jun, or 2026-06-05"),
        ("5-6", "write 5 jun, or 2026-06-05"),
        ("2026/5/6", "write 5 jun, or 2026-06-05"),
        ("5", "write 5th, 5:00 or +5d"),
        ("0", "write 15th, 0:00 or +0d"),
        ("31", "write 31st, 17:00 or +31d"),
        ("next friday", "write friday"),
        ("+3m", "write min or mo"),
        ("25:00", "from 0:00 to 23:59"),
        ("17:60", "from 0:00 to 23:59"),
        ("13pm", "write it as 17:00 or 5pm"),
        ("feb 30", "February has 29 days"),
        ("29 feb 2027", "no day that exists"),
        ("2026-13-01", "write it as 2026-12-31"),
        ("2026-11", "write it as 2026-12-31"),
        ("2026-11-25 at night", "write it as 2026-12-31"),
        ("2027-02-29T10:00Z", "write it as 2026-12-31"),
        ("+99999y", "years 1 to 9999"),
        ("-3000y", "years 1 to 9999"),
        ("0001-01-01T00:00+05:00", "years 1 to 9999"),
        ("9999-12-31T23:00-05:00", "years 1 to 9999"),
    ],
)
def test_text_is_refused(text, advice):
    """What means nothing, or more than one thing, is refused with what to write."""
    with pytest.raises(ValueError, match=advice.replace("+", r"\+")):
        dates.read(text, NOW, BERLIN)


@settings(deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"[a-z0-9 :+-]{1,20}", fullmatch=True))
def test_any_text_is_read_or_refused(text):
    """Whatever is written is a due date that survives the wire, or is refused."""
    with contextlib.suppress(ValueError):
        due = dates.read(text, NOW, BERLIN)
        assert due is None or dates.from_wire(dates.wire(due)) == due


@pytest.mark.parametrize(
    ("now", "zone", "expected"),
    [
        ("2026-11-25T23:30:00+00:00", "UTC", "2026-11-25"),
        ("2026-11-25T23:30:00+00:00", "Europe/Berlin", "2026-11-26"),
        ("2026-11-25T02:30:00+00:00", "America/New_York", "2026-11-24"),
        ("2026-11-25T11:30:00+00:00", "Pacific/Auckland", "2026-11-26"),
    ],
)
def test_today_is_the_zone_s(now, zone, expected):
    """Today is what the calendar of the person's own zone shows, whatever zone `now` is in."""
    assert wire("today", datetime.fromisoformat(now), ZoneInfo(zone)) == expected


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2027-03-28 02:30", BERLIN, "2027-03-28T03:30:00+02:00"),
        ("2026-10-25 02:30", BERLIN, "2026-10-25T02:30:00+02:00"),
        ("2027-03-14 02:15", NEW_YORK, "2027-03-14T03:15:00-04:00"),
        ("2027-11-07 01:30", NEW_YORK, "2027-11-07T01:30:00-04:00"),
        ("2027-04-04 02:30", AUCKLAND, "2027-04-04T02:30:00+13:00"),
    ],
)
def test_clock_changes(text, zone, expected):
    """A time that clocks skip is moved forward; of one that comes twice the first is meant."""
    assert wire(text, zone=zone) == expected


def test_a_time_that_comes_twice_and_is_past_once():
    """Between the two times that clocks show half past one, `1:30` is the second, and after it tomorrow's."""
    between = datetime(2026, 11, 1, 1, 15, fold=1, tzinfo=NEW_YORK)
    assert wire("1:30", between, NEW_YORK) == "2026-11-01T01:30:00-05:00"
    assert wire("1:30", between.replace(minute=35), NEW_YORK) == "2026-11-02T01:30:00-05:00"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wed", "2026-11-25"),
        ("thu", "2026-11-19"),
        ("thu 9:00", "2026-11-19T09:00:00+01:00"),
        ("wed 17:00", "2026-11-18T17:00:00+01:00"),
        ("25th", "2026-11-25"),
        ("26th", "2026-10-26"),
        ("31st", "2026-10-31"),
        ("nov 1", "2026-11-01"),
        ("dec 24", "2025-12-24"),
        ("feb 29", "2024-02-29"),
        ("15:30", "2026-11-25T15:30:00+01:00"),
        ("17:00", "2026-11-24T17:00:00+01:00"),
        ("dec 24 2026", "2026-12-24"),
        ("2026-12-24", "2026-12-24"),
        ("today", "2026-11-25"),
        ("eow", "2026-11-29"),
        ("-7d", "2026-11-18"),
        ("+1d", "2026-11-26"),
        ("none", None),
    ],
)
def test_what_has_happened_was_on_the_last_such_day(text, expected):
    """Of what is past, a weekday, a day of the month or of the year, or a time is the last one."""
    due = dates.read_past(text, NOW, BERLIN)
    assert (due and dates.wire(due)) == expected


def test_hours_are_counted_through_a_clock_change():
    """Two hours are two hours, a day is a day on the calendar."""
    before = datetime(2027, 3, 28, 1, 30, tzinfo=BERLIN)
    assert wire("in 2 hours", before) == "2027-03-28T04:30:00+02:00"
    assert wire("+1d 1:30", before) == "2027-03-29T01:30:00+02:00"


@pytest.mark.parametrize(
    ("today", "text", "expected"),
    [
        (date(2027, 1, 31), "+1mo", "2027-02-28"),
        (date(2028, 1, 31), "+1mo", "2028-02-29"),
        (date(2028, 2, 29), "+1y", "2029-02-28"),
        (date(2027, 1, 30), "31st", "2027-01-31"),
        (date(2027, 1, 31), "31st", "2027-03-31"),
        (date(2027, 1, 31), "30th", "2027-03-30"),
        (date(2027, 1, 31), "eom", "2027-01-31"),
        (date(2027, 12, 31), "next month", "2028-01-01"),
        (date(2027, 12, 31), "eoy", "2027-12-31"),
        (date(2026, 11, 29), "eow", "2026-11-29"),
        (date(2026, 11, 29), "sunday", "2026-12-06"),
        (date(2097, 3, 1), "feb 29", "2104-02-29"),
    ],
)
def test_ends_of_months_and_leap_days(today, text, expected):
    """At the end of a month, and around leap days, the day exists and is the next."""
    assert wire(text, datetime(today.year, today.month, today.day, 12, tzinfo=BERLIN)) == expected


def test_seconds_in_an_old_offset_go_over_the_wire_in_utc():
    """RFC 3339 has no seconds in offsets, which zones had before they were standardised."""
    assert wire("1880-01-01T12:00") == "1880-01-01T11:06:32+00:00"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("overdue", "overdue"),
        ("Today", "today"),
        ("week", "week"),
        ("none", "none"),
        ("any", "any"),
        ("tomorrow", "2026-11-26..2026-11-26"),
        ("today..fri", "2026-11-25..2026-11-27"),
        ("mon..fri", "2026-11-30..2026-12-04"),
        ("28th .. 1st", "2026-11-28..2026-12-01"),
        ("1st..28th", "2026-12-01..2026-12-28"),
        ("..eow", "..2026-11-29"),
        ("fri..", "2026-11-27.."),
        ("..17:00", "..2026-11-25T17:00:00+01:00"),
        ("today 9:00..today 10:00", "2026-11-25T09:00:00+01:00..2026-11-25T10:00:00+01:00"),
        ("fri 17:00..fri", "2026-11-27T17:00:00+01:00..2026-11-27"),
        ("-1w..yesterday", "2026-11-18..2026-11-24"),
    ],
)
def test_span(text, expected):
    """A range is sent with its ends resolved; a day is a range of one."""
    assert dates.span(text, NOW, BERLIN) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "needs a beginning or an end"),
        ("..", "needs a beginning or an end"),
        ("17:00", "A time is an end of a range"),
        ("none..fri", "no end of a range"),
        ("tomorrow..today", "ends, 2026-11-25, before it begins, 2026-11-26"),
        ("today 10:00..today 9:00", "before it begins"),
        ("today..someday", "write a day"),
        ("a..b..c", "write a day"),
    ],
)
def test_span_is_refused(text, reason):
    """A range that is none, or ends before it begins, is refused."""
    with pytest.raises(ValueError, match=reason):
        dates.span(text, NOW, BERLIN)


@pytest.mark.parametrize(
    ("due_at", "relative", "full"),
    [
        ("2026-11-25", "today", "Wed 25 Nov 2026"),
        ("2026-11-26", "tomorrow", "Thu 26 Nov 2026"),
        ("2026-11-24", "yesterday", "Tue 24 Nov 2026"),
        ("2026-11-22", "3 days ago", "Sun 22 Nov 2026"),
        ("2026-10-26", "30 days ago", "Mon 26 Oct 2026"),
        ("2026-10-25", "Sun 25 Oct", "Sun 25 Oct 2026"),
        ("2026-11-28", "Sat 28 Nov", "Sat 28 Nov 2026"),
        ("2027-01-01", "Fri 1 Jan 2027", "Fri 1 Jan 2027"),
        ("2026-11-25T16:00:00.000000Z", "today 17:00", "Wed 25 Nov 2026 17:00 CET"),
        ("2026-11-25T23:00:00.000000Z", "tomorrow 00:00", "Thu 26 Nov 2026 00:00 CET"),
        ("2026-11-23T22:59:00.000000Z", "2 days ago", "Mon 23 Nov 2026 23:59 CET"),
        ("2027-07-01T10:00:00.000000Z", "Thu 1 Jul 2027 12:00", "Thu 1 Jul 2027 12:00 CEST"),
        ("9999-12-31T23:59:00.000000Z", "Fri 31 Dec 9999 23:59", "Fri 31 Dec 9999 23:59 UTC"),
    ],
)
def test_display(due_at, relative, full):
    """A due date is shown as it is in the person's zone, at a glance and without doubt."""
    due = dates.from_wire(due_at)
    assert dates.relative(due, NOW, BERLIN) == relative
    assert dates.full(due, BERLIN) == full


def test_overdue():
    """A moment is overdue once it has come, a day when it is over where its person is."""
    assert dates.overdue(NOW - timedelta(seconds=1), NOW, BERLIN)
    assert not dates.overdue(NOW + timedelta(seconds=1), NOW, BERLIN)
    late = datetime(2026, 11, 25, 23, 30, tzinfo=UTC)
    assert dates.overdue(date(2026, 11, 25), late, BERLIN)
    assert not dates.overdue(date(2026, 11, 25), late, NEW_YORK)


@pytest.mark.parametrize(
    "name", ["", "Europe", "Mars/Base", "../etc/passwd", "/etc/localtime", "localtime", "a\0b"]
)
def test_no_zone(name):
    """What is no zone, and what would be another zone on another machine, is refused."""
    with pytest.raises(ValueError, match="no IANA time zone"):
        dates.zone_of(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Asia/Tokyo", "Asia/Tokyo"),
        (":Asia/Tokyo", "Asia/Tokyo"),
        ("/usr/share/zoneinfo/Asia/Tokyo", "Asia/Tokyo"),
        ("", "UTC"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", "Etc/GMT-1"),
    ],
)
def test_machine_zone_from_the_environment(tmp_path, text, expected):
    """TZ names the zone; where it has rules but no name, the present offset has to do."""
    assert dates.machine_zone({"TZ": text}, NOW, tmp_path / "localtime").key == expected


def test_machine_zone_from_the_system(tmp_path: Path):
    """The link's name counts, then the name beside a copy, then the offset, then UTC."""
    localtime = tmp_path / "localtime"
    zoneinfo = tmp_path / "zoneinfo.default" / "Asia"
    zoneinfo.mkdir(parents=True)
    shutil.copy(__file__, zoneinfo / "Tokyo")
    localtime.symlink_to(zoneinfo / "Tokyo")
    assert dates.machine_zone({}, NOW, localtime).key == "Asia/Tokyo"

    localtime.unlink()
    shutil.copy(__file__, localtime)
    (tmp_path / "timezone").write_text("Asia/Kolkata\n")
    assert dates.machine_zone({}, NOW, localtime).key == "Asia/Kolkata"

    (tmp_path / "timezone").write_bytes(b"\xff")
    assert dates.machine_zone({}, NOW.astimezone(NEW_YORK), localtime).key == "Etc/GMT+5"
    half = datetime.fromisoformat("2026-11-25T12:00:00+05:30")
    assert dates.machine_zone({}, half, localtime).key == "UTC"


def test_machine_zone_of_this_machine():
    """Here as well the zone has the offset that the clock has."""
    now = datetime.now().astimezone()
    assert now.astimezone(dates.machine_zone(os.environ, now)).utcoffset() == now.utcoffset()
