"""The notation of limits and durations: `60/minute`, `10 concurrent`, `1000 credits`; `50ms`, `30s`, `5m`, `1h`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import NamedTuple

from ratelimiter.core.quota import (
    LEASE_TTL_MS,
    LEASES_MAX,
    LIMIT_MAX,
    PERIOD_UNITS,
    WINDOW_MS_MAX,
    AnyQuota,
    Balance,
    Bucket,
    Period,
    Quota,
    Slots,
)

UNLIMITED = "unlimited"  # instead of a limit, where some have one and others none
TEXT_MAX = 64  # characters of a limit or a duration

SECOND_MS = 1000
UNITS_MS = {"day": 86_400 * SECOND_MS, "hour": 3600 * SECOND_MS, "minute": 60 * SECOND_MS, "second": SECOND_MS}
DURATION_UNITS_MS = {"ms": 1, "s": SECOND_MS, "m": 60 * SECOND_MS, "h": 3600 * SECOND_MS}

# Short names of units, singular.
_SHORT_UNITS = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
# Not fixed lengths of time; the package `limits` would count 30 and 360 days.
_CALENDAR_DAYS = {"week": 7, "month": 30, "year": 365}

# Possessive, so that no text makes them try again.
_CREDITS = re.compile(r"\s*+(\d{1,20})\s*+credits?(?:\s*+(?:/|per)\s*+([a-z]+))?\s*+", re.ASCII | re.IGNORECASE)
_CONCURRENT = re.compile(r"\s*+(\d{1,20})\s*+concurrent\s*+", re.ASCII | re.IGNORECASE)
_LIMIT = re.compile(
    r"\s*+(\d{1,20})\s*+(?:r\b)?+\s*+(?:/|per)\s*+(\d{1,20})?+\s*+([a-z]+)\s*+", re.ASCII | re.IGNORECASE
)
_COUNTED = re.compile(r"\s*+(\d{1,20})\s*+([a-z]+)\s*+", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(0|[1-9][0-9]{0,11})(ms|s|m|h)")

SLIDING_WINDOW, TOKEN_BUCKET, CALENDAR = "sliding-window", "token-bucket", "calendar"


class LimitOptions(NamedTuple):
    """The settings of a rule that its limit is read with."""

    algorithm: str = ""  # one of the above; empty: the algorithm that the limit implies
    capacity: int = 0  # of a token bucket; 0: as many as come back in one window
    timezone: str = "UTC"
    lease_ttl_ms: int = LEASE_TTL_MS


PLAIN = LimitOptions()


def options_of(quota: AnyQuota) -> LimitOptions:
    """Return the options by which *quota* was read, to read another limit of its kind."""
    match quota:
        case Bucket():
            return LimitOptions(TOKEN_BUCKET, quota.limit)
        case Period():
            return LimitOptions(CALENDAR, 0, quota.timezone, quota.lease_ttl_ms)
        case Slots() | Balance():
            return LimitOptions(lease_ttl_ms=quota.lease_ttl_ms)
        case _:
            return PLAIN


def parse_limit(text: str, options: LimitOptions = PLAIN) -> AnyQuota:
    """Read one limit, in the notation of the package `limits`; or `10 concurrent`, `1000 credits`, `100 credits/month`.

    Units may be short: `s`, `sec`, `m`, `min`, `h`, `hr`, `d`.

    Months, years and limits with the algorithm `calendar` follow the calendar.

    Returns:
        A quota of 1 to 10^9, of 1 to 1000 at the same time; in a window of 1 second to 366 days, or a period.

    Raises:
        ValueError: it is not such a limit; the message says what would do.
    """
    if len(text) > TEXT_MAX:
        raise _refusal(text, "a limit", _limit_meant(None))
    if (concurrent := _CONCURRENT.fullmatch(text)) is not None:
        limit = int(concurrent[1])
        if not 1 <= limit <= LEASES_MAX:
            raise _refusal(text, f"a limit of 1 to {LEASES_MAX} at the same time", "write 10 concurrent, for example")
        return Slots(limit, options.lease_ttl_ms)
    if (credited := _CREDITS.fullmatch(text)) is not None:
        return _credits(text, _number(text, credited[1], "1000 credits"), credited[2], options)
    parts = _LIMIT.fullmatch(text)
    if parts is None:
        if any(separator in text for separator in ",;|"):
            raise _refusal(text, "one limit", "write one rule for each")
        raise _refusal(text, "a limit", _word_meant(text) or _limit_meant(None))
    unit = _unit(parts[3])
    if options.algorithm == CALENDAR or (unit in ("month", "year") and not options.algorithm):
        return _period(text, parts, unit, options)
    quota = _window(text, parts, unit, options)
    if options.algorithm != TOKEN_BUCKET:
        return quota
    try:
        return Bucket(options.capacity or quota.limit, quota.limit, quota.window_ms)
    except ValueError as fault:
        raise _refusal(text, "a rate for a bucket", f"{fault}; write a smaller burst, or a shorter window") from None


def _credits(text: str, limit: int, word: str | None, options: LimitOptions) -> AnyQuota:
    if word is None:
        return Balance(limit, options.lease_ttl_ms)
    unit = _unit(word)
    if unit not in PERIOD_UNITS:
        what = f"write {limit} credits/month, or {limit} credits for a balance"
        raise _refusal(text, f"credits per {', '.join(PERIOD_UNITS[:-1])} or {PERIOD_UNITS[-1]}", what)
    return Period(limit, unit, options.timezone, credits=True, lease_ttl_ms=options.lease_ttl_ms)


def _period(text: str, parts: re.Match[str], unit: str, options: LimitOptions) -> Period:
    if unit not in PERIOD_UNITS:
        periods = f"{', '.join(PERIOD_UNITS[:-1])} or {PERIOD_UNITS[-1]}"
        raise _refusal(text, "of a period of the calendar", f"write {parts[1]} per {periods}, or another algorithm")
    if int(parts[2] or 1) != 1:
        days = f", or {parts[1]} per {_days(parts, unit)} days" if unit in _CALENDAR_DAYS else ""
        raise _refusal(text, "of one period of the calendar", f"write {parts[1]} per {unit}{days}")
    limit = _number(text, parts[1], "10000/month")
    return Period(limit, unit, options.timezone, lease_ttl_ms=options.lease_ttl_ms)


def _window(text: str, parts: re.Match[str], unit: str, options: LimitOptions) -> Quota:
    # Imported here because it brings its storages along, and a ready policy needs no notation.
    from limits import parse  # noqa: PLC0415

    if unit in _CALENDAR_DAYS:
        calendar = "" if options.algorithm else ", or algorithm: calendar"
        what = f"write {parts[1]} per {_days(parts, unit)} days{calendar}"
        raise _refusal(text, "in seconds, minutes, hours or days", what)
    try:
        # Two things that `limits` lets pass: "5 per 0 seconds", which it takes for one second, and a very long number.
        if parts[2] is not None and not int(parts[2]):
            raise ValueError
        item = parse(f"{parts[1]} per {parts[2] or 1} {unit}")
    except ValueError:
        raise _refusal(text, "a limit", _limit_meant(parts)) from None
    window_ms = item.get_expiry() * SECOND_MS
    limit = _number(text, parts[1], "60/minute")
    if window_ms > WINDOW_MS_MAX:
        raise _refusal(text, "in a window of at most 366 days", f"write {limit} per 366 days")
    return Quota(limit, window_ms)


def _unit(word: str) -> str:
    """Return the full name of a unit, singular and in lower case."""
    unit = word.lower()
    singular = unit.removesuffix("s") if len(unit) > 2 else unit
    return _SHORT_UNITS.get(singular, singular)


def _days(parts: re.Match[str], unit: str) -> int:
    return min(_CALENDAR_DAYS[unit] * max(1, int(parts[2] or 1)), WINDOW_MS_MAX // UNITS_MS["day"])


def _number(text: str, digits: str, example: str) -> int:
    if not 1 <= int(digits) <= LIMIT_MAX:
        raise _refusal(text, f"a limit of 1 to {LIMIT_MAX}", f"write {example}, for example")
    return int(digits)


def parse_duration_ms(text: str) -> int:
    """Read a duration, a whole number with its unit: ms, s, m or h.

    Returns:
        Milliseconds, 0 or more.

    Raises:
        ValueError: it is not a duration; the message says what would do.
    """
    parts = _DURATION.fullmatch(text)
    if parts is None:
        raise _refusal(text, "a duration", "write a whole number with ms, s, m or h, like 50ms or 30s")
    return int(parts[1]) * DURATION_UNITS_MS[parts[2]]


def read_duration_ms(text: str, least_ms: int, most_ms: int, example: str = "") -> int:
    """Read a duration from *least_ms* to *most_ms*.

    Raises:
        ValueError: it is not a duration, or out of range; the message says what would do, with *example*.
    """
    duration_ms = parse_duration_ms(text)
    if not least_ms <= duration_ms <= most_ms:
        noun = f"a duration from {spell_duration(least_ms)} to {spell_duration(most_ms)}"
        raise _refusal(text, noun, f"write {example}, for example" if example else "write one of these")
    return duration_ms


def spell_duration(duration_ms: int) -> str:
    """Return a duration as `parse_duration_ms` reads it, in the largest of hours, seconds and ms that divides it."""
    for unit in ("h", "s"):
        count, rest = divmod(duration_ms, DURATION_UNITS_MS[unit])
        if count and not rest:
            return f"{count}{unit}"
    return f"{duration_ms}ms"


def spell_limit(quota: AnyQuota, limit: int | None = None) -> str:
    """Return the limit as people say it: `60 per minute`, `5 per 2 seconds`, `10 concurrent`, `1000 credits`.

    Args:
        quota: a quota of any kind.
        limit: replaces its limit.
    """
    limit = quota.limit if limit is None else limit
    match quota:
        case Bucket():
            return f"{quota.refill} per {spell_window(quota.window_ms)}, {limit} at once"
        case Period():
            units = "credits " if quota.credits else ""
            return f"{limit} {units}per {quota.unit} of the calendar in {quota.timezone}"
        case Slots():
            return f"{limit} concurrent"
        case Balance():
            return f"{limit} credits"
        case _:
            return f"{limit} per {spell_window(quota.window_ms)}"


def name_of(quota: AnyQuota) -> str:
    """Return the name of a rule that has none: `per-minute`, `per-month`, `concurrent` or `credits`, by its limit."""
    match quota:
        case Period():
            return f"per-{quota.unit}"
        case Slots():
            return "concurrent"
        case Balance():
            return "credits"
        case _:
            return f"per-{spell_window(quota.window_ms).replace(' ', '-')}"


def spell_window(window_ms: int) -> str:
    """Return the length of a window in the largest unit that divides it: `minute`, `5 minutes`, `1500 ms`."""
    for unit, unit_ms in UNITS_MS.items():
        count, rest = divmod(window_ms, unit_ms)
        if count and not rest:
            return unit if count == 1 else f"{count} {unit}s"
    return f"{window_ms} ms"


def spell_moment(ms: int) -> str:
    """Return a Unix time in ms as `2027-01-01T00:00:00Z`, rounded up to seconds."""
    return datetime.fromtimestamp(-(-ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_moment_ms(text: str) -> int:
    """Read a moment with its time zone, like `2027-01-01T00:00:00Z`.

    Returns:
        Unix time in milliseconds, at least 1.

    Raises:
        ValueError: it is not a moment; the message says what would do.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        noun = "a moment" if moment is None else "a moment with its time zone"
        raise _refusal(text, noun, "write one like 2027-01-01T00:00:00Z")
    return max(1, int(moment.timestamp() * 1000))


def _word_meant(text: str) -> str:
    """Return a hint for a number with a misspelt word; empty if no word is close."""
    parts = _COUNTED.fullmatch(text)
    close = get_close_matches(parts[2].lower(), ("concurrent", "credits"), n=1) if parts else []
    return f"did you mean {parts[1]} {close[0]}?" if parts and close else ""


def _limit_meant(parts: re.Match[str] | None) -> str:
    if parts is not None and (parts[2] is None or int(parts[2])):
        word = parts[3].lower()
        close = get_close_matches(word, UNITS_MS, n=1)
        if close:
            plural = f"{parts[2]} {close[0]}s" if parts[2] else close[0]
            return f"did you mean {parts[1]} per {plural}?"
    return "write one like 60/minute, 1000 per hour or 5 per 2 seconds"


def _refusal(text: str, noun: str, what: str) -> ValueError:
    subject = repr(text) if len(text) <= TEXT_MAX else repr(text[:TEXT_MAX] + "...")
    return ValueError(f"{subject} is not {noun}; {what}")
