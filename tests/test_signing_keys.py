"""Private keys that sign tokens: their public halves, their files, and what is no such key."""

import base64
import hashlib
import itertools
import json
import os
import stat

import jwt
import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from taskctl.errors import LocalError, UsageInvalid
from taskctl.signing_keys import SigningKey, key_set, make_key, read_key, write_key
from taskctl.tokens import mint
from taskctl.vocabulary import Algorithm

PRIVATE = [each for each in Algorithm if each is not Algorithm.HS256]
KEYS = {algorithm: make_key(algorithm) for algorithm in PRIVATE}
SMALL_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused

PLAIN = pem.NoEncryption()
PKCS8, OPENSSL, OPENSSH = (
    pem.PrivateFormat.PKCS8,
    pem.PrivateFormat.TraditionalOpenSSL,
    pem.PrivateFormat.OpenSSH,
)


def written(private, form=PKCS8, encryption=PLAIN):
    """A private key in PEM, as this and other programs write it."""
    return private.private_bytes(pem.Encoding.PEM, form, encryption)


def public(private):
    """Its public half in PEM."""
    return private.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def file(tmp_path):
    """Where a key file may be written."""
    return tmp_path / "key.pem"


def test_thumbprint_of_the_rfc():
    """The key of RFC 8037, appendix A, has the public half and the thumbprint that stand there."""
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(seed), Algorithm.EdDSA)
    assert key.public_jwk() == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "alg": "EdDSA",
        "use": "sig",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    }


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_public_half(algorithm):
    """It holds no private member, its kid is RFC 7638's, and it verifies what the private half signs."""
    jwk = KEYS[algorithm].public_jwk()
    required = {"OKP": ["crv", "kty", "x"], "EC": ["crv", "kty", "x", "y"], "RSA": ["e", "kty", "n"]}
    members = required[jwk["kty"]]
    assert sorted(jwk) == sorted([*members, "alg", "kid", "use"])
    assert (jwk["alg"], jwk["use"]) == (algorithm, "sig")
    text = "{" + ",".join(f'"{name}":"{jwk[name]}"' for name in members) + "}"
    digest = hashlib.sha256(text.encode()).digest()
    assert jwk["kid"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")

    token = mint(KEYS[algorithm], "ada", 60, claims={"aud": "x"})
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["kid"]) == (algorithm, jwk["kid"])
    assert jwt.decode(token, jwt.PyJWK(jwk), [algorithm], audience="x")["sub"] == "ada"


@pytest.mark.parametrize(("curve", "size"), [(ec.SECP256R1(), 32), (ec.SECP521R1(), 66)])
def test_coordinates_keep_their_zeros(curve, size):
    """A coordinate that begins with zeros is as long as every other (RFC 7518, section 6.2.1.2)."""
    keys = (ec.derive_private_key(number, curve) for number in itertools.count(1))
    private = next(
        key for key in keys if key.public_key().public_numbers().x.bit_length() <= (size - 1) * 8 - 8
    )
    jwk = SigningKey(private, Algorithm.ES256).public_jwk()
    assert [len(base64.urlsafe_b64decode(jwk[name] + "==")) for name in "xy"] == [size, size]


def test_key_set():
    """A key set has every key once, in the order given."""
    keys = list(KEYS.values())
    published = key_set([*keys, keys[0]])["keys"]
    assert [jwk["kid"] for jwk in published] == [key.kid for key in keys]
    assert len(jwt.PyJWKSet.from_json(json.dumps(key_set(keys))).keys) == len(PRIVATE)


def test_a_secret_has_no_key_file():
    """HS256 signs with the secret: no private key is made for it."""
    with pytest.raises(UsageInvalid, match="BETTER_AUTH_SECRET"):
        make_key(Algorithm.HS256)


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_file_holds_the_key(file, algorithm):
    """What was written is read again, by its owner alone, whatever the umask allows."""
    before = os.umask(0)
    try:
        write_key(KEYS[algorithm], file)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_key(file, algorithm).public_jwk() == KEYS[algorithm].public_jwk()


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_usual_algorithm_of_a_kind(file, algorithm):
    """Without an algorithm the kind decides: one for each curve, RS256 for RSA."""
    write_key(KEYS[algorithm], file)
    assert read_key(file).algorithm == ("RS256" if algorithm == "PS256" else algorithm)


@pytest.mark.parametrize("algorithm", ["ES256", "ES512", "RS256"])
def test_older_forms_are_read(file, algorithm):
    """The form that `openssl ecparam` and `openssl genrsa` wrote is a key file too, with its parameters."""
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    file.write_bytes(
        parameters * (algorithm == "ES256") + written(KEYS[Algorithm(algorithm)].private, OPENSSL)
    )
    assert read_key(file).kid == KEYS[Algorithm(algorithm)].kid


def test_a_file_that_is_there_is_kept(file):
    """No key is overwritten unless that is asked for; then the new one takes its place, and is private."""
    file.write_text("precious")
    file.chmod(0o644)
    with pytest.raises(UsageInvalid, match="--force"):
        write_key(KEYS[Algorithm.EdDSA], file)
    assert file.read_text() == "precious"
    write_key(KEYS[Algorithm.EdDSA], file, replace=True)
    assert read_key(file).kid == KEYS[Algorithm.EdDSA].kid
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("replace", [True, False])
def test_only_a_regular_file_is_written(tmp_path, replace):
    """A directory, a device behind a link and a link to nowhere are left alone."""
    device, nowhere = tmp_path / "device", tmp_path / "nowhere"
    device.symlink_to("/dev/null")
    nowhere.symlink_to(tmp_path / "target")
    for path in (tmp_path, device):
        with pytest.raises(UsageInvalid, match="regular file" if replace else "exists"):
            write_key(KEYS[Algorithm.EdDSA], path, replace=replace)
    if not replace:
        with pytest.raises(UsageInvalid, match="exists"):
            write_key(KEYS[Algorithm.EdDSA], nowhere)
    assert sorted(tmp_path.iterdir()) == [device, nowhere]
    assert device.is_symlink()


@pytest.mark.parametrize("replace", [True, False])
def test_a_place_that_cannot_be_written(tmp_path, replace):
    """A missing directory is said so."""
    with pytest.raises(LocalError, match="No such file"):
        write_key(KEYS[Algorithm.EdDSA], tmp_path / "missing" / "key.pem", replace=replace)


ED25519 = KEYS[Algorithm.EdDSA].private
WRONG = {
    "encrypted": (
        [
            written(ED25519, PKCS8, pem.BestAvailableEncryption(b"password")),
            written(KEYS[Algorithm.ES256].private, OPENSSL, pem.BestAvailableEncryption(b"password")),
        ]
    ),
    "holds a public key": [public(ED25519), public(KEYS[Algorithm.RS256].private)],
    "holds a certificate": [b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"],
    "holds an OpenSSH key": [written(ED25519, OPENSSH)],
    "of a kind that signs no tokens": [
        written(ec.generate_private_key(ec.SECP384R1())),
        written(ec.generate_private_key(ec.SECP256K1())),
        written(ed448.Ed448PrivateKey.generate()),
        written(x25519.X25519PrivateKey.generate()),
        written(dsa.generate_private_key(2048)),
    ],
    "has 1024 bits; at least 2048": [written(SMALL_RSA), written(SMALL_RSA, OPENSSL)],
    "is empty": [b"", b"\n"],
    "is too large": [b"x" * 70_000, written(ED25519) * 1000],
    "no private key in PEM": [
        b"a secret",
        b"\x00\xff" * 50,
        written(ED25519).replace(b"MC4", b"MC5"),
        written(ED25519)[:60],
        ED25519.private_bytes(pem.Encoding.DER, PKCS8, PLAIN),
        b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    ],
}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(data, reason, id=f"{reason} {number}")
        for reason, each in WRONG.items()
        for number, data in enumerate(each)
    ],
)
def test_what_is_no_key_is_said_so(file, data, reason):
    """A file that holds something else is refused with what it holds, by its name and without its content."""
    file.write_bytes(data)
    with pytest.raises(UsageInvalid, match=reason) as refused:
        read_key(file)
    assert str(file) in refused.value.detail
    assert "MC4" not in refused.value.detail


def test_what_cannot_be_read_is_said_so(tmp_path, file):
    """A missing file and a directory are refused, and nothing endless is read to its end."""
    for path, reason in [
        (file, "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path.joinpath("/dev/zero"), "is too large"),
    ]:
        with pytest.raises(UsageInvalid, match=reason):
            read_key(path)


@pytest.mark.parametrize(
    ("held", "wanted", "does"),
    [
        ("EdDSA", "ES256", "EdDSA"),
        ("ES256", "ES512", "ES256"),
        ("RS256", "HS256", "RS256 or PS256"),
        ("RS256", "EdDSA", "RS256 or PS256"),
    ],
)
def test_wrong_algorithm_for_the_key(file, held, wanted, does):
    """A key signs only with what its kind is for."""
    write_key(KEYS[Algorithm(held)], file)
    with pytest.raises(UsageInvalid, match=f"signs with {does}, not with {wanted}"):
        read_key(file, Algorithm(wanted))
