"""The window keeps its invariants, proved against an exact log.

Histories aim at the edges of windows and cells. Where a quota is an exact log (resolution 1) every number must be
equal; where it is coarse, the stated bounds must hold: never one too many, and back within W (1 + 1/128).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimiter.core.algorithms.sliding_window import USED_MAX, Window, last_instant
from ratelimiter.core.charge import charge
from ratelimiter.core.decision import OVER_CAPACITY, WITHIN_LIMIT, Decision, decide
from ratelimiter.core.quota import PRECISION, WINDOW_MS_MAX, Quota
from ratelimiter.core.receipt import NEVER, Receipt, Tally
from ratelimiter.core.rule import LONG_WINDOWS, Hit, Rule
from ratelimiter.core.settlement import settlement_of
from tests.exact_log import ExactLog
from tests.reference_store import (
    START_MS,
    ReferenceStore,
    copied,
    costs,
    gaps_ms,
    histories,
    hits_of,
    quotas,
    rule_of,
    starts_ms,
    window_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

EXACT_LIMITS = (1, 2, 3, 10, PRECISION - 1, PRECISION)
COARSE_LIMITS = (PRECISION + 1, PRECISION + 2, 1000, 10**9)


def ask(store: ReferenceStore, now_ms: int, *rules: Rule, cost: int | None = None) -> tuple[Receipt, Decision]:
    hits = hits_of(*rules, cost=cost)
    receipt = store.charge_at(hits, now_ms)
    return receipt, decide(hits, receipt)


def used(store: ReferenceStore, now_ms: int, *rules: Rule) -> list[int]:
    return [tally.used for tally in ask(store.copy(), now_ms, *rules, cost=0)[0].tallies]


@st.composite
def rules(draw: st.DrawFn, *, shadow: bool = False, name: str = "rule") -> Rule:
    quota = draw(quotas())
    room = 10**9 - quota.limit * LONG_WINDOWS
    burst = draw(st.sampled_from([burst for burst in (0, 0, 1, 2, PRECISION) if burst <= room or not burst]))
    return rule_of(quota.limit, quota.window_ms, name=name, burst=burst, shadow=shadow)


@st.composite
def rule_sets(draw: st.DrawFn) -> tuple[Rule, ...]:
    """One to three rules whose windows and limits are alike enough to be refused by any of them."""
    count = draw(st.integers(1, 3))
    window_ms = draw(st.sampled_from([5, 128, 129, 1000]))
    return tuple(
        rule_of(
            draw(st.sampled_from([1, 2, 3, 10, PRECISION, PRECISION + 1])),
            window_ms * draw(st.sampled_from([1, 1, 2, 10])),
            name=f"rule-{index}",
            burst=draw(st.sampled_from([0, 0, 1, 3])),
        )
        for index in range(count)
    )


@st.composite
def worked(draw: st.DrawFn) -> tuple[tuple[Rule, ...], ReferenceStore, int]:
    """Rules with tallies behind them, and the moment after the last request."""
    chosen = draw(rule_sets())
    store = ReferenceStore()
    smallest = min((window_of(rule) for rule in chosen), key=lambda quota: quota.limit)
    now_ms = draw(starts_ms(smallest))
    for gap_ms, cost in draw(st.lists(st.tuples(gaps_ms(window_of(chosen[0])), costs(smallest)), max_size=12)):
        now_ms += gap_ms
        ask(store, now_ms, *chosen, cost=cost)
    return chosen, store, now_ms


# --- against the exact log -------------------------------------------------------------------------------------------


@given(st.data())
def test_equals_an_exact_log(data: st.DataObject) -> None:
    """At resolution 1 verdict, units used, reset and retry are those of an exact log (2, 4, 5)."""
    quota = data.draw(quotas(EXACT_LIMITS))
    rule = rule_of(quota.limit, quota.window_ms)
    store, log = ReferenceStore(), ExactLog(quota.limit, quota.window_ms)

    for now_ms, cost in data.draw(histories(quota)):
        wait_ms = log.wait_ms(cost, now_ms) if cost <= quota.limit else NEVER
        admitted = log.charge(cost, now_ms)
        expected = Receipt(now_ms, admitted, [Tally(log.used(now_ms), log.reset_ms(now_ms), wait_ms)])
        actual = ask(store, now_ms, rule, cost=cost)[0]

        assert expected == actual._replace(tallies=list(actual.tallies))


@given(st.data())
def test_never_admits_one_too_many(data: st.DataObject) -> None:
    """In every window (t - W, t] of a coarse quota the true log holds at most the limit (2)."""
    quota = data.draw(quotas(COARSE_LIMITS))
    rule = rule_of(quota.limit, quota.window_ms)
    store, log = ReferenceStore(), ExactLog(quota.limit, quota.window_ms)

    for now_ms, cost in data.draw(histories(quota)):
        receipt, _ = ask(store, now_ms, rule, cost=cost)
        if receipt.admitted:
            log.note(cost, now_ms)

        assert log.used(now_ms) <= quota.limit
        assert log.used(now_ms) <= receipt.tallies[0].used


@given(st.data())
def test_admits_again_within_the_effective_window(data: st.DataObject) -> None:
    """What an exact log of W (1 + 1/128) has room for is admitted, so a cell costs nobody more than that."""
    quota = data.draw(quotas(COARSE_LIMITS))
    effective_ms = quota.window_ms + quota.resolution_ms - 1
    rule = rule_of(quota.limit, quota.window_ms)
    store, longer = ReferenceStore(), ExactLog(quota.limit, effective_ms)

    assert effective_ms * PRECISION <= quota.window_ms * (PRECISION + 1)
    for now_ms, cost in data.draw(histories(quota)):
        fits = longer.used(now_ms) + cost <= quota.limit
        admitted = ask(store, now_ms, rule, cost=cost)[0].admitted
        if admitted:
            longer.note(cost, now_ms)

        assert admitted or not fits


@given(st.integers(1, WINDOW_MS_MAX), st.sampled_from(COARSE_LIMITS))
def test_the_effective_window_is_at_most_a_128th_longer(window_ms: int, limit: int) -> None:
    """Whatever the window, a cell adds at most W / 128."""
    quota = Quota(limit, window_ms)

    assert (window_ms + quota.resolution_ms - 1) * PRECISION <= window_ms * (PRECISION + 1)


@pytest.mark.parametrize("limit", [*EXACT_LIMITS, *COARSE_LIMITS])
@pytest.mark.parametrize("window_ms", [1, 127, 128, 129, 1000, 60_000, WINDOW_MS_MAX])
def test_memory_does_not_grow_with_the_limit(limit: int, window_ms: int) -> None:
    """A key never holds more than PRECISION + 2 instants, although one unit comes in every cell for three windows."""
    hit = hits_of(rule_of(limit, window_ms))[0]
    window = Window()
    step_ms = max(1, window_ms // (2 * PRECISION))

    for index in range(6 * PRECISION):
        charge([hit], [window], START_MS + index * step_ms)

        assert len(window.instants) <= min(limit, PRECISION + 2)
        assert len(window.instants) == len(window.counts)
        assert sum(window.counts) == window.used <= limit


@given(st.data())
def test_a_changed_limit_never_doubles_memory_twice(data: st.DataObject) -> None:
    """Changing the limit back and forth across the precision leaves at most two precisions of instants."""
    store, now_ms = ReferenceStore(), START_MS
    for gap_ms, limit in data.draw(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from([PRECISION, PRECISION + 1, 1000])), min_size=50)
    ):
        now_ms += gap_ms
        ask(store, now_ms, rule_of(limit, 1000))

    assert all(len(window.instants) <= 2 * PRECISION + 2 for window in store.states.values())


# --- retry, reset, TTL -----------------------------------------------------------------------------------------------


@given(worked(), st.data())
def test_retry_is_exact(given_: tuple[tuple[Rule, ...], ReferenceStore, int], data: st.DataObject) -> None:
    """One millisecond before the announced moment the same request is refused, at it admitted (4): with several rules,
    costs, bursts and coarse cells alike.
    """
    chosen, store, now_ms = given_
    cost = data.draw(costs(min((window_of(rule) for rule in chosen), key=lambda quota: quota.limit)))
    decision = ask(store.copy(), now_ms, *chosen, cost=cost)[1]
    retry_after_ms = decision.retry_after_ms

    if decision.allowed:
        assert 0 == retry_after_ms
    elif retry_after_ms is None:
        assert any(cost > quota.limit for rule in chosen for quota in rule.quotas)
    else:
        assert retry_after_ms > 0
        assert not ask(store.copy(), now_ms + retry_after_ms - 1, *chosen, cost=cost)[1].allowed
        assert ask(store.copy(), now_ms + retry_after_ms, *chosen, cost=cost)[1].allowed
        earlier_ms = data.draw(st.integers(0, retry_after_ms - 1))
        assert not ask(store.copy(), now_ms + earlier_ms, *chosen, cost=cost)[1].allowed


@given(worked())
def test_reset_is_the_next_moment_that_used_falls(given_: tuple[tuple[Rule, ...], ReferenceStore, int]) -> None:
    """One millisecond before reset as much counts as now, at reset less does; 0 says that nothing counts."""
    chosen, store, now_ms = given_
    for rule in chosen:
        for index, tally in enumerate(ask(store.copy(), now_ms, rule, cost=0)[0].tallies):
            assert (tally.used == 0) == (tally.reset_ms == 0)
            if tally.reset_ms:
                assert tally.used == used(store, now_ms + tally.reset_ms - 1, rule)[index]
                assert tally.used > used(store, now_ms + tally.reset_ms, rule)[index]


@given(st.data())
def test_a_refusal_of_cost_1_resets_when_it_may_be_retried(data: st.DataObject) -> None:
    """Of a full window, reset and retry of a single unit are the same moment."""
    quota = data.draw(quotas())
    rule = rule_of(quota.limit, quota.window_ms)
    store = ReferenceStore()
    for now_ms, cost in data.draw(histories(quota)):
        ask(store, now_ms, rule, cost=cost)
        ask(store, now_ms, rule, cost=quota.limit - used(store, now_ms, rule)[0])
        tally = ask(store, now_ms, rule)[0].tallies[0]

        assert tally.reset_ms == tally.retry_after_ms > 0


@given(worked())
def test_a_key_is_useful_exactly_as_long_as_its_ttl(given_: tuple[tuple[Rule, ...], ReferenceStore, int]) -> None:
    """At the end of the TTL nothing counts, one millisecond earlier something does (6)."""
    chosen, store, now_ms = given_
    for hit in hits_of(*chosen, cost=0):
        window, last = store.state_of(hit), store.copy()
        window.forget(hit.quota, now_ms)
        ttl_ms = window.ttl_ms(hit.quota, now_ms)

        assert ttl_ms <= hit.quota.window_ms + window_of(hit).resolution_ms - 1
        assert 0 == last.charge_at([hit], now_ms + ttl_ms).tallies[0].used
        if window.used:
            assert store.copy().charge_at([hit], now_ms + ttl_ms - 1).tallies[0].used > 0


# --- all or nothing, refusals, peeks ---------------------------------------------------------------------------------


@given(worked(), st.data())
def test_charges_all_rules_or_none(given_: tuple[tuple[Rule, ...], ReferenceStore, int], data: st.DataObject) -> None:
    """An admission adds its cost to every tally, a refusal to none (1, 3)."""
    chosen, store, now_ms = given_
    cost = data.draw(costs(chosen[0].quota))
    before = used(store, now_ms, *chosen)
    receipt, _ = ask(store, now_ms, *chosen, cost=cost)
    expected = [units + cost for units in before] if receipt.admitted else before

    assert expected == [tally.used for tally in receipt.tallies] == used(store, now_ms, *chosen)


@given(worked(), st.data())
def test_a_refusal_changes_nothing(given_: tuple[tuple[Rule, ...], ReferenceStore, int], data: st.DataObject) -> None:
    """A hammering client is admitted as if it had been silent (3)."""
    chosen, silent, now_ms = given_
    hammered = silent.copy()
    full = min((window_of(rule) for rule in chosen), key=lambda quota: quota.limit)
    for gap_ms in data.draw(st.lists(gaps_ms(full), max_size=8)):
        now_ms += gap_ms
        if not ask(hammered.copy(), now_ms, *chosen, cost=full.limit)[0].admitted:
            ask(hammered, now_ms, *chosen, cost=full.limit)
    ask(silent, now_ms, *chosen, cost=0)

    ask(hammered, now_ms, *chosen, cost=0)
    assert silent.state() == hammered.state()


@given(worked())
def test_cost_0_peeks(given_: tuple[tuple[Rule, ...], ReferenceStore, int]) -> None:
    """A request of cost 0 is admitted, however full the windows, and counts nothing."""
    chosen, store, now_ms = given_
    before = used(store, now_ms, *chosen)
    receipt, decision = ask(store, now_ms, *chosen, cost=0)

    assert (True, WITHIN_LIMIT, 0) == (receipt.admitted, decision.reason, decision.retry_after_ms)
    assert before == used(store, now_ms, *chosen)


@pytest.mark.parametrize("rules_count", [1, 2])
def test_cost_0_peeks_at_a_lowered_limit(rules_count: int) -> None:
    """A peek is not refused although more counts than the limit, lowered since, allows; nothing has room for a unit."""
    names = [f"rule-{index}" for index in range(rules_count)]
    store = ReferenceStore()
    ask(store, START_MS, *(rule_of(10, 1000, name=name) for name in names), cost=10)
    lowered = [rule_of(3, 1000, name=name) for name in names]

    assert ask(store, START_MS + 1, *lowered, cost=0)[1].allowed
    assert [0] * rules_count == [o.remaining for o in ask(store, START_MS + 1, *lowered, cost=0)[1].outcomes]
    assert not ask(store, START_MS + 1, *lowered, cost=1)[1].allowed


@given(rules(), st.integers(0, 3))
def test_a_cost_that_never_fits_is_told_apart(rule: Rule, excess: int) -> None:
    """A cost above the limit is refused at once for a reason of its own, without a retry that cannot come true."""
    capacity = rule.quotas[0].limit
    _, decision = ask(ReferenceStore(), START_MS, rule, cost=capacity + excess)

    if excess:
        assert (False, OVER_CAPACITY, None) == (decision.allowed, decision.reason, decision.retry_after_ms)
    else:
        assert (True, WITHIN_LIMIT, 0) == (decision.allowed, decision.reason, decision.retry_after_ms)


@given(worked(), st.data())
def test_one_bulk_is_as_good_as_many_singles(
    given_: tuple[tuple[Rule, ...], ReferenceStore, int], data: st.DataObject
) -> None:
    """A cost of c is admitted exactly when c requests of cost 1 at the same instant all are, and leaves the same."""
    chosen, bulk, now_ms = given_
    singles = bulk.copy()
    cost = data.draw(st.integers(1, 12))
    admitted = ask(bulk, now_ms, *chosen, cost=cost)[0].admitted
    one_by_one = [ask(singles, now_ms, *chosen, cost=1)[0].admitted for _ in range(cost)]

    assert admitted == all(one_by_one)
    if admitted:
        assert bulk.state() == singles.state()


@given(st.data(), st.integers(1, 200))
def test_of_many_at_once_exactly_the_room_is_admitted(data: st.DataObject, crowd: int) -> None:
    """Bypass 17: of a crowd at one instant as many are admitted as there was room for."""
    quota = data.draw(quotas(EXACT_LIMITS))
    rule = rule_of(quota.limit, quota.window_ms)
    store = ReferenceStore()
    for now_ms, cost in data.draw(histories(quota, steps_max=4)):
        ask(store, now_ms, rule, cost=cost)
    room = quota.limit - used(store, now_ms, rule)[0]

    assert min(crowd, room) == sum(ask(store, now_ms, rule)[0].admitted for _ in range(crowd))


# --- shadow ----------------------------------------------------------------------------------------------------------


@given(st.data())
def test_a_shadow_has_the_numbers_of_its_twin(data: st.DataObject) -> None:
    """Alone, or beside rules that admit everything, a shadow rule never refuses, and what it says is what its enforcing
    twin says.
    """
    twin = data.draw(rules().filter(lambda rule: rule.quota.limit < 10**9))
    shadow = rule_of(twin.quota.limit, twin.quota.window_ms, burst=twin.burst, shadow=True)
    roomy = [rule_of(10**9, 1000, name="roomy")] * data.draw(st.integers(0, 1))
    enforced_store, shadow_store = ReferenceStore(), ReferenceStore()
    for now_ms, cost in data.draw(histories(window_of(twin))):
        enforced = ask(enforced_store, now_ms, twin, *roomy, cost=cost)[1]
        shadowed = ask(shadow_store, now_ms, shadow, *roomy, cost=cost)[1]

        assert shadowed.allowed
        assert enforced.outcomes[0][1:] == shadowed.outcomes[0][1:]
        assert enforced.allowed != shadowed.outcomes[0].refuses
        assert shadowed.binding is not None
        assert shadowed.binding.rule.shadow != bool(roomy)


@given(worked(), st.data())
def test_a_shadow_changes_no_verdict(given_: tuple[tuple[Rule, ...], ReferenceStore, int], data: st.DataObject) -> None:
    """With a shadow rule or without it, enforced rules decide alike, and the shadow is not charged for a refusal."""
    chosen, alone, now_ms = given_
    shadowed = alone.copy()
    shadow = data.draw(rules(shadow=True, name="shadow"))
    place = data.draw(st.integers(0, len(chosen)))
    together = [*chosen[:place], shadow, *chosen[place:]]
    for gap_ms, cost in data.draw(st.lists(st.tuples(gaps_ms(window_of(shadow)), costs(shadow.quota)), max_size=8)):
        now_ms += gap_ms
        before = used(shadowed, now_ms, shadow)
        expected = ask(alone, now_ms, *chosen, cost=cost)[1]
        actual = ask(shadowed, now_ms, *together, cost=cost)[1]

        assert expected == actual._replace(outcomes=[o for o in actual.outcomes if not o.rule.shadow])._replace(
            outcomes=expected.outcomes
        )
        assert list(expected.outcomes) == [o for o in actual.outcomes if not o.rule.shadow]
        if not actual.allowed:
            assert before == used(shadowed, now_ms, shadow)


# --- changes of policy, other traffic, other times -------------------------------------------------------------------


@given(st.data())
def test_changing_the_limit_keeps_the_counters(data: st.DataObject) -> None:
    """Whatever limit is in force at each request, none is forgotten early: a change applies at once, upward and
    downward, exact or coarse (2, 7).
    """
    window_ms = data.draw(st.sampled_from([6, 128, 129, 1000]))
    store, log = ReferenceStore(), ExactLog(10**9, window_ms)
    longest_ms = 0
    widest = Quota(1000, window_ms)
    now_ms = START_MS
    for gap_ms, cost, limit in data.draw(
        st.lists(st.tuples(gaps_ms(widest), costs(Quota(128, window_ms)), st.sampled_from([1, 3, 128, 129, 1000])))
    ):
        now_ms += gap_ms
        rule = rule_of(limit, window_ms)
        longest_ms = max(longest_ms, window_ms + window_of(rule).resolution_ms - 1)
        exact, coarse = log.used(now_ms), ExactLog(10**9, longest_ms)
        coarse.entries = log.entries
        receipt, _ = ask(store, now_ms, rule, cost=cost)
        if receipt.admitted and cost:
            assert exact + cost <= limit
            log.note(cost, now_ms)
        elif not receipt.admitted:
            assert coarse.used(now_ms) + cost > limit

        assert log.used(now_ms) <= receipt.tallies[0].used <= coarse.used(now_ms)


@given(worked(), st.data())
def test_a_higher_limit_or_a_lower_cost_never_refuses(
    given_: tuple[tuple[Rule, ...], ReferenceStore, int], data: st.DataObject
) -> None:
    """What is admitted stays admitted when a limit is raised or the cost lowered, and waits no longer."""
    chosen, store, now_ms = given_
    cost = data.draw(costs(chosen[0].quota))
    less = data.draw(st.integers(0, cost))
    more = data.draw(st.sampled_from([0, 1, 2, PRECISION, 1000]))
    raised = [
        rule_of(rule.quota.limit + more, rule.quota.window_ms, name=rule.name, burst=rule.burst) for rule in chosen
    ]
    strict = ask(store.copy(), now_ms, *chosen, cost=cost)[1]
    for lenient in (ask(store.copy(), now_ms, *chosen, cost=less)[1], ask(store.copy(), now_ms, *raised, cost=cost)[1]):
        assert strict.allowed <= lenient.allowed
        if strict.retry_after_ms is not None:
            assert lenient.retry_after_ms is not None
            assert lenient.retry_after_ms <= strict.retry_after_ms


@given(st.data())
def test_other_keys_never_influence(data: st.DataObject) -> None:
    """A principal's receipts are the same whether or not others come in between, and whether or not an unlimited rule
    is charged beside (7).
    """
    quota = data.draw(quotas())
    rule, roomy = rule_of(quota.limit, quota.window_ms), rule_of(10**9, 7, name="roomy")
    alone, crowded, accompanied = ReferenceStore(), ReferenceStore(), ReferenceStore()
    for now_ms, cost in data.draw(histories(quota)):
        for other in data.draw(st.lists(st.sampled_from(["q", "P", "p:"]), max_size=3)):
            crowded.charge_at(hits_of(rule, principal=other, cost=cost), now_ms)
        expected = ask(alone, now_ms, rule, cost=cost)[0]
        beside = accompanied.charge_at([*hits_of(rule, cost=cost), *hits_of(roomy, cost=0)], now_ms)

        assert expected == ask(crowded, now_ms, rule, cost=cost)[0]
        assert (expected.admitted, expected.tallies[0]) == (beside.admitted, beside.tallies[0])


@given(st.data(), st.integers(-5, 5), st.integers(2, 5))
def test_only_differences_of_time_count(data: st.DataObject, cells: int, factor: int) -> None:
    """Shifting all times (by whole cells) or stretching them with the window (at resolution 1) changes no verdict: no
    boundary is tied to the wall clock.
    """
    quota = data.draw(quotas())
    rule = rule_of(quota.limit, quota.window_ms)
    stretched_rule = rule_of(quota.limit, quota.window_ms * factor)
    shifted_ms = cells * quota.resolution_ms
    plain, shifted, stretched = ReferenceStore(), ReferenceStore(), ReferenceStore()
    for now_ms, cost in data.draw(histories(quota)):
        expected = ask(plain, now_ms, rule, cost=cost)[0]

        assert expected._replace(now_ms=0) == ask(shifted, now_ms + shifted_ms, rule, cost=cost)[0]._replace(now_ms=0)
        if quota.limit <= PRECISION:
            assert expected.admitted == ask(stretched, now_ms * factor, stretched_rule, cost=cost)[0].admitted


# --- clocks that are wrong -------------------------------------------------------------------------------------------


@given(st.data())
def test_survives_clock_steps(data: st.DataObject) -> None:
    """However the clock steps, a wait is at most W and a cell, and then the request is admitted; every step gives
    away at most one limit (I12).
    """
    quota = data.draw(quotas())
    rule = rule_of(quota.limit, quota.window_ms)
    store = ReferenceStore()
    longest_ms = quota.window_ms + quota.resolution_ms - 1
    steps = st.one_of(
        st.just(0),
        gaps_ms(quota),
        gaps_ms(quota).map(lambda gap_ms: -gap_ms),
        st.sampled_from([-(10**10), -10 * quota.window_ms, 10 * quota.window_ms, 10**10]),
    )
    now_ms, stepped = data.draw(starts_ms(quota)), False
    admitted_since: list[ExactLog] = [ExactLog(quota.limit, quota.window_ms)]  # one log per steady stretch of the clock
    for gap_ms, step_ms, cost in data.draw(
        st.lists(st.tuples(gaps_ms(quota), st.just(0) | steps, costs(quota)), max_size=25)
    ):
        now_ms += gap_ms + step_ms
        stepped = step_ms != 0
        if stepped:
            admitted_since.append(ExactLog(quota.limit, quota.window_ms))
        receipt, decision = ask(store, now_ms, rule, cost=cost)
        if receipt.admitted:
            admitted_since[-1].note(cost, now_ms)
        window = store.state_of(hits_of(rule)[0])

        assert admitted_since[-1].used(now_ms) <= quota.limit
        assert sorted(set(window.instants)) == list(window.instants)
        assert sum(window.counts) == window.used <= quota.limit
        assert len(window.instants) <= PRECISION + 2
        if decision.retry_after_ms:
            assert decision.retry_after_ms <= longest_ms
            assert not ask(store.copy(), now_ms + decision.retry_after_ms - 1, rule, cost=cost)[0].admitted
            assert ask(store.copy(), now_ms + decision.retry_after_ms, rule, cost=cost)[0].admitted
    assert ask(store, now_ms + longest_ms, rule, cost=quota.limit)[0].admitted


@pytest.mark.parametrize("limit", [3, 1000])
def test_a_clock_that_was_far_ahead_is_forgotten(limit: int) -> None:
    """Tallies of a clock that was more than one window ahead lock nobody out when it is put right."""
    rule = rule_of(limit, 60_000)
    store = ReferenceStore()
    ask(store, START_MS + 10**10, rule, cost=limit)

    assert ask(store, START_MS, rule, cost=limit)[0].admitted
    assert not ask(store, START_MS, rule)[0].admitted


def test_a_small_step_back_gives_nothing_away() -> None:
    """A clock that steps back by less than a window still counts what came before the step."""
    rule = rule_of(3, 60_000)
    store = ReferenceStore()
    ask(store, START_MS, rule, cost=3)

    for back_ms in (1, 1000, 59_999, 60_000):
        decision = ask(store, START_MS - back_ms, rule)[1]
        assert (False, 60_000) == (decision.allowed, decision.retry_after_ms), "counted as charged now"


# --- burst -----------------------------------------------------------------------------------------------------------


@given(st.data())
@example(None)
def test_a_burst_is_granted_once_in_ten_windows(data: st.DataObject | None) -> None:
    """With burst B a window never holds more than L + B, and ten windows never more than 10 L + B; both can be had."""
    if data is None:  # the greediest client there is
        limit, burst, window_ms = 3, 2, 10
        history = [(START_MS + tick, 1) for tick in range(300)]
    else:
        limit, burst = data.draw(st.sampled_from([1, 2, 10, 126, 128])), data.draw(st.sampled_from([1, 2, 3, 128]))
        window_ms = data.draw(st.sampled_from([1, 6, 129]))
        history = data.draw(histories(Quota(limit + burst, window_ms)))
    rule = rule_of(limit, window_ms, burst=burst)
    store = ReferenceStore()
    short, long = ExactLog(limit + burst, window_ms), ExactLog(LONG_WINDOWS * limit + burst, LONG_WINDOWS * window_ms)
    peaks = [0, 0]
    for now_ms, cost in history:
        if ask(store, now_ms, rule, cost=cost)[0].admitted:
            short.note(cost, now_ms)
            long.note(cost, now_ms)
        peaks = [max(peaks[0], short.used(now_ms)), max(peaks[1], long.used(now_ms))]

    assert peaks[0] <= short.limit
    assert peaks[1] <= long.limit
    if data is None:
        assert [5, 32] == peaks


# --- small scopes, exhausted -----------------------------------------------------------------------------------------

SmallState = tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...], int]


def small_states(
    quota: Quota, costs_: tuple[int, ...], steps_ms: tuple[int, ...]
) -> Iterator[tuple[Window, ExactLog, int, int]]:
    """Every state that any history of any length can reach, with every next request: (window, log, now, cost).

    States that differ in a shift of time by whole cells are one: that makes them few, and the search complete. The log
    is only kept while time goes forward.
    """
    rule = rule_of(quota.limit, quota.window_ms)
    forward = min(steps_ms) >= 0
    seen: set[SmallState] = set()
    queue: deque[SmallState] = deque([((), (), phase) for phase in range(quota.resolution_ms)])
    base_ms = 1000 * quota.resolution_ms
    while queue:
        state = queue.popleft()
        if state in seen:
            continue
        seen.add(state)
        for cost in costs_:
            window, log = Window(), ExactLog(quota.limit, quota.window_ms)
            now_ms = base_ms + state[2]
            for offset, count in state[0]:
                window.instants.append(now_ms + offset)
                window.counts.append(count)
                window.used += count
            log.entries = [(now_ms + offset, count) for offset, count in state[1]]
            yield window, log, now_ms, cost
            hit = Hit(b"key", quota, cost, rule)
            if charge([hit], [window], now_ms).admitted and cost and forward:
                log.note(cost, now_ms)
            for step_ms in steps_ms:
                later_ms = now_ms + step_ms
                later = copied(window)
                later.forget(quota, later_ms)
                pairs = zip(later.instants, later.counts, strict=True)
                gone_ms = later_ms - quota.window_ms - quota.resolution_ms + 1
                queue.append(
                    (
                        tuple((instant - later_ms, count) for instant, count in pairs),
                        tuple((instant - later_ms, count) for instant, count in log.entries if instant > gone_ms),
                        later_ms % quota.resolution_ms,
                    )
                )


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("window_ms", [1, 2, 3, 4, 5, 6])
def test_every_small_history_equals_the_exact_log(limit: int, window_ms: int) -> None:
    """Limit <= 3, window <= 6 ticks: after every history of any length, every next request is judged as by the log."""
    quota = Quota(limit, window_ms)
    rule = rule_of(limit, window_ms)
    count = 0
    for window, log, now_ms, cost in small_states(quota, costs_=(0, 1, 2, 3), steps_ms=(0, 1)):
        hit = Hit(b"key", quota, cost, rule)
        wait_ms = log.wait_ms(cost, now_ms) if cost <= limit else NEVER
        reset_ms = log.reset_ms(now_ms)
        receipt = charge([hit], [copied(window)], now_ms)
        count += 1
        if receipt.admitted:
            fresh_ms = window_ms if cost and not reset_ms else reset_ms
            expected = Tally(log.used(now_ms) + cost, fresh_ms, 0)
        else:
            expected = Tally(log.used(now_ms), reset_ms, wait_ms)
        assert (log.used(now_ms) + cost <= limit, expected) == (receipt.admitted, receipt.tallies[0])
    assert count > 4 * window_ms  # the search went on until nothing new came up


def coarse_quota(limit: int, window_ms: int, resolution_ms: int) -> Quota:
    """A quota that is coarse although small, so that coarse cells can be exhausted, too."""
    quota = Quota(limit, window_ms)
    object.__setattr__(quota, "resolution_ms", resolution_ms)
    return quota


@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("window_ms", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("resolution_ms", [2, 3])
def test_every_small_history_keeps_the_coarse_bounds(limit: int, window_ms: int, resolution_ms: int) -> None:
    """The same in cells of 2 and 3 ticks: never one too many, back within W and a cell, and a retry that is exact."""
    quota = coarse_quota(limit, window_ms, resolution_ms)
    rule = rule_of(limit, window_ms)
    for window, log, now_ms, cost in small_states(quota, costs_=(1, 2), steps_ms=(0, 1)):
        hit = Hit(b"key", quota, cost, rule)
        longer = ExactLog(limit, window_ms + resolution_ms - 1)
        longer.entries = log.entries
        receipt = charge([hit], [copied(window)], now_ms)

        if receipt.admitted:
            assert log.used(now_ms) + cost <= limit
        else:
            assert longer.used(now_ms) + cost > limit
        if (wait_ms := receipt.tallies[0].retry_after_ms) > 0:
            assert not charge([hit], [copied(window)], now_ms + wait_ms - 1).admitted
            assert charge([hit], [copied(window)], now_ms + wait_ms).admitted


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("window_ms", [1, 2, 3, 4])
@pytest.mark.parametrize("resolution_ms", [1, 2])
def test_every_small_clock_step_is_survived(limit: int, window_ms: int, resolution_ms: int) -> None:
    """Every history with steps back and forth of up to 3 W: waits are exact and at most W and two cells (I12)."""
    quota = coarse_quota(limit, window_ms, resolution_ms)
    rule = rule_of(limit, window_ms)
    steps_ms = (0, 1, -1, -window_ms, -window_ms - 1, -3 * window_ms)
    for window, _, now_ms, cost in small_states(quota, costs_=(1,), steps_ms=steps_ms):
        hit = Hit(b"key", quota, cost, rule)
        receipt = charge([hit], [copied(window)], now_ms)
        wait_ms = receipt.tallies[0].retry_after_ms

        assert wait_ms <= window_ms + 2 * resolution_ms - 2
        assert receipt.tallies[0].used <= limit
        if wait_ms:
            assert not charge([hit], [copied(window)], now_ms + wait_ms - 1).admitted
            assert charge([hit], [copied(window)], now_ms + wait_ms).admitted


@pytest.mark.parametrize("window_ms", [1, 2, 3, 4, 5, 6])
def test_every_small_history_is_monotone_in_the_limit(window_ms: int) -> None:
    """Of every pattern of 0, 1 or 2 units per tick, a limit of 3 admits what 2 admits, and 2 what 1 admits."""
    rules_ = [rule_of(limit, window_ms) for limit in (1, 2, 3)]

    def explore(windows: list[Window], tick: int) -> None:
        if tick == 8:
            return
        for arrivals in (0, 1, 2):
            branch = [copied(window) for window in windows]
            for _ in range(arrivals):
                verdicts = [
                    charge(hits_of(rule), [window], START_MS + tick).admitted
                    for rule, window in zip(rules_, branch, strict=True)
                ]
                assert sorted(verdicts) == verdicts
            explore(branch, tick + 1)

    explore([Window() for _ in rules_], 0)


# --- details ---------------------------------------------------------------------------------------------------------


def test_one_decision_uses_one_clock() -> None:
    """All distances of a receipt count from its own `now_ms` (5)."""
    rule = rule_of(2, 1000, burst=1)
    store = ReferenceStore()
    ask(store, START_MS, rule, cost=3)
    receipt, _ = ask(store, START_MS + 400, rule)

    assert Receipt(START_MS + 400, False, [Tally(3, 600, 600), Tally(3, 9600, 0)]) == receipt


def test_the_last_instant_of_a_cell() -> None:
    """A charge is remembered under the last millisecond of its cell: itself at resolution 1."""
    exact, coarse = Quota(128, 1000), Quota(129, 1000)

    assert (1, 8) == (exact.resolution_ms, coarse.resolution_ms)
    assert [0, 7, 8, 999] == [last_instant(exact, now_ms) for now_ms in (0, 7, 8, 999)]
    assert [7, 7, 15, 999] == [last_instant(coarse, now_ms) for now_ms in (0, 7, 8, 999)]


def test_no_wait_makes_room_for_more_than_the_limit() -> None:
    """Asked how long until more than its limit fits, a window says never, whatever it holds."""
    window, quota = Window(), Quota(3, 1000)
    for _ in range(4):
        assert window.wait_ms(quota, 4, START_MS) == NEVER
        window.add(quota, 1, START_MS)


@pytest.mark.parametrize(
    ("used", "at_ms", "expected"),
    [
        (5, START_MS, [(START_MS, 5)]),
        (5, START_MS - 999, [(START_MS - 999, 3), (START_MS, 2)]),
        (5, START_MS + 7, [(START_MS, 2), (START_MS + 7, 3)]),
        (5, START_MS - 1000, [(START_MS, 2)]),  # has left the window
        (2, START_MS - 1, [(START_MS, 2)]),  # is counted already
        (0, START_MS - 1, [(START_MS, 2)]),
    ],
)
def test_what_was_used_elsewhere_is_recalled(used: int, at_ms: int, expected: list[tuple[int, int]]) -> None:
    """Only the units that are missing count, under the moment of the other store, for as long as they would there."""
    window, quota = Window(), Quota(10, 1000)
    window.add(quota, 2, START_MS)
    window.recall(quota, used, at_ms, START_MS)

    assert expected == list(zip(window.instants, window.counts, strict=True))
    assert sum(count for _, count in expected) == window.used


def test_a_part_of_a_charge_is_given_back() -> None:
    """With less due than was charged, the rest is free at once, and what was due counts on until its time is up."""
    window, quota, rule = Window(), Quota(10, 1000), rule_of(10, 1000)
    window.add(quota, 6, START_MS)
    window.settle(settlement_of(Hit(b"key", quota, 6, rule), 2, START_MS), START_MS + 5)

    assert ([START_MS], [2], 2) == (list(window.instants), list(window.counts), window.used)


def test_settlements_fill_a_window_no_further_than_it_can_count() -> None:
    """Calls that turn out to cost far more than they reserved are charged up to the largest number that is stored."""
    window, quota, rule = Window(), Quota(10, 1000), rule_of(10, 1000)
    for _ in range(6):
        window.settle(settlement_of(Hit(b"key", quota, 0, rule), 10**9, START_MS), START_MS)

    assert ([START_MS], USED_MAX) == (list(window.instants), window.used)
