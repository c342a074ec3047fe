"""Goal: an access log that a flood cannot fill and a full disk cannot stop. Method: real files, a pipe nobody reads."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.errors import ConfigError
from ratelimiter.logs.access_log import AccessLog
from ratelimiter.logs.sink import PENDING_LINES_MAX
from ratelimiter.proxy.exchange_record import JUDGE, PROXY, UPSTREAM, ExchangeRecord
from ratelimiter.testing import FakeClock
from tests.stores.redis_server import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.proxy.interfaces import ExchangeObserver


def exchange(status: int = 200, source: str = UPSTREAM, target: bytes = b"/v1/items") -> ExchangeRecord:
    return ExchangeRecord("GET", target, status, source, 3, 5, 1.23456, 0.5, "req_1")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(log: AccessLog) -> None:
    """Wait until the thread has written all lines."""
    wait_until(lambda: log.sink._offered == log.sink._done, "the lines are written", within_s=10)


async def test_a_line_tells_one_exchange_and_no_secret(tmp_path: Path) -> None:
    """All that happened, but no query: credentials travel there. What a client wrote cannot forge a second line."""
    path = tmp_path / "access.json"
    clock = FakeClock(1_800_000_000_123)
    log = AccessLog(str(path), clock=clock)
    observer: ExchangeObserver = log
    observer.exchanged(exchange(target=b"/v1/items?api_key=secret"))
    observer.exchanged(exchange(target=b'/"\n{"status":200}\xff'))
    log.close()

    first, second = lines_of(path)
    assert {
        "time": "2027-01-15T08:00:00.123+00:00",
        "method": "GET",
        "path": "/v1/items",
        "status": 200,
        "source": "upstream",
        "received": 3,
        "sent": 5,
        "duration_ms": 1.235,
        "upstream_ms": 0.5,
        "request_id": "req_1",
    } == first
    assert '/"\n{"status":200}\xff' == second["path"]


async def test_a_flood_of_refusals_is_thinned_out_and_counted(tmp_path: Path) -> None:
    """So many refusals a second, then none, and the next line says how many are missing; others are all there."""
    path = tmp_path / "access.json"
    clock = FakeClock(1_800_000_000_000)
    log = AccessLog(str(path), refusals_per_s=2, clock=clock)
    for _ in range(100):
        log.exchanged(exchange(429, JUDGE))
    log.exchanged(exchange())
    clock.advance(1000)
    for _ in range(3):
        log.exchanged(exchange(429, JUDGE))
    log.exchanged(exchange(502, PROXY))
    log.close()

    told = lines_of(path)
    assert [429, 429, 200, 429, 429, 502] == [line["status"] for line in told]
    assert {2: 98, 5: 1} == {index: line["omitted"] for index, line in enumerate(told) if "omitted" in line}


async def test_nothing_waits_for_a_reader(tmp_path: Path) -> None:
    """A pipe that no reader empties holds up a thread, not the loop; the queue is bounded, further lines are lost."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(pipe))
    for _ in range(3 * PENDING_LINES_MAX):
        log.exchanged(exchange())
    held = len(log.sink)
    os.set_blocking(reader, True)
    read = b""
    while read.count(b"\n") < 3 * PENDING_LINES_MAX - log.sink.lost:
        read += await asyncio.to_thread(os.read, reader, 1 << 16)
    log.close()
    os.close(reader)

    assert held <= PENDING_LINES_MAX
    assert PENDING_LINES_MAX <= log.sink.lost
    assert read.endswith(b"\n")


async def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """What logrotate wants of SIGHUP; if that fails the old file is written on."""
    path, moved = tmp_path / "access.json", tmp_path / "access.json.1"
    log = AccessLog(str(path))
    log.exchanged(exchange(200))
    written(log)
    path.rename(moved)
    log.reopen()
    log.exchanged(exchange(201))
    written(log)
    path.unlink()
    path.mkdir()
    log.reopen()
    log.exchanged(exchange(202))
    log.close()

    assert [200] == [line["status"] for line in lines_of(moved)]


def test_a_place_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be opened \(Is a directory\); name a file"):
        AccessLog(str(tmp_path))
