"""Newline-delimited JSON, read for the few lines that have figures.

The pieces in which it arrives make no difference.
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

_LINE_END = re.compile(rb"\n")


class NdjsonReader:
    """The lines of one stream.

    Args:
        preset: says which lines have figures.
        figures: takes them in.
    """

    __slots__ = ("_figures", "_held", "_long", "_needles", "_preset")

    def __init__(self, preset: Preset, figures: Figures) -> None:
        self._preset = preset
        self._figures = figures
        self._needles = preset.needles
        self._held = bytearray()  # of a line that is not whole yet
        self._long: JsonScanner | None = None  # instead: of a line that is too long to be held

    def feed(self, data: bytes) -> None:
        """Read on in *data*, of any length."""
        if not self._held and self._long is None and data.endswith(b"\n"):
            if matters(data, self._needles):
                self._lines(data)
            return
        while data and not self._figures.ended:
            data = self._piece(data)

    def _piece(self, data: bytes) -> bytes:
        if self._long is not None:
            line, found, rest = data.partition(b"\n")
            self._long.feed(line)
            if found:
                self._finish_long(self._long)
            return rest
        last = data.rfind(b"\n")
        self._held += data[: last + 1]
        if last >= 0:
            whole = bytes(self._held)
            self._held.clear()
            self._lines(whole)
        self._held += data[last + 1 :]
        if len(self._held) > EVENT_BYTES_MAX:
            self._long = JsonScanner(self._preset.tree)
            self._long.feed(bytes(self._held))
            self._held.clear()
        return b""

    def end(self, *, clean: bool) -> None:
        """End the stream. If it ended cleanly, a last line without its end counts all the same."""
        if not clean or self._figures.ended:
            return
        if self._long is not None:
            self._finish_long(self._long)
        elif self._held:
            self._lines(bytes(self._held))

    def _lines(self, data: bytes) -> None:
        for start, stop in spans(data, self._needles, _LINE_END):
            self._figures.document(data[start:stop])
            if self._figures.ended:
                return

    def _finish_long(self, scanner: JsonScanner) -> None:
        self._long = None
        scanner.end()
        if scanner.complete:
            self._figures.take(scanner.values)
