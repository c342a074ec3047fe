from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.config.coverage import covers, never_refusing
from ratelimiter.config.lint import warnings
from ratelimiter.config.loader import load_file
from ratelimiter.core.match import Match
from ratelimiter.core.principal import CLIENT, EVERYONE
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Rule

SEGMENTS = st.sampled_from(["v1", "v2", "*", "{id}", "items"])
PATHS = st.lists(SEGMENTS, max_size=3).map(lambda parts: "/" + "/".join(parts)) | st.lists(SEGMENTS, max_size=2).map(
    lambda parts: "/" + "/".join([*parts, "**"])
)
METHODS = st.frozensets(st.sampled_from(["GET", "HEAD", "POST"]), max_size=2)
MATCHES = st.builds(Match, METHODS, st.none() | PATHS, st.lists(PATHS, max_size=1).map(tuple), st.booleans())
REQUESTS = [
    (method, path)
    for method in ("GET", "HEAD", "POST", "PUT")
    for path in ("/", "/v1", "/V1", "/v2/items", "/v1/items/3", "/v1/v2/items/x", "/other", "/items")
]


@given(MATCHES, MATCHES)
def test_a_match_that_covers_another_matches_what_it_matches(wide: Match, narrow: Match) -> None:
    """Whatever the narrow one matches, the wide one does, too."""
    if covers(wide, narrow):
        for method, path in REQUESTS:
            assert not narrow.matches(method, path) or wide.matches(method, path)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        (Match(), Match(path="/v1/reports"), True),
        (Match(path="/v1/**"), Match(path="/v1/reports/{id}"), True),
        (Match(path="/v1/**"), Match(path="/v1"), True),
        (Match(path="/v1/{a}"), Match(path="/v1/**"), False),
        (Match(path="/v1/reports"), Match(path="/v1/{id}"), False),
        (Match(frozenset({"GET"})), Match(frozenset({"HEAD"})), True),
        (Match(frozenset({"GET"})), Match(), False),
        (Match(excepted=("/health",)), Match(path="/v1"), False),
        (Match(excepted=("/health",)), Match(path="/v1", excepted=("/health",)), True),
    ],
)
def test_what_covers_what(wide: Match, narrow: Match, expected: bool) -> None:
    """Methods, templates and exceptions are compared; what is not certain is no."""
    assert expected is covers(wide, narrow)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # the row: a default of 100 and 600 for one route
        (Rule("a", Quota(100, 60_000)), Rule("b", Quota(600, 60_000), match=Match(path="/r")), [(1, 0)]),
        # a smaller limit for one route refuses by itself
        (Rule("a", Quota(100, 60_000)), Rule("b", Quota(60, 60_000), match=Match(path="/r")), []),
        # an hour holds sixty minutes of 100 each, so 6,000 are never exceeded, and 5,999 may be
        (Rule("a", Quota(100, 60_000)), Rule("b", Quota(6000, 3_600_000), match=Match(path="/r")), [(1, 0)]),
        (Rule("a", Quota(100, 60_000)), Rule("b", Quota(5999, 3_600_000), match=Match(path="/r")), []),
        # a burst of the first adds to its window
        (Rule("a", Quota(100, 60_000), burst=10), Rule("b", Quota(105, 60_000), match=Match(path="/r")), []),
        # all callers together are stricter than each of them, and not the other way round
        (Rule("a", Quota(9, 1000), principal=(EVERYONE,)), Rule("b", Quota(9, 1000), match=Match(path="/r")), [(1, 0)]),
        (Rule("a", Quota(9, 1000)), Rule("b", Quota(9, 1000), match=Match(path="/r"), principal=(EVERYONE,)), []),
        # a rule in shadow mode refuses nothing, nor does one that gives back
        (Rule("a", Quota(9, 1000), mode="shadow"), Rule("b", Quota(99, 1000), match=Match(path="/r")), []),  # type: ignore[arg-type]
        (Rule("a", Quota(9, 1000), count=frozenset({"401"})), Rule("b", Quota(99, 1000), match=Match(path="/r")), []),
        # a request that costs more
        (Rule("a", Quota(9, 1000)), Rule("b", Quota(99, 1000), match=Match(path="/r"), cost=50), []),
    ],
)
def test_rules_that_never_refuse(first: Rule, second: Rule, expected: list[tuple[int, int]]) -> None:
    """A rule is reported only if the other one refuses first whatever comes."""
    assert expected == list(never_refusing([first, second]))
    assert [(1 - index, 1 - other) for index, other in expected] == list(never_refusing([second, first]))


def test_the_client_is_the_principal_by_default() -> None:
    """The table above compares principals that are equal."""
    assert (CLIENT,) == Rule("a", Quota(1, 1000)).principal


def test_check_config_warns_of_a_rule_that_never_refuses(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """The warning names both rules and what to write."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "rules:\n  - limit: 100/minute\n  - {name: reports, limit: 600/minute, match: {path: /v1/reports/**}}\n"
        "  - {name: free, limit: 1/hour, cost: 0, match: {path: /free}}\n"
    )
    loaded = load_file(path)
    found = warnings(loaded.policy, loaded.document)

    assert any("rules[1]: never refuses, as rules[0] counts all its requests" in line for line in found)
    assert any("rules[2]: never refuses, as its cost is 0" in line for line in found)
    assert 2 == len(found)
