"""A policy becomes hits: the right rules, keys that are nobody else's, and memory that a client cannot fill."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.client_address import Trust
from ratelimiter.core.match import Match
from ratelimiter.core.planner import Planner
from ratelimiter.core.policy import AmbiguousPaths, Policy, key_of
from ratelimiter.core.principal import CLIENT, EVERYONE, PrincipalReader, Source, parse_source
from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, Quota, Slots
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.rule import (
    LONG_WINDOWS,
    NAME_CHARACTERS,
    NAME_CHARACTERS_MAX,
    REQUEST_HEADER,
    RESPONSE_HEADER,
    CostFrom,
    Mode,
    OnStoreError,
    Rule,
)
from tests.requesting import PEER, per_minute, request

KEY = parse_source("header:X-API-Key")
names = st.text(st.sampled_from(sorted(NAME_CHARACTERS)), min_size=1, max_size=NAME_CHARACTERS_MAX)


def planned(policy: Policy, *requests: Request) -> list[tuple[str, ...]]:
    """The names of the rules that each request meets."""
    planner = Planner(policy)
    return [tuple(rule.name for rule in planner.rule_set(each).rules) for each in requests]


def keys(policy: Policy, each: Request) -> list[bytes]:
    return [hit.key for hit in Planner(policy).rule_set(each).hits(each)]


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "a:b", "{a}", "a\n", "\u00e9", "a/b", "a" * (NAME_CHARACTERS_MAX + 1)]
)
def test_names_that_would_break_keys_and_labels(name: str) -> None:
    """Rules and policies are named in a few harmless characters: names are parts of keys, headers and labels."""
    with pytest.raises(ValueError, match="name must be"):
        per_minute(name=name)
    with pytest.raises(ValueError, match="name must be"):
        Policy(rules=(), name=name)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"burst": -1}, "burst"),
        ({"burst": LIMIT_MAX}, "burst"),
        ({"cost": -1}, "cost"),
        ({"cost": LIMIT_MAX + 1}, "cost"),
        ({"quota": Quota(1, WINDOW_MS_MAX), "burst": 1}, "window_ms"),
    ],
)
def test_rules_refuse_nonsense(settings: dict[str, Any], problem: str) -> None:
    """A number outside its range is refused at the door (rows 161, 182)."""
    with pytest.raises(ValueError, match=problem):
        per_minute(**settings)


def test_rule_names_are_unique() -> None:
    """Two rules of one name would share counters."""
    with pytest.raises(ValueError, match="must differ: a, b"):
        Policy(rules=tuple(per_minute(name=name) for name in "bacab"))


def test_secrets_have_a_greatest_length() -> None:
    """A longer secret than BLAKE2b takes is refused; it is never shown."""
    with pytest.raises(ValueError, match="at most 64 bytes, not 65"):
        Policy(rules=(), secret=b"s" * 65)
    assert "hush" not in repr(Policy(rules=(), secret=b"hush"))


def test_a_burst_is_two_quotas() -> None:
    """With a burst a request is charged to the window and to ten windows together; without, to the window alone."""
    assert (Quota(60, 60_000),) == per_minute(60).quotas
    assert (Quota(70, 60_000), Quota(610, 600_000)) == per_minute(60, burst=10).quotas
    assert 10 == LONG_WINDOWS


@pytest.mark.parametrize(("mode", "expected"), [(Mode.ENFORCE, False), (Mode.SHADOW, True)])
def test_shadow(mode: Mode, expected: bool) -> None:
    """A rule knows whether it is obeyed."""
    assert expected == per_minute(mode=mode).shadow


@pytest.mark.parametrize(
    ("matches", "expected"), [([Match(path="/a")], False), ([Match(path="/a"), Match()], True), ([], False)]
)
def test_catch_all(matches: list[Match], expected: bool) -> None:
    """A policy knows whether a request can escape it (bypass 30)."""
    rules = tuple(per_minute(name=f"rule-{index}", match=match) for index, match in enumerate(matches))

    assert expected == Policy(rules=rules).catch_all


# --- keys ------------------------------------------------------------------------------------------------------------

odd = st.text(st.sampled_from("ab:{}\r\n\x00*\x7f\xff"), max_size=6).map(lambda text: text.encode("latin-1"))
identities = st.tuples(names, names, st.sampled_from(["x-a", "x-b", "a", "a.b"]), odd.map(bytes.strip).filter(bool))


@given(identities, identities)
def test_keys_are_injective(one: tuple[str, str, str, bytes], other: tuple[str, str, str, bytes]) -> None:
    """Different (policy, rule, source, value) never share a key, the same ones always do (row 144, 7)."""

    def key(policy_name: str, rule_name: str, header: str, value: bytes) -> list[bytes]:
        rule = per_minute(name=rule_name, principal=(Source("header", header),))
        return keys(Policy(rules=(rule,), name=policy_name), request(headers=[(header, value)]))

    assert (one == other) == (key(*one) == key(*other))


@given(identities)
def test_keys_tell_nothing_and_are_bounded(identity: tuple[str, str, str, bytes]) -> None:
    """A key is short printable ASCII with one hash tag, and no principal's value is in it (rows 141, 144, 8)."""
    policy_name, rule_name, header, value = identity
    value = b"secret" + value
    rule = per_minute(name=rule_name, burst=1, principal=(Source("header", header),))
    found = keys(Policy(rules=(rule,), name=policy_name), request(headers=[(header, value)]))

    assert 2 == len(set(found))
    for key in found:
        assert re.fullmatch(rb"rl1:\{[0-9a-f]{32}\}:[a-z0-9._-]{1,64}:[a-z0-9._-]{1,64}:[01]", key)
        assert value not in key
        assert len(key) <= 170


def test_the_keys_of_one_principal_share_a_slot() -> None:
    """All that a request charges to one principal lies in one slot of a Redis Cluster, and in no other's."""
    policy = Policy(rules=(per_minute(name="a", burst=1), per_minute(name="b"), per_minute(name="c", principal=(KEY,))))
    each = request(headers=[("x-api-key", "k")])
    tags = [key.split(b"}")[0] for key in keys(policy, each)]

    assert tags[0] == tags[1] == tags[2] != tags[3]


def test_a_key_survives_a_new_limit() -> None:
    """Limit, window, burst, cost and mode are no part of the key (7)."""
    before = per_minute(60)
    after = Rule(name="rule", quota=Quota(1000, 3_600_000), burst=5, cost=3, mode=Mode.SHADOW)
    principal = PrincipalReader((CLIENT,), Trust()).read((CLIENT,), (), PEER)
    policy = Policy(rules=(before,))

    assert key_of(policy, before, principal, 0) == key_of(policy, after, principal, 0)


def test_everyone_has_one_key() -> None:
    """A rule over everyone is charged to one key, whoever comes."""
    policy = Policy(rules=(per_minute(principal=(EVERYONE,)),))

    assert keys(policy, request(peer="1.2.3.4")) == keys(policy, request(headers=[("x-api-key", "k")], peer=None))


# --- planning --------------------------------------------------------------------------------------------------------

LOGIN = per_minute(name="login", match=Match(methods=frozenset({"POST"}), path="/login"))
ALL = per_minute(name="all")


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (request("/login", method="POST"), ("login", "all")),
        (request("/login", method="GET"), ("all",)),
        (request("/", method="FOO"), ("all",)),
        (request("*", method="OPTIONS"), ("all",)),
        (request("/login?a=1", method="POST"), ("login", "all")),
        (request("//x/../%6cogin/", method="post"), ("login", "all")),
        (request("http://other.example/login", method="POST"), ("login", "all")),
        (request("/api/login", method="POST", root_path="/api"), ("login", "all")),
        (request("/public/x", method="POST", routed_path="/login"), ("login", "all")),
        (request("/login", method="POST", routed_path="/public"), ("login", "all")),
        (request("/api/x", method="POST", root_path="/api", routed_path="/api/login"), ("login", "all")),
    ],
)
def test_every_rule_that_matches_applies(each: Request, expected: tuple[str, ...]) -> None:
    """In the order of the policy; by the canonical path and by the routed one, whichever a rule meets."""
    assert [expected] == planned(Policy(rules=(LOGIN, ALL)), each)
    assert [expected] * 2 == planned(Policy(rules=(LOGIN, ALL)), each, each)


def test_targets_do_not_matter_where_no_rule_looks() -> None:
    """Without a rule about paths no target is malformed."""
    assert [("all",)] * 2 == planned(Policy(rules=(ALL,)), request("/%00"), request("x", method="POST"))


def test_ambiguous_paths_are_refused_or_matched_as_routed() -> None:
    """An ambiguous path is malformed, unless the policy says to match what the application was given."""
    each = request("/x%2f..%2flogin", method="POST", routed_path="/login")
    with pytest.raises(MalformedRequest):
        planned(Policy(rules=(LOGIN, ALL)), each)

    assert [("login", "all")] == planned(Policy(rules=(LOGIN, ALL), ambiguous_paths=AmbiguousPaths.MATCH), each)
    alone = each._replace(routed_path=None)
    assert [("login", "all")] == planned(Policy(rules=(LOGIN, ALL), ambiguous_paths=AmbiguousPaths.MATCH), alone)


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "x-http-method", "X-Method-Override"])
def test_method_override(header: str) -> None:
    """If the application honours overrides, the rules of both methods apply; else only the real one's (row 149)."""
    each = request("/login", method="GET", headers=[(header, " post ")])

    assert [("all",)] == planned(Policy(rules=(LOGIN, ALL)), each)
    assert [("login", "all")] == planned(Policy(rules=(LOGIN, ALL), method_override=True), each)


@given(st.binary(max_size=40), st.text(max_size=10), st.text(max_size=20) | st.none())
def test_planning_never_fails_otherwise(target: bytes, root_path: str, routed_path: str | None) -> None:
    """Whatever target, mount or routed path comes, there is a plan or the request is malformed."""
    each = request(target, root_path=root_path, routed_path=routed_path)
    for policy in (Policy(rules=(LOGIN, ALL)), Policy(rules=(LOGIN,), ambiguous_paths=AmbiguousPaths.MATCH)):
        with contextlib.suppress(MalformedRequest):
            planned(policy, each)


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(lambda n: request(f"/{n:0>60000}"), id="targets"),
        pytest.param(lambda n: request("/", method=f"{n:A>60000}"), id="methods"),
        pytest.param(lambda n: request(headers=[("x-forwarded-for", f"{n:a>60000}")]), id="forwarding"),
        pytest.param(lambda n: request(headers=[("x-forwarded-for", str(n))] * 500), id="lines"),
        pytest.param(lambda n: request(headers=[("x-api-key", "k"), ("authorization", f"{n:a>60000}")]), id="unread"),
    ],
)
def test_a_client_cannot_fill_the_memory(noise: Any) -> None:
    """What is remembered of requests is bounded in bytes, not only in number."""
    rules = (LOGIN, ALL, per_minute(name="key", principal=(KEY, Source("bearer"))))
    planner = Planner(Policy(rules=rules, trust=Trust(hops=1)))
    tracemalloc.start()
    try:
        for number in range(400):  # 24 MB of requests
            each = noise(number)
            planner.rule_set(each).hits(each)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 4_000_000


def test_a_rule_takes_its_modes_as_text() -> None:
    """A mode that is written as text is the mode, not a string that means nothing; another text is refused."""
    rule = Rule("a", Quota(1, 1000), mode="shadow", on_store_error="deny")  # type: ignore[arg-type]

    assert (True, OnStoreError.DENY) == (rule.shadow, rule.on_store_error)
    with pytest.raises(ValueError, match="shadwo"):
        Rule("a", Quota(1, 1000), mode="shadwo")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "warn_at", "near"),
    [(10, 0.8, 2), (10, 0.7, 3), (10, 1, 0), (3, 0.8, 0), (100, 0.29, 71), (1, 0.01, 0), (10**9, 0.999999999, 1)],
)
def test_from_where_on_a_limit_is_near(limit: int, warn_at: float, near: int) -> None:
    """As soon as that share is used, in decimals as it was written; the limit itself is always near."""
    assert near == per_minute(limit, warn_at=warn_at).near


def test_slots_are_given_back_in_any_case() -> None:
    """What could be settled of them would do nothing, so it is a mistake; a request may still ask for several."""
    asked = per_minute(quota=Slots(5), cost_from=CostFrom(REQUEST_HEADER, "x-weight"))

    assert (True, True) == (asked.settles, asked.leased)
    for settled in ({"count": frozenset({"2xx"})}, {"cost_from": CostFrom(RESPONSE_HEADER, "x-cost")}):
        with pytest.raises(ValueError, match="do nothing"):
            per_minute(quota=Slots(5), **settled)
