"""What every store promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ratelimiter.core.algorithms.sliding_window import STORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.algorithms.sliding_window import Receipt
    from ratelimiter.core.policy import Hit
    from ratelimiter.core.settlement import Settlement


class Store(Protocol):
    """Keeps tallies and charges hits atomically. `tests/stores/contract.py` is what every implementation passes."""

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* of one request or none; being over a limit is an answer, never an exception.

        Args:
            hits: at least one, no two with the same key.

        Raises:
            StoreError: the store gave no answer. Whether the hits were charged may then be unknown.
        """

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Take note of what charged hits turned out to cost, or that they are still open. Sent once, best effort.

        Args:
            settlements: at least one, no two with the same key.
            source: `Decision.source` of the decision that charged the hits: who made it keeps them.

        Raises:
            StoreError: the store gave no answer; whether it took note may be unknown. Leases then lapse by themselves.
        """

    async def close(self) -> None:
        """Let go of connections. A closed store may be used again and opens them anew."""


@runtime_checkable
class StoreObserver(Protocol):
    """Is told how a store fares. Each method must be quick and must not raise."""

    def called(self, requests: int, seconds: float) -> None:
        """A round trip that carried *requests* has ended after *seconds*, with whatever answer."""

    def failed(self, kind: str) -> None:
        """A request got no answer: of a `ratelimiter.errors.Kind`, or by an exception that is a mistake of ours."""

    def degraded(self, *, degraded: bool) -> None:
        """From now on the store is not asked but for probes; or it is again."""


@runtime_checkable
class Forgetful(Protocol):
    """A store that answers some requests from memory."""

    def forget_refusals(self) -> None:
        """Ask the store behind again from the next request on: somebody may have changed what it holds."""
