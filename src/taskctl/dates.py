"""Due dates as people write and read them, in English, in their own time zone. Standard library only.

A due date is a day, wherever its user is, or a moment with its offset from UTC. `now` is aware and `zone` is
the user's: both are parameters, so nothing here looks at a clock. What is wrong with a text is a `ValueError`
whose message is a sentence that says what to write.

Decided where usage differs:

- A weekday or a day of the month (`fri`, `15th`) is the next one and never today; `jan 5` may be today.
- `17:00` is today, or tomorrow once that is past. `eow` is Sunday; `eow` and `eom` may be today.
- `5/6`, `next friday` and `3m` mean different days to different people and are refused.
- A time that clocks skip is moved forward by what they skip; of a time that comes twice the first is meant,
  or the second where a time alone is written between them.
"""

import calendar
import contextlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from taskctl.recurrence import MONTH_LENGTHS, MONTH_NAMES, WEEKDAY_NAMES, ordinal
from taskctl.vocabulary import TIME_ZONE_MAX, DueWord

Due = date | datetime
"""A day, or an aware moment; a datetime is the latter, though Python takes it for a date as well."""

NONE = "none"

OTHER_ZONES = frozenset({"localtime", "posixrules", "Factory"})
"""Names in a machine's files that mean another zone on another machine."""

_ZONE = re.compile(rf"[A-Za-z][A-Za-z0-9_+/-]{{0,{TIME_ZONE_MAX - 1}}}")

_EXAMPLES = "write a day such as tomorrow, fri, 15th, jan 5, +3d or 2026-12-31, a time such as 17:00, or both"

_CLOCK = r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s?(?P<half>am|pm)?|noon"
_AMOUNT = r"(?P<sign>in |\+|-)?\s?(?P<number>\d{1,5}|an?(?= ))\s?(?P<unit>[a-z]+)(?P<ago> ago)?"
_UNITS = {
    "minute": ("min", "mins", "minute", "minutes"),
    "hour": ("h", "hour", "hours"),
    "day": ("d", "day", "days"),
    "week": ("w", "week", "weeks"),
    "month": ("mo", "month", "months"),
    "year": ("y", "year", "years"),
}


def read(text: str, now: datetime, zone: tzinfo) -> Due | None:
    """What a person means by a text; None for `none`, a moment in `zone` unless the text has an offset.

    Raises:
        ValueError: it means nothing, or more than one thing.
    """
    try:
        return _read(text, now.astimezone(zone), zone)
    except OverflowError:
        raise ValueError(f"{text.strip()[:40]!r} is outside of the years 1 to 9999.") from None


def _read(text: str, now: datetime, zone: tzinfo) -> Due | None:
    words = _words(text)
    if words == NONE:
        return None
    if re.match(r"\d{4}-\d\d|\d{8}(t|$)|\d{4}-?w\d", words):
        return _iso(words, zone)
    day, clock = _split(words)
    if clock is None:
        later = _later(day, now)
        if later is not None:
            return later
    _refuse_ambiguous(day)
    today = now.date()
    found = _day(day, today) if day or clock is None else today
    if found is None:
        raise ValueError(f"{text.strip()[:40]!r} is no day or time that is known here; {_EXAMPLES}.")
    if clock is None:
        return found
    if day:
        return _at(found, clock, zone)
    # In UTC, as Python compares two times of one zone by their clocks; and a time that comes twice may have
    # its second time still before it.
    times = (_at(today, clock.replace(fold=fold), zone) for fold in (0, 1))
    coming = (moment for moment in times if moment.astimezone(UTC) > now.astimezone(UTC))
    return next(coming, None) or _at(today + timedelta(days=1), clock, zone)


def _words(text: str) -> str:
    return re.sub(r"[\s@]+", " ", text.lower()).strip()


def read_past(text: str, now: datetime, zone: tzinfo) -> Due | None:
    """As `read`, of what has happened: `fri`, `15th`, `jan 5` or `17:00` is the last one and not the next.

    Today is the last of its name, and a time the last that has come. All else means what it always means.
    """
    found = read(text, now, zone)
    day, clock = _split(_words(text))
    if not (_comes_again(day) if day else clock):
        return found
    today = now.astimezone(zone).date()
    for back in range(_LEAP_DAYS_APART):
        past = today - timedelta(days=back)
        if day and _day(day, past - timedelta(days=1)) != past:
            continue
        due = _at(past, clock, zone) if clock else past
        if not isinstance(due, datetime) or due.astimezone(UTC) <= now.astimezone(UTC):
            return due
    return found


def _comes_again(day: str) -> bool:
    """Whether a text names a day of each week, month or year."""
    if named(day, WEEKDAY_NAMES) is not None or _day_of_month(day, date.min):
        return True
    return not re.search(r"\d{4}$", day) and _day_of_year(day, date.min) is not None


_LEAP_DAYS_APART = 8 * 366
"""Days, at most as there is none in 2100."""


def _iso(words: str, zone: tzinfo) -> Due:
    """ISO 8601: a day, or a moment; one without an offset is in `zone`."""
    day, _, clock = re.sub(" (at )?", "t", words, count=1).partition("t")
    try:
        if not clock:
            return date.fromisoformat(day.upper())
        if re.fullmatch(_CLOCK, clock) and not clock.isdigit():  # as in 2026-12-31 9am, or 9:00
            return _at(date.fromisoformat(day.upper()), _clock(clock), zone)
        moment = datetime.fromisoformat(f"{day.upper()}T{clock.replace(' ', '').upper()}")
    except ValueError:
        raise ValueError(
            f"{words[:40]!r} is no day or time that exists; write it as 2026-12-31 or 2026-12-31T17:00."
        ) from None
    if moment.tzinfo is None:
        return _at(moment.date(), moment.time(), zone)
    moment.astimezone(UTC)  # it must exist there as well
    return moment


def _split(words: str) -> tuple[str, time | None]:
    """A text's day and its time; the latter may stand before or after, with or without `at` or `on`."""
    for pattern in (rf"(?P<day>.*?) ?(?:\bat )?\b(?:{_CLOCK})", rf"(?:at )?(?:{_CLOCK}) (?P<day>.+)"):
        match = re.fullmatch(pattern, words)
        if match and (match["minute"] or match["half"] or "noon" in words):
            clock = words[: match.start("day")] if match.start("day") else words[match.end("day") :]
            return _bare(match["day"]), _clock(clock)
    return _bare(words), None


def _bare(day: str) -> str:
    return day.removeprefix("on ").removesuffix(" on").removesuffix(" at").strip()


def _clock(words: str) -> time:
    match = re.fullmatch(rf"(?:at )?(?:{_CLOCK})", words.strip())
    if match is None:
        raise ValueError(f"{words[:40]!r} is no time of day; write it as 17:00 or 5pm.")
    if match["hour"] is None:
        return time(12)
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    if match["half"]:
        if not 1 <= hour <= 12:  # noqa: PLR2004 - the hours of a clock's face
            raise ValueError(f"{words.strip()[:40]!r} is no time of day; write it as 17:00 or 5pm.")
        hour = hour % 12 + (12 if match["half"] == "pm" else 0)
    if hour > 23 or minute > 59:  # noqa: PLR2004 - a day's last minute
        raise ValueError(f"{words.strip()[:40]!r} is no time of day; it goes from 0:00 to 23:59.")
    return time(hour, minute)


def _at(day: date, clock: time, zone: tzinfo) -> datetime:
    """A wall-clock time: moved forward where clocks skip it, the first where it comes twice (PEP 495)."""
    return datetime.combine(day, clock, zone).astimezone(UTC).astimezone(zone)


def _later(words: str, now: datetime) -> datetime | None:
    """A moment some hours or minutes from now, such as `in 2 hours`, in whole minutes."""
    match = re.fullmatch(_AMOUNT, words)
    unit = _unit(match["unit"]) if match else None
    if match is None or unit not in {"hour", "minute"} or (match["sign"] and match["ago"]):
        return None
    amount = timedelta(hours=_signed(match)) if unit == "hour" else timedelta(minutes=_signed(match))
    return (now.astimezone(UTC) + amount).replace(second=0, microsecond=0).astimezone(now.tzinfo)


def _unit(word: str) -> str | None:
    return next((unit for unit, names in _UNITS.items() if word in names), None)


def _local(moment: datetime, zone: tzinfo) -> datetime:
    """A moment in a zone; as it is where that is beyond the calendar's first or last day."""
    try:
        return moment.astimezone(zone)
    except OverflowError:
        return moment


def _signed(match: re.Match[str]) -> int:
    number = int(match["number"]) if match["number"].isdigit() else 1
    return -number if match["sign"] == "-" or match["ago"] else number


def _refuse_ambiguous(day: str) -> None:
    if re.fullmatch(r"\d{1,2}[./-]\d{1,2}([./-](\d{2}|\d{4})?)?|\d{4}[./]\d{1,2}[./]\d{1,2}", day):
        raise ValueError(
            f"{day!r} can be read in more than one way; write 5 jun, or 2026-06-05 with year, month and day."
        )
    if re.fullmatch(r"\d{1,2}", day):
        hour = int(day) if int(day) < 24 else 17  # noqa: PLR2004 - the hours of a day
        written = f"{_nth(day)}, {hour}:00 or +{day}d"
        raise ValueError(f"{day!r} can be a day, an hour or a number of days; write {written}.")
    name = re.sub("^(next|this|coming) ", "", day)
    if name != day and named(name, WEEKDAY_NAMES) is not None:
        raise ValueError(f"{day!r} is not the same day for everybody; write {name} for the next one to come.")
    if re.fullmatch(r"(in |[+-])?\s?\d+\s?m", day):
        raise ValueError(f"{day!r} can be minutes or months; write min or mo after the number.")


def _nth(day: str) -> str:
    return ordinal(int(day)) if 1 <= int(day) <= MONTH_LENGTHS[0] else "15th"


def _day(words: str, today: date) -> date | None:
    """The day that a text names, or None where it names none."""
    if re.fullmatch(r"\d{4}-\d\d-\d\d", words):  # with a time before it
        with contextlib.suppress(ValueError):
            return date.fromisoformat(words)
    if words in _NAMED:
        return _NAMED[words](today)
    weekday = named(words, WEEKDAY_NAMES)
    if weekday is not None:
        return today + timedelta(days=(weekday - today.weekday() - 1) % 7 + 1)
    return _offset(words, today) or _day_of_month(words, today) or _day_of_year(words, today)


def named(word: str, names: tuple[str, ...]) -> int | None:
    """Which of some names a word of at least three letters begins."""
    if len(word) < 3:  # noqa: PLR2004 - mon, tue, wed, …
        return None
    return next((number for number, name in enumerate(names) if name.lower().startswith(word)), None)


def _month_end(day: date) -> date:
    return day.replace(day=calendar.monthrange(day.year, day.month)[1])


_NAMED: Mapping[str, Callable[[date], date]] = {
    "today": lambda today: today,
    "tomorrow": lambda today: today + timedelta(days=1),
    "yesterday": lambda today: today - timedelta(days=1),
    "eow": lambda today: today + timedelta(days=6 - today.weekday()),
    "eom": _month_end,
    "eoy": lambda today: today.replace(month=12, day=31),
    "next week": lambda today: today + timedelta(days=7 - today.weekday()),
    "next month": lambda today: _month_end(today) + timedelta(days=1),
    "next year": lambda today: date(today.year + 1, 1, 1) if today.year < date.max.year else _beyond(),
}


def _beyond() -> date:
    raise OverflowError


def _offset(words: str, today: date) -> date | None:
    match = re.fullmatch(_AMOUNT, words)
    unit = _unit(match["unit"]) if match else None
    if match is None or unit not in {"day", "week", "month", "year"} or (match["sign"] and match["ago"]):
        return None
    number = _signed(match)
    if unit in {"day", "week"}:
        return today + timedelta(days=number * (7 if unit == "week" else 1))
    year, month = divmod(today.year * 12 + today.month - 1 + number * (12 if unit == "year" else 1), 12)
    if not date.min.year <= year <= date.max.year:
        raise OverflowError
    return date(year, month + 1, min(today.day, calendar.monthrange(year, month + 1)[1]))


def _day_of_month(words: str, today: date) -> date | None:
    match = re.fullmatch(r"(?:the )?(\d{1,2})(?:st|nd|rd|th)", words)
    number = int(match[1]) if match else 0
    if match is None or not 1 <= number <= MONTH_LENGTHS[0] or not words.endswith(ordinal(number)):
        return None
    day = today + timedelta(days=1)
    while day.day != number:
        day += timedelta(days=1)
    return day


def _day_of_year(words: str, today: date) -> date | None:
    """`jan 5`, `5th january`, `jan 5 2027`: without a year, the next that exists, today included."""
    match = re.fullmatch(
        r"(?:(?P<month>[a-z]+)\.? ?(?P<day>\d{1,2})|(?P<day2>\d{1,2})(?:st|nd|rd|th)? ?(?P<month2>[a-z]+))"
        r"(?:(?<=\d)(?:st|nd|rd|th))?(?:,? (?P<year>\d{4}))?",
        words,
    )
    month = named(match["month"] or match["month2"], MONTH_NAMES) if match else None
    if match is None or month is None:
        return None
    number = int(match["day"] or match["day2"])
    if not 1 <= number <= MONTH_LENGTHS[month]:
        raise ValueError(
            f"{words!r} is no day that exists; {MONTH_NAMES[month]} has {MONTH_LENGTHS[month]} days."
        )
    if match["year"]:
        try:
            return date(int(match["year"]), month + 1, number)
        except ValueError:
            raise ValueError(f"{words!r} is no day that exists.") from None
    for year in range(today.year, today.year + 9):  # leap days may be eight years apart
        if number <= calendar.monthrange(year, month + 1)[1] and date(year, month + 1, number) >= today:
            return date(year, month + 1, number)
    return None


# The wire


def rfc3339(moment: datetime) -> str:
    """A moment as the API writes it: UTC, microseconds, `Z` (RFC 3339), as PostgreSQL's own JSON has it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def wire(due: Due) -> str:
    """A due date as the API reads it: `2026-12-31`, or a moment with its offset (RFC 3339)."""
    if not isinstance(due, datetime):
        return due.isoformat()
    offset = due.utcoffset() or timedelta()
    return (due if offset % timedelta(minutes=1) == timedelta() else due.astimezone(UTC)).isoformat()


def from_wire(due_at: str) -> Due:
    """A due date as the API writes it; ValueError for anything else."""
    return datetime.fromisoformat(due_at) if "T" in due_at else date.fromisoformat(due_at)


def span(text: str, now: datetime, zone: tzinfo) -> str:
    """The list parameter `due` for what a person writes: a word that the API knows, one day, or `FROM..TO`.

    Either end may be left out; an end is whatever `read` reads. Where TO is a weekday or a day of the month,
    it is the first after FROM: `mon..fri` is one week on any day.

    Raises:
        ValueError: it means nothing, or more than one thing, or its end comes before its beginning.
    """
    words = text.strip().lower()
    if words in set(DueWord):
        return words
    begin, dots, end = (part.strip() for part in words.partition(".."))
    first, last = (_bound(part, now, zone) if part else None for part in (begin, end))
    if not dots:
        if isinstance(first, datetime):
            raise ValueError(
                f"A time is an end of a range; write ..{begin} for before it, {begin}.. for after."
            )
        last = first
    if first and last and _precedes(last, first, zone):
        word = _split(_words(end))[0]
        if named(word, WEEKDAY_NAMES) is None and _day_of_month(word, date.min) is None:
            raise ValueError(f"The range ends, {wire(last)}, before it begins, {wire(first)}.")
        last = _bound(end, datetime.combine(day_of(first, zone), time(12), zone), zone)
    if not first and not last:
        raise ValueError("A range needs a beginning or an end, as in today..fri, ..eow or jan 5..31 dec.")
    return f"{wire(first) if first else ''}..{wire(last) if last else ''}"


def _bound(text: str, now: datetime, zone: tzinfo) -> Due:
    due = read(text, now, zone)
    if due is None:
        raise ValueError(f"{NONE!r} is no end of a range; alone, it lists what has no due date.")
    return due


def _precedes(due: Due, other: Due, zone: tzinfo) -> bool:
    if isinstance(due, datetime) and isinstance(other, datetime):
        return due < other
    return day_of(due, zone) < day_of(other, zone)


# Display


def day_of(due: Due, zone: tzinfo) -> date:
    """The day on which something is due for a person in `zone`."""
    return _local(due, zone).date() if isinstance(due, datetime) else due


def overdue(due: Due, now: datetime, zone: tzinfo) -> bool:
    """Whether a due date is past: a moment when it has come, a day when it is over in `zone`."""
    return due < now if isinstance(due, datetime) else due < now.astimezone(zone).date()


def relative(due: Due, now: datetime, zone: tzinfo) -> str:
    """A due date at a glance: `today`, `tomorrow 17:00`, `3 days ago`, `Fri 28 Nov`, `Fri 1 Jan 2027`."""
    day, today = day_of(due, zone), now.astimezone(zone).date()
    days = (day - today).days
    if -_DAYS_AGO <= days < -1:
        return f"{-days} days ago"
    names = {-1: "yesterday", 0: "today", 1: "tomorrow"}
    return f"{names.get(days) or _plain(day, day.year != today.year)}{_time(due, zone)}"


_DAYS_AGO = 30


def full(due: Due, zone: tzinfo) -> str:
    """A due date without doubt: `Fri 27 Nov 2026`, `Fri 27 Nov 2026 17:00 CET`."""
    name = f" {_local(due, zone).tzname()}" if isinstance(due, datetime) else ""
    return f"{_plain(day_of(due, zone), True)}{_time(due, zone)}{name}"


def _plain(day: date, year: bool) -> str:
    name = f"{WEEKDAY_NAMES[day.weekday()][:3]} {day.day} {MONTH_NAMES[day.month - 1][:3]}"
    return f"{name} {day.year}" if year else name


def _time(due: Due, zone: tzinfo) -> str:
    return f" {_local(due, zone):%H:%M}" if isinstance(due, datetime) else ""


# Zones


def zone_of(name: str) -> ZoneInfo:
    """A zone by its IANA name; ValueError where there is none.

    Names that mean another zone on another machine, such as `localtime`, are refused as well.
    """
    if not _ZONE.fullmatch(name) or name in OTHER_ZONES or name.startswith(("posix/", "right/")):
        raise ValueError(f"{name[:64]!r} is no IANA time zone; write one such as Europe/Berlin.")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: "Europe" is a folder
        raise ValueError(f"{name[:64]!r} is no IANA time zone; write one such as Europe/Berlin.") from None


def machine_zone(
    environ: Mapping[str, str], now: datetime, localtime: Path = Path("/etc/localtime")
) -> ZoneInfo:
    """This machine's zone: that of TZ, else that of `/etc/localtime`, else its present offset, else UTC.

    Args:
        environ: for TZ, as POSIX and glibc read it: a name or a file, with or without a colon.
        now: in the machine's own time (`datetime.now().astimezone()`), for the offset where there is no name.
        localtime: the link to the zone's file; Debian's `timezone` beside it has the name where it is a copy.
    """
    if "TZ" in environ:
        names = [_below_zoneinfo(environ["TZ"].removeprefix(":")) or "UTC"]
    else:
        names = [_below_zoneinfo(str(localtime.resolve()))]
        with contextlib.suppress(OSError, UnicodeDecodeError):
            names.append(localtime.with_name("timezone").read_text(encoding="utf-8").strip())
    hours = (now.utcoffset() or timedelta()) / timedelta(hours=1)
    if hours and hours.is_integer():
        names.append(f"Etc/GMT{-hours:+.0f}")  # which counts to the west (tz database, file etcetera)
    for name in names:
        try:
            return zone_of(name)
        except ValueError:
            continue
    return ZoneInfo("UTC")


def _below_zoneinfo(path: str) -> str:
    return re.sub(r"^.*/zoneinfo[^/]*/", "", path)
