"""The reply of a store to one request: its receipt, with a tally for each hit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# What is built per request is a named tuple, which costs a third of a frozen dataclass; and where most requests pass
# it is built by `new`, which costs half of calling its class (tests/benchmarks/decisions.py).
new = tuple.__new__

NEVER = -1  # instead of a wait: the cost exceeds the limit, or a balance does not cover it

# Sources of an answer. A closed set: it becomes a metric label.
STORE = "store"
REMEMBERED = "remembered"  # the store refused these hits a moment ago, and the refusal still holds
LOCAL = "local"  # the store is out: windows of this process
FAIL_OPEN = "fail_open"  # the store is out, and `on_store_error` of the rules is allow
FAIL_CLOSED = "fail_closed"  # the store is out, and `on_store_error` of a rule is deny


class Tally(NamedTuple):
    """The store's count for one hit, after the decision was carried out."""

    used: int  # units that count now, this hit's included if it was charged
    reset_ms: int  # until the oldest counted entry leaves: the next moment `used` falls; 0 when nothing counts
    retry_after_ms: int  # until this hit would fit; 0 when it fits; NEVER when no wait is known to help


class Receipt(NamedTuple):
    """The store's reply to one request."""

    now_ms: int  # the store's clock, Unix time
    admitted: bool  # every enforced hit fitted, and all were charged
    tallies: Sequence[Tally]  # one per hit, in order
    source: str = STORE  # of the answer
