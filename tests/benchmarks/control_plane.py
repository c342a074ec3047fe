"""What redis-py does under faults in the parts that the store keeps for itself: finding the master, and TLS.

    python -m tests.benchmarks.control_plane

Starts a master and three Sentinels. Prints how long each way takes to name the master while all answer, with one
Sentinel stopped, and with two of three Sentinels stopped; and how many certificates each TLS context trusts when it is
given a CA of its own.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from redis.asyncio.connection import RedisSSLContext
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ratelimiter.errors import StoreError
from ratelimiter.stores.redis.sentinel import TIMEOUT_MS, sentinels_of
from ratelimiter.stores.redis.url import address_of
from tests.stores.redis_server import RedisServer, SentinelServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 9


async def ours(servers: list[SentinelServer]) -> str:
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return str(await sentinels_of(urlsplit(f"redis+sentinel://{hosts}/mymaster")).locate())


async def theirs(servers: list[SentinelServer]) -> str:
    timeout_s = TIMEOUT_MS / 1000
    bounded = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    # Untyped in redis-py.
    sentinel = Sentinel([("127.0.0.1", server.port) for server in servers], sentinel_kwargs=bounded)  # type: ignore[no-untyped-call]
    try:
        host, port = await sentinel.discover_master("mymaster")
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return f"{host}:{port}"


async def timed(ask: Callable[[list[SentinelServer]], Awaitable[str]], servers: list[SentinelServer]) -> str:
    times, answer = [], ""
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        try:
            answer = await ask(servers)
        except (StoreError, RedisError) as error:
            answer = type(error).__name__
        times.append((time.perf_counter() - began_s) * 1000)
    return f"{median(times):6.1f} ms median, {max(times):6.1f} ms longest ({answer})"


async def discovery() -> None:
    with RedisServer() as master:
        servers = [SentinelServer(master.port).start() for _ in range(3)]
        try:
            for stopped in (0, 1, 2):
                for server in servers[:stopped]:
                    server.freeze()
                for name, ask in (("ours", ours), ("redis-py", theirs)):
                    print(f"{stopped} of 3 Sentinels stopped, {name:8}: {await timed(ask, servers)}", flush=True)
        finally:
            for server in servers:
                server.close()


def trust() -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder) / "ca.pem"
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a CA of one's own"]
        subprocess.run(
            [*words, "-keyout", "/dev/null", "-out", str(certificate), "-days", "2"], check=True, capture_output=True
        )
        mine = address_of(urlsplit(f"rediss://localhost/0?ssl_ca_certs={certificate}")).tls
        assert isinstance(mine, ssl.SSLContext)
        library = RedisSSLContext(cert_reqs="required", ca_certs=str(certificate), check_hostname=True).get()
        for name, context in (("ours", mine), ("redis-py", library)):
            print(f"ssl_ca_certs with 1 certificate, {name:8}: {len(context.get_ca_certs())} are trusted")


if __name__ == "__main__":
    asyncio.run(discovery())
    trust()
