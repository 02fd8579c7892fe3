"""What surrounds every request, as plain ASGI: its id, its time, its line in the log, and errors as problems.

Envelope ── (Hosts) ── (CORS) ── Problems ── Refusal ── router
"""

import itertools
import json
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskctl.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    RouteNotFound,
    TaskctlError,
    TokenMissing,
    Unauthenticated,
    Unavailable,
)
from taskctl.server import logs
from taskctl.server.authentication import challenge
from taskctl.server.call import Exchange, Service, client_address, path_as_sent
from taskctl.server.routing import PROBLEM
from taskctl.server.tracing import trace_id

log: Any = structlog.get_logger()

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_PORT = re.compile(r":[0-9]*\Z")
_PROCESS = secrets.token_hex(12)
_requests = itertools.count(1)
"""A request's id is the process's random part and a count: unique, and free of a system call each."""

_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "X-Request-ID",
)
_RESPONSE_HEADERS = (
    "ETag",
    "Idempotency-Replayed",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "X-Request-ID",
)
"""What a page of another origin may send and read."""

_CLIENT_CLOSED_REQUEST = 499
"""What the log has for a client that went away; nothing was sent."""

_ANY_HOST = frozenset({"/livez", "/readyz", "/metrics"})
"""Probes and Prometheus ask an address, not a name."""


class Envelope:
    """Gives each request an id, its answer the headers that all have, and log, metrics and traces their part.

    HEAD is answered as GET is, without the body (RFC 9110, section 9.3.2).
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._metrics = service.metrics
        self._tracing = service.tracing
        self._policy = service.limiter.policy.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _begin(scope, self._service)
        status, size = _CLIENT_CLOSED_REQUEST, 0

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                exchange.answered = True
                status = message["status"]
                message["headers"] = [*message["headers"], *_headers(scope, exchange, self._policy)]
            elif scope["method"] == "HEAD":
                message["body"] = b""
            else:
                size += len(message.get("body", b""))
            await send(message)

        inner = {**scope, "method": "GET", "taskctl.head": True} if scope["method"] == "HEAD" else scope
        metrics, tracing = self._metrics, self._tracing
        if metrics is not None:
            metrics.in_flight += 1
        if tracing is not None:
            exchange.span = tracing.begin(scope, exchange.request_id)
        try:
            await self._app(inner, receive, answer)
        finally:
            seconds = time.perf_counter() - exchange.started
            route = getattr(inner.get("route"), "path", None)
            if metrics is not None:
                metrics.in_flight -= 1
                # Of a stream it is told how soon it began, as how long it lasts is its reader's choice.
                answering = seconds if exchange.began is None else exchange.began - exchange.started
                metrics.request_ended(scope["method"], route, status, answering)
            if tracing is not None:
                tracing.end(
                    exchange.span, route=route, status=status, answered=status != _CLIENT_CLOSED_REQUEST
                )
            _log_request(scope, exchange, route=route, status=status, size=size, seconds=seconds)


class Hosts:
    """Refuses requests to names that are not this server's: DNS rebinding, poisoned links and caches.

    Args:
        app: what the others reach.
        allowed: lower-case names; `*.` in front stands for everything below.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(name for name in allowed if not name.startswith("*"))
        self._below = tuple(name[1:] for name in allowed if name.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "http" and scope["path"] not in _ANY_HOST and not self._allows(scope):
            refusal = BadRequest("The Host header names no host of this server; see TASKCTL_ALLOWED_HOSTS.")
            await problem_response(refusal, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        sent = [value for name, value in scope["headers"] if name == b"host"]
        if len(sent) != 1:
            return False
        name = _PORT.sub("", sent[0].decode("latin-1").lower())
        return name in self._names or name.endswith(self._below)


class Problems:
    """Turns every error into a problem document (RFC 9457), and lets no stack trace out."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception as error:
            if scope["type"] != "http" or scope["taskctl.exchange"].answered:
                raise
            await problem_response(self._as_taskctl_error(error, scope), scope)(scope, receive, send)

    def _as_taskctl_error(self, error: Exception, scope: Scope) -> TaskctlError:
        match error:
            case TaskctlError():
                return error
            case HTTPException(status_code=404):
                return RouteNotFound()
            case HTTPException(status_code=405):
                return MethodNotAllowed(headers={"Allow": ", ".join(sorted(self._allowed(scope)))})
            case HTTPException():
                return BadRequest(error.detail)
            case _:
                log.error("internal_error", **scope["taskctl.exchange"].names, exc_info=error)
                return InternalError()

    def _allowed(self, scope: Scope) -> set[str]:
        """The methods of all routes at this path: each route knows only its own."""
        methods: set[str] = set()
        # A mount that was entered on the way has moved the root.
        whole = {**scope, "root_path": scope.get("app_root_path", scope.get("root_path", ""))}
        for route in self._routes:
            if route.matches(whole)[0] is not Match.NONE:
                # A mount, which has none of its own, serves files.
                methods |= getattr(route, "methods", None) or {"GET"}
        return methods | ({"HEAD"} if "GET" in methods else set())


class Cors(CORSMiddleware):
    """Starlette's CORS, which answers a refused preflight in plain text, with a problem instead."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (
            scope["method"] == "OPTIONS"
            and "origin" in headers
            and "access-control-request-method" in headers
        ):
            response = self.preflight_response(headers)
            if response.status_code >= 400:  # noqa: PLR2004 - HTTP's own border
                refusal = BadRequest(
                    "This preflight asks for an origin, method or header that is not allowed."
                )
                response = problem_response(refusal, scope)
                response.headers["Vary"] = "Origin"
            await response(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


def refuse(
    scope: Scope, error: type[Unavailable], service: Service
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer to a request that no layer has seen, for as little as it can cost."""
    exchange = _begin(scope, service)
    first, second, third = _problem_parts(error)
    # JSON's strings, as the id holds nothing that needs to be escaped.
    body = f'{first}{json.dumps(path_as_sent(scope))}{second}"{exchange.request_id}"{third}'.encode("ascii")
    headers = [
        (b"content-type", PROBLEM.encode("ascii")),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % error.retry_after),
        *_headers(scope, exchange),
    ]
    seconds = time.perf_counter() - exchange.started
    if service.metrics is not None:
        service.metrics.request_ended(scope["method"], None, error.status, seconds)
    _log_request(scope, exchange, route=None, status=error.status, size=len(body), seconds=seconds)
    return headers, body


def _problem_parts(error: type[Unavailable]) -> list[str]:
    """A problem document without its instance and request id, in three parts; made once."""
    if error not in _parts:
        gap = "\x00"
        _parts[error] = json.dumps(error().problem(instance=gap, request_id=gap)).split(json.dumps(gap))
    return _parts[error]


_parts: dict[type[Unavailable], list[str]] = {}


def problem_response(error: TaskctlError, scope: Scope) -> Response:
    """The answer that tells of an error."""
    exchange: Exchange = scope["taskctl.exchange"]
    headers = dict(error.headers)
    if isinstance(error, TokenMissing):
        headers["WWW-Authenticate"] = challenge()
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = challenge("invalid_token", error.title())
    elif isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    problem = error.problem(instance=path_as_sent(scope), request_id=exchange.request_id)
    # ASCII, as a name that a client sent may hold what UTF-8 cannot.
    return Response(json.dumps(problem), error.status, headers, PROBLEM)


def _headers(scope: Scope, exchange: Exchange, policy: bytes = b"") -> list[tuple[bytes, bytes]]:
    timing = b"total;dur=%.2f" % ((time.perf_counter() - exchange.started) * 1000)
    if exchange.database_seconds is not None:
        timing += b", db;dur=%.2f" % (exchange.database_seconds * 1000)
    headers = [
        (b"x-request-id", exchange.request_id.encode("ascii")),
        (b"server-timing", timing),
        (b"x-content-type-options", b"nosniff"),
    ]
    if exchange.rate_limit is not None:
        headers.append((b"ratelimit-policy", policy))
        headers.append((b"ratelimit", exchange.rate_limit.encode("ascii")))
    if scope["path"].startswith("/api"):
        headers.append((b"cache-control", b"no-store"))
    return headers


def _begin(scope: Scope, service: Service) -> Exchange:
    """Take note of a request, under the id that it was sent with, if that is a good one."""
    fields = _fields(scope)
    sent = fields.get(b"x-request-id")
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        request_id = bytes(sent).decode("ascii")
    else:
        request_id = f"{_PROCESS}{next(_requests):08x}"
    exchange = scope["taskctl.exchange"] = Exchange(service, fields, request_id)
    return exchange


def _fields(scope: Scope) -> dict[bytes, bytes]:
    """A request's headers by lower-case name; several of one name as one list (RFC 9110, section 5.3)."""
    fields: dict[bytes, bytes] = dict(scope["headers"])
    if len(fields) < len(scope["headers"]):
        lines: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            lines.setdefault(name, []).append(value)
        fields = {name: b", ".join(values) for name, values in lines.items()}
    return fields


def _log_request(
    scope: Scope, exchange: Exchange, *, route: str | None, status: int, size: int, seconds: float
) -> None:
    database = exchange.database_seconds
    logs.requests.ended(
        request_id=exchange.request_id,
        trace_id=None if exchange.span is None else trace_id(exchange.span),
        user_id=exchange.user_id,
        method=scope["method"],
        route=route,
        status=status,
        duration_ms=round(seconds * 1000, 2),
        db_ms=None if database is None else round(database * 1000, 2),
        size=size,
        client=client_address(scope),
    )
