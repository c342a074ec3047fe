"""Quotas: the units that a limit admits in a length of time, one class for each kind of limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import ClassVar, TypeAlias

LIMIT_MAX = 10**9
WINDOW_MS_MAX = 366 * 24 * 3600 * 1000

# Up to this many units a window is an exact log; beyond it instants are rounded to 1/128 of the window, which keeps a
# key at a few hundred bytes whatever its limit, for an effective window of at most W (1 + 1/128).
PRECISION = 128

# The debt of a bucket, in its own small units: so that it and what is added to it stay whole numbers in a double.
DEBT_MAX = 2**52

PERIOD_UNITS = ("hour", "day", "week", "month", "year")  # a week begins on Monday (ISO 8601)

LEASE_TTL_MS = 30_000
LEASE_TTL_MS_MIN = 1000
LEASE_TTL_MS_MAX = 3_600_000
LEASES_MAX = 1000  # of one key at a time: slots are as many at most, and further reservations are refused meanwhile


@dataclass(frozen=True, slots=True)
class Quota:
    """At most *limit* units in any half-open window of *window_ms* milliseconds.

    Args:
        limit: units admitted in one window, 1 to 10^9.
        window_ms: length of the window in milliseconds, 1 to 366 days.

    Raises:
        ValueError: a number is outside its range.
    """

    kind: ClassVar[str] = "window"
    credits: ClassVar[bool] = False
    lease_ttl_ms: ClassVar[int] = 0

    limit: int
    window_ms: int
    resolution_ms: int = field(init=False)  # instants are remembered to this many ms; 1 is an exact log

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        _check_window(self.window_ms)
        # Rounded up, so that at most PRECISION + 1 instants are ever live.
        resolution_ms = 1 if self.limit <= PRECISION else -(-self.window_ms // PRECISION)
        object.__setattr__(self, "resolution_ms", resolution_ms)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: *limit* tokens at first and at most, of which *refill* come back in *window_ms*, evenly.

    In any span of t ms at most limit + t * refill / window_ms units are admitted. Its arithmetic is whole numbers only:
    a unit weighs `weight`, and `drain` of that comes back every millisecond, both reduced by their common divisor.

    Args:
        limit: the capacity, which is the most that is admitted at once, 1 to 10^9.
        refill: tokens that come back in one window, 1 to 10^9.
        window_ms: 1 to 366 days, in milliseconds.

    Raises:
        ValueError: a number is outside its range; or an empty bucket takes longer than 366 days to fill, or its numbers
            are too large for exact arithmetic.
    """

    kind: ClassVar[str] = "bucket"
    credits: ClassVar[bool] = False
    lease_ttl_ms: ClassVar[int] = 0

    limit: int
    refill: int
    window_ms: int
    weight: int = field(init=False)  # of one unit
    drain: int = field(init=False)  # of that weight, what comes back in one ms
    debt_max: int = field(init=False)  # weight that is owed at most: a limit and what settlements found to be due

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        _check_window(self.window_ms)
        if not 1 <= self.refill <= LIMIT_MAX:
            msg = f"refill must be 1 to {LIMIT_MAX}, not {self.refill}"
            raise ValueError(msg)
        divisor = gcd(self.refill, self.window_ms)
        weight, drain = self.window_ms // divisor, self.refill // divisor
        if self.limit * weight > WINDOW_MS_MAX * drain:
            msg = f"{self.limit} tokens at {self.refill} per {self.window_ms} ms take over 366 days to come back"
            raise ValueError(msg)
        if self.limit * weight > DEBT_MAX:
            msg = f"{self.limit} tokens at {self.refill} per {self.window_ms} ms are too many for exact arithmetic"
            raise ValueError(msg)
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "drain", drain)
        object.__setattr__(self, "debt_max", min(DEBT_MAX, WINDOW_MS_MAX * drain))


@dataclass(frozen=True, slots=True)
class Period:
    """At most *limit* units in each period of the calendar; none is carried over.

    Args:
        limit: units in one period, 1 to 10^9.
        unit: hour, day, week, month or year, as `PERIOD_UNITS` has them.
        timezone: whose calendar, a name of the IANA database; whether there is such a zone is for the reader of
            from somewhere to check (`ratelimiter.core.algorithms.calendar.known`).
        credits: what is spent is money's worth: refused with 402, not 429.
        lease_ttl_ms: how long a reservation holds that is neither settled nor renewed, 1 second to 1 hour.

    Raises:
        ValueError: a value is outside its range.
    """

    kind: ClassVar[str] = "period"
    window_ms: ClassVar[int] = 0  # a period has no fixed length

    limit: int
    unit: str
    timezone: str = "UTC"
    credits: bool = False
    lease_ttl_ms: int = LEASE_TTL_MS

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        _check_lease_ttl(self.lease_ttl_ms)
        if self.unit not in PERIOD_UNITS:
            msg = f"unit must be one of {', '.join(PERIOD_UNITS)}, not {self.unit!r}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Slots:
    """At most *limit* units at the same time: each charge is a lease, which counts until it is settled or lapses.

    Args:
        limit: slots, 1 to 1000.
        lease_ttl_ms: how long a lease holds that is neither settled nor renewed, 1 second to 1 hour.

    Raises:
        ValueError: a number is outside its range.
    """

    kind: ClassVar[str] = "slots"
    credits: ClassVar[bool] = False
    window_ms: ClassVar[int] = 0

    limit: int
    lease_ttl_ms: int = LEASE_TTL_MS

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= LEASES_MAX:
            msg = f"limit must be 1 to {LEASES_MAX} where it is of what runs at the same time, not {self.limit}"
            raise ValueError(msg)
        _check_lease_ttl(self.lease_ttl_ms)


@dataclass(frozen=True, slots=True)
class Balance:
    """Credits: each principal begins with *limit*, and what is spent comes back by a top-up only. Refused with 402.

    Args:
        limit: what each principal begins with, 1 to 10^9.
        lease_ttl_ms: how long a reservation holds that is neither settled nor renewed, 1 second to 1 hour.

    Raises:
        ValueError: a number is outside its range.
    """

    kind: ClassVar[str] = "balance"
    credits: ClassVar[bool] = True
    window_ms: ClassVar[int] = 0

    limit: int
    lease_ttl_ms: int = LEASE_TTL_MS

    def __post_init__(self) -> None:
        _check_limit(self.limit)
        _check_lease_ttl(self.lease_ttl_ms)


# All have `limit` (the most that counts at once), `kind`, `window_ms` (0 where there is no length of time to speak of),
# `credits` (refused with 402) and `lease_ttl_ms` (0 where there are no leases).
AnyQuota: TypeAlias = Quota | Bucket | Period | Slots | Balance


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= LIMIT_MAX:
        msg = f"limit must be 1 to {LIMIT_MAX}, not {limit}"
        raise ValueError(msg)


def _check_window(window_ms: int) -> None:
    if not 1 <= window_ms <= WINDOW_MS_MAX:
        msg = f"window_ms must be 1 to {WINDOW_MS_MAX} (366 days), not {window_ms}"
        raise ValueError(msg)


def _check_lease_ttl(lease_ttl_ms: int) -> None:
    if not LEASE_TTL_MS_MIN <= lease_ttl_ms <= LEASE_TTL_MS_MAX:
        msg = f"lease_ttl_ms must be {LEASE_TTL_MS_MIN} to {LEASE_TTL_MS_MAX} (1 hour), not {lease_ttl_ms}"
        raise ValueError(msg)
