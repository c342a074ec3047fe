"""An identity provider of the test's own: real keys and tokens, and a real HTTP server that can be hurt on purpose."""

from __future__ import annotations

import base64
import json
import socket
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from ratelimiter.core.identity import JwtPolicy

ISSUER = "https://id.example/"
AUDIENCE = "api"


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """A key of *kind*; the same for the same *number*, as making one takes long."""
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "short RSA":
        return rsa.generate_private_key(65537, 1024)  # noqa: S505  # which is what is to be refused
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}[kind])


KINDS = {"RS": "RSA", "PS": "RSA", "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}


def kind_for(algorithm: str) -> str:
    return KINDS.get(algorithm) or KINDS[algorithm[:2]]


def jwk(kind: str, number: int = 0, *, private: bool = False, **members: Any) -> dict[str, Any]:
    """A key as it is published, or with *private* as nobody should; a member that is None is left out."""
    key = private_key(kind, number)
    maker = RSAAlgorithm if "RSA" in kind else OKPAlgorithm if kind == "Ed25519" else ECAlgorithm
    document = maker.to_jwk(key if private else key.public_key(), as_dict=True)
    document.pop("key_ops", None)
    named = {**document, "use": "sig", "kid": f"{kind}-{number}", **members}
    return {name: value for name, value in named.items() if value is not None}


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys or (jwk("RSA"), jwk("P-256")))}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token; one that is None is left out."""
    now_s = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now_s, "exp": now_s + 86_400}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(algorithm: str = "RS256", number: int = 0, *, header: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A token that the provider has signed."""
    kind = kind_for(algorithm)
    said = {"kid": f"{kind}-{number}", **(header or {})}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(claims(**changes), private_key(kind, number), algorithm=algorithm, headers=said).encode()


def crafted(header: dict[str, Any], payload: dict[str, Any], signature: bytes = b"") -> bytes:
    """A token of exactly these parts, signed or not."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    return b".".join([part(json.dumps(header).encode()), part(json.dumps(payload).encode()), part(signature)])


def policy(**changes: Any) -> JwtPolicy:
    return JwtPolicy(**{"issuer": ISSUER, "audience": (AUDIENCE,), "keys": "jwks.json", **changes})


class KeyServer:
    """Publishes a key set over HTTP.

    Attributes:
        body: what it publishes.
        status: with which status.
        headers: and which further headers.
        asked: how many requests came.
        silent: set, it does not answer.
        drip_s: seconds between two bytes of its body; 0 for all at once.
    """

    def __init__(self, body: bytes | None = None) -> None:
        self.body = key_set() if body is None else body
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked = 0
        self.silent = False
        self.drip_s = 0.0
        self._released = Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner._answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks.json"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        if self.silent:
            self._released.wait(30)
            return
        handler.send_response(self.status)
        for name, value in {"Content-Length": str(len(self.body)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            if not self.drip_s:
                handler.wfile.write(self.body)
                return
            for byte in self.body:
                handler.wfile.write(bytes((byte,)))
                if self._released.wait(self.drip_s):
                    return
        except OSError:
            pass  # the client had enough

    def stop(self) -> None:
        """No longer listen: who connects is refused."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._released.is_set():
            self.stop()


def refusing_url() -> str:
    """A URL at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/jwks.json"
