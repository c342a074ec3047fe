"""Descriptors of a rate limit service: lists of keys and values, the rules that mean them, and their charges."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.policy import key_of
from ratelimiter.core.quota import LIMIT_MAX, Quota
from ratelimiter.core.rule import Hit, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ratelimiter.core.policy import Policy
    from ratelimiter.core.principal import PrincipalReader

Entry = tuple[str, str]  # key and value

UNLIMITED = "unlimited"  # answers of rules that count nothing
BLOCKED = "blocked"
SOURCE = "descriptor"  # of the principals of descriptors
PLANNED_MAX = 8192  # descriptors whose hits are remembered
BYTES_MAX = 1024  # of the keys and values of one that is remembered


@dataclass(frozen=True, slots=True)
class EntryMatch:
    """The condition on one entry of a descriptor.

    Args:
        key: of the entry.
        pattern: the value, with `*` for any characters; None for any value.
        charged: True if each value is counted by itself; False if all that fit share one count.
        excepted: patterns of values that do not fit after all.
    """

    key: str
    pattern: str | None = None
    charged: bool = True
    excepted: tuple[str, ...] = ()
    _fits: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _excepted: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fits = None if self.pattern in (None, "*") else _compiled((str(self.pattern),))
        object.__setattr__(self, "_fits", fits)
        object.__setattr__(self, "_excepted", _compiled(self.excepted) if self.excepted else None)

    def fits(self, value: str) -> bool:
        """Return True if an entry of this key with *value* is meant."""
        if self._fits is not None and not self._fits.fullmatch(value):
            return False
        return self._excepted is None or not self._excepted.fullmatch(value)


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_translated, patterns)), re.DOTALL)


def _translated(pattern: str) -> str:
    """Return *pattern* as a regular expression. Each part between two stars is looked for from the left and kept where
    it was found first, in an atomic group, so that no value makes the search try again.
    """
    first, *parts = pattern.split("*")
    if not parts:
        return re.escape(first)
    *middle, last = parts
    found = "".join(f"(?>.*?{re.escape(part)})" for part in middle if part)
    return f"{re.escape(first)}{found}.*{re.escape(last)}"


@dataclass(frozen=True)
class DescriptorMatch:
    """The descriptors that a rule applies to: those that have exactly its keys. Entries of different keys may come in
    any order; entries of one key are compared in theirs.

    Args:
        entries: at least one.
        charged: keys whose values are counted; None for all entries that say so themselves.
        answer: of a rule that counts nothing, `UNLIMITED` or `BLOCKED`; else empty.
        refunds: True if callers may give back what was charged.
        candidate: True if the rule refuses a call only if all candidates that the call meets refuse it.
        replaces: names of rules that do not apply to a call that meets this one.
        domain: the one domain that the rule is of; empty for every one that the policy answers for.
    """

    entries: tuple[EntryMatch, ...]
    charged: tuple[str, ...] | None = None
    answer: str = ""
    refunds: bool = False
    candidate: bool = False
    replaces: tuple[str, ...] = ()
    domain: str = ""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys, sorted."""
        return tuple(sorted(entry.key for entry in self.entries))

    @cached_property
    def _sorted(self) -> tuple[EntryMatch, ...]:
        return tuple(sorted(self.entries, key=lambda entry: entry.key))

    def value_of(self, entries: Sequence[Entry]) -> bytes | None:
        """Return what a descriptor of *entries*, sorted by key and of these keys, is counted by; None if its values do
        not fit.
        """
        if not all(match.fits(value) for match, (_, value) in zip(self._sorted, entries, strict=True)):
            return None
        pairs = zip(self._sorted, entries, strict=True)
        if self.charged is None:
            counted = [entry for match, entry in pairs if match.charged]
        else:
            counted = [entry for entry in entries if entry[0] in self.charged]
        # With the length before each part, so that no two lists read the same (7).
        return b"".join(b"%d:%s" % (len(part), part) for entry in counted for part in map(str.encode, entry))


class Override(NamedTuple):
    """The limit that a caller wants instead of what the policy says."""

    limit: int  # 0 refuses everything
    window_ms: int


class Planned(NamedTuple):
    """The charges and rules of one descriptor, for one unit."""

    hits: tuple[Hit, ...] = ()
    answers: tuple[Rule, ...] = ()  # rules that count nothing
    matched: bool = False


class DescriptorPlanner:
    """The rules of a policy that mean descriptors, ready to be asked.

    Args:
        policy: whose rules.
        reader: makes digests of principals.
    """

    def __init__(self, policy: Policy, reader: PrincipalReader) -> None:
        self.policy = policy
        self._reader = reader
        self._by_keys: dict[tuple[str, ...], list[tuple[Rule, DescriptorMatch]]] = {}
        for rule in policy.rules:
            if rule.descriptors is not None:
                self._by_keys.setdefault(rule.descriptors.keys, []).append((rule, rule.descriptors))
        self._planned: dict[tuple[str, tuple[Entry, ...], Override | None], Planned] = {}

    def plan(self, domain: str, entries: tuple[Entry, ...], override: Override | None = None) -> Planned:
        """Return what the descriptor of *entries* in *domain* meets."""
        key = (domain, entries, override)
        planned = self._planned.get(key)
        if planned is None:
            planned = self._plan(domain, entries, override)
            if sum(len(part) for entry in entries for part in entry) <= BYTES_MAX:
                if len(self._planned) >= PLANNED_MAX:
                    self._planned.clear()
                self._planned[key] = planned
        return planned

    def _plan(self, domain: str, entries: tuple[Entry, ...], override: Override | None) -> Planned:
        if self.policy.domain and domain != self.policy.domain:
            return Planned()
        ordered = tuple(sorted(entries, key=lambda entry: entry[0]))
        keys = tuple(key for key, _ in ordered)
        if override is not None:
            return self._overridden(domain, ordered, override)
        hits: list[Hit] = []
        answers: list[Rule] = []
        for rule, match in self._by_keys.get(keys, ()):
            value = match.value_of(ordered) if match.domain in ("", domain) else None
            if value is None:
                continue
            if match.answer:
                answers.append(rule)
            else:
                hits += self._hits(domain, rule, value)
        return Planned(tuple(hits), tuple(answers), bool(hits or answers))

    def _overridden(self, domain: str, ordered: tuple[Entry, ...], override: Override) -> Planned:
        """Plan a limit of the caller's own: it counts by all keys and values, and no rule of the policy applies."""
        every = DescriptorMatch(
            tuple(EntryMatch(key) for key, _ in ordered), answer="" if override.limit else BLOCKED, refunds=True
        )
        quota = Quota(min(max(override.limit, 1), LIMIT_MAX), override.window_ms)
        rule = Rule(OVERRIDDEN, quota, descriptors=every, lease=0)
        if not override.limit:
            return Planned((), (rule,), True)
        return Planned(self._hits(domain, rule, every.value_of(ordered) or b""), (), True)

    def _hits(self, domain: str, rule: Rule, value: bytes) -> tuple[Hit, ...]:
        told = domain.encode()
        principal = self._reader.principal(SOURCE, b"%d:%s%s" % (len(told), told, value))
        return tuple(
            Hit(key_of(self.policy, rule, principal, index), quota, rule.cost, rule)
            for index, quota in enumerate(rule.quotas)
        )


OVERRIDDEN = "override"  # the rule of a limit that a caller says; also a label of metrics
