"""The log of outages says when one begins and ends, and sums up the others of a minute."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ratelimiter.stores.outage_log import STEADY_MS, OutageLog

if TYPE_CHECKING:
    import pytest

    from ratelimiter.testing import FakeClock


def test_a_store_that_flaps_is_one_line_a_minute(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """38 outages in 15 seconds are three lines: the first, its end, and a summary with counts."""
    caplog.set_level(logging.DEBUG)
    outages = OutageLog(clock=clock)
    for _ in range(38):
        outages.failed("timeout", "late")
        outages.decisions += 10
        clock.advance(200)
        outages.answered()
        clock.advance(200)
    assert 2 == len(caplog.messages)
    assert outages.due_ms == STEADY_MS - 38 * 400
    clock.advance(outages.due_ms)
    outages.flush()

    assert [
        "the store gives no answer (timeout): late; each rule does what its on_store_error says",
        "the store answers again: limits are shared again; 10 decisions were made without it",
        "the store answers again; in the last 60 s it failed 37 times more, and 370 decisions were made without it",
    ] == caplog.messages
    assert outages.due_ms is None


def test_a_store_that_stays_out_after_it_flapped(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """The summary says that the store is out, and its end is a line of its own."""
    outages = OutageLog(clock=clock)
    for _ in range(2):
        outages.failed("timeout", "late")
        clock.advance(1000)
        outages.answered()
        clock.advance(1000)
    outages.failed("unreachable", "refused")
    clock.advance(STEADY_MS)
    outages.flush()
    clock.advance(5 * STEADY_MS)
    outages.flush()
    outages.answered()

    assert 4 == len(caplog.messages)
    assert (
        "the store gives no answer (unreachable): refused; in the last 64 s it failed 2 times more"
        in caplog.messages[2]
    )
    assert caplog.messages[3].startswith("the store answers again: limits are shared again")


def test_outages_far_apart_are_two_lines_each(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """An outage a minute after the last one is told like the first."""
    outages = OutageLog(clock=clock)
    for _ in range(3):
        outages.failed("timeout", "late")
        clock.advance(3_600_000)
        outages.answered()
        clock.advance(STEADY_MS)

    assert 6 == len(caplog.messages)
