"""What a store would be if memory were free, and the hits and histories that stores are asked about."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from ratelimiter.core.policy import Hit, Mode, Rule
from ratelimiter.core.quota import PRECISION, Quota
from ratelimiter.core.window import Receipt, Window, charge

if TYPE_CHECKING:
    from collections.abc import Sequence

START_MS = 1_800_000_000_000

# Windows and limits on both sides of what the resolution depends on.
WINDOWS_MS = (1, 2, 5, 6, 127, 128, 129, 130, 1000, 60_000)
LIMITS = (1, 2, 3, 10, PRECISION - 1, PRECISION, PRECISION + 1, PRECISION + 2, 1000, 10**9)


class ReferenceStore:
    """A window for every key, for ever, under the arithmetic of the core."""

    def __init__(self) -> None:
        self.windows: defaultdict[bytes, Window] = defaultdict(Window)

    def charge_at(self, hits: Sequence[Hit], now_ms: int) -> Receipt:
        return charge(hits, [self.windows[hit.key] for hit in hits], now_ms)

    def copy(self) -> ReferenceStore:
        """The same tallies, to try something out on."""
        twin = ReferenceStore()
        twin.windows.update((key, copied(window)) for key, window in self.windows.items())
        return twin

    def state(self) -> dict[bytes, tuple[list[int], list[int], int]]:
        return {key: (list(w.instants), list(w.counts), w.used) for key, w in self.windows.items()}


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


def quotas(limits: Sequence[int] = LIMITS) -> st.SearchStrategy[Quota]:
    return st.builds(Quota, st.sampled_from(limits), st.sampled_from(WINDOWS_MS))


def gaps_ms(quota: Quota) -> st.SearchStrategy[int]:
    """Pauses between requests that aim at the edges of the window and of a cell."""
    window_ms, resolution_ms = quota.window_ms, quota.resolution_ms
    edges = {0, 1, resolution_ms - 1, resolution_ms, resolution_ms + 1}
    edges |= {window_ms - resolution_ms, window_ms - 1, window_ms, window_ms + 1, window_ms + resolution_ms - 1}
    edges |= {window_ms + resolution_ms, 2 * window_ms}
    return st.sampled_from(sorted(gap for gap in edges if gap >= 0)) | st.integers(0, 2 * window_ms)


def costs(quota: Quota) -> st.SearchStrategy[int]:
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
