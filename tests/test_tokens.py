"""Tokens: every rule of RFC 8725 and of Better Auth's habits, as a table of attacks on one verifier."""

import base64
import hmac
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskctl import errors, tokens
from taskctl.errors import SettingsInvalid, TaskctlError, Unauthenticated
from taskctl.tokens import Verifier, mint

SECRET = "the secret of these tests, which is long enough"
PREVIOUS = "the secret that was there before, also long enough"
KEY = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
PEM = f"-----BEGIN PUBLIC KEY-----\n{KEY}\n-----END PUBLIC KEY-----\n"
UTF8 = "пароль, который длиннее тридцати двух байт"
NOW = 1_800_000_000
GOOD = {"sub": "alice", "exp": NOW + 60}
ABSENT = object()
CHECKS = [
    "well-formed", "algorithm", "signature", "subject", "expiry", "not before", "issuer", "audience", "scope",
]  # fmt: skip


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def raw(header, claims, secret=SECRET, digest="sha256"):
    """Sign any bytes at all; what is not bytes is written as JSON."""
    texts = (part if isinstance(part, bytes) else compact(part) for part in (header, claims))
    parts = [b64(text) for text in texts]
    signature = hmac.digest(secret.encode(), ".".join(parts).encode(), digest)
    return ".".join([*parts, b64(signature)])


def signed(claims, **header):
    return raw({"alg": "HS256"} | header, claims)


def having(**claims):
    """A good token with some claims exchanged or absent."""
    return signed({name: value for name, value in (GOOD | claims).items() if value is not ABSENT})


def verifier(now=NOW, **options):
    return Verifier([SECRET, PREVIOUS], clock=lambda: now, **options)


def outcome(token, **options):
    """The code of what verify raises, or None."""
    try:
        verifier(**options).verify(token)
    except TaskctlError as error:
        return error.code
    return None


GOOD_TOKEN = signed(GOOD)
HEADER, CLAIMS, SIGNATURE = GOOD_TOKEN.split(".")

ALGORITHM, SIGNATURE_WRONG = "token_algorithm_not_allowed", "token_signature_invalid"
MALFORMED, MISSING = "token_malformed", "token_claim_missing"
EXPIRED, EARLY = "token_expired", "token_not_yet_valid"
ISSUER, AUDIENCE = "token_issuer_wrong", "token_audience_wrong"


def good_json(member):
    """The good claims and one member more, as bytes."""
    return compact(GOOD)[:-1] + b"," + member + b"}"


# Headers in front of good claims, signed with the right secret.
HEADERS = {
    ALGORITHM: [{"alg": name} for name in ("none", "None", "nOnE", "hs256", "HS384", "EdDSA", "A128KW", "")],
    MALFORMED: [
        *({"alg": value} for value in (None, 256, ["HS256"], {"HS256": 1}, True)),
        *({"alg": "HS256", "crit": value, "b64": True} for value in (["b64"], [], None)),
        *({"typ": "JWT"}, ["HS256"], b"", b'{"alg":"none","alg":"HS256"}', b'\xef\xbb\xbf{"alg":"HS256"}'),
        b'{"alg":' + b"[" * 5000,
    ],
}

# Claims behind a good header; each is exchanged in the good ones.
CLAIMS_EXCHANGED = {
    MISSING: {"sub": [ABSENT, None, ""], "exp": [ABSENT, None]},
    MALFORMED: {
        "sub": [1, 0, False, ["alice"], [], {}, "x" * 256, "alice\n", "a\0b", "a\x7fb", "a\x9fb", "a\ud800b"],
        "exp": [str(NOW + 60), "", True, [NOW + 60], {}, 10**400],
        "nbf": ["0", True, [0]],
        "iat": ["now", True],
        "iss": [1, ["https://a.test"], {}],
        "aud": [1, True, {}, ["https://a.test", 1]],
        "scope": [None, 1, False, ["tasks:read"], {}],
        "pad": ["x" * 8192],
    },
    EXPIRED: {"exp": [0, -1, NOW - 30]},
    EARLY: {"nbf": [NOW + 31]},
    AUDIENCE: {"aud": ["https://a.test", ["https://a.test"], "", []]},
}

# Claims that are not JSON as the RFC has it, or not an object.
NOT_CLAIMS = [
    *(b"", b"null", b"[]", b'"alice"', b"1", b"{'sub':'alice'}", good_json(b'"a":1') + b"{}"),
    *(good_json(b'"sub":"bob"'), good_json(b'"\\u0073ub":"bob"'), good_json(b'"a":{"b":1,"b":2}')),
    *(good_json(b'"a":' + value) for value in (b"NaN", b"Infinity", b"-Infinity", b"9" * 5000)),
    *(b'{"sub":"alice","exp":' + value + b"}" for value in (b"NaN", b"1e400", b"Infinity", b"+1", b"0x7f")),
    *(
        good_json(b'"nbf":1e400'),
        good_json('"name":"José"'.encode("latin-1")),
        json.dumps(GOOD).encode("utf-16"),
    ),
    *(good_json(b'"name":"' + text + b'"') for text in (b"\xed\xa0\x80", b"\xc0\xaf")),
    b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    *(b"[" * 5000, b'{"a":' * 1100, good_json(b'"a":' + b"[" * 2700 + b"]" * 2700)),
]

# Whole tokens. The signature's 32 bytes leave two unused bits in its last character.
TOKENS = {
    ALGORITHM: {
        "none, not signed": ".".join([b64(b'{"alg":"none"}'), CLAIMS, ""]),
        "RS256, HMAC over a public key": raw({"alg": "RS256"}, GOOD, PEM),
        "HS384": raw({"alg": "HS384"}, GOOD, digest="sha384"),
        "HS512": raw({"alg": "HS512"}, GOOD, digest="sha512"),
    },
    SIGNATURE_WRONG: {
        "HMAC over a public key": raw({"alg": "HS256"}, GOOD, PEM),
        "another secret": raw({"alg": "HS256"}, GOOD, "another secret, which is long enough too"),
        "no secret": raw({"alg": "HS256"}, GOOD, ""),
        "jwk in the header": raw({"alg": "HS256", "jwk": {"kty": "oct", "k": b64(b"mine")}}, GOOD, "mine"),
        "SHA-512 of the secret": raw({"alg": "HS256"}, GOOD, digest="sha512"),
        "no signature": f"{HEADER}.{CLAIMS}.",
        "signature cut": f"{HEADER}.{CLAIMS}.{SIGNATURE[:40]}",
        "claims exchanged": f"{HEADER}.{b64(json.dumps(GOOD | {'sub': 'bob'}).encode())}.{SIGNATURE}",
        "header exchanged": ".".join([b64(b'{"alg" : "HS256"}'), CLAIMS, SIGNATURE]),
    },
    MISSING: {
        "mail link of Better Auth": signed({"email": "a@b.c", "userId": "a", "iat": NOW, "exp": NOW + 60}),
        "cookie cache of Better Auth": signed(
            {"session": {"token": "t"}, "user": {"id": "a"}, "exp": NOW + 60}
        ),
        "no sub but its likes": signed(
            {"id": "a", "email": "a", "user_id": "a", "SUB": "a", "exp": NOW + 60}
        ),
    },
    MALFORMED: {
        "empty": "",
        "session token": "Dp8Wf0Yk3xVb5nQz7sLr2tGh9jMc4aEu",
        "session token, signed as a cookie": "Dp8Wf0Yk3xVb5nQz.c2lnbmF0dXJlIG9mIGEgY29va2ll",
        "two parts": f"{HEADER}.{CLAIMS}",
        "three empty parts": "..",
        "four parts": f"{GOOD_TOKEN}.",
        "JWE, five parts": ".".join([b64(b'{"alg":"dir","enc":"A256GCM"}'), "", CLAIMS, CLAIMS, SIGNATURE]),
        "cut by one character": GOOD_TOKEN[:-1],
        "trailing bits": GOOD_TOKEN[:-1] + chr(ord(GOOD_TOKEN[-1]) + 1),
        "padded header": f"{HEADER}=.{CLAIMS}.{SIGNATURE}",
        "plus and slash": f"{HEADER}.{CLAIMS}.{'+/' * 21}A",
        **{f"last {end!a}": f"{HEADER}.{CLAIMS}.{SIGNATURE[:-1]}{end}" for end in "*é\ud800=+ "},
        **{f"before {text!a}": f"{text}{GOOD_TOKEN}" for text in (" ", "\t", "\ufeff", "Bearer ")},
        **{f"after {text!a}": f"{GOOD_TOKEN}{text}" for text in ("\n", "\0", " ", "=")},
        "newline within": f"{HEADER}.{CLAIMS[:9]}\n{CLAIMS[9:]}.{SIGNATURE}",
    },
}


def attacks():
    """Every attack with its expected code, under a name that says what it is."""
    for code, headers in HEADERS.items():
        for header in headers:
            yield pytest.param(raw(header, GOOD), code, id=f"header {header!a:.60}")
    for code, rows in CLAIMS_EXCHANGED.items():
        for name, value in ((name, value) for name, values in rows.items() for value in values):
            shown = "absent" if value is ABSENT else ascii(value)
            yield pytest.param(having(**{name: value}), code, id=f"{name} {shown:.40}")
    for data in NOT_CLAIMS:
        yield pytest.param(raw({"alg": "HS256"}, data), MALFORMED, id=f"claims {ascii(data)[-60:]}")
    for code, rows in TOKENS.items():
        for name, token in rows.items():
            yield pytest.param(token, code, id=name)


each_attack = pytest.mark.parametrize(("token", "code"), [*attacks()])


@each_attack
def test_attack_is_refused(token, code):
    """Each attack is refused with the code that says what is wrong first."""
    assert outcome(token) == code


@each_attack
def test_examine_agrees_with_verify(token, code):
    """The explanation of a bad token lists every check in order and ends with the server's own answer."""
    report = verifier().examine(token)
    assert [check.name for check in report.checks] == CHECKS
    assert report.error is not None
    assert report.error.code == code
    unreached = [check for check in report.checks if not check.reached]
    assert unreached == (list(report.checks[1:]) if report.checks[0].error else [])
    assert all(check.error is None for check in unreached)


@each_attack
def test_refusal_does_not_repeat_the_token(token, code):
    """No part of a token longer than 16 characters is in what is said about it."""
    del code
    said = (check.error for check in verifier().examine(token).checks if check.error)
    text = " ".join(f"{error!r} {error.detail} {error.members} {error.headers}" for error in said)
    assert not [piece for part in token.split(".") for piece in re.findall(".{16}", part) if piece in text]


HARMLESS = [
    *({}, {"nbf": NOW}, {"iat": NOW + 3600}, {"exp": NOW + 0.5}, {"exp": 253_402_300_799}),
    *({"iss": "https://anything.test"}, {"jti": "1", "name": "José", "nested": {"a": [1]}}),
    *({"sub": text} for text in ("1", "x" * 255, "😀" * 255, "a b", "José", "a@b.c", "me", "/", "\u202e")),
]


@pytest.mark.parametrize("claims", HARMLESS, ids=lambda claims: f"{claims!a:.40}")
def test_harmless_claims_are_accepted(claims):
    """Claims that no rule is about do not matter, a subject is opaque text, and every check passes."""
    token, expected, both = having(**claims), GOOD | claims, frozenset({"tasks:read", "tasks:write"})
    identity = tokens.Identity(expected["sub"], both, expected["exp"], expected.get("iss"))
    assert verifier().verify(token) == identity
    report = verifier().examine(token)
    assert report.error is None
    assert [check.name for check in report.checks if check.reached and not check.error] == CHECKS
    assert (report.header, report.claims) == ({"alg": "HS256"}, expected)


@pytest.mark.parametrize("value", ["https://evil.test", "at+jwt", {"kty": "oct", "k": "bWluZQ"}], ids=repr)
@pytest.mark.parametrize("name", ["kid", "jku", "x5u", "jwk", "x5c", "typ"])
def test_header_members_that_choose_keys_are_ignored(name, value):
    """A token's own idea of its key and its type changes nothing."""
    assert verifier().verify(signed(GOOD, **{name: value})).user_id == "alice"


@pytest.mark.parametrize(("size", "code"), [(8192, None), (8193, MALFORMED)])
def test_token_may_be_8_kib(size, code):
    """8192 bytes are read and one more is not."""
    claims = (size - len(f"{HEADER}..{SIGNATURE}")) * 3 // 4
    token = having(pad="x" * (claims - len(good_json(b'"pad":""'))))
    assert len(token) == size
    assert outcome(token) == code


def test_refusals_say_what_to_do():
    """A session token is answered with the way to exchange it, a stray audience with the setting for it."""
    with pytest.raises(errors.TokenMalformed, match="/api/auth/token"):
        verifier().verify("Dp8Wf0Yk3xVb5nQz7sLr2tGh9jMc4aEu")
    with pytest.raises(errors.TokenAudienceWrong, match="TASKCTL_JWT_AUDIENCES"):
        verifier().verify(having(aud="https://a.test"))


@pytest.mark.parametrize(
    ("claims", "leeway", "now", "code"),
    [
        ({"exp": NOW}, 30, NOW + 29.999, None),
        ({"exp": NOW}, 30, NOW + 30, EXPIRED),
        ({"exp": NOW + 0.5}, 30, NOW + 30, None),
        ({"exp": NOW + 0.5}, 30, NOW + 30.5, EXPIRED),
        ({"exp": NOW}, 0, NOW - 0.001, None),
        ({"exp": NOW}, 0, NOW, EXPIRED),
        ({"exp": NOW}, 90, NOW + 89, None),
        ({"nbf": NOW}, 30, NOW - 30, None),
        ({"nbf": NOW}, 30, NOW - 30.001, EARLY),
        ({"nbf": NOW}, 0, NOW - 0.001, EARLY),
    ],
)
def test_leeway_is_exact(claims, leeway, now, code):
    """A token is good until the leeway after `exp` and from the leeway before `nbf`, not one moment more."""
    assert outcome(having(**claims), now=now, leeway=leeway) == code
    assert verifier().leeway == 30


CONFIGURED = {
    None: {"iss": ["https://b.test"], "aud": ["https://b.test", ["other", "https://b.test"]]},
    MISSING: {"iss": [ABSENT, None], "aud": [ABSENT, None]},
    MALFORMED: {"iss": [["https://b.test"], 1], "aud": [{"https://b.test": 1}, ["https://b.test", None], 1]},
    ISSUER: {"iss": ["https://b.test/", "https://B.test", "", "https://a.test,https://b.test"]},
    AUDIENCE: {"aud": [["other"], [], "", "https://b.test.evil", "better-auth:session-cache"]},
}


@pytest.mark.parametrize(
    ("claim", "value", "code"),
    [
        pytest.param(claim, value, code, id=f"{claim} {'absent' if value is ABSENT else repr(value)}")
        for code, rows in CONFIGURED.items()
        for claim, values in rows.items()
        for value in values
    ],
)
def test_issuers_and_audiences_that_are_configured_bind(claim, value, code):
    """Where issuers or audiences are configured, a token has to carry one of them, to the letter."""
    option = {"iss": "issuers", "aud": "audiences"}[claim]
    assert outcome(having(**{claim: value}), **{option: ("https://a.test", "https://b.test")}) == code


SCOPES = {
    ("tasks:read",): ["tasks:read", "tasks:read tasks:read", "openid tasks:read profile"],
    ("tasks:write",): ["tasks:write", " tasks:write "],
    ("tasks:read", "tasks:write"): ["tasks:read tasks:write", "openid tasks:write tasks:read"],
    (): ["", " ", "openid", "tasks:readonly", "Tasks:Read", "tasks:read,tasks:write", "tasks:*"],
}


@pytest.mark.parametrize("allowed", SCOPES, ids=repr)
def test_scope_narrows(allowed):
    """A scope allows exactly the words in it: write is not read, and nothing is nothing."""
    for scope in SCOPES[allowed]:
        scopes = verifier().verify(having(scope=scope)).scopes
        assert tuple(sorted(scopes & {"tasks:read", "tasks:write"})) == allowed


ROTATIONS = [
    ([SECRET, PREVIOUS], PREVIOUS, None),
    ([SECRET], PREVIOUS, SIGNATURE_WRONG),
    ([UTF8], UTF8, None),
]


@pytest.mark.parametrize(("secrets", "used", "code"), [*ROTATIONS, ([], "", ALGORITHM)])
def test_every_configured_secret_verifies(secrets, used, code):
    """Present and previous secrets count with their UTF-8 bytes; without one nothing is accepted."""
    report = Verifier(secrets, clock=lambda: NOW).examine(raw({"alg": "HS256"}, GOOD, used))
    assert (report.error and report.error.code) == code


def test_examine_reports_everything_that_is_wrong():
    """The claims are looked at even where the signature is wrong, so that all can be mended at once."""
    token = raw({"alg": "HS256"}, {"exp": NOW - 99, "aud": "x", "scope": 1}, "someone else's secret")
    report = verifier(issuers=["https://a.test"]).examine(token)
    assert [check.error and check.error.code for check in report.checks] == [
        None, None, SIGNATURE_WRONG, MISSING, EXPIRED, None, MISSING, AUDIENCE, MALFORMED,
    ]  # fmt: skip
    assert report.error is report.checks[2].error


@pytest.mark.parametrize("secret", [PEM, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb9ECWmEzf6FQbrBZ9w7lshQhqo"])
def test_public_key_is_no_secret(secret):
    """What everybody may know is refused as a secret, for verifying and for signing, and is not repeated."""
    with pytest.raises(SettingsInvalid) as verifying:
        Verifier([SECRET, secret])
    with pytest.raises(SettingsInvalid) as signing:
        mint(secret, "alice", 60)
    assert "Gb9ECWmE" not in f"{verifying.value} {signing.value}"


def test_remembered_token_ends_on_time():
    """A token accepted before is refused from the moment that ends it; repr shows neither it nor a secret."""
    now = [NOW]
    remembering = Verifier([SECRET, PREVIOUS], clock=lambda: now[0])
    for now[0] in (NOW, NOW + 59, NOW + 60, NOW + 89.999):
        assert remembering.verify(GOOD_TOKEN).user_id == "alice"
    shown = f"{remembering!r} {remembering!s}"
    assert not [
        word for word in (SECRET, PREVIOUS, b64(SECRET.encode()), SIGNATURE, "alice") if word in shown
    ]
    now[0] = NOW + 90
    with pytest.raises(errors.TokenExpired):
        remembering.verify(GOOD_TOKEN)


def test_mint_makes_what_verify_takes():
    """A minted token is an ordinary HS256 JWT with `sub`, `iat` and `exp`, and what was asked for besides."""
    token = mint(SECRET, "alice", 3600, clock=lambda: NOW + 0.9)
    report = verifier().examine(token)
    assert (report.error, report.header["alg"]) == (None, "HS256")
    assert report.claims == {"sub": "alice", "iat": NOW, "exp": NOW + 3600}
    token = mint(SECRET, "alice", 60, scope="tasks:read", claims={"iss": "https://a.test", "exp": NOW + 5})
    claims = verifier().examine(token).claims
    assert (claims["scope"], claims["iss"], claims["exp"]) == ("tasks:read", "https://a.test", NOW + 5)
    assert Verifier([SECRET]).verify(mint(SECRET, "alice", 60)).expires_at <= time.time() + 60


@settings(deadline=None)
@given(st.integers(0, len(GOOD_TOKEN) * 8 - 1))
def test_any_flipped_bit_is_refused(bit):
    """A good token with any one bit exchanged is refused."""
    data = bytearray(GOOD_TOKEN.encode())
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Unauthenticated):
        verifier().verify(data.decode("latin-1"))


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_signed_bytes_are_read_or_refused(header, claims):
    """Whatever is in the parts, verifying ends in an identity or in a refusal, never in another error."""
    verifier().examine(raw(header, claims))
    outcome(raw(b'{"alg":"HS256"}', claims))
