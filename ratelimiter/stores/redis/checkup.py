"""A checkup of a Redis store before traffic comes: connection, version, eviction, clock, script, permissions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.errors import Kind, StoreError
from ratelimiter.stores.factory import open_store
from ratelimiter.stores.redis.control import ControlConnection
from ratelimiter.stores.redis.sentinel import sentinels_of
from ratelimiter.stores.redis.url import address_of, hosts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ratelimiter.stores.base import Store
    from ratelimiter.stores.redis.url import Address

TIMEOUT_MS = 3000  # a person waits longer than a request
CLOCK_MS_MAX = 1000  # between the server's clock and ours
ROUNDS = 5
OLDEST = (6, 2)
GOOD, DOUBTFUL, BAD = "ok", "warning", "FAILED"
KEEPING = ("noeviction", "volatile-ttl")  # policies that do not evict a counter before its time
ADVICE = {
    Kind.AUTHENTICATION: "check user and password in the store's URL, or password_file",
    Kind.PERMISSION: "grant the ACL user +evalsha +eval +get +set +time ~rl1:*",
    Kind.TLS: "write rediss:// and ssl_ca_certs, or redis:// for a server without TLS",
    Kind.UNREACHABLE: "check host, port and network policy",
    Kind.READ_ONLY: "name the primary, or write redis+sentinel://",
    Kind.MOVED: "write redis+cluster://, as this server is part of a cluster",
    Kind.FULL: "raise maxclients, or end idle connections",
}


class Check(NamedTuple):
    """One finding."""

    name: str
    result: str  # GOOD, DOUBTFUL or BAD
    text: str  # the finding, and what would do


async def checkup(url: str, decision_timeout_ms: int) -> AsyncIterator[Check]:
    """Yield the findings about the store at *url*; later checks are left out if its servers cannot be reached."""
    scheme = url.partition("://")[0].lower()
    if scheme == "memory" or scheme.startswith("limits+"):
        yield Check("store", GOOD, f"{scheme}:// has no server that this command knows how to check")
        return
    store = open_store(url, timeout_ms=TIMEOUT_MS)
    try:
        for address in await _addresses(url, scheme):
            reached = True
            async for check in _server(address, decision_timeout_ms):
                reached = reached and not (check.name.startswith("connection") and check.result == BAD)
                yield check
            if not reached:
                return
        yield await _script(store)
        yield await _overrides(store)
    except StoreError as fault:
        yield Check("connection", BAD, _told(fault))
    finally:
        await store.close()


async def _addresses(url: str, scheme: str) -> list[Address]:
    parts = urlsplit(url)
    if scheme.endswith("+sentinel"):
        return [await sentinels_of(parts).locate()]
    if scheme.endswith("+cluster"):
        first = address_of(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@host".lstrip("@"), path=""))
        return [first.placed(host, port) for host, port in hosts_of(parts, 6379)]
    return [address_of(parts)]


async def _server(address: Address, decision_timeout_ms: int) -> AsyncIterator[Check]:
    connection = ControlConnection(address, timeout_ms=TIMEOUT_MS, connect_timeout_ms=TIMEOUT_MS)
    try:
        try:
            took_ms = await _round_trip_ms(connection)
        except StoreError as fault:
            yield Check(f"connection to {address}", BAD, _told(fault))
            return
        slow = took_ms * 2 > decision_timeout_ms
        advice = f"; let decision_timeout be more than two round trips, now {decision_timeout_ms}ms" if slow else ""
        yield Check(f"connection to {address}", DOUBTFUL if slow else GOOD, f"{took_ms:.1f} ms round trip{advice}")
        try:
            yield _version(await _info(connection, "server"))
            yield _eviction(await _info(connection, "memory"))
        except StoreError as fault:
            yield Check("version, eviction", DOUBTFUL, f"INFO is refused ({fault.kind}); look at them by hand")
        try:
            yield await _clock(connection)
        except StoreError as fault:
            yield Check("clock", BAD, _told(fault))
    finally:
        connection.drop()


async def _round_trip_ms(connection: ControlConnection) -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        await connection.call("TIME")  # which the ACL of the documentation permits, unlike PING
        took.append((time.monotonic() - began) * 1000)
    return sorted(took)[ROUNDS // 2]


async def _info(connection: ControlConnection, section: str) -> dict[str, str]:
    reply = await connection.call("INFO", section)
    text = reply.decode() if isinstance(reply, bytes) else str(reply)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _version(info: dict[str, str]) -> Check:
    version = info.get("redis_version", "unknown")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        return Check("version", BAD, f"{version}; run Redis 6.2 or later")
    return Check("version", GOOD, version)


def _eviction(info: dict[str, str]) -> Check:
    policy, most = info.get("maxmemory_policy", "unknown"), info.get("maxmemory", "0")
    if policy not in KEEPING:
        return Check("eviction", BAD, f"{policy} evicts counters; set maxmemory-policy noeviction or volatile-ttl")
    if most == "0":
        return Check(
            "eviction", DOUBTFUL, f"{policy}, without a bound; set maxmemory, so that keys cannot fill the host"
        )
    return Check("eviction", GOOD, f"{policy}, maxmemory {most} bytes")


async def _clock(connection: ControlConnection) -> Check:
    before = time.time()
    reply = await connection.call("TIME")
    after = time.time()
    if not isinstance(reply, list) or len(reply) != 2:
        return Check("clock", BAD, "TIME has an unexpected reply; is it a Redis server?")
    offset_ms = (int(reply[0]) + int(reply[1]) / 1e6 - (before + after) / 2) * 1000
    if abs(offset_ms) > CLOCK_MS_MAX + (after - before) * 1000:
        return Check("clock", DOUBTFUL, f"{offset_ms:+.0f} ms from this machine's; run NTP on both")
    return Check("clock", GOOD, "agrees with this machine's within a second")


async def _script(store: Store) -> Check:
    rule = Rule("doctor", Quota(1, 1000))
    try:
        await store.charge([Hit(b"rl1:{doctor}:doctor:doctor:0", rule.quota, 0, rule)])
    except StoreError as fault:
        return Check("script", BAD, _told(fault))
    return Check("script", GOOD, "a decision is made, and nothing is charged")


async def _overrides(store: Store) -> Check:
    book = store.override_store("doctor")
    if book is None:
        return Check("overrides", DOUBTFUL, "this store keeps none")
    try:
        await book.read()
    except StoreError as fault:
        advice = "grant +hget +hscan, or do without runtime overrides" if fault.kind == Kind.PERMISSION else ""
        return Check("overrides", DOUBTFUL, f"{fault}; {advice or _told(fault)}")
    return Check("overrides", GOOD, "runtime overrides can be read")


def _told(fault: StoreError) -> str:
    advice = ADVICE.get(fault.kind, "see the server's log")
    return f"{fault} ({fault.kind}); {advice}"
