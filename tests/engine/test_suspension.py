"""Goal: with all rules in shadow by an operator's order, everything is counted and reported as if they were obeyed.
Method: random traffic on every kind of limit, through a limiter that is told so and its twin that is not.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.overrides import RuntimeOverrides
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import CostFrom, Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.reference_store import kinds, mixed_gaps_ms, rule_with
from tests.requesting import per_minute, request

KEYS = (Source("header", "x-api-key"),)


class Twin:
    """A limiter of its own store."""

    def __init__(self, policy: Policy, *, shadow: bool) -> None:
        self.clock = FakeClock()
        self.limiter = Limiter(policy, MemoryStore(clock=self.clock), clock=self.clock)
        self.limiter.apply(RuntimeOverrides("v", shadow=shadow))
        self.open: list[Any] = []

    async def ask(self, key: str, status: int, cost: int, *, ends: bool) -> tuple[Any, ...]:
        asked = request("/", headers=[("x-api-key", key)])
        decision, _, _, pending = await self.limiter.judge(asked)
        # The twin's refused requests have no response: what is settled is settled of those that both admit.
        if pending is not None:
            pending.responded(status, [(b"x-cost", b"%d" % cost)])
            if ends:
                pending.ended()
            else:
                self.open.append(pending)
        await self.limiter.settled()
        numbers = [(o.rule.name, o.remaining, o.reset_ms, o.retry_after_ms) for o in decision.outcomes]
        return numbers, decision.now_ms, decision.source


def policies(data: st.DataObject) -> Policy:
    rules = []
    for number, quota in enumerate(data.draw(st.lists(kinds(), min_size=1, max_size=4))):
        others: dict[str, Any] = {"principal": KEYS}
        if quota.kind != "slots":
            others["count"] = data.draw(st.sampled_from([frozenset(), frozenset({"2xx"}), frozenset({"401"})]))
            if data.draw(st.booleans()):
                others["cost_from"] = CostFrom("response_header", "x-cost")
        shadow = data.draw(st.integers(0, 4)) == 0
        rules.append(rule_with(quota, f"rule-{number}", shadow=shadow, **others))
    return Policy(tuple(rules))


@given(st.data())
def test_all_is_counted_as_if_it_were_obeyed(data: st.DataObject) -> None:
    """Every figure of every rule is that of the enforcing twin, request by request; and nobody is refused."""
    policy = policies(data)

    async def run() -> None:
        obeyed, suspended = Twin(policy, shadow=False), Twin(policy, shadow=True)
        for _ in range(data.draw(st.integers(1, 15))):
            gap_ms = data.draw(mixed_gaps_ms(data.draw(st.sampled_from(policy.rules)).quota))
            for twin in (obeyed, suspended):
                twin.clock.advance(max(0, gap_ms))
            key, status = data.draw(st.sampled_from("ab")), data.draw(st.sampled_from([200, 401, 500]))
            cost, ends = data.draw(st.integers(0, 3)), data.draw(st.booleans())
            expected = await obeyed.ask(key, status, cost, ends=ends)
            assert expected == await suspended.ask(key, status, cost, ends=ends)
        assert all(each.allowed for each in await decisions(suspended))

    async def decisions(twin: Twin) -> list[Any]:
        return [(await twin.limiter.judge(request("/", headers=[("x-api-key", "a")]))).decision for _ in range(20)]

    asyncio.run(run())


@given(kinds(), st.data())
def test_a_rule_in_shadow_has_the_figures_of_its_enforcing_twin(quota: Any, data: st.DataObject) -> None:
    """By the policy, too: alone, request by request, and nobody is refused."""

    async def run() -> None:
        enforcing = Twin(Policy((rule_with(quota, principal=KEYS),)), shadow=False)
        shadow = Twin(Policy((rule_with(quota, shadow=True, principal=KEYS),)), shadow=False)
        for _ in range(data.draw(st.integers(1, 15))):
            gap_ms = max(0, data.draw(mixed_gaps_ms(quota)))
            for twin in (enforcing, shadow):
                twin.clock.advance(gap_ms)
            ends = data.draw(st.booleans())
            assert await enforcing.ask("a", 200, 1, ends=ends) == await shadow.ask("a", 200, 1, ends=ends)

    asyncio.run(run())


def test_rules_stay_what_they_are() -> None:
    """The policy itself is not changed by it: off again, it refuses as before."""
    policy = Policy((Rule("rule", Quota(1, 60_000)),))

    async def run() -> list[bool]:
        limiter = Limiter(policy, MemoryStore())
        asked = []
        for shadow in (False, True, False):
            limiter.apply(RuntimeOverrides("v", shadow=shadow))
            asked += [(await limiter.judge(request("/"))).decision.allowed for _ in range(2)]
        return asked

    assert [True, False, True, True, False, False] == asyncio.run(run())


async def test_figures_stay_while_the_switch_is_on(clock: FakeClock) -> None:
    """Clients see the same remaining and reset, whether an operator has put all rules in shadow mode or not."""
    told = []
    for overrides in (RuntimeOverrides(), RuntimeOverrides(shadow=True)):
        limiter = Limiter(Policy((per_minute(3),)), MemoryStore(clock=clock), clock=clock)
        limiter.apply(overrides)
        bindings = [(await limiter.judge(request())).decision.binding for _ in range(3)]
        told.append([(one.rule.name, one.remaining, one.reset_ms) for one in bindings if one is not None])

    assert 3 == len(told[0])
    assert told[0] == told[1]
