"""Time zones that a calendar brings along under its own names, as Outlook does (RFC 5545, section 3.6.5)."""

import io
import re
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from taskctl.dates import zone_of

_TZID = re.compile(
    r'(?P<before>[A-Za-z-]+(?:;[^:"]*)?);TZID=(?P<zone>"[^"]*"|[^";:,]*)(?P<after>(?:;[^:"]*)?)'
    r":(?P<times>[0-9]{8}T[0-9]{6}(?:,[0-9]{8}T[0-9]{6})*)",
    re.ASCII | re.IGNORECASE,
)
_NEEDED = re.compile(r"(?:BEGIN|END|DTSTART|RRULE|RDATE|TZOFFSETFROM|TZOFFSETTO)[;:]", re.IGNORECASE)
_YEARLY = re.compile(r"RRULE:(?:.*;)?FREQ=YEARLY(?:;.*)?", re.IGNORECASE)
_COMPARED = 24


def named(name: str) -> ZoneInfo | None:
    """The zone of a TZID, which may have a maker's prefix in front, as in `/example.org/Europe/Berlin`."""
    parts = name.strip("/").split("/")
    for first in range(len(parts)):
        try:
            return zone_of("/".join(parts[first:]))
        except ValueError:
            continue
    return None


class Zones:
    """The zones of one file, by the calendar's own names.

    Args:
        home: the person's own zone, which one of these is called after where it keeps the same time.
    """

    def __init__(self, home: ZoneInfo) -> None:
        self._home = home
        self._zones: dict[str, tzinfo] = {}

    def add(self, lines: Sequence[str]) -> None:
        """Take the content lines of a VTIMEZONE, from its BEGIN on; those that say no zone are left out."""
        values = {line.partition(":")[0].upper(): line.partition(":")[2].strip() for line in lines}
        name = values.get("TZID", "")
        needed = [line for line in lines[1:] if _NEEDED.match(line)]
        # A rule of seconds would be followed since 1601.
        if named(name) or not all(map(_YEARLY.fullmatch, filter(_is_rule, needed))):
            return
        zone = named(values.get("X-LIC-LOCATION", "")) or _parsed(needed)
        if zone is not None:
            self._zones[name] = zone

    def translated(self, line: str) -> tuple[str, str | None]:
        """A content line with its times in a zone of the IANA database, or in UTC where there is none for it.

        Returns:
            The line, and the calendar's own name where the times are in UTC now.
        """
        found = _TZID.fullmatch(line)
        zone = self._zones.get(found["zone"].strip('"')) if found else None
        if found is None or zone is None:
            return line, None
        try:
            moments = [datetime.strptime(each, "%Y%m%dT%H%M%S") for each in found["times"].split(",")]  # noqa: DTZ007 - the zone's own
            zone = zone if isinstance(zone, ZoneInfo) else self._same(zone, moments[0])
            if isinstance(zone, ZoneInfo):
                return f"{found['before']};TZID={zone.key}{found['after']}:{found['times']}", None
            utc = [each.replace(tzinfo=zone).astimezone(UTC) for each in moments]
        except (ValueError, OverflowError):  # for the reader to refuse
            return f"{found['before']}{found['after']}:{found['times']}", None
        times = ",".join(f"{each:%Y%m%dT%H%M%S}Z" for each in utc)
        return f"{found['before']}{found['after']}:{times}", found["zone"].strip('"')

    def _same(self, zone: tzinfo, moment: datetime) -> tzinfo:
        """The person's own zone where it has kept the same time for a year, else the zone itself."""
        days = (moment + timedelta(days=15 * each) for each in range(_COMPARED))
        same = all(
            day.replace(tzinfo=zone).utcoffset() == day.replace(tzinfo=self._home).utcoffset() for day in days
        )
        return self._home if same else zone


def _is_rule(line: str) -> bool:
    return line.upper().startswith("RRULE")


def _parsed(lines: Sequence[str]) -> tzinfo | None:
    """The zone of the lines; None where they are none."""
    from dateutil.tz import tzical  # noqa: PLC0415 - few files need it

    text = "\r\n".join(["BEGIN:VTIMEZONE", "TZID:x", *lines, "END:VTIMEZONE", ""])
    try:
        with warnings.catch_warnings(action="ignore"):
            return tzical(io.StringIO(text)).get("x")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
        return None
