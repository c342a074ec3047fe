"""The embedded store: the states of the core, in this process, in bounded memory, without a timer."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.core.algorithms import STATES, settle
from ratelimiter.core.algorithms.account import Account
from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.charge import KeyState, charge, charge_one
from ratelimiter.core.quota import Quota
from ratelimiter.core.receipt import STORE, Receipt
from ratelimiter.core.rule import Hit
from ratelimiter.stores.base import Store
from ratelimiter.stores.overrides import MemoryOverrideStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.settlement import Settlement

KEYS_MAX = 100_000  # about 1.4 kB each at 60 live entries, 0.5 kB at one (tests/benchmarks/memory.py)
SAMPLE = 16  # keys looked at to find one worth forgetting
ROUNDS = 4  # such looks before a newcomer is charged to the overflow


class _Entry(Window):
    """The window of one key, and until when the key is being refused."""

    __slots__ = ("refused_until_ms",)

    def __init__(self) -> None:
        super().__init__()
        self.refused_until_ms = 0


class _Kept:
    """The state of a key whose quota is no window."""

    __slots__ = ("ends_ms", "refused_until_ms", "state")

    def __init__(self, state: Any) -> None:
        self.state = state
        self.ends_ms = 0  # when nothing of it counts any more
        self.refused_until_ms = 0

    @property
    def may_go(self) -> bool:
        """True if it may make room for others: not while there are leases on it, and a balance never."""
        return not isinstance(self.state, Account) or (not self.state.leases and bool(self.state.start_ms))


class MemoryStore(Store):
    """Tallies in this process, for one process and for the tests.

    Keys of one window length are kept in the order they were last charged, which is the order in which they stop to
    matter; so the keys to drop are always in front, and every charge drops a few.

    When *keys_max* live keys are reached, the least charged of a sample of the oldest makes room. A key that is being
    refused never does: a caller cannot buy back a spent limit by flooding the store with other names. Nor does
    one with open leases, or a balance. If nothing can make room, newcomers share one state per rule, as strict as one
    principal's. Beyond *keys_max* the limit is therefore not strict for every key: a key that made room, and a newcomer
    that gets a state of its own after all, begin anew.

    Args:
        keys_max: keys held at most, at least 1.
        clock: Unix time in milliseconds.

    Raises:
        ValueError: *keys_max* is below 1.
    """

    embedded: ClassVar[bool] = True

    def __init__(self, *, keys_max: int = KEYS_MAX, clock: Clock = unix_ms) -> None:
        if keys_max < 1:
            msg = f"keys_max must be at least 1, not {keys_max}"
            raise ValueError(msg)
        self.keys_max = keys_max
        self._clock = clock
        self._shelves: dict[int, OrderedDict[bytes, _Entry]] = {}  # by window_ms
        self._held: OrderedDict[bytes, tuple[int, _Entry]] = OrderedDict()  # refused keys met while looking for room
        self._overflow: dict[tuple[str, int], _Entry] = {}  # by rule and window_ms
        self._others: OrderedDict[bytes, _Kept] = OrderedDict()  # keys whose quota is no window
        self._others_overflow: dict[tuple[str, str], _Kept] = {}  # by rule and kind
        self._size = 0
        self._override_stores: dict[str, MemoryOverrideStore] = {}  # by policy

    def __len__(self) -> int:
        """Keys held now, those that no longer matter but were not dropped yet included."""
        return self._size

    async def charge(self, hits: Sequence[Hit]) -> Receipt:
        """Charge all *hits* or none; see `ratelimiter.stores.base.Store`. Never raises."""
        return self.spend(hits)

    def spend(self, hits: Sequence[Hit]) -> Receipt:
        """Do what `charge` does, without waiting: no other process has to be asked."""
        if len(hits) == 1:  # most requests take this path, one hit on a key that is known: no lists, no second look-up
            hit = hits[0]
            key, quota, cost, _, _ = hit
            shelf = self._shelves.get(quota.window_ms)
            if shelf is not None and (entry := shelf.get(key)) is not None:
                now_ms = self._clock()
                receipt = charge_one(hit, entry, now_ms)
                wait_ms = receipt[2][0][2]
                if wait_ms > 0:
                    entry.refused_until_ms = now_ms + wait_ms
                elif cost and receipt[1]:
                    shelf.move_to_end(key)
                    if _useless(next(iter(shelf.values())), quota.window_ms, now_ms):
                        self._drop_useless(shelf, quota.window_ms, now_ms)
                return receipt
        return self.charge_now(hits)

    async def settle(self, settlements: Sequence[Settlement], source: str = STORE) -> None:  # noqa: ARG002 - its own
        """Replace charges by their final cost; see `ratelimiter.stores.base.Store`. Never raises."""
        self.settle_now(settlements)

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def override_store(self, name: str) -> MemoryOverrideStore:
        """Return the place of the runtime overrides of policy *name*; it lives as long as the tallies."""
        return self._override_stores.setdefault(name, MemoryOverrideStore(self))

    def now_ms(self) -> int:
        """Return the store's time, Unix time in milliseconds."""
        return self._clock()

    def charge_now(self, hits: Sequence[Hit]) -> Receipt:
        """Do what `charge` does, without awaiting."""
        now_ms = self._clock()
        entries = [self._place(hit, hits, now_ms) for hit in hits]
        receipt = charge(hits, [_state_of(entry) for entry in entries], now_ms)
        for hit, entry, tally in zip(hits, entries, receipt.tallies, strict=True):
            if tally.retry_after_ms > 0:
                entry.refused_until_ms = now_ms + tally.retry_after_ms
            elif receipt.admitted:
                self._keep_charged(hit, entry, now_ms)
        return receipt

    def settle_now(self, settlements: Sequence[Settlement]) -> None:
        """Do what `settle` does, without awaiting."""
        now_ms = self._clock()
        for settlement in settlements:
            key, quota, charged, _, rule, lease, _ = settlement
            hit = Hit(key, quota, charged, rule, lease)
            entry = self._place(hit, (hit,), now_ms)
            settle(settlement, _state_of(entry), now_ms)
            # A refused request may have room now, so the key needs no more protection than any other.
            entry.refused_until_ms = 0
            self._keep_charged(hit, entry, now_ms)

    def recall(self, hit: Hit, used: int, at_ms: int) -> None:
        """Count at least *used* units of the hit's key, as if charged at *at_ms*, Unix time."""
        now_ms = self._clock()
        entry = self._place(hit, (hit,), now_ms)
        state = _state_of(entry)
        state.forget(hit.quota, now_ms)
        state.recall(hit.quota, used, min(at_ms, now_ms), now_ms)
        self._keep_charged(hit, entry, now_ms)

    def erase(self, keys: Sequence[bytes]) -> None:
        """Forget what *keys* were charged."""
        for key in keys:
            self._taken_from_elsewhere(key)
            if self._others.pop(key, None) is not None:
                self._size -= 1
            if key in self._others:
                self._drop_other(key)

    def _place(self, hit: Hit, hits: Sequence[Hit], now_ms: int) -> _Entry | _Kept:
        return self._entry(hit, hits, now_ms) if hit.quota.kind == Quota.kind else self._kept(hit, hits, now_ms)

    def _keep_charged(self, hit: Hit, entry: _Entry | _Kept, now_ms: int) -> None:
        if isinstance(entry, _Entry):
            self._shelve(hit, entry, now_ms)
        else:
            self._keep_other(hit, entry, now_ms)

    # --- Keys whose quota is no window

    def _kept(self, hit: Hit, hits: Sequence[Hit], now_ms: int) -> _Kept:
        """Return the state of the hit's key; for a new key, a state that is not kept yet."""
        entry = self._others.get(hit.key)
        if entry is not None:
            return entry
        if self._held:
            self._release(now_ms)
        fresh = _Kept(STATES[hit.quota.kind]())
        if self._size + len(hits) > self.keys_max and not self._make_room(hits, now_ms):
            return self._others_overflow.setdefault((hit.rule.name, hit.quota.kind), fresh)
        return fresh

    def _keep_other(self, hit: Hit, entry: _Kept, now_ms: int) -> None:
        """Keep a charged key while something of it counts, and drop some of which nothing does."""
        ttl_ms = entry.state.ttl_ms(hit.quota, now_ms)
        entry.ends_ms = now_ms + ttl_ms
        if entry is self._others_overflow.get((hit.rule.name, hit.quota.kind)):
            return
        if ttl_ms and hit.key not in self._others:
            self._others[hit.key] = entry
            self._size += 1
        elif not ttl_ms and hit.key in self._others:
            self._drop_other(hit.key)
        for key, other in list(islice(self._others.items(), 2)):  # one comes, two may go
            if other.ends_ms <= now_ms:
                self._drop_other(key)
            else:
                self._others.move_to_end(key)

    def _drop_other(self, key: bytes) -> None:
        del self._others[key]
        self._size -= 1

    def _forget_other(self, ours: set[bytes], now_ms: int) -> bool:
        """Forget a key that may go, of a sample, each time another one; return True if one was found."""
        for key, entry in list(islice(self._others.items(), SAMPLE)):
            self._others.move_to_end(key)
            refused = entry.refused_until_ms > now_ms
            if key not in ours and (entry.ends_ms <= now_ms or (entry.may_go and not refused)):
                self._drop_other(key)
                return True
        return False

    # --- Windows

    def _entry(self, hit: Hit, hits: Sequence[Hit], now_ms: int) -> _Entry:
        """Return the state of the hit's key; of a key not seen before, a new one that is not kept yet."""
        window_ms = hit.quota.window_ms
        shelf = self._shelves.get(window_ms)
        if shelf is not None:
            entry = shelf.get(hit.key)
            if entry is not None:
                return entry
        entry = self._taken_from_elsewhere(hit.key)
        if entry is not None:
            self._keep(hit, entry)
            return entry
        if self._held:
            self._release(now_ms)
        if self._size + len(hits) > self.keys_max and not self._make_room(hits, now_ms):
            return self._overflow.setdefault((hit.rule.name, window_ms), _Entry())
        return _Entry()

    def _taken_from_elsewhere(self, key: bytes) -> _Entry | None:
        """Return the entry of *key* if it was held, or kept under a window length that the policy has since changed."""
        if key in self._held:
            self._size -= 1
            return self._held.pop(key)[1]
        for shelf in self._shelves.values():
            if key in shelf:
                self._size -= 1
                return shelf.pop(key)
        return None

    def _keep(self, hit: Hit, entry: _Entry) -> OrderedDict[bytes, _Entry]:
        shelf = self._shelves.setdefault(hit.quota.window_ms, OrderedDict())
        if hit.key not in shelf:
            self._size += 1
            shelf[hit.key] = entry
        return shelf

    def _shelve(self, hit: Hit, entry: _Entry, now_ms: int) -> None:
        """Move a charged key behind all others of its window length, and drop what has become useless in front."""
        window_ms = hit.quota.window_ms
        if not entry.used or entry is self._overflow.get((hit.rule.name, window_ms)):
            return
        shelf = self._keep(hit, entry)
        shelf.move_to_end(hit.key)
        self._drop_useless(shelf, window_ms, now_ms)

    def _drop_useless(self, shelf: OrderedDict[bytes, _Entry], window_ms: int, now_ms: int) -> None:
        for key, oldest in list(islice(shelf.items(), 2)):  # one comes, two may go: it shrinks as fast as it grew
            if not _useless(oldest, window_ms, now_ms):
                return
            del shelf[key]
            self._size -= 1

    def _make_room(self, hits: Sequence[Hit], now_ms: int) -> bool:
        """Forget one key that is not being refused and is not of this request; return True if one was found."""
        ours = {hit.key for hit in hits}
        for _ in range(ROUNDS):
            for window_ms, shelf in sorted(self._shelves.items(), key=lambda item: -len(item[1])):
                if self._forget_one(window_ms, shelf, ours, now_ms):
                    return True
            if self._forget_other(ours, now_ms):
                return True
        return False

    def _release(self, now_ms: int) -> None:
        """Put held keys that are no longer refused back in front of their shelf: of a sample, each time another one."""
        for key, (window_ms, entry) in list(islice(self._held.items(), SAMPLE)):
            if entry.refused_until_ms > now_ms and not _useless(entry, window_ms, now_ms):
                self._held.move_to_end(key)
            else:
                del self._held[key]
                self._shelves[window_ms][key] = entry
                self._shelves[window_ms].move_to_end(key, last=False)

    def _forget_one(self, window_ms: int, shelf: OrderedDict[bytes, _Entry], ours: set[bytes], now_ms: int) -> bool:
        least: bytes | None = None
        for key, entry in list(islice(shelf.items(), SAMPLE)):
            if key in ours:
                continue
            if _useless(entry, window_ms, now_ms):
                least = key
                break
            if entry.refused_until_ms > now_ms:
                self._held[key] = (window_ms, shelf.pop(key))
            elif least is None or entry.used < shelf[least].used:
                least = key
        if least is None:
            return False
        del shelf[least]
        self._size -= 1
        return True


def _state_of(entry: _Entry | _Kept) -> KeyState:
    return entry if isinstance(entry, _Entry) else entry.state


def _useless(entry: _Entry, window_ms: int, now_ms: int) -> bool:
    """Return True if `Window.forget` would leave nothing of it: it left the window, or is from far in the future."""
    return not entry.used or not now_ms - window_ms < entry.instants[-1] <= now_ms + 2 * window_ms
