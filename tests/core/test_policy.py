"""A policy becomes hits: the right rules, keys that are nobody else's, and memory that a client cannot fill."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.client_address import Trust
from ratelimiter.core.identity import ApiKeys, Identity, IdentityPolicy
from ratelimiter.core.match import Condition, Match
from ratelimiter.core.planner import PLANS_MAX, Planner
from ratelimiter.core.policy import AmbiguousPaths, Policy, key_of
from ratelimiter.core.prices import Prices
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
from ratelimiter.core.token_terms import TokenTerms
from tests.requesting import PEER, per_minute, request

if TYPE_CHECKING:
    from collections.abc import Callable

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
        ({"lease": -1}, "lease must be 0 to 1000000000, not -1"),
        ({"lease": LIMIT_MAX + 1}, "lease"),
        ({"tokens": TokenTerms("openai"), "cost_from": CostFrom(REQUEST_HEADER, "x-cost")}, "exclude each other"),
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


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan")])
def test_a_local_share_is_a_share(share: float) -> None:
    """With more than the whole, an outage would admit more than the limit; with nothing, a policy says `deny`."""
    with pytest.raises(ValueError, match="local_share must be above 0 and at most 1"):
        Policy(rules=(), local_share=share)


def test_the_files_of_a_policy() -> None:
    """All that it was read from is watched for changes, each once; what is in the package is no file."""
    prices = Prices((("m", (("input", Decimal(1)),)),), Decimal(1))
    mine = TokenTerms("./preset.yaml", prices=prices, prices_file="./prices.yaml")
    identity = IdentityPolicy(api_keys=ApiKeys(KEY, "/keys.yaml", {}))
    rules = (
        per_minute(name="a", tokens=mine),
        per_minute(name="b", tokens=mine),
        per_minute(name="c", tokens=TokenTerms("openai")),
    )

    assert () == Policy(rules=rules[2:]).files
    assert ("./d.yaml", "/o.csv", "./preset.yaml", "./prices.yaml", "/keys.yaml") == Policy(
        rules=rules, dialect="./d.yaml", overrides_file="/o.csv", identity=identity
    ).files


# --- how much of a body is read --------------------------------------------------------------------------------------

JSON_RULE = per_minute(name="json", match=Match(path="/json"), principal=(parse_source("json:user"),))
TOKENS_RULE = per_minute(name="tokens", match=Match(path="/chat"), tokens=TokenTerms("openai"))


@pytest.mark.parametrize(
    ("target", "headers", "expected"),
    [
        ("/other", [], 0),
        ("/json", [], 2049),
        ("/json", [("content-length", "2048")], 2049),
        ("/json", [("content-length", "2049")], 0),
        ("/json", [("Content-Length", "9" * 5000)], 0),
        ("/json", [("content-length", "many")], 2049),
        ("/json", [("Content-Encoding", "gzip")], 1),
        ("/chat", [], 2049),
        ("/chat", [("content-length", "999999")], 2049),
        ("/chat", [("content-encoding", "br")], 1),
        ("/json%2f", [], 0),
    ],
)
def test_how_much_of_a_body_is_read(target: str, headers: list[tuple[str, str]], expected: int) -> None:
    """No more than a rule of this request needs: of a key the whole body if it may fit, of an estimate its beginning.

    An encoded body is only asked for its existence, and a request that will be refused for its path is not waited for.
    """
    planner = Planner(Policy(rules=(JSON_RULE, TOKENS_RULE), json_bytes_max=2048))

    assert expected == planner.body_wanted(request(target, method="POST", headers=headers))


# --- what is forwarded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "target", "expected"),
    [
        ((ALL,), b"/a/../%2f", b"/a/../%2f"),
        ((LOGIN, ALL), b"/x//y?a=//", b"/x//y?a=//"),
        ((LOGIN, ALL), b"/x/../login", b"/login"),
        ((LOGIN, ALL), b"//login", b"//login"),
        ((LOGIN, ALL), b"/x%2fy", b"/x%2fy"),
    ],
)
def test_a_target_is_forwarded_as_it_came_unless_readings_meet_other_rules(
    rules: tuple[Rule, ...], target: bytes, expected: bytes
) -> None:
    """The upstream reads the path that was charged."""
    assert expected == Planner(Policy(rules=rules)).forwarded("POST", target)


def test_a_path_that_means_two_rules_is_forwarded_only_if_the_policy_says_so() -> None:
    """No form of it means one path to all servers, so it is refused, or charged by every reading."""
    target = b"/x%2f..%2flogin"

    with pytest.raises(MalformedRequest, match="encoded slash"):
        Planner(Policy(rules=(LOGIN, ALL))).forwarded("POST", target)
    assert target == Planner(Policy((LOGIN, ALL), ambiguous_paths=AmbiguousPaths.MATCH)).forwarded("POST", target)


def test_a_method_override_may_lead_to_the_rules_of_any_method() -> None:
    """A path that is harmless to GET is refused where a header of the client may turn it into a POST."""
    each = request("/x%2f..%2flogin", method="GET")

    assert [("all",)] == planned(Policy((LOGIN, ALL)), each)
    with pytest.raises(MalformedRequest, match="encoded slash"):
        planned(Policy((LOGIN, ALL), method_override=True), each)


def test_an_ambiguous_path_and_a_routed_one_are_charged_together() -> None:
    """Where all its readings and the path that the application routes by meet the same rules, it harms no limit."""
    by_path = per_minute(name="below", match=Match(path="/files/**"))
    policy = Policy(rules=(by_path, LOGIN))

    assert [("below",)] == planned(policy, request("/files/a%2fb", routed_path="/files/a/b"))
    with pytest.raises(MalformedRequest):
        planned(policy, request("/files/a%2fb", routed_path="/other"))


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_so_many_targets_are_remembered_and_no_more() -> None:
    """Targets are the client's to choose; each meets its rules whether it is remembered or not."""
    planner = Planner(Policy(rules=(LOGIN, ALL)))
    for number in range(PLANS_MAX + 1):
        assert (ALL,) == planner.rule_set(request(f"/{number}")).rules

    assert 1 == len(planner._memo)
    assert (LOGIN, ALL) == planner.rule_set(request("/login", method="POST")).rules


def test_so_many_principals_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is charged to its own key whether it is remembered or not, verified or by a field of the request."""
    monkeypatch.setattr("ratelimiter.core.rule_set.HITS_MAX", 3)
    by_query = per_minute(name="query", principal=(parse_source("query:q"),))
    plain, keyed = (Planner(Policy(rules=(rule,))) for rule in (per_minute(principal=(KEY,)), by_query))

    asking: list[tuple[Planner, Callable[[int], Request]]] = [
        (plain, lambda number: request(headers=[("x-api-key", f"k{number}")])),
        (keyed, lambda number: request(f"/?q={number}")),
    ]
    for planner, ask in asking:
        found = [planner.hits(ask(number))[0].key for number in [*range(10), *range(10)]]
        assert found[:10] == found[10:]
        assert 10 == len(set(found))
        assert len(planner.rule_set(ask(0))._memo) <= 3


def test_long_principals_are_not_remembered() -> None:
    """A verified name and a field may be long; what they are charged to is the same each time."""
    planner = Planner(Policy(rules=(per_minute(principal=(KEY, Source("identified"))),)))
    rule_set = planner.rule_set(request())
    long, short = (Identity(verified=(("app", "a" * length),)) for length in (5000, 10))

    assert 1 == len({rule_set.hits_of(request(), long) for _ in range(2)})
    assert 0 == len(rule_set._memo)
    assert 1 == len({rule_set.hits_of(request(), short) for _ in range(2)})
    assert 1 == len(rule_set._memo)


def test_what_bodies_say_is_decided_once() -> None:
    """Two requests that meet the same conditions share one set of rules."""
    rule = per_minute(name="big", match=Match(conditions=(Condition("query", "size", frozenset({b"big"})),)))
    planner = Planner(Policy(rules=(rule, ALL)))
    big, small = request("/?size=big"), request("/?size=small")

    assert planner.rule_set(big) is planner.rule_set(big)
    assert [("big", "all"), ("all",), ("big", "all")] == planned(planner.policy, big, small, big)


# --- names for people ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "asked", "verified", "expected"),
    [
        ("header:X-API-Key", request(headers=[("x-api-key", "k1")]), (), ["k1"]),
        ("client", request(), (), [PEER]),
        ("query:user", request("/?user=ann"), (), ["ann"]),
        ("bearer", request(headers=[("authorization", "Bearer t1")]), (), []),
        ("bearer", request(headers=[("authorization", "Bearer t1")]), (("bearer", "alice"),), ["t1"]),
    ],
)
def test_names_that_people_may_be_shown(
    source: str, asked: Request, verified: tuple[tuple[str, str], ...], expected: list[str]
) -> None:
    """Operators see whom a key means, but never a token that its reader could use."""
    planner = Planner(Policy(rules=(per_minute(principal=(parse_source(source),)),)))

    assert expected == list(planner.names(planner.hits(asked), asked, verified).values())


def test_a_plan_is_a_condition_even_where_no_policy_knows_plans() -> None:
    """Then every request is on no plan, so the rule applies to none."""
    of_plan = per_minute(name="pro", match=Match(plans=frozenset({"pro"})))

    assert [("all",)] == planned(Policy(rules=(of_plan, ALL)), request())
