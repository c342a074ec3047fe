"""Goal: plans and overrides are as the policy file says, and as its own file of them says, also when that changes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ratelimiter.clock import unix_ms
from ratelimiter.config import loader
from ratelimiter.config.lint import outage, warnings
from ratelimiter.config.redact import disclosed, fingerprint
from ratelimiter.config.reload import LOADED, Reloader
from ratelimiter.core.planner import Planner, reader_for
from ratelimiter.core.quota import Bucket, Period, Quota, Slots
from ratelimiter.engine.explain import explain
from ratelimiter.engine.limiter import Limiter
from ratelimiter.errors import ConfigError
from ratelimiter.stores.memory import MemoryStore
from tests.requesting import request

if TYPE_CHECKING:
    from pathlib import Path

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.request import Request

# Sentinel's table, the plan by a header of a trusted peer and by overrides for each tenant.
SENTINEL = """\
name: sentinel
dialect: sentinel
principal: [header:X-Tenant-ID, client]
trusted_proxies: [10.0.0.0/8]
plan: {from: [header:X-Plan], default: basic}
rules:
  - name: per-minute
    match: {except: /events/**}
    limit: {basic: 30/minute, professional: 100/minute, enterprise: 500/minute}
  - name: per-hour
    match: {except: /events/**}
    limit: {basic: 1000/hour, professional: 5000/hour, enterprise: 20000/hour}
  - name: events-per-minute
    match: {path: /events/**}
    limit: {basic: 100/minute, professional: 500/minute, enterprise: 2000/minute}
  - name: events-per-hour
    match: {path: /events/**}
    limit: {basic: 5000/hour, professional: 25000/hour, enterprise: 100000/hour}
  - name: profiles-per-month
    match: {methods: [POST], path: /profiles}
    limit: {basic: 500/month, professional: 5000/month, enterprise: unlimited}
overrides:
  - {principal: tenant-p, plan: professional}
  - {principal: "big-*", plan: enterprise}
  - {principal: "header:X-Tenant-ID=big-1", rule: per-minute, limit: 7/minute, until: 2040-01-01T00:00:00Z}
"""
ONE = "rules:\n  - {name: all, limit: 3/minute, principal: header:x}\n"
TABLE = {
    "basic": (30, 1000, 100, 5000, 500),
    "professional": (100, 5000, 500, 25_000, 5000),
    "enterprise": (500, 20_000, 2000, 100_000, None),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, text: str) -> Policy:
    (folder / "policy.yaml").write_text(text)
    return loader.load("policy.yaml")


def of(tenant: str, plan: str = "", target: str = "/", method: str = "GET") -> Request:
    headers = [("x-tenant-id", tenant), *([("x-plan", plan)] if plan else [])]
    return request(target, method=method, headers=headers, peer="10.0.0.1")


def limits(policy: Policy, tenant: str, plan: str = "") -> tuple[int | None, ...]:
    planner = Planner(policy, now_ms=unix_ms())
    found = {
        hit.rule.name: hit.quota.limit
        for asked in (of(tenant, plan), of(tenant, plan, "/events/x"), of(tenant, plan, "/profiles", "POST"))
        for hit in planner.hits(asked)
    }
    return tuple(found.get(rule.name) for rule in policy.rules)


def test_the_documented_table(folder: Path) -> None:
    """Every figure of every plan, by header and by override; exact before pattern before header before default."""
    policy = load(folder, SENTINEL)

    for plan, expected in TABLE.items():
        assert expected == limits(policy, "anybody", plan)
    assert TABLE["basic"] == limits(policy, "anybody")
    assert TABLE["professional"] == limits(policy, "tenant-p") == limits(policy, "tenant-p", "basic")
    assert TABLE["enterprise"] == limits(policy, "big-2", "basic")
    assert (7, *TABLE["enterprise"][1:]) == limits(policy, "big-1")
    assert isinstance(policy.rules[4].quota, Period)


def test_kinds_by_plan(folder: Path) -> None:
    """What a rule says beside its limit holds for each plan's."""
    text = """\
plan: {default: a}
rules:
  - {name: bucket, limit: {a: 10/second, b: 20/second}, burst: 50, algorithm: token-bucket}
  - {name: slots, limit: {a: 3 concurrent, b: unlimited}, lease_ttl: 10s}
  - {name: day, limit: {b: 9/day, a: 5/day}, algorithm: calendar, timezone: Europe/Berlin}
overrides:
  - {principal: 192.0.2.1, rule: bucket, limit: 100/second}
  - {principal: 192.0.2.1, rule: slots, limit: 5 concurrent}
  - {principal: 192.0.2.1, rule: day, limit: 7/day}
"""
    policy = load(folder, text)
    assert [Bucket(50, 10, 1000), Slots(3, 10_000), Period(5, "day", "Europe/Berlin")] == [
        r.quota for r in policy.rules
    ]
    hits = Planner(policy).hits(request("/", peer="192.0.2.1"))
    assert [Bucket(100, 100, 1000), Slots(5, 10_000), Period(7, "day", "Europe/Berlin")] == [h.quota for h in hits]


def test_a_default_without_a_limit(folder: Path) -> None:
    """Whoever pays nothing may also be the one whom nothing limits."""
    policy = load(folder, "plan: {default: free}\nrules:\n  - {name: r, limit: {free: unlimited, paid: 5/minute}}\n")

    assert () == Planner(policy).hits(request("/"))
    assert Quota(5, 60_000) == policy.rules[0].quota


def test_the_secret_is_in_the_digests(folder: Path) -> None:
    """An exact override is kept by the digest that requests have, whatever the secret is and wherever it comes from."""
    (folder / "policy.yaml").write_text(f"{ONE}overrides:\n  - {{principal: a, limit: unlimited}}\n")
    for secret in ("one", "two"):
        policy = loader.build(config="policy.yaml", secret=secret, environ={})
        assert () == Planner(policy).hits(request("/", headers=[("x", "a")]))
        assert reader_for(policy).principal("header:x", b"a").digest in policy.overrides[0].digests


def test_what_is_disclosed(folder: Path) -> None:
    """Plans and overrides are, principals by digest, patterns not at all; what differs is told apart (8)."""
    policy = load(folder, SENTINEL)
    told = repr(disclosed(policy))

    assert "enterprise" in told
    assert not {"tenant-p", "big-"} & {word for word in ("tenant-p", "big-") if word in told}
    assert fingerprint(policy) != fingerprint(load(folder, SENTINEL.replace("big-*", "huge-*")))


def test_explained(folder: Path) -> None:
    """The plan of a request, the limits that it has there, and what was overridden."""
    policy = load(folder, SENTINEL)
    told = "\n".join(explain(policy, of("big-1", "professional"), unix_ms()))

    assert "plan       professional\n" in told
    assert "per-minute: 7 per minute" in told
    assert "  override 7 per minute, for this principal, until 2040-01-01T00:00:00Z" in told
    assert "per-hour: 20000 per hour" in told
    assert "  override plan enterprise, for a pattern that fits" in told
    assert "big-" not in told
    assert "profiles-per-month: unlimited" in "\n".join(explain(policy, of("x", "enterprise", "/profiles", "POST")))


def test_a_file_of_overrides(folder: Path) -> None:
    """Its overrides come after those of the policy; it is one of the files that the policy is made of."""
    (folder / "overrides.yaml").write_text(
        "overrides:\n  - {principal: a, limit: 9/minute}\n  - {principal: b, limit: 8/minute}\n"
    )
    policy = load(folder, f"{ONE}overrides:\n  - {{principal: a, limit: 7/minute}}\noverrides_file: overrides.yaml\n")

    planner = Planner(policy)
    assert [7, 8, 3] == [planner.hits(request("/", headers=[("x", key)]))[0].quota.limit for key in "abc"]
    assert ("./overrides.yaml",) == policy.files


async def test_a_file_that_changes(folder: Path) -> None:
    """What it says is in force with the next look, without a word of the policy itself; counters stay."""
    (folder / "overrides.yaml").write_text("overrides: []\n")
    policy = load(
        folder, "rules:\n  - {name: all, limit: 1/minute, principal: header:x}\noverrides_file: overrides.yaml\n"
    )
    limiter = Limiter(policy, MemoryStore())
    reloader = Reloader("policy.yaml", policy, limiter.swap)
    asked = request("/", headers=[("x", "a")])
    assert [True, False] == [(await limiter.judge(asked)).decision.allowed for _ in range(2)]
    for _ in range(2):
        await reloader.poll()
    (folder / "overrides.yaml").write_text("overrides:\n  - {principal: a, limit: 2/minute}\n")
    assert LOADED in [await reloader.poll() for _ in range(3)]
    assert [True, False] == [(await limiter.judge(asked)).decision.allowed for _ in range(2)]
    (folder / "overrides.yaml").write_text("overrides:\n  - {principal: a, limit: 2/parsec}\n")
    assert "failed" in [await reloader.poll() for _ in range(3)]
    assert not (await limiter.judge(asked)).decision.allowed


def test_a_value_alone(folder: Path) -> None:
    """It is looked for wherever the rules look; an address it is only if it is spelled like one."""
    policy = load(
        folder,
        f"{ONE}overrides:\n" + "".join(f"  - {{principal: {who}, limit: unlimited}}\n" for who in ("a", "192.0.2.1")),
    )

    assert [1, 2] == [len(override.digests) for override in policy.overrides]
    assert () == Planner(policy).hits(request("/", peer="192.0.2.1"))


def test_what_an_outage_admits_on_each_plan(folder: Path) -> None:
    """check-config tells it plan by plan."""
    policy = load(folder, SENTINEL.replace("name: sentinel", "name: sentinel\nstore: redis://127.0.0.1:1/0", 1))
    told = outage(policy, 2)

    assert 15 == len(told)
    expected = "per-minute, plan professional: without the store, 2 processes at most 200 per minute; "
    assert any(line.startswith(expected) for line in told)
    assert "profiles-per-month, plan enterprise: without the store, unlimited" in told


def test_a_header_that_nobody_may_send(folder: Path) -> None:
    """Without a trusted peer it is never read, and check-config says so."""
    told = warnings(load(folder, SENTINEL.replace("trusted_proxies: [10.0.0.0/8]\n", "")))

    assert "plan.from: is never read, as no proxy is trusted; write trusted_proxies, too" in told
    assert not [text for text in warnings(load(folder, SENTINEL)) if text.startswith("plan")]


NETWORKS = """
store: memory://
trusted_proxies: [127.0.0.0/8]
rules: [{name: per-minute, principal: [header:X-API-Key, client], limit: 2/minute}]
overrides:
  - {principal: client=10.0.0.0/8, limit: 3/minute}
  - {principal: client=10.9.0.0/16, limit: unlimited}
  - {principal: client=10.9.8.7, limit: 1/minute}
  - {principal: "client=2001:db8::/32", limit: 5/minute}
"""


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("10.1.2.3", 3),
        ("::ffff:10.1.2.3", 3),
        ("64:ff9b::10.1.2.3", 3),
        ("2002:0a01:0203::1", 3),
        ("10.9.0.1", 20),
        ("10.9.8.7", 1),
        ("11.0.0.1", 2),
        ("2001:db8:1:2::3", 5),
        ("2001:db9::1", 2),
    ],
)
async def test_a_network_has_its_own_limit(folder: Path, address: str, admitted: int) -> None:
    """An override of a network holds for every client in it, in every form of its address; the longest prefix prevails,
    and a single address before any.
    """
    (folder / "p.yaml").write_text(NETWORKS)
    limiter = Limiter(loader.load(folder / "p.yaml"), MemoryStore())
    one = request("/", headers=[("X-Forwarded-For", address)], peer="127.0.0.1")

    assert admitted == sum([(await limiter.judge(one)).decision.allowed for _ in range(20)])


async def test_a_network_is_of_clients_only(folder: Path) -> None:
    """A key that looks like an address in the network is a key."""
    (folder / "p.yaml").write_text(NETWORKS)
    limiter = Limiter(loader.load(folder / "p.yaml"), MemoryStore())
    one = request("/", headers=[("X-API-Key", "10.9.0.1")], peer="127.0.0.1")

    assert 2 == sum([(await limiter.judge(one)).decision.allowed for _ in range(5)])


@pytest.mark.parametrize(
    ("principal", "hint"),
    [
        ("client=10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.0/8", "write client= in front of it"),
        ("client=2001:db8::/96", "write 2001:db8::/64"),
        ("client=10.0.0.0/40", "not a network"),
    ],
)
def test_a_network_that_cannot_be_honoured_is_refused(folder: Path, principal: str, hint: str) -> None:
    """The mask is never cut off without a word."""
    text = NETWORKS.replace("client=10.0.0.0/8", f'"{principal}"')
    (folder / "p.yaml").write_text(text)

    with pytest.raises(ConfigError, match=re.escape(hint)):
        loader.load(folder / "p.yaml")
