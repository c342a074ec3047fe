"""The usage that an answer tells, read from the bytes on their way to the client."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from ratelimiter.core.usage import FIGURE_MAX, Usage, usage_of
from ratelimiter.tokens.content_decoder import IDENTITY, ContentDecoder, EncodingError, ExpansionError
from ratelimiter.tokens.event_stream import EventStreamReader
from ratelimiter.tokens.figures import Cause, Figures
from ratelimiter.tokens.json_scanner import JsonScanner
from ratelimiter.tokens.ndjson import NdjsonReader
from ratelimiter.tokens.sse import SseReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.tokens.preset import HeaderSums, Preset

    Header = tuple[bytes, bytes]

_DIGITS = re.compile(rb"[ \t]*([0-9]{1,10})[ \t]*")


class _Reader(Protocol):
    """Reads one framing."""

    def feed(self, data: bytes) -> None:
        """Read on in *data*, of any length."""

    def end(self, *, clean: bool) -> None:
        """End the answer."""


class _JsonReader:
    """A body that is one document, or one array of events."""

    __slots__ = ("_figures", "_scanner")

    def __init__(self, preset: Preset, figures: Figures) -> None:
        self._figures = figures
        self._scanner = JsonScanner(preset.tree, array=preset.array)

    @property
    def complete(self) -> bool:
        """True after the end of the document."""
        return self._scanner.complete

    @property
    def broken(self) -> bool:
        """True if the body is no JSON."""
        return self._scanner.broken

    def feed(self, data: bytes) -> None:
        """Read on in *data*."""
        scanner = self._scanner
        scanner.feed(data)
        if scanner.elements:
            for values in scanner.elements:
                self._figures.take(values)
            scanner.elements.clear()

    def end(self, *, clean: bool) -> None:  # noqa: ARG002  # a body says itself if it is whole
        """End the body."""
        self._scanner.end()
        if self._scanner.complete:
            self._figures.take(self._scanner.values)


_FRAMINGS: dict[bytes, type[SseReader | NdjsonReader | EventStreamReader]] = {
    b"text/event-stream": SseReader,
    b"application/x-ndjson": NdjsonReader,
    b"application/ndjson": NdjsonReader,
    b"application/jsonl": NdjsonReader,
    b"application/x-jsonlines": NdjsonReader,
    b"application/vnd.amazon.eventstream": EventStreamReader,
}


class UsageReader:
    """One answer, from its head to its end. Its methods neither wait nor raise.

    Args:
        preset: says where figures are.
        headers: of the answer; they say how its body is framed and encoded.
    """

    __slots__ = ("_decoder", "_fault", "_figures", "_header_usage", "_reader", "_reading")

    def __init__(self, preset: Preset, headers: Iterable[Header]) -> None:
        fields = {name.lower(): value for name, value in headers}
        kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        encoding = fields.get(b"content-encoding", b"").strip().lower()
        self._figures = Figures(preset)
        framing = _FRAMINGS.get(kind)
        self._reader: _Reader = (framing or _JsonReader)(preset, self._figures)
        self._header_usage = None if preset.headers is None else _usage_of_headers(preset.headers, fields)
        self._fault: Cause | None = None
        self._decoder = None
        if encoding not in IDENTITY:
            try:
                self._decoder = ContentDecoder(encoding)
            except EncodingError:
                self._fault = Cause.ENCODING
        self._reading = self._fault is None

    def feed(self, data: bytes) -> None:
        """Read on in *data*, the next bytes of the body as the client gets them."""
        if not self._reading:
            return
        if self._decoder is None:
            self._reader.feed(data)
        else:
            self._feed_encoded(self._decoder, data)
        if self._figures.ended or self._figures.failed:
            self._reading = False

    def _feed_encoded(self, decoder: ContentDecoder, data: bytes) -> None:
        try:
            for piece in decoder.pieces(data):
                self._reader.feed(piece)
                if self._figures.ended:
                    return
        except EncodingError:
            self._fault, self._reading = Cause.ENCODING, False
        except ExpansionError:
            self._fault, self._reading = Cause.TOO_LARGE, False

    def end(self, *, clean: bool, disconnected: bool = False) -> Usage | Cause:
        """Return what the answer used; else why that is not known.

        Args:
            clean: the answer's framing says that it is whole.
            disconnected: it is not, since the client left.
        """
        figures, reader = self._figures, self._reader
        if self._fault is None and not figures.ended and not figures.failed:
            reader.end(clean=clean)
        usage = self._usage(clean=clean, disconnected=disconnected)
        return usage if self._header_usage is None or isinstance(usage, Usage) else self._header_usage

    def _usage(self, *, clean: bool, disconnected: bool) -> Usage | Cause:
        figures, reader = self._figures, self._reader
        fault = self._fault or (reader.fault if isinstance(reader, EventStreamReader) else None)
        if isinstance(reader, _JsonReader) and fault is None and not figures.ended:
            if reader.broken:
                fault = Cause.NOT_JSON
            elif not reader.complete:
                fault = Cause.DISCONNECTED if disconnected else Cause.CUT
        if fault is not None:
            return fault
        usage = figures.usage()
        if figures.ended or (isinstance(usage, Usage) and isinstance(reader, _JsonReader)):
            return usage
        if figures.failed:
            return Cause.FAILED
        if isinstance(reader, _JsonReader):
            return usage
        if not clean or (figures.end_required and isinstance(usage, Usage)):
            return Cause.DISCONNECTED if disconnected else Cause.CUT
        return usage


def _usage_of_headers(names: HeaderSums, fields: dict[bytes, bytes]) -> Usage | None:
    """Return the usage that header fields tell; None if they do not."""
    input_, output = (_figure(fields.get(name.encode(), b"")) for name in names)
    return None if input_ is None or output is None else usage_of(input_, output)


def _figure(value: bytes) -> int | None:
    found = _DIGITS.fullmatch(value)
    figure = int(found[1]) if found else FIGURE_MAX + 1
    return figure if figure <= FIGURE_MAX else None
