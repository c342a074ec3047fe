"""What very many overrides cost: to load, while others go on, and in a decision.

    python -m tests.benchmarks.overrides [--rows 1000000] [--networks 10000]

Writes a CSV file of single principals and networks, loads it in a thread as a reload does, and watches how late the
event loop gets; then times decisions with and without them, on principals that are not remembered.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ratelimiter.config import loader
from ratelimiter.core.planner import Planner
from tests.requesting import request

if TYPE_CHECKING:
    from ratelimiter.core.policy import Policy

RULES = "rules:\n  - {name: per-minute, principal: [header:X-API-Key, client], limit: 60/minute}\n"


def written(folder: Path, rows: int, networks: int) -> Path:
    with (folder / "customers.csv").open("w") as file:
        file.write("principal,limit\n")
        file.writelines(f"header:X-API-Key=customer-{n},{n % 50 + 1}/minute\n" for n in range(rows))
        file.writelines(f"client=10.{n >> 8 & 255}.{n & 255}.0/{24 + n % 5},100/minute\n" for n in range(networks))
    (folder / "p.yaml").write_text(f"{RULES}overrides_file: ./customers.csv\n")
    return folder / "p.yaml"


async def loaded(path: Path) -> Policy:
    late_ms: list[float] = []

    async def watch() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.001)
            late_ms.append((time.perf_counter() - began_s) * 1000 - 1)

    watching = asyncio.create_task(watch())
    began_s = time.perf_counter()
    policy = await asyncio.to_thread(loader.load, path)
    took_s = time.perf_counter() - began_s
    watching.cancel()
    late_ms.sort()
    print(
        f"loaded in {took_s:.1f} s; the event loop was late by {median(late_ms):.1f} ms (median), "
        f"{late_ms[int(len(late_ms) * 0.99)]:.1f} ms (p99), {late_ms[-1]:.1f} ms (longest)"
    )
    return policy


def decided_us(policy: Policy, kind: str) -> float:
    planner = Planner(policy)
    numbers = range(8000)  # fewer than are remembered, each for the first time
    requests = [request("/", peer=f"10.{n >> 8 & 255}.{n & 255}.9") for n in numbers]
    if kind == "key":
        requests = [request("/", headers=[("X-API-Key", f"customer-{n * 7}")]) for n in numbers]
    began_s = time.perf_counter()
    for each in requests:
        planner.hits(each)
    return (time.perf_counter() - began_s) / len(requests) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--networks", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), args.rows, args.networks)
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        policy = asyncio.run(loaded(path))
        grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1000
        (Path(folder) / "plain.yaml").write_text(RULES)
        plain = loader.load(Path(folder) / "plain.yaml")
        print(f"highest memory while loading: {grown_mb:.0f} MB more")
        for kind in ("key", "address"):
            with_us, without_us = decided_us(policy, kind), decided_us(plain, kind)
            print(f"first decision of a principal by {kind}: {with_us:.1f} us, without overrides {without_us:.1f} us")


if __name__ == "__main__":
    main()
