"""Private keys that sign tokens: make one, keep it in a file, publish its public half.

A key file is PEM, not encrypted: PKCS#8 as written here, or the older forms that openssl writes. The public
half is a JSON Web Key (RFC 7517) whose `kid` is its thumbprint (RFC 7638), so it needs no registry.
"""

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from taskctl.errors import LocalError, UsageInvalid
from taskctl.vocabulary import Algorithm

MIN_RSA_BITS = 2048
"""RFC 7518, sections 3.3 and 3.5."""

_NEW_RSA_BITS = 3072
_MAX_FILE_BYTES = 64 * 1024

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the one algorithm that it signs with (RFC 8725, section 3.1)."""

    private: PrivateKey
    algorithm: Algorithm

    @property
    def kid(self) -> str:
        """The thumbprint of the public half, which names the key in a token's header."""
        members = json.dumps(_public_members(self.private), separators=(",", ":"), sort_keys=True)
        return _base64url(hashlib.sha256(members.encode()).digest())

    def public_jwk(self) -> dict[str, str]:
        """The public half, as it stands in a key set."""
        return {**_public_members(self.private), "alg": self.algorithm, "use": "sig", "kid": self.kid}

    def pem(self) -> bytes:
        """The private key, as a key file holds it."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_key(algorithm: Algorithm) -> SigningKey:
    """Make a new key.

    Raises:
        UsageInvalid: the algorithm has no private keys.
    """
    makers: dict[Algorithm, Callable[[], PrivateKey]] = {
        Algorithm.EdDSA: ed25519.Ed25519PrivateKey.generate,
        Algorithm.ES256: lambda: ec.generate_private_key(ec.SECP256R1()),
        Algorithm.ES512: lambda: ec.generate_private_key(ec.SECP521R1()),
        Algorithm.RS256: lambda: rsa.generate_private_key(65537, _NEW_RSA_BITS),
        Algorithm.PS256: lambda: rsa.generate_private_key(65537, _NEW_RSA_BITS),
    }
    if algorithm not in makers:
        raise UsageInvalid(f"{algorithm} signs with BETTER_AUTH_SECRET and has no key file.")
    return SigningKey(makers[algorithm](), algorithm)


def write_key(key: SigningKey, file: Path, *, replace: bool = False) -> None:
    """Write a key file that only its owner can read; with `replace`, in place of another one.

    Raises:
        UsageInvalid: the file is there, and is not to be replaced or is no regular file.
        LocalError: it cannot be written; what was there is as it was.
    """
    if replace and file.exists() and not file.is_file():
        raise UsageInvalid(f"{file} is not a regular file.")
    written = file.with_name(f".{file.name}.{secrets.token_hex(8)}") if replace else file
    try:
        descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(key.pem())
                stream.flush()
                os.fsync(stream.fileno())
            if replace:
                written.replace(file)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise UsageInvalid(f"{file} exists already, and may be a key in use; --force replaces it.") from None
    except OSError as error:
        raise LocalError(f"{file} cannot be written: {error.strerror}.") from error


def read_key(file: Path, algorithm: Algorithm | None = None) -> SigningKey:
    """Read a key file.

    Args:
        file: where the key is.
        algorithm: what the key shall sign with; what its kind implies when left out, RS256 for RSA.

    Raises:
        UsageInvalid: it cannot be read, is encrypted or no private key, or its kind or size does not do.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageInvalid(f"The key file {file} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_FILE_BYTES:
        raise UsageInvalid(f"{file} is too large for a key file.")
    try:
        private = load_pem_private_key(data, password=None)
    except TypeError:  # which is how it asks for a password
        raise UsageInvalid(
            f"The key in {file} is encrypted; `openssl pkey -in FILE -out OTHER` writes it without password."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageInvalid(f"{file} {_what_else(data)}") from None
    usable = _algorithms(private)
    if not usable or not isinstance(private, PrivateKey):
        raise UsageInvalid(
            f"The key in {file} is of a kind that signs no tokens here; Ed25519, P-256, P-521 and RSA do."
        )
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < MIN_RSA_BITS:
        raise UsageInvalid(
            f"The RSA key in {file} has {private.key_size} bits; at least {MIN_RSA_BITS} are required."
        )
    if algorithm and algorithm not in usable:
        raise UsageInvalid(f"The key in {file} signs with {' or '.join(usable)}, not with {algorithm}.")
    return SigningKey(private, algorithm or usable[0])


def key_set(keys: Iterable[SigningKey]) -> dict[str, list[dict[str, str]]]:
    """The public halves as a JSON Web Key Set (RFC 7517, section 5); a key that is there twice, once."""
    return {"keys": list({key.kid: key.public_jwk() for key in keys}.values())}


def _algorithms(private: object) -> tuple[Algorithm, ...]:
    """What a key can sign with, of what tokens are signed with here; the usual one first."""
    match private:
        case ed25519.Ed25519PrivateKey():
            return (Algorithm.EdDSA,)
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
            return (Algorithm.ES256,)
        case ec.EllipticCurvePrivateKey(curve=ec.SECP521R1()):
            return (Algorithm.ES512,)
        case rsa.RSAPrivateKey():
            return (Algorithm.RS256, Algorithm.PS256)
    return ()


def _public_members(private: PrivateKey) -> dict[str, str]:
    """The members that make up the public key (RFC 7518, section 6; RFC 8037), which are thumbprinted."""
    if isinstance(private, rsa.RSAPrivateKey):
        rsa_numbers = private.public_key().public_numbers()
        return {"kty": "RSA", "n": _unsigned(rsa_numbers.n), "e": _unsigned(rsa_numbers.e)}
    if isinstance(private, ec.EllipticCurvePrivateKey):
        bits = private.key_size
        point = private.public_key().public_numbers()
        return {
            "kty": "EC",
            "crv": f"P-{bits}",
            "x": _unsigned(point.x, bits),
            "y": _unsigned(point.y, bits),
        }
    raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(raw)}


def _unsigned(number: int, bits: int = 0) -> str:
    """A number as big-endian bytes: as few as it takes, or as the curve's size says, zeros in front."""
    return _base64url(number.to_bytes(((bits or number.bit_length()) + 7) // 8, "big"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _what_else(data: bytes) -> str:
    """What a file holds that is no private key, as the rest of a sentence."""
    if not data.strip():
        return "is empty."
    for mark, held in (
        (b"-----BEGIN PUBLIC KEY", "a public key; the private one is needed."),
        (b"-----BEGIN CERTIFICATE", "a certificate; the private key is needed."),
        (b"-----BEGIN OPENSSH", "an OpenSSH key; `taskctl token keygen` makes one in PEM (PKCS#8)."),
    ):
        if mark in data:
            return f"holds {held}"
    return "holds no private key in PEM (PKCS#8), such as `taskctl token keygen` makes."
