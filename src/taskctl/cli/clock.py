"""When and where a command runs: what `today` means to the person at this machine."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo


def here() -> "tuple[datetime, ZoneInfo]":
    """The present moment, and this machine's time zone, which TZ may name."""
    from datetime import datetime

    from taskctl import dates

    now = datetime.now().astimezone()
    zone = dates.machine_zone(os.environ, now)
    return now.astimezone(zone), zone
