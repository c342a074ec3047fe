"""What the engine tells of each decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimiter.core.policy import Policy
from ratelimiter.errors import ConfigError
from ratelimiter.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.decision import Decision
    from ratelimiter.core.policy import Hit


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[Decision, Sequence[Hit], float]] = []

    def decided(self, decision: Decision, hits: Sequence[Hit], seconds: float) -> None:
        self.told.append((decision, hits, seconds))


async def test_observer_is_told_the_decision_its_hits_and_how_long_it_took() -> None:
    """What metrics and the list of the heaviest principals live on comes with one call, and no principal's name."""
    moments = iter([10.0, 10.25, 11.0, 11.5])
    listener = Listener()
    limiter = Limiter(Policy((per_minute(),)), MemoryStore(), observer=listener, stopwatch=lambda: next(moments))
    first = await limiter.decide(request())
    second = await limiter.decide(request())

    assert [(*first, 0.25), (*second, 0.5)] == listener.told
    assert b"203.0.113.7" not in listener.told[0][1][0].key


async def test_nobody_listening_costs_no_look_at_the_clock() -> None:
    """Without an observer the stopwatch is never asked."""

    def broken() -> float:
        raise AssertionError

    limiter = Limiter(Policy((per_minute(),)), MemoryStore(), stopwatch=broken)

    assert (await limiter.decide(request()))[0].allowed


async def test_a_swapped_policy_keeps_what_is_counted() -> None:
    """From the next request on the new policy judges, over the same counters; who listens for policies is told."""

    class Librarian(Listener):
        def loaded(self, policy: Policy) -> None:
            shown.append(policy)

    shown: list[Policy] = []
    first, second = Policy((per_minute(2),)), Policy((per_minute(3),))
    limiter = Limiter(first, MemoryStore(), observer=Librarian())
    before = [(await limiter.decide(request()))[0].allowed for _ in range(3)]
    limiter.swap(second)
    after = [(await limiter.decide(request()))[0].allowed for _ in range(2)]

    assert [True, True, False] == before
    assert [True, False] == after
    assert [first, second] == shown
    assert second is limiter.policy


def test_a_swap_does_not_pretend_to_change_the_store() -> None:
    """What a store was opened with cannot change under way: it is refused by name, and the old policy stays whole."""
    first = Policy((per_minute(2),))
    limiter = Limiter(first, MemoryStore())

    with pytest.raises(ConfigError, match="store, local_share: changed while running"):
        limiter.swap(Policy((per_minute(3),), store="redis://localhost", local_share=0.5))
    assert first is limiter.policy
