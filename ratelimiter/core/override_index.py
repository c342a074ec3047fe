"""Overrides, found by principal: exact ones by digest, networks by prefix, patterns one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.prefix_table import PrefixTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.core.overrides import Block, Override

FOR_EVER = 0  # as in `ratelimiter.core.overrides`, which knows this module for its types
CLIENT = "client"  # the source whose values networks hold


class OverrideIndex:
    """Overrides of one origin, found in time that does not grow with their number, patterns excepted.

    Args:
        overrides: in any order.
        blocks: of the same origin.

    Attributes:
        blocks: their index.
    """

    __slots__ = ("_exact", "_networks", "_patterns", "blocks")

    def __init__(self, overrides: Iterable[Override] = (), blocks: Iterable[Block] = ()) -> None:
        self.blocks = BlockIndex(blocks)
        self._exact: dict[str, list[Override]] = {}
        self._networks: PrefixTable[Override] = PrefixTable()
        self._patterns: list[Override] = []
        for override in overrides:
            self.add(override)

    def add(self, override: Override) -> None:
        """Add one override."""
        if override.network is not None:
            self._networks.add(override.network, override)
        elif override.pattern is not None:
            self._patterns.append(override)
        else:
            for digest in override.digests:
                self._exact.setdefault(digest, []).append(override)

    def find(self, digest: str, source: str, value: bytes) -> list[Override]:
        """Return the overrides for one principal, in no particular order.

        Args:
            digest: of the principal.
            source: of its value.
            value: of the principal; of a client what `client_id` made of its address.
        """
        found = list(self._exact.get(digest, ()))
        if self._networks and source == CLIENT and value:
            found += self._networks.find(value.decode())
        for override in self._patterns:
            pattern = override.pattern
            if pattern is not None and override.source in ("", source) and pattern.fits(value):
                found.append(override)
        return found


class BlockIndex:
    """Blocks, found by principal.

    Args:
        blocks: in any order.
    """

    __slots__ = ("_exact", "_networks")

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self._exact: dict[str, int] = {}
        self._networks: PrefixTable[int] = PrefixTable()
        for block in blocks:
            self.add(block)

    def add(self, block: Block) -> None:
        """Add one block."""
        if block.network is None:
            self._exact[block.digest] = block.until_ms
        else:
            self._networks.add(block.network, block.until_ms)

    def __bool__(self) -> bool:
        """Return True if there is a block."""
        return bool(self._exact or self._networks)

    def until_ms(self, digest: str, source: str, value: bytes, now_ms: int) -> int | None:
        """Return when the block of a principal ends, `FOR_EVER` included; None if it is not blocked at *now_ms*."""
        found = [] if digest not in self._exact else [self._exact[digest]]
        if self._networks and source == CLIENT and value:
            found += self._networks.find(value.decode())
        return next((until_ms for until_ms in found if until_ms == FOR_EVER or now_ms < until_ms), None)
