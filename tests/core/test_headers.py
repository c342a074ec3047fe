"""Header fields to the byte: whole seconds upward, never 0 on a refusal, never negative."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.decision import Decision, decide, malformed, unmatched
from ratelimiter.core.headers import (
    EXPOSED,
    FAMILIES,
    SINGLE,
    Seconds,
    renderer,
    replaced,
    retry_after_s,
    seconds_of,
)
from ratelimiter.core.quota import Balance, Bucket, Period, Quota, Slots
from ratelimiter.core.receipt import NEVER, Receipt, Tally
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.core.token_terms import TokenTerms
from ratelimiter.core.weights import Weights
from tests.reference_store import START_MS, ReferenceStore, gaps_ms, hits_of, rule_of, window_of

if TYPE_CHECKING:
    from ratelimiter.core.quota import AnyQuota

NOW_S = START_MS // 1000
MINUTE = rule_of(60, 60_000, name="per-minute")
HOUR = rule_of(1000, 3_600_000, name="per-hour")
SHADOW = rule_of(1, 1000, name="shadow", shadow=True)
BURSTY = rule_of(60, 60_000, name="bursty", burst=10)
SHORT = rule_of(5, 500, name="short")
TOKENS = replace(rule_of(30_000, 60_000, name="tokens"), tokens=TokenTerms("openai"))
INPUT = replace(TOKENS, name="input", tokens=TokenTerms("anthropic", Weights(output=Decimal(0))))
OUTPUT = replace(TOKENS, name="output", tokens=TokenTerms("anthropic", Weights(input=Decimal(0))))
QUIET = rule_of(1000, 3_600_000, name="quiet", quiet=True)


def decided(
    *rules: Rule, tallies: list[tuple[int, int, int]], admitted: bool = True, cost: int = 1, now_ms: int = START_MS
) -> Decision:
    return decide(hits_of(*rules, cost=cost), Receipt(now_ms, admitted, [Tally(*tally) for tally in tallies]))


def lines(family: str, decision: Decision) -> dict[str, str]:
    headers = FAMILIES[family](decision)
    assert len(headers) == len(dict(headers))
    return {name.decode(): value.decode() for name, value in headers}


@pytest.mark.parametrize(("ms", "expected"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2), (59_999, 60)])
def test_seconds_are_rounded_up(ms: int, expected: int) -> None:
    """A client that waits the seconds it was told has waited long enough."""
    decision = decided(MINUTE, tallies=[(1, ms, 0)])

    assert Seconds(0, expected, NOW_S + expected) == seconds_of(decision, decision.outcomes[0])


@pytest.mark.parametrize(
    ("reset_ms", "wait_ms", "expected"),
    [
        (1, 1, Seconds(1, 1, NOW_S + 1)),
        (999, 1000, Seconds(1, 1, NOW_S + 1)),
        (1000, 1001, Seconds(2, 2, NOW_S + 2)),
        (60_000, 1, Seconds(1, 60, NOW_S + 60)),
        (5000, NEVER, Seconds(None, 5, NOW_S + 5)),
        (0, NEVER, Seconds(None, 1, NOW_S)),
    ],
)
def test_the_seconds_of_a_refusal_let_the_client_in(reset_ms: int, wait_ms: int, expected: Seconds) -> None:
    """What resets is no earlier than a retry is admitted, and neither is told as 0."""
    decision = decided(MINUTE, tallies=[(60, reset_ms, wait_ms)], admitted=False)

    assert expected == seconds_of(decision, decision.outcomes[0])


X_RATELIMIT = [
    ("first", decided(MINUTE, tallies=[(1, 60_000, 0)]), 60, 59, NOW_S + 60),
    ("part-of-a-second", decided(MINUTE, tallies=[(3, 59_001, 0)]), 60, 57, NOW_S + 60),
    ("spent", decided(MINUTE, tallies=[(60, 1, 0)]), 60, 0, NOW_S + 1),
    ("refused", decided(MINUTE, tallies=[(60, 1, 1)], admitted=False), 60, 0, NOW_S + 1),
    ("between-seconds", decided(MINUTE, tallies=[(60, 500, 0)], now_ms=START_MS + 501), 60, 0, NOW_S + 2),
    ("on-the-second", decided(MINUTE, tallies=[(60, 500, 0)], now_ms=START_MS + 500), 60, 0, NOW_S + 1),
    ("refused-with-cost", decided(MINUTE, tallies=[(58, 2000, 9000)], admitted=False, cost=5), 60, 2, NOW_S + 9),
    ("never-fits", decided(MINUTE, tallies=[(58, 2000, NEVER)], admitted=False, cost=61), 60, 2, NOW_S + 2),
    ("nothing-counts", decided(MINUTE, tallies=[(0, 0, 0)], cost=0), 60, 60, NOW_S),
    ("burst-in-use", decided(BURSTY, tallies=[(65, 1000, 0), (65, 9000, 0)]), 60, 0, NOW_S + 1),
    ("tightest", decided(MINUTE, HOUR, tallies=[(1, 60_000, 0), (990, 5000, 0)]), 1000, 10, NOW_S + 5),
    ("refusing", decided(MINUTE, HOUR, tallies=[(1, 9, 0), (1000, 5000, 5000)], admitted=False), 1000, 0, NOW_S + 5),
    ("lowered", decided(MINUTE, tallies=[(99, 1000, 2000)], admitted=False), 60, 0, NOW_S + 2),
    ("quiet", decided(MINUTE, QUIET, tallies=[(1, 60_000, 0), (1000, 9, 0)]), 60, 59, NOW_S + 60),
    ("quiet-refuses", decided(MINUTE, QUIET, tallies=[(1, 9, 0), (1000, 1, 5000)], admitted=False), 60, 0, NOW_S + 5),
    ("quiet-never-fits", decided(MINUTE, QUIET, tallies=[(1, 9, 0), (9, 1, NEVER)], admitted=False), 60, 59, NOW_S + 1),
    ("quiet-beside-tighter", decided(MINUTE, HOUR, QUIET, tallies=[(1, 9, 0), (990, 9, 0), (1000, 1, 5000)],
        admitted=False), 1000, 0, NOW_S + 5),
    ("none-but-quiet-refuses", decided(QUIET, tallies=[(1000, 5000, 5000)], admitted=False), 1000, 0, NOW_S + 5),
    ("shadow-is-silent", decided(SHADOW, MINUTE, tallies=[(1, 9, 9), (2, 1000, 0)]), 60, 58, NOW_S + 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("decision", "limit", "remaining", "reset"), [row[1:] for row in X_RATELIMIT], ids=[row[0] for row in X_RATELIMIT]
)
def test_x_ratelimit(decision: Decision, limit: int, remaining: int, reset: int) -> None:
    """Limit, remaining and the Unix time of the reset, of the binding rule."""
    expected = {
        "x-ratelimit-limit": str(limit),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(reset),
    }

    assert expected == lines("x-ratelimit", decision)


@pytest.mark.parametrize(("retry_ms", "expected"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (60_000, 60)])
def test_retry_after(retry_ms: int, expected: int) -> None:
    """Whole seconds, upward, at least 1."""
    assert expected == retry_after_s(decided(MINUTE, tallies=[(60, retry_ms, retry_ms)], admitted=False))


@pytest.mark.parametrize(
    "decision",
    [decided(MINUTE, tallies=[(0, 0, NEVER)], admitted=False, cost=61), malformed(START_MS, "path", "is odd")],
    ids=["never-fits", "malformed"],
)
def test_no_retry_after_where_no_wait_helps(decision: Decision) -> None:
    """A Retry-After that cannot come true is not sent."""
    assert retry_after_s(decision) is None


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    "decision",
    [
        unmatched(START_MS),
        malformed(START_MS, "path", "is odd"),
        decided(replace(SHADOW, quiet=True), tallies=[(1, 9, 9)]),
        decided(QUIET, tallies=[(1, 9, 0)]),
        decided(SHADOW, QUIET, tallies=[(1, 9, 9), (1, 9, 0)]),
    ],
    ids=["unmatched", "malformed", "quiet-shadow-only", "quiet-only", "shadow-and-quiet"],
)
def test_nothing_to_say(family: str, decision: Decision) -> None:
    """Without a rule that clients are told of there are no fields."""
    assert {} == lines(family, decision)


def test_shadow_alone_speaks() -> None:
    """Where every rule is in shadow mode, clients see the figures that they will see when it is enforced."""
    decision = decided(SHADOW, tallies=[(1, 9, 9)])

    assert {"x-ratelimit-limit": "1", "x-ratelimit-remaining": "0"}.items() <= lines("x-ratelimit", decision).items()
    assert '"shadow";r=0;t=1' == lines("draft-11", decision)["ratelimit"]


def test_draft_11() -> None:
    """Every enforced rule is an item of both lists, in the order of the policy."""
    admitted = decided(MINUTE, SHADOW, HOUR, tallies=[(1, 59_001, 0), (1, 9, 9), (990, 5000, 0)])
    refused = decided(MINUTE, HOUR, tallies=[(1, 0, 0), (1000, 1, 1)], admitted=False)

    assert {
        "ratelimit-policy": '"per-minute";q=60;w=60, "per-hour";q=1000;w=3600',
        "ratelimit": '"per-minute";r=59;t=60, "per-hour";r=10;t=5',
    } == lines("draft-11", admitted)
    assert '"per-minute";r=59;t=1, "per-hour";r=0;t=1' == lines("draft-11", refused)["ratelimit"]


def test_draft_11_has_quiet_rules_where_they_refuse() -> None:
    """Who is refused is told by what."""
    admitted = decided(MINUTE, QUIET, tallies=[(1, 59_001, 0), (1000, 5000, 0)])
    refused = decided(MINUTE, QUIET, tallies=[(1, 59_001, 0), (1000, 5000, 5000)], admitted=False)

    assert '"per-minute";q=60;w=60' == lines("draft-11", admitted)["ratelimit-policy"]
    assert '"per-minute";q=60;w=60, "quiet";q=1000;w=3600' == lines("draft-11", refused)["ratelimit-policy"]


def test_draft_11_has_no_half_seconds() -> None:
    """A window that is not of whole seconds is left out: rounded it would be another policy."""
    assert '"short";q=5' == lines("draft-11", decided(SHORT, tallies=[(1, 1, 0)]))["ratelimit-policy"]


def test_draft_06() -> None:
    """Limit, remaining and seconds to reset of the binding rule, and the policies of all."""
    decision = decided(MINUTE, SHADOW, HOUR, tallies=[(1, 59_001, 0), (1, 9, 9), (990, 4001, 0)])

    assert {
        "ratelimit-limit": "1000",
        "ratelimit-remaining": "10",
        "ratelimit-reset": "5",
        "ratelimit-policy": "60;w=60, 1000;w=3600",
    } == lines("draft-06", decision)
    assert (
        "1" == lines("draft-06", decided(MINUTE, tallies=[(0, 0, NEVER)], admitted=False, cost=61))["ratelimit-reset"]
    )


@pytest.mark.parametrize(
    ("reset_ms", "expected"),
    [
        (0, "0s"),
        (12, "12ms"),
        (1000, "1s"),
        (59_874, "59.874s"),
        (59_900, "59.9s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_600_000, "1h0m0s"),
        (90_061_500, "25h1m1.5s"),
    ],
)
def test_openai_writes_durations(reset_ms: int, expected: str) -> None:
    """OpenAI's family tells requests and tokens apart, and the time until more remains as Go writes it."""
    told = lines("openai", decided(MINUTE, TOKENS, tallies=[(3, 0, 0), (63, reset_ms, 0)]))

    assert {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "57",
        "x-ratelimit-reset-requests": "0s",
        "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-remaining-tokens": "29937",
        "x-ratelimit-reset-tokens": expected,
    } == told


@given(now_ms=st.integers(0, 4_102_444_800_000))
def test_anthropic_writes_moments(now_ms: int) -> None:
    """Anthropic's family tells moments as RFC 3339 in UTC, rounded up to whole seconds."""
    told = lines("anthropic", decided(MINUTE, INPUT, OUTPUT, tallies=[(1, 0, 0)] * 3, now_ms=now_ms))
    moment = datetime.fromisoformat(told["anthropic-ratelimit-input-tokens-reset"])

    assert 0 <= moment.timestamp() * 1000 - now_ms < 1000
    assert "29999" == told["anthropic-ratelimit-output-tokens-remaining"]
    assert "59" == told["anthropic-ratelimit-requests-remaining"]


def test_the_least_room_is_told_of_each_unit() -> None:
    """Of several limits of one unit the family tells the one with the least room."""
    told = lines(
        "openai", decided(MINUTE, HOUR, TOKENS, INPUT, tallies=[(1, 0, 0), (999, 0, 0), (9, 0, 0), (99, 0, 0)])
    )

    assert ("1", "29901") == (told["x-ratelimit-remaining-requests"], told["x-ratelimit-remaining-tokens"])


def test_families_are_consistent() -> None:
    """What a family sends is what it exposes to browsers; nothing else is taken for its own."""
    decision = decided(MINUTE, TOKENS, INPUT, OUTPUT, tallies=[(1, 1, 0)] * 4)
    for family in FAMILIES:
        assert {name.lower().decode() for name in EXPOSED[family]} == set(lines(family, decision))
        assert {name.decode() for name in SINGLE[family]} <= set(lines(family, decision))


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[int, Decision]]:
    """Decisions as a client gets them, with the moment of each."""
    rules = [
        rule_of(
            draw(st.sampled_from([1, 3, 128, 1000])),
            draw(st.sampled_from([500, 1000, 1500, 60_000])),
            name=f"rule-{index}",
            burst=draw(st.sampled_from([0, 0, 2])),
            shadow=draw(st.sampled_from([False, False, True])),
            quiet=draw(st.sampled_from([False, False, True])),
        )
        for index in range(draw(st.integers(1, 3)))
    ]
    store, now_ms, answers = ReferenceStore(), START_MS + draw(st.integers(0, 999)), []
    for gap_ms, cost in draw(
        st.lists(
            st.tuples(gaps_ms(window_of(rules[0])), st.sampled_from([0, 1, 1, 2, 3, 1001])), min_size=1, max_size=12
        )
    ):
        now_ms += gap_ms
        hits = hits_of(*rules, cost=cost)
        answers.append((now_ms, decide(hits, store.charge_at(hits, now_ms))))
    return answers


@given(exchanges())
def test_numbers_are_sane(answers: list[tuple[int, Decision]]) -> None:
    """In every family: integers, never negative, never a reset in the past, never a refusal that is over already."""
    for now_ms, decision in answers:
        for family in ("x-ratelimit", "draft-06"):
            numbers = {n: int(v) for n, v in lines(family, decision).items() if not n.endswith("policy")}
            assert all(number >= 0 for number in numbers.values())
            if numbers:
                limit, remaining, reset = numbers.values()
                assert remaining <= limit
                since_ms = now_ms if family == "x-ratelimit" else 0
                assert reset * 1000 >= since_ms
                if decision.retry_after_ms:
                    assert reset * 1000 > since_ms
        if not decision.allowed and decision.retry_after_ms:
            retry_s = retry_after_s(decision)
            assert retry_s is not None
            assert 0 <= retry_s * 1000 - decision.retry_after_ms < 1000
            assert decision.binding is not None
            assert seconds_of(decision, decision.binding).reset_at * 1000 >= now_ms + decision.retry_after_ms


@given(exchanges())
def test_draft_11_is_a_structured_field(answers: list[tuple[int, Decision]]) -> None:
    """A strict parser (RFC 9651) reads both: lists of strings with integer parameters, the same names in both."""
    for _, decision in answers:
        fields: dict[str, Any] = {  # of an http_sf list the types say no more than that it is a structured value
            name: http_sf.parse(value.encode(), tltype="list") for name, value in lines("draft-11", decision).items()
        }
        if not fields:
            continue
        policies, limits = fields["ratelimit-policy"], fields["ratelimit"]
        enforced = [o for o in decision.outcomes if not o.rule.shadow] or decision.outcomes
        told = [o for o in enforced if not o.rule.quiet or (o.refuses and not decision.allowed)]
        assert [o.rule.name for o in told] == [name for name, _ in policies] == [name for name, _ in limits]
        for outcome, (_, policy), (_, limit) in zip(told, policies, limits, strict=True):
            assert outcome.rule.quota.limit == policy["q"]
            assert outcome.rule.quota.window_ms == policy.get("w", outcome.rule.quota.window_ms / 1000) * 1000
            assert outcome.remaining == limit["r"]
            assert limit["t"] >= (0 if decision.allowed else 1)


@given(exchanges(), st.lists(st.integers(1, 700), max_size=8))
def test_reset_does_not_wobble(answers: list[tuple[int, Decision]], pauses_ms: list[int]) -> None:
    """Replies within one quiet period name the same absolute reset, to the second."""
    rule = rule_of(2, 60_000)
    store, now_ms = ReferenceStore(), answers[0][0]
    hits = hits_of(rule)
    resets = set()
    store.charge_at(hits, now_ms)
    store.charge_at(hits, now_ms + 300)
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        for asked in (hits, hits_of(rule, cost=0)):
            resets.add(lines("x-ratelimit", decide(asked, store.charge_at(asked, now_ms)))["x-ratelimit-reset"])

    assert len(resets) <= 1


def test_equal_decisions_are_equal_bytes() -> None:
    """Rendering depends on the decision alone (9)."""
    for family, render in FAMILIES.items():
        one, other = (decided(MINUTE, HOUR, tallies=[(1, 9, 0), (2, 8, 0)]) for _ in range(2))
        assert render(one) == render(other), family


def test_what_has_no_window_does_not_speak_of_one() -> None:
    """Only a window has a length: not a month, a bucket, a balance or slots, which say what they count (3.1.2)."""
    quotas: list[AnyQuota] = [Quota(60, 60_000), Bucket(50, 10, 1000), Period(9, "month"), Slots(20), Balance(100)]
    rules = [Rule(quota.kind, quota) for quota in quotas]
    hits = [Hit(rule.name.encode(), rule.quota, 1, rule) for rule in rules]
    decision = decide(hits, Receipt(START_MS, True, [Tally(1, 5000, 0)] * 5))

    assert {
        "ratelimit-policy": '"window";q=60;w=60, "bucket";q=50, "period";q=9, '
        '"slots";q=20;qu="concurrent-requests", "balance";q=100',
        "ratelimit": '"window";r=59;t=5, "bucket";r=49;t=5, "period";r=8;t=5, "slots";r=19;t=5, "balance";r=99;t=5',
    } == lines("draft-11", decision)
    assert "60;w=60, 50, 9, 20, 100" == lines("draft-06", decision)["ratelimit-policy"]


def test_what_is_no_unit_of_an_api_is_not_told_in_its_words() -> None:
    """Neither concurrent requests nor credits are requests or tokens: a client would divide its work by them."""
    slots = replace(MINUTE, name="slots", quota=Slots(2), burst=0)
    credits_ = replace(MINUTE, name="credits", quota=Balance(5))
    decision = decided(slots, credits_, MINUTE, tallies=[(1, 0, 0), (4, 0, 0), (1, 1000, 0)])

    assert "59" == lines("openai", decision)["x-ratelimit-remaining-requests"]
    assert {"anthropic-ratelimit-requests-remaining": "59"}.items() <= lines("anthropic", decision).items()
    assert {} == lines("openai", decided(slots, credits_, tallies=[(1, 0, 0), (4, 0, 0)]))


@pytest.mark.parametrize(
    ("families", "expose"),
    [(["x-ratelimit"], False), (["x-ratelimit"], True), (["draft-11", "x-ratelimit"], False), ([], False)],
)
def test_several_families_at_once(families: list[str], expose: bool) -> None:
    """Each is there as if it were alone, in the order of the policy; `expose_headers` lets browsers read them."""
    decision = decided(MINUTE, tallies=[(1, 1000, 0)])
    alone = [header for family in families for header in FAMILIES[family](decision)]
    names = b"X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After"
    exposing = [(b"access-control-expose-headers", names)] if expose else []

    assert [*alone, *exposing] == renderer(families, expose=expose)(decision)


def test_fields_that_only_we_say() -> None:
    """Of a family of single fields those of the application are replaced; lists are added to."""
    assert frozenset() == replaced(["draft-11"])
    assert SINGLE["x-ratelimit"] | SINGLE["openai"] == replaced(["x-ratelimit", "draft-11", "openai"])
