"""The engine: a request in, a decision out, whatever stands around it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from ratelimiter.clock import Clock, Stopwatch, stopwatch_s, unix_ms
from ratelimiter.core.algorithms.sliding_window import REMEMBERED, STORE
from ratelimiter.core.cost import priced
from ratelimiter.core.decision import SUSPENDED, Decision, blocked, decide, malformed, refused_for, suspended, unmatched
from ratelimiter.core.identity import AMBIGUOUS, NOBODY, PENDING, Identity, IdentityPolicy
from ratelimiter.core.overrides import NO_ORDERS, BlockedError
from ratelimiter.core.policy import REQUEST_HEADER, Mode, Planner
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.requirement import unmet
from ratelimiter.engine.observer import NULL_OBSERVER, observer_of
from ratelimiter.engine.settlements import Following
from ratelimiter.errors import ConfigError, StoreError
from ratelimiter.identity.authenticator import Authenticator

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ratelimiter.core.algorithms.sliding_window import Receipt
    from ratelimiter.core.overrides import Orders
    from ratelimiter.core.policy import Hit, Policy, Rule
    from ratelimiter.core.request import Request
    from ratelimiter.core.requirement import Requirement
    from ratelimiter.engine.observer import DecisionObserver, Observer
    from ratelimiter.engine.settlements import Follower
    from ratelimiter.stores.base import Store

SHADOWS_MAX = 1024  # likenesses of rules, and of what plans and overrides made of them

log = logging.getLogger("ratelimiter")

LEASE_BITS = 48  # what a script's numbers hold exactly
_OF_THE_STORE = ("store", "decision_timeout_ms", "local_share")  # fields of a policy that it was opened with


class Limiter:
    """Judges requests under one policy.

    Args:
        policy: what is admitted.
        store: where it is counted.
        observer: of decisions, policies and runtime overrides; an object of another class, of decisions only.
        clock: for decisions that need no store; Unix time in milliseconds.
        stopwatch: seconds, for what the observer is told.

    Attributes:
        policy: the one in force.
        orders: of operators, those in force, beside it.
        looks_at_bodies: whether the body of some request makes a difference under it; ask `body_wanted` then.
        identifies: whether it matters who a request is from; ask `identified` to know it, too.
        settles: whether something of some request is only known after its decision, or was under a policy before; ask
            `follow` then.
    """

    def __init__(
        self,
        policy: Policy,
        store: Store,
        *,
        observer: Observer | DecisionObserver | None = None,
        clock: Clock = unix_ms,
        stopwatch: Stopwatch = stopwatch_s,
    ) -> None:
        self.store = store
        self._observer = observer_of(observer)
        self._clock = clock
        self._stopwatch = stopwatch
        self._identifier: Authenticator | None = None
        self.settles = False
        self._following = Following(store, self._observer)
        self.orders = NO_ORDERS
        self._load(policy)

    def swap(self, policy: Policy) -> None:
        """Judge under *policy* from the next request on. What is counted stays.

        Raises:
            ConfigError: *policy* says something else of the store, which is opened once; the old policy stays in force.
        """
        fixed = [name for name in _OF_THE_STORE if getattr(policy, name) != getattr(self.policy, name)]
        if fixed:
            msg = f"{', '.join(fixed)}: changed while running, which nothing can follow; restart to change it"
            raise ConfigError(msg)
        self._load(policy)

    def obey(self, orders: Orders) -> None:
        """Judge under *orders*, too, from the next request on. What is counted stays; what was remembered of refusals
        does not.

        Args:
            orders: those in force now, their moments by this limiter's clock.
        """
        self.orders = orders
        self._plan(self.policy)
        self.store.forget_refusals()
        self._observer.obeyed(orders)

    def _plan(self, policy: Policy) -> None:
        self._planner = Planner(policy, self.orders, now_ms=self._clock(), noted=_note_unknown_plan)
        self._prices = any(rule.cost_from and rule.cost_from.where == REQUEST_HEADER for rule in policy.rules)
        self._hits: Callable[[Request], Sequence[Hit]] = self._priced_hits if self._prices else self._planner.hits
        # Bound here, so that those whose rules are obeyed do not pay for the question.
        self._conclude: Callable[[Sequence[Hit], Receipt], Decision] = decide
        if self.orders.shadow:
            self._conclude = partial(suspended, shadowed=lru_cache(SHADOWS_MAX)(_shadowed))

    def _load(self, policy: Policy) -> None:
        self.policy = policy
        self._plan(policy)
        self.looks_at_bodies = self._planner.looks_at_bodies
        self.identifies = policy.identity is not None or bool(policy.requirements)
        self._identifier = Authenticator(policy, self._identifier, clock=self._clock) if self.identifies else None
        # For good: what was decided under one policy may be answered under the next.
        self.settles = self.settles or any(rule.settles for rule in policy.rules)
        self._observer.loaded(policy)

    def hits(self, request: Request) -> Sequence[Hit]:
        """What *request* would be charged.

        Raises:
            MalformedRequest: its path or a header that names a principal can be read in two ways.
        """
        return self._hits(request)

    def _priced_hits(self, request: Request) -> Sequence[Hit]:
        return priced(self._planner.hits(request), request, self.policy.trust)

    def body_wanted(self, request: Request) -> int:
        """How many bytes of the body of *request* are to be read before it is judged; 0 if none are."""
        return self._planner.body_wanted(request)

    async def identified(self, request: Request) -> Identity:
        """Whom the credentials of *request* name, as far as they are good."""
        identifier = self._identifier
        if identifier is None:
            return NOBODY
        try:
            identity = identifier.identify(request)
            if identity.fault == PENDING:
                await identifier.refreshed()
                identity = identifier.identify(request, waited=True)
        except MalformedRequest:
            return AMBIGUOUS  # what that means is for `decide` to say
        return identity

    def placed(self, request: Request, identity: Identity) -> Identity:
        """*identity*, whose *request* was admitted, on the plan that applies to it."""
        terms = self._planner.terms
        if terms is None:
            return identity
        watched = self._planner.reader.watched
        headers = [header for header in request.headers if header[0].lower() in watched]
        return identity._replace(plan=terms.plan_of(headers, request.peer, identity.verified, identity.plan))

    async def decide(
        self, request: Request, charged: Collection[Hit] = (), identity: Identity | None = None
    ) -> tuple[Decision, Sequence[Hit]]:
        """Charge *request* to every rule that it matches, or to none.

        Args:
            request: what is judged.
            charged: hits that another limiter in the same stack has charged for this very request; not charged again.
            identity: whom it is from, for who has asked `identified` already.

        Returns:
            The decision, and the hits that it was about.

        Raises:
            StoreError: the store gave no answer and nothing stands in for it.
        """
        hits: Sequence[Hit] = ()
        requirements: Sequence[Requirement] = ()
        uncharged = False
        observer = self._observer
        started_s = 0.0 if observer is NULL_OBSERVER else self._stopwatch()
        try:
            if self._identifier is None:
                hits = self._hits(request)
            else:
                identity = identity or await self.identified(request)
                hits, requirements = self._met(self._identifier, request, identity)
        except MalformedRequest as fault:
            decision = malformed(self._clock(), fault.field, fault.issue)
        except BlockedError as block:
            decision = blocked(self._clock(), block.until_ms, self.policy.rules[0])
        else:
            if charged:
                hits = _less(hits, charged)
            if not hits:
                decision = unmatched(self._clock())
            elif self.settles:
                hits = _leased(hits)
                decision = self._conclude(hits, await self._charge_followed(hits))
            else:
                decision = self._conclude(hits, await self.store.charge(hits))
            uncharged = decision.reason == SUSPENDED
            if requirements and identity is not None and decision.allowed:
                decision = self._required(decision, request, requirements, identity)
        if observer is not NULL_OBSERVER:
            seconds = self._stopwatch() - started_s
            if self.policy.show_principals:
                observer.named(self._planner.names(hits, request, () if identity is None else identity.verified))
            observer.decided(decision, hits, seconds)
        # Where nothing was charged, nothing is to be settled or given back.
        return decision, () if uncharged else hits

    def _met(
        self, identifier: Authenticator, request: Request, identity: Identity
    ) -> tuple[Sequence[Hit], Sequence[Requirement]]:
        """What *request* of *identity* is charged, and what it must bring."""
        if identity is AMBIGUOUS:
            identifier.identify(request)  # raises what it has raised before
        plan = self._planner.plan(request)
        hits = plan.hits_of(request, identity)
        return (priced(hits, request, self.policy.trust) if self._prices else hits), plan.requirements

    def _required(
        self, decision: Decision, request: Request, requirements: Sequence[Requirement], identity: Identity
    ) -> Decision:
        """*decision*, or the refusal of a request that does not bring what it must."""
        policy = self.policy
        lacking = unmet(requirements, identity, request.headers, policy.identity or IdentityPolicy(), policy.name)
        return decision if lacking is None else refused_for(decision, lacking)

    async def _charge_followed(self, hits: Sequence[Hit]) -> Receipt:
        """Charge *hits* behind all that was given back before, and leave no lease behind that nobody knows of."""
        await self._following.sent()
        try:
            receipt = await self.store.charge(hits)
        except (asyncio.CancelledError, StoreError):
            self._following.release(hits, self._clock())
            raise
        if receipt.source not in (STORE, REMEMBERED):  # the store may have been asked, and may have done it
            self._following.release(hits, receipt.now_ms)
        return receipt

    def follow(self, decision: Decision, hits: Sequence[Hit]) -> Follower | None:
        """Who is to be told what becomes of a request; None if nothing of it is settled later.

        Args:
            decision: what `decide` said of it.
            hits: what that was about.
        """
        return self._following.follow(decision, hits)

    async def settled(self) -> None:
        """Wait until the store was told what is settled by now, no longer than for a decision."""
        await self._following.settled(self.policy.decision_timeout_ms / 1000)

    async def close(self) -> None:
        """Send what is settled, then close the store."""
        await self.settled()
        await self.store.close()


def _less(hits: Sequence[Hit], charged: Collection[Hit]) -> Sequence[Hit]:
    """*hits* without those that were *charged* already, under whatever lease."""
    done = [hit._replace(lease=0) if hit.lease else hit for hit in charged]
    return [hit for hit in hits if hit not in done]


def _leased(hits: Sequence[Hit]) -> Sequence[Hit]:
    """*hits*, those that are leases with a name of their own. From the system: no two processes may make the same."""
    if not any(hit.rule.leased for hit in hits):
        return hits
    lease = secrets.randbits(LEASE_BITS) or 1
    return [hit._replace(lease=lease) if hit.rule.leased else hit for hit in hits]


def _shadowed(rule: Rule) -> Rule:
    return replace(rule, mode=Mode.SHADOW)


def _note_unknown_plan(plan: str) -> None:
    log.warning("%r is a plan that no rule knows: the default applies; told once", plan[:64])
