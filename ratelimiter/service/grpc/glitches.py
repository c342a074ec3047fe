"""A budget for glitches: frames of a peer that cost work and bring no request further."""

from __future__ import annotations

from ratelimiter.service.grpc.frames import ConnectionFault, ErrorCode

BURST = 1000  # glitches at once; a caller whose deadlines pass while we stand still resets a few hundred streams
PER_S = 200  # forgiven in a second
PER_ANSWER = 4  # forgiven for a call that was answered: window updates and measuring pings go with calls


class GlitchBudget:
    """Counts glitches of one connection: pings, settings, window updates, resets, empty frames, refused streams.

    Each alone is legal, and each has been the means of an attack (CVE-2019-9511 to -9518, CVE-2023-44487,
    CVE-2024-27316, CVE-2025-8671). A peer that does business has its glitches forgiven.
    """

    __slots__ = ("_left", "_told_s")

    def __init__(self, now_s: float) -> None:
        self._left = float(BURST)
        self._told_s = now_s

    def spend(self, now_s: float) -> None:
        """Count one glitch.

        Raises:
            ConnectionFault: it was one too many.
        """
        self._left -= 1
        if self._left < 0:
            self._left = min(BURST, self._left + (now_s - self._told_s) * PER_S)
            self._told_s = now_s
            if self._left < 0:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that bring no request further")

    def answered(self) -> None:
        """Forgive what belongs to an answered call."""
        if self._left < BURST:
            self._left += PER_ANSWER
