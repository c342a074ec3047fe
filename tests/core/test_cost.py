"""What a request costs, as headers say."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ratelimiter.core.client_address import Trust
from ratelimiter.core.cost import due_of, priced, requested_cost
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.rule import REQUEST_HEADER, RESPONSE_HEADER, CostFrom, Hit
from tests.requesting import PEER, per_minute, request

ASKED = CostFrom(REQUEST_HEADER, "x-cost")
TOLD = CostFrom(RESPONSE_HEADER, "x-cost")
TRUSTING = Trust(proxies=(ip_network(f"{PEER}/32"),))
GARBAGE = [
    b"",
    b" ",
    b"-1",
    b"+1",
    b"1.0",
    b"1e3",
    b"0x10",
    b"1,2",
    b"1000000001",
    b"99999999999",
    "²".encode(),
    b"one",
]


@pytest.mark.parametrize(
    ("count", "status", "due"),
    [
        ({"401"}, 401, 7),
        ({"401"}, 404, 0),
        ({"401"}, 200, 0),
        ({"401", "404"}, 404, 7),
        ({"4xx"}, 499, 7),
        ({"4xx"}, 500, 0),
        ({"5xx", "401"}, 503, 7),
        ({"1xx"}, 101, 7),
        (set(), 200, 7),
    ],
)
def test_responses_count_by_status(count: set[str], status: int, due: int) -> None:
    """What does not count is given back whole."""
    assert due == due_of(per_minute(count=frozenset(count)), 7, status, ())


@pytest.mark.parametrize(
    ("value", "due"), [(b"0", 0), (b"12", 12), (b" 12\t", 12), (b"007", 7), (b"1000000000", 10**9)]
)
def test_a_response_says_what_it_cost(value: bytes, due: int) -> None:
    """Any whole number that could be charged, whatever the case of the header's name."""
    assert due == due_of(per_minute(cost_from=TOLD), 7, 200, [(b"x-other", b"3"), (b"X-Cost", value)])


@pytest.mark.parametrize("values", [[], [b"1", b"1"], *([value] for value in GARBAGE)])
def test_a_response_that_does_not_say_it(values: list[bytes]) -> None:
    """Nothing is guessed."""
    assert due_of(per_minute(cost_from=TOLD), 7, 200, [(b"x-cost", value) for value in values]) is None


def test_what_does_not_count_costs_nothing() -> None:
    """Both together: only what succeeded is charged, and that what it cost."""
    rule = per_minute(cost_from=TOLD, count=frozenset({"2xx"}))

    assert 0 == due_of(rule, 7, 500, [(b"x-cost", b"9")])
    assert 9 == due_of(rule, 7, 200, [(b"x-cost", b"9")])


@pytest.mark.parametrize(
    ("values", "issue"),
    [([b"1", b"2"], "more than once"), ([b"1", b"1"], "more than once"), *(([value], "whole") for value in GARBAGE)],
)
def test_a_request_says_it_in_one_way_or_is_refused(values: list[bytes], issue: str) -> None:
    """Nobody can say what another reader makes of it."""
    with pytest.raises(MalformedRequest, match=issue):
        requested_cost([(b"x-cost", value) for value in values], "x-cost")


def hits(*costs: CostFrom | None) -> list[Hit]:
    rules = [per_minute(100, name=f"r{n}", cost=3, cost_from=cost) for n, cost in enumerate(costs)]
    return [Hit(rule.name.encode(), rule.quota, rule.cost, rule) for rule in rules]


def test_a_trusted_peer_says_what_a_request_costs() -> None:
    """To the rules that ask it; the others charge what they say themselves, as do all if it does not say."""
    given = hits(ASKED, None, TOLD, CostFrom(REQUEST_HEADER, "x-weight"))
    told = priced(given, request(headers=[("X-Cost", "9")]), TRUSTING)

    assert [9, 3, 3, 3] == [hit.cost for hit in told]
    assert given == priced(given, request(), TRUSTING)


@pytest.mark.parametrize(
    ("trust", "peer", "cost"),
    [
        (Trust(), PEER, 3),
        (TRUSTING, "203.0.113.8", 3),
        (TRUSTING, None, 9),
        (Trust(hops=1), PEER, 9),
        (Trust(), None, 3),
    ],
)
def test_from_others_it_is_ignored(trust: Trust, peer: str | None, cost: int) -> None:
    """Whoever is charged must not choose how much; and his garbage is not looked at."""
    told = priced(hits(ASKED), request(headers=[("x-cost", "9")], peer=peer), trust)

    assert [cost] == [hit.cost for hit in told]
    if cost == 3:
        priced(hits(ASKED), request(headers=[("x-cost", "9"), ("x-cost", "?")], peer=peer), trust)
