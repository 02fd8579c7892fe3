"""Tokens: every rule of RFC 8725 and of Better Auth's habits, as a table of attacks on one verifier."""

import base64
import hashlib
import hmac
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskctl import errors, tokens
from taskctl.errors import SettingsInvalid, TaskctlError, Unauthenticated
from taskctl.tokens import Verifier, mint

SECRET = "the secret of these tests, which is long enough"
PREVIOUS = "the secret that was there before, also long enough"
PEM = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
    "-----END PUBLIC KEY-----\n"
)
NOW = 1_800_000_000
GOOD = {"sub": "alice", "exp": NOW + 60}
CHECKS = [
    "well-formed", "algorithm", "signature", "subject", "expiry", "not before", "issuer", "audience", "scope",
]  # fmt: skip


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(header, claims, secret=SECRET, digest="sha256"):
    """Sign any bytes at all; what is not bytes is written as JSON."""
    parts = [
        b64(part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode())
        for part in (header, claims)
    ]
    signature = hmac.digest(secret.encode(), ".".join(parts).encode(), digest)
    return ".".join([*parts, b64(signature)])


def signed(claims, **header):
    return raw({"alg": "HS256"} | header, claims)


def having(**claims):
    """A good token with some claims exchanged."""
    return signed(GOOD | claims)


def lacking(name):
    return signed({key: value for key, value in GOOD.items() if key != name})


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
JSON_EXP = str(NOW + 60).encode()
# A last character that carries unused bits: 32 bytes leave two of them.
TRAILING = GOOD_TOKEN[:-1] + chr(ord(GOOD_TOKEN[-1]) + 1)
LOOK_ALIKE_MAIL = signed({"email": "a@b.c", "userId": "alice", "iat": NOW, "exp": NOW + 60})
LOOK_ALIKE_COOKIE = signed({"session": {"token": "t"}, "user": {"id": "alice"}, "exp": NOW + 60})


def good_json(member):
    return b'{"sub":"alice","exp":' + JSON_EXP + b"," + member + b"}"


ALGORITHM = "token_algorithm_not_allowed"
SIGNATURE_INVALID = "token_signature_invalid"
MALFORMED = "token_malformed"
MISSING = "token_claim_missing"
EXPIRED = "token_expired"
EARLY = "token_not_yet_valid"
ISSUER = "token_issuer_wrong"
AUDIENCE = "token_audience_wrong"

ATTACKS = {
    # The algorithm is this side's, not the token's.
    "alg none": (b64(b'{"alg":"none"}') + f".{CLAIMS}.", ALGORITHM),
    "alg None": (b64(b'{"alg":"None"}') + f".{CLAIMS}.", ALGORITHM),
    "alg nOnE": (b64(b'{"alg":"nOnE"}') + f".{CLAIMS}.", ALGORITHM),
    "alg none, signed": (signed(GOOD, alg="none"), ALGORITHM),
    "alg hs256": (signed(GOOD, alg="hs256"), ALGORITHM),
    "alg empty": (signed(GOOD, alg=""), ALGORITHM),
    "HS384": (raw({"alg": "HS384"}, GOOD, digest="sha384"), ALGORITHM),
    "HS512": (raw({"alg": "HS512"}, GOOD, digest="sha512"), ALGORITHM),
    "RS256 over a public key": (raw({"alg": "RS256"}, GOOD, PEM), ALGORITHM),
    "HS256 over a public key": (raw({"alg": "HS256"}, GOOD, PEM), SIGNATURE_INVALID),
    "EdDSA, signed with the secret": (signed(GOOD, alg="EdDSA", kid="k"), ALGORITHM),
    "alg absent": (raw({"typ": "JWT"}, GOOD), MALFORMED),
    "alg null": (signed(GOOD, alg=None), MALFORMED),
    "alg a number": (signed(GOOD, alg=256), MALFORMED),
    "alg a list": (signed(GOOD, alg=["HS256"]), MALFORMED),
    "crit": (signed(GOOD, crit=["b64"], b64=True), MALFORMED),
    "crit empty": (signed(GOOD, crit=[]), MALFORMED),
    "crit null": (signed(GOOD, crit=None), MALFORMED),
    # The signature.
    "another secret": (raw({"alg": "HS256"}, GOOD, "another secret, which is long enough too"), SIGNATURE_INVALID),
    "no secret": (raw({"alg": "HS256"}, GOOD, ""), SIGNATURE_INVALID),
    "jwk in the header": (
        raw({"alg": "HS256", "jwk": {"kty": "oct", "k": b64(b"mine")}}, GOOD, "mine"),
        SIGNATURE_INVALID,
    ),
    "no signature": (f"{HEADER}.{CLAIMS}.", SIGNATURE_INVALID),
    "signature cut by three bytes": (GOOD_TOKEN[:-4], SIGNATURE_INVALID),
    "SHA-512 signature": (raw({"alg": "HS256"}, GOOD, digest="sha512"), SIGNATURE_INVALID),
    "claims exchanged": (f"{HEADER}.{b64(json.dumps(GOOD | {'sub': 'bob'}).encode())}.{SIGNATURE}", SIGNATURE_INVALID),
    "header exchanged": (f"{b64(b'{"alg" : "HS256"}')}.{CLAIMS}.{SIGNATURE}", SIGNATURE_INVALID),
    # The form of a compact JWS.
    "empty": ("", MALFORMED),
    "one part: a session token": ("Dp8Wf0Yk3xVb5nQz7sLr2tGh9jMc4aEu", MALFORMED),
    "a session token, signed as a cookie": ("Dp8Wf0Yk3xVb5nQz.c2lnbmF0dXJlIG9mIGEgY29va2ll", MALFORMED),
    "two parts": (f"{HEADER}.{CLAIMS}", MALFORMED),
    "four parts": (f"{GOOD_TOKEN}.", MALFORMED),
    "JWE: five parts": (f"{b64(b'{"alg":"dir","enc":"A256GCM"}')}..{CLAIMS}.{CLAIMS}.{SIGNATURE}", MALFORMED),
    "three empty parts": ("..", MALFORMED),
    "cut by one character": (GOOD_TOKEN[:-1], SIGNATURE_INVALID if len(GOOD_TOKEN) % 4 == 9 else MALFORMED),
    "padded": (f"{GOOD_TOKEN}=", MALFORMED),
    "trailing bits": (TRAILING, MALFORMED),
    "plus and slash": (f"{HEADER}.{CLAIMS}.{'+/' * 21}A", MALFORMED),
    "foreign character": (f"{HEADER}.{CLAIMS}.{SIGNATURE[:-1]}*", MALFORMED),
    "not ASCII": (f"{HEADER}.{CLAIMS}.{SIGNATURE[:-1]}é", MALFORMED),
    "lone surrogate": (f"{HEADER}.{CLAIMS}.{SIGNATURE[:-1]}\ud800", MALFORMED),
    "NUL": (f"{GOOD_TOKEN}\0", MALFORMED),
    "space before": (f" {GOOD_TOKEN}", MALFORMED),
    "newline after": (f"{GOOD_TOKEN}\n", MALFORMED),
    "space within": (f"{HEADER}. {CLAIMS}.{SIGNATURE}", MALFORMED),
    "over 8 KiB": (having(pad="x" * 8192), MALFORMED),
    # JSON, strictly.
    "duplicate in header": (raw(b'{"alg":"none","alg":"HS256"}', GOOD), MALFORMED),
    "duplicate in claims": (raw({"alg": "HS256"}, good_json(b'"sub":"bob"')), MALFORMED),
    "duplicate, escaped": (raw({"alg": "HS256"}, good_json(b'"\\u0073ub":"bob"')), MALFORMED),
    "duplicate, nested": (raw({"alg": "HS256"}, good_json(b'"a":{"b":1,"b":2}')), MALFORMED),
    "header a list": (raw(["HS256"], GOOD), MALFORMED),
    "claims a list": (signed([GOOD]), MALFORMED),
    "claims text": (signed("alice"), MALFORMED),
    "claims null": (signed(None), MALFORMED),
    "claims empty": (raw({"alg": "HS256"}, b""), MALFORMED),
    "claims single-quoted": (raw({"alg": "HS256"}, b"{'sub':'alice'}"), MALFORMED),
    "bytes after the claims": (raw({"alg": "HS256"}, good_json(b'"a":1') + b"{}"), MALFORMED),
    "claims UTF-16": (raw({"alg": "HS256"}, json.dumps(GOOD).encode("utf-16")), MALFORMED),
    "claims Latin-1": (raw({"alg": "HS256"}, good_json('"name":"José"'.encode("latin-1"))), MALFORMED),
    "surrogate in UTF-8": (raw({"alg": "HS256"}, good_json(b'"name":"\xed\xa0\x80"')), MALFORMED),
    "overlong UTF-8": (raw({"alg": "HS256"}, good_json(b'"name":"\xc0\xaf"')), MALFORMED),
    "BOM before claims": (raw({"alg": "HS256"}, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), MALFORMED),
    "BOM before header": (raw(b'\xef\xbb\xbf{"alg":"HS256"}', GOOD), MALFORMED),
    "bomb of lists": (raw({"alg": "HS256"}, b"[" * 5000), MALFORMED),
    "bomb of objects": (raw({"alg": "HS256"}, b'{"a":' * 1100), MALFORMED),
    "bomb, closed": (raw({"alg": "HS256"}, good_json(b'"a":' + b"[" * 2700 + b"]" * 2700)), MALFORMED),
    "bomb in the header": (raw(b'{"alg":' + b"[" * 5000, GOOD), MALFORMED),
    "integer of 5000 digits": (raw({"alg": "HS256"}, good_json(b'"a":' + b"9" * 5000)), MALFORMED),
    "NaN": (raw({"alg": "HS256"}, good_json(b'"a":NaN')), MALFORMED),
    "Infinity": (raw({"alg": "HS256"}, good_json(b'"a":Infinity')), MALFORMED),
    "-Infinity": (raw({"alg": "HS256"}, good_json(b'"a":-Infinity')), MALFORMED),
    # Who it is.
    "mail link of Better Auth": (LOOK_ALIKE_MAIL, MISSING),
    "cookie cache of Better Auth": (LOOK_ALIKE_COOKIE, MISSING),
    "no sub, but id, email, user_id": (
        signed({"id": "alice", "email": "a@b.c", "user_id": "alice", "exp": NOW + 60}),
        MISSING,
    ),
    "sub in capitals": (signed({"SUB": "alice", "exp": NOW + 60}), MISSING),
    "sub absent": (lacking("sub"), MISSING),
    "sub null": (having(sub=None), MISSING),
    "sub empty": (having(sub=""), MISSING),
    "sub a number": (having(sub=1), MALFORMED),
    "sub zero": (having(sub=0), MALFORMED),
    "sub false": (having(sub=False), MALFORMED),
    "sub a list": (having(sub=["alice"]), MALFORMED),
    "sub an empty list": (having(sub=[]), MALFORMED),
    "sub an object": (having(sub={}), MALFORMED),
    "sub of 256 characters": (having(sub="x" * 256), MALFORMED),
    "sub with a newline": (having(sub="alice\n"), MALFORMED),
    "sub with NUL": (having(sub="a\0lice"), MALFORMED),
    "sub with DEL": (having(sub="a\x7flice"), MALFORMED),
    "sub with C1": (having(sub="a\x9flice"), MALFORMED),
    "sub with a lone surrogate": (having(sub="a\ud800lice"), MALFORMED),
    # When.
    "exp absent": (lacking("exp"), MISSING),
    "exp null": (having(exp=None), MISSING),
    "exp text": (having(exp=str(NOW + 60)), MALFORMED),
    "exp true": (having(exp=True), MALFORMED),
    "exp a list": (having(exp=[NOW + 60]), MALFORMED),
    "exp of 1e400": (raw({"alg": "HS256"}, b'{"sub":"alice","exp":1e400}'), MALFORMED),
    "exp of 400 digits": (having(exp=10**400), MALFORMED),
    "exp NaN": (raw({"alg": "HS256"}, b'{"sub":"alice","exp":NaN}'), MALFORMED),
    "exp zero": (having(exp=0), EXPIRED),
    "exp negative": (having(exp=-1), EXPIRED),
    "exp in the past": (having(exp=NOW - 30), EXPIRED),
    "nbf in the future": (having(nbf=NOW + 31), EARLY),
    "nbf text": (having(nbf="0"), MALFORMED),
    "nbf true": (having(nbf=True), MALFORMED),
    "nbf of 1e400": (raw({"alg": "HS256"}, good_json(b'"nbf":1e400')), MALFORMED),
    "iat text": (having(iat="now"), MALFORMED),
    # From whom, for whom, for what.
    "iss a list": (having(iss=["https://a.test"]), MALFORMED),
    "iss a number": (having(iss=1), MALFORMED),
    "aud where none is configured": (having(aud="https://a.test"), AUDIENCE),
    "aud list where none is configured": (having(aud=["https://a.test"]), AUDIENCE),
    "aud a number": (having(aud=1), MALFORMED),
    "aud a list of numbers": (having(aud=["https://a.test", 1]), MALFORMED),
    "scope a list": (having(scope=["tasks:read"]), MALFORMED),
    "scope a number": (having(scope=1), MALFORMED),
    "scope false": (having(scope=False), MALFORMED),
    "scope null": (having(scope=None), MALFORMED),
}
