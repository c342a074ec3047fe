from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimiter.config.changes import changes
from ratelimiter.config.description import summary
from ratelimiter.core.match import Match
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Mode, Rule

MINUTE = Rule("per-minute", Quota(60, 60_000))
POLICY = Policy((MINUTE,), store="redis://user:hush@10.0.0.1:6379/0", secret=b"hush")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (replace(POLICY, rules=(Rule("per-minute", Quota(6, 60_000)),)), ["per-minute 60 -> 6 per minute"]),
        (replace(POLICY, rules=(Rule("per-minute", Quota(6, 1000)),)), ["per-minute 60 per minute -> 6 per second"]),
        (replace(POLICY, rules=(replace(MINUTE, mode=Mode.SHADOW),)), ["per-minute mode changed"]),
        (replace(POLICY, rules=(MINUTE, Rule("b", Quota(1, 1000)))), ["b added, 1 per second"]),
        (replace(POLICY, rules=(Rule("b", Quota(1, 1000)),)), ["per-minute removed", "b added, 1 per second"]),
        (replace(POLICY, dialect="plain", secret=b"other"), ["dialect problem -> plain", "secret changed"]),
        (
            replace(POLICY, store="redis://user:new@10.0.0.2:6379/0"),
            ["store redis://10.0.0.1:6379/0 -> redis://10.0.0.2:6379/0"],
        ),
        (POLICY, []),
    ],
)
def test_changes_are_told_as_an_operator_says_them(after: Policy, expected: list[str]) -> None:
    """Limits with both numbers, the rest by name; no secret, no password."""
    assert expected == changes(POLICY, after)


def test_very_many_changes_are_one_line_all_the_same() -> None:
    """The log line of a reload has a bound."""
    after = replace(POLICY, rules=tuple(Rule(f"r{i}", Quota(1, 1000)) for i in range(100)))

    assert 21 == len(changes(POLICY, after))
    assert "and 81 more changes" == changes(POLICY, after)[-1]


def test_the_start_is_told_in_a_few_lines() -> None:
    """Version, hash, file, store without its password, and each rule: what a person looks for first."""
    reports = Rule(
        "reports", Quota(5, 1000), burst=2, match=Match(frozenset({"POST"}), "/v1/reports"), mode=Mode.SHADOW
    )
    first, minute, shadowed = summary(replace(POLICY, rules=(MINUTE, reports)), "policy.yaml")

    assert "(policy.yaml), store redis://10.0.0.1:6379/0, dialect problem, no proxy is trusted" in first
    assert "hush" not in first
    assert "  per-minute: 60 per minute by client" == minute
    assert "  reports: 5 per second, burst 2 by client, POST, /v1/reports, in shadow mode" == shadowed
    assert "  and 5 more rules" == summary(Policy(tuple(Rule(f"r{i}", Quota(1, 1000)) for i in range(15))))[-1]
