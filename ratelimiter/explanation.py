"""What a policy makes of one request, in words: its path, who is charged by which rule, and under which keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ratelimiter import dialect_files
from ratelimiter.core.decision import refused_for, unmatched
from ratelimiter.core.identity import UNAVAILABLE, Identity, IdentityPolicy
from ratelimiter.core.json_body import read_fields
from ratelimiter.core.policy import Planner, key_of
from ratelimiter.core.request import MalformedRequest
from ratelimiter.core.requirement import unmet
from ratelimiter.identity.identifier import Identifier
from ratelimiter.notation import spell_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ratelimiter.core.policy import Policy, Rule
    from ratelimiter.core.request import Request

WIDTH = 10  # of the labels


def explain(policy: Policy, request: Request) -> list[str]:
    """Lines for a person to read. No principal's value is among them."""
    return list(_lines(policy, request))


def _lines(policy: Policy, request: Request) -> Iterator[str]:
    planner = Planner(policy)
    headers = tuple(request.headers)
    try:
        paths = planner.paths(request)
        rules = planner.plan(request).rules
        identity = Identifier(policy, offline=True).identify(request, waited=True)
        read = planner.reader.read
        principals = [read(rule.principal, headers, request.peer, identity.verified) for rule in rules]
    except MalformedRequest as fault:
        yield _line("refused", f"400, {fault}")
        return
    yield _line("method", request.method)
    looks_at_paths = any(rule.match.looks_at_paths for rule in policy.rules)
    yield _line("path", " and ".join(paths) if looks_at_paths else "any, as no rule looks at paths")
    if planner.looks_at_bodies:
        yield _line("body", _body(planner, request))
    if policy.identity is not None:
        yield _line("identity", _identity(identity, policy.identity))
    if policy.requirements:
        yield _line("require", _required(policy, planner, request, identity))
    yield _line(
        "rules",
        f"{len(rules)} of {len(policy.rules)} match" if rules else "none matches: admitted, and charged to nobody",
    )
    for rule, principal in zip(rules, principals, strict=True):
        yield ""
        yield _rule(rule)
        yield _line("  charged", f"{principal.source} {principal.digest}")
        for index, quota in enumerate(rule.quotas):
            yield _line("  key", f"{key_of(policy, rule, principal, index).decode()} holds {spell_limit(quota)}")


def _identity(identity: Identity, identified: IdentityPolicy) -> str:
    """What the credentials prove, but for the name."""
    if identity.fault == UNAVAILABLE and identified.tokens is not None:
        return f"a token, which only the keys at {identified.tokens.keys} could verify"
    if identity.fault:
        return identity.fault
    said = {"plan": identity.plan, "kind": identity.kind, "scopes": " ".join(sorted(identity.scopes))}
    return ", ".join([f"a good {identity.method}", *(f"{name} {value}" for name, value in said.items() if value)])


def _required(policy: Policy, planner: Planner, request: Request, identity: Identity) -> str:
    """What becomes of the requirements that a request meets."""
    requirements = planner.plan(request).requirements
    if not requirements:
        return "nothing"
    lacking = unmet(requirements, identity, request.headers, policy.identity or IdentityPolicy(), policy.name)
    if lacking is None:
        return "all that is required is there"
    reply = dialect_files.load(policy.dialect).refusal(refused_for(unmatched(0), lacking))
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
    if rule.count:
        parts.insert(2, f"counts {' '.join(sorted(rule.count))}")
    if rule.burst:
        parts.insert(1, f"burst {rule.burst}")
    return f"{rule.name}: {', '.join(parts)}"


def _line(label: str, text: str) -> str:
    return f"{label:<{WIDTH}} {text}"
