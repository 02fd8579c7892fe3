"""Recurrence rules: which there are, what they are called, and when what recurs is due next."""

from datetime import UTC, date, datetime, time, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taskctl.recurrence import check, words
from taskctl.server.recurrence import following

NOW = datetime(2026, 11, 25, 14, 30, tzinfo=UTC)
"""A Wednesday."""

TODAY = NOW.date()

UTC_ZONE = ZoneInfo("UTC")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("FREQ=DAILY", "FREQ=DAILY"),
        (" freq=weekly;byday=th,mo,th ", "FREQ=WEEKLY;BYDAY=MO,TH"),
        ("BYMONTHDAY=15,-1,01;INTERVAL=1;FREQ=MONTHLY", "FREQ=MONTHLY;BYMONTHDAY=-1,1,15"),
        ("FREQ=MONTHLY;BYDAY=+2TU,-1FR;WKST=MO", "FREQ=MONTHLY;BYDAY=2TU,-1FR"),
        ("FREQ=WEEKLY;INTERVAL=2;WKST=SU;COUNT=10", "FREQ=WEEKLY;INTERVAL=2;COUNT=10;WKST=SU"),
        ("FREQ=DAILY;UNTIL=20261231", "FREQ=DAILY;UNTIL=20261231"),
        ("FREQ=DAILY;UNTIL=20261231T170000Z", "FREQ=DAILY;UNTIL=20261231T170000Z"),
        ("FREQ=DAILY;UNTIL=00010101", "FREQ=DAILY;UNTIL=00010101"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29"),
        (
            "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1",
            "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1",
        ),
        ("FREQ=YEARLY;BYDAY=53MO", "FREQ=YEARLY;BYDAY=53MO"),
    ],
)
def test_normal_form(text, normal):
    """A rule is kept in one form, which is its own normal form."""
    assert check(text) == normal
    assert check(normal) == normal


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no part"),
        ("FREQ", "is no part"),
        ("FREQ=DAILY;", "is no part"),
        ("FREQ=DAILY;BYDAY=", "is no part"),
        ("RRULE:FREQ=DAILY", "Leave out RRULE:"),
        ("INTERVAL=2", "FREQ is missing"),
        ("FREQ=HOURLY", "FREQ is DAILY"),
        ("FREQ=DAILY;FREQ=DAILY", "FREQ stands twice"),
        ("FREQ=DAILY;BYHOUR=9", "not supported"),
        ("FREQ=YEARLY;BYWEEKNO=20", "not supported"),
        ("FREQ=DAILY;X-NAME=1", "not supported"),
        ("FREQ=DAILY;INTERVAL=0", "INTERVAL takes 1 to 1000"),
        ("FREQ=DAILY;INTERVAL=1001", "INTERVAL takes 1 to 1000"),
        ("FREQ=DAILY;INTERVAL=-1", "INTERVAL takes 1 to 1000"),
        ("FREQ=DAILY;INTERVAL=٣", "INTERVAL takes 1 to 1000"),
        ("FREQ=DAILY;COUNT=0", "COUNT takes"),
        ("FREQ=DAILY;COUNT=99999999999", "COUNT takes"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20261231", "exclude each other"),
        ("FREQ=DAILY;UNTIL=20261331", "does not exist"),
        ("FREQ=DAILY;UNTIL=20261231T250000Z", "does not exist"),
        ("FREQ=DAILY;UNTIL=20261231T170000", "a time in UTC"),
        ("FREQ=DAILY;UNTIL=2026-12-31", "a time in UTC"),
        ("FREQ=WEEKLY;BYDAY=MONDAY", "A weekday is one of"),
        ("FREQ=WEEKLY;BYDAY=MO,,TU", "A weekday is one of"),
        ("FREQ=WEEKLY;BYDAY=1MO", "FREQ=MONTHLY or YEARLY only"),
        ("FREQ=DAILY;BYDAY=1MO", "FREQ=MONTHLY or YEARLY only"),
        ("FREQ=MONTHLY;BYDAY=MO,1TU", "with a number or without"),
        ("FREQ=MONTHLY;BYDAY=6MO", "at most 5"),
        ("FREQ=YEARLY;BYMONTH=1;BYDAY=-6MO", "at most 5"),
        ("FREQ=YEARLY;BYDAY=54MO", "BYDAY takes 1 to 53"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "does not go with FREQ=WEEKLY"),
        ("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY takes"),
        ("FREQ=MONTHLY;BYMONTHDAY=32", "BYMONTHDAY takes"),
        ("FREQ=YEARLY;BYMONTH=13", "BYMONTH takes"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "None of these months"),
        ("FREQ=YEARLY;BYMONTH=4,6;BYMONTHDAY=-31,31", "None of these months"),
        ("FREQ=MONTHLY;BYSETPOS=1", "needs another part"),
        ("FREQ=DAILY;BYDAY=MO;BYSETPOS=1", "does not go with FREQ=DAILY"),
        ("FREQ=WEEKLY;BYDAY=MO;BYSETPOS=2", "beyond what there can be"),
        ("FREQ=MONTHLY;BYDAY=MO;BYSETPOS=300", "beyond what there can be"),
        ("FREQ=DAILY;WKST=8", "A weekday is one of"),
        ("FREQ=DAILY" + ";" * 491, "at most 500 characters"),
    ],
)
def test_rule_is_refused(text, reason):
    """What is no rule, or one that tasks cannot have, is refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        check(text)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=DAILY", "every day"),
        ("FREQ=DAILY;INTERVAL=3", "every 3 days"),
        ("FREQ=WEEKLY", "every week"),
        ("FREQ=WEEKLY;BYDAY=MO,TH", "every week on Monday and Thursday"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=FR", "every 2 weeks on Friday"),
        ("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR", "every weekday"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,TU,WE,TH,FR", "every 2 weeks on Monday to Friday"),
        ("FREQ=MONTHLY", "every month"),
        ("FREQ=MONTHLY;BYMONTHDAY=1", "every month on the 1st"),
        ("FREQ=MONTHLY;BYMONTHDAY=1,15,-1", "every month on the 1st, 15th and last day"),
        ("FREQ=MONTHLY;BYMONTHDAY=-2", "every month on the 2nd last day"),
        ("FREQ=MONTHLY;BYMONTHDAY=28,29,30;BYSETPOS=-1", "every month on the 30th or the last day"),
        ("FREQ=MONTHLY;BYDAY=2TU,-1FR", "every month on the 2nd Tuesday and last Friday"),
        ("FREQ=MONTHLY;BYDAY=1MO;BYMONTH=1,7", "every month on the 1st Monday of January and July"),
        ("FREQ=YEARLY", "every year"),
        ("FREQ=YEARLY;BYMONTH=1;BYMONTHDAY=5", "every year on 5 January"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=-1", "every year on the last day of February"),
        ("FREQ=YEARLY;BYMONTH=1,7;BYMONTHDAY=1", "every year on the 1st of January and July"),
        ("FREQ=YEARLY;INTERVAL=2;BYMONTH=3", "every 2 years in March"),
        ("FREQ=DAILY;COUNT=5", "every day, 5 times"),
        ("FREQ=DAILY;COUNT=1", "every day, the last time"),
        ("FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR;UNTIL=20261231", "every weekday until 31 Dec 2026"),
        ("FREQ=DAILY;UNTIL=20261231T170000Z", "every day until 31 Dec 2026"),
        # What has no short words
        ("FREQ=MONTHLY;BYDAY=MO,TU;BYSETPOS=-1", "FREQ=MONTHLY;BYDAY=MO,TU;BYSETPOS=-1"),
        ("FREQ=DAILY;BYMONTH=1", "FREQ=DAILY;BYMONTH=1"),
        ("FREQ=WEEKLY;BYMONTH=1;BYDAY=MO", "FREQ=WEEKLY;BYMONTH=1;BYDAY=MO"),
        ("FREQ=YEARLY;BYDAY=20MO", "FREQ=YEARLY;BYDAY=20MO"),
        ("FREQ=MONTHLY;BYMONTHDAY=13;BYDAY=FR", "FREQ=MONTHLY;BYMONTHDAY=13;BYDAY=FR"),
        ("FREQ=MONTHLY;BYDAY=MO", "FREQ=MONTHLY;BYDAY=MO"),
    ],
)
def test_words(rule, expected):
    """A rule has words that people use, or stands for itself."""
    assert words(rule) == expected


def next_day(rule, due, now=NOW, zone="UTC"):
    """The next day of a rule, in ISO 8601, and the rule, if that is another; None at its end."""
    found = following(rule, date.fromisoformat(due), ZoneInfo(zone), now)
    if found is None:
        return None
    return found[0].isoformat() if found[1] == check(rule) else (found[0].isoformat(), found[1])


@pytest.mark.parametrize(
    ("rule", "due", "expected"),
    [
        ("FREQ=DAILY", "2026-11-25", "2026-11-26"),
        ("FREQ=DAILY", "2026-11-20", "2026-11-26"),
        ("FREQ=DAILY", "2026-12-24", "2026-12-25"),
        ("FREQ=DAILY;INTERVAL=10", "2026-10-01", "2026-11-30"),
        ("FREQ=DAILY;BYDAY=SA,SU", "2026-11-22", "2026-11-28"),
        ("FREQ=DAILY;BYMONTH=1", "2026-11-22", "2027-01-01"),
        ("FREQ=DAILY;INTERVAL=2;BYMONTHDAY=-1", "2026-11-25", "2026-12-31"),
        ("FREQ=WEEKLY", "2026-11-18", "2026-12-02"),
        ("FREQ=WEEKLY;BYDAY=MO,TH", "2026-11-23", "2026-11-26"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,TH", "2026-11-26", "2026-12-07"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=SU,MO", "2026-11-23", "2026-11-29"),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=SU,MO;WKST=SU", "2026-11-23", "2026-12-06"),
        ("FREQ=WEEKLY;BYDAY=MO,WE,FR;BYSETPOS=-1", "2026-11-20", "2026-11-27"),
        ("FREQ=WEEKLY;BYMONTH=1;BYDAY=FR", "2026-11-20", "2027-01-01"),
        ("FREQ=MONTHLY", "2026-10-31", "2026-12-31"),
        ("FREQ=MONTHLY;BYMONTHDAY=-1", "2026-10-31", "2026-11-30"),
        ("FREQ=MONTHLY;BYMONTHDAY=-1", "2028-01-31", "2028-02-29"),
        ("FREQ=MONTHLY;BYMONTHDAY=28,29,30;BYSETPOS=-1", "2027-01-30", "2027-02-28"),
        ("FREQ=MONTHLY;INTERVAL=3;BYMONTHDAY=15", "2026-02-15", "2027-02-15"),
        ("FREQ=MONTHLY;BYDAY=2TU", "2026-11-10", "2026-12-08"),
        ("FREQ=MONTHLY;BYDAY=-1FR", "2026-11-27", "2026-12-25"),
        ("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1", "2026-11-30", "2026-12-31"),
        ("FREQ=MONTHLY;BYMONTHDAY=13;BYDAY=FR", "2026-11-13", "2027-08-13"),
        ("FREQ=YEARLY", "2024-02-29", "2028-02-29"),
        ("FREQ=YEARLY;INTERVAL=3;BYMONTH=7;BYMONTHDAY=1", "2026-07-01", "2029-07-01"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", "2096-02-29", "2104-02-29"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO", "2072-02-29", "2112-02-29"),
        ("FREQ=YEARLY;BYDAY=MO;BYSETPOS=53", "2026-11-25", "2029-12-31"),
        ("FREQ=YEARLY;BYDAY=20MO", "2026-11-25", "2027-05-17"),
        ("FREQ=WEEKLY;WKST=SU", "0001-01-01", "2026-11-30"),
        ("FREQ=DAILY;COUNT=3", "2026-11-25", ("2026-11-26", "FREQ=DAILY;COUNT=2")),
        ("FREQ=DAILY;COUNT=5", "2026-11-22", ("2026-11-26", "FREQ=DAILY;COUNT=1")),
        ("FREQ=WEEKLY;BYDAY=MO;COUNT=2", "2026-11-25", ("2026-11-30", "FREQ=WEEKLY;COUNT=1;BYDAY=MO")),
        ("FREQ=DAILY;COUNT=1", "2026-11-25", None),
        ("FREQ=DAILY;COUNT=4", "2026-11-22", None),
        ("FREQ=DAILY;UNTIL=20261126", "2026-11-25", "2026-11-26"),
        ("FREQ=DAILY;UNTIL=20261125", "2026-11-25", None),
        ("FREQ=DAILY;UNTIL=20200101", "2026-11-25", None),
        ("FREQ=DAILY;UNTIL=20261126T000000Z", "2026-11-25", "2026-11-26"),
        ("FREQ=DAILY;UNTIL=20261125T235959Z", "2026-11-25", None),
        ("FREQ=DAILY", "9999-12-31", None),
        ("FREQ=WEEKLY", "9999-12-31", None),
        ("FREQ=MONTHLY", "9999-12-31", None),
        ("FREQ=YEARLY", "9999-12-31", None),
    ],
)
def test_following_day(rule, due, expected):
    """The next day is after the one that was due and after today; missed ones count, and rules end."""
    assert next_day(rule, due) == expected


@pytest.mark.parametrize(
    ("rule", "due"),
    [
        ("FREQ=YEARLY;INTERVAL=4;BYMONTH=2;BYMONTHDAY=29", "2026-02-28"),
        ("FREQ=DAILY;INTERVAL=7;BYDAY=TU", "2026-11-23"),
        ("FREQ=MONTHLY;BYMONTH=2", "2026-01-31"),
        ("FREQ=MONTHLY;INTERVAL=12;BYMONTH=2", "2026-01-01"),
        ("FREQ=MONTHLY;BYMONTHDAY=1;BYDAY=2MO", "2026-11-25"),
        ("FREQ=WEEKLY;INTERVAL=1000;BYMONTH=2;BYDAY=MO;UNTIL=20270101", "2026-11-25"),
        ("FREQ=YEARLY;BYDAY=MO;BYSETPOS=300", "2026-11-25"),
        ("FREQ=YEARLY;BYDAY=MO,TU,WE;BYSETPOS=" + ",".join(map(str, range(200, 310))), "2026-11-25"),
        ("FREQ=YEARLY;COUNT=1000;BYMONTHDAY=31;BYDAY=1MO", "0001-01-01"),
    ],
)
def test_what_never_comes_ends(rule, due):
    """A search for what never comes ends; the library's own would not before the year 9999."""
    assert next_day(rule, due) is None


@pytest.mark.parametrize("frequency", ["YEARLY", "MONTHLY", "WEEKLY"])
def test_far_behind(frequency):
    """A counted rule that is centuries behind catches up step by step, and counts what it passes."""
    first = date(1, 1, 1)
    once, rule = following(f"FREQ={frequency};COUNT=1000", first, UTC_ZONE, NOW)
    twice, later = following(rule, once, UTC_ZONE, NOW)
    assert first < once < twice < TODAY
    counts = [int(each.partition("COUNT=")[2]) for each in (rule, later)]
    assert 1000 > counts[0] > counts[1] > 0
    days = {"YEARLY": 365.2425, "MONTHLY": 30.44, "WEEKLY": 7}[frequency]
    assert 1000 - counts[0] == round((once - first).days / days)


def next_moment(rule, due, zone, now=NOW):
    """The next moment of a rule, in ISO 8601 in the zone; None at its end."""
    found = following(rule, datetime.fromisoformat(due), ZoneInfo(zone), now)
    if found is None:
        return None
    assert found[0].tzinfo is UTC
    return found[0].astimezone(ZoneInfo(zone)).isoformat()


@pytest.mark.parametrize(
    ("rule", "due", "zone", "expected"),
    [
        # Later today is still to come; the moment that has come is not.
        ("FREQ=DAILY", "2026-11-20T17:00:00+00:00", "UTC", "2026-11-25T17:00:00+00:00"),
        ("FREQ=DAILY", "2026-11-20T14:30:00+00:00", "UTC", "2026-11-26T14:30:00+00:00"),
        ("FREQ=DAILY", "2026-11-25T17:00:00.123456+00:00", "UTC", "2026-11-26T17:00:00.123456+00:00"),
        # The wall-clock time stays, either side of a change and in both hemispheres.
        ("FREQ=DAILY", "2027-03-27T09:00:00+01:00", "Europe/Berlin", "2027-03-28T09:00:00+02:00"),
        ("FREQ=DAILY", "2027-10-30T09:00:00+02:00", "Europe/Berlin", "2027-10-31T09:00:00+01:00"),
        ("FREQ=MONTHLY", "2027-03-10T17:00:00-05:00", "America/New_York", "2027-04-10T17:00:00-04:00"),
        ("FREQ=WEEKLY", "2027-03-29T09:00:00+13:00", "Pacific/Auckland", "2027-04-05T09:00:00+12:00"),
        # A time that is skipped is no occurrence; one that comes twice is its first.
        ("FREQ=DAILY", "2027-03-27T02:30:00+01:00", "Europe/Berlin", "2027-03-29T02:30:00+02:00"),
        ("FREQ=DAILY", "2027-10-30T02:30:00+02:00", "Europe/Berlin", "2027-10-31T02:30:00+02:00"),
        ("FREQ=DAILY", "2027-10-31T02:30:00+01:00", "Europe/Berlin", "2027-11-01T02:30:00+01:00"),
        # The day is the zone's: here it is Thursday already, there still Tuesday.
        (
            "FREQ=WEEKLY;BYDAY=TH",
            "2026-11-25T11:00:00+00:00",
            "Pacific/Auckland",
            "2026-12-03T00:00:00+13:00",
        ),
        (
            "FREQ=WEEKLY;BYDAY=TU",
            "2026-11-25T04:00:00+00:00",
            "America/New_York",
            "2026-12-01T23:00:00-05:00",
        ),
        (
            "FREQ=MONTHLY;BYMONTHDAY=1",
            "2026-11-30T23:30:00+00:00",
            "Europe/Berlin",
            "2027-01-01T00:30:00+01:00",
        ),
        # UNTIL: a day in the zone, or a moment; both included.
        (
            "FREQ=DAILY;UNTIL=20261126",
            "2026-11-25T23:30:00-05:00",
            "America/New_York",
            "2026-11-26T23:30:00-05:00",
        ),
        ("FREQ=DAILY;UNTIL=20261125", "2026-11-25T23:30:00-05:00", "America/New_York", None),
        (
            "FREQ=DAILY;UNTIL=20261126T170000Z",
            "2026-11-25T17:00:00+00:00",
            "UTC",
            "2026-11-26T17:00:00+00:00",
        ),
        ("FREQ=DAILY;UNTIL=20261126T165959Z", "2026-11-25T17:00:00+00:00", "UTC", None),
        ("FREQ=DAILY", "9999-12-31T23:59:00+00:00", "America/New_York", None),
        ("FREQ=DAILY", "0001-01-01T00:00:00+00:00", "America/New_York", None),
    ],
)
def test_following_moment(rule, due, zone, expected):
    """A moment keeps its time on the wall of its zone."""
    assert next_moment(rule, due, zone) == expected


@pytest.mark.parametrize(
    ("until", "zone", "expected"),
    [
        ("99991231T235959Z", "Asia/Tokyo", "2026-11-26"),
        ("00010101T000000Z", "America/New_York", None),
    ],
)
def test_until_at_the_ends_of_the_calendar(until, zone, expected):
    """An end that has no day in the task's zone ends a task with a day as well."""
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert next_day(f"FREQ=DAILY;UNTIL={until}", "2026-11-25", now, zone) == expected


def test_today_is_the_zone_s():
    """Whether a day that recurs is past is decided in the task's zone."""
    late = datetime(2026, 11, 25, 23, 30, tzinfo=UTC)
    assert next_day("FREQ=DAILY", "2026-11-20", late, "UTC") == "2026-11-26"
    assert next_day("FREQ=DAILY", "2026-11-20", late, "Asia/Tokyo") == "2026-11-27"
    early = datetime(2026, 11, 25, 0, 30, tzinfo=UTC)
    assert next_day("FREQ=DAILY", "2026-11-20", early, "America/New_York") == "2026-11-25"


def test_skipped_time_does_not_count():
    """COUNT counts what occurs: not the night in which clocks skip the time."""
    due = datetime.fromisoformat("2027-03-27T02:30:00+01:00")
    _, rule = following("FREQ=DAILY;COUNT=5", due, ZoneInfo("Europe/Berlin"), NOW)
    assert rule == "FREQ=DAILY;COUNT=4"


def joined(name, values):
    """Nothing, or one part with some of the values."""
    return st.just("") | st.lists(st.sampled_from(values), min_size=1, max_size=4).map(
        lambda chosen: f";{name}={','.join(map(str, chosen))}"
    )


WEEKDAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
MONTH_DAYS = [*range(1, 32), *range(-31, 0)]
NUMBERED = [f"{number}{day}" for number in (1, 2, 3, 4, -1, -2) for day in WEEKDAYS]
INTERVALS = st.sampled_from(["", ";INTERVAL=2", ";INTERVAL=3", ";INTERVAL=5", ";INTERVAL=13"])
RULES = st.one_of(
    st.builds("".join, st.tuples(st.just("FREQ=DAILY"), INTERVALS)),
    st.builds(
        "".join, st.tuples(st.just("FREQ=DAILY"), joined("BYDAY", WEEKDAYS), joined("BYMONTHDAY", MONTH_DAYS))
    ),
    st.builds(
        "".join,
        st.tuples(
            st.just("FREQ=WEEKLY"),
            INTERVALS,
            joined("BYDAY", WEEKDAYS),
            st.sampled_from(["", ";WKST=SU", ";WKST=TH"]),
        ),
    ),
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["FREQ=MONTHLY", "FREQ=YEARLY;BYMONTH=2,6,11", "FREQ=YEARLY"]),
            INTERVALS,
            joined("BYMONTHDAY", MONTH_DAYS) | joined("BYDAY", NUMBERED) | joined("BYDAY", WEEKDAYS),
        ),
    ),
)
DAYS = st.dates(date(2015, 1, 1), date(2035, 12, 31))


# How often, and how many days late: a counted rule only by as much as is counted to its end.
COUNTS = st.tuples(st.none(), st.integers(-400, 9000)) | st.tuples(st.integers(1, 60), st.integers(-400, 800))


@settings(deadline=None, max_examples=100)
@given(RULES, DAYS, COUNTS)
def test_as_the_library_has_it(rule, due, counted):
    """Jumping to the period at hand finds the day, and the count, that going all the way from `due` does."""
    count, late = counted
    today = due + timedelta(days=late)
    end = max(due, today) + timedelta(days=366 * 45)
    found = (each.date() for each in rrulestr(rule, dtstart=datetime.combine(due, time())))
    days = list(takewhile(lambda day: day <= end, (day for day in found if day > due)))
    coming = next((number for number, day in enumerate(days) if day > today), None)
    assume(coming is not None)
    now = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    answer = following(rule if count is None else f"{rule};COUNT={count}", due, UTC_ZONE, now)
    if count is not None and coming + 1 >= count:
        assert answer is None
    else:
        left = "" if count is None else f";COUNT={count - coming - 1}"
        assert answer == (days[coming], check(rule + left))


@settings(deadline=None)
@given(
    RULES, DAYS, st.sampled_from(["Europe/Berlin", "America/New_York", "Pacific/Auckland", "Asia/Kolkata"])
)
def test_moments_fall_on_the_days_of_the_rule(rule, due, zone):
    """What recurs at noon recurs on the same days, in whatever zone, and is due at noon there."""
    place = ZoneInfo(zone)
    now = datetime(2025, 6, 1, 3, tzinfo=place)
    noon = datetime(due.year, due.month, due.day, 12, tzinfo=place)
    answer = following(rule, noon, place, now)
    if answer is None:
        assert following(rule, due, place, now - timedelta(days=1)) is None
        return
    local = answer[0].astimezone(place)
    assert (local.hour, local.minute) == (12, 0)
    assert following(rule, due, place, now - timedelta(days=1))[0] == local.date()
