"""What metrics cost the middleware on the embedded store: CPU per request in one process, then throughput under load.

    python -m tests.benchmarks.metrics [CONNECTIONS]

Needs `wrk` and two cores, like `tests.benchmarks.middleware`. The first table is the one to compare by: it is of one
process whose applications take turns every few milliseconds, so that a busy machine is as busy for all of them.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from contextlib import ExitStack
from statistics import median
from typing import Any

from tests.benchmarks import apps
from tests.benchmarks.middleware import load, served
from tests.benchmarks.table import compare

FIRST_PORT = 18200
ROUNDS = 9
TURNS, REQUESTS = 300, 300
APPS = ("starlette_limited", "starlette_observed", "starlette_observed_with_top")
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"localhost"), (b"accept", b"*/*"), (b"x-api-key", b"k")],
    "client": ("127.0.0.1", 50_000),
    "server": ("127.0.0.1", 80),
}


async def take_turns() -> None:
    """Print the CPU of one request through each application, without any server."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    cpu_us: dict[str, list[float]] = {name: [] for name in APPS}
    for _ in range(TURNS):
        for name in APPS:
            app, begun_ns = getattr(apps, name), time.process_time_ns()
            for _ in range(REQUESTS):
                await app(dict(SCOPE), receive, send)
            cpu_us[name].append((time.process_time_ns() - begun_ns) / REQUESTS / 1000)
    print("CPU of one request in the application, microseconds: least, median")
    for name, values in cpu_us.items():
        print(f"{name:30}  {min(values):6.2f}  {median(values):6.2f}")


def main() -> None:
    """Print the cost without metrics, with them, and with the list of the heaviest principals, too."""
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    asyncio.run(take_turns())
    with ExitStack() as stack:
        cpu_us: dict[str, list[float]] = {app: [] for app in APPS}
        runs = {}
        for port, app in enumerate(APPS, FIRST_PORT):
            runs[app] = load(port, stack.enter_context(served(app, port)), connections, cpu_us[app])
        print(f"\n{connections} connections, requests/s")
        compare(runs, unit="req/s", floor=APPS[0], rounds=ROUNDS, higher_is_better=True)
        print("\nCPU of the server per request, microseconds, least of all rounds")
        for app, values in cpu_us.items():
            print(f"{app:30}  {min(values):6.1f}")


if __name__ == "__main__":
    main()
