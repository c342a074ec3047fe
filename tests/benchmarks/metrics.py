"""What metrics cost the middleware on the embedded store: throughput and CPU per request, side by side.

    python -m tests.benchmarks.metrics [CONNECTIONS]

Needs `wrk` and two cores, like `tests.benchmarks.middleware`.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack

from tests.benchmarks.middleware import load, served
from tests.benchmarks.table import compare

FIRST_PORT = 18200
ROUNDS = 9
APPS = ("starlette_limited", "starlette_observed", "starlette_observed_with_top")


def main() -> None:
    """Print the throughput without metrics, with them, and with the list of the heaviest principals, too."""
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with ExitStack() as stack:
        cpu_us: dict[str, list[float]] = {app: [] for app in APPS}
        runs = {}
        for port, app in enumerate(APPS, FIRST_PORT):
            runs[app] = load(port, stack.enter_context(served(app, port)), connections, cpu_us[app])
        print(f"{connections} connections, requests/s")
        compare(runs, unit="req/s", floor=APPS[0], rounds=ROUNDS, higher_is_better=True)
        print("\nCPU of the server per request, microseconds, least of all rounds")
        for app, values in cpu_us.items():
            print(f"{app:30}  {min(values):6.1f}")


if __name__ == "__main__":
    main()
