"""One process of several that charge the same key: `python -m tests.stores.charging URL SEED LIMIT WINDOW_MS SECONDS`.

Prints one line per decision: now_ms, whether it was admitted, cost.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from urllib.parse import urlsplit

from ratelimiter.core.policy import Policy, key_of
from ratelimiter.core.principal import Principal
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.stores.redis.store import open_redis

CALLERS = 8


async def main(url: str, seed: int, limit: int, window_ms: int, seconds: float) -> None:
    """Charge from several callers at once, in bursts and after pauses drawn from *seed*."""
    rule = Rule("shared", Quota(limit, window_ms))
    key = key_of(Policy((rule,)), rule, Principal("client", "0" * 32), 0)
    store = open_redis(urlsplit(url), timeout_ms=5000)
    end = time.monotonic() + seconds
    lines: list[str] = []

    async def call(random_: random.Random) -> None:
        while time.monotonic() < end:
            cost = random_.choice((1, 1, 1, 2))
            receipt = await store.charge([Hit(key, rule.quota, cost, rule)])
            lines.append(f"{receipt.now_ms} {int(receipt.admitted)} {cost}")
            if random_.random() < 0.2:
                await asyncio.sleep(random_.choice((0, 0.001, window_ms / 2000)))

    await asyncio.gather(*(call(random.Random(f"{seed}/{caller}")) for caller in range(CALLERS)))  # noqa: S311
    await store.close()
    print("\n".join(lines))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
