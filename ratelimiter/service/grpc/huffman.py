"""The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B), read a byte at a time."""

from __future__ import annotations

from typing import NamedTuple

# Bits of the code of each symbol, 0 to 255 and the end of string. The code is canonical: symbols of equal length are
# numbered in order, so the lengths are the whole table.
LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505"
    "050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605"
    "06050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817"
    "1717171516171617171816151416161717151716161815161717151516151716171714161616171616171a1a141316171619"
    "1a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c"
    "1b1b1b1b1b1a1e"
)
END_OF_STRING = 256
PADDING_BITS_MAX = 7  # section 5.2: more than that is an error


class HuffmanError(ValueError):
    """A string that is not of the code: the end of string within it, or padding that is not its beginning."""


class _Step(NamedTuple):
    """The effect of one byte, read in one state."""

    state: int
    read: bytes  # symbols that ended within the byte


def _codes() -> list[tuple[int, int]]:
    """Return code and length of each symbol."""
    codes = [(0, 0)] * len(LENGTHS)
    code = length = 0
    for symbol in sorted(range(len(LENGTHS)), key=lambda symbol: (LENGTHS[symbol], symbol)):
        code <<= LENGTHS[symbol] - length
        length = LENGTHS[symbol]
        codes[symbol] = code, length
        code += 1
    return codes


def _tree(codes: list[tuple[int, int]]) -> tuple[list[list[int]], frozenset[int]]:
    """Return the code as a tree, and the states in which a string may end.

    A state is the index of a node. Its two entries are the next state for a 0 and for a 1; of a leaf they are the
    complement of the symbol, so below zero.
    """
    tree = [[0, 0]]
    for symbol, (code, length) in enumerate(codes):
        state = 0
        for place in range(length - 1, 0, -1):
            bit = code >> place & 1
            if not tree[state][bit]:
                tree.append([0, 0])
                tree[state][bit] = len(tree) - 1
            state = tree[state][bit]
        tree[state][code & 1] = ~symbol
    ends, state = [0], 0
    for _ in range(PADDING_BITS_MAX):  # the end of string is all ones
        state = tree[state][1]
        ends.append(state)
    return tree, frozenset(ends)


CODES = _codes()
_TREE, _ENDS = _tree(CODES)
# By state and byte, made when first needed: all would take a tenth of a second at start, and most are never met.
_steps: dict[int, _Step] = {}


def decode(data: bytes) -> bytes:
    """Return the string that *data* encodes.

    Raises:
        HuffmanError: *data* encodes none.
    """
    state, read, steps = 0, [], _steps
    for byte in data:
        step = steps.get(state << 8 | byte)
        if step is None:
            step = steps[state << 8 | byte] = _step(state, byte)
        state, symbols = step
        if symbols:
            read.append(symbols)
    if state not in _ENDS:
        msg = "padding is not the beginning of the end of string"
        raise HuffmanError(msg)
    return b"".join(read)


def _step(state: int, byte: int) -> _Step:
    read = bytearray()
    for place in range(7, -1, -1):
        state = _TREE[state][byte >> place & 1]
        if state < 0:
            if ~state == END_OF_STRING:
                msg = "the end of string is within the string"
                raise HuffmanError(msg)
            read.append(~state)
            state = 0
    return _Step(state, bytes(read))


def encode(data: bytes) -> bytes:
    """Return *data* in the code."""
    bits = length = 0
    for symbol in data:
        code, size = CODES[symbol]
        bits = bits << size | code
        length += size
    padding = -length % 8
    return (bits << padding | (1 << padding) - 1).to_bytes((length + padding) // 8, "big")
