"""The breaker opens after failures in a row, probes at a steady pace, and closes at the first success."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.stores.circuit_breaker import CONFIRM_MS, FAILURES_MAX, PROBE_MS, STEADY_MS, CircuitBreaker

if TYPE_CHECKING:
    from ratelimiter.testing import FakeClock


def opened(clock: FakeClock) -> CircuitBreaker:
    breaker = CircuitBreaker(clock=clock)
    for _ in range(FAILURES_MAX):
        breaker.failed()
    assert breaker.open
    return breaker


def test_is_closed_at_first(clock: FakeClock) -> None:
    """A breaker that knows of nothing lets everybody ask."""
    breaker = CircuitBreaker(clock=clock)

    assert not breaker.open
    assert all(breaker.admits() for _ in range(1000))


def test_opens_after_failures_in_a_row(clock: FakeClock) -> None:
    """The fifth failure in a row opens it, says so once, and turns callers away."""
    breaker = CircuitBreaker(clock=clock)

    assert [False] * (FAILURES_MAX - 1) + [True, False, False] == [breaker.failed() for _ in range(FAILURES_MAX + 2)]
    assert not breaker.admits()


def test_a_success_starts_the_count_anew(clock: FakeClock) -> None:
    """Failures that are not in a row never open it."""
    breaker = CircuitBreaker(clock=clock)
    for _ in range(100):
        for _ in range(FAILURES_MAX - 1):
            assert not breaker.failed()
        assert not breaker.succeeded()

    assert not breaker.open


def test_one_probe_per_interval(clock: FakeClock) -> None:
    """While open, one of a thousand callers may ask in each interval, and none before the first is over."""
    breaker = opened(clock)
    admitted = []
    for _ in range(4 * PROBE_MS):
        clock.advance(1)
        admitted.append(sum(breaker.admits() for _ in range(1000)))

    assert [0] * (PROBE_MS - 1) == admitted[: PROBE_MS - 1]
    assert [1, 1, 1, 1] == admitted[PROBE_MS - 1 :: PROBE_MS]
    assert 4 == sum(admitted)


def test_a_failed_probe_waits_for_the_next_interval(clock: FakeClock) -> None:
    """A probe that fails changes nothing, and says nothing new."""
    breaker = opened(clock)
    clock.advance(PROBE_MS)
    assert breaker.admits()

    assert not breaker.failed()
    clock.advance(PROBE_MS - 1)
    assert not breaker.admits()
    clock.advance(1)
    assert breaker.admits()


def test_closes_at_the_first_success(clock: FakeClock) -> None:
    """One success closes it, says so once, and takes as many failures to open as ever."""
    breaker = opened(clock)
    clock.advance(PROBE_MS)
    assert breaker.admits()

    assert [True, False] == [breaker.succeeded(), breaker.succeeded()]
    assert all(breaker.admits() for _ in range(1000))
    assert [False] * (FAILURES_MAX - 1) + [True] == [breaker.failed() for _ in range(FAILURES_MAX)]


def test_a_probe_that_proved_nothing_is_given_back(clock: FakeClock) -> None:
    """After a probe that ended without an answer (its caller left) the next caller probes at once: otherwise callers
    that leave could put off the recovery for as long as they like.
    """
    breaker = opened(clock)
    clock.advance(PROBE_MS)
    for _ in range(10):
        assert breaker.admits()
        assert not breaker.admits()
        breaker.spared()

    assert breaker.open
    assert breaker.admits()


def test_a_breaker_that_closed_too_early_wants_confirmation(clock: FakeClock) -> None:
    """If it opens again within ten seconds, three successes in a row close it, so that no lost packet makes
    it flap. They take a tenth of a second more, so recovery stays within one.
    """
    breaker = opened(clock)
    clock.advance(PROBE_MS)
    assert breaker.admits()
    assert breaker.succeeded()
    for _ in range(FAILURES_MAX):
        breaker.failed()
    waited_ms = 0
    answers = []
    while breaker.open and waited_ms < 1000:
        if breaker.admits():
            answers.append(breaker.succeeded())
        clock.advance(1)
        waited_ms += 1

    assert [False, False, True] == answers
    assert waited_ms <= PROBE_MS + 2 * CONFIRM_MS + 1


def test_a_failure_between_confirmations_starts_them_anew(clock: FakeClock) -> None:
    """Two successes and a failure are none."""
    breaker = opened(clock)
    clock.advance(PROBE_MS)
    breaker.succeeded()
    breaker.trip()

    assert [False, False] == [breaker.succeeded(), breaker.succeeded()]
    breaker.failed()
    assert [False, False, True] == [breaker.succeeded() for _ in range(3)]
    clock.advance(STEADY_MS)
    breaker.trip()
    assert breaker.succeeded(), "a breaker that was steady closes at once"
