"""The ways in which callers get around rate limits, each tried on a limiter, by the number it has in the documentation.

Those that are not tried here, and where they are, or why they are nobody's here:

| bypass | where |
|---|---|
| 10 hop-by-hop stripping (`Connection: X-Forwarded-For`) | the sidecar strips; a middleware never does, see below |
| 16 batching | `cost`: tests/core/algorithms/test_sliding_window.py; the decision service has a cost per request |
| 17 races within a store | tests/stores/contract.py, for every store |
| 18 smuggling, 19 pipelining, 20 tunnels, 21 CONNECT | the sidecar, or the server in front of the middleware |
| 23 failover, flush, restart | tests of the Redis store; eviction from the embedded store below |
| 24 a slow store, 25 a failing script | tests of the Redis store and of what guards it |
| 27 negative cost | refused when a rule is made, below; over the wire it belongs to the decision service |
| 28 cancelled requests | tests/asgi/test_middleware.py: a request is charged before the application hears of it |
"""

from __future__ import annotations

import asyncio
import ipaddress

import pytest

from ratelimiter.core.client_address import Trust
from ratelimiter.core.decision import MALFORMED, OVER_LIMIT, UNMATCHED, WITHIN_LIMIT
from ratelimiter.core.match import Match
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import CLIENT, EVERYONE, parse_source
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Mode, Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import PEER, Gate, per_minute, request

KEY = parse_source("header:X-API-Key")
PROXIES = Trust(proxies=(ipaddress.ip_network("10.0.0.0/8"),))
LOGIN = per_minute(name="login", match=Match(methods=frozenset({"POST"}), path="/login"))


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X_Forwarded_For", "x-forwarded-for"])
async def test_bypass_01_spoofed_forwarding(header: str) -> None:
    """Addresses invented by an untrusted peer, or to the left of a trusted proxy's word, buy nothing."""
    for trust, peer, real in ((Trust(), PEER, ""), (PROXIES, PEER, ""), (PROXIES, "10.0.0.1", ", 203.0.113.9")):
        gate = Gate(per_minute(3), trust=trust)
        spoofed = [request(headers=[(header, f"198.51.100.{n}{real}")], peer=peer) for n in range(20)]

        assert 3 == await gate.admitted(spoofed)


@pytest.mark.parametrize(
    "header",
    ["Forwarded", "X-Real-IP", "X-Client-IP", "True-Client-IP", "X-Originating-IP", "X-Remote-IP", "X-Remote-Addr",
     "X-Cluster-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "X-Host", "X-Forwarded-Host", "Via"],
)  # fmt: skip
async def test_bypass_02_other_address_headers(header: str) -> None:
    """Headers that the policy does not name are not read, even from a trusted proxy."""
    gate = Gate(per_minute(3), trust=PROXIES)
    values = (f"for=198.51.100.{n}" if header == "Forwarded" else f"198.51.100.{n}" for n in range(20))

    assert 3 == await gate.admitted(request(headers=[(header, value)], peer="10.0.0.1") for value in values)


async def test_bypass_03_ipv6_rotation() -> None:
    """All addresses of one /64 are one client; with a shorter prefix, of that."""
    rotated = [request(peer=f"2001:db8:1:2:{n:x}::{n:x}") for n in range(50)]

    assert 3 == await Gate(per_minute(3)).admitted(rotated)
    rotated = [request(peer=f"2001:db8:1:{n:x}::1") for n in range(50)]
    assert 3 == await Gate(per_minute(3), trust=Trust(ipv6_prefix=56)).admitted(rotated)


async def test_bypass_04_mapped_and_zoned_addresses() -> None:
    """One address in other notations is one client."""
    for notations in (
        [
            "1.2.3.4",
            "::ffff:1.2.3.4",
            "::FFFF:102:304",
            "0:0:0:0:0:ffff:1.2.3.4",
            "64:ff9b::1.2.3.4",
            "2002:102:304::9",
        ],
        ["fe80::1", "fe80::1%eth0", "fe80::1%1", "fe80::1%25en0"],
    ):
        assert 1 == await Gate().admitted(request(peer=peer) for peer in notations)


async def test_bypass_04_mapping_does_not_make_all_of_ipv4_one() -> None:
    """Nor does one mapped client spend the limit of all the others."""
    assert 20 == await Gate().admitted(request(peer=f"::ffff:1.2.3.{n}") for n in range(20))


async def test_bypass_05_ports() -> None:
    """A new source port is no new client."""
    gate = Gate(per_minute(3), trust=PROXIES)
    values = [f"1.2.3.4:{1024 + n}" for n in range(9)] + ["1.2.3.4", '"1.2.3.4:5"']

    assert 3 == await gate.admitted(request(headers=[("X-Forwarded-For", v)], peer="10.0.0.1") for v in values)


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "10.0.0.1", None])
async def test_bypass_06_loopback_exemption(peer: str | None) -> None:
    """No address is exempt: not the loopback, not a proxy, not a unix socket, and not who claims to be one."""
    assert 3 == await Gate(per_minute(3), trust=PROXIES).admitted([request(peer=peer)] * 9)
    claims = [request(headers=[("X-Forwarded-For", peer or "127.0.0.1")])] * 9
    assert 3 == await Gate(per_minute(3), trust=PROXIES).admitted(claims)


async def test_bypass_07_rotating_invalid_keys() -> None:
    """Whoever invents a key per request still meets the limit on his address."""
    gate = Gate(per_minute(5, name="key", principal=(KEY,)), per_minute(9, name="address", principal=(CLIENT,)))

    assert 9 == await gate.admitted(request(headers=[("X-API-Key", f"invented-{n}")]) for n in range(50))


@pytest.mark.parametrize("value", ["", " ", "\t"])
async def test_bypass_07_empty_keys(value: str) -> None:
    """No key, an empty one and white space are charged to the address, not to the empty key."""
    gate = Gate(per_minute(1, principal=(KEY,)))
    decisions = await gate.reasons(
        request(headers=[("X-API-Key", value)]),
        request(),
        request(headers=[("X-API-Key", value)], peer="198.51.100.1"),
    )

    assert [WITHIN_LIMIT, OVER_LIMIT, WITHIN_LIMIT] == decisions


async def test_bypass_08_key_variants() -> None:
    """Variants that an authenticator takes for other keys have limits of their own, and still meet the address's."""
    variants = ["key", "Key", "KEY", "k\u00e9y", "key\x00", "key;", "key,key"]
    by_key = Gate(per_minute(1, principal=(KEY,)))
    by_both = Gate(per_minute(1, principal=(KEY,)), per_minute(3, name="address"))
    requests = [request(headers=[("X-API-Key", variant)]) for variant in variants]

    assert len(variants) == await by_key.admitted(requests)
    assert 0 == await by_key.admitted(requests)
    assert 3 == await by_both.admitted(requests)


@pytest.mark.parametrize("value", [" key", "key ", "\tkey\t"])
async def test_bypass_08_white_space_around_a_key(value: str) -> None:
    """White space that no header value includes makes no other key."""
    requests = (request(headers=[("X-API-Key", v)]) for v in ("key", value))

    assert 1 == await Gate(per_minute(1, principal=(KEY,))).admitted(requests)


@pytest.mark.parametrize("value", ["Bearer t", "bearer t", "BEARER  t", "Bearer\tt", "Bearer t "])
async def test_bypass_08_spellings_of_a_token(value: str) -> None:
    """A token is the same token, however the scheme is written."""
    gate = Gate(per_minute(1, principal=(parse_source("bearer"),)))
    peers = ("198.51.100.1", "198.51.100.2")
    requests = zip(("Bearer t", value), peers, strict=True)

    assert 1 == await gate.admitted(request(headers=[("Authorization", v)], peer=peer) for v, peer in requests)


@pytest.mark.parametrize(
    "headers",
    [
        [("X-API-Key", "a"), ("X-API-Key", "b")],
        [("X-API-Key", "a"), ("x-api-key", "a")],
        [("X-API-Key", "a"), ("X_Api_Key", "b")],
        [("X_Api_Key", "b")],
        [("X-Api_Key", "b")],
    ],
)
async def test_bypass_09_duplicates_and_underscore_twins(headers: list[tuple[str, str]]) -> None:
    """Where two readers could read two identities, the request is malformed, and nobody is charged."""
    gate = Gate(per_minute(1, principal=(KEY,)))

    assert [MALFORMED] * 3 == await gate.reasons(*[request(headers=headers)] * 3)
    assert [WITHIN_LIMIT] == await gate.reasons(request(headers=[("X-API-Key", "a")]))


async def test_bypass_10_hop_by_hop() -> None:
    """Naming a header in `Connection` does not make it unread."""
    gate = Gate(per_minute(1, principal=(KEY,)))
    named = ("Connection", "close, X-API-Key, X-Forwarded-For")
    requests = (request(headers=[named, ("X-API-Key", "k")], peer=f"198.51.100.{n}") for n in range(9))

    assert 1 == await gate.admitted(requests)


@pytest.mark.parametrize(
    "target",
    ["/login/", "//login", "/./login", "/x/../login", "/%6cogin", "/%6Cogin", "/login?", "/login?a=1", "/%2e/login",
     "/x/%2e%2e/login", "http://api.example/login", "http://other.example//login/", "/login/.", "/login/x/.."],
)  # fmt: skip
async def test_bypass_11_path_variants(target: str) -> None:
    """However a path is spelled, its rule is charged."""
    gate = Gate(LOGIN)

    assert [WITHIN_LIMIT, OVER_LIMIT] == await gate.reasons(
        request("/login", method="POST"), request(target, method="POST")
    )


@pytest.mark.parametrize(
    "target",
    ["/x%2f..%2flogin", "/%5clogin", "\\login", "/login%00", "/login%0d%0a", "/%c0%aelogin", "/login%", "/login%zz",
     "/log\u00efn", "/login#x", "/lo gin"],
)  # fmt: skip
async def test_bypass_11_ambiguous_paths(target: str) -> None:
    """A path that some server reads as another one is refused before anything is charged."""
    assert [MALFORMED] == await Gate(LOGIN, per_minute(name="all")).reasons(request(target, method="POST"))


@pytest.mark.parametrize("target", ["/Login", "/login;x", "/login.json", "/%256cogin", "/login%20", "/login%3fx"])
async def test_bypass_11_other_paths_meet_the_catch_all(target: str) -> None:
    """Paths that only some applications take for the same still meet the rule over everything."""
    gate = Gate(LOGIN, per_minute(2, name="all"))

    assert 2 == await gate.admitted([request(target, method="POST")] * 5)


async def test_bypass_11_case() -> None:
    """For an application that routes without regard to case, so does its rule."""
    rule = per_minute(match=Match(path="/login", ignore_case=True))

    assert 1 == await Gate(rule).admitted(request(target) for target in ("/login", "/Login", "/LOGIN", "/%4cogin"))


async def test_bypass_11_what_the_application_routes_by() -> None:
    """Where a framework routes by another path than the canonical one, the rules of both apply."""
    gate = Gate(LOGIN)
    requests = [
        request("/login", method="POST"),
        request("/public", method="POST", routed_path="/login"),
        request("/api/public", method="POST", root_path="/api", routed_path="/api/login"),
        request("/login", method="POST", routed_path="/public"),
    ]

    assert [WITHIN_LIMIT] + [OVER_LIMIT] * 3 == await gate.reasons(*requests)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://api.example/login", OVER_LIMIT),
        ("HTTPS://api.example:443/login", OVER_LIMIT),
        ("http://user@api.example/login", MALFORMED),
        ("http://api.example#/login", MALFORMED),
        ("http:///login", MALFORMED),
        ("/login#fragment", MALFORMED),
        ("api.example:443", MALFORMED),
        ("", MALFORMED),
    ],
)
async def test_bypass_12_odd_targets(target: str, reason: str) -> None:
    """A target in absolute form is limited by its path; user information, fragments and authorities are malformed."""
    gate = Gate(LOGIN)

    assert [WITHIN_LIMIT, reason] == await gate.reasons(
        request("/login", method="POST"), request(target, method="POST")
    )


async def test_bypass_13_methods() -> None:
    """HEAD spends what GET spends, no case is another method, and an unknown method meets the rules without one."""
    items = per_minute(2, name="items", match=Match(methods=frozenset({"GET"}), path="/items"))
    gate = Gate(items, per_minute(9, name="all"))

    assert 2 == await gate.admitted(request("/items", method=method) for method in ("GET", "HEAD", "get", "Head"))
    assert 7 == await gate.admitted([request("/items", method="FOO"), request("*", method="OPTIONS")] * 9)


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_bypass_13_method_override(header: str) -> None:
    """Where the application honours overrides, both methods' rules apply."""
    overridden = request("/login", headers=[(header, "POST")])

    assert 1 == await Gate(LOGIN, method_override=True).admitted([overridden, request("/login", method="POST")])
    assert [UNMATCHED] == await Gate(LOGIN).reasons(overridden)


async def test_bypass_14_sibling_versions() -> None:
    """One rule can span the versions of an endpoint."""
    rule = per_minute(match=Match(path="/{version}/login"))

    assert 1 == await Gate(rule).admitted(request(target) for target in ("/v1/login", "/v2/login", "/beta/login"))


async def test_bypass_15_query_noise() -> None:
    """A query is no part of anything."""
    assert 1 == await Gate(LOGIN).admitted(request(f"/login?a={n}", method="POST") for n in range(20))


async def test_bypass_17_races() -> None:
    """Of a hundred requests in one packet, exactly as many are admitted as there was room for."""
    gate = Gate(per_minute(7), per_minute(50, name="other"))
    decisions = await asyncio.gather(*(gate.limiter.judge(request()) for _ in range(100)))

    assert 7 == sum(decision.allowed for decision, *_ in decisions)


async def test_bypass_22_bursts_at_the_window_boundary() -> None:
    """There is no boundary: from whatever moment on, no window admits more than the limit."""
    gate = Gate(per_minute(10))
    admitted = []
    for _ in range(4 * 60):
        admitted.append(await gate.admitted([request()] * 3))
        gate.clock.advance(1000)

    assert 10 == max(sum(admitted[start : start + 60]) for start in range(len(admitted)))


async def test_bypass_23_flushing_ones_own_bucket() -> None:
    """A refused client stays refused, however many names he floods the embedded store with."""
    gate = Gate(per_minute(3))
    limiter = Limiter(gate.policy, MemoryStore(keys_max=50, clock=gate.clock), clock=gate.clock)

    async def admitted(*peers: str) -> int:
        return sum([(await limiter.judge(request(peer=peer))).decision.allowed for peer in peers])

    assert 3 == await admitted(*[PEER] * 4)
    await admitted(*(f"198.51.{n // 250}.{n % 250}" for n in range(1000)))
    assert 0 == await admitted(*[PEER] * 4)


@pytest.mark.parametrize("step_ms", [-1, -59_999, -60_000])
async def test_bypass_26_clock_steps(step_ms: int) -> None:
    """A clock that steps back by up to a window gives nothing away, and locks nobody out for longer than two."""
    gate = Gate(per_minute(3))
    assert 3 == await gate.admitted([request()] * 4)
    gate.clock.advance(step_ms)

    assert 0 == await gate.admitted([request()] * 4)
    gate.clock.advance(2 * 60_000)
    assert 3 == await gate.admitted([request()] * 4)


@pytest.mark.parametrize("cost", [-1, -(10**9)])
def test_bypass_27_refunds(cost: int) -> None:
    """No rule can give back."""
    with pytest.raises(ValueError, match="cost"):
        per_minute(cost=cost)


async def test_bypass_28_refused_requests_cost_nothing_admitted_ones_do() -> None:
    """A request is charged when it is judged, not when it is answered: walking away takes nothing back."""
    gate = Gate(per_minute(3))
    for _ in range(3):
        task = asyncio.ensure_future(gate.limiter.judge(request()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert 0 == await gate.admitted([request()] * 3)


async def test_bypass_29_spreading_over_many_principals() -> None:
    """A second rule over everyone bounds what all principals have together."""
    total = Rule(name="total", quota=Quota(10, 60_000), principal=(EVERYONE,))
    gate = Gate(per_minute(3), total)

    assert 10 == await gate.admitted(request(peer=f"198.51.100.{n}") for n in range(100))


async def test_bypass_30_gaps_in_the_policy() -> None:
    """What no rule matches is admitted, told apart in every decision, and impossible with a rule over everything."""
    gappy, closed = Gate(LOGIN), Gate(LOGIN, per_minute(name="all"))

    assert [UNMATCHED] == await gappy.reasons(request("/anything"))
    assert (False, True) == (gappy.policy.catch_all, closed.policy.catch_all)
    assert 1 == await closed.admitted([request("/anything", method="FOO")] * 3)


async def test_a_shadow_rule_lets_nobody_around_the_others() -> None:
    """Trying a rule out in shadow weakens no other rule."""
    shadow = per_minute(1, name="shadow", mode=Mode.SHADOW)

    assert 3 == await Gate(shadow, per_minute(3)).admitted([request()] * 9)
    assert 9 == await Gate(shadow).admitted([request()] * 9)


def test_keys_of_different_principals_never_meet() -> None:
    """Invented separators in a key do not reach another principal's counters."""
    policy = Policy(rules=(per_minute(principal=(KEY,)),))
    values = ["a", "a:b", "a:", ":a", "{a}", "}a{", "*", "a\x00", "a\x00b", "client:" + PEER, PEER]
    gate = Gate(*policy.rules)
    keys = [gate.keys(request(headers=[("X-API-Key", value)]))[0] for value in values]

    assert len(values) == len(set(keys))
    assert gate.keys(request())[0] not in keys
