"""Key sets that an issuer publishes (RFC 7517): read strictly, fetched, kept fresh, rotated.

Nothing here blocks the event loop, and no token makes the server hammer an issuer: fetches that tokens cause
are one at a time and few a minute. An issuer that is away costs nothing for as long as its keys may be stale.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP521R1
from jwt.algorithms import Algorithm, ECAlgorithm, OKPAlgorithm, RSAAlgorithm, RSAPSSAlgorithm
from jwt.exceptions import PyJWTError

from taskctl import __version__, strict_json

if TYPE_CHECKING:
    import httpx

OK = "ok"
"""The outcome of a fetch that went well."""

ALGORITHMS: Mapping[str, Algorithm] = {
    "EdDSA": OKPAlgorithm(),
    "Ed25519": OKPAlgorithm(),
    "ES256": ECAlgorithm(ECAlgorithm.SHA256, SECP256R1),
    "ES512": ECAlgorithm(ECAlgorithm.SHA512, SECP521R1),
    "RS256": RSAAlgorithm(RSAAlgorithm.SHA256),
    "PS256": RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256),
}
"""What published keys may sign with. `Ed25519` is RFC 9864's name for EdDSA with that curve alone."""

_KINDS: Mapping[tuple[str, str | None], Sequence[str]] = {
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
    ("OKP", "Ed448"): ("EdDSA",),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-521"): ("ES512",),
    ("RSA", None): ("RS256", "PS256"),
}
"""By `kty` and `crv`: the algorithms that such a key may state; it implies the first."""

_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_RSA_BITS_MIN = 2048

_SIZE_MAX = 256 * 1024
"""Bytes of a key set: some hundred keys."""

_REDIRECTS_MAX = 3
_UNNAMED_MAX = 16
"""How many keys a token that names none is tried with."""

_FETCH_SECONDS = 10.0
_PATIENCE_SECONDS = 3.0
"""How long a fetch may take, and how long a request waits for it."""

_WAITING_MAX = 1000
"""How many requests wait for one; beyond that they are answered from the keys at hand."""

_REFRESH_AT = 0.8
"""The part of their age after which keys are fetched again."""

_RETRY_SECONDS = (0.5, 5.0, 30.0)
"""After a failed fetch: at first; at the most while there are no keys; at the most while there are."""

_WINDOW_SECONDS = 60.0
_SIGNATURE_FETCHES = 2
_UNKNOWN_FETCHES = 4
_FETCHES_MAX = 10
"""Fetches in a window that changed nothing, after which tokens cause no more. See `KeySet.look_again`."""

_LENGTH_MORE = 2
"""How many characters more or less than the issuer's other names one may have to look like them."""

_UNKNOWN_SECONDS = 30.0
_UNKNOWN_MAX = 10_000
_KID_MAX = 256
"""How long a key is remembered as unknown, how many are, and how long a name is worth a look."""


@dataclass(frozen=True, slots=True)
class Key:
    """A published key, for exactly one algorithm. Equal keys are the same key of the same name."""

    kid: str | None
    algorithm: str
    members: tuple[str, ...] = field(repr=False)
    """The public members, which make it the key that it is."""
    public: Any = field(repr=False, compare=False)

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's."""
        return ALGORITHMS[self.algorithm].verify(signed, self.public, signature)


class Freshness(StrEnum):
    """How a key set is to be taken."""

    fresh = "fresh"
    stale = "stale"
    none = "none"


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a key set, for `/health` and the metrics. Nothing in it is secret."""

    freshness: Freshness
    keys: int
    age_seconds: float | None
    last_fetch: str | None
    """The outcome of the last fetch."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """How a fetch ended."""

    outcome: str
    """`ok`, or one of `unreachable`, `timed_out`, `status`, `redirected`, `too_large`, `unreadable` and
    `no_usable_key`."""
    detail: str
    changed: bool
    """Whether it brought other keys."""
    news: bool
    """Whether it ended in another way than the one before, or the keys have become stale since."""
    keys: Sequence[Key]
    ignored: Sequence[str]
    """Why each unusable key of the set is left out."""
    state: State


class FetchFailed(Exception):
    """A key set could not be had; the old keys stay."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


class KeyUnusable(Exception):
    """Why a key of a key set is left out."""


class Doubt(StrEnum):
    """What a token makes one doubt about the keys at hand."""

    unknown = "unknown"
    """Whether they are all that there are."""
    signature = "signature"
    """Whether the key of that name is still the same."""


def read_keys(text: str) -> tuple[Sequence[Key], Sequence[str]]:
    """The usable keys of a key set, and why each of the others is not.

    Raises:
        ValueError: it is no key set (RFC 7517, section 5).
    """
    value = strict_json.loads(text)
    if not isinstance(value, dict) or not isinstance(value.get("keys"), list):
        raise ValueError("it has no list of keys")  # noqa: TRY004 - as for any other text
    keys, ignored = [], []
    for number, jwk in enumerate(value["keys"]):
        try:
            keys.append(_read_key(jwk))
        except KeyUnusable as error:
            ignored.append(f"key {number}: {error}")
        except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, PyJWTError):
            ignored.append(f"key {number}: it cannot be read")
    return tuple(dict.fromkeys(keys)), ignored


def _read_key(jwk: Any) -> Key:
    """One key; KeyUnusable says why it is none that verifies."""
    if not isinstance(jwk, dict):
        raise KeyUnusable("it is no object")
    jwk = {name: value for name, value in jwk.items() if value is not None}
    kid, kind, curve = jwk.get("kid"), jwk.get("kty"), jwk.get("crv")
    if kind == "oct" or _PRIVATE & jwk.keys():
        raise KeyUnusable("it is secret, and published")
    if not isinstance(kind, str) or not isinstance(curve, str | None) or (kind, curve) not in _KINDS:
        raise KeyUnusable("it is of a kind that is not used here")
    possible = _KINDS[kind, curve]
    algorithm = jwk.get("alg", possible[0])
    if algorithm not in possible:
        raise KeyUnusable("it is for another algorithm")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise KeyUnusable("it is not for signatures")
    if not isinstance(kid, str | None):
        raise KeyUnusable("its kid is not text")
    public = type(ALGORITHMS[algorithm]).from_jwk(jwk)
    if kind == "RSA" and public.key_size < _RSA_BITS_MIN:
        raise KeyUnusable(f"it is an RSA key of less than {_RSA_BITS_MIN} bits")
    members = tuple(str(jwk.get(name)) for name in ("kty", "crv", "x", "y", "n", "e"))
    return Key(kid, algorithm, members, public)


class KeySet:
    """The keys that an issuer publishes at a URL.

    Args:
        url: where they are; https, unless the settings allow otherwise.
        max_age: seconds after which they should be fetched again.
        max_stale: seconds after which they are not used any more.
        report: told of each fetch.
        proxied: whether proxies that the environment names are used.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        url: str,
        *,
        proxied: bool = True,
        max_age: float = 300.0,
        max_stale: float = 86_400.0,
        report: Callable[[Fetch], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.revision = 0
        """How often the keys have changed."""
        self._url = url
        self._proxied = proxied
        self._max_age = max_age
        self._max_stale = max_stale
        self._report = report
        self._clock = clock
        self._keys: Sequence[Key] = ()
        self._fetched_at: float | None = None
        self._outcome: str | None = None
        self._detail = "they were not fetched yet"
        self._told: tuple[str, Freshness] | None = None
        self._http: httpx.AsyncClient | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._begun = 0
        """How many fetches were begun."""
        self._waiting = 0
        """How many requests wait for a fetch."""
        self._fruitless: deque[tuple[float, str | None]] = deque()
        """When tokens caused fetches, since one last changed something; and whose, if a subject's own."""
        self._unknown: dict[tuple[str | None, Doubt], float] = {}
        """What need not be asked about, and until when."""

    def start(self) -> None:
        """Fetch the keys, and keep them fresh until `close`."""
        self._keeping = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """Stop what runs, and close the connection."""
        for task in (self._keeping, self._fetching):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    @property
    def keys(self) -> Sequence[Key]:
        """The keys at hand; none when they are too old."""
        return self._keys if self.seconds_left > 0 else ()

    @property
    def seconds_left(self) -> float:
        """How long the keys at hand may be used."""
        return 0.0 if self._fetched_at is None else self._fetched_at + self._max_stale - self._clock()

    @property
    def failure(self) -> str:
        """Why there are no keys, where there are none."""
        return self._detail

    def state(self) -> State:
        """What is known now."""
        age = None if self._fetched_at is None else self._clock() - self._fetched_at
        freshness = Freshness.none
        if age is not None and self.keys:
            freshness = Freshness.fresh if age <= self._max_age else Freshness.stale
        return State(freshness, len(self.keys), age, self._outcome)

    def find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        """The keys that may have signed a token with this header; several where it names none."""
        found = [key for key in self.keys if key.algorithm == algorithm and kid in (None, key.kid)]
        return found if kid is not None or len(found) <= _UNNAMED_MAX else ()

    def names(self, kid: str | None) -> bool:
        """Whether a key of this name is at hand, whatever its algorithm."""
        return kid is not None and any(key.kid == kid for key in self.keys)

    async def refresh(self) -> None:
        """Fetch, or wait for the fetch that is under way; `state` says how it went."""
        await asyncio.shield(self._begin())

    async def look_again(self, algorithm: str, kid: str | None, doubt: Doubt, *, known: str | None) -> bool:
        """Fetch because of a token that the keys at hand do not verify; say whether they do not any more.

        Fetches that changed nothing are counted over a minute. A doubted signature causes none after 2, an
        unknown key none after 4. One more is kept for a `kid` that looks like the issuer's, and one for each
        `known` subject, up to 10 over all: to keep a new key from being found at once, a flood of forged
        tokens would have to guess many names, and who knows but their own spends that one only.
        """
        before = self._view(algorithm, kid)
        begun = self._begun
        while True:
            if self._fetching is None:
                if not self._claim_fetch(kid, doubt, known):
                    return False
                self._begin()
            # One that was begun before this token came may have missed its key.
            conclusive = self._begun > begun
            assert self._fetching is not None  # noqa: S101 - begun above, or before
            if self._waiting >= _WAITING_MAX:
                return False
            self._waiting += 1
            try:
                done, _ = await asyncio.wait({self._fetching}, timeout=_PATIENCE_SECONDS)
            finally:
                self._waiting -= 1
            if self._view(algorithm, kid) != before:
                return True
            if not done:
                return False
            if conclusive:
                if self._outcome == OK:
                    self._remember(kid, doubt)
                return False

    def _view(self, algorithm: str, kid: str | None) -> tuple[object, ...]:
        """What of the keys at hand bears on a token."""
        return self.find(algorithm, kid), self.names(kid), bool(self.keys)

    def _claim_fetch(self, kid: str | None, doubt: Doubt, known: str | None) -> bool:
        """Whether a token may cause a fetch now; it is counted then."""
        now = self._clock()
        while self._fruitless and self._fruitless[0][0] <= now - _WINDOW_SECONDS:
            self._fruitless.popleft()
        useless = len(kid or "") > _KID_MAX or self._unknown.get((kid, doubt), 0.0) > now
        if useless and self.keys:
            return False
        owners = [owner for _, owner in self._fruitless]
        if doubt is Doubt.signature:
            allowed, own = len(owners) < _SIGNATURE_FETCHES, None
        elif owners.count(None) < _UNKNOWN_FETCHES + self._looks_familiar(kid):
            allowed, own = True, None
        else:
            allowed, own = known not in (None, *owners) and len(owners) < _FETCHES_MAX, known
        if allowed:
            self._fruitless.append((now, own))
        return allowed

    def _looks_familiar(self, kid: str | None) -> bool:
        """Whether a name is about as long as the issuer's others, and of the same kinds of characters."""
        others = [key.kid for key in self.keys if key.kid]
        if not kid or not others:
            return False
        shortest, longest = min(map(len, others)) - _LENGTH_MORE, max(map(len, others)) + _LENGTH_MORE
        return shortest <= len(kid) <= longest and _kinds(kid) <= _kinds("".join(others))

    def _remember(self, kid: str | None, doubt: Doubt) -> None:
        if len(self._unknown) >= _UNKNOWN_MAX:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[kid, doubt] = self._clock() + _UNKNOWN_SECONDS

    async def _keep_fresh(self) -> None:
        first, without_keys, with_keys = _RETRY_SECONDS
        retry = first
        while True:
            await self.refresh()
            if self._outcome == OK:
                retry, pause = first, self._max_age * _REFRESH_AT
            else:
                pause = min(retry, with_keys if self.keys else without_keys)
                retry *= 2
            # Workers and replicas that were started together need not ask together.
            await asyncio.sleep(pause * random.uniform(0.9, 1.0))  # noqa: S311 - no secret

    def _begin(self) -> "asyncio.Task[None]":
        if self._fetching is None:
            self._begun += 1
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        """Fetch once; never raises, but when it is cancelled."""
        outcome, detail, changed = OK, "", False
        ignored: Sequence[str] = ()
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                text = await self._download()
            keys, ignored = _usable(text)
        except FetchFailed as error:
            outcome, detail = error.outcome, error.detail
        except TimeoutError:
            outcome, detail = "timed_out", f"the issuer did not answer within {_FETCH_SECONDS:.0f} s"
        except Exception as error:  # noqa: BLE001 - whatever an issuer sends, the next fetch must follow
            outcome, detail = "unreachable", f"the issuer cannot be reached ({type(error).__name__})"
        else:
            # Their order says nothing: an issuer may read them from a database, unordered.
            changed = set(keys) != set(self._keys)
            if changed:
                self._keys = keys
                self.revision += 1
                self._fruitless.clear()
                self._unknown.clear()
            self._fetched_at = self._clock()
        finally:
            self._fetching = None
        self._outcome, self._detail = outcome, detail
        state = self.state()
        told, self._told = self._told, (outcome, state.freshness)
        self._report(Fetch(outcome, detail, changed, told != self._told, self.keys, ignored, state))

    async def _download(self) -> str:
        """The key set's text.

        Raises:
            FetchFailed: says why; also any error of the HTTP library's.
        """
        http = self._client()
        request = http.build_request("GET", self._url)
        for _ in range(1 + _REDIRECTS_MAX):
            response = await http.send(request, stream=True)
            try:
                if response.next_request is None:
                    return await _body(response)
                if _origin(response.next_request.url) != _origin(request.url):
                    raise FetchFailed("redirected", "the issuer redirects to another origin")
                request = response.next_request
            finally:
                await response.aclose()
        raise FetchFailed("redirected", "the issuer redirects again and again")

    def _client(self) -> "httpx.AsyncClient":
        import httpx  # noqa: PLC0415 - a server that trusts a secret alone does without

        if self._http is None:
            limits = httpx.Limits(max_keepalive_connections=0)
            self._http = httpx.AsyncClient(
                timeout=_FETCH_SECONDS,
                limits=limits,
                # With a transport of its own it looks for no proxy.
                transport=None if self._proxied else httpx.AsyncHTTPTransport(limits=limits),
                # Not compressed: a small answer cannot become a large one.
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": f"taskctl/{__version__}",
                },
            )
        return self._http


def _usable(text: str) -> tuple[Sequence[Key], Sequence[str]]:
    """As `read_keys`; FetchFailed where that leaves no key."""
    try:
        keys, ignored = read_keys(text)
    except ValueError as error:
        raise FetchFailed("unreadable", f"what the issuer publishes is no key set: {error}") from None
    if not keys:
        raise FetchFailed("no_usable_key", "; ".join(["the key set has no usable key", *ignored[:3]]))
    return keys, ignored


async def _body(response: "httpx.Response") -> str:
    if response.status_code != HTTPStatus.OK:
        raise FetchFailed("status", f"the issuer answered {response.status_code}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed("unreadable", "the issuer's answer is compressed")
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _SIZE_MAX:
            raise FetchFailed("too_large", f"the key set is larger than {_SIZE_MAX} bytes")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise FetchFailed("unreadable", "what the issuer publishes is not UTF-8") from None


def _origin(url: "httpx.URL") -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _kinds(kid: str) -> set[str]:
    """The kinds of characters in a name: letters, digits, and each other one."""
    return {"a" if each.isalpha() else "0" if each.isdigit() else each for each in kid}
