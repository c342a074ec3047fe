"""What holds whatever kinds of limits a request meets at once."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.algorithms import STATES, settle
from ratelimiter.core.algorithms.calendar import around
from ratelimiter.core.algorithms.sliding_window import Window
from ratelimiter.core.charge import charge
from ratelimiter.core.client_address import Trust
from ratelimiter.core.decision import OVER_LIMIT, SLOT_WAIT_MS_MAX, decide
from ratelimiter.core.policy import Policy, key_of
from ratelimiter.core.principal import CLIENT, PrincipalReader
from ratelimiter.core.quota import LEASE_TTL_MS_MAX, AnyQuota, Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import NEVER, Receipt, Tally
from ratelimiter.core.rule import CostFrom, Hit, OnStoreError, Rule
from ratelimiter.core.settlement import RENEW, settlement_of
from tests.reference_store import (
    START_MS,
    ReferenceStore,
    facts,
    hits_of,
    kinds,
    mixed_gaps_ms,
    mixed_requests,
    rule_with,
    settlements,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_OF_EACH: list[AnyQuota] = [
    Quota(3, 60_000),
    Bucket(3, 1, 60_000),
    Period(3, "month"),
    Slots(3),
    Balance(3),
    Period(3, "day", "Europe/Berlin", credits=True),
]


def histories(data: st.DataObject, rules: list[Rule], steps_max: int = 12) -> list[tuple[int, list[Hit]]]:
    """Requests that meet some of *rules*, as (now_ms, hits)."""
    now_ms, history = START_MS, []
    for lease in range(1, data.draw(st.integers(1, steps_max)) + 1):
        now_ms = max(0, now_ms + data.draw(mixed_gaps_ms(data.draw(st.sampled_from(rules)).quota)))
        history.append((now_ms, data.draw(mixed_requests(rules, lease))))
    return history


def rules_of(data: st.DataObject) -> list[Rule]:
    quotas = data.draw(st.lists(kinds(), min_size=1, max_size=5))
    return [rule_with(q, f"rule-{n}", shadow=data.draw(st.integers(0, 3)) == 0) for n, q in enumerate(quotas)]


@given(st.data())
def test_all_or_none(data: st.DataObject) -> None:
    """An admitted request is charged to all the rules that it met, a refused one to none, of whatever kinds (1, 3)."""
    store = ReferenceStore()
    for now_ms, hits in histories(data, rules_of(data)):
        before = {hit.key: store.state_of(hit) for hit in hits}
        for hit in hits:
            before[hit.key].forget(hit.quota, now_ms)
        before = deepcopy(before)
        receipt = store.charge_at(hits, now_ms)
        refusing = {h.rule.name for h, tally in zip(hits, receipt.tallies, strict=True) if tally.retry_after_ms}

        assert receipt.admitted == (not any(hit.rule.name in refusing and not hit.rule.shadow for hit in hits))
        for hit, tally in zip(hits, receipt.tallies, strict=True):
            charged = hit.cost if receipt.admitted and hit.rule.name not in refusing else 0
            assert tally.used == before[hit.key].used + charged
            if not charged:
                assert facts(before[hit.key]) == facts(store.state_of(hit))


@given(st.data())
def test_a_shadow_has_its_twins_numbers(data: st.DataObject) -> None:
    """A rule of whatever kind, in shadow and alone, says at every step what its enforcing twin says."""
    quota = data.draw(kinds())
    enforced, shadow = ReferenceStore(), ReferenceStore()
    twin = rule_with(quota, shadow=True)
    for now_ms, hits in histories(data, [rule_with(quota)]):
        expected = enforced.charge_at(hits, now_ms)
        receipt = shadow.charge_at([hit._replace(rule=twin) for hit in hits], now_ms)

        assert receipt.admitted
        assert list(expected.tallies) == list(receipt.tallies)
        if expected.admitted:
            settled = data.draw(settlements(hits, now_ms))
            assert enforced.settle_at(settled, now_ms) == shadow.settle_at(settled, now_ms)


@given(st.data())
def test_retry_is_when_all_have_let_go(data: st.DataObject) -> None:
    """The longest wait is exact over all kinds: one ms earlier is refused, at it admitted (4)."""
    store = ReferenceStore()
    for now_ms, hits in histories(data, rules_of(data)):
        receipt = store.charge_at(hits, now_ms)
        waits = [t.retry_after_ms for h, t in zip(hits, receipt.tallies, strict=True) if not h.rule.shadow]
        if not receipt.admitted and NEVER not in waits:
            assert not store.copy().charge_at(hits, now_ms + max(waits) - 1).admitted
            assert store.copy().charge_at(hits, now_ms + max(waits)).admitted


@pytest.mark.parametrize("quota", ONE_OF_EACH, ids=lambda quota: quota.kind)
def test_what_is_settled_at_once_to_nothing_never_was(quota: AnyQuota) -> None:
    """Charged and settled in the same millisecond to nothing due, a key of whatever kind is as before."""
    hit = Hit(b"k", quota, 2, rule_with(quota), 7 if quota.lease_ttl_ms else 0)
    state: Any = STATES[quota.kind]()
    assert charge([hit], [state], START_MS).admitted
    settle(settlement_of(hit, RENEW, START_MS), state, START_MS)
    assert 2 == state.used

    assert 0 == settle(settlement_of(hit, 0, START_MS), state, START_MS).used
    assert 0 == state.ttl_ms(quota, START_MS)


@pytest.mark.parametrize("quota", ONE_OF_EACH, ids=lambda quota: quota.kind)
def test_a_state_is_useful_exactly_as_long_as_its_ttl(quota: AnyQuota) -> None:
    """At the end of the TTL nothing counts, one ms earlier something does (6); a balance never ceases to matter."""
    hit = Hit(b"k", quota, 2, rule_with(quota), 7 if quota.kind == "slots" else 0)
    state: Any = STATES[quota.kind]()
    charge([hit], [state], START_MS)
    ttl_ms = state.ttl_ms(quota, START_MS)

    for later_ms, counts in ((ttl_ms - 1, True), (ttl_ms, quota.kind == "balance")):
        later = deepcopy(state)
        later.forget(quota, START_MS + later_ms)
        assert counts == (later.used > 0)


def test_a_window_pays_off_what_turned_out_to_be_due() -> None:
    """Beyond its limit if need be: who was charged 1 of 3 and cost 5 waits until enough of it has left."""
    rule = rule_with(Quota(3, 1000))
    (hit,) = hits_of(rule)
    window = Window()
    charge([hit], [window], START_MS)

    assert 5 == settle(settlement_of(hit, 5, START_MS), window, START_MS + 10).used
    assert 1000 == charge([hit], [window], START_MS + 10).tallies[0].retry_after_ms
    assert 4 == settle(settlement_of(hit, 0, START_MS), window, START_MS + 20).used
    assert 4 == settle(settlement_of(hit, 0, START_MS), window, START_MS + 20).used, "its entry is gone: nothing more"


def test_clients_are_not_told_to_wait_for_a_lease() -> None:
    """A slot mostly returns long before its lease would lapse: a client is told a second at most."""
    (hit,) = hits_of(rule_with(Slots(1)))
    for wait_ms, told_ms in ((30_000, SLOT_WAIT_MS_MAX), (400, 400)):
        decision = decide([hit], Receipt(START_MS, False, [Tally(1, wait_ms, wait_ms)]))

        assert (OVER_LIMIT, told_ms) == (decision.reason, decision.retry_after_ms)


@pytest.mark.parametrize("quota", ONE_OF_EACH, ids=lambda quota: quota.kind)
def test_what_is_leased_and_what_is_settled(quota: AnyQuota) -> None:
    """Slots always are leases; periods and balances where something of the cost is known only later."""
    account, slots = quota.kind in ("period", "balance"), quota.kind == "slots"
    plain, asked = rule_with(quota), rule_with(quota, cost_from=CostFrom("request_header", "x-cost"))
    assert [(slots, slots)] * 2 == [(rule.settles, rule.leased) for rule in (plain, asked)]
    if slots:
        return
    counting = rule_with(quota, count=frozenset({"401", "4xx"}))
    priced = rule_with(quota, cost_from=CostFrom("response_header", "x-cost"))
    assert [(True, account or slots)] * 2 == [(rule.settles, rule.leased) for rule in (counting, priced)]


def test_an_outage_hands_out_no_credits() -> None:
    """A rule of credits that says nothing denies without the store; others count locally."""
    for quota in ONE_OF_EACH:
        expected = OnStoreError.DENY if quota.credits else OnStoreError.LOCAL
        assert expected is Rule("r", quota).on_store_error
        assert OnStoreError.ALLOW is Rule("r", quota, on_store_error=OnStoreError.ALLOW).on_store_error


def test_kinds_never_share_a_key() -> None:
    """What a window counted is nothing to a bucket: a rule whose kind changes begins anew (7)."""
    principal = PrincipalReader([CLIENT], Trust()).read((CLIENT,), (), "192.0.2.1")
    keys = [
        key_of(Policy((Rule("r", quota),)), Rule("r", quota), principal, 0)
        for quota in ONE_OF_EACH
        if not (quota.kind == "period" and quota.credits)
    ]

    assert len(set(keys)) == len(keys)
    assert keys[0].endswith(b":r:0")


BAD = [
    (lambda: Period(1, "fortnight"), "unit must be one of"),
    (lambda: Period(0, "day"), "limit must be"),
    (lambda: Period(1, "day", lease_ttl_ms=999), "lease_ttl_ms must be"),
    (lambda: Slots(1001), "limit must be 1 to 1000"),
    (lambda: Slots(1, LEASE_TTL_MS_MAX + 1), "lease_ttl_ms must be"),
    (lambda: Balance(0), "limit must be"),
    (lambda: Rule("r", Slots(1), burst=1), "burst must be 0"),
    (lambda: Rule("r", Slots(1), count=frozenset({"600"})), "count must be of statuses"),
    (lambda: Rule("r", Slots(1), cost_from=CostFrom("cookie", "x")), "cost_from must be"),
    (lambda: Rule("r", Slots(1), cost_from=CostFrom("request_header", "X-Cost")), "in lower case"),
    (lambda: Rule("r", Slots(1), plans=(("a", None), ("a", Slots(2)))), "plans must differ"),
    (lambda: Rule("r", Slots(1), plans=(("a", Balance(2)),)), "of the rule's kind"),
    (lambda: Rule("r", Slots(1), warn_at=0), "warn_at must be"),
    (lambda: Rule("r", Slots(1), warn_at=1.1), "warn_at must be"),
]


@pytest.mark.parametrize(("make", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_nonsense_is_refused_at_the_door(make: object, problem: str) -> None:
    """A value outside its range is refused where it is made, and the error says what would do."""
    with pytest.raises(ValueError, match=problem):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("ahead", [1, 0.5, 0.01], ids=["a window", "half a window", "a hundredth"])
@pytest.mark.parametrize("quota", [one for one in ONE_OF_EACH if one.kind != "balance"], ids=lambda quota: quota.kind)
def test_no_wait_is_longer_than_the_window_whatever_the_clock_was(quota: AnyQuota, ahead: float) -> None:
    """A state of a server whose clock was ahead delays a client for at most one window, period or lease TTL, and the
    announced wait is kept, also if the client asked before (invariant 4).
    """
    longest: dict[str, Callable[[Any], int]] = {
        "window": lambda q: q.window_ms + q.resolution_ms - 1,
        "bucket": lambda q: -(-q.limit * q.weight // q.drain),
        "period": lambda q: around(q, START_MS)[2] - START_MS,
        "slots": lambda q: q.lease_ttl_ms,
    }
    longest_ms = longest[quota.kind](quota)
    (one,) = hits_of(rule_with(quota))
    full = one._replace(cost=quota.limit, lease=7 if quota.kind == "slots" else 0)
    asked = one._replace(cost=1, lease=8 if quota.kind == "slots" else 0)
    state: Any = STATES[quota.kind]()
    step_ms = longest_ms + 1 if quota.kind == "period" else int(longest_ms * ahead)  # into the next period
    assert charge([full], [state], START_MS + step_ms).admitted

    first = charge([asked], [state], START_MS).tallies[0].retry_after_ms
    again = charge([asked], [state], START_MS + 5).tallies[0].retry_after_ms

    assert 0 < first <= longest_ms
    assert first - 5 == again, "the wait runs from the first time that it was announced"
    assert not charge([asked], [deepcopy(state)], START_MS + first - 1).admitted
    assert charge([asked], [deepcopy(state)], START_MS + first).admitted
