"""What an HTTP answer means: the JSON it carries, or the error it stands for. Standard library only."""

import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from taskctl import errors

_STANDARD_MEMBERS = frozenset({"type", "title", "status", "detail", "instance", "code", "request_id"})

_BY_STATUS: Mapping[int, type[errors.TaskctlError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.TaskNotFound,
    409: errors.VersionConflict,
    412: errors.VersionConflict,
    429: errors.RateLimited,
    503: errors.Unavailable,
}
"""What an error is whose code this release does not know; other 4xx are `BadRequest`, 5xx `ServerFailed`."""


class Answer:
    """An HTTP answer, read to its end.

    Attributes:
        media_type: the Content-Type without its parameters, in lower case; empty where there is none.
        json: the body's value; None where the body is not JSON or does not say that it is.
    """

    def __init__(self, status: int, reason: str, headers: Message, body: bytes) -> None:
        self.status, self.reason, self.headers, self.body = status, reason, headers, body
        self.media_type = str(headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        self.json: Any = None
        if self.media_type in {"application/json", "application/problem+json"}:
            with contextlib.suppress(ValueError, RecursionError):
                self.json = json.loads(body)

    @property
    def status_line(self) -> str:
        """The status as people know it, such as `404 Not Found`."""
        return f"{self.status} {self.reason}".rstrip()


def unexpected(server: str, what: str, kind: str = "taskctl") -> errors.UnexpectedAnswer:
    """The error that a server has answered `what`, which no server of this kind does."""
    return errors.UnexpectedAnswer(f"{server} answered {what}; it may not be a {kind} server.")


def unexpected_kind(server: str, answer: Answer, kind: str = "taskctl") -> errors.UnexpectedAnswer:
    """The error that a status came with a kind of content that the API does not send with it."""
    return unexpected(server, f"{answer.status_line} with {answer.media_type or 'no content type'}", kind)


def redirected(server: str, answer: Answer) -> errors.UnexpectedAnswer:
    """The error that a server redirects (3xx): a token that is for one origin does not follow."""
    parts = urlsplit(answer.headers.get("Location") or "")
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "another path"
    return errors.UnexpectedAnswer(
        f"{server} redirects to {where} ({answer.status}). No redirect is followed with the token; if "
        "that is the server, give its URL."
    )


def error_of(server: str, answer: Answer) -> errors.TaskctlError:
    """The error that an answer with a status other than 2xx stands for."""
    problem = answer.json
    if isinstance(problem, dict) and isinstance(problem.get("code"), str):
        return _from_problem(problem, answer)
    request_id = answer.headers.get("X-Request-ID")
    if answer.status in range(300, 400):
        return redirected(server, answer)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return errors.RateLimited(request_id=request_id)
    if answer.status in range(500, 600):
        return errors.ServerFailed(
            f"The server, or a proxy in front of it, answered {answer.status_line}.", request_id=request_id
        )
    return unexpected_kind(server, answer)


def _from_problem(problem: Mapping[str, Any], answer: Answer) -> errors.TaskctlError:
    """The error that a problem document (RFC 9457) names; by its status where its code is not known."""
    known = errors.by_code(problem["code"])
    make = known or _BY_STATUS.get(answer.status)
    if make is None:
        make = errors.BadRequest if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR else errors.ServerFailed
    detail, request_id = problem.get("detail"), problem.get("request_id")
    error = make(
        detail if isinstance(detail, str) else None,
        headers=dict(answer.headers.items()),
        request_id=request_id if isinstance(request_id, str) else answer.headers.get("X-Request-ID"),
    )
    error.members = {name: value for name, value in problem.items() if name not in _STANDARD_MEMBERS}
    if known is None:  # a newer server's; class variables, but of no class that exists here
        error.code = problem["code"]  # type: ignore[misc]
        error.status = answer.status  # type: ignore[misc]
    return error


def retry_after(answer: Answer) -> float:
    """Seconds that `Retry-After` (RFC 9110, section 10.2.3) asks for; 0 where it cannot be read.

    A date is measured against the answer's own `Date`, so that a wrong clock here does no harm.
    """
    value = str(answer.headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        sent = answer.headers.get("Date")
        now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
