"""One request as the server's parts pass it on: what serves it, what is known of it, and how it asks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.types import Scope

from taskctl.config import ServerSettings
from taskctl.errors import Unavailable
from taskctl.server.database import Database
from taskctl.server.draining import Drain
from taskctl.server.feed import Feed
from taskctl.server.limits import Limiter
from taskctl.server.metrics import Metrics
from taskctl.server.queries import Statement
from taskctl.server.sessions import Row
from taskctl.server.tracing import Tracing, trace_id
from taskctl.tokens import Identity, Verifier


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints work with; made once by `create_app`."""

    settings: ServerSettings
    database: Database
    verifier: Verifier
    limiter: Limiter
    metrics: Metrics | None
    """None where they are off."""
    tracing: Tracing | None
    """None where there are no traces."""
    started: float
    """`time.monotonic()` when the process started to serve."""
    feed: Feed
    drain: Drain = field(default_factory=Drain)


class Exchange:
    """What is known of one request for its answer's headers and its line in the log."""

    __slots__ = (
        "answered",
        "began",
        "database_seconds",
        "fields",
        "rate_limit",
        "request_id",
        "service",
        "span",
        "started",
        "user_id",
    )

    def __init__(self, service: Service, fields: Mapping[bytes, bytes], request_id: str) -> None:
        self.service = service
        self.fields = fields
        """The request's headers by lower-case name; several of one name as one list (RFC 9110, 5.3)."""
        self.request_id = request_id
        self.started = time.perf_counter()
        self.answered = False
        """Whether the answer has begun."""
        self.began: float | None = None
        """When the answer has begun, where it has no end of its own."""
        self.database_seconds: float | None = None
        self.user_id: str | None = None
        self.rate_limit: str | None = None
        """The `RateLimit` header."""
        self.span: Any = None
        """The request's span, where there are traces."""

    @property
    def names(self) -> dict[str, str]:
        """What the log's events of this request have in common."""
        names = {"request_id": self.request_id}
        return names if self.span is None else names | {"trace_id": trace_id(self.span)}


class Call(Request):
    """A request as endpoints see it: the service behind it, and the user whose tasks it is about."""

    identity: Identity

    @property
    def service(self) -> Service:
        """What `create_app` made."""
        exchange: Exchange = self.scope["taskctl.exchange"]
        return exchange.service

    def header(self, name: bytes) -> str | None:
        """The value of a header, whose name is in lower case; of several, all."""
        value: bytes | None = self.scope["taskctl.exchange"].fields.get(name)
        return None if value is None else value.decode("latin-1")

    async def fetch(self, statement: Statement, **parameters: Any) -> Row | None:
        """Run a statement for this user; raises as `Database.fetch`. Its time goes into `Server-Timing`."""
        exchange: Exchange = self.scope["taskctl.exchange"]
        service = self.service
        metrics = service.metrics
        failure = None
        started = time.perf_counter()
        try:
            return await service.database.fetch(statement, {"user_id": self.identity.user_id, **parameters})
        except Unavailable as error:
            failure = error.code
            if metrics is not None:
                metrics.statement_failed(statement.name, failure)
            raise
        finally:
            seconds = time.perf_counter() - started
            exchange.database_seconds = (exchange.database_seconds or 0) + seconds
            if metrics is not None:
                metrics.statement_ended(statement.name, seconds)
            if service.tracing is not None:
                service.tracing.statement(exchange.span, statement.name, seconds, failure)
            if not statement.reads_only:
                service.feed.wrote(self.identity.user_id)


def path_as_sent(scope: Scope) -> str:
    """A request's path, percent-encoded as the client sent it."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("ascii", "replace")
    return raw.decode("ascii", "replace").partition("?")[0]


def client_address(scope: Scope) -> str | None:
    """The address that a request came from; None on a Unix socket."""
    client = scope.get("client")
    return client[0] if client else None
