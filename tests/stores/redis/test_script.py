from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.algorithms.sliding_window import Window, last_instant
from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import NEVER, Receipt, Tally
from ratelimiter.core.rule import Hit, Mode, Rule
from ratelimiter.core.settlement import RENEW, Settlement, settlement_of
from ratelimiter.errors import Kind, StoreFault
from ratelimiter.stores.redis import script
from tests.reference_store import (
    START_MS,
    costs,
    gaps_ms,
    kinds,
    mixed_gaps_ms,
    mixed_requests,
    rule_with,
    settlements,
    window_of,
)
from tests.stores.stored_reference import StoredReference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.stores.redis_server import RedisServer

NONCE = b"nonce"
HEADER = 21

# Time is an argument here, but keys expire on the server's own clock, so windows must outlast a test. With a charge the
# TTL is never below the window.
WINDOWS_MS = (100_000, 100_003, 3_600_000, WINDOW_MS_MAX)
LIMITS = (1, 2, 3, 10, 128, 129, 1000, LIMIT_MAX)


class Script:
    """The script with its time as an argument, on whatever runs it."""

    def __init__(self, client: redis.Redis, text: bytes = script.TEXT) -> None:
        self.client = client
        self._sha = client.script_load(text)

    def charge(self, requests: script.Requests, now_ms: int | None) -> list[Receipt | StoreFault]:
        keys, argv = script.arguments(requests, NONCE, now_ms)
        reply: Any = self.client.evalsha(self._sha, len(keys), *keys, *argv)
        return script.receipts(requests, NONCE, reply)

    def charge_one(self, hits: Sequence[Hit], now_ms: int | None) -> Receipt:
        (receipt,) = self.charge([hits], now_ms)
        assert isinstance(receipt, Receipt), receipt
        return receipt

    def state(self) -> dict[bytes, tuple[Any, ...]]:
        return {key: unpacked(self.client.get(key)) for key in self.client.scan_iter()}

    def settle(self, settlements: Sequence[Settlement], now_ms: int) -> Receipt:
        (receipt,) = self.charge([script.Settling(settlements)], now_ms)
        assert isinstance(receipt, Receipt), receipt
        return receipt


def unpacked(value: Any) -> tuple[Any, ...]:
    """A packed state as `tests.reference_store.facts` has it, read in another way than the script does; every check on
    it.
    """
    if value[0] == 0xF2:
        debt, since_ms, weight = map(int, value[1:].split(b" "))
        return debt, since_ms, weight
    if value[0] == 0xF3:
        spent, start_ms, *leases = map(int, value[1:].split(b" "))
        return spent, start_ms, list(zip(leases[::3], leases[1::3], leases[2::3], strict=True))
    assert 0xF1 == value[0]
    newest, oldest = int.from_bytes(value[1:7]), int.from_bytes(value[7:13])
    used, last = int.from_bytes(value[13:17]), int.from_bytes(value[17:21])
    numbers, unit, number = [], 1, 0
    for digit in value[HEADER:]:
        number += digit % 128 * unit
        unit *= 128
        if digit < 128:
            numbers.append(number)
            unit, number = 1, 0
    assert 1 == unit, "the last number is cut off"
    instants, counts = [oldest], []
    while numbers:
        distance, several = divmod(numbers.pop(0), 2)
        assert distance >= 1
        instants.append(instants[-1] + distance)
        counts.append(numbers.pop(0) if several else 1)
    counts.append(last)
    assert newest == instants[-1]
    assert used == sum(counts)
    assert all(count >= 1 for count in counts) or [0] == counts  # all was given back
    return instants, counts, used


def rule(limit: int, window_ms: int, name: str = "rule", *, shadow: bool = False, burst: int = 0) -> Rule:
    return Rule(name, Quota(limit, window_ms), burst=burst, mode=Mode.SHADOW if shadow else Mode.ENFORCE)


def hit(rule: Rule, key: bytes = b"k", cost: int = 1, quota: int = 0) -> Hit:
    return Hit(key, rule.quotas[quota], cost, rule)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client


@pytest.fixture(params=["real", "fake"])
def emptied(request: pytest.FixtureRequest) -> Callable[[], Script]:
    """The script on an empty server, as often as asked."""
    client = request.getfixturevalue("client") if request.param == "real" else fakeredis.FakeRedis()

    def empty() -> Script:
        client.flushall()
        return Script(client)

    return empty


# --- the model


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, list[list[Hit]]]]:
    """Batches of requests to few keys, as (now_ms, requests): time mostly goes on, and is sometimes set back."""
    quotas = st.builds(Quota, st.sampled_from(LIMITS), st.sampled_from(WINDOWS_MS))
    rules = [
        Rule(
            f"rule-{number % 2}",  # two rules of one name are one rule before and after a change of policy
            quota,
            burst=0 if quota.limit > 1000 or quota.window_ms > 3_600_000 else draw(st.sampled_from([0, 0, 5])),
            mode=draw(st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.SHADOW])),
        )
        for number, quota in enumerate(draw(st.lists(quotas, min_size=1, max_size=4)))
    ]
    one = rules[0].quotas[0]
    assert isinstance(one, Quota)
    gaps = gaps_ms(one) | gaps_ms(one).map(lambda gap_ms: -gap_ms) | st.just(0) | st.integers(0, 5)

    def request() -> list[Hit]:
        principal = draw(st.sampled_from("ab"))
        chosen = draw(st.lists(st.sampled_from(rules), min_size=1, max_size=3, unique_by=lambda rule: rule.name))
        return [
            Hit(f"{{{principal}}}:{one.name}:{index}".encode(), quota, draw(costs(quota) | st.integers(1, 300)), one)
            for one in chosen
            for index, quota in enumerate(one.quotas)
        ]

    now_ms = START_MS + draw(st.integers(0, one.resolution_ms - 1))
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        steps.append((now_ms, [request() for _ in range(draw(st.integers(1, 4)))]))
        now_ms = max(0, now_ms + draw(gaps))
    return steps


def test_agrees_with_the_core(emptied: Callable[[], Script]) -> None:
    """Every batch is answered, and every state left, as the core's model would: in batches, clock set back or not."""

    @given(steps=batches())
    def agrees(steps: list[tuple[int, list[list[Hit]]]]) -> None:
        subject, model = emptied(), StoredReference()
        for now_ms, requests in steps:
            expected = [model.charge_at(hits, now_ms) for hits in requests]
            actual = subject.charge(requests, now_ms)

            assert [facts(receipt) for receipt in expected] == [facts(receipt) for receipt in listed(actual)]
            assert model.stored() == subject.state()

    agrees()


@pytest.mark.parametrize("where", ["real", "fake"])
def test_all_kinds_agree_with_the_core(request: pytest.FixtureRequest, where: str) -> None:
    """Requests over all kinds, their settlements and renewals, in batches, the clock set back or not: every answer and
    every state is that of the core's model.
    """
    # What lapses by the time given must not lapse by the server's own.
    text = script.TEXT.decode()
    lasting = text.replace("packed[key], px, expiry[key])", "packed[key])")
    assert text != lasting
    client = request.getfixturevalue("client") if where == "real" else fakeredis.FakeRedis()

    @given(st.data())
    def agrees(data: st.DataObject) -> None:
        client.flushall()
        subject, model, now_ms = Script(client, lasting.encode()), StoredReference(), START_MS
        quotas = data.draw(st.lists(kinds(), min_size=1, max_size=5))
        rules = [rule_with(q, f"rule-{n}", shadow=data.draw(st.integers(0, 3)) == 0) for n, q in enumerate(quotas)]
        charged: list[Settlement] = []
        for step in range(data.draw(st.integers(1, 8))):
            now_ms = max(0, now_ms + data.draw(mixed_gaps_ms(data.draw(st.sampled_from(quotas)))))
            requests: list[Any] = []
            for number in range(data.draw(st.integers(1, 4))):
                if charged and data.draw(st.integers(0, 2)) == 0:
                    chosen = data.draw(st.lists(st.sampled_from(charged), min_size=1, max_size=3))
                    requests.append(script.Settling({settlement.key: settlement for settlement in chosen}.values()))
                else:
                    requests.append(data.draw(mixed_requests(rules, 10 * step + number + 1)))
            expected = []
            for asked in requests:
                if isinstance(asked, script.Settling):
                    expected.append((now_ms, True, model.settle_at(asked, now_ms)))
                    continue
                receipt = model.charge_at(asked, now_ms)
                expected.append(facts(receipt))
                if receipt.admitted:
                    fitted = [
                        hit for hit, tally in zip(asked, receipt.tallies, strict=True) if not tally.retry_after_ms
                    ]
                    charged += data.draw(settlements([hit for hit in fitted if hit.cost], now_ms))
            actual = listed(subject.charge(requests, now_ms))

            assert expected == [facts(receipt) for receipt in actual]
            assert model.stored() == {key: state for key, state in subject.state().items() if useful(state)}

    agrees()


def useful(state: tuple[Any, ...]) -> bool:
    """Whether a state that was written is of any use: one that is not is written to go at once."""
    return bool(state[2]) if isinstance(state[0], list) else bool(state[0] or (isinstance(state[2], list) and state[2]))


def test_runs_under_lua_54() -> None:
    """Servers with Lua 5.4, where integers are a type of their own, get the same answers."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "fake and not 54", __file__]
    environment = os.environ | {"FAKEREDIS_LUA_VERSION": "5.4"}  # two Lua versions in one process crash it

    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout


def facts(receipt: Receipt) -> tuple[int, bool, list[Tally]]:
    return receipt.now_ms, receipt.admitted, list(receipt.tallies)


def listed(answers: Sequence[Receipt | StoreFault]) -> list[Receipt]:
    assert all(isinstance(answer, Receipt) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Receipt)]


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([1, 2, 63, 64, 127, 128, 8191, 8192, 2**21, WINDOW_MS_MAX // 9]), st.integers(1, 2**21)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_distance_and_count_is_read_back(shared_redis: RedisServer, rows: list[tuple[int, int]]) -> None:
    """Numbers on both sides of every length that the packing knows survive being written and read."""
    one = rule(LIMIT_MAX, WINDOW_MS_MAX)
    quota = window_of(one)
    with shared_redis.client() as client:
        client.flushall()
        subject, window, now_ms = Script(client), Window(), START_MS
        for gap_ms, cost in rows:
            now_ms += gap_ms * quota.resolution_ms if gap_ms < 2**21 else gap_ms
            window.forget(quota, now_ms)
            window.add(quota, cost, now_ms)
            subject.charge_one([hit(one, cost=cost)], now_ms)

            assert {b"k": (list(window.instants), list(window.counts), window.used)} == subject.state()


# --- giving back


@given(st.data())
def test_given_back_is_as_if_never_charged(shared_redis: RedisServer, data: st.DataObject) -> None:
    """What is given back leaves exactly its own entry; before and after it all counts on, as long as it would."""
    one = rule(data.draw(st.sampled_from([20, 1000])), 1_280_000)
    quota = window_of(one)
    steps = data.draw(
        st.lists(st.tuples(st.sampled_from([0, 1, 9999, 10_000, 400_000]), st.integers(1, 3)), min_size=1)
    )
    chosen = data.draw(st.integers(0, len(steps) - 1))
    with shared_redis.client() as client:
        client.flushall()
        subject, model, now_ms, charged = Script(client), Window(), START_MS, None
        for number, (gap_ms, cost) in enumerate(steps):
            now_ms += gap_ms
            model.forget(quota, now_ms)
            receipt = subject.charge_one([hit(one, cost=cost)], now_ms)
            if receipt.admitted:
                model.add(quota, cost, now_ms)
                if number == chosen:
                    charged = (now_ms, last_instant(quota, now_ms), cost)
        now_ms += 1
        model.forget(quota, now_ms)
        if charged is None:
            return
        charged_at_ms, instant, cost = charged
        there = instant in model.instants
        if there:
            index = model.instants.index(instant)
            model.counts[index] -= cost
            model.used -= cost
            if not model.counts[index]:
                del model.instants[index], model.counts[index]
        receipt = subject.settle([settlement_of(hit(one, cost=cost), 0, charged_at_ms)], now_ms)

        assert (True, model.used) == (receipt.admitted, receipt.tallies[0].used)
        assert model.reset_ms(quota, now_ms) == receipt.tallies[0].reset_ms
        looked = subject.charge_one([hit(one, cost=0)], now_ms)
        assert receipt.tallies == looked.tallies
        if there and model.used:  # else nothing was written, and the last charge's value and TTL stand
            assert {b"k": (list(model.instants), list(model.counts), model.used)} == subject.state()
            assert client.pttl(b"k") <= model.ttl_ms(quota, now_ms)


def test_nothing_is_taken_from_another_entry(client: redis.Redis) -> None:
    """Units whose entry is not there, or too small, are not given back at the expense of others."""
    subject, one = Script(client), rule(10, 100_000)
    subject.charge_one([hit(one, cost=2)], START_MS)
    before = subject.state()
    for instant, cost in ((START_MS - 1, 1), (START_MS + 1, 1), (START_MS, 3)):
        assert 2 == subject.settle([settlement_of(hit(one, cost=cost), 0, instant)], START_MS + 5).tallies[0].used

    assert before == subject.state()


# --- what the model does not know


def test_ttl_ends_when_the_newest_entry_leaves(client: redis.Redis) -> None:
    """On the server's clock the key goes at that very millisecond; with a time given, after as long (invariant 6)."""
    subject, one = Script(client), rule(1000, 60_000)

    receipt = subject.charge_one([hit(one, b"own")], None)
    instants, _, _ = unpacked(client.get(b"own"))

    assert client.pexpiretime("own") == instants[-1] + 60_000
    assert 0 <= instants[-1] - receipt.now_ms < window_of(one).resolution_ms

    before_ms = time.time_ns() // 1_000_000
    subject.charge_one([hit(one, b"given")], START_MS)
    after_ms = time.time_ns() // 1_000_000
    instants, _, _ = unpacked(client.get(b"given"))
    ttl_ms = instants[-1] + 60_000 - START_MS

    assert before_ms + ttl_ms <= client.pexpiretime("given") <= after_ms + ttl_ms


def test_clock_set_back_keeps_the_ttl_below_a_window(client: redis.Redis) -> None:
    """An entry from the future counts as charged now, so the key lives for a window and one resolution at most."""
    subject, one = Script(client), rule(1000, 128_000)
    subject.charge_one([hit(one)], START_MS)
    subject.charge_one([hit(one)], START_MS - 128_000)

    assert 127_000 < client.pttl(b"k") <= 128_000 + window_of(one).resolution_ms


def test_refusals_and_looks_write_nothing(client: redis.Redis) -> None:
    """A refused request and one of cost 0 leave the value and the TTL as they were (invariant 3)."""
    subject, one = Script(client), rule(1, 100_000)
    subject.charge_one([hit(one)], START_MS)
    before = client.get(b"k"), client.pexpiretime("k")

    assert not subject.charge_one([hit(one)], START_MS + 10).admitted
    assert subject.charge_one([hit(one, cost=0)], START_MS + 10).admitted
    assert not subject.charge_one([hit(one, cost=2)], START_MS + 200_000).admitted
    assert subject.charge_one([hit(one, b"new", cost=0)], START_MS).admitted
    assert before == (client.get(b"k"), client.pexpiretime("k"))
    assert not client.exists(b"new")


FOREIGN: list[tuple[str, Callable[[redis.Redis], object]]] = [
    ("a list", lambda client: client.delete("k") and client.rpush("k", "x")),
    ("a hash", lambda client: client.delete("k") and client.hset("k", "x", "y")),
    ("a number", lambda client: client.set("k", 12)),
    ("long text", lambda client: client.set("k", "x" * 100)),
    ("nothing", lambda client: client.set("k", "")),
    ("a newer format", lambda client: client.set("k", b"\xf2" + bytes(100))),
    ("ours, cut off", lambda client: client.set("k", b"\xf1" + bytes(10))),
    ("entries missing", lambda client: client.set("k", client.get("k")[:HEADER])),  # type: ignore[index]
    ("a newest entry before the oldest", lambda client: client.setrange("k", 1, b"\0")),
]


@pytest.mark.parametrize(("what", "put"), FOREIGN, ids=[what for what, _ in FOREIGN])
def test_foreign_value_is_neither_empty_nor_overwritten(
    client: redis.Redis, what: str, put: Callable[[redis.Redis], object]
) -> None:
    """A key that holds what is not ours is a fault of that request alone: nobody's value is lost, the batch goes on."""
    subject, one, other = Script(client), rule(4, 100_000), rule(9, 100_000, "other")
    for at_ms in (0, 400, 100_100, 100_300):
        subject.charge_one([hit(one)], START_MS + at_ms)
    put(client)
    before = client.dump(b"k")

    poisoned, sound = subject.charge([[hit(other, b"o"), hit(one)], [hit(other, b"o")]], START_MS + 100_300)

    assert isinstance(poisoned, StoreFault)
    assert Kind.FOREIGN_VALUE is poisoned.kind
    assert "rule" in str(poisoned)
    assert "other" not in str(poisoned)
    assert isinstance(sound, Receipt)
    assert (True, 1) == (sound.admitted, sound.tallies[0].used)
    assert before == client.dump(b"k")


@pytest.mark.parametrize(("cost", "later_ms"), [(1, 100_100), (3, 0)], ids=["forget", "wait"])
def test_cut_off_entry_is_a_fault(client: redis.Redis, cost: int, later_ms: int) -> None:
    """A value that ends in the middle of an entry is noticed by whoever has to read that entry."""
    subject, one = Script(client), rule(3, 200_000)
    for at_ms in (0, 400):
        subject.charge_one([hit(one, cost=at_ms // 400 + 1)], START_MS + at_ms)
    client.set(b"k", client.get(b"k")[:-1])  # type: ignore[index]

    (answer,) = subject.charge([[hit(one, cost=cost)]], START_MS + 100_000 + later_ms)

    assert isinstance(answer, StoreFault)


def test_key_of_several_requests_is_read_and_written_once(client: redis.Redis) -> None:
    """A batch that all meets one key costs one GET and one SET."""
    subject, one = Script(client), rule(100, 100_000)
    client.config_resetstat()
    answers = subject.charge([[hit(one)]] * 50, START_MS)
    stats: Any = client.info("commandstats")

    assert list(range(1, 51)) == [receipt.tallies[0].used for receipt in listed(answers)]
    assert (1, 1) == (stats["cmdstat_get"]["calls"], stats["cmdstat_set"]["calls"])
    assert "cmdstat_time" not in stats


def test_server_clock_is_asked_once(client: redis.Redis) -> None:
    """All requests of a batch are judged at one moment of the server's clock (invariant 5)."""
    subject, one = Script(client), rule(100, 100_000)
    client.config_resetstat()
    before_ms = time.time_ns() // 1_000_000
    answers = listed(subject.charge([[hit(one)]] * 50, None))
    after_ms = time.time_ns() // 1_000_000
    stats: Any = client.info("commandstats")

    assert 1 == stats["cmdstat_time"]["calls"]
    assert 1 == len({receipt.now_ms for receipt in answers})
    assert before_ms <= answers[0].now_ms <= after_ms


def test_memory_of_a_full_key() -> None:
    """A minute of 60 evenly spaced requests is under 150 bytes; a limit of a million under 800."""
    subject = Script(fakeredis.FakeRedis())
    small, large = rule(60, 60_000), rule(1_000_000, 60_000)
    for step in range(130):
        subject.charge_one([hit(small, b"small")], START_MS + step * 1000)
        subject.charge_one([hit(large, b"large", cost=7000)], START_MS + step * 469)

    assert len(subject.client.get(b"small")) < 150  # type: ignore[arg-type]
    assert len(subject.client.get(b"large")) < 800  # type: ignore[arg-type]


def test_reply_of_another_call_is_a_fault() -> None:
    """Whoever gets a reply that does not begin with his nonce has got somebody else's."""
    requests = [[hit(rule(1, 1000))]]

    for reply in ([b"other", 1, 1, 1, 1, 0], [], b"nonce", 12, None, "nonce"):
        with pytest.raises(StoreFault) as caught:
            script.receipts(requests, NONCE, reply)

        assert Kind.MISMATCH is caught.value.kind

    with pytest.raises(StoreFault) as caught:
        script.receipts(requests, NONCE, [NONCE, 1, 1, 1, 1])

    assert Kind.PROTOCOL is caught.value.kind


# --- mutations: each line of the script that matters is missed by a check that has a name


def check_window_is_half_open(subject: Script) -> None:
    """An entry counts one ms less than its window, and is gone at it."""
    one = rule(1, 100_000)
    subject.charge_one([hit(one)], START_MS)
    assert (False, (1, 1, 1)) == answer(subject, [hit(one)], START_MS + 99_999)
    assert (True, (1, 100_000, 0)) == answer(subject, [hit(one)], START_MS + 100_000)


def check_limit_is_reached_not_passed(subject: Script) -> None:
    one = rule(2, 100_000)
    assert (True, (1, 100_000, 0)) == answer(subject, [hit(one)], START_MS)
    assert (True, (2, 99_990, 0)) == answer(subject, [hit(one)], START_MS + 10)
    assert (False, (2, 99_980, 99_980)) == answer(subject, [hit(one)], START_MS + 20)


def check_entries_leave_one_by_one(subject: Script) -> None:
    one = rule(10, 100_000)
    for at_ms, cost in ((0, 1), (10, 3), (20, 2), (5000, 4)):
        subject.charge_one([hit(one, cost=cost)], START_MS + at_ms)
    assert (False, (9, 10, 20)) == answer(subject, [hit(one, cost=5)], START_MS + 100_000)
    assert (False, (9, 1, 11)) == answer(subject, [hit(one, cost=5)], START_MS + 100_009)
    assert (False, (6, 9, 4989)) == answer(subject, [hit(one, cost=7)], START_MS + 100_011)
    assert (True, (7, 9, 0)) == answer(subject, [hit(one)], START_MS + 100_011)
    assert {b"k": ([START_MS + 20, START_MS + 5000, START_MS + 100_011], [2, 4, 1], 7)} == subject.state()


def check_refusal_charges_nobody(subject: Script) -> None:
    roomy, tight = rule(5, 100_000, "roomy"), rule(1, 100_000, "tight")
    both = [hit(roomy, b"r"), hit(tight, b"t")]
    assert subject.charge_one(both, START_MS).admitted
    assert not subject.charge_one(both, START_MS + 1).admitted
    assert [1, 1] == [state[2] for _, state in sorted(subject.state().items())]


def check_ttl_is_the_newest_entrys(subject: Script) -> None:
    one = rule(1000, 12_800_000)  # cells of 100 s
    for at_ms in (0, 250_000):
        subject.charge_one([hit(one)], START_MS + at_ms)
    instants, _, _ = subject.state()[b"k"]
    ttl_ms = instants[-1] + 12_800_000 - START_MS - 250_000
    assert ttl_ms - 2000 < subject.client.pttl(b"k") <= ttl_ms


def check_server_clock_is_in_ms(subject: Script) -> None:
    one = rule(1000, 100_000)
    before_ms = time.time_ns() // 1_000_000
    receipt = subject.charge_one([hit(one)], None)
    assert before_ms <= receipt.now_ms <= time.time_ns() // 1_000_000
    instants, _, _ = subject.state()[b"k"]
    assert instants[-1] + 100_000 == subject.client.pexpiretime("k")


def check_nonce_is_echoed(subject: Script) -> None:
    subject.charge_one([hit(rule(1, 100_000))], START_MS)


def check_cells_end_late(subject: Script) -> None:
    one = rule(1000, 128_000)
    subject.charge_one([hit(one)], START_MS + 1)
    last_ms = (START_MS + 1) // 1000 * 1000 + 999
    assert {b"k": ([last_ms], [1], 1)} == subject.state()
    subject.charge_one([hit(one)], last_ms)
    assert {b"k": ([last_ms], [2], 2)} == subject.state()


def check_clock_far_ahead_is_forgotten(subject: Script) -> None:
    one = rule(1, 100_000)
    subject.charge_one([hit(one)], START_MS)
    assert (False, (1, 100_000, 100_000)) == answer(subject, [hit(one)], START_MS - 100_000)
    assert (False, (1, 99_000, 99_000)) == answer(subject, [hit(one)], START_MS - 99_000), "as it was announced"
    assert (True, (1, 100_000, 0)) == answer(subject, [hit(one)], START_MS - 200_001)


def check_the_future_counts_from_now(subject: Script) -> None:
    one = rule(5, 100_000)
    for moment_ms in (START_MS - 99_990, START_MS - 20, START_MS - 5, START_MS, START_MS - 10):
        subject.charge_one([hit(one)], moment_ms)
    assert {b"k": ([START_MS - 99_990, START_MS - 20, START_MS - 10], [1, 1, 3], 5)} == subject.state()
    assert (False, (5, 10, 99_980)) == answer(subject, [hit(one, cost=2)], START_MS)


def check_instants_never_step_back(subject: Script) -> None:
    subject.charge_one([hit(rule(1000, 128_000))], START_MS)
    subject.charge_one([hit(rule(1000, 89_600))], START_MS + 350)  # another cell, which ends before the last one does
    assert {b"k": ([START_MS + 999], [2], 2)} == subject.state()


def check_cost_zero_looks(subject: Script) -> None:
    one = rule(1, 100_000)
    assert (True, (0, 0, 0)) == answer(subject, [hit(one, cost=0)], START_MS)
    assert {} == subject.state()
    subject.charge_one([hit(one)], START_MS)
    assert (True, (1, 99_999, 0)) == answer(subject, [hit(one, cost=0)], START_MS + 1)
    assert (False, (1, 99_999, 99_999)) == answer(subject, [hit(one)], START_MS + 1)
    subject.charge_one([hit(rule(3, 100_000))], START_MS + 1)
    assert (True, (2, 99_999, 0)) == answer(subject, [hit(one, cost=0)], START_MS + 1)


def check_cost_above_the_limit_never_fits(subject: Script) -> None:
    one = rule(2, 100_000)
    assert (False, (0, 0, NEVER)) == answer(subject, [hit(one, cost=3)], START_MS)
    assert (True, (2, 100_000, 0)) == answer(subject, [hit(one, cost=2)], START_MS)
    assert (False, (2, 100_000, NEVER)) == answer(subject, [hit(one, cost=3)], START_MS)


def check_shadow_rule_is_all_or_nothing(subject: Script) -> None:
    shade, real = rule(1, 100_000, "shade", shadow=True, burst=1), rule(9, 100_000, "real")
    other = rule(9, 100_000, "other", shadow=True)
    hits = [hit(shade, b"a"), hit(shade, b"b", quota=1), hit(real, b"c"), hit(other, b"d")]
    for at_ms in range(3):
        assert subject.charge_one(hits, START_MS + at_ms).admitted
    assert {b"a": 2, b"b": 2, b"c": 3, b"d": 3} == {key: state[2] for key, state in subject.state().items()}


def check_later_requests_see_earlier_ones(subject: Script) -> None:
    one = rule(2, 100_000)
    answers = listed(subject.charge([[hit(one)], [hit(one)], [hit(one)], [hit(one, b"other")]], START_MS))
    assert [(True, 1), (True, 2), (False, 2), (True, 1)] == [(a.admitted, a.tallies[0].used) for a in answers]
    assert {b"k": 2, b"other": 1} == {key: state[2] for key, state in subject.state().items()}


def check_every_request_meets_its_own_keys_and_form(subject: Script) -> None:
    one, two = rule(1, 100_000, "one"), rule(5, 200_000, "two")
    requests = [[hit(one, b"a"), hit(two, b"b")], [hit(two, b"c", cost=2)], [hit(one, b"d"), hit(two, b"b")]]
    answers = listed(subject.charge(requests, START_MS))
    assert [[(1, 100_000, 0), (1, 200_000, 0)], [(2, 200_000, 0)], [(1, 100_000, 0), (2, 200_000, 0)]] == [
        list(receipt.tallies) for receipt in answers
    ]


def check_foreign_values_survive(subject: Script) -> None:
    for value in (b"x" * 100, b"\xf2" + bytes(20), b"\xf1", b"\xf1\0\0\1" + bytes(17)):
        subject.client.set(b"k", value)
        (fault,) = subject.charge([[hit(rule(1, 100_000))]], START_MS)
        assert isinstance(fault, StoreFault)
        assert value == subject.client.get(b"k")


def leased_hit(quota: AnyQuota, cost: int = 1, lease: int = 0) -> Hit:
    return Hit(b"k", quota, cost, rule_with(quota), lease)


def check_leases_end_on_time(subject: Script) -> None:
    seat = leased_hit(Slots(1, 100_000), 1, 7)
    assert subject.charge_one([seat], START_MS).admitted
    assert (False, (1, 1, 1)) == answer(subject, [seat._replace(lease=8)], START_MS + 99_999)
    assert (False, (1, 100_000, 100_000)) == answer(subject, [seat._replace(lease=8)], START_MS - 100_000)
    assert (False, (1, 1, 1)) == answer(subject, [seat._replace(lease=8)], START_MS - 1), "as it was announced"
    assert (True, (1, 100_000, 0)) == answer(subject, [seat._replace(lease=8)], START_MS - 200_001)
    assert (True, (1, 100_000, 0)) == answer(subject, [seat._replace(lease=9)], START_MS - 100_001)


def check_reservations_are_settled_to_what_is_there(subject: Script) -> None:
    call = leased_hit(Balance(100, 100_000), 50, 7)
    subject.charge_one([call], START_MS)
    assert 80 == subject.settle([settlement_of(call, 80, START_MS)], START_MS).tallies[0].used
    subject.charge_one([call._replace(cost=20, lease=8)], START_MS)
    assert (
        100 == subject.settle([settlement_of(call._replace(cost=20, lease=8), 30, START_MS)], START_MS).tallies[0].used
    )
    assert 100 == subject.settle([settlement_of(call, 30, START_MS)], START_MS).tallies[0].used
    assert 100 == subject.settle([settlement_of(call, RENEW, START_MS)], START_MS).tallies[0].used
    assert {b"k": (100, 0, [])} == subject.state()


def check_buckets_give_back_what_has_not_drained(subject: Script) -> None:
    call = leased_hit(Bucket(4, 1, 100_000), 4)
    subject.charge_one([call], START_MS)
    subject.charge_one([call._replace(cost=1)], START_MS + 100_000)
    assert 1 == subject.settle([settlement_of(call, 0, START_MS)], START_MS + 100_000).tallies[0].used
    subject.client.flushall()
    subject.charge_one([call], START_MS)
    assert subject.charge_one([call], START_MS - 400_001).admitted
    assert 4 == subject.settle([settlement_of(call, 0, START_MS)], START_MS - 400_001).tallies[0].used


def check_buckets_drain_from_now(subject: Script) -> None:
    call = leased_hit(Bucket(4, 1, 100_000), 4)
    subject.charge_one([call], START_MS)
    assert (False, (4, 100_000, 400_000)) == answer(subject, [call], START_MS - 300_000)
    assert (False, (1, 100_000, 100_000)) == answer(subject, [call], START_MS), "as it was announced"


def check_buckets_keep_units_when_their_rate_changes(subject: Script) -> None:
    subject.charge_one([leased_hit(Bucket(9, 1, 100_000), 5)], START_MS)
    assert (True, 5) == (True, answer(subject, [leased_hit(Bucket(9, 3, 700_000), 0)], START_MS)[1].used)


def check_periods_end_and_begin(subject: Script) -> None:
    call = leased_hit(Period(2, "day"), 2)
    midnight_ms = START_MS // 86_400_000 * 86_400_000
    assert subject.charge_one([call], midnight_ms - 1_000_000).admitted
    assert (False, (2, 1, 1)) == answer(subject, [call], midnight_ms - 1)
    assert (True, (2, 86_400_000, 0)) == answer(subject, [call], midnight_ms)
    assert 2 == subject.settle([settlement_of(call, 0, midnight_ms - 1_000_000)], midnight_ms).tallies[0].used
    assert (False, (2, 1, 1)) == answer(subject, [call], midnight_ms - 1), "counts in the day before, until it ends"
    assert (True, (2, 86_400_000, 0)) == answer(subject, [call], midnight_ms)
    assert 0 == subject.settle([settlement_of(call, 0, midnight_ms)], midnight_ms).tallies[0].used


def answer(subject: Script, hits: Sequence[Hit], now_ms: int) -> tuple[bool, Tally]:
    receipt = subject.charge_one(hits, now_ms)
    return receipt.admitted, receipt.tallies[0]


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check(emptied: Callable[[], Script], check: Callable[[Script], None]) -> None:
    """The script passes each check that its mutations are caught by."""
    check(emptied())


MUTATIONS: list[tuple[str, str, Callable[[Script], None]]] = [
    ("surplus > 0 and", "surplus >= 0 and", check_limit_is_reached_not_passed),
    ("surplus > 0 and", "surplus > 1 and", check_limit_is_reached_not_passed),
    ("while state[2] <= left do", "while state[2] < left do", check_entries_leave_one_by_one),
    ("newest <= now - window then", "newest < now - window then", check_window_is_half_open),
    ("newest <= now - window then", "newest <= now - window + 1 then", check_window_is_half_open),
    ("local left = now - window", "local left = now - window + 1", check_entries_leave_one_by_one),
    ("local left = now - window", "local left = now", check_entries_leave_one_by_one),
    ("state[3] = state[3] - count\n", "state[3] = state[3] - 1\n", check_entries_leave_one_by_one),
    ("        state[6] = at\n", "", check_entries_leave_one_by_one),
    ("if newest > present + window then", "if newest >= present + window then", check_clock_far_ahead_is_forgotten),
    ("if newest > present + window then", "if false then", check_clock_far_ahead_is_forgotten),
    ("if newest >= now + resolution then", "if false then", check_the_future_counts_from_now),
    ("instant >= present then", "instant > present + 9 then", check_the_future_counts_from_now),
    ("distance < present and distance or present - instant", "distance", check_the_future_counts_from_now),
    ("oldest or present, ahead", "present, ahead", check_the_future_counts_from_now),
    ("elseif elapsed < 0 then", "elseif false then", check_buckets_drain_from_now),
    ("state[2] = now\n        write_bucket(key, state, form, f)", "state[2] = now", check_buckets_drain_from_now),
    ("lapses, ahead = last, true", "lapses = last", check_leases_end_on_time),
    (", px, expiry[key])", ")", check_ttl_is_the_newest_entrys),
    ("newest + window - px_from", "oldest + window - px_from", check_ttl_is_the_newest_entrys),
    ("newest + window - px_from", "window", check_ttl_is_the_newest_entrys),
    ("'PX', now", "'EX', now", check_ttl_is_the_newest_entrys),
    ("px, px_from = 'PXAT', 0", "px, px_from = 'PX', now + 1", check_server_clock_is_in_ms),
    ("* 1000 + floor", "* 1000000 + floor", check_server_clock_is_in_ms),
    ("tonumber(time[2]) / 1000", "tonumber(time[2]) / 10000", check_server_clock_is_in_ms),
    ("{ARGV[1], now}", "{'', now}", check_nonce_is_echoed),
    ("{ARGV[1], now}", "{ARGV[2], now}", check_nonce_is_echoed),
    ("verdict == 1 and cost ~= 0", "cost ~= 0", check_refusal_charges_nobody),
    ("verdict == 1 and cost ~= 0", "verdict == 1", check_cost_zero_looks),
    ("surplus > 0 and cost > 0", "surplus > 0 and cost > -1", check_cost_zero_looks),
    ("elseif verdict == 1 then", "elseif h == 1 then", check_refusal_charges_nobody),
    ("if cost > limit then", "if cost >= limit then", check_cost_above_the_limit_never_fits),
    ("if cost > limit then", "if false then", check_cost_above_the_limit_never_fits),
    ("withheld[shadow] = true", "withheld[0] = true", check_shadow_rule_is_all_or_nothing),
    ("and not withheld[form[f + 4]]", "", check_shadow_rule_is_all_or_nothing),
    ("withheld[shadow] = true", "verdict = 0", check_shadow_rule_is_all_or_nothing),
    ("if newest >= instant then", "if newest == instant then", check_instants_never_step_back),
    ("count = count + cost\n", "count = count + cost + 1\n", check_cells_end_late),
    ("if newest >= instant then", "if newest > instant then", check_cells_end_late),
    ("+ resolution - 1\n", "\n", check_cells_end_late),
    ("+ resolution - 1\n", "+ resolution\n", check_cells_end_late),
    ("    packed[key] = char(", "    local _ = char(", check_later_requests_see_earlier_ones),
    ("        k = k + hits\n", "", check_every_request_meets_its_own_keys_and_form),
    ("byte(ARGV[3], r)", "1", check_every_request_meets_its_own_keys_and_form),
    (
        "local f = h * 5 - 4\n            local limit",
        "local f = 1\n            local limit",
        check_every_request_meets_its_own_keys_and_form,
    ),
    ("read(KEYS[k + h])", "read(KEYS[h])", check_every_request_meets_its_own_keys_and_form),
    ("instant + window - now\n        end", "instant + window - now + 1\n        end", check_entries_leave_one_by_one),
    ("surplus = surplus - count\n", "surplus = surplus - 1\n", check_entries_leave_one_by_one),
    ("distance * 2 + 1)", "distance * 2)", check_entries_leave_one_by_one),
    ("version ~= VERSION", "false", check_foreign_values_survive),
    (" or (newest > oldest) ~= (#value > HEADER)", "", check_foreign_values_survive),
    ("#value < HEADER", "#value < 0", check_foreign_values_survive),
    ("state[1] = spent + min(due, there)", "state[1] = spent + due", check_reservations_are_settled_to_what_is_there),
    ("there = there + units\n", "\n", check_reservations_are_settled_to_what_is_there),
    ("if now < lapses and", "if now <= lapses and", check_leases_end_on_time),
    ("if now < lapses and lapses <= last + form[f + 6] then", "if now < lapses then", check_leases_end_on_time),
    ("debt - weight + elapsed * drain)", "debt - weight)", check_buckets_give_back_what_has_not_drained),
    ("elseif at <= state[2] then", "else", check_buckets_give_back_what_has_not_drained),
    ("or -elapsed > ceil_of(limit * weight, drain)", "", check_buckets_give_back_what_has_not_drained),
    ("ceil_of(state[1], state[3]) * weight", "state[1]", check_buckets_keep_units_when_their_rate_changes),
    ("elseif at >= state[2] and (spent", "elseif (spent", check_periods_end_and_begin),
    ("state[2] >= next_to then", "state[2] >= to then", check_periods_end_and_begin),
]


@pytest.mark.parametrize(
    ("old", "new", "check"), MUTATIONS, ids=[f"{number}, {row[2].__name__}" for number, row in enumerate(MUTATIONS)]
)
def test_mutation_is_caught(client: redis.Redis, old: str, new: str, check: Callable[[Script], None]) -> None:
    """A slip in the script fails the check that is named for what it breaks."""
    text = script.TEXT.decode()
    assert old in text

    mutated = Script(client, text.replace(old, new).encode())

    with pytest.raises((AssertionError, StoreFault, redis.exceptions.ResponseError)):
        check(mutated)
