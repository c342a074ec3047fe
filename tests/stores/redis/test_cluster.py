from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.quota import Balance, Bucket, Slots
from ratelimiter.core.rule import Hit
from ratelimiter.core.settlement import settlement_of
from ratelimiter.errors import ConfigError, Kind, StoreError, StoreMisconfigured, StoreUnavailable
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis.cluster import ClusterStore, slot_of
from tests.reference_store import rule_of, rule_with
from tests.stores.redis.test_store import PATIENT_MS, hit, until_admitted, within
from tests.stores.redis_server import RedisCluster, RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RedisCluster) -> RedisCluster:
    for node in shared_cluster.nodes:
        with node.client() as client:
            client.flushall()
    return shared_cluster


@contextlib.asynccontextmanager
async def opened(url: str, timeout_ms: int = PATIENT_MS) -> AsyncIterator[ClusterStore]:
    store = open_store(url, timeout_ms=timeout_ms)
    assert isinstance(store, ClusterStore)
    try:
        yield store
    finally:
        await store.close()


def test_slots_are_those_of_the_server(cluster: RedisCluster) -> None:
    """Tags, missing tags and empty tags give the slot that Redis gives."""
    keys = [
        b"",
        b"foo",
        b"{user}:a",
        b"{user}:b",
        b"a{}b",
        b"{}{x}",
        b"a{b",
        b"}a{b}",
        b"{{x}}",
        b"rl1:{ab}:x",
        b"\xff",
    ]
    with cluster.nodes[0].client() as client:
        assert [client.execute_command("CLUSTER", "KEYSLOT", key) for key in keys] == [slot_of(key) for key in keys]


def keys_on_both(cluster: RedisCluster) -> tuple[str, str]:
    """Two names whose keys are on different nodes."""
    names = [f"name-{number}" for number in range(50)]
    by_node = {id(cluster.serving(slot_of(hit(name).key))): name for name in names}
    first, second = by_node.values()
    return first, second


async def test_every_node_is_used_and_limits_hold(cluster: RedisCluster) -> None:
    """A crowd of principals on all nodes at once: each gets exactly his limit."""
    async with opened(cluster.url) as store:

        async def ask(name: str) -> int:
            receipts = await asyncio.gather(*[store.charge([hit(name, 5)]) for _ in range(8)])
            return sum(receipt.admitted for receipt in receipts)

        assert [5] * 100 == await asyncio.gather(*[ask(f"name-{number}") for number in range(100)])
    for node in cluster.nodes:
        with node.client() as client:
            assert client.dbsize() > 20


async def test_request_over_several_slots_is_all_or_none(cluster: RedisCluster) -> None:
    """When one node refuses, what the other charged is given back (1, 3)."""
    mine, everybodys = keys_on_both(cluster)
    async with opened(cluster.url) as store:
        for used in (1, 2, 2, 2):
            receipt = await store.charge([hit(mine, 9), hit(everybodys, 2)])

            assert (used, used) == (receipt.tallies[0].used, receipt.tallies[1].used)
        assert not receipt.admitted
        assert (0, True) == (receipt.tallies[0].retry_after_ms, receipt.tallies[1].retry_after_ms > 0)
        assert 2 == (await store.charge([hit(mine, 9, cost=0)])).tallies[0].used


async def test_tallies_keep_their_order(cluster: RedisCluster) -> None:
    """Hits of several slots, mixed: each tally is where its hit is."""
    one, two = keys_on_both(cluster)
    hits = [hit(one, cost=1), hit(two, cost=2), hit(one, cost=3, name="other"), hit(two, cost=4, name="other")]
    async with opened(cluster.url) as store:
        assert [1, 2, 3, 4] == [tally.used for tally in (await store.charge(hits)).tallies]


async def test_shadow_that_did_not_fit_gives_nothing_back(cluster: RedisCluster) -> None:
    """A shadow rule that withheld its charge has nothing to return."""
    one, two = keys_on_both(cluster)
    shadow = rule_of(1, 60_000, name="shade", shadow=True)
    shade = Hit(hit(one, name="shade").key, shadow.quota, 1, shadow)
    async with opened(cluster.url) as store:
        await store.charge([shade])
        await store.charge([hit(two, 1)])
        refused = await store.charge([shade, hit(one, 9), hit(two, 1)])

        assert not refused.admitted
        assert [1, 0, 1] == [tally.used for tally in refused.tallies]


async def test_crowd_over_several_slots_never_exceeds_the_limit(cluster: RedisCluster) -> None:
    """Concurrent requests over two nodes: the common limit holds, and what was admitted is what is counted."""
    mine, everybodys = keys_on_both(cluster)
    async with opened(cluster.url) as store:
        receipts = await asyncio.gather(*[store.charge([hit(mine, 100), hit(everybodys, 7)]) for _ in range(50)])
        admitted = sum(receipt.admitted for receipt in receipts)
        look = await store.charge([hit(mine, 100, cost=0), hit(everybodys, 7, cost=0)])

    assert 7 == admitted
    assert [7, 7] == [tally.used for tally in look.tallies]


async def test_node_that_stands_still_costs_others_nothing(cluster: RedisCluster) -> None:
    """A request over two nodes of which one does not answer fails at the deadline, and the other gives back."""
    with RedisCluster() as own:
        here, there = keys_on_both(own)
        async with opened(own.url, timeout_ms=100) as store:
            await store.charge([hit(here), hit(there)])
            frozen = own.serving(slot_of(hit(there).key))
            frozen.freeze()
            try:
                results = [await within(100, store.charge([hit(here), hit(there)])) for _ in range(3)]

                assert all(isinstance(result, StoreUnavailable) for result in results)
                await asyncio.sleep(0.2)
                assert 1 == (await store.charge([hit(here, cost=0)])).tallies[0].used
            finally:
                frozen.thaw()


async def test_cancelled_caller_leaves_no_charge_behind(cluster: RedisCluster) -> None:
    """Who gives up while his request is being given back leaves nothing charged that was refused."""
    mine, everybodys = keys_on_both(cluster)
    async with opened(cluster.url) as store:
        await store.charge([hit(everybodys, 1)])
        for turns in range(12):
            charging = asyncio.create_task(store.charge([hit(mine, 100), hit(everybodys, 1)]))
            for _ in range(turns):
                await asyncio.sleep(0)
            charging.cancel()
            await asyncio.wait([charging])
        await asyncio.sleep(0.1)

        assert 0 == (await store.charge([hit(mine, 100, cost=0)])).tallies[0].used


async def test_slot_that_moves_under_traffic(cluster: RedisCluster) -> None:
    """While a slot with live keys migrates no decision fails, and none is counted twice or lost (F32, F33)."""
    name = keys_on_both(cluster)[0]
    slot = slot_of(hit(name).key)
    source = cluster.serving(slot)
    target = next(node for node in cluster.nodes if node is not source)
    stop = asyncio.Event()
    charged = 0

    async def keep_asking(store: ClusterStore) -> None:
        nonlocal charged
        while not stop.is_set():
            receipt = await store.charge([hit(name, 10**6), hit(name, 10**6, name="other")])
            assert receipt.tallies[0].used == receipt.tallies[1].used
            charged += 1

    async with opened(cluster.url) as store:
        askers = [asyncio.create_task(keep_asking(store)) for _ in range(8)]
        await asyncio.sleep(0.05)
        for giver, taker in ((source, target), (target, source)):
            await asyncio.to_thread(migrate, cluster, giver, taker, slot)
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*askers)

        assert charged > 20
        assert charged == (await store.charge([hit(name, 10**6, cost=0)])).tallies[0].used


def migrate(cluster: RedisCluster, giver: RedisServer, taker: RedisServer, slot: int) -> None:
    with giver.client() as one, taker.client() as other:
        giver_id, taker_id = one.execute_command("CLUSTER", "MYID"), other.execute_command("CLUSTER", "MYID")
        other.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", giver_id)
        one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", taker_id)
        while keys := one.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            one.execute_command("MIGRATE", "127.0.0.1", taker.port, keys[0], 0, 1000)
            time.sleep(0.03)  # between two keys of one request the slot is split
        for node in (taker, giver):
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", taker_id)


async def test_node_that_dies(cluster: RedisCluster) -> None:
    """Principals of the other nodes are not touched; those of the dead node have their answer at the deadline (F35)."""
    with RedisCluster(3) as own:
        names = [f"name-{number}" for number in range(30)]
        dead = own.nodes[2]
        async with opened(own.url, timeout_ms=100) as store:
            await until_admitted(store, 5)
            await asyncio.gather(*[store.charge([hit(name)]) for name in names])
            for node in own.nodes:
                with node.client() as client:
                    client.config_set("cluster-require-full-coverage", "no")
            dead.kill()
            for _ in range(3):
                results = await asyncio.gather(*[within(100, store.charge([hit(name)])) for name in names])
                for name, result in zip(names, results, strict=True):
                    lost = own.serving(slot_of(hit(name).key)) is dead
                    assert lost == isinstance(result, StoreUnavailable), (name, result)


async def test_no_node_at_start() -> None:
    """Without any node the decision comes within the deadline, and says why (F36)."""
    async with opened(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}", timeout_ms=100) as store:
        result = await within(100, store.charge([hit()]))

        assert isinstance(result, StoreUnavailable)


async def test_single_server_is_told_from_a_cluster(redis_server: RedisServer) -> None:
    """A server that is no cluster says so under redis+cluster://."""
    async with opened(redis_server.url.replace("redis://", "redis+cluster://")) as store:
        result = await within(PATIENT_MS, store.charge([hit()]))

        assert isinstance(result, StoreError)
        assert "cluster support disabled" in str(result)


async def test_cluster_is_told_from_a_single_server(cluster: RedisCluster) -> None:
    """One node of a cluster under redis:// is a mistake in the configuration, as soon as a key is elsewhere."""
    store = open_store(cluster.nodes[0].url, timeout_ms=PATIENT_MS)
    try:
        results = [await within(PATIENT_MS, store.charge([hit(name)])) for name in keys_on_both(cluster)]
    finally:
        await store.close()

    assert [Kind.MOVED] == [result.kind for result in results if isinstance(result, StoreMisconfigured)]


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://h/3", "redis+cluster://h?db=1"])
def test_url_that_cannot_be_used(url: str) -> None:
    """A mistake in the URL is told when the store is opened."""
    with pytest.raises(ConfigError, match="; write "):
        open_store(url)


async def test_settlements_go_to_their_nodes(cluster: RedisCluster) -> None:
    """In one call those of several nodes: each is settled where its key is."""
    mine, everybodys = keys_on_both(cluster)
    rule = rule_with(Slots(2))
    seats = [Hit(hit(name, name="seats").key, rule.quota, 2, rule, 7) for name in (mine, everybodys)]
    async with opened(cluster.url) as store:
        charged = await store.charge(seats)
        assert charged.admitted
        assert not (await store.charge([seats[0]._replace(lease=8)])).admitted
        await store.settle([settlement_of(seat, 0, charged.now_ms) for seat in seats])

        assert [0, 0] == [(await store.charge([seat._replace(cost=0)])).tallies[0].used for seat in seats]


async def test_leases_are_given_back_over_several_slots(cluster: RedisCluster) -> None:
    """When one node refuses, the reservation that the other made is undone, and nothing is spent."""
    mine, everybodys = keys_on_both(cluster)
    rule, full = rule_with(Balance(100), "credits"), rule_with(Bucket(1, 1, 60_000), "full")
    credits_ = Hit(hit(mine, name="credits").key, rule.quota, 60, rule, 7)
    bucket = Hit(hit(everybodys, name="full").key, full.quota, 1, full)
    async with opened(cluster.url) as store:
        assert [True, False] == [(await store.charge([credits_, bucket])).admitted for _ in range(2)]

        assert 60 == (await store.charge([credits_._replace(cost=0)])).tallies[0].used
