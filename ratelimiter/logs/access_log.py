"""The access log: a JSON line for each exchange of a proxy, floods of refusals thinned out, written by a thread."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.errors import ConfigError
from ratelimiter.proxy.exchange_record import JUDGE

if TYPE_CHECKING:
    from ratelimiter.proxy.exchange_record import Exchanged

STDOUT = "-"
REFUSALS_PER_S = 10
FLUSH_S = 0.2
PENDING_MAX = 10_000  # lines that wait for a slow disk or reader, about 300 bytes each; what comes then is left out

log = logging.getLogger("ratelimiter.logs.access_log")


class AccessLog:
    """The observer of a proxy's exchanges that writes them down.

    A line names neither principal nor address, nor a query, which may hold credentials. Nothing waits for the file:
    lines gather, and a thread writes them at most `FLUSH_S` later. When more than `PENDING_MAX` wait, further ones are
    left out; the next line that is written says how many were, in `omitted`, refusals that were thinned out included.

    Belongs to the event loop on which exchanges are told.

    Args:
        place: path of a file that is appended to, or `-` for standard output.
        refusals_per_s: refusals written in one second of the clock; 0 leaves all out.
        clock: Unix time in milliseconds.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, place: str, *, refusals_per_s: int = REFUSALS_PER_S, clock: Clock = unix_ms) -> None:
        self._place = place
        self._refusals_per_s = refusals_per_s
        self._clock = clock
        self._fd = _opened(place)
        self._lines: list[bytes] = []
        self._omitted = 0
        self._second = 0
        self._refusals = 0  # of that second
        self._timed = False
        self._writing: asyncio.Future[None] | None = None
        self._broken = False  # whether the last write failed: told once

    def exchanged(self, exchange: Exchanged) -> None:
        """Note an exchange; see `ratelimiter.proxy.interfaces.Observer`."""
        now_ms = self._clock()
        if (exchange.source == JUDGE and self._thinned_out(now_ms)) or len(self._lines) >= PENDING_MAX:
            self._omitted += 1
            return
        self._lines.append(self._line(exchange, now_ms))
        if not self._timed:
            self._flush_soon()

    def reopen(self) -> None:
        """Write to whatever is at the place now: what SIGHUP is for, after a file was moved away."""
        if self._place == STDOUT:
            return
        try:
            fd = _opened(self._place)
        except ConfigError as fault:
            log.error("%s; the old file is written on", fault)
            return
        # In the place of the old one, so that a write under way has a file, the old or the new.
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)

    async def close(self) -> None:
        """Write what is pending."""
        if self._writing is not None:
            await self._writing
        if self._lines:
            await asyncio.to_thread(self._write, self._taken())
        if self._place != STDOUT:
            os.close(self._fd)

    def _thinned_out(self, now_ms: int) -> bool:
        second = now_ms // 1000
        if second != self._second:
            self._second, self._refusals = second, 0
        self._refusals += 1
        return self._refusals > self._refusals_per_s

    def _line(self, exchange: Exchanged, now_ms: int) -> bytes:
        told = {
            "time": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds"),
            "method": exchange.method,
            "path": exchange.target.partition(b"?")[0].decode("latin-1"),
            "status": exchange.status,
            "source": exchange.source,
            "received": exchange.received,
            "sent": exchange.sent,
            "duration_ms": round(exchange.duration_ms, 3),
            "upstream_ms": round(exchange.upstream_ms, 3),
        }
        if exchange.request_id:
            told["request_id"] = exchange.request_id
        if self._omitted:
            told["omitted"], self._omitted = self._omitted, 0
        return json.dumps(told, separators=(",", ":")).encode() + b"\n"

    def _flush_soon(self) -> None:
        self._timed = True
        asyncio.get_running_loop().call_later(FLUSH_S, self._flush_on_time)

    def _flush_on_time(self) -> None:
        self._timed = False
        if not self._lines:
            return
        if self._writing is not None and not self._writing.done():
            self._flush_soon()
            return
        self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, self._taken()))

    def _taken(self) -> bytes:
        lines, self._lines = self._lines, []
        return b"".join(lines)

    def _write(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self._fd, text) :]
        except OSError as fault:
            if not self._broken:
                log.error("the access log cannot be written: %s", fault.strerror)
            self._broken = True
        else:
            self._broken = False


def _opened(place: str) -> int:
    if place == STDOUT:
        return 1
    try:
        return os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        msg = f"access log: {place!r} cannot be opened ({reason}); name a file that this process may write, or -"
        raise ConfigError(msg) from None
