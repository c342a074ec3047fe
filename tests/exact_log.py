"""The oracle: every admission remembered for ever, every question answered by adding up."""

from __future__ import annotations


class ExactLog:
    """What one key was charged, as a list of (instant, cost). Slow, and too simple to be wrong.

    Args:
        limit: units in any window.
        window_ms: length of the window, half-open: (now - window_ms, now].
    """

    def __init__(self, limit: int, window_ms: int) -> None:
        self.limit = limit
        self.window_ms = window_ms
        self.entries: list[tuple[int, int]] = []

    def used(self, now_ms: int) -> int:
        """Units in the window that ends at *now_ms*."""
        return sum(cost for instant, cost in self.entries if now_ms - self.window_ms < instant <= now_ms)

    def charge(self, cost: int, now_ms: int) -> bool:
        """Remember *cost* if it fits; whether it did."""
        fits = self.used(now_ms) + cost <= self.limit
        if fits and cost:
            self.entries.append((now_ms, cost))
        return fits

    def note(self, cost: int, now_ms: int) -> None:
        """Remember *cost*, admitted by whoever is under test."""
        self.entries.append((now_ms, cost))

    def wait_ms(self, cost: int, now_ms: int) -> int:
        """The least wait after which *cost* fits; it only changes when an entry leaves."""
        waits = sorted({0, *(instant + self.window_ms - now_ms for instant, _ in self.entries)})
        return next(wait for wait in waits if wait >= 0 and self.used(now_ms + wait) + cost <= self.limit)

    def reset_ms(self, now_ms: int) -> int:
        """Until the oldest entry of the window leaves; 0 when there is none."""
        live = [instant for instant, cost in self.entries if cost and now_ms - self.window_ms < instant <= now_ms]
        return min(live) + self.window_ms - now_ms if live else 0
