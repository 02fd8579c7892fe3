"""JSON Web Tokens (RFC 7519): mint them, verify them, explain them.

The rules are RFC 8725's: the algorithm is chosen by this side's keys and never by the token, base64url and
JSON are read strictly, and what a token does not state is not assumed. `sub` alone says who somebody is;
Better Auth signs e-mail links with the same secret, and those carry `email` and `userId` but no `sub`.
"""

import base64
import binascii
import hashlib
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

from taskctl import strict_json
from taskctl.errors import (
    SettingsInvalid,
    TaskctlError,
    TokenAlgorithmNotAllowed,
    TokenAudienceWrong,
    TokenClaimMissing,
    TokenExpired,
    TokenIssuerWrong,
    TokenMalformed,
    TokenNotYetValid,
    TokenSignatureInvalid,
    UsageInvalid,
)
from taskctl.vocabulary import USER_ID_MAX, Scope

if TYPE_CHECKING:
    from taskctl.config import ServerSettings
    from taskctl.signing_keys import SigningKey

MAX_TOKEN_BYTES = 8192

_REMEMBERED_TOKENS = 10_000
_REMEMBERED_SECONDS = 60

_HS256 = HMACAlgorithm(HMACAlgorithm.SHA256)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a verified token speaks for, and what it may do."""

    user_id: str
    scopes: frozenset[str]
    expires_at: float
    """Seconds since the epoch."""


@dataclass(slots=True)
class _Token:
    """A token taken apart. `header` and `claims` are as sent: nothing in them is trusted yet."""

    signed: bytes
    header: dict[str, Any]
    claims: dict[str, Any]
    signature: bytes


@dataclass(frozen=True, slots=True)
class Check:
    """One step of the verification: passed, failed with an error, or not reached."""

    name: str
    error: TaskctlError | None = None
    reached: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """What a token says and how it fares, check by check, for `taskctl token inspect`."""

    header: dict[str, Any]
    claims: dict[str, Any]
    checks: Sequence[Check]

    @property
    def error(self) -> TaskctlError | None:
        """What the server would answer, or None where it would accept the token."""
        return next((check.error for check in self.checks if check.error), None)


@dataclass(frozen=True)
class Verifier:
    """Decides which tokens this server accepts.

    Args:
        secrets: current first; each verifies HS256 with its UTF-8 bytes.
        issuers, audiences: accepted `iss` and `aud`; empty means that `iss` is not looked at and that a
            token with an `aud` is refused (RFC 7519, section 4.1.3).
        leeway: clock difference allowed, in seconds.
        clock: seconds since the epoch.

    Raises:
        SettingsInvalid: a secret that is no secret, such as a PEM public key.
    """

    secrets: Sequence[str] = field(repr=False)
    issuers: Sequence[str] = ()
    audiences: Sequence[str] = ()
    leeway: float = 30.0
    clock: Callable[[], float] = time.time
    _keys: list[bytes] = field(init=False, repr=False)
    _verified: dict[bytes, tuple[Identity, float]] = field(init=False, repr=False, default_factory=dict)
    """By the token's SHA-256: the identity, and until when it need not be verified again."""

    def __post_init__(self) -> None:
        try:
            keys = [_HS256.prepare_key(secret) for secret in self.secrets]
        except InvalidKeyError as error:
            raise SettingsInvalid(f"BETTER_AUTH_SECRET cannot be used: {error}") from error
        object.__setattr__(self, "_keys", keys)

    def verify(self, token: str) -> Identity:
        """Accept a token, or raise what is wrong with it first.

        An accepted token is remembered for a minute, and never past its expiry and the leeway.

        Raises:
            Unauthenticated: one of its subclasses.
        """
        now = self.clock()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        identity, until = self._verified.get(digest, (None, 0.0))
        if identity is not None and now < until:
            return identity
        parsed = _take_apart(token)
        for _, check in self._checks():
            check(parsed)
        claims = parsed.claims
        identity = Identity(claims["sub"], _scopes(claims), float(claims["exp"]))
        if len(self._verified) >= _REMEMBERED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = identity, min(now + _REMEMBERED_SECONDS, identity.expires_at + self.leeway)
        return identity

    def examine(self, token: str) -> Report:
        """Run every check and say how each went; never raises for a bad token.

        Once the token cannot be taken apart, nothing else is reached. The claims are looked at even when
        the signature is wrong, so that a person sees all that is to be mended.
        """
        names = [name for name, _ in self._checks()]
        try:
            parsed = _take_apart(token)
        except TokenMalformed as error:
            unreached = [Check(name, reached=False) for name in names]
            return Report({}, {}, [Check("well-formed", error), *unreached])
        checks = [Check("well-formed")]
        for name, check in self._checks():
            try:
                check(parsed)
            except TaskctlError as error:
                checks.append(Check(name, error))
            else:
                checks.append(Check(name))
        return Report(parsed.header, parsed.claims, checks)

    def _checks(self) -> Iterator[tuple[str, Callable[[_Token], None]]]:
        yield "algorithm", self._check_algorithm
        yield "signature", self._check_signature
        yield "subject", self._check_subject
        yield "expiry", self._check_expiry
        yield "not before", self._check_not_before
        yield "issuer", self._check_issuer
        yield "audience", self._check_audience
        yield "scope", self._check_scope

    def _check_algorithm(self, token: _Token) -> None:
        algorithm = token.header["alg"]
        if algorithm != "HS256" or not self._keys:
            accepted = "HS256" if self._keys else "none, as no secret is set"
            raise TokenAlgorithmNotAllowed(
                f"The token is signed with {shorten(algorithm)}; this server accepts {accepted}."
            )

    def _check_signature(self, token: _Token) -> None:
        if token.header["alg"] != "HS256" or not any(
            _HS256.verify(token.signed, key, token.signature) for key in self._keys
        ):
            raise TokenSignatureInvalid("The token's signature does not match this server's secret.")

    def _check_subject(self, token: _Token) -> None:
        subject = token.claims.get("sub")
        if subject is None or subject == "":
            raise TokenClaimMissing("The token has no `sub` claim, which says whose tasks these are.")
        if not valid_subject(subject):
            raise TokenMalformed(
                f"The token's `sub` claim is not text of at most {USER_ID_MAX} characters, none of them a "
                "control character."
            )

    def _check_expiry(self, token: _Token) -> None:
        expires = _time(token.claims, "exp")
        if expires is None:
            raise TokenClaimMissing("The token has no `exp` claim, which says until when it is valid.")
        if expires + self.leeway <= self.clock():
            raise TokenExpired(f"The token expired {_ago(self.clock() - expires)} ago; get a new one.")

    def _check_not_before(self, token: _Token) -> None:
        _time(token.claims, "iat")
        not_before = _time(token.claims, "nbf")
        if not_before is not None and not_before - self.leeway > self.clock():
            raise TokenNotYetValid(f"The token becomes valid in {_ago(not_before - self.clock())}.")

    def _check_issuer(self, token: _Token) -> None:
        issuer = token.claims.get("iss")
        if issuer is not None and not isinstance(issuer, str):
            raise TokenMalformed("The token's `iss` claim is not text.")
        if not self.issuers:
            return
        if issuer is None:
            raise TokenClaimMissing("The token has no `iss` claim; TASKCTL_JWT_ISSUERS asks for one.")
        if issuer not in self.issuers:
            raise TokenIssuerWrong(
                f"The token comes from {shorten(issuer)}, which is not in TASKCTL_JWT_ISSUERS."
            )

    def _check_audience(self, token: _Token) -> None:
        audience = token.claims.get("aud")
        if audience is None:
            if self.audiences:
                raise TokenClaimMissing("The token has no `aud` claim; TASKCTL_JWT_AUDIENCES asks for one.")
            return
        audiences = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in audiences):
            raise TokenMalformed("The token's `aud` claim is neither text nor a list of texts.")
        if not self.audiences:
            raise TokenAudienceWrong(
                "The token names an audience and this server has none; TASKCTL_JWT_AUDIENCES sets it."
            )
        if not set(audiences) & set(self.audiences):
            raise TokenAudienceWrong("The token's audience is not in TASKCTL_JWT_AUDIENCES.")

    def _check_scope(self, token: _Token) -> None:
        _scopes(token.claims)


def create_verifier(settings: "ServerSettings") -> Verifier:
    """The verifier that the server's settings describe.

    Raises:
        SettingsInvalid: a secret cannot be used.
    """
    secrets = (settings.secret, *settings.previous_secrets)
    return Verifier(
        secrets=[secret.get_secret_value() for secret in secrets if secret],
        issuers=settings.jwt_issuers,
        audiences=settings.jwt_audiences,
        leeway=settings.jwt_leeway,
    )


def mint(
    key: "str | SigningKey",
    subject: str,
    lifetime: float,
    *,
    scope: str | None = None,
    claims: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.time,
) -> str:
    """Sign a token.

    Args:
        key: a secret, which signs with HS256 and its UTF-8 bytes, or a private key, which the header names.
        subject: the user id, 1 to 255 characters without control characters.
        lifetime: seconds from now to `exp`; may be negative, for tests of expiry.
        scope: space-separated; without it the token may do everything.
        claims: further claims; they win over the ones made here.
        clock: seconds since the epoch.

    Raises:
        SettingsInvalid: the secret cannot sign.
        UsageInvalid: a claim is of a type that it must not have.
    """
    now = int(clock())
    payload: dict[str, Any] = {"sub": subject, "iat": now, "exp": now + int(lifetime)}
    if scope is not None:
        payload["scope"] = scope
    payload |= claims or {}
    if not isinstance(key, str):
        return _encode(payload, key.private, key.algorithm, {"kid": key.kid})
    with warnings.catch_warnings():
        # A short secret is the settings' business: refused outside development, warned of there.
        warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
        try:
            return _encode(payload, key, "HS256")
        except InvalidKeyError as error:
            raise SettingsInvalid(f"BETTER_AUTH_SECRET cannot sign: {error}") from error


def _encode(payload: dict[str, Any], key: Any, algorithm: str, header: dict[str, Any] | None = None) -> str:
    try:
        return jwt.encode(payload, key, algorithm=algorithm, headers=header)
    except TypeError as error:
        raise UsageInvalid(f"The claims make no token: {error}") from error


def valid_subject(subject: object) -> bool:
    """Whether this can be a user id: text of 1 to 255 characters, none a control character or surrogate."""
    return (
        isinstance(subject, str)
        and 0 < len(subject) <= USER_ID_MAX
        and (subject.isprintable() or not any(unicodedata.category(each) in {"Cc", "Cs"} for each in subject))
    )


def shorten(value: object) -> str:
    """A value from a token, fit for a message: quoted, escaped, cut at 40 characters."""
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "…"  # noqa: PLR2004 - as the docstring says


def _take_apart(token: str) -> _Token:
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
    return _Token(f"{parts[0]}.{parts[1]}".encode(), header, claims, signature)


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


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate claim (RFC 7519, section 2), in seconds since the epoch."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:  # noqa: PLR2004
        raise TokenMalformed(f"The token's `{name}` claim is not a time in seconds.")
    return float(value)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """What the `scope` claim allows: everything when there is none, nothing when it is empty."""
    if "scope" not in claims:
        return frozenset(Scope)
    scope = claims["scope"]
    if not isinstance(scope, str):
        raise TokenMalformed("The token's `scope` claim is not text.")
    return frozenset(scope.split(" "))


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
