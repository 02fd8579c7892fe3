"""Whether a page costs more as a user's tasks grow to many, deep in the list, and as users grow to many."""

import base64
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from bench.load import load
from bench.servers import serving
from taskctl.config import ServerSettings
from taskctl.server import migrations

_PAGE = 50
_TASKS, _ASKING = 5, 200
"""Tasks of each of many users, and how many of these users ask."""


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
    return {label: min(each) for label, each in costs.items()}


def users(
    database_url: str, postmaster: int, place: Path, *, sizes: list[int], rounds: int
) -> dict[str, float]:
    """CPU microseconds of server and PostgreSQL for a user's page, by how many users there are."""
    with ExitStack() as stack:
        servers = {}
        for size in sizes:
            url = urlsplit(database_url)._replace(path=f"/users{size}").geturl()
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE users{size}")
            migrations.upgrade(ServerSettings.load({"DATABASE_URL": url}, env_file=None))
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "INSERT INTO account (user_id, last_task_id)"
                    " SELECT 'user' || u, %s FROM generate_series(1, %s) u",
                    [_TASKS, size],
                )
                connection.execute(
                    "INSERT INTO task (user_id, id, title, completed, version)"
                    " SELECT 'user' || u, t, 'Task number ' || t, false, 1"
                    " FROM generate_series(1, %s) u, generate_series(1, %s) t",
                    [size, _TASKS],
                )
                connection.execute("VACUUM ANALYZE")
            servers[size] = stack.enter_context(serving("taskctl", url))
        costs: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size, server in servers.items():
                cost = load(
                    ("GET", f"/tasks?limit={_PAGE}", ("nil",)),
                    server,
                    postmaster,
                    place,
                    users=[f"user{number}" for number in range(1, size + 1, max(size // _ASKING, 1))],
                    seconds=1,
                    connections=16,
                )
                costs[size].append(cost.server + cost.postgres)
    return {f"{size} users": min(each) for size, each in costs.items()}
