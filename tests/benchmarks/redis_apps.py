"""What a limiter on Redis costs a whole application: ours and its peers, each as its users mount it, side by side.

    pip install -e '.[test,bench]'
    python -m tests.benchmarks.redis_apps [--frameworks starlette fastapi] [--connections 1 8 64] [--seconds 2]
                                          [--rounds 5] [--only NAME...]

Needs `wrk`, `redis-server` and two cores: every application is served by uvicorn (uvloop, httptools) on one, wrk and
Redis share the other. A thousand API keys take turns. All contestants run once per round, and the best of the rounds is
shown: whatever else this machine does can only make them slower. Beside the ratio of throughputs stands that of the CPU
per request, turned around: what the first comes to at 64 connections, where the application's core is the bound.

Two policies: one that admits everything, and one that refuses nearly everything, where a refusal that is remembered
needs no Redis. A contestant that cannot run says so in the table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks.peer_apps import CONTESTANTS, FASTAPI_ONLY
from tests.stores.redis_server import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

PLENTY = "1000000000/minute"
LITTLE = "1/hour"
SCRIPT = Path(__file__).with_name("keys.lua")
FLOOR = "one redis-py EVALSHA each"
OURS = "ratelimiter, Redis"
START_S = 20
COLUMNS = {  # and their widths
    "req/s": 9,
    "/ bare": 8,
    "CPU us": 8,
    "bare /": 8,
    "Redis us": 10,
    "added us": 10,
    "/ EVALSHA": 11,
    "refused": 9,
    "longest ms": 12,
    "lost": 6,
}
CORES = sorted(os.sched_getaffinity(0))


class Seen(NamedTuple):
    """One burst."""

    per_s: float
    us: float  # of one connection per request, there and back
    server_us: float  # CPU of the application's process per request
    redis_us: float  # CPU of Redis's main thread per request
    refused: float  # share of the requests
    lost: int  # requests without an answer
    longest_ms: float


class Served:
    """One contestant under uvicorn, on the first core."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.log = log

    def fault(self) -> str:
        """Why it cannot run; empty when it answers."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None and not _listens(self.port):
            time.sleep(0.05)
        if self.process.poll() is None:
            command = ["curl", "-s", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}"]
            command += ["-H", f"X-API-Key: probe-{self.port}"]
            command += [f"http://127.0.0.1:{self.port}/"]
            status = subprocess.run(command, capture_output=True, text=True, check=False)
            if status.stdout == "200":
                return ""
        errors = [line for line in self.log.read_text().splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return f"cannot run: {errors[-1]}" if errors else "cannot run: does not answer 200"

    def burst(self, connections: int, seconds: int, redis: Redis) -> Seen:
        """Load it for so long."""
        server_s, redis_s = _cpu_s(self.process.pid), _redis_cpu_s(redis)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), "--timeout", "10"]
        command = _on(CORES[-1], [*command, f"http://127.0.0.1:{self.port}/"])
        out = subprocess.run(command, capture_output=True, text=True, check=False)
        seen = re.search(r"SEEN (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", out.stdout)
        if seen is None:
            sys.exit(f"wrk failed: {out.stderr or out.stdout}")
        requests, took_us, refused, lost, _, longest_us = map(int, seen.groups())
        requests = max(1, requests)
        return Seen(
            requests / took_us * 1e6,
            took_us * connections / requests,
            (_cpu_s(self.process.pid) - server_s) / requests * 1e6,
            (_redis_cpu_s(redis) - redis_s) / requests * 1e6,
            refused / requests,
            lost,
            longest_us / 1000,
        )


def _on(core: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command]


@contextmanager
def served(framework: str, name: str, redis_server: RedisServer, limit: str) -> Iterator[Served]:
    """*name* in *framework*, limited to *limit*."""
    port = free_port()
    log = redis_server.directory / f"{port}.log"
    command = [sys.executable, "-m", "uvicorn", "tests.benchmarks.peer_apps:app", "--factory", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--log-level", "error", "--no-access-log"]
    settings = {
        "BENCHMARK_APP": f"{framework}: {name}",
        "BENCHMARK_REDIS": redis_server.url,
        "BENCHMARK_LIMIT": limit,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            _on(CORES[0], command), env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Served(name, process, port, log)
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(f":{port:04X} 00000000:0000 0A" in line for line in lines)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _redis_cpu_s(client: Redis) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"])


def compare(
    framework: str, limit: str, *, connections: Sequence[int], seconds: int, rounds: int, names: Sequence[str]
) -> dict[int, dict[str, list[Seen]]]:
    """Every contestant in turn, round after round, and a table for each number of connections."""
    seen: dict[int, dict[str, list[Seen]]] = {count: {} for count in connections}
    faults: dict[str, str] = {}
    with RedisServer() as redis_server, redis_server.client() as client, ExitStack() as stack:
        os.sched_setaffinity(redis_server.pid, {CORES[-1]})
        candidates = [
            stack.enter_context(served(framework, name, redis_server, limit))
            for name in names
            if framework == "fastapi" or name not in FASTAPI_ONLY
        ]
        for candidate in candidates:
            if fault := candidate.fault():
                faults[candidate.name] = fault
        able = [candidate for candidate in candidates if candidate.name not in faults]
        for candidate in able:  # warm up: connections, scripts, code paths
            candidate.burst(8, 1, client)
        for count in connections:
            for _ in range(rounds):
                for candidate in able:
                    seen[count].setdefault(candidate.name, []).append(candidate.burst(count, seconds, client))
                    if limit == PLENTY:
                        client.flushall()  # some keep every request
            _show(framework, limit, count, seen[count], faults)
    return seen


def _show(framework: str, limit: str, count: int, seen: dict[str, list[Seen]], faults: dict[str, str]) -> None:
    print(f"\n{framework}, {limit}, {count} connection{'s' * (count > 1)}")
    print(f"  {'':26}" + "".join(f"{title:>{width}}" for title, width in COLUMNS.items()))
    for name, bursts in seen.items():
        row, bare = best(bursts), best(seen.get("bare", bursts))
        added, floor = added_us(seen, name), added_us(seen, FLOOR)
        cells = (
            f"{row.per_s:,.0f}",
            f"{row.per_s / bare.per_s:.2f}",
            f"{row.server_us:.1f}",
            f"{bare.server_us / row.server_us:.2f}",
            f"{row.redis_us:.1f}",
            f"{added:.1f}",
            f"{added / floor:.2f}" if floor else "",
            f"{row.refused:.0%}",
            f"{row.longest_ms:.1f}",
            f"{row.lost}" if row.lost else "",
        )
        print(f"  {name:26}" + "".join(f"{c:>{w}}" for c, w in zip(cells, COLUMNS.values(), strict=True)))
    for name, fault in faults.items():
        print(f"  {name:26} {fault[:100]}")
    sys.stdout.flush()


def best(bursts: list[Seen]) -> Seen:
    """The best of each number; of what was refused, lost or long, the worst."""
    per_s, us, server_us, redis_us, refused, lost, longest_ms = zip(*bursts, strict=True)
    return Seen(max(per_s), min(us), min(server_us), min(redis_us), max(refused), max(lost), max(longest_ms))


def added_us(seen: dict[str, list[Seen]], name: str) -> float:
    """How much longer a request takes than without a limiter."""
    return best(seen[name]).us - best(seen["bare"]).us if {name, "bare"} <= seen.keys() else 0.0


def verdicts(framework: str, seen: dict[int, dict[str, list[Seen]]]) -> None:
    """Ours against the targets of the design."""
    print(f"\n{framework}, against the targets")
    lines = []
    if 64 in seen and {OURS, "bare"} <= seen[64].keys():
        ratio = best(seen[64][OURS]).per_s / best(seen[64]["bare"]).per_s
        lines.append(("throughput with the limiter on Redis / without, 64 connections", ratio, ">=", 0.85))
    if 1 in seen and {OURS, FLOOR, "bare"} <= seen[1].keys():
        ratio = added_us(seen[1], OURS) / added_us(seen[1], FLOOR)
        lines.append(("latency added at 1 connection / one redis-py EVALSHA", ratio, "<=", 1.0))
    for what, ratio, relation, target in lines:
        met = ratio >= target if relation == ">=" else ratio <= target
        print(f"  {what:66} {ratio:6.2f}  target {relation} {target}  {'met' if met else 'MISSED'}")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="+", default=["starlette", "fastapi"])
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--seconds", type=int, default=2, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--policies", nargs="+", default=["plenty", "little"], choices=["plenty", "little"])
    chosen = parser.parse_args()
    for tool in ("wrk", "curl"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing: apt-get install {tool}")
    how = {"seconds": chosen.seconds, "rounds": chosen.rounds, "names": chosen.only}
    for framework in chosen.frameworks:
        if "plenty" in chosen.policies:
            plenty = compare(framework, PLENTY, connections=chosen.connections, **how)
            verdicts(framework, plenty)
        if "little" in chosen.policies:
            compare(framework, LITTLE, connections=chosen.connections[-1:], **how)


if __name__ == "__main__":
    main()
