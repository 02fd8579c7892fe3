"""Quick entry: a task in one line, `Pay rent due:1st every:month +home p:high project:flat`.

Words apart from these are the title, as they stand:

- `due:WORD`: what `taskctl.dates` reads; several words as `due:"in 3 days"` or `due:tomorrow@17:00`.
- `every:WORD`: `day`, `week`, `month`, `year`, `2w`, `weekday`, `mon,thu`, `1st,15th`, `last`, `"last fri"`,
  `jan5`. Without `due:` the first due date is the first such day, today included.
- `+TAG`: a plus sign and a letter. `+1` and `C++` are text.
- `p:WORD` (`priority:`): `high`, `medium`, `low`, `none`, or their first letters.
- `project:WORD` (`pro:`): `none` is none.

A backslash before such a word keeps it as text, and goes. So do double quotes around words, which stay, and
`--`, which goes if it kept any word from being read. Other words with a colon, such as `http://x`, are text.
What begins like a field and cannot be read is an error: a mistyped date must not end up in a title.
So is a value that means something else with the word of text after it, as in `due:fri 17:00`.
"""

import calendar
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from taskctl import dates, recurrence
from taskctl.errors import UsageInvalid
from taskctl.recurrence import MONTH_LENGTHS, WEEKDAY_NAMES, Frequency, Rule, ordinal
from taskctl.vocabulary import TAG_MAX, Priority


@dataclass(frozen=True)
class Entry:
    """What a line says: a title, and the other members of a task as the API takes them, if it names any."""

    title: str
    fields: dict[str, Any] = field(default_factory=dict)


def read(text: str, now: datetime, zone: ZoneInfo) -> Entry:
    """Take a line apart; `now` and `zone` are those of the person who wrote it.

    Raises:
        UsageInvalid: a word begins like a field and is none; the detail names it and says what to write.
    """
    title, said, tags = _sort(text)
    fields: dict[str, Any] = {}
    due, day = None, now.astimezone(zone).date()
    if "due" in said:
        due = said["due"].read(lambda value: dates.read(value, now, zone))
        fields["due_at"] = due and dates.wire(due)
    if "every" in said:
        rule = said["every"].read(lambda value: every(value, dates.day_of(due or day, zone)))
        if rule and "due" in said and due is None:
            raise UsageInvalid("What recurs has a due date: leave out due:none or every:.")
        if rule and due is None:
            fields["due_at"] = dates.wire(_first(rule, day))
        fields |= {"recurrence": rule and str(rule), "time_zone": rule and zone.key}
    if "p" in said:
        fields["priority"] = said["p"].read(priority)
    if tags:
        fields["tags"] = list(dict.fromkeys(tags))
    if "project" in said:
        name = said["project"].value
        fields["project"] = None if name.lower() == dates.NONE else name
    if fields and not title:
        raise UsageInvalid(f"{text.strip()[:80]!r} has no title: each of its words is a field.")
    return Entry(title, fields)


@dataclass(frozen=True)
class _Said:
    """A word that is a field: as it was written, what follows its colon, and the words of text after it."""

    word: str
    value: str
    after: tuple[str, ...] = ()

    def read(self, reader: Callable[[str], Any]) -> Any:
        """The value, unless it makes sense with words after it, too: `due:fri 17:00`, `every:2 weeks`."""
        try:
            found, wrong = reader(self.value), ""
        except ValueError as error:
            found, wrong = None, str(error).rstrip(".")
        for number in range(1, len(self.after) + 1):
            words = " ".join(self.after[:number])
            try:
                together = reader(f"{self.value} {words}")
            except ValueError:
                continue
            if wrong or together != found:
                other = "" if wrong else f", or {words} before {self.word} to keep it as text"
                joined = f"{self.word} {words}".replace(" ", "@")
                raise UsageInvalid(
                    f"{self.word} {words} needs quotes or @ for a space: write {joined}{other}."
                )
        if wrong:
            word = self.word[:_WORD_SHOWN]
            raise UsageInvalid(f"{word}: {wrong}; or \\{word} to keep it as text.")
        return found


_WORD_SHOWN = 80
"""Characters of a word that an error shows."""

_FIELDS = {
    "due": "due",
    "every": "every",
    "p": "p",
    "priority": "p",
    "project": "project",
    "pro": "project",
}

_EXAMPLES = {
    "due": "due:fri",
    "every": "every:week",
    "p": "p:high",
    "project": "project:home",
}

_WORD = re.compile(
    r"""(?P<space>\s*)
    (?: (?P<quoted> "[^"]*" ) (?=\s|$)
      | (?P<key> (?:due|every|priority|project|pro|p) ) : (?P<quote>["']) (?P<value> .*? ) (?P=quote) (?=\s|$)
      | (?P<word> \S+ )
    )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def _sort(text: str) -> tuple[str, dict[str, _Said], list[str]]:
    """A line's title, what it says of each field, and its tags."""
    title: list[str] = []
    said: dict[str, _Said] = {}
    tags: list[str] = []
    words = list(_WORD.finditer(text))
    for number, match in enumerate(words):
        word, (name, value) = match[0].strip(), _field(match)
        if word == "--" and any(_field(each)[0] for each in words[number + 1 :]):
            title += [each[0] for each in words[number + 1 :]]
            break
        if word.startswith("\\") and _field(_WORD.match(word[1:]))[0]:
            title.append(match["space"] + word[1:])
        elif not name:
            title.append(match[0])
        elif name == "+":
            tags.append(_tag(value))
        else:
            _refuse(word, name, value, said)
            after = () if match["key"] else tuple(_text_after(words[number + 1 : number + 4]))
            said[name] = _Said(word, value.strip(), after)
    return "".join(title).strip(), said, tags


def _text_after(words: Sequence[re.Match[str]]) -> Iterator[str]:
    """The words up to the next that is no text."""
    for match in words:
        if _field(match)[0] or match["quoted"]:
            return
        yield match["word"]


def _field(match: re.Match[str] | None) -> tuple[str, str]:
    """A word's field and value, or two empty texts where it is text."""
    if match is None or match["quoted"]:
        return "", ""
    if match["key"]:
        return _FIELDS[match["key"].lower()], match["value"]
    word = match["word"]
    key, colon, value = word.partition(":")
    if colon and key.lower() in _FIELDS:
        return _FIELDS[key.lower()], value
    return ("+", word[1:]) if word.startswith("+") and word[1:2].isalpha() else ("", "")


def _refuse(word: str, name: str, value: str, said: Mapping[str, _Said]) -> None:
    if name in said:
        raise UsageInvalid(f"{word!r} after {said[name].word!r}: a task has one of these.")
    if not value.strip():
        raise UsageInvalid(
            f"Nothing follows {word}; write {_EXAMPLES[name]}, or \\{word} to keep it as text."
        )
    if value[0] in {'"', "'"}:
        raise UsageInvalid(
            f"The quote in {word} is not closed; write {_EXAMPLES[name]} or quote all of its value."
        )


def _tag(tag: str) -> str:
    if "," in tag:
        raise UsageInvalid(
            f"A tag has no comma: write +{tag.replace(',', ' +')}, or \\+{tag} for a title's word."
        )
    if len(tag) > TAG_MAX:
        raise UsageInvalid(f"A tag has at most {TAG_MAX} characters; +{tag[:20]}… has {len(tag)}.")
    return tag


def priority(word: str) -> str:
    """A priority by its name or first letter; ValueError where it is none."""
    found = next((each for each in Priority if word.lower() in {each, each[0]}), None)
    if found is None and word.lower() != "med":
        raise ValueError(f"{word[:20]!r} is no priority; write high, medium, low or none, or a first letter.")
    return (found or Priority.medium).value


# Recurrence

_UNITS = {
    Frequency.DAILY: ("d", "day", "days", "daily"),
    Frequency.WEEKLY: ("w", "week", "weeks", "weekly"),
    Frequency.MONTHLY: ("m", "mo", "month", "months", "monthly"),
    Frequency.YEARLY: ("y", "year", "years", "yearly"),
}


_RECURRENCES = "day, week, month, year, 2w, weekday, mon,thu, 1st,15th, last or jan5"


def every(text: str, day: date) -> Rule | None:
    """The rule for what follows `every`, of a task that is due on a day; None for `none`.

    Weeks, months and years are fixed to the day, so that a date that is put off once does not move those
    after it. A month that lacks the day has its last day instead: `31st` skips no month.

    Raises:
        ValueError: it means nothing; the message says what to write.
    """
    words = re.sub(r"[\s@]+", " ", text.lower()).strip()
    if words == dates.NONE:
        return None
    rule = _interval(words, day) or _weekdays(words) or _month_days(words) or _day_of_year(words)
    if rule is None:
        raise ValueError(f"{text[:40]!r} is no recurrence; write {_RECURRENCES}.")
    return recurrence.read(str(rule))  # which holds it to its bounds


def _interval(words: str, day: date) -> Rule | None:
    match = re.fullmatch(r"(?:(\d{1,5}|other) ?)?([a-z]+)", words)
    frequency = next((each for each, names in _UNITS.items() if match and match[2] in names), None)
    if match is None or frequency is None:
        return None
    interval = 2 if match[1] == "other" else int(match[1] or 1)
    if frequency is Frequency.WEEKLY:
        return Rule(frequency, interval, days=((day.weekday(), 0),))
    if frequency is Frequency.MONTHLY:
        return replace(_on_day(day.day), interval=interval)
    if frequency is Frequency.YEARLY:
        return replace(_on_day_of_year(day), interval=interval)
    return Rule(frequency, interval)


def _weekdays(words: str) -> Rule | None:
    """`weekday`, `mon,thu`, `1st mon`, `last fri`."""
    if words in {"weekday", "weekdays"}:
        return Rule(Frequency.WEEKLY, days=tuple((number, 0) for number in range(5)))
    found = [dates.named(word, WEEKDAY_NAMES) for word in _split(words)]
    days = [number for number in found if number is not None]
    if days and len(days) == len(found):
        return Rule(Frequency.WEEKLY, days=tuple((number, 0) for number in sorted({*days})))
    number, _, name = words.partition(" ")
    weekday = dates.named(name, WEEKDAY_NAMES)
    if number not in _NUMBERS or weekday is None:
        return None
    return Rule(Frequency.MONTHLY, days=((weekday, _NUMBERS[number]),))


_NUMBERS = {"1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "last": -1}


def _month_days(words: str) -> Rule | None:
    """`1st`, `1st,15th`, `last`."""
    days = []
    for word in _split(words):
        number = int(word[:-2]) if re.fullmatch(r"[0-9]{1,2}[a-z]{2}", word) else 0
        if word != "last" and not (1 <= number <= MONTH_LENGTHS[0] and word == ordinal(number)):
            return None
        days.append(-1 if word == "last" or number == MONTH_LENGTHS[0] else number)
    if len(days) > 1 and max(days) > _EVERY_MONTH:
        raise ValueError("Not every month has a 29th or 30th; write last in a list of days")
    return _on_day(days[0]) if len(days) == 1 else Rule(Frequency.MONTHLY, month_days=tuple(sorted({*days})))


_EVERY_MONTH = 28
"""The last day that all months have."""


def _on_day(day: int) -> Rule:
    if day == MONTH_LENGTHS[0]:
        day = -1
    if day <= _EVERY_MONTH:
        return Rule(Frequency.MONTHLY, month_days=(day,))
    return Rule(Frequency.MONTHLY, month_days=tuple(range(_EVERY_MONTH, day + 1)), positions=(-1,))


def _day_of_year(words: str) -> Rule | None:
    """`jan5`, `jan 5`, `5th january`; any year's."""
    if not re.fullmatch(r"[a-z]{3,} ?\d{1,2}[a-z]{0,2}|\d{1,2}(st|nd|rd|th)? ?[a-z]{3,}", words):
        return None
    try:
        day = dates.read(words, datetime(2000, 1, 1, tzinfo=UTC), UTC)
    except ValueError:
        return None
    return _on_day_of_year(day) if day and not isinstance(day, datetime) else None


def _on_day_of_year(day: date) -> Rule:
    if (day.month, day.day) == (2, MONTH_LENGTHS[1]):
        return Rule(Frequency.YEARLY, months=(2,), month_days=(-1,))
    return Rule(Frequency.YEARLY, months=(day.month,), month_days=(day.day,))


def _split(words: str) -> list[str]:
    return re.split(r" ?, ?| and | ", words)


def _first(rule: Rule, day: date) -> date:
    """The first day of one of the rules above, from a day on."""
    while not _holds(rule, day):
        day += timedelta(days=1)
    return day


def _holds(rule: Rule, day: date) -> bool:
    length = calendar.monthrange(day.year, day.month)[1]
    if rule.months and day.month not in rule.months:
        return False
    if rule.days:
        numbers = {0, (day.day + 6) // 7, -1 if day.day + 7 > length else 0}
        return any((day.weekday(), number) in rule.days for number in numbers)
    if rule.positions:
        return day.day == min(rule.month_days[-1], length)
    return not rule.month_days or not {day.day, day.day - length - 1}.isdisjoint(rule.month_days)
