"""Periods of the calendar: every moment is in exactly one, and they begin when people would say so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.algorithms.calendar import around, known, names
from ratelimiter.core.quota import PERIOD_UNITS, Period

HOUR_MS = 3_600_000
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/Havana", "Australia/Lord_Howe"]
ZONES += ["Asia/Kathmandu", "Pacific/Apia", "Africa/Casablanca", "Asia/Beirut", "Pacific/Kiritimati"]


def ms(text: str) -> int:
    """A moment in ISO 8601, in ms; UTC if it does not say."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def moments() -> st.SearchStrategy[int]:
    """Moments from 1990 to 2100, with those around changes of clocks, midnights, and ends of months and years."""
    noted = ["2026-03-29T01:00", "2026-10-25T01:00", "2018-11-04T03:00", "2018-02-18T02:00", "2011-12-30T10:00"]
    noted += ["2026-11-01T05:00", "2026-10-03T15:30", "2026-04-04T15:00", "2024-02-29T00:00", "2025-12-31T23:00"]
    steps = st.sampled_from([-HOUR_MS, -1, 0, 1, HOUR_MS // 2, HOUR_MS, 2 * HOUR_MS]) | st.integers(-(10**8), 10**8)
    return st.builds(lambda text, step: ms(text) + step, st.sampled_from(noted), steps) | st.integers(
        ms("1990-01-01"), ms("2100-01-01")
    )


@given(st.sampled_from(PERIOD_UNITS), st.sampled_from(ZONES), moments())
def test_every_moment_is_in_one_period(unit: str, zone: str, now_ms: int) -> None:
    """Periods follow each other without a gap, and all moments of one agree on where it begins and ends."""
    period = Period(1, unit, zone)
    starts = around(period, now_ms)

    assert starts[1] <= now_ms < starts[2]
    assert all(one < other for one, other in pairwise(starts))
    assert starts == around(period, starts[1]) == around(period, starts[2] - 1)
    assert starts[1:] == around(period, starts[2])[:4]
    assert starts[:4] == around(period, starts[0])[1:]


@given(st.sampled_from(PERIOD_UNITS), st.sampled_from(ZONES), moments())
def test_all_of_a_period_is_one_on_the_wall(unit: str, zone: str, now_ms: int) -> None:
    """The wall clock says the same year, month, week, day or hour throughout, and another one before and after; but for
    a clock that is set by half an hour within one, of hours.
    """
    period, lasts = Period(1, unit, zone), 1

    def label(at_ms: int) -> object:
        wall = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)).astimezone(ZoneInfo(zone))
        year, week, _ = wall.isocalendar()
        return {
            "hour": (wall.date(), wall.hour, wall.utcoffset()),
            "day": wall.date(),
            "week": (year, week),
            "month": (wall.year, wall.month),
            "year": wall.year,
        }[unit]

    if unit == "hour" and zone == "Australia/Lord_Howe":
        return
    _, start_ms, end_ms, _, _ = around(period, now_ms)

    assert label(start_ms) == label(now_ms) == label(end_ms - 1)
    assert label(start_ms - lasts) != label(now_ms) != label(end_ms)


@pytest.mark.parametrize(
    ("unit", "zone", "moment", "start", "end"),
    [
        ("month", "UTC", "2026-11-21T01:44", "2026-11-01", "2026-12-01"),
        ("month", "UTC", "2024-02-29T23:59", "2024-02-01", "2024-03-01"),
        ("month", "UTC", "2025-12-31T23:59:59.999", "2025-12-01", "2026-01-01"),
        ("month", "Europe/Berlin", "2026-10-31T23:30", "2026-10-31T23:00", "2026-11-30T23:00"),
        ("month", "Europe/Berlin", "2026-10-01T00:00", "2026-09-30T22:00", "2026-10-31T23:00"),
        ("year", "America/New_York", "2027-01-01T04:59", "2026-01-01T05:00", "2027-01-01T05:00"),
        ("week", "UTC", "2026-11-22T23:59", "2026-11-16", "2026-11-23"),
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),  # of 23 hours
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),  # of 25 hours
        ("day", "America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04T03:00", "2018-11-05T02:00"),  # begins at 1 o'clock
        ("day", "America/Havana", "2026-11-01T12:00", "2026-11-01T04:00", "2026-11-02T05:00"),  # midnight comes twice
        ("day", "Pacific/Apia", "2011-12-30T09:00", "2011-12-29T10:00", "2011-12-30T10:00"),  # then came the 31st
        ("hour", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T00:00", "2026-10-25T01:00"),
        ("hour", "Europe/Berlin", "2026-10-25T01:30", "2026-10-25T01:00", "2026-10-25T02:00"),  # the same hour again
        ("hour", "Asia/Kathmandu", "2026-11-21T01:44", "2026-11-21T01:15", "2026-11-21T02:15"),
        ("hour", "Australia/Lord_Howe", "2026-04-04T15:10", "2026-04-04T14:00", "2026-04-04T15:30"),
    ],
)
def test_known_periods(unit: str, zone: str, moment: str, start: str, end: str) -> None:
    """Months, leap days, years and weeks, and days of 23, 24 and 25 hours."""
    assert (ms(start), ms(end)) == around(Period(1, unit, zone), ms(moment))[1:3]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires"])
def test_known_zones(zone: str) -> None:
    """Names of the database are known."""
    assert known(zone)


@pytest.mark.parametrize("zone", ["", "Europe/Atlantis", "../etc/passwd", "/etc/localtime", "Europe", "CEST+1\0"])
def test_unknown_zones(zone: str) -> None:
    """Anything else is not, and nothing is read outside the database."""
    assert not known(zone)


def test_every_zone_that_is_suggested_is_known() -> None:
    """The names that a message about an unknown zone is chosen from can all be written."""
    assert {"Europe/Berlin", "UTC"} <= names()
    assert [] == [zone for zone in sorted(names()) if not known(zone)]
