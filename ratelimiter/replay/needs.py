"""The facts that each rule needs of a log, and the policy without the rules that the log cannot judge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ratelimiter.core.principal import Source
from ratelimiter.core.quota import Slots
from ratelimiter.core.rule import REQUEST_HEADER, RESPONSE_HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Rule
    from ratelimiter.replay.format import Format

PRINCIPAL_HEADER = "x-replay-principal"  # carries the value of `--principal` where a rule names no header
_CREDENTIALS = "credentials that were verified, which no log has; name the field of the caller with --principal"


@dataclass(frozen=True, slots=True)
class Judgeable:
    """A policy as far as a log can judge it.

    Attributes:
        policy: with the rules that can be judged.
        unjudged: why the others cannot, by name.
        notes: how rules are judged otherwise than live, by name.
    """

    policy: Policy
    unjudged: dict[str, str]
    notes: dict[str, str]


class Facts:
    """The facts that every one of some logs tells.

    Args:
        formats: of the logs.
    """

    def __init__(self, formats: Sequence[Format]) -> None:
        self._formats = formats

    def tell(self, fact: str) -> bool:
        """Return True if all logs tell *fact*; see `Format.tells`."""
        return all(fact in form.tells for form in self._formats)

    def tell_header(self, name: str) -> bool:
        """Return True if all logs have the request header *name*."""
        own = {"host": "host", "x-forwarded-for": "forwarded"}
        return all(form.tells_header(name) or own.get(name) in form.tells for form in self._formats)


def judgeable(policy: Policy, formats: Sequence[Format]) -> Judgeable:
    """Return the part of *policy* that logs in *formats* can judge.

    A rule is not judged if it needs a fact that a log leaves out. Requirements, identities and the store are no part of
    a replay.
    """
    facts = Facts(formats)
    named = facts.tell("principal")
    rules, unjudged, notes = [], {}, {}
    for rule in policy.rules:
        reason = _missing(policy, rule, facts) or ("" if named else _principal_missing(rule, facts))
        if reason:
            unjudged[rule.name] = f"needs {reason}"
            continue
        told = rule
        if named:
            told = _charged_to_named(rule)
        else:
            left_out = [each for each in rule.principal if _source_missing(each, facts)]
            if left_out:
                names = ", ".join(_source_missing(each, facts) for each in left_out)
                notes[rule.name] = f"judged by {_first_told(rule, facts)}, as the log does not tell {names}"
        rules.append(told)
    known = {rule.name for rule in rules}
    overrides = tuple(each for each in policy.overrides if not each.rule or each.rule in known)
    kept = replace(
        policy, rules=tuple(rules), requirements=(), identity=None, store="memory://", overrides=overrides
    )  # fmt: skip
    return Judgeable(kept, unjudged, notes)


def _missing(policy: Policy, rule: Rule, facts: Facts) -> str:
    """Return what of the rule's conditions, costs and kind a log does not tell; empty for nothing."""
    return (
        _condition_missing(policy, rule, facts)
        or _cost_missing(rule, facts)
        or ("durations, to know what runs at the same time" if _slots(rule) and not facts.tell("duration") else "")
        or _plan_missing(policy, rule, facts)
    )


def _slots(rule: Rule) -> bool:
    return isinstance(rule.quota, Slots)


def _condition_missing(policy: Policy, rule: Rule, facts: Facts) -> str:  # one answer for each fact
    """Return what of the rule's condition a log does not tell; empty for nothing."""
    match = rule.match
    if rule.descriptors is not None:
        return "descriptors, which only calls to `serve` have"
    if match.json:
        return "the body"
    for condition in match.conditions:
        missing = _place_missing(condition.kind, condition.name, facts)
        if missing:
            return missing
    if match.networks and not facts.tell("client"):
        return "the address of the client"
    if match.identified is not None:
        return _CREDENTIALS
    return _named_plan_missing(policy, facts) if match.plans else ""


def _place_missing(kind: str, name: str, facts: Facts) -> str:
    """Return *kind* and *name* as people say them, if a log does not tell that place; empty if it does."""
    told = {
        "header": ("" if facts.tell_header(name) else f"header {_titled(name)}"),
        "host": ("" if facts.tell("host") else "the host"),
        "query": ("" if facts.tell("query") else "the query"),
        "cookie": ("" if facts.tell_header("cookie") else "header Cookie"),
    }
    return told.get(kind, f"{kind} {name}".strip())


def _cost_missing(rule: Rule, facts: Facts) -> str:
    if rule.tokens is not None:
        return "" if facts.tell("tokens") else "tokens of each call"
    if rule.cost_from is None:
        return ""
    where, name = rule.cost_from[:2]
    if where == REQUEST_HEADER:
        return "" if facts.tell_header(name) else f"header {_titled(name)}"
    if where != RESPONSE_HEADER:
        return "the body of the response"
    return "" if facts.tell(f"response:{name}") else f"response header {_titled(name)}"


def _plan_missing(policy: Policy, rule: Rule, facts: Facts) -> str:
    return _named_plan_missing(policy, facts) if rule.plans else ""


def _named_plan_missing(policy: Policy, facts: Facts) -> str:
    """Return what a log does not tell of the place that names the plan of a request."""
    choice = policy.plan
    if choice is None:
        return ""
    missing = [_source_missing(source, facts) for source in choice.headers]
    if missing and all(missing):
        return missing[0]
    return "" if missing or policy.identity is None else _CREDENTIALS


def _principal_missing(rule: Rule, facts: Facts) -> str:
    """Return what is missing for every alternative of the rule's principal; empty if one is told."""
    missing = [_source_missing(each, facts) for each in rule.principal]
    return missing[0] if missing and all(missing) else ""


def _first_told(rule: Rule, facts: Facts) -> str:
    return next(str(each) for each in rule.principal if not _source_missing(each, facts))


def _source_missing(source: Source, facts: Facts) -> str:
    """Return what *source*, or a part of it, needs that a log does not tell."""
    if source.parts:
        return next(filter(None, (_source_missing(each, facts) for each in source.parts)), "")
    if source.kind in ("header", "cookie", "query"):
        return _place_missing(source.kind, source.name, facts)
    return {
        "bearer": "" if facts.tell_header("authorization") else "header Authorization",
        "client": "" if facts.tell("client") else "the address of the client",
        "path": "",
        "everyone": "",
        "org": _CREDENTIALS,
        "identified": _CREDENTIALS,
    }.get(source.kind, "the body")


def _titled(name: str) -> str:
    return "-".join(part.capitalize() for part in name.split("-"))


def header_sources(policy: Policy) -> list[str]:
    """Return the headers in which rules of *policy* find their principal, by which `--principal` is passed on."""
    found: dict[str, None] = {}
    for rule in policy.rules:
        for source in rule.principal:
            for each in source.each:
                if each.kind in ("header", "bearer"):
                    found[each.name or "authorization"] = None
    return list(found)


def _charged_to_named(rule: Rule) -> Rule:
    """Return *rule* as it charges the caller that `--principal` names: under its own header, if it has one.

    A rule that charges a part of the request, such as its path, charges that.
    """
    kinds = {each.kind for source in rule.principal for each in source.each}
    if kinds & {"everyone", "header", "bearer", "path", "query", "cookie"}:
        return rule
    return replace(rule, principal=(Source("header", PRINCIPAL_HEADER), *rule.principal))
