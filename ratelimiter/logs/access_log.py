"""The access log: a JSON line for each exchange of a proxy, floods of refusals thinned out, written by a thread."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.errors import ConfigError
from ratelimiter.logs.sink import STDOUT, Sink, open_place
from ratelimiter.proxy.exchange_record import JUDGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.proxy.exchange_record import ExchangeRecord

REFUSALS_PER_S = 10
FLUSH_S = 0.2

log = logging.getLogger(__name__)


class AccessLog:
    """The observer of a proxy's exchanges that writes them down.

    A line names no caller unless `caller` does, and no query, which may hold credentials. Nothing waits for the file:
    lines gather, and a thread writes them at most `FLUSH_S` later. Lines that the queue has no room for, lines that the
    file did not take and refusals that were thinned out are counted; the next line says how many, in `omitted`.

    Belongs to the event loop on which exchanges are told.

    Args:
        place: path of a file that is appended to, or `-` for standard output.
        refusals_per_s: refusals written in one second of the clock; 0 leaves all out.
        clock: Unix time in milliseconds.

    Attributes:
        sink: the thread and its queue.
        caller: return the field and the value by which a line names its caller; None, as at first: lines name none.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, place: str, *, refusals_per_s: int = REFUSALS_PER_S, clock: Clock = unix_ms) -> None:
        self._place = place
        self._refusals_per_s = refusals_per_s
        self._clock = clock
        self.sink = Sink(open_place(place, "access log"), gather_s=FLUSH_S, on_tick=self._note_broken)
        self.caller: Callable[[ExchangeRecord], tuple[str, str] | None] | None = None
        self._thinned = 0
        self._told = 0  # lost lines of the sink that a line has told of
        self._second = 0
        self._refusals = 0  # of that second
        self._broken = False  # True while the last write failed, so that it is logged once

    def exchanged(self, exchange: ExchangeRecord) -> None:
        """Note an exchange; see `ratelimiter.proxy.interfaces.ExchangeObserver`."""
        now_ms = self._clock()
        if exchange.source == JUDGE and self._thinned_out(now_ms):
            self._thinned += 1
            return
        lost, thinned = self.sink.lost, self._thinned
        if self.sink.write(self._line(exchange, now_ms, lost - self._told + thinned)):
            self._told, self._thinned = lost, 0

    def reopen(self) -> None:
        """Write to the file that is at the place now. SIGHUP calls this, after a log file was moved away."""
        if self._place == STDOUT:
            return
        try:
            fd = open_place(self._place, "access log")
        except ConfigError as fault:
            log.error("%s; the old file is written on", fault)
            return
        # In the place of the old one, so that a write under way has a file, the old or the new.
        os.dup2(fd, self.sink.fd, inheritable=False)
        os.close(fd)

    def close(self) -> None:
        """Write the lines that wait, for a second at most."""
        self.sink.close()
        if self._place != STDOUT and not len(self.sink):
            os.close(self.sink.fd)

    def _thinned_out(self, now_ms: int) -> bool:
        second = now_ms // 1000
        if second != self._second:
            self._second, self._refusals = second, 0
        self._refusals += 1
        return self._refusals > self._refusals_per_s

    def _line(self, exchange: ExchangeRecord, now_ms: int, omitted: int) -> bytes:
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
        if exchange.decision is not None:
            told |= _refusal(exchange.decision)
        if exchange.request_id:
            told["request_id"] = exchange.request_id
        named = None if self.caller is None else self.caller(exchange)
        if named is not None:
            told[named[0]] = named[1]
        if omitted:
            told["omitted"] = omitted
        return json.dumps(told, separators=(",", ":")).encode() + b"\n"

    def _note_broken(self) -> None:
        """Log once that the file cannot be written, and once that it can again; called by the sink's thread."""
        if bool(self.sink.broken) == self._broken:
            return
        self._broken = bool(self.sink.broken)
        if self._broken:
            log.error("the access log cannot be written: %s; lost lines are counted", self.sink.broken)
        else:
            log.warning("the access log is written again; %d lines were lost so far", self.sink.lost)


def _refusal(decision: Any) -> dict[str, object]:
    """Return the reason of a refusal, and the rule that refused with its figures, if a rule did."""
    told: dict[str, object] = {"reason": decision.reason}
    binding = decision.binding
    if binding is not None:
        rule = binding.rule
        told |= {"rule": rule.name, "limit": rule.quota.limit, "remaining": binding.remaining}
        if binding.retry_after_ms is not None:
            told["retry_after_ms"] = binding.retry_after_ms
    return told
