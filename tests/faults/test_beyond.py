"""Faults that nobody had listed: rows F55-F60."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.quota import Bucket, Quota, Slots
from ratelimiter.core.receipt import LOCAL, STORE
from ratelimiter.core.rule import OnStoreError
from ratelimiter.errors import Kind
from ratelimiter.stores.factory import open_store
from tests.faults.drill import RECOVERY_MS, Drill, Service
from tests.faults.records import RECORDS, Record
from tests.faults.test_clock import Clocked, shim  # noqa: F401 - a fixture
from tests.reference_store import hits_of, rule_with

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.core.quota import AnyQuota
    from tests.faults.server import Server

OVERRIDES = 10_000


@pytest.mark.parametrize("mode", list(OnStoreError))
async def test_f55_nobody_asks(server: Server, mode: OnStoreError) -> None:
    """Whatever a rule does without the store, it is back within a second of the fault's end without a request."""
    service = Service(server.url, mode)
    await service.ask("/wide/101", "key-idle", 101)
    server.freeze()
    while not service.guarded.degraded:
        await service.ask("/wide/101", "key-idle", 101)
    await asyncio.sleep(0.6)  # two probes fail
    server.thaw()
    thawed_s = time.monotonic()
    while service.guarded.degraded:
        assert time.monotonic() < thawed_s + 10
        await asyncio.sleep(0.005)
    took_ms = (time.monotonic() - thawed_s) * 1000
    sample = await service.ask("/wide/101", "key-idle", 101)
    await service.store.close()
    slowest = max(service.samples, key=lambda sample: sample.took_ms)
    how = f"SIGSTOP, then SIGCONT, and no request ({mode.value})"
    RECORDS.append(Record(55, how, slowest.took_ms, slowest.raw_ms, sample.source, "-", took_ms))

    assert STORE == sample.source
    assert took_ms <= RECOVERY_MS


async def test_f56_storm_of_kills(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Connections that are killed every 20 ms fail their requests as broken ones do, and nothing escapes."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            for _ in range(30):
                await asyncio.to_thread(kill_all, server)
                await asyncio.sleep(0.02)
        await drill.recovered()
    drill.check(56, "CLIENT KILL TYPE normal, 30 times, every 20 ms", fds=8)

    assert not [record for record in caplog.records if record.exc_info]


def kill_all(server: Server) -> None:
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_f57_flapping(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A server that stands still every half second is two lines of log for each process, not two for each time."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            for _ in range(6):
                server.freeze()
                await drill.flowed(0.4)
                server.thaw()
                await drill.flowed(0.5)
        await drill.recovered()
    drill.check(57, "SIGSTOP for 0.4 s, 6 times, half a second apart", fds=8)

    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("the store ")]
    assert len(told) <= 2 * len(OnStoreError), told


@pytest.mark.parametrize(
    ("quota", "longest_ms"),
    [
        (Quota(200, 3_600_000), 3_600_000 + 28_125),
        (Quota(3, 3_600_000), 3_600_000),
        (Bucket(3, 3, 3_600_000), 3_600_000),
        (Slots(1, 3_600_000), 3_600_000),
    ],
    ids=["coarse window", "window", "bucket", "slots"],
)
async def test_f58_a_clock_behind(shim: Path, tmp_path: Path, quota: AnyQuota, longest_ms: int) -> None:  # noqa: F811
    """After a step back of half an hour no wait is longer than the window, and it runs from the first time that it was
    announced.
    """
    with Clocked(shim, tmp_path / "offset") as server:
        store = open_store(server.url, timeout_ms=5000)
        (one,) = hits_of(rule_with(quota))
        lease = 7 if quota.kind == "slots" else 0
        assert (await store.charge([one._replace(cost=quota.limit, lease=lease)])).admitted
        server.offset_s = -1800
        again = one._replace(cost=1, lease=lease and 8)
        first = (await store.charge([again])).tallies[0].retry_after_ms
        server.offset_s = -1200
        second = (await store.charge([again])).tallies[0].retry_after_ms
        await store.close()
    how = f"a preloaded library sets the clock 30 minutes back; a {quota.kind}"
    RECORDS.append(Record(58, how, 0, 0, STORE, "-", None))

    assert 0 < first <= longest_ms
    assert abs(first - 600_000 - second) <= 5000 + 28_125


async def test_f59_spent_before(server: Server) -> None:
    """A limit that was spent in the store stays spent when the store stops; what it left is shared."""
    service = Service(server.url, OnStoreError.LOCAL)
    while (await service.ask("/tight", "key-spent")).status == 200:
        pass
    server.freeze()
    while not service.guarded.degraded:
        await service.ask("/wide/101", "key-other", 101)
    await asyncio.sleep(1.1)  # for so long the refusal is cached
    after = [await service.ask("/tight", "key-spent") for _ in range(30)]
    server.thaw()
    await service.store.close()
    slowest = max(service.samples, key=lambda sample: sample.took_ms)
    admitted = sum(sample.status == 200 for sample in after)
    how = "SIGSTOP after 20 of 20 were spent, 30 more requests"
    RECORDS.append(Record(59, how, slowest.took_ms, slowest.raw_ms, LOCAL, f"local {admitted}", None))

    assert {LOCAL} == {sample.source for sample in after}
    assert 0 == admitted


async def test_f60_many_overrides(server: Server) -> None:
    """While every process reads ten thousand overrides, and one more later, decisions come in time."""
    async with Drill(server.url) as drill:
        await drill.settled()
        with drill.fault():
            await asyncio.to_thread(write_overrides, server, "first", OVERRIDES)
            await drill.until(lambda: all(known(s) == OVERRIDES for s in drill.services.values()), "all is read", 30)
            await asyncio.to_thread(write_overrides, server, "second", OVERRIDES + 1)
            await drill.until(
                lambda: all(known(s) > OVERRIDES for s in drill.services.values()), "one more is read", 30
            )
        await drill.recovered()
    drill.check(60, f"{OVERRIDES:,} overrides written, then one more", fds=8)

    assert {Kind.TIMEOUT, Kind.OVERLOADED} >= set(drill.kinds())  # of a machine without a processor to spare


def known(service: Service) -> int:
    return len(service.app.limiter.overrides.overrides)


def write_overrides(server: Server, version: str, number: int) -> None:
    with server.client() as client:
        for mode in OnStoreError:
            key = f"rl1:{{orders}}:{mode.value}"
            entries = ({"who": f"{n:032x}", "rule": "tight", "limit": "9/minute"} for n in range(number))
            fields = {f"override:{entry['who']}:tight": f"0 {json.dumps(entry)}" for entry in entries}
            client.hset(key, mapping=fields | {"version": version})
