"""Very many overrides of single principals, in little memory: 20 bytes each."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ratelimiter.core.overrides import Override

WIDTH = 16  # bytes of a digest
PARTS = 4096  # of which each is sorted by itself, so that no step takes long


class OverrideTable:
    """A sorted table from digests of principals to overrides. Immutable; found by bisection.

    Args:
        digests: all of them one after the other, ascending.
        places: for each, the place of its override in *overrides*.
        overrides: the distinct ones; their own digests do not count.
    """

    __slots__ = ("_digests", "_places", "overrides")

    def __init__(self, digests: bytes, places: array[int], overrides: Sequence[Override]) -> None:
        self._digests = digests
        self._places = places
        self.overrides = tuple(overrides)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._places)

    def find(self, digest: str) -> list[Override]:
        """Return the overrides for the principal with the hexadecimal *digest*, in the order of the file."""
        wanted, digests = bytes.fromhex(digest), self._digests
        low, high = 0, len(self._places)
        while low < high:
            middle = (low + high) // 2
            if digests[middle * WIDTH : middle * WIDTH + WIDTH] < wanted:
                low = middle + 1
            else:
                high = middle
        found = []
        while low < len(self._places) and digests[low * WIDTH : low * WIDTH + WIDTH] == wanted:
            found.append(self.overrides[self._places[low]])
            low += 1
        return found


class OverrideTableBuilder:
    """Collects the rows of an `OverrideTable`."""

    def __init__(self) -> None:
        # Of each row its digest, its number and its place as one bytes object, which the garbage collector skips.
        self._parts: list[list[bytes]] = [[] for _ in range(PARTS)]
        self._rows = 0

    def add(self, digest: bytes, place: int) -> None:
        """Add one row: a digest, and the place of its override."""
        row = digest + self._rows.to_bytes(4, "big") + place.to_bytes(4, "big")
        self._parts[digest[0] << 4 | digest[1] >> 4].append(row)
        self._rows += 1

    def steps(self, overrides: Sequence[Override]) -> Generator[None, None, OverrideTable]:
        """Build the table; yield after every part, so that the caller can let others go on."""
        digests, places = bytearray(), array("I")
        for number, part in enumerate(self._parts):
            part.sort()
            digests += b"".join([row[:WIDTH] for row in part])
            places.extend([int.from_bytes(row[-4:], "big") for row in part])
            self._parts[number] = []
            yield
        return OverrideTable(bytes(digests), places, overrides)
