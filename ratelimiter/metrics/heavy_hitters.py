"""Heavy hitters: the busiest and the most refused principals, in bounded memory.

Metrics cannot show them without a label for each principal. Principals are the digests of their keys; `ratelimiter
explain` prints the digest of a principal. If the policy says `show_principals`, the names of the principals in the
tables are kept beside them.
"""

from __future__ import annotations

from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, Any, NamedTuple

from ratelimiter.clock import Clock, unix_ms
from ratelimiter.core.decision import BLOCKED
from ratelimiter.engine.batched_observer import Decisions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Hit
    from ratelimiter.engine.batched_observer import Told

KEYS_MAX = 1000  # counted at a time, about 300 bytes each
SPAN_MS = 60_000
SHOWN = 20


class Weight(NamedTuple):
    """The count of one key."""

    key: bytes
    total: int  # at least as much as there was
    surplus: int  # at most so much of it was others'
    name: str = ""  # of the principal, for people; empty if the policy shows none


class Heaviest:
    """The keys with the largest counts, by the space-saving algorithm (Metwally, Agrawal, El Abbadi 2005).

    A new key in a full table takes the place and the count of the smallest. So no count is too small, none is too
    large by more than the sum of all divided by *keys_max*, and a key with more than that is in the table.

    Not safe for concurrent use.

    Args:
        keys_max: keys held, at least 1.
    """

    __slots__ = ("_counts", "_keys_max", "_names", "_queue", "_surplus")

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._counts: dict[bytes, int] = {}
        self._surplus: dict[bytes, int] = {}
        self._names: dict[bytes, str] = {}  # of keys that are held
        self._queue: list[
            tuple[int, bytes]
        ] = []  # by count, as it was when last looked at; empty until the table is full

    def __len__(self) -> int:
        """Keys held."""
        return len(self._counts)

    def add(self, key: bytes, count: int) -> None:
        """Count *key* *count* times more, at least once."""
        counts = self._counts
        if key in counts:
            counts[key] += count
        elif len(counts) < self._keys_max:
            counts[key] = count
        else:
            self._replace_smallest(key, count)

    def name(self, key: bytes, name: str) -> None:
        """Keep the name of *key* as long as the key is held."""
        if key in self._counts:
            self._names[key] = name

    def forget_names(self) -> None:
        """Delete all names."""
        self._names.clear()

    def largest(self, number: int) -> list[Weight]:
        """Return the *number* heaviest keys, the heaviest first."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [
            Weight(key, count, self._surplus.get(key, 0), self._names.get(key, "")) for key, count in ordered[:number]
        ]

    def _replace_smallest(self, key: bytes, count: int) -> None:
        queue, counts = self._queue, self._counts
        if not queue:
            queue += ((held, name) for name, held in counts.items())
            heapify(queue)
        # Counts only grow, so an entry that is up to date at the head of the queue is the smallest of all.
        while queue[0][0] != counts[queue[0][1]]:
            heapreplace(queue, (counts[queue[0][1]], queue[0][1]))
        smallest, out = queue[0]
        del counts[out]
        self._surplus.pop(out, None)
        self._names.pop(out, None)
        counts[key] = smallest + count
        self._surplus[key] = smallest
        heapreplace(queue, (smallest + count, key))


# What is counted of principals: the name of a table in the report, and of its numbers.
HEAVIEST, REFUSED, WOULD_REFUSE, BLOCKED_CALLS = "heaviest", "refused", "would_refuse", "blocked"
UNITS = {HEAVIEST: "units", REFUSED: "refusals", WOULD_REFUSE: "shadow_refusals", BLOCKED_CALLS: "requests"}


class Top(Decisions):
    """The principals of each rule that use most, are refused most, would be refused most by a rule in shadow mode, and
    that ask most while they are blocked; in the last minute and the one under way. An observer of decisions.

    Args:
        keys_max: principals counted at a time, of each kind.
        span_ms: after so long the counts begin anew; the last ones are kept beside them.
        clock: Unix time in milliseconds, for times without decisions.
    """

    def __init__(self, *, keys_max: int = KEYS_MAX, span_ms: int = SPAN_MS, clock: Clock = unix_ms) -> None:
        super().__init__()
        self._keys_max = keys_max
        self._span_ms = span_ms
        self._clock = clock
        self._begun_ms = clock()
        self._now, self._before = self._tables(), self._tables()
        self._names: dict[bytes, str] = {}  # of the decisions that are not counted yet

    def _tables(self) -> dict[str, Heaviest]:
        return {kind: Heaviest(self._keys_max) for kind in UNITS}

    def named(self, names: Mapping[bytes, str]) -> None:
        """Keep the names of the next decision's principals; see `ratelimiter.engine.observer.Observer`."""
        self._names.update(names)

    def loaded(self, policy: Policy) -> None:
        """Delete all names unless *policy* permits them; see `ratelimiter.engine.observer.Observer`."""
        if not policy.show_principals:
            self.catch_up()
            for table in (*self._now.values(), *self._before.values()):
                table.forget_names()

    def _count(self, batch: Sequence[Told]) -> None:
        admitted = self._now[HEAVIEST]
        for decision, hits, _ in batch:
            if decision.now_ms - self._begun_ms >= self._span_ms:
                self._turn()
                admitted = self._now[HEAVIEST]
            if not decision.allowed:
                self._count_refusal(decision, hits)
            elif len(hits) == 1:  # most requests
                hit = hits[0]
                if hit.cost:
                    admitted.add(hit.key, hit.cost)
                if decision.outcomes[0].retry_after_ms != 0:
                    self._now[WOULD_REFUSE].add(hit.key, 1)
            else:
                for hit in hits:
                    # Of a rule with a burst there are two hits, and the request is one.
                    if hit.quota is hit.rule.quotas[0] and hit.cost:
                        admitted.add(hit.key, hit.cost)
                self._add_refusing(decision, hits, WOULD_REFUSE)

        for key in list(self._names):  # another thread may add to them
            name = self._names.pop(key)
            for table in self._now.values():
                table.name(key, name)

    def _count_refusal(self, decision: Decision, hits: Sequence[Hit]) -> None:
        if decision.reason == BLOCKED:
            for hit in hits:
                self._now[BLOCKED_CALLS].add(hit.key, 1)
        else:
            self._add_refusing(decision, hits, REFUSED)

    def _add_refusing(self, decision: Decision, hits: Sequence[Hit], kind: str) -> None:
        """Count the principals of the rules that had no room; by name, as an order may have put a rule in shadow."""
        refusing = {outcome.rule.name for outcome in decision.outcomes if outcome.retry_after_ms != 0}
        if refusing:
            for hit in hits:
                if hit.quota is hit.rule.quotas[0] and hit.rule.name in refusing:
                    self._now[kind].add(hit.key, 1)

    def report(self, number: int = SHOWN) -> dict[str, Any]:
        """Return the page `/top` of the admin listener, ready for JSON.

        Args:
            number: principals of each kind in each span, at least 0.
        """
        self.catch_up()
        if self._clock() - self._begun_ms >= self._span_ms:
            self._turn()
        return {
            "begun_ms": self._begun_ms,
            "span_ms": self._span_ms,
            "now": {kind: _told(table, number, UNITS[kind]) for kind, table in self._now.items()},
            "before": {kind: _told(table, number, UNITS[kind]) for kind, table in self._before.items()},
        }

    def _turn(self) -> None:
        now_ms = self._clock()
        if now_ms - self._begun_ms < self._span_ms:  # the store's clock is ahead of ours: wait for both
            return
        fresh = now_ms - self._begun_ms < 2 * self._span_ms
        self._before = self._now if fresh else self._tables()
        self._now = self._tables()
        self._begun_ms = now_ms


def _told(heaviest: Heaviest, number: int, unit: str) -> list[dict[str, Any]]:
    told = []
    for key, count, surplus, name in heaviest.largest(number):
        _, digest, _, rule, _ = key.decode().split(":")
        who = {"principal": digest.strip("{}")} | ({"name": name} if name else {})
        told.append({**who, "rule": rule, unit: count, "at_most_too_many": surplus})
    return told
