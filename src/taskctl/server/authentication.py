"""Who sends a request: its bearer token (RFC 6750), within the limits, and the log's events about that."""

import re
from typing import Any

import structlog

from taskctl.errors import AuthKeysUnavailable, Forbidden, TokenMalformed, TokenMissing, Unauthenticated
from taskctl.server.call import Call, Exchange, client_address
from taskctl.tokens import Identity, shorten, unverified

log: Any = structlog.get_logger()

_SIMPLE = re.compile(r"[ -~]{0,64}")


async def authenticate(call: Call) -> Identity:
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
        log_refusal(call, error, **_unverified(token))
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


def log_refusal(
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


def bearer_token(call: Call) -> str:
    """The token of the `Authorization` header (RFC 6750, section 2.1); a query string's is never read."""
    value = call.header(b"authorization") or ""
    if "," in value and len(call.headers.getlist("authorization")) > 1:
        raise TokenMalformed("There are two Authorization headers.")
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise TokenMissing("Send the header 'Authorization: Bearer <token>'.")
    return token.strip()


def challenge(error: str | None = None, description: str | None = None, scope: str | None = None) -> str:
    """A `WWW-Authenticate` value (RFC 6750, section 3)."""
    parts = {"realm": "taskctl", "error": error, "error_description": description, "scope": scope}
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
