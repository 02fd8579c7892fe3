"""Recurrence rules: the part of RFC 5545, section 3.3.10, that tasks have, checked and put into words.

Standard library only: the models check with it and the command line speaks with it. What a rule's dates are
is worked out by `taskctl.server.recurrence`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum

from taskctl.vocabulary import RECURRENCE_MAX

INTERVAL_MAX = 1000

COUNT_MAX = 1000

WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

WEEKDAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTH_NAMES = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

MONTH_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Days of each month at most."""


class Frequency(StrEnum):
    """A period."""

    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    YEARLY = "YEARLY"


@dataclass(frozen=True)
class Rule:
    """A rule taken apart; `str()` puts it together in its one normal form.

    Weekdays count from Monday, 0; in `days` each comes with its number in the period, or 0 for all of them.
    An empty tuple stands for a part that was left out. `until` is in UTC where it is an instant.
    """

    frequency: Frequency
    interval: int = 1
    count: int | None = None
    until: date | datetime | None = None
    months: tuple[int, ...] = ()
    month_days: tuple[int, ...] = ()
    days: tuple[tuple[int, int], ...] = ()
    positions: tuple[int, ...] = ()
    week_start: int = 0

    def __str__(self) -> str:
        parts = [f"FREQ={self.frequency}"]
        if self.interval != 1:
            parts.append(f"INTERVAL={self.interval}")
        if self.count is not None:
            parts.append(f"COUNT={self.count}")
        if isinstance(self.until, datetime):
            parts.append(f"UNTIL={self.until.replace(tzinfo=None).isoformat().translate(_PUNCTUATION)}Z")
        elif self.until is not None:
            parts.append(f"UNTIL={self.until.isoformat().translate(_PUNCTUATION)}")
        lists = {
            "BYMONTH": self.months,
            "BYMONTHDAY": self.month_days,
            "BYDAY": [f"{number or ''}{WEEKDAYS[day]}" for day, number in self.days],
            "BYSETPOS": self.positions,
        }
        parts += [f"{name}={','.join(map(str, values))}" for name, values in lists.items() if values]
        if self.week_start:
            parts.append(f"WKST={WEEKDAYS[self.week_start]}")
        return ";".join(parts)


_PUNCTUATION = {ord("-"): None, ord(":"): None}


def check(text: str) -> str:
    """A rule in its normal form: capitals, each part once and in order, values sorted, defaults left out.

    Raises:
        ValueError: it is no rule that tasks can have; the message is a sentence.
    """
    return str(read(text))


def read(text: str) -> Rule:
    """A rule taken apart.

    Raises:
        ValueError: as `check`.
    """
    if len(text) > RECURRENCE_MAX:
        raise ValueError(f"A recurrence has at most {RECURRENCE_MAX} characters.")
    text = text.strip().upper()
    if text.startswith("RRULE:"):
        raise ValueError("Leave out RRULE: and begin with FREQ=.")
    parts: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"{part[:40]!r} is no part of a recurrence such as FREQ=WEEKLY;BYDAY=MO.")
        if name in parts:
            raise ValueError(f"{name[:20]} stands twice.")
        if name not in _READERS:
            raise ValueError(f"{name[:20]!r} is not supported; only {', '.join(_READERS)} are.")
        parts[name] = value
    if "FREQ" not in parts:
        raise ValueError("FREQ is missing; begin with FREQ=DAILY, WEEKLY, MONTHLY or YEARLY.")
    members = {member: reader(parts[name]) for name, (member, reader) in _READERS.items() if name in parts}
    rule = Rule(**members)  # type: ignore[arg-type] # each reader gives its member's type
    _consider(rule)
    return rule


def _frequency(text: str) -> Frequency:
    if text not in Frequency.__members__:
        raise ValueError(f"FREQ is DAILY, WEEKLY, MONTHLY or YEARLY, not {text[:20]!r}.")
    return Frequency[text]


def _number(text: str, name: str, most: int, *, signed: bool = False) -> int:
    number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,4}" if signed else r"[0-9]{1,4}", text) else 0
    if not 1 <= abs(number) <= most:
        bounds = f"1 to {most}" + (f" or -1 to -{most}" if signed else "")
        raise ValueError(f"{name} takes {bounds}, not {text[:20]!r}.")
    return number


def _numbers(name: str, most: int, *, signed: bool = False) -> Callable[[str], tuple[int, ...]]:
    def read_all(text: str) -> tuple[int, ...]:
        return tuple(sorted({_number(each, name, most, signed=signed) for each in text.split(",")}))

    return read_all


def _until(text: str) -> date | datetime:
    try:
        if re.fullmatch(r"[0-9]{8}", text):
            return date.fromisoformat(text)
        if re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", text):
            return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise ValueError(f"UNTIL={text} names a day or time that does not exist.") from None
    raise ValueError("UNTIL takes a day such as 20261231 or a time in UTC such as 20261231T170000Z.")


def _weekday(text: str) -> int:
    if text not in WEEKDAYS:
        raise ValueError(f"A weekday is one of {', '.join(WEEKDAYS)}, not {text[:20]!r}.")
    return WEEKDAYS.index(text)


def _days(text: str) -> tuple[tuple[int, int], ...]:
    days = set()
    for each in text.split(","):
        number, day = each[:-2], each[-2:]
        days.add((_weekday(day), _number(number, "The number in BYDAY", 53, signed=True) if number else 0))
    return tuple(sorted(days))


_READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "FREQ": ("frequency", _frequency),
    "INTERVAL": ("interval", lambda text: _number(text, "INTERVAL", INTERVAL_MAX)),
    "COUNT": ("count", lambda text: _number(text, "COUNT", COUNT_MAX)),
    "UNTIL": ("until", _until),
    "BYMONTH": ("months", _numbers("BYMONTH", 12)),
    "BYMONTHDAY": ("month_days", _numbers("BYMONTHDAY", 31, signed=True)),
    "BYDAY": ("days", _days),
    "BYSETPOS": ("positions", _numbers("BYSETPOS", 366, signed=True)),
    "WKST": ("week_start", _weekday),
}


def _consider(rule: Rule) -> None:
    """Refuse parts that do not go together (RFC 5545, section 3.3.10), and what can never come about."""
    numbers = {number for _, number in rule.days}
    by_month = rule.frequency is Frequency.MONTHLY or (rule.frequency is Frequency.YEARLY and rule.months)
    if rule.count is not None and rule.until is not None:
        raise ValueError("COUNT and UNTIL exclude each other.")
    if numbers != {0} and rule.days and rule.frequency in {Frequency.WEEKLY, Frequency.DAILY}:
        raise ValueError("A number in BYDAY goes with FREQ=MONTHLY or YEARLY only.")
    if len(numbers) > 1 and 0 in numbers:  # which no two libraries read alike
        raise ValueError("BYDAY takes weekdays with a number or without, not both.")
    if by_month and any(abs(number) > 5 for number in numbers):  # noqa: PLR2004 - a month's weeks
        raise ValueError("A month has at most 5 of each weekday.")
    if rule.month_days and rule.frequency is Frequency.WEEKLY:
        raise ValueError("BYMONTHDAY does not go with FREQ=WEEKLY.")
    longest = max(MONTH_LENGTHS[month - 1] for month in rule.months or range(1, 13))
    if rule.month_days and min(map(abs, rule.month_days)) > longest:
        raise ValueError("None of these months has such a day.")
    if rule.positions and not (rule.days or rule.month_days or rule.months):
        raise ValueError("BYSETPOS needs another part that it chooses from, such as BYDAY.")
    most = {Frequency.YEARLY: 366, Frequency.MONTHLY: 31, Frequency.WEEKLY: len(rule.days) or 1}
    if rule.positions and rule.frequency is Frequency.DAILY:
        raise ValueError("BYSETPOS does not go with FREQ=DAILY.")
    if any(abs(position) > most[rule.frequency] for position in rule.positions):
        raise ValueError("BYSETPOS chooses beyond what there can be in one period.")


_UNITS = {
    Frequency.DAILY: "day",
    Frequency.WEEKLY: "week",
    Frequency.MONTHLY: "month",
    Frequency.YEARLY: "year",
}


def words(text: str) -> str:
    """A rule for people, such as `every month on the 1st`; one that has no short words is given as it is."""
    rule = read(text)
    unit = _UNITS[rule.frequency]
    every = f"every {unit}" if rule.interval == 1 else f"every {rule.interval} {unit}s"
    end = ""
    if rule.count is not None:
        end = ", the last time" if rule.count == 1 else f", {rule.count} times"
    if rule.until is not None:
        end = f" until {rule.until.day} {MONTH_NAMES[rule.until.month - 1][:3]} {rule.until.year}"
    where = _where(replace(rule, interval=1, count=None, until=None, week_start=0))
    if where is None:
        return str(rule)
    if rule.interval == 1 and where == " on Monday to Friday":
        return f"every weekday{end}"
    return f"{every}{where}{end}"


def _where(rule: Rule) -> str | None:
    """Which days of a period, with the word before; None where that would not be short."""
    if rule.frequency is Frequency.DAILY:
        return None if rule.months or rule.month_days or rule.days else ""
    if rule.frequency is Frequency.WEEKLY:
        known = not (rule.months or rule.positions)
        return (f" on {_weekdays([day for day, _ in rule.days])}" if rule.days else "") if known else None
    days = _days_of_month(rule)
    if days is None or (days and rule.frequency is Frequency.YEARLY and not rule.months):
        return None
    one = len(rule.months) == len(rule.month_days) == 1 and rule.month_days[0] > 0
    if rule.frequency is Frequency.YEARLY and one:
        return f" on {rule.month_days[0]} {MONTH_NAMES[rule.months[0] - 1]}"
    months = _listed([MONTH_NAMES[month - 1] for month in rule.months])
    return f"{days} {'of' if days else 'in'} {months}" if months else days


def _days_of_month(rule: Rule) -> str | None:
    last = max(rule.month_days, default=0)
    if not rule.days and rule.month_days == tuple(range(28, last + 1)) and rule.positions == (-1,):
        leap_day = rule.months == (2,) and last == MONTH_LENGTHS[1]
        return " on the last day" if leap_day else f" on the {ordinal(last)} or the last day"
    if rule.positions or (rule.month_days and rule.days):
        return None
    if rule.month_days:
        return f" on the {_listed([_nth(day, 'day') for day in _forward(rule.month_days)])}"
    if not all(number for _, number in rule.days):
        return None
    weekdays = [_nth(number, WEEKDAY_NAMES[day]) for day, number in rule.days]
    return f" on the {_listed(weekdays)}" if weekdays else ""


def _forward(days: Sequence[int]) -> list[int]:
    """Days of a month from its first to its last."""
    return sorted(days, key=lambda day: day if day > 0 else day + 100)


def _nth(number: int, noun: str) -> str:
    if number > 0:
        return ordinal(number) if noun == "day" else f"{ordinal(number)} {noun}"
    return f"last {noun}" if number == -1 else f"{ordinal(-number)} last {noun}"


def _weekdays(days: list[int]) -> str:
    return "Monday to Friday" if days == [0, 1, 2, 3, 4] else _listed([WEEKDAY_NAMES[day] for day in days])


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def ordinal(number: int) -> str:
    """`1st`, `22nd`, `13th`."""
    teen = number % 100 in {11, 12, 13}
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
