"""CPU of one judgement by kind of key and condition, on the embedded store.

    python -m tests.benchmarks.keys

The price of a kind is its least burst less that of `client`, all in this process.
"""

from __future__ import annotations

import asyncio
import gc
import time

from ratelimiter.core.match import Condition, Match
from ratelimiter.core.policy import Policy
from ratelimiter.core.principal import Source, parse_source
from ratelimiter.core.quota import Quota
from ratelimiter.core.request import Request
from ratelimiter.core.rule import Rule
from ratelimiter.engine.limiter import Limiter
from ratelimiter.stores.memory import MemoryStore

BURSTS = 30
REQUESTS = 500  # principals, too
KEYS = ("client", "header:x-api-key", "cookie:session", "query:q", "path:id", "json:user.id", "form:user")
MATCHES = {
    "path": Match(path="/orders/{id}"),
    "host": Match(conditions=(Condition("host", "", frozenset({b"api.example"})),)),
    "header": Match(conditions=(Condition("header", "x-beta", frozenset({b"1"})),)),
    "query": Match(conditions=(Condition("query", "format", frozenset({b"csv"})),)),
    "identified": Match(identified=False),
}


def request(number: int, form: bool) -> Request:
    """A request with everything in it."""
    kind = b"application/x-www-form-urlencoded" if form else b"application/json"
    headers = [
        (b"host", b"api.example"),
        (b"accept", b"*/*"),
        (b"x-api-key", b"key-%d" % number),
        (b"cookie", b"a=b; session=%d; c=d" % number),
        (b"x-beta", b"1"),
        (b"content-type", kind),
    ]
    body = b"x=1&user=u%d" % number if form else b'{"user": {"id": %d, "name": "someone"}, "items": [1, 2, 3]}' % number
    target = b"/orders/%d?format=csv&q=%d" % (number, number)
    return Request("POST", target, headers, "192.0.2.1", "", None, body)


async def least_us(rule: Rule, *, form: bool = False) -> float:
    """The least burst, in microseconds for each judgement."""
    limiter = Limiter(Policy((rule,)), MemoryStore())
    asked = [request(number, form) for number in range(REQUESTS)]
    bursts = []
    gc.collect()
    for _ in range(BURSTS):
        begun_s = time.process_time()
        for each in asked:
            await limiter.judge(each)
        bursts.append(time.process_time() - begun_s)
    return min(bursts) / REQUESTS * 1e6


async def compare() -> None:
    """Print the table."""
    quota = Quota(1_000_000, 60_000)
    sources = {text: (parse_source(text),) for text in KEYS}
    sources["[header, query]"] = (Source("all", parts=(parse_source("header:x-api-key"), parse_source("query:q"))),)
    base = 0.0
    print(f"{'key':24} {'us':>7} {'price':>7}")
    for name, principal in sources.items():
        match = MATCHES["path"] if name == "path:id" else Match()
        us = await least_us(Rule("rule", quota, principal=principal, match=match), form=name.startswith("form"))
        base = base or us
        print(f"{name:24} {us:7.2f} {us - base:7.2f}")
    print(f"\n{'condition':24} {'us':>7} {'price':>7}")
    for name, match in MATCHES.items():
        us = await least_us(Rule("rule", quota, match=match))
        print(f"{name:24} {us:7.2f} {us - base:7.2f}")


if __name__ == "__main__":
    asyncio.run(compare())
