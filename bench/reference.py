"""The reference: bare Starlette and psycopg's pool, the same statements, and nothing else.

No token, no validation, no errors, no log: what is left is the price of an answer from PostgreSQL in Python.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg.adapt import Loader
from psycopg.types.numeric import Int8
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.servers import PARAMETERS, STATEMENTS

_TASK = "/api/v1/{user_id}/tasks/{task_id:int}"


class _Bytes(Loader):
    """PostgreSQL's JSON is the answer's body as it comes."""

    def load(self, data: bytes | bytearray | memoryview) -> bytes:
        return bytes(data)


async def _pass_text_through(connection: psycopg.AsyncConnection[Any]) -> None:
    connection.adapters.register_loader("text", _Bytes)


def create_app() -> Starlette:
    """The reference application, on the database that `DATABASE_URL` names."""
    pool = AsyncConnectionPool(
        os.environ["DATABASE_URL"],
        min_size=2,
        max_size=10,
        kwargs={"autocommit": True, "prepare_threshold": 0},
        configure=_pass_text_through,
        open=False,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with pool:
            yield

    async def fetch(operation: str, **given: Any) -> Any:
        sql, parameters = STATEMENTS[operation].sql, PARAMETERS[operation] | given
        async with pool.connection() as connection:
            return await (await connection.execute(sql, parameters)).fetchone()

    async def read(request: Request) -> Response:
        path = request.path_params
        row = await fetch("read", user_id=path["user_id"], id=Int8(path["task_id"]))
        return Response(row[2], media_type="application/json")

    async def page(request: Request) -> Response:
        limit = int(request.query_params["limit"])
        row = await fetch("list 50", user_id=request.path_params["user_id"], limit=limit)
        return Response(b'{"items":[%b],"next_cursor":null}' % row[0], media_type="application/json")

    async def create(request: Request) -> Response:
        body = await request.json()
        row = await fetch("create", user_id=request.path_params["user_id"], title=body["title"])
        return Response(row[4], 201, media_type="application/json")

    async def complete(request: Request) -> Response:
        path, body = request.path_params, await request.json()
        given = {"user_id": path["user_id"], "id": Int8(path["task_id"]), "completed": body["completed"]}
        row = await fetch("complete", **given)
        return Response(row[2], media_type="application/json")

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/livez", lambda _: Response()),
            Route("/api/v1/{user_id}/tasks", page, methods=["GET"]),
            Route("/api/v1/{user_id}/tasks", create, methods=["POST"]),
            Route(_TASK, read, methods=["GET"]),
            Route(f"{_TASK}/complete", complete, methods=["PATCH"]),
        ],
    )
