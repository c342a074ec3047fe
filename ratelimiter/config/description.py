"""A policy as its callers may read it: limits, paths and principals, without keys, stores and secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter import __version__
from ratelimiter.config.redact import fingerprint, without_secrets
from ratelimiter.core.rule import Mode
from ratelimiter.parsing.document import shown_name
from ratelimiter.parsing.units import UNLIMITED, spell_limit

if TYPE_CHECKING:
    import os

    from ratelimiter.core.match import Match
    from ratelimiter.core.policy import Policy
    from ratelimiter.core.rule import Rule

RULES_TOLD = 10  # at the start of a process
HEAD = ("Limit", "Applies to", "Counted for", "Burst", "Cost")


def describe(policy: Policy) -> dict[str, Any]:
    """Return the published limits of *policy*, ready for JSON. Rules in shadow mode and on descriptors are left out."""
    rules = [rule for rule in policy.rules if rule.mode is Mode.ENFORCE and rule.descriptors is None]
    return {
        "dialect": policy.dialect.rpartition("/")[2],
        "headers": list(policy.headers),
        "plans": [] if policy.plan is None else sorted({plan for rule in rules for plan, _ in rule.plans}),
        "rules": [_described(rule) for rule in rules],
    }


def summary(policy: Policy, file: str | os.PathLike[str] | None = None) -> list[str]:
    """Return the lines that a process prints at its start: version, policy, store and rules."""
    source = f" ({shown_name(file)})" if file is not None else ""
    trusted = "" if policy.trust.anyone else ", no proxy is trusted"
    named = f"policy {fingerprint(policy)}{source}, store {without_secrets(policy.store)}"
    lines = [f"  ratelimiter {__version__}, {named}, dialect {policy.dialect.rpartition('/')[2]}{trusted}"]
    for rule in policy.rules[:RULES_TOLD]:
        limits = [f"{plan}: {UNLIMITED if quota is None else spell_limit(quota)}" for plan, quota in rule.plans]
        burst = f", burst {rule.burst}" if rule.burst else ""
        shadow = ", in shadow mode" if rule.shadow else ""
        principal = " or ".join(str(source) for source in rule.principal)
        where = "" if rule.match.everything else f", {_conditions(rule.match)}"
        limit = ", ".join(limits) or spell_limit(rule.quota)
        lines.append(f"  {rule.name}: {limit}{burst} by {principal}{where}{shadow}")
    if len(policy.rules) > RULES_TOLD:
        lines.append(f"  and {len(policy.rules) - RULES_TOLD} more rules")
    return lines


def markdown(policy: Policy) -> list[str]:
    """Return the published limits of *policy* as lines of a Markdown table."""
    rows = [HEAD]
    for rule in describe(policy)["rules"]:
        limits = rule["limits"] or {"": rule["limit"]}
        limit = "<br>".join(f"{plan}: {text}" if plan else text for plan, text in limits.items())
        rows.append((limit, rule["applies_to"], rule["counted_for"], str(rule["burst"] or ""), str(rule["cost"])))
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {lines[0]} |", "|" + "---|" * len(HEAD), *(f"| {line} |" for line in lines[1:])]


def _described(rule: Rule) -> dict[str, Any]:
    limits = {plan: UNLIMITED if quota is None else spell_limit(quota) for plan, quota in rule.plans}
    return {
        "name": rule.name,
        "limit": spell_limit(rule.quota),
        "limits": limits,
        "window_ms": rule.quota.window_ms,
        "burst": rule.burst,
        "cost": rule.cost,
        "applies_to": _conditions(rule.match),
        "counted_for": " or ".join(str(source) for source in rule.principal),
        "counts": sorted(rule.count),
    }


def _conditions(match: Match) -> str:
    methods = " ".join(sorted(match.methods)) or "all methods"
    path: object = match.path
    paths = " ".join(path) if isinstance(path, tuple | list | frozenset) else str(path or "all paths")
    text = "all requests" if match.everything else f"{methods}, {paths}"
    if match.excepted:
        text += f", except {' '.join(match.excepted)}"
    if match.json:
        text += f", by JSON {' '.join(field.name for field in match.json)}"
    return text
