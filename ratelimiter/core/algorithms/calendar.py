"""Beginnings and ends of calendar periods, in milliseconds of Unix time. Knows time zones, and no clock."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

if TYPE_CHECKING:
    from ratelimiter.core.quota import Period

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HALF_HOUR_MS = 1_800_000  # of which each begins in an hour of its own or the present one, however clocks are changed
_MS = timedelta(milliseconds=1)
_STEPS = range(-3, 6)  # units around the present one that are looked at: with both of an hour that comes twice, enough
_MEMO: dict[tuple[str, str], tuple[int, int, int, int, int]] = {}  # one entry per zone and unit that is in use


def around(period: Period, now_ms: int) -> tuple[int, int, int, int, int]:
    """Return the beginnings of five periods in a row: the last one, the present one, and the three to come.

    A day and whatever is longer begins at the first moment of its first day there, which need not be midnight; an hour
    of the day that comes twice is two periods. So periods are of different length where the clock is changed, and every
    moment is in exactly one.
    """
    memo = _MEMO.get((period.unit, period.timezone))
    if memo is None or not memo[1] <= now_ms < memo[2]:
        memo = _MEMO[period.unit, period.timezone] = _around(period.unit, ZoneInfo(period.timezone), now_ms)
    return memo


def known(timezone: str) -> bool:
    """Return whether there is such a time zone."""
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # absolute, upward, or a folder of the database
        return False
    return True


def names() -> set[str]:
    """Return all time zones; this takes long, as it looks through the database."""
    return available_timezones()


def _around(unit: str, zone: ZoneInfo, now_ms: int) -> tuple[int, int, int, int, int]:
    if unit == "hour":  # from the walls of the hours around, as a whole day may be missing there
        moments = [now_ms + step * _HALF_HOUR_MS for step in range(-8, 13)]
        walls = [_wall(moment, zone).replace(minute=0, second=0, microsecond=0) for moment in moments]
    else:
        walls = [_stepped(unit, _wall(now_ms, zone), step) for step in _STEPS]
    starts = sorted({start for wall in walls for start in _instants(wall, unit, zone)})
    present = bisect_right(starts, now_ms) - 1
    last, this, following, second, third = starts[present - 1 : present + 4]
    return last, this, following, second, third


def _wall(now_ms: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + now_ms * _MS).astimezone(zone).replace(tzinfo=None, fold=0)


def _stepped(unit: str, wall: datetime, step: int) -> datetime:
    """Return the beginning, on the wall clock, of the period *step* units from that of *wall*."""
    day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "day":
        return day + timedelta(days=step)
    if unit == "week":
        return day + timedelta(days=7 * step - day.weekday())
    if unit == "year":
        return day.replace(year=day.year + step, month=1, day=1)
    years, month = divmod(day.month - 1 + step, 12)
    return day.replace(year=day.year + years, month=month + 1, day=1)


def _instants(wall: datetime, unit: str, zone: ZoneInfo) -> list[int]:
    """Return when the wall clock shows *wall*: of days the first time, of hours each; if it is skipped, when it is."""
    moments = [wall.replace(tzinfo=zone)]
    again = wall.replace(tzinfo=zone, fold=1)
    if unit == "hour" and again.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) == wall:
        moments.append(again)
    return [(moment - _EPOCH) // _MS for moment in moments]
