"""Requirements: what a request must have beside room within its limits, and the challenge for what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.identity import (
    API_KEY,
    FAULTS,
    JWT,
    KEY_INVALID,
    TOKEN_EXPIRED,
    TOKEN_INVALID,
    UNAVAILABLE,
    Identity,
    IdentityPolicy,
)
from ratelimiter.core.match import Match
from ratelimiter.core.principal import underscore_twins

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Reasons to refuse a request within its limits. With FAULTS a closed set: they become metric labels.
INSUFFICIENT_SCOPE = "insufficient_scope"
CREDENTIAL_KIND = "credential_kind"  # good, but of another kind than is wanted
ORG_MISSING = "org_missing"
EMAIL_UNVERIFIED = "email_unverified"
HEADER_MISSING = "header_missing"  # or empty, twice there, or not of its format
REASONS = (*FAULTS, CREDENTIAL_KIND, ORG_MISSING, EMAIL_UNVERIFIED, INSUFFICIENT_SCOPE, HEADER_MISSING)

UUID = "uuid"
_FORMATS = {UUID: re.compile(rb"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")}  # RFC 9562 section 4


class Unmet(NamedTuple):
    """The requirement that a request does not meet, in the words of an answer. No value of the request is among them.

    A decision carries it as its fault.
    """

    reason: str  # one of REASONS
    field: str = ""  # the header at fault
    issue: str = ""  # what is wrong with it, a predicate
    used: str = ""  # kind of the credential that came, like org_api_key
    required: str = ""  # kind of the one that would do, like user_api_key_or_jwt
    challenges: tuple[str, ...] = ()  # each the value of one WWW-Authenticate


@dataclass(frozen=True, slots=True)
class Requirement:
    """A requirement on the requests that match.

    Args:
        match: which requests; all by default.
        credentials: True if they must be identified; every other condition on a credential implies this.
        scopes: all of which the credential must have.
        kinds: one of which the credential must be; empty for any.
        org: True if it must belong to an organisation.
        email_verified: True if its owner's address must be verified.
        header: a header that must be there, once, and not empty; empty for none.
        format: of that header's value: `uuid`, or empty for any.

    Raises:
        ValueError: the format is unknown, or given without a header.
    """

    match: Match = field(default_factory=Match)
    credentials: bool = False
    scopes: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    org: bool = False
    email_verified: bool = False
    header: str = ""
    format: str = ""
    _spellings: frozenset[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.format and (self.format not in _FORMATS or not self.header):
            msg = f"format must be one of {', '.join(_FORMATS)}, of a header, and not {self.format!r}"
            raise ValueError(msg)
        if self.scopes or self.kinds or self.org or self.email_verified:
            object.__setattr__(self, "credentials", True)
        spellings = underscore_twins(self.header.lower()) if self.header else ()
        object.__setattr__(self, "_spellings", frozenset(spelling.encode() for spelling in spellings))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Those of `REASONS` for which it can refuse a request."""
        asked = (
            (self.kinds, CREDENTIAL_KIND),
            (self.org, ORG_MISSING),
            (self.email_verified, EMAIL_UNVERIFIED),
            (self.scopes, INSUFFICIENT_SCOPE),
            (self.header, HEADER_MISSING),
        )
        return (*(FAULTS if self.credentials else ()), *(reason for wanted, reason in asked if wanted))

    def reason(self, identity: Identity) -> str:
        """Return why *identity* does not do; empty when it does."""
        if not self.credentials:
            return ""
        if identity.fault:
            return identity.fault
        if self.kinds and identity.kind not in self.kinds:
            return CREDENTIAL_KIND
        if self.org and not identity.org:
            return ORG_MISSING
        if self.email_verified and not identity.email_verified:
            return EMAIL_UNVERIFIED
        return "" if self.scopes <= identity.scopes else INSUFFICIENT_SCOPE

    def header_issue(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return what is wrong with the header that must be among *headers*; empty when nothing is."""
        if not self.header:
            return ""
        # As with principals, a twin in underscores may be what the application reads.
        lines = [(name.lower(), value) for name, value in headers if name.lower() in self._spellings]
        if len(lines) > 1:
            return "is there more than once"
        if not lines or not (value := lines[0][1].strip()):
            return "is missing"
        if lines[0][0] != self.header.lower().encode():
            return "is spelled with underscores"
        wanted = _FORMATS.get(self.format)
        return "" if wanted is None or wanted.fullmatch(value) else f"is not a {self.format.upper()}"


def unmet(
    requirements: Sequence[Requirement],
    identity: Identity,
    headers: Iterable[tuple[bytes, bytes]],
    policy: IdentityPolicy,
    realm: str,
) -> Unmet | None:
    """Return the first of *requirements* that a request does not meet, in the words of an answer; None if it meets all.

    Args:
        requirements: that it matches.
        identity: that its credentials prove.
        headers: all of its own.
        policy: how callers are identified.
        realm: the name of the protected space (RFC 9110 section 11.5).
    """
    for requirement in requirements:
        reason = requirement.reason(identity)
        if reason == CREDENTIAL_KIND:
            used, required = _kinds(identity, requirement, policy)
            return Unmet(reason, used=used, required=required)
        if reason == UNAVAILABLE:
            return Unmet(reason)  # a 503, which no client can mend
        if reason:
            return Unmet(reason, challenges=tuple(_challenges(reason, requirement, policy, realm)))
        issue = requirement.header_issue(headers)
        if issue:
            challenges = tuple(_challenges(HEADER_MISSING, requirement, policy, realm))
            return Unmet(HEADER_MISSING, requirement.header, issue, challenges=challenges)
    return None


def _kinds(identity: Identity, requirement: Requirement, policy: IdentityPolicy) -> tuple[str, str]:
    """Return the kind of the credential that came, and of the one that would do, like `user_api_key_or_jwt`."""
    methods = "_or_".join(name for name, there in ((API_KEY, policy.api_keys), (JWT, policy.tokens)) if there)
    wanted = "_or_".join(f"{kind}_{methods}" for kind in sorted(requirement.kinds))
    return (f"{identity.kind}_{identity.method}" if identity.kind else identity.method), wanted


_INVALID_TOKEN = {TOKEN_EXPIRED: "the token has expired", TOKEN_INVALID: "the token is not valid here"}


def _challenges(reason: str, requirement: Requirement, policy: IdentityPolicy, realm: str) -> list[str]:
    """Return the challenges of WWW-Authenticate (RFC 9110 section 11.6.1).

    A token's fault is told as RFC 6750 section 3 has it. No scheme is registered for keys in a header of their own, so
    ours is named for what it is.
    """
    keys = policy.api_keys
    by_bearer = policy.tokens is not None or (keys is not None and keys.source.kind == "bearer")
    challenges = []
    if by_bearer:
        text = f'Bearer realm="{realm}"'
        if reason in _INVALID_TOKEN or (reason == KEY_INVALID and keys is not None and keys.source.kind == "bearer"):
            description = _INVALID_TOKEN.get(reason, "the key is not valid here")
            text += f', error="invalid_token", error_description="{description}"'
        elif reason == INSUFFICIENT_SCOPE:
            text += f', error="insufficient_scope", scope="{" ".join(sorted(requirement.scopes))}"'
        challenges.append(text)
    if reason == INSUFFICIENT_SCOPE:
        return challenges
    if keys is not None and keys.source.kind == "header":
        challenges.append(f'ApiKey realm="{realm}", header="{keys.source.name}"')
    if not challenges and requirement.header:
        challenges.append(f'ApiKey realm="{realm}", header="{requirement.header.lower()}"')
    return challenges
