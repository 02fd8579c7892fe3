"""Every outcome that is not success: one class each, for the server, the client and the command line.

A class carries what never changes (its code, HTTP status and exit code; its docstring is the default
sentence); an instance carries what happened this time. Codes are stable: clients may rely on them.

    TaskctlError
    ├── BadRequest, BodyTooLarge, UnsupportedMediaType, ValidationFailed, IdempotencyKeyReused, BulkRefused
    ├── Unauthenticated ── TokenMissing, TokenMalformed, TokenExpired, …
    ├── Forbidden ── NotYourTasks, InsufficientScope
    ├── QuotaExceeded, TaskNotFound, RouteNotFound, MethodNotAllowed, ChangesExpired, VersionConflict
    ├── RateLimited, TooManyStreams
    ├── InternalError
    ├── Unavailable ── DatabaseUnavailable, StatementTimeout, Overloaded, ShuttingDown, NotReady, …
    └── LocalError ── UsageInvalid, SettingsInvalid, ServerUnreachable, … (never sent over HTTP)

Exit codes: 1 anything else, 2 wrong usage, settings or input, 4 not authenticated or not allowed,
5 not found, 6 conflict, 7 rate limited, 8 server unreachable, timed out or failing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class TaskctlError(Exception):
    """Something went wrong."""

    code: ClassVar[str]
    status: ClassVar[int]
    exit_code: ClassVar[int] = 1
    maybe_done: bool = False
    """Whether the server may have done what was asked all the same: an answer was lost."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        **members: Any,
    ) -> None:
        """Describe one occurrence.

        Args:
            detail: a sentence a person can act on; the class's own when left out.
            headers: response headers beyond the usual ones.
            request_id: the server's id of the request, where the error came from a server.
            members: further members of the problem document (RFC 9457, section 3.2).
        """
        self.detail = detail or self.title()
        self.headers = dict(headers or {})
        self.request_id = request_id
        self.members = members
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        """The sentence that describes every occurrence of this class."""
        return (cls.__doc__ or f"{cls.__name__}.").strip().splitlines()[0]

    @property
    def sentence(self) -> str:
        """The detail, and what validation found wrong where the detail does not say it."""
        return sentence(self.detail, self.members.get("errors"))

    def problem(self, *, instance: str, request_id: str) -> dict[str, Any]:
        """This occurrence as a problem document (RFC 9457) about the request path `instance`."""
        return {
            "type": f"/errors/{self.code}",
            "title": self.title(),
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "request_id": request_id,
            **self.members,
        }


# 400, 413, 415, 422: what was sent cannot be used.


class BadRequest(TaskctlError):
    """The request is malformed."""

    code, status, exit_code = "bad_request", 400, 2


class BodyTooLarge(TaskctlError):
    """The request body is larger than this server takes."""

    code, status, exit_code = "body_too_large", 413, 2


class UnsupportedMediaType(TaskctlError):
    """The body's Content-Type is not one that this operation reads."""

    code, status, exit_code = "unsupported_media_type", 415, 2


class ValidationFailed(TaskctlError):
    """The request is well-formed, but some of its values are not allowed."""

    code, status, exit_code = "validation_failed", 422, 2


class IdempotencyKeyReused(TaskctlError):
    """This Idempotency-Key was used before, with other content."""

    code, status, exit_code = "idempotency_key_reused", 422, 6


class BulkRefused(TaskctlError):
    """An operation cannot be done, so none was."""

    code, status, exit_code = "bulk_refused", 422, 6


# 401: RFC 6750, section 3.1.


class Unauthenticated(TaskctlError):
    """The request does not carry a token that this server accepts."""

    status, exit_code = 401, 4


class TokenMissing(Unauthenticated):
    """No bearer token was sent."""

    code = "token_missing"


class TokenMalformed(Unauthenticated):
    """The bearer token is not a well-formed JSON Web Token."""

    code = "token_malformed"


class TokenExpired(Unauthenticated):
    """The token has expired."""

    code = "token_expired"


class TokenNotYetValid(Unauthenticated):
    """The token is not valid yet."""

    code = "token_not_yet_valid"


class TokenSignatureInvalid(Unauthenticated):
    """The token's signature does not match."""

    code = "token_signature_invalid"


class TokenAlgorithmNotAllowed(Unauthenticated):
    """The token is signed with an algorithm that this server does not accept."""

    code = "token_algorithm_not_allowed"


class TokenClaimMissing(Unauthenticated):
    """The token lacks a claim that this server requires."""

    code = "token_claim_missing"


class TokenIssuerWrong(Unauthenticated):
    """The token comes from an issuer that this server does not trust."""

    code = "token_issuer_wrong"


class TokenAudienceWrong(Unauthenticated):
    """The token is meant for another audience."""

    code = "token_audience_wrong"


class TokenKeyUnknown(Unauthenticated):
    """The token is signed with a key that its issuer does not publish."""

    code = "token_key_unknown"


# 403


class Forbidden(TaskctlError):
    """The token is good, but does not allow this."""

    status, exit_code = 403, 4


class NotYourTasks(Forbidden):
    """The user in the path is not the user of the token."""

    code = "not_your_tasks"


class InsufficientScope(Forbidden):
    """The token's scope does not allow this."""

    code = "insufficient_scope"


# 403 for who is allowed, but not so much; 404, 405, 410, 412, 429


class QuotaExceeded(TaskctlError):
    """There is no room for more tasks."""

    code, status, exit_code = "quota_exceeded", 403, 4


class TaskNotFound(TaskctlError):
    """There is no task with this id."""

    code, status, exit_code = "task_not_found", 404, 5


class RouteNotFound(TaskctlError):
    """There is nothing at this path."""

    code, status, exit_code = "route_not_found", 404, 5


class MethodNotAllowed(TaskctlError):
    """This path does not answer this method."""

    code, status = "method_not_allowed", 405


class ChangesExpired(TaskctlError):
    """Changes after this cursor are no longer kept, or were erased; read the tasks again."""

    code, status, exit_code = "changes_expired", 410, 5


class VersionConflict(TaskctlError):
    """The task is not at the version that was asked for."""

    code, status, exit_code = "version_conflict", 412, 6


class RateLimited(TaskctlError):
    """Too many requests; try again later."""

    code, status, exit_code = "rate_limited", 429, 7


class TooManyStreams(TaskctlError):
    """This user has as many streams open as the server allows."""

    code, status, exit_code = "too_many_streams", 429, 7


# 500, 503


class InternalError(TaskctlError):
    """The server failed; the request id finds the reason in its log."""

    code, status, exit_code = "internal_error", 500, 8


class Unavailable(TaskctlError):
    """The server cannot answer right now; try again later."""

    status, exit_code = 503, 8
    retry_after: ClassVar[int] = 1
    """Seconds that `Retry-After` suggests (RFC 9110, section 10.2.3)."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached right now."""

    code = "database_unavailable"


class AuthKeysUnavailable(Unavailable):
    """The issuer's keys cannot be fetched right now, so no token can be checked."""

    code = "auth_keys_unavailable"


class StatementTimeout(Unavailable):
    """The database took too long to answer."""

    code = "statement_timeout"


class ShuttingDown(Unavailable):
    """This server is shutting down."""

    code = "shutting_down"


class Overloaded(Unavailable):
    """This server has more requests than it can take."""

    code = "overloaded"


class NotReady(Unavailable):
    """This server is not ready to serve."""

    code = "not_ready"


# What happens on this side of the connection only: no HTTP status.


class LocalError(TaskctlError):
    """Something went wrong on this machine."""

    code, status = "local_error", 0


class UsageInvalid(LocalError):
    """The command was used wrongly."""

    code, exit_code = "usage_invalid", 2


class SettingsInvalid(LocalError):
    """A setting is missing or wrong."""

    code, exit_code = "settings_invalid", 2


class Unexpected(LocalError):
    """Something went wrong that should not have."""

    code = "internal"


class NotLoggedIn(LocalError):
    """There is no token to send; log in first."""

    code, exit_code = "not_logged_in", 4


class LoginDenied(LocalError):
    """The login was denied."""

    code, exit_code = "login_denied", 4


class LoginExpired(LocalError):
    """Nobody has confirmed the login in time."""

    code, exit_code = "login_expired", 4


class KeyringFailed(LocalError):
    """The system's keyring cannot be used."""

    code = "keyring_failed"


class ClockWrong(LocalError):
    """This machine's clock differs from the server's."""

    code = "clock_wrong"


class ServerUnreachable(LocalError):
    """The server cannot be reached."""

    code, exit_code = "server_unreachable", 8


class ServerTimedOut(LocalError):
    """The server did not answer in time."""

    code, exit_code = "server_timed_out", 8


class UnexpectedAnswer(LocalError):
    """What answered does not speak taskctl's API."""

    code, exit_code = "unexpected_answer", 1


class ServerFailed(LocalError):
    """The server, or a proxy in front of it, failed."""

    code, exit_code = "server_failed", 8


class EmbeddedPostgresFailed(LocalError):
    """The embedded PostgreSQL cannot be used."""

    code = "embedded_postgres_failed"


class UserNotFound(LocalError):
    """The database has nothing about this user."""

    code, exit_code = "user_not_found", 5


class MigrationFailed(LocalError):
    """The migrations could not be run."""

    code = "migration_failed"


def sentence(detail: str, found: Any) -> str:
    """A problem's detail, and of its `errors` what the detail does not say."""
    if not isinstance(found, list):
        return detail
    wrong = [
        f"{'.'.join(map(str, one['loc'][1:] or one['loc']))}: {one.get('msg')}"
        for one in found
        if isinstance(one, dict) and isinstance(one.get("loc"), list) and str(one.get("msg")) not in detail
    ]
    return f"{detail} {'; '.join(wrong)}".rstrip()


def catalogue() -> Iterator[type[TaskctlError]]:
    """Every class with a code of its own, in the order in which they stand above."""

    def walk(parent: type[TaskctlError]) -> Iterator[type[TaskctlError]]:
        for child in parent.__subclasses__():
            if "code" in vars(child):
                yield child
            yield from walk(child)

    return walk(TaskctlError)


def by_code(code: str) -> type[TaskctlError] | None:
    """The class whose code this is, or None where this release does not know it."""
    return next((error for error in catalogue() if error.code == code), None)
