"""Credentials that are made for a test and good nowhere else: API keys with their file, tokens with their issuer."""

from __future__ import annotations

import json
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from ratelimiter.identity.api_keys import hash_key, new_key

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "of-the-hashes"  # noqa: S105  # a secret of tests
POOL = 60  # keys of a sort: each is given out once, so that nobody meets another's counters


class KeyRing:
    """API keys of several sorts, and the file that knows their hashes.

    Args:
        file: where that is written.
        sorts: for each sort of key what the file says of it; `{n}` in a text is another number for each.
    """

    def __init__(self, file: Path, sorts: dict[str, dict[str, Any]]) -> None:
        self._keys: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        entries = []
        for sort, told in sorts.items():
            pool = self._keys[sort] = []
            for number in range(POOL):
                filled = {k: v.format(n=number) if isinstance(v, str) else v for k, v in told.items()}
                key = new_key()
                pool.append((key, filled))
                entries.append({"hash": hash_key(key.encode(), SECRET.encode()).hex(), **filled})
        file.write_text(json.dumps({"keys": entries}))

    def take(self, sort: str) -> tuple[str, dict[str, Any]]:
        """A key of *sort* that nobody has, and what the file says of it."""
        return self._keys[sort].pop()


class Issuer:
    """An identity provider: signs tokens, and serves the public key by which they are verified.

    Args:
        name: its `iss`.
        audience: whom its tokens are for.
    """

    def __init__(self, name: str, audience: str) -> None:
        self._name = name
        self._audience = audience
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._id = secrets.token_hex(4)
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key()))
        self._key_set = json.dumps({"keys": [{**public, "kid": self._id, "use": "sig", "alg": "ES256"}]}).encode()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        body = self._key_set

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where the key set is."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}/.well-known/jwks.json"

    def token(self, **claims: Any) -> str:
        """A token, good for a minute unless *claims* say otherwise."""
        now = int(time.time())
        stated = {"iss": self._name, "aud": self._audience, "iat": now, "exp": now + 60, **claims}
        return jwt.encode(stated, self._key, algorithm="ES256", headers={"kid": self._id})
