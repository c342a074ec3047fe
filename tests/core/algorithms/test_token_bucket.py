"""The token bucket against fractions: what is exact there must be exact here."""

from __future__ import annotations

from copy import deepcopy
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.algorithms import settle
from ratelimiter.core.algorithms.token_bucket import BucketState
from ratelimiter.core.charge import charge
from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, Bucket
from ratelimiter.core.receipt import NEVER, Tally
from ratelimiter.core.rule import Hit
from ratelimiter.core.settlement import settlement_of
from tests.reference_store import START_MS, costs, rule_with

BUCKETS = st.builds(
    Bucket, st.sampled_from([1, 2, 3, 10, 100]), st.sampled_from([1, 3, 7, 10]), st.sampled_from([1, 7, 1000, 60_000])
)


class Level:
    """The oracle: a level that falls steadily, in fractions."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket, self.units, self.at_ms = bucket, Fraction(0), START_MS
        self.rate = Fraction(bucket.refill, bucket.window_ms)

    def pass_to(self, now_ms: int) -> None:
        self.units = max(Fraction(0), self.units - (now_ms - self.at_ms) * self.rate)
        self.at_ms = now_ms

    def until(self, units: Fraction) -> int:
        return ceil(max(Fraction(0), self.units - units) / self.rate)


def hit(bucket: Bucket, cost: int = 1) -> Hit:
    return Hit(b"k", bucket, cost, rule_with(bucket))


def gaps_ms(bucket: Bucket) -> st.SearchStrategy[int]:
    unit_ms = bucket.window_ms // bucket.refill
    full_ms = bucket.limit * bucket.window_ms // bucket.refill
    edges = {0, 1, unit_ms - 1, unit_ms, unit_ms + 1, full_ms - 1, full_ms, full_ms + 1}
    return st.sampled_from(sorted(gap for gap in edges if gap >= 0)) | st.integers(0, 2 * full_ms + 1)


@given(st.data())
def test_equals_the_level_in_fractions(data: st.DataObject) -> None:
    """Verdict, units used, reset, retry and the key's lifetime are those of exact arithmetic."""
    bucket = data.draw(BUCKETS)
    state, level, now_ms = BucketState(), Level(bucket), START_MS
    for gap_ms, cost in data.draw(st.lists(st.tuples(gaps_ms(bucket), costs(bucket)), min_size=1, max_size=25)):
        now_ms += gap_ms
        level.pass_to(now_ms)
        fits = level.units + cost <= bucket.limit or not cost
        wait_ms = 0 if fits else NEVER if cost > bucket.limit else level.until(Fraction(bucket.limit - cost))
        if fits:
            level.units += cost
        receipt = charge([hit(bucket, cost)], [state], now_ms)
        reset_ms = level.until(Fraction(ceil(level.units) - 1)) if level.units else 0

        assert (fits, [Tally(ceil(level.units), reset_ms, wait_ms)]) == (receipt.admitted, receipt.tallies)
        assert state.ttl_ms(bucket, now_ms) == level.until(Fraction(0))


@given(st.data())
def test_no_span_admits_more_than_its_share(data: st.DataObject) -> None:
    """In any span of t ms at most limit + t * refill / window_ms are admitted (2)."""
    bucket, state, now_ms = data.draw(BUCKETS), BucketState(), START_MS
    admitted: list[tuple[int, int]] = []
    for gap_ms, cost in data.draw(st.lists(st.tuples(gaps_ms(bucket), costs(bucket)), min_size=1, max_size=25)):
        now_ms += gap_ms
        if charge([hit(bucket, cost)], [state], now_ms).admitted:
            admitted.append((now_ms, cost))
        for since_ms, _ in admitted:
            units = sum(cost for instant, cost in admitted if instant >= since_ms)
            assert units <= bucket.limit + Fraction((now_ms - since_ms) * bucket.refill, bucket.window_ms)


@given(st.data())
def test_retry_is_exact(data: st.DataObject) -> None:
    """One ms before the announced moment a retry is refused, at it admitted (4): also after the clock was set back."""
    bucket, state, now_ms = data.draw(BUCKETS), BucketState(), START_MS
    steps = gaps_ms(bucket) | gaps_ms(bucket).map(lambda gap_ms: -gap_ms)
    for gap_ms, cost in data.draw(st.lists(st.tuples(steps, costs(bucket)), min_size=1, max_size=25)):
        now_ms += gap_ms
        receipt = charge([hit(bucket, cost)], [state], now_ms)
        wait_ms = receipt.tallies[0].retry_after_ms
        if receipt.admitted:
            assert wait_ms == 0
        elif wait_ms != NEVER:
            assert wait_ms > 0
            assert not charge([hit(bucket, cost)], [deepcopy(state)], now_ms + wait_ms - 1).admitted
            assert charge([hit(bucket, cost)], [deepcopy(state)], now_ms + wait_ms).admitted


@given(st.data())
def test_what_is_given_back_lets_nobody_in_too_early(data: st.DataObject) -> None:
    """After settlements a bucket owes at least what it would owe had each charge been what it came to, and at most what
    it would owe had nothing been given back.
    """
    bucket, state, untouched, now_ms = data.draw(BUCKETS), BucketState(), BucketState(), START_MS
    admitted: list[list[int]] = []  # moment, units charged, units due in the end
    for gap_ms, cost in data.draw(st.lists(st.tuples(gaps_ms(bucket), costs(bucket)), min_size=1, max_size=15)):
        now_ms += gap_ms
        if charge([hit(bucket, cost)], [state], now_ms).admitted:
            admitted.append([now_ms, cost, cost])
            untouched.forget(bucket, now_ms)
            untouched.add(bucket, cost, now_ms)
        chosen = data.draw(st.sampled_from(admitted)) if admitted else None
        if chosen is not None and chosen[1] == chosen[2] and data.draw(st.booleans()):
            chosen[2] = data.draw(st.integers(0, chosen[1]))
            now_ms += data.draw(gaps_ms(bucket))
            settle(settlement_of(hit(bucket, chosen[1]), chosen[2], chosen[0]), state, now_ms)
        true = Level(bucket)
        for instant, _, due in admitted:
            true.pass_to(instant)
            true.units += due
        true.pass_to(now_ms)
        state.forget(bucket, now_ms)
        untouched.forget(bucket, now_ms)

        assert true.units <= Fraction(state.debt, bucket.weight)
        assert state.debt <= untouched.debt


def test_a_prompt_settlement_gives_all_back() -> None:
    """What is settled in the very millisecond is as if never charged."""
    bucket, state = Bucket(5, 1, 1000), BucketState()
    charge([hit(bucket, 5)], [state], START_MS)

    assert Tally(2, 1000, 0) == settle(settlement_of(hit(bucket, 5), 2, START_MS), state, START_MS)
    assert Tally(2, 750, 0) == settle(settlement_of(hit(bucket, 0), 0, START_MS), state, START_MS + 250)


def test_more_than_the_limit_is_paid_off_by_waiting() -> None:
    """A call that turned out to cost 12 of 5 is paid off token by token."""
    bucket, state = Bucket(5, 1, 1000), BucketState()
    charge([hit(bucket, 3)], [state], START_MS)

    assert Tally(12, 1000, 0) == settle(settlement_of(hit(bucket, 3), 12, START_MS), state, START_MS)
    refused = charge([hit(bucket)], [state], START_MS)
    assert (False, [Tally(12, 1000, 8000)]) == (refused.admitted, refused.tallies)
    assert charge([hit(bucket)], [state], START_MS + 8000).admitted


def test_a_changed_rate_keeps_what_is_owed() -> None:
    """What is owed stays when refill or capacity change (7): in whole units, so nothing is given away."""
    slow, fast, state = Bucket(10, 1, 60_000), Bucket(20, 7, 1000), BucketState()
    charge([hit(slow, 6)], [state], START_MS)

    assert 6 == charge([hit(fast, 0)], [state], START_MS).tallies[0].used
    assert 14 == charge([hit(fast, 14)], [state], START_MS + 3000).tallies[0].used
    assert 14 == charge([hit(slow, 0)], [state], START_MS + 3000).tallies[0].used


def test_a_clock_that_was_wrong_locks_nobody_out() -> None:
    """After a step back a wait is no longer than a full bucket takes to drain; a debt from further ahead is dropped."""
    bucket = Bucket(4, 2, 1000)
    for step_ms in (1, 500, 2000, 2001, 10**9):
        state = BucketState()
        charge([hit(bucket, 4)], [state], START_MS)
        receipt = charge([hit(bucket, 4)], [state], START_MS - step_ms)

        assert receipt.admitted == (step_ms > 2000)
        assert receipt.tallies[0].retry_after_ms <= 2000


@pytest.mark.parametrize("bucket", [Bucket(LIMIT_MAX, LIMIT_MAX, 1000), Bucket(366, 1, 86_400_000)])
def test_settlements_owe_at_most_what_is_paid_off_in_a_year(bucket: Bucket) -> None:
    """Whatever is said to be due, a key is useful again within 366 days, and the arithmetic stays exact."""
    state = BucketState()
    charge([hit(bucket)], [state], START_MS)
    for _ in range(3):
        settle(settlement_of(hit(bucket), LIMIT_MAX, START_MS), state, START_MS)

    assert state.debt <= 2**52
    assert 0 < state.ttl_ms(bucket, START_MS) <= WINDOW_MS_MAX


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ((0, 1, 1000), "limit must be"),
        ((1, 0, 1000), "refill must be"),
        ((1, LIMIT_MAX + 1, 1000), "refill must be"),
        ((1, 1, 0), "window_ms must be"),
        ((367, 1, 86_400_000), "take over 366 days"),
        ((LIMIT_MAX, 999_999_937, 86_400_000), "too many for exact arithmetic"),
    ],
)
def test_numbers_that_cannot_be_kept(numbers: Any, problem: str) -> None:
    """Nonsense is refused where it is made."""
    with pytest.raises(ValueError, match=problem):
        Bucket(*numbers)


@pytest.mark.parametrize(
    ("used", "at_ms", "expected"),
    [
        (5, START_MS, 5),
        (5, START_MS - 2000, 3),  # two are back since
        (5, START_MS + 700, 5),  # by a clock that is ahead nothing is back
        (1, START_MS, 2),
        (5, START_MS - 5000, 2),
        (10**9, START_MS, 366 * 86_400),  # no more than a year pays off
    ],
)
def test_what_was_owed_elsewhere_is_recalled(used: int, at_ms: int, expected: int) -> None:
    """A bucket owes at least what is left now of what another store knew to be owed."""
    bucket, state = Bucket(5, 1, 1000), BucketState()
    charge([hit(bucket, 2)], [state], START_MS)
    state.recall(bucket, used, at_ms, START_MS)

    assert expected == state.used


def test_a_charge_of_a_clock_that_was_ahead_is_not_given_back() -> None:
    """It is not known how much of it has drained, so the bucket owes all of it, and lets no client in too early."""
    bucket, state = Bucket(5, 1, 1000), BucketState()
    charge([hit(bucket, 4)], [state], START_MS)

    assert Tally(4, 1000, 0) == settle(settlement_of(hit(bucket, 4), 1, START_MS), state, START_MS - 1)
