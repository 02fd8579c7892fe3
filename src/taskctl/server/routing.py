"""From an ASGI request to an endpoint's arguments, in the order of checks that the API promises.

FastAPI reads the endpoints' signatures and makes the OpenAPI document of them. What it would do per request
(solve dependencies, exit stacks, read the body before anything else) is replaced by `TaskRoute.handle`:
token, owner and scope, media type and size, JSON, validation, and only then the endpoint. A body is not
read before the token is good.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_origin
from urllib.parse import parse_qsl

import structlog
from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from taskctl import strict_json, vocabulary
from taskctl.errors import (
    BadRequest,
    BodyTooLarge,
    Forbidden,
    InsufficientScope,
    NotYourTasks,
    UnsupportedMediaType,
    ValidationFailed,
)
from taskctl.server.authentication import authenticate, challenge, log_refusal
from taskctl.server.call import Call
from taskctl.tokens import Identity

log: Any = structlog.get_logger()

JSON = "application/json"
PROBLEM = "application/problem+json"
MERGE_PATCH = "application/merge-patch+json"

RETRY_AFTER = {
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 0}}
}
"""How the OpenAPI document has the header of an answer that tells when to try again."""

_OBJECT = "This must be a JSON object."
_MESSAGES = {
    "extra_forbidden": "There is nothing of this name.",
    "missing": "This is required.",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
}
"""Said in place of pydantic's own words."""

_READING = frozenset({"GET", "HEAD"})
_TASK_ID = re.compile(r"[1-9][0-9]{0,18}")
_QUERIES_MAX, _QUERY_MAX = 1000, 200
"""How many query strings each route remembers, and of what length."""

_ERRORS_MAX = 20
"""How many of the things that are wrong an answer lists; the detail counts the rest."""

_LOC_MAX = 64
"""Characters of a member's name that an error repeats."""


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
        self._repeatable = _lists(self._query)
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
        call.identity = identity = await authenticate(call)
        try:
            self._authorize(identity, path.get("user_id", "me"))
        except Forbidden as error:
            if call.service.metrics is not None:
                call.service.metrics.authenticated(error.code)
            log_refusal(call, error, sub=identity.user_id, kid=identity.key_id, alg=identity.algorithm)
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
                for name in _query_parameters(query, self._repeatable, errors)
            ]
        if errors:
            raise invalid(errors)
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
        found = _validate("query", model, _query_parameters(query, self._repeatable, errors), errors)
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
                if match is not None:
                    if (route := by_method.get(scope["method"])) is None:
                        break
                    scope["path_params"], scope["route"] = match.groupdict(), route
                    await route.app(scope, receive, send)
                    return
        await self._router(scope, receive, send)


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


async def _read_body(call: Call, limit: int) -> bytes:
    """The whole body, counted as it arrives, whatever `Content-Length` claims."""
    length = call.header(b"content-length") or ""
    too_large = f"The body is larger than {limit} bytes; send less at a time."
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


def _lists(model: type[BaseModel] | None) -> frozenset[str]:
    """The members of a model that are lists: parameters that may be sent several times."""
    fields = model.model_fields if model else {}
    return frozenset(name for name, each in fields.items() if get_origin(each.annotation) is list)


def _query_parameters(
    query: bytes, repeatable: frozenset[str], errors: list[dict[str, Any]]
) -> dict[str, str | list[str]]:
    parameters: dict[str, str | list[str]] = {}
    for name, value in sent_parameters(query):
        if name in repeatable:
            parameters[name] = [*parameters.get(name, ()), value]
            continue
        if name in parameters:
            errors.append(_invalid(("query", name), "This parameter was sent more than once.", "repeated"))
        parameters[name] = value
    return parameters


def sent_parameters(query: bytes) -> list[tuple[str, str]]:
    """The parameters of a query string, in the order that they were sent in."""
    return parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True)


def _validate(
    where: str, model: type[BaseModel], value: Any, errors: list[dict[str, Any]]
) -> BaseModel | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors += explain(where, error.errors(include_url=False, include_context=False, include_input=False))
        return None


def explain(where: str, found: Iterable[ErrorDetails]) -> list[dict[str, Any]]:
    """What pydantic has found wrong, as `Problem.errors` has it; `where` is body or query."""
    errors = []
    for each in found:
        message = _MESSAGES.get(each["type"], each["msg"].removeprefix("Value error, "))
        loc = each["loc"]
        if where == "query":
            if each["type"] == "none_required":  # which nobody can send
                continue
            # pydantic adds which type of the parameter it tried.
            loc = (*loc[:1], *(part for part in loc[1:] if isinstance(part, int)))
        errors.append(_invalid((where, *loc), message[0].upper() + message[1:], each["type"]))
    return errors


def invalid(errors: list[dict[str, Any]]) -> ValidationFailed:
    """The refusal of what has all this wrong with it."""
    return ValidationFailed(_summary(errors), errors=errors[:_ERRORS_MAX])


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
    where = ".".join(str(each) for each in first["loc"][1:] or first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {first['msg'].rstrip('.')}{more}."


def _task_id(text: str) -> int:
    """The id in a path; 0, which no task has, for what cannot be one."""
    value = int(text) if _TASK_ID.fullmatch(text) else 0
    return value if value <= vocabulary.TASK_ID_MAX else 0
