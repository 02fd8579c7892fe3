"""Key sets: what is read of them, how they are fetched, kept, rotated, and what a flood may not do."""

import asyncio
import base64
import hmac
import ipaddress
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAPSSAlgorithm

from issuer import Issuer, b64, private_key, public_jwk, respond, running_issuer
from taskctl.errors import SettingsInvalid, TaskctlError
from taskctl.jwks import Fetch, KeySet, read_keys
from taskctl.tokens import Verifier
from taskctl.vocabulary import Trust

SECRET = "the secret of these tests, which is long enough"
KINDS = ["EdDSA", "Ed448", "ES256", "ES512", "RS256", "PS256"]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer with one EdDSA key."""
    with running_issuer() as running:
        running.publish()
        yield running


class Watched:
    """A verifier of an issuer's tokens, what its key set reports, and its clocks."""

    def __init__(self, issuer: Issuer, **options: Any) -> None:
        self.now = 0.0
        self.fetches: list[Fetch] = []
        self.key_set = KeySet(
            issuer.jwks_url, proxied=False, report=self.fetches.append, clock=lambda: self.now, **options
        )
        self.verifier = Verifier(
            [SECRET],
            key_set=self.key_set,
            key_set_issuers=[issuer.url],
            key_set_audiences=[issuer.url],
            clock=lambda: time.time() + self.now,
        )

    async def code(self, token: str) -> str | None:
        """What a request with this token would be refused with, or None; as a request does it."""
        try:
            _ = self.verifier.recall(token) or await self.verifier.authenticate(token)
        except TaskctlError as error:
            return error.code
        return None


@asynccontextmanager
async def watching(issuer: Issuer, **options: Any) -> AsyncIterator[Watched]:
    watched = Watched(issuer, **options)
    try:
        yield watched
    finally:
        issuer.released.set()
        await watched.key_set.close()


async def eventually(condition: Callable[[], Any]) -> None:
    """Let other tasks run until the condition is true."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - it may become true in the issuer's thread
            await asyncio.sleep(0.01)


def reasons(*keys: Any) -> list[str]:
    """Why none of these keys is usable."""
    usable, ignored = read_keys(json.dumps({"keys": keys}))
    assert usable == ()
    return [reason.partition(": ")[2] for reason in ignored]


# What is read


@pytest.mark.parametrize(
    ("kind", "stated"), [*((kind, True) for kind in KINDS), *((kind, False) for kind in KINDS[:-1])]
)
async def test_every_algorithm_verifies(issuer: Issuer, kind: str, stated: bool) -> None:
    """Tokens of each algorithm are accepted, whether the key states it or implies it; RSA implies RS256."""
    issuer.publish(kind, 1, **({} if stated else {"alg": ...}))
    async with watching(issuer) as watched:
        identity = await watched.verifier.authenticate(issuer.token(kind, 1, scope="tasks:read"))
    assert (identity.user_id, identity.issuer, identity.scopes) == ("alice", issuer.url, {"tasks:read"})
    expected = (Trust.key_set, "EdDSA" if kind == "Ed448" else kind, f"{kind}-1")
    assert (identity.trust, identity.algorithm, identity.key_id) == expected


@pytest.mark.parametrize(
    ("stated", "said", "code"),
    [
        ("Ed25519", "Ed25519", None),
        ("Ed25519", "EdDSA", "token_algorithm_not_allowed"),
        ("EdDSA", "Ed25519", "token_algorithm_not_allowed"),
    ],
)
async def test_fully_specified_name(issuer: Issuer, stated: str, said: str, code: str | None) -> None:
    """RFC 9864's Ed25519 is a name of its own, and key and token must agree on it."""
    issuer.publish("EdDSA", 1, alg=stated)
    async with watching(issuer) as watched:
        assert await watched.code(issuer.sign({"alg": said, "kid": "EdDSA-1"}, "EdDSA", 1)) == code


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", KINDS)
async def test_algorithm_is_the_keys(issuer: Issuer, kind: str, said: str) -> None:
    """A token that says another algorithm than its key's is refused, whatever it was signed with."""
    said = "EdDSA" if said == "Ed448" else said
    algorithm = "EdDSA" if kind == "Ed448" else kind
    issuer.publish(kind, 1)
    async with watching(issuer) as watched:
        code = await watched.code(issuer.sign({"alg": said, "kid": f"{kind}-1"}, kind, 1))
    assert code == (None if said == algorithm else "token_algorithm_not_allowed")


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        ({"kty": "oct", "k": b64(b"x" * 32), "alg": "HS256"}, "it is secret"),
        ({"kty": "oct", "k": b64(b"x" * 32)}, "it is secret"),
        ({**public_jwk("EdDSA"), "d": b64(b"x" * 32)}, "it is secret"),
        ({**public_jwk("RS256"), "p": "AQAB"}, "it is secret"),
        ({**public_jwk("EdDSA"), "use": "enc"}, "not for signatures"),
        ({**public_jwk("EdDSA"), "key_ops": ["sign"]}, "not for signatures"),
        ({**public_jwk("EdDSA"), "key_ops": "verify"}, "not for signatures"),
        ({**public_jwk("EdDSA"), "kid": 1}, "kid is not text"),
        ({**public_jwk("EdDSA"), "alg": "HS256"}, "another algorithm"),
        ({**public_jwk("EdDSA"), "alg": ["EdDSA"]}, "another algorithm"),
        ({**public_jwk("RS256"), "alg": "RS512"}, "another algorithm"),
        ({**public_jwk("RS256"), "alg": "RSA-OAEP"}, "another algorithm"),
        ({**public_jwk("ES256"), "alg": "ES512"}, "another algorithm"),
        (public_jwk("ES384"), "of a kind"),
        ({"kty": "OKP", "crv": "X25519", "x": b64(b"x" * 32)}, "of a kind"),
        ({"kty": "EC", "crv": "secp256k1", "x": b64(b"x" * 32), "y": b64(b"x" * 32)}, "of a kind"),
        ({"kty": ["OKP"], "crv": "Ed25519"}, "of a kind"),
        ({"kty": "OKP", "crv": {}}, "of a kind"),
        ({}, "of a kind"),
        ("EdDSA", "no object"),
        (None, "no object"),
        (public_jwk("small RSA"), "less than 2048 bits"),
        ({**public_jwk("RS256"), "e": b64(b"\x01")}, "cannot be read"),
        ({**public_jwk("RS256"), "n": 1}, "cannot be read"),
        ({**public_jwk("RS256"), "n": ""}, "cannot be read"),
        ({**public_jwk("EdDSA"), "x": b64(b"x" * 31)}, "cannot be read"),
        ({**public_jwk("EdDSA"), "x": ["x"]}, "cannot be read"),
        ({"kty": "OKP", "crv": "Ed25519"}, "cannot be read"),
        ({**public_jwk("ES256"), "y": public_jwk("ES256", 1)["y"]}, "cannot be read"),
        ({**public_jwk("ES256"), "x": "é"}, "cannot be read"),
    ],
)
def test_unusable_key_is_ignored(jwk: Any, reason: str) -> None:
    """A key that must not or cannot verify is left out, with the reason; its neighbours are not."""
    assert reason in reasons(jwk)[0]
    usable, _ = read_keys(json.dumps({"keys": [jwk, public_jwk("EdDSA", kid="good")]}))
    assert [key.kid for key in usable] == ["good"]


def test_null_members_are_absent() -> None:
    """A key store without a value writes null; that says nothing."""
    usable, ignored = read_keys(
        json.dumps({"keys": [public_jwk("EdDSA", kid=None, alg=None, use=None, key_ops=None)]})
    )
    assert ([(key.kid, key.algorithm) for key in usable], ignored) == ([(None, "EdDSA")], [])


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "kid", "d"]),
        st.sampled_from(["OKP", "EC", "RSA", "P-256", "Ed25519", "RS256", "", "AQAB", "=", "\ud800"])
        | st.none()
        | st.integers()
        | st.lists(st.text()),
    )
)
def test_any_key_is_read_or_ignored(members: dict[str, Any]) -> None:
    """Whatever an issuer publishes, reading it ends in a key or in a reason."""
    keys, ignored = read_keys(json.dumps({"keys": [members, public_jwk("ES256") | members]}))
    assert len(keys) + len(ignored) == 2 or len(set(keys)) == 1


# What is verified


async def test_public_key_is_never_a_secret(issuer: Issuer) -> None:
    """An HMAC over the bytes of a published key, in any form, is refused."""
    issuer.publish("RS256")
    issuer.keys.append({"kty": "oct", "k": b64(b"k" * 32), "kid": "secret", "alg": "HS256"})
    texts = [json.dumps(each).encode() for each in issuer.keys]
    texts += [each.get("x", "").encode() for each in issuer.keys] + [b"k" * 32, b""]
    async with watching(issuer) as watched:
        await watched.key_set.refresh()
        for text in texts:
            for kid in ("EdDSA-0", "RS256-0", "secret"):
                signing = ".".join(issuer.sign({"alg": "HS256", "kid": kid}, "EdDSA").split(".")[:2])
                token = f"{signing}.{b64(hmac.digest(text, signing.encode(), 'sha256'))}"
                assert await watched.code(token) == "token_signature_invalid"


def ecdsa_forms(token: str, kind: str) -> list[bytes]:
    """Signatures of an ECDSA token that are not raw r and s of the right length, or of no group element."""
    raw = base64.urlsafe_b64decode(token.rpartition(".")[2] + "==")
    half = len(raw) // 2
    r, s = raw[:half], raw[half:]
    key = private_key(kind)
    der = key.sign(token.rpartition(".")[0].encode(), ec.ECDSA(SHA256()))
    assert decode_dss_signature(der)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return [
        der, b"", b"\0", raw[:-1], raw + b"\0", b"\0" + raw, b"\0" * len(raw), s + r,
        b"\0" + r + b"\0" + s, r, order.to_bytes(32, "big") * 2, r + b"\0" * 32, b"\0" * 32 + s, b"\xff" * 64,
    ]  # fmt: skip


async def test_signatures_have_one_form(issuer: Issuer) -> None:
    """ECDSA is raw r and s of exact length, RSA as long as its key, EdDSA canonical; all else is refused."""
    for kind in ("ES256", "RS256", "PS256"):
        issuer.publish(kind)
    order = 2**252 + 27742317777372353535851937790883648493
    async with watching(issuer) as watched:
        hostile = []
        for kind in ("EdDSA", "ES256", "RS256", "PS256"):
            token = issuer.token(kind)
            signing, _, text = token.rpartition(".")
            raw = base64.urlsafe_b64decode(text + "==")
            assert await watched.code(token) is None
            forms = [b"", b"\0", raw[:-1], raw + b"\0", b"\0" + raw, b"\0" * len(raw), b"\xff" * len(raw)]
            if kind == "ES256":
                forms += ecdsa_forms(token, kind)
            if kind == "EdDSA":
                scalar = int.from_bytes(raw[32:], "little") + order
                forms += [raw[:32] + scalar.to_bytes(32, "little"), raw[32:] + raw[:32]]
            hostile += [f"{signing}.{b64(form)}" for form in forms]
        long_salt = RSAPSSAlgorithm(RSAPSSAlgorithm.SHA512)
        signing = issuer.token("PS256").rpartition(".")[0]
        hostile.append(f"{signing}.{b64(long_salt.sign(signing.encode(), private_key('PS256')))}")
        assert {await watched.code(token) for token in hostile} == {"token_signature_invalid"}


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"alg": "EdDSA", "kid": "EdDSA-0"}, None),
        ({"alg": "EdDSA", "kid": "EdDSA-0", "typ": "at+jwt"}, None),
        ({"alg": "EdDSA", "kid": "EdDSA-0", "b64": True}, None),
        (
            {"alg": "EdDSA", "kid": "EdDSA-0", "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"},
            None,
        ),
        ({"alg": "EdDSA", "kid": "EdDSA-0", "jwk": public_jwk("EdDSA", 7)}, None),
        ({"alg": "EdDSA", "jwk": public_jwk("EdDSA", 7)}, None),
        ({"alg": "EdDSA"}, None),
        ({"alg": "EdDSA", "kid": None}, None),
        ({"alg": "EdDSA", "kid": "EdDSA-0", "crit": ["exp"]}, "token_malformed"),
        ({"alg": "EdDSA", "kid": "EdDSA-0", "b64": False}, "token_malformed"),
        ({"alg": "EdDSA", "kid": "EdDSA-0", "b64": False, "crit": ["b64"]}, "token_malformed"),
        ({"alg": "EdDSA", "kid": 1}, "token_malformed"),
        ({"alg": "EdDSA", "kid": ["EdDSA-0"]}, "token_malformed"),
        ({"alg": "EdDSA", "kid": {"a": 1}}, "token_malformed"),
        ({"alg": "EdDSA", "kid": ""}, "token_key_unknown"),
        ({"alg": "EdDSA", "kid": "../../dev/null"}, "token_key_unknown"),
        ({"alg": "EdDSA", "kid": "' OR 1=1 --"}, "token_key_unknown"),
        ({"alg": "EdDSA", "kid": "\ud800\0"}, "token_key_unknown"),
        ({"alg": "EdDSA", "kid": "x" * 5000}, "token_key_unknown"),
        ({"alg": "eddsa", "kid": "EdDSA-0"}, "token_algorithm_not_allowed"),
        ({"alg": "none", "kid": "EdDSA-0"}, "token_algorithm_not_allowed"),
        ({"alg": "ES384", "kid": "EdDSA-0"}, "token_algorithm_not_allowed"),
        ({"alg": "HS256", "kid": "EdDSA-0"}, "token_signature_invalid"),
    ],
)
async def test_header(issuer: Issuer, header: dict[str, Any], code: str | None) -> None:
    """The header names a key of the set and says nothing else that counts."""
    async with watching(issuer) as watched:
        assert await watched.code(issuer.sign(header, "EdDSA")) == code


async def test_embedded_key_verifies_nothing(issuer: Issuer) -> None:
    """A token signed by the key that it brings along is refused."""
    header = {"alg": "EdDSA", "jwk": public_jwk("EdDSA", 7), "kid": "EdDSA-0"}
    async with watching(issuer) as watched:
        assert await watched.code(issuer.sign(header, "EdDSA", 7)) == "token_signature_invalid"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iss": ...}, "token_claim_missing"),
        ({"iss": None}, "token_claim_missing"),
        ({"iss": "https://evil.test"}, "token_issuer_wrong"),
        ({"iss": ["x"]}, "token_malformed"),
        ({"aud": ...}, "token_claim_missing"),
        ({"aud": "better-auth:session-cache"}, "token_audience_wrong"),
        ({"aud": ["x", "better-auth:session-cache"]}, "token_audience_wrong"),
        ({"aud": []}, "token_audience_wrong"),
        ({"aud": 1}, "token_malformed"),
        ({"sub": ...}, "token_claim_missing"),
        ({"sub": ..., "id": "alice", "email": "a@b.c"}, "token_claim_missing"),
        ({"sub": "a\nb"}, "token_malformed"),
        ({"exp": ...}, "token_claim_missing"),
        ({"exp": 1}, "token_expired"),
        ({"nbf": 4_000_000_000}, "token_not_yet_valid"),
        ({"scope": ["tasks:read"]}, "token_malformed"),
    ],
)
async def test_claims_of_published_keys(issuer: Issuer, claims: dict[str, Any], code: str) -> None:
    """A token of the key set must say who issued it for whom, besides what every token must."""
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token(**claims)) == code


async def test_audience_may_be_a_list(issuer: Issuer) -> None:
    """One of several audiences is enough."""
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token(aud=["other", issuer.url])) is None


def test_derived_names_bind_no_secret(issuer: Issuer) -> None:
    """A token signed with the secret needs neither issuer nor audience of the URL; it may name the latter."""
    verifier = Watched(issuer).verifier

    def code(**claims: Any) -> str | None:
        signing = ".".join(issuer.sign({"alg": "HS256"}, "EdDSA", **claims).split(".")[:2])
        digest = hmac.digest(SECRET.encode(), signing.encode(), "sha256")
        error = verifier.examine(f"{signing}.{b64(digest)}").error
        return error and error.code

    assert code(iss=..., aud=...) is None
    assert code(iss="anybody", aud=...) is None
    assert code(iss=...) is None
    assert code(iss=..., aud="other") == "token_audience_wrong"


def test_key_set_needs_names(issuer: Issuer) -> None:
    """A key set without an issuer and an audience is refused: the issuer serves others too."""
    with pytest.raises(SettingsInvalid):
        Verifier([], key_set=KeySet(issuer.jwks_url), key_set_issuers=["x"])


async def test_token_without_a_name_tries_the_keys_of_its_algorithm(issuer: Issuer) -> None:
    """A token that names no key is tried with those of its algorithm, up to 16 of them."""
    for number in range(1, 16):
        issuer.publish("EdDSA", number)
    issuer.publish("ES256")
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token("EdDSA", 15, kid=...)) is None
        assert await watched.code(issuer.token("ES256", kid=...)) is None
        assert await watched.code(issuer.token("RS256", kid=...)) == "token_key_unknown"
        issuer.publish("EdDSA", 16)
        assert await watched.code(issuer.token("EdDSA", 16)) is None
        assert await watched.code(issuer.token("EdDSA", 15, kid=..., sub="bob")) == "token_key_unknown"


async def test_key_without_a_name_verifies_tokens_without_one(issuer: Issuer) -> None:
    """A key without `kid` is for tokens without one."""
    issuer.keys = [public_jwk("EdDSA")]
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token(kid=...)) is None
        assert await watched.code(issuer.token()) == "token_key_unknown"


async def test_examine_knows_keys(issuer: Issuer) -> None:
    """The explanation has a check of the key, and says that it is not at hand, unknown or known."""
    async with watching(issuer) as watched:

        def checks(token: str) -> dict[str, str | None]:
            report = watched.verifier.examine(token)
            return {check.name: check.error and check.error.code for check in report.checks}

        names = [*checks("x")]
        assert names[:4] == ["well-formed", "algorithm", "key known", "signature"]
        assert checks(issuer.token())["key known"] == "auth_keys_unavailable"
        await watched.verifier.fetch_keys_for(issuer.token())
        assert set(checks(issuer.token()).values()) == {None}
        assert checks(issuer.token("EdDSA", 5))["key known"] == "token_key_unknown"
        assert [*checks(issuer.token("EdDSA", 5))] == names


# How it is fetched


async def test_one_fetch_for_all(issuer: Issuer) -> None:
    """A hundred requests at once that need the keys cause one fetch."""
    async with watching(issuer) as watched:
        codes = await asyncio.gather(*(watched.code(issuer.token(sub=f"u{n}")) for n in range(100)))
    assert (set(codes), issuer.hits) == ({None}, 1)


def redirect(location: str) -> Callable[[Any], None]:
    return lambda handler: respond(handler, b"", 302, {"Location": location})


def publish(text: bytes, status: int = 200, **headers: str) -> Callable[[Any], None]:
    return lambda handler: respond(handler, text, status, headers)


GOOD = json.dumps({"keys": [public_jwk("EdDSA", kid="EdDSA-0")]}).encode()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (publish(b"<html>"), "unreadable"),
        (publish(b""), "unreadable"),
        (publish(b"[]"), "unreadable"),
        (publish(b'{"keys": {}}'), "unreadable"),
        (publish(b'{"keys": [' + b"[" * 100_000), "unreadable"),
        (publish(b'\xff{"keys": []}'), "unreadable"),
        (publish(GOOD, **{"Content-Encoding": "gzip"}), "unreadable"),
        (publish(b'{"keys": []}'), "no_usable_key"),
        (publish(b'{"keys": [{"kty": "oct", "k": "AAAA"}]}'), "no_usable_key"),
        (publish(GOOD + b" " * 300_000), "too_large"),
        (publish(GOOD, 500), "status"),
        (publish(GOOD, 404), "status"),
        (publish(GOOD, 304), "status"),
        (redirect("https://127.0.0.1/api/auth/jwks"), "redirected"),
        (redirect("http://127.0.0.1:1/api/auth/jwks"), "redirected"),
        (redirect("http://localhost/api/auth/jwks"), "redirected"),
        (redirect("file:///etc/passwd"), "redirected"),
        (redirect("http://[broken"), "redirected"),
        (redirect("/api/auth/jwks"), "redirected"),
        (lambda handler: handler.wfile.write(b"\0\0 garbage\r\n\r\n"), "unreachable"),
        (
            lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
            "unreachable",
        ),
    ],
)
async def test_failed_fetch_keeps_the_old_keys(
    issuer: Issuer, answer: Callable[[Any], None], outcome: str
) -> None:
    """A key set that cannot be had is a failed fetch with a reason; first 503, and the old keys stay."""
    async with watching(issuer) as watched:
        issuer.answer = answer
        assert await watched.code(issuer.token()) == "auth_keys_unavailable"
        assert {fetch.outcome for fetch in watched.fetches} == {outcome}
        assert watched.fetches[-1].detail
        assert issuer.hits <= 8
        issuer.answer = None
        await watched.key_set.refresh()
        issuer.answer = answer
        await watched.key_set.refresh()
        assert watched.fetches[-1].outcome == outcome
        assert await watched.code(issuer.token()) is None
        assert await watched.code(issuer.token("EdDSA", 1)) == "token_key_unknown"


async def test_redirect_within_the_origin_is_followed(issuer: Issuer) -> None:
    """An issuer may move its key set on its own host."""

    def move(handler: Any) -> None:
        if handler.path == "/moved":
            respond(handler, json.dumps({"keys": issuer.keys}).encode())
        else:
            redirect("/moved")(handler)

    issuer.answer = move
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token()) is None


async def test_hanging_issuer_holds_nobody_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for a fetch only so long, and the next does not start another meanwhile."""
    monkeypatch.setattr("taskctl.jwks._PATIENCE_SECONDS", 0.05)
    issuer.answer = issuer.hang
    async with watching(issuer) as watched:
        for _ in range(3):
            assert await watched.code(issuer.token()) == "auth_keys_unavailable"
        assert issuer.hits == 1


async def test_few_wait_for_a_hanging_issuer(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of waiting requests the others are answered at once, so that they do not pile up."""
    monkeypatch.setattr("taskctl.jwks._WAITING_MAX", 5)
    issuer.answer = issuer.hang
    async with watching(issuer) as watched:
        asking = [asyncio.create_task(watched.code(issuer.token(sub=f"u{n}"))) for n in range(20)]
        await eventually(lambda: sum(task.done() for task in asking) == 15)
        assert {task.result() for task in asking if task.done()} == {"auth_keys_unavailable"}
        issuer.answer = None
        issuer.released.set()
        await asyncio.gather(*asking)
        assert issuer.hits <= 2


async def test_slow_answer_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch has a time limit over all, and the next may succeed."""
    monkeypatch.setattr("taskctl.jwks._FETCH_SECONDS", 0.05)
    issuer.answer = issuer.hang
    async with watching(issuer) as watched:
        await watched.key_set.refresh()
        assert watched.key_set.state().last_fetch == "timed_out"
        issuer.answer = None
        await watched.key_set.refresh()
        assert watched.key_set.state().last_fetch == "ok"


async def test_start_order_does_not_matter(issuer: Issuer) -> None:
    """With the issuer down the server runs, and has the keys soon after it comes up, without being asked."""
    issuer.down()
    async with watching(issuer) as watched:
        watched.key_set.start()
        await eventually(lambda: watched.fetches)
        assert await watched.code(issuer.token()) == "auth_keys_unavailable"
        assert watched.key_set.state().freshness == "none"
        issuer.up()
        await eventually(lambda: watched.key_set.keys)
        assert await watched.code(issuer.token()) is None


def own_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an issuer for tests")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    file = folder / "issuer.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    return file


async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer whose certificate nobody vouches for is not believed; SSL_CERT_FILE may vouch for it."""
    file = own_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    with running_issuer(tls) as issuer:
        issuer.publish()
        for expected in ("unreachable", "ok"):
            async with watching(issuer) as watched:
                await watched.key_set.refresh()
                assert watched.key_set.state().last_fetch == expected
            monkeypatch.setenv("SSL_CERT_FILE", str(file))


async def test_this_machine_is_asked_without_a_proxy(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is used for other hosts, and not for this one."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with watching(issuer) as watched:
        await watched.key_set.refresh()
        assert watched.key_set.state().last_fetch == "ok"
    proxied = KeySet(issuer.jwks_url)
    await proxied.refresh()
    await proxied.close()
    assert (proxied.state().last_fetch, issuer.hits) == ("unreachable", 1)


# How it is kept


async def test_keys_are_fetched_again_before_they_lapse(issuer: Issuer) -> None:
    """The background fetches without a request, before the keys are too old; a key that left is gone."""
    async with watching(issuer, max_age=0.1) as watched:
        watched.key_set.start()
        await eventually(lambda: len(watched.fetches) >= 3)
        assert {fetch.outcome for fetch in watched.fetches} == {"ok"}
        assert [fetch.changed for fetch in watched.fetches][:3] == [True, False, False]


async def test_order_of_keys_says_nothing(issuer: Issuer) -> None:
    """Keys in another order are the same keys: remembered tokens stay."""
    issuer.publish("EdDSA", 1)
    async with watching(issuer) as watched:
        token = issuer.token()
        assert await watched.code(token) is None
        issuer.keys.reverse()
        await watched.key_set.refresh()
        assert [fetch.changed for fetch in watched.fetches] == [True, False]
        assert watched.verifier.recall(token) is not None


async def test_stale_keys_serve_for_a_while(issuer: Issuer) -> None:
    """While the issuer is away its keys serve, stale; beyond the bound not even cached tokens hold."""
    async with watching(issuer, max_age=300, max_stale=1000) as watched:
        token = issuer.token(exp=int(time.time()) + 10_000)
        assert await watched.code(token) is None
        issuer.down()
        watched.now = 299
        assert watched.key_set.state().freshness == "fresh"
        watched.now = 999
        assert watched.key_set.state().freshness == "stale"
        assert await watched.code(token) is None
        assert await watched.code(issuer.token("EdDSA", 1)) == "token_key_unknown"
        watched.now = 1000
        assert watched.key_set.state().freshness == "none"
        assert await watched.code(token) == "auth_keys_unavailable"
        issuer.up()
        await watched.key_set.refresh()
        assert await watched.code(token) is None


async def test_failures_are_told_once(issuer: Issuer) -> None:
    """A fetch is news where it ends in another way than the last, or the keys have become stale meanwhile."""
    async with watching(issuer, max_age=300, max_stale=1000) as watched:
        for watched.now, down in ((0, False), (10, False), (20, True), (30, True), (400, True), (1100, True)):
            if down:
                issuer.down()
            await watched.key_set.refresh()
        issuer.up()
        await watched.key_set.refresh()
        told = [(fetch.outcome, fetch.state.freshness, fetch.news) for fetch in watched.fetches]
        assert told == [
            ("ok", "fresh", True),
            ("ok", "fresh", False),
            ("unreachable", "fresh", True),
            ("unreachable", "fresh", False),
            ("unreachable", "stale", True),
            ("unreachable", "none", True),
            ("ok", "fresh", True),
        ]


async def test_first_token_of_a_new_key_works(issuer: Issuer) -> None:
    """A key that was never published before signs at once, again and again, right after a fetch."""
    async with watching(issuer) as watched:
        for number in range(1, 20):
            issuer.publish("EdDSA", number)
            assert await watched.code(issuer.token("EdDSA", number)) is None
        assert issuer.hits == 19
        assert await watched.code(issuer.token()) is None


async def test_rotation_during_a_fetch(issuer: Issuer) -> None:
    """A token whose key was made while a fetch was under way, too late for it, gets a fetch of its own."""

    def late(handler: Any) -> None:
        text = json.dumps({"keys": issuer.keys}).encode()
        issuer.answer = None
        issuer.released.wait(30)
        respond(handler, text)

    async with watching(issuer) as watched:
        await watched.key_set.refresh()
        issuer.answer = late
        fetching = asyncio.create_task(watched.key_set.refresh())
        await eventually(lambda: issuer.answer is None)
        assert issuer.hits == 2
        issuer.publish("EdDSA", 1)
        asking = asyncio.create_task(watched.code(issuer.token("EdDSA", 1)))
        await eventually(lambda: watched.key_set._waiting)
        issuer.released.set()
        assert await asking is None
        await fetching
        assert issuer.hits == 3


async def test_replaced_key_of_the_same_name(issuer: Issuer) -> None:
    """A key replaced under its name is found by the first token that it signs; the old one's are refused."""
    async with watching(issuer) as watched:
        old = issuer.token()
        assert await watched.code(old) is None
        issuer.keys = [public_jwk("EdDSA", 1, kid="EdDSA-0")]
        assert await watched.code(issuer.token("EdDSA", 1, kid="EdDSA-0")) is None
        assert issuer.hits == 2
        assert await watched.code(old) == "token_signature_invalid"


async def test_forged_signatures_cause_few_fetches(issuer: Issuer) -> None:
    """Bad signatures under a known name cause one fetch, then none for a while."""
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token()) is None
        for number in range(50):
            token = issuer.token("EdDSA", 1, kid="EdDSA-0", sub=f"u{number}")
            assert await watched.code(token) == "token_signature_invalid"
        assert issuer.hits == 2


async def test_withdrawn_key_takes_its_tokens(issuer: Issuer) -> None:
    """A token that is remembered is refused as soon as its key is published no more."""
    issuer.publish("EdDSA", 1)
    async with watching(issuer) as watched:
        token = issuer.token()
        assert await watched.code(token) is None
        del issuer.keys[0]
        await watched.key_set.refresh()
        assert await watched.code(token) == "token_key_unknown"
        assert await watched.code(issuer.token("EdDSA", 1)) is None


async def test_remembered_token_expires(issuer: Issuer) -> None:
    """A remembered token ends with its expiry and the leeway."""
    async with watching(issuer) as watched:
        token = issuer.token(exp=int(time.time()) + 20)
        assert await watched.code(token) is None
        assert watched.verifier.recall(token) is not None
        watched.now = 51
        assert watched.verifier.recall(token) is None
        assert await watched.code(token) == "token_expired"


# What a flood may not do


@pytest.mark.parametrize("together", [True, False])
async def test_flood_of_unknown_keys(issuer: Issuer, together: bool) -> None:
    """Forged names cause a handful of fetches a minute; a genuine new key is found during the flood."""
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token()) is None
        tokens = [issuer.token("EdDSA", 99, kid=f"a-forged-name-{n}", sub=f"u{n}") for n in range(200)]
        if together:
            codes = await asyncio.gather(*map(watched.code, tokens))
        else:
            codes = [await watched.code(token) for token in tokens]
        assert set(codes) == {"token_key_unknown"}
        assert issuer.hits <= 1 + 4
        issuer.publish("EdDSA", 1)
        assert await watched.code(issuer.token("EdDSA", 1)) is None
        assert issuer.hits <= 1 + 4 + 1


async def test_flood_that_looks_like_the_issuer(issuer: Issuer) -> None:
    """Even with names like the issuer's, a token of somebody known gets its key; not more than 6 a minute."""
    async with watching(issuer) as watched:
        assert await watched.code(issuer.token()) is None
        flood = [issuer.token("EdDSA", 99, kid=f"EdDSA-{n}", sub=f"u{n}") for n in range(10, 99)]
        assert {await watched.code(token) for token in flood} == {"token_key_unknown"}
        assert issuer.hits == 1 + 5
        issuer.publish("EdDSA", 1)
        assert await watched.code(issuer.token("EdDSA", 1)) is None
        insider = [issuer.token("EdDSA", 99, kid=f"EdDSA-{n}") for n in range(10, 99)]
        assert {await watched.code(token) for token in insider} == {"token_key_unknown"}
        assert issuer.hits == 1 + 5 + 1 + 6
        watched.now = 61
        issuer.publish("EdDSA", 2)
        assert await watched.code(issuer.token("EdDSA", 2)) is None


async def test_insider_spends_nobody_elses_fetch(issuer: Issuer) -> None:
    """Forged tokens of one known user leave a fetch to each other one, up to 10 a minute over all."""
    async with watching(issuer) as watched:
        for name in "mallory", "bob", *map(str, range(9)):
            assert await watched.code(issuer.token(sub=name)) is None
        insider = [issuer.token("EdDSA", 99, kid=f"EdDSA-{n}", sub="mallory") for n in range(10, 99)]
        assert {await watched.code(token) for token in insider} == {"token_key_unknown"}
        assert issuer.hits == 1 + 6
        issuer.publish("EdDSA", 1)
        assert await watched.code(issuer.token("EdDSA", 1, sub="bob")) is None
        assert issuer.hits == 1 + 6 + 1
        insiders = [issuer.token("EdDSA", 99, kid=f"EdDSA-{n}", sub=str(n % 9)) for n in range(10, 99)]
        assert {await watched.code(token) for token in insiders} == {"token_key_unknown"}
        assert issuer.hits == 1 + 6 + 1 + 10


async def test_unknown_key_is_remembered(issuer: Issuer) -> None:
    """A name that the issuer does not publish is asked for once, then not for half a minute."""
    async with watching(issuer) as watched:
        for watched.now in (0, 1, 29, 31):
            assert await watched.code(issuer.token("EdDSA", 5)) == "token_key_unknown"
        assert issuer.hits == 2 + 1


@pytest.mark.parametrize("claims", [{"exp": 1}, {"iss": "x"}, {"aud": "x"}, {"sub": ...}, {"scope": 1}])
async def test_hopeless_token_causes_no_fetch(issuer: Issuer, claims: dict[str, Any]) -> None:
    """A token that would be refused whatever its key is not worth a fetch."""
    async with watching(issuer) as watched:
        await watched.key_set.refresh()
        assert await watched.code(issuer.token("EdDSA", 5, **claims)) == "token_key_unknown"
        assert issuer.hits == 1


async def test_secret_needs_no_issuer(issuer: Issuer) -> None:
    """Tokens signed with the secret are verified and refused without a fetch, and with the issuer down."""
    issuer.down()
    signing = ".".join(issuer.sign({"alg": "HS256"}, "EdDSA", aud=...).split(".")[:2])
    async with watching(issuer) as watched:
        good = hmac.digest(SECRET.encode(), signing.encode(), "sha256")
        assert await watched.code(f"{signing}.{b64(good)}") is None
        assert await watched.code(f"{signing}.{b64(good[::-1])}") == "token_signature_invalid"
        assert watched.fetches == []
