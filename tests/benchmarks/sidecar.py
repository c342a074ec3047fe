"""What the sidecar costs per proxied request, beside nginx with limit_req, Envoy that asks a limiter over gRPC, and a
proxy that does nothing else.

    python -m tests.benchmarks.sidecar [CONNECTIONS] [ROUNDS] [--envoy PATH]

Needs `nginx`, `wrk`, `redis-server` and two cores: what is measured has one to itself, the load, the upstream, Redis
and Envoy's limiter share the other. CPU is what counts, not throughput, as the other core is the busier one; that of
Redis and of the limiter is part of it. All requests are the same, and so are the answers of a second, which our
connections know again; what that is worth, and what others cost, is in `proxy_path`. Without an Envoy its rows are left
out, and that is said.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks import envoy
from tests.stores.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 2
UPSTREAM_PORT, REDIS_PORT = free_port(), free_port()
LEAN, GRPCIO = "Envoy + lean gRPC limiter", "Envoy + grpcio limiter"
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
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
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
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    sys.exit(f"nobody listens on port {port}")


def cpu_s(pids: tuple[int, ...]) -> float:
    """CPU time of these processes so far, with all their threads."""
    total = 0
    for pid in pids:
        # The scheduler counts in nanoseconds, by thread; /proc/PID/stat is in hundredths of a second.
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            total += int(file.read_text().split()[0])
    return total / 1e9


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


def envoys(stack: ExitStack, executable: str) -> list[Contestant]:
    """Envoy as a plain proxy, and asking a limiter about each request: the leanest there can be, and one by grpcio."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    made = []
    for name, module in (("Envoy", None), (LEAN, "grpc_limiter"), (GRPCIO, "grpcio_limiter")):
        pids: tuple[int, ...] = ()
        asked = None
        if module is not None:
            if module == "grpcio_limiter" and importlib.util.find_spec("grpc") is None:
                print("There is no grpcio here, so its row is left out; the extra `bench` has it.")
                continue
            asked = free_port()
            words = (sys.executable, "-m", f"tests.benchmarks.{module}", str(asked))
            pids = (stack.enter_context(process(1, *words)).pid,)
            listening(asked)
        port = free_port()
        file = Path(folder, f"{port}.json")
        file.write_text(envoy.configuration(port, UPSTREAM_PORT, asked))
        started = stack.enter_context(process(0, *envoy.words(executable, file)))
        listening(port)
        made.append(Contestant(name, port, (started.pid, *pids), "2xx"))
    return made


def contestants(stack: ExitStack, executable: str | None) -> list[Contestant]:
    """All programs, running; the first one is what the others are compared with."""
    stack.enter_context(nginx(1, UPSTREAM_PORT, ANSWERING))
    redis = stack.enter_context(process(1, "redis-server", "--port", str(REDIS_PORT), "--save", "")).pid
    listening(REDIS_PORT)
    made = []
    port = free_port()
    made.append(Contestant("nginx limit_req", port, (stack.enter_context(nginx(0, port, LIMITING)),), "2xx"))
    port = free_port()
    refusing = LIMITING.replace("burst=1000000 nodelay", "")
    made.append(Contestant("nginx, refusing", port, (stack.enter_context(nginx(0, port, refusing, "1r/m")),), "4xx"))
    port = free_port()
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
        port = free_port()
        watched = () if "--admin" in flags else ("--admin", "127.0.0.1:0")
        pid = sidecar(stack, port, *watched, *flags)
        made.append(Contestant(name, port, (pid, redis) if "Redis" in name else (pid,), status))
    return made + (envoys(stack, executable) if executable else [])


def arguments() -> argparse.Namespace:
    """What the command line says; ends with what is missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sidecar")
    parser.add_argument("connections", nargs="?", type=int, default=64)
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--envoy", metavar="PATH", help="an Envoy, if it is neither a package nor on the PATH")
    args = parser.parse_args()
    missing = [name for name in ("nginx", "wrk", "redis-server") if not shutil.which(name)]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    try:
        args.envoy = envoy.found(args.envoy)
    except FileNotFoundError as fault:
        parser.error(str(fault))
    if args.envoy is None:
        print(f"There is no Envoy here, so its rows are left out; give it by {envoy.SOURCES}.")
    return args


def table(seen: dict[str, list[tuple[float, float]]]) -> None:
    """Print CPU per request of every contestant, and its ratios to nginx and to Envoy in the same round."""
    floors = [("vs nginx", next(iter(seen.values())))]
    floors += [(title, seen[name]) for title, name in (("vs lean", LEAN), ("vs grpcio", GRPCIO)) if name in seen]
    titles = "".join(f"  {title:>9}" for title, _ in floors)
    print(f"{'':30}  {'CPU us/request':>14}{titles}  {'least':>6}{titles}  {'requests/s':>10}")
    for name, values in seen.items():
        middle = median(used for used, _ in values)
        least = min(used for used, _ in values)
        rate = median(rate for _, rate in values)
        of_middle = of_least = ""
        for _, floor in floors:
            ratio = median(used / theirs for (used, _), (theirs, _) in zip(values, floor, strict=True))
            of_middle += f"  {ratio:9.2f}"
            of_least += f"  {least / min(theirs for theirs, _ in floor):9.2f}"
        print(f"{name:30}  {middle:14.1f}{of_middle}  {least:6.1f}{of_least}  {rate:10,.0f}")


def main() -> None:
    """Measure every contestant in turn, round after round, and print the table."""
    args = arguments()
    with ExitStack() as stack:
        running = contestants(stack, args.envoy)
        for each in running:
            command = ["wrk", "-t1", "-c8", "-d1", *CLIENT, f"http://127.0.0.1:{each.port}/"]
            subprocess.run(command, capture_output=True, check=True)
        seen: dict[str, list[tuple[float, float]]] = {each.name: [] for each in running}
        for _ in range(args.rounds):
            for each in running:
                seen[each.name].append(burst(each, args.connections))
    print(f"{args.connections} connections; medians of {args.rounds} rounds, and the least of all of them")
    table(seen)


if __name__ == "__main__":
    main()
