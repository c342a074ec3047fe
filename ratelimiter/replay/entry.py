"""The states that requests of one caller meet under one set of rules, at hand and ready to be charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.algorithms import STATES
from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Hit
from ratelimiter.replay.tracked import Tracked

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence


class Caller:
    """One caller over all rules."""

    __slots__ = ("name", "other_refused", "refused", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.refused = 0
        self.other_refused = 0  # by the policy that is compared
        self.name: str | None = None


class Entry:
    """The states that requests of one caller meet under one set of rules."""

    __slots__ = ("caller", "compared", "hits", "requests", "states", "tracked", "unattributed", "variants", "windows")

    def __init__(self, hits: Sequence[Hit], caller: Caller | None, tracked: list[Tracked]) -> None:
        self.hits = hits
        self.caller = caller
        self.tracked = tracked
        self.requests = 0  # not yet passed on to *caller* and *tracked*
        self.unattributed = False
        self.states = [each.state for each in tracked]
        self.windows = ready_windows(hits, self.states, tracked)
        # The same under windows of other lengths, ready for `charge_fitting` and for `charge`.
        self.variants: list[Variant] = []
        self.compared: list[list[Any]] = []


# A window ready to be charged: state, its instants and counts, quota, limit, window_ms, resolution_ms, cost, and the
# numbers that are tracked of it.
ReadyWindow = tuple[Window, "array[int]", "array[int]", Quota, int, int, int, int, Tracked]
Variant = tuple[list[Hit], list[Any], "list[ReadyWindow] | None"]


def ready_windows(hits: Sequence[Hit], states: Sequence[Any], tracked: Sequence[Tracked]) -> list[ReadyWindow] | None:
    """Return *hits* ready for `charge_fitting`; None if one is no window, or costs nothing."""
    found: list[ReadyWindow] = []
    for hit, state, each in zip(hits, states, tracked, strict=True):
        quota = hit.quota
        if not isinstance(quota, Quota) or not hit.cost:
            return None
        found.append(
            (
                state, state.instants, state.counts, quota, quota.limit, quota.window_ms, quota.resolution_ms,
                hit.cost, each,
            )
        )  # fmt: skip
    return found


def charge_fitting(windows: Sequence[ReadyWindow], now_ms: int) -> bool:
    """Charge all *windows* if all have room, and return True; else charge none.

    Most requests fit everywhere, and this is `core.algorithms.sliding_window.charge` for these, at a quarter of its
    cost: the steps of `Window` are written out. The log's clock never steps back, so no entry lies ahead.
    """
    for window, instants, counts, _, limit, window_ms, _, cost, _ in windows:
        used = window.used
        if instants and instants[0] <= now_ms - window_ms:
            left_ms = now_ms - window_ms
            gone, held = 1, len(instants)
            used -= counts[0]
            while gone < held and instants[gone] <= left_ms:
                used -= counts[gone]
                gone += 1
            del instants[:gone], counts[:gone]
            window.used = used
        if used + cost > limit:
            return False
    for window, instants, counts, _, _, _, resolution_ms, cost, _ in windows:
        instant = now_ms if resolution_ms == 1 else now_ms - now_ms % resolution_ms + resolution_ms - 1
        if instants and instants[-1] >= instant:
            counts[-1] += cost
        else:
            instants.append(instant)
            counts.append(cost)
        window.used += cost
    return True


def variant_state(tracked: Tracked, number: int) -> Any:
    """Return the state of *tracked* under the windows of another length."""
    while len(tracked.variants) <= number:
        tracked.variants.append(STATES[tracked.quota.kind]())
    return tracked.variants[number]


def digest_of(key: bytes) -> bytes:
    """Return the principal's digest in a key, in binary."""
    return bytes.fromhex(key[key.index(b"{") + 1 : key.index(b"}")].decode())
