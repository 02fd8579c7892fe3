"""An issuer of tokens for tests: it signs, publishes its keys on a real socket, rotates, fails and counts."""

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from taskctl.jwks import ALGORITHMS

PATH = "/api/auth/jwks"

MAKERS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "EdDSA": (OKPAlgorithm, ed25519.Ed25519PrivateKey.generate),
    "Ed448": (OKPAlgorithm, ed448.Ed448PrivateKey.generate),
    "ES256": (ECAlgorithm, lambda: ec.generate_private_key(ec.SECP256R1())),
    "ES384": (ECAlgorithm, lambda: ec.generate_private_key(ec.SECP384R1())),
    "ES512": (ECAlgorithm, lambda: ec.generate_private_key(ec.SECP521R1())),
    "RS256": (RSAAlgorithm, lambda: rsa.generate_private_key(65537, 2048)),
    "PS256": (RSAAlgorithm, lambda: rsa.generate_private_key(65537, 2048)),
    "small RSA": (RSAAlgorithm, lambda: rsa.generate_private_key(65537, 1024)),  # noqa: S505 - to be refused
}


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """A private key; the same for the same arguments, as RSA keys take their time."""
    del number
    return MAKERS[kind][1]()


def public_jwk(kind: str, number: int = 0, **members: Any) -> dict[str, Any]:
    """The public half as a JWK with further members, `...` for none of this name."""
    jwk = MAKERS[kind][0].to_jwk(private_key(kind, number).public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return {name: value for name, value in (jwk | members).items() if value is not ...}


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: dict[str, Any], claims: Any, key: Any, algorithm: str | None = None) -> str:
    """A token with any header and claims, signed by a private key as an algorithm has it."""
    parts = [b64(json.dumps(each).encode()) for each in (header, claims)]
    signer: Any = ALGORITHMS[algorithm or header["alg"]]
    return ".".join([*parts, b64(signer.sign(".".join(parts).encode(), key))])


class Issuer:
    """A key set at a URL, and what signs with its keys.

    `answer` may be set to a function that answers in place of the key set; it gets the request's handler.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.keys: list[dict[str, Any]] = []
        self.hits = 0
        self.answer: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        """Its origin."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def jwks_url(self) -> str:
        """Where its key set is."""
        return self.url + PATH

    def publish(self, kind: str = "EdDSA", number: int = 0, **members: Any) -> None:
        """Publish one key more, by the name of its kind and number unless `members` say otherwise."""
        algorithm = "EdDSA" if kind == "Ed448" else kind
        self.keys.append(public_jwk(kind, number, **{"kid": f"{kind}-{number}", "alg": algorithm} | members))

    def token(self, kind: str = "EdDSA", number: int = 0, *, kid: Any = None, **claims: Any) -> str:
        """A good token of this issuer's; claims that are `...` are left out, and so is such a `kid`."""
        header = {
            "alg": "EdDSA" if kind == "Ed448" else kind,
            "kid": f"{kind}-{number}" if kid is None else kid,
        }
        return self.sign({k: v for k, v in header.items() if v is not ...}, kind, number, **claims)

    def sign(self, header: dict[str, Any], kind: str, number: int = 0, **claims: Any) -> str:
        """A token with this header, signed with a key of this kind."""
        good = {"sub": "alice", "exp": int(time.time()) + 900, "iss": self.url, "aud": self.url}
        claims = {name: value for name, value in (good | claims).items() if value is not ...}
        algorithm = "EdDSA" if kind in ("Ed448", "EdDSA") else kind
        return sign(header, claims, private_key(kind, number), algorithm)

    def up(self) -> None:
        """Listen; after `down`, on the same port."""
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.hits += 1
                if issuer.answer is not None:
                    issuer.answer(self)
                elif self.path == PATH:
                    respond(self, json.dumps({"keys": issuer.keys}).encode())
                else:
                    respond(self, b"{}", 404)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def hang(self, handler: BaseHTTPRequestHandler) -> None:
        """An `answer` that never comes, until the issuer is released."""
        self.released.wait(60)
        handler.close_connection = True


def respond(
    handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    """Answer a request."""
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def running_issuer(tls: ssl.SSLContext | None = None) -> Iterator[Issuer]:
    """An issuer that listens, and is gone afterwards."""
    issuer = Issuer(tls)
    try:
        yield issuer
    finally:
        issuer.released.set()
        issuer.down()
