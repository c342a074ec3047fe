"""Authentication of a request: its API key, its bearer token, or both."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.core.client_address import client_id
from ratelimiter.core.identity import NOBODY, PENDING, UNAVAILABLE, Identity, IdentityPolicy
from ratelimiter.core.planner import reader_for
from ratelimiter.core.principal import ORG, credential, watched_for
from ratelimiter.identity import api_keys
from ratelimiter.identity.failure_budget import FailureBudget

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ratelimiter.core.identity import JwtPolicy
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import Source
    from ratelimiter.core.request import Request
    from ratelimiter.identity.jwks import FetchedKeys
    from ratelimiter.identity.jwt import KeySet, Verification

NOT_NOW = Identity(fault=UNAVAILABLE)
ASK_AGAIN = Identity(fault=PENDING)


class Authenticator:
    """Authenticates requests under one policy.

    Args:
        policy: the policy, with its section `identity`.
        before: the authenticator of the policy before this one; keys that it has fetched are not fetched again.
        clock: Unix time in milliseconds.
        offline: fetch no keys; tokens that need fetched keys are UNAVAILABLE.
    """

    def __init__(
        self, policy: Policy, before: Authenticator | None = None, *, clock: Clock = unix_ms, offline: bool = False
    ) -> None:
        identity = policy.identity or IdentityPolicy()
        self._secret = policy.secret
        self._clock = clock
        self._keys = identity.api_keys
        self._tokens = identity.tokens
        self._sources = _in_order(policy, identity)
        self._watched = watched_for(self._sources)
        self._of_file: KeySet | None = None
        self._fetched: FetchedKeys[KeySet] | None = None
        self._of: object = None  # the URL and settings of those keys
        self._waited: Future[None] | None = None
        self._failures: FailureBudget = FailureBudget() if before is None else before._failures
        self._reader = reader_for(policy)
        self._ipv6_prefix = policy.trust.ipv6_prefix
        if self._tokens is not None:
            self._read(self._tokens, before, offline=offline)

    def _read(self, tokens: JwtPolicy, before: Authenticator | None, *, offline: bool) -> None:
        # Imported here because the package that they need is an extra.
        from ratelimiter.identity.jwks import FetchedKeys, FetchSchedule  # noqa: PLC0415
        from ratelimiter.identity.jwt import TokenVerifier, key_set_of, parse_key_set  # noqa: PLC0415

        self._verifier = TokenVerifier(tokens)
        if not tokens.fetched:
            self._of_file = key_set_of(tokens)
            return
        if offline:
            return
        schedule = FetchSchedule(tokens.refresh_ms, tokens.keep_ms, tokens.cooldown_ms, tokens.timeout_ms)
        self._of = (tokens.keys, tokens.algorithms, schedule)
        if before is not None and before._fetched is not None and before._of == self._of:
            self._fetched = before._fetched
        else:
            self._fetched = FetchedKeys(tokens.keys, lambda data: parse_key_set(data, tokens.algorithms), schedule)

    def identify(self, request: Request, *, waited: bool = False) -> Identity:
        """Return the identity that the credentials of *request* prove; with a fault if one of them is not valid.

        If the fault is PENDING, await `refreshed` and call again with *waited*: the fault is then final.

        Raises:
            MalformedRequest: a credential is there twice, has an underscore twin, or is too long.
        """
        watched = self._watched
        headers = [header for header in request[2] if header[0].lower() in watched]
        if not headers:
            return NOBODY
        good: list[Identity] = []
        bad: Identity | None = None
        for source in self._sources:
            value = credential(source, headers, watched)
            if value:
                identity = self._proven(source, value, request, waited=waited)
                if not identity.fault:
                    good.append(identity)
                elif bad is None:
                    bad = identity
        if bad is not None:
            # The upstream may read either one: the bad one is reported, and the good one still charged.
            return bad._replace(verified=_verified(good)) if good else bad
        if len(good) == 1:
            return good[0]
        return good[0]._replace(verified=_verified(good)) if good else NOBODY

    async def identity(self, request: Request) -> Identity:
        """Return the identity of *request*, after a fetch of keys if one is needed.

        Raises:
            MalformedRequest: as `identify`.
        """
        identity = self.identify(request)
        if identity.fault == PENDING:
            await self.refreshed()
            identity = self.identify(request, waited=True)
        return identity

    async def refreshed(self) -> None:
        """Wait for the keys that the last `identify` was PENDING for, at most as long as a fetch may take."""
        waited = self._waited
        if waited is not None:
            await asyncio.wrap_future(waited)

    def _proven(self, source: Source, value: bytes, request: Request, *, waited: bool) -> Identity:
        keys = self._keys
        is_key = keys is not None and source == keys.source
        # If both come as bearer, a value with the two dots of a JWS (RFC 7515 section 3.1) is a token.
        if keys is not None and is_key and not (self._tokens is not None and _looks_signed(source, value)):
            return api_keys.identify(value, keys.entries, self._secret, self._clock())
        return self._of_token(value, request, waited=waited)

    def _of_token(self, token: bytes, request: Request, *, waited: bool) -> Identity:
        fetched = self._fetched
        if fetched is None:
            if self._of_file is None:
                return NOT_NOW
            return self._verified_by(self._of_file, token, request).identity
        fetching = fetched.wanted()
        if fetching is not None and not waited:
            self._waited = fetching
            return ASK_AGAIN
        keys = fetched.keys
        if keys is None:
            return NOT_NOW
        verification = self._verified_by(keys, token, request, final=waited)
        if verification.key_unknown and not waited:
            seeking = fetched.sought()
            if seeking is not None:
                self._waited = seeking
                return ASK_AGAIN
        return verification.identity

    def _verified_by(self, keys: KeySet, token: bytes, request: Request, *, final: bool = True) -> Verification:
        """Return the verification of *token*; a client with many failures gets none until some seconds have passed.

        An unknown key is a failure only if the answer is *final*: the key may be about to be fetched.
        """
        now_ms = self._clock()
        known = self._verifier.known(token, keys, now_ms / 1000)
        if known is not None:
            return known
        client = client_id(self._reader.client(request[2], request[3]), self._ipv6_prefix)
        if self._failures.exhausted(client, now_ms):
            return self._verifier.unread
        verification = self._verifier.verify(token, keys, now_ms / 1000)
        if verification.identity.fault and (final or not verification.key_unknown):
            self._failures.failed(client)
        return verification


def _looks_signed(source: Source, value: bytes) -> bool:
    return source.kind == "bearer" and value.count(b".") == 2


def _in_order(policy: Policy, identity: IdentityPolicy) -> list[Source]:
    """Return the verified sources, in the order in which the rules name them; then those that no rule names."""
    named = dict.fromkeys(source for rule in policy.rules for source in rule.principal)
    verified = identity.verified - {ORG}  # it has no place of its own in a request
    return [*(source for source in named if source in verified), *sorted(verified - named.keys(), key=str)]


def _verified(identities: list[Identity]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for identity in identities for pair in identity.verified)
