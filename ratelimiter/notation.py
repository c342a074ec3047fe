"""How limits and durations are written: `60/minute`, `5 per 2 seconds`; `50ms`, `30s`, `5m`, `1h`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from difflib import get_close_matches

from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, AnyQuota, Balance, Bucket, Period, Quota, Slots

UNLIMITED = "unlimited"  # instead of a limit, where some have one and others none
TEXT_MAX = 64  # characters of a limit or a duration

SECOND_MS = 1000
UNITS_MS = {"day": 86_400 * SECOND_MS, "hour": 3600 * SECOND_MS, "minute": 60 * SECOND_MS, "second": SECOND_MS}
DURATION_UNITS_MS = {"ms": 1, "s": SECOND_MS, "m": 60 * SECOND_MS, "h": 3600 * SECOND_MS}

# How others abbreviate, for the sake of a helpful refusal.
_ABBREVIATIONS = {"s": "second", "sec": "second", "secs": "second", "m": "minute", "min": "minute", "mins": "minute"}
_ABBREVIATIONS |= {"h": "hour", "hr": "hour", "hrs": "hour", "d": "day"}
# No fixed lengths of time; the package `limits` would count 30 and 360 days.
_CALENDAR_DAYS = {"week": 7, "month": 30, "year": 365}

_LIMIT = re.compile(r"\s*(\d{1,20})\s*r?\s*(?:/|per)\s*(\d{1,20})?\s*([a-z]+)\s*", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(0|[1-9][0-9]{0,11})(ms|s|m|h)")


def parse_limit(text: str) -> Quota:
    """Read one limit in the notation of the package `limits`.

    Returns:
        A quota of 1 to 10^9 in a window of 1 second to 366 days.

    Raises:
        ValueError: it is not such a limit; says what would do.
    """
    # Imported here because it brings its storages along, and a ready policy needs no notation.
    from limits import parse  # noqa: PLC0415

    parts = _LIMIT.fullmatch(text) if len(text) <= TEXT_MAX else None
    if parts is None and any(separator in text for separator in ",;|"):
        raise _refusal(text, "one limit", "write one rule for each")
    unit = parts[3].lower().removesuffix("s") if parts else ""
    if parts and unit in _CALENDAR_DAYS:
        days = min(_CALENDAR_DAYS[unit] * max(1, int(parts[2] or 1)), WINDOW_MS_MAX // UNITS_MS["day"])
        raise _refusal(text, "in seconds, minutes, hours or days", f"write {parts[1]} per {days} days")
    try:
        # Two things that `limits` lets pass: "5 per 0 seconds", which it takes for one second, and a very long number.
        if parts is None or (parts[2] is not None and not int(parts[2])):
            raise ValueError
        item = parse(text)
    except ValueError:
        raise _refusal(text, "a limit", _limit_meant(parts)) from None
    window_ms = item.get_expiry() * SECOND_MS
    if not 1 <= item.amount <= LIMIT_MAX:
        raise _refusal(text, f"a limit of 1 to {LIMIT_MAX}", "write 60/minute, for example")
    if window_ms > WINDOW_MS_MAX:
        raise _refusal(text, "in a window of at most 366 days", f"write {item.amount} per 366 days")
    return Quota(item.amount, window_ms)


def parse_duration_ms(text: str) -> int:
    """Read a duration, a whole number with its unit: ms, s, m or h.

    Returns:
        Milliseconds, 0 or more.

    Raises:
        ValueError: it is not a duration; says what would do.
    """
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise _refusal(text, "a duration", "write a whole number with ms, s, m or h, like 50ms or 30s")
    return int(parts[1]) * DURATION_UNITS_MS[parts[2]]


def spell_limit(quota: AnyQuota) -> str:
    """The limit as people say it: `60 per minute`, `5 per 2 seconds`, `10 concurrent`, `1000 credits`."""
    match quota:
        case Bucket():
            return f"{quota.refill} per {spell_window(quota.window_ms)}, up to {quota.limit} at once"
        case Period():
            units = "credits " if quota.credits else ""
            return f"{quota.limit} {units}per {quota.unit} of the calendar ({quota.timezone})"
        case Slots():
            return f"{quota.limit} concurrent"
        case Balance():
            return f"{quota.limit} credits"
        case _:
            return f"{quota.limit} per {spell_window(quota.window_ms)}"


def spell_window(window_ms: int) -> str:
    """The length of a window in the largest unit that divides it: `minute`, `5 minutes`, `1500 ms`."""
    for unit, unit_ms in UNITS_MS.items():
        count, rest = divmod(window_ms, unit_ms)
        if count and not rest:
            return unit if count == 1 else f"{count} {unit}s"
    return f"{window_ms} ms"


def spell_moment(ms: int) -> str:
    """A Unix time in milliseconds as `2027-01-01T00:00:00Z`, whole seconds upward."""
    return datetime.fromtimestamp(-(-ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_moment_ms(text: str) -> int:
    """Read a moment with its time zone, like `2027-01-01T00:00:00Z`.

    Returns:
        Unix time in milliseconds, at least 1.

    Raises:
        ValueError: it is none; says what would do.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        noun = "a moment" if moment is None else "a moment everywhere, as it has no time zone"
        raise _refusal(text, noun, "write one like 2027-01-01T00:00:00Z")
    return max(1, int(moment.timestamp() * 1000))


def _limit_meant(parts: re.Match[str] | None) -> str:
    if parts is not None and (parts[2] is None or int(parts[2])):
        word = parts[3].lower()
        close = [_ABBREVIATIONS[word]] if word in _ABBREVIATIONS else get_close_matches(word, UNITS_MS, n=1)
        if close:
            plural = f"{parts[2]} {close[0]}s" if parts[2] else close[0]
            return f"did you mean {parts[1]} per {plural}?"
    return "write one like 60/minute, 1000 per hour or 5 per 2 seconds"


def _refusal(text: str, noun: str, what: str) -> ValueError:
    subject = repr(text) if len(text) <= TEXT_MAX else repr(text[:TEXT_MAX] + "...")
    return ValueError(f"{subject} is not {noun}; {what}")
