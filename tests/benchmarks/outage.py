"""Two processes, one Redis behind three Sentinels, full load: Redis is stopped for five seconds, then killed.

    python -m tests.benchmarks.outage

Needs `wrk` and `redis-server`. Each of two uvicorn processes serves an app behind the middleware to 32 connections; the
same thousand API keys take turns at both. Every decision is written down, and judged afterwards: who was admitted how
often in which window, how long decisions took, who made them, and how soon Redis counted again. Nothing is pinned: the
processes, wrk and Redis share what cores there are, so the longest decision includes waiting for one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from ratelimiter import RateLimitMiddleware
from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import REMEMBERED, STORE
from ratelimiter.stores.local_share import local_limit
from tests.history import History, Record
from tests.stores.redis.test_sentinel import Watched
from tests.stores.redis_server import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.rule import Hit
    from tests.stores.redis_server import SentinelServer

PROCESSES = 2
LIMIT, WINDOW_MS = 40, 5000
LOCAL_SHARE = 1 / PROCESSES  # so that during an outage, too, all processes together admit one limit
DEADLINE_MS = 50
CONNECTIONS = 32  # per process
HEALTHY_S, STOPPED_S, AGAIN_S, FAILOVER_S = 6, 5, 7, 10
LONG_DOWN_MS = 60_000  # while the master is only stopped no Sentinel may replace it
SCRIPT = Path(__file__).with_name("keys.lua")


# --- In the served processes


class Scribe:
    """Writes down every decision, one JSON array per line."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("w", buffering=1 << 20)  # noqa: SIM115  # closed when the process ends

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        line = '[%d,%d,"%s",%d,"%s",%d]\n'
        key, allowed = hits[0].key.decode(), decision.allowed
        now_ms = time.time_ns() // 1_000_000
        self._file.write(line % (now_ms, decision.now_ms, key, allowed, decision.source, seconds * 1e6))


class Witness:
    """Counts how responses begin, and takes down when the event loop stood still: a decision that was late meanwhile
    was ready, but nobody was there to take it.
    """

    def __init__(self, app: Any, path: str) -> None:
        self.app = app
        self.path = path
        self.statuses: Counter[str] = Counter()
        self.pauses: list[tuple[int, int]] = []  # when it went on, Unix ms; for how many us it stood still

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        def counting(message: Any) -> Any:
            if message["type"] == "http.response.start":
                self.statuses[str(message["status"])] += 1
            if message["type"] == "lifespan.shutdown.complete":
                Path(self.path).write_text(json.dumps([self.statuses, self.pauses]))
            return send(message)

        watching = asyncio.create_task(self._watch()) if scope["type"] == "lifespan" else None
        await self.app(scope, receive, counting)
        if watching is not None:
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            due_s = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            late_us = int((time.perf_counter() - due_s) * 1e6)
            if late_us > 5000:
                self.pauses.append((now_ms(), late_us))


def app() -> Any:
    """One of the served processes; `OUTAGE_FILE` is where it writes, `OUTAGE_STORE` its store."""

    async def hello(_: Any) -> JSONResponse:
        return JSONResponse({"hello": "world"})

    path = os.environ["OUTAGE_FILE"]
    limited = RateLimitMiddleware(
        Starlette(routes=[Route("/", hello)]),
        limit=f"{LIMIT} per {WINDOW_MS // 1000} seconds",
        principal="header:X-API-Key",
        store=os.environ["OUTAGE_STORE"],
        local_share=LOCAL_SHARE,
        decision_timeout=f"{DEADLINE_MS}ms",
        observer=Scribe(path),
    )
    return Witness(limited, path + ".witness")


# --- Around them


class Seen(NamedTuple):
    """One decision."""

    at_ms: int  # when it fell, by the machine's clock
    now_ms: int  # by the clock of who made it
    key: str
    allowed: bool
    source: str
    us: int
    process: int


class Moments(NamedTuple):
    """When what was done to Redis; Unix ms."""

    begun: int
    stopped: int
    thawed: int
    killed: int
    promoted: int  # the replica says that it is a master
    named: int  # and most Sentinels say so
    ended: int


@contextlib.contextmanager
def served(store: str, path: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """One process of the app."""
    command = [sys.executable, "-m", "uvicorn", "tests.benchmarks.outage:app", "--factory", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--log-level", "error", "--no-access-log"]
    process = subprocess.Popen(command, env={**os.environ, "OUTAGE_STORE": store, "OUTAGE_FILE": str(path)})
    try:
        wait_until(lambda: _listens(port), "uvicorn listens", 20)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(f":{port:04X} 00000000:0000 0A" in line for line in lines)


class Drilled(NamedTuple):
    """All that is known of a drill."""

    seen: list[Seen]
    statuses: Counter[str]  # responses
    pauses: list[tuple[int, int]]  # of the event loops: end, Unix ms; us
    moments: Moments
    said: list[str]  # by wrk


def drill() -> Drilled:
    """Do it."""
    with contextlib.ExitStack() as stack:
        watched = Watched(stack)
        folder = watched.master.directory
        ports = [free_port() for _ in range(PROCESSES)]
        files = [folder / f"{port}.jsonl" for port in ports]
        with contextlib.ExitStack() as serving:
            for port, path in zip(ports, files, strict=True):
                serving.enter_context(served(watched.url, path, port))
            moments, said = _loaded(watched, ports)
        seen = [Seen._make([*json.loads(line), number]) for number, path in enumerate(files) for line in path.open()]
        statuses: Counter[str] = Counter()
        pauses: list[tuple[int, int]] = []
        for path in files:
            counted, paused = json.loads(Path(f"{path}.witness").read_text())
            statuses.update(counted)
            pauses += map(tuple, paused)
    return Drilled(sorted(seen), statuses, pauses, moments, said)


def _loaded(watched: Watched, ports: Sequence[int]) -> tuple[Moments, list[str]]:
    begun = now_ms()
    seconds = HEALTHY_S + STOPPED_S + AGAIN_S + FAILOVER_S
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(SCRIPT), "--timeout", "5"]
    load = [
        subprocess.Popen([*command, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, text=True) for port in ports
    ]
    _down_after(watched, LONG_DOWN_MS)
    time.sleep(HEALTHY_S)
    stopped = now_ms()
    watched.master.freeze()
    time.sleep(STOPPED_S)
    watched.master.thaw()
    thawed = now_ms()
    time.sleep(1)  # the Sentinels hear from it again before they may miss it
    _down_after(watched, 300)
    time.sleep(AGAIN_S - 1)
    killed = now_ms()
    watched.master.kill()
    with watched.replica.client() as client:
        wait_until(lambda: client.role()[0] == b"master", "the replica is promoted", FAILOVER_S)
    promoted = now_ms()
    wait_until(lambda: sum(_names_replica(watched, one) for one in watched.sentinels) >= 2, "it is named", FAILOVER_S)
    named = now_ms()
    said = [process.communicate()[0] for process in load]
    return Moments(begun, stopped, thawed, killed, promoted, named, now_ms()), said


def _names_replica(watched: Watched, sentinel: SentinelServer) -> bool:
    with sentinel.client() as client:
        place: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        return int(place[1]) == watched.replica.port


def _down_after(watched: Watched, ms: int) -> None:
    for sentinel in watched.sentinels:
        with sentinel.client() as client:
            client.execute_command("SENTINEL", "SET", "mymaster", "down-after-milliseconds", str(ms))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- Afterwards


def phases(moments: Moments) -> dict[str, tuple[int, int]]:
    """Each by its name: from when to when."""
    return {
        "healthy": (moments.begun, moments.stopped),
        "stopped": (moments.stopped, moments.thawed),
        "thawed": (moments.thawed, moments.killed),
        "master killed": (moments.killed, moments.named),
        "successor named": (moments.named, moments.ended),
    }


def fullest(seen: Sequence[Seen], *, source: str | None = None) -> list[int]:
    """For each principal, what was admitted in the fullest window."""
    records: dict[str, list[Record]] = defaultdict(list)
    for one in seen:
        if source is None or one.source == source:
            records[one.key].append(Record(one.now_ms, one.allowed, 1, one.process))
    return sorted(History(each).fullest(WINDOW_MS) for each in records.values()) or [0]


def second_by_second(seen: Sequence[Seen], moments: Moments) -> None:
    """Who decided, and how long it took."""
    rows: dict[int, list[Seen]] = defaultdict(list)
    for one in seen:
        rows[(one.at_ms - moments.begun) // 1000].append(one)
    sources = sorted({one.source for one in seen})
    marks = {(getattr(moments, name) - moments.begun) // 1000: name for name in ("stopped", "thawed", "killed")}
    marks.setdefault((moments.named - moments.begun) // 1000, "successor named")
    print(
        f"\n  {'s':>3} {'decisions':>10} {'admitted':>9}" + "".join(f"{name:>12}" for name in sources) + "  longest ms"
    )
    for second, row in sorted(rows.items()):
        shares = Counter(one.source for one in row)
        cells = "".join(f"{shares[name] / len(row):12.1%}" for name in sources)
        longest_ms = max(one.us for one in row) / 1000
        admitted = sum(one.allowed for one in row)
        print(f"  {second:3} {len(row):10,} {admitted:9,}{cells}{longest_ms:12.1f}  {marks.get(second, '')}")


def recovery_ms(seen: Sequence[Seen], from_ms: int, until_ms: int) -> list[str]:
    """For each process, from *from_ms*: until Redis counted again, and until nobody else did."""
    told = []
    for process in range(PROCESSES):
        mine = [one for one in seen if one.process == process and from_ms < one.at_ms < until_ms]
        first = min((one.at_ms for one in mine if one.source == STORE), default=None)
        last = max((one.at_ms for one in mine if one.source not in (STORE, REMEMBERED)), default=from_ms)
        told.append("never" if first is None else f"{first - from_ms} ms (last without: {last - from_ms} ms)")
    return told


def report(drilled: Drilled) -> None:
    """Print all of it."""
    seen, statuses, pauses, moments, said = drilled
    principals = len({one.key for one in seen})
    print(
        f"{PROCESSES} processes, {PROCESSES * CONNECTIONS} connections, {principals:,} principals,"
        f" {LIMIT} per {WINDOW_MS // 1000} s each, local_share {LOCAL_SHARE}, deadline {DEADLINE_MS} ms"
    )
    second_by_second(seen, moments)
    titles = ("s", "decisions", "p50 ms", "p99.9 ms", "p100 ms", "> 60 ms", "longest pause of a process, ms")
    print(f"\n  {'phase':18}" + "".join(f"{title:>{max(10, len(title) + 2)}}" for title in titles))
    for name, (start, end) in phases(moments).items():
        took = sorted(one.us / 1000 for one in seen if start <= one.at_ms < end)
        if not took:
            continue
        cells = (
            f"{(end - start) / 1000:.1f}",
            f"{len(took):,}",
            f"{took[len(took) // 2]:.2f}",
            f"{took[int(len(took) * 0.999)]:.2f}",
            f"{took[-1]:.1f}",
            f"{sum(ms > DEADLINE_MS + 10 for ms in took)}",
            f"{max((us for at_ms, us in pauses if start <= at_ms < end), default=0) / 1000:.1f}",
        )
        print(f"  {name:18}" + "".join(f"{c:>{max(10, len(t) + 2)}}" for c, t in zip(cells, titles, strict=True)))
    both = LIMIT + PROCESSES * local_limit(Quota(LIMIT, WINDOW_MS), LOCAL_SHARE)
    print(f"\n  admitted in the fullest window of {WINDOW_MS // 1000} s, by principal; the limit is {LIMIT}.")
    print(f"  A change between Redis and the processes' own windows: at most {both}; two in one window: {both + LIMIT}")
    parts = {
        "healthy, all decisions": [one for one in seen if one.at_ms < moments.stopped],
        "counted by the first master": [one for one in seen if one.source == STORE and one.at_ms <= moments.killed],
        "counted by the second": [one for one in seen if one.source == STORE and one.at_ms > moments.killed],
        "local, both outages": [one for one in seen if one.source == "local"],
        "whole run, whoever counted": seen,
    }
    for name, part in parts.items():
        windows = fullest(part)
        over = sum(window > LIMIT for window in windows)
        typical = windows[len(windows) // 2]
        print(f"  {name:30} most {windows[-1]:4}  median {typical:4}  principals above the limit {over}")
    print("\n  Redis counts again, per process")
    print(f"  {'after the stop ended':30} " + "; ".join(recovery_ms(seen, moments.thawed, moments.killed)))
    print(f"  {'after the successor was named':30} " + "; ".join(recovery_ms(seen, moments.named, moments.ended)))
    promoted_ms, named_ms = moments.promoted - moments.killed, moments.named - moments.killed
    print(f"  killed until promoted {promoted_ms} ms, until most Sentinels name the successor {named_ms} ms")
    lost = sum(int(match[1]) for text in said for match in [re.search(r"SEEN \d+ \d+ \d+ (\d+)", text)] if match)
    errors = sum(count for status, count in statuses.items() if status >= "500")
    told = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    print(f"\n  responses {told}; 5xx: {errors}; without an answer: {lost}")


def main() -> None:
    """Run the drill and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    report(drill())


if __name__ == "__main__":
    main()
