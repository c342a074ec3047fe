"""The end of an operator's order: at a moment, after a duration, or none."""

from __future__ import annotations

from typing import NamedTuple

from ratelimiter.core.overrides import FOR_EVER
from ratelimiter.errors import ConfigError
from ratelimiter.parsing.units import parse_duration_ms, parse_moment_ms

UNTIL_MS_MAX = 100 * 366 * 24 * 3600 * 1000  # from now


class Expiry(NamedTuple):
    """The end of an order, as an operator wrote it."""

    until_ms: int = FOR_EVER  # Unix time
    for_ms: int = 0  # from the moment of the order; 0 if *until_ms* counts

    def at_ms(self, now_ms: int) -> int:
        """Return the Unix time at which an order given at *now_ms* ends.

        Raises:
            ConfigError: that is not within the next hundred years.
        """
        until_ms = now_ms + self.for_ms if self.for_ms else self.until_ms
        if not now_ms < until_ms <= now_ms + UNTIL_MS_MAX:
            msg = "until: is not within the next hundred years; write a moment that is"
            raise ConfigError(msg)
        return until_ms


NO_EXPIRY = Expiry()


def read_expiry(for_: str, until: str) -> Expiry:
    """Return the end that *for_*, a duration, or *until*, a moment, says; each is empty if it was not given.

    Raises:
        ConfigError: a text cannot be read, or both are given.
    """
    if for_ and until:
        msg = "until: excludes for; write one of them"
        raise ConfigError(msg)
    try:
        for_ms = parse_duration_ms(for_) if for_ else 0
    except ValueError as fault:
        msg = f"for: {fault}"
        raise ConfigError(msg) from None
    if for_ and not for_ms:
        msg = f"for: {for_} is over at once; write a longer one"
        raise ConfigError(msg)
    try:
        return Expiry(parse_moment_ms(until) if until else FOR_EVER, for_ms)
    except ValueError as fault:
        msg = f"until: {fault}"
        raise ConfigError(msg) from None
