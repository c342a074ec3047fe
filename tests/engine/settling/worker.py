"""A limiter in a process of its own, to be killed: `python -m tests.engine.settling.worker WAY REDIS_URL LEASE_TTL_MS`.

Prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import sys

from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import EVERYONE
from ratelimiter.core.quota import Slots
from ratelimiter.core.rule import Rule
from tests.engine.settling.service import Service
from tests.engine.settling.ways import limited


async def main(way: str, url: str, lease_ttl_ms: str) -> None:
    """Serve until killed."""
    rule = Rule("in-flight", Slots(2, lease_ttl_ms=int(lease_ttl_ms)), principal=(EVERYONE,))
    policy = Policy((rule,), store=url, dialect="tracefinance-v1", decision_timeout_ms=1000)
    async with limited(way, Service(), policy) as port:
        print(port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
