"""The final cost of a charge: known after the decision, and sent to the store that charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.quota import LIMIT_MAX, Balance
from ratelimiter.core.rule import Hit

if TYPE_CHECKING:
    from ratelimiter.core.quota import AnyQuota
    from ratelimiter.core.rule import Rule

RENEW = -1  # instead of what is due: it is not known yet, so the lease is to hold for another `lease_ttl_ms`


class Settlement(NamedTuple):
    """The final cost of one charged hit.

    With less due than was charged, the rest is given back; with more, the rest is charged: to a window or a bucket even
    beyond the limit, which is paid off by waiting, to a period or a balance only what is there, so that it is never
    overspent. A lease ends with its settlement; of slots nothing remains, whatever is due.

    What has gone meanwhile does the strict thing: an entry that has left its window gives nothing back, a reservation
    that has lapsed is charged what is due, as far as that is there. Each settlement is to be sent once, as a second one
    would find its lease gone.
    """

    key: bytes  # of the hit
    quota: AnyQuota  # of the hit
    charged: int  # units that the hit was charged
    due: int  # units that it is to be charged all in all, 0 or more; or RENEW
    rule: Rule  # of the hit
    lease: int  # of the hit; 0 none
    charged_at_ms: int  # `now_ms` of the decision, by the store's clock


def settlement_of(hit: Hit, due: int, charged_at_ms: int) -> Settlement:
    """Return the settlement of *hit*, charged at *charged_at_ms*, at *due* units, or its renewal."""
    return Settlement(hit.key, hit.quota, hit.cost, due, hit.rule, hit.lease, charged_at_ms)


def topup(key: bytes, quota: AnyQuota, units: int, rule: Rule) -> Hit:
    """Return the hit that credits the balance of *key* with *units*: to be charged, alone, like any hit.

    The receipt's `used` is then the limit less what is available, below 0 when more than the limit is. It is refused,
    and nothing happens, if the balance would exceed `BALANCE_MAX`. If a StoreError is
    raised, the units may or may not have been credited: look with a cost of 0 before doing it again.

    Raises:
        ValueError: *quota* is no balance, or *units* are not 1 to 10^9.
    """
    if not isinstance(quota, Balance):
        msg = f"{rule.name} is no balance, so nothing can be topped up; write a rule with a limit of credits"
        raise ValueError(msg)
    if not 1 <= units <= LIMIT_MAX:
        msg = f"a top-up must be of 1 to {LIMIT_MAX} credits, not {units}"
        raise ValueError(msg)
    return Hit(key, quota, -units, rule)
