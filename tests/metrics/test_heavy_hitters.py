"""Who is refused most, in bounded memory."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.overrides import FOR_EVER, Block, RuntimeOverrides
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import CLIENT, parse_source
from ratelimiter.core.rule import Mode
from ratelimiter.engine.limiter import Limiter
from ratelimiter.metrics.heavy_hitters import HEAVIEST, REFUSED, Heaviest, Top
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from ratelimiter.core.rule import Rule
    from ratelimiter.testing import FakeClock

BY_KEY = (parse_source("header:x-api-key"),)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), max_size=120), st.integers(1, 6))
def test_no_count_is_too_small_and_none_much_too_large(events: list[tuple[int, int]], keys_max: int) -> None:
    """The bounds of the space-saving algorithm hold, whatever comes in whatever order."""
    heaviest, truth = Heaviest(keys_max), Counter[bytes]()
    for name, count in events:
        heaviest.add(b"%d" % name, count)
        truth[b"%d" % name] += count
    held = {weight.key: weight for weight in heaviest.largest(keys_max)}

    assert len(heaviest) == len(held) <= keys_max
    assert sum(truth.values()) == sum(weight.total for weight in held.values())
    for weight in held.values():
        assert weight.total - weight.surplus <= truth[weight.key] <= weight.total
        assert weight.surplus <= sum(truth.values()) / keys_max
    for key, count in truth.items():
        assert count <= sum(truth.values()) / keys_max or key in held


def test_a_flood_of_names_hides_nobody() -> None:
    """Ten thousand principals that come once each push the three who matter neither out nor down."""
    heaviest, random_ = Heaviest(100), random.Random(7)  # noqa: S311 - shuffles
    events = [b"x%d" % n for n in range(10_000)] + [b"a"] * 900 + [b"b"] * 600 + [b"c"] * 300
    random_.shuffle(events)
    for name in events:
        heaviest.add(name, 1)

    assert [b"a", b"b", b"c"] == [weight.key for weight in heaviest.largest(3)]
    assert 100 == len(heaviest)


class Watched:
    """A limiter with a list of its heaviest principals."""

    def __init__(self, clock: FakeClock, *rules: Rule, show: bool = False, **settings: int) -> None:
        self.top = Top(clock=clock, **settings)
        policy = Policy(rules, show_principals=show)
        self.limiter = Limiter(policy, MemoryStore(clock=clock), observer=self.top, clock=clock)

    async def ask(self, key: str, times: int) -> str:
        """The digest of who has asked."""
        asking = request(headers=[("x-api-key", key)])
        for _ in range(times):
            await self.limiter.judge(asking)
        return self.limiter.hits(asking)[0].key.decode().split("}")[0].split("{")[1]


def told(part: list[dict[str, Any]], unit: str) -> list[tuple[str, str, int]]:
    return [(each["principal"], each["rule"], each[unit]) for each in part]


async def test_heaviest_and_refused_are_told_apart(clock: FakeClock) -> None:
    """Who spends most is the heaviest in units, who was turned away most often in refusals; names are digests."""
    watched = Watched(clock, per_minute(3, principal=BY_KEY))
    alice, bob = await watched.ask("alice", 2), await watched.ask("bob", 10)
    now = watched.top.report()["now"]

    assert [(bob, "rule", 3), (alice, "rule", 2)] == told(now["heaviest"], "units")
    assert [(bob, "rule", 7)] == told(now["refused"], "refusals")
    assert "alice" not in str(watched.top.report())


async def test_only_the_rule_that_refuses_counts_a_refusal(clock: FakeClock) -> None:
    """A rule with room is not blamed, and a burst's second window is no second request."""
    watched = Watched(clock, per_minute(1, name="tight", burst=1, cost=1), per_minute(100, name="wide", cost=5))
    await watched.ask("x", 4)
    now = watched.top.report()["now"]

    assert [("wide", 10), ("tight", 2)] == [(each["rule"], each["units"]) for each in now["heaviest"]]
    assert [("tight", 2)] == [(each["rule"], each["refusals"]) for each in now["refused"]]


async def test_counts_are_of_the_last_minute_and_this_one(clock: FakeClock) -> None:
    """After a minute the counts begin anew beside the old ones; after two idle minutes nothing is left."""
    watched = Watched(clock, per_minute(100, principal=BY_KEY))
    alice = await watched.ask("alice", 2)
    clock.advance(60_000)
    bob = await watched.ask("bob", 1)
    report = watched.top.report()
    clock.advance(120_000)
    idle = watched.top.report()

    assert [(alice, "rule", 2)] == told(report["before"]["heaviest"], "units")
    assert [(bob, "rule", 1)] == told(report["now"]["heaviest"], "units")
    assert [] == idle["before"]["heaviest"] == idle["now"]["heaviest"]


async def test_memory_is_bounded(clock: FakeClock) -> None:
    """However many principals come, the table holds what it holds."""
    watched = Watched(clock, per_minute(1, principal=BY_KEY), keys_max=50)
    for number in range(500):
        await watched.ask(f"key-{number}", 2)

    assert 50 == len(watched.top.report(1000)["now"]["heaviest"]) == len(watched.top.report(1000)["now"]["refused"])


def names(top: Top, number: int = 1000) -> set[str | None]:
    """Of all that are told of."""
    report = top.report(number)
    return {each.get("name") for span in ("now", "before") for part in report[span].values() for each in part}


async def test_names_are_shown_where_the_policy_permits(clock: FakeClock) -> None:
    """Beside the digest, of whoever is refused and whoever is heavy, in this minute and the last."""
    watched = Watched(clock, per_minute(3, principal=BY_KEY), show=True)
    await watched.ask("alice", 2)
    bob = await watched.ask("bob", 10)
    [refused] = watched.top.report()["now"]["refused"]
    clock.advance(60_000)
    await watched.ask("carol", 1)

    assert {"principal": bob, "name": "bob", "rule": "rule", "refusals": 7, "at_most_too_many": 0} == refused
    assert {"alice", "bob", "carol"} == names(watched.top)


async def test_names_are_kept_for_those_in_the_tables_only(clock: FakeClock) -> None:
    """Whoever is pushed out is forgotten, and nobody waits for a batch to be full."""
    watched = Watched(clock, per_minute(1, principal=BY_KEY), show=True, keys_max=50)
    for number in range(500):
        await watched.ask(f"key-{number}", 2)
    shown = names(watched.top)

    assert 50 <= len(shown) <= 100
    assert shown >= {"key-499"}
    assert len(watched.top._now[HEAVIEST]._names) == len(watched.top._now[REFUSED]._names) == 50
    assert {} == watched.top._names


async def test_a_policy_that_forbids_names_has_them_forgotten(clock: FakeClock) -> None:
    """At its reload, and also of those that are not counted yet."""
    rule = per_minute(3, principal=BY_KEY)
    watched = Watched(clock, rule, show=True)
    await watched.ask("alice", 5)
    watched.top.report()
    await watched.ask("bob", 5)
    watched.limiter.swap(Policy((rule,)))
    await watched.ask("carol", 5)

    assert {None} == names(watched.top)


async def test_no_credential_is_a_name(clock: FakeClock) -> None:
    """A bearer token that nobody has verified stays a digest; addresses have no secret."""
    watched = Watched(clock, per_minute(principal=(parse_source("bearer"), CLIENT)), show=True)
    await watched.limiter.judge(request(headers=[("authorization", "Bearer s3cret")]))
    await watched.limiter.judge(request(peer="192.0.2.7"))

    assert {None, "192.0.2.7"} == names(watched.top)


async def test_refusals_in_shadow_are_counted_by_principal(clock: FakeClock) -> None:
    """Principals that a rule in shadow mode would refuse are told: alone, beside other rules, and by the switch."""
    shadow = per_minute(2, name="shadow", principal=BY_KEY, mode=Mode.SHADOW)
    plenty = per_minute(100, name="plenty", principal=BY_KEY)
    for rules in ((shadow,), (shadow, plenty)):
        watched = Watched(clock, *rules)
        alice = await watched.ask("alice", 5)
        await watched.ask("bob", 2)
        report = watched.top.report()

        assert [(alice, "shadow", 3)] == told(report["now"]["would_refuse"], "shadow_refusals")
        assert [] == report["now"]["refused"]
    watched = Watched(clock, per_minute(2, name="enforced", principal=BY_KEY))
    watched.limiter.apply(RuntimeOverrides(shadow=True))
    alice = await watched.ask("alice", 5)
    assert [(alice, "enforced", 3)] == told(watched.top.report()["now"]["would_refuse"], "shadow_refusals")


async def test_requests_of_the_blocked_are_counted(clock: FakeClock) -> None:
    """A blocked principal that goes on asking is seen."""
    watched = Watched(clock, per_minute(100, principal=BY_KEY))
    alice = await watched.ask("alice", 1)
    watched.limiter.apply(RuntimeOverrides(blocks=(Block(alice, FOR_EVER),)))
    asking = request(headers=[("x-api-key", "alice")])
    for _ in range(7):
        assert not (await watched.limiter.judge(asking)).decision.allowed

    assert [(alice, "rule", 7)] == told(watched.top.report()["now"]["blocked"], "requests")
