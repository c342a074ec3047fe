"""Several processes on one real server: a balance is never overspent, and a killed holder's slots come back."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from ratelimiter.core.rule import Hit
from ratelimiter.stores.redis.store import open_redis
from tests.stores.holding import BALANCE, CREDITS, KEYS, SEATS, SLOTS

if TYPE_CHECKING:
    from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers


def held(url: str, seed: int, seconds: float) -> subprocess.Popen[str]:
    """A process that holds what it can get; it does already."""
    words = [sys.executable, "-m", "tests.stores.holding", url, str(seed), str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "held\n" == process.stdout.readline()
    return process


async def test_slots_of_a_killed_process_return_within_the_ttl(redis_server: RedisServer) -> None:
    """Killed in the middle, it gives nothing back: after the life of a lease its slots are free, and not before."""
    holder = held(redis_server.url, 1, 0)
    store = open_redis(urlsplit(redis_server.url), timeout_ms=5000)
    try:
        refused = await store.charge([Hit(KEYS[0], SLOTS, 1, SEATS, 2**47)])
        holder.kill()
        holder.wait()
        killed_s = time.monotonic()
        assert not refused.admitted
        assert 0 < refused.tallies[0].retry_after_ms <= SLOTS.lease_ttl_ms
        while not (receipt := await store.charge([Hit(KEYS[0], SLOTS, SLOTS.limit, SEATS, 2**47 + 1)])).admitted:
            assert time.monotonic() - killed_s < SLOTS.lease_ttl_ms / 1000 + 1
        assert SLOTS.limit == receipt.tallies[0].used
    finally:
        if holder.stdout is not None:
            holder.stdout.close()
        await store.close()


async def test_processes_never_overspend_a_balance(redis_server: RedisServer) -> None:
    """Three at once reserve, settle to more and to less, and retry, until all is spent: together not one credit more
    than there was. What a settlement was charged less than it asked for, as no more was there, is the difference.
    """
    holders = [held(redis_server.url, seed, 2) for seed in (1, 2, 3)]
    dues = [int(line) for holder in holders for line in holder.communicate(timeout=30)[0].split()]
    store = open_redis(urlsplit(redis_server.url), timeout_ms=5000)
    looked = await store.charge([Hit(KEYS[1], BALANCE, 0, CREDITS)])
    last = await store.charge([Hit(KEYS[1], BALANCE, 10, CREDITS)])
    await store.close()

    assert len(dues) > BALANCE.limit / 14
    assert BALANCE.limit - 10 < looked.tallies[0].used <= BALANCE.limit, "no reservation is open, and no call fits"
    assert not last.admitted
    assert looked.tallies[0].used <= sum(dues) < looked.tallies[0].used + 3 * 8 * 14
