"""A fuzzer's bytes as a message in pieces: the first two say where it is cut."""

from __future__ import annotations

EVERYWHERE = 0xFF


def pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """The message, and the pieces that it comes in: one, two, three, or as many as it has bytes."""
    cuts, message = data[:2], data[2:]
    if not message:
        return b"", []
    if cuts[0] == EVERYWHERE:
        return message, [message[at : at + 1] for at in range(len(message))]
    first, second = cuts[0], cuts[0] + cuts[1]
    return message, [piece for piece in (message[:first], message[first:second], message[second:]) if piece]


def seeds(messages: list[bytes]) -> list[bytes]:
    """Each of *messages* in one piece, and cut."""
    return [cuts + message for message in messages for cuts in (b"\x00\x00", b"\x11\x23", b"\xff\x00")]
