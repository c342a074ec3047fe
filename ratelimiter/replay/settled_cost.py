"""The cost of a request that its response settles: what is reserved before, and what is due after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core.cost import due_of
from ratelimiter.core.quota import Slots
from ratelimiter.core.rule import RESPONSE_HEADER
from ratelimiter.core.usage import usage_of
from ratelimiter.tokens.estimate import Estimate, reserved_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.rule import Hit, Rule
    from ratelimiter.replay.record import Record


def reserving(hit: Hit, record: Record) -> Hit:
    """Return *hit* with the tokens that are reserved before the call; the input is known, as the log has it."""
    terms = hit.rule.tokens
    if terms is None:
        return hit
    input_, _, bound = record.tokens or (0, 0, None)
    estimate = Estimate(input_, terms.estimate.output if bound is None else bound, bound is not None)
    capacity = min(quota.limit for quota in hit.rule.quotas)
    weights = terms.weights_of(record.model)
    return hit._replace(cost=reserved_units(estimate, weights, capacity, strict=terms.estimate.strict))


def due_units(hit: Hit, record: Record, headers: Sequence[tuple[bytes, bytes]]) -> int:
    """Return what *hit* comes to, as the response of *record* tells; its cost if the response tells nothing."""
    rule: Rule = hit.rule
    if not rule.settles or isinstance(hit.quota, Slots):
        return hit.cost
    if rule.tokens is not None:
        used, made, _ = record.tokens or (0, 0, None)
        return rule.tokens.weights_of(record.model).units(usage_of(used, made))
    due = due_of(rule, hit.cost, record.status or 499, headers)
    if due is None and rule.cost_from is not None and rule.cost_from.where == RESPONSE_HEADER:
        return hit.cost
    return hit.cost if due is None else due
