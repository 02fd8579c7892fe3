"""Many writers at once for one user, whose next id is one row's counter, against as many for many users."""

from collections.abc import Iterable
from pathlib import Path

from bench.load import OPERATIONS, load


def contention(
    server: tuple[int, int],
    postmaster: int,
    place: Path,
    *,
    writers: Iterable[int],
    users: list[str],
    seconds: int,
) -> dict[str, tuple[float, float]]:
    """Creates a second and their median milliseconds, by number of writers and of users."""
    found = {}
    for number in writers:
        for whose in (users[:1], users):
            cost = load(
                OPERATIONS["create"],
                server,
                postmaster,
                place,
                users=whose,
                seconds=seconds,
                connections=number,
            )
            found[f"{number} writers, {len(whose)} users"] = cost.per_second, cost.p50
    return found
