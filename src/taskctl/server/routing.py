"""From an ASGI request to an endpoint's arguments, in the order of checks that the API promises.

FastAPI reads the endpoints' signatures and makes the OpenAPI document of them. What it would do per request
(solve dependencies, exit stacks, read the body before anything else) is replaced by `TaskRoute.handle`:
token, owner and scope, media type and size, JSON, validation, and only then the endpoint. A body is not
read before the token is good.
"""

import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from urllib.parse import parse_qsl

import structlog
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from taskctl import strict_json, vocabulary
from taskctl.config import ServerSettings
from taskctl.errors import (
    AuthKeysUnavailable,
    BadRequest,
    BodyTooLarge,
    Forbidden,
    InsufficientScope,
    NotYourTasks,
    TokenMalformed,
    TokenMissing,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
    ValidationFailed,
)
from taskctl.server.database import Database
from taskctl.server.draining import Drain
from taskctl.server.limits import Limiter
from taskctl.server.metrics import Metrics
from taskctl.server.queries import Statement
from taskctl.server.sessions import Row
from taskctl.server.tracing import Tracing, trace_id
from taskctl.tokens import Identity, Verifier, shorten, unverified

log: Any = structlog.get_logger()

JSON = "application/json"
PROBLEM = "application/problem+json"
MERGE_PATCH = "application/merge-patch+json"

RETRY_AFTER = {
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 0}}
}
"""How the OpenAPI document has the header of an answer that tells when to try again."""

_MESSAGES = {"extra_forbidden": "There is nothing of this name.", "missing": "This is required."}
"""Said in place of pydantic's own words."""

_READING = frozenset({"GET", "HEAD"})
_SIMPLE = re.compile(r"[ -~]{0,64}")
_TASK_ID = re.compile(r"[1-9][0-9]{0,18}")
_QUERIES_MAX, _QUERY_MAX = 1000, 200
"""How many query strings each route remembers, and of what length."""

_ERRORS_MAX = 20
"""How many of the things that are wrong an answer lists; the detail counts the rest."""

_LOC_MAX = 64
"""Characters of a member's name that an error repeats."""


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
    drain: Drain = field(default_factory=Drain)


class Exchange:
    """What is known of one request for its answer's headers and its line in the log."""

    __slots__ = (
        "answered",
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


class PublicRoute(APIRoute):
    """A route that anybody may use: the endpoint is called with the `Call`, and its response sent."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        # Starlette's `$` would also match before a line feed at the end.
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.respond(Call(scope, receive, send))
        await response(scope, receive, send)

    async def respond(self, call: Call) -> Response:
        """Answer one request."""
        response: Response = await self.endpoint(call)
        return response


class TaskRoute(PublicRoute):
    """A route to one user's tasks.

    An endpoint takes the `Call`, and by name what its signature asks for: `task_id`, `query` (a model of
    all query parameters), `body` (a model; with a default where the body may be left out), and headers.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        parameters = inspect.signature(endpoint).parameters
        methods = self.methods or set()
        self._scope = vocabulary.Scope.read if methods <= _READING else vocabulary.Scope.write
        self._query = _model(parameters.get("query"))
        self._queries: dict[bytes, BaseModel] = {}
        """Good query strings that came lately: most come again and again."""
        self._body = _model(parameters.get("body"))
        self._body_required = self._body is not None and parameters["body"].default is inspect.Parameter.empty
        self._media_types = (JSON, MERGE_PATCH) if "PATCH" in methods else (JSON,)
        # RFC 5789, section 3.1.
        self._accepted = {"Accept-Patch": ", ".join(self._media_types)} if "PATCH" in methods else None
        self._headers = [
            (field.name, field.alias.lower().encode("ascii")) for field in self.dependant.header_params
        ]

    async def respond(self, call: Call) -> Response:
        """Answer one request, or raise what is wrong with it."""
        path = call.path_params
        call.identity = identity = await _authenticate(call)
        try:
            self._authorize(identity, path.get("user_id", "me"))
        except Forbidden as error:
            if call.service.metrics is not None:
                call.service.metrics.authenticated(error.code)
            _log_refusal(call, error, sub=identity.user_id, kid=identity.key_id, alg=identity.algorithm)
            raise
        content = await self._read(call) if self._body else b""
        arguments: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        if self._body and (content or self._body_required):
            arguments["body"] = _validate("body", self._body, parse_json(content), errors)
        query: bytes = call.scope["query_string"]
        if self._query:
            arguments["query"] = self._queries.get(query) or self._read_query(self._query, query, errors)
        elif query:
            errors += [
                _invalid(("query", name), _MESSAGES["extra_forbidden"], "extra_forbidden")
                for name in _query_parameters(query, errors)
            ]
        if errors:
            raise ValidationFailed(_summary(errors), errors=errors[:_ERRORS_MAX])
        if "task_id" in path:
            arguments["task_id"] = _task_id(path["task_id"])
        for name, alias in self._headers:
            arguments[name] = call.header(alias)
        response: Response = await self.endpoint(call, **arguments)
        return response

    def _authorize(self, identity: Identity, owner: str) -> None:
        if owner not in ("me", identity.user_id):
            raise NotYourTasks
        if self._scope not in identity.scopes:
            raise InsufficientScope(
                f"The token's scope does not include {self._scope}.",
                headers={"WWW-Authenticate": challenge("insufficient_scope", scope=self._scope)},
            )

    def _read_query(
        self, model: type[BaseModel], query: bytes, errors: list[dict[str, Any]]
    ) -> BaseModel | None:
        found = _validate("query", model, _query_parameters(query, errors), errors)
        if found is not None and not errors and len(query) <= _QUERY_MAX:
            if len(self._queries) >= _QUERIES_MAX:
                self._queries.clear()
            self._queries[query] = found
        return found

    async def _read(self, call: Call) -> bytes:
        """The body, once its media type is known to be good."""
        media_type = call.header(b"content-type")
        announced = (call.header(b"content-length") or "0") != "0" or call.header(b"transfer-encoding")
        if media_type is not None and (announced or self._body_required):
            essence = media_type.partition(";")[0].strip().lower()
            if essence not in self._media_types:
                raise UnsupportedMediaType(
                    f"Send the header 'Content-Type: {self._media_types[0]}'.",
                    headers=self._accepted,
                )
        return await _read_body(call, call.service.settings.max_body)


class OwnRoute(TaskRoute):
    """A route about whoever sends a good token, whatever its scope."""

    def _authorize(self, identity: Identity, owner: str) -> None:
        pass


class Shortcut:
    """Leads requests straight to the routes of tasks, and everything else to FastAPI's router.

    That one asks every route in turn and gathers what it says of itself.
    """

    def __init__(self, router: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._router = router
        paths: dict[str, tuple[re.Pattern[str], dict[str, TaskRoute]]] = {}
        for route in routes:
            if isinstance(route, TaskRoute):
                _, by_method = paths.setdefault(route.path, (route.path_regex, {}))
                by_method |= dict.fromkeys(route.methods or (), route)
        self._paths = list(paths.values())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        # Under another root, paths are not as they were written.
        if scope["type"] == "http" and not scope.get("root_path"):
            for regex, by_method in self._paths:
                match = regex.match(scope["path"])
                if match is not None and (route := by_method.get(scope["method"])) is not None:
                    scope["path_params"], scope["route"] = match.groupdict(), route
                    await route.app(scope, receive, send)
                    return
        await self._router(scope, receive, send)


def path_as_sent(scope: Scope) -> str:
    """A request's path, percent-encoded as the client sent it."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("ascii", "replace")
    return raw.decode("ascii", "replace").partition("?")[0]


def challenge(error: str | None = None, description: str | None = None, scope: str | None = None) -> str:
    """A `WWW-Authenticate` value (RFC 6750, section 3)."""
    parts = {"realm": "taskctl", "error": error, "error_description": description, "scope": scope}
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)


def parse_json(body: bytes) -> Any:
    """A body's JSON, in UTF-8 without a BOM; as strict as `strict_json.loads`.

    Raises:
        BadRequest: says what is wrong and where.
    """
    try:
        text = body.decode("utf-8")
        return strict_json.loads(text)
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: byte {error.start} cannot be read.") from error
    except json.JSONDecodeError as error:
        reason = "it is empty" if not body else f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise BadRequest(f"The body is not JSON: {reason}.") from error
    except ValueError as error:
        raise BadRequest(f"The body is not JSON that this server reads: {error}.") from error


def _model(parameter: inspect.Parameter | None) -> type[BaseModel] | None:
    """The pydantic model in a parameter's annotation, through `Annotated` and `| None`."""
    if parameter is None:
        return None
    candidates = [parameter.annotation]
    for candidate in candidates:
        candidates += get_args(candidate)
    return next(each for each in candidates if inspect.isclass(each) and issubclass(each, BaseModel))


async def _authenticate(call: Call) -> Identity:
    """Who sends this, once the limits allow it; a request without a good token counts for its address."""
    service = call.service
    token = ""
    try:
        token = bearer_token(call)
        identity = service.verifier.recall(token)
        if identity is None:
            identity = await service.verifier.authenticate(token)
            _log_acceptance(call, identity)
    except (Unauthenticated, AuthKeysUnavailable) as error:
        if service.metrics is not None:
            service.metrics.authenticated(error.code)
        _log_refusal(call, error, **_unverified(token))
        if isinstance(error, Unauthenticated):
            await service.limiter.refuse(client_address(call.scope))
        raise
    if service.metrics is not None:
        service.metrics.authenticated("accepted")
    exchange: Exchange = call.scope["taskctl.exchange"]
    exchange.user_id = identity.user_id
    exchange.rate_limit = await service.limiter.admit(identity.user_id)
    return identity


def _log_acceptance(call: Call, identity: Identity) -> None:
    """The event of a token that was verified. While it is remembered, the event of each request is enough."""
    log.info(
        "auth_accepted",
        code="accepted",
        client=client_address(call.scope),
        **call.scope["taskctl.exchange"].names,
        sub=identity.user_id,
        kid=identity.key_id,
        alg=identity.algorithm,
        trust=identity.trust,
    )


def _log_refusal(
    call: Call, error: Unauthenticated | Forbidden | AuthKeysUnavailable, **claims: str | None
) -> None:
    """The event of a refusal."""
    log.info(
        "auth_refused",
        code=error.code,
        client=client_address(call.scope),
        **call.scope["taskctl.exchange"].names,
        **claims,
    )


def _unverified(token: str) -> dict[str, str | None]:
    """What a refused token says of itself, marked as unverified where it names somebody."""
    if not token:
        return {}
    header, claims = unverified(token)
    told = {"sub_unverified": claims.get("sub"), "kid": header.get("kid"), "alg": header.get("alg")}
    return {
        name: value
        if value is None or (isinstance(value, str) and _SIMPLE.fullmatch(value))
        else shorten(value)
        for name, value in told.items()
    }


def client_address(scope: Scope) -> str | None:
    """The address that a request came from; None on a Unix socket."""
    client = scope.get("client")
    return client[0] if client else None


def bearer_token(call: Call) -> str:
    """The token of the `Authorization` header (RFC 6750, section 2.1); a query string's is never read."""
    value = call.header(b"authorization") or ""
    if "," in value and len(call.headers.getlist("authorization")) > 1:
        raise TokenMalformed("There are two Authorization headers.")
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenMissing("Send the header 'Authorization: Bearer <token>'.")
    return token.strip()


async def _read_body(call: Call, limit: int) -> bytes:
    """The whole body, counted as it arrives, whatever `Content-Length` claims."""
    length = call.header(b"content-length") or ""
    too_large = f"The body is larger than {limit} bytes."
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise BodyTooLarge(too_large)
    body = b""
    while True:
        message = await call.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(too_large)
        if not message.get("more_body", False):
            return body


def _query_parameters(query: bytes, errors: list[dict[str, Any]]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in parameters:
            errors.append(_invalid(("query", name), "This parameter was sent more than once.", "repeated"))
        parameters[name] = value
    return parameters


def _validate(
    where: str, model: type[BaseModel], value: Any, errors: list[dict[str, Any]]
) -> BaseModel | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        for each in error.errors(include_url=False, include_context=False, include_input=False):
            message = _MESSAGES.get(each["type"], each["msg"].removeprefix("Value error, "))
            errors.append(_invalid((where, *each["loc"]), message[0].upper() + message[1:], each["type"]))
        return None


def _invalid(loc: tuple[str | int, ...], message: str, kind: str) -> dict[str, Any]:
    names = [
        each if isinstance(each, int) else each.encode("ascii", "backslashreplace").decode() for each in loc
    ]
    return {
        "loc": [each if isinstance(each, int) else each[:_LOC_MAX] for each in names],
        "msg": message,
        "type": kind,
    }


def _summary(errors: list[dict[str, Any]]) -> str:
    """The first error as a sentence, for those who read only the detail."""
    first = errors[0]
    where = ".".join(str(each) for each in first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {first['msg'].rstrip('.')}{more}."


def _task_id(text: str) -> int:
    """The id in a path; 0, which no task has, for what cannot be one."""
    value = int(text) if _TASK_ID.fullmatch(text) else 0
    return value if value <= vocabulary.TASK_ID_MAX else 0
