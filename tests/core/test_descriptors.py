"""Goal: a descriptor meets the rules that mean it, and is counted by what they say. Method: tables, and properties."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.descriptors import (
    BLOCKED,
    BYTES_MAX,
    OVERRIDDEN,
    PLANNED_MAX,
    UNLIMITED,
    DescriptorMatch,
    DescriptorPlanner,
    EntryMatch,
    Override,
)
from ratelimiter.core.planner import reader_for
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Rule

MINUTE = Quota(5, 60_000)


def planner(*matches: DescriptorMatch, **policy: Any) -> DescriptorPlanner:
    """A planner of rules `r0`, `r1`, ... with these matches."""
    rules = tuple(Rule(f"r{index}", MINUTE, descriptors=match) for index, match in enumerate(matches))
    made = Policy(rules, **policy)
    return DescriptorPlanner(made, reader_for(made))


def met(planner: DescriptorPlanner, *entries: tuple[str, str], domain: str = "d") -> list[str]:
    """The names of the rules that a descriptor meets."""
    planned = planner.plan(domain, entries)
    return [hit.rule.name for hit in planned.hits] + [rule.name for rule in planned.answers]


LOGIN = DescriptorMatch((EntryMatch("path", "/login", charged=False), EntryMatch("remote_address")))


@pytest.mark.parametrize(
    ("entries", "meets"),
    [
        ((("path", "/login"), ("remote_address", "10.0.0.1")), True),
        ((("remote_address", "10.0.0.1"), ("path", "/login")), True),
        ((("path", "/login"), ("remote_address", "")), True),
        ((("path", "/logout"), ("remote_address", "10.0.0.1")), False),
        ((("path", "/login"),), False),
        ((("path", "/login"), ("remote_address", "10.0.0.1"), ("user", "u")), False),
        ((("path", "/login"), ("path", "/login"), ("remote_address", "10.0.0.1")), False),
        ((("Path", "/login"), ("remote_address", "10.0.0.1")), False),
        ((), False),
    ],
)
def test_a_rule_means_descriptors_of_exactly_its_keys(entries: tuple[tuple[str, str], ...], meets: bool) -> None:
    """Other keys, fewer or more of them, or another value, are another descriptor; the order of keys is no matter."""
    assert meets is (["r0"] == met(planner(LOGIN), *entries))


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        (None, ["", "a", "a\nb"], []),
        ("*", ["", "a", "a\nb"], []),
        ("/api/*", ["/api/", "/api/a/b"], ["/api", "/apix/", "x/api/"]),
        ("*.example.com", ["a.example.com", ".example.com"], ["example.com", "a.example.com."]),
        ("a*b*c", ["abc", "aXbYc", "abbc", "abcbc"], ["ab", "abcd", "acb"]),
        ("a.c", ["a.c"], ["abc"]),
        ("", [""], ["a"]),
    ],
)
def test_a_star_stands_for_any_characters(pattern: str | None, fitting: list[str], others: list[str]) -> None:
    """Nothing else in a pattern means anything but itself."""
    match = EntryMatch("k", pattern)

    assert fitting == [value for value in (*fitting, *others) if match.fits(value)]


def test_no_pattern_makes_a_value_slow() -> None:
    """A pattern of many stars against a long value that almost fits is done in a moment, not in years."""
    match = EntryMatch("k", "*a" * 20 + "b")
    started_s = time.process_time()

    assert not match.fits("a" * 20_000)
    assert time.process_time() - started_s < 5


def test_excepted_values_do_not_fit() -> None:
    """`except` takes values away, by patterns too."""
    match = EntryMatch("k", "10.*", excepted=("10.1.*", "10.2.0.1"))

    assert ["10.0.0.1", "10.2.0.2"] == [v for v in ("10.0.0.1", "10.1.0.1", "10.2.0.1", "10.2.0.2") if match.fits(v)]


ENTRIES = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.text(max_size=3)), min_size=1, max_size=3).map(tuple)


@given(st.tuples(st.sampled_from(["d", "e"]), ENTRIES), st.tuples(st.sampled_from(["d", "e"]), ENTRIES))
def test_different_descriptors_never_share_a_key(
    one: tuple[str, tuple[tuple[str, str], ...]], other: tuple[str, tuple[tuple[str, str], ...]]
) -> None:
    """Keys are equal for equal domain and entries, whatever their order, and only then (invariant 7)."""
    subject = DescriptorPlanner(*_everything())
    same = one[0] == other[0] and sorted(one[1], key=lambda e: e[0]) == sorted(other[1], key=lambda e: e[0])

    keys = [[hit.key for hit in subject.plan(domain, entries).hits] for domain, entries in (one, other)]

    assert same is (keys[0] == keys[1])


def _everything() -> tuple[Policy, Any]:
    combinations = [
        ("a",),
        ("b",),
        ("a", "a"),
        ("a", "b"),
        ("b", "b"),
        ("a",) * 3,
        ("a", "a", "b"),
        ("a", "b", "b"),
        ("b",) * 3,
    ]
    rules = tuple(
        Rule(f"r{index}", MINUTE, descriptors=DescriptorMatch(tuple(map(EntryMatch, keys))))
        for index, keys in enumerate(combinations)
    )
    policy = Policy(rules)
    return policy, reader_for(policy)


def test_given_values_and_any_share_a_count() -> None:
    """What is given is not counted by; `each` counts each value, `any` all together, and a principal names the keys."""
    match = DescriptorMatch((EntryMatch("path", "/a*", charged=False), EntryMatch("user")))
    by_path = DescriptorMatch((EntryMatch("path", "/a*"), EntryMatch("user")), charged=("path",))
    subject = planner(match, by_path)

    def keys(path: str, user: str) -> list[bytes]:
        return [hit.key for hit in subject.plan("d", (("path", path), ("user", user))).hits]

    first, other_path, other_user = keys("/a1", "u"), keys("/a2", "u"), keys("/a1", "v")
    assert (True, False) == (first[0] == other_path[0], first[0] == other_user[0])
    assert (False, True) == (first[1] == other_path[1], first[1] == other_user[1])


def test_only_the_domain_of_the_policy_is_answered_for() -> None:
    """With a domain all others are unmatched; without one each is counted by itself."""
    entries = (("path", "/login"), ("remote_address", "a"))

    assert [] == met(planner(LOGIN, domain="edge"), *entries, domain="other")
    assert ["r0"] == met(planner(LOGIN, domain="edge"), *entries, domain="edge")
    subject = planner(LOGIN)
    assert subject.plan("one", entries).hits[0].key != subject.plan("two", entries).hits[0].key


def test_a_limit_of_the_caller_stands_alone() -> None:
    """An override counts by all entries under its own quota, matched or not; of 0 it refuses everything."""
    subject = planner(LOGIN)
    entries = (("path", "/login"), ("remote_address", "a"))

    overridden = subject.plan("d", entries, Override(7, 1000))
    banned = subject.plan("d", entries, Override(0, 1000))

    assert [(OVERRIDDEN, Quota(7, 1000))] == [(hit.rule.name, hit.quota) for hit in overridden.hits]
    assert (
        overridden.hits[0].key
        != subject.plan("d", (("path", "/x"), ("remote_address", "a")), Override(7, 1000)).hits[0].key
    )
    assert [BLOCKED] == [rule.descriptors.answer for rule in banned.answers if rule.descriptors]


def test_rules_with_descriptors_mean_no_requests() -> None:
    """A request meets none of them, and a policy of nothing else does not cover requests."""
    from ratelimiter.core.planner import Planner
    from ratelimiter.core.request import Request

    policy = Policy((Rule("r", MINUTE, descriptors=LOGIN),))

    assert () == tuple(Planner(policy).hits(Request("GET", b"/login", (), "10.0.0.1")))
    assert not policy.catch_all


def test_rules_of_another_domain_do_not_apply() -> None:
    """One policy may hold the rules of several domains, with the same keys."""
    subject = planner(replace(LOGIN, domain="one"), replace(LOGIN, domain="two"), LOGIN)
    entries = (("path", "/login"), ("remote_address", "a"))

    assert ["r0", "r2"] == met(subject, *entries, domain="one")
    assert ["r1", "r2"] == met(subject, *entries, domain="two")
    assert ["r2"] == met(subject, *entries, domain="three")


def test_descriptors_cannot_fill_the_memory() -> None:
    """What is remembered of them is bounded in number and in bytes, and their answers are the same without it."""
    subject = planner(LOGIN)
    for number in range(PLANNED_MAX + 1):
        met(subject, ("path", "/login"), ("remote_address", str(number)))
    assert 1 == len(subject._planned)

    long = ("remote_address", "a" * BYTES_MAX)
    assert [["r0"]] * 2 == [met(subject, ("path", "/login"), long) for _ in range(2)]
    assert 1 == len(subject._planned)


def test_rules_about_requests_mean_no_descriptors() -> None:
    """A policy for a proxy and the decision service at once keeps its two kinds of rules apart."""
    made = Policy((Rule("request", MINUTE), Rule("call", MINUTE, descriptors=LOGIN)))

    assert ["call"] == met(DescriptorPlanner(made, reader_for(made)), ("path", "/login"), ("remote_address", "a"))


@pytest.mark.parametrize("answer", [UNLIMITED, BLOCKED])
def test_a_rule_may_answer_without_counting(answer: str) -> None:
    """It is met, and nothing is charged for it; a rule that counts the same descriptors still does."""
    planned = planner(replace(LOGIN, answer=answer), LOGIN).plan("d", (("path", "/login"), ("remote_address", "a")))

    assert [("r0", answer)] == [(rule.name, rule.descriptors.answer) for rule in planned.answers if rule.descriptors]
    assert ["r1"] == [hit.rule.name for hit in planned.hits]
    assert planned.matched
