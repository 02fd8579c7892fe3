"""When a recurring task is due next. The rule's grammar is in `taskctl.recurrence`.

The days within one year, month or week are python-dateutil's to find. Which of them are looked at, and how
many, is decided here: the library searches until the year 9999 for what never comes, and this runs on the
event loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from dateutil.rrule import MONTHLY, WEEKLY, YEARLY, rrule, weekday

from taskctl.recurrence import MONTH_LENGTHS, Frequency, Rule, read

_LOOKED_INTO = {Frequency.YEARLY: 42, Frequency.MONTHLY: 120, Frequency.WEEKLY: 120, Frequency.DAILY: 3000}
"""How many periods that may hold a day of the rule are looked into: a few milliseconds' worth.

What recurs at all does so within 40 such periods: leap days on one weekday are 28 or 40 years apart.
"""

_CONSIDERED = {Frequency.YEARLY: 400, Frequency.MONTHLY: 4800, Frequency.WEEKLY: 5000, Frequency.DAILY: 3000}
"""How many periods there are to choose from; the calendar repeats itself after 400 years."""

_LAST_YEAR = 9999

_LIBRARY: dict[Frequency, Literal[0, 1, 2]] = {
    Frequency.YEARLY: YEARLY,
    Frequency.MONTHLY: MONTHLY,
    Frequency.WEEKLY: WEEKLY,
}


def following(
    rule: str, due: date | datetime, zone: ZoneInfo, now: datetime
) -> tuple[date | datetime, str] | None:
    """When the task after one that was due is due, and its rule; None where the rule has ended.

    That is the first occurrence after `due` that is after `now` as well; for a day, after today. A day
    stays a day, an aware datetime is answered in UTC.

    - Intervals are counted from `due`, as is COUNT: one for `due` itself and one for each occurrence that
      was missed, whether `due` matches the rule or not.
    - In `zone` an instant keeps its wall-clock time and today is decided. A time that
      is skipped when clocks go forward is no occurrence (RFC 5545, section 3.3.10); one that comes twice is
      its first.
    - UNTIL is included. A day of UNTIL ends with that day in `zone`; a moment of UNTIL lets days through
      until its own.
    - A rule with COUNT whose task is late by more periods than are looked into (`_LOOKED_INTO`) is answered
      with an occurrence that is late itself: counting all of them would take too long.
    - A rule that has no day in so many periods, of those `_CONSIDERED`, has ended.

    Takes a few milliseconds at most, whatever the rule.

    Raises:
        ValueError: the rule is none that `taskctl.recurrence.check` lets pass.
    """
    parts = read(rule)
    try:
        wall = due.astimezone(zone) if isinstance(due, datetime) else None
    except OverflowError:  # on the calendar's first or last day
        return None
    first, clock = (wall.date(), wall.time()) if wall else (due, None)
    today = now.astimezone(zone).date()
    left, late = parts.count, None
    for day in _days(parts, first, first if left else max(first, today)):
        moment = _moment(day, clock, zone)
        if day <= first or moment is None:
            continue
        if left is not None:
            left -= 1
        if left == 0 or _beyond(parts.until, day, moment, zone):
            return None
        late = moment
        if moment > now if isinstance(moment, datetime) else moment > today:
            break
    else:
        if not left or late is None:
            return None
    return late, str(replace(parts, count=left))


def _moment(day: date, clock: time | None, zone: ZoneInfo) -> date | datetime | None:
    """A day at a wall-clock time, in UTC; None where clocks skip that time."""
    if clock is None:
        return day
    wall = datetime.combine(day, clock, zone)
    try:
        moment = wall.astimezone(UTC)
        again = moment.astimezone(zone)
    except OverflowError:  # at the ends of the calendar
        return None
    return moment if again.replace(tzinfo=None) == wall.replace(tzinfo=None) else None


def _beyond(until: date | datetime | None, day: date, moment: date | datetime, zone: ZoneInfo) -> bool:
    if until is None:
        return False
    if isinstance(until, datetime):
        if isinstance(moment, datetime):
            return moment > until
        try:
            last = until.astimezone(zone).date()
        except OverflowError:  # at the ends of the calendar
            last = until.date()
        return day > last
    return day > until


def _days(rule: Rule, first: date, start: date) -> Iterator[date]:
    """The rule's days in order, from those of the period that holds `start`; all of that period's."""
    rule = _explicit(rule, first)
    if (
        rule.frequency is Frequency.DAILY
        and rule.interval == 1
        and (rule.months or rule.month_days or rule.days)
    ):
        every = rule.days or tuple((day, 0) for day in range(7))
        rule = replace(rule, frequency=Frequency.MONTHLY, days=every)  # the same days, a month at a time
    looked_into = 0
    for number, period in enumerate(_periods(rule, first, start)):
        if number == _CONSIDERED[rule.frequency] or looked_into == _LOOKED_INTO[rule.frequency]:
            return
        if _may_hold(rule, period):
            looked_into += 1
            yield from _within(rule, period)


def _explicit(rule: Rule, first: date) -> Rule:
    """The rule with what it leaves to the task's own day written out."""
    if rule.month_days or rule.days:
        return rule
    if rule.frequency is Frequency.WEEKLY:
        return replace(rule, days=((first.weekday(), 0),))
    if rule.frequency is Frequency.MONTHLY:
        return replace(rule, month_days=(first.day,))
    if rule.frequency is Frequency.YEARLY:
        return replace(rule, months=rule.months or (first.month,), month_days=(first.day,))
    return rule


def _periods(rule: Rule, first: date, start: date) -> Iterator[date]:
    """The first day of every period, from the one that holds `start` or, between two, the one before it."""
    if rule.frequency is Frequency.YEARLY:
        years = (start.year - first.year) // rule.interval * rule.interval
        for year in range(first.year + years, _LAST_YEAR + 1, rule.interval):
            yield date(year, 1, 1)
    elif rule.frequency is Frequency.MONTHLY:
        begin, end = first.year * 12 + first.month - 1, start.year * 12 + start.month - 1
        begin += (end - begin) // rule.interval * rule.interval
        for month in range(begin, (_LAST_YEAR + 1) * 12, rule.interval):
            yield date(month // 12, month % 12 + 1, 1)
    else:
        step = rule.interval * (7 if rule.frequency is Frequency.WEEKLY else 1)
        begin = first.toordinal()
        if rule.frequency is Frequency.WEEKLY:
            begin -= (first.weekday() - rule.week_start) % 7
        begin += (start.toordinal() - begin) // step * step
        for ordinal in range(begin, date.max.toordinal() - 6, step):
            yield date.fromordinal(max(ordinal, 1))  # the calendar's first week may have begun before it


def _may_hold(rule: Rule, period: date) -> bool:
    """Whether it is worth looking for the rule's days in a period; for one day, whether it is such a day."""
    if rule.frequency is Frequency.DAILY:
        return (
            (not rule.months or period.month in rule.months)
            and (not rule.days or (period.weekday(), 0) in rule.days)
            and (
                not rule.month_days
                or bool({period.day, period.day - _length(period) - 1} & {*rule.month_days})
            )
        )
    if rule.frequency is Frequency.WEEKLY:
        return not rule.months or bool({period.month, (period + timedelta(days=6)).month} & {*rule.months})
    if rule.frequency is Frequency.MONTHLY:
        return (not rule.months or period.month in rule.months) and _has_day(period, rule.month_days)
    months = rule.months or range(1, 13)
    return any(_has_day(period.replace(month=month), rule.month_days) for month in months)


def _length(month: date) -> int:
    """Days in a month; `calendar.monthrange` finds its weekday as well and takes longer."""
    if month.month != 2:  # noqa: PLR2004 - February
        return MONTH_LENGTHS[month.month - 1]
    return 29 if month.year % 4 == 0 and (month.year % 100 or month.year % 400 == 0) else 28


def _has_day(month: date, days: tuple[int, ...]) -> bool:
    return not days or any(abs(day) <= _length(month) for day in days)


def _within(rule: Rule, period: date) -> Iterable[date]:
    """The rule's days in one period."""
    if rule.frequency is Frequency.DAILY:
        return [period]
    weekly = rule.frequency is Frequency.WEEKLY
    found = rrule(
        _LIBRARY[rule.frequency],
        dtstart=datetime.combine(period, time()),
        # The library ends its search after the year 9999, or at a day beyond `until`: in the next week.
        interval=1 if weekly else 12 * _LAST_YEAR,
        until=datetime.combine(_week_end(rule, period), time()) if weekly else None,
        wkst=rule.week_start,
        bymonth=None if weekly else rule.months or None,
        bymonthday=rule.month_days or None,
        byweekday=[weekday(day, number or None) for day, number in rule.days] or None,
    )
    days = [each for each in found if not weekly or not rule.months or each.month in rule.months]
    if rule.positions:  # the library takes far longer
        indices = [position - (position > 0) for position in rule.positions]
        days = sorted({days[index] for index in indices if -len(days) <= index < len(days)})
    return [each.date() for each in days]


def _week_end(rule: Rule, day: date) -> date:
    return day + timedelta(days=6 - (day.weekday() - rule.week_start) % 7)
