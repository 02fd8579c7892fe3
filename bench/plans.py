"""How PostgreSQL runs each statement of the request path where a user has very many tasks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from bench.servers import PARAMETERS
from taskctl.server import queries
from taskctl.server.pipeline import numbered


@dataclass(frozen=True)
class Plan:
    """What EXPLAIN (ANALYZE, BUFFERS) says of one statement; pages are of 8 KiB, in memory and from disk."""

    milliseconds: float
    pages: int
    rows_read: int
    nodes: str


def plans(database_url: str, user: str, tasks: int) -> dict[str, Plan]:
    """Each statement about a user's tasks, by name, with the generic plan that a prepared one has.

    What it changes is rolled back.

    Args:
        database_url: the database, which has such a user.
        user: whose tasks are asked for.
        tasks: how many they are.
    """
    given = {
        "user_id": user,
        "id": tasks // 2,
        "limit": 50,
        "title": "Buy milk",
        "sent": "title",
        "key": "key",
        "digest": r"\x00",
    }
    defaults = {name: value for each in PARAMETERS.values() for name, value in each.items()}
    found = {}
    with psycopg.connect(database_url) as connection:
        for statement in _statements():
            variants = {"": defaults | given}
            if "cursor" in numbered(statement.sql)[1]:
                variants[", deep"] = defaults | given | {"cursor": tasks // 2}
            for label, values in variants.items():
                found[statement.name + label] = _explain(connection, statement, values)
                connection.rollback()
    return found


def _statements() -> Iterator[queries.Statement]:
    for value in vars(queries).values():
        for each in value.values() if isinstance(value, dict) else (value,):
            if isinstance(each, queries.Statement) and "user_id" in numbered(each.sql)[1]:
                yield each


def _explain(
    connection: psycopg.Connection[Any], statement: queries.Statement, values: dict[str, Any]
) -> Plan:
    text, names = numbered(statement.sql)
    connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    connection.execute(b"PREPARE explained AS " + text)
    # As texts, which take the type that the statement gives each parameter.
    literals = [None if (value := values.get(name)) is None else str(value) for name in names]
    arguments = sql.SQL(", ").join(map(sql.Literal, literals))
    explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained({})").format(arguments)
    [[[told]]] = connection.execute(explain).fetchall()
    connection.execute("DEALLOCATE explained")
    nodes = list(_nodes(told["Plan"]))
    return Plan(
        milliseconds=told["Execution Time"],
        pages=told["Plan"]["Shared Hit Blocks"] + told["Plan"]["Shared Read Blocks"],
        rows_read=sum(
            node["Actual Rows"] * node["Actual Loops"] for node in nodes if "Relation Name" in node
        ),
        nodes=", ".join(
            dict.fromkeys(
                f"{node['Node Type']} {node.get('Index Name') or node.get('Relation Name', '')}".strip()
                for node in nodes
                if "Scan" in node["Node Type"] or "Sort" in node["Node Type"]
                if node["Node Type"] not in ("CTE Scan", "Subquery Scan")
            )
        ),
    )


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)
