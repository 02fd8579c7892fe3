"""How PostgreSQL runs each statement of the request path where a user has very many tasks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from bench.servers import PARAMETERS
from taskctl.server import lists, queries
from taskctl.server.lists import DueFilter, Shape
from taskctl.server.pipeline import numbered
from taskctl.vocabulary import Order, Sort, Status


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
        "tz": "UTC",
        "due_days": 1,
        "project": "Household",
        "q": "milk",
        "follows": 1,
        "digest": r"\x00",
    }
    defaults = {name: value for each in PARAMETERS.values() for name, value in each.items()}
    found = {}
    with psycopg.connect(database_url) as connection:
        for name, statement in _statements().items():
            # A list's key is where its page starts, a create's what makes it safe to repeat.
            key = None if name in _LISTS else "key"
            found[name] = _explain(connection, statement, defaults | given | {"key": key})
            connection.rollback()
        deep = defaults | given | {"start": tasks // 2}
        found["list, deep"] = _explain(connection, lists.statement(Shape()), deep)
    return found


_LISTS = {
    "list": Shape(),
    "list, last first": Shape(order=Order.desc),
    **{f"list, pending by {sort}": Shape(status=Status.pending, sort=sort) for sort in Sort},
    "list, in the trash": Shape(status=Status.deleted),
    "list, due today": Shape(status=Status.pending, sort=Sort.due, due=DueFilter.ahead),
    "list, of a project by due": Shape(sort=Sort.due, terms=True),
    "list, with a word": Shape(words=True),
    "list, counted": Shape(count=True),
}


def _statements() -> dict[str, queries.Statement]:
    changes = {
        each.name: each
        for each in vars(queries).values()
        if isinstance(each, queries.Statement) and "user_id" in numbered(each.sql)[1]
    }
    return changes | {name: lists.statement(shape) for name, shape in _LISTS.items()}


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
