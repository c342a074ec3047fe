"""AWS event streams (application/vnd.amazon.eventstream), read for the events that have figures.

A frame is: total length, length of the headers, CRC-32 of these 8 bytes; headers; payload; CRC-32 of all before it. A
header is: length of its name, name, type, value. The checksums of all frames are verified: after a wrong one nothing of
the stream is to be believed, as the lengths may be wrong, too.
"""

from __future__ import annotations

import binascii
import json
import struct
from typing import TYPE_CHECKING
from zlib import crc32

from ratelimiter.tokens.figures import Cause

if TYPE_CHECKING:
    from ratelimiter.tokens.figures import Figures
    from ratelimiter.tokens.preset import Preset

PAYLOAD_BYTES_MAX = 1_200_000  # a payload part has at most 1,000,000 bytes, by the service's model
HEADERS_BYTES_MAX = 131_072  # by the format's specification
FRAME_BYTES_MAX = 24 * 1024 * 1024  # by the format's specification
_PRELUDE = struct.Struct(">III")
_LENGTH = struct.Struct(">H")
_CRC_BYTES = 4
_STRING = 7  # the type of a header's value that matters to us
# Bytes of the values of the other types; two more have a length of their own (6 bytes, 7 text).
_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class EventStreamReader:
    """The frames of one stream.

    Args:
        preset: says which events have figures.
        figures: takes them in.

    Attributes:
        fault: why reading stopped, if it did.
    """

    __slots__ = ("_figures", "_frame", "_preset", "_size", "fault")

    def __init__(self, preset: Preset, figures: Figures) -> None:
        self._preset = preset
        self._figures = figures
        self._frame = bytearray()
        self._size = 0  # of the frame, once it is known
        self.fault: Cause | None = None

    def feed(self, data: bytes) -> None:
        """Read on in *data*, of any length."""
        frame, position = self._frame, 0
        while position < len(data) and self.fault is None and not self._figures.ended:
            wanted = (self._size or _PRELUDE.size) - len(frame)
            frame += data[position : position + wanted]
            position += wanted
            if len(frame) < (self._size or _PRELUDE.size):
                return
            if self._size:
                self._read(bytes(frame))
                frame.clear()
                self._size = 0
            else:
                self._begin()

    def end(self, *, clean: bool) -> None:
        """End the stream: a cut frame says nothing."""

    def _begin(self) -> None:
        size, headers, crc = _PRELUDE.unpack(self._frame)
        sound = crc == crc32(self._frame[:8]) and headers <= HEADERS_BYTES_MAX and size <= FRAME_BYTES_MAX
        if not sound or size < _PRELUDE.size + headers + _CRC_BYTES:
            self.fault = Cause.DAMAGED
        elif size - headers > PAYLOAD_BYTES_MAX:
            self.fault = Cause.TOO_LARGE
        else:
            self._size = size

    def _read(self, frame: bytes) -> None:
        _, headers_size, _ = _PRELUDE.unpack_from(frame)
        if crc32(memoryview(frame)[:-_CRC_BYTES]) != int.from_bytes(frame[-_CRC_BYTES:], "big"):
            self.fault = Cause.DAMAGED
            return
        payload_at = _PRELUDE.size + headers_size
        headers = _headers(frame[_PRELUDE.size : payload_at])
        if headers is None:
            self.fault = Cause.DAMAGED
        elif headers.get(b":message-type", b"event") != b"event":  # exception or error
            self._figures.failed = True
        else:
            event = headers.get(b":event-type", b"").decode("utf-8", "replace")
            self._event(frame[payload_at:-_CRC_BYTES], event)

    def _event(self, payload: bytes, event: str) -> None:
        inner = _decoded(payload, self._preset.base64) if self._preset.base64 else None
        self._figures.document(payload if inner is None else inner, event)


def _headers(data: bytes) -> dict[bytes, bytes] | None:
    """Return the text headers of a frame; None if they are none."""
    found: dict[bytes, bytes] = {}
    position = 0
    try:
        while position < len(data):
            size = data[position]
            name = data[position + 1 : position + 1 + size]
            position += 1 + size
            kind = data[position]
            position += 1
            if kind in _VALUE_BYTES:
                position += _VALUE_BYTES[kind]
                continue
            (size,) = _LENGTH.unpack_from(data, position)
            position += _LENGTH.size
            if kind == _STRING:
                found[name] = data[position : position + size]
            position += size
    except (IndexError, struct.error):
        return None
    return found if position == len(data) else None


def _decoded(payload: bytes, member: str) -> bytes | None:
    """Return the event that *payload* has in base64 as *member*; None if it has none."""
    if b'"%s"' % member.encode() not in payload:
        return None
    try:
        value = json.loads(payload)
        text = value.get(member) if isinstance(value, dict) else None
        return binascii.a2b_base64(text, strict_mode=True) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
