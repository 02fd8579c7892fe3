"""JSON Web Tokens (RFC 7519): mint them, verify them, explain them.

The rules are RFC 8725's: the algorithm is chosen by this side's keys and never by the token, base64url and
JSON are read strictly, and what a token does not state is not assumed. `sub` alone says who somebody is;
Better Auth signs e-mail links with the same secret, and those carry `email` and `userId` but no `sub`.
"""

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

from taskctl.errors import (
    AuthKeysUnavailable,
    SettingsInvalid,
    TaskctlError,
    TokenAlgorithmNotAllowed,
    TokenAudienceWrong,
    TokenClaimMissing,
    TokenExpired,
    TokenIssuerWrong,
    TokenKeyUnknown,
    TokenMalformed,
    TokenNotYetValid,
    TokenSignatureInvalid,
    UsageInvalid,
)
from taskctl.jwks import ALGORITHMS, Doubt, Fetch, Key, KeySet
from taskctl.jws import Token, take_apart
from taskctl.vocabulary import USER_ID_MAX, Scope, Trust

if TYPE_CHECKING:
    from taskctl.config import ServerSettings
    from taskctl.signing_keys import SigningKey

_REMEMBERED_TOKENS = 10_000
_REMEMBERED_SECONDS = 60
_FAMILIAR_SUBJECTS = 10_000

_HS256 = HMACAlgorithm(HMACAlgorithm.SHA256)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a verified token speaks for, and what it may do."""

    user_id: str
    scopes: frozenset[str]
    expires_at: float
    """Seconds since the epoch."""
    issuer: str | None = None
    trust: Trust = Trust.secret
    algorithm: str = "HS256"
    key_id: str | None = None
    """The published key's name; None for a secret, or a key without one."""


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
        issuers, audiences: accepted `iss` and `aud` of tokens signed with a secret; empty means that `iss`
            is not looked at and that a token with an `aud` is refused (RFC 7519, section 4.1.3).
        leeway: clock difference allowed, in seconds.
        clock: seconds since the epoch.
        key_set: verifies the other algorithms.
        key_set_issuers, key_set_audiences: its tokens must carry one of each.

    Raises:
        SettingsInvalid: a secret that is no secret, such as a PEM public key, or a key set without an issuer
            and an audience.
    """

    secrets: Sequence[str] = field(repr=False)
    issuers: Sequence[str] = ()
    audiences: Sequence[str] = ()
    leeway: float = 30.0
    clock: Callable[[], float] = time.time
    key_set: KeySet | None = None
    key_set_issuers: Sequence[str] = ()
    key_set_audiences: Sequence[str] = ()
    _keys: list[bytes] = field(init=False, repr=False)
    _verified: dict[bytes, tuple[Identity, float, int]] = field(init=False, repr=False, default_factory=dict)
    """By the token's SHA-256: the identity, until when it holds, and the key set's revision."""
    _subjects: dict[str, None] = field(init=False, repr=False, default_factory=dict)
    """Whose tokens the key set has verified."""

    def __post_init__(self) -> None:
        if self.key_set is not None and not (self.key_set_issuers and self.key_set_audiences):
            raise SettingsInvalid("A key set needs an issuer and an audience whose tokens it verifies.")
        try:
            keys = [_HS256.prepare_key(secret) for secret in self.secrets]
        except InvalidKeyError as error:
            raise SettingsInvalid(f"BETTER_AUTH_SECRET cannot be used: {error}") from error
        object.__setattr__(self, "_keys", keys)

    def recall(self, token: str) -> Identity | None:
        """Whom a token speaks for that was accepted within the last minute, if it still holds.

        It does not beyond its expiry and the leeway, or once other keys are published.
        """
        remembered = self._verified.get(_digest(token))
        if remembered is None:
            return None
        identity, until, revision = remembered
        if self.clock() >= until or (self.key_set is not None and revision != self.key_set.revision):
            return None
        return identity

    def verify(self, token: str) -> Identity:
        """Accept a token with the keys at hand, or raise what is wrong with it first.

        Raises:
            Unauthenticated: one of its subclasses.
            AuthKeysUnavailable: it needs the key set, and no keys are at hand.
        """
        return self.recall(token) or self._accept(token)

    async def authenticate(self, token: str) -> Identity:
        """As `verify`; where keys are missing or may have changed, the issuer is asked first."""
        try:
            return self._accept(token)
        except (AuthKeysUnavailable, TokenKeyUnknown, TokenSignatureInvalid) as error:
            if not await self._ask_issuer(take_apart(token), error):
                raise
        return self._accept(token)

    async def fetch_keys_for(self, token: str) -> None:
        """Fetch the key set once, if this token needs it; for a program that ends soon after."""
        header, _ = unverified(token)
        if self.key_set is not None and header.get("alg") in ALGORITHMS:
            await self.key_set.refresh()
            await self.key_set.close()

    def examine(self, token: str) -> Report:
        """Run every check with the keys at hand and say how each went; never raises for a bad token.

        Once the token cannot be taken apart, nothing else is reached. The claims are looked at even when
        the signature is wrong, so that a person sees all that is to be mended.
        """
        names = [name for name, _ in self._checks()]
        try:
            parsed = take_apart(token)
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

    def _accept(self, token: str) -> Identity:
        """Run every check, and remember a token that passes."""
        now = self.clock()
        parsed = take_apart(token)
        self._check_algorithm(parsed)
        self._check_key(parsed)
        key = self._signer(parsed)
        for _, check in self._claim_checks():
            check(parsed)
        claims = parsed.claims
        identity = Identity(
            user_id=claims["sub"],
            scopes=_scopes(claims),
            expires_at=float(claims["exp"]),
            issuer=claims.get("iss"),
            trust=Trust.secret if key is None else Trust.key_set,
            algorithm=parsed.algorithm,
            key_id=None if key is None else key.kid,
        )
        until, revision = min(now + _REMEMBERED_SECONDS, identity.expires_at + self.leeway), 0
        if self.key_set is not None:
            revision = self.key_set.revision
            if key is not None:
                until = min(until, now + self.key_set.seconds_left)
                _add(self._subjects, identity.user_id, None, _FAMILIAR_SUBJECTS)
        _add(self._verified, _digest(token), (identity, until, revision), _REMEMBERED_TOKENS)
        return identity

    async def _ask_issuer(self, token: Token, error: TaskctlError) -> bool:
        """Whether there are other keys now; not asked for a token that they would not help."""
        if self.key_set is None or token.algorithm not in ALGORITHMS:
            return False
        if not isinstance(error, AuthKeysUnavailable):
            try:
                for _, check in self._claim_checks():
                    check(token)
            except TaskctlError:
                return False
        doubt = Doubt.signature if isinstance(error, TokenSignatureInvalid) else Doubt.unknown
        subject = token.claims.get("sub")
        known = subject if isinstance(subject, str) and subject in self._subjects else None
        return await self.key_set.look_again(token.algorithm, _key_id(token), doubt, known=known)

    def _checks(self) -> Iterator[tuple[str, Callable[[Token], object]]]:
        yield "algorithm", self._check_algorithm
        if self.key_set is not None:
            yield "key known", self._check_key
        yield "signature", self._signer
        yield from self._claim_checks()

    def _claim_checks(self) -> Iterator[tuple[str, Callable[[Token], object]]]:
        yield "subject", self._check_subject
        yield "expiry", self._check_expiry
        yield "not before", self._check_not_before
        yield "issuer", self._check_issuer
        yield "audience", self._check_audience
        yield "scope", self._check_scope

    def _check_algorithm(self, token: Token) -> None:
        accepted = ["HS256"] if self._keys else []
        if self.key_set is not None:
            accepted += ALGORITHMS
        if token.algorithm not in accepted:
            said = ", ".join(accepted) or "none, as no secret is set"
            raise TokenAlgorithmNotAllowed(
                f"The token is signed with {shorten(token.algorithm)}; this server accepts {said}."
            )

    def _check_key(self, token: Token) -> None:
        if self.key_set is None or token.algorithm not in ALGORITHMS:
            return
        kid = _key_id(token)
        if not self.key_set.keys:
            raise AuthKeysUnavailable(f"The issuer's keys are not at hand: {self.key_set.failure}.")
        if self.key_set.find(token.algorithm, kid):
            return
        if self.key_set.names(kid):
            raise TokenAlgorithmNotAllowed(
                f"The token is signed with {token.algorithm}, and the key that it names is for another."
            )
        raise TokenKeyUnknown(
            f"The issuer publishes no {token.algorithm} key"
            + ("; the token names none." if kid is None else f" with the kid {shorten(kid)}.")
        )

    def _signer(self, token: Token) -> Key | None:
        """Check the signature; the published key that made it, or None where that was a secret."""
        if token.algorithm == "HS256":
            if any(_HS256.verify(token.signed, key, token.signature) for key in self._keys):
                return None
            raise TokenSignatureInvalid("The token's signature does not match this server's secret.")
        if self.key_set is not None:
            for key in self.key_set.find(token.algorithm, _key_id(token)):
                if key.verifies(token.signed, token.signature):
                    return key
        raise TokenSignatureInvalid("The token's signature does not match a key of its issuer's.")

    def _check_subject(self, token: Token) -> None:
        subject = token.claims.get("sub")
        if subject is None or subject == "":
            raise TokenClaimMissing("The token has no `sub` claim, which says whose tasks these are.")
        if not valid_subject(subject):
            raise TokenMalformed(
                f"The token's `sub` claim is not text of at most {USER_ID_MAX} characters, none of them a "
                "control character."
            )

    def _check_expiry(self, token: Token) -> None:
        expires = _time(token.claims, "exp")
        if expires is None:
            raise TokenClaimMissing("The token has no `exp` claim, which says until when it is valid.")
        if expires + self.leeway <= self.clock():
            raise TokenExpired(f"The token expired {_ago(self.clock() - expires)} ago; get a new one.")

    def _check_not_before(self, token: Token) -> None:
        _time(token.claims, "iat")
        not_before = _time(token.claims, "nbf")
        if not_before is not None and not_before - self.leeway > self.clock():
            raise TokenNotYetValid(f"The token becomes valid in {_ago(not_before - self.clock())}.")

    def _check_issuer(self, token: Token) -> None:
        issuer = token.claims.get("iss")
        if issuer is not None and not isinstance(issuer, str):
            raise TokenMalformed("The token's `iss` claim is not text.")
        accepted = self.key_set_issuers if token.algorithm in ALGORITHMS else self.issuers
        if not accepted:
            return
        if issuer is None:
            raise TokenClaimMissing("The token has no `iss` claim; TASKCTL_JWT_ISSUERS asks for one.")
        if issuer not in accepted:
            raise TokenIssuerWrong(
                f"The token comes from {shorten(issuer)}, which is not in TASKCTL_JWT_ISSUERS"
                + (" and not BETTER_AUTH_URL's origin." if accepted is not self.issuers else ".")
            )

    def _check_audience(self, token: Token) -> None:
        audience = token.claims.get("aud")
        if audience is None:
            if self.audiences or token.algorithm in ALGORITHMS:
                raise TokenClaimMissing("The token has no `aud` claim; TASKCTL_JWT_AUDIENCES asks for one.")
            return
        audiences = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(each, str) for each in audiences):
            raise TokenMalformed("The token's `aud` claim is neither text nor a list of texts.")
        # BETTER_AUTH_URL's origin is a name of this server: no token signed with a secret has to name it.
        accepted = self.audiences or self.key_set_audiences
        if not accepted:
            raise TokenAudienceWrong(
                "The token names an audience and this server has none; TASKCTL_JWT_AUDIENCES sets it."
            )
        if not set(audiences) & set(accepted):
            raise TokenAudienceWrong("The token's audience is not in TASKCTL_JWT_AUDIENCES.")

    def _check_scope(self, token: Token) -> None:
        _scopes(token.claims)


def create_verifier(settings: "ServerSettings", report: Callable[[Fetch], None] = lambda _: None) -> Verifier:
    """The verifier that the server's settings describe; `report` is told of each fetch of the key set.

    Raises:
        SettingsInvalid: a secret cannot be used.
    """
    secrets = (settings.secret, *settings.previous_secrets)
    key_set = settings.key_set_url and KeySet(
        settings.key_set_url,
        proxied=not settings.key_set_is_local,
        max_age=settings.jwks_max_age,
        max_stale=settings.jwks_max_stale,
        report=report,
    )
    return Verifier(
        secrets=[secret.get_secret_value() for secret in secrets if secret],
        issuers=settings.jwt_issuers,
        audiences=settings.jwt_audiences,
        leeway=settings.jwt_leeway,
        key_set=key_set or None,
        key_set_issuers=settings.key_set_issuers,
        key_set_audiences=settings.key_set_audiences,
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
        UsageInvalid: a claim is of a type that it must not have, or they are too long.
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
        token = jwt.encode(payload, key, algorithm=algorithm, headers=header)
    except TypeError as error:
        raise UsageInvalid(f"The claims make no token: {error}") from error
    try:
        claims = take_apart(token).claims
        for name in ("exp", "nbf", "iat"):
            _time(claims, name)
        _scopes(claims)
    except TokenMalformed as error:
        raise UsageInvalid(f"The claims make a token that no server takes: {error.detail}") from error
    return token


def valid_subject(subject: object) -> bool:
    """Whether this can be a user id: text of 1 to 255 characters, none a control character or surrogate."""
    return (
        isinstance(subject, str)
        and 0 < len(subject) <= USER_ID_MAX
        and (subject.isprintable() or not any(unicodedata.category(each) in {"Cc", "Cs"} for each in subject))
    )


def unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The header and the claims that a token has, whoever wrote them; empty where it is malformed."""
    try:
        parsed = take_apart(token)
    except TokenMalformed:
        return {}, {}
    return parsed.header, parsed.claims


def shorten(value: object) -> str:
    """A value from a token, fit for a message: quoted, escaped, cut at 40 characters."""
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "…"  # noqa: PLR2004 - as the docstring says


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _add(memory: dict[Any, Any], name: object, value: object, capacity: int) -> None:
    """Remember something; the oldest is forgotten where there is too much."""
    memory.pop(name, None)
    if len(memory) >= capacity:
        del memory[next(iter(memory))]
    memory[name] = value


def _key_id(token: Token) -> str | None:
    """The name of the key that signed it, where it names one (RFC 7515, section 4.1.4)."""
    kid = token.header.get("kid")
    if not isinstance(kid, str | None):
        raise TokenMalformed("The token's `kid` is not text.")
    return kid


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
