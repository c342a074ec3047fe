"""Protocol Buffers on the wire, as far as our messages need them: read by hand, as each is read in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
VARINT_BYTES_MAX = 10
_SIZES = {FIXED64: 8, FIXED32: 4}


class ProtobufError(ValueError):
    """Bytes that are no message, or none of this type."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of *message*, in order: an int of a varint, bytes of all others.

    Raises:
        ProtobufError: the message is not well formed.
    """
    at, end = 0, len(message)
    while at < end:
        key = message[at]
        at += 1
        if key >= 0x80:
            key, at = _varint(message, at - 1)
        kind = key & 7
        if kind == BYTES:
            if at < end and (length := message[at]) < 0x80:
                at += 1
            else:
                length, at = _varint(message, at)
            stop = at + length
            if stop > end:
                msg = "a field is longer than its message"
                raise ProtobufError(msg)
            yield key >> 3, message[at:stop]
            at = stop
        elif kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind in _SIZES:
            stop = at + _SIZES[kind]
            if stop > end:
                msg = "a field is longer than its message"
                raise ProtobufError(msg)
            yield key >> 3, message[at:stop]
            at = stop
        else:
            msg = f"a field has the wire type {kind}, which no message of ours has"
            raise ProtobufError(msg)
        if not key >> 3:
            msg = "a field has the number 0"
            raise ProtobufError(msg)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(VARINT_BYTES_MAX):
        if at >= len(message):
            msg = "a number is longer than its message"
            raise ProtobufError(msg)
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    msg = "a number is longer than 10 bytes"
    raise ProtobufError(msg)


def text(value: int | bytes) -> str:
    """Return a field that is a string.

    Raises:
        ProtobufError: it is none.
    """
    if not isinstance(value, bytes):
        msg = "a number stands where a string does"
        raise ProtobufError(msg)
    try:
        return value.decode()
    except UnicodeDecodeError:
        msg = "a string is not UTF-8"
        raise ProtobufError(msg) from None


def embedded(value: int | bytes) -> bytes:
    """Return a field that is a message, or bytes.

    Raises:
        ProtobufError: it is none.
    """
    if not isinstance(value, bytes):
        msg = "a number stands where a message does"
        raise ProtobufError(msg)
    return value


def number(value: int | bytes) -> int:
    """Return a field that is a whole number.

    Raises:
        ProtobufError: it is none.
    """
    if not isinstance(value, int):
        msg = "a message stands where a number does"
        raise ProtobufError(msg)
    return value


def varint(value: int) -> bytes:
    """Return *value*, not below zero, as a varint."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:  # lengths and figures, mostly
        return bytes((0x80 | value & 0x7F, value >> 7))
    out = bytearray()
    while value >= 0x80:
        out.append(0x80 | value & 0x7F)
        value >>= 7
    out.append(value)
    return bytes(out)


def whole(field: int, value: int) -> bytes:
    """Return a field that is a whole number; nothing if it is 0, as that is what a missing one means."""
    return bytes((field << 3,)) + varint(value) if value else b""


def delimited(field: int, value: bytes) -> bytes:
    """Return a field that is bytes, a string or a message, also if it is empty."""
    return bytes((field << 3 | BYTES,)) + varint(len(value)) + value
