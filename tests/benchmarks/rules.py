"""CPU that finds the rules of a request, by how many rules a policy has.

    python -m tests.benchmarks.rules

One rule for each path, for each path below a wildcard (`wildcard`), or for each host. A first request has a target that
the planner has not seen; a later one is in its memo. `listed` looks at every rule, as without the index. The least of
several bursts counts, and ratios are to ten rules.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ratelimiter.core.match import Condition, Match
from ratelimiter.core.planner import PLANS_MAX, Planner
from ratelimiter.core.policy import Policy
from ratelimiter.core.quota import Quota
from ratelimiter.core.rule import Rule
from ratelimiter.core.rule_index import INDEXED_MIN
from tests.requesting import request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ratelimiter.core.request import Request

RULES = (2, INDEXED_MIN, 10, 100, 900, 2000)  # ratios are to the 10
BURSTS = 7
REQUESTS = 1000  # fewer than the memo holds
LISTED = 1_000_000  # rules from which on an index is used: never

MATCHES: dict[str, Callable[[int], Match]] = {
    "path": lambda n: Match(path=f"/v1/r{n}/{{id}}"),
    "wildcard": lambda n: Match(path=f"/*/r{n}/**"),
    "host": lambda n: Match(path="/v1/**", conditions=(Condition("host", "", frozenset({b"h%d.example" % n})),)),
}


def policy_of(kind: str, rules: int) -> Policy:
    quota = Quota(1_000_000, 60_000)
    return Policy(tuple(Rule(f"r{n}", quota, match=MATCHES[kind](n)) for n in range(rules)))


def requests_of(kind: str, rules: int, *, hit: bool) -> list[Request]:
    """Requests of different targets, all of which match one rule, or none."""
    asked = []
    for n in range(REQUESTS):
        number = n % rules if hit else rules + n
        path = f"/v1/x{n}" if kind == "host" else f"/v1/r{number}/x{n}"
        asked.append(request(path, headers=[("Accept", "*/*"), ("Host", f"h{number}.example")]))
    return asked


def burst_us(planner: Planner, asked: Sequence[Request]) -> float:
    begun_s = time.process_time()
    for each in asked:
        planner.hits(each)
    return (time.process_time() - begun_s) / len(asked) * 1e6


def least_us(kind: str, rules: int, *, hit: bool, indexed_min: int = INDEXED_MIN) -> tuple[float, float]:
    """The least burst of first requests and of later ones, in microseconds for each."""
    planner = Planner(policy_of(kind, rules), indexed_min=indexed_min)
    asked = requests_of(kind, rules, hit=hit)
    bursts = BURSTS
    if indexed_min == LISTED and rules >= 100:  # takes long, and is far from the others
        bursts, asked = 2, asked[:100]
    first, later = [], []
    for _ in range(bursts):
        planner._memo.clear()
        first.append(burst_us(planner, asked))
        later.append(burst_us(planner, asked))
    return min(first), min(later)


def main() -> None:
    assert REQUESTS < PLANS_MAX
    print(f"{'':10}{'':10}{'first request':>24}{'listed':>16}{'later request':>18}")
    print(f"{'rules by':10}{'':6}{'rules':>6}{'us':>12}{'ratio':>8}{'us':>16}{'us':>14}{'ratio':>8}{'build ms':>10}")
    for kind in MATCHES:
        for hit in (True, False):
            base = least_us(kind, 10, hit=hit)
            for rules in RULES:
                first, later = least_us(kind, rules, hit=hit)
                listed, _ = least_us(kind, rules, hit=hit, indexed_min=LISTED)
                policy = policy_of(kind, rules)
                begun_s = time.process_time()
                Planner(policy)
                build_ms = (time.process_time() - begun_s) * 1e3
                print(
                    f"{kind:10}{'hit' if hit else 'miss':6}{rules:>6}{first:>12.1f}{first / base[0]:>8.2f}"
                    f"{listed:>16.1f}{later:>14.2f}{later / base[1]:>8.2f}{build_ms:>10.1f}"
                )


if __name__ == "__main__":
    main()
