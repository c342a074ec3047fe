"""Periods, slots and balances: against a plain book of entries, and the promises one by one."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.algorithms import settle
from ratelimiter.core.algorithms.account import BALANCE_MAX, Account
from ratelimiter.core.algorithms.calendar import around
from ratelimiter.core.charge import charge
from ratelimiter.core.quota import LEASES_MAX, LIMIT_MAX, AnyQuota, Balance, Period, Quota, Slots
from ratelimiter.core.receipt import NEVER, Tally
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.core.settlement import RENEW, Settlement, settlement_of, topup
from tests.reference_store import START_MS, ZONES, rule_with

TTL_MS = 30_000
HOUR_MS = 3_600_000

ACCOUNTS = st.one_of(
    st.builds(Period, st.sampled_from([1, 3, 10]), st.sampled_from(["hour", "day", "month"]), st.sampled_from(ZONES)),
    st.builds(Slots, st.sampled_from([1, 3, 10])),
    st.builds(Balance, st.sampled_from([1, 3, 10])),
)


def hit(quota: AnyQuota, cost: int = 1, lease: int = 0) -> Hit:
    return Hit(b"k", quota, cost, rule_with(quota), lease)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class Book:
    """The oracle: all that ever happened, added up anew for each question."""

    def __init__(self, quota: Any) -> None:
        self.quota = quota
        self.spent: list[tuple[int, int]] = []  # when, units
        self.leases: dict[int, list[int]] = {}  # units, until
        self.overspent = 0

    def used(self, now_ms: int) -> int:
        period = around(self.quota, now_ms)[1] if isinstance(self.quota, Period) else 0
        spent = sum(units for instant, units in self.spent if instant >= period)
        return spent + sum(units for units, until_ms in self.leases.values() if now_ms < until_ms)

    def charge(self, cost: int, lease: int, now_ms: int) -> bool:
        fits = self.used(now_ms) + cost <= self.quota.limit or not cost
        if fits and cost and lease:
            self.leases[lease] = [cost, now_ms + self.quota.lease_ttl_ms]
        elif fits and cost:
            self.spent.append((now_ms, cost))
        return fits

    def settle(self, lease: int, charged: int, due: int, now_ms: int) -> None:
        units, until_ms = self.leases.get(lease, (0, 0))
        open_units = units if now_ms < until_ms else 0
        there = max(0, self.quota.limit - self.used(now_ms))
        if due == RENEW:
            again = open_units or min(charged, there)
            self.leases[lease] = [again, now_ms + self.quota.lease_ttl_ms]
            return
        self.leases.pop(lease, None)
        if not isinstance(self.quota, Slots):
            self.spent.append((now_ms, min(due, there + open_units)))


@given(st.data())
def test_equals_a_book_of_entries(data: st.DataObject) -> None:
    """Verdicts and units used are those of a book that is added up anew each time, through charges, leases that are
    settled, renewed and left to lapse, and the ends of periods; and never is more used than the limit.
    """
    quota = data.draw(ACCOUNTS)
    state, book, now_ms = Account(), Book(quota), START_MS - 1
    charged: dict[int, int] = {}
    gaps = st.sampled_from([0, 1, TTL_MS // 2, TTL_MS - 1, TTL_MS, TTL_MS + 1, HOUR_MS - 1, HOUR_MS, 86_400_000])
    for lease in range(1, data.draw(st.integers(1, 20)) + 1):
        now_ms += data.draw(gaps)
        settles = bool(charged) and data.draw(st.booleans())
        settled = data.draw(st.sampled_from(sorted(charged))) if settles else None
        if settled is None:
            cost = data.draw(st.sampled_from([0, 1, 2, quota.limit, quota.limit + 1]))
            one = hit(quota, cost, lease if data.draw(st.booleans()) or isinstance(quota, Slots) else 0)
            expected = book.charge(cost, one.lease, now_ms)
            receipt = charge([one], [state], now_ms)
            assert expected == receipt.admitted
            if receipt.admitted and one.lease and cost:
                charged[lease] = cost
            used = receipt.tallies[0].used
        else:
            cost = charged[settled]
            due = data.draw(st.sampled_from([0, 1, cost, cost + 2, RENEW]))
            if due != RENEW:
                del charged[settled]
            book.settle(settled, cost, due, now_ms)
            used = settle(settlement_of(hit(quota, cost, settled), due, now_ms), state, now_ms).used

        assert book.used(now_ms) == used <= quota.limit


@given(st.data())
def test_retry_is_exact(data: st.DataObject) -> None:
    """One ms before the announced moment a retry is refused, at it admitted, if nothing is settled meanwhile (4): also
    after the clock was set back. Where none is announced, none helps for as long as one looks.
    """
    quota = data.draw(ACCOUNTS)
    state, now_ms = Account(), START_MS + data.draw(st.integers(0, 10**9))
    steps = st.sampled_from([0, 1, -1, TTL_MS, TTL_MS - 1, -TTL_MS, -3 * TTL_MS, HOUR_MS, -HOUR_MS, 86_400_000])
    for lease in range(1, data.draw(st.integers(2, 12))):
        now_ms += data.draw(steps)
        cost = data.draw(st.sampled_from([1, 2, quota.limit, quota.limit + 1]))
        one = hit(quota, cost, lease if data.draw(st.booleans()) or isinstance(quota, Slots) else 0)
        receipt = charge([one], [state], now_ms)
        wait_ms = receipt.tallies[0].retry_after_ms

        assert receipt.admitted == (wait_ms == 0)
        if wait_ms > 0:
            assert not charge([one], [deepcopy(state)], now_ms + wait_ms - 1).admitted
            assert charge([one], [deepcopy(state)], now_ms + wait_ms).admitted
        if wait_ms == NEVER:
            for later_ms in (1, TTL_MS, 3 * TTL_MS, 10 * 366 * 86_400_000):
                assert not charge([one], [deepcopy(state)], now_ms + later_ms).admitted


# --- slots


def test_slots_are_taken_and_returned() -> None:
    """Of two slots two are taken; the third is told when the first lapses, and gets in when one is returned."""
    quota, state = Slots(2), Account()
    hits = [hit(quota, 1, lease) for lease in (11, 12, 13)]
    receipts = [charge([one], [state], START_MS + number) for number, one in enumerate(hits)]

    assert [True, True, False] == [receipt.admitted for receipt in receipts]
    assert [Tally(2, TTL_MS - 2, TTL_MS - 2)] == receipts[2].tallies
    assert Tally(1, TTL_MS - 10, 0) == settle(settlement_of(hits[1], 0, START_MS), state, START_MS + 10)
    assert charge([hits[2]], [state], START_MS + 10).admitted
    assert not charge([hit(quota, 1, 14)], [state], START_MS + 10).admitted


def test_a_slot_is_returned_whatever_was_due() -> None:
    """A lease of slots ends with its settlement; nothing is spent."""
    quota, state = Slots(1), Account()
    charge([hit(quota, 1, 7)], [state], START_MS)

    assert Tally(0, 0, 0) == settle(settlement_of(hit(quota, 1, 7), 5, START_MS), state, START_MS + 1)


def test_a_lease_lapses_at_its_ttl_and_not_before() -> None:
    """A holder that says nothing has its slot for exactly the TTL; one that renews, for a TTL more from then on."""
    quota, state = Slots(1, 5000), Account()
    charge([hit(quota, 1, 7)], [state], START_MS)
    assert not charge([hit(quota, 1, 8)], [state], START_MS + 4999).admitted
    settle(settlement_of(hit(quota, 1, 7), RENEW, START_MS), state, START_MS + 4999)
    assert not charge([hit(quota, 1, 8)], [state], START_MS + 9998).admitted
    assert charge([hit(quota, 1, 8)], [state], START_MS + 9999).admitted


def test_a_lapsed_lease_is_renewed_only_where_there_is_room() -> None:
    """Who comes back late gets a slot again if one is free, and none that another one has taken meanwhile."""
    quota, state = Slots(1, 5000), Account()
    renewal = settlement_of(hit(quota, 1, 7), RENEW, START_MS)
    charge([hit(quota, 1, 7)], [state], START_MS)
    assert 1 == settle(renewal, state, START_MS + 6000).used
    charge([hit(quota, 1, 8)], [state], START_MS + 12_000)
    settle(renewal, state, START_MS + 12_001)

    assert [8] == [lease.name for lease in state.leases]


def test_somebody_elses_lease_is_nobodys() -> None:
    """A settlement meets its own lease only; one without a name meets none."""
    quota, state = Slots(3), Account()
    for lease in (7, 0, 8):
        charge([hit(quota, 1, lease)], [state], START_MS)
    for lease in (9, 0):
        settle(settlement_of(hit(quota, 1, lease), 0, START_MS), state, START_MS)

    assert [7, 0, 8] == [lease.name for lease in state.leases]


def test_a_step_back_keeps_no_slot_for_longer_than_two_ttls() -> None:
    """Leases from a clock that was far ahead are forgotten; up to a TTL ahead they hold."""
    for step_ms, held in ((0, True), (5000, True), (5001, False), (10**9, False)):
        quota, state = Slots(1, 5000), Account()
        charge([hit(quota, 1, 7)], [state], START_MS)

        assert held != charge([hit(quota, 1, 8)], [state], START_MS - step_ms).admitted


# --- periods


@pytest.mark.parametrize(
    ("unit", "zone", "last", "first"),
    [
        ("month", "UTC", "2024-02-29T23:59:59.999", "2024-03-01"),
        ("month", "Europe/Berlin", "2026-10-31T22:59:59.999", "2026-10-31T23:00"),
        ("day", "Europe/Berlin", "2026-10-25T22:59:59.999", "2026-10-25T23:00"),
        ("year", "UTC", "2026-12-31T23:59:59.999", "2027-01-01"),
    ],
)
def test_a_period_ends_when_the_calendar_says(unit: str, zone: str, last: str, first: str) -> None:
    """In its last millisecond it is refused, told to wait one, and begins anew in the next."""
    quota, state = Period(2, unit, zone), Account()
    charge([hit(quota, 2)], [state], around(quota, at(last))[1])
    assert [Tally(2, 1, 1)] == charge([hit(quota)], [state], at(last)).tallies
    receipt = charge([hit(quota)], [state], at(first))

    assert (True, 1) == (receipt.admitted, receipt.tallies[0].used)
    assert around(quota, at(first))[2] - at(first) == receipt.tallies[0].reset_ms


def test_a_step_back_over_the_end_gives_nothing_away() -> None:
    """If the clock is set back into the period before, the charges of the later one count there, until it ends;
    charges from further ahead are dropped.
    """
    quota, state = Period(2, "month"), Account()
    charge([hit(quota, 2)], [state], at("2026-11-01"))
    further = deepcopy(state)
    refused = charge([hit(quota)], [state], at("2026-10-31"))

    assert (False, at("2026-11-01") - at("2026-10-31")) == (refused.admitted, refused.tallies[0].retry_after_ms)
    assert charge([hit(quota)], [further], at("2026-09-30")).admitted


def test_another_zone_keeps_what_was_spent_if_it_is_of_this_period() -> None:
    """From UTC to Berlin the month began an hour earlier, so all that was spent since counts on (7)."""
    state = Account()
    charge([hit(Period(5, "month"), 3)], [state], at("2026-11-10"))

    assert 3 == charge([hit(Period(5, "month", "Europe/Berlin"), 0)], [state], at("2026-11-10")).tallies[0].used


def test_a_reservation_outlives_the_end_of_its_period() -> None:
    """It counts in the next one, too, and is spent in the one in which it is settled."""
    quota, state = Period(100, "month", credits=True), Account()
    reserved = hit(quota, 60, 7)
    charge([reserved], [state], at("2026-10-31T23:59:50"))
    assert [Tally(60, 30 * 86_400_000, 20_000)] == charge([hit(quota, 50, 8)], [state], at("2026-11-01")).tallies
    settle(settlement_of(reserved, 35, at("2026-10-31T23:59:50")), state, at("2026-11-01T00:00:01"))

    assert 35 == charge([hit(quota, 0)], [state], at("2026-11-02")).tallies[0].used


def test_only_what_this_period_was_charged_is_given_back() -> None:
    """Without a lease a charge is given back within its period, and not to a later one."""
    quota, state = Period(5, "month"), Account()
    charge([hit(quota, 3)], [state], at("2026-10-31"))
    charge([hit(quota, 3)], [state], at("2026-11-01"))
    assert 3 == settle(settlement_of(hit(quota, 3), 0, at("2026-10-31")), state, at("2026-11-01")).used
    assert 1 == settle(settlement_of(hit(quota, 3), 1, at("2026-11-01")), state, at("2026-11-02")).used


# --- balances


def test_a_balance_is_spent_and_topped_up() -> None:
    """What is spent stays spent until it is topped up, which may lead above the limit; nothing waits for it."""
    quota, state = Balance(100), Account()
    rule = rule_with(quota)
    assert charge([hit(quota, 70)], [state], START_MS).admitted
    refused = charge([hit(quota, 50)], [state], START_MS)
    assert (False, [Tally(70, 0, NEVER)]) == (refused.admitted, refused.tallies)
    receipt = charge([topup(b"k", quota, 200, rule)], [state], START_MS)
    assert (True, [Tally(-130, 0, 0)]) == (receipt.admitted, receipt.tallies)
    assert charge([hit(quota, 230)], [state], START_MS + 10**11).admitted
    assert not charge([hit(quota, 1)], [state], START_MS + 10**11).admitted


@given(st.data())
def test_a_balance_is_never_overspent(data: st.DataObject) -> None:
    """Whatever is reserved, settled late, early, higher than reserved, renewed or topped up in between: what was taken
    is at most what there was.
    """
    quota = Balance(data.draw(st.sampled_from([1, 10, 100])), 5000)
    state, now_ms, given_out = Account(), START_MS, quota.limit
    pending: list[Settlement] = []
    for lease in range(1, data.draw(st.integers(1, 25))):
        now_ms += data.draw(st.sampled_from([0, 1, 2500, 4999, 5000, 5001]))
        choice = data.draw(st.integers(0, 4))
        if choice == 0:
            units = data.draw(st.integers(1, 50))
            given_out += units
            charge([topup(b"k", quota, units, rule_with(quota))], [state], now_ms)
        elif choice == 1 and pending:
            one = pending.pop(data.draw(st.integers(0, len(pending) - 1)))
            settle(one._replace(due=data.draw(st.integers(0, 60))), state, now_ms)
        elif choice == 2 and pending:
            settle(data.draw(st.sampled_from(pending))._replace(due=RENEW), state, now_ms)
        else:
            one_hit = hit(quota, data.draw(st.integers(1, 40)), lease)
            if charge([one_hit], [state], now_ms).admitted:
                pending.append(settlement_of(one_hit, 0, now_ms))
        spent = state.spent + given_out - quota.limit

        assert 0 <= spent <= given_out
        assert state.used <= quota.limit


def test_a_reservation_is_settled_to_what_was_due() -> None:
    """50 reserved and 12 due leaves 38 more than before; 70 due takes what is there and no more."""
    quota, state = Balance(100), Account()
    for lease, due, used in ((7, 12, 12), (8, 70, 82), (9, 70, 100)):
        one = hit(quota, min(50, 100 - state.spent), lease)
        assert charge([one], [state], START_MS).admitted
        assert Tally(used, 0, 0) == settle(settlement_of(one, due, START_MS), state, START_MS + 5)


def test_what_was_reserved_is_there_even_if_the_limit_was_lowered() -> None:
    """A reservation that was made is settled in full although the balance would not cover it any more."""
    state = Account()
    charge([hit(Balance(100), 50, 7)], [state], START_MS)
    settle(settlement_of(hit(Balance(10), 50, 7), 50, START_MS), state, START_MS)

    assert 50 == state.spent


def test_a_top_up_beyond_all_measure_is_refused() -> None:
    """So that the arithmetic stays exact; nothing is credited then."""
    quota, state = Balance(1), Account()
    state.spent = 1 - BALANCE_MAX
    full = topup(b"k", quota, 1, rule_with(quota))
    assert charge([full], [state], START_MS).admitted
    refused = charge([full], [state], START_MS)

    assert (False, -BALANCE_MAX, NEVER) == (refused.admitted, state.spent, refused.tallies[0].retry_after_ms)


@pytest.mark.parametrize(("quota", "units"), [(Balance(5), 0), (Balance(5), LIMIT_MAX + 1), (Slots(5), 1)])
def test_a_top_up_that_is_none(quota: AnyQuota, units: int) -> None:
    """Only a balance is topped up, by a number within range."""
    with pytest.raises(ValueError, match=r"top-up must be|is no balance"):
        topup(b"k", quota, units, Rule("credits", Quota(1, 1)))


def test_reservations_are_so_many_at_most() -> None:
    """Further ones are refused until the first one lapses, so that a key stays of a bounded size."""
    quota, state = Balance(LIMIT_MAX), Account()
    for lease in range(1, LEASES_MAX + 1):
        assert charge([hit(quota, 1, lease)], [state], START_MS + lease).admitted
    refused = charge([hit(quota, 1, LEASES_MAX + 1)], [state], START_MS + LEASES_MAX)

    assert (False, TTL_MS + 1 - LEASES_MAX) == (refused.admitted, refused.tallies[0].retry_after_ms)
    assert charge([hit(quota, 1)], [state], START_MS + LEASES_MAX).admitted


@pytest.mark.parametrize(
    ("quota", "at_ms", "expected"),
    [
        (Period(10, "hour"), START_MS, 7),
        (Period(10, "hour"), START_MS - HOUR_MS, 2),  # of the hour before
        (Balance(10), START_MS - 30 * 24 * HOUR_MS, 7),
        (Slots(10), START_MS, 0),
    ],
)
def test_what_was_used_elsewhere_is_recalled(quota: Period | Slots | Balance, at_ms: int, expected: int) -> None:
    """What a lost store had counted is spent here, too, if it was spent in this period; slots were given back since."""
    state = Account()
    state.forget(quota, START_MS)
    state.spent = 0 if isinstance(quota, Slots) else 2

    for used in (7, 1):  # the second one knows of less, and takes nothing away
        state.recall(quota, used, at_ms, START_MS)
        assert expected == state.used
