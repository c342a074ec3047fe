"""The class of state for each kind of quota, and the settlement of a charge in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.algorithms.account import Account
from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.algorithms.token_bucket import BucketState
from ratelimiter.core.quota import Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import Tally

if TYPE_CHECKING:
    from ratelimiter.core.charge import KeyState
    from ratelimiter.core.settlement import Settlement

STATES: dict[str, type[Window | BucketState | Account]] = {
    Quota.kind: Window,
    Bucket.kind: BucketState,
    Period.kind: Account,
    Slots.kind: Account,
    Balance.kind: Account,
}


def settle(settlement: Settlement, state: KeyState, now_ms: int) -> Tally:
    """Have *state*, that of the settlement's key, take note of what a charge came to; what it says after that."""
    quota = settlement.quota
    state.forget(quota, now_ms)
    state.settle(settlement, now_ms)
    return Tally(state.used, state.reset_ms(quota, now_ms), 0)
