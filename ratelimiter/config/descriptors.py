"""`descriptors:` of a rule, and the fields that only such a rule has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ratelimiter.core.descriptors import BLOCKED, SOURCE, UNLIMITED, DescriptorMatch, EntryMatch
from ratelimiter.core.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ratelimiter.parsing.document import Path

FIELD = "descriptors"
ANSWERS = (UNLIMITED, BLOCKED)  # limits that count nothing
ONLY_HERE = ("domain", "refunds", "candidate", "replaces")  # fields that mean nothing for rules without descriptors
NEVER_HERE = ("match", "count", "cost_from", "tokens")  # fields that are about requests and their responses
PLACEHOLDER = Quota(1, 1000)  # the quota of a rule that counts nothing; never charged


def read_match(path: Path, rule: Mapping[str, Any], refuse: Callable[..., None]) -> DescriptorMatch | None:
    """Return the condition of *rule*, a mapping that fits the schema; None if any of it is refused.

    Args:
        path: path of the rule.
        rule: the rule as the file states it.
        refuse: takes a path and the fault there.
    """
    faulty = False
    for name in NEVER_HERE:
        if name in rule:
            faulty = True
            refuse(
                (*path, name),
                "is about requests, and a rule with descriptors applies to none; leave it out",
                at_key=True,
            )
    if isinstance(rule.get("limit"), dict):
        faulty = True
        refuse((*path, "limit"), "is by plan, which descriptors are not on; write one limit")
    entries = []
    for index, item in enumerate(rule[FIELD]):
        try:
            entries.append(_entry(item))
        except ValueError as fault:
            faulty = True
            refuse((*path, FIELD, index), str(fault))
    charged = None
    if "principal" in rule:
        try:
            charged = _charged(rule["principal"], {entry.key for entry in entries})
        except ValueError as fault:
            faulty = True
            refuse((*path, "principal"), str(fault))
    if faulty:
        return None
    answer = rule["limit"] if rule["limit"] in ANSWERS else ""
    replaces = rule.get("replaces", [])
    return DescriptorMatch(
        tuple(entries),
        charged,
        answer,
        rule.get("refunds", False),
        rule.get("candidate", False),
        (replaces,) if isinstance(replaces, str) else tuple(replaces),
        rule.get("domain", ""),
    )


def refuse_strangers(path: Path, rule: Mapping[str, Any], refuse: Callable[..., None]) -> None:
    """Refuse fields that only a rule with descriptors has; *rule* has none."""
    for name in ONLY_HERE:
        if name in rule:
            refuse((*path, name), "means nothing without descriptors; write descriptors, or leave it out", at_key=True)
    if rule.get("limit") in ANSWERS:
        text = f"{rule['limit']!r} is a limit of a rule with descriptors; write descriptors, or a limit like 60/minute"
        refuse((*path, "limit"), text)


def _entry(item: Any) -> EntryMatch:
    if isinstance(item, str):
        return EntryMatch(item)
    if len(item) != 1:
        msg = "has more than one key; write a list item for each"
        raise ValueError(msg)
    key, value = next(iter(item.items()))
    if not isinstance(value, dict):
        return EntryMatch(key, str(value), charged=False)
    if "each" in value and "any" in value:
        msg = "has each, which counts every value by itself, and any, which counts them together; write one of them"
        raise ValueError(msg)
    excepted = value.get("except", [])
    excepted = (excepted,) if isinstance(excepted, str) else tuple(excepted)
    return EntryMatch(key, value.get("each", value.get("any")), "any" not in value, excepted)


def _charged(value: Any, keys: set[str]) -> tuple[str, ...]:
    found = []
    for text in [value] if isinstance(value, str) else value:
        kind, _, key = text.partition(":")
        if text == "everyone":
            continue
        if kind != SOURCE or key not in keys:
            known = ", ".join(f"{SOURCE}:{each}" for each in sorted(keys))
            msg = f"{text!r} is nothing that these descriptors have; write {known} or everyone"
            raise ValueError(msg)
        found.append(key)
    return tuple(found)
