"""Goal: the files in config/ say the documented numbers. Method: the numbers are read off them, and minutes, hours and
months pass on a clock that the test moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ratelimiter.cli.main import main
from ratelimiter.config.loader import build, load
from ratelimiter.core.headers import retry_after_s, x_ratelimit
from ratelimiter.core.identity import API_KEY, Identity, named
from ratelimiter.core.request import Request
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock
from tests.systems.system import CONFIG, SYSTEMS

if TYPE_CHECKING:
    from ratelimiter.core.decision import Decision

MINUTE_MS = 60_000
JANUARY_MS, FEBRUARY_MS = 1_798_761_600_000, 1_801_440_000_000  # of 2027, UTC


class World:
    """A policy file, an embedded store and a clock that stands still unless it is told."""

    def __init__(self, name: str) -> None:
        self.clock = FakeClock()
        self.limiter = Limiter(load(CONFIG / f"{name}.yaml"), MemoryStore(clock=self.clock), clock=self.clock)

    async def ask(self, method: str = "GET", path: str = "/x", *, plan: str = "", body: bytes = b"") -> Decision:
        """What becomes of a request of one principal, with a plan if the key says one."""
        name = "7d3f6b0e-4c1a-4f5e-9b57-2d1c8a9e0f36"
        sources = [str(source) for rule in self.limiter.policy.rules for source in rule.principal]
        identity = Identity(sources[0], name, plan, kind="production", method=API_KEY, org="acme", email_verified=True)
        identity = identity._replace(verified=named(sources[0], name, "acme"))
        headers = [(b"x-tenant-id", name.encode())]
        request = Request(method, path.encode(), headers, "192.0.2.1", "", None, body)
        decision, _, _, pending = await self.limiter.judge(request, identity=identity)
        if pending is not None:
            pending.responded(201, [(b"x-ratelimit-cost", b"1")])
            pending.ended()
            await self.limiter.settled()
        return decision

    async def admitted(self, times: int, method: str = "GET", path: str = "/x", *, plan: str = "") -> int:
        """How many of so many requests are admitted."""
        return sum([(await self.ask(method, path, plan=plan)).allowed for _ in range(times)])


@pytest.mark.parametrize("name", SYSTEMS)
def test_check_config_has_nothing_to_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """No problem, and no doubt."""
    assert 0 == main(["check-config", str(CONFIG / f"{name}.yaml")])
    assert [f"{CONFIG / name}.yaml: ok"] == [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", SYSTEMS)
def test_files_are_of_their_dialect(name: str) -> None:
    """Each answers in its own words, keeps its keys to itself, and speaks of its limit in X-RateLimit-*."""
    policy = load(CONFIG / f"{name}.yaml")

    assert (name, name, ("x-ratelimit",)) == (policy.name, policy.dialect, policy.headers)


async def test_intrace_admits_610_in_ten_minutes() -> None:
    """Sixty a minute, and a burst of ten that is granted once in ten windows, however hard somebody tries."""
    world = World("intrace")
    first = await world.admitted(200)
    admitted = first
    for _ in range(10 * 60 - 1):
        world.clock.advance(1000)
        admitted += await world.admitted(3)

    assert (70, 610) == (first, admitted)


def test_intrace_takes_its_numbers_from_the_documented_variables() -> None:
    """Where a deployment sets them; the others keep their defaults."""
    names = ("REQUESTS_PER_MINUTE", "BURST", "DEEP_LOOKUPS_PER_MINUTE")
    environ = {f"RATE_LIMIT_{name}": str(number) for number, name in enumerate(names, 7)}
    policies = [build(config=CONFIG / "intrace.yaml", environ=found) for found in ({}, environ)]
    rules = [{rule.name: rule for rule in policy.rules} for policy in policies]

    assert [(60, 10, 10), (7, 8, 9)] == [
        (of["per-minute"].quota.limit, of["per-minute"].burst, of["deep-lookups"].quota.limit) for of in rules
    ]


async def test_intrace_admits_ten_deep_lookups_a_minute() -> None:
    """The eleventh is told when the first will have left; a millisecond earlier it is refused again."""
    world = World("intrace")
    deep: dict[str, Any] = {"method": "POST", "path": "/v1/lookup", "body": b'{"depth": "deep"}'}
    for _ in range(10):
        assert (await world.ask(**deep)).allowed
        world.clock.advance(1000)
    refusal = await world.ask(**deep)
    assert 50_000 == refusal.retry_after_ms
    world.clock.advance(49_999)
    assert not (await world.ask(**deep)).allowed
    world.clock.advance(1)
    assert (await world.ask(**deep)).allowed


@pytest.mark.parametrize("name", ["intrace", "sentinel", "trace", "tracefinance"])
async def test_at_the_reset_a_retry_is_admitted(name: str) -> None:
    """Who waits until the time that X-RateLimit-Reset named is let in, and so is who waits for Retry-After."""
    for told in ("reset", "retry after"):
        world = World(name)
        refusal = await world.ask()
        while refusal.allowed:
            world.clock.advance(7)
            refusal = await world.ask()
        _, _, reset = (int(value) for _, value in x_ratelimit(refusal))
        wait_s = retry_after_s(refusal)
        assert wait_s is not None
        world.clock.now_ms = reset * 1000 if told == "reset" else world.clock.now_ms + wait_s * 1000

        assert (await world.ask()).allowed


async def test_sentinel_admits_1000_an_hour() -> None:
    """Thirty a minute go on for 33 minutes; then the hour refuses, and the headers still speak of the thirty."""
    world = World("sentinel")
    admitted = 0
    for _ in range(40):
        admitted += await world.admitted(40)
        world.clock.advance(MINUTE_MS)
    refusal = await world.ask()
    limit, remaining, reset = (int(value) for _, value in x_ratelimit(refusal))

    assert 1000 == admitted
    assert refusal.retry_after_ms is not None
    assert (30, 0) == (limit, remaining)
    assert reset == -(-(world.clock() + refusal.retry_after_ms) // 1000)
    assert 19 * MINUTE_MS < refusal.retry_after_ms < 21 * MINUTE_MS
    world.clock.advance(refusal.retry_after_ms - 1)
    assert not (await world.ask()).allowed
    world.clock.advance(1)
    assert (await world.ask()).allowed


@pytest.mark.parametrize(
    ("plan", "requests", "events", "profiles"),
    [
        ("basic", (30, 1000), (100, 5000), 500),
        ("professional", (100, 5000), (500, 25_000), 5000),
        ("enterprise", (500, 20_000), (2000, 100_000), None),
        ("", (30, 1000), (100, 5000), 500),
    ],
)
async def test_sentinels_table(
    plan: str, requests: tuple[int, int], events: tuple[int, int], profiles: int | None
) -> None:
    """Each figure of each plan, and Basic for who has none."""
    limiter = World("sentinel").limiter
    limits: dict[str, int] = {}
    for method, path in (("POST", "/profiles"), ("POST", "/events/ingest")):
        identity = Identity("bearer", "t", plan, verified=(("bearer", "t"),))
        request = Request(method, path.encode(), [], "192.0.2.1")
        hits = (await limiter.judge(request, identity=identity)).hits
        limits |= {hit.rule.name: hit.quota.limit for hit in hits}
    of_profiles = {} if profiles is None else {"profiles-per-month": profiles}

    assert {
        "per-minute": requests[0],
        "per-hour": requests[1],
        "events-per-minute": events[0],
        "events-per-hour": events[1],
        "per-address": 6000,
        **of_profiles,
    } == limits


async def test_sentinels_months_are_the_calendars() -> None:
    """Five hundred profiles in January; in its last second more are refused until February begins, which is said."""
    world = World("sentinel")
    world.clock.now_ms = JANUARY_MS
    for _ in range(500 // 25):
        assert 25 == await world.admitted(25, "POST", "/profiles")
        world.clock.advance(2 * MINUTE_MS)
    world.clock.now_ms = FEBRUARY_MS - 1000
    refusal = await world.ask("POST", "/profiles")
    assert (False, 1000) == (refusal.allowed, refusal.retry_after_ms)
    assert (await world.ask("GET", "/profiles")).allowed
    world.clock.advance(1000)

    assert (await world.ask("POST", "/profiles")).allowed
