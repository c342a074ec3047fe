"""Bodies as they come over a connection, taken out of their framing; no byte is kept."""

from __future__ import annotations

import re

LINE_MAX = 256  # bytes of a line with a chunk's size: extensions are dropped, so long ones are of no use
TRAILER_MAX = 8192  # bytes of a trailer section

# RFC 9112 sections 7.1 and 7.1.1. Fifteen digits, zeros before them not counted, are more than any counter needs. White
# space may stand around `;` and `=` (BWS), nowhere else.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_SIZE = re.compile(
    rb"(?=[0-9A-Fa-f])0*+([0-9A-Fa-f]{0,15})"
    rb"(?:[ \t]*+;[ \t]*+" + _TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*+"
)
_FIELD = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*+")

BODILESS = frozenset({204, 304})  # RFC 9112 section 6.3, beside every 1xx and every answer to HEAD

_AT_SIZE, _IN_DATA, _AFTER_DATA, _IN_TRAILERS = range(4)


class BodyError(ValueError):
    """A body that is framed in no way that RFC 9112 knows."""


class SizedBody:
    """A body of a number of bytes said before.

    Attributes:
        done: True once all of it has come.
        rest: what came behind its end.
    """

    __slots__ = ("_left", "done", "rest")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the part of *data* that belongs to the body."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data
        self._left = 0
        self.done = True
        if left:
            self.rest = data[left:]
            return data[:left]
        return data

    @property
    def trailers(self) -> list[bytes]:
        """None: there is no room for any."""
        return []


class OpenBody:
    """A body that ends with its connection, so `done` is for the connection to say."""

    __slots__ = ("done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Return all of *data*."""
        return data


class ChunkedBody:
    """A body in chunks (RFC 9112 section 7.1).

    Attributes:
        done: True once its end, the trailer section included, has come.
        rest: what came behind that.
        trailers: the field lines of the trailer section.
    """

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "done", "rest", "trailers")

    def __init__(self) -> None:
        self._state = _AT_SIZE
        self._left = 0  # bytes of the chunk that are still to come
        self._line = b""  # what has come of a line
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""
        self.trailers: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Return the part of *data* that is content, in one piece.

        Raises:
            BodyError: the framing is broken; nothing behind that can be trusted.
        """
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == _IN_DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _AFTER_DATA
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._keep(data[at:])
                break
            line = self._line + data[at : end + 1]
            self._line = b""
            at = end + 1
            self._read_line(line)
        if self.done:
            self.rest = data[at:]
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def _keep(self, part: bytes) -> None:
        self._line += part
        bytes_max = TRAILER_MAX if self._state == _IN_TRAILERS else LINE_MAX
        if len(self._line) > bytes_max or (self._state == _AFTER_DATA and self._line != b"\r"):
            msg = "has a chunk that is too long a line"
            raise BodyError(msg)

    def _read_line(self, line: bytes) -> None:
        """Read one line, which ends in LF and must end in CRLF."""
        if not line.endswith(b"\r\n"):
            msg = "has a chunk whose line does not end in CRLF"
            raise BodyError(msg)
        text = line[:-2]
        if self._state == _AT_SIZE:
            match = _SIZE.fullmatch(text) if len(text) <= LINE_MAX else None
            if match is None:
                msg = "has a chunk whose size is no hexadecimal number"
                raise BodyError(msg)
            self._left = int(match[1] or b"0", 16)
            self._state = _IN_DATA if self._left else _IN_TRAILERS
        elif self._state == _AFTER_DATA:
            if text:
                msg = "has a chunk that is longer than its size"
                raise BodyError(msg)
            self._state = _AT_SIZE
        elif text:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > TRAILER_MAX or not _FIELD.fullmatch(text):
                msg = "has a malformed trailer section"
                raise BodyError(msg)
            self.trailers.append(text)
        else:
            self.done = True


def has_body(method: str, status: int) -> bool:
    """Return True if the final response with *status* to *method* carries a body (RFC 9112 section 6.3)."""
    return method != "HEAD" and status not in BODILESS


def chunk(data: bytes) -> bytes:
    """Return *data*, which is not empty, as a chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def last_chunk(trailers: list[bytes]) -> bytes:
    """Return the end of a chunked body, with the field lines *trailers*."""
    return b"0\r\n%s\r\n" % b"".join([line + b"\r\n" for line in trailers])
