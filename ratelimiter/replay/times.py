"""Times of access logs as Unix microseconds, remembered, as neighbouring lines share them.

Durations are taken off before a time is cut to milliseconds, so that a start is exact to the millisecond.
"""

from __future__ import annotations

import re
from calendar import timegm
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ratelimiter.errors import ConfigError
from ratelimiter.replay.record import NO_TIME, Unread

if TYPE_CHECKING:
    from collections.abc import Callable

    ReadTime = Callable[[str], int]

MEMO_MAX = 4096
SECOND_MS = 1000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_CLF = re.compile(
    r"(\d\d)/([A-Z][a-z][a-z])/(\d{4}):(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?: ([+-])(\d\d)(\d\d))?", re.ASCII
)
_NUMBER = re.compile(r"\d{1,19}(?:\.\d{1,9})?", re.ASCII)


def timezone(name: str) -> tzinfo:
    """Return the zone called *name*, for formats that write local times.

    Raises:
        ConfigError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        msg = f"--timezone: {name!r} is not a time zone; write one like UTC or Europe/Berlin"
        raise ConfigError(msg) from None


def clf_reader(zone: tzinfo = UTC) -> ReadTime:
    """Return a reader of `28/Nov/2026:11:30:17 +0000`, also with a fraction or without an offset, which is *zone* then.

    What it returns raises Unread.
    """

    def read(text: str) -> int:
        found = _CLF.fullmatch(text)
        if found is None:
            raise Unread(NO_TIME)
        day, month, year, hour, minute, second, fraction, sign, hours, minutes = found.groups()
        try:
            if sign is None:
                at = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second), tzinfo=zone)
                seconds = (at - _EPOCH) // timedelta(seconds=1)
            else:
                moment = (int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second))
                datetime(*moment)  # for its check of the numbers
                offset_s = (int(hours) * 60 + int(minutes)) * 60
                seconds = timegm(moment) - (offset_s if sign == "+" else -offset_s)
        except (KeyError, ValueError, OverflowError):
            raise Unread(NO_TIME) from None
        return seconds * 1_000_000 + (int(fraction[:6].ljust(6, "0")) if fraction else 0)

    return remembered(read)


def iso_reader(zone: tzinfo = UTC) -> ReadTime:
    """Return a reader of `2026-11-28T11:29:36.495Z` and its likes; one without an offset is of *zone*."""

    def read(text: str) -> int:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise Unread(NO_TIME) from None
        return ((at if at.tzinfo is not None else at.replace(tzinfo=zone)) - _EPOCH) // _US

    return remembered(read)


def epoch_reader(unit_ms: float) -> ReadTime:
    """Return a reader of a number since the epoch, in units of *unit_ms*; decimals are taken as written."""
    digits = {1000: 6, 1: 3, 0.001: 0, 0.000001: -3}[unit_ms]  # of microseconds in a unit

    def read(text: str) -> int:
        if not _NUMBER.fullmatch(text):
            raise Unread(NO_TIME)
        whole, _, fraction = text.partition(".")
        if digits >= 0:  # in decimals: a float of seconds has no exact microseconds
            scale: int = 10**digits
            return int(whole) * scale + int(fraction[:digits].ljust(digits, "0") or "0")
        divisor: int = 10**-digits
        return int(whole) // divisor

    return remembered(read)


def remembered(read: ReadTime) -> ReadTime:
    """Return *read* with a memory of what it read last, of bounded size."""
    memo: dict[str, int] = {}

    def read_again(text: str) -> int:
        found = memo.get(text)
        if found is None:
            found = read(text)
            if len(memo) >= MEMO_MAX:
                memo.clear()
            memo[text] = found
        return found

    return read_again


def reader_for(sample: str, zone: tzinfo = UTC) -> tuple[ReadTime, int]:
    """Return a reader of times like *sample*, and their resolution in ms: 1 or 1000.

    Raises:
        Unread: it is no time.
    """
    number = _NUMBER.fullmatch(sample)
    if number:
        digits = len(sample.partition(".")[0])
        unit_ms = 1000 if digits <= 11 else 1 if digits <= 14 else 0.001 if digits <= 17 else 0.000001
        return epoch_reader(unit_ms), SECOND_MS if unit_ms == 1000 and "." not in sample else 1
    for reader in (clf_reader(zone), iso_reader(zone)):
        try:
            reader(sample)
        except Unread:
            continue
        return reader, 1 if re.search(r":\d\d[.,]\d", sample) else SECOND_MS
    raise Unread(NO_TIME)
