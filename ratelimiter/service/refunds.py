"""Charges of descriptors that callers may give back, remembered by the process that made them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from ratelimiter.core.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.core.rule import Hit

CHARGES_MAX = 65_536  # remembered charges, about 300 bytes each; the oldest go first


class Refunds:
    """The latest charges of each key, so that they can be taken from where they were put: a window is never given back
    what it was not charged, so that nothing leaves it early (invariant 2).
    """

    def __init__(self, charges_max: int = CHARGES_MAX) -> None:
        self._charges_max = charges_max
        self._charges: OrderedDict[bytes, list[tuple[Hit, int]]] = OrderedDict()
        self._count = 0
        self.unknown = 0  # units that were to be given back and are no charge of this process

    def note(self, hits: Iterable[Hit], now_ms: int) -> None:
        """Remember that *hits* were charged at *now_ms*."""
        for hit in hits:
            match = hit.rule.descriptors
            if match is None or not match.refunds or hit.cost <= 0:
                continue
            self._charges.setdefault(hit.key, []).append((hit, now_ms))
            self._charges.move_to_end(hit.key)
            self._count += 1
            while self._count > self._charges_max:
                self._count -= len(self._charges.popitem(last=False)[1])

    def take(self, key: bytes, units: int) -> list[Settlement]:
        """Return the settlements that give back *units* of *key*, the latest charges first, and as far as they go."""
        charges = self._charges.get(key, [])
        settlements = []
        while units > 0 and charges:
            hit, charged_at_ms = charges.pop()
            back = min(units, hit.cost)
            units -= back
            due = hit.cost - back
            settlements.append(Settlement(key, hit.quota, hit.cost, due, hit.rule, hit.lease, charged_at_ms))
            if due:
                charges.append((hit._replace(cost=due), charged_at_ms))
            else:
                self._count -= 1
        if key in self._charges and not charges:
            del self._charges[key]
        self.unknown += units
        return settlements
