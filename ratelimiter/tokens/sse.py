"""Server-sent events, read for the few that have figures (WHATWG HTML, section 9.2.6).

Most events have none, and are passed over by looking for a few texts, without being taken apart. An event of ordinary
size is parsed once it is whole; a longer one is scanned as it comes, so that memory is bounded. The pieces in which the
stream arrives make no difference.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ratelimiter.tokens.figures import EVENT_BYTES_MAX
from ratelimiter.tokens.json_scanner import JsonScanner
from ratelimiter.tokens.needles import matters, spans

if TYPE_CHECKING:
    from ratelimiter.tokens.figures import Figures
    from ratelimiter.tokens.preset import Preset

FIELD_BYTES_MAX = 256  # of a field's name, and of the name of an event; longer ones are none of ours

_BLANK_LINES = (b"\n\n", b"\r\n\r\n")
# Two line ends in a row, of CRLF, LF and CR: LF+LF, LF+CR (or CRLF), CR+CR.
_BOUNDARY = re.compile(rb"\n\n|\n\r\n?|\r\r\n?")
_LINE_END = re.compile(rb"[\r\n]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseReader:
    """The events of one stream.

    Args:
        preset: says which events have figures.
        figures: takes them in.
    """

    __slots__ = ("_figures", "_held", "_long", "_needles", "_preset", "_searched", "_start")

    def __init__(self, preset: Preset, figures: Figures) -> None:
        self._preset = preset
        self._figures = figures
        self._needles = preset.needles
        self._held = bytearray()  # of an event that is not whole yet
        self._searched = 0  # so much of it has no boundary
        self._long: _LongEvent | None = None  # instead: an event that is too long to be held
        self._start = True  # of the stream, where a byte order mark may be

    def feed(self, data: bytes) -> None:
        """Read on in *data*, of any length."""
        if not self._held and self._long is None and data.endswith(_BLANK_LINES):
            if matters(data, self._needles):
                if data.find(b"\n\n") == len(data) - 2 and not self._start:
                    self._event(data, first=False)
                else:
                    self._events(data)
            self._start = False
            return  # else whole events, none of which has anything for us
        self._piece(data)

    def end(self, *, clean: bool) -> None:
        """End the stream. If it ended cleanly, an event without its blank line counts all the same: SDKs differ."""
        if not clean or self._figures.ended:
            return
        if self._long is not None:
            self._long.feed(b"\n\n")
            self._finish_long(self._long)
        elif self._held:
            self._event(bytes(self._held), first=self._start)

    def _piece(self, data: bytes) -> None:
        """Read on where *data* does not begin or end at a boundary."""
        while data and not self._figures.ended:
            if self._long is not None:
                data = self._long.feed(data)
                if self._long.whole:
                    self._finish_long(self._long)
                continue
            held = self._held
            held += data
            end = _last_boundary(held, max(0, self._searched - 2))
            if end:
                whole = bytes(held[:end])
                del held[:end]
                self._events(whole)
            self._searched = len(held)
            data = b""
            if len(held) > EVENT_BYTES_MAX:
                self._long = _LongEvent(self._preset)
                data = bytes(held.removeprefix(_BYTE_ORDER_MARK) if self._start else held)
                held.clear()
                self._searched = 0

    def _events(self, data: bytes) -> None:
        """Take in those of the whole events *data* that may have something for us."""
        for start, stop in spans(data, self._needles, _BOUNDARY):
            self._event(data[start:stop], first=self._start and start == 0)
            if self._figures.ended:
                break
        self._start = False

    def _event(self, event: bytes, *, first: bool) -> None:
        if first:
            event = event.removeprefix(_BYTE_ORDER_MARK)
        if b"\r" not in event and event.endswith(b"\n\n") and self._plain(event):
            return
        name, lines = b"", []
        for line in event.splitlines():
            field, _, value = line.partition(b":")
            if field == b"data":
                lines.append(value[1:] if value[:1] == b" " else value)
            elif field == b"event" and len(value) <= FIELD_BYTES_MAX:
                name = value.removeprefix(b" ")
        if lines:
            self._figures.document(b"\n".join(lines), name.decode("utf-8", "replace"))

    def _plain(self, event: bytes) -> bool:
        """Take in *event* if it is what most are, perhaps a name and then one line of data; return False if not."""
        name, start = "", 0
        if event.startswith(b"event: "):
            start = event.index(b"\n") + 1
            name = event[len(b"event: ") : start - 1].decode("utf-8", "replace")
        if not event.startswith(b"data: ", start) or event.find(b"\n", start) != len(event) - 2:
            return False
        self._figures.document(event[start + len(b"data: ") : -2], name)
        return True

    def _finish_long(self, event: _LongEvent) -> None:
        self._long = None
        self._start = False
        event.scanner.end()
        if event.scanner.complete:
            self._figures.take(event.scanner.values, event.name)


def _last_boundary(data: bytearray, start: int) -> int:
    """Return where a boundary of *data* ends that is among the last ones behind *start*; 0 if there is none."""
    place = data.rfind(b"\n\n", start)
    if place >= 0:
        return place + 2
    end = 0
    for found in _BOUNDARY.finditer(data, start):
        end = found.end()
    return end


class _LongEvent:
    """An event whose data is scanned as it comes.

    Attributes:
        scanner: of its data.
        name: of the event, if it has one.
        whole: its blank line was there.
    """

    __slots__ = ("_after_cr", "_field", "_line_empty", "_lines", "_value_start", "_where", "name", "scanner", "whole")

    def __init__(self, preset: Preset) -> None:
        self.scanner = JsonScanner(preset.tree)
        self.name = ""
        self.whole = False
        self._field = bytearray()  # what is kept of the line: the field's name, or the value of `event`
        self._where = _FIELD
        self._line_empty = True
        self._value_start = False  # a blank after the colon is not part of the value
        self._lines = 0  # of data
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """Read on in *data*; return what is behind the event's end."""
        position = 0
        if self._after_cr:
            position = 1 if data[:1] == b"\n" else 0
            self._after_cr = False
        while position < len(data):
            found = _LINE_END.search(data, position)
            end = len(data) if found is None else found.start()
            if end > position:
                self._text(data, position, end)
            if found is None:
                return b""
            position = end + 1
            if data[end] == _CR:
                if position == len(data):
                    self._after_cr = True
                elif data[position] == _LF:
                    position += 1
            if self._line_empty:
                self.whole = True
                return data[position:]
            self._end_line()
        return b""

    def _text(self, data: bytes, position: int, end: int) -> None:
        self._line_empty = False
        if self._where == _FIELD:
            colon = data.find(b":", position, end)
            stop = end if colon < 0 else colon
            self._field += data[position : min(stop, position + FIELD_BYTES_MAX)]
            if colon < 0:
                del self._field[FIELD_BYTES_MAX:]
                return
            self._begin_value()
            position = colon + 1
        if self._value_start and position < end:
            self._value_start = False
            position += data[position] == _BLANK
        if self._where == _DATA:
            self.scanner.feed(data[position:end])
        elif self._where == _EVENT:
            self._field += data[position : min(end, position + FIELD_BYTES_MAX)]
            del self._field[FIELD_BYTES_MAX:]

    def _begin_value(self) -> None:
        self._value_start = True
        self._where = {b"data": _DATA, b"event": _EVENT}.get(bytes(self._field), _OTHER)
        self._field.clear()
        if self._where == _DATA:
            if self._lines:
                self.scanner.feed(b"\n")
            self._lines += 1

    def _end_line(self) -> None:
        if self._where == _FIELD:
            self._begin_value()  # a line without a colon is a field without a value
        elif self._where == _EVENT:
            self.name = bytes(self._field).decode("utf-8", "replace")
        self._field.clear()
        self._where = _FIELD
        self._line_empty = True


_FIELD, _DATA, _EVENT, _OTHER = range(4)
_LF, _CR, _BLANK = b"\n\r "
