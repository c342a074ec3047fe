"""A rule: one limit on the requests that match, kept for each principal; and its hit, the charge of one request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from ratelimiter.core.match import Match
from ratelimiter.core.principal import CLIENT, OF_BODY, OF_REQUEST, Source
from ratelimiter.core.quota import LIMIT_MAX, WINDOW_MS_MAX, AnyQuota, Balance, Period, Quota, Slots

if TYPE_CHECKING:
    from ratelimiter.core.descriptors import DescriptorMatch
    from ratelimiter.core.token_terms import TokenTerms

LONG_WINDOWS = 10  # how many windows the second quota of a burst spans
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
NAME_CHARACTERS_MAX = 64


class OnStoreError(StrEnum):
    """Treatments of a request when the store gives no answer in time."""

    ALLOW = "allow"
    DENY = "deny"
    LOCAL = "local"


class Mode(StrEnum):
    """Modes of a rule: its refusals are carried out, or only reported."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class CostFrom(NamedTuple):
    """The place where the cost of a request is told."""

    where: str  # one of `COST_PLACES`
    name: str  # of a header, in lower case; or the path of a member, with dots


REQUEST_HEADER = "request_header"  # known before the decision
RESPONSE_HEADER = "response_header"  # known after it, and settled then
RESPONSE_JSON = "response_json"  # likewise, by a member of the answer's body or of the events of its stream
COST_PLACES = (REQUEST_HEADER, RESPONSE_HEADER, RESPONSE_JSON)


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit on the requests that match, kept for each principal.

    Args:
        name: 1 to 64 of `a-z 0-9 - _ .`; part of the key, so renaming a rule starts its counters anew.
        quota: how much, of whatever kind.
        burst: units above the limit that one window may hold; over ten windows they are granted once. Only of windows:
            what a bucket grants at once is its own limit.
        match: which requests; all by default.
        principal: sources of the principal that is charged, in order; the client's address when none is found.
        cost: units that one request is charged; 0 counts nothing and never refuses.
        mode: enforce, or shadow: count and report, never refuse.
        on_store_error: what to do without the store. Of credits `local` means `deny`: an outage must not hand any out.
        count: only responses of these counts: statuses like `401`, classes like `4xx`; empty counts every request. It
            is charged before and given back after, so there is no moment between a look and a charge.
        cost_from: where the cost of a request is told; if by its response, *cost* is the most, reserved before.
        plans: the quota of each plan that has another one; None for a plan without a limit. All of *quota*'s kind.
        warn_at: the share of the limit, above 0 to 1, from which on it is reported as nearly used up.
        quiet: True if header fields do not mention it until it refuses; its limit then is not told either,
            if a rule that is not quiet applies, too.
        announce: True to tell clients of a rule in shadow mode beside enforced rules, as if it were enforced.
        tokens: units are tokens of a language model, reserved by an estimate and settled by the answer; None if not.
        instead: True if the rules before it that match the same request do not apply to it, unless they are *always*.
        always: True if no later rule stands in for it.
        descriptors: of calls to the decision service; such a rule applies to these and to no request. None for a rule
            that applies to requests.
        lease: units that one process may take in advance, 0 to 10^9; 0 asks the store for each request.

    Attributes:
        quotas: what a request is charged to: one, or two with a burst.
        shadow: True if it is in shadow mode.
        silent: True if admitted clients are told nothing of it while an enforced rule applies, too.
        settles: True if its hits are settled after the decision (`count`, `cost_from`, slots).
        leased: True if its hits are leases.
        metered: True if the body of a response settles its hits.
        near: with so few units remaining, or fewer, the limit is nearly used up.

    Raises:
        ValueError: a value is outside its range.
    """

    name: str
    quota: AnyQuota
    burst: int = 0
    match: Match = field(default_factory=Match)
    principal: tuple[Source, ...] = (CLIENT,)
    cost: int = 1
    mode: Mode = Mode.ENFORCE
    on_store_error: OnStoreError = OnStoreError.LOCAL
    count: frozenset[str] = frozenset()
    cost_from: CostFrom | None = None
    plans: tuple[tuple[str, AnyQuota | None], ...] = ()
    warn_at: float = 0.8
    quiet: bool = False
    instead: bool = False
    always: bool = False
    announce: bool = False
    descriptors: DescriptorMatch | None = None
    lease: int = LIMIT_MAX
    tokens: TokenTerms | None = None
    quotas: tuple[AnyQuota, ...] = field(init=False)
    shadow: bool = field(init=False)
    silent: bool = field(init=False)
    settles: bool = field(init=False)
    leased: bool = field(init=False)
    metered: bool = field(init=False)
    near: int = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= NAME_CHARACTERS_MAX or not NAME_CHARACTERS.issuperset(self.name):
            msg = f"name must be 1 to {NAME_CHARACTERS_MAX} of a-z 0-9 - _ . and not {self.name!r}"
            raise ValueError(msg)
        if self.burst and not isinstance(self.quota, Quota):
            msg = f"burst must be 0 with a limit of this kind ({self.quota.kind}), not {self.burst}"
            raise ValueError(msg)
        if not 0 <= self.burst <= LIMIT_MAX - self.quota.limit * LONG_WINDOWS and self.burst:
            msg = f"burst must be 0 to {LIMIT_MAX} less {LONG_WINDOWS} times the limit, not {self.burst}"
            raise ValueError(msg)
        if self.burst and self.quota.window_ms * LONG_WINDOWS > WINDOW_MS_MAX:
            longest_ms = WINDOW_MS_MAX // LONG_WINDOWS
            msg = f"a burst spans {LONG_WINDOWS} windows, so window_ms must be at most {longest_ms} with one"
            raise ValueError(msg)
        if not 0 <= self.cost <= LIMIT_MAX:
            msg = f"cost must be 0 to {LIMIT_MAX}, not {self.cost}"
            raise ValueError(msg)
        if not 0 <= self.lease <= LIMIT_MAX:
            msg = f"lease must be 0 to {LIMIT_MAX}, not {self.lease}"
            raise ValueError(msg)
        self._check_what_is_settled()
        without_store = OnStoreError(self.on_store_error)
        if self.quota.credits and without_store is OnStoreError.LOCAL:
            without_store = OnStoreError.DENY
        object.__setattr__(self, "mode", Mode(self.mode))
        object.__setattr__(self, "on_store_error", without_store)
        object.__setattr__(self, "quotas", _quotas(self.quota, self.burst))
        object.__setattr__(self, "shadow", self.mode is Mode.SHADOW)
        object.__setattr__(self, "silent", self.quiet or (self.shadow and not self.announce))
        metered = self.tokens is not None or _told_by(self.cost_from, RESPONSE_JSON)
        object.__setattr__(self, "metered", metered)
        later = bool(self.count) or metered or _told_by(self.cost_from, RESPONSE_HEADER)
        slots = isinstance(self.quota, Slots)
        object.__setattr__(self, "settles", later or slots)
        object.__setattr__(self, "leased", slots or (later and isinstance(self.quota, Period | Balance)))

        # In decimals, as it was written: in binary 0.7 of ten is less than seven.
        warned_at = ceil(self.quota.limit * Fraction(str(self.warn_at)))
        object.__setattr__(self, "near", self.quota.limit - warned_at)

    @property
    def keyed_by(self) -> tuple[Source, ...]:
        """The single sources of its principal that are not in watched headers."""
        return tuple(each for source in self.principal for each in source.each if each.kind in OF_REQUEST)

    @property
    def keyed_by_body(self) -> bool:
        """True if its principal may be in the body."""
        return any(source.kind in OF_BODY for source in self.keyed_by)

    @property
    def keyed_by_path(self) -> bool:
        """True if its principal may be in the path."""
        return any(source.kind == "path" for source in self.keyed_by)

    def _check_what_is_settled(self) -> None:
        for status in self.count:
            if not _STATUS.fullmatch(status):
                msg = f"count must be of statuses like 401 or classes like 4xx, not {status!r}"
                raise ValueError(msg)
        by_response = any(_told_by(self.cost_from, where) for where in (RESPONSE_HEADER, RESPONSE_JSON))
        if isinstance(self.quota, Slots) and (self.count or self.tokens is not None or by_response):
            msg = "count, tokens and cost_from of a response do nothing for concurrent requests: all is given back"
            raise ValueError(msg)
        if self.tokens is not None and self.cost_from is not None:
            msg = "tokens and cost_from exclude each other"
            raise ValueError(msg)
        if self.cost_from is not None:
            where, name = self.cost_from
            if where not in COST_PLACES:
                msg = f"cost_from must be of one of {', '.join(COST_PLACES)}, not {where!r}"
                raise ValueError(msg)
            if not name or (where != RESPONSE_JSON and name != name.lower()):
                msg = f"the header of cost_from must be named in lower case, not {name!r}"
                raise ValueError(msg)
        plans = [plan for plan, _ in self.plans]
        if len(plans) > len(set(plans)):
            msg = f"plans must differ: {', '.join(plans)}"
            raise ValueError(msg)
        others = sorted({quota.kind for _, quota in self.plans if quota is not None} - {self.quota.kind})
        if others:
            msg = f"plans must have a limit of the rule's kind ({self.quota.kind}), not of {', '.join(others)}"
            raise ValueError(msg)
        if not 0 < self.warn_at <= 1:
            msg = f"warn_at must be above 0 and at most 1, not {self.warn_at}"
            raise ValueError(msg)


def _told_by(source: CostFrom | None, where: str) -> bool:
    return source is not None and source.where == where


_STATUS = re.compile(r"[1-5]([0-9]{2}|xx)")


def _quotas(quota: AnyQuota, burst: int) -> tuple[AnyQuota, ...]:
    if not burst or not isinstance(quota, Quota):
        return (quota,)
    longer = Quota(quota.limit * LONG_WINDOWS + burst, quota.window_ms * LONG_WINDOWS)
    return (Quota(quota.limit + burst, quota.window_ms), longer)


class Hit(NamedTuple):
    """One charge of *cost* against one key and quota. A named tuple, like all that the hot path builds."""

    key: bytes
    quota: AnyQuota
    cost: int
    rule: Rule
    # 0: what is charged stays charged. Else the charge is a lease, and this names it: a random number below 2^48,
    # another for each request. It ends by itself `quota.lease_ttl_ms` after it was made or last renewed.
    lease: int = 0
