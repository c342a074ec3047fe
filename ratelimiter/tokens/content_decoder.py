"""Content encodings, decoded aside in bounded pieces: what a client is sent is not touched.

A few bytes can decode to a thousand times as many. So output is taken in pieces, and an answer that expands too much is
given up.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PIECE_BYTES = 65_536  # decoded at once
EXPANSION_MAX = 100  # decoded bytes per encoded byte, beyond the allowance
ALLOWANCE_BYTES = 4 * 1024 * 1024  # that an answer may expand to at any rate


class EncodingError(Exception):
    """The data is not what its content encoding says, or the encoding is not known here."""


class ExpansionError(Exception):
    """The data expands too much."""


class _Inflater(Protocol):
    """Decodes one encoding."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* decodes to, in pieces of at most `PIECE_BYTES`."""


class _Zlib:
    """gzip and deflate.

    Args:
        window_bits: as `zlib.decompressobj` takes them.
    """

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inflater = zlib.decompressobj(window_bits)
        self._start = True

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* decodes to."""
        pending = False  # output, though all input was taken
        while data or pending:
            if self._inflater.eof:
                if self._window_bits != _GZIP or not data:
                    return
                self._inflater = zlib.decompressobj(_GZIP)  # RFC 1952 section 2.2: members follow each other
            try:
                piece = self._inflater.decompress(data, PIECE_BYTES)
            except zlib.error as fault:
                raise EncodingError(str(fault)) from None
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            pending = len(piece) == PIECE_BYTES
            if piece:
                yield piece


class _Deflate(_Zlib):
    """deflate, with the zlib header that RFC 9110 section 8.4.1.2 asks for or, as some send it, without."""

    def __init__(self) -> None:
        super().__init__(zlib.MAX_WBITS)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* decodes to."""
        if self._start and data:
            self._start = False
            # RFC 1950 section 2.2: the low half of the first byte is 8, the method. No raw block begins so: its type
            # would be stored with the reserved bits set as no encoder sets them.
            if data[0] & 0x0F != 8:
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        yield from super().pieces(data)


_GZIP = 16 + zlib.MAX_WBITS


class _Brotli:
    """br, by the package brotli."""

    def __init__(self) -> None:
        try:
            import brotli  # noqa: PLC0415  # of the extra `tokens`
        except ImportError:
            msg = "br: install brotli (the extra tokens)"
            raise EncodingError(msg) from None
        self._error = brotli.error
        self._inflater = brotli.Decompressor()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* decodes to."""
        while True:
            try:
                piece = self._inflater.process(data, output_buffer_limit=PIECE_BYTES)
            except self._error as fault:
                raise EncodingError(str(fault)) from None
            if piece:
                yield piece
            if self._inflater.can_accept_more_data():
                return
            data = b""


_INFLATERS: Mapping[bytes, Callable[[], _Inflater]] = {
    b"gzip": lambda: _Zlib(_GZIP),
    b"x-gzip": lambda: _Zlib(_GZIP),
    b"deflate": _Deflate,
    b"br": _Brotli,
}
IDENTITY = (b"", b"identity")


class ContentDecoder:
    """Decodes one answer.

    Args:
        encoding: the value of its Content-Encoding, in lower case.

    Raises:
        EncodingError: it is not known here.
    """

    __slots__ = ("_allowance", "_inflater")

    def __init__(self, encoding: bytes) -> None:
        if encoding not in _INFLATERS:
            raise EncodingError(encoding.decode("latin-1"))
        self._inflater: _Inflater = _INFLATERS[encoding]()
        self._allowance = ALLOWANCE_BYTES

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* decodes to, piece by piece.

        Raises:
            EncodingError: it cannot be decoded.
            ExpansionError: it expands too much.
        """
        self._allowance += EXPANSION_MAX * len(data)
        for piece in self._inflater.pieces(data):
            self._allowance -= len(piece)
            if self._allowance < 0:
                raise ExpansionError
            yield piece
