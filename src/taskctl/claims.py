"""What a token says of itself, unverified: to show it, and to renew it in time. Standard library only."""

import json
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any

_FAR = 1e11
"""Seconds: the year 5138, within what every clock and calendar here can tell."""


def unverified(token: str | None) -> Mapping[str, Any]:
    """The claims of a token; none where it is no JSON Web Token (RFC 7519). Only a server can verify them."""
    return _object(token, 1)


def header(token: str | None) -> Mapping[str, Any]:
    """The header of a token; empty where it is no JSON Web Token."""
    return _object(token, 0)


def expires_at(token: str | None) -> float | None:
    """When a token says that it expires, in seconds since the epoch; None where it does not say."""
    expiry = unverified(token).get("exp")
    if not isinstance(expiry, int | float) or isinstance(expiry, bool) or not abs(expiry) < _FAR:
        return None
    return float(expiry)


def seconds_left(token: str | None) -> float | None:
    """How long a token says that it lasts, by this machine's clock; None where it does not say."""
    expiry = expires_at(token)
    return None if expiry is None else expiry - time.time()


def _object(token: str | None, part: int) -> Mapping[str, Any]:
    parts = (token or "").split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature
        return {}
    try:
        value = json.loads(urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
