"""Taskwarrior's `recur` and RRULE, one in the words of the other."""

import re
from calendar import monthrange
from datetime import datetime, timedelta

_NAMES = {
    "daily": "1d",
    "day": "1d",
    "weekly": "1w",
    "sennight": "1w",
    "biweekly": "2w",
    "fortnight": "2w",
    "monthly": "1m",
    "month": "1m",
    "bimonthly": "2m",
    "quarterly": "3m",
    "semiannual": "6m",
    "annual": "1y",
    "yearly": "1y",
    "biannual": "2y",
    "biyearly": "2y",
}
_UNITS = {
    "d": "d days day",
    "w": "w wk wks week weeks",
    "m": "mo mos mth mths mnths month months",
    "q": "q qtr qtrs qrtr qrtrs quarter quarters",
    "y": "y yr yrs year years",
}
_LETTER = {name: letter for letter, names in _UNITS.items() for name in names.split()}
FREQUENCIES = {"d": "DAILY", "w": "WEEKLY", "m": "MONTHLY", "y": "YEARLY"}
"""Those of RRULE, by the letters of their units."""

_WORDS = {
    "d": ("daily", "days"),
    "w": ("weekly", "weeks"),
    "m": ("monthly", "months"),
    "y": ("yearly", "years"),
}
_WEEKDAYS = "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR"
_SHORTEST_MONTH = 28
_FRIDAY = 4


def step(recur: str) -> tuple[int, str] | None:
    """A period as a number of `d`ays, `w`eeks, `m`onths, `y`ears or week`D`ays; None where it is none."""
    word = recur.strip().lower()
    if word == "weekdays":
        return 1, "D"
    word = _NAMES.get(word, word)
    if iso := re.fullmatch(r"p([1-9][0-9]{0,2})([dwmy])", word):
        return int(iso[1]), iso[2]
    found = re.fullmatch(r"([1-9][0-9]{0,2})? ?([a-z]+)", word)
    if found is None:
        return None
    letter = "m" if found[2] == "m" and word in _NAMES.values() else _LETTER.get(found[2])
    number = int(found[1] or 1)
    return (number * 3, "m") if letter == "q" else (number, letter) if letter else None


def rule(recur: str, first: datetime) -> str | None:
    """The RRULE that recurs as Taskwarrior does from a first time; None where there is none.

    Taskwarrior goes from the 31st to the last day of a shorter month, where RRULE would leave it out.
    """
    found = step(recur)
    if found is None:
        return None
    number, letter = found
    if letter == "D":
        return _WEEKDAYS
    interval = f";INTERVAL={number}" if number > 1 else ""
    last = ""
    if letter == "m" and first.day > _SHORTEST_MONTH:
        days = ",".join(map(str, range(_SHORTEST_MONTH, first.day + 1)))
        last = f";BYMONTHDAY={days};BYSETPOS=-1"
    return f"FREQ={FREQUENCIES[letter]}{interval}{last}"


def recur(rrule: str) -> str | None:
    """Taskwarrior's word for an RRULE; None where it has none."""
    if rrule == _WEEKDAYS:
        return "weekdays"
    found = re.fullmatch(
        r"FREQ=(DAILY|WEEKLY|MONTHLY|YEARLY)(?:;INTERVAL=([1-9][0-9]{0,2}))?"
        r"(?:;BYMONTHDAY=28(?:,29)?(?:,30)?(?:,31)?;BYSETPOS=-1)?",
        rrule,
    )
    if found is None:
        return None
    once, several = _WORDS[found[1][0].lower()]
    number = int(found[2] or 1)
    return once if number == 1 else f"{number}{several}"


def later(first: datetime, recur: str, times: int) -> datetime:
    """The time so many periods after the first, on the same time of day.

    Raises:
        ValueError, OverflowError: the period is none, or leads beyond the year 9999.
    """
    found = step(recur)
    if found is None:
        raise ValueError("no period")
    number, letter = found
    if letter == "D":
        for _ in range(times):
            first += timedelta(days=max(1, 7 - first.weekday()) if first.weekday() >= _FRIDAY else 1)
        return first
    if letter in "dw":
        return first + timedelta(days=number * times * (7 if letter == "w" else 1))
    months = first.month - 1 + number * times * (12 if letter == "y" else 1)
    year, month = first.year + months // 12, months % 12 + 1
    return first.replace(year=year, month=month, day=min(first.day, monthrange(year, month)[1]))
