"""The engine: a request in, a judgement out. `Limiter.judge` is the one call of every edge."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ratelimiter.clock import Clock, Stopwatch, stopwatch_s, unix_ms
from ratelimiter.core.cost import priced
from ratelimiter.core.decision import SUSPENDED, Decision, blocked, decide, malformed, refused_for, suspended, unmatched
from ratelimiter.core.identity import NOBODY, Identity, IdentityPolicy
from ratelimiter.core.overrides import NO_OVERRIDES, BlockedError
from ratelimiter.core.planner import Planner
from ratelimiter.core.policy import key_of
from ratelimiter.core.receipt import REMEMBERED, STORE, new
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.requirement import unmet
from ratelimiter.core.rule import REQUEST_HEADER, Hit, Mode
from ratelimiter.engine import registry
from ratelimiter.engine.forwarding_watch import ForwardingWatch
from ratelimiter.engine.observer import NULL_OBSERVER, observer_of
from ratelimiter.engine.settlements import Settlements
from ratelimiter.engine.token_meters import TokenMeters
from ratelimiter.errors import ConfigError, StoreError
from ratelimiter.identity.authenticator import Authenticator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from ratelimiter.core.overrides import RuntimeOverrides
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.request import Request
    from ratelimiter.core.requirement import Requirement
    from ratelimiter.core.rule import Rule
    from ratelimiter.engine.observer import DecisionObserver, Observer
    from ratelimiter.engine.settlements import PendingRequest
    from ratelimiter.engine.token_meters import MeteredRequest
    from ratelimiter.stores.base import Store

    BodyReader: TypeAlias = Callable[[int], Awaitable[bytes]]  # so many bytes, or all if there are fewer

SHADOWS_MAX = 1024  # likenesses of rules, and of what plans and overrides made of them

log = logging.getLogger("ratelimiter")

LEASE_BITS = 48  # what a script's numbers hold exactly
_OF_THE_STORE = ("store", "decision_timeout_ms", "local_share")  # fields of a policy that it was opened with


class Judgement(NamedTuple):
    """The result of one request: the decision, and what an edge needs beside it."""

    decision: Decision
    hits: Sequence[Hit]  # that the decision was about; none where an operator's order kept them from being charged
    identity: Identity  # of the caller, with the plan that applies once it is admitted; NOBODY if it was not asked for
    # The request, if the response settles some of its charge; else None. Call `refused` of it after a refusal,
    # `responded` and `ended` after an admission.
    pending: PendingRequest | None


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
        overrides: of operators, those in force beside it.
        store: where requests are counted.
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
        self._authenticator: Authenticator | None = None
        self._settlements = Settlements(store, self._observer)
        self._gave_back = False  # something that is not sent yet
        self.overrides = NO_OVERRIDES
        self._meters: TokenMeters | None = None
        self._load(policy)
        registry.add(self)

    @property
    def clock(self) -> Clock:
        """The clock of decisions that need no store."""
        return self._clock

    def replace_store(self, store: Store, clock: Clock) -> None:
        """Count in *store*, by *clock*, from the next request on; for tests of applications."""
        self.store = store
        self._clock = clock
        self._settlements = Settlements(store, self._observer)

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

    def apply(self, overrides: RuntimeOverrides) -> None:
        """Judge under the runtime *overrides*, too, from the next request on. Tallies stay; cached refusals do not.

        Args:
            overrides: in force now, their moments by this limiter's clock.
        """
        self.overrides = overrides
        self._make_ready(self.policy, self._planner)
        self.store.forget_refusals()
        self._observer.overridden(overrides)

    def _make_ready(self, policy: Policy, built: Planner | None = None) -> None:
        self._planner = Planner(policy, self.overrides, now_ms=self._clock(), noted=_note_unknown_plan, built=built)
        self._looks_at_bodies = self._planner.looks_at_bodies
        self._prices = any(rule.cost_from and rule.cost_from.where == REQUEST_HEADER for rule in policy.rules)
        # Bound here, as are the flags below: a policy does not pay for the questions that it does not raise.
        self._hits: Callable[[Request], Sequence[Hit]] = self._priced_hits if self._prices else self._planner.hits
        self.conclude: Callable[[Sequence[Hit], Receipt], Decision] = decide
        self._settles = any(rule.settles for rule in policy.rules)
        self._simple = not self._settles and not self.overrides.shadow
        if self.overrides.shadow:
            self.conclude = partial(suspended, shadowed=lru_cache(SHADOWS_MAX)(_shadowed))

    def _load(self, policy: Policy) -> None:
        self._meters = TokenMeters(policy, self._meters)  # first: it fails if a preset cannot be used any more
        self.policy = policy
        self._make_ready(policy)
        identifies = policy.identity is not None or bool(policy.requirements)
        self._authenticator = Authenticator(policy, self._authenticator, clock=self._clock) if identifies else None
        self._watch: ForwardingWatch | None = ForwardingWatch(policy.trust)
        self._observer.loaded(policy)

    def hits(self, request: Request) -> Sequence[Hit]:
        """Return what *request* would be charged, if no credential of it were verified.

        Raises:
            MalformedRequest: its path or a header that names a principal can be read in two ways.
        """
        return self._hits(request)

    def _priced_hits(self, request: Request) -> Sequence[Hit]:
        return priced(self._planner.hits(request), request, self.policy.trust)

    def forwarded_target(self, method: str, target: bytes) -> bytes:
        """Return the form of *target* that a proxy forwards; see `ratelimiter.core.planner.Planner.forwarded`.

        Raises:
            MalformedRequest: two servers could read it so differently that different rules apply.
        """
        return self._planner.forwarded(method, target)

    def body_wanted(self, request: Request) -> int:
        """Return how many bytes of the body of *request* a rule may look at; 0 for none. `judge` asks by itself."""
        return self._planner.body_wanted(request) if self._looks_at_bodies else 0

    async def judge(  # noqa: C901, PLR0912, PLR0915  # the hot path: one coroutine more costs as much as a dozen branches
        self,
        request: Request,
        *,
        body: BodyReader | None = None,
        charged: Collection[Hit] = (),
        identity: Identity | None = None,
    ) -> Judgement:
        """Charge *request* to every rule that it matches, or to none.

        Args:
            request: to be judged.
            body: reads the beginning of its body, if a rule looks at it; left alone if none does, or if the request
                has its body already.
            charged: hits that another limiter of the same stack has charged for this request; not charged again.
            identity: of the caller, if the application has established it; else its credentials are verified, if the
                policy says how.

        Raises:
            StoreError: the store gave no answer and nothing stands in for it.
        """
        if self._watch is not None and not self._watch.looks_on(request):
            self._watch = None
        if self._looks_at_bodies and body is not None:
            request = await self._with_body(request, body)
        hits: Sequence[Hit] = ()
        requirements: Sequence[Requirement] = ()
        metered: MeteredRequest | None = None
        observer = self._observer
        started_s = 0.0 if observer is NULL_OBSERVER else self._stopwatch()
        try:
            if self._authenticator is None and identity is None:
                hits = self._hits(request)
            else:
                if identity is None and self._authenticator is not None:
                    identity = await self._authenticator.identity(request)
                    started_s = 0.0 if observer is NULL_OBSERVER else self._stopwatch()  # without a fetch of keys
                hits, requirements = self._met(request, identity or NOBODY)
        except MalformedRequest as fault:
            decision = malformed(self._clock(), fault.field, fault.issue)
        except BlockedError as block:
            decision, hits = self._blocked(block)
        else:
            if charged:
                hits = _less(hits, charged)
            if not hits:
                decision = unmatched(self._clock())
            elif self._settles:
                if self._meters:
                    hits, metered = self._meters.reserve(hits, request)
                hits = _leased(hits)
                decision = self.conclude(hits, await self._charge_leases(hits))
            else:
                if self._gave_back:  # what is charged next comes behind it
                    self._gave_back = False
                    await self._settlements.sent()
                # Without a wait where this process may decide: a coroutine less (tests/benchmarks/hot_path.py).
                decision = self.conclude(hits, self.store.spend(hits) or await self.store.charge(hits))
            if requirements and decision.allowed and identity is not None:
                decision = self._required(decision, request, requirements, identity)
        if observer is not NULL_OBSERVER:
            seconds = self._stopwatch() - started_s
            if self.policy.show_principals:
                observer.named(self._planner.names(hits, request, () if identity is None else identity.verified))
            observer.decided(decision, hits, seconds)
        if self._simple and identity is None:
            return new(Judgement, (decision, hits, NOBODY, None))
        if decision.reason == SUSPENDED:
            hits = ()  # nothing was charged, so nothing is settled or given back
        pending = self._settlements.pending(decision, hits, metered) if self._settles else None
        if identity is not None and decision.allowed:
            identity = self._placed(request, identity)
        return new(Judgement, (decision, hits, NOBODY if identity is None else identity, pending))

    async def judge_rules(
        self,
        rules: tuple[Rule, ...],
        request: Request,
        identity: Identity = NOBODY,
        *,
        cost: int | None = None,
        charged: Collection[Hit] = (),
    ) -> Judgement:
        """Charge *request* to *rules*, or to none: for an edge that chooses the rules itself, as an endpoint does.

        Args:
            rules: at least one; their conditions are not asked.
            request: to be judged.
            identity: of the caller, if the application has established it.
            cost: units, instead of the rules' own.
            charged: hits that another limiter of the same stack has charged for this request; not charged again.

        Raises:
            StoreError: the store gave no answer and nothing stands in for it.
        """
        hits: Sequence[Hit] = ()
        started_s = self._stopwatch()
        settles = any(rule.settles for rule in rules)
        try:
            hits = self._planner.rule_set_for(rules).hits_of(request, identity)
        except MalformedRequest as fault:
            decision = malformed(self._clock(), fault.field, fault.issue)
        except BlockedError as block:
            decision, hits = self._blocked(block, rules[0])
        else:
            if cost is not None:
                hits = [hit._replace(cost=cost) for hit in hits]
            hits = _leased(_less(hits, charged))
            decision = self.conclude(hits, await self._charge_leases(hits)) if hits else unmatched(self._clock())
        if self.policy.show_principals:
            self._observer.named(self._planner.names(hits, request, identity.verified))
        self._observer.decided(decision, hits, self._stopwatch() - started_s)
        if decision.reason == SUSPENDED:
            hits = ()
        pending = self._settlements.pending(decision, hits) if settles else None
        return Judgement(decision, hits, identity, pending)

    def give_back(self, judgement: Judgement) -> None:
        """Give back what *judgement* charged, because another limiter of the stack has refused the request (1)."""
        self._gave_back = True
        if judgement.pending is not None:
            judgement.pending.forget()
        self._settlements.give_back(judgement.decision, judgement.hits)

    async def _with_body(self, request: Request, body: BodyReader) -> Request:
        """Return *request* with as much of its body as some rule looks at."""
        wanted = 0 if request.body is not None else self._planner.body_wanted(request)
        return request._replace(body=await body(wanted)) if wanted else request

    def _placed(self, request: Request, identity: Identity) -> Identity:
        """Return *identity* with the plan that applies to *request*."""
        tiers = self._planner.tiers
        if tiers is None:
            return identity
        watched = self._planner.reader.watched
        headers = [header for header in request.headers if header[0].lower() in watched]
        return identity._replace(plan=tiers.plan_of(headers, request.peer, identity.verified, identity.plan))

    def _blocked(self, block: BlockedError, rule: Rule | None = None) -> tuple[Decision, Sequence[Hit]]:
        """Return the refusal of a blocked principal, and a hit that names it to observers; it is not charged."""
        rule = self.policy.rules[0] if rule is None else rule
        hit = Hit(key_of(self.policy, rule, block.principal, 0), rule.quota, 0, rule)
        return blocked(self._clock(), block.until_ms, rule), (hit,)

    async def matched(self, request: Request) -> tuple[Sequence[Hit], Sequence[Requirement]]:
        """Return what `judge` would charge *request*, and what it must bring; charge nothing.

        Raises:
            MalformedRequest: *request* has two readings.
            BlockedError: its principal is blocked.
        """
        identity = NOBODY if self._authenticator is None else await self._authenticator.identity(request)
        return self._met(request, identity)

    def _met(self, request: Request, identity: Identity) -> tuple[Sequence[Hit], Sequence[Requirement]]:
        """Return what *request* of *identity* is charged, and what it must bring."""
        rule_set = self._planner.rule_set(request, identity)
        hits = rule_set.hits_of(request, identity)
        return (priced(hits, request, self.policy.trust) if self._prices else hits), rule_set.requirements

    def _required(
        self, decision: Decision, request: Request, requirements: Sequence[Requirement], identity: Identity
    ) -> Decision:
        """Return *decision*, or the refusal of a request that does not bring what it must."""
        policy = self.policy
        lacking = unmet(requirements, identity, request.headers, policy.identity or IdentityPolicy(), policy.name)
        return decision if lacking is None else refused_for(decision, lacking)

    async def _charge_leases(self, hits: Sequence[Hit]) -> Receipt:
        """Charge *hits* behind every settlement sent before, and release leases whose charge has no known outcome."""
        await self._settlements.sent()
        try:
            receipt = self.store.spend(hits) or await self.store.charge(hits)
        except (asyncio.CancelledError, StoreError):
            self._settlements.release(hits, self._clock())
            raise
        if receipt.source not in (STORE, REMEMBERED):  # the store may have been asked, and may have done it
            self._settlements.release(hits, receipt.now_ms)
        return receipt

    async def settled(self) -> None:
        """Wait until the store has every settlement so far, no longer than for a decision."""
        await self._settlements.settled(self.policy.decision_timeout_ms / 1000)

    def refused(self, decision: Decision, request_id: str, method: str) -> None:
        """Pass on under which request id an edge answers a refusal; empty if requests have none."""
        self._observer.refused(decision, request_id, method)

    async def close(self) -> None:
        """Send what is settled, then close the store."""
        await self.settled()
        await self.store.close()


def _less(hits: Sequence[Hit], charged: Collection[Hit]) -> Sequence[Hit]:
    """Return *hits* without those that were *charged* already, under any lease and with any reservation."""
    done = [_as_planned(hit) if hit.lease or hit.rule.metered else hit for hit in charged]
    return [hit for hit in hits if hit not in done]


def _as_planned(hit: Hit) -> Hit:
    """Return *hit* as it was before its request was metered and leased."""
    return hit._replace(lease=0, cost=hit.rule.cost if hit.rule.metered else hit.cost)


def _leased(hits: Sequence[Hit]) -> Sequence[Hit]:
    """Return *hits*, each lease with a name of its own: random, as two processes must not choose the same."""
    if not any(hit.rule.leased for hit in hits):
        return hits
    lease = secrets.randbits(LEASE_BITS) or 1
    return [hit._replace(lease=lease) if hit.rule.leased else hit for hit in hits]


def _shadowed(rule: Rule) -> Rule:
    return replace(rule, mode=Mode.SHADOW)


def _note_unknown_plan(plan: str) -> None:
    log.warning("%r is a plan that no rule knows: the default applies; told once", plan[:64])
