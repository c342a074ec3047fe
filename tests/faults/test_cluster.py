"""Faults of a Redis Cluster: rows F32, F33, F35 and F36."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.receipt import STORE
from ratelimiter.errors import Kind
from ratelimiter.stores.redis.cluster import slot_of
from tests.faults.drill import Drill
from tests.faults.test_process import stand_still
from tests.faults.test_server import own_keys
from tests.stores.redis_server import RedisCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stores.redis_server import RedisServer


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


async def test_f32_one_node_taken_for_a_server(cluster: RedisCluster, caplog: pytest.LogCaptureFixture) -> None:
    """A cluster's node under a URL of a single server: its own keys are counted, the others' rules do what they say,
    and the log tells what is wrong.
    """
    async with Drill(f"redis://127.0.0.1:{cluster.nodes[0].port}/0") as drill:
        with drill.fault():
            await drill.flowed(0.3)
            for number in range(40):
                for service in drill.services.values():
                    await service.ask("/wide/101", f"key-{drill.token}-{number}", 101)
                await asyncio.sleep(0.01)
    drill.check(32, "a `redis://` URL of one of two nodes")
    assert {Kind.MOVED} == set(drill.kinds())
    assert "moved" in "".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)


def divide(giver: RedisServer, taker: RedisServer, slot: int) -> None:
    """Begin to move *slot*: what is not there any more is to be looked for at the taker."""
    with giver.client() as one, taker.client() as other:
        other.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", one.execute_command("CLUSTER", "MYID"))
        one.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", other.execute_command("CLUSTER", "MYID"))


def move_key(giver: RedisServer, taker: RedisServer, key: bytes) -> None:
    with giver.client() as one:
        one.execute_command("MIGRATE", "127.0.0.1", taker.port, key, 0, 1000)


def finish(giver: RedisServer, taker: RedisServer, slot: int) -> None:
    """Move what is left of *slot*, and say whose it is now."""
    with giver.client() as one, taker.client() as other:
        for key in one.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            move_key(giver, taker, key)
        taker_id = other.execute_command("CLUSTER", "MYID")
        for client in (other, one):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", taker_id)


async def test_f32_slots_that_move(cluster: RedisCluster) -> None:
    """Slots that move to another node under traffic cost no decision, and no tally."""
    async with Drill(cluster.url) as drill:
        await drill.settled()
        with drill.fault():
            for key in own_keys(drill, "101"):
                slot = slot_of(key)
                giver = cluster.serving(slot)
                taker = next(node for node in cluster.nodes if node is not giver)
                await asyncio.to_thread(divide, giver, taker, slot)
                await drill.flowed(0.05)
                await asyncio.to_thread(move_key, giver, taker, key)
                await drill.flowed(0.05)
                await asyncio.to_thread(finish, giver, taker, slot)
                await drill.flowed(0.05)
        await drill.recovered()
    drill.check(32, "the slots of three principals are moved between two nodes", fds=6)
    assert {} == drill.kinds()


async def test_f33_slot_that_is_divided(cluster: RedisCluster) -> None:
    """A principal whose two keys are on two nodes for a while does without the store; nobody else does."""
    async with Drill(cluster.url) as drill:
        await drill.settled()
        with drill.fault():
            moves = []
            for key in own_keys(drill, "107")[::2]:  # one of the two keys of each
                slot = slot_of(key)
                giver = cluster.serving(slot)
                taker = next(node for node in cluster.nodes if node is not giver)
                moves.append((giver, taker, slot))
                await asyncio.to_thread(divide, *moves[-1])
                await asyncio.to_thread(move_key, giver, taker, key)
            await drill.endured(answers=5, at_least_s=0.4)
            others = [sample for sample in drill.during() if sample.path != "/wide/107"]
            for move in moves:
                await asyncio.to_thread(finish, *move)
        await drill.recovered()
    drill.check(33, "one of two keys of a principal has moved, the other has not", fds=6)
    assert {Kind.CLUSTER_DOWN, Kind.TIMEOUT} >= set(drill.kinds())
    assert all(sample.source == STORE or sample.status == 429 for sample in others if sample.path == "/wide/101")


async def test_f52_event_loop_that_stands_still(cluster: RedisCluster) -> None:
    """Our own pause is not the store's, however many nodes it has."""
    async with Drill(cluster.url) as drill:
        await drill.settled()
        with drill.fault():
            await stand_still(drill)
        await drill.recovered()
    drill.check(52, "the same, with a cluster", stall_ms=300, crowd=15, fds=6)
    assert {} == drill.kinds()


async def test_f35_half_of_a_cluster() -> None:
    """While a node is gone decisions come in time, and when the cluster is whole again it is used again."""
    with RedisCluster() as cluster:
        async with Drill(cluster.url, losses=1) as drill:
            await drill.settled()
            with drill.fault():
                cluster.nodes[1].kill()
                await drill.endured(at_least_s=1.5)
                await asyncio.to_thread(cluster.nodes[1].start)
                await drill.until_told(lambda: whole(cluster), "the cluster is whole")
            await drill.recovered()
        drill.check(35, "one of two masters killed, and started again; the fault ends when both say `ok`", fds=8)
    assert Kind.CLUSTER_DOWN in drill.kinds() or Kind.UNREACHABLE in drill.kinds()


def whole(cluster: RedisCluster) -> bool:
    return all(cluster._ready(node) for node in cluster.nodes)


async def test_f36_no_node_at_the_start() -> None:
    """A process starts without any node of its cluster, and uses it when it has come about."""
    cluster = RedisCluster()
    async with Drill(cluster.url) as drill:
        try:
            with drill.fault():
                await drill.endured()
                assert not any(sample.source == STORE for sample in drill.samples())
                await asyncio.to_thread(cluster.__enter__)
            await drill.recovered()
        finally:
            begun_s = time.monotonic()
            cluster.__exit__(None, None, None)
            assert time.monotonic() - begun_s < 5
    drill.check(36, "closed ports; then a cluster is made of them; the fault ends when both nodes say `ok`", fds=8)
