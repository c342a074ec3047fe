"""What a store's reply means: the verdict, the rule that speaks, and its numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ratelimiter.core.decision import (
    CREDIT_EXHAUSTED,
    MALFORMED,
    OVER_CAPACITY,
    OVER_LIMIT,
    STORE_ERROR,
    SUSPENDED,
    UNMATCHED,
    WITHIN_LIMIT,
    Decision,
    Outcome,
    decide,
    malformed,
    merge,
    suspended,
    unmatched,
)
from ratelimiter.core.quota import Balance, Period
from ratelimiter.core.receipt import FAIL_CLOSED, FAIL_OPEN, NEVER, STORE, Receipt, Tally
from ratelimiter.core.rule import Hit, Mode, Rule
from tests.reference_store import START_MS, hits_of, rule_of

TIGHT = rule_of(3, 1000, name="tight")
WIDE = rule_of(10, 60_000, name="wide")
BURSTY = rule_of(3, 1000, burst=2, name="bursty")
SHADOW = rule_of(3, 1000, name="shadow", shadow=True)
OTHER_SHADOW = rule_of(10, 1000, name="other", shadow=True)
ANNOUNCED = replace(rule_of(3, 1000, name="announced", shadow=True), announce=True)


def receipt(admitted: bool, *tallies: tuple[int, int, int]) -> Receipt:
    return Receipt(START_MS, admitted, [Tally(*tally) for tally in tallies])


TABLE = [
    # rules, cost, admitted, tallies (used, reset, retry); reason, binding rule and its (remaining, reset, retry)
    ("one-rule", [TIGHT], 1, True, [(1, 1000, 0)], WITHIN_LIMIT, "tight", (2, 1000, 0)),
    ("last-unit", [TIGHT], 1, True, [(3, 400, 0)], WITHIN_LIMIT, "tight", (0, 400, 0)),
    ("refused", [TIGHT], 1, False, [(3, 400, 400)], OVER_LIMIT, "tight", (0, 400, 400)),
    ("refused-cost-2", [TIGHT], 2, False, [(2, 300, 300)], OVER_LIMIT, "tight", (1, 300, 300)),
    ("refused-until-the-second-leaves", [TIGHT], 2, False, [(3, 300, 700)], OVER_LIMIT, "tight", (0, 300, 700)),
    ("never-fits", [TIGHT], 4, False, [(1, 300, NEVER)], OVER_CAPACITY, "tight", (2, 300, None)),
    ("peek", [TIGHT], 0, True, [(3, 400, 0)], WITHIN_LIMIT, "tight", (0, 400, 0)),
    ("peek-at-a-lowered-limit", [TIGHT], 0, True, [(9, 400, 0)], WITHIN_LIMIT, "tight", (0, 400, 0)),
    ("least-remaining-binds", [WIDE, TIGHT], 1, True, [(5, 9, 0), (1, 8, 0)], WITHIN_LIMIT, "tight", (2, 8, 0)),
    ("a-tie-goes-to-the-first", [TIGHT, WIDE], 1, True, [(1, 8, 0), (8, 9, 0)], WITHIN_LIMIT, "tight", (2, 8, 0)),
    ("the-other-tie", [WIDE, TIGHT], 1, True, [(8, 9, 0), (1, 8, 0)], WITHIN_LIMIT, "wide", (2, 9, 0)),
    ("the-refusing-one-binds", [TIGHT, WIDE], 1, False, [(2, 9, 0), (10, 5, 5)], OVER_LIMIT, "wide", (0, 5, 5)),
    ("the-longest-wait-binds", [TIGHT, WIDE], 1, False, [(3, 9, 9), (10, 50, 50)], OVER_LIMIT, "wide", (0, 50, 50)),
    ("a-tie-of-waits", [WIDE, TIGHT], 1, False, [(10, 9, 9), (3, 9, 9)], OVER_LIMIT, "wide", (0, 9, 9)),
    ("never-outlasts", [TIGHT, WIDE], 4, False, [(0, 0, NEVER), (9, 5, 50)], OVER_CAPACITY, "tight", (3, 0, None)),
    ("burst-unused", [BURSTY], 1, True, [(1, 9, 0), (1, 90, 0)], WITHIN_LIMIT, "bursty", (2, 9, 0)),
    ("burst-in-use", [BURSTY], 1, True, [(4, 9, 0), (4, 90, 0)], WITHIN_LIMIT, "bursty", (0, 9, 0)),
    ("burst-spent", [BURSTY], 1, False, [(5, 9, 9), (5, 90, 0)], OVER_LIMIT, "bursty", (0, 9, 9)),
    ("long-window-nearly-full", [BURSTY], 1, True, [(1, 9, 0), (31, 90, 0)], WITHIN_LIMIT, "bursty", (1, 90, 0)),
    ("long-window-refuses", [BURSTY], 1, False, [(1, 9, 0), (32, 90, 90)], OVER_LIMIT, "bursty", (0, 90, 90)),
    ("long-window-refuses-a-cost", [BURSTY], 5, False, [(0, 0, 0), (28, 90, 90)], OVER_LIMIT, "bursty", (3, 90, 90)),
    ("both-refuse", [BURSTY], 1, False, [(5, 9, 9), (32, 90, 90)], OVER_LIMIT, "bursty", (0, 90, 90)),
    ("cost-within-the-burst", [BURSTY], 5, True, [(5, 9, 0), (5, 90, 0)], WITHIN_LIMIT, "bursty", (0, 9, 0)),
    ("cost-beyond-the-burst", [BURSTY], 6, False, [(0, 0, NEVER), (0, 0, 0)], OVER_CAPACITY, "bursty", (3, 0, None)),
    ("shadow-alone", [SHADOW], 1, True, [(3, 9, 9)], WITHIN_LIMIT, "shadow", (0, 9, 9)),
    ("shadows-alone", [SHADOW, OTHER_SHADOW], 1, True, [(1, 9, 0), (9, 8, 0)], WITHIN_LIMIT, "other", (1, 8, 0)),
    ("shadow-announced", [ANNOUNCED, WIDE], 1, True, [(3, 9, 9), (1, 5, 0)], WITHIN_LIMIT, "announced", (0, 9, 9)),
    ("shadow-announced-refused", [ANNOUNCED, WIDE], 1, False, [(3, 99, 99), (10, 5, 5)], OVER_LIMIT, "wide", (0, 5, 5)),
    ("shadow-never-binds", [SHADOW, WIDE], 1, True, [(3, 9, 9), (1, 5, 0)], WITHIN_LIMIT, "wide", (9, 5, 0)),
    ("shadow-never-refuses", [SHADOW, WIDE], 1, False, [(3, 99, 99), (10, 5, 5)], OVER_LIMIT, "wide", (0, 5, 5)),
]  # fmt: skip


@pytest.mark.parametrize("row", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_decide(row: Any) -> None:
    """The binding rule is the one a client must heed, and says what is true of it."""
    rules, cost, admitted, tallies, reason, binding, numbers = row
    decision = decide(hits_of(*rules, cost=cost), receipt(admitted, *tallies))
    spoken = decision.binding

    assert (admitted, reason, START_MS) == (decision.allowed, decision.reason, decision.now_ms)
    assert [rule.name for rule in rules] == [outcome.rule.name for outcome in decision.outcomes]
    assert binding == (spoken and spoken.rule.name)
    assert numbers == (spoken and spoken[1:])
    assert all(outcome.remaining >= 0 for outcome in decision.outcomes)
    assert decision.retry_after_ms == (0 if admitted else numbers[2])


def test_every_rule_has_its_outcome() -> None:
    """Outcomes are in the order of the policy, a shadow's among them, refusing or not."""
    decision = decide(hits_of(TIGHT, SHADOW, WIDE), receipt(False, (3, 9, 9), (3, 7, 7), (2, 5, 0)))

    assert [Outcome(TIGHT, 0, 9, 9), Outcome(SHADOW, 0, 7, 7), Outcome(WIDE, 8, 5, 0)] == list(decision.outcomes)
    assert [True, True, False] == [outcome.refuses for outcome in decision.outcomes]


def test_no_rule_matched() -> None:
    """Nothing was charged: admitted, and said so."""
    assert Decision(True, UNMATCHED, START_MS, (), None) == unmatched(START_MS)
    assert 0 == unmatched(START_MS).retry_after_ms


def test_a_malformed_request_need_not_come_back() -> None:
    """It is refused for what it is, not for now: no wait makes it well-formed."""
    decision = malformed(START_MS, "path", "is odd")

    assert (False, MALFORMED, ("path", "is odd")) == (decision.allowed, decision.reason, decision.fault)
    assert decision.retry_after_ms is None


CREDITS = Rule("credits", Balance(1000), cost=50)
MONTHLY = Rule("monthly", Period(1000, "month", credits=True), cost=50)


def charged(*pairs: tuple[Rule, int]) -> list[Hit]:
    return [Hit(f"key-{rule.name}".encode(), rule.quota, cost, rule) for rule, cost in pairs]


CREDIT_TABLE = [
    # hits (rule, cost), tallies (used, reset, retry); binding rule, its wait, (requested, shortfall)
    ("balance", [(CREDITS, 50)], [(962, 0, NEVER)], "credits", None, (50, 12)),
    ("empty", [(CREDITS, 1)], [(1000, 0, NEVER)], "credits", None, (1, 1)),
    ("overdrawn", [(CREDITS, 5)], [(1010, 0, NEVER)], "credits", None, (5, 15)),
    ("period", [(MONTHLY, 50)], [(990, 7000, 7000)], "monthly", 7000, (50, 40)),
    ("period-never", [(MONTHLY, 1001)], [(0, 0, NEVER)], "monthly", None, (1001, 1)),
    ("too-many-open", [(CREDITS, 50)], [(900, 0, 400)], "credits", 400, None),
    ("before-a-wait", [(TIGHT, 1), (CREDITS, 50)], [(3, 9, 9), (962, 0, NEVER)], "credits", None, (50, 12)),
    ("before-a-longer-wait", [(WIDE, 1), (MONTHLY, 50)], [(10, 90, 90), (990, 7, 7)], "monthly", 90, (50, 40)),
    ("before-never", [(TIGHT, 4), (MONTHLY, 50)], [(0, 0, NEVER), (990, 7, 7)], "monthly", None, (50, 40)),
    ("two", [(MONTHLY, 50), (CREDITS, 50)], [(990, 7, 7), (962, 0, NEVER)], "credits", None, (50, 12)),
    ("enough-credits", [(TIGHT, 1), (CREDITS, 50)], [(3, 9, 9), (900, 0, 0)], "tight", 9, None),
    ("others-and-too-many", [(TIGHT, 1), (CREDITS, 50)], [(3, 9, 9), (900, 0, 400)], "credits", 400, None),
]  # fmt: skip


@pytest.mark.parametrize("row", [row[1:] for row in CREDIT_TABLE], ids=[row[0] for row in CREDIT_TABLE])
def test_missing_credits(row: Any) -> None:
    """They bind before any wait, are told exactly, and the wait that is told is long enough for every rule."""
    pairs, tallies, binding, wait_ms, missing = row
    reason = OVER_LIMIT if missing is None else CREDIT_EXHAUSTED
    decision = decide(charged(*pairs), receipt(False, *tallies))

    assert decision.binding is not None
    assert (False, reason, missing) == (decision.allowed, decision.reason, decision.missing)
    assert (binding, wait_ms) == (decision.binding.rule.name, decision.retry_after_ms)


def test_credits_in_shadow_refuse_nobody() -> None:
    """Whatever is missing, it is only reported."""
    shadow = Rule("shadow", Balance(10), mode=Mode.SHADOW)
    alone = decide(charged((shadow, 50)), receipt(True, (0, 0, NEVER)))
    among = decide(charged((shadow, 50), (TIGHT, 1)), receipt(False, (0, 0, NEVER), (3, 9, 9)))

    assert (WITHIN_LIMIT, None) == (alone.reason, alone.missing)
    assert (OVER_LIMIT, None, 9) == (among.reason, among.missing, among.retry_after_ms)


@pytest.mark.parametrize("rules", [[TIGHT], [TIGHT, WIDE]])
def test_without_a_store_a_refusal_tells_no_figures(rules: list[Rule]) -> None:
    """Where the policy says to deny, the answer blames the store and not a limit, however many rules there are."""
    unasked = receipt(False, *[(0, 0, 0)] * len(rules))._replace(source=FAIL_CLOSED)

    assert Decision(False, STORE_ERROR, START_MS, (), None, FAIL_CLOSED) == decide(hits_of(*rules), unasked)


def shadowed(rule: Rule) -> Rule:
    return replace(rule, mode=Mode.SHADOW)


@pytest.mark.parametrize(
    ("admitted", "tallies", "source", "expected"),
    [
        (True, [(1, 9, 0), (8, 9, 0)], STORE, (WITHIN_LIMIT, STORE, "tight", 2)),
        (False, [(3, 9, 9), (2, 9, 0)], STORE, (SUSPENDED, STORE, "tight", 0)),
        (False, [(0, 0, 0), (0, 0, 0)], FAIL_CLOSED, (SUSPENDED, FAIL_OPEN, None, None)),
    ],
)
def test_the_kill_switch_refuses_nothing(
    admitted: bool, tallies: list[tuple[int, int, int]], source: str, expected: tuple[Any, ...]
) -> None:
    """With all rules in shadow every request is admitted, without a store, too; clients see the same figures."""
    decision = suspended(hits_of(TIGHT, WIDE), receipt(admitted, *tallies)._replace(source=source), shadowed)
    told = (None, None) if decision.binding is None else (decision.binding.rule.name, decision.binding.remaining)

    assert decision.allowed
    assert expected == (decision.reason, decision.source, *told)
    assert all(outcome.rule.shadow for outcome in decision.outcomes)


def test_several_limiters_are_one_decision() -> None:
    """The first refusal stands; else the least room of all is told. A limiter without a matching rule says nothing."""
    roomy = decide(hits_of(WIDE), receipt(True, (1, 9, 0)))
    tight = decide(hits_of(TIGHT), receipt(True, (2, 9, 0)))
    refused = decide(hits_of(TIGHT), receipt(False, (3, 9, 9)))

    assert refused == merge([roomy, refused, tight])
    both = merge([roomy, tight, unmatched(START_MS)])
    assert (True, WITHIN_LIMIT, tight.binding) == (both.allowed, both.reason, both.binding)
    assert [*roomy.outcomes, *tight.outcomes] == both.outcomes
    assert (True, UNMATCHED) == merge([unmatched(START_MS)] * 2)[:2]
