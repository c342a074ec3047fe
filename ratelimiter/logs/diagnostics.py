"""The diagnostic log: lines with time and level on standard error, floods thinned out, written by a thread."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import NamedTuple

from ratelimiter.clock import Stopwatch, stopwatch_s
from ratelimiter.logs.sink import Sink

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON)
LINES_PER_KIND = 5  # in `PERIOD_S`
PERIOD_S = 10.0
KINDS_MAX = 1000  # of lines: a logger and a message before its values are put in
AUDIT = "ratelimiter.audit"  # an operator's command is one line, and each is kept
STDERR = 2


class Line(logging.Formatter):
    """Formats a record as one line: `2026-11-28T10:15:00.123Z WARNING ratelimiter.stores: message`, or as JSON.

    Args:
        form: `text` or `json`.
    """

    def __init__(self, form: str = TEXT) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of *record*; line feeds of a message or a traceback cannot begin a second line of JSON."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = record.getMessage()
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._form == JSON:
            told = {"time": moment, "level": record.levelname, "logger": record.name, "message": message}
            if trace:
                told["exception"] = trace
            return json.dumps(told, ensure_ascii=False)
        return f"{moment} {record.levelname} {record.name}: {message}" + (f"\n{trace}" if trace else "")


class _Kind:
    """Lines of one kind in one period."""

    __slots__ = ("left_out", "record", "seen", "since_s")

    def __init__(self, record: logging.LogRecord, since_s: float) -> None:
        self.record = record
        self.since_s = since_s
        self.seen = 0
        self.left_out = 0


class DiagnosticHandler(logging.Handler):
    """Writes records to a `Sink`, `LINES_PER_KIND` of each kind in `PERIOD_S`.

    A kind is a logger and its message before the values are put in. The number of lines that were left out is told in
    one line when the period is over, without waiting for the next line of the kind.

    Args:
        fd: file descriptor, standard error by default.
        form: `text` or `json`.
        stopwatch: seconds.
    """

    def __init__(self, fd: int = STDERR, form: str = TEXT, *, stopwatch: Stopwatch = stopwatch_s) -> None:
        super().__init__()
        self.setFormatter(Line(form))
        self.sink = Sink(fd, on_tick=self.tell_left_out)
        self._stopwatch = stopwatch
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of *record*, or count it as left out."""
        if record.name == AUDIT:
            self._write(record)
            return
        now_s = self._stopwatch()
        key = (record.name, str(record.msg))
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= KINDS_MAX:
                self._kinds.pop(next(iter(self._kinds)))
            kind = self._kinds[key] = _Kind(record, now_s)
        elif now_s - kind.since_s >= PERIOD_S:
            self._tell(kind)
            kind.since_s, kind.seen = now_s, 0
        kind.seen += 1
        if kind.seen > LINES_PER_KIND:
            kind.left_out += 1
            return
        self._write(record)

    def tell_left_out(self) -> None:
        """Write how many lines were left out in the periods that are over; called by the sink's thread."""
        now_s = self._stopwatch()
        self.acquire()
        try:
            for kind in self._kinds.values():
                if now_s - kind.since_s >= PERIOD_S:
                    self._tell(kind)
        finally:
            self.release()

    def _tell(self, kind: _Kind) -> None:
        if not kind.left_out:
            return
        number, kind.left_out = kind.left_out, 0
        record = kind.record
        text = "%d lines like this one were left out: %s"
        args = (number, record.getMessage())
        self._write(logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, args, None))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self.sink.write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.sink.lost += 1

    def close(self) -> None:
        """Write what waits, for a second at most."""
        self.acquire()
        try:
            for kind in self._kinds.values():
                self._tell(kind)
        finally:
            self.release()
        self.sink.close()
        super().close()


class Started(NamedTuple):
    """The diagnostic log of a process."""

    handler: DiagnosticHandler

    def stop(self) -> None:
        """Write what waits, and take the handler away."""
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()


def start(form: str = TEXT, *, fd: int = STDERR) -> Started:
    """Write the diagnostics of this process to *fd*: of ours from INFO on, of libraries from WARNING on."""
    handler = DiagnosticHandler(fd, form)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("ratelimiter").setLevel(logging.INFO)
    return Started(handler)
