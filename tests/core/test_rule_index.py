"""Rules are found by index: the same ones as by a look at each, in a number of steps that does not grow with them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core import planner as planner_module
from ratelimiter.core.match import Condition, Match
from ratelimiter.core.overrides import Pattern, RuntimeOverrides
from ratelimiter.core.path_rules import PathRules
from ratelimiter.core.planner import Planner
from ratelimiter.core.policy import AmbiguousPaths, Policy
from ratelimiter.core.principal import parse_source
from ratelimiter.core.request import MalformedRequest, Request
from ratelimiter.core.requirement import Requirement
from ratelimiter.core.rule_index import ENTRIES_MAX, INDEXED_MIN, RuleIndex
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import per_minute, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimiter.core.rule import Rule

NEVER = 1_000_000  # rules from which on an index is used
HOSTS = ["a.example", "b.example", "c.example"]

_segment = st.sampled_from(["a", "b", "A", "v1", "V1", "\u00e9", "x y", "ss", "\u00df", "*", "{id}"])
_template = st.one_of(
    st.sampled_from(["/", "/*", "/**", "/{id}"]),
    st.builds(
        lambda parts, end: "/" + "/".join(parts) + end,
        st.lists(_segment, min_size=1, max_size=4),
        st.sampled_from(["", "/", "/*", "/**"]),
    ),
)
_methods = st.frozensets(st.sampled_from(["GET", "POST", "HEAD", "put"]), max_size=2)
_host = st.builds(
    lambda hosts, pattern: Condition("host", "", frozenset(each.encode() for each in hosts), pattern),
    st.frozensets(st.sampled_from(HOSTS), max_size=2),
    st.sampled_from([(), (), (Pattern((b"", b".example")),)]),
)
_beta = st.just(Condition("header", "x-beta", frozenset({b"1"})))
_match = st.builds(
    Match,
    methods=_methods,
    excepted_methods=_methods,
    paths=st.lists(_template, max_size=3).map(tuple),
    excepted=st.lists(_template, max_size=2).map(tuple),
    ignore_case=st.booleans(),
    conditions=st.lists(_host | _beta, max_size=2).map(tuple),
)


@st.composite
def _rules(draw: st.DrawFn) -> tuple[Rule, ...]:
    rules = []
    for number, match in enumerate(draw(st.lists(_match, min_size=1, max_size=25))):
        keyed = "id" in match.names and draw(st.booleans())
        source = parse_source("path:id" if keyed else "client")
        instead, always = draw(st.sampled_from([(False, False), (False, False), (True, False), (False, True)]))
        rules.append(per_minute(name=f"r{number}", match=match, principal=(source,), instead=instead, always=always))
    return tuple(rules)


_policies = st.builds(
    Policy,
    _rules(),
    requirements=st.lists(st.builds(Requirement, match=_match, header=st.just("x-id")), max_size=4).map(tuple),
    ambiguous_paths=st.sampled_from(AmbiguousPaths),
    method_override=st.booleans(),
)
_sent = st.sampled_from(
    ["a", "b", "A", "v1", "%61", "%C3%A9", "x%20y", "SS", "..", ".", "", "a%2Fb", "a%5cb", "%", "%00", "%ff", "z;p=1"]
)
_targets = st.builds(
    lambda parts, query: "/" + "/".join(parts) + query, st.lists(_sent, max_size=5), st.sampled_from(["", "?q=1"])
) | st.sampled_from(["*", "http://a.example/a/b", "no-path"])
_headers = st.lists(
    st.sampled_from(
        [
            *[("Host", f"{host}:443") for host in HOSTS],
            ("host", "A.EXAMPLE."),
            ("host", "unknown.example"),
            ("X-Beta", "1"),
            ("X-HTTP-Method-Override", "post"),
        ]
    ),
    max_size=3,
)
_requests = st.builds(
    lambda target, method, headers, root, routed: request(
        target, method=method, headers=headers, root_path=root, routed_path=routed
    ),
    _targets,
    st.sampled_from(["GET", "get", "HEAD", "POST", "PUT", "PURGE"]),
    _headers,
    st.sampled_from(["", "", "/v1"]),
    st.sampled_from([None, None, "/a/b", "/v1/a", "/\u00e9/a"]),
)


def _answer(planner: Planner, asked: Request) -> object:
    """Everything that edges ask of a planner about one request."""

    def of(ask: Callable[[], object]) -> object:
        try:
            return ask()
        except MalformedRequest as fault:
            return str(fault)

    def rules() -> object:
        found = planner.rule_set(asked)
        return [rule.name for rule in found.rules], found.requirements

    return (
        of(rules),
        of(lambda: [(hit.key, hit.quota, hit.rule.name) for hit in planner.hits(asked)]),
        of(lambda: planner.paths(asked)),
        of(lambda: planner.forwarded(asked.method, asked.target)),
    )


@given(_policies, st.lists(_requests, min_size=1, max_size=8))
def test_an_index_finds_the_same_rules(policy: Policy, requests: list[Request]) -> None:
    """Rules, requirements, keys, paths and forwarded targets are those of a look at every rule, memos included."""
    indexed, listed = Planner(policy, indexed_min=0), Planner(policy, indexed_min=NEVER)
    for asked in [*requests, *requests]:
        assert _answer(listed, asked) == _answer(indexed, asked)


@given(_policies, st.lists(_requests, min_size=1, max_size=8))
def test_candidates_are_a_superset_in_the_order_of_the_file(policy: Policy, requests: list[Request]) -> None:
    """No rule that matches escapes the index, and the order of the file stands."""
    index = RuleIndex(policy.rules)
    for asked in requests:
        path = "/a/b" if asked.routed_path is None else asked.routed_path
        hosts = index.hosts_of(asked)
        found = index.candidates([asked.method], hosts, [path])
        matching = [rule for rule in policy.rules if rule.match.matches(asked.method, path)]
        reachable = [rule for rule in matching if rule.match.hosts is None or rule.match.hosts & set(hosts)]
        assert reachable == [rule for rule in found if rule.match.matches(asked.method, path)]
        assert [rule for rule in policy.rules if rule in found] == found


_paths = st.lists(st.sampled_from(["a", "b", "A", "v1", "%C3%A9", "x%20y", ""]), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@given(
    _policies, st.sampled_from(["GET", "POST"]), st.lists(_paths, min_size=1, max_size=3), st.sampled_from([0, NEVER])
)
def test_paths_are_alike_if_every_rule_says_so(policy: Policy, method: str, paths: list[str], indexed: bool) -> None:
    """Neither the index nor the comparison of equal conditions once makes two paths alike that a rule tells apart."""
    conditions = [(rule.match, rule.keyed_by_path) for rule in policy.rules]
    conditions += [(each.match, False) for each in policy.requirements]
    methods = {method}
    if policy.method_override:
        methods = methods.union(*[match.methods for match, _ in conditions])

    def met(path: str) -> list[object]:
        return [
            (match.captured(path) if keyed else None, [match.matches(each, path) for each in sorted(methods)])
            for match, keyed in conditions
        ]

    expected = all(met(paths[0]) == met(path) for path in paths)
    assert expected == PathRules(policy, 0 if indexed else NEVER).alike(method, paths)


# --- Growth

KINDS: dict[str, Callable[[int], Match]] = {
    "path": lambda n: Match(path=f"/v1/r{n}/{{id}}"),
    "path below": lambda n: Match(path=f"/r{n}/**", excepted=(f"/r{n}/public",)),
    "path in any case": lambda n: Match(path=f"/V1/R{n}/{{id}}", ignore_case=True),
    "host": lambda n: Match(path="/v1/**", conditions=(Condition("host", "", frozenset({b"h%d.example" % n})),)),
    "method": lambda n: Match(methods=frozenset({f"M{n}"}), path="/v1/**"),
}
SENT = {
    "path": request("/v1/r7/x"),
    "path below": request("/r7/a/b"),
    "path in any case": request("/v1/r7/x"),
    "host": request("/v1/x", headers=[("Host", "h7.example")]),
    "method": request("/v1/x", method="M7"),
}


def _policy(kind: str, rules: int) -> Policy:
    return Policy(tuple(per_minute(name=f"r{n}", match=KINDS[kind](n)) for n in range(rules)))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of calls of what looks at one rule."""
    counted: Counter[str] = Counter()
    for name in ("matches", "meets", "captured"):
        function = getattr(Match, name)

        def count(*args: object, name: str = name, function: Callable[..., object] = function) -> object:
            counted[name] += 1
            return function(*args)

        monkeypatch.setattr(Match, name, count)
    return counted


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_looks_at_no_more_of_2000_rules_than_of_10(kind: str, steps: Counter[str]) -> None:
    """The first request of a target looks at the one rule that it matches; without an index, at each rule."""

    def looks(rules: int, indexed_min: int = INDEXED_MIN) -> int:
        planner = Planner(_policy(kind, rules), indexed_min=indexed_min)
        steps.clear()
        assert ["r7"] == [hit.rule.name for hit in planner.hits(SENT[kind])]
        return steps.total()

    assert looks(10) == looks(2000)
    assert looks(2000) <= 3
    assert looks(10, NEVER) >= 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_matches_none_looks_at_none(kind: str, steps: Counter[str]) -> None:
    """Neither a path, a host nor a method that no rule has costs a look at any of 2,000."""
    planner = Planner(_policy(kind, 2000))
    steps.clear()
    assert () == planner.hits(request("/v2/unknown", method="PURGE", headers=[("Host", "unknown.example")]))
    assert 0 == steps.total()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("path", "/v1/r7/x%2Fy"),
        ("path below", "/r7%2Fa"),
        ("host", "/v1%2Fa"),
    ],
)
def test_an_ambiguous_path_is_compared_by_few_rules(kind: str, target: str, steps: Counter[str]) -> None:
    """What a refused or forwarded path with two readings costs does not grow with the rules, either."""
    looks = {}
    for rules in (10, 2000):
        planner = Planner(_policy(kind, rules))
        steps.clear()
        assert b"/x%2Fy" == planner.forwarded("GET", b"/x%2Fy")
        with pytest.raises(MalformedRequest):
            planner.hits(request(target))
        with pytest.raises(MalformedRequest):
            planner.forwarded("GET", target.encode())
        looks[rules] = steps.total()
    assert 1 <= looks[2000] <= looks[10]


def test_a_request_asks_for_the_requirements_of_its_path_alone(steps: Counter[str]) -> None:
    """Requirements are found by index as rules are."""
    needed = tuple(Requirement(Match(path=f"/r{n}/**"), header="x-id") for n in range(2000))
    planner = Planner(Policy((per_minute(),), requirements=needed))
    steps.clear()
    assert (needed[7],) == planner.rule_set(request("/r7/a")).requirements
    assert steps["matches"] <= 3


def test_few_rules_have_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy of few rules does not pay for the tree; one rule more does."""
    built: list[int] = []

    def build(rules: tuple[Rule, ...]) -> RuleIndex[Rule]:
        built.append(len(rules))
        return RuleIndex(rules)

    monkeypatch.setattr(planner_module, "RuleIndex", build)
    Planner(_policy("path", INDEXED_MIN))
    assert [] == built
    Planner(_policy("path", INDEXED_MIN + 1))
    assert [INDEXED_MIN + 1] == built


def test_runtime_overrides_build_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's override does not build the index of 2,000 rules again, in the event loop; another policy does."""
    limiter = Limiter(_policy("path", 2000), MemoryStore())
    built: list[int] = []

    def build(rules: tuple[Rule, ...]) -> RuleIndex[Rule]:
        built.append(len(rules))
        return RuleIndex(rules)

    monkeypatch.setattr(planner_module, "RuleIndex", build)
    limiter.apply(RuntimeOverrides(version="1"))
    assert [] == built
    assert ["r7"] == [hit.rule.name for hit in limiter.hits(SENT["path"])]
    limiter.swap(_policy("path", 30))
    assert [30] == built


def test_a_rule_of_many_hosts_is_entered_once() -> None:
    """Hosts times methods of one rule do not fill the memory; it is found for each of them, and for others in vain."""
    hosts = frozenset(b"h%d.example" % n for n in range(ENTRIES_MAX + 1))
    rule = per_minute(match=Match(path="/a", conditions=(Condition("host", "", hosts),)))
    index = RuleIndex([rule])
    assert not index.looks_at_hosts
    assert [rule] == index.candidates(["GET"], (), ["/a"])
    planner = Planner(Policy((rule,)), indexed_min=0)
    assert ["rule"] == [hit.rule.name for hit in planner.hits(request("/a", headers=[("Host", "h256.example")]))]
    assert () == planner.hits(request("/a", headers=[("Host", "other.example")]))


def test_hosts_of_clients_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown hosts share one entry, and sets of known ones are bounded."""
    monkeypatch.setattr(planner_module, "PLANS_MAX", 8)
    planner = Planner(_policy("host", 40))
    for n in range(100):
        assert () == planner.hits(request("/v1/x", headers=[("Host", f"unknown-{n}.example")]))
    assert 1 == len(planner._memo)
    for n in range(39):
        both = [("Host", f"h{n}.example"), ("Host", f"h{n + 1}.example")]
        assert [f"r{n}", f"r{n + 1}"] == [hit.rule.name for hit in planner.hits(request("/v1/x", headers=both))]
    assert max(len(planner._memo), len(planner._rule_sets)) <= 8
