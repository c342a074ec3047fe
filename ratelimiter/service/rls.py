"""`envoy.service.ratelimit.v3.RateLimitService`: descriptors of a call, charged to all of their rules or to none."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.clock import stopwatch_s, unix_ms
from ratelimiter.core.decision import OVER_LIMIT as REASON_OVER_LIMIT
from ratelimiter.core.decision import SUSPENDED, Decision, Outcome, unmatched
from ratelimiter.core.quota import LIMIT_MAX
from ratelimiter.core.receipt import NEVER, STORE
from ratelimiter.core.rule import Mode, Rule
from ratelimiter.core.settlement import Settlement
from ratelimiter.service import rls_messages as messages
from ratelimiter.service.grpc.calls import CallError, Status
from ratelimiter.service.grpc.protobuf import ProtobufError
from ratelimiter.service.refunds import Refunds
from ratelimiter.service.rls_answers import BLOCKED_RESET_S, AnswerWriter, Part, is_blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Tally
    from ratelimiter.core.rule import Hit
    from ratelimiter.service.decider import Decider
    from ratelimiter.service.grpc.calls import Call

PATH = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
SERVICE = "envoy.service.ratelimit.v3.RateLimitService"

CALLS_MAX = 4096  # calls whose plan is remembered: a proxy asks the same of each client again and again
CALL_BYTES_MAX = 1024  # of one that is
DESCRIPTORS_MAX = 1000  # of one call
LEASE_BITS = 48  # what a script's numbers hold exactly


class _Plan(NamedTuple):
    """The hits of a call and the descriptors they are of."""

    hits: tuple[Hit, ...]
    parts: tuple[Part, ...]
    gives_back: tuple[tuple[bytes, int], ...]  # keys and units
    plain: bool  # nothing is asked only, given back, leased, a candidate, or blocked


class RateLimitService:
    """Answers calls.

    Args:
        engine: decides.
    """

    def __init__(self, engine: Decider) -> None:
        self._engine = engine
        self._refunds = Refunds()
        self.renew()

    @property
    def refunds_unknown(self) -> int:
        """The number of units given back that were no charge of this process."""
        return self._refunds.unknown

    def renew(self) -> None:
        """Forget what was worked out for the policy that is no longer in force."""
        self._plans: dict[bytes, _Plan] = {}
        self._descriptors: dict[bytes, messages.Descriptor] = {}
        self._writer = AnswerWriter(self._engine)

    async def should_rate_limit(self, call: Call) -> bytes:
        """Return a RateLimitResponse.

        Raises:
            CallError: the request is none.
        """
        started_s = stopwatch_s()
        plan = self._plans.get(call.message)
        if plan is None:
            plan = self._plan(call.message)
        engine = self._engine
        if not plan.hits:
            decision = unmatched(unix_ms())
            if plan.plain or not any(_blocks(part) for part in plan.parts):
                engine.tell(decision, (), stopwatch_s() - started_s)
                return self._writer.write(plan.parts, plan.hits, decision, ())
        if plan.plain:
            decision, receipt = await engine.charge(plan.hits, call.due_s)
            engine.tell(decision, plan.hits, stopwatch_s() - started_s)
            return self._writer.write(plan.parts, plan.hits, decision, receipt.tallies)
        return await self._answer_carefully(plan, call.due_s, started_s)

    # --- From a message to a plan

    def _plan(self, message: bytes) -> _Plan:
        try:
            domain, descriptors, hits = messages.read_request(message)
            if not domain:
                raise CallError(Status.INVALID_ARGUMENT, "the domain is empty; write the one of the policy's limits")
            if not 0 < len(descriptors) <= DESCRIPTORS_MAX:
                issue = f"there are {len(descriptors)} descriptors; send 1 to {DESCRIPTORS_MAX}"
                raise CallError(Status.INVALID_ARGUMENT, issue)
            read = [self._read(descriptor) for descriptor in descriptors]
        except ProtobufError as fault:
            raise CallError(Status.INVALID_ARGUMENT, f"the request is no RateLimitRequest: {fault}") from None
        plan = self._planned(domain, read, hits)
        if len(message) <= CALL_BYTES_MAX:
            if len(self._plans) >= CALLS_MAX:
                self._plans.clear()
            self._plans[message] = plan
        return plan

    def _read(self, message: bytes) -> messages.Descriptor:
        read = self._descriptors.get(message)
        if read is None:
            read = messages.read_descriptor(message)
            if len(message) <= CALL_BYTES_MAX:
                if len(self._descriptors) >= CALLS_MAX:
                    self._descriptors.clear()
                self._descriptors[message] = read
        return read

    def _planned(self, domain: str, descriptors: Sequence[messages.Descriptor], units: int) -> _Plan:
        planner = self._engine.descriptors
        met = [planner.plan(domain, each.entries, each.override) for each in descriptors]
        rules = [rule for each in met for rule in (*each.answers, *(hit.rule for hit in each.hits))]
        replaced = {name for rule in rules if rule.descriptors for name in rule.descriptors.replaces}
        merged: dict[bytes, Hit] = {}
        places: dict[bytes, int] = {}
        parts, gives_back = [], []
        for descriptor, each in zip(descriptors, met, strict=True):
            wanted = units if descriptor.hits is None else descriptor.hits
            hits = [hit for hit in each.hits if hit.rule.name not in replaced]
            indices = []
            for hit in hits:
                if descriptor.gives_back and hit.rule.descriptors and hit.rule.descriptors.refunds:
                    gives_back.append((hit.key, min(hit.cost * wanted, LIMIT_MAX)))
                cost = 0 if descriptor.gives_back else min(hit.cost * wanted, LIMIT_MAX)
                before = merged.get(hit.key)
                if before is None:
                    places[hit.key] = len(merged)
                    rule = _in_shadow(hit.rule) if hit.rule.descriptors and hit.rule.descriptors.candidate else hit.rule
                    merged[hit.key] = hit._replace(cost=cost, rule=rule)
                else:  # the same descriptor twice: both are charged
                    merged[hit.key] = before._replace(cost=min(before.cost + cost, LIMIT_MAX))
                indices.append(places[hit.key])
            answers = tuple(rule for rule in each.answers if rule.name not in replaced)
            asks_only = wanted == 0 and not descriptor.gives_back
            parts.append(Part(tuple(indices), answers, asks_only and bool(indices)))
        careful = bool(gives_back) or any(part.asks_only or _blocks(part) for part in parts)
        careful = careful or any(_special(hit.rule) for hit in merged.values())
        return _Plan(tuple(merged.values()), tuple(parts), tuple(gives_back), not careful)

    # --- From a plan to an answer

    async def _answer_carefully(self, plan: _Plan, due_s: float | None, started_s: float) -> bytes:
        """Answer a call of which something is given back, asked only, leased, a choice, or blocked."""
        engine = self._engine
        if plan.gives_back:
            back = [each for key, units in plan.gives_back for each in self._refunds.take(key, units)]
            if back:
                await engine.settle(back, STORE)
        blocking = next((rule for part in plan.parts for rule in part.answers if is_blocking(rule)), None)
        hits = plan.hits
        if blocking is not None:
            hits = tuple(hit._replace(cost=0) for hit in hits)
        if any(hit.rule.leased for hit in hits):
            lease = secrets.randbits(LEASE_BITS) or 1
            hits = tuple(hit._replace(lease=lease) if hit.rule.leased and hit.cost else hit for hit in hits)
        if hits:
            decision, receipt = await engine.charge(hits, due_s)
            tallies: Sequence[Tally] = receipt.tallies
        else:
            decision, tallies = unmatched(unix_ms()), ()
        if decision.allowed and decision.reason != SUSPENDED:
            refusing = self._refusing(plan, hits, tallies, blocking)
            if refusing is not None:
                await self._give_back(hits, tallies, decision)
                decision = decision._replace(allowed=False, reason=REASON_OVER_LIMIT, binding=refusing)
                decision = decision._replace(outcomes=decision.outcomes or (refusing,))
            elif decision.source == STORE:
                self._refunds.note(hits, decision.now_ms)
        engine.tell(decision, hits, stopwatch_s() - started_s)
        return self._writer.write(plan.parts, plan.hits, decision, tallies)

    def _refusing(
        self, plan: _Plan, hits: Sequence[Hit], tallies: Sequence[Tally], blocking: Rule | None
    ) -> Outcome | None:
        """Return what refuses a call that the store has admitted; None if nothing does."""
        if blocking is not None:
            return Outcome(blocking, 0, BLOCKED_RESET_S * 1000, BLOCKED_RESET_S * 1000)
        for part in plan.parts:
            for index in part.indices if part.asks_only else ():
                hit, tally = hits[index], tallies[index]
                if not hit.rule.shadow and hit.quota.limit <= tally.used:
                    return Outcome(hit.rule, 0, tally.reset_ms, max(1, tally.reset_ms))
        candidates = [
            (hit, tally)
            for hit, tally in zip(hits, tallies, strict=True)
            if hit.rule.descriptors and hit.rule.descriptors.candidate
        ]
        if candidates and all(tally.retry_after_ms for _, tally in candidates):
            hit, tally = max(candidates, key=lambda pair: pair[1].retry_after_ms)
            return Outcome(hit.rule, 0, tally.reset_ms, tally.retry_after_ms if tally.retry_after_ms != NEVER else None)
        return None

    async def _give_back(self, hits: Sequence[Hit], tallies: Sequence[Tally], decision: Decision) -> None:
        """Take back what was charged: a refusal charges nothing (invariant 3)."""
        back = [
            Settlement(hit.key, hit.quota, hit.cost, 0, hit.rule, hit.lease, decision.now_ms)
            for hit, tally in zip(hits, tallies, strict=True)
            if hit.cost > 0 and not tally.retry_after_ms
        ]
        if back:
            await self._engine.settle(back, decision.source)


@lru_cache(1024)
def _in_shadow(rule: Rule) -> Rule:
    """Return *rule* as the store is to see it if it may refuse alone but not for the call."""
    return replace(rule, mode=Mode.SHADOW)


def _blocks(part: Part) -> bool:
    return any(is_blocking(rule) for rule in part.answers)


def _special(rule: Rule) -> bool:
    match = rule.descriptors
    return rule.leased or (match is not None and (match.candidate or match.refunds))
