"""How much in how long: the one number pair that everything else is about."""

from __future__ import annotations

from dataclasses import dataclass, field

LIMIT_MAX = 10**9
WINDOW_MS_MAX = 366 * 24 * 3600 * 1000

# Up to this many units a window is an exact log; beyond it instants are rounded to 1/128 of the window, which keeps a
# key at a few hundred bytes whatever its limit, for an effective window of at most W (1 + 1/128).
PRECISION = 128


@dataclass(frozen=True, slots=True)
class Quota:
    """At most *limit* units in any half-open window of *window_ms* milliseconds.

    Args:
        limit: units admitted in one window, 1 to 10^9.
        window_ms: length of the window in milliseconds, 1 to 366 days.

    Raises:
        ValueError: a number is outside its range.
    """

    limit: int
    window_ms: int
    resolution_ms: int = field(init=False)  # instants are remembered to this many ms; 1 is an exact log

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= LIMIT_MAX:
            msg = f"limit must be 1 to {LIMIT_MAX}, not {self.limit}"
            raise ValueError(msg)
        if not 1 <= self.window_ms <= WINDOW_MS_MAX:
            msg = f"window_ms must be 1 to {WINDOW_MS_MAX} (366 days), not {self.window_ms}"
            raise ValueError(msg)
        # Rounded up, so that at most PRECISION + 1 instants are ever live.
        resolution_ms = 1 if self.limit <= PRECISION else -(-self.window_ms // PRECISION)
        object.__setattr__(self, "resolution_ms", resolution_ms)
