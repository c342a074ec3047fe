"""What every store promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Hit
    from ratelimiter.core.window import Receipt


class Store(Protocol):
    """Keeps tallies and charges hits atomically. `tests/stores/contract.py` is what every implementation passes."""

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* of one request or none; being over a limit is an answer, never an exception.

        Args:
            hits: at least one, no two with the same key.

        Raises:
            StoreError: the store gave no answer. Whether the hits were charged may then be unknown.
        """

    async def close(self) -> None:
        """Let go of connections. A closed store may be used again and opens them anew."""
