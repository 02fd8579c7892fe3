"""Many writers at once for one user, whose next id is one row's counter, against as many for many users."""

import sys
from collections.abc import Iterable
from pathlib import Path

from bench.load import OPERATIONS, LoadFailed, load


def contention(
    server: tuple[int, int],
    postmaster: int,
    place: Path,
    *,
    writers: Iterable[int],
    users: list[str],
    seconds: int,
) -> dict[str, tuple[float, float]]:
    """Creates a second and their median milliseconds, by number of writers and of users.

    A machine that is too slow for so many refuses some of them, and there is no figure then.
    """
    found = {}
    for number in writers:
        for whose in (users[:1], users):
            name = f"{number} writers, {len(whose)} users"
            try:
                cost = load(
                    OPERATIONS["create"],
                    server,
                    postmaster,
                    place,
                    users=whose,
                    seconds=seconds,
                    connections=number,
                )
            except LoadFailed as failure:
                print(f"no figure for {name}: {failure}", file=sys.stderr)
            else:
                found[name] = cost.per_second, cost.p50
    return found
