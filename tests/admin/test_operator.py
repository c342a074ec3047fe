"""Goal: each verb does what it says, to whom it says, and leaves a line of audit. Method: the embedded store, with a
clock as argument.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.admin.expiry import Expiry, read_expiry
from ratelimiter.admin.operator import Operator
from ratelimiter.core.overrides import PlanChoice
from ratelimiter.core.planner import reader_for
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.rule import Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.engine.override_watcher import OverrideWatcher
from ratelimiter.errors import ConfigError, StoreError
from ratelimiter.stores import overrides
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.requesting import request
from tests.stores.redis.test_store import PATIENT_MS
from tests.stores.redis_server import RedisServer, free_port

if TYPE_CHECKING:
    from ratelimiter.core.request import Request

MINUTE = 60_000
KEY = Source("header", "x-api-key")
ALICE = "header:X-API-Key=alice"
PLANS = (("basic", Quota(3, MINUTE)), ("pro", Quota(9, MINUTE)))
POLICY = Policy(
    (
        Rule("minute", Quota(3, MINUTE), principal=(KEY,), plans=PLANS, burst=1),
        Rule("address", Quota(100, MINUTE)),
    ),
    plan=PlanChoice("basic"),
)
DIGEST = reader_for(POLICY).principal("header:x-api-key", b"alice").digest


class Scene:
    """A limiter that obeys, and an operator beside it."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.clock = FakeClock()
        self.limiter = Limiter(policy, MemoryStore(clock=self.clock), clock=self.clock)
        self.standing = OverrideWatcher(self.limiter, clock=self.clock)
        self.operator = Operator(lambda: self.limiter.policy, self.limiter.store, "user:ann")

    async def admitted(self, count: int, key: str = "alice") -> int:
        return sum([(await self.limiter.judge(of(key))).decision.allowed for _ in range(count)])


@pytest.fixture
def scene() -> Scene:
    return Scene()


def of(key: str = "alice") -> Request:
    return request("/", headers=[("x-api-key", key)])


async def test_peek_says_what_is_counted(scene: Scene) -> None:
    """Every rule that may charge the principal, with the figures that its next answer would have."""
    await scene.admitted(2)
    scene.clock.advance(1000)
    told = await scene.operator.peek(ALICE)

    assert {
        "digest": DIGEST,
        "plan": "basic",
        "blocked": None,
        "shadow": False,
        "rules": [
            {
                "rule": "minute",
                "limit": "3 per minute",
                "kind": "window",
                "used": 2,
                "remaining": 1,
                "reset_ms": 59_000,
                "override": None,
            }
        ],
    } == told
    assert told == await scene.operator.peek(f"digest={DIGEST}") | {"rules": told["rules"]}


async def test_peek_changes_nothing(scene: Scene) -> None:
    """However often, for known and for unknown principals."""
    await scene.admitted(4)
    before = await scene.operator.peek(ALICE)
    for _ in range(5):
        await scene.operator.peek(ALICE)
        await scene.operator.peek("client=192.0.2.1")

    assert before == await scene.operator.peek(ALICE)
    assert 0 == before["rules"][0]["remaining"]
    assert [] == await scene.operator.told()
    assert 3 == len(scene.limiter.store)  # type: ignore[arg-type]  # two windows of a burst, and an address


async def test_peek_says_what_is_ordered(scene: Scene) -> None:
    """A block, an override and the switch; and limits of a plan that is asked for."""
    await scene.operator.block(ALICE, Expiry(for_ms=5000))
    await scene.operator.set_override(ALICE, rule="minute", limit="7/minute", expiry=Expiry(for_ms=9000))
    await scene.operator.shadow(on=True)
    told = await scene.operator.peek(ALICE, plan="pro")

    assert ({"until_ms": scene.clock() + 5000}, True, "pro") == (told["blocked"], told["shadow"], told["plan"])
    assert "7 per minute" == told["rules"][0]["limit"]
    assert ("7 per minute", scene.clock() + 9000) == (
        told["rules"][0]["override"]["limit"],
        told["rules"][0]["override"]["until_ms"],
    )
    assert "9 per minute" == (await scene.operator.peek("header:X-API-Key=bob", plan="pro"))["rules"][0]["limit"]


async def test_reset_of_one_rule(scene: Scene) -> None:
    """The others keep what they have."""
    two = Policy((*POLICY.rules, Rule("hour", Quota(50, 60 * MINUTE), principal=(KEY,))), plan=PLANS and POLICY.plan)
    scene = Scene(two)
    await scene.admitted(5)
    assert {"digest": DIGEST, "rules": ["minute"]} == await scene.operator.reset(ALICE, rule="minute")

    assert [0, 4] == [rule["used"] for rule in (await scene.operator.peek(ALICE))["rules"]]


async def test_override_by_plan_and_by_pattern(scene: Scene) -> None:
    """For one, and for all that fit; the counters stay."""
    assert 4 == await scene.admitted(9)
    await scene.operator.set_override(ALICE, plan="pro")
    assert 6 == await scene.admitted(9)
    told = await scene.operator.set_override("header:X-API-Key=batch-*", rule="minute", limit="unlimited")
    assert (False, "minute", "unlimited") == (told["replaced"], told["rule"], told["limit"])
    assert 50 == await scene.admitted(50, "batch-1")
    assert (await scene.operator.remove_override("header:X-API-Key=batch-*", rule="minute"))["was_set"]
    assert 4 == await scene.admitted(9, "batch-1")


async def test_the_list(scene: Scene) -> None:
    """All that is ordered, and what the policy file overrides."""
    await scene.operator.set_override(ALICE, rule="minute", limit="7/minute")
    await scene.operator.set_override("header:X-API-Key=batch-*", plan="pro", expiry=Expiry(for_ms=1000))
    await scene.operator.block(ALICE)
    told = await scene.operator.orders()

    assert {("7 per minute", None, None), (None, "pro", "batch-*")} == {
        (each["limit"], each["plan"], each["pattern"]) for each in told["overrides"]
    }
    assert [{"digest": DIGEST, "until_ms": None}] == told["blocks"]
    assert {"on": False, "until_ms": None} == told["shadow"]
    scene.clock.advance(1000)
    assert 1 == len((await scene.operator.orders())["overrides"])


async def test_audit(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Each verb leaves one line: who, what, whom by digest, what was before; those that change are kept, too."""
    caplog.set_level(logging.INFO, logger="ratelimiter.audit")
    await scene.operator.set_override(ALICE, rule="minute", limit="7/minute")
    await scene.operator.set_override(ALICE, rule="minute", limit="8/minute", expiry=Expiry(for_ms=1000))
    await scene.operator.as_who("token:bob").block(ALICE)
    await scene.operator.unblock(ALICE)
    await scene.operator.reset(ALICE)
    await scene.operator.shadow(on=True)
    await scene.operator.peek(ALICE)
    kept = list(reversed(await scene.operator.told()))
    lines = [json.loads(record.getMessage()) for record in caplog.records]

    assert ["override set"] * 2 + ["block", "unblock", "reset", "shadow"] == [line["verb"] for line in kept]
    assert [line["verb"] for line in kept] + ["peek"] == [line["verb"] for line in lines]
    assert ["user:ann", "user:ann", "token:bob", "user:ann", "user:ann", "user:ann"] == [line["who"] for line in kept]
    assert {
        "who": "user:ann",
        "verb": "override set",
        "digest": DIGEST,
        "rule": "minute",
        "new": {"limit": "8/minute"},
        "until_ms": scene.clock() + 1000,
        "at_ms": scene.clock(),
        "old": {"who": DIGEST, "rule": "minute", "limit": "7/minute"},
    } == kept[1]
    assert all(line.get("digest", DIGEST) == DIGEST for line in kept)
    assert "alice" not in caplog.text + json.dumps(kept)


@pytest.mark.parametrize(
    ("verb", "given", "fault"),
    [
        ("peek", {"principal": "alice"}, "principal: this is not a principal; write one like"),
        ("peek", {"principal": "header:X-Other=a"}, "principal: no rule charges header:x-other"),
        ("peek", {"principal": ALICE, "plan": "gold"}, "plan: 'gold' is no plan; write basic or pro"),
        ("peek", {"principal": "header:X-API-Key=a*"}, "principal: what is given is a pattern"),
        ("reset", {"principal": ALICE, "rule": "other"}, "rule: 'other' is no rule"),
        ("reset", {"principal": ALICE, "rule": "address"}, "rule: 'address' is no rule that charges header:x-api-key"),
        ("block", {"principal": ALICE, "expiry": Expiry(until_ms=1)}, "until: is not within"),
        ("block", {"principal": ALICE, "expiry": Expiry(for_ms=10**15)}, "until: is not within"),
        ("set_override", {"principal": ALICE, "limit": "7 parsecs"}, "override: '7 parsecs' is not a limit"),
        ("set_override", {"principal": ALICE, "plan": "gold"}, "override: 'gold' is no plan"),
        ("set_override", {"principal": ALICE, "rule": "x", "limit": "1/minute"}, "override: 'x' is no rule"),
        ("set_override", {"principal": ALICE, "limit": "1/hour"}, "override: no rule has this kind and window"),
        ("set_override", {"principal": ALICE}, "override: an override names a principal, and either"),
        ("set_override", {"principal": ALICE, "limit": "1/minute", "plan": "pro"}, "override: an override names"),
        ("set_override", {"principal": "header:X-O=*", "plan": "pro"}, "principal: no rule charges header:x-o"),
        ("topup", {"principal": ALICE, "units": 1}, "rule: what is given has no balance"),
    ],
)
async def test_what_means_nothing(scene: Scene, verb: str, given: dict[str, Any], fault: str) -> None:
    """It is refused with what would do, and nothing is changed."""
    with pytest.raises(ConfigError) as caught:
        await getattr(scene.operator, verb)(**given)

    assert str(caught.value).startswith(fault)
    assert [] == await scene.operator.told()


@pytest.mark.parametrize(
    ("for_", "until", "fault"),
    [
        ("10m", "2030-01-01T00:00:00Z", "until: excludes for"),
        ("soon", "", "for: 'soon' is not a duration"),
        ("0s", "", "for: 0s is over at once"),
        ("", "2030-01-01", "until: '2030-01-01' is not a moment with its time zone"),
        ("", "soon", "until: 'soon' is not a moment"),
    ],
)
def test_ends_that_are_none(for_: str, until: str, fault: str) -> None:
    """They are refused with what would do."""
    with pytest.raises(ConfigError) as caught:
        read_expiry(for_, until)

    assert str(caught.value).startswith(fault)


def test_ends() -> None:
    """A while, a moment, or none."""
    assert [Expiry(0, 600_000), Expiry(1_893_456_000_000, 0), Expiry()] == [
        read_expiry("10m", ""),
        read_expiry("", "2030-01-01T00:00:00Z"),
        read_expiry("", ""),
    ]


async def test_too_many_orders(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an end to them, and it is told."""
    monkeypatch.setattr(overrides, "ORDERS_MAX", 1)
    await scene.operator.block(ALICE)
    with pytest.raises(ConfigError, match="orders: there are as many as can be kept"):
        await scene.operator.block("header:X-API-Key=bob")


async def test_no_store(caplog: pytest.LogCaptureFixture) -> None:
    """An operator without a store hears of it, and the line of audit says that it came to nothing."""
    policy = Policy(POLICY.rules, plan=POLICY.plan, store=f"redis://127.0.0.1:{free_port()}/0")
    operator = Operator(lambda: policy, open_store(policy.store), "user:ann")
    for verb in (operator.peek(ALICE), operator.reset(ALICE), operator.block(ALICE), operator.orders()):
        with pytest.raises(StoreError):
            await verb
    assert {"failed": "unreachable"}.items() <= json.loads(caplog.records[-1].getMessage()).items()


def test_a_store_without_orders() -> None:
    """An approximate one keeps none."""
    with pytest.raises(ConfigError, match="store: keeps no orders"):
        Operator(lambda: POLICY, open_store("limits+memcached://127.0.0.1:1"), "user:ann")


KINDS = Policy(
    (
        Rule("window", Quota(50, MINUTE), principal=(KEY,)),
        Rule("bucket", Bucket(50, 1, 1000), principal=(KEY,)),
        Rule("month", Period(50, "month"), principal=(KEY,)),
        Rule("slots", Slots(50), principal=(KEY,)),
        Rule("credits", Balance(50), principal=(KEY,), cost=3),
    )
)


async def used(scene: Scene) -> list[int]:
    return [rule["used"] for rule in (await scene.operator.peek(ALICE))["rules"]]


async def test_all_kinds() -> None:
    """Peek shows all of them, and reset empties all but balances, unless it is asked to."""
    scene = Scene(KINDS)
    await scene.admitted(2)
    assert [2, 2, 2, 2, 6] == await used(scene)
    assert [2, 2, 2, 2, 6] == await used(scene)
    assert ["window", "bucket", "month", "slots"] == (await scene.operator.reset(ALICE))["rules"]
    assert [0, 0, 0, 0, 6] == await used(scene)
    with pytest.raises(ConfigError, match="rule: credits keeps a balance"):
        await scene.operator.reset(ALICE, rule="credits")
    await scene.operator.reset(ALICE, rule="credits", balances=True)
    assert [0, 0, 0, 0, 0] == await used(scene)


async def test_topup() -> None:
    """Credits are added to what there is, beyond what everybody begins with."""
    scene = Scene(KINDS)
    await scene.admitted(16)
    assert 2 == (await scene.operator.peek(ALICE))["rules"][4]["remaining"]
    assert not (await scene.limiter.judge(of())).decision.allowed
    told = await scene.operator.topup(ALICE, 100)
    assert {"digest": told["digest"], "rule": "credits", "units": 100, "available": 102} == told
    assert 34 == await scene.admitted(34)
    assert {"units": 100} == (await scene.operator.told(1))[0]["new"]


@pytest.mark.parametrize("units", [0, -1, 10**9 + 1])
async def test_topups_that_are_none(units: int) -> None:
    """They are refused with what would do."""
    with pytest.raises(ConfigError, match="units: a top-up must be of 1 to 1000000000"):
        await Scene(KINDS).operator.topup(ALICE, units)


async def test_topups_beyond_all_measure() -> None:
    """What a balance cannot hold is refused, and said to have been."""
    scene = Scene(KINDS)
    for _ in range(1000):
        await scene.operator.topup(ALICE, 10**9)
    with pytest.raises(ConfigError, match="would be too large a balance"):
        await scene.operator.topup(ALICE, 10**9)


async def test_all_kinds_on_a_server() -> None:
    """What is peeked, reset and topped up in Redis is what it is in this process."""
    with RedisServer() as server:
        store = open_store(server.url, timeout_ms=PATIENT_MS)
        limiter = Limiter(KINDS, store)
        operator = Operator(lambda: KINDS, store, "user:ann")
        for _ in range(2):
            assert (await limiter.judge(of())).decision.allowed

        async def counted() -> list[int]:
            return [rule["used"] for rule in (await operator.peek(ALICE))["rules"]]

        assert 1 <= (await counted())[1] <= 2  # some of the bucket is back, perhaps
        assert [2, 2, 2, 6] == [(await counted())[index] for index in (0, 2, 3, 4)]
        assert 144 == (await operator.topup(ALICE, 100))["available"]
        await operator.reset(ALICE)
        assert [0, 0, 0, 0, -94] == await counted()
        await operator.reset(ALICE, balances=True)
        assert [0, 0, 0, 0, 0] == await counted()
        await store.close()


# Networks


BY_ADDRESS = Policy((Rule("address", Quota(3, MINUTE)),))


async def from_address(scene: Scene, address: str, count: int = 5) -> int:
    one = request("/", peer=address)
    return sum([(await scene.limiter.judge(one)).decision.allowed for _ in range(count)])


@pytest.mark.parametrize("network", ["203.0.113.0/24", "::ffff:203.0.113.0/120", "2002:cb00:7100::/40"])
async def test_a_network_is_blocked(network: str) -> None:
    """Every client in it is refused, in every form of its address, until it is unblocked by whatever form."""
    scene = Scene(BY_ADDRESS)
    await scene.operator.block(f"client={network}")

    assert [0, 0, 3] == [await from_address(scene, a) for a in ("203.0.113.0", "::ffff:203.0.113.77", "203.0.114.1")]
    assert {"until_ms": None} == (await scene.operator.peek("client=203.0.113.9"))["blocked"]
    assert (await scene.operator.peek("client=203.0.114.9"))["blocked"] is None
    (block,) = (await scene.operator.orders())["blocks"]
    assert "203.0.113.0/24" == block["network"]
    assert (await scene.operator.unblock("client=203.0.113.0/24"))["was_blocked"]
    assert 3 == await from_address(scene, "203.0.113.0")


async def test_a_network_is_exempt() -> None:
    """An override of a network holds until it is removed; a longer prefix, and an address, prevail."""
    scene = Scene(BY_ADDRESS)
    await scene.operator.set_override("client=10.0.0.0/8", limit="unlimited")
    await scene.operator.set_override("client=10.9.0.0/16", limit="1/minute")
    await scene.operator.set_override("client=10.9.9.9", limit="2/minute")

    assert [5, 1, 2] == [await from_address(scene, a) for a in ("10.1.1.1", "10.9.1.1", "10.9.9.9")]
    (told,) = (await scene.operator.peek("client=10.9.1.1"))["rules"]
    assert "10.9.0.0/16" == told["override"]["network"]
    assert (await scene.operator.remove_override("client=10.9.0.0/16"))["was_set"]
    assert 5 == await from_address(scene, "10.9.1.2")


@pytest.mark.parametrize("verb", ["peek", "reset"])
async def test_a_network_has_no_counters(verb: str) -> None:
    """A network cannot be looked at or reset, and the error says what can; a network of one client is that client."""
    scene = Scene(BY_ADDRESS)
    with pytest.raises(ConfigError, match="write the address of one client in it"):
        await getattr(scene.operator, verb)("client=10.0.0.0/8")
    with pytest.raises(ConfigError, match=r"write 10\.0\.0\.0/8"):
        await getattr(scene.operator, verb)("client=10.0.0.1/8")

    for one in ("client=10.0.0.1/32", "client=2001:db8::/64"):
        assert await getattr(scene.operator, verb)(one)


async def test_all_of_ipv4_may_be_blocked_but_not_everything_at_once() -> None:
    """0.0.0.0/0 is a network like any other, IPv4-mapped clients included; IPv6 ones are another."""
    scene = Scene(BY_ADDRESS)
    await scene.operator.block("client=0.0.0.0/0")

    assert [0, 0, 3] == [await from_address(scene, a) for a in ("8.8.8.8", "::ffff:8.8.8.8", "2001:db8::1")]
