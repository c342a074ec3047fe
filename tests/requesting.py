"""Requests as a limiter sees them, and a limiter to see them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.request import Request
from ratelimiter.core.rule import Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore
from ratelimiter.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ratelimiter.core.decision import Decision

PEER = "203.0.113.7"


def request(
    target: str | bytes = "/",
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str | bytes]] = (),
    peer: str | None = PEER,
    root_path: str = "",
    routed_path: str | None = None,
) -> Request:
    raw = target if isinstance(target, bytes) else target.encode()
    lines = [(n.encode(), v if isinstance(v, bytes) else v.encode("latin-1")) for n, v in headers]
    return Request(method, raw, lines, peer, root_path, routed_path)


def per_minute(limit: int = 1, **more: object) -> Rule:
    return Rule(**{"name": "rule", "quota": Quota(limit, 60_000), **more})  # type: ignore[arg-type]


class Gate:
    """A limiter on an embedded store whose clock stands still."""

    def __init__(self, *rules: Rule, **policy: object) -> None:
        self.clock = FakeClock()
        self.policy = Policy(rules=rules or (per_minute(),), **policy)  # type: ignore[arg-type]
        self.limiter = Limiter(self.policy, MemoryStore(clock=self.clock), clock=self.clock)

    async def decide(self, *requests: Request) -> list[Decision]:
        return [(await self.limiter.judge(each)).decision for each in requests]

    async def reasons(self, *requests: Request) -> list[str]:
        return [decision.reason for decision in await self.decide(*requests)]

    async def admitted(self, requests: Iterable[Request]) -> int:
        return sum(decision.allowed for decision in await self.decide(*requests))

    def keys(self, request_: Request) -> list[bytes]:
        return [hit.key for hit in self.limiter.hits(request_)]
