"""Explanation of one request under a policy: its path, the rules that match, their principals and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter.core import path_readings
from ratelimiter.core.client_address import client_id, parse_address
from ratelimiter.core.decision import refused_for, unmatched
from ratelimiter.core.descriptors import DescriptorPlanner
from ratelimiter.core.identity import UNAVAILABLE, Identity, IdentityPolicy
from ratelimiter.core.json_body import read_fields
from ratelimiter.core.overrides import FOR_EVER
from ratelimiter.core.planner import Planner, reader_for
from ratelimiter.core.policy import key_of
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.requirement import unmet
from ratelimiter.dialects import loader
from ratelimiter.engine.token_meters import TokenMeters
from ratelimiter.identity.authenticator import Authenticator
from ratelimiter.parsing.units import UNLIMITED, spell_limit, spell_moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.core.overrides import Override
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.request import Request
    from ratelimiter.core.rule import Rule
    from ratelimiter.engine.token_meters import Reservation

WIDTH = 10  # of the labels


def explain(policy: Policy, request: Request, now_ms: int = 0) -> list[str]:
    """Return lines for a person to read, without any principal's value.

    Args:
        policy: the policy; overrides of operators at run time are not read.
        request: the request to explain.
        now_ms: Unix time; expired overrides are left out.
    """
    return list(_lines(policy, request, now_ms))


def explain_descriptor(policy: Policy, domain: str, entries: tuple[tuple[str, str], ...]) -> list[str]:
    """Return lines for a person to read: the rules that a descriptor of `ratelimiter serve` meets, and their keys."""
    planned = DescriptorPlanner(policy, reader_for(policy)).plan(domain, entries)
    met = list(dict.fromkeys((*planned.answers, *(hit.rule for hit in planned.hits))))
    count = sum(rule.descriptors is not None for rule in policy.rules)
    lines = [
        _line("domain", domain),
        _line("keys", ", ".join(key for key, _ in entries)),
        _line("rules", f"{len(met)} of {count} match" if met else "none matches: OK, and no key is charged"),
    ]
    for rule in met:
        answer = rule.descriptors.answer if rule.descriptors is not None else ""
        lines += ["", f"{rule.name}: {answer}, nothing is counted" if answer else _rule(rule)]
        hits = [hit for hit in planned.hits if hit.rule is rule]
        lines += [_line("  key", f"{hit.key.decode()} holds {spell_limit(hit.quota)}") for hit in hits]
    return lines


def _lines(policy: Policy, request: Request, now_ms: int) -> Iterator[str]:
    planner = Planner(policy, now_ms=now_ms)
    meters = TokenMeters(policy)
    headers = tuple(request.headers)
    path, question, query = request.target.partition(b"?")
    try:
        path_readings.check(path)
        paths = planner.paths(request)
        forwarded = planner.forwarded(request.method, path)
        rules = planner.rule_set(request).rules
        identity = Authenticator(policy, offline=True).identify(request, waited=True)
        find = planner.reader.find
        found = [find(rule.principal, headers, request.peer, identity.verified) for rule in rules]
        plan = "" if planner.tiers is None else planner.tiers.plan(headers, request.peer, identity.plan)
    except MalformedRequest as fault:
        yield _line("refused", f"400, {fault}")
        return
    yield _line("client", _client(policy, planner, request))
    yield _line("method", request.method)
    looks_at_paths = any(rule.match.looks_at_paths for rule in policy.rules)
    yield _line("path", " and ".join(paths) if looks_at_paths else "any, as no rule looks at paths")
    if forwarded != path:
        shown = (forwarded + question + query).decode("latin-1")
        yield _line("forwarded", f"by the sidecar as {shown}: servers could take what came for a path of other rules")
    if planner.looks_at_bodies:
        yield _line("body", _body(planner, request))
    if policy.identity is not None:
        yield _line("identity", _identity(identity, policy.identity))
    if policy.requirements:
        yield _line("require", _required(policy, planner, request, identity))
    count = sum(rule.descriptors is None for rule in policy.rules)
    yield _line(
        "rules",
        f"{len(rules)} of {count} match" if rules else "none matches: admitted, and not charged",
    )
    if plan:
        yield _line("plan", plan)
    for stated, (source, value) in zip(rules, found, strict=True):
        principal = planner.reader.principal(source, value)
        rule: Rule | None = stated
        override = None
        if planner.tiers is not None:
            rule = planner.tiers.rule(stated, principal, value, plan)
            override = planner.tiers.override(stated, principal, value)
        yield ""
        yield f"{stated.name}: {UNLIMITED}" if rule is None else _rule(rule)
        yield _line("  charged", f"{principal.source} {principal.digest}")
        if override is not None:
            yield _line("  override", _override(override))
        if rule is not None and rule.metered:
            yield _line("  reserves", _reserved(meters.reservation(rule, request)))
        for index, quota in enumerate(() if rule is None else rule.quotas):
            yield _line("  key", f"{key_of(policy, stated, principal, index).decode()} holds {spell_limit(quota)}")


def _reserved(reservation: Reservation | None) -> str:
    if reservation is None:
        return "nothing: the request uses no tokens"
    model = reservation.wanted.model
    of_model = f" of model {reservation.meter.label(model)}" if model is not None else ""
    return f"{reservation.units} units{of_model}, until the response says what it used"


def _client(policy: Policy, planner: Planner, request: Request) -> str:
    """Return the client's address, and where it was found."""
    client = planner.reader.client(request.headers, request.peer)
    name = client_id(client, policy.trust.ipv6_prefix)
    header = policy.trust.header
    sent = any(field.lower() == header.encode() for field, _ in request.headers)
    if client is not None and request.peer is not None and parse_address(request.peer) == client:
        ignored = f"; {header} is not read, as this peer is not trusted" if sent else ""
        return f"{name}, the peer{ignored}"
    return f"{name}, from {header}" if client is not None and sent else f"{name}, a unix socket"


def _override(override: Override) -> str:
    what = f"plan {override.plan}" if override.plan else UNLIMITED
    if override.quota is not None:
        what = spell_limit(override.quota)
    who = "this principal" if override.pattern is None else "a pattern that fits"
    until = "" if override.until_ms == FOR_EVER else f", until {spell_moment(override.until_ms)}"
    return f"{what}, for {who}{until}"


def _identity(identity: Identity, identified: IdentityPolicy) -> str:
    """Return the identity that the credentials prove, but for the name."""
    if identity.fault == UNAVAILABLE and identified.tokens is not None:
        return f"a token, which only the keys at {identified.tokens.keys} could verify"
    if identity.fault:
        return identity.fault
    said = {"plan": identity.plan, "kind": identity.kind, "scopes": " ".join(sorted(identity.scopes))}
    return ", ".join([f"a good {identity.method}", *(f"{name} {value}" for name, value in said.items() if value)])


def _required(policy: Policy, planner: Planner, request: Request, identity: Identity) -> str:
    """Return the result of the requirements on a request."""
    requirements = planner.rule_set(request).requirements
    if not requirements:
        return "nothing"
    lacking = unmet(requirements, identity, request.headers, policy.identity or IdentityPolicy(), policy.name)
    if lacking is None:
        return "all that is required is there"
    reply = loader.load(policy.dialect).refusal(refused_for(unmatched(0), lacking))
    return f"{lacking.reason}: {reply.status}, once it is charged"


def _body(planner: Planner, request: Request) -> str:
    body = request.body or b""
    if not planner.body_wanted(request._replace(headers=())):
        return "not read: no rule that may match asks for it"
    if not body:
        return "empty: no rule that asks for a field matches"
    if planner.body_wanted(request) == 1 or len(body) > planner.policy.json_bytes_max or read_fields(body) is None:
        return f"{len(body)} bytes, too long, encoded or no JSON: every rule that asks for a field matches"
    return f"{len(body)} bytes of JSON"


def _rule(rule: Rule) -> str:
    parts = [spell_limit(rule.quota), f"cost {rule.cost}", str(rule.mode), f"{rule.on_store_error} without the store"]
    if rule.cost_from is not None:
        where, name = rule.cost_from
        parts[1] = f"cost {rule.cost} unless {where.replace('_', ' ')} {name} says otherwise"
    if rule.tokens is not None:
        parts[1] = f"tokens of {rule.tokens.preset}"
    if rule.count:
        parts.insert(2, f"counts {' '.join(sorted(rule.count))}")
    if rule.burst:
        parts.insert(1, f"burst {rule.burst}")
    return f"{rule.name}: {', '.join(parts)}"


def _line(label: str, text: str) -> str:
    return f"{label:<{WIDTH}} {text}"
