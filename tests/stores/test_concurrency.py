"""Many processes, one key: the merged history is that of one limiter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.quota import Quota
from tests.history import History, Record

if TYPE_CHECKING:
    from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.wall_clock  # it waits for real servers or timers

ROOT = Path(__file__).parent.parent.parent
PROCESSES = 8
SEED = 20
SECONDS = 2.5


@pytest.mark.parametrize(("limit", "window_ms"), [(40, 300), (700, 500)])
def test_eight_processes_admit_exactly_the_limit(redis_server: RedisServer, limit: int, window_ms: int) -> None:
    """In every window of what 8 processes did, at most the limit is admitted; none is refused while there was room; and
    the fullest window is full.
    """
    arguments = [str(limit), str(window_ms), str(SECONDS)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.stores.charging", redis_server.url, str(SEED + number), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    history = History(
        Record(int(now_ms), admitted == "1", int(cost), number)
        for number, process in enumerate(processes)
        for now_ms, admitted, cost in (line.split() for line in process.communicate(timeout=60)[0].splitlines())
    )
    quota = Quota(limit, window_ms)

    print(f"seeds {SEED} to {SEED + PROCESSES - 1}: {len(history.records)} decisions, fullest window", end=" ")
    print(f"{history.fullest(window_ms)} of {limit}")
    assert PROCESSES == len({record.process for record in history.records})
    assert len(history.records) > 2000
    assert limit == history.fullest(window_ms)
    assert [] == history.unfounded(limit, window_ms, quota.resolution_ms)


@pytest.mark.parametrize(
    ("records", "fullest", "unfounded"),
    [
        ([(0, True, 1), (9, True, 1), (10, True, 1)], 2, 0),
        ([(0, True, 2), (9, True, 1)], 3, 0),
        ([(0, True, 2), (5, False, 1), (10, False, 1)], 2, 1),
        ([(0, True, 1), (5, False, 2), (5, False, 1)], 1, 1),
    ],
)
def test_the_checker_sees_what_is_wrong(records: list[tuple[int, bool, int]], fullest: int, unfounded: int) -> None:
    """With a limit of 2 in 10 ms: an over-full window and a refusal without reason are found, at the very edge too."""
    history = History(Record(*record, process=0) for record in records)

    assert (fullest, unfounded) == (history.fullest(10), len(history.unfounded(2, 10)))
