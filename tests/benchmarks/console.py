"""What the console costs while nobody looks: CPU per decision with and without its recorder, beside metrics and top.

    python -m tests.benchmarks.console [--rounds 60]

One limiter on the embedded store in one process; its observer changes from burst to burst, so that the load of the
machine falls on all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from statistics import median

from prometheus_client import CollectorRegistry

from ratelimiter.admin.console.recorder import ConsoleRecorder
from ratelimiter.config.loader import build
from ratelimiter.core.request import Request
from ratelimiter.engine.fan_out import FanOut
from ratelimiter.engine.limiter import Limiter
from ratelimiter.metrics.heavy_hitters import Top
from ratelimiter.metrics.limiter_metrics import Metrics
from ratelimiter.stores.memory import MemoryStore

REQUESTS = [Request("GET", b"/v1/items", ((b"x-api-key", b"key-%d" % at),), "192.0.2.1") for at in range(1000)]


def limiters(limit: str) -> dict[str, Limiter]:
    """Return a limiter for each set of observers."""
    policy = build(limit=limit, principal=["header:X-API-Key"])
    observers = {
        "none": None,
        "metrics, top": FanOut(Metrics(CollectorRegistry()), Top()),
        "metrics, top, console": FanOut(Metrics(CollectorRegistry()), Top(), ConsoleRecorder()),
    }
    return {name: Limiter(policy, MemoryStore(), observer=observer) for name, observer in observers.items()}


async def burst(limiter: Limiter) -> float:
    """Return CPU microseconds of one decision, over 1,000 principals."""
    started_s = time.process_time()
    for request in REQUESTS:
        await limiter.judge(request)
    return (time.process_time() - started_s) / len(REQUESTS) * 1e6


async def measure(limit: str, rounds: int) -> None:
    """Print best and median of each, and the cost of the console."""
    made = limiters(limit)
    seen: dict[str, list[float]] = {name: [] for name in made}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, limiter in made.items():
            seen[name].append(await burst(limiter))
    print(f"\n{limit}: CPU of a decision, microseconds\n{'':24}{'best':>8}{'median':>8}")
    for name, values in seen.items():
        print(f"{name:24}{min(values):8.2f}{median(values):8.2f}")
    each = zip(seen["metrics, top, console"], seen["metrics, top"], strict=True)
    print(f"{'the console adds':24}{median(one - other for one, other in each):16.2f}")


def main() -> None:
    """Print the cost for admissions, and for refusals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    for limit in ("1000000/minute", "1/hour"):
        asyncio.run(measure(limit, rounds))


if __name__ == "__main__":
    main()
