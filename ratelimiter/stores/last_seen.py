"""The store's last word on each key, so that an outage goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.rule import Hit

KEYS_MAX = 8192  # of one generation; there are two, of about 400 bytes a key


class LastSeen:
    """Units used of each key, as the store last said. Noting costs one assignment to a dictionary per key.

    Bounded by two generations: when the newer one is full, the older one is dropped. So a key is remembered while it is
    among the last *keys_max* keys, and perhaps longer.

    Args:
        keys_max: keys of one generation, at least 1. Checked by `turn` only, which its owner calls now and then.
    """

    __slots__ = ("_keys_max", "_newer", "_older")

    def __init__(self, *, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        # The receipt of a request with one hit; else the receipt and the place of the hit.
        self._newer: dict[bytes, Receipt | tuple[Receipt, int]] = {}
        self._older: dict[bytes, Receipt | tuple[Receipt, int]] = {}

    def __len__(self) -> int:
        """Return the number of remembered keys."""
        return len(self._newer) + len(self._older)

    def note(self, hits: Sequence[Hit], receipt: Receipt) -> None:
        """Remember what the store said of *hits*."""
        newer = self._newer
        if len(hits) == 1:
            newer[hits[0][0]] = receipt
        else:
            for place, hit in enumerate(hits):
                newer[hit[0]] = (receipt, place)

    def turn(self) -> None:
        """Drop the older generation if the newer one is full."""
        if len(self._newer) >= self._keys_max:
            self._older, self._newer = self._newer, {}

    def take(self, key: bytes) -> tuple[int, int]:
        """Return the units used of *key* and when that was so (Unix ms by the store's clock), and forget it.

        0 units if nothing is known.
        """
        seen = self._newer.pop(key, None)
        older = self._older.pop(key, None)
        seen = older if seen is None else seen
        if seen is None:
            return 0, 0
        if isinstance(seen, Receipt):
            return seen.tallies[0].used, seen.now_ms
        receipt, place = seen
        return receipt.tallies[place].used, receipt.now_ms
