"""For the tests of applications that use this package: time that passes when told to."""

from __future__ import annotations


class FakeClock:
    """A clock that stands still until it is moved.

    Args:
        now_ms: Unix time in milliseconds that it shows at first.

    Example:
        >>> clock = FakeClock()
        >>> before = clock()
        >>> clock.advance(1500)
        >>> clock() - before
        1500
    """

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """Now, as Unix time in milliseconds."""
        return self.now_ms

    def advance(self, ms: int) -> None:
        """Move the clock *ms* milliseconds on, or back when negative."""
        self.now_ms += ms
