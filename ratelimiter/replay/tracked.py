"""One key of one rule during a replay: its state, and the numbers that the answer is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms import STATES
from ratelimiter.core.quota import Quota
from ratelimiter.replay.peak import KnownPeak, SlotsPeak, StatePeak, WindowPeak, exact, peak_of

if TYPE_CHECKING:
    from ratelimiter.core.quota import AnyQuota

    Peak = WindowPeak | StatePeak | SlotsPeak | KnownPeak


class Tracked:
    """One caller under one quota of one rule.

    As long as every request is charged, the state itself tells the peak (`clean_tells`); `peak` is needed from the
    first refusal on, and for states that do not remember exactly or are settled later.
    """

    __slots__ = (
        "bounds",
        "clean_tells",
        "compared",
        "longest_ms",
        "most",
        "name",
        "need",
        "peak",
        "quota",
        "refused",
        "refused_since_ms",
        "requests",
        "state",
        "variants",
    )

    def __init__(self, quota: AnyQuota, *, settles: bool = False) -> None:
        self.quota = quota
        self.clean_tells = isinstance(quota, Quota) and quota.resolution_ms == 1 and not settles
        self.state: Any = STATES[quota.kind]()
        self.requests = 0
        self.refused = 0
        self.most = 0  # the most that counted at once
        self.need = 0  # the same without a limit, as far as `peak` does not know it
        self.peak: Peak | None = None if self.clean_tells else peak_of(quota)
        self.refused_since_ms = 0  # 0: the last request was not refused
        self.longest_ms = 0
        self.name: str | None = None
        self.variants: list[Any] = []  # states under other window lengths
        self.bounds: list[int] | None = None  # refused under these
        self.compared: list[Any] | None = None  # states of other algorithms

    @property
    def needed(self) -> int:
        """The smallest limit under which no request of this caller would have been refused."""
        found = max(self.need, self.most if self.peak is None else self.peak.most)
        return max(1, found)

    def settle_down(self) -> None:
        """Keep the numbers and let go of the states, to be sent to another process."""
        self.peak = KnownPeak(self.needed)
        self.state, self.variants = None, []
        if self.compared is not None:
            for state in self.compared:
                if state is not None:
                    state.settle_down()

    def count_clean(self, used: int, cost: int, now_ms: int, end_ms: int) -> None:
        """Count a request that was charged, while there is a `peak`."""
        self.most = max(self.most, used)
        self.refused_since_ms = 0
        peak = self.peak
        if peak is None:
            return
        if isinstance(peak, WindowPeak) and self.clean_tells:
            peak.forget(now_ms)
            if peak.idle:  # all that was refused has left the window: the state tells all again
                self.need = max(self.need, peak.most)
                self.peak = None
                return
        peak.add(cost, now_ms, end_ms)

    def count_uncharged(self, cost: int, now_ms: int, end_ms: int) -> None:
        """Count a request that this rule matched and did not charge."""
        if self.peak is None and isinstance(self.quota, Quota):
            self.peak = WindowPeak.begun(exact(self.quota.window_ms), self.state, self.most)
        if self.peak is not None:
            self.peak.add(cost, now_ms, end_ms)

    def count_refused(self, now_ms: int) -> None:
        """Count a refusal by this rule."""
        self.refused += 1
        if self.refused_since_ms:
            self.longest_ms = max(self.longest_ms, now_ms - self.refused_since_ms)
        else:
            self.refused_since_ms = now_ms
