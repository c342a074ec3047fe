"""The charge of one request as arithmetic: look at every hit, then charge all of them or none (1, 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import NEVER, STORE, Receipt, Tally, new

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.algorithms.sliding_window import Window
    from ratelimiter.core.rule import Hit


class KeyState(Protocol):
    """The state that a store keeps of one key: a class for each kind of quota, each method as `Window` has it."""

    def forget(self, quota: Any, now_ms: int) -> None:
        """Drop what no longer counts."""

    def wait_ms(self, quota: Any, cost: int, now_ms: int, lease: int = 0) -> int:
        """Return the wait until *cost* more units fit; 0 when they do, NEVER when no wait is known to help."""

    def add(self, quota: Any, cost: int, now_ms: int, lease: int = 0) -> None:
        """Charge *cost* units now; where there are leases as the one named *lease*, unless that is 0."""

    def recall(self, quota: Any, used: int, at_ms: int, now_ms: int) -> None:
        """Count at least *used* units, as they were counted elsewhere at *at_ms*."""

    def settle(self, settlement: Any, now_ms: int) -> None:
        """Replace a charge by its final cost."""

    def reset_ms(self, quota: Any, now_ms: int) -> int:
        """Return the time until less counts; 0 when nothing does."""

    def ttl_ms(self, quota: Any, now_ms: int) -> int:
        """Return the time until nothing of this counts any more (6)."""

    @property
    def used(self) -> int:
        """Units that count."""


def charge(hits: Sequence[Hit], states: Sequence[KeyState], now_ms: int) -> Receipt:
    """Look at every hit, then charge all of them or none (1, 3).

    A rule in shadow never refuses the request. It is charged if the request is admitted and all its own hits fit, so
    its numbers are those of its enforcing twin.

    Args:
        hits: the charges of one request; no two share a key.
        states: what is kept of each hit's key, in the same order; changed in place.
        now_ms: the store's clock, Unix time.
    """
    if len(hits) == 1 and hits[0].quota.kind == Quota.kind:
        return charge_one(hits[0], cast("Window", states[0]), now_ms)
    admitted = True
    waits: list[int] = []
    withheld: set[str] = set()  # shadow rules that would have refused
    for hit, state in zip(hits, states, strict=True):
        state.forget(hit.quota, now_ms)
        wait_ms = state.wait_ms(hit.quota, hit.cost, now_ms, hit.lease)
        waits.append(wait_ms)
        if wait_ms:
            if hit.rule.shadow:
                withheld.add(hit.rule.name)
            else:
                admitted = False
    tallies: list[Tally] = []
    for hit, state, wait_ms in zip(hits, states, waits, strict=True):
        if admitted and hit.cost and hit.rule.name not in withheld:
            state.add(hit.quota, hit.cost, now_ms, hit.lease)
        tallies.append(Tally(state.used, state.reset_ms(hit.quota, now_ms), wait_ms))
    return Receipt(now_ms, admitted, tallies)


def charge_one(hit: Hit, window: Window, now_ms: int) -> Receipt:
    """Do what `charge` does, for a request of one hit on a window, at a third of the cost
    (tests/benchmarks/decisions.py).

    Most requests are that. The steps of `Window` are written out, as four calls would cost as much as their work.
    """
    quota: Any  # a Quota
    _, quota, cost, rule, _ = hit
    limit, window_ms, resolution_ms = quota.limit, quota.window_ms, quota.resolution_ms
    instants = window.instants
    if instants and (instants[0] <= now_ms - window_ms or instants[-1] >= now_ms + resolution_ms):
        window.forget(quota, now_ms)
    used = window.used + cost
    if used <= limit or not cost:
        if cost:
            instant = now_ms if resolution_ms == 1 else now_ms - now_ms % resolution_ms + resolution_ms - 1
            if instants and instants[-1] >= instant:
                window.counts[-1] += cost
            else:
                instants.append(instant)
                window.counts.append(cost)
            window.used = used
        reset_ms = instants[0] + window_ms - now_ms if instants else 0
        return new(Receipt, (now_ms, True, (new(Tally, (used, reset_ms, 0)),), STORE))
    reset_ms = instants[0] + window_ms - now_ms if instants else 0
    if cost > limit:
        wait_ms = NEVER
    elif used - limit <= window.counts[0]:
        wait_ms = reset_ms
    else:
        wait_ms = window.wait_ms(quota, cost, now_ms)
    return new(Receipt, (now_ms, rule.shadow, (new(Tally, (window.used, reset_ms, wait_ms)),), STORE))
