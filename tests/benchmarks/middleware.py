"""What the middleware on the embedded store costs an application: throughput and CPU per request, side by side.

    python -m tests.benchmarks.middleware [CONNECTIONS]

Needs `wrk` and two cores: each application is served by uvicorn on one, the load comes from the other.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.table import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 2
FIRST_PORT = 18100
APPS = (
    "starlette_bare",
    "starlette_three_headers",
    "starlette_no_headers",
    "starlette_limited",
    "starlette_refusing",
    "fastapi_bare",
    "fastapi_limited",
)


@contextmanager
def served(app: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """*app* of `tests.benchmarks.apps` under uvicorn on core 0."""
    command = [sys.executable, "-m", "uvicorn", f"tests.benchmarks.apps:{app}", "--port", str(port)]
    command = ["taskset", "-c", "0", *command, "--log-level", "warning", "--no-access-log"]
    server = subprocess.Popen(command)
    try:
        for _ in range(100):
            if server.poll() is None and b"LISTEN" in _listening(port):
                break
            time.sleep(0.1)
        yield server
    finally:
        server.terminate()
        server.wait()


def _listening(port: int) -> bytes:
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return b"LISTEN" if any(f":{port:04X} 00000000:0000 0A" in line for line in lines) else b""


def load(port: int, server: subprocess.Popen[bytes], connections: int, cpu_us: list[float]) -> Callable[[], float]:
    """Requests per second of one burst; the server's own CPU per request goes to *cpu_us*."""

    def burst() -> float:
        before = _cpu_s(server.pid)
        command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}", "-H", "X-API-Key: k"]
        out = subprocess.run([*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True).stdout
        requests = int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]
        cpu_us.append((_cpu_s(server.pid) - before) / requests * 1e6)
        return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]

    return burst


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print throughput of every application, each beside its bare twin."""
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    with ExitStack() as stack:
        cpu_us: dict[str, list[float]] = {app: [] for app in APPS}
        runs = {}
        for port, app in enumerate(APPS, FIRST_PORT):
            runs[app] = load(port, stack.enter_context(served(app, port)), connections, cpu_us[app])
        for framework in ("starlette", "fastapi"):
            print(f"\n{framework}, {connections} connections, requests/s")
            mine = {app: run for app, run in runs.items() if app.startswith(framework)}
            compare(mine, unit="req/s", floor=f"{framework}_bare", rounds=5, higher_is_better=True)
        print("\nCPU of the server per request, microseconds, least of all rounds")
        for app, values in cpu_us.items():
            print(f"{app:26}  {min(values):6.1f}")


if __name__ == "__main__":
    main()
