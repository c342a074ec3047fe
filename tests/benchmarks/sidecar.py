"""What the sidecar costs per proxied request, beside nginx with limit_req and a proxy that does nothing else.

    python -m tests.benchmarks.sidecar [CONNECTIONS] [ROUNDS]

Needs `nginx`, `wrk`, `redis-server` and two cores: what is measured has one to itself, the load, the upstream and Redis
share the other. CPU is what counts, not throughput, as the other core is the busier one; Redis's own is part of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 2
FIRST_PORT = 18200
UPSTREAM_PORT, REDIS_PORT = FIRST_PORT - 1, FIRST_PORT - 2
PLENTY = "1000000000/minute"
CLIENT = ["-H", "X-API-Key: k", "-H", "User-Agent: benchmark/1.0", "-H", "Accept: application/json"]

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  limit_req_zone $http_x_api_key zone=k:10m rate={rate};
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ {location} }}
  }}
}}
"""
LIMITING = (
    "limit_req zone=k burst=1000000 nodelay; limit_req_status 429;"
    ' proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";'
)
ANSWERING = 'default_type application/json; return 200 \'{{"hello": "world"}}\';'.replace("{{", "{").replace("}}", "}")


class Contestant(NamedTuple):
    """One program under measurement."""

    name: str
    port: int
    pids: tuple[int, ...]  # whose CPU counts
    status: str  # of its answers: 2xx or 4xx


@contextmanager
def process(core: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process on a core of its own."""
    command = ["taskset", "-c", str(core), *words]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.terminate()
        started.wait()


@contextmanager
def nginx(core: int, port: int, location: str, rate: str = "1000000r/s") -> Iterator[int]:
    """An nginx without a master; its process id."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nginx.conf")
        file.write_text(NGINX.format(folder=folder, port=port, upstream=UPSTREAM_PORT, location=location, rate=rate))
        with process(core, "nginx", "-c", str(file), "-p", folder) as started:
            listening(port)
            yield started.pid


def listening(port: int) -> None:
    """Wait until somebody listens there."""
    for _ in range(200):
        lines = Path("/proc/net/tcp").read_text().splitlines()
        if any(f":{port:04X} 00000000:0000 0A" in line for line in lines):
            return
        time.sleep(0.05)
    sys.exit(f"nobody listens on port {port}")


def cpu_s(pids: tuple[int, ...]) -> float:
    """CPU time of these processes so far."""
    total = 0.0
    for pid in pids:
        # The scheduler's count is in nanoseconds; that of /proc/PID/stat in hundredths of a second.
        total += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    return total


def burst(contestant: Contestant, connections: int) -> tuple[float, float]:
    """Microseconds of CPU per request, and requests per second."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}", *CLIENT]
    before = cpu_s(contestant.pids)
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{contestant.port}/v1/items"], capture_output=True, text=True, check=True
    ).stdout
    used = cpu_s(contestant.pids) - before
    requests = int(re.search(r"(\d+) requests in", done)[1])  # type: ignore[index]
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", done)
    refused = int(failed[1]) if failed else 0
    expected = requests if contestant.status == "4xx" else 0
    if abs(refused - expected) > requests / 100:
        sys.exit(f"{contestant.name}: {refused} of {requests} were refused")
    return used / requests * 1e6, float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])  # type: ignore[index]


def sidecar(stack: ExitStack, port: int, *flags: str) -> int:
    """A sidecar on core 0; its process id."""
    words = (sys.executable, "-m", "ratelimiter", "proxy", "--upstream", f"http://127.0.0.1:{UPSTREAM_PORT}")
    listen = ("--listen", f"127.0.0.1:{port}", "--principal", "header:X-API-Key")
    started = stack.enter_context(process(0, *words, *listen, *flags))
    listening(port)
    return started.pid


def contestants(stack: ExitStack) -> list[Contestant]:
    """All programs, running."""
    stack.enter_context(nginx(1, UPSTREAM_PORT, ANSWERING))
    redis = stack.enter_context(process(1, "redis-server", "--port", str(REDIS_PORT), "--save", "")).pid
    listening(REDIS_PORT)
    ports = iter(range(FIRST_PORT, FIRST_PORT + 20))
    made = []
    port = next(ports)
    made.append(Contestant("nginx limit_req", port, (stack.enter_context(nginx(0, port, LIMITING)),), "2xx"))
    port = next(ports)
    refusing = LIMITING.replace("burst=1000000 nodelay", "")
    made.append(Contestant("nginx, refusing", port, (stack.enter_context(nginx(0, port, refusing, "1r/m")),), "4xx"))
    port = next(ports)
    bare = stack.enter_context(
        process(0, sys.executable, "-m", "tests.benchmarks.bare_proxy", str(port), str(UPSTREAM_PORT))
    )
    listening(port)
    made.append(Contestant("two bare protocols", port, (bare.pid,), "2xx"))
    for name, flags, status in (
        ("sidecar, embedded", ("--limit", PLENTY), "2xx"),
        ("sidecar, embedded, unwatched", ("--limit", PLENTY, "--admin", "none"), "2xx"),
        ("sidecar, embedded, refusing", ("--limit", "1/hour"), "4xx"),
        ("sidecar, Redis", ("--limit", PLENTY, "--store", f"redis://127.0.0.1:{REDIS_PORT}/0"), "2xx"),
        ("sidecar, Redis, refusing", ("--limit", "1/hour", "--store", f"redis://127.0.0.1:{REDIS_PORT}/1"), "4xx"),
    ):
        port = next(ports)
        watched = () if "--admin" in flags else ("--admin", "127.0.0.1:0")
        pid = sidecar(stack, port, *watched, *flags)
        made.append(Contestant(name, port, (pid, redis) if "Redis" in name else (pid,), status))
    return made


def main() -> None:
    """Print CPU per request of every contestant, and its ratio to nginx in the same round."""
    missing = [name for name in ("nginx", "wrk", "redis-server") if not shutil.which(name)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}")
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with ExitStack() as stack:
        running = contestants(stack)
        for each in running:
            command = ["wrk", "-t1", "-c8", "-d1", *CLIENT, f"http://127.0.0.1:{each.port}/"]
            subprocess.run(command, capture_output=True, check=True)
        seen: dict[str, list[tuple[float, float]]] = {each.name: [] for each in running}
        for _ in range(rounds):
            for each in running:
                seen[each.name].append(burst(each, connections))
    floor = [used for used, _ in seen[running[0].name]]
    print(
        f"{connections} connections, medians of {rounds} rounds; least is of all rounds, on a machine with other work"
    )
    print(f"{'':28}  {'CPU us/request':>14}  {'vs nginx':>8}  {'least':>6}  {'vs nginx':>8}  {'requests/s':>10}")
    for name, values in seen.items():
        ratio = median(used / theirs for (used, _), theirs in zip(values, floor, strict=True))
        rate = median(rate for _, rate in values)
        least = min(used for used, _ in values)
        print(
            f"{name:28}  {median(used for used, _ in values):14.1f}  {ratio:8.2f}"
            f"  {least:6.1f}  {least / min(floor):8.2f}  {rate:10,.0f}"
        )


if __name__ == "__main__":
    main()
