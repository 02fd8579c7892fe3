"""Compact JSON Web Signatures (RFC 7515), taken apart strictly: nothing is trusted yet."""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from taskctl import strict_json
from taskctl.errors import TokenMalformed

MAX_TOKEN_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart. `header` and `claims` are as sent: nothing in them is trusted yet."""

    signed: bytes
    header: dict[str, Any]
    claims: dict[str, Any]
    signature: bytes

    @property
    def algorithm(self) -> str:
        """What the header says it is signed with."""
        algorithm: str = self.header["alg"]
        return algorithm


def take_apart(token: str) -> Token:
    """Split and decode a compact JWS (RFC 7515, section 7.1), strictly.

    Raises:
        TokenMalformed: says what is wrong, without repeating the token.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenMalformed(f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
    parts = token.split(".")
    if len(parts) == 1:
        raise TokenMalformed(
            "This is not a JWT. If it is a Better Auth session token, exchange it for a JWT first: "
            "GET /api/auth/token at the auth server."
        )
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature
        raise TokenMalformed(f"A JWT has three parts, this token has {len(parts)}.")
    header = _object(parts[0], "header")
    claims = _object(parts[1], "claims")
    signature = _base64url(parts[2], "signature")
    if not isinstance(header.get("alg"), str):
        raise TokenMalformed("The token's header names no algorithm.")
    if "crit" in header:
        raise TokenMalformed("The token's header has critical extensions, and this server knows none.")
    if header.get("b64", True) is not True:
        raise TokenMalformed("The token's claims are not base64url, as RFC 7797 has it for other things.")
    return Token(f"{parts[0]}.{parts[1]}".encode(), header, claims, signature)


def _base64url(text: str, part: str) -> bytes:
    """Decode base64url without padding, foreign characters or trailing bits (RFC 7515, appendix C)."""
    try:
        decoded = base64.b64decode(
            text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True
        )
        canonical = base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() == text
    except (binascii.Error, UnicodeEncodeError):
        canonical = False
        decoded = b""
    if not canonical:
        raise TokenMalformed(f"The token's {part} is not base64url.")
    return decoded


def _object(text: str, part: str) -> dict[str, Any]:
    try:
        value = strict_json.loads(_base64url(text, part).decode("utf-8"))
    except ValueError as error:
        raise TokenMalformed(f"The token's {part} is not JSON as RFC 7519 asks for.") from error
    if not isinstance(value, dict):
        raise TokenMalformed(f"The token's {part} is not a JSON object.")
    return value
