"""The verified identity of a request's caller, and the part of a policy about its verification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.principal import ORG, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

# Faults of a request's credentials. A closed set, and part of that of a decision's reasons.
MISSING = "credentials_missing"
TOKEN_EXPIRED = "token_expired"  # noqa: S105  # a word, as are the next
TOKEN_INVALID = "token_invalid"  # noqa: S105
KEY_INVALID = "api_key_invalid"  # unknown, revoked or expired
UNAVAILABLE = "identity_unavailable"  # unknown: the identity provider is down, and no keys of it are at hand
FAULTS = (MISSING, TOKEN_EXPIRED, TOKEN_INVALID, KEY_INVALID, UNAVAILABLE)
PENDING = "pending"  # no fault yet: its keys are being fetched, so ask again when they are there

API_KEY, JWT = "api_key", "jwt"  # methods
USER = "user"  # the kind of a token's credential, where no claim says another


class Identity(NamedTuple):
    """The caller that the credentials of one request name; only their fault, if they have one.

    Of two credentials, the fields are of the one whose source stands first in the policy; both are among *verified*.
    """

    source: str = ""  # where the credential was: "header:x-api-key" or "bearer"; "" when there was none
    principal: str = ""  # as the key file or the token names it, at most 1,024 bytes in UTF-8; "" when not verified
    plan: str = ""  # "" when nothing says one
    scopes: frozenset[str] = frozenset()
    kind: str = ""  # of the credential, like user, org or service; "" when nothing says one
    method: str = ""  # what the credential is: API_KEY or JWT
    org: str = ""  # the organisation that it belongs to; "" for none
    email_verified: bool = False
    fault: str = ""  # one of FAULTS, or PENDING; "" when all is well
    # (source, principal) of every credential that is good, and ("org", organisation) of those that belong to one
    verified: tuple[tuple[str, str], ...] = ()


NOBODY = Identity(fault=MISSING)


def named(source: str, principal: str, org: str) -> tuple[tuple[str, str], ...]:
    """Return what `Identity.verified` says of one good credential."""
    return ((source, principal), (str(ORG), org)) if org else ((source, principal),)


class KeyEntry(NamedTuple):
    """The entry of one key in the key file."""

    digest: bytes  # of the key: `ratelimiter.identity.api_keys.hash_key`
    identity: Identity  # that it proves
    expires_ms: int  # Unix time from which on it is worth nothing; 0 for never
    revoked: bool


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Keys that callers were given, by their digests.

    Args:
        source: where a request carries one: a header of its own, or `bearer`.
        file: that they were read from.
        entries: by digest.
    """

    source: Source
    file: str
    entries: Mapping[bytes, KeyEntry] = field(repr=False)


@dataclass(frozen=True, slots=True)
class JwtPolicy:
    """The terms on which bearer tokens are verified (RFC 7519, RFC 8725).

    Args:
        issuer: that `iss` must be.
        audience: one of which must be in `aud`.
        keys: URL or file of the issuer's public keys (RFC 7517), or file of the secret shared with it.
        key_set: content of that file; empty for a URL.
        algorithms: that a signature may have; the token has no say in this (RFC 8725 section 3.1).
        principal: the claim with the principal that is charged. All claims may be paths: `realm_access.roles`.
        plan: the claim that names the plan; empty for none, as are the next.
        scopes: text of words, or a list.
        kind: of the credential; where it is empty, every token is a user's.
        org: the claim that names the organisation.
        email_verified: the claim that says so (OpenID Connect Core 1.0 section 5.1).
        leeway_s: by how many seconds the issuer's clock may differ from ours.
        refresh_ms: from this age on, keys of a URL are fetched again before they are used.
        keep_ms: up to this age they are used while they cannot be fetched.
        cooldown_ms: at least so long passes between two fetches for keys that tokens name and that are unknown.
        timeout_ms: the whole of one fetch.
    """

    issuer: str
    audience: tuple[str, ...]
    keys: str
    key_set: bytes = field(default=b"", repr=False)
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    principal: str = "sub"
    plan: str = ""
    scopes: str = "scope"
    kind: str = ""
    org: str = ""
    email_verified: str = "email_verified"
    leeway_s: int = 10
    refresh_ms: int = 300_000
    keep_ms: int = 86_400_000
    cooldown_ms: int = 30_000
    timeout_ms: int = 5_000

    @property
    def fetched(self) -> bool:
        """True if the keys come from a URL."""
        return self.keys.startswith(("https://", "http://"))

    @property
    def symmetric(self) -> bool:
        """True if tokens are signed with a shared secret, which `key_set` then is."""
        return self.algorithms[0].startswith("HS")


BEARER = Source("bearer")


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """The terms on which callers are identified, and the parts of an identity that the upstream is told.

    Args:
        tokens: the terms for bearer tokens; None if there are none.
        api_keys: the keys that are known; None for none.
        tell_upstream: for what of `TELLABLE`, the name of the header that tells it.
    """

    tokens: JwtPolicy | None = None
    api_keys: ApiKeys | None = None
    tell_upstream: tuple[tuple[str, str], ...] = ()

    @property
    def verified(self) -> frozenset[Source]:
        """The sources that name a principal only when what they hold is good."""
        sources = {ORG} if self.tokens is None else {ORG, BEARER}
        return frozenset(sources if self.api_keys is None else sources | {self.api_keys.source})

    @property
    def files(self) -> tuple[str, ...]:
        """The files that this was made of, beside the policy's own."""
        named = [] if self.api_keys is None else [self.api_keys.file]
        if self.tokens is not None and not self.tokens.fetched:
            named.append(self.tokens.keys)
        return tuple(named)


TELLABLE = ("principal", "plan", "scopes", "kind", "org")
