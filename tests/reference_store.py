"""What a store would be if memory were free, and the hits and histories that stores are asked about."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from ratelimiter.core.algorithms import STATES, settle
from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.algorithms.token_bucket import BucketState
from ratelimiter.core.charge import charge
from ratelimiter.core.quota import (
    PERIOD_UNITS,
    PRECISION,
    AnyQuota,
    Balance,
    Bucket,
    Period,
    Quota,
    Slots,
)
from ratelimiter.core.rule import Hit, Mode, OnStoreError, Rule
from ratelimiter.core.settlement import RENEW, Settlement, settlement_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.receipt import Receipt, Tally

START_MS = 1_800_000_000_000

# Windows and limits on both sides of what the resolution depends on.
WINDOWS_MS = (1, 2, 5, 6, 127, 128, 129, 130, 1000, 60_000)
LIMITS = (1, 2, 3, 10, PRECISION - 1, PRECISION, PRECISION + 1, PRECISION + 2, 1000, 10**9)


class ReferenceStore:
    """A state for every key, for ever, under the arithmetic of the core."""

    def __init__(self) -> None:
        self.states: dict[bytes, Any] = {}

    def charge_at(self, hits: Sequence[Hit], now_ms: int) -> Receipt:
        return charge(hits, [self.state_of(hit) for hit in hits], now_ms)

    def settle_at(self, settlements: Sequence[Settlement], now_ms: int) -> list[Tally]:
        return [settle(settlement, self.state_of(settlement), now_ms) for settlement in settlements]

    def state_of(self, hit: Hit | Settlement) -> Any:
        if hit.key not in self.states:
            self.states[hit.key] = STATES[hit.quota.kind]()
        return self.states[hit.key]

    def copy(self) -> ReferenceStore:
        """The same tallies, to try something out on."""
        twin = ReferenceStore()
        twin.states.update((key, deepcopy(state)) for key, state in self.states.items())
        return twin

    def state(self) -> dict[bytes, Any]:
        return {key: facts(state) for key, state in self.states.items()}


def facts(state: Any) -> tuple[Any, ...]:
    """What of a state of any kind is kept: of two that are equal no one can tell which is which."""
    if isinstance(state, Window):
        return list(state.instants), list(state.counts), state.used
    if isinstance(state, BucketState):
        return state.debt, state.since_ms, state.weight
    return state.spent, state.start_ms, list(state.leases)


def copied(window: Window) -> Window:
    """A window with the same entries, to try something out on."""
    twin = Window()
    twin.instants, twin.counts, twin.used = window.instants[:], window.counts[:], window.used
    return twin


def rule_of(
    limit: int,
    window_ms: int,
    *,
    name: str = "rule",
    burst: int = 0,
    cost: int = 1,
    shadow: bool = False,
    quiet: bool = False,
) -> Rule:
    mode = Mode.SHADOW if shadow else Mode.ENFORCE
    return Rule(name=name, quota=Quota(limit, window_ms), burst=burst, cost=cost, mode=mode, quiet=quiet)


def hits_of(*rules: Rule, cost: int | None = None, principal: str = "p") -> list[Hit]:
    """What a request of *principal* would be charged; *cost* in place of the rules' own."""
    return [
        Hit(f"{principal}:{rule.name}:{index}".encode(), quota, rule.cost if cost is None else cost, rule)
        for rule in rules
        for index, quota in enumerate(rule.quotas)
    ]


def window_of(limited: Rule | Hit) -> Quota:
    """The quota of a rule or a hit of which the test knows that it is a window."""
    assert isinstance(limited.quota, Quota)
    return limited.quota


def quotas(limits: Sequence[int] = LIMITS) -> st.SearchStrategy[Quota]:
    return st.builds(Quota, st.sampled_from(limits), st.sampled_from(WINDOWS_MS))


def gaps_ms(quota: Quota) -> st.SearchStrategy[int]:
    """Pauses between requests that aim at the edges of the window and of a cell."""
    window_ms, resolution_ms = quota.window_ms, quota.resolution_ms
    edges = {0, 1, resolution_ms - 1, resolution_ms, resolution_ms + 1}
    edges |= {window_ms - resolution_ms, window_ms - 1, window_ms, window_ms + 1, window_ms + resolution_ms - 1}
    edges |= {window_ms + resolution_ms, 2 * window_ms}
    return st.sampled_from(sorted(gap for gap in edges if gap >= 0)) | st.integers(0, 2 * window_ms)


def costs(quota: AnyQuota) -> st.SearchStrategy[int]:
    """Costs that aim at the edges of the limit; most of them fit."""
    limit = quota.limit
    return st.sampled_from(sorted({0, 1, 2, limit // 2, limit // 2 + 1, limit - 1, limit, limit + 1})) | st.just(1)


def starts_ms(quota: Quota) -> st.SearchStrategy[int]:
    """A first moment, anywhere within a cell."""
    return st.integers(0, quota.resolution_ms - 1).map(lambda offset: START_MS + offset)


@st.composite
def histories(draw: st.DrawFn, quota: Quota, *, steps_max: int = 25) -> list[tuple[int, int]]:
    """Requests to one key as (now_ms, cost), in order."""
    now_ms = draw(starts_ms(quota))
    history = []
    for gap_ms, cost in draw(st.lists(st.tuples(gaps_ms(quota), costs(quota)), min_size=1, max_size=steps_max)):
        now_ms += gap_ms
        history.append((now_ms, cost))
    return history


# --- all kinds

ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")


def kinds(
    window_ms: Sequence[int] = (7, 1000, 60_000), lease_ttl_ms: Sequence[int] = (1000, 30_000)
) -> st.SearchStrategy[AnyQuota]:
    """Quotas of every kind, small enough that their limits are met."""
    limits, ttls, lengths = st.sampled_from([1, 2, 3, 10]), st.sampled_from(lease_ttl_ms), st.sampled_from(window_ms)
    return st.one_of(
        st.builds(Quota, st.sampled_from([1, 2, 3, 1000]), lengths),
        st.builds(Bucket, limits, st.sampled_from([1, 3, 7]), lengths),
        st.builds(Period, limits, st.sampled_from(PERIOD_UNITS), st.sampled_from(ZONES), st.booleans(), ttls),
        st.builds(Slots, limits, ttls),
        st.builds(Balance, limits, ttls),
    )


def rule_with(quota: AnyQuota, name: str = "rule", *, shadow: bool = False, **others: Any) -> Rule:
    """A rule with a quota of any kind that is judged by the store or not at all."""
    mode = Mode.SHADOW if shadow else Mode.ENFORCE
    return Rule(name=name, quota=quota, mode=mode, on_store_error=OnStoreError.DENY, **others)


def leased(quota: AnyQuota, lease: int) -> int:
    """*lease* if a quota knows of leases, else 0."""
    return lease if quota.lease_ttl_ms else 0


@st.composite
def mixed_requests(draw: st.DrawFn, rules: Sequence[Rule], lease: int) -> list[Hit]:
    """What a request that meets some of *rules* is charged."""
    chosen = draw(st.lists(st.sampled_from(rules), min_size=1, max_size=4, unique_by=lambda rule: rule.name))
    return [
        Hit(
            f"{{p}}:{rule.name}:{quota.kind}{index}".encode(),
            quota,
            draw(costs(quota)),
            rule,
            leased(quota, lease) if draw(st.booleans()) or quota.kind == Slots.kind else 0,
        )
        for rule in chosen
        for index, quota in enumerate(rule.quotas)
    ]


def mixed_gaps_ms(quota: AnyQuota) -> st.SearchStrategy[int]:
    """Pauses that aim at the edges of whatever *quota* counts by, steps back among them."""
    lengths = {0, 1, quota.window_ms, quota.lease_ttl_ms, quota.lease_ttl_ms // 2, 3_600_000, 86_400_000}
    if isinstance(quota, Bucket):
        lengths |= {quota.window_ms // quota.refill, -(-quota.weight // quota.drain)}
    edges = sorted({length + delta for length in lengths for delta in (-1, 0, 1)})
    return st.sampled_from(edges) | st.sampled_from(edges).map(lambda gap_ms: -gap_ms) | st.integers(0, 5)


def settlements(hits: Sequence[Hit], charged_at_ms: int) -> st.SearchStrategy[list[Settlement]]:
    """What charged hits may come to."""

    def of(hit: Hit) -> st.SearchStrategy[Settlement]:
        dues = {0, 1, hit.cost - 1, hit.cost, hit.cost + 1, hit.cost + 3, RENEW}
        due = st.sampled_from(sorted(due for due in dues if due >= RENEW))
        return due.map(lambda units: settlement_of(hit, units, charged_at_ms))

    return st.tuples(*[of(hit) for hit in hits]).map(list)
