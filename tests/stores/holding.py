"""One process of several that hold slots and spend a balance: `python -m tests.stores.holding URL SEED SECONDS`.

It prints `held` when it holds as many slots as it can get, goes on holding them, and calls as long as it is told to.
Each call reserves 10 credits and is settled, late or early, to something from 0 to 14. At its end it prints a line per
call that was admitted: what it was settled to. With 0 seconds it only holds, until it is killed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from urllib.parse import urlsplit

from ratelimiter.core.quota import Balance, Slots
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.core.settlement import settlement_of
from ratelimiter.stores.redis.store import open_redis

SLOTS = Slots(5, 1500)
BALANCE = Balance(2000, 5000)
SEATS = Rule("seats", SLOTS)
CREDITS = Rule("credits", BALANCE)
KEYS = (b"rl1:{0}:default:seats:slots", b"rl1:{0}:default:credits:balance")
CALLERS = 8


async def main(url: str, seed: int, seconds: float) -> None:
    """Hold, then call."""
    chance = random.Random(seed)  # noqa: S311
    store = open_redis(urlsplit(url), timeout_ms=5000)

    def lease() -> int:
        return chance.getrandbits(48) or 1

    while (await store.charge([Hit(KEYS[0], SLOTS, 1, SEATS, lease())])).admitted:
        pass
    print("held", flush=True)
    if not seconds:
        await asyncio.sleep(3600)
    end, settled = time.monotonic() + seconds, []

    async def call() -> None:
        while time.monotonic() < end:
            hit = Hit(KEYS[1], BALANCE, 10, CREDITS, lease())
            receipt = await store.charge([hit])
            if receipt.admitted:
                await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
                due = chance.randrange(15)
                await store.settle([settlement_of(hit, due, receipt.now_ms)])
                settled.append(due)
            else:
                await asyncio.sleep(0.005)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    await store.close()
    print("\n".join(map(str, settled)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
