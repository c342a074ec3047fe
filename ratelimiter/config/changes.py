"""Differences between two policies in the words of an operator: `per-minute 60 -> 6 per minute`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from ratelimiter.config.redact import without_secrets
from ratelimiter.core.policy import Policy
from ratelimiter.parsing.units import spell_limit

if TYPE_CHECKING:
    from ratelimiter.core.rule import Rule

CHANGES_MAX = 20  # in one line of the log


def changes(before: Policy, after: Policy) -> list[str]:
    """Return a phrase for each change, rules first; no value of a secret is among them."""
    old = {rule.name: rule for rule in before.rules}
    new = {rule.name: rule for rule in after.rules}
    told = [f"{name} removed" for name in old if name not in new]
    told += [f"{name} added, {spell_limit(rule.quota)}" for name, rule in new.items() if name not in old]
    for name, rule in new.items():
        if name in old and old[name] != rule:
            told.append(_rule_change(old[name], rule))
    for field in fields(Policy):
        if field.name != "rules" and field.init and getattr(before, field.name) != getattr(after, field.name):
            told.append(_field_change(field.name, before, after))
    if len(told) > CHANGES_MAX:
        told = [*told[:CHANGES_MAX], f"and {len(told) - CHANGES_MAX} more changes"]
    return told


def _rule_change(old: Rule, new: Rule) -> str:
    if old.quota == new.quota:
        names = [f.name for f in fields(new) if f.init and getattr(old, f.name) != getattr(new, f.name)]
        return f"{new.name} {', '.join(names)} changed"
    same_window = old.quota.kind == new.quota.kind and old.quota.window_ms == new.quota.window_ms
    return f"{new.name} {old.quota.limit if same_window else spell_limit(old.quota)} -> {spell_limit(new.quota)}"


def _field_change(name: str, before: Policy, after: Policy) -> str:
    if name == "store":
        return f"store {without_secrets(before.store)} -> {without_secrets(after.store)}"
    if name in ("dialect", "name", "local_share", "decision_timeout_ms"):
        return f"{name} {getattr(before, name)} -> {getattr(after, name)}"
    return f"{name} changed"
