"""The end of a client's connection: what the client still sends is read and thrown away, so that its answer arrives.

A socket that is closed while something unread is in it sends a reset, which may overtake the answer and destroy it (RFC
9112 section 9.6). Many clients read an answer only when their whole request is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from ratelimiter.proxy.settings import ProxySettings

SILENCE_S = 2.0  # after which a client that sends nothing has got its answer
# Reading is paused for a moment after so many bytes, about 20 MB a second: an upload that is thrown away must not cost
# more than one that is forwarded.
BURST, PAUSE_S = 1_048_576, 0.05


class Lingering:
    """Counts what a client sends behind its last answer.

    Args:
        transport: of the client.
        settings: `linger_ms` and `linger_max` bound it.
        loop: the event loop.
        now_s: on `stopwatch_s`.
    """

    __slots__ = ("_burst", "_end_s", "_left", "_loop", "_quiet_s", "_transport")

    def __init__(
        self, transport: asyncio.Transport, settings: ProxySettings, loop: asyncio.AbstractEventLoop, now_s: float
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._end_s = now_s + settings.linger_ms / 1000
        self._quiet_s = 0.0
        self._left = settings.linger_max
        self._burst = 0

    def discard(self, size: int) -> None:
        """Throw *size* bytes away; close if they are too many."""
        self._quiet_s = 0.0
        self._left -= size
        if self._left < 0:
            self._transport.abort()
            return
        self._burst += size
        if self._burst >= BURST:
            self._burst = 0
            self._transport.pause_reading()
            self._loop.call_later(PAUSE_S, self._resume)

    def overdue(self, now_s: float, passed_s: float) -> bool:
        """Return True if the client has had its time, or has been silent for a while."""
        self._quiet_s += passed_s
        return now_s >= self._end_s or self._quiet_s > SILENCE_S

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
