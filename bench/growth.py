"""Whether a page costs more as a user's tasks grow to many, and deep in the list."""

import base64
import statistics
from pathlib import Path

import psycopg

from bench.load import load

_PAGE = 50


def growth(
    database_url: str, server: tuple[int, int], postmaster: int, place: Path, *, sizes: list[int], rounds: int
) -> dict[str, float]:
    """CPU microseconds of server and PostgreSQL for one page: by number of tasks, and by page."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        for size in sizes:
            user = f"owner{size}"
            connection.execute("INSERT INTO account (user_id, last_task_id) VALUES (%s, %s)", [user, size])
            connection.execute(
                "INSERT INTO task (user_id, id, title, completed, version)"
                " SELECT %s, t, 'Task number ' || t, false, 1 FROM generate_series(1, %s) t",
                [user, size],
            )
        connection.execute("VACUUM ANALYZE task")
    pages = {f"page 1 of {size} tasks": (size, 1) for size in sizes}
    if sizes[-1] >= 1000 * _PAGE:
        pages[f"page 1000 of {sizes[-1]} tasks"] = (sizes[-1], 1000)
    costs: dict[str, list[float]] = {label: [] for label in pages}
    for _ in range(rounds):
        for label, (size, page) in pages.items():
            start = f"asc:{(page - 1) * _PAGE + 1}".encode()
            cursor = base64.urlsafe_b64encode(start).rstrip(b"=").decode()
            operation = ("GET", f"/tasks?limit={_PAGE}&cursor={cursor}", ("nil",))
            cost = load(
                operation, server, postmaster, place, users=[f"owner{size}"], seconds=1, connections=16
            )
            costs[label].append(cost.server + cost.postgres)
    return {label: statistics.median(each) for label, each in costs.items()}
