"""Rendered refusals: from the cache comes what would be rendered, and nothing stays that should not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.decision import Decision, blocked, decide, malformed
from ratelimiter.core.headers import renderer
from ratelimiter.core.quota import Balance, Bucket, Quota
from ratelimiter.core.receipt import NEVER, Receipt, Tally
from ratelimiter.core.rule import Hit, Rule
from ratelimiter.dialects import loader
from ratelimiter.engine.refusals import Refusals

if TYPE_CHECKING:
    from ratelimiter.core.quota import AnyQuota

NOW_MS = 1_800_000_000_000
QUOTAS = (Quota(3, 60_000), Quota(3, 1000), Quota(100, 60_000), Bucket(3, 3, 60_000), Balance(3))


def refusal(  # noqa: PLR0917  # each is drawn
    quota: AnyQuota, now_ms: int, reset_ms: int, wait_ms: int, cost: int = 1, name: str = "rule"
) -> Decision:
    hit = Hit(b"key", quota, cost, Rule(name, quota, cost=cost))
    return decide([hit], Receipt(now_ms, False, [Tally(quota.limit, reset_ms, wait_ms)]))


def refusals(dialect: str = "problem", kept_max: int = 1024) -> Refusals:
    return Refusals(loader.load(dialect), renderer(("x-ratelimit", "draft-11"), expose=False), kept_max=kept_max)


waits = st.sampled_from([1, 999, 1000, 1001, 1500, 2000, 59_999, 60_000])
decisions = st.builds(
    refusal,
    st.sampled_from(QUOTAS),
    st.integers(NOW_MS, NOW_MS + 2500),
    waits,
    waits | st.just(NEVER),
    st.sampled_from([1, 2]),
    st.sampled_from(["rule", "other"]),
)


@given(st.lists(decisions, min_size=1, max_size=30), st.sampled_from(["problem", "plain", "trace", "tracefinance-v1"]))
def test_what_is_kept_is_what_would_be_rendered(asked: list[Decision], dialect: str) -> None:
    """Whatever was refused before, each refusal has the figures of its own moment, rule and limit, to the byte."""
    kept = refusals(dialect)
    for decision in asked:
        fresh = refusals(dialect)

        assert fresh.get(decision) == kept.get(decision)


def test_a_flood_is_rendered_once_a_second() -> None:
    """Refusals whose seconds are the same are the same objects."""
    kept = refusals()
    first = kept.get(refusal(QUOTAS[0], NOW_MS + 1, 59_999, 59_999))
    same = kept.get(refusal(QUOTAS[0], NOW_MS + 400, 59_600, 59_600))
    later = kept.get(refusal(QUOTAS[0], NOW_MS + 1001, 58_999, 58_999))

    assert first is same
    assert first is not later
    assert 2 == len(kept)


def test_it_is_bounded() -> None:
    """With one more than it may hold, all are dropped and the newest is kept."""
    kept = refusals(kept_max=3)
    for number in range(4):
        kept.get(refusal(QUOTAS[0], NOW_MS + number * 1000, 60_000, 60_000))

    assert 1 == len(kept)


@pytest.mark.parametrize(
    "decision",
    [
        malformed(NOW_MS, "path", "is odd"),
        blocked(NOW_MS, NOW_MS + 5000, Rule("rule", Quota(1, 1000))),
        decide(
            [Hit(b"a", QUOTAS[0], 1, Rule("a", QUOTAS[0])), Hit(b"b", QUOTAS[1], 1, Rule("b", QUOTAS[1]))],
            Receipt(NOW_MS, False, [Tally(3, 1, 1), Tally(3, 1, 1)]),
        ),
    ],
    ids=["malformed", "blocked", "two-rules"],
)
def test_what_is_not_of_one_rule_is_not_kept(decision: Decision) -> None:
    """Its words depend on more than the key says."""
    kept = refusals()
    kept.get(decision)

    assert 0 == len(kept)
