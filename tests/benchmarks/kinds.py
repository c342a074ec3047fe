"""What each kind of limit costs a Redis: CPU per decision, and bytes per key.

    python -m tests.benchmarks.kinds [OTHER_SCRIPT]

Starts a server of its own. The CPU is what the server counts for EVALSHA, in batches of 20 requests and
alone; the median of several rounds. With OTHER_SCRIPT, a file, windows are also charged by that one, in turns: what a
change of the script costs them.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ratelimiter.core.quota import Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.core.settlement import settlement_of
from ratelimiter.stores.redis import script
from tests.stores.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

BATCH = 20
ROUNDS = 7
CALLS = 1000
LEASES = (1, 10, 100, 1000)
KINDS = {
    "window": Rule("window", Quota(1000, 60_000)),
    "token bucket": Rule("bucket", Bucket(10**6, 10, 1000)),
    "month": Rule("month", Period(10**9, "month")),
    "balance": Rule("balance", Balance(10**9)),
}
LEASED = {
    "slots": Rule("slots", Slots(100)),
    "balance": Rule("balance", Balance(10**9)),
    "window (count)": Rule("window", Quota(1000, 60_000)),
}


def hits(rule: Rule, count: int, lease: int = 0) -> list[list[Hit]]:
    """Requests of different principals."""
    ours = lease if rule.quota.lease_ttl_ms else 0
    return [
        [Hit(b"rl1:{%032x}:default:%b:0" % (number, rule.name.encode()), rule.quota, 1, rule, ours)]
        for number in range(count)
    ]


def cpu_us(client: redis.Redis, sha: str, calls: Iterator[list[Any]], requests: int) -> float:
    """CPU per request that *calls* take."""
    client.flushall()
    client.config_resetstat()
    count = 0
    for batch in calls:
        keys, argv = script.arguments(batch, b"nonce")
        client.evalsha(sha, len(keys), *keys, *argv)
        count += 1
    stats: Any = client.info("commandstats")
    return float(stats["cmdstat_evalsha"]["usec"]) / count / requests * (count // CALLS)


def charges(rule: Rule, count: int) -> Iterator[list[Any]]:
    for _ in range(CALLS):
        yield hits(rule, count)


def charges_and_settlements(rule: Rule, count: int) -> Iterator[list[Any]]:
    for number in range(1, CALLS + 1):
        batch = hits(rule, count, number)
        yield batch
        yield [script.Settling([settlement_of(request[0], 0, 0)]) for request in batch]


def median(client: redis.Redis, sha: str, make: Any, rule: Rule, count: int) -> float:
    return statistics.median(cpu_us(client, sha, make(rule, count), count) for _ in range(ROUNDS))


def main() -> None:
    """Measure, and print."""
    with RedisServer() as server, server.client() as client:
        ours = client.script_load(script.TEXT)
        if len(sys.argv) > 1:
            other = client.script_load(Path(sys.argv[1]).read_bytes())
            for count in (1, BATCH):
                pairs = [
                    [cpu_us(client, sha, charges(KINDS["window"], count), count) for sha in (other, ours)]
                    for _ in range(ROUNDS)
                ]
                before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
                print(f"windows, {count} at a time: {before:.2f} us by the other script, {after:.2f} us by ours")
        for name, rule in KINDS.items():
            alone, together = (median(client, ours, charges, rule, count) for count in (1, BATCH))
            client.flushall()
            keys, argv = script.arguments(hits(rule, 1), b"nonce")
            client.evalsha(ours, 1, *keys, *argv)
            print(f"{name}: {alone:.1f} us alone, {together:.1f} us of {BATCH}; {client.memory_usage(keys[0])} bytes")
        for name, rule in LEASED.items():
            alone, together = (median(client, ours, charges_and_settlements, rule, count) for count in (1, BATCH))
            print(f"{name}, charged and settled: {alone:.1f} us alone, {together:.1f} us of {BATCH}")
        rule = Rule("slots", Slots(max(LEASES)))
        for count in LEASES:
            client.flushall()
            for lease in range(1, count + 1):
                keys, argv = script.arguments(hits(rule, 1, 2**47 + lease), b"nonce")
                client.evalsha(ours, 1, *keys, *argv)
            client.config_resetstat()
            keys, argv = script.arguments([[hits(rule, 1)[0][0]._replace(cost=0)]], b"nonce")
            for _ in range(CALLS):
                client.evalsha(ours, 1, *keys, *argv)
            stats: Any = client.info("commandstats")
            look_us = stats["cmdstat_evalsha"]["usec"] / CALLS
            print(f"slots with {count} taken: {look_us:.1f} us alone; {client.memory_usage(keys[0])} bytes")


if __name__ == "__main__":
    main()
