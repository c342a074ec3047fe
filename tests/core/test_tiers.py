"""Goal: each principal meets the limits that are meant for it, and what it was counted stays. Method: a limiter on the
embedded store, asked as callers would.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.core.client_address import Trust
from ratelimiter.core.decision import BLOCKED, BLOCKED_WAIT_MS, MALFORMED, OVER_LIMIT, UNMATCHED, WITHIN_LIMIT
from ratelimiter.core.headers import x_ratelimit
from ratelimiter.core.identity import Identity
from ratelimiter.core.match import Match
from ratelimiter.core.override_table import OverrideTableBuilder
from ratelimiter.core.overrides import Block, Override, PlanChoice, RuntimeOverrides, parse_pattern
from ratelimiter.core.planner import Planner, reader_for
from ratelimiter.core.policy import Policy, adapted, override_fault
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.rule import Rule
from tests.requesting import Gate, request

if TYPE_CHECKING:
    from collections.abc import Generator

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.override_table import OverrideTable
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.request import Request

MINUTE = 60_000
KEY = Source("header", "x-api-key")
BY_PLAN = (("basic", Quota(1, MINUTE)), ("pro", Quota(3, MINUTE)), ("free", None))
PLANS = PlanChoice("basic", (Source("header", "x-plan"),))
TRUSTED = Trust(proxies=(ip_network("10.0.0.0/8"),))


def by_plan(**more: Any) -> Rule:
    return Rule("rule", Quota(1, MINUTE), principal=(KEY,), **{"plans": BY_PLAN, **more})


def of(key: str, plan: str = "", *, peer: str = "10.0.0.1") -> Request:
    headers = [("x-api-key", key), *([("x-plan", plan)] if plan else [])]
    return request("/", headers=headers, peer=peer)


def digest(policy: Policy, key: str) -> str:
    return reader_for(policy).principal("header:x-api-key", key.encode()).digest


def limit(decision: Decision) -> str:
    headers = dict(x_ratelimit(decision))
    return f"{headers[b'x-ratelimit-remaining'].decode()} of {headers[b'x-ratelimit-limit'].decode()}"


class TestPlans:
    """The limits of a plan."""

    @pytest.fixture
    def gate(self) -> Gate:
        return Gate(by_plan(), plan=PLANS, trust=TRUSTED)

    async def test_the_header_of_a_trusted_peer(self, gate: Gate) -> None:
        """It says the plan, and the answer's headers have its figures."""
        decisions = await gate.decide(of("a"), of("b", "pro"), of("c", "basic"))

        assert ["0 of 1", "2 of 3", "0 of 1"] == [limit(decision) for decision in decisions]

    async def test_the_header_of_anybody_else(self, gate: Gate) -> None:
        """It says nothing, nor is it even read: twice there, it refuses nobody."""
        twice = request("/", headers=[("x-api-key", "b"), ("x-plan", "pro"), ("X-Plan", "pro")], peer="192.0.2.1")

        assert ["0 of 1", "0 of 1"] == [limit(d) for d in await gate.decide(of("a", "pro", peer="192.0.2.1"), twice)]

    async def test_a_plan_without_a_limit(self, gate: Gate) -> None:
        """Nothing is counted for it."""
        assert [UNMATCHED] * 5 == await gate.reasons(*[of("a", "free")] * 5)
        assert [WITHIN_LIMIT, OVER_LIMIT] == await gate.reasons(*[of("a")] * 2)

    async def test_counters_are_kept_when_the_plan_changes(self, gate: Gate) -> None:
        """Up and down again: what was spent is spent."""
        assert [WITHIN_LIMIT, OVER_LIMIT] == await gate.reasons(of("a"), of("a"))
        assert ["1 of 3", "0 of 3"] == [limit(d) for d in await gate.decide(of("a", "pro"), of("a", "pro"))]
        assert [OVER_LIMIT, OVER_LIMIT] == await gate.reasons(of("a", "pro"), of("a"))

    async def test_an_unknown_plan_is_the_default_and_told_once(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And no more than a few of them are told, whatever somebody makes up."""
        for number in range(100):
            assert ["0 of 1"] == [limit(d) for d in await gate.decide(of(f"k{number}", f"gold{number % 50}"))]

        assert "gold0" in caplog.text
        assert 1 == caplog.text.count("'gold0'")
        assert 32 == len(caplog.records)

    def test_credentials_say_before_the_header(self) -> None:
        """What is verified wins over what a peer says."""
        planner = Planner(Policy((by_plan(),), plan=PLANS, trust=TRUSTED))
        asked = of("a", "basic")
        plan = planner.rule_set(asked)

        assert 3 == plan.hits_of(asked, Identity(plan="pro"))[0].quota.limit
        assert 1 == plan.hits_of(asked, Identity(plan=""))[0].quota.limit
        assert () == plan.hits_of(asked, Identity(plan="free"))

    async def test_rules_by_plan_beside_others(self) -> None:
        """Two windows at once, each by plan, and one that is the same for all."""
        hourly = Rule(
            "hourly", Quota(2, 3_600_000), principal=(KEY,), plans=(("basic", Quota(2, 3_600_000)), ("pro", None))
        )
        gate = Gate(Rule("minute", Quota(2, MINUTE), principal=(KEY,)), hourly, plan=PlanChoice("basic"))

        assert [2, 2] == [outcome.rule.quota.limit for outcome in (await gate.decide(of("a")))[0].outcomes]

    async def test_a_burst_stays(self) -> None:
        """What the rule says beside its limit holds for every plan."""
        gate = Gate(by_plan(burst=2), plan=PLANS, trust=TRUSTED)

        assert 3 == await gate.admitted([of("a")] * 9)
        assert 5 == await gate.admitted([of("b", "pro")] * 9)


def test_plain_policies_take_the_plain_way() -> None:
    """Where all principals meet the same rules nothing is asked: that is decided when the policy is loaded."""
    assert Planner(Policy((Rule("rule", Quota(1, MINUTE)),))).tiers is None
    assert Planner(Policy((by_plan(),), plan=PLANS)).tiers is not None


@pytest.mark.parametrize(
    ("rules", "plan", "fault"),
    [
        ([by_plan()], None, "plan does not say"),
        ([by_plan(plans=(("pro", Quota(3, MINUTE)),))], PLANS, "no limit for plan basic"),
        ([by_plan(), replace(by_plan(plans=BY_PLAN[:1]), name="other")], PLANS, "rule other has no limit for plan pro"),
        ([by_plan(burst=10, plans=(("basic", Quota(10**8, MINUTE)),))], PLANS, "plan basic: burst must be"),
        ([by_plan(cost=2)], PLANS, "plan basic: the cost of 2 never fits a limit of 1"),
    ],
)
def test_plans_that_cannot_be(rules: list[Rule], plan: PlanChoice | None, fault: str) -> None:
    """A policy whose plans have holes is refused whole."""
    with pytest.raises(ValueError, match=fault):
        Policy(tuple(rules), plan=plan)


class TestOverrides:
    """What is different for some principals."""

    def policy(self, *overrides: Override, **more: Any) -> Policy:
        rules = (by_plan(), Rule("hour", Quota(100, 3_600_000), principal=(KEY,)))
        return Policy(rules, plan=PLANS, trust=TRUSTED, overrides=overrides, **more)

    def limits(
        self, policy: Policy, key: str, *, orders: RuntimeOverrides | None = None, now_ms: int = 0, plan: str = ""
    ) -> list[int]:
        planner = Planner(policy, orders or RuntimeOverrides(), now_ms=now_ms)
        return [hit.quota.limit for hit in planner.hits(of(key, plan))]

    def exact(self, key: str, **more: Any) -> Override:
        return Override(frozenset({digest(self.policy(), key)}), **more)

    def fitting(self, pattern: str, **more: Any) -> Override:
        return Override(frozenset({"~"}), parse_pattern(pattern), **more)

    def test_exact_before_pattern_before_plan_before_default(self) -> None:
        """The more exactly somebody is meant, the more it counts, in whatever order it is written."""
        policy = self.policy(
            self.fitting("a*", rule="rule", quota=Quota(20, MINUTE)),
            self.exact("alice", rule="rule", quota=Quota(30, MINUTE)),
        )

        assert [30, 100] == self.limits(policy, "alice", plan="pro")
        assert [20, 100] == self.limits(policy, "alan", plan="pro")
        assert [3, 100] == self.limits(policy, "bob", plan="pro")
        assert [1, 100] == self.limits(policy, "bob")

    def test_of_one_rule_before_all(self) -> None:
        """An override for one rule leaves the others to what is said of all."""
        policy = self.policy(self.exact("a", plan="pro"), self.exact("a", rule="rule", quota=Quota(7, MINUTE)))

        assert [7, 100] == self.limits(policy, "a")

    def test_exact_of_all_before_a_pattern_of_one_rule(self) -> None:
        """Exactness of the principal comes first."""
        policy = self.policy(self.fitting("*", rule="rule", quota=Quota(7, MINUTE)), self.exact("a", plan="pro"))

        assert [3, 100] == self.limits(policy, "a")

    def test_a_limit_for_all_is_for_those_of_its_window(self) -> None:
        """60/hour says nothing of a rule per minute."""
        assert [1, 7] == self.limits(self.policy(self.exact("a", quota=Quota(7, 3_600_000))), "a")

    def test_no_limit(self) -> None:
        """With neither limit nor plan, for one rule or for all."""
        assert [100] == self.limits(self.policy(self.exact("a", rule="rule")), "a")
        assert [] == self.limits(self.policy(self.exact("a")), "a")

    def test_run_time_before_the_file(self) -> None:
        """Equally exact, what an operator has just ordered prevails."""
        policy = self.policy(self.exact("a", rule="rule", quota=Quota(7, MINUTE)))
        orders = RuntimeOverrides(overrides=(self.exact("a", rule="rule", quota=Quota(8, MINUTE)),))

        assert [8, 100] == self.limits(policy, "a", orders=orders)
        assert [7, 100] == self.limits(policy, "a")

    def test_the_file_s_end_too(self) -> None:
        """An override of the policy holds until its moment."""
        policy = self.policy(self.exact("a", rule="rule", quota=Quota(7, MINUTE), until_ms=1000))

        assert [7, 100] == self.limits(policy, "a", now_ms=999)
        assert [1, 100] == self.limits(policy, "a", now_ms=1000)

    def test_a_pattern_of_one_source(self) -> None:
        """It is not held against what was found elsewhere."""
        policy = self.policy(self.fitting("*", source="bearer", rule="rule", quota=Quota(7, MINUTE)))

        assert [1, 100] == self.limits(policy, "a")

    def test_what_is_remembered_is_bounded_and_right(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many principals come, each meets its own limit."""
        monkeypatch.setattr("ratelimiter.core.tiers.PRINCIPALS_MAX", 3)
        policy = self.policy(self.fitting("*7", rule="rule", quota=Quota(7, MINUTE)))
        planner = Planner(policy)
        for _ in range(2):
            for number in range(30):
                assert (7 if number % 10 == 7 else 1) == planner.hits(of(f"k{number}"))[0].quota.limit
        assert planner.tiers is not None
        assert len(planner.tiers._applying) <= 3

    def test_a_principal_s_value_is_nowhere_shown(self) -> None:
        """Neither in the representation of a policy nor in that of its overrides (8)."""
        assert "secretive" not in repr(self.policy(self.fitting("secretive*", plan="pro")))


@pytest.mark.parametrize(
    ("own", "given", "named", "expected"),
    [
        (Quota(1, MINUTE), Quota(5, 1000), True, Quota(5, 1000)),
        (Quota(1, MINUTE), Quota(5, 1000), False, None),
        (Bucket(10, 1, 1000), Quota(5, 1000), False, Bucket(10, 5, 1000)),
        (Bucket(10, 1, 1000), Quota(50, 1000), False, Bucket(50, 50, 1000)),
        (Bucket(10, 1, 1000), Quota(5, MINUTE), False, None),
        (Period(5, "month", "Europe/Berlin"), Period(9, "month"), False, Period(9, "month", "Europe/Berlin")),
        (Period(5, "month"), Period(9, "year"), True, None),
        (Period(5, "day", "Europe/Berlin"), Quota(9, 86_400_000), False, Period(9, "day", "Europe/Berlin")),
        (Period(5, "month"), Quota(9, MINUTE), True, None),
        (Slots(5, 1000), Slots(9), False, Slots(9, 1000)),
        (Balance(5), Balance(9), False, Balance(9)),
        (Balance(5), Slots(9), True, None),
        (Slots(5), Quota(9, MINUTE), True, None),
    ],
)
def test_the_number_is_the_override_s_and_all_else_the_rule_s(
    own: AnyQuota, given: AnyQuota, named: bool, expected: AnyQuota | None
) -> None:
    """A limit of another kind is none of this rule."""
    assert expected == adapted(Rule("rule", own), given, named=named)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (Override(frozenset({"a"}), rule="other"), "'other' is no rule; write rule or credits"),
        (Override(frozenset({"a"}), plan="gold"), "'gold' is no plan; write basic or pro"),
        (Override(frozenset({"a"}), rule="credits", quota=Quota(1, MINUTE)), "credits limits something else"),
        (Override(frozenset({"a"}), quota=Quota(1, 1000)), "no rule has this kind and window"),
        (Override(frozenset({"a"}), rule="rule", quota=Quota(1, MINUTE)), "the cost of 2 never fits a limit of 1"),
        (Override(frozenset({"a"}), rule="rule", quota=Quota(2, MINUTE)), ""),
    ],
)
def test_overrides_that_mean_nothing(override: Override, fault: str) -> None:
    """They are refused with what would do."""
    plans = (("basic", Quota(5, MINUTE)), ("pro", None))
    policy = Policy((by_plan(cost=2, plans=plans), Rule("credits", Balance(5))), plan=PLANS)

    assert override_fault(policy, override).startswith(fault)
    assert bool(fault) == bool(override_fault(policy, override))


class TestBlocks:
    """Who is blocked is refused, and charged nothing."""

    async def test_until_it_ends(self) -> None:
        """Retry-After is what is left of it, to the millisecond here; others go on."""
        gate = Gate(by_plan(), plan=PLANS)
        until_ms = gate.clock() + 5000
        gate.limiter.apply(RuntimeOverrides("v", blocks=(Block(digest(gate.policy, "a"), until_ms),)))
        gate.clock.advance(1500)
        refused, admitted = await gate.decide(of("a"), of("b"))

        assert (False, BLOCKED, 3500) == (refused.allowed, refused.reason, refused.retry_after_ms)
        assert admitted.allowed
        gate.limiter.apply(RuntimeOverrides("w"))
        assert [WITHIN_LIMIT] == await gate.reasons(of("a"))

    async def test_until_further_notice(self) -> None:
        """Then a client is told to ask again in an hour."""
        gate = Gate(by_plan(), plan=PLANS)
        gate.limiter.apply(RuntimeOverrides("v", blocks=(Block(digest(gate.policy, "a"), 0),)))

        assert [BLOCKED_WAIT_MS] == [decision.retry_after_ms for decision in await gate.decide(of("a"))]

    async def test_by_whatever_name(self) -> None:
        """A blocked address gets in with no key, and a request that no rule matches is refused, too."""
        gate = Gate(by_plan(match=Match(path="/v1/**")), plan=PLANS)
        blocked = reader_for(gate.policy).principal("client", b"192.0.2.1").digest
        gate.limiter.apply(RuntimeOverrides("v", blocks=(Block(blocked, 0),)))
        elsewhere = request("/elsewhere", peer="192.0.2.1")

        assert [BLOCKED, BLOCKED, UNMATCHED] == await gate.reasons(
            of("a", peer="192.0.2.1"), elsewhere, elsewhere._replace(peer="192.0.2.2")
        )

    async def test_a_header_that_no_rule_looks_at_here(self) -> None:
        """That somebody is blocked makes nobody else's request malformed."""
        gate = Gate(by_plan(match=Match(path="/v1/**")), plan=PLANS)
        gate.limiter.apply(RuntimeOverrides("v", blocks=(Block(digest(gate.policy, "a"), 0),)))
        twice = request("/elsewhere", headers=[("x-api-key", "b"), ("X-Api-Key", "c")])

        assert [UNMATCHED, MALFORMED] == await gate.reasons(twice, twice._replace(target=b"/v1/x"))

    async def test_no_store_is_asked(self) -> None:
        """A flood of a blocked principal costs the store nothing."""
        gate = Gate(by_plan(), plan=PLANS)
        gate.limiter.apply(RuntimeOverrides("v", blocks=(Block(digest(gate.policy, "a"), 0),)))
        await gate.decide(*[of("a")] * 10)

        assert 0 == len(gate.limiter.store)  # type: ignore[arg-type]


class TestPlanOf:
    """The plan that the application and conditions are told."""

    def plan_of(self, planner: Planner, **identity: Any) -> str:
        told = Identity(**identity)
        assert planner.tiers is not None
        return planner.tiers.plan_of([(b"x-api-key", b"a")], "10.0.0.1", told.verified, told.plan)

    def planner(self, *overrides: Override, plan: PlanChoice | None = PLANS) -> Planner:
        rules = (by_plan(),) if plan else (Rule("rule", Quota(1, MINUTE), principal=(KEY,)),)
        return Planner(Policy(rules, plan=plan, trust=TRUSTED, overrides=overrides))

    def of_key(self, name: str, **more: Any) -> Override:
        return Override(frozenset({digest(self.planner().policy, name)}), **more)

    def test_an_override_says_before_the_credentials(self) -> None:
        """An override of all rules moves a verified caller to another plan, everywhere; of one rule it does not."""
        of_all, of_one = self.of_key("a", plan="pro"), self.of_key("a", plan="pro", rule="rule")
        verified = (("header:x-api-key", "a"),)

        assert "pro" == self.plan_of(self.planner(of_all), verified=verified, plan="basic")
        assert "basic" == self.plan_of(self.planner(of_one), verified=verified, plan="basic")
        assert "basic" == self.plan_of(self.planner(of_all), verified=(("header:x-api-key", "b"),))

    def test_without_plans_there_is_none(self) -> None:
        """A policy with overrides and no plans tells the application no plan, whatever a credential says."""
        assert "" == self.plan_of(self.planner(self.of_key("a"), plan=None), plan="pro")


def test_a_table_of_overrides_is_part_of_the_policy() -> None:
    """The rows of a file of very many apply beside what the policy says, which prevails for the principals it names."""
    builder = OverrideTableBuilder()
    plain = Policy((by_plan(),), plan=PLANS, trust=TRUSTED)
    for key in "ab":
        builder.add(bytes.fromhex(digest(plain, key)), 0)
    steps = builder.steps([Override(frozenset(), rule="rule", quota=Quota(9, MINUTE))])
    table = drained(steps)
    said = Override(frozenset({digest(plain, "a")}), rule="rule", quota=Quota(7, MINUTE))
    planner = Planner(replace(plain, overrides=(said,), override_table=table))

    assert [7, 9, 1] == [planner.hits(of(key))[0].quota.limit for key in "abc"]


def drained(steps: Generator[None, None, OverrideTable]) -> OverrideTable:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


async def test_a_network_of_clients() -> None:
    """Every address in it has the other limit, and a blocked one gets in by no key."""
    network = Override(frozenset({"n"}), network=ip_network("192.0.2.0/24"), plan="pro")
    gate = Gate(replace(by_plan(), principal=(Source("client"),)), plan=PLANS, overrides=(network,))

    assert [3, 1] == [gate.limiter.hits(request(peer=peer))[0].quota.limit for peer in ("192.0.2.77", "198.51.100.1")]
    gate.limiter.apply(RuntimeOverrides("v", blocks=(Block("n", 0, ip_network("192.0.2.0/24")),)))
    assert [BLOCKED, WITHIN_LIMIT] == await gate.reasons(of("a", peer="192.0.2.77"), of("a", peer="198.51.100.1"))


def test_the_first_header_that_names_a_plan_counts() -> None:
    """A trusted peer may name it in one of several."""
    plans = PlanChoice("basic", (Source("header", "x-tier"), Source("header", "x-plan")))
    planner = Planner(Policy((by_plan(),), plan=plans, trust=TRUSTED))

    def limit_of(*headers: tuple[str, str]) -> int:
        return planner.hits(request(headers=[("x-api-key", "a"), *headers], peer="10.0.0.1"))[0].quota.limit

    assert [3, 3, 1, 1] == [
        limit_of(("x-plan", "pro")),
        limit_of(("x-plan", "basic"), ("x-tier", "pro")),
        limit_of(("x-plan", "pro"), ("x-tier", "basic")),
        limit_of(),
    ]
