"""The cost of a request, read from its headers or from those of its response."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ratelimiter.core.quota import LIMIT_MAX
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.rule import REQUEST_HEADER, RESPONSE_HEADER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ratelimiter.core.client_address import Trust
    from ratelimiter.core.request import Request
    from ratelimiter.core.rule import Hit, Rule

    Header = tuple[bytes, bytes]

_DIGITS = re.compile(rb"[ \t]*([0-9]{1,10})[ \t]*")


def priced(hits: Sequence[Hit], request: Request, trust: Trust) -> Sequence[Hit]:
    """Return *hits* at the cost that *request* names, where a rule asks for it and the peer may speak for others.

    Raises:
        MalformedRequest: a header that says so is there twice, or is no whole number from 0 to 10^9.
    """
    if not trust.trusts_peer(request.peer):
        return hits
    asked = {
        hit.rule.cost_from.name
        for hit in hits
        if hit.rule.cost_from is not None and hit.rule.cost_from.where == REQUEST_HEADER
    }
    costs = {name: requested_cost(request.headers, name) for name in sorted(asked)}
    return [_priced(hit, costs) for hit in hits]


def _priced(hit: Hit, costs: Mapping[str, int | None]) -> Hit:
    source = hit.rule.cost_from
    cost = None if source is None or source.where != REQUEST_HEADER else costs[source.name]
    return hit if cost is None else hit._replace(cost=cost)


def requested_cost(headers: Iterable[Header], name: str) -> int | None:
    """Units that the header *name* of a request asks to be charged; None if there is none.

    Raises:
        MalformedRequest: it is there twice, or is no whole number from 0 to 10^9.
    """
    values = _values(headers, name)
    if not values:
        return None
    if len(values) > 1:
        raise MalformedRequest(name, "is there more than once")
    cost = _read(values[0])
    if cost is None:
        raise MalformedRequest(name, f"must be a whole number from 0 to {LIMIT_MAX}")
    return cost


def counts(rule: Rule, status: int) -> bool:
    """Return True if *rule* counts a response of *status*."""
    return not rule.count or str(status) in rule.count or f"{status // 100}xx" in rule.count


def due_of(rule: Rule, charged: int, status: int, headers: Iterable[Header]) -> int | None:
    """Return the final cost of a request that was charged *charged* units by *rule*.

    Args:
        rule: counts some responses only, or has the response say what it costs, or both.
        charged: units.
        status: of the response, 101 to 599.
        headers: of the response.

    Returns:
        Units; None if the response was to say it and does not, once, as a whole number from 0 to 10^9.
    """
    if not counts(rule, status):
        return 0
    if rule.cost_from is None or rule.cost_from.where != RESPONSE_HEADER:
        return charged
    values = _values(headers, rule.cost_from.name)
    return _read(values[0]) if len(values) == 1 else None


def _values(headers: Iterable[Header], name: str) -> list[bytes]:
    wanted = name.encode()
    return [value for key, value in headers if key.lower() == wanted]


def _read(value: bytes) -> int | None:
    found = _DIGITS.fullmatch(value)
    cost = int(found[1]) if found else LIMIT_MAX + 1
    return cost if cost <= LIMIT_MAX else None
