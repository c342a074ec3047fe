"""Bearer tokens: signed JWTs, verified as RFC 8725 requires, and the identity in their claims."""

from __future__ import annotations

import json
import math
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import jwt
from jwt.algorithms import has_crypto
from jwt.utils import is_pem_format, is_ssh_key

from ratelimiter.core.identity import JWT, TOKEN_EXPIRED, TOKEN_INVALID, USER, Identity, named
from ratelimiter.core.request import PRINCIPAL_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.identity import JwtPolicy

if not has_crypto:
    raise ImportError  # without it there are none but symmetric algorithms

REMEMBERED_MAX = 8192  # tokens whose verification is cached, about 500 bytes each
TRIED_MAX = 4  # keys that are tried for a token without a key id
RSA_BITS_MIN = 2048  # RFC 7518 section 3.3
SCOPES_MAX = 1000
INSTANT_S_MAX = 1 << 40
KIND = re.compile("[a-z0-9_-]{1,32}")

# Type of a public key -> the algorithms it verifies (RFC 7518 section 3.1, RFC 8037 section 3.1). No symmetric ones: a
# public key is no secret, so any caller could sign with it.
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_KEYS = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
# Symmetric algorithms, each with the least length of its secret (RFC 7518 section 3.2). A policy has either these with
# a secret or those with public keys, never both: else a public key could pass for a secret.
SYMMETRIC = {"HS256": 32, "HS384": 48, "HS512": 64}
ALGORITHMS = tuple(dict.fromkeys(name for names in _OF_KEYS.values() for name in names))


class PublicKey(NamedTuple):
    """One key of an issuer."""

    kid: str | None
    algorithms: frozenset[str]  # of the policy's those that it can be used with
    key: Any
    any_kid: bool = False  # a secret has no id: whatever the token names, it is this one


class KeySet(NamedTuple):
    """The keys of an issuer at one time; equal bytes make equal sets."""

    keys: Sequence[PublicKey]
    digest: bytes

    def candidates(self, algorithm: str, kid: str | None) -> list[PublicKey]:
        """Return the keys that may have signed a token with this header."""
        fitting = [
            key for key in self.keys if algorithm in key.algorithms and (kid is None or key.any_kid or key.kid == kid)
        ]
        return fitting[:TRIED_MAX]


def parse_key_set(data: bytes, algorithms: Sequence[str]) -> KeySet:
    """Return the keys of a JWK Set (RFC 7517 section 5) that fit one of *algorithms*; others are ignored.

    Raises:
        ValueError: it is not such a set, or no key fits; the message says what would do.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        msg = 'not a JWK Set; write {"keys": [...]}, as the identity provider publishes it'
        raise ValueError(msg)
    keys = [key for key in (_public_key(entry, algorithms) for entry in entries) if key is not None]
    if not keys:
        msg = f"a JWK Set without a public key for {', '.join(algorithms)}; name its algorithm in algorithms"
        raise ValueError(msg)
    return KeySet(keys, blake2b(data, digest_size=16).digest())


def key_set_of(policy: JwtPolicy) -> KeySet:
    """Return the keys in the file of *policy*: a JWK Set, or a secret for symmetric algorithms.

    Raises:
        ValueError: it holds no key for the algorithms; the message says what would do.
    """
    if not policy.symmetric:
        return parse_key_set(policy.key_set, policy.algorithms)
    secret, least = policy.key_set, max(SYMMETRIC[name] for name in policy.algorithms)
    if len(secret) < least:
        name = max(policy.algorithms)
        msg = f"a secret of {len(secret)} bytes is too short for {name}; write at least {least} random bytes"
        raise ValueError(msg)
    if is_pem_format(secret) or is_ssh_key(secret) or secret.lstrip().startswith(b'{"'):
        msg = "a key of an asymmetric algorithm, which is no secret; write random bytes, or name it in keys"
        raise ValueError(msg)
    key = PublicKey(None, frozenset(policy.algorithms), secret, any_kid=True)
    return KeySet([key], blake2b(secret, digest_size=16).digest())


def _public_key(entry: Any, algorithms: Sequence[str]) -> PublicKey | None:
    """Return the key that *entry* describes; None if it cannot be used."""
    if (
        not isinstance(entry, dict)
        or entry.get("use", "sig") != "sig"
        or "verify" not in entry.get("key_ops", "verify")
    ):
        return None
    curve = None if entry.get("kty") == "RSA" else entry.get("crv")
    able = _OF_KEYS.get((str(entry.get("kty")), None if curve is None else str(curve)), ())
    usable = frozenset(name for name in able if name in algorithms and entry.get("alg", name) == name)
    kid = entry.get("kid")
    if not usable or not isinstance(kid, str | None):
        return None
    try:
        key = jwt.PyJWK(entry, able[0]).key
    except Exception:  # a faulty key of any kind is not used
        return None
    if hasattr(key, "public_key"):
        key = key.public_key()  # the issuer has published a private key
    if entry["kty"] == "RSA" and key.key_size < RSA_BITS_MIN:
        return None
    return PublicKey(kid, usable, key)


class Verification(NamedTuple):
    """The result of verifying one token."""

    identity: Identity
    until_s: float  # Unix time of its expiry; 0: it must not be cached
    key_unknown: bool = False  # it names a key that is not in the set


INVALID = Verification(Identity(fault=TOKEN_INVALID), 0)
EXPIRED = Verification(Identity(fault=TOKEN_EXPIRED), math.inf)  # an issuer has signed it, and it stays expired
_OPTIONS: Any = {"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}


class TokenVerifier:
    """Verifies tokens, and caches the results until they expire.

    Args:
        policy: requirements on a token.
        source: source of its identity.
    """

    def __init__(self, policy: JwtPolicy, source: str = "bearer") -> None:
        self._policy = policy
        self._source = source
        self._remembered: dict[bytes, Verification] = {}
        self._of: bytes | None = None  # the key set that they were verified with

    unread = INVALID  # the result for a token that is refused without verification

    def known(self, token: bytes, keys: KeySet, now_s: float) -> Verification | None:
        """Return the cached verification of *token* if it still holds."""
        if keys.digest != self._of:
            return None
        verification = self._remembered.get(blake2b(token, digest_size=16).digest())
        return verification if verification is not None and now_s < verification.until_s else None

    def verify(self, token: bytes, keys: KeySet, now_s: float) -> Verification:
        """Return the identity in *token* at *now_s*, Unix time, or the fault of the token."""
        if keys.digest != self._of:
            self._of = keys.digest
            self._remembered.clear()
        digest = blake2b(token, digest_size=16).digest()
        verification = self._remembered.get(digest)
        if verification is None or now_s >= verification.until_s:
            verification = self._verify(token, keys, now_s)
            # Only signed tokens are cached: a caller can invent any number of others.
            if verification.until_s > now_s:
                if len(self._remembered) >= REMEMBERED_MAX:
                    self._remembered.clear()
                self._remembered[digest] = verification
        return verification

    def _verify(self, token: bytes, keys: KeySet, now_s: float) -> Verification:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            # RFC 7515 section 4.1.11: an extension that must be understood, and none is.
            if algorithm not in self._policy.algorithms or not isinstance(kid, str | None) or "crit" in header:
                return INVALID
            candidates = keys.candidates(algorithm, kid)
            if not candidates:
                return INVALID._replace(key_unknown=True)
            return self._claimed(self._decoded(token, candidates, algorithm), now_s)
        except Exception:  # a caller may send any bytes: a fault of any kind makes the token invalid
            return INVALID

    def _decoded(self, token: bytes, candidates: Sequence[PublicKey], algorithm: str) -> dict[str, Any]:
        policy = self._policy
        for index, candidate in enumerate(candidates):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    candidate.key,
                    algorithms=[algorithm],
                    issuer=policy.issuer,
                    audience=policy.audience,
                    # Times are checked below, by the given clock.
                    options=_OPTIONS,
                )
            except jwt.InvalidSignatureError:
                if index == len(candidates) - 1:
                    raise
            else:
                return claims
        raise AssertionError  # there is a candidate

    def _claimed(self, claims: Mapping[str, Any], now_s: float) -> Verification:
        policy = self._policy
        until_s = _instant(claims["exp"]) + policy.leeway_s
        if now_s >= until_s:
            return EXPIRED
        if "nbf" in claims and now_s < _instant(claims["nbf"]) - policy.leeway_s:
            return INVALID
        principal = claim(claims, policy.principal)
        if not isinstance(principal, str) or not 1 <= len(principal.encode()) <= PRINCIPAL_BYTES_MAX:
            return INVALID
        org = _text(claims, policy.org)
        identity = Identity(
            source=self._source,
            principal=principal,
            plan=_text(claims, policy.plan),
            scopes=_scopes(claim(claims, policy.scopes)),
            kind=_kind(_text(claims, policy.kind)) if policy.kind else USER,
            method=JWT,
            org=org,
            email_verified=claim(claims, policy.email_verified) is True,
            verified=named(self._source, principal, org),
        )
        return Verification(identity, until_s)


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim *name*, or else the claim at that path, like `realm_access.roles`; None if there is none."""
    if not name:
        return None
    if name in claims:
        return claims[name]
    value: Any = claims
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _instant(value: Any) -> float:
    """Return a NumericDate (RFC 7519 section 2)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < INSTANT_S_MAX:
        raise ValueError
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    """Return a claim that is text of valid length; else the empty text."""
    value = claim(claims, name)
    if not isinstance(value, str) or len(value.encode()) > PRINCIPAL_BYTES_MAX:
        return ""
    return value


def _kind(text: str) -> str:
    return text if KIND.fullmatch(text) else ""


def _scopes(value: Any) -> frozenset[str]:
    """Return scopes, from text of words (RFC 8693 section 4.2) or from a list."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    found = [word for word in words[:SCOPES_MAX] if isinstance(word, str) and len(word.encode()) <= PRINCIPAL_BYTES_MAX]
    return frozenset(found)
