"""The promises of every store, and the defaults for those that have less to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ratelimiter.core.receipt import STORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.receipt import Receipt
    from ratelimiter.core.rule import Hit
    from ratelimiter.core.settlement import Settlement
    from ratelimiter.stores.overrides import OverrideStore


class StoreObserver:
    """An observer of a store's health. Methods do nothing here; each must be quick and must not raise."""

    def called(self, requests: int, seconds: float) -> None:
        """Note a round trip that carried *requests* and ended after *seconds*, with any answer."""

    def failed(self, kind: str) -> None:
        """Note a request without an answer: a `ratelimiter.errors.Kind`, or the name of an unexpected exception."""

    def degraded(self, *, degraded: bool) -> None:
        """Note that the circuit breaker opened, so that the store gets probes only; or that it closed again."""

    def leased(self, requests: int) -> None:
        """Note that units for *requests* to come were taken in advance."""

    def returned(self, requests: int) -> None:
        """Note that units for *requests* that did not come were given back."""


# The state of a store, as readiness tells it.
OK = "ok"
DEGRADED = "degraded"  # decisions are made without it
UNKNOWN = "unknown"  # it was not asked yet

SILENT = StoreObserver()  # the observer of a store that was given none


class Store(ABC):
    """Keeps tallies and charges hits atomically. `tests/stores/contract.py` is the test of every implementation.

    A store that stands in front of another one (the fallback, the refusal cache) delegates what it does not do itself.

    Attributes:
        embedded: True if the tallies are in this process, so that no call fails and no other process sees them.
        leases: True if units of windows can be taken in advance and given back.
    """

    embedded: ClassVar[bool] = False
    leases: ClassVar[bool] = False

    @abstractmethod
    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* of one request or none; a request over a limit is an answer, never an exception.

        Args:
            hits: at least one, no two with the same key.

        Raises:
            StoreError: the store gave no answer. The hits may have been charged.
        """

    def spend(self, hits: Sequence[Hit]) -> Receipt | None:  # noqa: ARG002  # for those that have leases
        """Charge *hits* without waiting, from units of this process; return None if `charge` has to ask for them."""
        return None

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:
        """Replace the charge of hits by what they turned out to cost, or renew their leases. Sent once, best effort.

        Args:
            settlements: at least one, no two with the same key.
            source: `Decision.source` of the decision that charged the hits; that source keeps them.

        Raises:
            StoreError: the store gave no answer; the settlements may have been applied. Leases lapse by themselves.
            NotImplementedError: the store settles nothing; its `check` refuses the rules that would need it.
        """
        raise NotImplementedError

    async def close(self) -> None:  # noqa: B027  # a default, as are the next
        """Close all connections. A closed store may be used again and opens them anew."""

    @property
    def state(self) -> str:
        """Return `ok`, `degraded` or `unknown`; always `ok` for a store with no other one behind."""
        return OK

    async def ask(self) -> None:  # noqa: B027
        """Probe the store behind, if there is one and it was never asked. Never raises."""

    def forget_refusals(self) -> None:  # noqa: B027
        """Drop cached refusals, because an operator may have changed the tallies. A store without a cache has none."""

    def override_store(self, name: str) -> OverrideStore | None:  # noqa: ARG002  # for those that have one
        """Return the place of the runtime overrides of policy *name* beside the tallies; None if there is none."""
        return None

    def unwrap(self) -> Store:
        """Return the store that keeps the tallies, behind every store that stands in front of it."""
        return self

    def charge_without_store(self, hits: Sequence[Hit]) -> Receipt | None:  # noqa: ARG002  # for those that can
        """Return the decision of this process alone, for a caller whose deadline is shorter than that of the store.

        None if the store is in this process, or if nothing stands in for it.
        """
        return None

    def observe(self, observer: StoreObserver) -> None:  # noqa: B027
        """Report round trips to *observer*; to be called before the first charge. An embedded store has none."""

    def check(self, policy: Policy) -> None:  # noqa: B027
        """Refuse a policy with a rule that this store cannot keep.

        Raises:
            ConfigError: a rule needs what the store does not have.
        """
