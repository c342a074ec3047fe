"""What metrics cost the middleware on the embedded store: CPU per request, and throughput under wrk.

    python -m tests.benchmarks.metrics [--connections 64] [--rounds 30]

Needs `wrk` and two cores, like `tests.benchmarks.middleware`. Everywhere it is one application in one process whose
observer changes from burst to burst: of two processes that do the same one is often some percent slower, for no reason
but where things came to lie in memory, and that is as much as is measured here.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import shutil
import signal
import sys
from statistics import median
from typing import TYPE_CHECKING

import uvloop

from tests.benchmarks.apps import starlette_switched
from tests.benchmarks.hot_path import Client
from tests.benchmarks.middleware import load, served

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PORT = 18200
BURSTS = 100
NAMES = tuple(starlette_switched.observers)


async def without_network(connections: int) -> dict[str, list[float]]:
    """CPU of one request through uvicorn's protocol and the application, 1,000 principals in turn, microseconds."""
    client = Client(starlette_switched, asyncio.get_running_loop(), connections)
    for _ in range(3 * len(NAMES)):
        await client.burst()
        starlette_switched.switch()
    gc.collect()
    gc.freeze()
    seen: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(BURSTS):
        for name in NAMES:
            seen[name].append(await client.burst())
            starlette_switched.switch()
    return seen


def under_wrk(connections: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """CPU of the server per request in microseconds, and requests per second."""
    cpu_us: dict[str, list[float]] = {name: [] for name in NAMES}
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    with served("starlette_switched", PORT) as server:
        bursts = {name: load(PORT, server, connections, cpu_us[name]) for name in NAMES}
        for _ in range(rounds):
            for name in NAMES:
                rates[name].append(bursts[name]())
                os.kill(server.pid, signal.SIGUSR1)
    return cpu_us, rates


def tell(title: str, seen: Mapping[str, Sequence[float]], *, higher_is_better: bool = False) -> None:
    """Print least, median, and the median of each round's ratio to the same without an observer."""
    print(f"\n{title}\n{'':24}{'best':>10}{'median':>10}{'to the first':>14}")
    for name, values in seen.items():
        best = max(values) if higher_is_better else min(values)
        ratio = median(value / first for value, first in zip(values, seen[NAMES[0]], strict=True))
        print(f"{name:24}{best:10,.2f}{median(values):10,.2f}{ratio:14.3f}")


def main() -> None:
    """Print the cost of metrics, and of the list of the heaviest principals beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    tell("CPU per request without a network, microseconds", uvloop.run(without_network(chosen.connections)))
    cpu_us, rates = under_wrk(chosen.connections, chosen.rounds)
    tell("CPU of the server per request under wrk, microseconds", cpu_us)
    tell("requests per second under wrk", rates, higher_is_better=True)


if __name__ == "__main__":
    main()
