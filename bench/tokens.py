"""What verifying a token costs: by algorithm, remembered and not, good and forged. `python -m bench.tokens`.

CPU time of this process for one call, the median of several rounds. Nothing is fetched: the key set is read
from a text, and no server runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from bench.servers import SECRET
from taskctl.errors import Unauthenticated
from taskctl.jwks import KeySet, read_keys
from taskctl.tokens import Verifier

NAME = "https://issuer.example.com"
MAKERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "EdDSA": (OKPAlgorithm, ed25519.Ed25519PrivateKey.generate),
    "ES256": (ECAlgorithm, lambda: ec.generate_private_key(ec.SECP256R1())),
    "ES512": (ECAlgorithm, lambda: ec.generate_private_key(ec.SECP521R1())),
    "RS256": (RSAAlgorithm, lambda: rsa.generate_private_key(65537, 2048)),
    "PS256": (RSAAlgorithm, lambda: rsa.generate_private_key(65537, 2048)),
}


class Published(KeySet):
    """A key set that is there without having been fetched."""

    def __init__(self, keys: Sequence[dict[str, Any]]) -> None:
        super().__init__(NAME)
        self._keys, _ = read_keys(json.dumps({"keys": keys}))
        self._fetched_at = time.monotonic()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tokens", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    parser.add_argument("--calls", type=int, default=1000, help="calls in a round")
    options = parser.parse_args()
    keys = {name: make() for name, (_, make) in MAKERS.items()}
    verifier = Verifier(
        [SECRET],
        key_set=Published(
            [
                MAKERS[name][0].to_jwk(key.public_key(), as_dict=True)
                | {"kid": name, "alg": name, "use": "sig"}
                for name, key in keys.items()
            ]
        ),
        key_set_issuers=[NAME],
        key_set_audiences=[NAME],
    )
    print("CPU µs a call    verified   remembered   forged")
    for name in ("HS256", *MAKERS):
        tokens = [_token(name, keys.get(name, SECRET), number) for number in range(options.calls)]
        forged = [f"{token.rpartition('.')[0]}.{tokens[0].rpartition('.')[2]}" for token in tokens[1:]]
        rows = [[], [], []]
        for _ in range(options.rounds):
            verifier._verified.clear()  # noqa: SLF001 - as after a minute
            rows[0].append(_measure(verifier.verify, tokens))
            rows[1].append(_measure(verifier.recall, tokens))
            rows[2].append(_measure(lambda token: _refused(verifier, token), forged))
        verified, remembered, refused = map(statistics.median, rows)
        print(f"{name:<12} {verified:12.1f} {remembered:12.2f} {refused:8.1f}")


def _token(algorithm: str, key: Any, number: int) -> str:
    claims = {"sub": f"user{number}", "exp": int(time.time()) + 900, "iat": int(time.time()), "name": "Ada"}
    if algorithm != "HS256":
        claims |= {"iss": NAME, "aud": NAME}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": algorithm})


def _refused(verifier: Verifier, token: str) -> None:
    try:
        verifier.verify(token)
    except Unauthenticated:
        return
    raise AssertionError("a forged token was accepted")


def _measure(call: Callable[[str], object], tokens: Sequence[str]) -> float:
    """CPU time of one call, in microseconds."""
    started = time.process_time()
    for token in tokens:
        call(token)
    return (time.process_time() - started) / len(tokens) * 1e6


if __name__ == "__main__":
    main()
